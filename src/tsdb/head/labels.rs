//! The labels of a head's series by slot: 4 bytes a label and 4 a series.

use crate::model::key_table::Slot;
use crate::model::pairs::PairId;

/// Slots of one segment.
const SEGMENT_SLOTS: usize = 1024;

/// Pairs of each slot, in segments that are filled one after another.
#[derive(Default)]
pub struct SlotLabels {
    segments: Vec<Segment>,
}

#[derive(Default)]
struct Segment {
    /// Pairs of all its series.
    pairs: Vec<PairId>,
    /// Where those of each series end.
    ends: Vec<u32>,
}

impl SlotLabels {
    pub fn len(&self) -> usize {
        match self.segments.last() {
            Some(last) => (self.segments.len() - 1) * SEGMENT_SLOTS + last.ends.len(),
            None => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Adds the next slot's.
    pub fn push(&mut self, pairs: &[PairId]) {
        let is_full = |segment: &Segment| segment.ends.len() == SEGMENT_SLOTS;
        if self.segments.last().is_none_or(is_full) {
            if let Some(full) = self.segments.last_mut() {
                full.pairs.shrink_to_fit();
            }
            self.segments.push(Segment::default());
        }
        let last = self.segments.last_mut().expect("one was pushed");
        last.pairs.extend_from_slice(pairs);
        // A key has fewer labels than it has bytes, and is far below 4 GiB / 1024.
        last.ends.push(last.pairs.len() as u32);
    }

    /// `None` if the slot's are not there yet.
    pub fn get(&self, slot: Slot) -> Option<&[PairId]> {
        let segment = self.segments.get(slot as usize / SEGMENT_SLOTS)?;
        let at = slot as usize % SEGMENT_SLOTS;
        let end = *segment.ends.get(at)? as usize;
        let start = at.checked_sub(1).map_or(0, |before| segment.ends[before] as usize);
        Some(&segment.pairs[start..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pairs::{Pairs, Text};

    #[test]
    fn each_slot_has_its_own_labels() {
        let pairs = Pairs::default();
        let ids: Vec<_> = (0..8u8).map(|i| pairs.add(Text::new(b"n"), Text::new(&[i]))).collect();
        let labels_of = |slot: usize| &ids[slot % 3..3 + slot % 5];
        let mut labels = SlotLabels::default();
        for slot in 0..3 * SEGMENT_SLOTS + 5 {
            assert_eq!(labels.len(), slot);
            assert_eq!(labels.get(slot as Slot), None);
            labels.push(labels_of(slot));
        }
        for slot in 0..labels.len() {
            assert_eq!(labels.get(slot as Slot), Some(labels_of(slot)));
        }
    }
}
