//! The series of a head: the state that appending touches, by slot.

use std::sync::Arc;

use thin_vec::ThinVec;

use crate::model::key_table::Slot;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::chunkenc::xor::{XorIterator, XorState};

/// Samples a chunk is meant to hold (Prometheus' default).
const SAMPLES_PER_CHUNK: u16 = 120;

/// A chunk is cut before its size can pass 1024 bytes, a sample taking at most 19.
const CHUNK_BYTES_MAX: usize = 1024 - 19;

/// Slots a head can have: one bit of a batch's series number is taken.
pub const SERIES_MAX: usize = 1 << 31;

/// The states of all slots, in segments that never move.
#[derive(Default)]
pub struct States {
    segments: Vec<Vec<SeriesState>>,
}

const SEGMENT_BITS: u32 = 10;
const SEGMENT_SLOTS: usize = 1 << SEGMENT_BITS;

impl States {
    pub fn len(&self) -> usize {
        match self.segments.last() {
            Some(last) => (self.segments.len() - 1) * SEGMENT_SLOTS + last.len(),
            None => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Puts a series' state in place of what its slot had, or behind all others.
    pub fn begin(&mut self, slot: Slot, state: SeriesState) {
        match (slot as usize) < self.len() {
            true => *self.get_mut(slot) = state,
            false => {
                debug_assert_eq!(self.len(), slot as usize, "slots are given without a gap");
                self.push(state);
            }
        }
    }

    pub fn push(&mut self, state: SeriesState) {
        match self.segments.last_mut() {
            Some(last) if last.len() < SEGMENT_SLOTS => last.push(state),
            // A head's first segment grows as it fills: most tenants are small.
            None => self.segments.push(vec![state]),
            Some(_) => {
                let mut segment = Vec::with_capacity(SEGMENT_SLOTS);
                segment.push(state);
                self.segments.push(segment);
            }
        }
    }

    #[inline]
    pub fn get(&self, slot: Slot) -> &SeriesState {
        &self.segments[(slot >> SEGMENT_BITS) as usize][slot as usize & (SEGMENT_SLOTS - 1)]
    }

    #[inline]
    pub fn get_mut(&mut self, slot: Slot) -> &mut SeriesState {
        &mut self.segments[(slot >> SEGMENT_BITS) as usize][slot as usize & (SEGMENT_SLOTS - 1)]
    }

    pub fn iter(&self) -> impl Iterator<Item = &SeriesState> {
        self.segments.iter().flatten()
    }

    /// The segments, to be worked on by several threads.
    pub fn segments_mut(&mut self) -> &mut [Vec<SeriesState>] {
        &mut self.segments
    }

    pub const fn segment_of(slot: Slot) -> usize {
        (slot >> SEGMENT_BITS) as usize
    }

    pub const fn index_in_segment(slot: Slot) -> usize {
        slot as usize & (SEGMENT_SLOTS - 1)
    }
}

/// What appending to a series touches: one cache line.
#[repr(align(64))]
pub struct SeriesState {
    /// Encoder of the open chunk; holds the last sample.
    xor: XorState,
    /// Time at which the open chunk is cut.
    next_at: Timestamp,
    /// Bytes of the open chunk, `xor` says how many are in use.
    chunk: ThinVec<u8>,
    /// Chunks that are full, oldest first.
    full: ThinVec<FullChunk>,
    /// Bits 0 to 39 the ref, bit 40 [`UNLOGGED`], bits 42 to 63 the mark of the last batch.
    ref_word: u64,
}

const _: () = assert!(size_of::<SeriesState>() == 64, "a series' hot state is one cache line");

const REF_MASK: u64 = HeadSeriesRef::LIMIT - 1;
/// The series' record is not in the log yet.
const UNLOGGED: u64 = 1 << 40;
const MARK_SHIFT: u32 = 42;

/// A finished chunk.
#[derive(Clone)]
pub struct FullChunk {
    pub mint: Timestamp,
    pub maxt: Timestamp,
    pub bytes: Arc<[u8]>,
}

/// What appending one in-order sample did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The sample went into the open chunk.
    No,
    /// It began a new chunk.
    Began,
}

impl SeriesState {
    /// A series without samples whose record is not logged.
    pub fn new(series_ref: HeadSeriesRef) -> SeriesState {
        assert!(series_ref.0 < HeadSeriesRef::LIMIT);
        SeriesState {
            xor: XorState::default(),
            next_at: 0,
            chunk: ThinVec::new(),
            full: ThinVec::new(),
            ref_word: series_ref.0 | UNLOGGED,
        }
    }

