//! Receivers that form a ring.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::http::{self, Answer, Request};
use crate::ports;
use crate::process::{Process, wait_for};

/// A receiver with a directory and ports of its own, which it keeps when it is started again.
/// Killed when dropped.
pub(crate) struct Node {
    name: String,
    args: Vec<String>,
    env: Vec<(String, OsString)>,
    forward_timeout: &'static str,
    /// This build's, if not another's.
    binary: PathBuf,
    pub(crate) data: PathBuf,
    log: PathBuf,
    /// `host:port` of metrics, probes, remote read and the ring's page.
    pub(crate) http: String,
    /// `host:port` of gRPC, by which the ring's file names the node.
    pub(crate) grpc: String,
    /// `host:port` of remote write.
    pub(crate) write: String,
    /// `host:port` of Cap'n Proto replication.
    pub(crate) capnproto: String,
    process: Option<Process>,
}

impl Node {
    /// A node that is still to be [started](Node::start).
    pub(crate) fn new(root: &Path, name: &str) -> Node {
        let ports = ports::free(4);
        let address = |i: usize| format!("127.0.0.1:{}", ports[i]);
        let data = root.join(name);
        let args = vec![
            format!("--http-address={}", address(0)),
            format!("--grpc-address={}", address(1)),
            format!("--remote-write.address={}", address(2)),
            format!("--receive.capnproto-address={}", address(3)),
            format!("--tsdb.path={}", data.display()),
            format!("--label=replica=\"{name}\""),
        ];
        Node {
            name: name.to_owned(),
            args,
            env: Vec::new(),
            forward_timeout: "20s",
            binary: env!("CARGO_BIN_EXE_ringest").into(),
            log: data.with_extension("log"),
            data,
            http: address(0),
            grpc: address(1),
            write: address(2),
            capnproto: address(3),
            process: None,
        }
    }

    /// Makes it follow a ring's file.
    pub(crate) fn with_ring(mut self, hashrings: &Path, factor: usize) -> Node {
        self.args.push(format!("--receive.hashrings-file={}", hashrings.display()));
        self.args.push(format!("--receive.replication-factor={factor}"));
        self
    }

    /// Makes it call its peers over Cap'n Proto.
    pub(crate) fn with_capnproto(mut self) -> Node {
        self.args.push("--receive.replication-protocol=capnproto".to_owned());
        self
    }

    /// Makes it a member of its ring.
    pub(crate) fn with_local_endpoint(mut self) -> Node {
        self.args.push(format!("--receive.local-endpoint={}", self.grpc));
        self
    }

    /// Makes it wait so long for peers, instead of longer than any that are merely busy take.
    pub(crate) fn with_forward_timeout(self, forward_timeout: &'static str) -> Node {
        Node { forward_timeout, ..self }
    }

    /// Makes it another program when it is started next.
    pub(crate) fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Gives it another flag.
    pub(crate) fn with_arg(mut self, arg: &str) -> Node {
        self.args.push(arg.to_owned());
        self
    }

    /// Gives it a variable of its environment.
    pub(crate) fn with_env(mut self, name: &str, value: impl Into<OsString>) -> Node {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Starts it, for the first time or again, and waits until it is ready.
    pub(crate) fn start(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts it without waiting.
    pub(crate) fn launch(&mut self) {
        let mut command = Command::new(&self.binary);
        command.arg("receive").args(&self.args).envs(self.env.iter().cloned());
        command.arg(format!("--receive-forward-timeout={}", self.forward_timeout));
        self.process = Some(Process::start(&mut command, &self.log));
    }

    pub(crate) fn wait_ready(&mut self) {
        self.wait_until("is ready", |node| {
            assert_eq!(node.process().exited(), None, "{}", node.process().log());
            let answer = http::exchange(&node.http, &Request::new("GET", "/-/ready"));
            answer.is_some_and(|answer| answer.status == 200)
        });
    }

    /// SIGTERM, and waits for the end, which must be a clean one.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.wait_end();
    }

    /// Waits for the end of one that was told to stop, which must be a clean one.
    pub(crate) fn wait_end(&mut self) {
        let mut process = self.process.take().expect("a node that runs");
        assert_eq!(process.wait_exit(), Some(0), "exit code of {}: {}", self.name, process.log());
    }

    /// kill -9, and waits until the process is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        let mut process = self.process.take().expect("a node that runs");
        assert_eq!(process.wait_exit(), Some(-9), "{} ended: {}", self.name, process.log());
    }

