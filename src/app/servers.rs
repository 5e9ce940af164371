//! What is served on which port. Each listener's lines stand in one function.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::listeners::Listeners;
use crate::app::tls::Tls;
use crate::app::{AppError, Node};
use crate::capnproto::{self, CapnProtoMetrics, CapnProtoOptions};
use crate::config::{Config, DoorConfig, TenancyConfig};
use crate::door::{Door, DoorOptions, Doors};
use crate::grpc::metrics::GrpcMetrics;
use crate::grpc::remote_write::{RemoteWriteOptions as PeerWriteOptions, RemoteWriteServer};
use crate::grpc::{self, GrpcOptions, Services};
use crate::http::read::{self, RemoteRead};
use crate::http::remote_write::{RemoteWriteOptions, RequestLimits, WriteService};
use crate::http::ring::{self, RingPage, RingParts};
use crate::http::{self, ConnectionLimits, Probe, remote_write_router, status_router};
use crate::metrics::{Registry, budgets};
use crate::model::ring_hash::RingHash;
use crate::multi_tsdb::MultiTsdb;
use crate::store::budget::ReadBudget;
use crate::store::pieces::STALL_TIMEOUT;
use crate::store::source::{NoTenants, TenantSource};
use crate::tls::server::ServerTls;
use crate::write::alone::Alone;
use crate::write::fanout::{Fanout, FanoutOptions, LocalNode};
use crate::write::heavy;
use crate::write::label_rules::LabelCaps;
use crate::write::local::LocalWriter;
use crate::write::peer_writes::PeerWrites;
use crate::write::sink::WriteSink;

/// Serves on all listeners until `draining`, then ends each within its grace period.
pub(super) fn spawn(
    listeners: Listeners,
    tls: Tls,
    config: &Config,
    registry: &Registry,
    node: Node,
    files_max: u64,
    draining: &CancellationToken,
) -> JoinSet<Result<(), AppError>> {
    let budget = ReadBudget::new(config.query_inflight_bytes_max);
    budget.show(registry);
    node.admission.show(registry);
    heavy::show(registry);
    budgets::show_calls_max(registry, "http", http::STREAMS_MAX as usize);
    budgets::show_calls_max(registry, "remote_write", http::STREAMS_MAX as usize);
    budgets::show_calls_max(registry, "grpc", grpc::STREAMS_PER_CONNECTION_MAX as usize);
    let grace = config.http.grace_period;
    let DoorConfig { connections_max, heads } = config.doors;
    let door_options = DoorOptions { connections_max, files_max, heads };
    let source: Arc<dyn TenantSource> = match &node.storage {
        Some(storage) => storage.clone(),
        None => Arc::new(NoTenants),
    };
    let ready = ready_probe(&source, &node, draining);
    let is_ready = ready.clone();
    let at_http = budget.at_door(registry, "http");
    let reads = read_router(config, &source, &at_http);
    let reads = reads.merge(http::ring::router(ring_page(config, &node, ready.clone())));
    let operator = match config.http.reads_closed_by {
        None => reads,
        Some(flag) => http::closed::router(&[read::PATH, ring::PATH, ring::TAKE_PATH], flag),
    };
    let operator = operator.merge(status_router(registry, ready));
    let at_grpc = budget.at_door(registry, "grpc");
    let services = Services::of_reads(source, at_grpc, STALL_TIMEOUT, move || is_ready.holds());
    let Writes { http: write, grpc: services } = add_writes(config, registry, &node, services);
    let capnproto_options = CapnProtoOptions {
        admission: node.admission.at_door(registry, "capnproto"),
        message_read_timeout: config.remote_write.body_read_timeout,
        grace_period: config.grpc.grace_period,
        caps: label_caps(config),
        tasks: node.tasks.clone(),
        metrics: CapnProtoMetrics::new(registry),
    };
    // A peer has placed what it sends here, whatever our own ring says.
    let writer = node.storage.as_ref();
    let writer = writer.map(|storage| Arc::new(local_writer(config, registry, storage, &node)));
    let grpc_metrics = GrpcMetrics::new(registry, services.names());
    let grpc_options = GrpcOptions {
        grace_period: config.grpc.grace_period,
        connection_age_max: config.grpc.connection_age_max,
        tls: tls.grpc,
    };
    let mut servers = JoinSet::new();
    let draining = || draining.clone();
    let doors = Doors::new(door_options, &node.admission, registry);
    servers.spawn(serve_http(
        "http/server",
        listeners.http,
        None,
        operator,
        doors.door("http"),
        draining(),
        grace,
    ));
    servers.spawn(serve_http(
        "remote-write/server",
        listeners.remote_write,
        tls.remote_write,
        write,
        doors.door("remote_write"),
        draining(),
        grace,
    ));
    let door = doors.door("grpc");
    let grpc = serve_grpc(listeners.grpc, services, grpc_metrics, grpc_options, door, draining());
    servers.spawn(grpc);
    if let Some(listener) = listeners.capnproto {
        let door = doors.door("capnproto");
        servers.spawn(serve_capnproto(listener, writer, capnproto_options, door, draining()));
    }
    servers
}