    #[inline]
    pub fn series_ref(&self) -> HeadSeriesRef {
        HeadSeriesRef(self.ref_word & REF_MASK)
    }

    #[inline]
    pub fn is_unlogged(&self) -> bool {
        self.ref_word & UNLOGGED != 0
    }

    pub fn set_logged(&mut self) {
        self.ref_word &= !UNLOGGED;
    }

    /// After its record could not be written.
    pub fn set_unlogged(&mut self) {
        self.ref_word |= UNLOGGED;
    }

    /// Marks the series as met by a batch; gives how many batches ago it was met last, 0 for this
    /// one. Marks are cut to 22 bits, so the answer may be too small, and never is too large.
    #[inline]
    pub fn mark(&mut self, batch: u64) -> u64 {
        let before = self.ref_word >> MARK_SHIFT;
        self.ref_word = (self.ref_word & ((1 << MARK_SHIFT) - 1)) | batch << MARK_SHIFT;
        batch.wrapping_sub(before) & (u64::MAX >> MARK_SHIFT)
    }

    /// Time and bits of the newest sample.
    #[inline]
    pub fn last(&self) -> Option<(Timestamp, u64)> {
        (self.xor.count > 0).then_some((self.xor.t, self.xor.v))
    }

    /// A byte near the end of the open chunk, to bring its line before it is written.
    #[inline]
    pub fn touch(&self) -> u8 {
        self.chunk.get(self.xor.chunk_bytes()).copied().unwrap_or(0)
    }

    /// Appends a sample later than the last one, cutting chunks where Prometheus does.
    #[inline]
    pub fn append(&mut self, t: Timestamp, v: u64, block_range: i64) -> Cut {
        debug_assert!(self.last().is_none_or(|(last, _)| last < t));
        if self.xor.count == 0 {
            self.next_at = range_end(t, block_range);
            self.xor.append(&mut self.chunk, t, v);
            return Cut::Began;
        }
        if self.xor.chunk_bytes() > CHUNK_BYTES_MAX {
            return self.append_to_new_chunk(t, v, block_range);
        }
        if self.xor.count == SAMPLES_PER_CHUNK / 4 {
            self.next_at = predicted_end(self.open_mint(), self.xor.t, self.next_at);
        }
        if t >= self.next_at || self.xor.count >= SAMPLES_PER_CHUNK * 2 {
            return self.append_to_new_chunk(t, v, block_range);
        }
        self.xor.append(&mut self.chunk, t, v);
        Cut::No
    }

    #[cold]
    fn append_to_new_chunk(&mut self, t: Timestamp, v: u64, block_range: i64) -> Cut {
        let bytes = self.xor.snapshot(&self.chunk);
        self.full.push(FullChunk { mint: self.open_mint(), maxt: self.xor.t, bytes });
        self.xor = XorState::default();
        self.next_at = range_end(t, block_range);
        self.xor.append(&mut self.chunk, t, v);
        Cut::Began
    }

    /// Time of the open chunk's first sample; 0 while there is none.
    fn open_mint(&self) -> Timestamp {
        self.xor.first_time(&self.chunk)
    }

    /// Whether any chunk overlaps the range, both ends included.
    pub fn overlaps(&self, mint: Timestamp, maxt: Timestamp) -> bool {
        let Some((last, _)) = self.last() else { return false };
        if last < mint || self.first_time().is_none_or(|first| first > maxt) {
            return false;
        }
        self.full.iter().any(|chunk| chunk.mint <= maxt && mint <= chunk.maxt)
            || (self.open_mint() <= maxt && mint <= last)
    }

