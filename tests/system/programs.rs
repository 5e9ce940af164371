//! The programs of these tests, started as their manuals say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;

use crate::http::{self, Request};
use crate::ports;
use crate::process::{Process, wait_for};

/// The tenant of writes that name none.
pub(crate) const DEFAULT_TENANT: &str = "default-tenant";

/// A receiver with a directory and ports of its own, which it keeps when it is started again.
pub(crate) struct Ringest {
    dir: PathBuf,
    args: Vec<String>,
    http: String,
    write: String,
    process: Option<Process>,
}

impl Ringest {
    /// Starts one in `root` and waits until it is ready.
    pub(crate) fn start(root: &Path, args: &[&str]) -> Ringest {
        let ports = ports::free(3);
        let address = |i: usize| format!("127.0.0.1:{}", ports[i]);
        let dir = root.join("data");
        let own = [
            format!("--http-address={}", address(0)),
            format!("--grpc-address={}", address(1)),
            format!("--remote-write.address={}", address(2)),
            "--receive.capnproto-address=127.0.0.1:0".to_owned(),
            format!("--tsdb.path={}", dir.display()),
        ];
        let args = own.into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect();
        let mut ringest = Ringest { dir, args, http: address(0), write: address(2), process: None };
        ringest.start_again();
        ringest
    }

    /// Starts it after a [`stop`](Ringest::stop) or [`kill`](Ringest::kill).
    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
        command.arg("receive").args(&self.args);
        let process = Process::start(&mut command, &self.dir.with_extension("log"));
        self.process = Some(wait_ready("ringest", process, &self.http));
    }

    /// Stops it as an operator does and expects that it ends well.
    pub(crate) fn stop(&mut self) {
        self.process().signal(Signal::TERM);
        self.ended();
    }

    /// Waits for the end after a signal and expects that it went well.
    pub(crate) fn ended(&mut self) {
        let mut process = self.process.take().expect("ringest runs");
        assert_eq!(process.wait_exit(), Some(0), "exit code of ringest: {}", process.log());
    }

    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("ringest runs");
        process.signal(Signal::KILL);
        assert_eq!(process.wait_exit(), Some(-9), "ringest ended by itself: {}", process.log());
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("ringest runs")
    }

    /// `host:port` of metrics, probes and remote read.
    pub(crate) fn http(&self) -> &str {
        &self.http
    }

    /// `host:port` of remote write.
    pub(crate) fn write(&self) -> &str {
        &self.write
    }

    pub(crate) fn tenant_dir(&self, tenant: &str) -> PathBuf {
        self.dir.join(tenant)
    }

    /// `ringest load` towards this receiver.
    pub(crate) fn load(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
        command
            .arg("load")
            .arg(format!("--url=http://{}", self.write))
            .arg(format!("--read-url=http://{}/api/v1/read", self.http))
            .args(args);
        command
    }

    /// Reads back what a load recorded as acknowledged, and expects every sample bit for bit.
    pub(crate) fn verify(&self, acked_file: &Path) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
        command
            .args(["load", "verify", "--json"])
            .arg(format!("--read-url=http://{}/api/v1/read", self.http))
            .arg("--acked-file")
            .arg(acked_file);
        let found: Value = serde_json::from_str(&succeed(&mut command)).expect("JSON");
        assert!(found["intact"].as_u64().is_some_and(|intact| intact > 0), "{found}");
        assert_eq!(found["missing"], 0, "{found}");
    }
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
        let process = Process::start(&mut command, &dir.with_extension("prometheus.log"));
        Prometheus { process: wait_ready("prometheus", process, &address), address }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn stop(mut self) {
        self.process.signal(Signal::TERM);
        assert_eq!(self.process.wait_exit(), Some(0), "{}", self.process.log());
    }

    pub(crate) fn kill(mut self) {
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
        let answer = http::exchange(&self.address, &request).expect("an answer");
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

/// Waits until `GET /-/ready` is answered with 200.
fn wait_ready(name: &str, mut process: Process, address: &str) -> Process {
    let ready = wait_for(|| {
        if process.exited().is_some() {
            return Some(false);
        }
        let answer = http::exchange(address, &Request::new("GET", "/-/ready"))?;
        (answer.status == 200).then_some(true)
    });
    assert_eq!(ready, Some(true), "{name} does not become ready: {}", process.log());
    process
}
