//! What is served on which port. Each listener's lines stand in one function.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::AppError;
use crate::app::listeners::Listeners;
use crate::config::{Config, TenancyConfig};
use crate::grpc::metrics::GrpcMetrics;
use crate::grpc::remote_write::{RemoteWriteOptions as PeerWriteOptions, RemoteWriteServer};
use crate::grpc::{self, GrpcOptions, Services};
use crate::http::read::{self, RemoteRead};
use crate::http::remote_write::{RemoteWriteOptions, RequestLimits, WriteService};
use crate::http::tenant::TenantRules;
use crate::http::{self, ConnectionLimits, Probe, remote_write_router, status_router};
use crate::metrics::Registry;
use crate::multi_tsdb::MultiTsdb;
use crate::store::budget::ReadBudget;
use crate::write::admission::Admission;
use crate::write::known::LabelCaps;
use crate::write::local::LocalWriter;
use crate::write::service::PeerWrites;

/// Serves on all listeners until `draining`, then ends each within its grace period.
pub(super) fn spawn(
    listeners: Listeners,
    config: &Config,
    registry: &Registry,
    storage: &Arc<MultiTsdb>,
    draining: &CancellationToken,
) -> JoinSet<Result<(), AppError>> {
    let budget = ReadBudget::new(config.query_inflight_bytes_max);
    let grace = config.http.grace_period;
    let operator = operator_router(config, registry, storage, &budget, draining);
    let caps = LabelCaps {
        labels_max: config.remote_write.series_labels_max,
        bytes_max: config.remote_write.label_bytes_max,
    };
    let writer = Arc::new(LocalWriter::new(storage.clone(), caps, config.storage.db.wal_sync));
    let write = write_service(config, registry, &writer, draining);
    let services = Services::of_reads(storage.clone(), budget).with(peer_write_server(
        config,
        registry,
        writer,
        write.admission(),
        draining,
    ));
    let grpc_metrics = GrpcMetrics::new(registry, services.names());
    let grpc_options = GrpcOptions {
        grace_period: config.grpc.grace_period,
        connection_age_max: config.grpc.connection_age_max,
    };
    let mut servers = JoinSet::new();
    let draining = || draining.clone();
    servers.spawn(serve_http("http/server", listeners.http, operator, draining(), grace));
    servers.spawn(serve_http(
        "remote-write/server",
        listeners.remote_write,
        remote_write_router(write),
        draining(),
        grace,
    ));
    servers.spawn(serve_grpc(listeners.grpc, services, grpc_metrics, grpc_options, draining()));
    servers
}

/// Metrics, probes and remote read.
fn operator_router(
    config: &Config,
    registry: &Registry,
    storage: &Arc<MultiTsdb>,
    budget: &ReadBudget,
    draining: &CancellationToken,
) -> Router {
    let (source, stopping) = (storage.clone(), draining.clone());
    let ready = Probe::new(move || source.is_ready() && !stopping.is_cancelled());
    let remote_read = read::router(RemoteRead {
        source: storage.clone(),
        budget: budget.clone(),
        tenant_header: config.tenancy.tenant_header.clone(),
        default_tenant: config.tenancy.default_tenant.clone(),
    });
    remote_read.merge(status_router(registry, ready))
}

/// Remote write. Taken while storage opens: each tenant answers for itself.
fn write_service(
    config: &Config,
    registry: &Registry,
    writer: &Arc<LocalWriter>,
    draining: &CancellationToken,
) -> Arc<WriteService<LocalWriter>> {
    let TenancyConfig { tenant_header, default_tenant, replica_header, .. } = &config.tenancy;
    let options = RemoteWriteOptions {
        tenants: TenantRules::new(tenant_header.clone(), default_tenant.clone()),
        replica_header: replica_header.clone(),
        limits: RequestLimits {
            request_bytes_max: config.remote_write.request_bytes_max,
            decoded_bytes_max: config.remote_write.decoded_bytes_max,
            inflight_bytes_max: config.remote_write.inflight_bytes_max,
            body_read_timeout: config.remote_write.body_read_timeout,
        },
    };
    let stopping = draining.clone();
    let accepting = Probe::new(move || !stopping.is_cancelled());
    Arc::new(WriteService::new(writer.clone(), accepting, options, registry))
}

/// Writes of peers, stored whatever replica they say they are: this node has no ring.
fn peer_write_server(
    config: &Config,
    registry: &Registry,
    writer: Arc<LocalWriter>,
    admission: Arc<Admission>,
    draining: &CancellationToken,
) -> RemoteWriteServer<LocalWriter> {
    let stopping = draining.clone();
    let options = PeerWriteOptions {
        is_accepting: Box::new(move || !stopping.is_cancelled()),
        admission,
        body_read_timeout: config.remote_write.body_read_timeout,
    };
    RemoteWriteServer::new(PeerWrites::new(writer, None), options, registry)
}

async fn serve_http(
    service: &'static str,
    listener: TcpListener,
    router: Router,
    draining: CancellationToken,
    grace: Duration,
) -> Result<(), AppError> {
    log_listening(service, &listener);
    let limits = ConnectionLimits::default();
    let drained = http::serve(listener, router, limits, draining, grace).await;
    tracing::info!(service, connectionsCut = drained.connections_cut, "stopped");
    Ok(())
}

async fn serve_grpc(
    listener: TcpListener,
    services: Services,
    metrics: GrpcMetrics,
    options: GrpcOptions,
    draining: CancellationToken,
) -> Result<(), AppError> {
    let service = "gRPC/server";
    log_listening(service, &listener);
    let failed = |source| AppError::Serve { service, source };
    let listener = listener.into_std().map_err(failed)?;
    let stopping = draining.cancelled_owned();
    grpc::serve(listener, services, metrics, options, stopping).await.map_err(failed)?;
    tracing::info!(service, "stopped");
    Ok(())
}

fn log_listening(service: &str, listener: &TcpListener) {
    match listener.local_addr() {
        Ok(address) => tracing::info!(service, %address, "listening"),
        Err(error) => tracing::warn!(service, err = %error, "listening on an unknown address"),
    }
}
