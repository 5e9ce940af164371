//! What the write endpoints measure, under Thanos' names.
//!
//! A request costs one look-up by tenant name and some atomic additions: the handles of a tenant
//! and status are made once and kept. Labels hold what senders send, so a tenant has some of its own
//! only once something of it was stored or forwarded, and their number is capped.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use parking_lot::RwLock;

use crate::http::respond::RequestError;
use crate::metrics::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, OTHER_TENANTS, Registry,
};
use crate::model::tenant::{TenantId, TenantNameError};
use crate::write::WriteOutcome;
use crate::write::error::WriteError;

/// The tenant label of requests whose tenant has no valid name. No tenant's name has a slash.
const INVALID_TENANT: &str = "/invalid";
/// Of those whose tenant has nothing that was stored or forwarded.
const UNKNOWN_TENANT: &str = "/unknown";

/// Whose requests are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handler {
    Receive,
    Otlp,
}

impl Handler {
    const ALL: [Handler; 2] = [Handler::Receive, Handler::Otlp];

    fn as_str(self) -> &'static str {
        match self {
            Handler::Receive => "receive",
            Handler::Otlp => "otlp",
        }
    }
}

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
    registry: Registry,
    families: Arc<Families>,
    /// Those with metrics of their own.
    tenants: RwLock<HashMap<Box<[u8]>, Arc<TenantEntry>>>,
    invalid: Arc<TenantMetrics>,
    unknown: Arc<TenantMetrics>,
    other: Arc<TenantMetrics>,
}

/// A tenant that was named by a request, and its metrics.
pub(super) struct TenantEntry {
    pub(super) id: TenantId,
    pub(super) metrics: Arc<TenantMetrics>,
    /// Whether something of it was stored or forwarded.
    is_known: bool,
}

/// The handles of one tenant.
pub(super) struct TenantMetrics {
    families: Arc<Families>,
    tenant: Box<str>,
    by_handler: [HandlerMetrics; Handler::ALL.len()],
}

#[derive(Default)]
struct HandlerMetrics {
    /// Made by the first request, as the others are.
    inflight: OnceLock<Gauge>,
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
                // Thanos counts floats alone.
                samples: outcome.written.samples + outcome.refusals.total(),
            },
            Err(RequestError::Write(WriteError::NoQuorum { series, samples, .. })) => {
                Written { series: *series, samples: *samples }
            }
            Err(_) => return None,
        };
        (written.series > 0).then_some(written)
    }
}

/// Whether anything of a request was stored or forwarded.
fn was_taken(result: &Result<WriteOutcome, RequestError>) -> bool {
    match result {
        Ok(outcome) => outcome.samples_stored > 0,
        Err(RequestError::Write(WriteError::NoQuorum { .. })) => true,
        Err(_) => false,
    }
}

/// One finished request.
pub(super) struct Observation {
    pub(super) handler: Handler,
    pub(super) status: StatusCode,
    pub(super) duration: Duration,
    /// Head and declared body, in bytes.
    pub(super) request_size: u64,
    pub(super) response_size: u64,
}

impl WriteMetrics {
    pub(super) fn new(registry: &Registry) -> WriteMetrics {
        let families = Arc::new(Families::new(registry));
        WriteMetrics {
            invalid: Arc::new(TenantMetrics::new(&families, INVALID_TENANT)),
            unknown: Arc::new(TenantMetrics::new(&families, UNKNOWN_TENANT)),
            other: Arc::new(TenantMetrics::new(&families, OTHER_TENANTS)),
            registry: registry.clone(),
            tenants: RwLock::default(),
            families,
        }
    }

    /// The tenant of this name. Of one that is known the name is not checked, and no memory taken.
    pub(super) fn tenant(&self, name: &[u8]) -> Result<Arc<TenantEntry>, TenantNameError> {
        if let Some(entry) = self.tenants.read().get(name) {
            return Ok(entry.clone());
        }
        let (id, metrics) = (TenantId::parse(name)?, self.unknown.clone());
        Ok(Arc::new(TenantEntry { id, metrics, is_known: false }))
    }

    /// What a finished request of a tenant is counted under. Once something was taken, the tenant
    /// has metrics of its own, if it may.
    pub(super) fn of_finished(
        &self,
        tenant: &TenantEntry,
        result: &Result<WriteOutcome, RequestError>,
    ) -> Arc<TenantMetrics> {
        if tenant.is_known || !was_taken(result) {
            return tenant.metrics.clone();
        }
        let id = &tenant.id;
        if !self.registry.has_own_lines(id.as_str()) {
            return self.other.clone();
        }
        let mut tenants = self.tenants.write();
        let entry = tenants.entry(id.as_str().as_bytes().into()).or_insert_with(|| {
            let metrics = Arc::new(TenantMetrics::new(&self.families, id.as_str()));
            Arc::new(TenantEntry { id: id.clone(), metrics, is_known: true })
        });
        entry.metrics.clone()
    }

