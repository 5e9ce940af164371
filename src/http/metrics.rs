//! What the write endpoints measure, under Thanos' names.
//!
//! A request costs one look-up by tenant name and some atomic additions: the handles of a tenant
//! and status are made once and kept. Labels hold what senders send, so their number is capped.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use parking_lot::RwLock;

use crate::http::respond::RequestError;
use crate::metrics::{Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, Registry};
use crate::model::tenant::{TenantId, TenantNameError};
use crate::write::WriteOutcome;
use crate::write::error::WriteError;

/// Tenants that get metrics of their own; those beyond share [`OTHER_TENANTS`]. Some 3 KB each.
const TENANTS_MAX: usize = 10_000;

/// The tenant label of requests whose tenant has no valid name. No tenant's name has a slash.
const INVALID_TENANT: &str = "/invalid";
const OTHER_TENANTS: &str = "/other";

const HANDLER: &str = "receive";

/// The answers that [`respond`](crate::http::respond) gives to a write.
const STATUSES: [StatusCode; 8] = [
    StatusCode::OK,
    StatusCode::NO_CONTENT,
    StatusCode::BAD_REQUEST,
    StatusCode::CONFLICT,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::SERVICE_UNAVAILABLE,
];

const DURATION_BUCKETS: [f64; 20] = [
    0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.25, 0.5, 0.75, 1.0,
    2.0, 3.0, 4.0, 5.0,
];
const SIZE_BUCKETS: [f64; 10] =
    [64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0];
const COUNT_BUCKETS: [f64; 7] = [10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10000.0];

struct Families {
    requests: CounterVec,
    duration: HistogramVec,
    request_size: HistogramVec,
    response_size: HistogramVec,
    inflight: GaugeVec,
    timeseries: HistogramVec,
    samples: HistogramVec,
}

/// The metrics of the write endpoints over all tenants.
pub(super) struct WriteMetrics {
    families: Arc<Families>,
    tenants: RwLock<HashMap<Box<[u8]>, Arc<TenantEntry>>>,
    invalid: Arc<TenantMetrics>,
    other: Arc<TenantMetrics>,
    replications: [Counter; 2],
    forward_requests: [Counter; 2],
}

/// A tenant that was named by a request, and its metrics.
pub(super) struct TenantEntry {
    pub(super) id: TenantId,
    pub(super) metrics: Arc<TenantMetrics>,
}

/// The handles of one tenant.
pub(super) struct TenantMetrics {
    families: Arc<Families>,
    tenant: Box<str>,
    inflight: Gauge,
    by_status: [OnceLock<StatusMetrics>; STATUSES.len()],
}

struct StatusMetrics {
    requests: Counter,
    duration: Histogram,
    request_size: Histogram,
    response_size: Histogram,
    /// Made by the first request that reached the storage.
    series_and_samples: OnceLock<(Histogram, Histogram)>,
}

/// Counts a request as in flight; given back on drop, also when the client went away.
pub(super) struct InflightRequest(Gauge);

/// What a request held that reached the storage, stored or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub series: u64,
    pub samples: u64,
}

impl Written {
    /// None of a request without series, which Thanos does not measure either.
    pub(super) fn of(result: &Result<WriteOutcome, RequestError>) -> Option<Written> {
        let written = match result {
            Ok(outcome) => Written {
                series: outcome.series,
                samples: outcome.samples_stored + outcome.refusals.total(),
            },
            Err(RequestError::Write(WriteError::NoQuorum { series, samples, .. })) => {
                Written { series: *series, samples: *samples }
            }
            Err(_) => return None,
        };
        (written.series > 0).then_some(written)
    }
}

/// One finished request.
pub(super) struct Observation {
    pub(super) status: StatusCode,
    pub(super) duration: Duration,
    /// Head and declared body, in bytes.
    pub(super) request_size: u64,
    pub(super) response_size: u64,
}

