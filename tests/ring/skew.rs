//! Rings of several versions: nothing is acknowledged that an older peer does not store.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::load::Load;
use crate::node::{Node, members, new_node, request_of, start_all};
use crate::stand_in::{MERGED_WRITE, Program, REMOTE_WRITE, StandIn, Stored};
use crate::support::grpc::call;
use crate::support::messages::field;
use crate::support::process::wait_for;

const COMPRESSIONS: [&str; 2] = ["none", "snappy"];
const TENANTS: [&str; 2] = ["team-a", "team-b"];

#[test]
fn a_released_thanos_stores_all_that_is_acknowledged() {
    for compression in COMPRESSIONS {
        for count in [1, 3] {
            let mut ring = Router::before(Program::ReleasedThanos, count, compression);
            let expected = write_all(&mut ring);
            ring.expect_on_all(&expected);
            for peer in &ring.peers {
                // It opens a database for whatever it is told, the tenant without name included.
                assert_eq!(peer.tenants(), TENANTS.map(str::to_owned).into(), "{compression}");
                assert!(peer.calls().iter().all(|call| !call.is_merged()), "{compression}");
            }
        }
    }
}

#[test]
fn an_older_release_of_ours_stores_all_that_is_acknowledged() {
    for compression in COMPRESSIONS {
        let mut ring = Router::before(Program::OlderRingest, 3, compression);
        let expected = write_all(&mut ring);
        ring.expect_on_all(&expected);
        for peer in &ring.peers {
            let calls = peer.calls();
            assert!(calls.iter().any(|call| call.is_merged()), "{compression}: none was merged");
        }
    }
}

#[test]
fn what_an_older_release_of_ours_refuses_is_neither_a_success_nor_an_outage() {
    let mut ring = Router::before(Program::OlderRingest, 3, "snappy");
    // They have said what they take.
    write_all(&mut ring);
    let request = |t| [0, 1].iter().flat_map(|i| series(*i, t)).collect::<Vec<u8>>();

    // One of three copies.
    ring.peers[0].refuse("series-0");
    let answer = ring.node.send_as(TENANTS[0], &request(1000));
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    // All of them, of one series; the other is stored as often as there are copies.
    ring.peers[1..].iter().for_each(|peer| peer.refuse("series-0"));
    let answer = ring.node.send_as(TENANTS[0], &request(1001));
    assert_eq!(answer.status, 409, "{}", String::from_utf8_lossy(&answer.body));
    let kept = (TENANTS[0].to_owned(), labels(1), time(1001));
    for peer in &ring.peers {
        let is_done = wait_for(|| {
            let has_refused = peer.calls().iter().any(|call| call.code == 6);
            (has_refused && peer.stored().contains(&kept)).then_some(())
        });
        assert!(is_done.is_some(), "{} has not refused one and kept the other", peer.address);
    }
}

#[test]
fn tenants_that_come_in_one_request_reach_a_released_thanos_apart() {
    for compression in COMPRESSIONS {
        let ring = Router::before(Program::ReleasedThanos, 3, compression);
        let mut expected = BTreeSet::new();
        let mut request = Vec::new();
        for (i, tenant) in TENANTS.into_iter().enumerate() {
            let name = field(2, tenant.as_bytes());
            request.extend(field(4, &[series(i, 0), name].concat()));
            expected.insert((tenant.to_owned(), labels(i), time(0)));
        }
        let called = call(&ring.node.grpc, REMOTE_WRITE, &[], &request);
        assert_eq!(called.code, 0, "{called:?}");
        ring.expect_on_all(&expected);
    }
}

#[test]
fn an_older_release_of_ours_is_told_of_what_is_refused_as_it_knows_it() {
    let root = tempfile::tempdir().expect("temporary directory");
    let mut node = new_node(root.path(), "node");
    node.start();
    // So that it has a newer sample of one of two series.
    assert_eq!(node.send_as(TENANTS[0], &series(0, 10)).status, 200);
    let merged = |t| {
        let head = [&[3 << 3, 1][..], &field(2, TENANTS[0].as_bytes())].concat();
        [head, series(0, t), series(1, t)].concat()
    };

    // It would take an OK for the success of all.
    let called = call(&node.grpc, MERGED_WRITE, &[], &merged(5));
    assert_eq!(called.code, 6, "{called:?}");
    assert!(called.message.contains("out%20of%20order"), "{called:?}");
    wait_series(&node, 2.0);
    // It merges its messages to those who say so.
    let called = call(&node.grpc, MERGED_WRITE, &[], &merged(20));
    assert_eq!(called.code, 0, "{called:?}");
    assert_eq!(called.headers["ringest-takes-merged"], "true");
}

