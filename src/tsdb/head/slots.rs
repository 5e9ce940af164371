//! Which slots new series get.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use crate::model::key_table::Slot;
use crate::tsdb::head::catalog::Catalog;

/// Slots for series to come: those of series that were forgotten, and fresh ones.
#[derive(Default)]
pub(super) struct FreeSlots {
    /// Those that mean nothing to anybody any more, falling.
    free: Vec<Slot>,
    /// Those that somebody may hold, by the catalog in which they meant a series last. Oldest first,
    /// and used in this order: who holds a catalog may hold slots of later ones' entries, too.
    held: VecDeque<(Weak<Catalog>, Vec<Slot>)>,
    /// The first slot that no series ever had.
    fresh: usize,
}

impl FreeSlots {
    /// Series have the first `count` slots.
    pub(super) fn begin_behind(&mut self, count: usize) {
        self.fresh = count;
    }

    /// Slots that series have or had.
    pub(super) fn used(&self) -> usize {
        self.fresh
    }

    /// The lowest slot to be had, if nobody holds what it meant; else one of the next.
    pub(super) fn take(&mut self) -> Slot {
        if self.free.is_empty() {
            self.release();
        }
        self.free.pop().unwrap_or_else(|| {
            self.fresh += 1;
            // The number of series has a limit below that of slots.
            (self.fresh - 1) as Slot
        })
    }

    /// Takes back rising slots, which mean nothing in any catalog after `last`.
    pub(super) fn give_back(&mut self, last: &Arc<Catalog>, slots: Vec<Slot>) {
        self.held.push_back((Arc::downgrade(last), slots));
    }

    fn release(&mut self) {
        let is_gone = |(catalog, _): &(Weak<Catalog>, _)| catalog.strong_count() == 0;
        while self.free.is_empty() && self.held.front().is_some_and(is_gone) {
            let (_, mut slots) = self.held.pop_front().expect("it is there");
            slots.reverse();
            self.free = slots;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fingerprint::Fingerprinter;

    #[test]
    fn a_slot_is_given_again_only_when_no_catalog_is_held_that_knows_it() {
        let catalogs = [0; 3].map(|_| Arc::new(Catalog::new(Fingerprinter::random())));
        let mut slots = FreeSlots::default();
        slots.begin_behind(10);
        slots.give_back(&catalogs[0], vec![]);
        slots.give_back(&catalogs[1], vec![3, 5]);
        slots.give_back(&catalogs[2], vec![7]);
        let [first, second, third] = catalogs;
        drop(second);
        // The first knew 3 and 5, too.
        assert_eq!([slots.take(), slots.take()], [10, 11]);
        drop(first);
        assert_eq!([slots.take(), slots.take(), slots.take()], [3, 5, 12]);
        drop(third);
        assert_eq!([slots.take(), slots.take()], [7, 13]);
        assert_eq!(slots.used(), 14);
    }
}
