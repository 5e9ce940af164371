//! Servers: which there are, how each is started, and what it is asked and has used.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ArgMatches;
use ringest::load::process;
use rustix::process::{Pid, Signal};

use crate::{AnyError, ports};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ringest,
    Prometheus,
    Thanos,
    VictoriaMetrics,
}

pub(crate) struct Server {
    pub(crate) kind: Kind,
    binary: PathBuf,
    /// Kind and version.
    pub(crate) name: String,
}

impl Server {
    fn new(kind: Kind, binary: PathBuf) -> Server {
        let version = match kind {
            Kind::Ringest => Some(env!("CARGO_PKG_VERSION").to_owned()),
            _ => version(&binary),
        };
        Server {
            name: format!("{} {}", kind.name(), version.unwrap_or_default()).trim_end().to_owned(),
            kind,
            binary,
        }
    }
}

impl Server {
    /// Bytes of the log of a server whose data is below `directory`; `None` if it has no log.
    pub(crate) fn log_bytes(&self, directory: &Path) -> io::Result<Option<u64>> {
        let log = match self.kind {
            Kind::Ringest | Kind::Thanos => "data/default-tenant/wal",
            Kind::Prometheus => "data/wal",
            Kind::VictoriaMetrics => return Ok(None),
        };
        bytes_below(&directory.join(log)).map(Some)
    }
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Ringest => "ringest",
            Kind::Prometheus => "prometheus",
            Kind::Thanos => "thanos",
            Kind::VictoriaMetrics => "victoria-metrics",
        }
    }

    /// Whether nodes of this kind make a ring.
    pub(crate) fn has_rings(self) -> bool {
        matches!(self, Kind::Ringest | Kind::Thanos)
    }
}

/// The first word of `--version` that looks like one.
fn version(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let is_version = |word: &&str| {
        word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
    };
    let word = text.split([' ', '\n', ',']).find(is_version)?;
    Some(word.chars().take(12).collect())
}

/// Those that the command line, the environment and `PATH` name; Ringest first.
pub(crate) fn servers(matches: &ArgMatches, smoke: bool) -> Vec<Server> {
    let mut servers =
        vec![Server::new(Kind::Ringest, PathBuf::from(env!("CARGO_BIN_EXE_ringest")))];
    for binary in matches.get_many::<PathBuf>("ringest").into_iter().flatten() {
        let name = format!("other {}", Kind::Ringest.name());
        servers.push(Server { kind: Kind::Ringest, binary: binary.clone(), name });
    }
    for kind in [Kind::Prometheus, Kind::Thanos, Kind::VictoriaMetrics] {
        let name = kind.name();
        let variable = format!("SIDE_BY_SIDE_{}", name.to_uppercase().replace('-', "_"));
        let in_path = std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .map(|directory| directory.join(name))
            .find(|path| path.is_file());
        let given = matches.get_many::<PathBuf>(name).into_iter().flatten().cloned();
        let binaries = in_path.into_iter().chain(std::env::var_os(variable).map(PathBuf::from));
        servers.extend(binaries.chain(given).map(|binary| Server::new(kind, binary)));
    }
    let only: Vec<&String> = matches.get_many("only").into_iter().flatten().collect();
    servers.retain(|server| match only.is_empty() {
        true => !smoke || server.kind == Kind::Ringest,
        false => only.iter().any(|name| *name == server.kind.name()),
    });
    servers
}

/// Where a node of a ring listens.
pub(crate) struct Addresses {
    write: String,
    http: String,
    grpc: String,
    capnproto: String,
}

impl Addresses {
    pub(crate) fn free() -> Addresses {
        Addresses {
            write: free_address(),
            http: free_address(),
            grpc: free_address(),
            capnproto: free_address(),
        }
    }

    /// As hashrings name the node.
    pub(crate) fn endpoint(&self) -> &str {
        &self.grpc
    }

    /// As an element of a hashring's endpoints.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "address": self.grpc, "capnproto_address": self.capnproto })
    }
}

