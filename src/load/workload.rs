//! What is sent: which series there are, who sends them when, and the value of every sample.
//!
//! Everything here is a pure function of the workload, a series and a round, so a sender and a
//! verifier that share nothing but the workload agree on every bit.
//!
//! A *lane* is the share of the series that one connection sends for one tenant. A round sends
//! each series of a lane once, cut into requests. The series of one request in stable order form a
//! *target*: they share the `instance` label, by which verification reads them back.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

/// What the label sets look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Names as a Kubernetes cluster has them; 289 bytes of label text with 12 labels.
    Realistic,
    /// Avalanche's `avalanche_metric_mmmmm_…` with its `label_key_kkkkk_…` labels.
    Avalanche,
}

/// The order of series within a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The same in every round, as real senders do.
    Stable,
    /// Another permutation of the whole lane in every round.
    Shuffled,
}

/// Where the timestamp of a round comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestampSource {
    /// The wall clock when the round begins; it goes into the acknowledgement record.
    Wall,
    /// `start`, then one step per sample, however fast the rounds follow.
    Synthetic,
}

/// Everything that determines the series, their samples and their distribution over requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub shape: Shape,
    /// Number of series alive at any time.
    pub series_count: u32,
    pub labels_per_series: u32,
    /// Samples of each series in one request.
    pub samples_per_series: u32,
    pub series_per_request: u32,
    pub connections: u32,
    /// Tenant names; none means that no tenant header is sent.
    pub tenants: Vec<String>,
    pub tenant_header: String,
    pub order: Order,
    /// Percent of the series that are replaced by new ones per minute of sample time.
    pub churn_percent: f64,
    /// Percent of the samples that are staleness markers.
    pub stale_percent: f64,
    pub timestamps: TimestampSource,
    /// Milliseconds since the Unix epoch: the first synthetic timestamp, and when churn begins.
    pub start: Timestamp,
    /// Milliseconds between the samples of a series.
    pub step: i64,
}

/// Prometheus' staleness marker, a NaN with this payload.
pub(super) const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// Generations are printed with five digits, which keeps a series' label bytes of one length; a
/// series that reaches the last one is replaced no more.
const GENERATION_MAX: u32 = 99_999;

impl Workload {
    /// A million realistic series, 2,000 a request over 4 connections, in stable order.
    pub fn new(start: Timestamp) -> Workload {
        Workload {
            shape: Shape::Realistic,
            series_count: 1_000_000,
            labels_per_series: 12,
            samples_per_series: 1,
            series_per_request: 2_000,
            connections: 4,
            tenants: Vec::new(),
            tenant_header: "THANOS-TENANT".to_owned(),
            order: Order::Stable,
            churn_percent: 0.0,
            stale_percent: 0.0,
            timestamps: TimestampSource::Synthetic,
            start,
            step: 15_000,
        }
    }

    /// What is wrong with the numbers, if anything; the other methods rely on it.
    pub fn check(&self) -> Result<(), String> {
        let lanes = u64::from(self.connections) * self.tenants.len().max(1) as u64;
        if self.connections == 0 || self.series_per_request == 0 || self.samples_per_series == 0 {
            return Err("connections, series and samples per request must be at least 1".to_owned());
        }
        if u64::from(self.series_count) < lanes {
            return Err(format!(
                "{} series cannot be divided among {lanes} pairs of connection and tenant",
                self.series_count
            ));
        }
        if self.step < 1 || self.start < 0 {
            return Err("step must be at least 1 ms, start not before 1970".to_owned());
        }
        Ok(())
    }

    /// How far a round moves the time of a lane, in milliseconds.
    pub fn round_span(&self) -> i64 {
        self.step.saturating_mul(i64::from(self.samples_per_series)).max(1)
    }

    /// Timestamp of the first sample of a synthetic round.
    pub fn synthetic_base(&self, round: u32) -> Timestamp {
        self.start.saturating_add(self.round_span().saturating_mul(i64::from(round)))
    }

    /// Timestamp of sample `k` of a round that begins at `base`.
    pub fn timestamp(&self, base: Timestamp, k: u32) -> Timestamp {
        base.saturating_add(self.step.saturating_mul(i64::from(k)))
    }

    /// How many times the series has been replaced at `base`. Replacements are spread evenly over
    /// the series by a phase of their own.
    pub fn generation(&self, series: u32, base: Timestamp) -> u32 {
        if self.churn_percent <= 0.0 {
            return 0;
        }
        let minutes = (base.saturating_sub(self.start)).max(0) as f64 / 60_000.0;
        let phase = (mix(u64::from(series)) >> 40) as f64 / (1u64 << 24) as f64;
        let replaced = (minutes * self.churn_percent / 100.0 + phase).floor();
        (replaced as u32).min(GENERATION_MAX)
    }

