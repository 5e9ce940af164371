//! Runs the real binary.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A program that takes longer to do anything at all is stuck.
const STUCK: Duration = Duration::from_secs(60);

fn command(args: &[OsString]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program to its end. One that does not end is killed.
pub(crate) fn run(args: &[OsString]) -> Output {
    let child = command(args).spawn().unwrap();
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
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Log lines read so far.
    pub(crate) log: Vec<String>,
}

impl Receiver {
    /// Starts a receiver on ports of its own choice.
    pub(crate) fn start(args: &[&str]) -> Receiver {
        let ports = ["--http-address", "--grpc-address", "--remote-write.address"];
        let ports = ports.map(|flag| format!("{flag}=127.0.0.1:0"));
        let mut all = vec!["receive"];
        all.extend(ports.iter().map(String::as_str));
        all.extend(args);
        let mut child = command(&words(&all)).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (line, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for text in stderr.lines() {
                if text.is_err() || line.send(text.unwrap()).is_err() {
                    break;
                }
            }
        });
        Receiver { child, lines, log: Vec::new() }
    }

    /// Reads the log up to a line with all of these parts.
    pub(crate) fn line_with(&mut self, parts: &[&str]) -> String {
        let has_parts = |line: &String| parts.iter().all(|part| line.contains(part));
        if let Some(line) = self.log.iter().find(|line| has_parts(line)) {
            return line.clone();
        }
        loop {
            match self.lines.recv_timeout(STUCK) {
                Ok(line) => self.log.push(line),
                Err(_) => panic!("no line with {parts:?} in {:#?}", self.log),
            }
            if let Some(line) = self.log.last().filter(|line| has_parts(line)) {
                return line.clone();
            }
        }
    }

    /// Where a service listens.
    pub(crate) fn address(&mut self, service: &str) -> String {
        let line = self.line_with(&[&format!("service={service} "), "address="]);
        let (_, address) = line.split_once("address=").unwrap();
        address.split(' ').next().unwrap().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end and reads the rest of the log.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        while let Ok(line) = self.lines.recv_timeout(STUCK) {
            self.log.push(line);
        }
        match self.child.try_wait().unwrap() {
            Some(status) => status,
            // The log ended, so the process is about to.
            None => self.child.wait().unwrap(),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Both fail if it has ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a GET.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(STUCK)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
