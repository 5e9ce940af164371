//! A series of a head: the state that appending touches.

use thin_vec::ThinVec;

use crate::model::key_table::Slot;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::chunkenc::ENCODING_XOR;
use crate::tsdb::chunkenc::samples::Encoded;
use crate::tsdb::chunkenc::xor::XorState;
use crate::tsdb::head::chunk_list::{ChunkList, Listed, Place, WaitingId};
use crate::tsdb::head::waiting::WaitingChunk;

/// Samples a chunk is meant to hold (Prometheus' default).
const SAMPLES_PER_CHUNK: u16 = 120;

/// A chunk is cut before its size can pass 1024 bytes, a sample taking at most 19.
const CHUNK_BYTES_MAX: usize = 1024 - 19;

/// Slots a head can have: one bit of a batch's series number is taken.
pub const SERIES_MAX: usize = 1 << 31;

/// What appending to a series touches: one cache line. Where the newest sample is a histogram, the open
/// chunk is [beside it](super::histograms).
#[repr(align(64))]
pub struct SeriesState {
    /// Encoder of the open chunk; holds the last sample. Of one that is a histogram it holds the time,
    /// and as the value that at which the open chunk begins, or [`NOTHING_OPEN`].
    xor: XorState,
    /// Time at which the open chunk is cut.
    next_at: Timestamp,
    /// Bytes of the open chunk, `xor` says how many are in use.
    chunk: ThinVec<u8>,
    /// Chunks that are full.
    pub(super) full: ChunkList,
    /// Bits 0 to 39 the ref, bit 40 [`UNLOGGED`], bit 41 [`HISTOGRAM`], bits 42 to 63 the mark of the
    /// last batch.
    ref_word: u64,
}

const _: () = assert!(size_of::<SeriesState>() == 64, "a series' hot state is one cache line");

const REF_MASK: u64 = HeadSeriesRef::LIMIT - 1;
/// The series' record is not in the log yet.
const UNLOGGED: u64 = 1 << 40;
/// The newest sample is a histogram.
const HISTOGRAM: u64 = 1 << 41;
const MARK_SHIFT: u32 = 42;

/// No sample has this time.
const NOTHING_OPEN: Timestamp = Timestamp::MIN;

/// A chunk that has become full.
pub struct Filled {
    pub series_ref: HeadSeriesRef,
    pub chunk: Encoded,
}

impl Filled {
    pub fn of(self, slot: Slot) -> WaitingChunk {
        let Filled { series_ref, chunk: Encoded { mint, maxt, encoding, bytes } } = self;
        WaitingChunk { slot, series_ref, mint, maxt, encoding, bytes, part_of: None }
    }
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
            full: ChunkList::default(),
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

    /// Time and bits of the newest sample. The bits of one that is [a histogram](Self::is_histogram)
    /// say nothing of it.
    #[inline]
    pub fn last(&self) -> Option<(Timestamp, u64)> {
        let has_samples = self.xor.count > 0 || !self.full.is_empty() || self.is_histogram();
        has_samples.then_some((self.xor.t, self.xor.v))
    }

    /// There is no open chunk, and this is the last sample of the full ones, a float.
    pub fn set_last(&mut self, t: Timestamp, v: u64) {
        debug_assert!(!self.has_open_chunk() && !self.full.is_empty());
        self.ref_word &= !HISTOGRAM;
        (self.xor.t, self.xor.v) = (t, v);
    }

    /// Whether the newest sample is a histogram.
    #[inline]
    pub fn is_histogram(&self) -> bool {
        self.ref_word & HISTOGRAM != 0
    }

    /// The newest sample is a histogram at `maxt`, and the open chunk in which it is began at `mint`;
    /// or there is none. The caller keeps the chunk, and has done with one of floats.
    pub(super) fn set_histogram(&mut self, mint: Option<Timestamp>, maxt: Timestamp) {
        debug_assert!(self.xor.count == 0);
        self.ref_word |= HISTOGRAM;
        self.xor.t = maxt;
        self.xor.v = mint.unwrap_or(NOTHING_OPEN) as u64;
    }

    /// The caller has done with the chunk of histograms.
    pub(super) fn end_histograms(&mut self) {
        self.ref_word &= !HISTOGRAM;
        self.xor = XorState::default();
    }

    pub fn has_open_chunk(&self) -> bool {
        self.open_range().is_some()
    }

    /// Where the open chunk of histograms is to be cut.
    pub(super) fn next_at(&self) -> Timestamp {
        self.next_at
    }

    pub(super) fn set_next_at(&mut self, t: Timestamp) {
        self.next_at = t;
    }

    /// A byte near the end of the open chunk, to bring its line before it is written.
    #[inline]
    pub fn touch(&self) -> u8 {
        self.chunk.get(self.xor.chunk_bytes()).copied().unwrap_or(0)
    }

    /// Parts of the first full chunk's entry and of the open chunk, to bring their lines.
    #[inline]
    pub fn touch_chunks(&self) -> u8 {
        self.full.touch() ^ self.chunk.first().copied().unwrap_or(0)
    }

