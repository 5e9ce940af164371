//! A receiver as a process, a client that can misbehave, and the few messages they exchange.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prost::Message;
use ringest::wire::proto::prometheus::{LabelMatcher, Query, ReadRequest, ReadResponse};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};

/// Whatever takes longer is stuck. Generous: the machine may be busy with other tests.
pub(crate) const STUCK: Duration = Duration::from_secs(120);

const POLL: Duration = Duration::from_millis(20);

/// Waits for a condition.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < STUCK, "still not: {what}");
        std::thread::sleep(POLL);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// A seed to be printed, so that a failure can be played again with `RINGEST_TEST_SEED`.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("RINGEST_TEST_SEED") {
        Ok(given) => given.parse().unwrap(),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("RINGEST_TEST_SEED={seed}");
    seed
}

/// SplitMix64: enough randomness for tests, from one number.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Lets this process and those it starts have as many files as the machine allows; how many.
pub(crate) fn raise_file_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    limit.current.unwrap_or(u64::MAX)
}

/// A receiver that runs; killed when dropped.
pub(crate) struct Node {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    /// Where it serves metrics, probes and remote read.
    pub(crate) http: String,
    /// Where it takes writes.
    pub(crate) remote_write: String,
    /// Where it serves queriers and takes writes of peers.
    pub(crate) grpc: String,
    pub(crate) capnproto: String,
}

impl Node {
    /// Starts a receiver on `data` and free ports, and waits until it takes writes.
    pub(crate) fn start(data: &Path, args: &[&str]) -> Node {
        Node::start_by(Command::new(env!("CARGO_BIN_EXE_ringest")), data, args)
    }

    /// As [`Node::start`], with so many open files at most.
    pub(crate) fn start_with_files(data: &Path, args: &[&str], files: u32) -> Node {
        let mut shell = Command::new("sh");
        let limited = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        shell.args(["-c", &limited, env!("CARGO_BIN_EXE_ringest")]);
        Node::start_by(shell, data, args)
    }

    fn start_by(mut program: Command, data: &Path, args: &[&str]) -> Node {
        let ports = [
            "--http-address",
            "--grpc-address",
            "--remote-write.address",
            "--receive.capnproto-address",
        ];
        let mut all: Vec<OsString> = vec!["receive".into()];
        all.extend(ports.iter().map(|flag| format!("{flag}=127.0.0.1:0").into()));
        all.push(format!("--tsdb.path={}", data.display()).into());
        all.push("--label=replica=\"a\"".into());
        all.extend(args.iter().map(OsString::from));
        let mut child = program
            .args(&all)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().push(line);
            }
        });
        let [http, remote_write, grpc, capnproto] = Default::default();
        let mut node = Node { child, log, http, remote_write, grpc, capnproto };
        node.http = node.address("http/server");
        node.remote_write = node.address("remote-write/server");
        node.grpc = node.address("gRPC/server");
        node.capnproto = node.address("capnproto/server");
        node
    }

    /// As [`Node::start`], and waits until it is ready.
    pub(crate) fn start_ready(data: &Path, args: &[&str]) -> Node {
        let node = Node::start(data, args);
        wait_until("ready", || node.get("/-/ready").status == 200);
        node
    }

    fn address(&self, service: &str) -> String {
        let parts = [&format!("service={service} ")[..], "address="];
        wait_until("listening", || !self.lines_with(&parts).is_empty());
        let line = self.lines_with(&parts).remove(0);
        line.split_once("address=").unwrap().1.split(' ').next().unwrap().to_owned()
    }

    /// Log lines with all of these parts.
    pub(crate) fn lines_with(&self, parts: &[&str]) -> Vec<String> {
        let log = self.log.lock();
        log.iter().filter(|line| parts.iter().all(|part| line.contains(part))).cloned().collect()
    }

    /// kill -9, and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        self.assert_alive();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end, which must be a clean one.
    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut status = None;
        wait_until("stopped", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{:#?}", self.log.lock());
    }

    pub(crate) fn assert_alive(&mut self) {
        let status = self.child.try_wait().unwrap();
        assert!(status.is_none(), "ended with {status:?}: {:#?}", self.log.lock());
        let panics = self.lines_with(&["panicked at"]);
        assert!(panics.is_empty(), "{panics:#?}");
    }

    /// A GET to the HTTP address.
    pub(crate) fn get(&self, path: &str) -> Answer {
        exchange(&self.http, &request("GET", path, &[], b""))
    }

    /// A write as [`Node::send`] does it, to `/api/v1/receive`.
    pub(crate) fn write(&self, tenant: &str, request: &WriteRequest) -> Answer {
        self.send(tenant.as_bytes(), &request.compressed())
    }

    /// Posts a body, compressed already, for a tenant that may be any bytes.
    pub(crate) fn send(&self, tenant: &[u8], body: &[u8]) -> Answer {
        exchange(&self.remote_write, &write_request_bytes(tenant, body))
    }

    /// Everything that a tenant has, by remote read: labels as text to time and value.
    pub(crate) fn read(&self, tenant: &str) -> Stored {
        let answer = self.read_answer(tenant);
        assert_eq!(answer.status, 200, "{answer:?}");
        let message = snap::raw::Decoder::new().decompress_vec(&answer.body).unwrap();
        let read = ReadResponse::decode(&message[..]).unwrap();
        let mut stored = Stored::new();
        for series in read.results.into_iter().flat_map(|result| result.timeseries) {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let labels = series
                .labels
                .iter()
                .map(|label| (text(label.name.as_ref()), text(label.value.as_ref())));
            let samples = series.samples.iter().map(|sample| (sample.timestamp, sample.value));
            stored.entry(name_of(labels)).or_default().extend(samples);
        }
        stored
    }

    /// What it answers to whoever asks for everything that a tenant has.
    pub(crate) fn read_answer(&self, tenant: &str) -> Answer {
        let matcher = LabelMatcher { r#type: 2, name: "__name__".into(), value: ".+".into() };
        let query = Query {
            start_timestamp_ms: i64::MIN / 2,
            end_timestamp_ms: i64::MAX / 2,
            matchers: vec![matcher],
            ..Query::default()
        };
        let read = ReadRequest { queries: vec![query], ..ReadRequest::default() };
        let body = snap::raw::Encoder::new().compress_vec(&read.encode_to_vec()).unwrap();
        let headers = [("THANOS-TENANT", tenant.as_bytes())];
        exchange(&self.http, &request("POST", "/api/v1/read", &headers, &body))
    }

    /// A line of the metrics page, by name and labels as they stand there.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let page = self.get("/metrics").text();
        let line = page
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
    }

    /// Resident bytes, from the kernel. Those of files are not counted.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Most bytes that were ever resident.
    pub(crate) fn resident_bytes_peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail if it has ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Samples by series.
pub(crate) type Stored = BTreeMap<String, BTreeMap<i64, f64>>;

/// `{a="1",b="2"}`
pub(crate) fn name_of(labels: impl Iterator<Item = (String, String)>) -> String {
    let pairs: Vec<String> = labels.map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{{{}}}", pairs.join(","))
}

/// `prometheus.WriteRequest`, written apart from the server's code.
#[derive(Clone, Default)]
pub(crate) struct WriteRequest(pub Vec<u8>);

impl WriteRequest {
    /// One series with one sample.
    pub(crate) fn of(labels: &[(&str, &str)], t: i64, v: f64) -> WriteRequest {
        WriteRequest::default().with(labels, &[(t, v)])
    }

    /// Adds a series.
    pub(crate) fn with(mut self, labels: &[(&str, &str)], samples: &[(i64, f64)]) -> WriteRequest {
        let mut series = Vec::new();
        for (name, value) in labels {
            let mut label = Vec::new();
            push_field(&mut label, 1, name.as_bytes());
            push_field(&mut label, 2, value.as_bytes());
            push_field(&mut series, 1, &label);
        }
        for (t, v) in samples {
            let mut sample = vec![1 << 3 | 1];
            sample.extend_from_slice(&v.to_le_bytes());
            sample.push(2 << 3);
            push_varint(&mut sample, *t as u64);
            push_field(&mut series, 2, &sample);
        }
        push_field(&mut self.0, 1, &series);
        self
    }

    pub(crate) fn compressed(&self) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(&self.0).unwrap()
    }
}

