//! The server under test: a process, its directory and its ports.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::{Process, wait_for};
use crate::suite::{self, Server};
use crate::{http, ports, runner};

pub(crate) struct Node {
    root: tempfile::TempDir,
    args: Vec<String>,
    /// The values of `{{name}}`.
    pub places: BTreeMap<String, String>,
    process: Option<Process>,
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
            .zip(ports::free(names.len()))
            .map(|(name, port)| ((*name).to_owned(), format!("127.0.0.1:{port}")))
            .collect();
        places.insert("dir".to_owned(), dir.to_str().expect("UTF-8 path").to_owned());
        for (name, content) in &server.files {
            fs::write(dir.join(name), suite::fill_text(content, &places)).expect("file");
        }
        let listeners = [
            ("http-address", "http"),
            ("grpc-address", "grpc"),
            ("remote-write.address", "write"),
            ("receive.capnproto-address", "capnp"),
        ]
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
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    pub(crate) fn spawn(&mut self) {
        let mut command = Command::new(runner::binary());
        command.arg("receive").args(&self.args).current_dir(self.root.path());
        // A suite starts a server again that died where it was recorded. Ours lives, and has to
        // give its ports back first.
        self.process = None;
        self.process = Some(Process::start(&mut command, &self.log_path()));
    }

    pub(crate) fn wait_ready(&mut self) -> Start {
        let address = self.address("http").to_owned();
        let request = http::Request::new("GET", "/-/ready");
        let start = wait_for(|| {
            if let Some(code) = self.exited() {
                return Some(Start::Exited(code));
            }
            let answer = http::exchange(&address, &request)?;
            (answer.status == 200).then_some(Start::Ready)
        });
        start.unwrap_or(Start::NeverReady)
    }

    /// Waits until gRPC and remote write are served, ready or not.
    pub(crate) fn wait_listening(&mut self) -> Start {
        let addresses = ["http", "grpc", "write"].map(|name| self.address(name).to_owned());
        let start = wait_for(|| {
            if let Some(code) = self.exited() {
                return Some(Start::Exited(code));
            }
            let are_open = addresses.iter().all(|address| TcpStream::connect(address).is_ok());
            are_open.then_some(Start::Ready)
        });
        start.unwrap_or(Start::NeverReady)
    }

    /// As [`Process::exited`].
    pub(crate) fn exited(&mut self) -> Option<i32> {
        self.process.as_mut()?.exited()
    }

    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        self.process.as_mut()?.wait_exit()
    }

    /// The same, but not for longer than `patience`.
    pub(crate) fn wait_exit_for(&mut self, patience: Duration) -> Option<i32> {
        let begun = Instant::now();
        wait_for(|| match self.exited() {
            None if begun.elapsed() < patience => None,
            exited => Some(exited),
        })?
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
        self.process.as_ref().expect("a process was started").signal(signal);
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
