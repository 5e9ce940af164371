//! A node whose disk hangs, for as long as a file is there: it costs the ring nothing but the copy
//! that waits for it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::load::Load;
use crate::node::{Node, Ring, request_of};
use crate::support::process::wait_for;

/// What makes the disk of a node hang.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        let disk = Disk { dir: tempfile::tempdir().expect("temporary directory") };
        let source = disk.path("shim.c");
        fs::write(&source, include_str!("stalled_disk/shim.c")).expect("the shim's source");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(disk.path("shim.so"))
            .arg(source)
            .arg("-ldl");
        assert!(cc.status().expect("cc starts").success());
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lets the node's files be on it.
    fn below(&self, node: Node) -> Node {
        let data = node.data.clone();
        node.with_env("LD_PRELOAD", self.path("shim.so"))
            .with_env("STALL_BELOW", data)
            .with_env("STALL_WHILE", self.path("hang"))
            .with_env("STALL_HIT", self.path("hit"))
    }

    fn hang(&self) {
        fs::write(self.path("hang"), "").expect("the control file");
    }

    /// Waits until somebody waits for it.
    fn wait_hit(&self) {
        let is_hit = || fs::exists(self.path("hit")).expect("a state").then_some(());
        assert!(wait_for(is_hit).is_some(), "nothing is written to the disk");
    }

    fn go_on(&self) {
        fs::remove_file(self.path("hang")).expect("the control file");
    }
}

fn assert_healthy(node: &Node) {
    for path in ["/-/healthy", "/-/ready", "/metrics"] {
        assert_eq!(node.get(path).status, 200, "{path}");
    }
}

/// A request of one's own, so that no copy of an earlier one is overtaken.
fn request(number: usize) -> Vec<u8> {
    request_of(&[("__name__", "one"), ("number", &number.to_string())], 0)
}

fn hangs_and_goes_on(sync: &str) {
    let disk = Disk::new();
    let is_stalled = |node: &Node| node.data.ends_with("node-2");
    let sync = format!("--tsdb.wal-sync={sync}");
    let mut ring = Ring::start_with(3, 3, |node| {
        let node = node.with_arg(&sync);
        if is_stalled(&node) { disk.below(node) } else { node }
    });
    let mut load = Load::start_wide(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    disk.hang();
    disk.wait_hit();
    ring.nodes[2].wait_until("has a thread in the disk", |node| {
        node.metric("ringest_append_threads_stuck") > 0.0
    });
    // Through every node, the one included that cannot store its own copy.
    for (number, node) in (0..30).zip(ring.nodes.iter().cycle()) {
        let answer = node.send(&request(number));
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        assert_healthy(node);
    }
    load.wait_stretch();
    ring.nodes.iter().for_each(assert_healthy);
    assert!(ring.nodes[2].metric("ringest_append_threads_stuck") > 0.0, "it hangs no more");

    disk.go_on();
    ring.nodes[2].wait_until("has stored what waited", |node| {
        node.metric("ringest_append_waiting_requests") == 0.0
            && node.metric("ringest_append_threads_stuck") == 0.0
    });
    load.wait_stretch();
    load.stop().verify(&ring.nodes, 3);
    for node in &ring.nodes {
        node.wait_until("has a copy of everything", |node| {
            node.metric_with("prometheus_tsdb_head_series", "default-tenant") == 30.0
        });
    }
    // And after a crash it is still there.
    ring.nodes[2].kill();
    ring.nodes[2].start();
    assert_eq!(ring.nodes[2].metric_with("prometheus_tsdb_head_series", "default-tenant"), 30.0);
}

#[test]
fn a_disk_that_hangs_holds_nobody_and_loses_nothing() {
    hangs_and_goes_on("interval");
}

#[test]
fn nor_does_it_where_every_write_is_synced() {
    hangs_and_goes_on("always");
}
