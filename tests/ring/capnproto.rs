//! Rings whose nodes replicate over Cap'n Proto.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringest::metrics::Registry;
use ringest::model::histogram::{AnyHistogram, CUSTOM_BUCKETS_SCHEMA, Histogram, Layout, Span};
use ringest::peer::message::{ForwardMessage, Protocol};
use ringest::peer::{PeerOptions, PeerPool};
use ringest::wire::capnproto::encode::SeriesTable;
use ringest::wire::capnproto::rpc::WriteError;
use ringest::wire::histogram::HistogramMessage;

use crate::load::Load;
use crate::node::{self, Node, Ring, new_node};
use crate::released::{self, Released, Write};
use crate::support::histograms::digest;
use crate::support::messages::{WriteRequest, field};
use crate::support::now;
use crate::support::process::wait_for;
use crate::support::remote_read;

#[test]
fn every_copy_arrives_and_a_killed_node_is_used_again() {
    let mut ring = Ring::start_with(3, 3, Node::with_capnproto);
    // One that only routes, and one that is of the ring.
    let mut router =
        new_node(ring.root.path(), "router").with_ring(&ring.hashrings, 3).with_capnproto();
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
        new_node(ring.root.path(), "router").with_ring(&ring.hashrings, 3).with_capnproto();
    router.start();
    router.wait_others();
    let now = now();
    let write_request = |value| WriteRequest::of(&[("__name__", "m")], now, value).0;
    assert_eq!(router.send(&write_request(1.0)).status, 200);
    // All have it, so that none takes the other value.
    for node in &ring.nodes {
        let has_one = || (node.metric("prometheus_tsdb_head_series") == 1.0).then_some(());
        wait_for(has_one).expect("a copy on each node");
    }
    assert_eq!(router.send(&write_request(1.0)).status, 200);
    for writer in [&router, &ring.nodes[1]] {
        let answer = writer.send(&write_request(2.0));
        let said = String::from_utf8(answer.body).expect("UTF-8");
        assert_eq!(answer.status, 409, "{said}");
        assert!(said.contains("duplicate sample for timestamp"), "{said}");
    }
}

/// Has `node` store this, and no other one: what comes over Cap'n Proto is in its place.
fn store_at(node: &Node, request: &[u8]) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stored = runtime.block_on(async {
        let options = PeerOptions { protocol: Protocol::CapnProto, ..PeerOptions::default() };
        let pool = PeerPool::new(options, &Registry::new());
        pool.update([&node.capnproto[..]]);
        let peer = pool.peer(&node.capnproto).expect("a peer");
        let table = SeriesTable::new([request]).expect("a good request");
        let numbers: Vec<u32> = (0..table.len()).map(|i| i as u32).collect();
        let message = ForwardMessage::gather_capnproto("default-tenant", &table, &numbers);
        peer.remote_write(&message.expect("a short one"), Duration::from_secs(30)).await
    });
    stored.expect("stored");
}

#[test]
fn a_verdict_is_per_series() {
    let ring = Ring::start_with(3, 3, Node::with_capnproto);
    let mut router =
        new_node(ring.root.path(), "router").with_ring(&ring.hashrings, 3).with_capnproto();
    router.start();
    router.wait_others();
    let both = |t: i64| [node::write_request(0, t), node::write_request(1, t)].concat();
    // Nodes of ours are sent all replicas at once from their first answer on.
    for t in 1..3 {
        assert_eq!(router.send(&both(t)).status, 200);
        for node in &ring.nodes {
            let has_both = || (node.metric("prometheus_tsdb_head_series") == 2.0).then_some(());
            wait_for(has_both).expect("a copy on each node");
        }
    }
    // One node is ahead in one series, one in the other.
    store_at(&ring.nodes[1], &node::write_request(0, 9));
    store_at(&ring.nodes[2], &node::write_request(1, 9));
    let answer = router.send(&both(5));
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    // Without the third node each has one copy, and a later try may find another.
    ring.nodes[0].kill();
    router.send(&both(6)).assert_come_again();
    // Two that are ahead in the same series refuse it for good.
    store_at(&ring.nodes[2], &node::write_request(0, 9));
    assert_eq!(router.send(&node::write_request(0, 7)).status, 409);
}

