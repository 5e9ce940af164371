//! Exemplars of all tenants that an expression's selectors are about.

use crate::model::labels::LabelIter;
use crate::model::matcher::Matcher;
use crate::store::budget::ReadBudgetGuard;
use crate::store::error::QueryError;
use crate::store::matchers;
use crate::store::missing::{self, Missing};
use crate::store::pieces::interrupted;
use crate::store::selectors::selectors;
use crate::store::source::Tenants;
use crate::store::tsdb_store::{FinalLabels, match_external, shared_texts};
use crate::tsdb::exemplars::SeriesExemplars;
use crate::wire::proto::thanos::{Exemplar, ExemplarData, ExemplarsRequest, Label, LabelSet};

/// The exemplars of each tenant's series, tenant by tenant, and warnings about tenants that cannot be
/// read. What the answer takes is held before it is made.
pub fn exemplars(
    tenants: &Tenants,
    request: &ExemplarsRequest,
    held: &mut ReadBudgetGuard,
) -> Result<(Vec<ExemplarData>, Vec<String>), QueryError> {
    // What is copied out of it.
    held.hold(request.query.len())?;
    let sets = selectors(&request.query)?;
    let sets: Vec<Vec<Matcher>> =
        sets.iter().map(|set| matchers::parse(set, held)).collect::<Result<_, _>>()?;
    let missing = Missing::of_request(false, request.partial_response_strategy);
    let unavailable = tenants.unavailable.iter();
    let unavailable =
        unavailable.filter(|tenant| sets.iter().any(|set| missing::can_match(tenant, set)));
    let warnings = missing.settle(missing::warnings(unavailable))?;
    let mut found = Vec::new();
    for tenant in &tenants.open {
        let external = tenant.external_labels();
        let asked = sets.iter().filter_map(|set| match_external(set, external));
        let (of_external, asked): (Vec<_>, Vec<_>) = asked.partition(Vec::is_empty);
        if asked.is_empty() {
            match of_external.is_empty() {
                true => continue,
                false => return Err(QueryError::NoSelectors { tenant: tenant.name().to_owned() }),
            }
        }
        // Once as it is stored, and once in the message.
        let hold = |bytes: usize| held.hold(2 * bytes);
        let selected = tenant.exemplars().select(&asked, (request.start, request.end), hold)?;
        interrupted()?;
        let labels = FinalLabels::new(external, &[]);
        found.extend(selected.iter().map(|series| data_of(series, &labels)));
    }
    Ok((found, warnings))
}

fn data_of(series: &SeriesExemplars, external: &FinalLabels) -> ExemplarData {
    let exemplars = series.exemplars.iter().map(|exemplar| Exemplar {
        labels: Some(label_set(LabelIter::of_canonical(&exemplar.labels))),
        value: f64::from_bits(exemplar.v),
        ts: exemplar.t,
    });
    let exemplars = exemplars.collect();
    let series_labels = label_set(external.over(series.key.labels()));
    ExemplarData { series_labels: Some(series_labels), exemplars }
}

fn label_set<'l>(labels: impl Iterator<Item = (&'l [u8], &'l [u8])> + Clone) -> LabelSet {
    let labels = shared_texts(labels).map(|(name, value)| Label { name, value });
    LabelSet { labels: labels.collect() }
}
