//! `thanos_receive_forward_*` and `grpc_client_*`, as Thanos counts them, and what is ours to say
//! about peers.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::metrics::{Counter, CounterVec, Histogram, HistogramVec, Registry};
use crate::peer::copies::CopyCounts;
use crate::peer::{NotSent, PeerPool};

const METHOD: &str = "RemoteWrite";
const SERVICE: &str = "thanos.WriteableStore";
const KIND: &str = "unary";

/// The label that names a peer.
const WORKER: &str = "worker";

/// Thanos' buckets, in seconds.
const HANDLING_SECONDS: [f64; 17] = [
    0.001, 0.01, 0.1, 0.3, 0.6, 1.0, 3.0, 6.0, 9.0, 20.0, 30.0, 60.0, 90.0, 120.0, 240.0, 360.0,
    720.0,
];

/// Metrics of all peers together.
#[derive(Clone)]
pub struct PoolMetrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    copies: CopyCounts,
    delay_seconds: HistogramVec,
    not_sent: CounterVec,
    calls: CallMetrics,
}

/// `grpc_client_*`.
struct CallMetrics {
    started: CounterVec,
    handled: CounterVec,
    handling_seconds: HistogramVec,
    received: CounterVec,
    sent: CounterVec,
    /// Children of the only method that is called, made by its first call.
    children: OnceLock<CallChildren>,
}

struct CallChildren {
    started: Counter,
    handling_seconds: Histogram,
    received: Counter,
    sent: Counter,
}

/// Metrics of one peer.
#[derive(Clone)]
pub struct PeerMetrics {
    pool: PoolMetrics,
    delay_seconds: Histogram,
    unreachable: Counter,
    backed_off: Counter,
    full: Counter,
}

impl PoolMetrics {
    pub fn new(registry: &Registry) -> PoolMetrics {
        const OF_METHOD: [&str; 3] = ["grpc_method", "grpc_service", "grpc_type"];
        let counter = |name, help| registry.counter_vec(name, help, &OF_METHOD);
        let delay_seconds: Vec<f64> =
            (0..16).map(|power| 0.001 * f64::from(1u32 << power)).collect();
        PoolMetrics(Arc::new(Inner {
            registry: registry.clone(),
            copies: CopyCounts::new(registry),
            delay_seconds: registry.histogram_vec(
                "thanos_receive_forward_delay_seconds",
                "The delay between the time the request was received and the time it was forwarded \
                 to a worker.",
                &[WORKER],
                &delay_seconds,
            ),
            not_sent: registry.counter_vec(
                "ringest_peer_forwards_not_sent_total",
                "Forwards for which the peer was not called, since it could not be reached, was \
                 backed off, or had enough under way.",
                &[WORKER, "reason"],
            ),
            calls: CallMetrics {
                started: counter(
                    "grpc_client_started_total",
                    "Total number of RPCs started on the client.",
                ),
                handled: registry.counter_vec(
                    "grpc_client_handled_total",
                    "Total number of RPCs completed by the client, regardless of success or \
                     failure.",
                    &["grpc_code", "grpc_method", "grpc_service", "grpc_type"],
                ),
                handling_seconds: registry.histogram_vec(
                    "grpc_client_handling_seconds",
                    "Histogram of response latency (seconds) of the gRPC until it is finished by \
                     the application.",
                    &OF_METHOD,
                    &HANDLING_SECONDS,
                ),
                received: counter(
                    "grpc_client_msg_received_total",
                    "Total number of RPC stream messages received by the client.",
                ),
                sent: counter(
                    "grpc_client_msg_sent_total",
                    "Total number of gRPC stream messages sent by the client.",
                ),
                children: OnceLock::new(),
            },
        }))
    }

    pub(super) fn peer(&self, address: &str) -> PeerMetrics {
        let not_sent = |reason| self.0.not_sent.with(&[address, reason]);
        PeerMetrics {
            pool: self.clone(),
            delay_seconds: self.0.delay_seconds.with(&[address]),
            unreachable: not_sent("unreachable"),
            backed_off: not_sent("backed off"),
            full: not_sent("full"),
        }
    }

