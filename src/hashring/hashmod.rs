//! hashmod: endpoints sorted by address; replica n of a series goes to
//! `endpoints[(hash + n) mod len]`. A step in size moves nearly every series.

use crate::hashring::error::RingError;
use crate::hashring::options::Endpoint;
use crate::hashring::ring::{EndpointIndex, Ring};

/// Builds a hashmod ring over `endpoints`, of which `indexes` are the positions in the snapshot. A
/// ring with fewer endpoints than replicas is built all the same, as in Thanos; writes to it fail.
/// One without any endpoint is not: it waits for them.
pub(super) fn build(
    endpoints: &[Endpoint],
    indexes: &[EndpointIndex],
    replication_factor: usize,
) -> Result<Ring, RingError> {
    if let Some(zoned) = endpoints.iter().find(|endpoint| !endpoint.az.is_empty()) {
        return Err(RingError::ZonesWithHashmod { zone: zoned.az.clone() });
    }
    if endpoints.is_empty() {
        return Err(RingError::NoEndpoints);
    }
    let mut sorted: Vec<_> = endpoints.iter().zip(indexes).collect();
    sorted.sort_by(|(a, _), (b, _)| a.address.cmp(&b.address));
    let replica_count = replication_factor.min(sorted.len());
    let replicas = (0..sorted.len())
        .flat_map(|section| (section..section + replica_count).map(|i| i % endpoints.len()))
        .map(|i| *sorted[i].1)
        .collect();
    Ok(Ring::modulo(replicas, replica_count))
}