pub(crate) fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// A field of bytes or of a message.
pub(crate) fn push_field(bytes: &mut Vec<u8>, number: u8, content: &[u8]) {
    bytes.push(number << 3 | 2);
    push_varint(bytes, content.len() as u64);
    bytes.extend_from_slice(content);
}

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts that it asks the sender to come again: 503 and whole seconds, at least one.
    pub(crate) fn assert_come_again(&self) {
        assert_eq!(self.status, 503, "{}", self.text());
        let seconds: u64 = self.headers["retry-after"].parse().unwrap();
        assert!(seconds >= 1);
    }
}

/// A request's bytes. The connection is closed behind it.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &[u8])], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    let mut bytes = bytes.into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn write_request_bytes(tenant: &[u8], body: &[u8]) -> Vec<u8> {
    request("POST", "/api/v1/receive", &[("THANOS-TENANT", tenant)], body)
}

pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(STUCK)).unwrap();
    stream.set_write_timeout(Some(STUCK)).unwrap();
    stream
}

/// Sends bytes on a connection of their own and reads the answer, which must come.
pub(crate) fn exchange(address: &str, request: &[u8]) -> Answer {
    let mut stream = connect(address);
    // A server that refuses a body early answers and closes before it has read all of it.
    let _ = stream.write_all(request);
    let answer = read_answer(&mut stream).unwrap();
    let _ = stream.shutdown(Shutdown::Both);
    answer
}

/// Reads one answer with a declared or chunked length, or up to the connection's end.
pub(crate) fn read_answer(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed without an answer");
    if reader.read_line(&mut line)? == 0 {
        return Err(ended());
    }
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(ended)?;
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if status == 204 {
        return Ok(Answer { status, headers, body });
    }
    if headers.get("transfer-encoding").is_some_and(|encoding| encoding == "chunked") {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let len = usize::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; len + 2];
            reader.read_exact(&mut chunk)?;
            body.extend_from_slice(&chunk[..len]);
            if len == 0 {
                break;
            }
        }
    } else if let Some(len) = headers.get("content-length") {
        body = vec![0; len.parse().map_err(io::Error::other)?];
        reader.read_exact(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(Answer { status, headers, body })
}
