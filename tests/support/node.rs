//! The receiver under test.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::support::http::{self, Answer, Request};
use crate::support::messages::{WriteRequest, compressed, write_request};
use crate::support::ports;
use crate::support::process::{Ends, Process, wait_for};
use crate::support::remote_read::{self, Stored};

/// The tenant of writes that name none.
pub(crate) const DEFAULT_TENANT: &str = "default-tenant";

/// Any free port of this machine, whose number the log tells.
const ANY: &str = "127.0.0.1:0";

/// The flags of the listeners: HTTP, gRPC, remote write and Cap'n Proto.
const LISTENERS: [&str; 4] =
    ["http-address", "grpc-address", "remote-write.address", "receive.capnproto-address"];

/// What each of them is called in the log.
const SERVICES: [&str; 4] =
    ["http/server", "gRPC/server", "remote-write/server", "capnproto/server"];

/// Flags that put each listener on a free port.
pub(crate) fn on_any_ports() -> [String; 4] {
    LISTENERS.map(|flag| format!("--{flag}={ANY}"))
}

/// A receiver with a directory of its own. Killed when dropped.
pub(crate) struct Node {
    name: String,
    pub(crate) args: Vec<String>,
    env: Vec<(String, OsString)>,
    /// This build's, if not another's.
    binary: PathBuf,
    /// How many files it may have open, if fewer than others.
    files_max: Option<u32>,
    working_dir: Option<PathBuf>,
    ends: Ends,
    pub(crate) data: PathBuf,
    /// Dropped before its log, of which it may have to show the end.
    process: Option<Process>,
    logs: tempfile::TempDir,
    /// `host:port` of metrics, probes, remote read and the ring's page.
    pub(crate) http: String,
    /// `host:port` of gRPC, by which a ring's file names the node.
    pub(crate) grpc: String,
    /// `host:port` of remote write.
    pub(crate) remote_write: String,
    /// `host:port` of Cap'n Proto replication.
    pub(crate) capnproto: String,
}

impl Node {
    /// One that is still to be [started](Node::start), with its data in `root/name`, and on ports
    /// that it keeps when it is started again.
    pub(crate) fn new(root: &Path, name: &str) -> Node {
        let ports = ports::free(4);
        let addresses = [0, 1, 2, 3].map(|i| format!("127.0.0.1:{}", ports[i]));
        let data = root.join(name);
        Node::bare(name, addresses, &data)
            .with_arg(&format!("--tsdb.path={}", data.display()))
            .with_arg(&format!("--label=replica=\"{name}\""))
    }

    /// One with no other flags than those of its addresses, which are in the order of `http`,
    /// `grpc`, `remote_write` and `capnproto`.
    pub(crate) fn bare(name: &str, addresses: [String; 4], data: &Path) -> Node {
        let listeners = LISTENERS.iter().zip(&addresses);
        let args = listeners.map(|(flag, address)| format!("--{flag}={address}")).collect();
        let [http, grpc, remote_write, capnproto] = addresses;
        Node {
            name: name.to_owned(),
            args,
            env: Vec::new(),
            binary: env!("CARGO_BIN_EXE_ringest").into(),
            files_max: None,
            working_dir: None,
            ends: Ends::WhenTold,
            data: data.to_owned(),
            logs: tempfile::tempdir().expect("temporary directory"),
            http,
            grpc,
            remote_write,
            capnproto,
            process: None,
        }
    }

    /// Starts one with just these flags and on any free ports, and waits for nothing.
    pub(crate) fn launch_with(args: &[&str]) -> Node {
        let anywhere = [ANY; 4].map(str::to_owned);
        let mut node = args
            .iter()
            .fold(Node::bare("receiver", anywhere, Path::new("")), |node, arg| node.with_arg(arg));
        node.launch();
        node
    }

    /// Starts one on `data` and any free ports, and waits until it is ready.
    pub(crate) fn start_ready(data: &Path, args: &[&str]) -> Node {
        let mut node = Node::anywhere(data, args);
        node.start();
        node
    }

