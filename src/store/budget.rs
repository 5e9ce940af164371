//! The memory that reads may hold between them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
}

/// Bytes held by one read, given back on drop.
pub struct ReadBudgetGuard {
    budget: ReadBudget,
    held: Option<OwnedSemaphorePermit>,
}

impl ReadBudget {
    pub fn new(bytes_max: usize) -> ReadBudget {
        let permits = (bytes_max / PERMIT_BYTES).min(Semaphore::MAX_PERMITS);
        ReadBudget { permits: Arc::new(Semaphore::new(permits)), bytes_max }
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
        let more = more.map_err(|_| QueryError::Overloaded)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }

    /// Holds so many bytes in all, if it does not hold more already.
    pub fn hold_in_all(&mut self, bytes: usize) -> Result<(), QueryError> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * PERMIT_BYTES;
        match bytes.saturating_sub(held) {
            0 => Ok(()),
            more => self.hold(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut third = budget.begin();
        third.hold_in_all(5 * PERMIT_BYTES).unwrap();
        assert!(matches!(third.hold_in_all(6 * PERMIT_BYTES), Err(QueryError::Overloaded)));
    }
}
