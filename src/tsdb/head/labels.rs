//! The labels of a head's series by slot: 4 bytes a label and 8 a series.

use crate::model::key_table::Slot;
use crate::model::pairs::PairId;

/// Slots of one segment.
const SEGMENT_SLOTS: usize = 1024;

/// Pairs of each slot that has a series, in segments.
#[derive(Default)]
pub struct SlotLabels {
    segments: Vec<Segment>,
    count: usize,
}

#[derive(Default)]
struct Segment {
    /// Pairs of all its series.
    pairs: Vec<PairId>,
    /// Where each slot's are.
    spans: Vec<Span>,
}

#[derive(Clone, Copy)]
struct Span {
    /// [`NOWHERE`] for a slot without a series.
    start: u32,
    len: u32,
}

const NOWHERE: u32 = u32::MAX;

impl SlotLabels {
    /// How many slots have labels.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Gives a slot its labels. The caller upholds that it has none yet.
    pub fn set(&mut self, slot: Slot, pairs: &[PairId]) {
        let (segment, at) = (slot as usize / SEGMENT_SLOTS, slot as usize % SEGMENT_SLOTS);
        if segment >= self.segments.len() {
            // Slots mostly rise: those before are full.
            if let Some(full) = self.segments.last_mut() {
                full.pairs.shrink_to_fit();
            }
            self.segments.resize_with(segment + 1, Segment::default);
        }
        let segment = &mut self.segments[segment];
        if at >= segment.spans.len() {
            segment.spans.resize(at + 1, Span { start: NOWHERE, len: 0 });
        }
        debug_assert_eq!(segment.spans[at].start, NOWHERE, "a slot gets its labels once");
        // A key has fewer labels than it has bytes, and is far below 4 GiB / 1024.
        segment.spans[at] = Span { start: segment.pairs.len() as u32, len: pairs.len() as u32 };
        segment.pairs.extend_from_slice(pairs);
        self.count += 1;
    }

    /// `None` if the slot has none, or none yet.
    pub fn get(&self, slot: Slot) -> Option<&[PairId]> {
        let segment = self.segments.get(slot as usize / SEGMENT_SLOTS)?;
        let span = segment.spans.get(slot as usize % SEGMENT_SLOTS)?;
        let start = span.start as usize;
        (span.start != NOWHERE).then(|| &segment.pairs[start..start + span.len as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pairs::{Pairs, Text};

    #[test]
    fn each_slot_has_its_own_labels_in_whatever_order_they_come() {
        let pairs = Pairs::default();
        let ids: Vec<_> = (0..8u8).map(|i| pairs.add(Text::new(b"n"), Text::new(&[i]))).collect();
        let labels_of = |slot: usize| &ids[slot % 3..3 + slot % 5];
        let mut labels = SlotLabels::default();
        let slots = 3 * SEGMENT_SLOTS + 5;
        for slot in (0..slots).step_by(2).chain((1..slots).rev().filter(|slot| slot % 2 == 1)) {
            assert_eq!(labels.get(slot as Slot), None);
            labels.set(slot as Slot, labels_of(slot));
        }
        for slot in 0..slots {
            assert_eq!(labels.get(slot as Slot), Some(labels_of(slot)));
        }
        assert_eq!((labels.count(), labels.get(slots as Slot)), (slots, None));
    }
}
