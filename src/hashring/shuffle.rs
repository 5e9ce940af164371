//! Shuffle sharding: each tenant has a ketama ring of its own over a few of the endpoints, chosen
//! by its name alone, so that every node chooses the same and few tenants share all of them. Nothing
//! of that ring is built: see [`crate::hashring::shard`].

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use md5::{Digest, Md5};
use parking_lot::Mutex;

use crate::hashring::HashringMetrics;
use crate::hashring::error::RingError;
use crate::hashring::glob::Glob;
use crate::hashring::go_rand::GoRand;
use crate::hashring::ketama::Sections;
use crate::hashring::options::{Endpoint, ShardingOptions, TenantMatcher};
use crate::hashring::ring::{EndpointIndex, Ring};
use crate::hashring::shard::{Member, Shard, Tables};
use crate::metrics::{Counter, Gauge};

/// Shards kept per ring if the operator does not say.
pub(super) const CACHE_SIZE_DEFAULT: usize = 100;

/// A ring that gives each tenant a part of its endpoints.
pub(super) struct ShardedRing {
    shard_size_default: i64,
    overrides: Vec<Override>,
    zone_aware: bool,
    replication_factor: usize,
    endpoints: Vec<Endpoint>,
    indexes: Vec<EndpointIndex>,
    tables: Arc<Tables>,
    /// By name; all in one without a name if zones do not count.
    zones: BTreeMap<String, Zone>,
    cache: ShardCache,
}

struct Zone {
    /// Different endpoints: one that is listed twice counts once.
    endpoint_count: usize,
    sections: Sections,
}

struct Override {
    shard_size: i64,
    matcher: OverrideMatcher,
}

enum OverrideMatcher {
    Exact(HashSet<String>),
    /// Malformed patterns are left out, as they match nothing here.
    Glob(Vec<Glob>),
}

/// The shards used last. Choosing one again takes a few microseconds. Each is chosen once, by the
/// first request that asks for it, while others of the same tenant wait and those of other tenants
/// don't.
struct ShardCache {
    size_max: usize,
    metrics: ShardCacheMetrics,
    shards: Mutex<LruCache<Box<str>, Arc<CachedShard>>>,
}

type CachedShard = OnceLock<Result<Arc<Ring>, RingError>>;

pub(super) struct ShardCacheMetrics {
    pub(super) requests: Counter,
    pub(super) hits: Counter,
    pub(super) items: Gauge,
    pub(super) items_max: Gauge,
    pub(super) evicted: Counter,
}

impl ShardedRing {
    /// The caller has built the whole ring once, so there are enough endpoints and not too many.
    pub(super) fn new(
        name: &str,
        endpoints: &[Endpoint],
        indexes: &[EndpointIndex],
        options: &ShardingOptions,
        replication_factor: usize,
        metrics: &HashringMetrics,
    ) -> Result<ShardedRing, RingError> {
        let is_larger = usize::try_from(options.shard_size).is_ok_and(|n| n > endpoints.len());
        if is_larger {
            return Err(RingError::ShardLargerThanRing {
                shard_size: options.shard_size,
                endpoints: endpoints.len(),
            });
        }
        let size_max = usize::try_from(options.cache_size).ok().filter(|size| *size > 0);
        Ok(ShardedRing {
            shard_size_default: options.shard_size,
            overrides: overrides(options),
            zone_aware: !options.zone_awareness_disabled,
            replication_factor,
            zones: zones(endpoints, !options.zone_awareness_disabled),
            tables: Arc::new(Tables::of(endpoints)),
            endpoints: endpoints.to_vec(),
            indexes: indexes.to_vec(),
            cache: ShardCache::new(
                size_max.unwrap_or(CACHE_SIZE_DEFAULT),
                metrics.shard_cache(name),
            ),
        })
    }

    /// The tenant's ring, from the cache or chosen now. A tenant that gets none fails until the
    /// configuration changes.
    pub(super) fn shard(&self, tenant: &str) -> Result<Arc<Ring>, RingError> {
        self.cache.shard(tenant).get_or_init(|| self.place_tenant(tenant).map(Arc::new)).clone()
    }

    /// Why tenants get no shard, if those that no override names do not.
    pub(super) fn flaw(&self) -> Option<RingError> {
        // The size is at fault, whoever the tenant is.
        self.place(self.shard_size_default, "").err()
    }

    /// Endpoints that the tenant's shard is asked to have, over all zones.
    pub(super) fn shard_size(&self, tenant: &str) -> i64 {
        let applies = |entry: &&Override| match &entry.matcher {
            OverrideMatcher::Exact(tenants) => tenants.contains(tenant),
            OverrideMatcher::Glob(globs) => globs.iter().any(|glob| glob.matches(tenant)),
        };
        self.overrides.iter().find(applies).map_or(self.shard_size_default, |o| o.shard_size)
    }

    /// The tenant's ring, past the cache.
    pub(super) fn place_tenant(&self, tenant: &str) -> Result<Ring, RingError> {
        self.place(self.shard_size(tenant), tenant)
    }

    fn place(&self, shard_size: i64, tenant: &str) -> Result<Ring, RingError> {
        // A size that is not above zero takes no endpoint, which is fewer than any factor.
        let wanted = usize::try_from(shard_size).unwrap_or(0);
        let per_zone = if self.zone_aware { wanted.div_ceil(self.zones.len()) } else { wanted };
        let mut members = Vec::new();
        for (zone_name, zone) in &self.zones {
            if per_zone > zone.endpoint_count {
                return Err(RingError::ShardLargerThanZone {
                    shard_size,
                    zone: zone_name.clone(),
                    endpoints: zone.endpoint_count,
                });
            }
            let chosen = zone.choose(seed(tenant, zone_name), per_zone).into_iter();
            members.extend(
                chosen.map(|position| Member {
                    position,
                    index: self.indexes[usize::from(position)],
                }),
            );
        }
        let tables = self.tables.clone();
        Shard::new(tables, members, &self.endpoints, self.replication_factor).map(Ring::shard)
    }
}

