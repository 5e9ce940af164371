//! `grpc_server_*`: calls by method and code, as Thanos counts them.
//!
//! Counted from the bytes on either side of the services, so that no service has to know.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::metrics::{Counter, CounterVec, Histogram, HistogramVec, Registry};

/// Names of the codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Service, method, type, and whether the method's metrics exist before its first call.
const METHODS: [(&str, &str, &str, bool); 12] = [
    ("thanos.Store", "Series", "server_stream", true),
    ("thanos.Store", "LabelNames", "unary", true),
    ("thanos.Store", "LabelValues", "unary", true),
    ("thanos.WriteableStore", "RemoteWrite", "unary", true),
    ("ringest.WriteableStore", "RemoteWrite", "unary", false),
    ("thanos.Exemplars", "Exemplars", "server_stream", true),
    ("thanos.Status", "TSDBStatistics", "server_stream", true),
    ("thanos.info.Info", "Info", "unary", true),
    ("grpc.health.v1.Health", "Check", "unary", false),
    ("grpc.health.v1.Health", "Watch", "server_stream", false),
    ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", "bidi_stream", false),
    ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", "bidi_stream", false),
];

/// Thanos' buckets, in seconds.
const HANDLING_SECONDS: [f64; 14] =
    [0.001, 0.01, 0.1, 0.3, 0.6, 1.0, 3.0, 6.0, 9.0, 20.0, 30.0, 60.0, 90.0, 120.0];

/// Metrics of every method that is served.
#[derive(Clone)]
pub struct GrpcMetrics(Arc<Inner>);

struct Inner {
    families: Families,
    /// By path.
    methods: HashMap<String, Method>,
}

struct Families {
    started: CounterVec,
    handled: CounterVec,
    handling_seconds: HistogramVec,
    received: CounterVec,
    sent: CounterVec,
}

struct Method {
    service: &'static str,
    name: &'static str,
    kind: &'static str,
    metrics: OnceLock<MethodMetrics>,
}

#[derive(Clone)]
struct MethodMetrics {
    started: Counter,
    /// By number of the code.
    handled: Arc<[Counter]>,
    handling_seconds: Histogram,
    received: Counter,
    sent: Counter,
}

impl GrpcMetrics {
    /// `services` are the full names of those that are served.
    pub fn new(registry: &Registry, services: &[&str]) -> GrpcMetrics {
        const OF_METHOD: [&str; 3] = ["grpc_method", "grpc_service", "grpc_type"];
        let counter = |name, help| registry.counter_vec(name, help, &OF_METHOD);
        let families = Families {
            started: counter(
                "grpc_server_started_total",
                "Total number of RPCs started on the server.",
            ),
            handled: registry.counter_vec(
                "grpc_server_handled_total",
                "Total number of RPCs completed on the server, regardless of success or failure.",
                &["grpc_code", "grpc_method", "grpc_service", "grpc_type"],
            ),
            handling_seconds: registry.histogram_vec(
                "grpc_server_handling_seconds",
                "Histogram of response latency (seconds) of gRPC that had been application-level \
                 handled by the server.",
                &OF_METHOD,
                &HANDLING_SECONDS,
            ),
            received: counter(
                "grpc_server_msg_received_total",
                "Total number of RPC stream messages received on the server.",
            ),
            sent: counter(
                "grpc_server_msg_sent_total",
                "Total number of gRPC stream messages sent by the server.",
            ),
        };
        let mut methods = HashMap::new();
        for (service, name, kind, from_start) in METHODS {
            let is_reflection = service.starts_with("grpc.reflection.");
            if is_reflection || services.contains(&service) {
                let method = Method { service, name, kind, metrics: OnceLock::new() };
                if from_start {
                    method.metrics(&families);
                }
                methods.insert(format!("/{service}/{name}"), method);
            }
        }
        GrpcMetrics(Arc::new(Inner { families, methods }))
    }
}

impl Method {
    fn metrics(&self, families: &Families) -> &MethodMetrics {
        self.metrics.get_or_init(|| {
            let labels = [self.name, self.service, self.kind];
            let handled = CODES
                .map(|code| families.handled.with(&[code, self.name, self.service, self.kind]));
            MethodMetrics {
                started: families.started.with(&labels),
                handled: Arc::from(handled),
                handling_seconds: families.handling_seconds.with(&labels),
                received: families.received.with(&labels),
                sent: families.sent.with(&labels),
            }
        })
    }
}

impl<S> Layer<S> for GrpcMetrics {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { metrics: self.clone(), inner }
    }
}

