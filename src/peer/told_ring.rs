//! Which rings a peer says that it has.

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::{Clock as _, SystemClock};
use crate::model::Timestamp;
use crate::model::ring_hash::RingHash;

/// What a peer said of its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingWord {
    pub hash: RingHash,
    /// When it said so last.
    pub at: Instant,
    pub at_ms: Timestamp,
}

/// What a peer said last. Thanos says nothing, nor does a node without rings.
#[derive(Default)]
pub struct ToldRing(Mutex<Option<RingWord>>);

impl ToldRing {
    /// The peer has answered, and named its rings or not.
    pub(super) fn hear(&self, hash: Option<RingHash>) {
        let word = |hash| RingWord { hash, at: Instant::now(), at_ms: SystemClock.now() };
        *self.0.lock() = hash.map(word);
    }

    pub fn last(&self) -> Option<RingWord> {
        *self.0.lock()
    }
}