    /// One on `data` and any free ports, still to be started.
    pub(crate) fn anywhere(data: &Path, args: &[&str]) -> Node {
        let node = Node::bare("receiver", [ANY; 4].map(str::to_owned), data)
            .with_arg(&format!("--tsdb.path={}", data.display()))
            .with_arg("--label=replica=\"a\"");
        args.iter().fold(node, |node, arg| node.with_arg(arg))
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

    /// Lets it have so many files open at most.
    pub(crate) fn with_files_max(self, files: u32) -> Node {
        Node { files_max: Some(files), ..self }
    }

    /// Starts it in this directory.
    pub(crate) fn with_working_dir(self, dir: &Path) -> Node {
        Node { working_dir: Some(dir.to_owned()), ..self }
    }

    /// Lets it die as it likes: the test asks for its end by itself.
    pub(crate) fn with_any_end(self) -> Node {
        Node { ends: Ends::Anyhow, ..self }
    }

    /// Makes it another program when it is started next.
    pub(crate) fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Starts it, for the first time or again, and waits until it is ready.
    pub(crate) fn start(&mut self) {
        self.launch();
        self.find_ports();
        self.wait_ready();
    }

    /// Starts it without waiting.
    pub(crate) fn launch(&mut self) {
        // One that runs still has to give its ports back first.
        self.process = None;
        let mut command = match self.files_max {
            None => Command::new(&self.binary),
            Some(files) => {
                let mut shell = Command::new("sh");
                let limited = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
                shell.args(["-c", &limited]).arg(&self.binary);
                shell
            }
        };
        command.arg("receive").args(&self.args).envs(self.env.iter().cloned());
        if let Some(dir) = &self.working_dir {
            command.current_dir(dir);
        }
        let log = self.logs.path().join("log");
        self.process = Some(Process::start(&self.name, &mut command, &log, self.ends));
    }

    /// Reads from the log where it listens, if it was told any port.
    fn find_ports(&mut self) {
        if !self.args.iter().any(|arg| arg.ends_with(ANY)) {
            return;
        }
        let [http, grpc, remote_write, capnproto] = SERVICES.map(|service| self.address(service));
        (self.http, self.grpc) = (http, grpc);
        (self.remote_write, self.capnproto) = (remote_write, capnproto);
    }

    /// Where the service of this name listens.
    pub(crate) fn address(&self, service: &str) -> String {
        let line = self.line_with(&[&format!("service={service} "), "address="]);
        let (_, address) = line.split_once("address=").expect("an address");
        address.split(' ').next().expect("an address").to_owned()
    }

    pub(crate) fn wait_ready(&self) {
        self.wait_until("is ready", Node::is_ready);
    }

    pub(crate) fn is_ready(&self) -> bool {
        let answer = http::exchange(&self.http, &Request::new("GET", "/-/ready"));
        answer.is_some_and(|answer| answer.status == 200)
    }

    /// The process that was started last, which may have ended.
    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().expect("a node that was started")
    }

    /// SIGTERM, and waits for the end, which must be a clean one.
    pub(crate) fn stop(&self) {
        self.signal(Signal::TERM);
        self.wait_end();
    }

    /// Waits for the end of one that was told to stop, which must be a clean one.
    pub(crate) fn wait_end(&self) {
        assert_eq!(self.wait_exit(), Some(0), "exit code of {}: {}", self.name, self.log());
    }

    /// kill -9, and waits until the process is gone.
    pub(crate) fn kill(&self) {
        self.assert_alive();
        self.signal(Signal::KILL);
        assert_eq!(self.wait_exit(), Some(-9), "{} ended: {}", self.name, self.log());
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Waits for its end, and returns its exit code.
    pub(crate) fn wait_exit(&self) -> Option<i32> {
        self.process().wait_exit()
    }

    /// Expects that it runs, and that nothing in it has panicked.
    #[track_caller]
    pub(crate) fn assert_alive(&self) {
        assert_eq!(self.process().exited(), None, "{} has ended: {}", self.name, self.log());
        let panics = self.lines_with(&["panicked at"]);
        assert!(panics.is_empty(), "{panics:#?}");
    }

    /// What it has logged since it was started last.
    pub(crate) fn log(&self) -> String {
        self.process().log()
    }

    /// The lines of that, as far as they are whole.
    pub(crate) fn lines(&self) -> Vec<String> {
        let log = self.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// Lines with all of these parts.
    pub(crate) fn lines_with(&self, parts: &[&str]) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| parts.iter().all(|part| line.contains(part)));
        lines
    }