    /// Chunks that overlap the range, oldest first; the open one is copied.
    pub fn chunks_in(&self, mint: Timestamp, maxt: Timestamp, mut each: impl FnMut(FullChunk)) {
        for chunk in &self.full {
            if chunk.mint <= maxt && mint <= chunk.maxt {
                each(chunk.clone());
            }
        }
        if let Some((last, _)) = self.last() {
            let open_mint = self.open_mint();
            if open_mint <= maxt && mint <= last {
                let bytes = self.xor.snapshot(&self.chunk);
                each(FullChunk { mint: open_mint, maxt: last, bytes });
            }
        }
    }

    /// Bits of the value stored at `t`, if there is one. Decodes at most one chunk.
    pub fn value_at(&self, t: Timestamp) -> Option<u64> {
        let mut value = None;
        self.chunks_in(t, t, |chunk| {
            let at = |sample: Result<(Timestamp, u64), _>| match sample {
                Ok((time, v)) if time == t => Some(v),
                _ => None,
            };
            value = value.or_else(|| XorIterator::new(&chunk.bytes).find_map(at));
        });
        value
    }

    /// Drops the samples before `mint`, and gives their room back; returns how many chunks went. A
    /// chunk that has samples on both sides is encoded anew.
    pub fn drop_before(&mut self, mint: Timestamp) -> usize {
        let Some((last, _)) = self.last() else { return 0 };
        if last < mint {
            let count = self.chunk_count();
            (self.xor, self.chunk, self.full) =
                (XorState::default(), ThinVec::new(), ThinVec::new());
            return count;
        }
        let count = self.full.partition_point(|chunk| chunk.maxt < mint);
        if count > 0 {
            self.full = self.full.split_off(count);
        }
        let begin_at_mint = |bytes: &[u8]| {
            let (mut xor, mut chunk) = (XorState::default(), ThinVec::new());
            let kept = XorIterator::new(bytes).flatten().filter(|(t, _)| *t >= mint);
            kept.for_each(|(t, v)| xor.append(&mut chunk, t, v));
            (xor, chunk)
        };
        if self.first_time().is_none_or(|first| first >= mint) {
            return count;
        }
        match self.full.first_mut() {
            Some(first) => {
                let (xor, chunk) = begin_at_mint(&first.bytes);
                (first.mint, first.bytes) = (xor.first_time(&chunk), xor.snapshot(&chunk));
            }
            None => (self.xor, self.chunk) = begin_at_mint(&self.xor.snapshot(&self.chunk)),
        }
        count
    }

    /// Time of the oldest sample.
    pub fn first_time(&self) -> Option<Timestamp> {
        self.last()?;
        Some(self.full.first().map_or_else(|| self.open_mint(), |chunk| chunk.mint))
    }

    /// Drops samples whose time is not kept, by writing the chunks anew.
    pub fn retain(&mut self, block_range: i64, keep: impl Fn(Timestamp) -> bool) {
        let mut kept = Vec::new();
        self.chunks_in(Timestamp::MIN, Timestamp::MAX, |chunk| {
            kept.extend(XorIterator::new(&chunk.bytes).flatten().filter(|(t, _)| keep(*t)));
        });
        self.xor = XorState::default();
        self.full.clear();
        for (t, v) in kept {
            self.append(t, v, block_range);
        }
    }

