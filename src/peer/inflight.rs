//! What is under way to a peer, and its bound.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is under way to a peer.
#[derive(Default)]
pub(super) struct Inflight {
    pub(super) bytes: AtomicU64,
    pub(super) requests: AtomicU64,
}

/// Given back on drop.
pub(super) struct Held<'a> {
    inflight: &'a Inflight,
    bytes: u64,
}

impl Inflight {
    /// Takes `bytes`, or tells how many are held. A message over `max` may go when nothing else is
    /// under way, or it never could.
    pub(super) fn take(&self, bytes: u64, max: u64) -> Result<Held<'_>, u64> {
        let fits = |held: u64| {
            let sum = held.checked_add(bytes)?;
            (held == 0 || sum <= max).then_some(sum)
        };
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(Held { inflight: self, bytes })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.inflight.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.inflight.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
