//! A hashring as the operator asked for it, before it is built.

use std::collections::BTreeMap;

use crate::model::target::with_port;

/// One member of a ring.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Where gRPC is served, and the text that ketama and hashmod hash and sort by.
    pub address: String,
    pub capnproto_address: String,
    /// Availability zone. Empty is a zone like any other.
    pub az: String,
}

/// The port of a Cap'n Proto address that is not given.
pub const CAPNPROTO_PORT_DEFAULT: u16 = 19391;

impl Endpoint {
    /// An endpoint given by its address alone.
    pub fn at(address: &str) -> Endpoint {
        Endpoint {
            address: address.to_owned(),
            capnproto_address: capnproto_address(address),
            az: String::new(),
        }
    }

    /// Whether it is reached at `address` by either protocol, which is how a node finds itself.
    pub fn has_address(&self, address: &str) -> bool {
        self.address == address || self.capnproto_address == address
    }
}

/// The host of `address` with the default port. Thanos cuts at the first colon, and within an IPv6
/// address or behind a scheme, too.
pub fn capnproto_address(address: &str) -> String {
    with_port(address, CAPNPROTO_PORT_DEFAULT)
}

/// How series are placed within a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Hashmod,
    Ketama,
}

/// The `algorithm` field of one ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AlgorithmChoice {
    /// Not set: what the flag says.
    #[default]
    Default,
    Named(Algorithm),
    /// Placed by hashmod, as Thanos does, with a warning.
    Unknown(String),
}

impl AlgorithmChoice {
    pub fn parse(text: &str) -> AlgorithmChoice {
        match text {
            "" => AlgorithmChoice::Default,
            "hashmod" => AlgorithmChoice::Named(Algorithm::Hashmod),
            "ketama" => AlgorithmChoice::Named(Algorithm::Ketama),
            other => AlgorithmChoice::Unknown(other.to_owned()),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            AlgorithmChoice::Default => "",
            AlgorithmChoice::Named(Algorithm::Hashmod) => "hashmod",
            AlgorithmChoice::Named(Algorithm::Ketama) => "ketama",
            AlgorithmChoice::Unknown(text) => text,
        }
    }

    pub fn resolve(&self, default: Algorithm) -> Algorithm {
        match self {
            AlgorithmChoice::Default => default,
            AlgorithmChoice::Named(algorithm) => *algorithm,
            AlgorithmChoice::Unknown(_) => Algorithm::Hashmod,
        }
    }
}

/// The `tenant_matcher_type` field of a ring or an override.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TenantMatcher {
    /// Exact for a ring, but an override without it never applies.
    #[default]
    Unset,
    Exact,
    Glob,
    /// Matches no tenant.
    Unknown(String),
}

impl TenantMatcher {
    pub fn parse(text: &str) -> TenantMatcher {
        match text {
            "" => TenantMatcher::Unset,
            "exact" => TenantMatcher::Exact,
            "glob" => TenantMatcher::Glob,
            other => TenantMatcher::Unknown(other.to_owned()),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            TenantMatcher::Unset => "",
            TenantMatcher::Exact => "exact",
            TenantMatcher::Glob => "glob",
            TenantMatcher::Unknown(text) => text,
        }
    }
}

/// One entry of the hashrings file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingOptions {
    pub name: String,
    /// Empty: the ring takes every tenant that reaches it.
    pub tenants: Vec<String>,
    pub tenant_matcher: TenantMatcher,
    pub endpoints: Vec<Endpoint>,
    pub algorithm: AlgorithmChoice,
    /// For tenants that are named literally in `tenants`.
    pub external_labels: BTreeMap<String, String>,
    pub sharding: ShardingOptions,
}

/// `shuffle_sharding_config`. Sharding is on when `shard_size` is above zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardingOptions {
    /// Endpoints per tenant, over all zones.
    pub shard_size: i64,
    /// Shards kept, zero or less for the default.
    pub cache_size: i64,
    pub zone_awareness_disabled: bool,
    /// The first that matches a tenant replaces `shard_size` for it.
    pub overrides: Vec<ShardingOverride>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardingOverride {
    pub shard_size: i64,
    pub tenants: Vec<String>,
    pub tenant_matcher: TenantMatcher,
}

impl ShardingOptions {
    pub fn is_enabled(&self) -> bool {
        self.shard_size > 0
    }
}
