//! The in-flight gate: how many bytes of requests may be in memory at once.
//!
//! It counts bytes, those of bodies and those they inflate to, since it is memory that overload
//! takes. It never queues: what does not fit is refused at once, and the sender, told when to come
//! again, is the queue.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::metrics::{Counter, Registry, budgets};

/// The bytes that are in flight over all requests, as one of the ways sees them that requests come
/// by.
pub struct Admission {
    budget: Arc<Budget>,
    /// Of this way.
    refused: Option<Counter>,
}

struct Budget {
    bytes_max: u64,
    /// Invariant: the sum over all guards; more than `bytes_max` only by what [`Admission::hold`]
    /// and [`InflightGuard::resize_in_any_case`] took.
    bytes: AtomicU64,
}

/// Bytes that one request holds; given back on drop.
pub struct InflightGuard {
    admission: Arc<Admission>,
    bytes: u64,
}

/// No room at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes more do not fit, {inflight} of {max} bytes are in flight")]
pub struct Overloaded {
    pub bytes: u64,
    pub inflight: u64,
    pub max: u64,
}

impl Admission {
    pub fn new(bytes_max: u64) -> Arc<Admission> {
        let budget = Budget { bytes_max, bytes: AtomicU64::new(0) };
        Arc::new(Admission { budget: Arc::new(budget), refused: None })
    }

    /// The same budget with what is refused counted for `door`.
    pub fn at_door(&self, registry: &Registry, door: &str) -> Arc<Admission> {
        let refused = Some(budgets::refused(registry, "write", door));
        Arc::new(Admission { budget: self.budget.clone(), refused })
    }

    /// Shows what is in flight on the page.
    pub fn show(&self, registry: &Registry) {
        let limit = registry.gauge(
            "ringest_inflight_bytes_max",
            "Bytes of writes that may be in flight: --receive.inflight-bytes-max.",
        );
        limit.set(self.budget.bytes_max as f64);
        let used = registry.gauge(
            "ringest_inflight_bytes",
            "Bytes of writes in flight: as sent, inflated, and decoded until they are stored.",
        );
        let budget = self.budget.clone();
        registry.on_collect(move || used.set(budget.bytes.load(Ordering::Relaxed) as f64));
    }

    /// Takes `bytes`, or nothing.
    pub fn admit(self: &Arc<Admission>, bytes: u64) -> Result<InflightGuard, Overloaded> {
        self.take(bytes)?;
        Ok(InflightGuard { admission: self.clone(), bytes })
    }

    /// Takes `bytes` that are in memory already, whether they fit or not. While they do not,
    /// nothing else is let in.
    pub fn hold(self: &Arc<Admission>, bytes: u64) -> InflightGuard {
        self.budget.bytes.fetch_add(bytes, Ordering::Relaxed);
        InflightGuard { admission: self.clone(), bytes }
    }

    /// Whether `bytes` would fit now. Nothing is taken.
    pub fn check(&self, bytes: u64) -> Result<(), Overloaded> {
        let inflight = self.inflight_bytes();
        match inflight.checked_add(bytes) {
            Some(sum) if sum <= self.bytes_max() => Ok(()),
            _ => Err(self.refuse(bytes, inflight)),
        }
    }

    pub fn inflight_bytes(&self) -> u64 {
        self.budget.bytes.load(Ordering::Relaxed)
    }

    pub fn bytes_max(&self) -> u64 {
        self.budget.bytes_max
    }

    fn take(&self, bytes: u64) -> Result<(), Overloaded> {
        let max = self.bytes_max();
        let fits = |inflight: u64| inflight.checked_add(bytes).filter(|sum| *sum <= max);
        match self.budget.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(inflight) => Err(self.refuse(bytes, inflight)),
        }
    }

    /// A request is over with the first refusal, so this counts requests.
    fn refuse(&self, bytes: u64, inflight: u64) -> Overloaded {
        if let Some(refused) = &self.refused {
            refused.inc();
        }
        Overloaded { bytes, inflight, max: self.bytes_max() }
    }
}