impl WriteMetrics {
    pub(super) fn new(registry: &Registry) -> WriteMetrics {
        let families = Arc::new(Families::new(registry));
        let results = |name: &str, help| {
            let family = registry.counter_vec(name, help, &["result"]);
            [family.with(&["success"]), family.with(&["error"])]
        };
        WriteMetrics {
            invalid: Arc::new(TenantMetrics::new(&families, INVALID_TENANT)),
            other: Arc::new(TenantMetrics::new(&families, OTHER_TENANTS)),
            tenants: RwLock::default(),
            replications: results(
                "thanos_receive_replications_total",
                "Replicas of write requests, by result.",
            ),
            forward_requests: results(
                "thanos_receive_forward_requests_total",
                "Writes to endpoints, this node's own storage included, by result.",
            ),
            families,
        }
    }

    /// The tenant of this name. It is made at the first request that names it, so the hot path
    /// neither checks the name nor takes memory.
    pub(super) fn tenant(&self, name: &[u8]) -> Result<Arc<TenantEntry>, TenantNameError> {
        if let Some(entry) = self.tenants.read().get(name) {
            return Ok(entry.clone());
        }
        let id = TenantId::parse(name)?;
        let mut tenants = self.tenants.write();
        if let Some(entry) = tenants.get(name) {
            return Ok(entry.clone());
        }
        if tenants.len() >= TENANTS_MAX {
            return Ok(Arc::new(TenantEntry { id, metrics: self.other.clone() }));
        }
        let metrics = Arc::new(TenantMetrics::new(&self.families, id.as_str()));
        let entry = Arc::new(TenantEntry { id, metrics });
        tenants.insert(name.into(), entry.clone());
        Ok(entry)
    }

    /// The metrics of requests whose tenant has no valid name.
    pub(super) fn invalid(&self) -> &Arc<TenantMetrics> {
        &self.invalid
    }

    /// Counts one write that reached the storage. As in Thanos a partly refused one is an error.
    pub(super) fn count_stored(&self, success: bool) {
        let i = usize::from(!success);
        for results in [&self.replications, &self.forward_requests] {
            if let Some(counter) = results.get(i) {
                counter.inc();
            }
        }
    }
}

impl Families {
    fn new(registry: &Registry) -> Families {
        const HTTP: &[&str] = &["code", "handler", "method", "tenant"];
        Families {
            requests: registry.counter_vec("http_requests_total", "HTTP requests.", HTTP),
            duration: registry.histogram_vec(
                "http_request_duration_seconds",
                "Latency of HTTP requests.",
                HTTP,
                &DURATION_BUCKETS,
            ),
            request_size: registry.histogram_vec(
                "http_request_size_bytes",
                "Size of HTTP requests, headers included.",
                HTTP,
                &SIZE_BUCKETS,
            ),
            response_size: registry.histogram_vec(
                "http_response_size_bytes",
                "Size of the bodies of HTTP responses.",
                HTTP,
                &SIZE_BUCKETS,
            ),
            inflight: registry.gauge_vec(
                "http_inflight_requests",
                "HTTP requests being served.",
                &["handler", "method", "tenant"],
            ),
            timeseries: registry.histogram_vec(
                "thanos_receive_write_timeseries",
                "Series per write request.",
                &["code", "tenant"],
                &COUNT_BUCKETS,
            ),
            samples: registry.histogram_vec(
                "thanos_receive_write_samples",
                "Samples per write request.",
                &["code", "tenant"],
                &COUNT_BUCKETS,
            ),
        }
    }
}

impl TenantMetrics {
    fn new(families: &Arc<Families>, tenant: &str) -> TenantMetrics {
        TenantMetrics {
            families: families.clone(),
            tenant: tenant.into(),
            // Upper case here and lower case in the others, as Thanos has it.
            inflight: families.inflight.with(&[HANDLER, "POST", tenant]),
            by_status: Default::default(),
        }
    }

    pub(super) fn begin(&self) -> InflightRequest {
        self.inflight.add(1.0);
        InflightRequest(self.inflight.clone())
    }