fn free_address() -> String {
    ports::free(1).iter().map(|port| format!("127.0.0.1:{port}")).collect()
}

/// What a stop took.
pub(crate) struct Stopped {
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
    pub(crate) resident_before: u64,
    pub(crate) most_resident: u64,
}

/// A server that runs; it is killed when dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) write_url: http::Uri,
    /// Of the node's own pages, where it is part of a ring.
    http_address: Option<String>,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either may fail only because it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    /// Starts a server that takes writes and stores them. Its data is below `directory`.
    pub(crate) fn start(server: &Server, directory: &Path) -> Result<Running, AnyError> {
        let data = directory.join("data");
        let data = data.display();
        let write;
        let arguments;
        match server.kind {
            Kind::Ringest | Kind::Thanos => {
                return Running::start_node(server, directory, &Addresses::free(), &[]);
            }
            Kind::Prometheus => {
                let config = directory.join("prometheus.yml");
                fs::write(&config, "scrape_configs: []\n")?;
                write = free_address();
                arguments = vec![
                    format!("--config.file={}", config.display()),
                    format!("--storage.tsdb.path={data}"),
                    format!("--web.listen-address={write}"),
                    "--web.enable-remote-write-receiver".to_owned(),
                ];
            }
            Kind::VictoriaMetrics => {
                write = free_address();
                arguments = vec![
                    format!("-storageDataPath={data}"),
                    format!("-httpListenAddr={write}"),
                    // Series beyond its guess for small machines would evict each other.
                    "-memory.allowedPercent=60".to_owned(),
                ];
            }
        }
        let write_url = format!("http://{write}/api/v1/write");
        Running::spawn(server, directory, &arguments, &write_url, None)
    }

    /// Starts a node with flags of a ring.
    pub(crate) fn start_node(
        server: &Server,
        directory: &Path,
        addresses: &Addresses,
        ring_flags: &[String],
    ) -> Result<Running, AnyError> {
        let mut arguments = vec![
            "receive".to_owned(),
            format!("--tsdb.path={}", directory.join("data").display()),
            format!("--label=replica=\"{}\"", addresses.grpc),
            format!("--remote-write.address={}", addresses.write),
            format!("--http-address={}", addresses.http),
            format!("--grpc-address={}", addresses.grpc),
            format!("--receive.capnproto-address={}", addresses.capnproto),
        ];
        arguments.extend_from_slice(ring_flags);
        let write_url = format!("http://{}/api/v1/receive", addresses.write);
        Running::spawn(server, directory, &arguments, &write_url, Some(addresses.http.clone()))
    }

    fn spawn(
        server: &Server,
        directory: &Path,
        arguments: &[String],
        write_url: &str,
        http_address: Option<String>,
    ) -> Result<Running, AnyError> {
        let log = directory.join("log");
        let log_file = File::options().append(true).create(true).open(&log)?;
        let child = Command::new(&server.binary)
            .args(arguments)
            .stdout(Stdio::from(log_file.try_clone()?))
            .stderr(Stdio::from(log_file))
            .spawn()?;
        Ok(Running { child, write_url: write_url.parse()?, http_address, log })
    }

    /// How long it takes until a write of the probe is acknowledged.
    pub(crate) fn wait_for_write(&mut self, probe: &[u8]) -> Result<Duration, AnyError> {
        const PATIENCE: Duration = Duration::from_secs(120);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if matches!(self.post(probe), Ok(200..=299)) {
                return Ok(began.elapsed());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("ended with {status}: {}", self.last_log_line()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("takes no write: {}", self.last_log_line()).into())
    }

    /// The status of one write.
    fn post(&self, body: &[u8]) -> io::Result<u16> {
        let headers = "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n";
        let mut stream =
            request(self.write_authority(), "POST", self.write_url.path(), headers, body)?;
        status(&mut stream)
    }

    fn write_authority(&self) -> &str {
        self.write_url.authority().map_or("", |authority| authority.as_str())
    }

    /// Bytes of messages on their way to peers, as `GET /api/v1/ring` tells; `None` if it does not.
    pub(crate) fn forwarding_bytes(&self) -> Option<u64> {
        let page: serde_json::Value = serde_json::from_str(&self.get("/api/v1/ring").ok()?).ok()?;
        let members = page["hashrings"].as_array()?.iter().filter_map(|r| r["members"].as_array());
        Some(members.flatten().filter_map(|member| member["inflight_bytes"].as_u64()).sum())
    }

    /// The body of one of the node's own pages.
    pub(crate) fn get(&self, path: &str) -> io::Result<String> {
        let address = self.http_address.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut stream = request(address, "GET", path, "", &[])?;
        succeeded(&mut stream, path)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Has a question of remote read answered, and throws the answer away.
    pub(crate) fn remote_read(&self, question: &[u8]) -> io::Result<()> {
        const PATH: &str = "/api/v1/read";
        let address = self.http_address.as_deref().unwrap_or_else(|| self.write_authority());
        let headers = "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n\
                       X-Prometheus-Remote-Read-Version: 0.1.0\r\n";
        let mut stream = request(address, "POST", PATH, headers, question)?;
        succeeded(&mut stream, PATH)?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    }

    pub(crate) fn last_log_line(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or("no log").to_owned()
    }

    /// CPU time used so far.
    pub(crate) fn cpu(&self) -> Result<Duration, AnyError> {
        process::cpu_time(self.child.id()).ok_or_else(|| self.is_gone())
    }

    pub(crate) fn resident_bytes(&self) -> Result<u64, AnyError> {
        process::resident_bytes(self.child.id()).ok_or_else(|| self.is_gone())
    }

    /// The most that was ever resident.
    pub(crate) fn peak_resident_bytes(&self) -> Result<u64, AnyError> {
        process::peak_resident_bytes(self.child.id()).ok_or_else(|| self.is_gone())
    }

    /// Tells the server to stop, and waits until it has.
    pub(crate) fn stop(&mut self) -> Result<Stopped, AnyError> {
        const PATIENCE: Duration = Duration::from_secs(3600);
        const LOOK: Duration = Duration::from_millis(20);
        let (began, before) = (Instant::now(), self.cpu()?);
        let resident_before = self.resident_bytes()?;
        let (mut cpu, mut most_resident) = (before, resident_before);
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.ok_or("no process")?, Signal::TERM)?;
        while began.elapsed() < PATIENCE {
            // Neither is there any more when it has ended.
            cpu = self.cpu().unwrap_or(cpu);
            most_resident = most_resident.max(self.resident_bytes().unwrap_or(0));
            if self.child.try_wait()?.is_some() {
                let took = began.elapsed();
                return Ok(Stopped { took, cpu: cpu - before, resident_before, most_resident });
            }
            std::thread::sleep(LOOK);
        }
        Err(format!("does not stop: {}", self.last_log_line()).into())
    }

    fn is_gone(&self) -> AnyError {
        format!("the server is gone: {}", self.last_log_line()).into()
    }
}

/// Sends a request over a connection of its own.
fn request(
    authority: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {}\r\n{headers}\
         Connection: close\r\n\r\n",
        body.len(),
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    Ok(stream)
}

/// Reads the first line of an answer up to its status.
fn status(stream: &mut TcpStream) -> io::Result<u16> {
    let mut status_line = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut status_line)?;
    let status = std::str::from_utf8(&status_line[9..]).ok().and_then(|s| s.parse().ok());
    status.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn succeeded(stream: &mut TcpStream, path: &str) -> io::Result<()> {
    match status(stream)? {
        200..=299 => Ok(()),
        other => Err(io::Error::other(format!("{path} is answered with {other}"))),
    }
}

/// Bytes of all files below a directory.
fn bytes_below(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => bytes_below(&entry.path())?,
            false => metadata.len(),
        };
    }
    Ok(bytes)
}