    /// Appends a sample later than the last one, cutting chunks where Prometheus does. `keep` takes one
    /// that has become full.
    #[inline]
    pub fn append(
        &mut self,
        t: Timestamp,
        v: u64,
        block_range: i64,
        keep: impl FnOnce(Filled) -> WaitingId,
    ) -> Cut {
        debug_assert!(self.last().is_none_or(|(last, _)| last < t));
        if self.xor.count == 0 {
            self.next_at = range_end(t, block_range);
            self.xor.append(&mut self.chunk, t, v);
            return Cut::Began;
        }
        if self.xor.chunk_bytes() > CHUNK_BYTES_MAX {
            return self.append_to_new_chunk(t, v, block_range, keep);
        }
        if self.xor.count == SAMPLES_PER_CHUNK / 4 {
            self.next_at = predicted_end(self.open_mint(), self.xor.t, self.next_at, 4.0);
        }
        if t >= self.next_at || self.xor.count >= SAMPLES_PER_CHUNK * 2 {
            return self.append_to_new_chunk(t, v, block_range, keep);
        }
        self.xor.append(&mut self.chunk, t, v);
        Cut::No
    }

    #[cold]
    fn append_to_new_chunk(
        &mut self,
        t: Timestamp,
        v: u64,
        block_range: i64,
        keep: impl FnOnce(Filled) -> WaitingId,
    ) -> Cut {
        self.end_floats(keep);
        self.next_at = range_end(t, block_range);
        self.xor.append(&mut self.chunk, t, v);
        Cut::Began
    }

    /// The open chunk of floats, of which there is one, is full.
    pub(super) fn end_floats(&mut self, keep: impl FnOnce(Filled) -> WaitingId) {
        let (mint, maxt) = (self.open_mint(), self.xor.t);
        let mut bytes = std::mem::take(&mut self.chunk);
        self.xor.finish(&mut bytes);
        self.xor = XorState::default();
        self.push_full(Encoded { mint, maxt, encoding: ENCODING_XOR, bytes }, keep);
    }

    /// A chunk behind all others is full.
    pub(super) fn push_full(&mut self, chunk: Encoded, keep: impl FnOnce(Filled) -> WaitingId) {
        let Encoded { mint, maxt, .. } = chunk;
        let id = keep(Filled { series_ref: self.series_ref(), chunk });
        self.full.push(Listed { mint, maxt, place: Place::Waiting(id) });
    }

    /// Time of the open chunk's first sample; 0 while there is none.
    fn open_mint(&self) -> Timestamp {
        self.xor.first_time(&self.chunk)
    }

    /// Times of the open chunk's first and last sample.
    pub fn open_range(&self) -> Option<(Timestamp, Timestamp)> {
        if self.xor.count > 0 {
            return Some((self.open_mint(), self.xor.t));
        }
        let mint = self.xor.v as Timestamp;
        (self.is_histogram() && mint != NOTHING_OPEN).then_some((mint, self.xor.t))
    }

    /// Appends a copy of the open chunk, one of floats.
    pub(super) fn copy_open_floats(&self, into: &mut Vec<u8>) {
        self.xor.copy_to(&self.chunk, into);
    }

    /// Puts another open chunk of floats in the place of this one.
    pub(super) fn replace_open_floats(&mut self, xor: XorState, chunk: ThinVec<u8>) {
        (self.xor, self.chunk) = (xor, chunk);
    }

    /// Whether any chunk overlaps the range, both ends included.
    pub fn overlaps(&self, mint: Timestamp, maxt: Timestamp) -> bool {
        let Some((last, _)) = self.last() else { return false };
        if last < mint || self.first_time().is_none_or(|first| first > maxt) {
            return false;
        }
        self.full.iter().any(|chunk| chunk.overlaps(mint, maxt))
            || self.open_range().is_some_and(|(first, last)| first <= maxt && mint <= last)
    }

    /// Forgets all samples; full chunks, and an open one of histograms, are the caller's to see to.
    pub fn clear(&mut self) {
        (self.xor, self.chunk) = (XorState::default(), ThinVec::new());
        self.full = ChunkList::default();
        self.ref_word &= !HISTOGRAM;
    }

    /// Time of the oldest sample.
    pub fn first_time(&self) -> Option<Timestamp> {
        match self.full.first() {
            Some(first) => Some(first.mint),
            None => self.open_range().map(|(first, _)| first),
        }
    }

    /// Full and open chunks.
    pub fn chunk_count(&self) -> usize {
        self.full.count() + usize::from(self.has_open_chunk())
    }

    /// While a log is read and there is no open chunk: up to where the full chunks have what the log
    /// said so far.
    pub fn read_to(&self) -> Timestamp {
        debug_assert!(!self.has_open_chunk());
        self.next_at
    }

    /// See [`Self::read_to`].
    pub fn set_read_to(&mut self, t: Timestamp) {
        debug_assert!(!self.has_open_chunk());
        self.next_at = t;
    }
}

/// End of the block range that `t` falls into. Division rounds to zero, as in Go.
pub(super) fn range_end(t: Timestamp, block_range: i64) -> Timestamp {
    (t / block_range).wrapping_mul(block_range).wrapping_add(block_range)
}

/// Where to cut so that the chunks of a range come out about equally full, judged by the first part of
/// a chunk: `parts` of these make it full.
pub(super) fn predicted_end(
    mint: Timestamp,
    last: Timestamp,
    next_at: Timestamp,
    parts: f64,
) -> Timestamp {
    let span = next_at.wrapping_sub(mint) as f64;
    let chunks = span / (last.wrapping_sub(mint).wrapping_add(1) as f64 * parts);
    if chunks <= 1.0 {
        return next_at;
    }
    (mint as f64 + span / chunks.floor()) as Timestamp
}

#[cfg(test)]
mod tests {
    use super::*;

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
