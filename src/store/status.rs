//! How many series, label values and bytes of label text each tenant has.
//!
//! The figures are Prometheus' TSDB statistics. They are counted when asked for, in one pass over
//! the tenant's series: nobody pays for them who doesn't ask.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::model::labels::METRIC_NAME;
use crate::model::matcher::{MatchOp, Matcher};
use crate::model::stop;
use crate::store::budget::{ReadBudget, ReadBudgetGuard};
use crate::store::error::QueryError;
use crate::store::matchers;
use crate::store::missing::{self, Missing};
use crate::store::pieces::interrupted;
use crate::store::source::{ReadTenant, TenantSource};
use crate::tsdb::querier::SelectedSeries;
use crate::wire::proto::thanos::{
    HeadStatistics, Statistic, TsdbStatistics, TsdbStatisticsEntry, TsdbStatisticsRequest,
};

/// What Go takes for a string beside its text; Prometheus counts it, twice per label.
const GO_STRING_BYTES: u64 = 16;

/// The counting charges its memory to the budget for so many label pairs at a time.
const CHARGED_PAIRS: usize = 4096;

/// What a label pair costs in a hash map, roughly.
const PAIR_BYTES: usize = 64;

/// The statistics that are asked for, and warnings about tenants that cannot be read.
pub fn statistics(
    source: &dyn TenantSource,
    request: &TsdbStatisticsRequest,
    budget: &ReadBudget,
) -> Result<(TsdbStatistics, Vec<String>), QueryError> {
    let limit = usize::try_from(request.limit)
        .map_err(|_| QueryError::NegativeLimit(i64::from(request.limit)))?;
    let mut programs = budget.begin();
    let matchers = matchers::parse(&request.matchers, &mut programs)?;
    let tenants = source.tenants();
    let is_asked = |name: &str| request.tenant.is_empty() || request.tenant == name;
    let missing = tenants.unavailable.iter().filter(|tenant| {
        is_asked(tenant.id.as_str()) && matches(&matchers, &tenant.external_labels)
    });
    let warnings = Missing::of_request(false, request.partial_response_strategy)
        .settle(missing::warnings(missing))?;
    let mut statistics = BTreeMap::new();
    for tenant in tenants.open {
        if is_asked(tenant.name()) && matches(&matchers, tenant.external_labels()) {
            let entry = count(&*tenant, limit, &mut budget.begin())?;
            statistics.insert(tenant.name().to_owned(), entry);
        }
    }
    Ok((TsdbStatistics { statistics }, warnings))
}

/// A label that the tenant doesn't have is empty.
fn matches(matchers: &[Matcher], external: &[(Vec<u8>, Vec<u8>)]) -> bool {
    matchers.iter().all(|matcher| {
        let value = external.iter().find(|(name, _)| *name == matcher.name);
        matcher.matches(value.map_or(&[], |(_, value)| value))
    })
}

/// The statistics of one tenant's head, each list cut to its `limit` largest.
pub fn count(
    tenant: &dyn ReadTenant,
    limit: usize,
    held: &mut ReadBudgetGuard,
) -> Result<TsdbStatisticsEntry, QueryError> {
    let (min_time, max_time) = tenant.head_time_range().unwrap_or((i64::MAX, 0));
    // Every series has a name, be it empty.
    let every = Matcher::new(MatchOp::Regex, METRIC_NAME, b".*")?;
    let series = tenant.head_reader().select(&[every])?;
    held.hold(series.iter().map(SelectedSeries::bytes).sum())?;
    let mut by_name: HashMap<&[u8], HashMap<&[u8], u64>> = HashMap::new();
    let mut pairs = 0;
    let counted = series.iter().take_while(|_| !stop::is_asked());
    for (name, value) in counted.flat_map(|series| series.labels.iter()) {
        let count = by_name.entry(name).or_default().entry(value).or_default();
        *count += 1;
        if *count == 1 {
            if pairs % CHARGED_PAIRS == 0 {
                held.hold(CHARGED_PAIRS * PAIR_BYTES)?;
            }
            pairs += 1;
        }
    }
    interrupted()?;
    let metrics = by_name.get(METRIC_NAME).into_iter().flatten();
    let names = || by_name.iter();
    let of_pair = |(name, value): (&[u8], &[u8])| [name, b"=", value].concat();
    let flat = names().flat_map(|(name, values)| {
        values.iter().map(move |(value, count)| ((*name, *value), *count))
    });
    Ok(TsdbStatisticsEntry {
        head_statistics: Some(HeadStatistics {
            num_series: series.len() as u64,
            num_label_pairs: pairs as i64,
            // Thanos leaves it out of its answer.
            chunk_count: 0,
            min_time,
            max_time,
        }),
        series_count_by_metric_name: largest(
            metrics.map(|(name, count)| (*name, *count)),
            limit,
            <[u8]>::to_vec,
        ),
        label_value_count_by_label_name: largest(
            names().map(|(name, values)| (*name, values.len() as u64)),
            limit,
            <[u8]>::to_vec,
        ),
        memory_in_bytes_by_label_name: largest(
            names().map(|(name, values)| (*name, label_bytes(name, values))),
            limit,
            <[u8]>::to_vec,
        ),
        series_count_by_label_value_pair: largest(flat, limit, of_pair),
    })
}

fn label_bytes(name: &[u8], values: &HashMap<&[u8], u64>) -> u64 {
    let bytes_of = |(value, count): (&&[u8], &u64)| {
        count * (name.len() as u64 + value.len() as u64 + 2 * GO_STRING_BYTES)
    };
    values.iter().map(bytes_of).sum()
}

/// The `limit` largest, largest first, equal ones by name.
fn largest<N: Ord>(
    counts: impl Iterator<Item = (N, u64)>,
    limit: usize,
    text: impl Fn(N) -> Vec<u8>,
) -> Vec<Statistic> {
    let mut counts: Vec<_> = counts.map(|(name, count)| (std::cmp::Reverse(count), name)).collect();
    counts.sort_unstable();
    counts.truncate(limit);
    let counts = counts.into_iter();
    counts
        .map(|(count, name)| Statistic { name: Bytes::from(text(name)), value: count.0 })
        .collect()
}
