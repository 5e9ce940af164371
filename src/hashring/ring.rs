//! A built ring: hash to section, section to all its replicas.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use rapidhash::fast::RandomState;

use crate::hashring::error::PlacementError;
use crate::hashring::shard::Shard;

/// Position of an endpoint in [`crate::hashring::Hashring::endpoints`]. Means nothing in another
/// snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointIndex(pub u16);

impl EndpointIndex {
    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }
}

/// Position of a section in its ring. All series of a section share their replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SectionIndex(pub(super) u32);

/// Position of a replica set among others: which endpoints hold a series, replica 0 first.
/// A ring of few endpoints has far fewer of them than sections, such as the six orders of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaSetIndex(pub u32);

/// An immutable ring. A look-up takes some nanoseconds and allocates nothing.
#[derive(Debug)]
pub struct Ring(Places);

#[derive(Debug)]
enum Places {
    Whole(WholeRing),
    /// One tenant's part of a ring.
    Shard(Shard),
}

/// A ring over all its endpoints: each section is known with its replicas.
#[derive(Debug)]
pub(super) struct WholeRing {
    lookup: Lookup,
    /// Replicas of each section, which is as many as the replication factor asks for, or all
    /// endpoints if there are fewer.
    replica_count: usize,
    /// Of each section.
    replica_sets: Box<[ReplicaSetIndex]>,
    /// `replica_count` entries per replica set, which are all different.
    replicas: Box<[EndpointIndex]>,
}

#[derive(Debug)]
enum Lookup {
    /// hashmod: the section is the hash modulo the number of endpoints, which is not zero.
    Modulo(u64),
    /// ketama.
    Clockwise(SortedHashes),
    /// A ring without sections, in which nothing has a place.
    Nowhere,
}

/// The replica sets of some series.
pub struct PlacedHashes<'r> {
    /// Of each series. One that has no place has a set that is not there.
    pub sets: Vec<ReplicaSetIndex>,
    pub table: ReplicaSets<'r>,
}

/// Replica sets by their index. There may be some that are equal.
pub struct ReplicaSets<'r> {
    replica_count: usize,
    /// `replica_count` entries per set.
    endpoints: Cow<'r, [EndpointIndex]>,
}

impl ReplicaSets<'_> {
    /// Each set has an index below.
    pub fn count(&self) -> usize {
        self.endpoints.len().checked_div(self.replica_count).unwrap_or(0)
    }

    /// Where replicas 0, 1, … go. Empty for a set that is not there.
    pub fn set(&self, set: ReplicaSetIndex) -> &[EndpointIndex] {
        let start = set.0 as usize * self.replica_count;
        self.endpoints.get(start..start + self.replica_count).unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[EndpointIndex]> {
        self.endpoints.chunks_exact(self.replica_count.max(1))
    }
}

/// The set of a series that has no place.
const NOWHERE: ReplicaSetIndex = ReplicaSetIndex(u32::MAX);

/// Series of a shard for each replica set that is looked for among those before. Where there are
/// fewer, nobody gains anything from knowing that two sets are equal.
const SERIES_PER_KNOWN_SET: usize = 8;

impl Ring {
    /// A ring with one section per endpoint. `replicas` holds `replica_count` entries for each.
    pub(super) fn modulo(replicas: Vec<EndpointIndex>, replica_count: usize) -> Ring {
        let lookup = match replicas.len().checked_div(replica_count) {
            None | Some(0) => Lookup::Nowhere,
            Some(endpoint_count) => Lookup::Modulo(endpoint_count as u64),
        };
        Ring(Places::Whole(WholeRing::new(lookup, replica_count, &replicas)))
    }

    /// A ring with the sections that end at `hashes`, in ascending order.
    pub(super) fn clockwise(
        hashes: Vec<u64>,
        replicas: Vec<EndpointIndex>,
        replica_count: usize,
    ) -> Ring {
        assert_eq!(hashes.len() * replica_count, replicas.len(), "each section has its replicas");
        let lookup = if hashes.is_empty() {
            Lookup::Nowhere
        } else {
            Lookup::Clockwise(SortedHashes::new(hashes))
        };
        Ring(Places::Whole(WholeRing::new(lookup, replica_count, &replicas)))
    }

