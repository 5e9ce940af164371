//! Flags of the ring: which nodes there are, which of them this is, how series reach the others.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::command_line::Values;
use crate::config::{ConfigError, duration, positive_size, tls};
use crate::hashring::file::{self, InlineHashrings};
use crate::hashring::{
    Algorithm, Endpoint, Hashring, HashringMetrics, RingDefaults, RingError, RingOptions, RingState,
};
use crate::metrics::Registry;
use crate::peer::message::{Compression, Protocol};
use crate::peer::service_config::{self, MethodConfig};
use crate::peer::tls::ClientTlsOptions;
use crate::write::quorum::REPLICATION_FACTOR_MAX;

/// What a node does with the series it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Hands all of them to others; has no storage.
    RouterOnly,
    /// Hands them to the nodes of the ring, of which it is one.
    RouterIngestor,
    /// Stores all of them.
    IngestorOnly,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::RouterOnly => "RouterOnly",
            Mode::RouterIngestor => "RouterIngestor",
            Mode::IngestorOnly => "IngestorOnly",
        }
    }
}

/// Where the hashrings come from.
#[derive(Clone, Debug)]
pub enum RingSource {
    /// Nowhere: this node is the ring.
    None,
    /// `--receive.hashrings-file`
    File { path: PathBuf, refresh_interval: Duration },
    /// `--receive.hashrings`
    Inline { content: String, rings: Vec<RingOptions> },
}

#[derive(Clone, Debug)]
pub struct RingConfig {
    pub source: RingSource,
    /// This node as the rings name it.
    pub local_endpoint: Option<String>,
    pub algorithm: Algorithm,
    /// At least 1.
    pub replication_factor: u8,
    /// How long a changed hashrings file is held back at most; zero for never.
    pub hold: Duration,
    pub forward_timeout: Duration,
    pub backoff_max: Duration,
    /// What forwards under way to all peers may hold.
    pub forward_inflight_bytes_max: u64,
    /// Forwards under way to one peer; at least 1.
    pub forward_calls_max: usize,
    pub protocol: Protocol,
    /// TLS towards peers; `None` for plain text.
    pub client_tls: Option<ClientTlsOptions>,
    /// How calls to peers are treated.
    pub method: MethodConfig,
    /// For tests; zero for none.
    pub artificial_delay_max: Duration,
}

impl RingConfig {
    pub(super) fn from_values(
        values: &Values,
        notices: &mut Vec<String>,
    ) -> Result<RingConfig, ConfigError> {
        // 0 is as good as 1, which Thanos says in its metric.
        let factor = values.uint("receive.replication-factor").max(1);
        let replication_factor = u8::try_from(factor)
            .ok()
            .filter(|factor| usize::from(*factor) <= REPLICATION_FACTOR_MAX)
            .ok_or(ConfigError::ReplicationFactor)?;
        let local_endpoint =
            Some(values.text("receive.local-endpoint")).filter(|endpoint| !endpoint.is_empty());
        let config = RingConfig {
            source: RingSource::from_values(values, local_endpoint.as_deref())?,
            local_endpoint,
            algorithm: match values.text("receive.hashrings-algorithm").as_str() {
                "ketama" => Algorithm::Ketama,
                _ => Algorithm::Hashmod,
            },
            replication_factor,
            hold: duration(values, "receive.ring-hold"),
            forward_timeout: duration(values, "receive-forward-timeout"),
            backoff_max: duration(values, "receive-forward-max-backoff"),
            forward_inflight_bytes_max: positive_size(values, "receive.forward.inflight-bytes-max")?
                as u64,
            forward_calls_max: usize::try_from(values.uint("receive.forward.calls-max"))
                .unwrap_or(usize::MAX)
                .max(1),
            protocol: match (
                values.text("receive.replication-protocol").as_str(),
                values.text("receive.grpc-compression").as_str(),
            ) {
                ("capnproto", _) => Protocol::CapnProto,
                (_, "none") => Protocol::Protobuf(Compression::None),
                _ => Protocol::Protobuf(Compression::Snappy),
            },
            client_tls: tls::client(values, notices)?,
            method: method_config(values, notices)?,
            artificial_delay_max: duration(values, "receive.artificial-max-delay"),
        };
        config.check_inline()?;
        Ok(config)
    }

    /// Refuses rings that are given inline and cannot be built.
    fn check_inline(&self) -> Result<(), ConfigError> {
        let RingSource::Inline { rings, .. } = &self.source else { return Ok(()) };
        let metrics = HashringMetrics::new(&Registry::new());
        let hashring = Hashring::build(rings.clone(), self.defaults(), None, &metrics);
        for ring in hashring.rings() {
            match ring.state {
                // Thanos starts with one and fails its writes, too.
                RingState::NotBuilt(RingError::NoEndpoints)
                | RingState::InForce
                | RingState::LastGood(_) => {}
                RingState::NotBuilt(error) => {
                    return Err(ConfigError::Ring { hashring: ring.name.to_owned(), error });
                }
            }
        }
        Ok(())
    }

    pub fn mode(&self) -> Mode {
        match (&self.source, &self.local_endpoint) {
            (RingSource::None, _) => Mode::IngestorOnly,
            (_, Some(_)) => Mode::RouterIngestor,
            (_, None) => Mode::RouterOnly,
        }
    }

    pub fn defaults(&self) -> RingDefaults {
        RingDefaults {
            algorithm: self.algorithm,
            replication_factor: usize::from(self.replication_factor),
        }
    }
}

/// What `--receive.grpc-service-config` says. Thanos finds out with each forward that it is wrong.
fn method_config(values: &Values, notices: &mut Vec<String>) -> Result<MethodConfig, ConfigError> {
    let content = values.text("receive.grpc-service-config");
    if content.is_empty() {
        return Ok(MethodConfig::default());
    }
    let (method, idle) = service_config::parse(&content)?;
    let notice = |field| format!("--receive.grpc-service-config: {field} does nothing here");
    notices.extend(idle.into_iter().map(notice));
    Ok(method)
}

impl RingSource {
    /// The file has the higher priority.
    fn from_values(
        values: &Values,
        local_endpoint: Option<&str>,
    ) -> Result<RingSource, ConfigError> {
        let path = values.text("receive.hashrings-file");
        if !path.is_empty() {
            let refresh_interval = duration(values, "receive.hashrings-file-refresh-interval");
            return Ok(RingSource::File { path: path.into(), refresh_interval });
        }
        let content = values.text("receive.hashrings");
        Ok(match file::parse_inline(&content)? {
            InlineHashrings::NotGiven => RingSource::None,
            InlineHashrings::OneNode => {
                let endpoint = local_endpoint.ok_or(ConfigError::OneNode)?;
                let endpoints = vec![Endpoint::at(endpoint)];
                let rings = vec![RingOptions { endpoints, ..RingOptions::default() }];
                RingSource::Inline { content, rings }
            }
            InlineHashrings::Rings(rings) => RingSource::Inline { content, rings },
        })
    }
}
