//! Nodes that disagree about the ring, and a node that is no member of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::load::Load;
use crate::node::{Node, ketama, new_node, start_all, write_request};

#[test]
fn two_nodes_that_hold_each_other_responsible_answer_all_writes() {
    let root = tempfile::tempdir().unwrap();
    let (mut nodes, files) = members(root.path(), 2);
    let [first, second] = &nodes[..] else { unreachable!("two nodes") };
    fs::write(&files[0], ketama([second])).unwrap();
    fs::write(&files[1], ketama([first])).unwrap();
    answers_all_writes(root.path(), &mut nodes, 2);
}

#[test]
fn a_node_that_knows_of_a_member_that_another_does_not_answers_all_writes() {
    let root = tempfile::tempdir().unwrap();
    let (mut nodes, files) = members(root.path(), 3);
    let [first, second, third] = &nodes[..] else { unreachable!("three nodes") };
    fs::write(&files[0], ketama([first, second])).unwrap();
    fs::write(&files[1], ketama([first, second, third])).unwrap();
    fs::write(&files[2], ketama([first, second, third])).unwrap();
    answers_all_writes(root.path(), &mut nodes, 2);
}

#[test]
fn nodes_with_different_rings_see_it_and_the_status_tool_tells() {
    let root = tempfile::tempdir().unwrap();
    let (mut nodes, files) = members(root.path(), 2);
    // Never started.
    let third = new_node(root.path(), "third");
    let both = ketama(&nodes);
    fs::write(&files[0], &both).unwrap();
    fs::write(&files[1], ketama(nodes.iter().chain([&third]))).unwrap();
    nodes.iter_mut().for_each(Node::start);
    nodes[0].wait_others();
    let mut load = Load::start(root.path(), "load", &nodes[0]);
    load.wait_stretch();
    let disagreeing = "ringest_ring_disagreeing_members";
    nodes[0].wait_until("disagrees", |node| node.metric(disagreeing) == 1.0);
    assert_eq!(nodes[0].metric("ringest_peer_ring_agrees"), 0.0);
    let hash = |node: &Node| node.ring()["ring_hash"].as_str().expect("a hash").to_owned();
    let hashes = [hash(&nodes[0]), hash(&nodes[1])];
    assert_ne!(hashes[0], hashes[1]);
    let member = nodes[0].member(&nodes[1].grpc);
    assert_eq!(
        (&member["ring_hash"], &member["ring_agrees"]),
        (&hashes[1].clone().into(), &false.into())
    );
    assert_eq!(nodes[0].member(&nodes[0].grpc)["ring_hash"], hashes[0]);

    let (code, table) = status(&nodes);
    assert_eq!(code, 1, "{table}");
    let line = |address: &str| {
        let line = table.lines().find(|line| line.starts_with(address));
        line.unwrap_or_else(|| panic!("{address} in {table}"))
            .split_whitespace()
            .collect::<Vec<_>>()
    };
    let [first, second] = [0, 1].map(|i| line(&nodes[i].grpc));
    assert_eq!(first[1..6], ["yes", "RouterIngestor", "yes", &hashes[0], "local"]);
    assert_eq!(second[1..7], ["yes", "RouterIngestor", "yes", &hashes[1], "*", "open"]);
    assert_eq!(line(&third.grpc)[1], "no");

    // The same rings, written in another way.
    let file: serde_json::Value = serde_json::from_str(&both).unwrap();
    fs::write(&files[1], serde_json::to_string_pretty(&file).unwrap()).unwrap();
    nodes[1].wait_until("has the same ring", |node| node.ring()["ring_hash"] == hashes[0]);
    load.wait_stretch();
    let second = nodes[1].grpc.clone();
    nodes[0].wait_until("agrees", |node| {
        node.metric(disagreeing) == 0.0 && node.member(&second)["ring_agrees"] == true
    });
    assert_eq!(nodes[0].metric("ringest_peer_ring_agrees"), 1.0);
    load.stop().verify(&nodes, 1);
    let (code, table) = status(&nodes);
    assert_eq!(code, 0, "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
}

/// What `ringest ring status` says of these nodes, and its exit code.
fn status(nodes: &[Node]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringest"));
    command.args(["ring", "status"]);
    command.args(nodes.iter().map(|node| format!("--url=http://{}", node.http)));
    // The port of no node: a member that is not given is to be found by nobody.
    let output = command.arg("--http-port=1").output().expect("the tool starts");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(said.is_empty(), "{said}");
    (output.status.code().expect("an end"), String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Nodes that each have a ring's file of their own, still to be written.
fn members(root: &Path, count: usize) -> (Vec<Node>, Vec<PathBuf>) {
    let member = |i| {
        let file = root.join(format!("hashrings-{i}.json"));
        (new_node(root, &format!("node-{i}")).with_ring(&file, 1).with_local_endpoint(), file)
    };
    (0..count).map(member).unzip()
}

/// Starts all nodes, and writes to the first few at the same time.
fn answers_all_writes(root: &Path, nodes: &mut [Node], written: usize) {
    start_all(nodes);
    let start = |i: usize| Load::start(root, &format!("load-{i}"), &nodes[i]);
    let mut loads: Vec<Load> = (0..written).map(start).collect();
    for _ in 0..2 {
        loads.iter_mut().for_each(Load::wait_stretch);
    }
    for load in loads {
        load.stop().verify(&*nodes, 1);
    }
    for node in &*nodes {
        assert!(node.metric("prometheus_tsdb_head_series") > 0.0, "a node took no part");
    }
    nodes.iter().for_each(Node::stop);
}

#[test]
fn a_router_stores_nothing_and_touches_no_data_directory() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hashrings.json");
    let mut ingestors = [0, 1].map(|i| new_node(root.path(), &format!("ingestor-{i}")));
    fs::write(&file, ketama(&ingestors)).unwrap();
    ingestors.iter_mut().for_each(Node::start);
    let mut router = new_node(root.path(), "router").with_ring(&file, 2);
    router.start();
    assert_eq!(router.ring()["mode"], "RouterOnly");
    assert_eq!(ingestors[0].ring()["mode"], "IngestorOnly");
    router.wait_others();
    let mut load = Load::start(root.path(), "load", &router);
    load.wait_stretch();
    load.stop().verify(&ingestors, 2);
    assert!(!router.data.exists(), "{} was made", router.data.display());
    router.stop();
    assert!(!router.data.exists(), "{} was made", router.data.display());
}

#[test]
fn nodes_that_were_not_told_their_own_endpoint_call_each_other_a_few_times_only() {
    /// Each hands the sample to each other once, and to itself: what has come by a node before, or
    /// by too many, is handed on no more.
    const CALLS_MAX: f64 = 60.0;

    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hashrings.json");
    // A router each, which stores nothing.
    let node = |i| new_node(root.path(), &format!("node-{i}")).with_ring(&file, 3);
    let mut nodes: Vec<Node> = (0..3).map(node).collect();
    nodes = nodes.into_iter().map(|node| node.with_forward_timeout("600s")).collect();
    fs::write(&file, ketama(&nodes)).unwrap();
    start_all(&mut nodes);

    // Long before that time out is over, at which each would give up.
    nodes[0].send(&write_request(0, 0)).assert_come_again();
    let calls = || nodes.iter().map(|node| node.metric("grpc_server_started_total")).sum::<f64>();
    assert!(calls() <= CALLS_MAX, "{} calls for one sample", calls());
    let log = nodes[0].log();
    assert!(log.contains("--receive.local-endpoint"), "{log}");
}
