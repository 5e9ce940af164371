//! One client with a wrong clock is its own problem.

use crate::support::messages::WriteRequest;
use crate::support::node::Node;
use crate::support::now;

const HOUR: i64 = 60 * 60 * 1000;

fn sample(series: &str, t: i64) -> WriteRequest {
    WriteRequest::of(&[("__name__", "up"), ("instance", series)], t, 1.0)
}

#[test]
fn a_client_two_hours_ahead_costs_the_good_ones_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start_ready(dir.path(), &[]);
    let mut good = 0;
    let mut write_good = |node: &Node, delay: i64| {
        good += 1;
        // A series that is known, and one that is new each time and late.
        let fresh = format!("good-{good}");
        let answer = node.write("a", &sample("good", now()));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = node.write("a", &sample(&fresh, now() - delay));
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    write_good(&node, HOUR / 2);
    for ahead in [2 * HOUR, 30 * HOUR, 20 * 365 * 24 * HOUR] {
        let answer = node.write("a", &sample("ahead", now() + ahead));
        assert_eq!(answer.status, 200, "{}", answer.text());
        write_good(&node, HOUR / 4);
        write_good(&node, 0);
    }
    // What the future samples make of the bounds survives neither a clean stop nor a kill.
    for clean in [true, false] {
        if clean {
            node.stop()
        } else {
            node.kill()
        }
        node = Node::start_ready(dir.path(), &[]);
        write_good(&node, 0);
        assert_eq!(node.write("a", &sample("ahead-too", now() + 2 * HOUR)).status, 200);
        write_good(&node, 0);
    }
    let stored = node.read("a");
    assert_eq!(stored["{__name__=\"up\",instance=\"ahead\"}"].len(), 3, "kept, not refused");
    assert_eq!(
        node.exposed("prometheus_tsdb_out_of_bound_samples_total{tenant=\"a\",type=\"float\"}"),
        None
    );
}

/// The first client of all has the wrong clock: its time must not become the head's.
#[test]
fn a_tenant_whose_first_sample_is_ahead_takes_good_ones() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    assert_eq!(node.write("a", &sample("ahead", now() + 2 * HOUR)).status, 200);
    assert_eq!(node.write("a", &sample("good", now())).status, 200);
    // In one request, in either order.
    let both = sample("ahead", now() + 3 * HOUR).with(&[("__name__", "x")], &[(now(), 1.0)]);
    assert_eq!(node.write("a", &both).status, 200);
    let first = WriteRequest::of(&[("__name__", "y")], now() + 2 * HOUR, 1.0);
    let both = first.with(&[("__name__", "x")], &[(now(), 1.0)]);
    assert_eq!(node.write("new", &both).status, 200);
}

#[test]
fn with_a_window_the_future_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &["--tsdb.too-far-in-future.time-window=10m"]);
    let both = sample("ahead", now() + 2 * HOUR).with(&[("__name__", "x")], &[(now(), 1.0)]);
    let answer = node.write("a", &both);
    assert_eq!(answer.status, 409);
    let text = answer.text();
    assert!(text.contains("too far in the future 1 ({__name__=\"up\""), "{text}");
    assert_eq!(node.write("a", &sample("slightly", now() + 60_000)).status, 200);
    let names: Vec<String> = node.read("a").into_keys().collect();
    let slightly = "{__name__=\"up\",instance=\"slightly\"}";
    assert_eq!(names, [slightly, "{__name__=\"x\"}"]);
}