/// A service whose calls are counted.
#[derive(Clone)]
pub struct Measured<S> {
    metrics: GrpcMetrics,
    inner: S,
}

impl<S> Service<Request<Body>> for Measured<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Inner { families, methods } = &*self.metrics.0;
        let Some(method) = methods.get(request.uri().path()) else {
            return Box::pin(self.inner.call(request));
        };
        let metrics = method.metrics(families).clone();
        metrics.started.inc();
        let (received, sent) = (metrics.received.clone(), metrics.sent.clone());
        let call = Call { metrics, begun: Instant::now(), code: Code::Cancelled };
        let request = request.map(|body| CountedBody::wrap(body, received, None));
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            // Set in the headers only if there is no body to follow.
            let status = response.headers().get("grpc-status");
            let call = match status {
                Some(status) => {
                    call.end(Code::from_bytes(status.as_bytes()));
                    None
                }
                None => Some(call),
            };
            Ok(response.map(|body| CountedBody::wrap(body, sent, call)))
        })
    }
}

/// A call under way; counted as cancelled if it is dropped before its status was sent.
struct Call {
    metrics: MethodMetrics,
    begun: Instant,
    code: Code,
}

impl Call {
    /// Counts the call before its client can know that it ended.
    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(handled) = self.metrics.handled.get(self.code as usize) {
            handled.inc();
        }
        self.metrics.handling_seconds.observe(self.begun.elapsed().as_secs_f64());
    }
}

/// A body whose messages are counted as they pass.
struct CountedBody {
    inner: Body,
    messages: MessageCounter,
    counter: Counter,
    /// Of a response: told the code that the trailers carry.
    call: Option<Call>,
}

impl CountedBody {
    fn wrap(inner: Body, counter: Counter, call: Option<Call>) -> Body {
        Body::new(CountedBody { inner, messages: MessageCounter::default(), counter, call })
    }
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                let passed = self.messages.pass(data);
                self.counter.add(passed);
            }
            let status = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"));
            if let (Some(status), Some(call)) = (status, self.call.take_if(|_| status.is_some())) {
                call.end(Code::from_bytes(status.as_bytes()));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Finds where messages end in a stream of bytes: each is a flag (1 byte), a length (4 bytes, big
/// endian) and so many bytes.
#[derive(Default)]
struct MessageCounter {
    /// The head of a message, as far as it has come.
    head: Vec<u8>,
    /// Bytes of the message still to come.
    rest: usize,
}

impl MessageCounter {
    const HEAD_BYTES: usize = 5;

    /// How many messages end in `data`.
    fn pass(&mut self, mut data: &[u8]) -> u64 {
        let mut ended = 0;
        while !data.is_empty() {
            if self.rest > 0 {
                let step = self.rest.min(data.len());
                data.advance(step);
                self.rest -= step;
                ended += u64::from(self.rest == 0);
                continue;
            }
            let step = (Self::HEAD_BYTES - self.head.len()).min(data.len());
            let (head, body) = data.split_at(step);
            self.head.extend_from_slice(head);
            data = body;
            if let [_, len @ ..] = &self.head[..]
                && let Ok(len) = <[u8; 4]>::try_from(len)
            {
                self.rest = u32::from_be_bytes(len) as usize;
                self.head.clear();
                ended += u64::from(self.rest == 0);
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_the_stream_is_cut() {
        let stream =
            [&[0, 0, 0, 0, 3, 1, 2, 3][..], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 1, 9]].concat();
        for size in 1..=stream.len() {
            let mut counter = MessageCounter::default();
            let ended: u64 = stream.chunks(size).map(|part| counter.pass(part)).sum();
            assert_eq!(ended, 3, "in parts of {size} bytes");
        }
        let mut counter = MessageCounter::default();
        assert_eq!(counter.pass(&stream[..7]), 0);
    }

    #[test]
    fn methods_that_are_served_are_there_from_the_start() {
        let registry = Registry::new();
        GrpcMetrics::new(&registry, &["thanos.Store", "grpc.health.v1.Health"]);
        let page = registry.expose();
        let lines = page.lines().filter(|line| line.starts_with("grpc_server_handled_total{"));
        assert_eq!(lines.count(), 3 * CODES.len());
        assert!(page.contains(
            "grpc_server_started_total{grpc_method=\"Series\",grpc_service=\"thanos.Store\",\
             grpc_type=\"server_stream\"} 0"
        ));
        assert!(!page.contains("Check"));
    }
}
