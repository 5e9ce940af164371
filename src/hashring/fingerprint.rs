//! What a snapshot's [`RingHash`] is made of: all that the placement of series depends on, and
//! nothing else.
//!
//! ```text
//! SHA-256, its first 6 bytes, of
//!     domain ‖ replication factor ‖ number of rings ‖ ring, in file order …
//!
//! ring      = tenants ‖ ( 0, if it is not built | 1 ‖ algorithm ‖ endpoints ‖ shards )
//! tenants   = 0, if it takes all | matcher ‖ names, sorted
//! endpoints = number ‖ ( address ‖ zone ) …, sorted by address
//! shards    = shard size, 0 for none ‖ zones count ‖ number ‖ ( shard size ‖ tenants ) …
//! ```
//!
//! Numbers are of 8 bytes, big-endian; a text stands behind its length. The file's spacing, names of
//! rings, external labels, Cap'n Proto addresses and sizes of caches are no part of it. A ring that
//! cannot be built counts as the last good one that is in force for it.

use sha2::{Digest as _, Sha256};

use crate::hashring::options::{Algorithm, Endpoint, ShardingOptions, TenantMatcher};
use crate::hashring::{MemberRing, RingDefaults};
use crate::model::ring_hash::RingHash;

/// Stands first, so that no other hash of ours is ever equal. Changes with the rules above.
const DOMAIN: &[u8] = b"ringest ring 1\n";

pub(super) fn hash(rings: &[MemberRing], defaults: RingDefaults) -> RingHash {
    let mut hasher = Hasher(Sha256::new_with_prefix(DOMAIN));
    hasher.number(defaults.replication_factor as u64);
    hasher.number(rings.len() as u64);
    for ring in rings {
        hasher.tenants(&ring.options.tenants, &ring.options.tenant_matcher);
        if ring.placement.is_err() {
            hasher.number(0);
            continue;
        }
        hasher.number(1);
        hasher.number(match ring.built_from.algorithm.resolve(defaults.algorithm) {
            Algorithm::Hashmod => 0,
            Algorithm::Ketama => 1,
        });
        hasher.endpoints(&ring.built_from.endpoints);
        hasher.shards(&ring.built_from.sharding);
    }
    RingHash::of_digest(hasher.0.finalize().into())
}

struct Hasher(Sha256);

