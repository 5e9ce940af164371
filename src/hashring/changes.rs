//! What a new snapshot of the rings changes, for people: members that come and go, and how many
//! series move.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use xxhash_rust::xxh64::xxh64;

use crate::hashring::{EndpointIndex, Hashring, MemberRing, ReplicaSetIndex, Ring, RingState};

/// Series that are tried on a ring before and after. Of a share of a third, so many tell 33 ± 1 %.
const SERIES_TRIED: u64 = 10_000;

/// Tenants that they are spread over where each tenant has its own part of the ring.
const TENANTS_TRIED: u64 = 50;

/// Members that are named in a line; of others only the number is told.
const NAMED_MAX: usize = 8;

/// Series counted by where they are before and after a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moves {
    /// Series that were tried.
    pub series: u64,
    /// Of those, how many are written to another endpoint first (replica 0).
    pub series_moved: u64,
    /// Copies of all series before.
    pub replicas: u64,
    /// Of those, how many are on an endpoint that holds the series no more.
    pub replicas_moved: u64,
}

impl Moves {
    /// Counts a series, given the endpoints that hold it, replica 0 first.
    pub fn add(&mut self, before: &[&str], after: &[&str]) {
        self.series += 1;
        self.series_moved += u64::from(before.first() != after.first());
        self.replicas += before.len() as u64;
        self.replicas_moved += before.iter().filter(|node| !after.contains(node)).count() as u64;
    }

    /// The part of all series that is written to another endpoint first.
    pub fn series_share(&self) -> f64 {
        ratio(self.series_moved, self.series)
    }

    /// The part of all copies that moves: what the members will hold elsewhere than today.
    pub fn replicas_share(&self) -> f64 {
        ratio(self.replicas_moved, self.replicas)
    }
}

/// How large a part is; none of nothing.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// What became of one ring, as one line: `ring "default": 3 members (+n2 -n3), RF 3, moves about
/// 33 % of series`. Series move as far as their copies do: of three copies of each, those on n3 go
/// to n2, and the others stay.
#[derive(Clone, Debug, PartialEq)]
pub struct RingChange {
    name: String,
    change: Change,
}

#[derive(Clone, Debug, PartialEq)]
enum Change {
    /// It has a new state, which is in force.
    Taken {
        members: usize,
        came: Vec<String>,
        left: Vec<String>,
        replication_factor: usize,
        /// Endpoints of each tenant, where that is not all of them.
        shard_size: Option<i64>,
        /// Other tenants than before reach it.
        has_other_tenants: bool,
        /// The part of all copies of series that moves. None if it has not been in force before.
        moved: Option<f64>,
    },
    Gone,
}

impl Hashring {
    /// A line for each ring that is not as it was in `previous`, or can be built again. None for a
    /// ring that cannot be built: nothing of it is in force, or what was goes on.
    pub fn changes_since(&self, previous: Option<&Hashring>) -> Vec<RingChange> {
        let mut changes = Vec::new();
        for (ring, before) in self.with_namesakes(previous) {
            let before = before.filter(|before| before.placement.is_ok());
            if ring.state() != RingState::InForce {
                continue;
            }
            let has_other_tenants = before.is_some_and(|before| {
                (&before.options.tenants, &before.options.tenant_matcher)
                    != (&ring.options.tenants, &ring.options.tenant_matcher)
            });
            let is_same = previous.is_some_and(|previous| previous.defaults == self.defaults)
                && before.is_some_and(|before| {
                    before.state() == RingState::InForce
                        && super::same_placement(&before.built_from, &ring.built_from)
                });
            if is_same && !has_other_tenants {
                continue;
            }
            let addresses = |ring: &MemberRing| -> Vec<String> {
                ring.built_from.endpoints.iter().map(|at| at.address.clone()).collect()
            };
            let (members, former) = (addresses(ring), before.map(addresses));
            let (came, left) = match &former {
                Some(former) => (missing_in(&members, former), missing_in(former, &members)),
                None => Default::default(),
            };
            let sharding = &ring.built_from.sharding;
            let moved = before.zip(previous).map(|(before, previous)| {
                if is_same { 0.0 } else { moves((previous, before), (self, ring)).replicas_share() }
            });
            let change = Change::Taken {
                members: members.len(),
                came,
                left,
                replication_factor: self.defaults.replication_factor,
                shard_size: sharding.is_enabled().then_some(sharding.shard_size),
                has_other_tenants,
                moved,
            };
            changes.push(RingChange { name: ring.options.name.clone(), change });
        }
        let is_gone = |(ring, after): &(&MemberRing, Option<&MemberRing>)| {
            after.is_none() && ring.placement.is_ok()
        };
        let former = previous.into_iter().flat_map(|previous| previous.with_namesakes(Some(self)));
        changes.extend(
            former.filter(is_gone).map(|(ring, _)| RingChange {
                name: ring.options.name.clone(),
                change: Change::Gone,
            }),
        );
        changes
    }

