//! Series of a request that share their replicas.
//!
//! What is sent, and what is answered, is the same for all series of a group. A ring of three nodes
//! has six groups at most, whatever the number of series.

use crate::hashring::{EndpointIndex, ReplicaSetIndex, ReplicaSets};
use crate::write::distribute::{Batch, Replicas};

/// Rings whose replica sets are too many for this many series each, on average, give every series a
/// group of its own: a batch keeps the order of the request then.
const SERIES_MIN: usize = 8;

/// The series of a request, group by group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Groups {
    /// Numbers of series, rising within a group.
    members: Vec<u32>,
    /// Where each group ends in `members`.
    ends: Vec<u32>,
    /// Of each group.
    sets: Vec<ReplicaSetIndex>,
}

impl Groups {
    /// Groups series, given the replica set of each, one of `set_count`. There are fewer than 2^32
    /// series.
    pub(super) fn new(sets: Vec<ReplicaSetIndex>, set_count: usize) -> Groups {
        if set_count == 0 || set_count.saturating_mul(SERIES_MIN) > sets.len() {
            let series_count = sets.len() as u32;
            let (members, ends) = ((0..series_count).collect(), (1..=series_count).collect());
            return Groups { members, ends, sets };
        }
        // A counting sort: for each set first its size, then where its next member goes.
        let mut next = vec![0u32; set_count];
        for set in &sets {
            next[set.0 as usize] += 1;
        }
        let (mut ends, mut present) = (Vec::new(), Vec::new());
        let mut end = 0;
        for (set, next) in next.iter_mut().enumerate() {
            let size = std::mem::replace(next, end);
            end += size;
            if size > 0 {
                ends.push(end);
                present.push(ReplicaSetIndex(set as u32));
            }
        }
        let mut members = vec![0; sets.len()];
        for (series, set) in sets.iter().enumerate() {
            let next = &mut next[set.0 as usize];
            members[*next as usize] = series as u32;
            *next += 1;
        }
        Groups { members, ends, sets: present }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Numbers of the group's series, rising.
    pub(super) fn members(&self, group: u32) -> &[u32] {
        let group = group as usize;
        let start = group.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        let end = self.ends.get(group).copied().unwrap_or(0);
        self.members.get(start.unwrap_or(0) as usize..end as usize).unwrap_or_default()
    }

    /// One batch per endpoint and replica that has series, in order of endpoints.
    pub(super) fn batches(
        &self,
        table: &ReplicaSets<'_>,
        replica_count: usize,
        endpoint_count: usize,
        replicas: Replicas,
    ) -> Vec<Batch> {
        let (first, count) = match replicas {
            Replicas::All(count) => (0, usize::from(count)),
            Replicas::One(replica) => (usize::from(replica), 1),
        };
        let places = |set: &ReplicaSetIndex| {
            let endpoints = table.set(*set).iter().enumerate().skip(first).take(count);
            endpoints.map(|(replica, endpoint)| endpoint.as_usize() * replica_count + replica)
        };
        let mut sizes = vec![0; endpoint_count * replica_count];
        for place in self.sets.iter().flat_map(places) {
            sizes[place] += 1;
        }
        let mut lists: Vec<Vec<u32>> = sizes.into_iter().map(Vec::with_capacity).collect();
        for (group, set) in self.sets.iter().enumerate() {
            for place in places(set) {
                lists[place].push(group as u32);
            }
        }
        let batch = |(place, groups): (usize, Vec<u32>)| Batch {
            // Rings have fewer than 2^16 endpoints, and replication factors are below 2^8.
            endpoint: EndpointIndex((place / replica_count) as u16),
            replica: (place % replica_count) as u8,
            groups,
        };
        lists.into_iter().enumerate().filter(|(_, list)| !list.is_empty()).map(batch).collect()
    }
}
