//! What the listeners for HTTP and gRPC are told.

use std::time::Duration;

use crate::config::listen::ListenAddress;
use crate::config::settings::{NoticeKind, Settings};
use crate::config::tls;
use crate::tls::server::ServerTlsOptions;

/// Metrics, probes, remote read.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub address: ListenAddress,
    pub grace_period: Duration,
    /// The flag by which another listener asks its clients for certificates, which this one cannot:
    /// then what reads or names tenants is not served here.
    pub reads_closed_by: Option<&'static str>,
    /// Tenants that have lines of their own on the metrics page.
    pub metrics_tenants_max: usize,
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
        let address = ListenAddress::of(settings, "http-address");
        let reads_closed_by = reads_closed_by(settings);
        let metrics_tenants_max = settings.positive_count("http.metrics-tenants-max");
        Some(HttpConfig {
            address: address?,
            grace_period: settings.duration("http-grace-period"),
            reads_closed_by,
            metrics_tenants_max: metrics_tenants_max?,
        })
    }
}

const GRPC_CLIENT_CA: &str = "grpc-server-tls-client-ca";

/// Flags by which a listener asks its clients for certificates.
const CLIENT_CERTIFICATES: [&str; 2] = [GRPC_CLIENT_CA, "remote-write.server-tls-client-ca"];

/// Thanos serves no data on its HTTP port, so a swap must not open any to those who have no
/// certificate for the other ports.
fn reads_closed_by(settings: &mut Settings<'_>) -> Option<&'static str> {
    let asks = |flag: &&&str| !settings.values.text(flag).is_empty();
    let flag = *CLIENT_CERTIFICATES.iter().find(asks)?;
    if settings.values.switch("http.open-reads") {
        let text = format!(
            "--http.open-reads: whoever reaches --http-address reads every tenant's data without a \
             certificate, which --{flag} asks for elsewhere"
        );
        settings.notice(NoticeKind::Warning, text);
        return None;
    }
    let text = format!(
        "remote read and the pages of the rings answer 403 on --http-address, where no certificate \
         can be asked for as --{flag} does elsewhere; --http.open-reads serves them to everybody"
    );
    settings.notice(NoticeKind::Warning, text);
    Some(flag)
}

/// `Some(None)` where there is to be no such port.
pub(super) fn capnproto_address(settings: &mut Settings<'_>) -> Option<Option<ListenAddress>> {
    const FLAG: &str = "receive.capnproto-address";
    let address = ListenAddress::of(settings, FLAG)?;
    if !settings.values.switch("receive.capnproto") {
        return Some(None);
    }
    if !settings.values.text(GRPC_CLIENT_CA).is_empty() {
        let text = format!(
            "--{FLAG}={address}: that port takes writes of any tenant without a certificate, which \
             --{GRPC_CLIENT_CA} asks for on the gRPC port; --no-receive.capnproto closes it"
        );
        settings.notice(NoticeKind::Warning, text);
    }
    Some(Some(address))
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
