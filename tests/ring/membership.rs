//! Nodes that disagree about the ring, and a node that is no member of it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::load::Load;
use crate::node::{Node, ketama, start_all};

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

/// Nodes that each have a ring's file of their own, still to be written.
fn members(root: &Path, count: usize) -> (Vec<Node>, Vec<PathBuf>) {
    let member = |i| {
        let file = root.join(format!("hashrings-{i}.json"));
        (Node::new(root, &format!("node-{i}")).with_ring(&file, 1).with_local_endpoint(), file)
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
    nodes.iter_mut().for_each(Node::stop);
}

#[test]
fn a_router_stores_nothing_and_touches_no_data_directory() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hashrings.json");
    let mut ingestors = [0, 1].map(|i| Node::new(root.path(), &format!("ingestor-{i}")));
    fs::write(&file, ketama(&ingestors)).unwrap();
    ingestors.iter_mut().for_each(Node::start);
    let mut router = Node::new(root.path(), "router").with_ring(&file, 2);
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
