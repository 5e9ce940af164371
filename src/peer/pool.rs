//! The peers of the ring in force, made and dropped with it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::metrics::Registry;
use crate::peer::inflight::Budget;
use crate::peer::metrics::PoolMetrics;
use crate::peer::snapshot::PeerSnapshot;
use crate::peer::{Peer, PeerOptions};

/// An endpoint as the pool knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress<'a> {
    /// What the ring calls it, `host:port`.
    pub name: &'a str,
    /// Where it is called, `host:port`.
    pub dialled: &'a str,
}

impl<'a> From<&'a str> for PeerAddress<'a> {
    /// An endpoint that is called by its name.
    fn from(address: &'a str) -> PeerAddress<'a> {
        PeerAddress { name: address, dialled: address }
    }
}

/// All peers of the ring in force.
pub struct PeerPool {
    options: PeerOptions,
    budget: Arc<Budget>,
    metrics: PoolMetrics,
    peers: ArcSwap<HashMap<Arc<str>, Arc<Peer>>>,
    /// How many were ever made. Held while they are replaced.
    made: Mutex<u64>,
}

impl PeerPool {
    pub fn new(options: PeerOptions, registry: &Registry) -> Arc<PeerPool> {
        let pool = Arc::new(PeerPool {
            budget: Budget::new(options.inflight_bytes_max, options.calls_max),
            options,
            metrics: PoolMetrics::new(registry),
            peers: ArcSwap::default(),
            made: Mutex::new(0),
        });
        pool.metrics.show(Arc::downgrade(&pool));
        pool
    }

    /// Makes the peers those at `addresses`: connections to others are closed once their calls have
    /// ended, and those that stay are not touched. Must be called within a runtime.
    pub fn update<'a>(&self, addresses: impl IntoIterator<Item: Into<PeerAddress<'a>>>) {
        let mut made = self.made.lock();
        let before = self.peers.load();
        let mut peers: HashMap<_, Arc<Peer>> = HashMap::new();
        for address in addresses {
            let address = address.into();
            let is_same = |peer: &&Arc<Peer>| *peer.dialled == *address.dialled;
            let known = peers.get(address.name).filter(is_same);
            let peer = match known.or_else(|| before.get(address.name).filter(is_same)) {
                Some(peer) => peer.clone(),
                None => {
                    *made += 1;
                    let budget = self.budget.clone();
                    Arc::new(Peer::start(address, *made, &self.options, budget, &self.metrics))
                }
            };
            peers.insert(peer.address.clone(), peer);
        }
        for address in before.keys().filter(|address| !peers.contains_key(*address)) {
            self.metrics.remove_peer(address);
        }
        self.budget.divide(peers.len());
        self.peers.store(Arc::new(peers));
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Tells which peers the ring still has; others are kept for calls that are under way, and may
    /// go away at any time.
    pub fn set_members<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let names: HashSet<&str> = names.into_iter().collect();
        for (name, peer) in self.peers.load().iter() {
            peer.set_has_left(!names.contains(&**name));
        }
    }

    pub fn peer(&self, address: &str) -> Option<Arc<Peer>> {
        self.peers.load().get(address).cloned()
    }

    pub fn options(&self) -> &PeerOptions {
        &self.options
    }

    pub fn metrics(&self) -> &PoolMetrics {
        &self.metrics
    }

    /// The peers as they are now, sorted by address.
    pub fn snapshot(&self) -> Vec<PeerSnapshot> {
        let mut peers: Vec<_> = self.peers.load().values().map(|peer| peer.snapshot()).collect();
        peers.sort_by(|a, b| a.address.cmp(&b.address));
        peers
    }
}
