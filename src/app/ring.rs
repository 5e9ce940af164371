//! The ring and the peers that it needs, kept up to date.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock as _, SystemClock};
use crate::config::{RingConfig, RingSource};
use crate::hashring::file;
use crate::hashring::watch::{FileStatus, FileView, HashringsFile, HoldRules, log_rings};
use crate::hashring::{CurrentHashring, Endpoint, Hashring, HashringMetrics};
use crate::http::ring::RingStatus;
use crate::metrics::Registry;
use crate::model::router_path::InstanceId;
use crate::peer::agreement::RingAgreement;
use crate::peer::link::LinkOptions;
use crate::peer::message::Protocol;
use crate::peer::socket;
use crate::peer::tls::ClientTls;
use crate::peer::{PeerAddress, PeerOptions, PeerPool, PeerState};
use crate::write::quorum::WriteQuorum;

/// The ring in force and the connections to its members.
pub(super) struct RingParts {
    pub current: CurrentHashring,
    pub peers: Arc<PeerPool>,
    pub agreement: RingAgreement,
    pub status: RingStatus,
}

/// Puts the rings in force that are given inline, or starts following their file; None where there
/// are none. Must be called within a runtime.
pub(super) fn start(
    config: &RingConfig,
    instance: InstanceId,
    tls: Option<Arc<ClientTls>>,
    registry: &Registry,
    stop: &CancellationToken,
) -> Option<RingParts> {
    if matches!(config.source, RingSource::None) {
        return None;
    }
    let options = PeerOptions {
        protocol: config.protocol,
        backoff_max: config.backoff_max,
        inflight_bytes_max: config.forward_inflight_bytes_max,
        calls_max: config.forward_calls_max,
        instance: Some(instance),
        tls,
        link: LinkOptions {
            user_timeout: socket::user_timeout(config.forward_timeout),
            ..PeerOptions::default().link
        },
        method: config.method,
        artificial_delay_max: config.artificial_delay_max,
    };
    let peers = PeerPool::new(options, registry);
    let local = config.local_endpoint.clone();
    let current = prepared(peers.clone(), local.clone());
    if let Some(local) = local.clone() {
        tokio::spawn(tell_if_absent(current.clone(), local, stop.clone()));
    }
    tokio::spawn(forget_leavers(current.clone(), peers.clone(), local, stop.clone()));
    let agreement = RingAgreement::new(current.clone(), peers.clone());
    agreement.show(registry);
    tokio::spawn(agreement.clone().watch(stop.clone()));
    let status = match &config.source {
        RingSource::None => return None,
        RingSource::Inline { content, rings } => {
            let metrics = HashringMetrics::new(registry);
            let hashring = Hashring::build(rings.clone(), config.defaults(), None, &metrics);
            log_rings(&hashring, None);
            current.replace(hashring);
            RingStatus::inline(FileView::fixed(FileStatus {
                config_hash: Some(file::config_hash(content.as_bytes())),
                loaded_at: Some(SystemClock.now()),
                ..FileStatus::default()
            }))
        }
        RingSource::File { path, refresh_interval } => {
            let file = HashringsFile::new(
                path.clone(),
                config.defaults(),
                current.clone(),
                hold_rules(config, peers.clone()),
                Arc::new(SystemClock),
                registry,
            );
            let status = RingStatus::of_file(path, file.view());
            tokio::spawn(file.follow(*refresh_interval, stop.clone()));
            status
        }
    };
    Some(RingParts { current, peers, agreement, status })
}

/// A changed file is held back while nobody could write with it. A member counts once it is
/// connected and would be called; this node itself always does.
fn hold_rules(config: &RingConfig, peers: Arc<PeerPool>) -> HoldRules {
    let quorum = WriteQuorum::of(usize::from(config.replication_factor)).successes();
    let local = config.local_endpoint.clone();
    let reason = move |in_force: &Hashring, next: &Hashring| {
        let snapshots = peers.snapshot().into_iter();
        let is_used = |state| matches!(state, PeerState::Open | PeerState::Probation);
        let available: HashSet<Arc<str>> = snapshots
            .filter(|peer| peer.is_connected && is_used(peer.state.clone()))
            .map(|peer| peer.address)
            .collect();
        in_force.lost_in(next, quorum, |endpoint: &Endpoint| {
            let is_local = local.as_ref().is_some_and(|local| endpoint.has_address(local));
            is_local || available.contains(endpoint.address.as_str())
        })
    };
    HoldRules { longest: config.hold, reason: Box::new(reason) }
}

/// Rings whose new members are being dialled before the first request is sent to them.
fn prepared(peers: Arc<PeerPool>, local: Option<String>) -> CurrentHashring {
    CurrentHashring::prepared_by(move |next| {
        let before = peers.snapshot();
        let before =
            before.iter().map(|peer| PeerAddress { name: &peer.address, dialled: &peer.dialled });
        let members = || addresses(next, local.as_deref(), peers.options().protocol);
        peers.update(before.chain(members()));
        peers.set_members(members().map(|member| member.name));
    })
}