impl Zone {
    /// Positions of `count` endpoints: each draw is a hash, and takes the first endpoint clockwise
    /// from it that is not taken yet.
    fn choose(&self, seed: i64, count: usize) -> Vec<u16> {
        let mut rand = GoRand::from_seed(seed);
        let mut chosen: Vec<u16> = Vec::with_capacity(count);
        for _ in 0..count {
            let start = self.sections.first_at_or_after(rand.next_u64());
            let (before, from) = self.sections.owners.split_at(start);
            let mut clockwise = from.iter().chain(before);
            chosen.extend(clockwise.find(|owner| !chosen.contains(owner)));
        }
        chosen
    }
}

/// The first 8 bytes, big-endian, of the MD5 of `tenant`, or of `tenant 0x00 zone` in a named zone.
pub(super) fn seed(tenant: &str, zone: &str) -> i64 {
    let mut md5 = Md5::new_with_prefix(tenant);
    if !zone.is_empty() {
        md5.update([0]);
        md5.update(zone);
    }
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 16]>::from(md5.finalize());
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn overrides(options: &ShardingOptions) -> Vec<Override> {
    let parse = |entry: &crate::hashring::options::ShardingOverride| {
        let matcher = match entry.tenant_matcher {
            TenantMatcher::Exact => OverrideMatcher::Exact(entry.tenants.iter().cloned().collect()),
            TenantMatcher::Glob => {
                let globs = entry.tenants.iter().filter_map(|pattern| Glob::parse(pattern).ok());
                OverrideMatcher::Glob(globs.collect())
            }
            TenantMatcher::Unset | TenantMatcher::Unknown(_) => return None,
        };
        Some(Override { shard_size: entry.shard_size, matcher })
    };
    options.overrides.iter().filter_map(parse).collect()
}

fn zones(endpoints: &[Endpoint], zone_aware: bool) -> BTreeMap<String, Zone> {
    let mut members: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let zone = if zone_aware { endpoint.az.as_str() } else { "" };
        members.entry(zone).or_default().push(i);
    }
    let build = |(name, members): (&str, Vec<usize>)| {
        let mut sections = Sections::of(members.iter().map(|i| &endpoints[*i]));
        for owner in &mut sections.owners {
            // There are at most 2^16 endpoints.
            *owner = members[usize::from(*owner)] as u16;
        }
        let different: HashSet<_> = members.iter().map(|i| &endpoints[*i]).collect();
        (name.to_owned(), Zone { endpoint_count: different.len(), sections })
    };
    members.into_iter().map(build).collect()
}

impl ShardCache {
    fn new(size_max: usize, metrics: ShardCacheMetrics) -> ShardCache {
        metrics.items_max.set(size_max as f64);
        metrics.items.set(0.0);
        ShardCache { size_max, metrics, shards: Mutex::new(LruCache::unbounded()) }
    }

    fn shard(&self, tenant: &str) -> Arc<CachedShard> {
        self.metrics.requests.inc();
        let mut shards = self.shards.lock();
        if let Some(shard) = shards.get(tenant) {
            self.metrics.hits.inc();
            return shard.clone();
        }
        let shard = Arc::new(CachedShard::new());
        shards.push(tenant.into(), shard.clone());
        // Not a capacity of the cache itself, which would reserve memory for all of it at once.
        if shards.len() > self.size_max {
            shards.pop_lru();
            self.metrics.evicted.inc();
        }
        self.metrics.items.set(shards.len() as f64);
        shard
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    fn ring(cache_size: i64) -> ShardedRing {
        let endpoints: Vec<_> = (0..6).map(|i| Endpoint::at(&format!("n{i}:1"))).collect();
        let indexes: Vec<_> = (0..6).map(EndpointIndex).collect();
        let options = ShardingOptions { shard_size: 3, cache_size, ..Default::default() };
        let metrics = HashringMetrics::new(&Registry::new());
        ShardedRing::new("r", &endpoints, &indexes, &options, 2, &metrics).unwrap()
    }

    #[test]
    fn the_cache_keeps_the_shards_used_last() {
        let ring = ring(2);
        let a = ring.shard("a").unwrap();
        ring.shard("b").unwrap();
        assert!(Arc::ptr_eq(&a, &ring.shard("a").unwrap()));
        ring.shard("c").unwrap();
        assert!(Arc::ptr_eq(&a, &ring.shard("a").unwrap()), "b was older");
        let metrics = &ring.cache.metrics;
        assert_eq!(metrics.requests.value(), 5.0);
        assert_eq!(metrics.hits.value(), 2.0);
        assert_eq!(metrics.evicted.value(), 1.0);
        assert_eq!((metrics.items.value(), metrics.items_max.value()), (2.0, 2.0));
    }

    #[test]
    fn a_cache_size_from_outside_reserves_no_memory() {
        assert_eq!(ring(i64::MAX).shard("a").unwrap().endpoints().len(), 3);
        assert_eq!(ring(-5).cache.size_max, CACHE_SIZE_DEFAULT);
    }

    #[test]
    fn threads_share_one_shard_per_tenant() {
        let ring = ring(0);
        let shards: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| ring.shard("t"))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
        });
        assert!(shards.iter().all(|shard| Arc::ptr_eq(shard, &shards[0])));
    }
}
