//! The memory that reads may hold between them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::{Counter, Registry, budgets};
use crate::store::error::QueryError;

/// Bytes per permit: small enough to charge fairly, large enough that a semaphore counts them.
const PERMIT_BYTES: usize = 1024;

/// What reads may hold when nothing else is said: the sorted lists of some ten million series.
pub const READ_BYTES_MAX_DEFAULT: usize = 512 * 1024 * 1024;

/// A budget of bytes, shared by all reads of the process. A read that finds it spent is refused at
/// once and never queued, since a client that doesn't take its answer may hold its share for long.
#[derive(Clone)]
pub struct ReadBudget {
    permits: Arc<Semaphore>,
    bytes_max: usize,
    /// Reads that were refused, of one of the ways they come by.
    refused: Option<Counter>,
}

fn permits_of(bytes_max: usize) -> usize {
    (bytes_max / PERMIT_BYTES).min(Semaphore::MAX_PERMITS)
}

/// Bytes held by one read, given back on drop.
pub struct ReadBudgetGuard {
    budget: ReadBudget,
    held: Option<OwnedSemaphorePermit>,
}

/// What an answer holds until its last byte is sent: put into the extensions of a response, for
/// whoever sends its body.
#[derive(Clone)]
pub struct HeldAnswer(#[expect(dead_code, reason = "held, not read")] Arc<ReadBudgetGuard>);

impl HeldAnswer {
    pub fn new(held: ReadBudgetGuard) -> HeldAnswer {
        HeldAnswer(Arc::new(held))
    }
}

impl ReadBudget {
    pub fn new(bytes_max: usize) -> ReadBudget {
        let permits = permits_of(bytes_max);
        ReadBudget { permits: Arc::new(Semaphore::new(permits)), bytes_max, refused: None }
    }

    /// The same budget with what is refused counted for `door`.
    pub fn at_door(&self, registry: &Registry, door: &str) -> ReadBudget {
        let refused = Some(budgets::refused(registry, "read", door));
        ReadBudget { refused, ..self.clone() }
    }

    /// Shows what is held on the page.
    pub fn show(&self, registry: &Registry) {
        let limit = registry.gauge(
            "ringest_query_inflight_bytes_max",
            "Bytes that reads may hold: --query.inflight-bytes-max.",
        );
        limit.set(self.bytes_max as f64);
        let used = registry.gauge("ringest_query_inflight_bytes", "Bytes that reads hold.");
        let (permits, all) = (self.permits.clone(), permits_of(self.bytes_max));
        registry.on_collect(move || {
            let held = all.saturating_sub(permits.available_permits());
            used.set((held * PERMIT_BYTES) as f64);
        });
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        (permits_of(self.bytes_max) - self.permits.available_permits()) * PERMIT_BYTES
    }

    fn refuse(&self) -> QueryError {
        if let Some(refused) = &self.refused {
            refused.inc();
        }
        QueryError::Overloaded
    }

    /// A read that holds nothing yet.
    pub fn begin(&self) -> ReadBudgetGuard {
        ReadBudgetGuard { budget: self.clone(), held: None }
    }
}

impl ReadBudgetGuard {
    /// Holds `bytes` more.
    pub fn hold(&mut self, bytes: usize) -> Result<(), QueryError> {
        let limit = self.budget.bytes_max;
        if bytes > limit {
            return Err(QueryError::TooLarge { limit });
        }
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES))
            .map_err(|_| QueryError::TooLarge { limit })?;
        let more = self.budget.permits.clone().try_acquire_many_owned(permits);
        let more = more.map_err(|_| self.budget.refuse())?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }

    /// Holds so many bytes in all, if it does not hold more already.
    pub fn hold_in_all(&mut self, bytes: usize) -> Result<(), QueryError> {
        match bytes.saturating_sub(self.bytes()) {
            0 => Ok(()),
            more => self.hold(more),
        }
    }

    /// Gives back what it holds above so many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let permits = self.permits().saturating_sub(bytes.div_ceil(PERMIT_BYTES));
        if let Some(held) = &mut self.held {
            drop(held.split(permits));
        }
    }

    /// Whether so many bytes more could be held now.
    pub fn check(&self, bytes: usize) -> Result<(), QueryError> {
        let limit = self.budget.bytes_max;
        if bytes > limit {
            return Err(QueryError::TooLarge { limit });
        }
        if bytes.div_ceil(PERMIT_BYTES) > self.budget.permits.available_permits() {
            return Err(self.budget.refuse());
        }
        Ok(())
    }

    fn permits(&self) -> usize {
        self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn bytes(&self) -> usize {
        self.permits() * PERMIT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_the_budget_and_who_was_refused() {
        let registry = Registry::new();
        let budget = ReadBudget::new(8 * PERMIT_BYTES);
        budget.show(&registry);
        let mut read = budget.at_door(&registry, "http").begin();
        read.hold(5 * PERMIT_BYTES - 1).unwrap();
        assert!(budget.at_door(&registry, "grpc").begin().hold(4 * PERMIT_BYTES).is_err());
        let page = registry.expose();
        for line in [
            "ringest_query_inflight_bytes 5120",
            "ringest_query_inflight_bytes_max 8192",
            "ringest_overload_refused_requests_total{budget=\"read\",door=\"grpc\"} 1",
            "ringest_overload_refused_requests_total{budget=\"read\",door=\"http\"} 0",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line}\n{page}");
        }
    }

    #[test]
    fn what_a_read_held_is_there_for_the_next() {
        let budget = ReadBudget::new(8 * PERMIT_BYTES);
        let mut first = budget.begin();
        first.hold(5 * PERMIT_BYTES).unwrap();
        first.hold(2 * PERMIT_BYTES).unwrap();
        let mut second = budget.begin();
        assert!(matches!(second.hold(2 * PERMIT_BYTES), Err(QueryError::Overloaded)));
        drop(first);
        second.hold(2 * PERMIT_BYTES).unwrap();
        assert!(matches!(second.hold(9 * PERMIT_BYTES), Err(QueryError::TooLarge { .. })));
        second.hold_in_all(3 * PERMIT_BYTES).unwrap();
        second.hold_in_all(PERMIT_BYTES).unwrap();
        assert!(second.check(5 * PERMIT_BYTES).is_ok());
        assert!(matches!(second.check(5 * PERMIT_BYTES + 1), Err(QueryError::Overloaded)));
        assert!(matches!(second.check(9 * PERMIT_BYTES), Err(QueryError::TooLarge { .. })));
        second.shrink_to(4 * PERMIT_BYTES);
        let mut third = budget.begin();
        third.hold_in_all(5 * PERMIT_BYTES).unwrap();
        assert!(matches!(third.hold_in_all(6 * PERMIT_BYTES), Err(QueryError::Overloaded)));
        second.shrink_to(PERMIT_BYTES + 1);
        third.hold_in_all(6 * PERMIT_BYTES).unwrap();
        assert!(matches!(third.hold_in_all(7 * PERMIT_BYTES), Err(QueryError::Overloaded)));
    }
}
