//! Which endpoints hold a series: tenant to ring, series to section, section to replicas.
//!
//! The rings in force are one immutable [`Hashring`], shared behind an atomic pointer. A request
//! takes one snapshot, asks it once per tenant for the tenant's [`Ring`], hashes each series once
//! and gets all its replicas:
//!
//! ```text
//! Hashring::ring_of(tenant) -> Ring        first match in file order, then the tenant's shard
//! SeriesHasher::hash(labels) -> u64        once per series, for all its replicas
//! Ring::place(hashes) -> PlacedHashes      the replica set of each
//! ReplicaSets::set(index) -> [EndpointIndex]
//! ```
//!
//! Every placement is that of Thanos, series by series. Rings that Thanos takes with a flaw are
//! taken too, with a [`RingWarning`]; one that it dies of keeps its last good state, or has its
//! tenants wait, while the other rings are updated.

pub mod changes;
mod current;
mod error;
pub mod file;
mod fingerprint;
mod glob;
mod go_rand;
mod hashmod;
mod ketama;
mod multi;
mod options;
mod reach;
mod ring;
mod series_hash;
mod shard;
mod shuffle;
#[cfg(test)]
mod tests;
pub mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

pub use current::CurrentHashring;
pub use error::{PlacementError, RingError, RingWarning, RingWarningKind};
pub use ketama::SECTIONS_PER_ENDPOINT;
pub use options::{
    Algorithm, AlgorithmChoice, CAPNPROTO_PORT_DEFAULT, Endpoint, RingOptions, ShardingOptions,
    ShardingOverride, TenantMatcher, capnproto_address,
};
pub use reach::OutOfReach;
pub use ring::{EndpointIndex, PlacedHashes, ReplicaSetIndex, ReplicaSets, Ring};
pub use series_hash::{SeriesHasher, SeriesText};

use crate::metrics::{CounterVec, GaugeVec, Registry};
use crate::model::ring_hash::RingHash;
use multi::TenantChoice;
use shuffle::{ShardCacheMetrics, ShardedRing};

/// What holds for all rings that do not say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingDefaults {
    pub algorithm: Algorithm,
    /// Replicas of each series, at least 1.
    pub replication_factor: usize,
}

/// All rings in force, as one snapshot.
pub struct Hashring {
    rings: Vec<MemberRing>,
    choice: TenantChoice,
    /// Different endpoints of all rings, in the order in which they are first listed.
    endpoints: Vec<Endpoint>,
    defaults: RingDefaults,
    hash: RingHash,
    warnings: Vec<RingWarning>,
}

/// One ring of the file.
struct MemberRing {
    /// As in the file, but for tenants whose patterns are malformed there.
    options: RingOptions,
    /// What the placement was built from: `options`, or those of the last good state.
    built_from: RingOptions,
    /// Why `options` could not be built, where `built_from` are others.
    refused: Option<RingError>,
    /// Positions of the endpoints of `built_from` in this snapshot. Empty if it is not built.
    indexes: Vec<EndpointIndex>,
    placement: Result<Placement, RingError>,
}

#[derive(Clone)]
enum Placement {
    Whole(Arc<Ring>),
    PerTenant(Arc<ShardedRing>),
}

/// What became of a ring of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RingState {
    InForce,
    /// The ring in the file cannot be built; this one was in force before.
    LastGood(RingError),
    /// There was none before. Its tenants wait.
    NotBuilt(RingError),
}

/// A ring of the snapshot, for people.
pub struct RingView<'a> {
    pub name: &'a str,
    pub options: &'a RingOptions,
    /// Of the ring in force, which may be an older one than the file's. Empty if none was built.
    pub endpoints: &'a [Endpoint],
    /// Of those endpoints.
    pub indexes: &'a [EndpointIndex],
    pub state: RingState,
    /// The ring over all endpoints. None if it is not built, or each tenant has its own.
    pub whole: Option<&'a Arc<Ring>>,
    /// Why writes fail though it is built: it is too small for its copies or its shards.
    pub unfit: Option<PlacementError>,
}

