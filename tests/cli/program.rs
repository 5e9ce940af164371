//! Runs the real binary.

use std::ffi::OsString;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::http::{self, Request};
use crate::process::{Process, wait_for};

/// A program that takes longer to do anything at all is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Runs the program to its end. One that does not end is killed.
pub(crate) fn run(args: &[OsString]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    match end.recv_timeout(STUCK) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            kill_process(pid, Signal::KILL).unwrap();
            let output = end.recv().unwrap().unwrap();
            panic!("{args:?} does not end: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

pub(crate) fn words(args: &[&str]) -> Vec<OsString> {
    args.iter().map(OsString::from).collect()
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A receiver that runs; killed when dropped.
pub(crate) struct Receiver {
    process: Process,
    /// Log lines read so far.
    pub(crate) log: Vec<String>,
    _log_dir: tempfile::TempDir,
}

impl Receiver {
    /// Starts a receiver on ports of its own choice.
    pub(crate) fn start(args: &[&str]) -> Receiver {
        let ports = [
            "--http-address",
            "--grpc-address",
            "--remote-write.address",
            "--receive.capnproto-address",
        ];
        let ports = ports.map(|flag| format!("{flag}=127.0.0.1:0"));
        let log_dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
        command.arg("receive").args(ports).args(args);
        let process = Process::start(&mut command, &log_dir.path().join("log"));
        Receiver { process, log: Vec::new(), _log_dir: log_dir }
    }

    /// Reads the log up to a line with all of these parts.
    pub(crate) fn line_with(&mut self, parts: &[&str]) -> String {
        let has_parts = |line: &&String| parts.iter().all(|part| line.contains(part));
        let found = wait_for(|| {
            self.read_log();
            self.log.iter().find(has_parts).cloned()
        });
        found.unwrap_or_else(|| panic!("no line with {parts:?} in {:#?}", self.log))
    }

    /// Where a service listens.
    pub(crate) fn address(&mut self, service: &str) -> String {
        let line = self.line_with(&[&format!("service={service} "), "address="]);
        let (_, address) = line.split_once("address=").unwrap();
        address.split(' ').next().unwrap().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the end, reads the rest of the log, and returns the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let code = self.process.wait_exit();
        self.read_log();
        code
    }

    /// Takes the lines that are whole.
    fn read_log(&mut self) {
        let log = self.process.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        self.log = whole.lines().map(str::to_owned).collect();
    }
}

/// Status and body of a GET.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let answer = http::exchange(address, &Request::new("GET", path)).unwrap();
    (answer.status, String::from_utf8(answer.body).unwrap())
}
