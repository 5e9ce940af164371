//! What forwards under way hold in memory, and its bounds.
//!
//! A message is not all of it: a forward of one series holds a hundred times its bytes, in its task,
//! its stream and the headers. So each counts for [`FORWARD_BYTES`] besides its message, and the
//! number of calls has a bound of its own.
//!
//! Half of the budget is divided among the peers; the other half is there for all of them. A peer
//! that hangs fills its own part and at worst what is shared, so the others go on with theirs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What a forward holds besides its message: measured with 100,000 calls under way, 10.6 KB each.
pub(super) const FORWARD_BYTES: u64 = 12 << 10;

/// The budget that the peers of a ring have together.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_max: u64,
    calls_max: usize,
    /// Peers among which one half is divided.
    peers: AtomicUsize,
    /// Taken of the other half.
    shared: AtomicU64,
}

/// A bound that a forward would have exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Bytes { inflight: u64, max: u64 },
    Calls { max: usize },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Bytes { inflight, max } => {
                write!(f, "{inflight} bytes are under way, and of {max} for all peers none is left")
            }
            Bound::Calls { max } => write!(f, "{max} calls are under way"),
        }
    }
}

impl Budget {
    pub(super) fn new(bytes_max: u64, calls_max: usize) -> Arc<Budget> {
        let (peers, shared) = (AtomicUsize::new(1), AtomicU64::new(0));
        Arc::new(Budget { bytes_max, calls_max, peers, shared })
    }

    /// Divides one half among so many peers.
    pub(super) fn divide(&self, peers: usize) {
        self.peers.store(peers.max(1), Ordering::Relaxed);
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// What a peer has for itself.
    pub(super) fn part_bytes(&self) -> u64 {
        self.bytes_max / 2 / self.peers.load(Ordering::Relaxed) as u64
    }

    /// Taken of the half that all peers share.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    fn take_shared(&self, bytes: u64) -> bool {
        let max = self.bytes_max / 2;
        let fits = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= max);
        self.shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// What is under way to one peer.
pub(super) struct Inflight {
    budget: Arc<Budget>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of the peer's own part.
    own_bytes: u64,
    shared_bytes: u64,
    /// When each call began, by its number.
    calls: BTreeMap<u64, Instant>,
    next_call: u64,
}

impl State {
    fn bytes(&self) -> u64 {
        self.own_bytes + self.shared_bytes
    }
}

/// What is under way at a moment.
pub(super) struct InflightSeen {
    pub(super) calls: u64,
    pub(super) bytes: u64,
    /// For how long the oldest call has been waiting for its answer.
    pub(super) oldest: Duration,
}

/// A forward under way; given back on drop.
pub(super) struct Held<'a> {
    inflight: &'a Inflight,
    call: u64,
    bytes: u64,
    is_shared: bool,
}

impl Inflight {
    pub(super) fn new(budget: Arc<Budget>) -> Inflight {
        Inflight { budget, state: Mutex::default() }
    }