    /// `written` is there when the request reached the storage.
    pub(super) fn observe(&self, observation: &Observation, written: Option<Written>) {
        let status = observation.status;
        let slot = STATUSES.iter().position(|known| *known == status);
        let Some(metrics) = slot.and_then(|i| self.by_status.get(i)) else {
            debug_assert!(false, "status {status} has no metrics");
            return;
        };
        let metrics = metrics.get_or_init(|| self.of_status(status));
        metrics.requests.inc();
        metrics.duration.observe(observation.duration.as_secs_f64());
        metrics.request_size.observe(observation.request_size as f64);
        metrics.response_size.observe(observation.response_size as f64);
        if let Some(written) = written {
            let (series, samples) = metrics.series_and_samples.get_or_init(|| {
                let labels = [status.as_str(), &*self.tenant];
                (self.families.timeseries.with(&labels), self.families.samples.with(&labels))
            });
            series.observe(written.series as f64);
            samples.observe(written.samples as f64);
        }
    }

    fn of_status(&self, status: StatusCode) -> StatusMetrics {
        let labels = [status.as_str(), HANDLER, "post", &*self.tenant];
        StatusMetrics {
            requests: self.families.requests.with(&labels),
            duration: self.families.duration.with(&labels),
            request_size: self.families.request_size.with(&labels),
            response_size: self.families.response_size.with(&labels),
            series_and_samples: OnceLock::new(),
        }
    }
}

impl Drop for InflightRequest {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(status: StatusCode) -> Observation {
        let duration = Duration::from_millis(3);
        Observation { status, duration, request_size: 700, response_size: 0 }
    }

    #[test]
    fn a_request_is_counted_under_its_tenant_and_status() {
        let registry = Registry::new();
        let metrics = WriteMetrics::new(&registry);
        let tenant = metrics.tenant(b"a").unwrap();
        let inflight = tenant.metrics.begin();
        let written = Written { series: 20, samples: 30 };
        tenant.metrics.observe(&observation(StatusCode::OK), Some(written));
        tenant.metrics.observe(&observation(StatusCode::CONFLICT), None);
        let page = registry.expose();
        for line in [
            "http_requests_total{code=\"200\",handler=\"receive\",method=\"post\",tenant=\"a\"} 1",
            "http_inflight_requests{handler=\"receive\",method=\"POST\",tenant=\"a\"} 1",
            "thanos_receive_write_timeseries_bucket{code=\"200\",tenant=\"a\",le=\"10\"} 0",
            "thanos_receive_write_timeseries_bucket{code=\"200\",tenant=\"a\",le=\"50\"} 1",
            "thanos_receive_write_samples_sum{code=\"200\",tenant=\"a\"} 30",
            "http_requests_total{code=\"409\",handler=\"receive\",method=\"post\",tenant=\"a\"} 1",
        ] {
            assert!(page.lines().any(|other| other == line), "{line}\n{page}");
        }
        assert!(!page.contains("thanos_receive_write_samples_sum{code=\"409\""));
        drop(inflight);
        let idle = "http_inflight_requests{handler=\"receive\",method=\"POST\",tenant=\"a\"} 0";
        assert!(registry.expose().lines().any(|line| line == idle));
    }

    #[test]
    fn tenants_beyond_the_cap_share_their_metrics() {
        let metrics = WriteMetrics::new(&Registry::new());
        for i in 0..TENANTS_MAX {
            metrics.tenant(format!("t{i}").as_bytes()).unwrap();
        }
        let beyond = metrics.tenant(b"beyond").unwrap();
        assert_eq!(beyond.id.as_str(), "beyond");
        assert_eq!(&*beyond.metrics.tenant, OTHER_TENANTS);
        assert_eq!(&*metrics.tenant(b"t7").unwrap().metrics.tenant, "t7");
        assert_eq!(metrics.tenant(b"a/b").err(), Some(TenantNameError::NotAPathElement));
    }
}
