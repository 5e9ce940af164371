//! The place of a series in one tenant's shard of a ring: the whole ring's sections, of which those
//! of endpoints outside of the shard are passed over. That is the ketama ring over the shard's
//! endpoints, but nothing has to be built for a tenant.
//!
//! There are two ways around. *Walking* looks at every section of the whole ring, clockwise, and
//! takes as many steps as there are endpoints outside for one within. *Merging* goes through the
//! sections of the shard's endpoints alone, each endpoint's list for itself, and always takes the
//! nearest; it costs a look-up in each of the lists.

use std::sync::Arc;

use crate::hashring::error::RingError;
use crate::hashring::ketama::{Picker, Sections, Zones};
use crate::hashring::options::Endpoint;
use crate::hashring::ring::{EndpointIndex, SortedHashes};

/// A look-up in a list costs as much as so many steps.
const STEPS_PER_LOOKUP: usize = 8;

/// What all shards of a ring share.
#[derive(Debug)]
pub(super) struct Tables {
    hashes: SortedHashes,
    /// Position of each section's endpoint in the ring's list.
    owners: Vec<u16>,
    /// The sections of each endpoint, by its position.
    lists: Vec<SortedHashes>,
    /// Two endpoints have a section at one hash. Which of them comes first is another matter in a
    /// shard than in the whole ring.
    has_ties: bool,
}

impl Tables {
    /// There is at least one endpoint.
    pub(super) fn of(endpoints: &[Endpoint]) -> Tables {
        let Sections { hashes, owners } = Sections::of(endpoints.iter());
        let mut lists = vec![Vec::new(); endpoints.len()];
        for (hash, owner) in hashes.iter().zip(&owners) {
            lists[usize::from(*owner)].push(*hash);
        }
        let mut pairs = hashes.windows(2).zip(owners.windows(2));
        let has_ties =
            pairs.any(|(hashes, owners)| hashes[0] == hashes[1] && owners[0] != owners[1]);
        Tables {
            hashes: SortedHashes::new(hashes),
            owners,
            lists: lists.into_iter().map(SortedHashes::new).collect(),
            has_ties,
        }
    }
}

/// The endpoints of one tenant.
#[derive(Debug)]
pub(super) struct Shard {
    tables: Arc<Tables>,
    /// In the order in which they were chosen, which decides ties.
    members: Vec<Member>,
    zone_count: usize,
    zone_of: Vec<usize>,
    replica_count: usize,
    /// Number of the member, plus one, at each position of the ring's list; 0 for an endpoint
    /// outside. None where merging is quicker.
    walked: Option<Box<[u16]>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// In the ring's list.
    pub(super) position: u16,
    /// In the snapshot.
    pub(super) index: EndpointIndex,
}

impl Shard {
    /// `endpoints` is the ring's list. The members are different positions of it.
    pub(super) fn new(
        tables: Arc<Tables>,
        members: Vec<Member>,
        endpoints: &[Endpoint],
        replication_factor: usize,
    ) -> Result<Shard, RingError> {
        if members.len() < replication_factor {
            return Err(RingError::FewerEndpointsThanReplicationFactor {
                endpoints: members.len(),
                replication_factor,
            });
        }
        let zones =
            Zones::of(members.iter().map(|member| &endpoints[usize::from(member.position)]));
        zones.check_spread(replication_factor)?;
        let (zone_count, zone_of) = zones.into_numbers();
        let is_walked = !tables.has_ties
            && steps(endpoints.len(), members.len(), replication_factor)
                < members.len() * STEPS_PER_LOOKUP;
        let walked = is_walked.then(|| {
            let mut walked = vec![0; endpoints.len()];
            for (number, member) in (1..).zip(&members) {
                walked[usize::from(member.position)] = number;
            }
            walked.into()
        });
        let replica_count = replication_factor;
        Ok(Shard { tables, members, zone_count, zone_of, replica_count, walked })
    }

    pub(super) fn replica_count(&self) -> usize {
        self.replica_count
    }

    #[cfg(test)]
    pub(super) fn members(&self) -> impl Iterator<Item = EndpointIndex> {
        self.members.iter().map(|member| member.index)
    }

    /// A way to look up one hash after another.
    pub(super) fn lookup(&self) -> ShardLookup<'_> {
        ShardLookup {
            shard: self,
            picker: Picker::new(&self.zone_of, self.zone_count),
            heads: Vec::with_capacity(self.members.len()),
        }
    }
}

/// About how many sections are looked at for all replicas: to the first member, to the first of the
/// rest, and so on.
fn steps(endpoint_count: usize, member_count: usize, replica_count: usize) -> usize {
    (0..replica_count).map(|taken| endpoint_count.div_ceil(member_count - taken)).sum()
}

/// Memory for the replicas of one hash after another.
pub(super) struct ShardLookup<'s> {
    shard: &'s Shard,
    picker: Picker<'s>,
    /// Of each member that is not taken.
    heads: Vec<Head>,
}

/// The next section of a member.
#[derive(Clone, Copy)]
struct Head {
    /// Times that the ring was gone round. More than one, if zones are filled up.
    lap: u32,
    /// Clockwise from the series' hash.
    distance: u64,
    member: usize,
    /// In the list of the member's endpoint.
    section: u32,
}

