//! Runs the real binary.

use std::ffi::OsString;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::http::{Request, ask};
use crate::support::process::STUCK;

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

/// Status and body of a GET.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let answer = ask(address, &Request::new("GET", path));
    (answer.status, answer.text())
}
