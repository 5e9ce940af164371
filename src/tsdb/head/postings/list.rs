//! One postings list: the slots of the series that have a label.
//!
//! Slots nearly always rise, and such a list is a sequence of *runs*, each rising, as varints
//! (LEB128): the first slot of a run, then the difference to the one before.
//!
//! ```text
//! run   = slot delta*        delta = this slot - the slot before, at least 1
//! list  = sealed run*  open run  late slot*
//! ```
//!
//! A slot below the last one (reused after garbage collection) is *late*. Late slots are kept as
//! they came, and become a run of their own once there are many. Whoever reads a list with such
//! slots sorts it.

use std::sync::Arc;

use thin_vec::ThinVec;

/// The open run is sealed from here on: what a reader has to copy under the lock.
const OPEN_BYTES_MAX: usize = 4096;
/// Late slots before they are made a run.
const LATE_MAX: usize = 1024;

/// Slots of one label. Costs 16 bytes while there is one slot; then 32 bytes more, and per slot a
/// byte where every 127th series or more has the label, two where every 16,383rd has it. The open
/// run has up to a quarter of spare room.
///
/// The caller upholds that a slot is pushed once.
#[derive(Debug)]
pub(super) enum PostingsList {
    /// Most labels of real data that are new are on one series.
    One(u32),
    Many(Box<Runs>),
}

#[derive(Debug, Default)]
pub(super) struct Runs {
    sealed: ThinVec<Arc<[u8]>>,
    open: ThinVec<u8>,
    late: ThinVec<u32>,
    /// Greatest slot of the sealed and the open runs that rose.
    last: u32,
    len: u32,
}

/// What a list held at one moment, to be read without a lock.
pub(super) enum Snapshot {
    One(u32),
    Many { len: usize, sealed: Box<[Arc<[u8]>]>, open: Box<[u8]>, late: Box<[u32]> },
}

impl PostingsList {
    pub(super) fn of_one(slot: u32) -> PostingsList {
        PostingsList::One(slot)
    }

    pub(super) fn push(&mut self, slot: u32) {
        match self {
            PostingsList::Many(runs) => runs.push(slot),
            PostingsList::One(first) => {
                let mut runs = Box::<Runs>::default();
                runs.push(*first);
                runs.push(slot);
                *self = PostingsList::Many(runs);
            }
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        match self {
            PostingsList::One(slot) => Snapshot::One(*slot),
            PostingsList::Many(runs) => Snapshot::Many {
                len: runs.len as usize,
                sealed: runs.sealed.as_slice().into(),
                open: runs.open.as_slice().into(),
                late: runs.late.as_slice().into(),
            },
        }
    }

    /// Bytes on the heap, as allocated.
    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        // Length and capacity before the items of a `ThinVec`; the counts before those of an `Arc`.
        const HEADER: usize = 16;
        fn thin<T>(items: &ThinVec<T>) -> usize {
            if items.capacity() == 0 { 0 } else { HEADER + items.capacity() * size_of::<T>() }
        }
        match self {
            PostingsList::One(_) => 0,
            PostingsList::Many(runs) => {
                size_of::<Runs>()
                    + thin(&runs.sealed)
                    + thin(&runs.open)
                    + thin(&runs.late)
                    + runs.sealed.iter().map(|run| HEADER + run.len()).sum::<usize>()
            }
        }
    }
}

impl Runs {
    fn push(&mut self, slot: u32) {
        self.len = self.len.saturating_add(1);
        let begun = self.last != 0 || !self.open.is_empty() || !self.sealed.is_empty();
        if begun && slot <= self.last {
            self.push_late(slot);
            return;
        }
        let base = if self.open.is_empty() { 0 } else { self.last };
        push_varint(&mut self.open, slot - base);
        self.last = slot;
        if self.open.len() >= OPEN_BYTES_MAX {
            self.sealed.push(Arc::from(self.open.as_slice()));
            self.open = ThinVec::new();
        }
    }

    fn push_late(&mut self, slot: u32) {
        self.late.push(slot);
        if self.late.len() < LATE_MAX {
            return;
        }
        self.late.sort_unstable();
        let mut run = ThinVec::new();
        let mut base = 0;
        for &slot in &self.late {
            push_varint(&mut run, slot - base);
            base = slot;
        }
        self.sealed.push(Arc::from(run.as_slice()));
        self.late = ThinVec::new();
    }
}

impl Snapshot {
    /// Bytes that taking it copied.
    pub(super) fn copied_bytes(&self) -> usize {
        match self {
            Snapshot::One(_) => size_of::<Snapshot>(),
            Snapshot::Many { sealed, open, late, .. } => {
                size_of::<Snapshot>() + size_of_val(&**sealed) + open.len() + size_of_val(&**late)
            }
        }
    }

    /// Appends the slots to `slots`, in no particular order, though mostly rising.
    pub(super) fn decode(&self, slots: &mut Vec<u32>) {
        match self {
            Snapshot::One(slot) => slots.push(*slot),
            Snapshot::Many { len, sealed, open, late } => {
                slots.reserve(*len);
                for run in sealed {
                    decode_run(run, slots);
                }
                decode_run(open, slots);
                slots.extend_from_slice(late);
            }
        }
    }
}

/// Grows by a quarter, where a vector would double: lists are many, and each is mostly done.
fn push_varint(run: &mut ThinVec<u8>, mut value: u32) {
    if run.capacity() - run.len() < 5 {
        run.reserve_exact(8.max(run.len() / 4));
    }
    while value >= 0x80 {
        run.push(value as u8 | 0x80);
        value >>= 7;
    }
    run.push(value as u8);
}

fn decode_run(mut run: &[u8], slots: &mut Vec<u32>) {
    let mut slot = 0u32;
    while let Some((delta, rest)) = split_varint(run) {
        slot = slot.wrapping_add(delta);
        slots.push(slot);
        run = rest;
    }
}

fn split_varint(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0u32;
    let mut rest = bytes;
    for shift in [0, 7, 14, 21, 28] {
        let (&byte, behind) = rest.split_first()?;
        rest = behind;
        value |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((value, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &PostingsList) -> Vec<u32> {
        let mut slots = Vec::new();
        list.snapshot().decode(&mut slots);
        slots.sort_unstable();
        slots
    }

    #[test]
    fn the_layout_is_as_small_as_promised() {
        assert_eq!(size_of::<PostingsList>(), 16);
        assert_eq!(size_of::<Runs>(), 32);
    }

    #[test]
    fn slots_come_back() {
        for slots in [
            vec![0],
            vec![0, 1],
            vec![0, u32::MAX],
            vec![u32::MAX, 0],
            vec![7, 3, 5, 9, 8],
            (0..20_000).collect(),
            (0..20_000).map(|i| i * 1000).collect(),
            (0..20_000).rev().collect(),
            (0..20_000).map(|i| if i % 2 == 0 { i } else { 40_000 - i }).collect(),
        ] {
            let mut list = PostingsList::of_one(slots[0]);
            slots[1..].iter().for_each(|&slot| list.push(slot));
            let mut expected = slots;
            expected.sort_unstable();
            assert_eq!(read(&list), expected);
        }
    }

    #[test]
    fn rising_slots_take_about_two_bytes() {
        for (gap, bytes_max) in [(1, 1.3), (100, 1.3), (10_000, 2.5)] {
            let mut list = PostingsList::of_one(0);
            let count = 100_000;
            (1..count).for_each(|i| list.push(i * gap));
            let per_slot = list.heap_bytes() as f64 / f64::from(count);
            assert!(per_slot < bytes_max, "gap {gap}: {per_slot}");
        }
    }
}
