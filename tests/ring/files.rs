//! The ring's file as Kubernetes and people change it, under load: each change is seen, a file that
//! is no good changes nothing, and a ring that gets smaller loses nothing.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::load::Load;
use crate::node::{Node, Ring, ketama, members, start_all};

/// A ConfigMap as the kubelet mounts it: the file is a link through `..data`, which is a link to
/// the directory of the version in force.
struct ConfigMap {
    mount: PathBuf,
    version: u32,
}

impl ConfigMap {
    fn new(mount: &Path) -> ConfigMap {
        fs::create_dir(mount).unwrap();
        symlink("..data/hashrings.json", mount.join("hashrings.json")).unwrap();
        ConfigMap { mount: mount.to_owned(), version: 0 }
    }

    fn file(&self) -> PathBuf {
        self.mount.join("hashrings.json")
    }

    /// Brings a new version, and takes the one before away.
    fn swap(&mut self, content: &str) {
        let name = |version| format!("..version-{version}");
        self.version += 1;
        let version = self.mount.join(name(self.version));
        fs::create_dir(&version).unwrap();
        fs::write(version.join("hashrings.json"), content).unwrap();
        let link = self.mount.join("..data_tmp");
        symlink(name(self.version), &link).unwrap();
        fs::rename(&link, self.mount.join("..data")).unwrap();
        if self.version > 1 {
            fs::remove_dir_all(self.mount.join(name(self.version - 1))).unwrap();
        }
    }
}

#[test]
fn every_swap_of_a_mounted_file_is_seen_and_a_ring_that_shrinks_loses_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut map = ConfigMap::new(&root.path().join("mount"));
    let mut nodes = members(root.path(), &map.file(), 3, 2);
    map.swap(&ketama(&nodes));
    start_all(&mut nodes);
    // The last node goes on to take writes when it is no member any more.
    let mut loads = [0, 2].map(|i| Load::start_wide(root.path(), &format!("load-{i}"), &nodes[i]));
    loads.iter_mut().for_each(Load::wait_stretch);
    let changes = "thanos_receive_hashrings_file_changes_total";
    let last = nodes[2].grpc.clone();
    for count in [2, 3, 2] {
        let before: Vec<f64> = nodes.iter().map(|node| node.metric(changes)).collect();
        let content = ketama(&nodes[..count]);
        map.swap(&content);
        for (node, before) in nodes.iter_mut().zip(before) {
            node.wait_content(&content);
            assert_eq!(node.metric(changes), before + 1.0);
            let line = match count {
                2 => format!("2 members (-{last}), RF 2, moves about "),
                _ => format!("3 members (+{last}), RF 2, moves about "),
            };
            // It is worked out once the ring is in force.
            let line = format!("ring \\\"default\\\": {line}");
            node.wait_until(&format!("logs {line}"), |node| node.log().contains(&line));
        }
        loads.iter_mut().for_each(Load::wait_stretch);
    }
    // Swaps that follow each other at once end with the last one.
    for count in [3, 2, 3] {
        map.swap(&ketama(&nodes[..count]));
    }
    let content = ketama(&nodes);
    nodes.iter().for_each(|node| node.wait_content(&content));
    loads.iter_mut().for_each(Load::wait_stretch);
    for load in loads {
        load.stop().verify_all_copies(&nodes, 2);
    }
    for node in &nodes {
        assert_eq!(node.metric("thanos_receive_hashrings_file_errors_total"), 0.0);
    }
}

