//! Whether rings can be written to, given which members are available.

use std::fmt;

use crate::hashring::ring::WholeRing;
use crate::hashring::{Endpoint, EndpointIndex, Hashring, MemberRing, Placement};

/// A ring none of whose replica sets reaches its quorum, so that all its writes fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfReach {
    pub hashring: String,
    /// Replicas that have to store a series.
    pub quorum: usize,
    pub members: usize,
    /// Members that are available.
    pub available: usize,
}

impl fmt::Display for OutOfReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutOfReach { hashring, quorum, members, available } = self;
        write!(
            f,
            "no replica set of hashring {hashring:?} reaches its quorum of {quorum}: {available} \
             of its {members} members are available"
        )
    }
}

impl Hashring {
    /// A ring of `next` that is out of reach while it is within reach in this snapshot, or else any
    /// if all of `next` is out of reach and something here is not. Rings are known by their names.
    ///
    /// Of a ring that is sharded by tenant this asks only for a quorum of its members: some tenant
    /// may have just those.
    pub fn lost_in(
        &self,
        next: &Hashring,
        quorum: usize,
        is_available: impl Fn(&Endpoint) -> bool,
    ) -> Option<OutOfReach> {
        let reach =
            |hashring: &Hashring, ring: &MemberRing| hashring.reach(ring, quorum, &is_available);
        let mut is_any_in_reach = false;
        let mut first_out = None;
        for (ring, before) in next.with_namesakes(Some(self)) {
            let Err(out) = reach(next, ring) else {
                is_any_in_reach = true;
                continue;
            };
            if before.is_some_and(|before| reach(self, before).is_ok()) {
                return Some(out);
            }
            first_out.get_or_insert(out);
        }
        let was_any = || self.rings.iter().any(|ring| reach(self, ring).is_ok());
        first_out.filter(|_| !is_any_in_reach && was_any())
    }

    fn reach(
        &self,
        ring: &MemberRing,
        quorum: usize,
        is_available: impl Fn(&Endpoint) -> bool,
    ) -> Result<(), OutOfReach> {
        // Asked once per member, not once per replica set.
        let mut available = vec![false; self.endpoints.len()];
        for index in &ring.indexes {
            available[index.as_usize()] = is_available(self.endpoint(*index));
        }
        let available_count = available.iter().filter(|is_available| **is_available).count();
        let is_reached = match &ring.placement {
            Err(_) => false,
            Ok(Placement::PerTenant(_)) => available_count >= quorum && self.unfit(ring).is_none(),
            // Writes to one that is too small fail, whoever is available.
            Ok(Placement::Whole(placed)) => {
                let is_set_reached = |set: &[EndpointIndex]| {
                    set.iter().filter(|index| available[index.as_usize()]).count() >= quorum
                };
                let sets = placed.whole().map(WholeRing::replica_sets);
                placed.require_replicas(self.defaults.replication_factor).is_ok()
                    && sets.is_some_and(|sets| sets.iter().any(is_set_reached))
            }
        };
        if is_reached {
            return Ok(());
        }
        Err(OutOfReach {
            hashring: ring.options.name.clone(),
            quorum,
            members: ring.indexes.len(),
            available: available_count,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashring::{Algorithm, HashringMetrics, RingDefaults, RingOptions, ShardingOptions};
    use crate::metrics::Registry;

    fn ring(name: &str, addresses: &[&str]) -> RingOptions {
        let endpoints = addresses.iter().map(|address| Endpoint::at(address)).collect();
        let tenants = vec![name.to_owned()];
        RingOptions { name: name.to_owned(), tenants, endpoints, ..RingOptions::default() }
    }

    fn build(algorithm: Algorithm, rings: Vec<RingOptions>) -> Hashring {
        let defaults = RingDefaults { algorithm, replication_factor: 3 };
        Hashring::build(rings, defaults, None, &HashringMetrics::new(&Registry::new()))
    }

    fn lost(before: &Hashring, next: &Hashring, available: &[&str]) -> Option<String> {
        let is_available = |endpoint: &Endpoint| available.contains(&endpoint.address.as_str());
        before.lost_in(next, 2, is_available).map(|out| out.to_string())
    }

    #[test]
    fn a_ring_is_lost_if_no_set_reaches_its_quorum_and_one_did() {
        let before = build(Algorithm::Ketama, vec![ring("r", &["a", "b", "c"])]);
        let next = build(Algorithm::Ketama, vec![ring("r", &["c", "d", "e"])]);
        let reason = "no replica set of hashring \"r\" reaches its quorum of 2: 1 of its 3 members \
                      are available";
        assert_eq!(lost(&before, &next, &["a", "b", "c"]).as_deref(), Some(reason));
        assert_eq!(lost(&before, &next, &["a", "b", "c", "e"]), None);
        // Nothing is lost where nothing was.
        assert_eq!(lost(&before, &next, &["a"]), None);
        assert_eq!(lost(&next, &before, &["a", "b"]), None);
    }

    #[test]
    fn one_set_of_many_is_enough() {
        let before = build(Algorithm::Ketama, vec![ring("r", &["a", "b", "c"])]);
        let nodes: Vec<_> = (0..20).map(|i| format!("n{i}")).collect();
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        let next = build(Algorithm::Hashmod, vec![ring("r", &nodes)]);
        let old = ["a", "b", "c"];
        // Sorted by address n0 is beside n1, and n5 beside neither.
        assert!(lost(&before, &next, &[&old[..], &["n0", "n5"]].concat()).is_some());
        assert_eq!(lost(&before, &next, &[&old[..], &["n0", "n1"]].concat()), None);
    }

    #[test]
    fn each_ring_of_a_file_counts() {
        let before = build(
            Algorithm::Ketama,
            vec![ring("r", &["a", "b", "c"]), ring("s", &["x", "y", "z"])],
        );
        let next = build(
            Algorithm::Ketama,
            vec![ring("r", &["d", "e", "f"]), ring("s", &["x", "y", "z"])],
        );
        assert!(lost(&before, &next, &["a", "b", "x", "y"]).unwrap().contains("\"r\""));
        assert_eq!(lost(&before, &next, &["d", "e", "x", "y"]), None);
        // Under other names, too, if nothing at all is left.
        let renamed = build(Algorithm::Ketama, vec![ring("t", &["d", "e", "f"])]);
        assert!(lost(&before, &renamed, &["a", "b"]).unwrap().contains("\"t\""));
        assert_eq!(lost(&before, &renamed, &["d", "e"]), None);
    }

    #[test]
    fn a_ring_that_is_too_small_is_lost_though_all_its_members_are_there() {
        let before = build(Algorithm::Hashmod, vec![ring("r", &["a", "b", "c"])]);
        let next = build(Algorithm::Hashmod, vec![ring("r", &["a", "b"])]);
        assert!(lost(&before, &next, &["a", "b", "c"]).is_some());
    }

    #[test]
    fn of_shards_a_quorum_of_members_is_asked() {
        let before = build(Algorithm::Ketama, vec![ring("r", &["a", "b", "c"])]);
        let sharding = ShardingOptions { shard_size: 3, ..ShardingOptions::default() };
        let sharded = RingOptions { sharding, ..ring("r", &["d", "e", "f", "g"]) };
        let next = build(Algorithm::Ketama, vec![sharded]);
        assert!(lost(&before, &next, &["a", "b", "d"]).is_some());
        assert_eq!(lost(&before, &next, &["a", "b", "d", "g"]), None);
    }
}