impl Hasher {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text);
    }

    fn tenants(&mut self, tenants: &[String], matcher: &TenantMatcher) {
        if tenants.is_empty() {
            return self.number(0);
        }
        self.number(match matcher {
            TenantMatcher::Unset | TenantMatcher::Exact => 1,
            TenantMatcher::Glob => 2,
            // Matches no tenant, whatever is listed.
            TenantMatcher::Unknown(_) => return self.number(3),
        });
        let mut sorted: Vec<_> = tenants.iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        self.number(sorted.len() as u64);
        sorted.into_iter().for_each(|tenant| self.text(tenant));
    }

    /// Those of one address, which share their sections, stay in the order of the list.
    fn endpoints(&mut self, endpoints: &[Endpoint]) {
        let mut sorted: Vec<_> = endpoints.iter().collect();
        sorted.sort_by_key(|endpoint| &endpoint.address);
        self.number(sorted.len() as u64);
        for endpoint in sorted {
            self.text(&endpoint.address);
            self.text(&endpoint.az);
        }
    }

    fn shards(&mut self, options: &ShardingOptions) {
        if !options.is_enabled() {
            return self.number(0);
        }
        self.number(options.shard_size as u64);
        self.number(u64::from(!options.zone_awareness_disabled));
        let applies =
            |matcher: &TenantMatcher| matches!(matcher, TenantMatcher::Exact | TenantMatcher::Glob);
        let overrides = options.overrides.iter().filter(|entry| applies(&entry.tenant_matcher));
        let overrides: Vec<_> = overrides.filter(|entry| !entry.tenants.is_empty()).collect();
        self.number(overrides.len() as u64);
        for entry in overrides {
            self.number(entry.shard_size as u64);
            self.tenants(&entry.tenants, &entry.tenant_matcher);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::hashring::{
        AlgorithmChoice, Endpoint, Hashring, HashringMetrics, RingDefaults, RingOptions,
        ShardingOptions, ShardingOverride,
    };
    use crate::metrics::Registry;

    use super::*;

    fn options() -> RingOptions {
        RingOptions {
            name: "h".to_owned(),
            tenants: vec!["b".to_owned(), "a".to_owned()],
            tenant_matcher: TenantMatcher::Exact,
            endpoints: ["n1:1", "n2:1", "n3:1"].map(Endpoint::at).into(),
            algorithm: AlgorithmChoice::Named(Algorithm::Ketama),
            external_labels: std::collections::BTreeMap::new(),
            sharding: ShardingOptions { shard_size: 2, ..ShardingOptions::default() },
        }
    }

    fn build(rings: Vec<RingOptions>, factor: usize, previous: Option<&Hashring>) -> Hashring {
        let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: factor };
        Hashring::build(rings, defaults, previous, &HashringMetrics::new(&Registry::new()))
    }

    fn hash_of(rings: Vec<RingOptions>) -> RingHash {
        build(rings, 2, None).hash()
    }

    #[test]
    fn what_places_no_series_changes_nothing() {
        let expected = hash_of(vec![options()]);
        // Written down: nodes of different releases must agree.
        assert_eq!(expected.to_string(), "f9d902dadec6");
        let changes: [fn(&mut RingOptions); 9] = [
            |ring| ring.name.clear(),
            |ring| ring.tenants.reverse(),
            |ring| ring.tenants.push("a".to_owned()),
            |ring| ring.tenant_matcher = TenantMatcher::Unset,
            |ring| ring.endpoints.reverse(),
            |ring| ring.endpoints[0].capnproto_address = "n1:7".to_owned(),
            |ring| ring.algorithm = AlgorithmChoice::Default,
            |ring| drop(ring.external_labels.insert("a".to_owned(), "b".to_owned())),
            |ring| ring.sharding.cache_size = 7,
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mut ring = options();
            change(&mut ring);
            assert_eq!(hash_of(vec![ring]), expected, "change {i}");
        }
    }

    #[test]
    fn whatever_places_series_elsewhere_is_another_ring() {
        let mut seen = vec![hash_of(vec![options()])];
        let mut expect_new = |hash, what: &str| {
            assert!(!seen.contains(&hash), "{what}");
            seen.push(hash);
        };
        let changes: [fn(&mut RingOptions); 10] = [
            |ring| drop(ring.tenants.pop()),
            |ring| ring.tenants.clear(),
            |ring| ring.tenant_matcher = TenantMatcher::Glob,
            |ring| ring.tenant_matcher = TenantMatcher::Unknown("x".to_owned()),
            |ring| drop(ring.endpoints.pop()),
            |ring| ring.endpoints[0].az = "z".to_owned(),
            |ring| ring.endpoints[0] = Endpoint::at("n1:2"),
            |ring| ring.sharding.shard_size = 3,
            |ring| ring.sharding = ShardingOptions::default(),
            |ring| {
                ring.sharding.overrides.push(ShardingOverride {
                    shard_size: 3,
                    tenants: vec!["a".to_owned()],
                    tenant_matcher: TenantMatcher::Exact,
                });
            },
        ];
        for (i, change) in changes.into_iter().enumerate() {
            let mut ring = options();
            change(&mut ring);
            expect_new(hash_of(vec![ring]), &format!("change {i}"));
        }
        let mut hashmod = options();
        hashmod.sharding = ShardingOptions::default();
        hashmod.algorithm = AlgorithmChoice::Named(Algorithm::Hashmod);
        expect_new(hash_of(vec![hashmod.clone()]), "algorithm");
        expect_new(build(vec![options()], 1, None).hash(), "replication factor");
        expect_new(hash_of(vec![options(), hashmod.clone()]), "a second ring");
        expect_new(hash_of(vec![hashmod, options()]), "the order of rings");
    }

    #[test]
    fn a_ring_that_cannot_be_built_counts_as_what_is_in_force_for_it() {
        let good = build(vec![options()], 2, None);
        let bad = || vec![RingOptions { endpoints: Vec::new(), ..options() }];
        assert_eq!(build(bad(), 2, Some(&good)).hash(), good.hash());
        assert_ne!(build(bad(), 2, None).hash(), good.hash());
    }
}
