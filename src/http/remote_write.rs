//! The remote-write endpoints: the stages of one write request, in order.
//!
//! `POST /api/v1/receive` has the manners of Thanos, `POST /api/v1/write` those of Prometheus' own
//! receiver. Both take remote write 1.0 and 2.0. A request of 2.0 is made one of 1.0 here, and what
//! is behind does not know which it was; its sender is told what was written, whatever the answer.
//! OTLP metrics are taken on two more paths, and become such a request as well.

mod body;
mod negotiation;
mod otlp;
mod resolve;

use std::mem::Discriminant;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::Method;
use http::header::{HeaderName, InvalidHeaderName};
use http::request::Parts;
use http_body::Body as _;
use tokio::time::Instant;

use crate::http::metrics::{Handler, Observation, TenantEntry, WriteMetrics, Written};
use crate::http::path::{self, Resolved, Tolerance};
use crate::http::remote_write::body::REQUEST_BYTES_MIN;
use crate::http::remote_write::negotiation::{
    Version, check_media_type, check_version, replica, speaks_version_2,
};
use crate::http::remote_write::otlp::OtlpPath;
use crate::http::remote_write::resolve::Symbolic;
use crate::http::respond::RequestError;
use crate::http::tenant::TenantRules;
use crate::http::{Probe, respond, status};
use crate::log::throttle::Throttle;
use crate::metrics::Registry;
use crate::model::tenant::TenantNameError;
use crate::wire::otlp::Untranslated;
use crate::wire::remote_write_v1::DecodeError;
use crate::wire::snappy::{self, BufferPool, SnappyError};
use crate::write::admission::{Admission, InflightGuard, share};
use crate::write::error::{Invalid, TooLarge, Unavailable, WriteError};
use crate::write::sink::{Sender, WriteSink};
use crate::write::{Manners, WriteOutcome, heavy};

pub use crate::http::remote_write::body::RequestLimits;
pub use crate::http::remote_write::otlp::OtlpOptions;

pub const RECEIVE_PATH: &str = "/api/v1/receive";
pub const WRITE_PATH: &str = "/api/v1/write";
/// OTLP metrics, as Thanos takes them.
pub const OTLP_PATH: &str = "/api/v1/otlp";
/// The same where exporters append their own path, as to Prometheus.
pub const OTLP_METRICS_PATH: &str = "/api/v1/otlp/v1/metrics";
const PATHS: &[&str] = &[RECEIVE_PATH, WRITE_PATH, OTLP_PATH, OTLP_METRICS_PATH];

/// A body of which nothing is understood is not answered as if it had been stored.
const NO_KNOWN_FIELD: DecodeError = DecodeError {
    field: "write request",
    what: "neither series nor metadata of version 1.0, but other fields",
};

/// What is kept of idle buffers: as many as requests can be decoded at once by any machine we
/// know, and no more than usual requests need (2,000 series: 100 KB snappy, 800 KB inflated).
const POOLED_BUFFERS_MAX: usize = 64;
const POOLED_BYTES_MAX: usize = 64 << 20;

/// What the endpoints are made from.
pub struct RemoteWriteOptions {
    pub tenants: TenantRules,
    /// `--receive.replica-header`
    pub replica_header: HeaderName,
    pub limits: RequestLimits,
    pub otlp: OtlpOptions,
}

impl RemoteWriteOptions {
    pub fn new(
        tenants: TenantRules,
        replica_header: &str,
        limits: RequestLimits,
    ) -> Result<RemoteWriteOptions, InvalidHeaderName> {
        let replica_header = HeaderName::from_bytes(replica_header.as_bytes())?;
        Ok(RemoteWriteOptions { tenants, replica_header, limits, otlp: OtlpOptions::default() })
    }
}

/// What a path takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Write(Manners),
    Otlp(OtlpPath),
}

impl Endpoint {
    fn of(path: &str) -> Endpoint {
        match path {
            RECEIVE_PATH => Endpoint::Write(Manners::Thanos),
            OTLP_PATH => Endpoint::Otlp(OtlpPath::Thanos),
            OTLP_METRICS_PATH => Endpoint::Otlp(OtlpPath::Exporters),
            _ => Endpoint::Write(Manners::Prometheus),
        }
    }

    fn handler(self) -> Handler {
        match self {
            Endpoint::Write(_) => Handler::Receive,
            Endpoint::Otlp(_) => Handler::Otlp,
        }
    }
}

/// The write endpoints' state.
pub struct WriteService<S> {
    sink: Arc<S>,
    accepting: Probe,
    options: RemoteWriteOptions,
    admission: Arc<Admission>,
    bodies: BufferPool,
    /// For what comes in another form than 1.0, and what is made of it, too.
    inflated: BufferPool,
    metrics: WriteMetrics,
    /// Of the lines on writes that this node failed.
    told: Throttle<Discriminant<WriteError>>,
}