    /// Sends it a signal.
    pub(crate) fn signal(&mut self, signal: Signal) {
        self.process().signal(signal);
    }

    /// What it has logged.
    pub(crate) fn log(&mut self) -> String {
        self.process().log()
    }

    /// The most memory that it has had resident.
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        let process: &Child = self.process.as_ref().expect("a node that runs").as_ref();
        let status = format!("/proc/{}/status", process.id());
        let status = fs::read_to_string(status).expect("state of the process");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.expect("a peak").trim().strip_suffix(" kB").expect("in kB");
        peak.parse::<u64>().expect("a number") << 10
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a node that runs")
    }

    /// Waits for a condition.
    pub(crate) fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&mut Node) -> bool) {
        let held = wait_for(|| holds(self).then_some(()));
        if held.is_none() {
            let log = self.process().log();
            panic!("never: {} {what}: {log}", self.name);
        }
    }

    /// The ring's page.
    pub(crate) fn ring(&self) -> Value {
        let answer = self.get("/api/v1/ring");
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// What the ring's page says about a member of its only ring.
    pub(crate) fn member(&self, address: &str) -> Value {
        let ring = self.ring();
        let members = ring["hashrings"][0]["members"].as_array().expect("members");
        let member = members.iter().find(|member| member["address"] == address);
        member.unwrap_or_else(|| panic!("{address} is not in {ring}")).clone()
    }

    /// Waits until the ring's page calls a member so.
    pub(crate) fn wait_member(&mut self, address: &str, state: &str) {
        self.wait_until(&format!("calls {address} {state}"), |node| {
            node.member(address)["state"] == state
        });
    }

    /// Waits until the ring's file in force has this content, of which the ring's page shows the
    /// first 48 bits of its SHA-256, the lowest byte first.
    pub(crate) fn wait_content(&mut self, content: &str) {
        let digest = Sha256::digest(content);
        let hash = digest[..6].iter().rev().fold(0, |hash, byte| hash << 8 | u64::from(*byte));
        self.wait_until(&format!("takes {content}"), |node| node.ring()["hash"] == hash);
    }

    /// Waits until it is connected to all other members that it knows of.
    pub(crate) fn wait_others(&mut self) {
        self.wait_until("finds the others", |node| {
            let ring = node.ring();
            let members = ring["hashrings"][0]["members"].as_array().expect("members");
            members.iter().all(|member| member["state"] == "local" || member["state"] == "open")
        });
    }

    /// The sum over all series of a metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "")
    }

    /// The sum over those whose labels, as they are exposed, hold `label`.
    pub(crate) fn metric_with(&self, name: &str, label: &str) -> f64 {
        let page = String::from_utf8(self.get("/metrics").body).expect("UTF-8");
        let is_asked_for = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']) && rest.contains(label))
        };
        let values =
            page.lines().filter(is_asked_for).map(|line| line.rsplit_once(' ').expect(line).1);
        values.map(|value| value.parse::<f64>().expect("a number")).sum()
    }

    fn get(&self, path: &str) -> Answer {
        let answer = http::exchange(&self.http, &Request::new("GET", path));
        let answer = answer.unwrap_or_else(|| panic!("{} does not answer", self.name));
        assert_eq!(answer.status, 200, "{path} of {}", self.name);
        answer
    }

    /// Posts a `prometheus.WriteRequest` of the default tenant.
    pub(crate) fn send(&self, message: &[u8]) -> Answer {
        self.send_as("default-tenant", message)
    }

    /// Posts a `prometheus.WriteRequest` of any tenant.
    pub(crate) fn send_as(&self, tenant: &str, message: &[u8]) -> Answer {
        let mut request = Request::new("POST", "/api/v1/receive");
        request.headers.push(("THANOS-TENANT".to_owned(), tenant.as_bytes().to_vec()));
        request.body = Some(snap::raw::Encoder::new().compress_vec(message).expect("snappy"));
        http::exchange(&self.write, &request).expect("an answer to a write")
    }
}

