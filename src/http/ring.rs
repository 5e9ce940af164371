//! `GET /api/v1/ring`: the rings in force and how their members do, for people and their scripts.
//! `POST /api/v1/ring/take` puts rings in force that are held back.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::Serialize;

use crate::hashring::watch::{FileView, HeldRings, TakeHeld};
use crate::hashring::{CurrentHashring, Endpoint, EndpointIndex, Hashring, RingState, RingView};
use crate::http::Probe;
use crate::model::Timestamp;
use crate::peer::agreement::{OwnRing, RingAgreement};
use crate::peer::{PeerPool, PeerSnapshot, PeerState};

pub const PATH: &str = "/api/v1/ring";
pub const TAKE_PATH: &str = "/api/v1/ring/take";

/// Where the rings came from, and when.
#[derive(Clone)]
pub struct RingStatus {
    source: String,
    file: FileView,
}

impl RingStatus {
    /// Of rings that are given by flag.
    pub fn inline(file: FileView) -> RingStatus {
        RingStatus { source: "--receive.hashrings".to_owned(), file }
    }

    pub fn of_file(path: &Path, file: FileView) -> RingStatus {
        RingStatus { source: path.display().to_string(), file }
    }
}

/// What the page is made from.
#[derive(Clone)]
pub struct RingPage {
    pub mode: &'static str,
    pub local_endpoint: Option<String>,
    /// As `/-/ready` tells it.
    pub ready: Probe,
    /// None on a node without rings.
    pub rings: Option<RingParts>,
}

/// What there is to tell of a node's rings.
#[derive(Clone)]
pub struct RingParts {
    pub current: CurrentHashring,
    pub peers: Arc<PeerPool>,
    pub agreement: RingAgreement,
    pub status: RingStatus,
}

/// Serves the page.
pub fn router(page: RingPage) -> Router {
    let status = page.rings.as_ref().map(|rings| rings.status.clone());
    let page = get(move || {
        let page = page.clone();
        async move { page.response() }
    });
    let take = post(move || take(status.clone()));
    Router::new().route(PATH, page).route(TAKE_PATH, take)
}

#[derive(Serialize)]
struct TakeJson {
    status: &'static str,
}

/// Puts rings in force that are held back.
async fn take(status: Option<RingStatus>) -> Response {
    let taken = match status {
        Some(status) => status.file.take_held().await,
        None => TakeHeld::NoneHeld,
    };
    let (code, status) = match taken {
        TakeHeld::Taken => (StatusCode::OK, "taken"),
        TakeHeld::Asked => (StatusCode::ACCEPTED, "to be taken"),
        TakeHeld::NoneHeld => (StatusCode::CONFLICT, "no hashrings are held back"),
    };
    (code, Json(TakeJson { status })).into_response()
}

#[derive(Serialize)]
struct PageJson<'a> {
    mode: &'static str,
    ready: bool,
    /// What is still to be done before it is, as `/-/ready` tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_ready: Option<String>,
    local_endpoint: Option<&'a str>,
    source: Option<&'a str>,
    /// Of the rings in force: the same on all nodes that place every series alike.
    ring_hash: Option<String>,
    /// As in `thanos_receive_config_hash`.
    hash: Option<u64>,
    /// Milliseconds since the Unix epoch.
    loaded_at_ms: Option<Timestamp>,
    /// What is wrong with the file that was read last, if anything.
    error: Option<String>,
    /// Rings of the file that are not in force yet.
    held: Option<HeldJson>,
    replication_factor: Option<usize>,
    hashrings: Vec<RingJson<'a>>,
}

#[derive(Serialize)]
struct HeldJson {
    /// `held`
    state: &'static str,
    reason: String,
    /// Milliseconds since the Unix epoch.
    since_ms: Timestamp,
    /// When they are taken in any case.
    until_ms: Timestamp,
    /// As in `thanos_receive_config_hash`.
    hash: u64,
    ring_hash: String,
    hashrings: Vec<HeldRingJson>,
}

#[derive(Serialize)]
struct HeldRingJson {
    hashring: String,
    members: Vec<HeldMemberJson>,
}

#[derive(Serialize)]
struct HeldMemberJson {
    address: String,
    /// As of a member in force, and `dialling` where there is no connection yet.
    state: &'static str,
}