impl Hashring {
    /// Builds all rings. One that cannot be built keeps what it had in `previous`, by name, and one
    /// that did not change goes on as the same [`Ring`], so that what is remembered of it holds.
    pub fn build(
        rings: Vec<RingOptions>,
        defaults: RingDefaults,
        previous: Option<&Hashring>,
        metrics: &HashringMetrics,
    ) -> Hashring {
        // Under other defaults the same options mean another ring.
        let previous = previous.filter(|previous| previous.defaults == defaults);
        Builder { defaults, metrics, endpoints: EndpointTable::default(), warnings: Vec::new() }
            .build(rings, previous)
    }

    /// The ring of one node, which takes every tenant and holds every series once.
    pub fn of_one(endpoint: Endpoint) -> Hashring {
        let options = RingOptions { endpoints: vec![endpoint.clone()], ..RingOptions::default() };
        let ring = Ring::modulo(vec![EndpointIndex(0)], 1);
        let defaults = RingDefaults { algorithm: Algorithm::Hashmod, replication_factor: 1 };
        let choice = TenantChoice::new(std::iter::once(&options));
        let rings = vec![MemberRing {
            built_from: options.clone(),
            options,
            refused: None,
            indexes: vec![EndpointIndex(0)],
            placement: Ok(Placement::Whole(Arc::new(ring))),
        }];
        Hashring {
            hash: fingerprint::hash(&rings, defaults),
            choice,
            rings,
            endpoints: vec![endpoint],
            defaults,
            warnings: Vec::new(),
        }
    }

    /// The ring that places the tenant's series. Asked once per request and tenant.
    pub fn ring_of(&self, tenant: &str) -> Result<Arc<Ring>, PlacementError> {
        let member = &self.rings[self.choice.ring_of(tenant)?];
        match &member.placement {
            Ok(Placement::Whole(ring)) => Ok(ring.clone()),
            Ok(Placement::PerTenant(sharded)) => sharded.shard(tenant).map_err(|error| {
                PlacementError::Subring { hashring: member.options.name.clone(), error }
            }),
            Err(error) => Err(PlacementError::NotBuilt {
                hashring: member.options.name.clone(),
                error: error.clone(),
            }),
        }
    }

    /// Name of the ring that takes the tenant, whether it is built or not.
    pub fn name_of_ring(&self, tenant: &str) -> Result<&str, PlacementError> {
        let ring = self.choice.ring_of(tenant)?;
        Ok(&self.rings[ring].options.name)
    }

    /// Position in the file of the ring that takes the tenant.
    #[cfg(test)]
    fn position_of_ring(&self, tenant: &str) -> Result<usize, PlacementError> {
        self.choice.ring_of(tenant)
    }

    /// What the tenant's external labels gain: those of the first ring that names it literally.
    pub fn external_labels(&self, tenant: &str) -> Option<&BTreeMap<String, String>> {
        self.choice.listed(tenant).map(|ring| &self.rings[ring].options.external_labels)
    }

    /// All endpoints, each once. An [`EndpointIndex`] is a position in here.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The endpoint at `index`, which comes from a ring of this snapshot.
    pub fn endpoint(&self, index: EndpointIndex) -> &Endpoint {
        &self.endpoints[index.as_usize()]
    }

    pub fn defaults(&self) -> RingDefaults {
        self.defaults
    }

    /// Two snapshots place all series of all tenants alike if their hashes are equal, on whichever
    /// nodes they are, however their files are written.
    pub fn hash(&self) -> RingHash {
        self.hash
    }

    pub fn warnings(&self) -> &[RingWarning] {
        &self.warnings
    }

