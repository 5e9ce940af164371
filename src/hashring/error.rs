//! Why a ring cannot be built, why a tenant cannot be placed, and what is odd about a ring.

use std::fmt;

/// A ring that cannot be built, or a tenant's shard that cannot be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A ring scaled to nothing, or whose pods are yet to come.
    #[error("it has no endpoints")]
    NoEndpoints,
    #[error(
        "ketama: amount of endpoints needs to be larger than replication factor \
         ({endpoints} endpoints, replication factor {replication_factor})"
    )]
    FewerEndpointsThanReplicationFactor { endpoints: usize, replication_factor: usize },
    #[error("hashmod algorithm does not support AZ aware hashring configuration (zone {zone:?})")]
    ZonesWithHashmod { zone: String },
    #[error("hashmod algorithm does not support shuffle sharding")]
    ShardingWithHashmod,
    #[error("shard size {shard_size} is larger than number of nodes in hashring ({endpoints})")]
    ShardLargerThanRing { shard_size: i64, endpoints: usize },
    #[error("shard size {shard_size} is larger than number of nodes in AZ {zone:?} ({endpoints})")]
    ShardLargerThanZone { shard_size: i64, zone: String, endpoints: usize },
    /// Thanos looks for the missing replica for ever.
    #[error(
        "zone {zone:?} with {endpoints} endpoints allows {replicas_max} replicas spread over the \
         zones, but the replication factor is {replication_factor}"
    )]
    ZoneTooSmall { zone: String, endpoints: usize, replicas_max: usize, replication_factor: usize },
    #[error("{endpoints} endpoints are more than the {max} that a hashring can have")]
    TooManyEndpoints { endpoints: usize, max: usize },
}

/// A tenant whose series have no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    #[error("no matching hashring to handle tenant")]
    NoHashring,
    #[error("hashring {hashring:?}: malformed tenant pattern {pattern:?}")]
    MalformedPattern { hashring: String, pattern: String },
    /// The tenant's ring is not complete, and never was: to be retried.
    #[error("hashring {hashring:?} is not ready: {error}")]
    NotBuilt { hashring: String, error: RingError },
    /// The ring is there, but this tenant's part of it cannot be chosen.
    #[error("hashring {hashring:?}: {error}")]
    Subring { hashring: String, error: RingError },
    /// A hashmod ring with fewer endpoints than replicas are asked for.
    #[error("insufficient nodes; have {have}, want {want}")]
    InsufficientNodes { have: usize, want: usize },
}

/// What Thanos takes and survives, and so do we, or the two would hold different rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingWarning {
    /// Name of the ring, empty if it has none.
    pub hashring: String,
    pub kind: RingWarningKind,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingWarningKind {
    /// Its tenants are answered from its last good state, or are told to retry.
    #[error("cannot be built, {}: {error}", if *.kept { "the last good one is kept" } else { "its tenants have to wait" })]
    NotBuilt { error: RingError, kept: bool },
    #[error("algorithm {0:?} is unknown, hashmod is used")]
    UnknownAlgorithm(String),
    #[error("tenant_matcher_type {0:?} is unknown and matches no tenant")]
    UnknownMatcher(String),
    #[error(
        "tenant pattern {pattern:?} is malformed, {}",
        if *.kept { "the last good tenants are kept" } else { "tenants that reach it are refused" }
    )]
    MalformedPattern { pattern: String, kept: bool },
    #[error("endpoint {0:?} is listed more than once and can hold several replicas of a series")]
    EndpointRepeated(String),
    #[error("shuffle sharding override {index} never applies: {reason}")]
    OverrideNeverApplies { index: usize, reason: &'static str },
    #[error("tenants that no override names get no shard, writes will fail: {0}")]
    NoShard(RingError),
    #[error("another hashring with shuffle sharding has the same name")]
    ShardedNameRepeated,
    #[error("{have} endpoints cannot hold {want} replicas, writes will fail")]
    InsufficientNodes { have: usize, want: usize },
}

impl fmt::Display for RingWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hashring {:?}: {}", self.hashring, self.kind)
    }
}