    /// The value of sample `k` of a series in a round, as bits: staleness markers are NaNs.
    pub fn value_bits(&self, series: u32, index_in_target: u32, round: u32, k: u32) -> u64 {
        let n = u64::from(round) * u64::from(self.samples_per_series) + u64::from(k);
        let noise = mix(u64::from(series) << 32 ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if self.stale_percent > 0.0 && (noise % 100_000) as f64 / 1_000.0 < self.stale_percent {
            return STALE_NAN_BITS;
        }
        let value = match self.kind(index_in_target) {
            // Proto3 leaves the zero out, so these samples are 9 bytes instead of 18.
            Kind::Idle => 0.0,
            Kind::Counter => {
                let pace = 1 + u64::from(series) % 997;
                (1_000 + n.wrapping_mul(pace) + noise % pace) as f64
            }
            Kind::Gauge => 20.0 + (noise % 6_000) as f64 / 100.0,
        };
        value.to_bits()
    }

    /// The label set of a series, sorted by name.
    pub fn labels(
        &self,
        target: u32,
        index_in_target: u32,
        generation: u32,
    ) -> Vec<(String, String)> {
        let mut labels = match self.shape {
            Shape::Realistic => realistic_labels(target, index_in_target, generation),
            Shape::Avalanche => avalanche_labels(target, index_in_target, generation),
        };
        let wanted = (self.labels_per_series as usize).max(LABELS_MIN);
        labels.truncate(wanted);
        for extra in labels.len()..wanted {
            let label = match self.shape {
                Shape::Realistic => {
                    (format!("label_{extra:02}"), format!("value-{extra:02}-{target:05}"))
                }
                Shape::Avalanche => {
                    let key = extra - LABELS_MIN;
                    (format!("label_key_kkkkk_{key}"), format!("label_val_vvvvv_{key}"))
                }
            };
            labels.push(label);
        }
        labels.sort_unstable();
        labels
    }

    /// The lanes, ordered by connection, then tenant.
    pub fn lanes(&self) -> Vec<Lane> {
        let tenant_count = self.tenants.len().max(1) as u64;
        let lane_count = u64::from(self.connections.max(1)) * tenant_count;
        let bound = |lane: u64| (u64::from(self.series_count) * lane / lane_count) as u32;
        let mut first_target = 0;
        (0..lane_count)
            .map(|lane| {
                let series = bound(lane)..bound(lane + 1);
                let request_count = (series.end - series.start).div_ceil(self.series_per_request);
                let lane = Lane {
                    connection: (lane / tenant_count) as u32,
                    tenant: self.tenants.get((lane % tenant_count) as usize).cloned(),
                    series,
                    series_per_request: self.series_per_request,
                    first_target,
                    request_count,
                };
                first_target += request_count;
                lane
            })
            .collect()
    }

    fn kind(&self, index_in_target: u32) -> Kind {
        match self.shape {
            Shape::Realistic => METRICS[index_in_target as usize % METRICS.len()].1,
            Shape::Avalanche => {
                [Kind::Idle, Kind::Counter, Kind::Gauge][index_in_target as usize % 3]
            }
        }
    }
}

/// The series that one connection sends for one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    pub connection: u32,
    pub tenant: Option<String>,
    pub series: Range<u32>,
    pub series_per_request: u32,
    /// The lane's request 0 in stable order is this target of the workload.
    pub first_target: u32,
    pub request_count: u32,
}

impl Lane {
    pub fn series_count(&self) -> u32 {
        self.series.end - self.series.start
    }

    /// Positions within the round that request `request` carries.
    pub fn positions(&self, request: u32) -> Range<u32> {
        let first = request.saturating_mul(self.series_per_request);
        let end = first.saturating_add(self.series_per_request).min(self.series_count());
        first.min(end)..end
    }

    /// Target and place in it of the lane's series `index`.
    pub fn place(&self, index: u32) -> (u32, u32) {
        (self.first_target + index / self.series_per_request, index % self.series_per_request)
    }
}

/// The order of a lane's series in one round: position p holds series (multiplier · p + offset)
/// mod count, which is a permutation with a cheap inverse since the multiplier has no common
/// divisor with count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    count: u64,
    multiplier: u64,
    inverse: u64,
    offset: u64,
}