    /// Each ring with the one at the same place among those of its name in another snapshot.
    pub(super) fn with_namesakes<'a>(
        &'a self,
        other: Option<&'a Hashring>,
    ) -> Vec<(&'a MemberRing, Option<&'a MemberRing>)> {
        let nth = |i: usize| {
            let name = &self.rings[i].options.name;
            self.rings[..i].iter().filter(|ring| ring.options.name == *name).count()
        };
        let pair = |(i, ring): (usize, &'a MemberRing)| {
            (ring, other.and_then(|other| other.namesake(&ring.options.name, nth(i))))
        };
        self.rings.iter().enumerate().map(pair).collect()
    }
}

/// What of `these` is not among `those`, each once.
fn missing_in(these: &[String], those: &[String]) -> Vec<String> {
    let mut known: HashSet<&String> = those.iter().collect();
    these.iter().filter(|address| known.insert(address)).cloned().collect()
}

/// Tries series on a ring before and after, each with its snapshot.
fn moves(before: (&Hashring, &MemberRing), after: (&Hashring, &MemberRing)) -> Moves {
    let is_whole = |ring: &MemberRing| matches!(ring.placement, Ok(super::Placement::Whole(_)));
    let tenants = if is_whole(before.1) && is_whole(after.1) { 1 } else { TENANTS_TRIED };
    let mut moves = Moves::default();
    for number in 0..tenants {
        // Those that are named are the ones that matter; of others one is as good as another.
        let listed = after.1.options.tenants.get(number as usize);
        let tenant = listed.cloned().unwrap_or_else(|| format!("tenant-{number}"));
        let places = |(_, ring): (&Hashring, &MemberRing)| ring.ring_unnoticed(&tenant);
        let (ring_before, ring_after) = (places(before), places(after));
        let numbers = number * SERIES_TRIED..;
        let hashes = numbers.take((SERIES_TRIED / tenants) as usize);
        let hashes: Vec<_> = hashes.map(|series| xxh64(&series.to_le_bytes(), 0)).collect();
        let here = addresses(before.0, ring_before.as_deref(), &hashes);
        let there = addresses(after.0, ring_after.as_deref(), &hashes);
        here.iter().zip(&there).for_each(|(here, there)| moves.add(here, there));
    }
    moves
}

/// Where series of these hashes are.
fn addresses<'a>(hashring: &'a Hashring, ring: Option<&Ring>, hashes: &[u64]) -> Vec<Vec<&'a str>> {
    let Some(ring) = ring else { return vec![Vec::new(); hashes.len()] };
    let placed = ring.place(hashes);
    let address = |index: &EndpointIndex| hashring.endpoint(*index).address.as_str();
    let of_set = |set: &ReplicaSetIndex| placed.table.set(*set).iter().map(address).collect();
    placed.sets.iter().map(of_set).collect()
}

impl MemberRing {
    /// The tenant's ring, for looking ahead: nothing is counted or kept.
    fn ring_unnoticed(&self, tenant: &str) -> Option<Arc<Ring>> {
        match self.placement.as_ref().ok()? {
            super::Placement::Whole(ring) => Some(ring.clone()),
            super::Placement::PerTenant(sharded) => sharded.place_tenant(tenant).map(Arc::new).ok(),
        }
    }
}

