//! One tenant: its database and what queriers see around it.

use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;

use crate::error::chain;
use crate::hashring::{CurrentHashring, Hashring};
use crate::model::tenant::TenantId;
use crate::multi_tsdb::cutter::CutTurns;
use crate::multi_tsdb::merger::MergeTurns;
use crate::multi_tsdb::syncer::SyncLane;
use crate::multi_tsdb::{AppendLane, MultiTsdb, MultiTsdbOptions};
use crate::shipper::ShippedDb;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::compact::Rewriting;
use crate::tsdb::{Db, Opened};

/// A tenant that is open.
pub struct Tenant {
    pub id: TenantId,
    pub db: Arc<Db>,
    /// What is written goes this way.
    pub appends: AppendLane,
    pub(super) syncs: SyncLane,
    pub(super) cuts: CutTurns,
    pub(super) merges: MergeTurns,
    pub(super) external_labels: ExternalLabels,
}

/// Names and values, sorted by name.
pub type LabelSet = Vec<(Vec<u8>, Vec<u8>)>;

impl Tenant {
    /// Added to every series a querier sees: `--label`s, the tenant label, and those of the ring
    /// that names the tenant.
    pub fn external_labels(&self) -> Arc<LabelSet> {
        self.external_labels.under_current_ring(&self.id)
    }
}

/// A tenant as its shipper asks it, for as long as it is open.
pub(super) struct OpenTenant {
    pub(super) tenants: Weak<MultiTsdb>,
    pub(super) id: TenantId,
}

impl OpenTenant {
    fn get(&self) -> Option<Arc<Tenant>> {
        self.tenants.upgrade()?.tenant(&self.id)
    }
}

impl ShippedDb for OpenTenant {
    fn external_labels(&self) -> Arc<LabelSet> {
        self.get().map_or_else(Arc::default, |tenant| tenant.external_labels())
    }

    fn is_settled(&self, block: Ulid) -> bool {
        self.get().is_some_and(|tenant| tenant.db.is_settled(block))
    }

    fn rewrite(&self, blocks: &[Ulid]) -> Vec<(Ulid, Rewriting)> {
        self.get().map_or(Vec::new(), |tenant| tenant.db.ask_to_rewrite(blocks.iter().copied()))
    }
}

/// A tenant's external labels, kept until the rings change.
pub(super) struct ExternalLabels {
    /// `--label`s and the tenant label.
    own: LabelSet,
    rings: Option<CurrentHashring>,
    /// The labels under these rings.
    current: ArcSwap<(Option<Arc<Hashring>>, Arc<LabelSet>)>,
}

impl ExternalLabels {
    pub(super) fn new(options: &MultiTsdbOptions, id: &TenantId) -> ExternalLabels {
        let labels = options.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let tenant = (options.tenant_label_name.as_str(), id.as_str());
        let mut own: LabelSet =
            labels.chain([tenant]).map(|(name, value)| (name.into(), value.into())).collect();
        own.sort();
        let current = ArcSwap::from_pointee((None, Arc::new(own.clone())));
        ExternalLabels { own, rings: options.rings.clone(), current }
    }

    pub(super) fn under_current_ring(&self, id: &TenantId) -> Arc<LabelSet> {
        let hashring = self.rings.as_ref().and_then(CurrentHashring::load);
        let current = self.current.load();
        let is_current = match (&current.0, &hashring) {
            (Some(of), Some(now)) => Arc::ptr_eq(of, now),
            (of, now) => of.is_none() && now.is_none(),
        };
        if is_current {
            return current.1.clone();
        }
        let mut labels = self.own.clone();
        let more = hashring.as_ref().and_then(|hashring| hashring.external_labels(id.as_str()));
        for (name, value) in more.into_iter().flatten() {
            // A name that is already there keeps its value, or a series could carry it twice.
            if !labels.iter().any(|(own, _)| own == name.as_bytes()) {
                labels.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
            }
        }
        labels.sort();
        let labels = Arc::new(labels);
        self.current.store(Arc::new((hashring, labels.clone())));
        labels
    }
}

/// Says what opening found, loudly if anything was damaged.
pub(super) fn log_opened(id: &TenantId, opened: &Opened) {
    let replay = &opened.replay;
    tracing::info!(
        tenant = %id,
        series = opened.db.series_count(),
        samples = replay.samples,
        in_head_chunks = replay.samples_mapped,
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
    for (block, err) in &opened.blocks_set_aside {
        let err = chain(err);
        tracing::error!(tenant = %id, block = %block.display(), err, "a block is not served");
    }
    let bytes = opened.out_of_order_log_bytes;
    if bytes > 0 {
        let message = "the log of out-of-order samples is not served by this version";
        tracing::warn!(tenant = %id, bytes, "{message}");
    }
    if !opened.log.set_aside.is_empty() {
        let set_aside = &opened.log.set_aside;
        tracing::warn!(tenant = %id, ?set_aside, "files in the log's directory were set aside");
    }
    if replay.unknown_refs > 0 {
        let count = replay.unknown_refs;
        tracing::warn!(tenant = %id, count, "the log holds samples of series it does not name");
    }
    if replay.histograms_unusable > 0 {
        let count = replay.histograms_unusable;
        tracing::warn!(tenant = %id, count, "the log holds histograms that contradict themselves");
    }
}
