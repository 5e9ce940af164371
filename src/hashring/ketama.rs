//! ketama: each endpoint owns 1000 sections of the ring, and a series belongs to the first section
//! at or after its hash. Its replicas lie clockwise from there, on endpoints and zones that are as
//! different as possible. A step in size moves only the share of the endpoint that came or left.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use xxhash_rust::xxh64::xxh64;

use crate::hashring::error::RingError;
use crate::hashring::options::Endpoint;
use crate::hashring::ring::{EndpointIndex, Ring};

/// Sections per endpoint.
pub const SECTIONS_PER_ENDPOINT: usize = 1000;

/// The sections of all endpoints of a ring.
#[derive(Debug)]
pub(super) struct Sections {
    /// Ascending.
    pub(super) hashes: Vec<u64>,
    /// Position of each section's endpoint in the list that the ring was built from.
    pub(super) owners: Vec<u16>,
}

impl Sections {
    /// Section i of an endpoint, i from 1 to 1000, lies at the hash of `address:i`. An address that
    /// is listed twice has two sections at each of its hashes, in the order of the list.
    pub(super) fn of<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Sections {
        let mut sections = Vec::new();
        let mut text = String::new();
        for (owner, endpoint) in endpoints.enumerate() {
            for i in 1..=SECTIONS_PER_ENDPOINT {
                text.clear();
                // Writing to a String cannot fail.
                let _ = write!(text, "{}:{i}", endpoint.address);
                sections.push((xxh64(text.as_bytes(), 0), owner as u16));
            }
        }
        sections.sort_unstable();
        let (hashes, owners) = sections.into_iter().unzip();
        Sections { hashes, owners }
    }

    /// Index of the first section at or after `hash`, wrapping around. There is at least one.
    pub(super) fn first_at_or_after(&self, hash: u64) -> usize {
        self.hashes.partition_point(|section| *section < hash) % self.hashes.len()
    }
}

/// Builds a ketama ring over `endpoints`, of which `indexes` are the positions in the snapshot.
pub(super) fn build(
    endpoints: &[Endpoint],
    indexes: &[EndpointIndex],
    replication_factor: usize,
) -> Result<Ring, RingError> {
    if endpoints.len() < replication_factor {
        return Err(RingError::FewerEndpointsThanReplicationFactor {
            endpoints: endpoints.len(),
            replication_factor,
        });
    }
    let zones = Zones::of(endpoints.iter());
    zones.check_spread(replication_factor)?;
    let sections = Sections::of(endpoints.iter());
    let replicas = zones.place_replicas(&sections, indexes, replication_factor);
    Ok(Ring::clockwise(sections.hashes, replicas, replication_factor))
}

/// Takes endpoints for the replicas of one series after another: each once, and none in a zone that
/// holds more of them than the least filled one.
pub(super) struct Picker<'z> {
    /// Which zone each endpoint lies in.
    zone_of: &'z [usize],
    /// Which series this is, counted from 1.
    series: u32,
    /// The last series for which an endpoint was taken.
    taken_for: Vec<u32>,
    replicas_by_zone: Vec<usize>,
    /// Replicas in the least filled zone; with one zone alone it does not count.
    least: usize,
}