    /// Full and open chunks.
    pub fn chunk_count(&self) -> usize {
        self.full.len() + usize::from(self.xor.count > 0)
    }
}

/// End of the block range that `t` falls into. Division rounds to zero, as in Go.
fn range_end(t: Timestamp, block_range: i64) -> Timestamp {
    (t / block_range).wrapping_mul(block_range).wrapping_add(block_range)
}

/// Where to cut so that the chunks of a range come out about equally full, judged by the first
/// quarter of a chunk's samples.
fn predicted_end(mint: Timestamp, last: Timestamp, next_at: Timestamp) -> Timestamp {
    let span = next_at.wrapping_sub(mint) as f64;
    let chunks = span / (last.wrapping_sub(mint).wrapping_add(1) as f64 * 4.0);
    if chunks <= 1.0 {
        return next_at;
    }
    (mint as f64 + span / chunks.floor()) as Timestamp
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn chunks_are_cut_where_prometheus_cuts() {
        let file = include_str!("../../../tests/data/chunks/cuts.json");
        let file: Value = serde_json::from_str(file).unwrap();
        for case in file["cases"].as_array().unwrap() {
            let number = |field: &str| case[field].as_i64().unwrap();
            let mut state = SeriesState::new(HeadSeriesRef(1));
            for i in 0..number("count") {
                let jitter = case["jitter"].get(i as usize).map_or(0, |j| j.as_i64().unwrap());
                let t = number("first") + i * number("step") + jitter;
                let v = match case["value"].as_str().unwrap() {
                    "zero" => 0,
                    "index" => (i as f64).to_bits(),
                    "mixed" => {
                        (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2 | 0x3000_0000_0000_0000
                    }
                    other => panic!("unknown value rule {other}"),
                };
                state.append(t, v, number("block_ms"));
            }
            let mut chunks = Vec::new();
            state.chunks_in(i64::MIN, i64::MAX, |chunk| {
                let samples = XorIterator::new(&chunk.bytes).count();
                chunks.push(serde_json::json!([
                    chunk.mint,
                    chunk.maxt,
                    samples,
                    chunk.bytes.len()
                ]));
            });
            assert_eq!(Value::from(chunks), case["chunks"], "{}", case["name"]);
        }
    }

    #[test]
    fn a_stored_value_is_found_in_its_chunk() {
        let mut state = SeriesState::new(HeadSeriesRef(1));
        for i in 0..500 {
            state.append(i * 1000, i as u64, 7_200_000);
        }
        assert_eq!(state.value_at(3000), Some(3));
        assert_eq!(state.value_at(499_000), Some(499));
        assert_eq!(state.value_at(3001), None);
        assert!(state.chunk_count() > 1);
        assert!(
            state.overlaps(0, 0) && !state.overlaps(-10, -1) && !state.overlaps(500_000, 600_000)
        );
    }

    #[test]
    fn what_is_before_a_time_is_dropped_and_nothing_else() {
        let samples = |state: &SeriesState| {
            let mut samples = Vec::new();
            state.chunks_in(i64::MIN, i64::MAX, |chunk| {
                let of_chunk: Vec<_> = XorIterator::new(&chunk.bytes).map(Result::unwrap).collect();
                let times = (of_chunk[0].0, of_chunk[of_chunk.len() - 1].0);
                assert_eq!(times, (chunk.mint, chunk.maxt));
                samples.extend(of_chunk);
            });
            samples
        };
        for mint in [-5, 0, 1, 119, 120, 121, 240, 333, 399, 400] {
            let mut state = SeriesState::new(HeadSeriesRef(1));
            let all: Vec<_> = (0..400).map(|i| (i, i as u64 * 3)).collect();
            for (t, v) in &all {
                state.append(*t, *v, 7_200_000);
            }
            let before = state.chunk_count();
            let dropped = state.drop_before(mint);
            let mut kept: Vec<_> = all.into_iter().filter(|(t, _)| *t >= mint).collect();
            assert_eq!(samples(&state), kept, "from {mint}");
            assert_eq!(state.first_time(), kept.first().map(|(t, _)| *t));
            assert_eq!(state.chunk_count() + dropped, before, "from {mint}");
            // It goes on where it was.
            for t in 500..700 {
                state.append(t, 7, 7_200_000);
                kept.push((t, 7));
            }
            assert_eq!(samples(&state), kept, "from {mint}");
        }
    }

    #[test]
    fn a_mark_tells_how_many_batches_ago_the_last_one_was() {
        let mut state = SeriesState::new(HeadSeriesRef(7));
        assert_eq!(state.mark(5), 5);
        assert_eq!(state.mark(5), 0);
        assert_eq!(state.mark(8), 3);
        let later = 8 + (1 << 22);
        assert_eq!(state.mark(later), 0);
        assert_eq!(state.mark(later + 1), 1);
        state.set_logged();
        assert_eq!(state.series_ref(), HeadSeriesRef(7));
        assert!(!state.is_unlogged());
    }
}
