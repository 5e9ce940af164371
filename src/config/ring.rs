//! Flags of the ring: which nodes there are, which of them this is, how series reach the others.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::error::ConfigError;
use crate::config::settings::{NoticeKind, Settings};
use crate::config::tls;
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
    pub(super) fn of(settings: &mut Settings<'_>) -> Option<RingConfig> {
        let values = settings.values;
        // 0 is as good as 1, which Thanos says in its metric.
        let factor = values.uint("receive.replication-factor").max(1);
        let is_possible = |factor: &u8| usize::from(*factor) <= REPLICATION_FACTOR_MAX;
        let factor = u8::try_from(factor).ok().filter(is_possible);
        let replication_factor = settings.check(factor.ok_or(ConfigError::ReplicationFactor));
        let local_endpoint =
            Some(values.text("receive.local-endpoint")).filter(|endpoint| !endpoint.is_empty());
        let source = RingSource::of(settings, local_endpoint.as_deref());
        let forward_inflight_bytes_max =
            settings.positive_int("receive.forward.inflight-bytes-max");
        let client_tls = tls::client(settings);
        let method = method_config(settings);
        let config = RingConfig {
            source: source?,
            local_endpoint,
            algorithm: match values.text("receive.hashrings-algorithm").as_str() {
                "ketama" => Algorithm::Ketama,
                _ => Algorithm::Hashmod,
            },
            replication_factor: replication_factor?,
            hold: settings.duration("receive.ring-hold"),
            forward_timeout: settings.duration("receive-forward-timeout"),
            backoff_max: settings.duration("receive-forward-max-backoff"),
            forward_inflight_bytes_max: forward_inflight_bytes_max?,
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
            client_tls: client_tls?,
            method: method?,
            artificial_delay_max: settings.duration("receive.artificial-max-delay"),
        };
        config.check_inline(settings);
        Some(config)
    }

    /// Refuses rings that are given inline and cannot be built.
    fn check_inline(&self, settings: &mut Settings<'_>) {
        let RingSource::Inline { rings, .. } = &self.source else { return };
        for ring in self.build(rings.clone()).rings() {
            match ring.state {
                // Thanos starts with one and fails its writes, too.
                RingState::NotBuilt(RingError::NoEndpoints)
                | RingState::InForce
                | RingState::LastGood(_) => {}
                RingState::NotBuilt(error) => {
                    let hashring = ring.name.to_owned();
                    settings.errors.push(ConfigError::Ring { hashring, error });
                }
            }
        }
    }

    /// These rings as they would be in force, for a look at them.
    pub fn build(&self, rings: Vec<RingOptions>) -> Hashring {
        let metrics = HashringMetrics::new(&Registry::new());
        Hashring::build(rings, self.defaults(), None, &metrics)
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
fn method_config(settings: &mut Settings<'_>) -> Option<MethodConfig> {
    let content = settings.values.text("receive.grpc-service-config");
    if content.is_empty() {
        return Some(MethodConfig::default());
    }
    let (method, idle) = settings.check(service_config::parse(&content))?;
    for field in idle {
        let text = format!("--receive.grpc-service-config: {field} does nothing here");
        settings.notice(NoticeKind::NoEffect, text);
    }
    Some(method)
}

impl RingSource {
    /// The file has the higher priority.
    fn of(settings: &mut Settings<'_>, local_endpoint: Option<&str>) -> Option<RingSource> {
        let path = settings.values.text("receive.hashrings-file");
        if !path.is_empty() {
            let refresh_interval = settings.duration("receive.hashrings-file-refresh-interval");
            return Some(RingSource::File { path: path.into(), refresh_interval });
        }
        let content = settings.values.text("receive.hashrings");
        Some(match settings.check(file::parse_inline(&content))? {
            InlineHashrings::NotGiven => RingSource::None,
            InlineHashrings::OneNode => {
                let endpoint = settings.check(local_endpoint.ok_or(ConfigError::OneNode))?;
                let endpoints = vec![Endpoint::at(endpoint)];
                let rings = vec![RingOptions { endpoints, ..RingOptions::default() }];
                RingSource::Inline { content, rings }
            }
            InlineHashrings::Rings(rings) => RingSource::Inline { content, rings },
        })
    }
}
