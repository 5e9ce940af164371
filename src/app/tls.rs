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
        Ok(Tls {
            grpc: grpc_server(config, registry)?,
            remote_write: remote_write_server(config, registry)?,
            peers: client(config, registry)?,
        })
    }

    /// What is wrong with the files, all of it.
    pub(super) fn faults(config: &Config) -> Vec<TlsError> {
        // Each has metrics of its own, but those are for nobody.
        let registry = Registry::new();
        let grpc = grpc_server(config, &registry).err();
        let remote_write = remote_write_server(config, &registry).err();
        grpc.into_iter().chain(remote_write).chain(client(config, &registry).err()).collect()
    }
}

fn grpc_server(config: &Config, registry: &Registry) -> Result<Option<Arc<ServerTls>>, TlsError> {
    let load = |options| ServerTls::load("grpc-server-tls", options, grpc::TLS_PROTOCOLS, registry);
    Ok(config.grpc.tls.clone().map(load).transpose()?.map(Arc::new))
}

fn remote_write_server(
    config: &Config,
    registry: &Registry,
) -> Result<Option<Arc<ServerTls>>, TlsError> {
    let flags = "remote-write.server-tls";
    let load = |options| ServerTls::load(flags, options, http::TLS_PROTOCOLS, registry);
    Ok(config.remote_write.tls.clone().map(load).transpose()?.map(Arc::new))
}

fn client(config: &Config, registry: &Registry) -> Result<Option<Arc<ClientTls>>, TlsError> {
    let load = |options| ClientTls::load(options, registry);
    Ok(config.ring.client_tls.clone().map(load).transpose()?.map(Arc::new))
}