/// Nodes that are all members of one ring and share its file.
pub(crate) struct Ring {
    pub(crate) nodes: Vec<Node>,
    pub(crate) hashrings: PathBuf,
    pub(crate) root: tempfile::TempDir,
}

impl Ring {
    /// Starts all, and waits until they are ready and have found each other.
    pub(crate) fn start(count: usize, factor: usize) -> Ring {
        Ring::start_with(count, factor, |node| node)
    }

    /// The same with nodes that are changed before.
    pub(crate) fn start_with(count: usize, factor: usize, change: impl Fn(Node) -> Node) -> Ring {
        let root = tempfile::tempdir().expect("temporary directory");
        let hashrings = root.path().join("hashrings.json");
        let mut nodes = members(root.path(), &hashrings, count, factor);
        nodes = nodes.into_iter().map(change).collect();
        fs::write(&hashrings, ketama(&nodes)).expect("the ring's file");
        start_all(&mut nodes);
        Ring { nodes, hashrings, root }
    }
}

/// Nodes that follow one file and may be members of its ring. Neither is there yet.
pub(crate) fn members(root: &Path, hashrings: &Path, count: usize, factor: usize) -> Vec<Node> {
    let node = |i| Node::new(root, &format!("node-{i}"));
    (0..count).map(|i| node(i).with_ring(hashrings, factor).with_local_endpoint()).collect()
}

/// Starts all nodes, and waits until they are ready and have found the members they know of.
pub(crate) fn start_all(nodes: &mut [Node]) {
    nodes.iter_mut().for_each(Node::launch);
    nodes.iter_mut().for_each(Node::wait_ready);
    nodes.iter_mut().for_each(Node::wait_others);
}

/// A ring's file.
pub(crate) fn ketama<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> String {
    hashrings("ketama", nodes)
}

/// A ring's file with an algorithm of choice.
pub(crate) fn hashrings<'a>(algorithm: &str, nodes: impl IntoIterator<Item = &'a Node>) -> String {
    let endpoint = |node: &Node| json!({"address": node.grpc, "capnproto_address": node.capnproto});
    let endpoints: Vec<Value> = nodes.into_iter().map(endpoint).collect();
    json!([{"hashring": "default", "algorithm": algorithm, "endpoints": endpoints}]).to_string()
}

/// Expects a 503 that says when to come back.
pub(crate) fn assert_unavailable(answer: &Answer) {
    assert_eq!(answer.status, 503, "{}", String::from_utf8_lossy(&answer.body));
    let retry_after = answer.header("retry-after").expect("Retry-After");
    assert!(retry_after.parse::<u64>().is_ok_and(|seconds| seconds > 0), "{retry_after}");
}

/// `up{instance="i"}` with the sample 1, `t` ms after a time of long ago.
pub(crate) fn write_request(i: usize, t: i64) -> Vec<u8> {
    request_of(&[("__name__", "up"), ("instance", &i.to_string())], t)
}

/// One series with such a sample. Several of them in a row are a request, too.
pub(crate) fn request_of(labels: &[(&str, &str)], t: i64) -> Vec<u8> {
    let mut series = Vec::new();
    for (name, value) in labels {
        let mut label = Vec::new();
        prost::encoding::string::encode(1, &(*name).to_owned(), &mut label);
        prost::encoding::string::encode(2, &(*value).to_owned(), &mut label);
        prost::encoding::bytes::encode(1, &label, &mut series);
    }
    let mut sample = Vec::new();
    prost::encoding::double::encode(1, &1.0, &mut sample);
    prost::encoding::int64::encode(2, &(1_000_000 + t), &mut sample);
    prost::encoding::bytes::encode(2, &sample, &mut series);
    let mut request = Vec::new();
    prost::encoding::bytes::encode(1, &series, &mut request);
    request
}
