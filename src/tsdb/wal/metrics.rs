//! The log's metrics, named as Prometheus names them with Thanos' tenant label.

use crate::metrics::{Counter, CounterVec, Gauge, Histogram, Registry};
use crate::tsdb::wal::Compression;

/// One tenant's handles.
#[derive(Clone)]
pub struct WalMetrics {
    pub fsync_duration: Histogram,
    pub page_flushes: Counter,
    pub completed_pages: Counter,
    pub truncate_duration: Histogram,
    pub truncations: Counter,
    pub truncations_failed: Counter,
    pub checkpoints: Counter,
    pub checkpoints_failed: Counter,
    pub checkpoint_deletions: Counter,
    pub checkpoint_deletions_failed: Counter,
    pub writes_failed: Counter,
    pub segment_current: Gauge,
    pub storage_size: Gauge,
    pub record_part_writes: Counter,
    pub record_parts_bytes_written: Counter,
    pub corruptions: Counter,
    pub ends_lost: Counter,
    pub ends_replaced: Counter,
    pub names_restored: Counter,
    pub names_failed: Counter,
    record_bytes_saved: CounterVec,
    repairs: CounterVec,
    tenant: String,
}

impl WalMetrics {
    pub fn new(registry: &Registry, tenant: &str) -> WalMetrics {
        let counter = |name: &str, help: &'static str| {
            registry.counter_vec(name, help, &["tenant"]).with(&[tenant])
        };
        let gauge = |name: &str, help: &'static str| {
            registry.gauge_vec(name, help, &["tenant"]).with(&[tenant])
        };
        let summary = |name: &str, help: &'static str| {
            registry.summary_vec(name, help, &["tenant"]).with(&[tenant])
        };
        WalMetrics {
            fsync_duration: summary(
                "prometheus_tsdb_wal_fsync_duration_seconds",
                "Time taken to sync the write-ahead log to the medium.",
            ),
            page_flushes: counter(
                "prometheus_tsdb_wal_page_flushes_total",
                "Pages of the write-ahead log written, whole or in part.",
            ),
            completed_pages: counter(
                "prometheus_tsdb_wal_completed_pages_total",
                "Pages of the write-ahead log filled.",
            ),
            truncate_duration: summary(
                "prometheus_tsdb_wal_truncate_duration_seconds",
                "Time taken to put a checkpoint in the place of old segments of the write-ahead log.",
            ),
            truncations: counter(
                "prometheus_tsdb_wal_truncations_total",
                "Truncations of the write-ahead log attempted.",
            ),
            truncations_failed: counter(
                "prometheus_tsdb_wal_truncations_failed_total",
                "Truncations of the write-ahead log that failed.",
            ),
            checkpoints: counter(
                "prometheus_tsdb_checkpoint_creations_total",
                "Checkpoints attempted.",
            ),
            checkpoints_failed: counter(
                "prometheus_tsdb_checkpoint_creations_failed_total",
                "Checkpoints that could not be made.",
            ),
            checkpoint_deletions: counter(
                "prometheus_tsdb_checkpoint_deletions_total",
                "Deletions of older checkpoints attempted.",
            ),
            checkpoint_deletions_failed: counter(
                "prometheus_tsdb_checkpoint_deletions_failed_total",
                "Deletions of older checkpoints that failed.",
            ),
            writes_failed: counter(
                "prometheus_tsdb_wal_writes_failed_total",
                "Appends to the write-ahead log that failed.",
            ),
            segment_current: gauge(
                "prometheus_tsdb_wal_segment_current",
                "Number of the segment that is written to.",
            ),
            storage_size: gauge(
                "prometheus_tsdb_wal_storage_size_bytes",
                "Bytes of the write-ahead log's files.",
            ),
            record_part_writes: counter(
                "prometheus_tsdb_wal_record_part_writes_total",
                "Record fragments written.",
            ),
            record_parts_bytes_written: counter(
                "prometheus_tsdb_wal_record_parts_bytes_written_total",
                "Bytes of record fragments written, headers included.",
            ),
            corruptions: counter(
                "prometheus_tsdb_wal_corruptions_total",
                "Damaged places found in the write-ahead log.",
            ),
            ends_lost: counter(
                "ringest_wal_ends_lost_total",
                "Failed syncs after which the log's unsynced end was neither in memory nor in its \
                 file.",
            ),
            ends_replaced: counter(
                "ringest_wal_ends_replaced_total",
                "Lost ends of the log that were logged again from the head.",
            ),
            names_restored: counter(
                "ringest_wal_names_restored_total",
                "Damaged series records of the log that were put back from their second copy.",
            ),
            names_failed: counter(
                "ringest_wal_names_failed_total",
                "Failures to write the second copy of series records.",
            ),
            record_bytes_saved: registry.counter_vec(
                "prometheus_tsdb_wal_record_bytes_saved_total",
                "Bytes of records saved by compression.",
                &["compression", "tenant"],
            ),
            repairs: registry.counter_vec(
                "ringest_wal_repairs_total",
                "Repairs of the write-ahead log at its opening, by what was found.",
                &["tenant", "case"],
            ),
            tenant: tenant.to_owned(),
        }
    }

    /// The counter of a kind of repair, which exists from the first one on.
    pub(super) fn repairs(&self, case: &str) -> Counter {
        self.repairs.with(&[&self.tenant, case])
    }

    /// The counter of bytes saved, which exists from the first record on.
    pub(super) fn record_bytes_saved(&self, compression: Compression) -> Counter {
        self.record_bytes_saved.with(&[compression.as_str(), &self.tenant])
    }
}