/// Waits until the other series of a message is stored, too.
fn wait_series(node: &Node, count: f64) {
    let has_them = || (node.metric("prometheus_tsdb_head_series") == count).then_some(());
    assert!(wait_for(has_them).is_some(), "not {count} series");
}

/// A node that only routes, before peers of another program, each of which gets a copy of
/// everything.
struct Router {
    node: Node,
    peers: Vec<StandIn>,
    _root: tempfile::TempDir,
}

impl Router {
    fn before(program: Program, count: usize, compression: &str) -> Router {
        let peers: Vec<_> = (0..count).map(|_| StandIn::start(program)).collect();
        let root = tempfile::tempdir().expect("temporary directory");
        let file = root.path().join("hashrings.json");
        let endpoints: Vec<_> = peers.iter().map(|peer| &peer.address).collect();
        let ring = json!([{"algorithm": "ketama", "endpoints": endpoints}]);
        fs::write(&file, ring.to_string()).expect("the ring's file");
        let mut node = new_node(root.path(), "router")
            .with_ring(&file, count)
            .with_arg(&format!("--receive.grpc-compression={compression}"));
        node.start();
        node.wait_others();
        Router { node, peers, _root: root }
    }

    /// Waits until each peer has stored just this.
    fn expect_on_all(&self, expected: &BTreeSet<Stored>) {
        for peer in &self.peers {
            wait_for(|| (peer.stored().len() >= expected.len()).then_some(()));
            let stored = peer.stored();
            assert!(
                stored.iter().eq(expected),
                "{} was acknowledged, and {} of it is stored",
                expected.len(),
                stored.iter().filter(|stored| expected.contains(stored)).count(),
            );
        }
    }
}

/// Writes some requests of each tenant, and tells what was acknowledged, which is all of it.
fn write_all(ring: &mut Router) -> BTreeSet<Stored> {
    let mut acknowledged = BTreeSet::new();
    for t in 0..5 {
        for tenant in TENANTS {
            let request: Vec<u8> = (0..20).flat_map(|i| series(i, t)).collect();
            let answer = ring.node.send_as(tenant, &request);
            assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
            let stored = |i| (tenant.to_owned(), labels(i), time(t));
            acknowledged.extend((0..20).map(stored));
        }
    }
    acknowledged
}

fn series(i: usize, t: i64) -> Vec<u8> {
    let labels = labels(i);
    let labels: Vec<_> = labels.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    request_of(&labels, t)
}

fn labels(i: usize) -> Vec<(String, String)> {
    let instance = format!("series-{i}");
    [("__name__", "up"), ("instance", &instance)].map(|(n, v)| (n.into(), v.into())).into()
}

/// As `request_of` counts it.
fn time(t: i64) -> i64 {
    1_000_000 + t
}

/// With `RINGEST_OLD_BINARY` set: rings in which every other node, and the router, is that program.
#[test]
fn a_real_older_release_of_ours_and_this_one_keep_all_copies_of_each_other() {
    let Some(older) = std::env::var_os("RINGEST_OLD_BINARY").map(PathBuf::from) else {
        println!(
            "skipped: a_real_older_release_of_ours_and_this_one_keep_all_copies_of_each_other \
             wants RINGEST_OLD_BINARY to be the path of an older release's program"
        );
        return;
    };
    for protocol in ["none", "snappy", "capnproto"] {
        for is_router_older in [false, true] {
            mixes_with(&older, protocol, is_router_older);
        }
    }
}

/// A ring of three, two of them older or two new, and its router.
fn mixes_with(older: &Path, protocol: &str, is_router_older: bool) {
    let root = tempfile::tempdir().expect("temporary directory");
    let file = root.path().join("hashrings.json");
    let speak = |node: Node| match protocol {
        "capnproto" => node.with_capnproto(),
        compression => node.with_arg(&format!("--receive.grpc-compression={compression}")),
    };
    let mut nodes: Vec<Node> = members(root.path(), &file, 3, 3).into_iter().map(speak).collect();
    let mut router = speak(new_node(root.path(), "router").with_ring(&file, 3));
    fs::write(&file, crate::node::ketama(&nodes)).expect("the ring's file");
    for (i, node) in nodes.iter_mut().enumerate() {
        if (i == 1) != is_router_older {
            node.set_binary(older);
        }
    }
    if is_router_older {
        router.set_binary(older);
    }
    start_all(&mut nodes);
    router.start();
    router.wait_others();
    let writers = nodes.iter().chain([&router]).enumerate();
    let loads: Vec<Load> = writers
        .map(|(i, node)| Load::start_brief(root.path(), &format!("{protocol}-{i}"), node))
        .collect();
    for load in loads {
        load.finish().verify_all_copies(&nodes, 3);
    }
}