    /// One tenant's part of a ring.
    pub(super) fn shard(shard: Shard) -> Ring {
        Ring(Places::Shard(shard))
    }

    /// The replica sets of series of these hashes.
    pub fn place(&self, hashes: &[u64]) -> PlacedHashes<'_> {
        match &self.0 {
            Places::Whole(ring) => {
                // Every section has its set unless the ring has none, and then nothing has a place.
                let set = |hash: &u64| ring.replica_set_of(ring.section_of(*hash));
                let sets = hashes.iter().map(|hash| set(hash).unwrap_or(NOWHERE)).collect();
                PlacedHashes { sets, table: ring.replica_sets() }
            }
            Places::Shard(shard) => place_in_shard(shard, hashes),
        }
    }

    /// Where replicas 0, 1, … of a series of this hash go. For single ones; see [`Ring::place`].
    pub fn replicas_of(&self, hash: u64) -> Vec<EndpointIndex> {
        let PlacedHashes { sets, table } = self.place(&[hash]);
        sets.first().map_or(Vec::new(), |set| table.set(*set).to_owned())
    }

    /// All its sections, if it is no tenant's part of another ring.
    pub(super) fn whole(&self) -> Option<&WholeRing> {
        match &self.0 {
            Places::Whole(ring) => Some(ring),
            Places::Shard(_) => None,
        }
    }

    /// The part of all copies of series that each endpoint holds, in order of endpoints. All parts
    /// sum up to 1. None for a tenant's part of another ring.
    pub fn shares(&self) -> Option<BTreeMap<EndpointIndex, f64>> {
        self.whole().map(WholeRing::shares)
    }

    /// Replicas that each series has a place for.
    pub fn replica_count(&self) -> usize {
        match &self.0 {
            Places::Whole(ring) => ring.replica_count(),
            Places::Shard(shard) => shard.replica_count(),
        }
    }

    /// Fails if a series cannot have `count` replicas, as in a hashmod ring that is too small.
    pub fn require_replicas(&self, count: usize) -> Result<(), PlacementError> {
        let have = self.replica_count();
        if count <= have {
            Ok(())
        } else {
            Err(PlacementError::InsufficientNodes { have, want: count })
        }
    }

    /// The hash of each section, ascending. Empty for hashmod and shards.
    #[cfg(test)]
    pub(super) fn section_hashes(&self) -> &[u64] {
        match &self.0 {
            Places::Whole(WholeRing { lookup: Lookup::Clockwise(sorted), .. }) => &sorted.hashes,
            _ => &[],
        }
    }

    /// All endpoints that hold series.
    #[cfg(test)]
    pub(super) fn endpoints(&self) -> Vec<EndpointIndex> {
        let mut all: Vec<_> = match &self.0 {
            Places::Whole(ring) => ring.replicas.to_vec(),
            Places::Shard(shard) => shard.members().collect(),
        };
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn place_in_shard(shard: &Shard, hashes: &[u64]) -> PlacedHashes<'static> {
    let replica_count = shard.replica_count();
    let mut lookup = shard.lookup();
    let mut replicas = Vec::with_capacity(replica_count);
    let mut endpoints = Vec::new();
    let mut count = 0;
    let mut known: HashMap<Box<[EndpointIndex]>, ReplicaSetIndex, RandomState> = HashMap::default();
    let set_of = |hash: &u64| {
        lookup.replicas_of(*hash, &mut replicas);
        if let Some(set) = known.get(&replicas[..]) {
            return *set;
        }
        // There are fewer than 2^32 series.
        let set = ReplicaSetIndex(count);
        count += 1;
        endpoints.extend_from_slice(&replicas);
        if known.len() * SERIES_PER_KNOWN_SET <= hashes.len() {
            known.insert(replicas.as_slice().into(), set);
        }
        set
    };
    let sets = hashes.iter().map(set_of).collect();
    PlacedHashes { sets, table: ReplicaSets { replica_count, endpoints: endpoints.into() } }
}