#[test]
fn a_file_that_is_no_good_changes_nothing() {
    let mut ring = Ring::start(3, 2);
    let mut load = Load::start_wide(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    let good = ketama(&ring.nodes);
    let errors = "thanos_receive_hashrings_file_errors_total";
    let is_good = "thanos_receive_config_last_reload_successful";

    let [first, second, third] = &ring.nodes[..] else { unreachable!("three nodes") };
    let cut_short = good.strip_suffix(']').expect("an array").to_owned();
    let no_address = json!([{"hashring": "default", "endpoints": [first.grpc, {"az": "a"}]}]);
    let bad = [None, Some(cut_short), Some("[]".to_owned()), Some(no_address.to_string())];
    let rings = [ketama([first, second]), ketama([first, third])];
    for (i, bad) in bad.iter().enumerate() {
        let before: Vec<f64> = ring.nodes.iter().map(|node| node.metric(errors)).collect();
        match bad {
            Some(bad) => replace(&ring.hashrings, bad),
            None => fs::remove_file(&ring.hashrings).unwrap(),
        }
        for (node, before) in ring.nodes.iter_mut().zip(before) {
            node.wait_until("counts the bad file", |node| node.metric(errors) > before);
            node.wait_until("complains", |node| node.ring()["error"].is_string());
            assert_eq!(node.metric(is_good), 0.0, "{bad:?}");
            node.wait_content(if i == 0 { &good } else { &rings[(i - 1) % 2] });
        }
        load.wait_stretch();
        // Back, and a change at the same time.
        replace(&ring.hashrings, &rings[i % 2]);
        for node in &ring.nodes {
            node.wait_content(&rings[i % 2]);
            node.wait_until("is content", |node| node.ring()["error"].is_null());
            assert_eq!(node.metric(is_good), 1.0);
        }
    }

    // A good file again is told, though it is the same as before.
    replace(&ring.hashrings, "nonsense");
    let refused = "failed to load configuration file";
    for node in &ring.nodes {
        let count = |node: &Node| node.log().matches(refused).count();
        node.wait_until("refuses the last", |node| count(node) > bad.len());
    }
    replace(&ring.hashrings, &rings[(bad.len() - 1) % 2]);
    for node in &ring.nodes {
        node.wait_until("tells of it", |node| {
            node.log().contains("hashrings file is good again, and as it was")
        });
        let recovered = node.log().matches("hashrings file is good again").count();
        assert_eq!(recovered, bad.len() + 1, "{}", node.log());
    }

    // As an editor writes: the file is empty until its content comes.
    let last = &rings[(bad.len() - 1) % 2];
    let reads = "thanos_receive_hashrings_file_refreshes_total";
    let before: Vec<f64> = ring.nodes.iter().map(|node| node.metric(reads)).collect();
    let mut file = fs::File::create(&ring.hashrings).unwrap();
    for (node, before) in ring.nodes.iter_mut().zip(before) {
        node.wait_until("reads the empty file", |node| node.metric(reads) > before);
        node.wait_content(last);
    }
    load.wait_stretch();
    file.write_all(good.as_bytes()).unwrap();
    drop(file);
    ring.nodes.iter().for_each(|node| node.wait_content(&good));
    load.wait_stretch();
    load.stop().verify_all_copies(&ring.nodes, 2);
}

#[test]
fn a_ring_of_five_that_shrinks_to_three_needs_its_leavers_no_more() {
    let ring = Ring::start(5, 3);
    let mut loads =
        [0, 4].map(|i| Load::start_wide(ring.root.path(), &format!("load-{i}"), &ring.nodes[i]));
    loads.iter_mut().for_each(Load::wait_stretch);
    let content = ketama(&ring.nodes[..3]);
    replace(&ring.hashrings, &content);
    ring.nodes.iter().for_each(|node| node.wait_content(&content));
    loads.iter_mut().for_each(Load::wait_stretch);
    let [first, last] = loads;
    let of_leaver = last.stop();
    of_leaver.verify_all_copies(&ring.nodes, 3);

    // Two of three copies can be on leavers, the third is not.
    let mut first = first;
    ring.nodes[3..].iter().for_each(Node::stop);
    first.wait_stretch();
    let of_member = first.stop();
    of_leaver.read_back(&ring.nodes[..3]);
    of_member.read_back(&ring.nodes[..3]);
}

#[test]
fn a_ring_without_copies_that_shrinks_from_three_to_two_fails_no_write() {
    let ring = Ring::start(3, 1);
    let mut load = Load::start_wide(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    for count in [2, 3, 2] {
        let content = ketama(&ring.nodes[..count]);
        replace(&ring.hashrings, &content);
        ring.nodes.iter().for_each(|node| node.wait_content(&content));
        load.wait_stretch();
    }
    load.stop().verify_all_copies(&ring.nodes, 1);
}

/// Puts a file in the place of another.
fn replace(path: &Path, content: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, content).unwrap();
    fs::rename(&beside, path).unwrap();
}
