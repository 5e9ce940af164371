//! Which ring takes a tenant: the first in file order whose tenants match, or that lists none.

use std::collections::HashMap;

use crate::hashring::error::PlacementError;
use crate::hashring::glob::{Glob, MalformedPattern};
use crate::hashring::options::{RingOptions, TenantMatcher};

/// The choice, prepared: names are looked up, and patterns are tried only up to the ring that the
/// name was found in.
#[derive(Debug, Default)]
pub(super) struct TenantChoice {
    /// The first ring that names the tenant.
    exact: HashMap<Box<str>, usize>,
    /// Rings that take tenants by pattern, or all, in file order.
    open: Vec<(usize, OpenRing)>,
    /// The first ring that lists the tenant, by whatever matcher: whose external labels it has.
    listed: HashMap<Box<str>, usize>,
}

#[derive(Debug)]
enum OpenRing {
    /// Takes every tenant that reaches it.
    All,
    Globs {
        globs: Vec<Glob>,
        malformed: Option<Malformed>,
    },
}

/// A pattern that cannot be matched, and the ring that lists it.
#[derive(Clone, Debug)]
struct Malformed {
    hashring: String,
    pattern: String,
}

impl TenantChoice {
    pub(super) fn new<'a>(rings: impl Iterator<Item = &'a RingOptions>) -> TenantChoice {
        let mut choice = TenantChoice::default();
        for (i, ring) in rings.enumerate() {
            for tenant in &ring.tenants {
                choice.listed.entry(tenant.as_str().into()).or_insert(i);
            }
            if ring.tenants.is_empty() {
                choice.open.push((i, OpenRing::All));
                continue;
            }
            match ring.tenant_matcher {
                TenantMatcher::Unset | TenantMatcher::Exact => {
                    for tenant in &ring.tenants {
                        choice.exact.entry(tenant.as_str().into()).or_insert(i);
                    }
                }
                TenantMatcher::Glob => choice.open.push((i, OpenRing::globs(ring))),
                TenantMatcher::Unknown(_) => {}
            }
        }
        choice
    }

    /// Index of the ring that takes the tenant. A ring with a malformed pattern refuses each tenant
    /// that reaches it and that its good patterns do not take.
    pub(super) fn ring_of(&self, tenant: &str) -> Result<usize, PlacementError> {
        let exact = self.exact.get(tenant).copied();
        for (i, ring) in &self.open {
            if exact.is_some_and(|exact| exact < *i) {
                break;
            }
            match ring {
                OpenRing::All => return Ok(*i),
                OpenRing::Globs { globs, malformed } => {
                    if globs.iter().any(|glob| glob.matches(tenant)) {
                        return Ok(*i);
                    }
                    if let Some(Malformed { hashring, pattern }) = malformed.clone() {
                        return Err(PlacementError::MalformedPattern { hashring, pattern });
                    }
                }
            }
        }
        exact.ok_or(PlacementError::NoHashring)
    }

    /// Index of the first ring that lists the tenant literally.
    pub(super) fn listed(&self, tenant: &str) -> Option<usize> {
        self.listed.get(tenant).copied()
    }
}

impl OpenRing {
    fn globs(ring: &RingOptions) -> OpenRing {
        let mut globs = Vec::new();
        let mut malformed = None;
        for pattern in &ring.tenants {
            match Glob::parse(pattern) {
                Ok(glob) => globs.push(glob),
                Err(MalformedPattern) => {
                    let hashring = ring.name.clone();
                    malformed.get_or_insert(Malformed { hashring, pattern: pattern.clone() });
                }
            }
        }
        OpenRing::Globs { globs, malformed }
    }
}

/// The first pattern of the ring that is malformed.
pub(super) fn malformed_pattern(ring: &RingOptions) -> Option<&str> {
    let is_malformed = |pattern: &&String| Glob::parse(pattern).is_err();
    let by_pattern = ring.tenant_matcher == TenantMatcher::Glob;
    by_pattern.then(|| ring.tenants.iter().find(is_malformed)).flatten().map(String::as_str)
}