    /// The rings in file order.
    pub fn rings(&self) -> impl Iterator<Item = RingView<'_>> {
        self.rings.iter().map(|member| RingView {
            name: &member.options.name,
            options: &member.options,
            endpoints: match member.placement {
                Ok(_) => &member.built_from.endpoints,
                Err(_) => &[],
            },
            indexes: &member.indexes,
            state: member.state(),
            whole: match &member.placement {
                Ok(Placement::Whole(ring)) => Some(ring),
                Ok(Placement::PerTenant(_)) | Err(_) => None,
            },
            unfit: self.unfit(member),
        })
    }

    fn unfit(&self, member: &MemberRing) -> Option<PlacementError> {
        match member.placement.as_ref().ok()? {
            Placement::Whole(ring) => ring.require_replicas(self.defaults.replication_factor).err(),
            Placement::PerTenant(sharded) => sharded.flaw().map(|error| PlacementError::Subring {
                hashring: member.options.name.clone(),
                error,
            }),
        }
    }

    /// Whether series of a hashmod ring are placed otherwise than before: nearly all of them are then
    /// somebody else's.
    pub fn has_moved_by_hashmod(&self, before: &Hashring) -> bool {
        let placed = |hashring: &Hashring| {
            let members = hashring.rings.iter().map(|member| &member.options);
            let resolved =
                |member: &RingOptions| member.algorithm.resolve(hashring.defaults.algorithm);
            let by_hashmod = members.filter(|member| resolved(member) == Algorithm::Hashmod);
            by_hashmod.map(|member| member.endpoints.clone()).collect::<Vec<_>>()
        };
        placed(self) != placed(before)
    }

    /// The member at the same place among those of the same name.
    fn namesake(&self, name: &str, nth: usize) -> Option<&MemberRing> {
        self.rings.iter().filter(|ring| ring.options.name == name).nth(nth)
    }
}

impl MemberRing {
    fn state(&self) -> RingState {
        match (&self.placement, &self.refused) {
            (Err(error), _) => RingState::NotBuilt(error.clone()),
            (Ok(_), None) => RingState::InForce,
            (Ok(_), Some(error)) => RingState::LastGood(error.clone()),
        }
    }
}

/// Whether two rings place series alike, whoever their tenants are.
fn same_placement(a: &RingOptions, b: &RingOptions) -> bool {
    (&a.endpoints, &a.algorithm, &a.sharding) == (&b.endpoints, &b.algorithm, &b.sharding)
}

impl fmt::Debug for Hashring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rings: Vec<_> = self.rings().map(|ring| (ring.name, ring.state)).collect();
        f.debug_struct("Hashring")
            .field("rings", &rings)
            .field("endpoints", &self.endpoints.len())
            .finish_non_exhaustive()
    }
}

struct Builder<'a> {
    defaults: RingDefaults,
    metrics: &'a HashringMetrics,
    endpoints: EndpointTable,
    warnings: Vec<RingWarning>,
}