impl<'z> Picker<'z> {
    pub(super) fn new(zone_of: &'z [usize], zone_count: usize) -> Picker<'z> {
        Picker {
            zone_of,
            series: 0,
            taken_for: vec![0; zone_of.len()],
            replicas_by_zone: vec![0; zone_count],
            least: 0,
        }
    }

    /// Begins the next series, of less than 2^32.
    pub(super) fn begin(&mut self) {
        self.series += 1;
        self.replicas_by_zone.fill(0);
        self.least = 0;
    }

    /// Takes the endpoint for the series, if it may.
    pub(super) fn take(&mut self, endpoint: usize) -> bool {
        let zone = self.zone_of[endpoint];
        if self.taken_for[endpoint] == self.series || self.replicas_by_zone[zone] > self.least {
            return false;
        }
        self.taken_for[endpoint] = self.series;
        self.replicas_by_zone[zone] += 1;
        self.least = match &self.replicas_by_zone[..] {
            [_] => usize::MAX,
            zones => zones.iter().copied().min().unwrap_or(0),
        };
        true
    }
}

/// Which zone each endpoint lies in. The zone without a name is one like any other.
pub(super) struct Zones<'a> {
    /// Number of endpoints by zone, in order of names.
    sizes: Vec<(&'a str, usize)>,
    /// Position in `sizes` of each endpoint's zone.
    zone_of: Vec<usize>,
}

impl<'a> Zones<'a> {
    pub(super) fn of(endpoints: impl Iterator<Item = &'a Endpoint> + Clone) -> Zones<'a> {
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        for endpoint in endpoints.clone() {
            *sizes.entry(&endpoint.az).or_default() += 1;
        }
        let sizes: Vec<_> = sizes.into_iter().collect();
        let position = |az: &str| sizes.partition_point(|(name, _)| *name < az);
        let zone_of = endpoints.map(|endpoint| position(&endpoint.az)).collect();
        Zones { sizes, zone_of }
    }

    /// How many there are, and the number of each endpoint's.
    pub(super) fn into_numbers(self) -> (usize, Vec<usize>) {
        (self.sizes.len(), self.zone_of)
    }

    /// Zones fill up evenly: none takes a replica while it holds more than the least filled one.
    /// So once the smallest zone, of s endpoints, is full, every other one ends with at most s + 1.
    pub(super) fn check_spread(&self, replication_factor: usize) -> Result<(), RingError> {
        if self.sizes.len() < 2 {
            return Ok(());
        }
        let Some((zone, smallest)) = self.sizes.iter().min_by_key(|(_, size)| *size) else {
            return Ok(());
        };
        let replicas_max = self.sizes.iter().map(|(_, size)| (*size).min(smallest + 1)).sum();
        if replication_factor <= replicas_max {
            return Ok(());
        }
        Err(RingError::ZoneTooSmall {
            zone: (*zone).to_owned(),
            endpoints: *smallest,
            replicas_max,
            replication_factor,
        })
    }

    /// All replicas of all sections. The caller has checked that there are enough endpoints and
    /// that their zones allow the spread, or this would not end.
    fn place_replicas(
        &self,
        sections: &Sections,
        indexes: &[EndpointIndex],
        replication_factor: usize,
    ) -> Vec<EndpointIndex> {
        let section_count = sections.owners.len();
        let mut replicas = Vec::with_capacity(section_count * replication_factor);
        let mut picker = Picker::new(&self.zone_of, self.sizes.len());
        for section in 0..section_count {
            picker.begin();
            let mut taken = 0;
            let clockwise = (section..section_count).chain(0..section).cycle();
            for candidate in clockwise {
                if taken == replication_factor {
                    break;
                }
                let owner = usize::from(sections.owners[candidate]);
                if picker.take(owner) {
                    replicas.push(indexes[owner]);
                    taken += 1;
                }
            }
        }
        replicas
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hashring::ring::SectionIndex;

    /// The rule for replicas, word for word, for one section. None if it finds no replica in a
    /// whole lap, and so never would.
    fn replicas_of(
        section: usize,
        sections: &Sections,
        zones: &[usize],
        replication_factor: usize,
    ) -> Option<Vec<usize>> {
        let zone_count = zones.iter().max().map_or(0, |zone| zone + 1);
        let mut taken: Vec<usize> = Vec::new();
        let in_zone =
            |taken: &[usize], zone: usize| taken.iter().filter(|i| zones[**i] == zone).count();
        let mut skipped = 0;
        for step in 0.. {
            if taken.len() == replication_factor {
                break;
            }
            let owner = usize::from(sections.owners[(section + step) % sections.owners.len()]);
            let here = in_zone(&taken, zones[owner]);
            let least = (0..zone_count).map(|zone| in_zone(&taken, zone)).min().unwrap_or(0);
            let is_crowded = zone_count > 1 && here > 0 && here > least;
            if taken.contains(&owner) || is_crowded {
                skipped += 1;
                if skipped > sections.owners.len() {
                    return None;
                }
                continue;
            }
            skipped = 0;
            taken.push(owner);
        }
        Some(taken)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_ring_is_refused_exactly_if_its_replicas_cannot_be_found(
            zone_sizes in prop::collection::vec(1usize..=4, 1..=4),
            replication_factor in 1usize..=8,
        ) {
            let mut zones = Vec::new();
            let mut endpoints = Vec::new();
            for (zone, size) in zone_sizes.iter().enumerate() {
                for _ in 0..*size {
                    let endpoint = Endpoint::at(&format!("node-{}:10901", endpoints.len()));
                    endpoints.push(Endpoint { az: format!("az-{zone}"), ..endpoint });
                    zones.push(zone);
                }
            }
            let indexes: Vec<_> = (0..endpoints.len() as u16).map(EndpointIndex).collect();
            let ring = build(&endpoints, &indexes, replication_factor);
            if replication_factor > endpoints.len() {
                let is_expected =
                    matches!(ring, Err(RingError::FewerEndpointsThanReplicationFactor { .. }));
                prop_assert!(is_expected);
                return Ok(());
            }
            let sections = Sections::of(endpoints.iter());
            for section in (0..sections.owners.len()).step_by(487) {
                let expected = replicas_of(section, &sections, &zones, replication_factor);
                match (&ring, expected) {
                    (Ok(ring), Some(expected)) => {
                        let replicas: Vec<_> = ring
                            .whole()
                            .unwrap()
                            .replicas(SectionIndex(section as u32))
                            .iter()
                            .map(|index| index.as_usize())
                            .collect();
                        prop_assert_eq!(replicas, expected);
                    }
                    (Err(RingError::ZoneTooSmall { .. }), None) => {}
                    (ring, expected) => prop_assert!(false, "{:?} but {:?}", ring, expected),
                }
            }
        }
    }
}
