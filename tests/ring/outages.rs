//! Nodes that die, hang and are restarted: with three replicas no writer notices, with one only
//! the series of the dead node fail.

use std::fs;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::load::Load;
use crate::node::{Node, Ring, ketama, new_node, request_of, write_request};

#[test]
fn a_killed_node_costs_no_write_and_no_sample() {
    let mut ring = Ring::start(3, 3);
    let mut load = Load::start(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    ring.nodes[2].kill();
    load.wait_stretch();
    ring.nodes[2].start();
    let restarted = ring.nodes[2].grpc.clone();
    ring.nodes[0].wait_member(&restarted, "open");
    load.wait_stretch();
    load.stop().verify(&ring.nodes, 3);
}

#[test]
fn with_two_replicas_a_killed_node_costs_no_write_and_no_sample() {
    let mut ring = Ring::start(3, 2);
    let mut load = Load::start(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    let killed = ring.nodes[2].grpc.clone();
    ring.nodes[2].kill();
    load.wait_stretch();
    ring.nodes[0].wait_until("fails to reach the dead node", |node| {
        node.metric("ringest_peer_forwards_not_sent_total") > 0.0
    });
    ring.nodes[2].start();
    ring.nodes[0].wait_member(&killed, "open");
    load.wait_stretch();
    // What it alone has acknowledged is there again.
    load.stop().verify(&ring.nodes, 2);
    // And it has its part in what comes.
    let load = Load::start_brief(ring.root.path(), "afterwards", &ring.nodes[1]);
    load.finish().verify_all_copies(&ring.nodes, 2);
}

#[test]
fn a_hung_node_holds_no_writer_and_is_shut_out() {
    let ring = Ring::start_with(3, 3, |node| node.with_forward_timeout("2s"));
    let hung = ring.nodes[2].grpc.clone();
    let mut load = Load::start(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    ring.nodes[2].signal(Signal::STOP);
    load.wait_stretch();
    // Its kernel goes on accepting connections, and that deceives nobody.
    ring.nodes[0].wait_member(&hung, "unreachable");
    let member = ring.nodes[0].member(&hung);
    assert!(member["last_error"].is_string(), "{member}");
    assert!(member["state_for_ms"].is_u64(), "{member}");
    let worker = format!("worker=\"{hung}\"");
    assert_eq!(ring.nodes[0].metric_with("ringest_peer_available", &worker), 0.0);
    let out = ring.nodes[0].metric_with("ringest_peer_unavailable_seconds", &worker);
    assert!(out > 0.0, "{out}");
    load.wait_stretch();
    assert_eq!(ring.nodes[0].metric_with("ringest_peer_available", &worker), 0.0);

    ring.nodes[2].signal(Signal::CONT);
    ring.nodes[0].wait_member(&hung, "open");
    load.wait_stretch();
    load.stop().verify(&ring.nodes, 3);
    let load = Load::start_brief(ring.root.path(), "afterwards", &ring.nodes[1]);
    load.finish().verify_all_copies(&ring.nodes, 3);
}

#[test]
fn a_hung_node_is_known_for_what_it_is_before_any_call_times_out() {
    let ring = Ring::start(3, 3);
    let hung = ring.nodes[2].grpc.clone();
    let worker = format!("worker=\"{hung}\"");
    let mut load = Load::start(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    ring.nodes[2].signal(Signal::STOP);
    // Forwards have ten times as long.
    ring.nodes[0].wait_member(&hung, "silent");
    let member = ring.nodes[0].member(&hung);
    assert!(member["unanswered_for_ms"].as_u64() >= Some(2000), "{member}");
    assert_eq!(ring.nodes[0].metric_with("ringest_peer_available", &worker), 0.0);
    let unanswered = ring.nodes[0].metric_with("ringest_peer_unanswered_seconds", &worker);
    assert!(unanswered >= 2.0, "{unanswered}");
    let told = |node: &Node, words: &str| {
        let log = node.log();
        log.lines().filter(|line| line.contains(words) && line.contains(&hung)).count()
    };
    ring.nodes[0].wait_until("says so", |node| told(node, "peer does not answer") == 1);
    ring.nodes[2].signal(Signal::CONT);
    ring.nodes[0].wait_member(&hung, "open");
    ring.nodes[0].wait_until("says that it answers", |node| told(node, "peer answers again") == 1);
    assert_eq!(told(&ring.nodes[0], "peer does not answer"), 1);
    load.wait_stretch();
    load.stop().verify(&ring.nodes, 3);
}

#[test]
fn what_is_under_way_to_a_hung_node_is_bounded_and_arrives_in_the_end() {
    /// For all forwards. One of two peers has a quarter for itself, and takes all that is shared.
    const BUDGET: u64 = 96 << 20;
    const BOUND: u64 = BUDGET / 4 * 3;
    const REQUESTS: u32 = 24;

    let pad = "x".repeat(60_000);
    let request = |t: u32| {
        let series = |i: u32| {
            let labels = [("__name__", "up"), ("instance", &i.to_string()), ("pad", &pad)];
            request_of(&labels, t.into())
        };
        (0..64).flat_map(series).collect::<Vec<u8>>()
    };
    let message_bytes = request(0).len() as u64;
    let fits = BOUND / message_bytes;
    assert!(u64::from(REQUESTS) > fits);

    // The hung node is not shut out while it is given its fill.
    let patient = |node: Node| node.with_forward_timeout("100s");
    let patient = |node| patient(node).with_arg("--receive.grpc-compression=none");
    let budget = format!("--receive.forward.inflight-bytes-max={}MB", BUDGET >> 20);
    let patient = |node| patient(node).with_arg(&budget);
    let ring = Ring::start_with(3, 3, patient);
    let hung = ring.nodes[2].grpc.clone();
    ring.nodes[2].signal(Signal::STOP);
    let under_way = |node: &Node| node.member(&hung)["inflight_bytes"].as_u64().expect("bytes");
    for t in 0..REQUESTS {
        let answer = ring.nodes[0].send(&request(t));
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        assert!(under_way(&ring.nodes[0]) <= BOUND);
    }
    ring.nodes[0].wait_until("gives the hung node its fill", |node| {
        under_way(node) >= (fits - 1) * message_bytes
    });
    assert!(under_way(&ring.nodes[0]) <= BOUND);

    ring.nodes[2].signal(Signal::CONT);
    let handled = "grpc_server_handled_total";
    ring.nodes[2].wait_until("has got its fill", |node| node.metric(handled) >= (fits - 1) as f64);
    ring.nodes[0].wait_until("waits for no answer", |node| under_way(node) == 0);
    let load = Load::start_brief(ring.root.path(), "afterwards", &ring.nodes[0]);
    load.finish().verify_all_copies(&ring.nodes, 3);
}

#[test]
fn a_rolling_restart_fails_no_write_and_loses_no_sample() {
    let mut ring = Ring::start(3, 3);
    // Stands for the service in front of the nodes, which sends nothing to one that is not ready.
    let mut router = new_node(ring.root.path(), "router").with_ring(&ring.hashrings, 3);
    router.start();
    let mut load = Load::start(ring.root.path(), "load", &router);
    load.wait_stretch();
    for i in 0..3 {
        ring.nodes[i].stop();
        load.wait_stretch();
        ring.nodes[i].start();
        // A restart that does not wait for this has two nodes out at the same time.
        router.wait_member(&ring.nodes[i].grpc, "open");
        load.wait_stretch();
    }
    load.stop().verify(&ring.nodes, 3);
}

#[test]
fn with_one_replica_a_dead_node_fails_its_own_series_only() {
    let mut ring = Ring::start(3, 1);
    let owners = owners(&ring);
    let dead = ring.nodes[2].grpc.clone();
    let lost = owners.iter().filter(|owner| **owner == dead).count();
    assert!(0 < lost && lost < owners.len(), "{owners:?}");
    let everything = |t| (0..SERIES).flat_map(|i| write_request(i, t)).collect::<Vec<u8>>();

    ring.nodes[2].kill();
    each_series_by_its_owner(&ring.nodes[0], &owners, &dead, 0);
    ring.nodes[0].wait_member(&dead, "unreachable");
    ring.nodes[1].send(&everything(1)).assert_come_again();
    // The answer need not wait for the series that are stored.
    let kept = 2.0 * (owners.len() - lost) as f64;
    wait_samples(&mut ring, kept);

    fs::write(&ring.hashrings, "[{\"hashring\": \"default\", \"endpoints\": [").unwrap();
    for node in &ring.nodes[..2] {
        node.wait_until("notices the bad file", |node| node.ring()["error"].is_string());
        assert_eq!(node.ring()["hashrings"][0]["members"].as_array().unwrap().len(), 3);
    }
    each_series_by_its_owner(&ring.nodes[0], &owners, &dead, 2);
    wait_samples(&mut ring, 1.5 * kept);

    fs::write(&ring.hashrings, ketama(&ring.nodes)).unwrap();
    for node in &ring.nodes[..2] {
        node.wait_until("takes the good file", |node| node.ring()["error"].is_null());
    }
    ring.nodes[2].start();
    let mut times = 3..;
    ring.nodes[1].wait_until("finds the dead node again", |node| {
        node.send(&everything(times.next().unwrap())).status == 200
    });
    assert_eq!(ring.nodes[2].metric("prometheus_tsdb_head_series"), lost as f64);
}

/// Series of the test above, each in a request of its own.
const SERIES: usize = 60;

/// Sends each series alone, and expects that those of the dead node fail, and no others.
fn each_series_by_its_owner(node: &Node, owners: &[String], dead: &str, t: i64) {
    for (i, owner) in owners.iter().enumerate() {
        let answer = node.send(&write_request(i, t));
        if owner == dead {
            answer.assert_come_again();
        } else {
            assert_eq!(answer.status, 200, "{owner}: {}", String::from_utf8_lossy(&answer.body));
        }
    }
}

/// Waits until the first two nodes have so many samples together.
fn wait_samples(ring: &mut Ring, samples: f64) {
    let [first, second, ..] = &mut ring.nodes[..] else { panic!("a ring of three") };
    let stored = |node: &Node| node.metric("prometheus_tsdb_head_samples_appended_total");
    first.wait_until(&format!("and the other have {samples} samples"), |first| {
        stored(first) + stored(second) >= samples
    });
    assert_eq!(stored(first) + stored(second), samples);
}

/// Which node has each series, by `ringest ring locate`.
fn owners(ring: &Ring) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_ringest"))
        .args(["ring", "locate"])
        .arg(format!("--receive.hashrings-file={}", ring.hashrings.display()))
        .args((0..SERIES).map(|i| format!("up{{instance=\"{i}\"}}")))
        .output()
        .unwrap();
    let located = String::from_utf8(output.stdout).unwrap();
    let owner = |line: &str| {
        let located: Value = serde_json::from_str(line).unwrap();
        located["endpoints"][0].as_str().unwrap_or_else(|| panic!("{located}")).to_owned()
    };
    let owners: Vec<String> = located.lines().map(owner).collect();
    assert_eq!(owners.len(), SERIES, "{}", String::from_utf8_lossy(&output.stderr));
    owners
}
