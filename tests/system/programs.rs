//! The programs of these tests, started as their manuals say.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::http::{self, Request};
use crate::support::node::Node;
use crate::support::ports;
use crate::support::process::{Ends, Process, wait_until};

/// Starts a receiver in `root` and waits until it is ready.
pub(crate) fn start_node(root: &Path, args: &[&str]) -> Node {
    let mut node = args.iter().fold(Node::new(root, "data"), |node, arg| node.with_arg(arg));
    node.start();
    node
}

/// A Prometheus with a port of its own.
pub(crate) struct Prometheus {
    process: Process,
    address: String,
}

impl Prometheus {
    /// Starts one on the directory `dir`, its configuration and log beside it, and waits until it
    /// is ready.
    pub(crate) fn start(dir: &Path, config: &str, flags: &[&str]) -> Prometheus {
        let address = format!("127.0.0.1:{}", ports::free(1)[0]);
        let config_file = dir.with_extension("prometheus.yml");
        fs::write(&config_file, config).expect("configuration of Prometheus");
        let mut command = debian("prometheus", "prometheus");
        command
            .arg(format!("--config.file={}", config_file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.display()))
            .arg(format!("--web.listen-address={address}"))
            .args(flags);
        let log = dir.with_extension("prometheus.log");
        let process = Process::start("prometheus", &mut command, &log, Ends::WhenTold);
        wait_until("Prometheus is ready", || {
            let answer = http::exchange(&address, &Request::new("GET", "/-/ready"));
            answer.is_some_and(|answer| answer.status == 200)
        });
        Prometheus { process, address }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn stop(self) {
        self.process.signal(Signal::TERM);
        assert_eq!(self.process.wait_exit(), Some(0), "{}", self.process.log());
    }

    pub(crate) fn kill(self) {
        self.process.signal(Signal::KILL);
        assert_eq!(self.process.wait_exit(), Some(-9), "{}", self.process.log());
    }

    /// What it has logged as a warning or an error.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let is_complaint =
            |line: &&str| line.contains("level=warn") || line.contains("level=error");
        self.process.log().lines().filter(is_complaint).map(str::to_owned).collect()
    }

    /// The result of an instant query at `time`, in seconds; `None` while there is no answer.
    pub(crate) fn query(&self, query: &str, time: f64) -> Option<Vec<Value>> {
        let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/query?query={query}&time={time}");
        let answer = http::exchange(&self.address, &Request::new("GET", &path))?;
        let mut answer: Value = serde_json::from_slice(&answer.body).ok()?;
        let result = answer["data"]["result"].as_array_mut()?;
        result.sort_by_cached_key(|series| series["metric"].to_string());
        Some(std::mem::take(result))
    }

    /// Makes a snapshot of everything, the head as a block, and returns its name.
    pub(crate) fn snapshot(&self) -> String {
        let request = Request::new("POST", "/api/v1/admin/tsdb/snapshot");
        let answer = http::ask(&self.address, &request);
        let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
        answer["data"]["name"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

/// A program of a Debian package.
pub(crate) fn debian(program: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file());
    let found = found.unwrap_or_else(|| {
        panic!("{program} is not in PATH; it comes with Debian's package {package}")
    });
    Command::new(found)
}

/// Runs a program that must succeed, and returns what it printed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let stdout = String::from_utf8(stdout).expect("UTF-8");
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout
}
