//! The server under test: a process, its directory and its ports.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::suite::{self, Server};
use crate::{http, runner};

/// How often a state is asked for that a process will reach some time.
const POLL: Duration = Duration::from_millis(10);
/// After this a process has hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ports below those that the kernel gives to outgoing connections.
const PORTS: std::ops::Range<u16> = 21_000..32_000;

pub(crate) struct Node {
    root: tempfile::TempDir,
    args: Vec<String>,
    /// The values of `{{name}}`.
    pub places: BTreeMap<String, String>,
    process: Option<Child>,
}

/// How a start went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Ready,
    Exited(i32),
    NeverReady,
}

impl Node {
    /// Prepares the directory and gives every listener a port, in the order that placement by
    /// address relies on.
    pub(crate) fn new(server: &Server) -> Node {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = root.path().join("dir");
        fs::create_dir(&dir).expect("working directory");
        let stubs = server.stubs.keys().map(String::as_str);
        let names: Vec<&str> =
            ["http", "grpc", "write", "capnp"].into_iter().chain(stubs).chain(["closed"]).collect();
        let mut places: BTreeMap<String, String> = names
            .iter()
            .zip(free_ports(names.len()))
            .map(|(name, port)| ((*name).to_owned(), format!("127.0.0.1:{port}")))
            .collect();
        places.insert("dir".to_owned(), dir.to_str().expect("UTF-8 path").to_owned());
        for (name, content) in &server.files {
            fs::write(dir.join(name), suite::fill_text(content, &places)).expect("file");
        }
        // Cap'n Proto is not served yet, and its address cannot be set.
        let listeners =
            [("http-address", "http"), ("grpc-address", "grpc"), ("remote-write.address", "write")]
                .map(|(flag, name)| format!("--{flag}={}", places[name]));
        let given = server.args.iter().map(|arg| suite::fill_text(arg, &places));
        let args = listeners.into_iter().chain(given).collect();
        Node { root, args, places, process: None }
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        &self.places[name]
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("dir")
    }

    fn log_path(&self) -> PathBuf {
        self.root.path().join("log")
    }

    /// What the process has written, for a failure's report.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(crate) fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("log of the process");
        let process = Command::new(runner::binary())
            .arg("receive")
            .args(&self.args)
            .current_dir(self.root.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log of the process"))
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        self.process = Some(process);
    }

    pub(crate) fn wait_ready(&mut self) -> Start {
        let address = self.address("http").to_owned();
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(code) = self.exited() {
                return Start::Exited(code);
            }
            let request = http::Request::new("GET", "/-/ready");
            if http::exchange(&address, &request).is_some_and(|answer| answer.status == 200) {
                return Start::Ready;
            }
            thread::sleep(POLL);
        }
        Start::NeverReady
    }

    /// Exit code, or the negative number of the signal that ended the process, if it has ended.
    pub(crate) fn exited(&mut self) -> Option<i32> {
        let status = self.process.as_mut()?.try_wait().expect("state of the process")?;
        Some(code(status))
    }

    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(code) = self.exited() {
                return Some(code);
            }
            thread::sleep(POLL);
        }
        None
    }

    pub(crate) fn signal(&self, name: &str) {
        let signal = match name {
            "SIGTERM" => Signal::TERM,
            "SIGINT" => Signal::INT,
            "SIGHUP" => Signal::HUP,
            "SIGQUIT" => Signal::QUIT,
            "SIGUSR1" => Signal::USR1,
            "SIGUSR2" => Signal::USR2,
            "SIGKILL" => Signal::KILL,
            other => panic!("unknown signal {other}"),
        };
        let process = self.process.as_ref().expect("a process was started");
        let pid = Pid::from_child(process);
        // Fails if the process has ended already, which the caller sees by its exit code.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Both fail only if it has ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| -signal)).expect("exited or killed")
}

/// Ports that nobody listens on, rising. Tests of one process never share any; other processes
/// start elsewhere in the range.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 100).expect("below 100") * 100;
    loop {
        let mut ports = Vec::new();
        let mut last = 0;
        while ports.len() < count {
            let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
            let port = PORTS.start + offset;
            if port < last {
                break;
            }
            last = port;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                ports.push(port);
            }
        }
        if ports.len() == count {
            return ports;
        }
    }
}

/// Entries below `dir`, `depth` levels deep, in the form that suites record.
pub(crate) fn list(dir: &Path, depth: usize, is_skipped: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    list_into(dir, "", depth, &is_skipped, &mut found);
    found.sort();
    found
}

fn list_into(
    dir: &Path,
    prefix: &str,
    depth: usize,
    is_skipped: &impl Fn(&str) -> bool,
    found: &mut Vec<String>,
) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let entry = entry.expect("directory entry");
        let name = entry.file_name();
        let shown: String = name
            .as_encoded_bytes()
            .utf8_chunks()
            .flat_map(|chunk| {
                let invalid = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
                [chunk.valid().to_owned()].into_iter().chain(invalid)
            })
            .collect();
        let path = format!("{prefix}{shown}");
        if is_skipped(&path) {
            continue;
        }
        if entry.path().is_dir() {
            let inside = format!("{path}/");
            if depth > 1 {
                list_into(&entry.path(), &inside, depth - 1, is_skipped, found);
            }
            found.push(inside);
        } else {
            found.push(path);
        }
    }
}