impl Builder<'_> {
    fn build(mut self, rings: Vec<RingOptions>, previous: Option<&Hashring>) -> Hashring {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut members = Vec::with_capacity(rings.len());
        for options in rings {
            let nth = seen.entry(options.name.clone()).or_default();
            let last_good = previous.and_then(|previous| previous.namesake(&options.name, *nth));
            *nth += 1;
            members.push(self.member(options, last_good));
        }
        self.warn_of_missing_shards(&members);
        self.warn_of_repeated_shards(&members);
        Hashring {
            choice: TenantChoice::new(members.iter().map(|member| &member.options)),
            hash: fingerprint::hash(&members, self.defaults),
            rings: members,
            endpoints: self.endpoints.list,
            defaults: self.defaults,
            warnings: self.warnings,
        }
    }

    fn member(&mut self, mut options: RingOptions, last_good: Option<&MemberRing>) -> MemberRing {
        self.warn_of_flaws(&options);
        if let Some(pattern) = multi::malformed_pattern(&options).map(str::to_owned) {
            let good = last_good.filter(|ring| multi::malformed_pattern(&ring.options).is_none());
            self.warn(
                &options,
                RingWarningKind::MalformedPattern { pattern, kept: good.is_some() },
            );
            if let Some(good) = good {
                options.tenants.clone_from(&good.options.tenants);
                options.tenant_matcher = good.options.tenant_matcher.clone();
            }
        }
        let error = match self.placement(&options, last_good) {
            Ok((indexes, placement)) => {
                let built_from = options.clone();
                let placement = Ok(placement);
                return MemberRing { options, built_from, refused: None, indexes, placement };
            }
            Err(error) => error,
        };
        let good = last_good.filter(|ring| ring.placement.is_ok()).map(|ring| &ring.built_from);
        // Placed anew, since positions of endpoints are those of one snapshot.
        let kept =
            good.and_then(|good| Some((good.clone(), self.placement(good, last_good).ok()?)));
        let kind = RingWarningKind::NotBuilt { error: error.clone(), kept: kept.is_some() };
        self.warn(&options, kind);
        match kept {
            Some((built_from, (indexes, placement))) => {
                let refused = Some(error);
                MemberRing { options, built_from, refused, indexes, placement: Ok(placement) }
            }
            None => MemberRing {
                built_from: options.clone(),
                options,
                refused: None,
                indexes: Vec::new(),
                placement: Err(error),
            },
        }
    }

    /// Places the ring's endpoints. A failure leaves none of them behind.
    fn placement(
        &mut self,
        options: &RingOptions,
        last_good: Option<&MemberRing>,
    ) -> Result<(Vec<EndpointIndex>, Placement), RingError> {
        let endpoint_count = self.endpoints.list.len();
        let indexes = self.endpoints.indexes(&options.endpoints)?;
        if let Some(good) = last_good
            && let Ok(placement) = &good.placement
            && good.indexes == indexes
            && same_placement(&good.built_from, options)
        {
            return Ok((indexes, placement.clone()));
        }
        match self.build_placement(options, &indexes) {
            Ok(placement) => Ok((indexes, placement)),
            Err(error) => {
                self.endpoints.truncate(endpoint_count);
                Err(error)
            }
        }
    }

    fn build_placement(
        &self,
        options: &RingOptions,
        indexes: &[EndpointIndex],
    ) -> Result<Placement, RingError> {
        let RingDefaults { algorithm, replication_factor } = self.defaults;
        let RingOptions { name, endpoints, sharding, .. } = options;
        match options.algorithm.resolve(algorithm) {
            Algorithm::Hashmod => {
                let ring = hashmod::build(endpoints, indexes, replication_factor)?;
                if sharding.is_enabled() {
                    return Err(RingError::ShardingWithHashmod);
                }
                Ok(Placement::Whole(Arc::new(ring)))
            }
            Algorithm::Ketama => {
                let ring = ketama::build(endpoints, indexes, replication_factor)?;
                if !sharding.is_enabled() {
                    return Ok(Placement::Whole(Arc::new(ring)));
                }
                let sharded = ShardedRing::new(
                    name,
                    endpoints,
                    indexes,
                    sharding,
                    replication_factor,
                    self.metrics,
                )?;
                Ok(Placement::PerTenant(Arc::new(sharded)))
            }
        }
    }

    fn warn(&mut self, ring: &RingOptions, kind: RingWarningKind) {
        self.warnings.push(RingWarning { hashring: ring.name.clone(), kind });
    }

    fn warn_of_flaws(&mut self, ring: &RingOptions) {
        if let AlgorithmChoice::Unknown(text) = &ring.algorithm {
            self.warn(ring, RingWarningKind::UnknownAlgorithm(text.clone()));
        }
        if let TenantMatcher::Unknown(text) = &ring.tenant_matcher
            && !ring.tenants.is_empty()
        {
            self.warn(ring, RingWarningKind::UnknownMatcher(text.clone()));
        }
        let mut addresses = HashSet::new();
        let mut all = ring.endpoints.iter().map(|endpoint| &endpoint.address);
        if let Some(repeated) = all.find(|address| !addresses.insert(*address)) {
            self.warn(ring, RingWarningKind::EndpointRepeated(repeated.clone()));
        }
        for (index, entry) in ring.sharding.overrides.iter().enumerate() {
            let is_bad_glob = |tenant: &String| glob::Glob::parse(tenant).is_err();
            let reason = match &entry.tenant_matcher {
                _ if !ring.sharding.is_enabled() => "the hashring's own shard_size is not above 0",
                TenantMatcher::Unset => "it has no tenant_matcher_type",
                TenantMatcher::Unknown(_) => "its tenant_matcher_type is unknown",
                TenantMatcher::Glob if entry.tenants.iter().all(is_bad_glob) => {
                    "it has no well-formed pattern"
                }
                TenantMatcher::Exact if entry.tenants.is_empty() => "it has no tenants",
                TenantMatcher::Glob | TenantMatcher::Exact => continue,
            };
            self.warn(ring, RingWarningKind::OverrideNeverApplies { index, reason });
        }
        let is_hashmod = ring.algorithm.resolve(self.defaults.algorithm) == Algorithm::Hashmod;
        let (have, want) = (ring.endpoints.len(), self.defaults.replication_factor);
        if is_hashmod && 0 < have && have < want {
            self.warn(ring, RingWarningKind::InsufficientNodes { have, want });
        }
    }

    fn warn_of_missing_shards(&mut self, members: &[MemberRing]) {
        for member in members {
            if let Ok(Placement::PerTenant(sharded)) = &member.placement
                && let Some(error) = sharded.flaw()
            {
                self.warn(&member.options, RingWarningKind::NoShard(error));
            }
        }
    }

    /// Thanos dies of two sharded rings of one name. Nothing is wrong with them but their metrics.
    fn warn_of_repeated_shards(&mut self, members: &[MemberRing]) {
        let mut names = HashSet::new();
        for member in members {
            let is_sharded = matches!(member.placement, Ok(Placement::PerTenant(_)));
            if is_sharded && !names.insert(&member.options.name) {
                self.warn(&member.options, RingWarningKind::ShardedNameRepeated);
            }
        }
    }
}

