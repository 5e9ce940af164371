//! Queries over all tenants of this node: the series, label names and label values of Thanos' StoreAPI,
//! what this node has, and statistics. It knows no gRPC.
//!
//! A query asks each tenant whose time range and external labels can match. A Series answer is made
//! in [`pieces`]: a client that doesn't read costs a sorted list of series (charged to the
//! [`ReadBudget`](budget::ReadBudget)) and one piece.

pub mod budget;
pub mod error;
pub mod exemplars;
pub mod frames;
pub mod info;
pub mod matchers;
pub mod merge;
pub mod missing;
pub mod pieces;
pub mod selectors;
pub mod slices;
pub(crate) mod sort;
pub mod source;
pub mod status;
pub mod tsdb_store;

#[cfg(test)]
pub(crate) mod fake;

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::model::matcher::Matcher;
use crate::store::budget::ReadBudgetGuard;
use crate::store::error::QueryError;
use crate::store::matchers::WireMatcher;
use crate::store::missing::Missing;
use crate::store::pieces::interrupted;
use crate::store::source::{ReadTenant, Tenants};
use crate::wire::proto::thanos::{LabelNamesRequest, LabelValuesRequest};

/// Names or values of labels, and warnings.
pub type Texts = (Vec<Bytes>, Vec<String>);

/// What a text takes in a sorted set beside its bytes, and in the message made of it.
const TEXT_BYTES: usize = 128;

/// Holds what texts take that are gathered.
fn hold_texts(held: &mut ReadBudgetGuard, texts: &[Vec<u8>]) -> Result<(), QueryError> {
    // Once as they are, and once in the message.
    let bytes: usize = texts.iter().map(|text| 2 * text.len() + TEXT_BYTES).sum();
    held.hold(bytes)
}

/// Label names of all matching tenants, external labels included, sorted, each once, and warnings
/// about tenants that cannot be read.
pub fn label_names(
    tenants: &Tenants,
    request: &LabelNamesRequest,
    held: &mut ReadBudgetGuard,
) -> Result<Texts, QueryError> {
    let matchers = matchers::parse(&request.matchers, held)?;
    let missing =
        Missing::of_request(request.partial_response_disabled, request.partial_response_strategy);
    let unavailable = tenants.unavailable.iter();
    let unavailable = unavailable.filter(|tenant| missing::can_match(tenant, &matchers));
    let mut warnings = missing.settle(missing::warnings(unavailable))?;
    let mut names = BTreeSet::new();
    for tenant in &tenants.open {
        let Some((matchers, in_range)) = ask(&**tenant, &matchers, request.start, request.end)
        else {
            continue;
        };
        if !in_range {
            continue;
        }
        let stored = tenant.reader(request.start, request.end).label_names(&matchers);
        let Some(stored) = missing.read(&**tenant, stored, &mut warnings)? else { continue };
        interrupted()?;
        hold_texts(held, &stored)?;
        if stored.is_empty() {
            continue;
        }
        names.extend(stored);
        let external = tenant.external_labels().iter().map(|(name, _)| name);
        let removed = &request.without_replica_labels;
        names.extend(external.filter(|name| !contains(removed, name)).cloned());
    }
    Ok((limited(names, request.limit), warnings))
}

/// Values of one label over all matching tenants, sorted, each once. An external label has just
/// the one value of its tenant, whatever the tenant's series say. With warnings, as [`label_names`].
pub fn label_values(
    tenants: &Tenants,
    request: &LabelValuesRequest,
    held: &mut ReadBudgetGuard,
) -> Result<Texts, QueryError> {
    if request.label.is_empty() {
        return Err(QueryError::EmptyLabelName);
    }
    let matchers = matchers::parse(&request.matchers, held)?;
    let mut values = BTreeSet::new();
    if contains(&request.without_replica_labels, &request.label) {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut unavailable = Vec::new();
    for tenant in tenants.unavailable.iter().filter(|t| missing::can_match(t, &matchers)) {
        let external = tenant.external_labels.iter().find(|(name, _)| *name == request.label);
        match external {
            // Which it is depends on no series, unless one is asked for.
            Some((_, value)) if is_of_external(&matchers, &tenant.external_labels) => {
                values.insert(value.clone());
            }
            _ => unavailable.push(tenant),
        }
    }
    let missing =
        Missing::of_request(request.partial_response_disabled, request.partial_response_strategy);
    let mut warnings = missing.settle(missing::warnings(unavailable.into_iter()))?;
    for tenant in &tenants.open {
        let Some((matchers, in_range)) = ask(&**tenant, &matchers, request.start, request.end)
        else {
            continue;
        };
        let reader = || tenant.reader(request.start, request.end);
        let external = tenant.external_labels().iter().find(|(name, _)| *name == request.label);
        if let Some((_, value)) = external {
            let has_series = match matchers.is_empty() {
                true => Some(true),
                false => {
                    let selected = reader().select(&matchers).map(|series| !series.is_empty());
                    missing.read(&**tenant, selected, &mut warnings)?
                }
            };
            if has_series == Some(true) {
                values.insert(value.clone());
            }
        } else if in_range {
            let stored = reader().label_values(&request.label, &matchers);
            let Some(stored) = missing.read(&**tenant, stored, &mut warnings)? else { continue };
            interrupted()?;
            hold_texts(held, &stored)?;
            values.extend(stored);
        }
    }
    Ok((limited(values, request.limit), warnings))
}

/// The matchers to ask the tenant's database with, and whether the database holds anything of
/// `[start, end]`; `None` if the tenant has nothing to say: its data begins after `end`, or its
/// external labels don't match.
fn ask(
    tenant: &dyn ReadTenant,
    matchers: &[Matcher],
    start: i64,
    end: i64,
) -> Option<(Vec<Matcher>, bool)> {
    let (mint, maxt) = tenant.time_range().unwrap_or((i64::MAX, i64::MIN));
    if end < mint {
        return None;
    }
    let matchers = tsdb_store::match_external(matchers, tenant.external_labels())?;
    Some((matchers, start <= maxt))
}

/// Whether all matchers are on external labels.
fn is_of_external(matchers: &[Matcher], external: &[(Vec<u8>, Vec<u8>)]) -> bool {
    matchers.iter().all(|matcher| external.iter().any(|(name, _)| *name == matcher.name))
}

fn contains(names: &[Bytes], name: &[u8]) -> bool {
    names.iter().any(|other| *other == name)
}

/// The first `limit`, or all if it is not positive.
fn limited(sorted: BTreeSet<Vec<u8>>, limit: i64) -> Vec<Bytes> {
    let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    sorted.into_iter().take(limit).map(Bytes::from).collect()
}

impl WireMatcher for crate::wire::proto::thanos::LabelMatcher {
    fn parts(&self) -> (i32, &[u8], &[u8]) {
        (self.r#type, &self.name, &self.value)
    }
}

#[cfg(test)]
mod tests;
