//! What the listeners for HTTP and gRPC are told.

use std::time::Duration;

use crate::config::listen::ListenAddress;
use crate::config::settings::Settings;
use crate::config::tls;
use crate::tls::server::ServerTlsOptions;

/// Metrics, probes, remote read.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub address: ListenAddress,
    pub grace_period: Duration,
}

/// The StoreAPI and Info services.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    pub address: ListenAddress,
    pub grace_period: Duration,
    /// Older connections are closed, so that clients spread anew; `None` for never.
    pub connection_age_max: Option<Duration>,
    /// `None` for plain text.
    pub tls: Option<ServerTlsOptions>,
}

impl HttpConfig {
    pub(super) fn of(settings: &mut Settings<'_>) -> Option<HttpConfig> {
        Some(HttpConfig {
            address: ListenAddress::of(settings, "http-address")?,
            grace_period: settings.duration("http-grace-period"),
        })
    }
}

impl GrpcConfig {
    pub(super) fn of(settings: &mut Settings<'_>) -> Option<GrpcConfig> {
        let address = ListenAddress::of(settings, "grpc-address");
        let tls = tls::GRPC_SERVER.options(settings);
        Some(GrpcConfig {
            address: address?,
            grace_period: settings.duration("grpc-grace-period"),
            connection_age_max: Some(settings.duration("grpc-server-max-connection-age"))
                .filter(|age| !age.is_zero()),
            tls: tls?,
        })
    }
}
