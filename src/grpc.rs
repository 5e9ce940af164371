//! The gRPC listener: which services there are, their message limits, health, reflection, drain.

mod bounded_body;
pub mod codec;
pub mod compression;
pub mod exemplars;
pub mod framed;
mod heads;
pub mod health;
mod incoming;
pub mod info;
pub mod metrics;
pub mod reflection;
pub mod remote_write;
pub mod respond;
pub mod status;
pub mod store;

use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::door::Door;
use crate::grpc::compression::Compressed;
use crate::grpc::exemplars::ExemplarsService;
use crate::grpc::heads::HeadsLayer;
use crate::grpc::health::HealthService;
use crate::grpc::incoming::incoming;
use crate::grpc::info::InfoService;
use crate::grpc::metrics::GrpcMetrics;
use crate::grpc::status::StatusService;
use crate::grpc::store::StoreService;
use crate::store::budget::{READ_BYTES_MAX_DEFAULT, ReadBudget};
use crate::store::pieces::STALL_TIMEOUT;
use crate::store::source::TenantSource;
use crate::tls::server::ServerTls;
use crate::wire::proto::thanos::exemplars_server::ExemplarsServer;
use crate::wire::proto::thanos::info::info_server::InfoServer;
use crate::wire::proto::thanos::status_server::StatusServer;
use crate::wire::proto::thanos::store_server::StoreServer;
use tonic_health::pb::health_server::HealthServer;

/// Largest question a reader may send, held against the budget of reads. Questions are matchers and
/// label names; answers are not limited here, since they come in frames of about 1 MiB.
const READ_REQUEST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The same for health and reflection, whose questions are names of services and symbols.
const NAME_REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Calls under way on one connection; a querier has one per query.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1000;

/// A peer's usual message, 2,000 series or some of them, goes in one frame: the sender makes a
/// system call of each frame, wakes us for it, and what comes in several has to be copied together.
/// A frame takes as much memory as has come of it, which nothing counts until it is there.
const FRAME_BYTES_MAX: u32 = 1024 * 1024;

/// What may be under way on a stream, and on a connection, before it is read: whole frames, and the
/// next ones while these are taken in.
const STREAM_WINDOW_BYTES: u32 = 2 * FRAME_BYTES_MAX;
const CONNECTION_WINDOW_BYTES: u32 = 4 * FRAME_BYTES_MAX;

/// Heads are bounded by [`door`](crate::door), so that those over the cap get an answer of ours. This
/// is announced, and it bounds in how many frames a head may come: so many as 16 MiB have, in the
/// small frames of grpc-go, where each could be as large as [`FRAME_BYTES_MAX`].
const HEAD_BYTES_ANNOUNCED: u32 = 1024 * FRAME_BYTES_MAX;

/// Connections without traffic are asked for a sign of life, so that what a dead reader held is
/// freed. Every two hours is the habit of gRPC servers; a dead reader would hold memory so long.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What clients may agree on in a TLS handshake.
pub const TLS_PROTOCOLS: &[&[u8]] = &[b"h2"];

/// How the listener behaves.
#[derive(Clone)]
pub struct GrpcOptions {
    /// `--grpc-grace-period`: calls under way get this long after the shutdown signal.
    pub grace_period: Duration,
    /// `--grpc-server-max-connection-age`: then a client is asked to connect anew, so that
    /// connections spread over new nodes.
    pub connection_age_max: Option<Duration>,
    /// `None` for plain text.
    pub tls: Option<Arc<ServerTls>>,
}

impl Default for GrpcOptions {
    fn default() -> GrpcOptions {
        GrpcOptions {
            grace_period: Duration::from_secs(2 * 60),
            connection_age_max: Some(Duration::from_secs(60 * 60)),
            tls: None,
        }
    }
}

/// The services of a listener, by their full names.
pub struct Services {
    routes: Routes,
    names: Vec<&'static str>,
    /// What questions are held against.
    budget: ReadBudget,
    /// How long a reader may take nothing of its answer.
    stall: Duration,
}

impl Default for Services {
    fn default() -> Services {
        Services {
            routes: Routes::default(),
            names: Vec::new(),
            budget: ReadBudget::new(READ_BYTES_MAX_DEFAULT),
            stall: STALL_TIMEOUT,
        }
    }
}