    /// The first line with all of these parts, once it is there.
    #[track_caller]
    pub(crate) fn line_with(&self, parts: &[&str]) -> String {
        let found = wait_for(|| self.lines_with(parts).into_iter().next());
        found.unwrap_or_else(|| panic!("no line with {parts:?}: {}", self.log()))
    }

    /// Waits for a condition.
    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, mut holds: impl FnMut(&Node) -> bool) {
        let held = wait_for(|| holds(self).then_some(()));
        assert!(held.is_some(), "never: {} {what}: {}", self.name, self.log());
    }

    /// Resident bytes, from the kernel. Those of files are not counted.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.process().status_bytes("RssAnon")
    }

    /// Most bytes that were ever resident.
    pub(crate) fn resident_bytes_peak(&self) -> u64 {
        self.process().status_bytes("VmHWM")
    }

    /// The answer to a request at this of its addresses, which must come.
    #[track_caller]
    pub(crate) fn ask(&self, address: &str, request: &Request) -> Answer {
        let answer = http::exchange(address, request);
        let asked = || format!("{} {}", request.method, request.path);
        answer.unwrap_or_else(|| panic!("{}: no answer to {}: {}", self.name, asked(), self.log()))
    }

    /// A GET to the HTTP address.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(&self.http, &Request::new("GET", path))
    }

    /// The value of a series on the metrics page, by name and labels as they stand there.
    pub(crate) fn exposed(&self, series: &str) -> Option<f64> {
        let page = self.get("/metrics").text();
        let line = page
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.map(|line| line.rsplit_once(' ').expect(line).1.parse().expect("a number"))
    }

    /// The sum over all series of a metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "")
    }

    /// The sum over those whose labels, as they are exposed, hold `label`.
    pub(crate) fn metric_with(&self, name: &str, label: &str) -> f64 {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "/metrics of {}", self.name);
        let page = answer.text();
        let is_asked_for = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']) && rest.contains(label))
        };
        let values =
            page.lines().filter(is_asked_for).map(|line| line.rsplit_once(' ').expect(line).1);
        values.map(|value| value.parse::<f64>().expect("a number")).sum()
    }

    /// Writes for a tenant.
    #[track_caller]
    pub(crate) fn write(&self, tenant: &str, request: &WriteRequest) -> Answer {
        self.post(tenant.as_bytes(), &request.compressed())
    }

    /// Posts a body, compressed already, for a tenant that may be any bytes.
    #[track_caller]
    pub(crate) fn post(&self, tenant: &[u8], body: &[u8]) -> Answer {
        self.ask(&self.remote_write, &write_request(tenant, body))
    }

    /// Posts a `prometheus.WriteRequest` of the default tenant.
    #[track_caller]
    pub(crate) fn send(&self, message: &[u8]) -> Answer {
        self.send_as(DEFAULT_TENANT, message)
    }

    /// Posts a `prometheus.WriteRequest` of any tenant.
    #[track_caller]
    pub(crate) fn send_as(&self, tenant: &str, message: &[u8]) -> Answer {
        self.post(tenant.as_bytes(), &compressed(message))
    }

    /// Everything that a tenant has, by remote read.
    #[track_caller]
    pub(crate) fn read(&self, tenant: &str) -> Stored {
        let answer = self.read_answer(tenant);
        assert_eq!(answer.status, 200, "{}", answer.text());
        remote_read::by_name(remote_read::content(&answer))
    }

    /// What it answers to whoever asks for everything that a tenant has.
    #[track_caller]
    pub(crate) fn read_answer(&self, tenant: &str) -> Answer {
        let times = i64::MIN / 2..=i64::MAX / 2;
        self.ask(&self.http, &remote_read::request(Some(tenant), ".+", times))
    }
}
