//! TLS of the listeners and towards peers, its files read.

use std::sync::Arc;

use crate::config::Config;
use crate::metrics::Registry;
use crate::peer::tls::ClientTls;
use crate::tls::TlsError;
use crate::tls::server::ServerTls;
use crate::{grpc, http};

/// Each `None` for plain text.
pub(super) struct Tls {
    pub grpc: Option<Arc<ServerTls>>,
    pub remote_write: Option<Arc<ServerTls>>,
    pub peers: Option<Arc<ClientTls>>,
}

impl Tls {
    pub(super) fn load(config: &Config, registry: &Registry) -> Result<Tls, TlsError> {
        let server = |flags, options: &Option<_>, protocols| {
            let load = |options| ServerTls::load(flags, options, protocols, registry);
            options.clone().map(load).transpose()
        };
        let rw_flags = "remote-write.server-tls";
        let remote_write = server(rw_flags, &config.remote_write.tls, http::TLS_PROTOCOLS)?;
        let grpc = server("grpc-server-tls", &config.grpc.tls, grpc::TLS_PROTOCOLS)?;
        let client = config.ring.client_tls.clone();
        let peers = client.map(|options| ClientTls::load(options, registry)).transpose()?;
        Ok(Tls {
            grpc: grpc.map(Arc::new),
            remote_write: remote_write.map(Arc::new),
            peers: peers.map(Arc::new),
        })
    }
}