impl fmt::Display for RingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ring {:?}: ", self.name)?;
        let Change::Taken { members, came, left, shard_size, .. } = &self.change else {
            return f.write_str("gone");
        };
        write!(f, "{members} {}", if *members == 1 { "member" } else { "members" })?;
        let signed = |sign: char, names: &[String]| {
            let mut words: Vec<_> =
                names.iter().take(NAMED_MAX).map(|name| format!("{sign}{name}")).collect();
            if names.len() > NAMED_MAX {
                words.push(format!("{sign}{} more", names.len() - NAMED_MAX));
            }
            words
        };
        let words = [signed('+', came), signed('-', left)].concat();
        if !words.is_empty() {
            write!(f, " ({})", words.join(" "))?;
        }
        let Change::Taken { replication_factor, has_other_tenants, moved, .. } = &self.change
        else {
            return Ok(());
        };
        write!(f, ", RF {replication_factor}")?;
        if let Some(size) = shard_size {
            write!(f, ", shards of {size}")?;
        }
        if *has_other_tenants {
            f.write_str(", other tenants")?;
        }
        match moved {
            None => Ok(()),
            Some(0.0) => f.write_str(", moves no series"),
            Some(share) if *share < 0.01 => f.write_str(", moves less than 1 % of series"),
            Some(share) => write!(f, ", moves about {:.0} % of series", share * 100.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashring::{
        Algorithm, Endpoint, HashringMetrics, RingDefaults, RingOptions, ShardingOptions,
    };
    use crate::metrics::Registry;

    fn ring(name: &str, addresses: &[&str]) -> RingOptions {
        let endpoints = addresses.iter().map(|address| Endpoint::at(address)).collect();
        RingOptions { name: name.to_owned(), endpoints, ..RingOptions::default() }
    }

    fn build(rings: Vec<RingOptions>, factor: usize, previous: Option<&Hashring>) -> Hashring {
        let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: factor };
        Hashring::build(rings, defaults, previous, &HashringMetrics::new(&Registry::new()))
    }

    fn lines(new: &Hashring, previous: Option<&Hashring>) -> Vec<String> {
        new.changes_since(previous).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_line_names_who_came_and_left_and_tells_what_moves() {
        let first = build(vec![ring("default", &["n0", "n1", "n3"])], 3, None);
        assert_eq!(lines(&first, None), ["ring \"default\": 3 members, RF 3"]);
        assert_eq!(lines(&first, Some(&first)), [""; 0]);
        let second = build(vec![ring("default", &["n0", "n1", "n2"])], 3, Some(&first));
        let expected = "ring \"default\": 3 members (+n2 -n3), RF 3, moves about 33 % of series";
        assert_eq!(lines(&second, Some(&first)), [expected]);
        let mut other = ring("default", &["n0", "n1", "n2"]);
        other.tenants.push("t".to_owned());
        let other = build(vec![other], 3, Some(&second));
        let expected = "ring \"default\": 3 members, RF 3, other tenants, moves no series";
        assert_eq!(lines(&other, Some(&second)), [expected]);
        let gone = build(vec![ring("x", &["a", "b", "c"])], 3, Some(&other));
        assert_eq!(
            lines(&gone, Some(&other)),
            ["ring \"x\": 3 members, RF 3", "ring \"default\": gone"]
        );
    }

    #[test]
    fn as_much_moves_as_the_recorded_change_of_thanos() {
        let nodes: Vec<_> =
            (0..6).map(|i| format!("receive-{i}.receive.thanos.svc:10901")).collect();
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        let before = build(vec![ring("", &nodes[..5])], 3, None);
        let after = build(vec![ring("", &nodes)], 3, Some(&before));
        fn pair(hashring: &Hashring) -> (&Hashring, &MemberRing) {
            (hashring, &hashring.rings[0])
        }
        let moves = moves(pair(&before), pair(&after));
        let (series, copies) = (moves.series_share(), moves.replicas_share());
        assert!((series - 0.1726).abs() < 0.015, "{series}");
        assert!((copies - 0.1727).abs() < 0.015, "{copies}");
    }

    #[test]
    fn nothing_is_said_of_a_ring_that_cannot_be_built() {
        let good = build(vec![ring("a", &["n0", "n1"])], 2, None);
        let bad = || vec![ring("a", &["n0"]), ring("b", &["m0", "m1"])];
        let expected = ["ring \"b\": 2 members, RF 2"];
        assert_eq!(lines(&build(bad(), 2, None), None), expected);
        let last_good = build(bad(), 2, Some(&good));
        assert_eq!(lines(&last_good, Some(&good)), expected);
        let healed = build(vec![ring("a", &["n0", "n1"])], 2, Some(&last_good));
        let expected = ["ring \"a\": 2 members, RF 2, moves no series", "ring \"b\": gone"];
        assert_eq!(lines(&healed, Some(&last_good)), expected);
    }

    #[test]
    fn shards_move_tenant_by_tenant() {
        let sharded = |addresses: &[&str]| RingOptions {
            sharding: ShardingOptions { shard_size: 2, ..ShardingOptions::default() },
            ..ring("s", addresses)
        };
        let first = build(vec![sharded(&["n0", "n1", "n2", "n3"])], 1, None);
        let second = build(vec![sharded(&["n0", "n1", "n2", "n4"])], 1, Some(&first));
        let line = &lines(&second, Some(&first))[0];
        let start = "ring \"s\": 4 members (+n4 -n3), RF 1, shards of 2, moves about ";
        assert!(line.starts_with(start), "{line}");
    }

    #[test]
    fn a_line_stays_short() {
        let nodes: Vec<_> = (0..40).map(|i| format!("n{i}")).collect();
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        let first = build(vec![ring("r", &nodes[..1])], 1, None);
        let second = build(vec![ring("r", &nodes)], 1, Some(&first));
        let line = &lines(&second, Some(&first))[0];
        let start = "ring \"r\": 40 members (+n1 +n2 +n3 +n4 +n5 +n6 +n7 +n8 +31 more), RF 1";
        assert!(line.starts_with(start), "{line}");
    }
}
