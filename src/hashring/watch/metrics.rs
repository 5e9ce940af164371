//! What is measured of the hashrings file.

use crate::metrics::{Counter, Gauge, GaugeVec, Registry};

pub(super) struct FileMetrics {
    pub(super) config_hash: Gauge,
    pub(super) controller_hash: Gauge,
    pub(super) last_successful: Gauge,
    pub(super) last_success_seconds: Gauge,
    pub(super) changes: Counter,
    pub(super) errors: Counter,
    pub(super) refreshes: Counter,
    pub(super) nodes: GaugeVec,
    pub(super) tenants: GaugeVec,
    pub(super) warnings: GaugeVec,
    pub(super) held: Gauge,
    pub(super) held_since_seconds: Gauge,
}

impl FileMetrics {
    pub(super) fn new(registry: &Registry) -> FileMetrics {
        FileMetrics {
            config_hash: registry.gauge(
                "thanos_receive_config_hash",
                "SHA-256 of the hashrings file in force, its first 6 bytes.",
            ),
            controller_hash: registry.gauge(
                "ringest_hashrings_controller_hash",
                "MD5 of the hashrings file in force, its first 6 bytes: what \
                 thanos_receive_controller_configmap_hash shows for the same file.",
            ),
            last_successful: registry.gauge(
                "thanos_receive_config_last_reload_successful",
                "Whether the hashrings file could be taken when it was read last.",
            ),
            last_success_seconds: registry.gauge(
                "thanos_receive_config_last_reload_success_timestamp_seconds",
                "When the hashrings file in force was taken.",
            ),
            changes: registry.counter(
                "thanos_receive_hashrings_file_changes_total",
                "Contents of the hashrings file that were taken.",
            ),
            errors: registry.counter(
                "thanos_receive_hashrings_file_errors_total",
                "Contents of the hashrings file that were refused, and errors watching it.",
            ),
            refreshes: registry.counter(
                "thanos_receive_hashrings_file_refreshes_total",
                "Reads of the hashrings file.",
            ),
            nodes: registry.gauge_vec(
                "thanos_receive_hashring_nodes",
                "Nodes of each hashring in the file.",
                &["name"],
            ),
            tenants: registry.gauge_vec(
                "thanos_receive_hashring_tenants",
                "Tenants that each hashring in the file lists.",
                &["name"],
            ),
            warnings: registry.gauge_vec(
                "ringest_hashring_warnings",
                "Flaws of each hashring in the file that was taken all the same.",
                &["name"],
            ),
            held: registry.gauge(
                "ringest_ring_held",
                "Whether the hashrings file is held back, as nothing could be written with it.",
            ),
            held_since_seconds: registry.gauge(
                "ringest_ring_held_since_timestamp_seconds",
                "Since when the hashrings file is held back; 0 if it is not.",
            ),
        }
    }
}