impl Permutation {
    pub(super) fn new(order: Order, lane: &Lane, round: u32) -> Permutation {
        let count = u64::from(lane.series_count()).max(1);
        if order == Order::Stable {
            return Permutation { count, multiplier: 1, inverse: 1, offset: 0 };
        }
        let random = mix(u64::from(lane.first_target) << 32 | u64::from(round));
        let mut multiplier = (random >> 32) % count;
        loop {
            if let Some(inverse) = inverse_modulo(multiplier, count) {
                return Permutation { count, multiplier, inverse, offset: random % count };
            }
            multiplier = (multiplier + 1) % count;
        }
    }

    /// The lane's series at a position.
    pub(super) fn series_at(&self, position: u32) -> u32 {
        ((u64::from(position) * self.multiplier + self.offset) % self.count) as u32
    }

    /// The position of a series of the lane.
    pub(super) fn position_of(&self, series: u32) -> u32 {
        ((u64::from(series) + self.count - self.offset) % self.count * self.inverse % self.count)
            as u32
    }
}

/// The number that times `a` is 1 modulo `n`, by Euclid's algorithm.
fn inverse_modulo(a: u64, n: u64) -> Option<u64> {
    let (mut old_r, mut r) = (a as i128, n as i128);
    let (mut old_s, mut s) = (1i128, 0i128);
    while r != 0 {
        let quotient = old_r / r;
        (old_r, r) = (r, old_r - quotient * r);
        (old_s, s) = (s, old_s - quotient * s);
    }
    (old_r == 1).then(|| old_s.rem_euclid(n as i128) as u64)
}

/// SplitMix64's finalizer: every input bit reaches every output bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A counter that never counts: a third of real series.
    Idle,
    Counter,
    Gauge,
}

/// The labels that make a series unique and findable come first in each shape and are never cut.
pub(super) const LABELS_MIN: usize = 4;

/// The label that all series of a target share.
pub(super) const TARGET_LABEL: &str = "instance";

/// Value of [`TARGET_LABEL`].
pub(super) fn target_label_value(target: u32) -> String {
    let [_, a, b, c] = target.to_be_bytes();
    format!("10.{a}.{b}.{c}:9100")
}

const METRICS: [(&str, Kind); 24] = [
    ("node_network_receive_errs_total", Kind::Idle),
    ("node_network_receive_bytes_total", Kind::Counter),
    ("node_filesystem_avail_bytes", Kind::Gauge),
    ("node_network_transmit_drop_total", Kind::Idle),
    ("node_cpu_seconds_total", Kind::Counter),
    ("node_memory_MemAvailable_bytes", Kind::Gauge),
    ("node_disk_flush_requests_total", Kind::Idle),
    ("node_disk_written_bytes_total", Kind::Counter),
    ("node_load1", Kind::Gauge),
    ("container_cpu_cfs_throttled_periods_total", Kind::Idle),
    ("container_cpu_usage_seconds_total", Kind::Counter),
    ("container_memory_working_set_bytes", Kind::Gauge),
    ("container_network_receive_packets_dropped_total", Kind::Idle),
    ("container_network_transmit_bytes_total", Kind::Counter),
    ("container_memory_rss", Kind::Gauge),
    ("kube_pod_container_status_restarts_total", Kind::Idle),
    ("kubelet_http_requests_total", Kind::Counter),
    ("kubelet_running_pods", Kind::Gauge),
    ("rest_client_rate_limiter_retries_total", Kind::Idle),
    ("rest_client_requests_total", Kind::Counter),
    ("workqueue_depth", Kind::Gauge),
    ("apiserver_dropped_requests_total", Kind::Idle),
    ("apiserver_request_total", Kind::Counter),
    ("process_open_fds", Kind::Gauge),
];

