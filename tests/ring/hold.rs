//! A changed ring under which nothing could be written is held back: until it can be, until somebody
//! asks, and never when a node starts.

use std::fs;

use crate::load::Load;
use crate::node::{Node, ketama, members, start_all};
use crate::support::http::Request;

/// Whether the ring's page says that rings are held back, and why.
fn held(node: &Node) -> Option<String> {
    let held = node.ring()["held"].clone();
    (held["state"] == "held").then(|| held["reason"].as_str().expect("a reason").to_owned())
}

fn wait_held(node: &Node) {
    node.wait_until("holds the file back", |node| held(node).is_some());
    let reason = held(node).expect("still held");
    assert!(reason.contains("reaches its quorum of 2: 0 of its 3 members"), "{reason}");
    assert_eq!(node.metric("ringest_ring_held"), 1.0);
    assert!(node.metric("ringest_ring_held_since_timestamp_seconds") > 0.0);
}

fn wait_taken(node: &Node, content: &str) {
    node.wait_content(content);
    assert_eq!(held(node), None);
    assert_eq!(node.metric("ringest_ring_held"), 0.0);
    assert_eq!(node.metric("ringest_ring_held_since_timestamp_seconds"), 0.0);
}

/// Asks a node to take what it holds back. Returns the status.
fn take(node: &Node) -> u16 {
    node.ask(&node.http, &Request::new("POST", "/api/v1/ring/take")).status
}

#[test]
fn a_ring_of_other_nodes_is_taken_when_they_come_up_and_no_write_fails() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hashrings.json");
    let nodes = members(root.path(), &file, 6, 3).into_iter();
    let mut nodes: Vec<Node> = nodes.map(|node| node.with_arg("--receive.ring-hold=1h")).collect();
    let (now, later) = (ketama(&nodes[..3]), ketama(&nodes[3..]));
    fs::write(&file, &now).unwrap();
    start_all(&mut nodes[..3]);
    let mut load = Load::start_wide(root.path(), "load", &nodes[1]);
    load.wait_stretch();

    fs::write(&file, &later).unwrap();
    nodes[..3].iter().for_each(wait_held);
    load.wait_stretch();
    // A node that starts has nothing better, and must not wait for the others.
    nodes[0].stop();
    nodes[0].start();
    wait_taken(&nodes[0], &later);
    nodes[1..3].iter().for_each(wait_held);
    load.wait_stretch();
    let hash = nodes[1].ring()["ring_hash"].clone();
    assert_ne!(nodes[0].ring()["ring_hash"], hash);
    assert_eq!(nodes[2].ring()["ring_hash"], hash);

    // One of three is no quorum, two are.
    nodes[3].start();
    for node in &nodes[1..3] {
        node.wait_until("reaches the first", |node| {
            held(node).is_some_and(|reason| reason.contains("1 of its 3 members"))
        });
    }
    load.wait_stretch();
    nodes[4].start();
    nodes[1..3].iter().for_each(|node| wait_taken(node, &later));
    load.wait_stretch();
    nodes[5].start();
    load.stop().read_back(&nodes);
    let log = nodes[1].log();
    assert!(log.contains("hashrings file is held back"), "{log}");
    assert!(log.contains("is taken: a replica set reaches its quorum"), "{log}");
}

#[test]
fn a_held_ring_is_taken_on_request_and_not_held_where_that_is_off() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hashrings.json");
    let mut nodes = members(root.path(), &file, 6, 3);
    let last = nodes.remove(2).with_arg("--receive.ring-hold=0s");
    nodes.insert(2, last);
    let (now, later) = (ketama(&nodes[..3]), ketama(&nodes[3..]));
    fs::write(&file, &now).unwrap();
    start_all(&mut nodes[..3]);
    assert_eq!(take(&nodes[0]), 409, "nothing is held");

    fs::write(&file, &later).unwrap();
    wait_taken(&nodes[2], &later);
    nodes[..2].iter().for_each(wait_held);
    assert_eq!(take(&nodes[0]), 200);
    wait_taken(&nodes[0], &later);
    assert_eq!(take(&nodes[0]), 409);
    wait_held(&nodes[1]);
    // Back again: what was held is forgotten.
    fs::write(&file, &now).unwrap();
    nodes[..3].iter().for_each(|node| wait_taken(node, &now));
    assert_eq!(nodes[1].metric("thanos_receive_hashrings_file_changes_total"), 1.0);
}

#[test]
fn pods_that_start_one_after_the_other_wait_for_none_that_is_to_come() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hashrings.json");
    let mut nodes = members(root.path(), &file, 3, 3);
    // All are listed before the first is there.
    let content = ketama(&nodes);
    fs::write(&file, &content).unwrap();
    for i in 0..3 {
        nodes[i].start();
        nodes[..=i].iter().for_each(|node| wait_taken(node, &content));
    }
    nodes.iter().for_each(Node::wait_others);
    let load = Load::start_brief(root.path(), "load", &nodes[0]);
    load.finish().verify_all_copies(&nodes, 3);

    // Or each when it is ready: a ring that is too small for three copies has its tenants wait.
    nodes.iter().for_each(Node::stop);
    for i in 0..3 {
        let content = ketama(&nodes[..=i]);
        fs::write(&file, &content).unwrap();
        nodes[i].start();
        nodes[..=i].iter().for_each(|node| wait_taken(node, &content));
    }
    nodes.iter().for_each(Node::wait_others);
    let load = Load::start_brief(root.path(), "again", &nodes[0]);
    load.finish().verify_all_copies(&nodes, 3);
}