#[derive(Serialize)]
struct RingJson<'a> {
    hashring: &'a str,
    /// `in force`, `last good`, `not built`, or `too small` to be written to.
    state: &'static str,
    /// Why the ring in the file is not in force.
    error: Option<String>,
    tenants: &'a [String],
    tenant_matcher_type: &'a str,
    members: Vec<MemberJson<'a>>,
}

#[derive(Serialize)]
struct MemberJson<'a> {
    address: &'a str,
    az: &'a str,
    is_local: bool,
    /// Part of all copies of series that the member holds. Absent where each tenant has its own
    /// part of the ring.
    share: Option<f64>,
    /// `open`, `silent`, `shut`, `probation`, `dialling` or `unreachable`; `local` for this node.
    state: &'static str,
    /// What the member said last of its rings; absent if it said nothing, as a node of Thanos.
    ring_hash: Option<String>,
    /// Milliseconds since the Unix epoch.
    ring_hash_at_ms: Option<Timestamp>,
    /// Whether they are those in force here. Absent if it said so too long ago.
    ring_agrees: Option<bool>,
    /// For how long it has been that.
    state_for_ms: Option<u64>,
    /// For how long forwards have been under way without any answer.
    unanswered_for_ms: Option<u64>,
    /// For how long forwards have been answered with errors only.
    failing_for_ms: Option<u64>,
    inflight_requests: u64,
    inflight_bytes: u64,
    /// Tenants that are backed off alone.
    tenants_backed_off: usize,
    last_error: Option<String>,
    /// Milliseconds since the Unix epoch.
    last_error_at_ms: Option<Timestamp>,
}

impl RingPage {
    fn response(&self) -> Response {
        let mut json = PageJson {
            mode: self.mode,
            ready: self.ready.holds(),
            not_ready: self.ready.why_not(),
            local_endpoint: self.local_endpoint.as_deref(),
            source: None,
            ring_hash: None,
            hash: None,
            loaded_at_ms: None,
            error: None,
            held: None,
            replication_factor: None,
            hashrings: Vec::new(),
        };
        let Some(RingParts { current, peers, agreement, status }) = &self.rings else {
            return Json(json).into_response();
        };
        let file = status.file.status();
        let snapshots = peers.snapshot();
        let peers = snapshots.iter().map(|peer| (&*peer.address, peer)).collect();
        json.source = Some(&status.source);
        json.hash = file.config_hash;
        json.loaded_at_ms = file.loaded_at;
        json.error = file.last_error;
        json.held = file.held.map(|held| self.held(&held, &peers));
        let hashring = current.load();
        if let Some(hashring) = &hashring {
            json.ring_hash = Some(hashring.hash().to_string());
            json.replication_factor = Some(hashring.defaults().replication_factor);
            let own = agreement.own();
            let ring = |ring| self.ring(hashring, &ring, &peers, own);
            json.hashrings = hashring.rings().map(ring).collect();
        }
        Json(json).into_response()
    }