impl<S: WriteSink> WriteService<S> {
    /// Requests are answered 503 unless `accepting` holds.
    pub fn new(
        sink: Arc<S>,
        accepting: Probe,
        options: RemoteWriteOptions,
        admission: Arc<Admission>,
        registry: &Registry,
    ) -> WriteService<S> {
        let pool =
            |name| BufferPool::new(POOLED_BUFFERS_MAX, POOLED_BYTES_MAX).shown(registry, name);
        WriteService {
            sink,
            accepting,
            admission,
            options,
            bodies: pool("http_bodies"),
            inflated: pool("http_inflated"),
            metrics: WriteMetrics::new(registry),
            told: Throttle::default(),
        }
    }

    /// One write request from head to outcome. The order of the stages is Thanos'; what a sender
    /// may rely on is that an earlier one decides.
    async fn write(
        &self,
        tenant: Result<&TenantEntry, TenantNameError>,
        head: &Parts,
        body: Body,
        manners: Manners,
    ) -> Result<WriteOutcome, RequestError> {
        let limits = &self.options.limits;

        // Readiness. Storage is judged at the append, tenant by tenant.
        if !self.accepting.holds() {
            return Err(WriteError::from(Unavailable::NotAccepting).into());
        }

        // Tenant.
        let tenant = tenant.map_err(WriteError::TenantName)?;

        // Media type, where Prometheus' receiver looks at it: before anything else of the request.
        let agreed = match manners {
            Manners::Prometheus => Some(check_media_type(&head.headers)?),
            Manners::Thanos => None,
        };

        // Gate: before the body is read, so that overload costs nothing. The whole declared body
        // must fit now, but is held only as it arrives.
        // Size, as declared.
        let (declared, mut inflight) = self.admit(&body)?;

        // Read.
        let mut block = self.bodies.take();
        limits.read(body, declared, block.as_mut_vec(), &mut inflight).await?;

        // Snappy, and the decoded size as far as the block declares it: memory is taken only then.
        let block_bytes = block.as_mut_vec().len() as u64;
        let inflated_len =
            snappy::inflated_len(block.as_mut_vec(), limits.inflated_bytes_max(block_bytes))
                .map_err(snappy_error)?;
        let inflated_bytes = inflated_len as u64;
        inflight
            .resize(REQUEST_BYTES_MIN + block_bytes + inflated_bytes)
            .map_err(WriteError::from)?;
        let mut inflated = self.inflated.take();
        let inflate = move || {
            let request =
                snappy::inflate(block.as_slice(), inflated_len, inflated.as_mut_vec())?.len();
            drop(block);
            // What is held goes along: the work is finished even if the client goes away.
            Ok::<_, SnappyError>((inflated, request, inflight))
        };
        let inflated = heavy::off_thread(inflated_len, inflate).await;
        let (inflated, request_bytes, mut inflight) = inflated.map_err(snappy_error)?;
        // Shrinking always succeeds.
        inflight.resize(REQUEST_BYTES_MIN + inflated_bytes).map_err(WriteError::from)?;

        // Version.
        let version = match agreed {
            Some(version) => version,
            None => check_version(&head.headers)?,
        };

        // Replica header. Thanos decodes first, but either fault is the same 400.
        let replica = replica(&head.headers, &self.options.replica_header)?;

        // Empty request.
        if request_bytes == 0 {
            return Ok(WriteOutcome::default());
        }

        // Symbols of 2.0 into labels.
        let (request, metadata) = match version {
            Version::V1 => (share(inflated, 0..request_bytes, inflight), 0),
            Version::V2 => {
                let symbolic = Symbolic { inflated, bytes: request_bytes, inflight };
                symbolic.resolve(&self.inflated, limits).await?
            }
        };
        if request.is_empty() {
            // Symbols and no series.
            return Ok(WriteOutcome { metadata, ..WriteOutcome::default() });
        }

        // Decode and store.
        let sender = Sender::Client(manners);
        let mut outcome = self.sink.write(&tenant.id, request, replica, sender).await?;
        if outcome.series == 0 && outcome.metadata == 0 {
            // Most likely of another version than the headers say. Nothing was found to be stored.
            return Err(WriteError::from(Invalid::Decode(NO_KNOWN_FIELD)).into());
        }
        outcome.metadata += metadata;
        Ok(outcome)
    }

    /// Lets a request in before its body is read: its declared length, and what it is held by.
    fn admit(&self, body: &Body) -> Result<(Option<u64>, InflightGuard), WriteError> {
        let max = self.options.limits.body_bytes_max();
        let declared = body.size_hint().exact();
        self.admission.check(declared.unwrap_or(0).min(max))?;
        let inflight = self.admission.admit(REQUEST_BYTES_MIN)?;
        match declared.filter(|bytes| *bytes > max) {
            Some(bytes) => Err(TooLarge::Declared { bytes, max }.into()),
            None => Ok((declared, inflight)),
        }
    }