    /// The metrics of requests whose tenant has no valid name.
    pub(super) fn invalid(&self) -> &Arc<TenantMetrics> {
        &self.invalid
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
            by_handler: Default::default(),
        }
    }

    pub(super) fn begin(&self, handler: Handler) -> InflightRequest {
        let [receive, otlp] = &self.by_handler;
        let metrics = match handler {
            Handler::Receive => receive,
            Handler::Otlp => otlp,
        };
        // Upper case here and lower case in the others, as Thanos has it.
        let labels = [handler.as_str(), "POST", &*self.tenant];
        let inflight = metrics.inflight.get_or_init(|| self.families.inflight.with(&labels));
        inflight.add(1.0);
        InflightRequest(inflight.clone())
    }

    /// `written` is there when the request reached the storage.
    pub(super) fn observe(&self, observation: &Observation, written: Option<Written>) {
        let Observation { handler, status, .. } = *observation;
        let [receive, otlp] = &self.by_handler;
        let by_status = match handler {
            Handler::Receive => &receive.by_status,
            Handler::Otlp => &otlp.by_status,
        };
        let slot = STATUSES.iter().position(|known| *known == status);
        let Some(metrics) = slot.and_then(|i| by_status.get(i)) else {
            debug_assert!(false, "status {status} has no metrics");
            return;
        };
        let metrics = metrics.get_or_init(|| self.of_status(handler, status));
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

    fn of_status(&self, handler: Handler, status: StatusCode) -> StatusMetrics {
        let labels = [status.as_str(), handler.as_str(), "post", &*self.tenant];
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
    use crate::write::error::{Unavailable, no_quorum};

    fn observation(status: StatusCode) -> Observation {
        let duration = Duration::from_millis(3);
        let handler = Handler::Receive;
        Observation { handler, status, duration, request_size: 700, response_size: 0 }
    }

    #[test]
    fn a_request_is_counted_under_its_tenant_and_status() {
        let registry = Registry::new();
        let metrics = WriteMetrics::new(&registry);
        metrics.of_finished(&metrics.tenant(b"a").unwrap(), &stored(1));
        let tenant = metrics.tenant(b"a").unwrap();
        let inflight = tenant.metrics.begin(Handler::Receive);
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

    fn stored(samples_stored: u64) -> Result<WriteOutcome, RequestError> {
        Ok(WriteOutcome { series: 1, samples_stored, ..WriteOutcome::default() })
    }

    /// The label that a request of a tenant is counted under, with this result.
    fn counted_as(
        metrics: &WriteMetrics,
        tenant: &[u8],
        result: &Result<WriteOutcome, RequestError>,
    ) -> String {
        let tenant = metrics.tenant(tenant).unwrap();
        metrics.of_finished(&tenant, result).tenant.to_string()
    }

    #[test]
    fn a_tenant_has_metrics_of_its_own_once_something_was_taken() {
        let registry = Registry::with_tenants_max(2);
        let metrics = WriteMetrics::new(&registry);
        let failed = |error: WriteError| Err(RequestError::Write(error));
        let unavailable = failed(Unavailable::NotAccepting.into());
        let no_quorum = failed(no_quorum(1, 1));
        // Nobody takes memory by a name.
        for i in 0..1000 {
            let name = format!("t{i}");
            assert_eq!(counted_as(&metrics, name.as_bytes(), &stored(0)), UNKNOWN_TENANT);
            assert_eq!(counted_as(&metrics, name.as_bytes(), &unavailable), UNKNOWN_TENANT);
        }
        assert!(metrics.tenants.read().is_empty());
        assert!(!registry.expose().contains("tenant=\"t"));
        assert_eq!(counted_as(&metrics, b"t7", &stored(1)), "t7");
        assert_eq!(counted_as(&metrics, b"t7", &unavailable), "t7", "from then on");
        assert_eq!(counted_as(&metrics, b"forwarded", &no_quorum), "forwarded");
        // Beyond the cap.
        assert_eq!(counted_as(&metrics, b"beyond", &stored(1)), OTHER_TENANTS);
        assert_eq!(metrics.tenant(b"beyond").unwrap().id.as_str(), "beyond");
        assert_eq!(metrics.tenant(b"a/b").err(), Some(TenantNameError::NotAPathElement));
    }
}
