//! Rings whose nodes replicate over Cap'n Proto.

use ringest::model::labels::push_label;

use crate::load::Load;
use crate::node::{Node, Ring};

#[test]
fn every_copy_arrives_and_a_killed_node_is_used_again() {
    let mut ring = Ring::start_with(3, 3, Node::with_capnproto);
    // One that only routes, and one that is of the ring.
    let mut router =
        Node::new(ring.root.path(), "router").with_ring(&ring.hashrings, 3).with_capnproto();
    router.start();
    router.wait_others();
    let mut through_router = Load::start(ring.root.path(), "router", &router);
    let mut through_node = Load::start(ring.root.path(), "node", &ring.nodes[0]);
    through_router.wait_stretch();
    through_node.wait_stretch();

    ring.nodes[2].kill();
    through_router.wait_stretch();
    through_node.wait_stretch();

    ring.nodes[2].start();
    let restarted = ring.nodes[2].grpc.clone();
    ring.nodes[0].wait_member(&restarted, "open");
    router.wait_member(&restarted, "open");
    through_router.wait_stretch();
    through_node.wait_stretch();

    // No call went over gRPC.
    assert_eq!(ring.nodes[0].metric("grpc_client_started_total"), 0.0);
    assert!(router.metric("thanos_receive_forward_requests_total") > 0.0);
    through_router.stop().verify(&ring.nodes, 3);
    through_node.stop().verify(&ring.nodes, 3);
}

#[test]
fn a_conflict_arrives_as_one() {
    let ring = Ring::start_with(3, 3, Node::with_capnproto);
    let mut router =
        Node::new(ring.root.path(), "router").with_ring(&ring.hashrings, 3).with_capnproto();
    router.start();
    router.wait_others();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let now = u64::try_from(now.as_millis()).expect("milliseconds");
    assert_eq!(router.send(&write_request(now, 1.0)).status, 200);
    // All have it, so that none takes the other value.
    for node in &ring.nodes {
        let has_one = || (node.metric("prometheus_tsdb_head_series") == 1.0).then_some(());
        crate::process::wait_for(has_one).expect("a copy on each node");
    }
    assert_eq!(router.send(&write_request(now, 1.0)).status, 200);
    for writer in [&router, &ring.nodes[1]] {
        let answer = writer.send(&write_request(now, 2.0));
        let said = String::from_utf8(answer.body).expect("UTF-8");
        assert_eq!(answer.status, 409, "{said}");
        assert!(said.contains("duplicate sample for timestamp"), "{said}");
    }
}

/// One series with one sample.
fn write_request(t: u64, value: f64) -> Vec<u8> {
    let mut series = Vec::new();
    push_label(&mut series, 0x0a, b"__name__", b"m");
    let mut sample = vec![0x09];
    sample.extend_from_slice(&value.to_le_bytes());
    sample.push(0x10);
    ringest::wire::reader::push_varint(&mut sample, t);
    series.extend_from_slice(&[0x12, sample.len() as u8]);
    series.extend_from_slice(&sample);
    let mut request = vec![0x0a];
    ringest::wire::reader::push_varint(&mut request, series.len() as u64);
    request.extend_from_slice(&series);
    request
}
