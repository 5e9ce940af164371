//! Rings of every size and number of copies, written through each of their nodes.

use std::fs;

use crate::load::Load;
use crate::node::{Node, Ring, ketama, members, start_all, write_request};

#[test]
fn a_ring_of_one_keeps_one_copy() {
    keeps_all_copies(1, 1);
}

#[test]
fn a_ring_of_three_keeps_one_to_three_copies() {
    (1..=3).for_each(|factor| keeps_all_copies(3, factor));
}

#[test]
fn a_ring_of_five_keeps_one_to_three_copies() {
    (1..=3).for_each(|factor| keeps_all_copies(5, factor));
}

/// Writes through all nodes at the same time, and expects just so many copies of everything.
fn keeps_all_copies(count: usize, factor: usize) {
    let ring = Ring::start(count, factor);
    let start = |(i, node)| Load::start_brief(ring.root.path(), &format!("load-{i}"), node);
    let loads: Vec<Load> = ring.nodes.iter().enumerate().map(start).collect();
    for load in loads {
        load.finish().verify_all_copies(&ring.nodes, factor);
    }
    for node in &ring.nodes {
        assert!(node.metric("prometheus_tsdb_head_series") > 0.0, "a node took no part");
        let calls = |service: &str| {
            let service = format!("grpc_service=\"{service}.WriteableStore\"");
            node.metric_with("grpc_server_handled_total", &service)
        };
        // Once a peer has said that it takes them, all its series of a request are one message.
        assert!(count == 1 || calls("ringest") > calls("thanos"), "messages were not merged");
    }
    ring.nodes.iter().for_each(Node::stop);
}

#[test]
fn a_ring_with_fewer_nodes_than_copies_waits_for_more() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hashrings.json");
    let mut nodes = members(root.path(), &file, 3, 3);
    for few in 1..=2 {
        let content = ketama(&nodes[..few]);
        fs::write(&file, &content).unwrap();
        if few == 1 {
            // Ready all the same, or none of them would ever become a member.
            start_all(&mut nodes);
        }
        for node in &nodes {
            node.wait_content(&content);
            assert_eq!(node.ring()["hashrings"][0]["state"], "not built");
            node.send(&write_request(0, 0)).assert_come_again();
        }
    }

    let content = ketama(&nodes);
    fs::write(&file, &content).unwrap();
    for node in &nodes {
        node.wait_content(&content);
        node.wait_others();
        assert_eq!(node.ring()["hashrings"][0]["state"], "in force");
    }
    Load::start_brief(root.path(), "load", &nodes[0]).finish().verify_all_copies(&nodes, 3);
}
