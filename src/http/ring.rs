//! `GET /api/v1/ring`: the rings in force and how their members do, for people and their scripts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::Serialize;

use crate::config::hashrings::watch::FileStatus;
use crate::hashring::{CurrentHashring, EndpointIndex, Hashring, RingState, RingView};
use crate::model::Timestamp;
use crate::peer::{PeerPool, PeerSnapshot};

const PATH: &str = "/api/v1/ring";

/// Where the rings came from, and when.
#[derive(Clone)]
pub struct RingStatus {
    source: String,
    file: Arc<Mutex<FileStatus>>,
}

impl RingStatus {
    /// Of rings that are given by flag.
    pub fn inline(status: FileStatus) -> RingStatus {
        RingStatus { source: "--receive.hashrings".to_owned(), file: Arc::new(Mutex::new(status)) }
    }

    pub fn of_file(path: &Path, status: Arc<Mutex<FileStatus>>) -> RingStatus {
        RingStatus { source: path.display().to_string(), file: status }
    }
}

/// What the page is made from.
#[derive(Clone)]
pub struct RingPage {
    pub mode: &'static str,
    pub local_endpoint: Option<String>,
    /// None on a node without rings.
    pub rings: Option<(CurrentHashring, Arc<PeerPool>, RingStatus)>,
}

/// Serves the page.
pub fn router(page: RingPage) -> Router {
    Router::new().route(
        PATH,
        get(move || {
            let page = page.clone();
            async move { page.response() }
        }),
    )
}

#[derive(Serialize)]
struct PageJson<'a> {
    mode: &'static str,
    local_endpoint: Option<&'a str>,
    source: Option<&'a str>,
    /// As in `thanos_receive_config_hash`.
    hash: Option<u64>,
    /// Milliseconds since the Unix epoch.
    loaded_at_ms: Option<Timestamp>,
    /// What is wrong with the file that was read last, if anything.
    error: Option<String>,
    replication_factor: Option<usize>,
    hashrings: Vec<RingJson<'a>>,
}

#[derive(Serialize)]
struct RingJson<'a> {
    hashring: &'a str,
    /// `in force`, `last good` or `not built`.
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
    /// `open`, `shut`, `probation` or `unreachable`; `local` for this node.
    state: &'static str,
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
            local_endpoint: self.local_endpoint.as_deref(),
            source: None,
            hash: None,
            loaded_at_ms: None,
            error: None,
            replication_factor: None,
            hashrings: Vec::new(),
        };
        let Some((current, peers, status)) = &self.rings else {
            return Json(json).into_response();
        };
        let file = status.file.lock().clone();
        json.source = Some(&status.source);
        json.hash = file.config_hash;
        json.loaded_at_ms = file.loaded_at;
        json.error = file.last_error;
        let hashring = current.load();
        if let Some(hashring) = &hashring {
            json.replication_factor = Some(hashring.defaults().replication_factor);
            let snapshots = peers.snapshot();
            let peers = snapshots.iter().map(|peer| (&*peer.address, peer)).collect();
            let ring = |ring| self.ring(hashring, &ring, &peers);
            json.hashrings = hashring.rings().map(ring).collect();
        }
        Json(json).into_response()
    }

    fn ring<'a>(
        &self,
        hashring: &'a Hashring,
        ring: &RingView<'a>,
        peers: &HashMap<&str, &PeerSnapshot>,
    ) -> RingJson<'a> {
        let (state, error) = match &ring.state {
            RingState::InForce => ("in force", None),
            RingState::LastGood(error) => ("last good", Some(error.to_string())),
            RingState::NotBuilt(error) => ("not built", Some(error.to_string())),
        };
        let shares = ring.whole.map(|ring| ring.shares());
        let share =
            |index: &EndpointIndex| Some(shares.as_ref()?.get(index).copied().unwrap_or_default());
        // Where the last good ring stays, its members are those in force, not those of the file.
        let members = ring.indexes.iter().map(|index| {
            let endpoint = hashring.endpoint(*index);
            let address = endpoint.address.as_str();
            let local = self.local_endpoint.as_deref();
            let is_local = local.is_some_and(|local| endpoint.has_address(local));
            let peer = peers.get(address);
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
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;
    use crate::hashring::{Algorithm, Endpoint, HashringMetrics, RingDefaults, RingOptions};
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
        let current = CurrentHashring::fixed(Hashring::build(rings, defaults, None, &metrics));
        let peers = PeerPool::new(PeerOptions::default(), &registry);
        peers.update([addresses[0]]);
        let file = FileStatus {
            config_hash: Some(7),
            loaded_at: Some(1000),
            last_error: Some("line 3".to_owned()),
        };
        let page = RingPage {
            mode: "RouterIngestor",
            local_endpoint: Some("here:10901".to_owned()),
            rings: Some((current, peers, RingStatus::inline(file))),
        };
        let json = get(page).await;
        assert_eq!(json["hash"], 7);
        assert_eq!(json["loaded_at_ms"], 1000);
        assert_eq!(json["error"], "line 3");
        assert_eq!(json["replication_factor"], 2);
        let a = &json["hashrings"][0];
        assert_eq!((&a["hashring"], &a["state"]), (&json!("a"), &json!("in force")));
        let shares: f64 = (0..2).map(|i| a["members"][i]["share"].as_f64().unwrap()).sum();
        assert!((shares - 1.0).abs() < 1e-9, "{json}");
        assert_eq!(a["members"][1]["state"], "local");
        let b = &json["hashrings"][1];
        assert_eq!(b["state"], "not built");
        assert!(b["error"].as_str().unwrap().contains("replication factor"), "{json}");
        assert_eq!(b["members"], json!([]));
    }

    #[tokio::test]
    async fn a_node_without_rings_says_so() {
        let page = RingPage { mode: "IngestorOnly", local_endpoint: None, rings: None };
        let json = get(page).await;
        assert_eq!((&json["mode"], &json["hashrings"]), (&json!("IngestorOnly"), &json!([])));
        assert_eq!(json["source"], Value::Null);
    }
}