    /// Serves one request to a path that takes only POST, and measures it.
    async fn serve(&self, request: Request, endpoint: Endpoint) -> Response {
        match *request.method() {
            Method::POST => {}
            Method::OPTIONS => return respond::options(),
            _ => return respond::method_not_allowed(),
        }
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let request_size = head_size(&head) + body.size_hint().lower();
        let name = self.options.tenants.name(&head.headers);
        let tenant = self.metrics.tenant(name);
        let metrics = match &tenant {
            Ok(tenant) => &tenant.metrics,
            Err(_) => self.metrics.invalid(),
        };
        let _inflight = metrics.begin(endpoint.handler());

        let named = tenant.as_deref().map_err(|error| *error);
        let shown = match &tenant {
            Ok(tenant) => tenant.id.as_str().into(),
            Err(_) => String::from_utf8_lossy(name),
        };
        let (result, response) = match endpoint {
            Endpoint::Write(manners) => {
                let result = self.write(named, &head, body, manners).await;
                let mut response = respond::to_write(&result, &shown, manners);
                if speaks_version_2(&head.headers) {
                    respond::tell_written(&result, &mut response);
                }
                (result, response)
            }
            Endpoint::Otlp(path) => {
                let mut untranslated = Untranslated::default();
                let result = self.export(named, &head, body, path, &mut untranslated).await;
                let response = match path {
                    OtlpPath::Thanos => respond::to_write(&result, &shown, Manners::Thanos),
                    OtlpPath::Exporters => {
                        let is_json = otlp::is_json(&head.headers);
                        respond::to_export(&result, &untranslated, &shown, is_json)
                    }
                };
                (result, response)
            }
        };
        self.log_failure(&result, name);

        let observation = Observation {
            handler: endpoint.handler(),
            status: response.status(),
            duration: started.elapsed(),
            request_size,
            response_size: response.body().size_hint().lower(),
        };
        match &tenant {
            Ok(tenant) => {
                let metrics = self.metrics.of_finished(tenant, &result);
                metrics.observe(&observation, Written::of(&result));
            }
            Err(_) => metrics.observe(&observation, Written::of(&result)),
        }
        response
    }
}

impl<S> WriteService<S> {
    /// The one place that logs a failed write. A sender's fault is the sender's to see, so it is
    /// told to those who debug.
    fn log_failure(&self, result: &Result<WriteOutcome, RequestError>, tenant: &[u8]) {
        let error = match result {
            Ok(outcome) if outcome.refusals.is_empty() => return,
            Ok(outcome) => {
                let tenant = String::from_utf8_lossy(tenant);
                let refused = outcome.refusals.total();
                tracing::debug!(%tenant, refused, "write partly refused");
                return;
            }
            Err(error) => error,
        };
        let tenant = String::from_utf8_lossy(tenant);
        match error {
            RequestError::Write(cause) if cause.is_ours() => {
                if let Some(suppressed) = self.told.pass(std::mem::discriminant(cause)) {
                    tracing::warn!(%tenant, err = %error, suppressed, "write failed");
                    return;
                }
            }
            _ => {}
        }
        tracing::debug!(%tenant, err = %error, "write failed");
    }
}

/// Serves `--remote-write.address`.
pub fn remote_write_router<S: WriteSink>(service: Arc<WriteService<S>>) -> Router {
    Router::new()
        .route(RECEIVE_PATH, any(receive::<S>))
        .route(WRITE_PATH, any(write::<S>))
        .route(OTLP_PATH, any(otlp::<S>))
        .route(OTLP_METRICS_PATH, any(otlp_metrics::<S>))
        .fallback(other_path::<S>)
        .with_state(service)
}

async fn receive<S: WriteSink>(
    State(service): State<Arc<WriteService<S>>>,
    request: Request,
) -> Response {
    service.serve(request, Endpoint::of(RECEIVE_PATH)).await
}

async fn write<S: WriteSink>(
    State(service): State<Arc<WriteService<S>>>,
    request: Request,
) -> Response {
    service.serve(request, Endpoint::of(WRITE_PATH)).await
}

async fn otlp<S: WriteSink>(
    State(service): State<Arc<WriteService<S>>>,
    request: Request,
) -> Response {
    service.serve(request, Endpoint::of(OTLP_PATH)).await
}

async fn otlp_metrics<S: WriteSink>(
    State(service): State<Arc<WriteService<S>>>,
    request: Request,
) -> Response {
    service.serve(request, Endpoint::of(OTLP_METRICS_PATH)).await
}

async fn other_path<S: WriteSink>(
    State(service): State<Arc<WriteService<S>>>,
    request: Request,
) -> Response {
    match path::resolve(request.uri().path(), PATHS, Tolerance::Generous) {
        Resolved::Known(path) => service.serve(request, Endpoint::of(path)).await,
        Resolved::Meant(path) => status::redirect(path, &request),
        Resolved::Unknown => respond::not_found(),
    }
}

/// The head's size as client_golang estimates it: without separators.
fn head_size(head: &Parts) -> u64 {
    let line = head.method.as_str().len() + head.uri.path().len() + "HTTP/1.1".len();
    let headers: usize =
        head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (line + headers) as u64
}

fn snappy_error(error: SnappyError) -> WriteError {
    match error {
        SnappyError::Corrupt => Invalid::Snappy(error).into(),
        SnappyError::TooLarge { .. } => TooLarge::Inflated(error).into(),
    }
}

#[cfg(test)]
mod tests;
