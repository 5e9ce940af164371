//! From refs, which the log knows series by, to where something of them is.

use std::collections::HashMap;

use crate::model::HeadSeriesRef;
use crate::model::key_table::Slot;

/// Ref to slot, or to any other index. Refs of our own logs are dense; those of others may be
/// anything below 2^40.
#[derive(Default)]
pub struct RefMap {
    /// Slot + 1 by ref; 0 is none.
    dense: Vec<u32>,
    sparse: HashMap<u64, Slot>,
    count: usize,
}

impl RefMap {
    /// The dense part may have this many times as many places as there are refs.
    const SPARSENESS_MAX: usize = 8;
    const DENSE_MIN: usize = 1 << 16;

    #[inline]
    pub fn slot(&self, series_ref: HeadSeriesRef) -> Option<Slot> {
        match self.dense.get(series_ref.0 as usize) {
            Some(0) | None if self.sparse.is_empty() => None,
            Some(0) | None => self.sparse.get(&series_ref.0).copied(),
            Some(slot) => Some(slot - 1),
        }
    }

    pub fn insert(&mut self, series_ref: HeadSeriesRef, slot: Slot) {
        self.count += 1;
        let index = series_ref.0 as usize;
        let dense_max = (self.count * Self::SPARSENESS_MAX).max(Self::DENSE_MIN);
        if index >= self.dense.len() && index < dense_max {
            self.dense.resize(index + 1, 0);
        }
        match self.dense.get_mut(index) {
            Some(place) => *place = slot + 1,
            None => {
                self.sparse.insert(series_ref.0, slot);
            }
        }
    }

    pub fn forget(&mut self, series_ref: HeadSeriesRef) {
        match self.dense.get_mut(series_ref.0 as usize) {
            Some(place) if *place > 0 => *place = 0,
            _ => drop(self.sparse.remove(&series_ref.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dense_and_sparse_refs_are_kept_apart() {
        let mut refs = RefMap::default();
        let all = [1, 2, 3, (1 << 24) - 1, 1 << 32, (1 << 40) - 2, 100_000, 60_000];
        for (slot, series_ref) in all.iter().enumerate() {
            assert_eq!(refs.slot(HeadSeriesRef(*series_ref)), None);
            refs.insert(HeadSeriesRef(*series_ref), slot as Slot);
        }
        for (slot, series_ref) in all.iter().enumerate() {
            assert_eq!(refs.slot(HeadSeriesRef(*series_ref)), Some(slot as Slot));
        }
        assert!(refs.dense.len() <= RefMap::DENSE_MIN);
    }
}