/// Ready once all storage is open and there is a ring, where there is to be one, until the node
/// stops.
fn ready_probe(source: &Arc<dyn TenantSource>, node: &Node, draining: &CancellationToken) -> Probe {
    let (source, has_ring, stopping) = (source.clone(), has_ring(node), draining.clone());
    let opening = source.clone();
    Probe::new(move || source.is_ready() && has_ring() && !stopping.is_cancelled())
        .saying(move || opening.start_status().map(|status| status.to_string()))
}

/// Whether there is a ring, where there is to be one: else no write can be placed. That is all it
/// takes. While storage opens, each tenant answers for itself, and a node that stops serves what
/// its open connections still bring, until they are closed: an answer of 503 would be the one fault
/// that a sender sees of a rolling restart.
fn has_ring(node: &Node) -> impl Fn() -> bool + Clone + Send + Sync + use<> {
    let ring = node.ring.as_ref().map(|ring| ring.current.clone());
    move || ring.as_ref().is_none_or(|ring| ring.load().is_some())
}

/// The rings in force, for peers to see whether they have the same.
fn ring_hash(node: &Node) -> impl Fn() -> Option<RingHash> + Send + Sync + use<> {
    let current = node.ring.as_ref().map(|ring| ring.current.clone());
    move || Some(current.as_ref()?.load()?.hash())
}

fn read_router(config: &Config, source: &Arc<dyn TenantSource>, budget: &ReadBudget) -> Router {
    read::router(RemoteRead {
        source: source.clone(),
        budget: budget.clone(),
        tenants: config.tenancy.tenants.clone(),
        body_timeout: config.remote_write.body_read_timeout,
        stall: STALL_TIMEOUT,
    })
}

fn ring_page(config: &Config, node: &Node, ready: Probe) -> RingPage {
    RingPage {
        mode: config.ring.mode().as_str(),
        local_endpoint: config.ring.local_endpoint.clone(),
        ready,
        rings: node.ring.as_ref().map(|ring| RingParts {
            current: ring.current.clone(),
            peers: ring.peers.clone(),
            agreement: ring.agreement.clone(),
            status: ring.status.clone(),
        }),
    }
}

/// The endpoints that take writes, over HTTP and gRPC.
struct Writes {
    http: Router,
    grpc: Services,
}

fn label_caps(config: &Config) -> LabelCaps {
    LabelCaps {
        labels_max: config.remote_write.series_labels_max,
        bytes_max: config.remote_write.label_bytes_max,
    }
}

fn local_writer(
    config: &Config,
    registry: &Registry,
    storage: &Arc<MultiTsdb>,
    node: &Node,
) -> LocalWriter {
    let (caps, sync) = (label_caps(config), config.storage.db.wal_sync);
    // What waits for the log has come in by any of the doors.
    let admission = node.admission.at_door(registry, "append");
    LocalWriter::new(storage.clone(), caps, sync, admission)
}