#[test]
fn histograms_arrive_as_they_were_sent_and_custom_buckets_over_grpc() {
    let ring = Ring::start_with(3, 3, Node::with_capnproto);
    let mut router =
        new_node(ring.root.path(), "router").with_ring(&ring.hashrings, 3).with_capnproto();
    router.start();
    router.wait_others();
    let send = |name: &str, histogram: &AnyHistogram| {
        let mut message = Vec::new();
        // At the time of the other samples.
        HistogramMessage::of_model(1_000_001, histogram).push_protobuf(&mut message);
        let label = field(1, &[field(1, b"__name__"), field(2, name.as_bytes())].concat());
        let series = field(1, &[label, field(4, &message)].concat());
        let answer = router.send(&[series, node::write_request(0, 1)].concat());
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    };
    let spans = |length| vec![Span { offset: 1, length }];
    let exponential = AnyHistogram::Integer(Histogram {
        layout: Layout { schema: 3, negative_spans: spans(2), ..Layout::default() },
        count: 7,
        sum: -1.5,
        negative: vec![3, 1],
        ..Histogram::default()
    });
    send("exponential", &exponential);
    assert_eq!(router.metric("grpc_client_started_total"), 0.0);
    let custom = AnyHistogram::Float(Histogram {
        layout: Layout {
            schema: CUSTOM_BUCKETS_SCHEMA,
            positive_spans: spans(1),
            custom_bounds: vec![1.0, 2.5],
            ..Layout::default()
        },
        count: 2.5,
        positive: vec![2.5],
        ..Histogram::default()
    });
    send("custom", &custom);
    // The verdict does not wait for the third.
    let has_sent_all = || (router.metric("grpc_client_started_total") >= 3.0).then_some(());
    wait_for(has_sent_all).expect("a call to each node");
    for node in &ring.nodes {
        let has_all = || (node.metric("prometheus_tsdb_head_series") == 3.0).then_some(());
        wait_for(has_all).expect("a copy on each node");
        for (name, sent) in [("exponential", &exponential), ("custom", &custom)] {
            let stored = remote_read::read(&node.http, None, name);
            let stored: Vec<_> = stored.into_values().flatten().collect();
            assert_eq!(stored, [(1_000_001, digest(sent))], "{name}");
        }
    }
}

/// A router before nodes of a release of Thanos, with three copies.
fn router_before(root: &std::path::Path, nodes: &[Released]) -> Node {
    let hashrings = root.join("hashrings.json");
    fs::write(&hashrings, released::ring_of(nodes)).expect("the ring's file");
    let mut router = new_node(root, "router").with_ring(&hashrings, 3).with_capnproto();
    router.start();
    router.wait_others();
    router
}

#[test]
fn a_release_of_thanos_stores_all_that_it_is_sent() {
    let nodes: Vec<_> = (0..3).map(|_| Released::start(|_| WriteError::None)).collect();
    let root = tempfile::tempdir().expect("temporary directory");
    let router = router_before(root.path(), &nodes);
    let request: Vec<u8> = (0..40).flat_map(|i| node::write_request(i, 1)).collect();
    for tenant in ["team-a", "team-b"] {
        assert_eq!(router.send_as(tenant, &request).status, 200);
        for node in &nodes {
            let has_all = || {
                let mut series = BTreeSet::new();
                for write in node.writes().into_iter().filter(|write| write.tenant == tenant) {
                    assert_eq!(write.samples, write.series.len());
                    for labels in write.series {
                        assert!(series.insert(labels), "twice: {:?}", node.writes());
                    }
                }
                (series.len() == 40).then_some(())
            };
            assert!(wait_for(has_all).is_some(), "{:?}", node.writes());
        }
    }
    // A node of Thanos wants each replica in a message of its own.
    for node in &nodes {
        assert!(node.writes().len() > 2, "{:?}", node.writes());
    }
}

#[test]
fn what_a_release_refuses_costs_no_other_replica() {
    // Each refuses the series with its instance, and all that comes with it.
    let refused: [Arc<Mutex<String>>; 3] = Default::default();
    let nodes = refused.clone().map(|refused| {
        Released::start(move |write| {
            let refused = refused.lock().expect("no panic");
            match write.series.iter().any(|labels| labels["instance"] == *refused) {
                true => WriteError::AlreadyExists,
                false => WriteError::None,
            }
        })
    });
    let root = tempfile::tempdir().expect("temporary directory");
    let router = router_before(root.path(), &nodes);
    let request: Vec<u8> = (0..40).flat_map(|i| node::write_request(i, 1)).collect();
    assert_eq!(router.send(&request).status, 200);
    let has_all =
        |node: &Released| node.writes().iter().map(|write| write.samples).sum::<usize>() == 40;
    assert!(wait_for(|| nodes.iter().all(has_all).then_some(())).is_some(), "all copies");

    // Two series that nobody is sent together.
    let are_together = |a: &str, b: &str| {
        let writes = nodes.iter().flat_map(Released::writes);
        let has = |write: &Write, i: &str| write.series.iter().any(|l| l["instance"] == i);
        writes.into_iter().any(|write| has(&write, a) && has(&write, b))
    };
    let b = (1..40).find(|b| !are_together("0", &b.to_string())).expect("six sets of replicas");
    let both = [node::write_request(0, 2), node::write_request(b, 2)].concat();
    *refused[1].lock().expect("no panic") = "0".to_owned();
    *refused[2].lock().expect("no panic") = b.to_string();
    let answer = router.send(&both);
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    // Refused by two, one of them has no quorum any more.
    *refused[2].lock().expect("no panic") = "0".to_owned();
    assert_eq!(router.send(&both).status, 409);
}
