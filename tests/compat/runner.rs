//! Plays one suite: starts the server, takes the steps in order, reports every difference.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use regex_automata::meta;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde_json::{Value, json};

use crate::compare::{self, Differences};
use crate::node::{self, Server, Start};
use crate::stub::Stub;
use crate::suite::{self, Step};
use crate::support::http;
use crate::support::process::wait_for;
use crate::{grpc, ours, requests, tls};

/// How much of the server's log a failure shows.
const LOG_BYTES_MAX: usize = 4000;

/// Set to play the suites against another binary, as they were recorded and without our
/// exceptions: a real `thanos` judges the runner that way.
pub(crate) const OTHER_BINARY: &str = "RINGEST_COMPAT_BINARY";

/// Whether it is our own program that is played.
pub(crate) fn is_ours() -> bool {
    std::env::var_os(OTHER_BINARY).is_none()
}

/// Panics with all differences, if there are any.
pub(crate) fn play(name: &str) {
    let suite = suite::load(name);
    let is_ours = is_ours();
    let mut node = Server::new(&suite.server);
    let stubs: Stubs = suite
        .server
        .stubs
        .iter()
        .map(|(name, kind)| {
            assert_eq!(kind, "grpc", "{name}: other stubs are not supported yet");
            (name.clone(), Stub::start(node.address(name)))
        })
        .collect();
    if suite.server.wait == "ready" {
        node.spawn();
        let start = node.wait_ready();
        assert_eq!(start, Start::Ready, "{name}: no start\n{}", node.log());
    }
    let mut report = String::new();
    let mut differing = 0;
    for recorded in &suite.steps {
        let mut step = recorded.clone();
        suite::fill(&mut step.0, &node.places);
        if is_ours {
            ours::apply(name, &mut step);
        }
        let differences = take(&mut node, &stubs, &step);
        if differences.is_empty() || step.flag("soft") {
            continue;
        }
        differing += 1;
        let about = ours::reason(name, &step).filter(|_| is_ours).or(step.text("odd"));
        let about = about.map(|about| format!(" ({about})")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(report, "{}{about}:\n  {}", step.id(), differences.join("\n  "));
    }
    let log = node.log();
    let log = &log[log.floor_char_boundary(log.len().saturating_sub(LOG_BYTES_MAX))..];
    let steps = suite.steps.len();
    assert!(differing == 0, "{name}: {differing} of {steps} steps differ\n{report}\nlog: {log}");
}

/// Peers of the server under test, by name.
type Stubs = BTreeMap<String, Stub>;

fn take(node: &mut Server, stubs: &Stubs, step: &Step) -> Differences {
    match step.kind() {
        "stub" => {
            stubs[step.text("stub").expect("name of a stub")].set(step);
            Vec::new()
        }
        "stub-calls" => stubs[step.text("stub").expect("name of a stub")].compare(step),
        "http" => take_http(node, step),
        "series" => match grpc::series(node.address("grpc"), step) {
            Ok(called) => compare::series(step, &called),
            Err(error) => vec![error],
        },
        "grpc" => match grpc::call_step(node.address("grpc"), step) {
            Ok(called) => compare::grpc(step, &called),
            Err(error) => vec![error],
        },
        "start" => take_start(node, step),
        "signal" => take_signal(node, step),
        "inflight" => take_inflight(node, step),
        "exit" => {
            let exit = node.wait_exit().map_or(Value::Null, |code| json!(code));
            one_of(step, "exit", exit)
        }
        "alive" => {
            pause(step.number("after_s"));
            one_of(step, "alive", json!(node.exited().is_none()))
        }
        "sleep" => {
            pause(step.number("seconds"));
            Vec::new()
        }
        "fifo" => take_fifo(node, step),
        "release" => take_release(node, step),
        "alpn" => {
            let address = node.address(step.text("to").expect("listener"));
            let found = tls::agreed(address, &node.dir(), step.list("offer"));
            let keys = ["agreed", "version"];
            keys.into_iter().flat_map(|key| one_of(step, key, found[key].clone())).collect()
        }
        "ls" => take_ls(node, step),
        other => vec![format!("unsupported step kind `{other}`")],
    }
}

fn pause(seconds: Option<f64>) {
    if let Some(seconds) = seconds {
        thread::sleep(Duration::from_secs_f64(seconds));
    }
}

/// Compares a single value that `accept` may list more of.
fn one_of(step: &Step, key: &str, found: Value) -> Differences {
    if step.expected(key) == Some(&found) || step.accepts(key, &found) {
        return Vec::new();
    }
    vec![format!("{key}: {found}, expected {}", compare::shown(step.expected(key)))]
}

fn take_http(node: &Server, step: &Step) -> Differences {
    let address = node.address(step.text("to").expect("listener"));
    let request = requests::request(step);
    let until = step.int("until_status");
    let deadline = Instant::now() + Duration::from_secs_f64(step.number("retry_s").unwrap_or(0.0));
    loop {
        let answer = match step.text("tls") {
            None => http::exchange(address, &request),
            Some(client) => tls::exchange(address, &request, &node.dir(), client),
        };
        let status = answer.as_ref().map(|answer| i64::from(answer.status));
        if until.is_none() || status == until || Instant::now() >= deadline {
            return compare::http(step, answer.as_ref());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn take_start(node: &mut Server, step: &Step) -> Differences {
    if step.0.get("args").is_some() {
        return vec!["starts with other arguments are not supported yet".into()];
    }
    node.spawn();
    let start = match step.text("wait") {
        None => node.wait_ready(),
        Some("tcp") => node.wait_listening(),
        Some(other) => return vec![format!("unknown wait `{other}`")],
    };
    let (key, found) = match start {
        Start::Ready => ("ready", json!(true)),
        Start::NeverReady => ("ready", json!(false)),
        Start::Exited(code) => ("exit", json!(code)),
    };
    one_of(step, key, found)
}

fn take_signal(node: &mut Server, step: &Step) -> Differences {
    if step.flag("stays") {
        return vec!["signals that a process survives are not supported yet".into()];
    }
    node.signal(step.text("signal").expect("signal"));
    let exit = match step.number("timeout_s") {
        None => node.wait_exit(),
        Some(seconds) => node.wait_exit_for(Duration::from_secs_f64(seconds)),
    };
    one_of(step, "exit", exit.map_or(Value::Null, |code| json!(code)))
}

/// Sends half of a write, the signal, and then the rest.
fn take_inflight(node: &mut Server, step: &Step) -> Differences {
    let body = step.bytes("body_b64").expect("a body");
    let address = node.address("write").to_owned();
    let mut request = http::Request::new("POST", "/api/v1/receive");
    request.headers.push(("THANOS-TENANT".into(), step.text("tenant").expect("tenant").into()));
    request.body = Some(body);
    let signal = || {
        node.signal(step.text("signal").expect("signal"));
        let closes = wait_for(|| TcpStream::connect(&address).is_err().then_some(()));
        assert!(closes.is_some(), "the port stays open");
    };
    let answer = match http::exchange_in_halves(&address, &request, signal) {
        Some(answer) => json!(answer.status),
        None => json!("closed"),
    };
    let exit = node.wait_exit().map_or(Value::Null, |code| json!(code));
    [one_of(step, "answer", answer), one_of(step, "exit", exit)].concat()
}

/// Makes a named pipe, which stands for a log that takes long to read.
fn take_fifo(node: &Server, step: &Step) -> Differences {
    let path = node.dir().join(step.text("path").expect("path of a pipe"));
    fs::create_dir_all(path.parent().expect("a directory")).expect("the pipe's directory");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .expect("a named pipe");
    Vec::new()
}

/// Gives the reader of a named pipe its end.
fn take_release(node: &Server, step: &Step) -> Differences {
    let path = node.dir().join(step.text("path").expect("path of a pipe"));
    // Fails instead of waiting if nobody reads.
    match rustix::fs::open(&path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()) {
        Ok(_) => Vec::new(),
        Err(error) => vec![format!("nobody reads the pipe: {error}")],
    }
}

fn take_ls(node: &Server, step: &Step) -> Differences {
    let pattern =
        |pattern: &Value| meta::Regex::new(pattern.as_str().expect("pattern")).expect("pattern");
    let skipped: Vec<meta::Regex> = step.list("skip").iter().map(pattern).collect();
    let dir = node.dir().join(step.text("in").expect("directory"));
    let depth = step.int("depth").and_then(|depth| usize::try_from(depth).ok()).unwrap_or(1);
    let is_skipped =
        |path: &str| ours::is_own_file(path) || skipped.iter().any(|skip| skip.is_match(path));
    let found = node::list(&dir, depth, is_skipped);
    let mut expected: Vec<&str> = match step.expected("files").and_then(Value::as_array) {
        Some(files) => files.iter().filter_map(Value::as_str).collect(),
        None => return vec!["no files are expected".into()],
    };
    expected.sort_unstable();
    if found == expected {
        return Vec::new();
    }
    let missing: Vec<_> =
        expected.iter().filter(|path| !found.iter().any(|f| f == *path)).collect();
    let extra: Vec<_> = found.iter().filter(|path| !expected.contains(&path.as_str())).collect();
    vec![format!("missing {missing:?}, not expected {extra:?}")]
}

/// The binary under test.
pub(crate) fn binary() -> std::path::PathBuf {
    match std::env::var_os(OTHER_BINARY) {
        Some(path) => fs::canonicalize(path).expect("the other binary"),
        None => env!("CARGO_BIN_EXE_ringest").into(),
    }
}