    /// Lets each collection say how the peers of `pool` are.
    pub(super) fn show(&self, pool: Weak<PeerPool>) {
        let registry = &self.0.registry;
        let gauge = |name, help| registry.gauge_vec(name, help, &[WORKER]);
        let available = gauge(
            "ringest_peer_available",
            "Whether a forward would be sent to the peer and be answered: 0 while it cannot be \
             reached, is backed off or on probation, or has answered nothing for 2 s though \
             forwards are under way.",
        );
        let unavailable = gauge(
            "ringest_peer_unavailable_seconds",
            "For how long the peer has not been available; 0 while it is.",
        );
        let unanswered = gauge(
            "ringest_peer_unanswered_seconds",
            "For how long forwards have been under way to the peer without any answer.",
        );
        let failing = gauge(
            "ringest_peer_failing_seconds",
            "For how long the peer has answered forwards with nothing but errors.",
        );
        let tenants_shut =
            gauge("ringest_peer_tenants_shut", "Tenants that are backed off from the peer alone.");
        let requests = gauge("ringest_peer_inflight_requests", "Forwards under way to the peer.");
        let bytes =
            gauge("ringest_peer_inflight_bytes", "Bytes that forwards under way to the peer hold.");
        let lag = gauge(
            "ringest_peer_lag_seconds",
            "For how long the oldest write under way to the peer has been waiting for its answer.",
        );
        let of_all = |name, help| registry.gauge(name, help);
        let bytes_max = of_all(
            "ringest_forward_inflight_bytes_max",
            "What forwards under way to all peers may hold, in bytes. Half of it is divided among \
             the peers.",
        );
        let shared = of_all(
            "ringest_forward_inflight_shared_bytes",
            "Bytes that forwards under way hold of the half that all peers share.",
        );
        registry.on_collect(move || {
            let Some(pool) = pool.upgrade() else { return };
            bytes_max.set(pool.budget().bytes_max() as f64);
            shared.set(pool.budget().shared_bytes() as f64);
            for peer in pool.snapshot() {
                let worker = [&*peer.address];
                let is_available = peer.unavailable_for.is_none();
                available.with(&worker).set(f64::from(u8::from(is_available)));
                let seconds = |time: Option<Duration>| time.map_or(0.0, |time| time.as_secs_f64());
                unavailable.with(&worker).set(seconds(peer.unavailable_for));
                unanswered.with(&worker).set(seconds(peer.unanswered_for));
                failing.with(&worker).set(seconds(peer.failing_for));
                tenants_shut.with(&worker).set(peer.tenants_shut as f64);
                requests.with(&worker).set(peer.inflight_requests as f64);
                bytes.with(&worker).set(peer.inflight_bytes as f64);
                lag.with(&worker).set(peer.lag.as_secs_f64());
            }
        });
    }

    pub(super) fn remove_peer(&self, address: &str) {
        self.0.registry.remove(WORKER, address);
    }
}

impl PeerMetrics {
    /// Counts a call that was made.
    pub(super) fn count_forward(&self, is_success: bool) {
        self.pool.0.copies.count_forward(is_success);
    }

    /// Thanos counts these nowhere: a peer that is gone would drown the errors of those that are
    /// there.
    pub(super) fn count_not_sent(&self, reason: NotSent) {
        match reason {
            NotSent::Unreachable => &self.unreachable,
            NotSent::BackedOff => &self.backed_off,
            NotSent::Full => &self.full,
        }
        .inc();
    }

    /// How long a call waited for a connection.
    pub(super) fn observe_delay(&self, delay: Duration) {
        self.delay_seconds.observe(delay.as_secs_f64());
    }

    pub(super) fn begin(&self) -> CallInFlight<'_> {
        let calls = &self.pool.0.calls;
        let children = calls.children.get_or_init(|| {
            let labels = [METHOD, SERVICE, KIND];
            CallChildren {
                started: calls.started.with(&labels),
                handling_seconds: calls.handling_seconds.with(&labels),
                received: calls.received.with(&labels),
                sent: calls.sent.with(&labels),
            }
        });
        children.started.inc();
        children.sent.inc();
        CallInFlight { calls, children, begun: Instant::now(), code: Code::Cancelled }
    }
}

/// A call; counted as cancelled if it is dropped before its end is told.
pub(super) struct CallInFlight<'a> {
    calls: &'a CallMetrics,
    children: &'a CallChildren,
    begun: Instant,
    code: Code,
}

impl CallInFlight<'_> {
    pub(super) fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for CallInFlight<'_> {
    fn drop(&mut self) {
        if self.code == Code::Ok {
            self.children.received.inc();
        }
        self.calls.handled.with(&[code_name(self.code), METHOD, SERVICE, KIND]).inc();
        self.children.handling_seconds.observe(self.begun.elapsed().as_secs_f64());
    }
}

/// A code as grpc-go writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
