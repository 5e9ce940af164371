//! Copies that fall short of what was acknowledged are counted, to the sample.

use std::fs;

use crate::load::{Acked, Load};
use crate::node::{Node, ketama, new_node};
use crate::support::now;
use crate::support::process::wait_for;

#[test]
fn copies_that_are_counted_as_missing_are_those_that_cannot_be_read() {
    let root = tempfile::tempdir().expect("temporary directory");
    let file = root.path().join("hashrings.json");
    // They know of no ring: what is written to one of them directly is there and nowhere else.
    let mut nodes = [0, 1, 2].map(|i| new_node(root.path(), &format!("node-{i}")));
    fs::write(&file, ketama(&nodes)).expect("the ring's file");
    nodes.iter_mut().for_each(Node::start);
    let mut router = new_node(root.path(), "router").with_ring(&file, 3);
    router.start();
    router.wait_others();

    // One node is ahead in some of the series, and refuses them.
    let now = now();
    let earlier = now - 60_000;
    Load::start_at(root.path(), "ahead", "mixed", &nodes[1], 1000, now).finish();
    let refused = Load::start_at(root.path(), "behind", "mixed", &router, 2000, earlier).finish();
    // Another one is away.
    nodes[2].kill();
    let without = Load::start_brief(root.path(), "without", &router).finish();
    nodes[2].start();
    router.wait_member(&nodes[2].grpc, "open");
    let with = Load::start_brief(root.path(), "with", &router).finish();

    let counted = |node: &Node, reason: &str| {
        let labels = format!("worker=\"{}\"{reason}", node.grpc);
        router.metric_with("ringest_copies_missing_samples_total", &labels) as u64
    };
    let all = [&refused, &without, &with];
    let missing = |node: &Node| all.iter().map(|acked| acked.missing_on(node)).sum::<u64>();
    for node in &nodes {
        // A verdict does not wait for the last answer, which is what brings the count.
        let missing = missing(node);
        wait_for(|| (counted(node, "") >= missing).then_some(()));
        assert_eq!(counted(node, ""), missing, "{}", node.grpc);
    }
    let by_refusal = counted(&nodes[1], ",reason=\"refused\"");
    assert!(0 < by_refusal && by_refusal < refused.samples(), "{by_refusal}");
    assert_eq!(by_refusal, refused.missing_on(&nodes[1]));
    assert_eq!([&refused, &without, &with].map(|acked| acked.missing_on(&nodes[0])), [0; 3]);
    let by_absence = |acked: &Acked| acked.missing_on(&nodes[2]);
    assert_eq!(by_absence(&without), without.samples());
    assert_eq!(by_absence(&refused) + by_absence(&with), 0);
}
