//! How peers are treated.

use std::sync::Arc;
use std::time::Duration;

use crate::model::router_path::InstanceId;
use crate::peer::link::LinkOptions;
use crate::peer::message::{Compression, Protocol};
use crate::peer::service_config::MethodConfig;
use crate::peer::tls::ClientTls;
use crate::peer::{resolve, socket};

/// What forwards under way to all peers may hold: some thousand requests of 2,000 series.
const INFLIGHT_BYTES_MAX_DEFAULT: u64 = 256 << 20;

/// Calls that may be under way to one peer.
const CALLS_MAX_DEFAULT: usize = 1024;

/// A connection is replaced after about so long, so that load spreads over what has come to stand
/// behind its name.
const CONNECTION_AGE_MAX_DEFAULT: Duration = Duration::from_secs(30 * 60);

/// How peers are treated.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// `--receive.replication-protocol`, `--receive.grpc-compression`
    pub protocol: Protocol,
    /// `--receive-forward-max-backoff`
    pub backoff_max: Duration,
    /// `--receive.forward.inflight-bytes-max`: what forwards under way to all peers hold. A single
    /// larger message may go alone.
    pub inflight_bytes_max: u64,
    /// `--receive.forward.calls-max`: to one peer.
    pub calls_max: usize,
    /// What this process is called, by which a peer is known that is none.
    pub instance: Option<InstanceId>,
    /// `None` for plain text. Cap'n Proto is always plain, but what it has no place for is not sent
    /// over it.
    pub tls: Option<Arc<ClientTls>>,
    /// How connections are treated.
    pub link: LinkOptions,
    /// `--receive.grpc-service-config`
    pub method: MethodConfig,
    /// `--receive.artificial-max-delay`: forwards to the second peer wait for a random time, up to
    /// this and at least a second, so that tests meet a slow one.
    pub artificial_delay_max: Duration,
}

impl Default for PeerOptions {
    fn default() -> PeerOptions {
        PeerOptions {
            protocol: Protocol::Protobuf(Compression::Snappy),
            backoff_max: Duration::from_secs(5),
            inflight_bytes_max: INFLIGHT_BYTES_MAX_DEFAULT,
            calls_max: CALLS_MAX_DEFAULT,
            instance: None,
            tls: None,
            link: LinkOptions {
                user_timeout: socket::user_timeout(Duration::ZERO),
                age_max: CONNECTION_AGE_MAX_DEFAULT,
                resolve: resolve::resolve,
            },
            method: MethodConfig::default(),
            artificial_delay_max: Duration::ZERO,
        }
    }
}