impl ShardLookup<'_> {
    /// Puts the replicas of a series of this hash into `replicas`, replica 0 first.
    pub(super) fn replicas_of(&mut self, hash: u64, replicas: &mut Vec<EndpointIndex>) {
        replicas.clear();
        self.picker.begin();
        match &self.shard.walked {
            Some(walked) => self.walk(hash, walked, replicas),
            None => self.merge(hash, replicas),
        }
    }

    fn walk(&mut self, hash: u64, walked: &[u16], replicas: &mut Vec<EndpointIndex>) {
        let Shard { tables, members, replica_count, .. } = self.shard;
        let start = tables.hashes.first_at_or_after(hash) as usize;
        let (before, from) = tables.owners.split_at(start);
        for owner in from.iter().chain(before).cycle() {
            if replicas.len() == *replica_count {
                return;
            }
            let Some(member) = usize::from(walked[usize::from(*owner)]).checked_sub(1) else {
                continue;
            };
            if self.picker.take(member) {
                replicas.push(members[member].index);
            }
        }
    }

    fn merge(&mut self, hash: u64, replicas: &mut Vec<EndpointIndex>) {
        let Shard { tables, members, replica_count, .. } = self.shard;
        let list = |member: usize| &tables.lists[usize::from(members[member].position)];
        let head = |member: usize| {
            let section = list(member).first_at_or_after(hash);
            let distance = list(member).hash(section).wrapping_sub(hash);
            Head { lap: 0, distance, member, section }
        };
        self.heads.clear();
        self.heads.extend((0..members.len()).map(head));
        while replicas.len() < *replica_count {
            let heads = self.heads.iter().enumerate();
            let nearest = heads.min_by_key(|(_, head)| (head.lap, head.distance, head.member));
            let Some((i, head)) = nearest.map(|(i, head)| (i, *head)) else { return };
            if self.picker.take(head.member) {
                replicas.push(members[head.member].index);
                self.heads.swap_remove(i);
                continue;
            }
            // Its zone is crowded as yet.
            let list = list(head.member);
            let section = list.after(head.section);
            let distance = list.hash(section).wrapping_sub(hash);
            let lap = head.lap + u32::from(distance < head.distance);
            self.heads[i] = Head { lap, distance, section, ..head };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hashring::ketama;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the zones, whichever endpoints are listed twice, by both ways.
        #[test]
        fn a_shard_places_as_the_ketama_ring_over_its_endpoints(
            listed in prop::collection::vec((0usize..12, 0usize..4), 1..14),
            order in any::<u64>(),
            size in 1usize..10,
            replication_factor in 1usize..5,
            series in prop::collection::vec(any::<u64>(), 40),
        ) {
            let endpoints: Vec<_> = listed.iter().map(|(node, zone)| {
                Endpoint { az: format!("z{zone}"), ..Endpoint::at(&format!("n{node}:1")) }
            }).collect();
            let mut positions: Vec<u16> = (0..endpoints.len() as u16).collect();
            positions.sort_by_key(|i| u64::from(*i + 1).wrapping_mul(order | 1));
            positions.truncate(size);
            let member =
                |position: &u16| Member { position: *position, index: EndpointIndex(*position) };
            let members: Vec<_> = positions.iter().map(member).collect();
            let chosen: Vec<_> =
                positions.iter().map(|i| endpoints[usize::from(*i)].clone()).collect();
            let indexes: Vec<_> = members.iter().map(|member| member.index).collect();
            let tables = Arc::new(Tables::of(&endpoints));
            let shard = Shard::new(tables, members, &endpoints, replication_factor);
            let ring = ketama::build(&chosen, &indexes, replication_factor);
            let (mut shard, ring) = match (shard, ring) {
                (Ok(shard), Ok(ring)) => (shard, ring),
                (shard, ring) => {
                    prop_assert_eq!(shard.err(), ring.err());
                    return Ok(());
                }
            };
            let edges = ring.section_hashes().iter().step_by(97).flat_map(|h| [*h, h.wrapping_add(1)]);
            let hashes: Vec<_> = series.into_iter().chain(edges).chain([0, u64::MAX]).collect();
            for is_walked in [false, true] {
                if is_walked && shard.tables.has_ties {
                    continue;
                }
                let numbers = (1..).zip(&positions);
                shard.walked = is_walked.then(|| {
                    let mut walked = vec![0; endpoints.len()];
                    numbers.for_each(|(number, i)| walked[usize::from(*i)] = number);
                    walked.into()
                });
                let mut lookup = shard.lookup();
                let mut replicas = Vec::new();
                for hash in &hashes {
                    lookup.replicas_of(*hash, &mut replicas);
                    prop_assert_eq!(&replicas, &ring.replicas_of(*hash), "{}", hash);
                }
            }
        }
    }

    #[test]
    fn the_quicker_way_is_taken() {
        let endpoints: Vec<_> = (0..100).map(|i| Endpoint::at(&format!("n{i}:1"))).collect();
        let tables = Arc::new(Tables::of(&endpoints));
        let is_walked = |size: u16| {
            let member = |i| Member { position: i, index: EndpointIndex(i) };
            let members = (0..size).map(member).collect();
            Shard::new(tables.clone(), members, &endpoints, 3).unwrap().walked.is_some()
        };
        assert!(!is_walked(3) && is_walked(50) && is_walked(100));
    }
}
