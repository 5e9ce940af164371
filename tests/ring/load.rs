//! `ringest load` towards a ring, and its count of what the ring kept.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::node::Node;
pub(crate) use crate::support::load::Load;
use crate::support::load::verify_command;
use crate::support::process::wait_for;

/// What was acknowledged.
pub(crate) struct Acked {
    file: PathBuf,
    samples: u64,
}

impl Load {
    /// Starts one that writes to `node` until it is stopped. The name tells its series and files
    /// from those of others.
    pub(crate) fn start(root: &Path, name: &str, node: &Node) -> Load {
        let requests = ["--series=1000", "--series-per-request=100", "--rate=4000"];
        Load::start_with(root, name, node, &requests)
    }

    /// The same with so many series that none has a second sample while copies of the first are on
    /// their way: a node would refuse a copy that is overtaken by a later sample.
    pub(crate) fn start_wide(root: &Path, name: &str, node: &Node) -> Load {
        let requests = ["--series=10000", "--series-per-request=50", "--rate=2000"];
        Load::start_with(root, name, node, &requests)
    }

    /// Starts one that writes one sample of each series to `node`, and then ends.
    pub(crate) fn start_brief(root: &Path, name: &str, node: &Node) -> Load {
        let requests = ["--series=2000", "--series-per-request=100", "--rounds=1"];
        Load::start_with(root, name, node, &requests)
    }

    /// Starts one that writes so many requests of one sample each for ten tenants, whose names are
    /// `name-0` to `name-9`, and then ends.
    pub(crate) fn start_single(root: &Path, name: &str, node: &Node, requests: usize) -> Load {
        let series = format!("--series={requests}");
        Load::start_for(
            root,
            name,
            name,
            node,
            10,
            &[&series, "--series-per-request=1", "--rounds=1"],
        )
    }

    /// Starts one that writes one sample of each of so many series, at a time of choice, and then
    /// ends. Those of one prefix share their series.
    pub(crate) fn start_at(
        root: &Path,
        name: &str,
        prefix: &str,
        node: &Node,
        series: usize,
        milliseconds: i64,
    ) -> Load {
        let (series, start) = (format!("--series={series}"), format!("--start={milliseconds}"));
        let requests = ["--rounds=1", "--timestamps=synthetic", "--series-per-request=100"];
        let requests = [&requests[..], &[&series, &start]].concat();
        Load::start_for(root, name, prefix, node, 2, &requests)
    }

    fn start_with(root: &Path, name: &str, node: &Node, requests: &[&str]) -> Load {
        Load::start_for(root, name, name, node, 2, requests)
    }

    fn start_for(
        root: &Path,
        name: &str,
        prefix: &str,
        node: &Node,
        tenants: usize,
        requests: &[&str],
    ) -> Load {
        let tenants = format!("--tenants={tenants}");
        let prefix = format!("--tenant-prefix={prefix}-");
        let own = ["--connections=2", "--stale=5", "--json", &tenants, &prefix];
        Load::launch(root, name, node, &[requests, &own].concat())
    }

    /// Stops it, and expects what [`Load::finish`] does.
    pub(crate) fn stop(self) -> Acked {
        self.tell_to_stop();
        self.finish()
    }

    /// Waits for its end, and expects that each of its requests was answered with a 2xx the first
    /// time.
    pub(crate) fn finish(self) -> Acked {
        let (file, log) = self.end();
        let summary: Value = serde_json::from_str(log.lines().last().expect("a summary"))
            .unwrap_or_else(|error| panic!("{error}: {log}"));
        let statuses = summary["statuses"].as_object().expect("statuses");
        assert!(statuses.keys().all(|status| status.starts_with('2')), "{summary}");
        for count in ["connection_errors", "retries", "unacknowledged_samples"] {
            assert_eq!(summary[count], 0, "{summary}");
        }
        let samples = summary["samples"].as_u64().expect("samples");
        assert!(samples > 0, "{summary}");
        Acked { file, samples }
    }
}

impl Acked {
    /// How many samples that is.
    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    /// Reads everything back from all nodes, and expects every sample bit for bit, each on as many
    /// nodes as acknowledge it, and on no more than there are copies.
    pub(crate) fn verify<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>, factor: usize) {
        let found = self.read_back(nodes);
        let quorum = if factor == 2 { 1 } else { factor / 2 + 1 };
        assert!(found.counts().all(|count| (quorum..=factor).contains(&count)), "{}", found.0);
    }

    /// The same where no copy can have failed or been overtaken: each sample is on just so many nodes, once those
    /// copies that an answer did not wait for have arrived.
    pub(crate) fn verify_all_copies(&self, nodes: &[Node], factor: usize) {
        let mut found = None;
        let are_all_there = wait_for(|| {
            let read = found.insert(self.read_back(nodes));
            read.counts().all(|count| count == factor).then_some(())
        });
        let found = found.expect("was read once").0;
        assert!(are_all_there.is_some(), "not {factor} copies of everything: {found}");
    }

    /// How many samples a node does not have.
    pub(crate) fn missing_on(&self, node: &Node) -> u64 {
        let found = self.ask([node]).0;
        self.samples - found["intact"].as_u64().expect("a count")
    }

    /// Expects every sample somewhere.
    pub(crate) fn read_back<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>) -> Found {
        let (found, said) = self.ask(nodes);
        assert_eq!(found["intact"], self.samples, "{found} {said}");
        Found(found)
    }

    /// What `ringest load verify` finds, and what it says besides.
    fn ask<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>) -> (Value, String) {
        let mut command = verify_command(&self.file, nodes);
        let output = command.output().expect("verify starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let found = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {said}"));
        (found, said)
    }
}

/// What was read back.
pub(crate) struct Found(Value);

impl Found {
    /// On how many nodes there are samples.
    fn counts(&self) -> impl Iterator<Item = usize> {
        let counts = self.0["intact_by_node_count"].as_object().expect("counts");
        counts.keys().map(|count| count.parse().expect("a count"))
    }
}
