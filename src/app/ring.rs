//! The ring and the peers that it needs, kept up to date.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock as _, SystemClock};
use crate::config::hashrings;
use crate::config::hashrings::watch::{FileStatus, HashringsFile};
use crate::config::{RingConfig, RingSource};
use crate::hashring::{CurrentHashring, Hashring, HashringMetrics};
use crate::http::ring::RingStatus;
use crate::metrics::Registry;
use crate::peer::{INFLIGHT_BYTES_MAX_DEFAULT, PeerOptions, PeerPool};

/// The ring in force and the connections to its members.
pub(super) struct RingParts {
    pub current: CurrentHashring,
    pub peers: Arc<PeerPool>,
    pub status: RingStatus,
}

/// Puts the rings in force that are given inline, or starts following their file; None where there
/// are none. Must be called within a runtime.
pub(super) fn start(
    config: &RingConfig,
    registry: &Registry,
    stop: &CancellationToken,
) -> Option<RingParts> {
    if matches!(config.source, RingSource::None) {
        return None;
    }
    let options = PeerOptions {
        compression: config.compression,
        backoff_max: config.backoff_max,
        inflight_bytes_max: INFLIGHT_BYTES_MAX_DEFAULT,
        tls: None,
    };
    let peers = PeerPool::new(options, registry);
    let local = config.local_endpoint.clone();
    let current = prepared(peers.clone(), local.clone());
    tokio::spawn(forget_leavers(current.subscribe(), peers.clone(), local, stop.clone()));
    let status = match &config.source {
        RingSource::None => return None,
        RingSource::Inline { content, rings } => {
            let metrics = HashringMetrics::new(registry);
            let hashring = Hashring::build(rings.clone(), config.defaults(), None, &metrics);
            for warning in hashring.warnings() {
                tracing::warn!(
                    component = "receive",
                    hashring = %warning.hashring,
                    err = %warning.kind,
                    "hashring has a flaw"
                );
            }
            current.replace(hashring);
            RingStatus::inline(FileStatus {
                config_hash: Some(hashrings::config_hash(content.as_bytes())),
                loaded_at: Some(SystemClock.now()),
                last_error: None,
            })
        }
        RingSource::File { path, refresh_interval } => {
            let file = HashringsFile::new(
                path.clone(),
                config.defaults(),
                current.clone(),
                Arc::new(SystemClock),
                registry,
            );
            let status = RingStatus::of_file(path, file.status());
            tokio::spawn(file.follow(*refresh_interval, stop.clone()));
            status
        }
    };
    Some(RingParts { current, peers, status })
}

/// Rings whose new members are being dialled before the first request is sent to them.
fn prepared(peers: Arc<PeerPool>, local: Option<String>) -> CurrentHashring {
    CurrentHashring::prepared_by(move |next| {
        let before = peers.snapshot();
        let before = before.iter().map(|peer| &*peer.address);
        peers.update(before.chain(addresses(next, local.as_deref())));
    })
}

/// Closes the connections to members that have left, once no new request is sent to them.
async fn forget_leavers(
    mut changes: watch::Receiver<Option<Arc<Hashring>>>,
    peers: Arc<PeerPool>,
    local: Option<String>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        let hashring = changes.borrow_and_update().clone();
        if let Some(hashring) = hashring {
            peers.update(addresses(&hashring, local.as_deref()));
        }
    }
}

/// Where the other members are.
fn addresses<'a>(hashring: &'a Hashring, local: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    let endpoints = hashring.endpoints().iter();
    let others =
        endpoints.filter(move |endpoint| !local.is_some_and(|at| endpoint.has_address(at)));
    others.map(|endpoint| endpoint.address.as_str())
}
