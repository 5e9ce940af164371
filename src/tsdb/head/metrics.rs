//! What a head counts, under Prometheus' names.

use crate::metrics::{Counter, CounterVec, Gauge, Registry};
use crate::tsdb::head::append::Refusal;

/// Values of the label `type`.
const FLOAT: &str = "float";
const HISTOGRAM: &str = "histogram";

pub struct HeadMetrics {
    pub series: Gauge,
    pub series_created: Counter,
    pub series_removed: Counter,
    pub chunks: Gauge,
    pub chunks_created: Counter,
    pub chunks_removed: Counter,
    /// Floats.
    pub samples_appended: Counter,
    pub histograms_appended: Counter,
    pub min_time: Gauge,
    pub max_time: Gauge,
    pub lowest_timestamp: Gauge,
    pub replay_seconds: Gauge,
    out_of_order: ByType,
    out_of_bounds: ByType,
    too_far_in_future: LazyCounter,
    duplicate_for_timestamp: LazyCounter,
    too_many_series: LazyCounter,
}

/// A counter that appears on the page with its first count, as Prometheus' do.
struct LazyCounter {
    family: CounterVec,
    tenant: String,
    /// The value of the other label.
    value: &'static str,
}

/// Of floats, and of histograms.
struct ByType {
    floats: LazyCounter,
    histograms: LazyCounter,
}

impl ByType {
    fn add(&self, floats: u64, histograms: u64) {
        self.floats.add(floats);
        self.histograms.add(histograms);
    }
}

impl LazyCounter {
    fn add(&self, count: u64) {
        if count > 0 {
            self.family.with(&[&self.tenant, self.value]).add(count);
        }
    }
}

impl HeadMetrics {
    pub fn new(registry: &Registry, tenant: &str) -> HeadMetrics {
        let gauge = |name, help| registry.gauge_vec(name, help, &["tenant"]).with(&[tenant]);
        let counter = |name, help| registry.counter_vec(name, help, &["tenant"]).with(&[tenant]);
        let by_type = |name, help| registry.counter_vec(name, help, &["tenant", "type"]);
        let lazy = |name, help| {
            let of =
                |value| LazyCounter { family: by_type(name, help), tenant: tenant.into(), value };
            ByType { floats: of(FLOAT), histograms: of(HISTOGRAM) }
        };
        let appended = by_type(
            "prometheus_tsdb_head_samples_appended_total",
            "Total number of appended samples.",
        );
        let refused = registry.counter_vec(
            "ringest_head_samples_refused_total",
            "Samples refused for reasons that Prometheus has no counters for: too_many_series means \
             that --tsdb.head-series-max is reached.",
            &["tenant", "reason"],
        );
        let refused = |value| LazyCounter { family: refused.clone(), tenant: tenant.into(), value };
        HeadMetrics {
            series: gauge(
                "prometheus_tsdb_head_series",
                "Total number of series in the head block.",
            ),
            series_created: counter(
                "prometheus_tsdb_head_series_created_total",
                "Total number of series created in the head.",
            ),
            series_removed: counter(
                "prometheus_tsdb_head_series_removed_total",
                "Total number of series removed in the head.",
            ),
            chunks: gauge(
                "prometheus_tsdb_head_chunks",
                "Total number of chunks in the head block.",
            ),
            chunks_created: counter(
                "prometheus_tsdb_head_chunks_created_total",
                "Total number of chunks created in the head.",
            ),
            chunks_removed: counter(
                "prometheus_tsdb_head_chunks_removed_total",
                "Total number of chunks removed in the head.",
            ),
            samples_appended: appended.with(&[tenant, FLOAT]),
            histograms_appended: appended.with(&[tenant, HISTOGRAM]),
            min_time: gauge(
                "prometheus_tsdb_head_min_time",
                "Minimum time bound of the head block, in milliseconds.",
            ),
            max_time: gauge(
                "prometheus_tsdb_head_max_time",
                "Maximum timestamp of the head block, in milliseconds.",
            ),
            lowest_timestamp: gauge(
                "prometheus_tsdb_lowest_timestamp",
                "Lowest timestamp value stored in the database, in milliseconds.",
            ),
            replay_seconds: gauge(
                "prometheus_tsdb_data_replay_duration_seconds",
                "Time taken to replay the data on disk.",
            ),
            out_of_order: lazy(
                "prometheus_tsdb_out_of_order_samples_total",
                "Total number of out of order samples ingestion failed attempts.",
            ),
            out_of_bounds: lazy(
                "prometheus_tsdb_out_of_bound_samples_total",
                "Total number of out of bound samples ingestion failed attempts.",
            ),
            too_far_in_future: refused("too_far_in_future"),
            duplicate_for_timestamp: refused("duplicate_for_timestamp"),
            too_many_series: refused("too_many_series"),
        }
    }

    pub fn count_refusals(&self, refusal: Refusal, floats: u64, histograms: u64) {
        let all = floats + histograms;
        match refusal {
            Refusal::OutOfOrder => self.out_of_order.add(floats, histograms),
            Refusal::OutOfBounds => self.out_of_bounds.add(floats, histograms),
            Refusal::TooFarInFuture => self.too_far_in_future.add(all),
            Refusal::DuplicateForTimestamp => self.duplicate_for_timestamp.add(all),
            Refusal::TooManySeries => self.too_many_series.add(all),
        }
    }
}
