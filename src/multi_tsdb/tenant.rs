//! One tenant: its database and what queriers see around it.

use std::sync::Arc;

use crate::model::tenant::TenantId;
use crate::multi_tsdb::MultiTsdbOptions;
use crate::tsdb::{Db, Opened};

/// A tenant that is open.
pub struct Tenant {
    pub id: TenantId,
    pub db: Arc<Db>,
    /// `--label`s and the tenant label, sorted by name: added to every series a querier sees.
    pub external_labels: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) fn external_labels(
    options: &MultiTsdbOptions,
    id: &TenantId,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let labels = options.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let tenant = (options.tenant_label_name.as_str(), id.as_str());
    let mut labels: Vec<(Vec<u8>, Vec<u8>)> =
        labels.chain([tenant]).map(|(name, value)| (name.into(), value.into())).collect();
    labels.sort();
    labels
}

/// Says what opening found, loudly if anything was damaged.
pub(super) fn log_opened(id: &TenantId, opened: &Opened) {
    let replay = &opened.replay;
    tracing::info!(
        tenant = %id,
        series = opened.db.series_count(),
        samples = replay.samples,
        skipped = replay.samples_skipped,
        "TSDB started"
    );
    for (file, damage) in &opened.log.damage {
        tracing::error!(tenant = %id, file = %file.display(), ?damage, "damage in the log");
    }
    if opened.log.damage_count > 0 {
        let (damages, rewritten) = (opened.log.damage_count, &opened.log.rewritten);
        tracing::error!(
            tenant = %id,
            damages,
            ?rewritten,
            "the log was damaged; every readable record was kept"
        );
    }
    if !opened.log.set_aside.is_empty() {
        let set_aside = &opened.log.set_aside;
        tracing::warn!(tenant = %id, ?set_aside, "files in the log's directory were set aside");
    }
    if replay.unknown_refs > 0 {
        let count = replay.unknown_refs;
        tracing::warn!(tenant = %id, count, "the log holds samples of series it does not name");
    }
    if replay.histograms_left > 0 {
        let count = replay.histograms_left;
        tracing::warn!(
            tenant = %id,
            count,
            "native histograms stay in the log and are not served by this version"
        );
    }
}