impl Services {
    /// The APIs that read, and health.
    pub fn of_reads(
        source: Arc<dyn TenantSource>,
        budget: ReadBudget,
        stall: Duration,
        is_ready: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Services {
        // The cap is that of `Compressed`, whose answer to more is that of grpc-go.
        let store = StoreServer::new(StoreService::new(source.clone(), budget.clone()))
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let info =
            InfoServer::new(InfoService::new(source.clone())).max_decoding_message_size(usize::MAX);
        let exemplars = ExemplarsServer::new(ExemplarsService::new(source.clone(), budget.clone()))
            .max_decoding_message_size(usize::MAX);
        let status = StatusServer::new(StatusService::new(source, budget.clone()))
            .max_decoding_message_size(usize::MAX);
        let health = HealthServer::new(HealthService::new(is_ready));
        let services = Services { budget, stall, ..Services::default() };
        services
            .with_question(store, READ_REQUEST_BYTES_MAX)
            .with_question(info, READ_REQUEST_BYTES_MAX)
            .with_question(exemplars, READ_REQUEST_BYTES_MAX)
            .with_question(status, READ_REQUEST_BYTES_MAX)
            .with_question(health, NAME_REQUEST_BYTES_MAX)
    }

    /// Adds a generated server of reads, whose questions are of so many bytes at most.
    fn with_question<S>(self, service: S, bytes_max: usize) -> Services
    where
        S: tower::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<tonic::body::Body>,
                Error = std::convert::Infallible,
            > + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let compressed = self.question(service, bytes_max);
        self.with(compressed)
    }

    fn question<S>(&self, service: S, bytes_max: usize) -> Compressed<S> {
        Compressed::new(service, bytes_max, self.budget.clone(), self.stall)
    }

    /// Adds a generated server.
    pub fn with<S>(mut self, service: S) -> Services
    where
        S: tower::Service<http::Request<tonic::body::Body>, Error = std::convert::Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Full names of the services added so far.
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Adds reflection, which tells of all services added before.
    fn with_reflection(self) -> Routes {
        let (v1, v1alpha) = reflection::servers(self.names.clone());
        let v1 = self.question(v1, NAME_REQUEST_BYTES_MAX);
        let v1alpha = self.question(v1alpha, NAME_REQUEST_BYTES_MAX);
        self.routes.add_service(v1).add_service(v1alpha)
    }
}

/// Connections fall into so many groups that end at different ages.
const AGES: u32 = 8;

/// Ages around the one that is meant, a tenth more or less as in grpc-go: clients that have
/// connected at the same time are not asked to do it again at the same time.
fn ages(meant: Option<Duration>) -> Vec<Option<Duration>> {
    let Some(meant) = meant else { return vec![None] };
    let age = |i| meant.mul_f64(0.9 + 0.2 * f64::from(i) / f64::from(AGES - 1));
    (0..AGES).map(|i| Some(age(i))).collect()
}

/// Serves until `shutdown` resolves; then takes no more connections and tells clients to begin no
/// more calls on those that are open. Calls that have begun by then, or while a client does not know
/// yet, finish within the grace period; what is left is cut.
pub async fn serve(
    listener: TcpListener,
    services: Services,
    metrics: GrpcMetrics,
    options: GrpcOptions,
    door: Door,
    shutdown: impl Future<Output = ()> + Send,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let draining = CancellationToken::new();
    let ages = ages(options.connection_age_max);
    let heads = HeadsLayer(door.heads().clone());
    let incoming = incoming(listener, options.tls, door, draining.clone(), ages.len());
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEAD_BYTES_ANNOUNCED)
        .layer(metrics)
        .layer(heads);
    let routes = services.with_reflection();
    let lanes = ages.into_iter().zip(incoming).map(|(age, incoming)| {
        let mut server = server.clone();
        if let Some(age) = age {
            // Without a grace period, with which tonic would not ask a client but cut its
            // connection.
            server = server.max_connection_age(age);
        }
        // The end of what comes in is the signal: so no connection that was made is passed over.
        let server = server.add_routes(routes.clone());
        server.serve_with_incoming_shutdown(incoming, std::future::pending())
    });
    let serving = futures::future::try_join_all(lanes);
    let grace_over = async {
        shutdown.await;
        draining.cancel();
        tokio::time::sleep(options.grace_period).await;
    };
    tokio::select! {
        served = serving => served.map(drop).map_err(std::io::Error::other),
        () = grace_over => Ok(()),
    }
}

#[cfg(test)]
mod tests;