/// The endpoints that take writes, over HTTP and from peers: with a ring they hand series to the
/// nodes they belong to, without one they store them.
fn add_writes(config: &Config, registry: &Registry, node: &Node, services: Services) -> Writes {
    registry
        .gauge(
            "thanos_receive_replication_factor",
            "The number of times to replicate incoming write requests.",
        )
        .set(f64::from(config.ring.replication_factor));
    let writer = |storage| local_writer(config, registry, storage, node);
    let Some(ring) = &node.ring else {
        let Some(storage) = &node.storage else {
            unreachable!("a node has a ring or storage");
        };
        // Stores whatever replica it is told to be.
        let sink = Arc::new(Alone::new(writer(storage), registry));
        return write_endpoints(config, registry, node, sink, None, services);
    };
    let local = node.storage.as_ref().zip(config.ring.local_endpoint.clone());
    let local =
        local.map(|(storage, endpoint)| LocalNode { endpoint, store: Arc::new(writer(storage)) });
    let factor = local.is_some().then_some(u64::from(config.ring.replication_factor));
    let options = FanoutOptions {
        instance: node.instance,
        replication_factor: config.ring.replication_factor,
        forward_timeout: config.ring.forward_timeout,
        caps: label_caps(config),
    };
    let (current, peers, tasks) = (ring.current.clone(), ring.peers.clone(), node.tasks.clone());
    let admission = node.admission.clone();
    let fanout = Fanout::new(options, current, peers, local, tasks, admission, registry);
    write_endpoints(config, registry, node, Arc::new(fanout), factor, services)
}

/// `sink` behind both kinds of endpoints.
fn write_endpoints<S: WriteSink>(
    config: &Config,
    registry: &Registry,
    node: &Node,
    sink: Arc<S>,
    replication_factor: Option<u64>,
    services: Services,
) -> Writes {
    let TenancyConfig { tenants, replica_header, .. } = &config.tenancy;
    let options = RemoteWriteOptions {
        tenants: tenants.clone(),
        replica_header: replica_header.clone(),
        limits: RequestLimits {
            request_bytes_max: config.remote_write.request_bytes_max,
            decoded_bytes_max: config.remote_write.decoded_bytes_max,
            inflight_bytes_max: config.remote_write.inflight_bytes_max,
            body_read_timeout: config.remote_write.body_read_timeout,
        },
        otlp: config.remote_write.otlp.clone(),
    };
    let probe = Probe::new(has_ring(node));
    let admission = node.admission.at_door(registry, "http");
    let write = WriteService::new(sink.clone(), probe, options, admission, registry);
    let options = PeerWriteOptions {
        admission: node.admission.at_door(registry, "grpc"),
        body_read_timeout: config.remote_write.body_read_timeout,
        // A node that only routes places all series anew.
        takes_merged: node.storage.is_some(),
        ring_hash: Box::new(ring_hash(node)),
        instance: node.instance,
        tasks: node.tasks.clone(),
    };
    let server =
        RemoteWriteServer::new(PeerWrites::new(sink, replication_factor), options, registry);
    let merged = server.merged();
    let grpc = merged.into_iter().fold(services.with(server), Services::with);
    Writes { http: remote_write_router(Arc::new(write)), grpc }
}

async fn serve_http(
    service: &'static str,
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    router: Router,
    door: Door,
    draining: CancellationToken,
    grace: Duration,
) -> Result<(), AppError> {
    log_listening(service, &listener);
    let limits = ConnectionLimits::default();
    let drained = http::serve(listener, tls, router, limits, door, draining, grace).await;
    tracing::info!(service, connectionsCut = drained.connections_cut, "stopped");
    Ok(())
}

async fn serve_grpc(
    listener: TcpListener,
    services: Services,
    metrics: GrpcMetrics,
    options: GrpcOptions,
    door: Door,
    draining: CancellationToken,
) -> Result<(), AppError> {
    let service = "gRPC/server";
    log_listening(service, &listener);
    let failed = |source| AppError::Serve { service, source };
    let listener = listener.into_std().map_err(failed)?;
    let stopping = draining.cancelled_owned();
    grpc::serve(listener, services, metrics, options, door, stopping).await.map_err(failed)?;
    tracing::info!(service, "stopped");
    Ok(())
}

async fn serve_capnproto(
    listener: TcpListener,
    writer: Option<Arc<LocalWriter>>,
    options: CapnProtoOptions,
    door: Door,
    draining: CancellationToken,
) -> Result<(), AppError> {
    let service = "capnproto/server";
    log_listening(service, &listener);
    capnproto::serve(listener, writer, options, door, draining).await;
    tracing::info!(service, "stopped");
    Ok(())
}

fn log_listening(service: &str, listener: &TcpListener) {
    match listener.local_addr() {
        Ok(address) => tracing::info!(service, %address, "listening"),
        Err(error) => tracing::warn!(service, err = %error, "listening on an unknown address"),
    }
}
