//! From the first log line to the exit code.

use std::ffi::OsString;

use rustix::process::Signal;

use crate::program::{get, run, words};
use crate::support::node::Node;

fn data_in(dir: &tempfile::TempDir) -> String {
    format!("--tsdb.path={}", dir.path().join("data").display())
}

#[test]
fn a_receiver_starts_becomes_ready_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Node::launch_with(&[&data_in(&dir), "--debug.name=n"]);
    let first = receiver.line_with(&["mode=IngestorOnly"]);
    assert_eq!(first, receiver.lines()[0]);
    assert!(first.contains(" name=n level=info component=receive msg="), "{first}");
    receiver.line_with(&["external label is replica="]);
    let http = receiver.address("http/server");
    receiver.address("gRPC/server");
    receiver.line_with(&["status=ready"]);
    assert_eq!(get(&http, "/-/ready").0, 200);
    assert_eq!(get(&http, "/-/healthy").0, 200);
    let page = get(&http, "/metrics").1;
    for name in ["process_resident_memory_bytes ", "thanos_build_info{"] {
        assert!(page.contains(&format!("\n{name}")), "{name} is not in {page}");
    }

    receiver.signal(Signal::HUP);
    receiver.line_with(&["signal=hangup"]);
    assert_eq!(get(&http, "/-/ready").0, 200);

    receiver.signal(Signal::TERM);
    assert_eq!(receiver.wait_exit(), Some(0), "{}", receiver.log());
    receiver.line_with(&["signal=terminated"]);
    receiver.line_with(&["status=not-ready"]);
    receiver.line_with(&["storage is synced and closed"]);
    let last = receiver.lines().pop().unwrap();
    assert!(last.ends_with(" level=info msg=exiting"), "{last}");
    assert!(dir.path().join("data").is_dir());
}

#[test]
fn an_interrupt_stops_it_too_and_a_json_log_is_json() {
    let dir = tempfile::tempdir().unwrap();
    let args = [&data_in(&dir), "--log.format=json", "--label=replica=\"a\""];
    let receiver = Node::launch_with(&args);
    receiver.line_with(&["\"status\":\"ready\""]);
    receiver.signal(Signal::INT);
    assert_eq!(receiver.wait_exit(), Some(0), "{}", receiver.log());
    for line in receiver.lines() {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        for key in ["ts", "caller", "level", "msg"] {
            assert!(line[key].is_string(), "{key} in {line}");
        }
    }
}

#[test]
fn a_second_process_is_kept_out_of_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = Node::launch_with(&[&data_in(&dir)]);
    first.line_with(&["status=ready"]);
    let mut args = words(&["receive", "--http-address=", "--grpc-address="]);
    args.extend(words(&["--remote-write.address=", "--receive.capnproto-address="]));
    args.push(OsString::from(data_in(&dir)));
    let second = run(&args);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    let last = said.lines().last().unwrap();
    assert!(last.contains("another process holds the lock"), "{said}");
    assert!(last.contains("--tsdb.path="), "{said}");

    first.signal(Signal::KILL);
    assert_eq!(first.wait_exit(), Some(-9));
    let third = Node::launch_with(&[&data_in(&dir)]);
    third.line_with(&["status=ready"]);
}
