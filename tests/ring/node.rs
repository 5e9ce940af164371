//! Receivers that form a ring.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::messages::WriteRequest;
pub(crate) use crate::support::node::Node;

const FORWARD_TIMEOUT: &str = "--receive-forward-timeout";

/// A node that is still to be started, and waits longer for peers than any that are merely busy
/// take.
pub(crate) fn new_node(root: &Path, name: &str) -> Node {
    Node::new(root, name).with_forward_timeout("20s")
}

impl Node {
    /// Makes it follow a ring's file.
    pub(crate) fn with_ring(mut self, hashrings: &Path, factor: usize) -> Node {
        self.args.push(format!("--receive.hashrings-file={}", hashrings.display()));
        self.args.push(format!("--receive.replication-factor={factor}"));
        self
    }

    /// Makes it call its peers over Cap'n Proto.
    pub(crate) fn with_capnproto(mut self) -> Node {
        self.args.push("--receive.replication-protocol=capnproto".to_owned());
        self
    }

    /// Makes it a member of its ring.
    pub(crate) fn with_local_endpoint(mut self) -> Node {
        self.args.push(format!("--receive.local-endpoint={}", self.grpc));
        self
    }

    /// Makes it wait so long for peers.
    pub(crate) fn with_forward_timeout(mut self, forward_timeout: &str) -> Node {
        self.args.retain(|arg| !arg.starts_with(FORWARD_TIMEOUT));
        self.with_arg(&format!("{FORWARD_TIMEOUT}={forward_timeout}"))
    }

    /// The ring's page.
    pub(crate) fn ring(&self) -> Value {
        let answer = self.get("/api/v1/ring");
        serde_json::from_slice(&answer.body).expect("JSON")
    }

    /// What the ring's page says about a member of its only ring.
    pub(crate) fn member(&self, address: &str) -> Value {
        let ring = self.ring();
        let members = ring["hashrings"][0]["members"].as_array().expect("members");
        let member = members.iter().find(|member| member["address"] == address);
        member.unwrap_or_else(|| panic!("{address} is not in {ring}")).clone()
    }

    /// Waits until the ring's page calls a member so.
    pub(crate) fn wait_member(&self, address: &str, state: &str) {
        self.wait_until(&format!("calls {address} {state}"), |node| {
            node.member(address)["state"] == state
        });
    }

    /// Waits until the ring's file in force has this content, of which the ring's page shows the
    /// first 48 bits of its SHA-256, the lowest byte first.
    pub(crate) fn wait_content(&self, content: &str) {
        let digest = Sha256::digest(content);
        let hash = digest[..6].iter().rev().fold(0, |hash, byte| hash << 8 | u64::from(*byte));
        self.wait_until(&format!("takes {content}"), |node| node.ring()["hash"] == hash);
    }

    /// Waits until it is connected to all other members that it knows of.
    pub(crate) fn wait_others(&self) {
        self.wait_until("finds the others", |node| {
            let ring = node.ring();
            let members = ring["hashrings"][0]["members"].as_array().expect("members");
            members.iter().all(|member| member["state"] == "local" || member["state"] == "open")
        });
    }
}

/// Nodes that are all members of one ring and share its file.
pub(crate) struct Ring {
    pub(crate) nodes: Vec<Node>,
    pub(crate) hashrings: PathBuf,
    pub(crate) root: tempfile::TempDir,
}

impl Ring {
    /// Starts all, and waits until they are ready and have found each other.
    pub(crate) fn start(count: usize, factor: usize) -> Ring {
        Ring::start_with(count, factor, |node| node)
    }

    /// The same with nodes that are changed before.
    pub(crate) fn start_with(count: usize, factor: usize, change: impl Fn(Node) -> Node) -> Ring {
        let root = tempfile::tempdir().expect("temporary directory");
        let hashrings = root.path().join("hashrings.json");
        let mut nodes = members(root.path(), &hashrings, count, factor);
        nodes = nodes.into_iter().map(change).collect();
        fs::write(&hashrings, ketama(&nodes)).expect("the ring's file");
        start_all(&mut nodes);
        Ring { nodes, hashrings, root }
    }
}

/// Nodes that follow one file and may be members of its ring. Neither is there yet.
pub(crate) fn members(root: &Path, hashrings: &Path, count: usize, factor: usize) -> Vec<Node> {
    let node = |i| new_node(root, &format!("node-{i}"));
    (0..count).map(|i| node(i).with_ring(hashrings, factor).with_local_endpoint()).collect()
}

/// Starts all nodes, and waits until they are ready and have found the members they know of.
pub(crate) fn start_all(nodes: &mut [Node]) {
    nodes.iter_mut().for_each(Node::launch);
    nodes.iter().for_each(Node::wait_ready);
    nodes.iter().for_each(Node::wait_others);
}

/// A ring's file.
pub(crate) fn ketama<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> String {
    hashrings("ketama", nodes)
}

/// A ring's file with an algorithm of choice.
pub(crate) fn hashrings<'a>(algorithm: &str, nodes: impl IntoIterator<Item = &'a Node>) -> String {
    let endpoint = |node: &Node| json!({"address": node.grpc, "capnproto_address": node.capnproto});
    let endpoints: Vec<Value> = nodes.into_iter().map(endpoint).collect();
    json!([{"hashring": "default", "algorithm": algorithm, "endpoints": endpoints}]).to_string()
}

/// `up{instance="i"}` with the sample 1, `t` ms after a time of long ago.
pub(crate) fn write_request(i: usize, t: i64) -> Vec<u8> {
    request_of(&[("__name__", "up"), ("instance", &i.to_string())], t)
}

/// One series with such a sample. Several of them in a row are a request, too.
pub(crate) fn request_of(labels: &[(&str, &str)], t: i64) -> Vec<u8> {
    WriteRequest::of(labels, 1_000_000 + t, 1.0).0
}