    fn ring<'a>(
        &self,
        hashring: &'a Hashring,
        ring: &RingView<'a>,
        peers: &HashMap<&str, &PeerSnapshot>,
        own: Option<OwnRing>,
    ) -> RingJson<'a> {
        let (state, error) = match &ring.state {
            RingState::InForce => match &ring.unfit {
                Some(error) => ("too small", Some(error.to_string())),
                None => ("in force", None),
            },
            RingState::LastGood(error) => ("last good", Some(error.to_string())),
            RingState::NotBuilt(error) => ("not built", Some(error.to_string())),
        };
        let shares = ring.whole.and_then(|ring| ring.shares());
        let share =
            |index: &EndpointIndex| Some(shares.as_ref()?.get(index).copied().unwrap_or_default());
        // Where the last good ring stays, its members are those in force, not those of the file.
        let members = ring.indexes.iter().map(|index| {
            let endpoint = hashring.endpoint(*index);
            let address = endpoint.address.as_str();
            let is_local = self.is_local(endpoint);
            let peer = peers.get(address);
            let word = peer.and_then(|peer| peer.ring);
            let ring_hash = match (is_local, word) {
                (true, _) => Some(hashring.hash()),
                (false, word) => word.map(|word| word.hash),
            };
            MemberJson {
                address,
                az: &endpoint.az,
                is_local,
                share: share(index),
                state: match peer {
                    _ if is_local => "local",
                    Some(peer) => peer.state.as_str(),
                    None => "unreachable",
                },
                ring_hash: ring_hash.map(|hash| hash.to_string()),
                ring_hash_at_ms: word.map(|word| word.at_ms),
                ring_agrees: match is_local {
                    true => Some(true),
                    false => own.and_then(|own| own.agrees(word)),
                },
                state_for_ms: peer.map(|peer| millis(peer.state_for)),
                unanswered_for_ms: peer.and_then(|peer| peer.unanswered_for).map(millis),
                failing_for_ms: peer.and_then(|peer| peer.failing_for).map(millis),
                inflight_requests: peer.map_or(0, |peer| peer.inflight_requests),
                inflight_bytes: peer.map_or(0, |peer| peer.inflight_bytes),
                tenants_backed_off: peer.map_or(0, |peer| peer.tenants_shut),
                last_error: peer.and_then(|peer| peer.last_error.as_ref()).map(ToString::to_string),
                last_error_at_ms: peer.and_then(|peer| peer.last_error_at),
            }
        });
        RingJson {
            hashring: ring.name,
            state,
            error,
            tenants: &ring.options.tenants,
            tenant_matcher_type: ring.options.tenant_matcher.as_str(),
            members: members.collect(),
        }
    }

    fn held(&self, held: &HeldRings, peers: &HashMap<&str, &PeerSnapshot>) -> HeldJson {
        let hashring = &held.hashring;
        let member = |index: &EndpointIndex| {
            let endpoint = hashring.endpoint(*index);
            let state = match peers.get(endpoint.address.as_str()) {
                _ if self.is_local(endpoint) => "local",
                Some(peer) if peer.is_connected => peer.state.as_str(),
                Some(PeerSnapshot { state: PeerState::Unreachable(_), .. }) | None => "unreachable",
                Some(_) => "dialling",
            };
            HeldMemberJson { address: endpoint.address.clone(), state }
        };
        let ring = |ring: RingView<'_>| HeldRingJson {
            hashring: ring.name.to_owned(),
            members: ring.indexes.iter().map(member).collect(),
        };
        HeldJson {
            state: "held",
            reason: held.reason.to_string(),
            since_ms: held.since,
            until_ms: held.until,
            hash: held.config_hash,
            ring_hash: hashring.hash().to_string(),
            hashrings: hashring.rings().map(ring).collect(),
        }
    }

    fn is_local(&self, endpoint: &Endpoint) -> bool {
        self.local_endpoint.as_ref().is_some_and(|local| endpoint.has_address(local))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;
    use crate::hashring::watch::FileStatus;
    use crate::hashring::{
        Algorithm, AlgorithmChoice, HashringMetrics, OutOfReach, RingDefaults, RingOptions,
    };
    use crate::metrics::Registry;
    use crate::peer::PeerOptions;

    async fn get(page: RingPage) -> Value {
        let request = http::Request::get(PATH).body(Body::empty()).unwrap();
        let response = router(page).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn ring(name: &str, addresses: &[&str]) -> RingOptions {
        let endpoints = addresses.iter().map(|address| Endpoint::at(address)).collect();
        RingOptions { name: name.to_owned(), endpoints, ..RingOptions::default() }
    }

    #[tokio::test]
    async fn the_page_tells_of_each_member() {
        // Nobody listens on port 0.
        let addresses = ["127.0.0.1:0", "here:10901"];
        let rings = vec![ring("a", &addresses), ring("b", &addresses[..1])];
        let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 2 };
        let registry = Registry::new();
        let metrics = HashringMetrics::new(&registry);
        let build = |rings| Hashring::build(rings, defaults, None, &metrics);
        let current = CurrentHashring::fixed(build(rings));
        let hash = current.load().unwrap().hash().to_string();
        let peers = PeerPool::new(PeerOptions::default(), &registry);
        peers.update([addresses[0]]);
        let held = HeldRings {
            hashring: Arc::new(build(vec![ring("a", &["127.0.0.1:0", "there:10901"])])),
            config_hash: 8,
            since: 2000,
            until: 122_000,
            reason: OutOfReach { hashring: "a".to_owned(), quorum: 1, members: 2, available: 0 },
        };
        let file = FileView::fixed(FileStatus {
            config_hash: Some(7),
            loaded_at: Some(1000),
            last_error: Some("line 3".to_owned()),
            held: Some(held),
        });
        let page = RingPage {
            mode: "RouterIngestor",
            local_endpoint: Some("here:10901".to_owned()),
            ready: Probe::new(|| true),
            rings: Some(RingParts {
                agreement: RingAgreement::new(current.clone(), peers.clone()),
                current,
                peers,
                status: RingStatus::inline(file),
            }),
        };
        let json = get(page).await;
        assert_eq!((&json["ready"], &json["ring_hash"]), (&json!(true), &json!(hash)));
        let held = &json["held"];
        assert_eq!((&held["state"], &held["since_ms"]), (&json!("held"), &json!(2000)));
        assert!(held["reason"].as_str().unwrap().contains("quorum of 1"), "{held}");
        let members = &held["hashrings"][0]["members"];
        assert_eq!(members[0], json!({"address": "127.0.0.1:0", "state": "dialling"}));
        assert_eq!(members[1], json!({"address": "there:10901", "state": "unreachable"}));
        assert_eq!(json["hash"], 7);
        assert_eq!(json["loaded_at_ms"], 1000);
        assert_eq!(json["error"], "line 3");
        assert_eq!(json["replication_factor"], 2);
        let a = &json["hashrings"][0];
        assert_eq!((&a["hashring"], &a["state"]), (&json!("a"), &json!("in force")));
        let shares: f64 = (0..2).map(|i| a["members"][i]["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{json}");
        assert_eq!(a["members"][1]["state"], "local");
        assert_eq!(a["members"][1]["ring_hash"], json!(hash));
        assert_eq!(a["members"][0]["ring_hash"], Value::Null);
        assert_eq!(a["members"][0]["ring_agrees"], Value::Null);
        let b = &json["hashrings"][1];
        assert_eq!(b["state"], "not built");
        assert!(b["error"].as_str().unwrap().contains("replication factor"), "{json}");
        assert_eq!(b["members"], json!([]));
    }

    #[tokio::test]
    async fn a_ring_that_is_too_small_to_be_written_to_is_not_called_in_force() {
        let registry = Registry::new();
        let metrics = HashringMetrics::new(&registry);
        let defaults = RingDefaults { algorithm: Algorithm::Hashmod, replication_factor: 3 };
        let mut sharded = ring("s", &["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"]);
        sharded.algorithm = AlgorithmChoice::Named(Algorithm::Ketama);
        sharded.sharding.shard_size = 2;
        let rings = vec![ring("a", &["127.0.0.1:0", "127.0.0.2:0"]), sharded];
        let current = CurrentHashring::fixed(Hashring::build(rings, defaults, None, &metrics));
        let peers = PeerPool::new(PeerOptions::default(), &registry);
        let rings = RingParts {
            agreement: RingAgreement::new(current.clone(), peers.clone()),
            current,
            peers,
            status: RingStatus::inline(FileView::fixed(FileStatus::default())),
        };
        let (mode, ready) = ("RouterOnly", Probe::new(|| false));
        let page = RingPage { mode, local_endpoint: None, ready, rings: Some(rings) };
        let json = get(page).await;
        assert_eq!(json["ready"], false);
        let a = &json["hashrings"][0];
        assert_eq!(a["state"], "too small");
        assert_eq!(a["error"], "insufficient nodes; have 2, want 3");
        let s = &json["hashrings"][1];
        assert_eq!(s["state"], "too small");
        assert!(s["error"].as_str().unwrap().contains("2 endpoints, replication factor 3"), "{s}");
    }

    #[tokio::test]
    async fn a_node_without_rings_says_so() {
        let (mode, ready) = ("IngestorOnly", Probe::new(|| true));
        let page = RingPage { mode, local_endpoint: None, ready, rings: None };
        let request = http::Request::post(TAKE_PATH).body(Body::empty()).unwrap();
        let response = router(page.clone()).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 409);
        let json = get(page).await;
        assert_eq!((&json["mode"], &json["hashrings"]), (&json!("IngestorOnly"), &json!([])));
        assert_eq!(json["source"], Value::Null);
    }
}
