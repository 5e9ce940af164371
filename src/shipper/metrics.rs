//! What is counted of shipping: Thanos' families, and what is held back.

use crate::metrics::{Counter, Gauge, Registry};
use crate::shipper::plan::HeldBack;

/// Of one tenant.
pub struct ShipperMetrics {
    pub(super) syncs: Counter,
    pub(super) sync_failures: Counter,
    pub(super) uploads: Counter,
    pub(super) upload_failures: Counter,
    pub(super) corrupted: Counter,
    /// Blocks that are still to be shipped.
    pub(super) pending: Gauge,
    /// Blocks that cannot be read.
    pub(super) damaged: Gauge,
    held_back: Vec<(HeldBack, Gauge)>,
}

impl ShipperMetrics {
    pub fn new(registry: &Registry, tenant: &str) -> ShipperMetrics {
        let counter = |name, help| registry.counter_vec(name, help, &["tenant"]).with(&[tenant]);
        let gauge = |name, help| registry.gauge_vec(name, help, &["tenant"]).with(&[tenant]);
        gauge(
            "thanos_shipper_upload_compacted_done",
            "If 1 it means shipper uploaded all compacted blocks from the filesystem.",
        );
        let held_back = registry.gauge_vec(
            "ringest_shipper_blocks_held_back",
            "Blocks that are not shipped: damaged, compacted (above level 1), with tombstones until they \
             are rewritten, not_rewritten where this version cannot, or of an encoding that Thanos \
             cannot read.",
            &["reason", "tenant"],
        );
        ShipperMetrics {
            syncs: counter("thanos_shipper_dir_syncs_total", "Total number of dir syncs"),
            sync_failures: counter(
                "thanos_shipper_dir_sync_failures_total",
                "Total number of failed dir syncs",
            ),
            uploads: counter("thanos_shipper_uploads_total", "Total number of uploaded blocks"),
            upload_failures: counter(
                "thanos_shipper_upload_failures_total",
                "Total number of block upload failures",
            ),
            corrupted: counter(
                "thanos_shipper_corrupted_blocks_total",
                "Total number of corrupted blocks",
            ),
            pending: gauge(
                "ringest_shipper_blocks_pending",
                "Blocks that are still to be shipped.",
            ),
            damaged: held_back.with(&["damaged", tenant]),
            held_back: HeldBack::ALL
                .map(|reason| (reason, held_back.with(&[reason.as_str(), tenant])))
                .into(),
        }
    }

    /// Shows how many blocks that can be read are held back.
    pub(super) fn show_held_back(&self, held_back: impl Fn(HeldBack) -> usize) {
        for (reason, gauge) in &self.held_back {
            gauge.set(held_back(*reason) as f64);
        }
    }
}
