//! Whether the members of the ring have the rings that this node has.
//!
//! A node places series by its own rings, whatever the others have, so two nodes that disagree each
//! write where the other does not look for it. Nodes of ours name their rings in every answer to a
//! write. While a new ring is being rolled out they disagree for some seconds, which is no news.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::hashring::CurrentHashring;
use crate::metrics::Registry;
use crate::model::ring_hash::RingHash;
use crate::peer::told_ring::RingWord;
use crate::peer::{PeerPool, PeerSnapshot};

/// What a peer said longer ago counts no more: it may have changed since.
const WORD_AGE_MAX: Duration = Duration::from_secs(60);

/// A shorter disagreement is not logged.
const TOLD_AFTER: Duration = Duration::from_secs(30);

const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Members that are named in a line.
const NAMED_MAX: usize = 8;

/// This node's rings and those of its peers.
#[derive(Clone)]
pub struct RingAgreement {
    current: CurrentHashring,
    peers: Arc<PeerPool>,
}

/// The rings in force.
#[derive(Clone, Copy)]
pub struct OwnRing {
    pub hash: RingHash,
    since: Instant,
}

impl OwnRing {
    /// Whether a peer has the same, as far as its word counts: it was said not long ago, and after
    /// this node had its rings.
    pub fn agrees(&self, word: Option<RingWord>) -> Option<bool> {
        let word =
            word.filter(|word| word.at >= self.since && word.at.elapsed() <= WORD_AGE_MAX)?;
        Some(word.hash == self.hash)
    }
}

impl RingAgreement {
    pub fn new(current: CurrentHashring, peers: Arc<PeerPool>) -> RingAgreement {
        RingAgreement { current, peers }
    }

    /// The rings in force, if there are any.
    pub fn own(&self) -> Option<OwnRing> {
        let (hashring, since) = self.current.load_with_time()?;
        Some(OwnRing { hash: hashring.hash(), since })
    }

    /// Lets each collection say who agrees.
    pub fn show(&self, registry: &Registry) {
        let hash = registry.gauge(
            "ringest_ring_hash",
            "Hash of the rings in force, the same on nodes that place all series alike; 0 before \
             there are any.",
        );
        let disagreeing = registry.gauge(
            "ringest_ring_disagreeing_members",
            "Members whose answers of the last minute name other rings than those in force here.",
        );
        let agrees = registry.gauge_vec(
            "ringest_peer_ring_agrees",
            "0 if the peer's answers of the last minute name other rings than those in force here, \
             or else 1.",
            &["worker"],
        );
        let agreement = self.clone();
        registry.on_collect(move || {
            let Some(own) = agreement.own() else { return };
            hash.set(own.hash.as_u64() as f64);
            let mut count = 0.0;
            for peer in agreement.peers.snapshot() {
                let disagrees = own.agrees(peer.ring) == Some(false);
                count += f64::from(u8::from(disagrees));
                agrees.with(&[&peer.address]).set(f64::from(u8::from(!disagrees)));
            }
            disagreeing.set(count);
        });
    }

    /// Logs disagreements that last, and their end, until told to stop.
    pub async fn watch(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut disagreement = Disagreement::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let Some(own) = self.own() else { continue };
            let disagrees = |peer: &PeerSnapshot| own.agrees(peer.ring) == Some(false);
            let members: Vec<_> = self.peers.snapshot().into_iter().filter(disagrees).collect();
            match disagreement.step(!members.is_empty(), Instant::now()) {
                None => {}
                Some(News::Lasts) => tracing::warn!(
                    component = "receive",
                    ringHash = %own.hash,
                    members = names(&members),
                    "members have had another ring for {TOLD_AFTER:?}: is the hashrings file of \
                     all nodes the same, and the replication factor?"
                ),
                Some(News::IsOver) => tracing::info!(
                    component = "receive",
                    ringHash = %own.hash,
                    "no member is known to have another ring any more"
                ),
            }
        }
    }
}

/// Addresses and what they said.
fn names(members: &[PeerSnapshot]) -> String {
    let name = |peer: &PeerSnapshot| match peer.ring {
        Some(word) => format!("{} ({})", peer.address, word.hash),
        None => peer.address.to_string(),
    };
    let mut names: Vec<_> = members.iter().take(NAMED_MAX).map(name).collect();
    if members.len() > NAMED_MAX {
        names.push(format!("{} more", members.len() - NAMED_MAX));
    }
    names.join(", ")
}

/// A time of disagreement, told once if it lasts.
#[derive(Default)]
struct Disagreement {
    since: Option<Instant>,
    is_told: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Lasts,
    IsOver,
}

impl Disagreement {
    fn step(&mut self, is_disagreement: bool, now: Instant) -> Option<News> {
        if !is_disagreement {
            return std::mem::take(self).is_told.then_some(News::IsOver);
        }
        let since = *self.since.get_or_insert(now);
        let lasts = now.saturating_duration_since(since) >= TOLD_AFTER;
        let is_news = lasts && !self.is_told;
        self.is_told |= lasts;
        is_news.then_some(News::Lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashring::{Endpoint, Hashring};

    #[test]
    fn a_disagreement_that_lasts_is_told_once_and_its_end_too() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut disagreement = Disagreement::default();
        let mut step = |is_disagreement, seconds| disagreement.step(is_disagreement, at(seconds));
        // A rollout.
        assert_eq!(step(true, 0), None);
        assert_eq!(step(true, 29), None);
        assert_eq!(step(false, 30), None);
        // Another begins anew.
        assert_eq!(step(true, 31), None);
        assert_eq!(step(true, 60), None);
        assert_eq!(step(true, 61), Some(News::Lasts));
        assert_eq!(step(true, 300), None);
        assert_eq!(step(false, 301), Some(News::IsOver));
        assert_eq!(step(false, 302), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_counts_for_a_while_and_only_about_the_rings_of_now() {
        let peers = PeerPool::new(Default::default(), &Registry::new());
        let current = CurrentHashring::none_yet();
        let agreement = RingAgreement::new(current.clone(), peers);
        assert!(agreement.own().is_none());
        let here = Hashring::of_one(Endpoint::at("a:1"));
        let there = Hashring::of_one(Endpoint::at("b:1")).hash();
        let ours = here.hash();
        let say = |hash| Some(RingWord { hash, at: Instant::now(), at_ms: 0 });
        let before = say(there);
        tokio::time::advance(Duration::from_millis(1)).await;
        current.replace(here);
        let own = agreement.own().unwrap();
        assert_eq!(own.agrees(before), None, "it may have changed as well");
        assert_eq!(own.agrees(None), None);
        assert_eq!((own.agrees(say(there)), own.agrees(say(ours))), (Some(false), Some(true)));
        let late = say(there);
        tokio::time::advance(WORD_AGE_MAX).await;
        assert_eq!(own.agrees(late), Some(false));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(own.agrees(late), None);
    }
}