impl WholeRing {
    /// `replicas` holds `replica_count` entries for each section.
    fn new(lookup: Lookup, replica_count: usize, replicas: &[EndpointIndex]) -> WholeRing {
        let mut known = HashMap::new();
        let mut distinct = Vec::new();
        // No section has a replica if none is asked for.
        let sections = replicas.chunks_exact(replica_count.max(1));
        let replica_sets = sections.map(|set| {
            // There are fewer sets than sections, which are numbered with 32 bits.
            let next = ReplicaSetIndex(known.len() as u32);
            *known.entry(set).or_insert_with(|| {
                distinct.extend_from_slice(set);
                next
            })
        });
        let replica_sets = replica_sets.collect();
        WholeRing { lookup, replica_count, replica_sets, replicas: distinct.into() }
    }

    /// The section that a series of this hash belongs to.
    #[inline]
    fn section_of(&self, series_hash: u64) -> SectionIndex {
        match &self.lookup {
            // The number of endpoints is below 2^16.
            Lookup::Modulo(endpoint_count) => SectionIndex((series_hash % endpoint_count) as u32),
            Lookup::Clockwise(hashes) => SectionIndex(hashes.first_at_or_after(series_hash)),
            Lookup::Nowhere => SectionIndex(0),
        }
    }

    /// The replica set of the section. None if the ring has no such section.
    #[inline]
    fn replica_set_of(&self, section: SectionIndex) -> Option<ReplicaSetIndex> {
        self.replica_sets.get(section.0 as usize).copied()
    }

    /// Different replica sets, such as the six orders of three.
    pub(super) fn replica_sets(&self) -> ReplicaSets<'_> {
        ReplicaSets { replica_count: self.replica_count, endpoints: Cow::Borrowed(&self.replicas) }
    }

    /// Where replicas 0, 1, … of the section's series go. Empty if the ring has no such section.
    pub(super) fn replicas(&self, section: SectionIndex) -> &[EndpointIndex] {
        let Some(set) = self.replica_set_of(section) else { return &[] };
        let start = set.0 as usize * self.replica_count;
        self.replicas.get(start..start + self.replica_count).unwrap_or_default()
    }

    fn replica_count(&self) -> usize {
        match self.lookup {
            Lookup::Nowhere => 0,
            _ => self.replica_count,
        }
    }

    #[cfg(test)]
    pub(super) fn section_count(&self) -> usize {
        self.replica_sets.len()
    }

    fn shares(&self) -> BTreeMap<EndpointIndex, f64> {
        let mut shares = BTreeMap::new();
        for (section, width) in self.section_widths().into_iter().enumerate() {
            for endpoint in self.replicas(SectionIndex(section as u32)) {
                *shares.entry(*endpoint).or_default() += width / self.replica_count as f64;
            }
        }
        shares
    }

    /// The part of all hashes that belongs to each section.
    fn section_widths(&self) -> Vec<f64> {
        match &self.lookup {
            Lookup::Nowhere => Vec::new(),
            Lookup::Modulo(endpoint_count) => {
                vec![1.0 / *endpoint_count as f64; *endpoint_count as usize]
            }
            Lookup::Clockwise(sorted) if sorted.hashes.len() == 1 => vec![1.0],
            Lookup::Clockwise(sorted) => {
                // The first section also holds what lies beyond the last.
                let mut before = sorted.hashes.last().copied().unwrap_or(0);
                let width = |hash: &u64| {
                    let width = hash.wrapping_sub(before);
                    before = *hash;
                    width as f64 / 2f64.powi(64)
                };
                sorted.hashes.iter().map(width).collect()
            }
        }
    }
}

/// Sorted hashes with a table over their leading bits. As hashes are spread evenly, a bucket holds
/// about one of them, and a lookup touches two cache lines instead of the 17 that a binary search
/// over 100,000 sections visits.
#[derive(Debug)]
pub(super) struct SortedHashes {
    hashes: Box<[u64]>,
    /// For each value of the leading bits: index of the first hash that has this value or a higher
    /// one. One entry more at the end.
    bucket_starts: Box<[u32]>,
    /// What is shifted out to get the leading bits.
    bucket_shift: u32,
}