/// Tells when no ring in force has this node: it then stores only what others place here.
async fn tell_if_absent(current: CurrentHashring, local: String, stop: CancellationToken) {
    let mut changes = current.subscribe();
    let mut was_absent = false;
    loop {
        let hashring = changes.borrow_and_update().clone();
        if let Some(hashring) = hashring {
            let is_absent =
                !hashring.endpoints().iter().any(|endpoint| endpoint.has_address(&local));
            if is_absent && !was_absent {
                tracing::warn!(
                    component = "receive",
                    endpoint = local,
                    "no hashring has the endpoint that --receive.local-endpoint names"
                );
            }
            was_absent = is_absent;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// How long members that have left are kept: far longer than a request takes from taking the ring
/// to calling its peers. One that has taken the ring before would find its peer gone otherwise, and
/// fail without need, or leave its series a copy short.
const LEAVER_GRACE: Duration = Duration::from_secs(5);

/// Closes the connections to members that have left, once no request is sent to them any more.
async fn forget_leavers(
    current: CurrentHashring,
    peers: Arc<PeerPool>,
    local: Option<String>,
    stop: CancellationToken,
) {
    let mut changes = current.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        let changed = changes.borrow_and_update().clone();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LEAVER_GRACE) => {}
        }
        // Who has left in the meantime has its own time still to come, and who is to come stays.
        current.while_settled(|latest, next| {
            let rings = changed.as_deref().into_iter().chain(latest).chain(next);
            let protocol = peers.options().protocol;
            peers.update(rings.flat_map(|ring| addresses(ring, local.as_deref(), protocol)));
        });
    }
}

/// Where the other members are.
fn addresses<'a>(
    hashring: &'a Hashring,
    local: Option<&'a str>,
    protocol: Protocol,
) -> impl Iterator<Item = PeerAddress<'a>> {
    let others = hashring
        .endpoints()
        .iter()
        .filter(move |endpoint| local.is_none_or(|local| !endpoint.has_address(local)));
    others.map(move |endpoint| PeerAddress {
        name: &endpoint.address,
        dialled: match protocol {
            Protocol::Protobuf(_) => &endpoint.address,
            Protocol::CapnProto => &endpoint.capnproto_address,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashring::{Algorithm, Endpoint, RingDefaults, RingOptions};

    fn hashring(addresses: &[&str]) -> Hashring {
        let endpoints = addresses.iter().map(|address| Endpoint::at(address)).collect();
        let rings = vec![RingOptions { endpoints, ..RingOptions::default() }];
        let defaults = RingDefaults { algorithm: Algorithm::Hashmod, replication_factor: 1 };
        Hashring::build(rings, defaults, None, &HashringMetrics::new(&Registry::new()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_left_is_kept_for_requests_that_took_the_ring_before() {
        // Nobody listens on port 0.
        let [local, a, b, c] = ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0", "127.0.0.4:0"];
        let peers = PeerPool::new(PeerOptions::default(), &Registry::new());
        let current = prepared(peers.clone(), Some(local.to_owned()));
        let stop = CancellationToken::new();
        let local_endpoint = Some(local.to_owned());
        let task = forget_leavers(current.clone(), peers.clone(), local_endpoint, stop.clone());
        let task = tokio::spawn(task);
        let known = || peers.snapshot().into_iter().map(|peer| peer.address).collect::<Vec<_>>();
        let half = LEAVER_GRACE / 2 + Duration::from_millis(1);

        current.replace(hashring(&[local, a, b]));
        tokio::time::sleep(2 * half).await;
        assert_eq!(known(), [a, b].map(Arc::from));
        current.replace(hashring(&[local, b, c]));
        tokio::time::sleep(half).await;
        assert_eq!(known(), [a, b, c].map(Arc::from));
        current.replace(hashring(&[local, c]));
        tokio::time::sleep(half).await;
        assert_eq!(known(), [b, c].map(Arc::from), "the second to leave has time left");
        tokio::time::sleep(2 * half).await;
        assert_eq!(known(), [c].map(Arc::from));
        // Members of a ring that is held back are known until it is withdrawn.
        current.announce(Arc::new(hashring(&[a, b])));
        assert_eq!(known(), [a, b, c].map(Arc::from));
        current.replace(hashring(&[local, c]));
        current.announce(Arc::new(hashring(&[a])));
        tokio::time::sleep(3 * half).await;
        assert_eq!(known(), [a, c].map(Arc::from));
        current.withdraw();
        tokio::time::sleep(3 * half).await;
        assert_eq!(known(), [c].map(Arc::from));
        stop.cancel();
        task.await.unwrap();
    }
}
