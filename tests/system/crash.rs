//! Ends under load, wanted and not: what was acknowledged is there afterwards.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::directories::{NO_TARGETS, copy_dir};
use crate::programs::{Prometheus, start_node, succeed};
use crate::support::http::{Request, connect, read_answer};
use crate::support::load::{Load, verify_command};
use crate::support::messages::WriteRequest;
use crate::support::node::Node;
use crate::support::remote_read::{self, everything, sample_count};
use crate::support::same::assert_same;

/// Starts a sender that goes on until it is stopped, whatever it is answered.
fn start_load(root: &Path, node: &Node) -> Load {
    let flags = [
        "--series=2000",
        "--series-per-request=200",
        "--connections=2",
        "--tenants=3",
        "--rate=20000",
        "--stale=5",
        "--churn=50",
    ];
    Load::launch(root, "load", node, &flags)
}

/// Stops it, and returns its record of what was acknowledged.
fn stop_load(load: Load) -> PathBuf {
    load.tell_to_stop();
    load.end().0
}

/// Reads back what a load recorded as acknowledged, and expects every sample bit for bit.
fn verify(node: &Node, acked_file: &Path) {
    let found = succeed(&mut verify_command(acked_file, [node]));
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert!(found["intact"].as_u64().is_some_and(|intact| intact > 0), "{found}");
    assert_eq!(found["missing"], 0, "{found}");
}

fn survives_kills(sync: &str) {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[sync]);
    let mut load = start_load(root.path(), &ringest);
    for _ in 0..4 {
        load.wait_stretch();
        ringest.kill();
        ringest.start();
    }
    load.wait_stretch();
    let acked_file = stop_load(load);
    verify(&ringest, &acked_file);
    ringest.kill();
    ringest.start();
    verify(&ringest, &acked_file);
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_with_sync_by_interval() {
    survives_kills("--tsdb.wal-sync=interval");
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_with_sync_always() {
    survives_kills("--tsdb.wal-sync=always");
}

#[test]
fn a_directory_killed_under_load_holds_the_same_to_prometheus() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[]);
    let mut load = start_load(root.path(), &ringest);
    load.wait_stretch();
    ringest.kill();
    stop_load(load);
    let copy = root.path().join("for-prometheus");
    copy_dir(&ringest.data.join("load-0"), &copy);
    ringest.start();
    let ours = remote_read::read(&ringest.http, Some("load-0"), ".+");
    assert!(sample_count(&ours) > 0);
    let prometheus = Prometheus::start(&copy, NO_TARGETS, &[]);
    assert_same("Prometheus", &everything(prometheus.address()), &ours);
}

#[test]
fn nothing_acknowledged_is_lost_by_a_stop_under_load() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[]);
    let mut load = start_load(root.path(), &ringest);
    load.wait_stretch();
    ringest.stop();
    ringest.start();
    load.wait_stretch();
    let acked_file = stop_load(load);
    verify(&ringest, &acked_file);
    ringest.stop();
    ringest.start();
    verify(&ringest, &acked_file);
}

#[test]
fn a_stop_waits_for_the_request_under_way_and_is_not_ready_meanwhile() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[]);
    let body = WriteRequest::of(&[("__name__", "up")], 1_000_000, 1.0).compressed();
    let (half, rest) = body.split_at(body.len() / 2);
    let mut sender = connect(&ringest.remote_write);
    // The answer to `Expect` shows that the request is under way.
    let head = Request::new("POST", "/api/v1/receive").header("Expect", "100-continue");
    sender.write_all(&head.declaring(body.len()).kept_alive().bytes()).unwrap();
    let mut proceed = [0; 25];
    sender.read_exact(&mut proceed).unwrap();
    assert_eq!(&proceed, b"HTTP/1.1 100 Continue\r\n\r\n");
    sender.write_all(half).unwrap();

    ringest.signal(Signal::TERM);
    ringest.wait_until("drains", |ringest| !ringest.is_ready());
    assert_eq!(ringest.process().exited(), None, "{}", ringest.log());
    assert!(!ringest.is_ready());

    sender.write_all(rest).unwrap();
    let answer = read_answer(&mut sender).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    ringest.wait_end();

    ringest.start();
    let up = vec![("__name__".to_owned(), "up".to_owned())];
    let expected = [(up, vec![(1_000_000, 1f64.to_bits())])].into();
    assert_same("what is stored", &everything(&ringest.http), &expected);
}
