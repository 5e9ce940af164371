//! What moves from one hashring to another, counted over series.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::hashring::Hashring;
use crate::hashring::changes::{Moves, ratio};
use crate::ring_tool::series::{Series, SeriesError};
use crate::ring_tool::{Locator, Place};

/// Counts series by where they are before and after.
pub(super) struct Diff<'a> {
    old: Locator<'a>,
    new: Locator<'a>,
    counts: Counts,
    /// Series held by each address, over all replicas: before and after.
    nodes: BTreeMap<String, (u64, u64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    #[serde(flatten)]
    moves: Moves,
    /// Series without a place in the old ring, in the new one.
    unplaced_before: u64,
    unplaced_after: u64,
    /// Lines that are no series.
    not_series: u64,
}

/// What [`Diff`] found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    counts: Counts,
    nodes: Vec<NodeShare>,
}

/// The part of all copies that one node holds.
#[derive(Debug, Serialize)]
struct NodeShare {
    endpoint: String,
    replicas_before: u64,
    replicas_after: u64,
    share_before: f64,
    share_after: f64,
}

impl<'a> Diff<'a> {
    pub(super) fn new(old: &'a Hashring, new: &'a Hashring) -> Diff<'a> {
        let nodes = old.endpoints().iter().chain(new.endpoints());
        Diff {
            old: Locator::new(old),
            new: Locator::new(new),
            counts: Counts::default(),
            nodes: nodes.map(|endpoint| (endpoint.address.clone(), (0, 0))).collect(),
        }
    }

    pub(super) fn add(&mut self, series: Result<Series, SeriesError>) {
        let Ok(series) = series else {
            self.counts.not_series += 1;
            return;
        };
        let before = self.old.locate(&series).ok();
        let after = self.new.locate(&series).ok();
        let endpoints = |place: &Option<Place<'a>>| {
            place.as_ref().map_or(Vec::new(), |place| place.endpoints.clone())
        };
        let counts = &mut self.counts;
        counts.unplaced_before += u64::from(before.is_none());
        counts.unplaced_after += u64::from(after.is_none());
        let (before, after) = (endpoints(&before), endpoints(&after));
        counts.moves.add(&before, &after);
        for node in before {
            self.nodes.entry(node.to_owned()).or_default().0 += 1;
        }
        for node in after {
            self.nodes.entry(node.to_owned()).or_default().1 += 1;
        }
    }

    pub(super) fn report(self) -> Report {
        let sum =
            |(before, after): (u64, u64), node: &(u64, u64)| (before + node.0, after + node.1);
        let (before, after) = self.nodes.values().fold((0, 0), sum);
        let nodes = self.nodes.into_iter().map(|(endpoint, node)| NodeShare {
            endpoint,
            replicas_before: node.0,
            replicas_after: node.1,
            share_before: ratio(node.0, before),
            share_after: ratio(node.1, after),
        });
        Report { counts: self.counts, nodes: nodes.collect() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let width = self.nodes.iter().map(|node| node.endpoint.len()).max().unwrap_or(0).max(8);
        writeln!(f, "{:width$}  {:>8}  {:>8}  {:>8}", "ENDPOINT", "BEFORE", "AFTER", "CHANGE")?;
        for node in &self.nodes {
            let (before, after) = (node.share_before * 100.0, node.share_after * 100.0);
            let change = after - before;
            let endpoint = &node.endpoint;
            writeln!(f, "{endpoint:width$}  {before:7.2}%  {after:7.2}%  {change:+7.2}%")?;
        }
        writeln!(f)?;
        let Moves { series, series_moved, replicas, replicas_moved } = counts.moves;
        let moved = counts.moves.series_share() * 100.0;
        writeln!(f, "series moved    {series_moved} of {series} ({moved:.2}%)")?;
        let moved = counts.moves.replicas_share() * 100.0;
        writeln!(f, "replicas moved  {replicas_moved} of {replicas} ({moved:.2}%)")?;
        for (what, count) in [
            ("series without a place before", counts.unplaced_before),
            ("series without a place after", counts.unplaced_after),
            ("lines that are no series", counts.not_series),
        ] {
            if count > 0 {
                writeln!(f, "{what}: {count}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashring::{Algorithm, Endpoint, HashringMetrics, RingDefaults, RingOptions};
    use crate::metrics::Registry;

    fn hashring(count: usize, replication_factor: usize) -> Hashring {
        let address = |i| format!("receive-{i}.receive.thanos.svc:10901");
        let endpoints = (0..count).map(|i| Endpoint::at(&address(i))).collect();
        let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor };
        let options = RingOptions { endpoints, ..RingOptions::default() };
        let metrics = HashringMetrics::new(&Registry::new());
        Hashring::build(vec![options], defaults, None, &metrics)
    }

    fn report(old: &Hashring, new: &Hashring, count: u64) -> Report {
        let mut diff = Diff::new(old, new);
        (0..count).for_each(|i| diff.add(Ok(Series::made_up("t", i))));
        diff.report()
    }

    /// The recorded case "ketama 5 to 6, replication factor 3", which uses the same series.
    #[test]
    fn as_many_series_move_as_in_thanos() {
        let report = report(&hashring(5, 3), &hashring(6, 3), 10_000);
        let moves =
            Moves { series: 10_000, series_moved: 1726, replicas: 30_000, replicas_moved: 5181 };
        let expected = Counts { moves, ..Counts::default() };
        assert_eq!(report.counts, expected);
        let shares: f64 = report.nodes.iter().map(|node| node.share_after).sum();
        assert!((shares - 1.0).abs() < 1e-9);
        assert_eq!(report.nodes[5].replicas_before, 0);
        assert_eq!(report.nodes[5].replicas_after, 5181);
    }

    #[test]
    fn the_table_names_nodes_and_moves() {
        let mut diff_report = report(&hashring(1, 1), &hashring(1, 1), 4);
        diff_report.counts.not_series = 2;
        let expected = "\
ENDPOINT                              BEFORE     AFTER    CHANGE
receive-0.receive.thanos.svc:10901   100.00%   100.00%    +0.00%

series moved    0 of 4 (0.00%)
replicas moved  0 of 4 (0.00%)
lines that are no series: 2
";
        assert_eq!(diff_report.to_string(), expected);
    }

    #[test]
    fn series_without_a_place_are_counted() {
        let report = report(&hashring(3, 3), &hashring(2, 3), 5);
        assert_eq!((report.counts.unplaced_before, report.counts.unplaced_after), (0, 5));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["replicas_moved"], 15);
        assert_eq!(json["nodes"][0]["share_after"], 0.0);
    }
}