/// Gives each different endpoint its index.
#[derive(Default)]
struct EndpointTable {
    list: Vec<Endpoint>,
    index_of: HashMap<Endpoint, EndpointIndex>,
}

impl EndpointTable {
    /// Indexes of all of them, or an error and no change if there are too many.
    fn indexes(&mut self, endpoints: &[Endpoint]) -> Result<Vec<EndpointIndex>, RingError> {
        let max = usize::from(u16::MAX);
        let total = self.list.len() + endpoints.len();
        if total > max {
            return Err(RingError::TooManyEndpoints { endpoints: total, max });
        }
        let index = |endpoint: &Endpoint| {
            *self.index_of.entry(endpoint.clone()).or_insert_with(|| {
                self.list.push(endpoint.clone());
                EndpointIndex((self.list.len() - 1) as u16)
            })
        };
        Ok(endpoints.iter().map(index).collect())
    }

    fn truncate(&mut self, len: usize) {
        for endpoint in self.list.drain(len..) {
            self.index_of.remove(&endpoint);
        }
    }
}

/// Metrics of the rings in force.
#[derive(Clone)]
pub struct HashringMetrics {
    cache_requests: CounterVec,
    cache_hits: CounterVec,
    cache_items: GaugeVec,
    cache_items_max: GaugeVec,
    cache_evicted: CounterVec,
}

impl HashringMetrics {
    pub fn new(registry: &Registry) -> HashringMetrics {
        let labels = &["hashring"];
        HashringMetrics {
            cache_requests: registry.counter_vec(
                "thanos_shuffle_shard_cache_requests_total",
                "Lookups of a tenant's shuffle shard.",
                labels,
            ),
            cache_hits: registry.counter_vec(
                "thanos_shuffle_shard_cache_hits_total",
                "Lookups that found the shuffle shard chosen.",
                labels,
            ),
            cache_items: registry.gauge_vec(
                "thanos_shuffle_shard_cache_items",
                "Shuffle shards held.",
                labels,
            ),
            cache_items_max: registry.gauge_vec(
                "thanos_shuffle_shard_cache_max_items",
                "Shuffle shards that are held at most.",
                labels,
            ),
            cache_evicted: registry.counter_vec(
                "thanos_shuffle_shard_cache_evicted_total",
                "Shuffle shards dropped to make room.",
                labels,
            ),
        }
    }

    fn shard_cache(&self, hashring: &str) -> ShardCacheMetrics {
        let labels = &[hashring];
        ShardCacheMetrics {
            requests: self.cache_requests.with(labels),
            hits: self.cache_hits.with(labels),
            items: self.cache_items.with(labels),
            items_max: self.cache_items_max.with(labels),
            evicted: self.cache_evicted.with(labels),
        }
    }
}