    /// Takes what a forward with a message of `message_bytes` holds. One that does not fit may go
    /// when nothing else is under way to the peer, or it never could.
    pub(super) fn take(&self, message_bytes: u64) -> Result<Held<'_>, Bound> {
        let bytes = message_bytes.saturating_add(FORWARD_BYTES);
        let state = &mut *self.state.lock();
        if state.calls.len() >= self.budget.calls_max {
            return Err(Bound::Calls { max: self.budget.calls_max });
        }
        let own = state.own_bytes.saturating_add(bytes);
        let is_shared = if own <= self.budget.part_bytes() || state.calls.is_empty() {
            state.own_bytes = own;
            false
        } else if self.budget.take_shared(bytes) {
            state.shared_bytes += bytes;
            true
        } else {
            return Err(Bound::Bytes { inflight: state.bytes(), max: self.budget.bytes_max });
        };
        let call = state.next_call;
        state.next_call += 1;
        state.calls.insert(call, Instant::now());
        Ok(Held { inflight: self, call, bytes, is_shared })
    }

    /// Tells beforehand that no forward could be taken now. Takes nothing meanwhile, or a forward that
    /// may go alone would find that it is not.
    pub(super) fn check(&self) -> Result<(), Bound> {
        let Budget { bytes_max, calls_max, .. } = *self.budget;
        let state = self.state.lock();
        if state.calls.len() >= calls_max {
            return Err(Bound::Calls { max: calls_max });
        }
        let fits = |held: u64, max| held.saturating_add(FORWARD_BYTES) <= max;
        let has_room = state.calls.is_empty()
            || fits(state.own_bytes, self.budget.part_bytes())
            || fits(self.budget.shared_bytes(), bytes_max / 2);
        match has_room {
            true => Ok(()),
            false => Err(Bound::Bytes { inflight: state.bytes(), max: bytes_max }),
        }
    }

    pub(super) fn seen(&self, now: Instant) -> InflightSeen {
        let state = self.state.lock();
        let oldest = state.calls.first_key_value();
        InflightSeen {
            calls: state.calls.len() as u64,
            bytes: state.bytes(),
            oldest: oldest.map_or(Duration::ZERO, |(_, begun)| now.duration_since(*begun)),
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.inflight.state.lock();
        state.calls.remove(&self.call);
        if self.is_shared {
            state.shared_bytes -= self.bytes;
            self.inflight.budget.shared.fetch_sub(self.bytes, Ordering::Relaxed);
        } else {
            state.own_bytes -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    #[test]
    fn a_peer_that_hangs_leaves_the_others_their_parts() {
        let budget = Budget::new(400 * KIB, 1000);
        budget.divide(4);
        let peers: Vec<_> = (0..4).map(|_| Inflight::new(budget.clone())).collect();
        let hung: Vec<_> = std::iter::from_fn(|| peers[0].take(KIB).ok()).collect();
        let held: u64 = peers[0].seen(Instant::now()).bytes;
        // Its own 50 KiB and the shared 200, 13 at a time.
        assert_eq!(held, (3 + 15) * 13 * KIB);
        assert_eq!(budget.shared_bytes(), 15 * 13 * KIB);
        for peer in &peers[1..] {
            let own: Vec<_> = std::iter::from_fn(|| peer.take(KIB).ok()).collect();
            assert_eq!(own.len(), 3);
        }
        let full = peers[0].check().unwrap_err();
        assert_eq!(full, Bound::Bytes { inflight: held, max: 400 * KIB });
        drop(hung);
        assert_eq!((peers[0].seen(Instant::now()).bytes, budget.shared_bytes()), (0, 0));
        assert_eq!(peers[0].check(), Ok(()));
    }

    #[test]
    fn a_message_over_all_bounds_goes_alone() {
        let budget = Budget::new(KIB, 1000);
        let peer = Inflight::new(budget.clone());
        let alone = peer.take(100 * KIB).unwrap();
        assert!(matches!(peer.check(), Err(Bound::Bytes { .. })));
        drop(alone);
        assert_eq!(peer.check(), Ok(()));
    }

    #[test]
    fn calls_have_a_bound_of_their_own() {
        let peer = Inflight::new(Budget::new(u64::MAX, 2));
        let calls = [peer.take(0).unwrap(), peer.take(0).unwrap()];
        assert_eq!(peer.check(), Err(Bound::Calls { max: 2 }));
        drop(calls);
        assert_eq!(peer.check(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_call_tells_how_far_a_peer_is_behind() {
        let peer = Inflight::new(Budget::new(u64::MAX, 10));
        let oldest = || peer.seen(Instant::now()).oldest;
        let first = peer.take(0).unwrap();
        tokio::time::advance(Duration::from_secs(3)).await;
        let second = peer.take(0).unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(oldest(), Duration::from_secs(4));
        drop(first);
        assert_eq!(oldest(), Duration::from_secs(1));
        drop(second);
        assert_eq!(oldest(), Duration::ZERO);
    }
}