impl InflightGuard {
    /// Holds `bytes` from now on. When they are more than before and do not fit, the guard stays
    /// as it was.
    pub fn resize(&mut self, bytes: u64) -> Result<(), Overloaded> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => {
                self.admission.take(more)?;
                self.bytes = bytes;
            }
            None => self.resize_in_any_case(bytes),
        }
        Ok(())
    }

    /// The same for what is let in whether it fits or not.
    pub fn resize_in_any_case(&mut self, bytes: u64) {
        let inflight = &self.admission.budget.bytes;
        match bytes.checked_sub(self.bytes) {
            Some(more) => inflight.fetch_add(more, Ordering::Relaxed),
            None => inflight.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
        };
        self.bytes = bytes;
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A request's bytes and what they count for: both are given back when the last who shares them is
/// done.
struct HeldRequest<B> {
    buffer: B,
    range: Range<usize>,
    _inflight: InflightGuard,
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for HeldRequest<B> {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

/// The bytes of `buffer` in `range`, to be shared. Empty if the buffer is shorter.
pub fn share<B>(buffer: B, range: Range<usize>, inflight: InflightGuard) -> Bytes
where
    B: AsRef<[u8]> + Send + 'static,
{
    Bytes::from_owner(HeldRequest { buffer, range, _inflight: inflight })
}

impl Drop for InflightGuard {
    fn drop(&mut self) {
        let before = self.admission.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        debug_assert!(before >= self.bytes, "{} bytes of {before} are given back", self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_takes_nothing() {
        let admission = Admission::new(100);
        let mut first = admission.admit(60).unwrap();
        let refused = Overloaded { bytes: 41, inflight: 60, max: 100 };
        assert_eq!(admission.admit(41).err(), Some(refused));
        assert_eq!(admission.check(41), Err(refused));
        assert_eq!(admission.check(40), Ok(()));
        assert_eq!(first.resize(101).err(), Some(refused));
        assert_eq!(admission.inflight_bytes(), 60);
        first.resize(100).unwrap();
        assert!(admission.admit(1).is_err());
    }

    #[test]
    fn what_is_held_in_any_case_shuts_the_others_out() {
        let admission = Admission::new(100);
        let first = admission.admit(60).unwrap();
        let mut held = admission.hold(20);
        held.resize_in_any_case(90);
        held.resize_in_any_case(60);
        assert_eq!((held.bytes(), admission.inflight_bytes()), (60, 120));
        drop(first);
        assert_eq!(
            admission.admit(41).err(),
            Some(Overloaded { bytes: 41, inflight: 60, max: 100 })
        );
        drop(held);
        assert_eq!(admission.inflight_bytes(), 0);
    }

    #[test]
    fn the_page_shows_the_budget_and_who_was_refused() {
        let registry = Registry::new();
        let admission = Admission::new(100);
        admission.show(&registry);
        let [http, grpc] = ["http", "grpc"].map(|door| admission.at_door(&registry, door));
        let mut held = http.admit(60).unwrap();
        assert!(grpc.admit(41).is_err());
        assert!(http.check(41).is_err());
        assert!(held.resize(101).is_err());
        assert!(admission.admit(41).is_err(), "no door");
        let page = registry.expose();
        for line in [
            "ringest_inflight_bytes 60",
            "ringest_inflight_bytes_max 100",
            "ringest_overload_refused_requests_total{budget=\"write\",door=\"grpc\"} 1",
            "ringest_overload_refused_requests_total{budget=\"write\",door=\"http\"} 2",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line}\n{page}");
        }
        drop(held);
        assert!(registry.expose().contains("\nringest_inflight_bytes 0\n"));
    }

    #[test]
    fn a_guard_gives_back_what_it_holds() {
        let admission = Admission::new(u64::MAX);
        let mut guard = admission.admit(60).unwrap();
        guard.resize(10).unwrap();
        assert_eq!((guard.bytes(), admission.inflight_bytes()), (10, 10));
        assert!(guard.resize(u64::MAX).is_ok());
        assert!(admission.admit(1).is_err(), "a sum beyond u64 does not wrap");
        drop(guard);
        assert_eq!(admission.inflight_bytes(), 0);
    }
}