fn realistic_labels(target: u32, index: u32, generation: u32) -> Vec<(String, String)> {
    let [_, a, b, c] = target.to_be_bytes();
    let metric = METRICS[index as usize % METRICS.len()].0;
    let device = index / METRICS.len() as u32;
    let replica_set = (mix(u64::from(target)) & 0xffff_ffff) as u32;
    [
        ("__name__", metric.to_owned()),
        (TARGET_LABEL, target_label_value(target)),
        ("device", format!("eth{device}")),
        ("pod", format!("node-exporter-{replica_set:08x}-{generation:05}")),
        ("cluster", "prod-eu-west-1".to_owned()),
        ("container", "node-exporter".to_owned()),
        ("endpoint", "https-metrics".to_owned()),
        ("job", "node-exporter".to_owned()),
        ("namespace", "monitoring".to_owned()),
        ("node", format!("ip-10-{a}-{b}-{c}.eu-west-1.internal")),
        ("prometheus", "monitoring/k8s".to_owned()),
        ("service", "prometheus-node-exporter".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

fn avalanche_labels(target: u32, index: u32, generation: u32) -> Vec<(String, String)> {
    [
        ("__name__", format!("avalanche_gauge_metric_mmmmm_0_{}", index % 500)),
        (TARGET_LABEL, target_label_value(target)),
        ("series_id", (index / 500).to_string()),
        ("cycle_id", format!("{generation:05}")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn realistic_series_have_the_described_label_text() {
        let workload = Workload::new(0);
        let mut total = 0;
        for target in 0..500 {
            for index in 0..24 {
                let labels = workload.labels(target, index, 0);
                assert_eq!(labels.len(), 12);
                assert!(labels.is_sorted_by(|a, b| a.0 < b.0), "{labels:?}");
                total += labels.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>();
            }
        }
        let mean = total / (500 * 24);
        assert!((284..=294).contains(&mean), "{mean} bytes of label text");
    }

    #[test]
    fn label_sets_are_distinct_at_every_label_count() {
        for shape in [Shape::Realistic, Shape::Avalanche] {
            for labels_per_series in [1, 4, 12, 30] {
                let workload = Workload { shape, labels_per_series, ..Workload::new(0) };
                let mut seen = HashSet::new();
                for target in [0, 1, 77_777] {
                    for index in 0..600 {
                        for generation in [0, 1] {
                            let labels = workload.labels(target, index, generation);
                            assert!(labels.is_sorted_by(|a, b| a.0 < b.0), "{labels:?}");
                            assert!(seen.insert(labels));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_third_of_the_values_are_zero_and_counters_rise() {
        let workload = Workload::new(0);
        let zeros = (0..2_400).filter(|&i| workload.value_bits(i, i, 5, 0) == 0).count();
        assert_eq!(zeros, 800);
        for series in 0..500 {
            let values =
                (0..50).map(|round| f64::from_bits(workload.value_bits(series, 1, round, 0)));
            assert!(values.is_sorted());
        }
    }

    #[test]
    fn staleness_markers_come_at_the_wanted_rate() {
        let workload = Workload { stale_percent: 10.0, ..Workload::new(0) };
        let stale = (0..100_000)
            .filter(|&series| workload.value_bits(series, 0, 3, 0) == STALE_NAN_BITS)
            .count();
        assert!((9_500..10_500).contains(&stale), "{stale}");
    }

    #[test]
    fn churn_replaces_the_wanted_share_per_minute() {
        let workload = Workload { churn_percent: 5.0, ..Workload::new(1_000_000) };
        let replaced = (0..100_000)
            .filter(|&s| workload.generation(s, 1_060_000) != workload.generation(s, 1_000_000))
            .count();
        assert!((4_800..5_200).contains(&replaced), "{replaced}");
    }

    #[test]
    fn permutations_hit_every_series_once_and_invert() {
        for count in [1, 2, 6, 2_000, 4_997] {
            let workload = Workload {
                series_count: count,
                connections: 1,
                series_per_request: 100,
                ..Workload::new(0)
            };
            let lane = &workload.lanes()[0];
            for order in [Order::Stable, Order::Shuffled] {
                for round in 0..5 {
                    let permutation = Permutation::new(order, lane, round);
                    let mut seen = HashSet::new();
                    for position in 0..count {
                        let series = permutation.series_at(position);
                        assert!(series < count && seen.insert(series));
                        assert_eq!(permutation.position_of(series), position);
                    }
                }
            }
        }
    }

    #[test]
    fn lanes_cover_all_series_and_targets_once() {
        let workload = Workload {
            series_count: 10_007,
            connections: 3,
            tenants: vec!["a".to_owned(), "b".to_owned()],
            series_per_request: 500,
            ..Workload::new(0)
        };
        let lanes = workload.lanes();
        let (mut series, mut target) = (0, 0);
        for lane in &lanes {
            assert_eq!((lane.series.start, lane.first_target), (series, target));
            let carried: u32 =
                (0..lane.request_count).map(|r| lane.positions(r).len() as u32).sum();
            assert_eq!(carried, lane.series_count());
            series = lane.series.end;
            target += lane.request_count;
        }
        assert_eq!(series, 10_007);
        assert_eq!(lanes[3].connection, 1);
        assert_eq!(lanes[3].tenant.as_deref(), Some("b"));
    }
}
