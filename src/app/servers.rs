//! What is served on which port. Each listener's lines stand in one function.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::AppError;
use crate::app::listeners::Listeners;
use crate::config::Config;
use crate::metrics::Registry;
use crate::multi_tsdb::MultiTsdb;

/// Serves on all listeners until `draining`, then ends each within its grace period.
pub(super) fn spawn(
    listeners: Listeners,
    config: &Config,
    registry: &Registry,
    storage: &Arc<MultiTsdb>,
    draining: &CancellationToken,
) -> JoinSet<Result<(), AppError>> {
    let mut servers = JoinSet::new();
    let draining = || draining.clone();
    servers.spawn(http(listeners.http, config, registry, storage, draining()));
    servers.spawn(remote_write(listeners.remote_write, config, draining()));
    servers.spawn(grpc(listeners.grpc, config, draining()));
    servers
}

/// Metrics and probes on `--http-address`.
fn http(
    listener: TcpListener,
    config: &Config,
    registry: &Registry,
    storage: &Arc<MultiTsdb>,
    draining: CancellationToken,
) -> impl Future<Output = Result<(), AppError>> + use<> {
    let (registry, storage, stopping) = (registry.clone(), storage.clone(), draining.clone());
    let ready = move || match storage.is_ready() && !stopping.is_cancelled() {
        true => (StatusCode::OK, "OK"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "NOT OK"),
    };
    let router = Router::new()
        .route("/-/ready", any(async move || ready()))
        .route("/-/healthy", any(async || "OK"))
        .route("/metrics", any(async move || registry.expose()));
    let grace = config.http.grace_period;
    async move {
        log_listening("http/server", &listener);
        serve("http/server", listener, router, draining, grace).await
    }
}

/// Remote write on `--remote-write.address`.
fn remote_write(
    listener: TcpListener,
    config: &Config,
    draining: CancellationToken,
) -> impl Future<Output = Result<(), AppError>> + use<> {
    let grace = config.http.grace_period;
    async move {
        log_listening("remote-write/server", &listener);
        serve("remote-write/server", listener, Router::new(), draining, grace).await
    }
}

/// The StoreAPI on `--grpc-address`.
fn grpc(
    listener: TcpListener,
    config: &Config,
    draining: CancellationToken,
) -> impl Future<Output = Result<(), AppError>> + use<> {
    let grace = config.grpc.grace_period;
    async move {
        log_listening("gRPC/server", &listener);
        serve("gRPC/server", listener, Router::new(), draining, grace).await
    }
}

fn log_listening(service: &str, listener: &TcpListener) {
    match listener.local_addr() {
        Ok(address) => tracing::info!(service, %address, "listening"),
        Err(error) => tracing::warn!(service, err = %error, "listening on an unknown address"),
    }
}

async fn serve(
    service: &'static str,
    listener: TcpListener,
    router: Router,
    draining: CancellationToken,
    grace: Duration,
) -> Result<(), AppError> {
    let stop = draining.clone();
    let serving = axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .into_future();
    let grace_over = async {
        draining.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = serving => served.map_err(|source| AppError::Serve { service, source })?,
        () = grace_over => {}
    }
    tracing::info!(service, "stopped");
    Ok(())
}
