//! The server under test: a process, its directory and its ports.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::node::Node;
use crate::support::ports;
use crate::support::process::wait_for;
use crate::{runner, suite};

pub(crate) struct Server {
    root: tempfile::TempDir,
    node: Node,
    /// The values of `{{name}}`.
    pub places: BTreeMap<String, String>,
    was_spawned: bool,
}

/// How a start went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Ready,
    Exited(i32),
    NeverReady,
}

impl Server {
    /// Prepares the directory and gives every listener a port, in the order that placement by
    /// address relies on.
    pub(crate) fn new(server: &suite::Server) -> Server {
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
        let addresses = ["http", "grpc", "write", "capnp"].map(|name| places[name].clone());
        let mut node = server
            .args
            .iter()
            .fold(Node::bare("the server", addresses, &dir), |node, arg| {
                node.with_arg(&suite::fill_text(arg, &places))
            })
            .with_working_dir(root.path())
            .with_any_end();
        node.set_binary(&runner::binary());
        Server { root, node, places, was_spawned: false }
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        &self.places[name]
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("dir")
    }

    /// What the process has written, for a failure's report.
    pub(crate) fn log(&self) -> String {
        if self.was_spawned { self.node.log() } else { String::new() }
    }

    pub(crate) fn spawn(&mut self) {
        // A suite starts a server again that died where it was recorded. Ours lives, and has to
        // give its ports back first.
        self.node.launch();
        self.was_spawned = true;
    }

    pub(crate) fn wait_ready(&self) -> Start {
        let start = wait_for(|| {
            let exited = self.exited().map(Start::Exited);
            exited.or_else(|| self.node.is_ready().then_some(Start::Ready))
        });
        start.unwrap_or(Start::NeverReady)
    }

    /// Waits until gRPC and remote write are served, ready or not.
    pub(crate) fn wait_listening(&self) -> Start {
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
    pub(crate) fn exited(&self) -> Option<i32> {
        self.node.process().exited()
    }

    pub(crate) fn wait_exit(&self) -> Option<i32> {
        self.node.wait_exit()
    }

    /// The same, but not for longer than `patience`.
    pub(crate) fn wait_exit_for(&self, patience: Duration) -> Option<i32> {
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
        self.node.signal(signal);
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