impl SortedHashes {
    /// `hashes` are ascending and not empty.
    pub(super) fn new(hashes: Vec<u64>) -> SortedHashes {
        debug_assert!(hashes.is_sorted() && !hashes.is_empty());
        let bucket_bits = hashes.len().next_power_of_two().trailing_zeros().max(1);
        let bucket_shift = u64::BITS - bucket_bits;
        let mut bucket_starts = Vec::with_capacity((1 << bucket_bits) + 1);
        let mut start = 0;
        for bucket in 0..1u64 << bucket_bits {
            while hashes.get(start).is_some_and(|hash| hash >> bucket_shift < bucket) {
                start += 1;
            }
            bucket_starts.push(start as u32);
        }
        bucket_starts.push(hashes.len() as u32);
        let bucket_starts = bucket_starts.into();
        SortedHashes { hashes: hashes.into(), bucket_starts, bucket_shift }
    }

    /// Index of the first hash that is `wanted` or higher, and of the first of all if there is
    /// none.
    #[inline]
    pub(super) fn first_at_or_after(&self, wanted: u64) -> u32 {
        let bucket = (wanted >> self.bucket_shift) as usize;
        let (start, end) = (self.bucket_starts[bucket], self.bucket_starts[bucket + 1]);
        let in_bucket = &self.hashes[start as usize..end as usize];
        let index = start + in_bucket.partition_point(|hash| *hash < wanted) as u32;
        if index as usize == self.hashes.len() { 0 } else { index }
    }

    /// The hash at an index, which must be one.
    pub(super) fn hash(&self, index: u32) -> u64 {
        self.hashes[index as usize]
    }

    /// The index clockwise from another.
    pub(super) fn after(&self, index: u32) -> u32 {
        if index as usize + 1 == self.hashes.len() { 0 } else { index + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_table_finds_what_a_search_finds() {
        let lists: [Vec<u64>; 5] = [
            vec![7],
            vec![0, u64::MAX],
            vec![5, 5, 5, 5],
            (0..3000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect(),
            // All in one bucket.
            (0..3000u64).map(|i| u64::MAX - i).collect(),
        ];
        for mut hashes in lists {
            hashes.sort_unstable();
            let sorted = SortedHashes::new(hashes.clone());
            let edges = hashes.iter().flat_map(|hash| [*hash, hash.wrapping_add(1), hash / 2]);
            for wanted in edges.chain([0, 1, u64::MAX, u64::MAX - 1]) {
                let expected = hashes.partition_point(|hash| *hash < wanted) % hashes.len();
                assert_eq!(sorted.first_at_or_after(wanted) as usize, expected, "{wanted}");
            }
        }
    }

    #[test]
    fn shares_sum_up_to_one() {
        let rings = [
            Ring::modulo(vec![EndpointIndex(0), EndpointIndex(1)], 1),
            Ring::clockwise(vec![5], vec![EndpointIndex(0)], 1),
            Ring::clockwise(vec![1 << 20, 1 << 62, u64::MAX - 9], vec![EndpointIndex(0); 3], 1),
        ];
        for ring in rings {
            let sum: f64 = ring.shares().unwrap().values().sum();
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        }
    }

    #[test]
    fn equal_replica_sets_are_one() {
        let [a, b, c] = [0, 1, 2].map(EndpointIndex);
        let replicas = vec![a, b, b, a, a, b, c, a, b, a];
        let ring = Ring::clockwise(vec![1, 2, 3, 4, 5], replicas.clone(), 2);
        let whole = ring.whole().unwrap();
        assert_eq!((whole.section_count(), whole.replica_sets().count()), (5, 3));
        let placed = ring.place(&[1, 2, 3, 4, 5]);
        for (section, expected) in replicas.chunks(2).enumerate() {
            assert_eq!(whole.replicas(SectionIndex(section as u32)), expected);
            assert_eq!(placed.table.set(placed.sets[section]), expected);
        }
        assert_eq!(whole.replica_set_of(SectionIndex(5)), None);
        assert!(placed.table.set(ReplicaSetIndex(3)).is_empty());
    }

    #[test]
    fn a_ring_without_endpoints_places_nothing() {
        let ring = Ring::modulo(Vec::new(), 0);
        assert!(ring.replicas_of(9).is_empty());
        let error = ring.require_replicas(1).unwrap_err();
        assert_eq!(error, PlacementError::InsufficientNodes { have: 0, want: 1 });
    }
}
