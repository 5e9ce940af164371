//! The states of a head's series, by slot, and where their full chunks are.

use std::sync::Arc;

use thin_vec::ThinVec;

use crate::model::histogram::AnyHistogram;
use crate::model::key_table::Slot;
use crate::model::{TimeRange, Timestamp};
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::chunkenc::ENCODING_XOR;
use crate::tsdb::chunkenc::samples::{Encoded, OpenChunk, SampleIterator, encode_if};
use crate::tsdb::chunkenc::xor::XorState;
use crate::tsdb::error::ReadError;
use crate::tsdb::head::chunk_list::{Listed, Place, WaitingId};
use crate::tsdb::head::histograms::{Appended, HistogramKind, Tail, Tails};
use crate::tsdb::head::series::{Cut, Filled, SeriesState, range_end};
use crate::tsdb::head::waiting::{Waiting, WaitingChunk};
use crate::tsdb::head_chunks::seal::SealedFiles;
use crate::tsdb::head_chunks::{ChunkInFile, ChunkPlace, FullChunk, HeadChunkFiles};

/// The states of all slots, in segments that never move.
pub struct States {
    segments: Vec<Vec<SeriesState>>,
    /// What series have beside their states whose newest sample is a histogram.
    tails: Tails,
    waiting: Waiting,
    files: Arc<HeadChunkFiles>,
}

const SEGMENT_BITS: u32 = 10;
const SEGMENT_SLOTS: usize = 1 << SEGMENT_BITS;

/// An encoded chunk, whole.
#[derive(Clone, Debug)]
pub struct HeadChunk {
    pub mint: Timestamp,
    /// Time of the last sample, included.
    pub maxt: Timestamp,
    pub encoding: u8,
    pub bytes: Arc<[u8]>,
}

impl HeadChunk {
    /// Whether a sample at `t` would be in it.
    pub fn holds(&self, t: Timestamp) -> bool {
        (self.mint..=self.maxt).contains(&t)
    }
}

/// A chunk that was found under the lock; one in a file is read without it.
#[derive(Clone)]
pub enum FoundChunk {
    Here(HeadChunk),
    InFile(ChunkInFile),
}

impl FoundChunk {
    /// The chunk itself; blocks on the disk if it is in a file.
    pub fn load(self) -> Result<HeadChunk, ReadError> {
        match self {
            FoundChunk::Here(chunk) => Ok(chunk),
            FoundChunk::InFile(chunk) => {
                let mut bytes = Vec::new();
                let encoding = chunk.read(&mut bytes)?;
                let ChunkInFile { mint, maxt, .. } = chunk;
                Ok(HeadChunk { mint, maxt, encoding, bytes: bytes.into() })
            }
        }
    }
}

/// What a series no longer has.
#[derive(Default)]
pub struct DroppedChunks {
    pub chunks: usize,
    /// The first one that is left has samples before the time, too, and lies in a file: it is to be
    /// [shortened](States::shorten).
    pub to_shorten: Option<ChunkInFile>,
}

impl States {
    pub fn new(files: Arc<HeadChunkFiles>) -> States {
        let (tails, waiting) = (Tails::default(), Waiting::default());
        States { segments: Vec::new(), tails, waiting, files }
    }

    pub fn files(&self) -> &Arc<HeadChunkFiles> {
        &self.files
    }

    pub fn len(&self) -> usize {
        match self.segments.last() {
            Some(last) => (self.segments.len() - 1) * SEGMENT_SLOTS + last.len(),
            None => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Puts a series' state in place of what its slot had, which has no samples, or behind all others.
    pub fn begin(&mut self, slot: Slot, state: SeriesState) {
        match (slot as usize) < self.len() {
            true => {
                self.clear(slot);
                *self.get_mut(slot) = state;
            }
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
        state_in(&mut self.segments, slot)
    }

    pub fn iter(&self) -> impl Iterator<Item = &SeriesState> {
        self.segments.iter().flatten()
    }

    /// A series' state, and where its full chunks go.
    #[inline]
    fn parts(&mut self, slot: Slot) -> (&mut SeriesState, &mut Waiting, &HeadChunkFiles) {
        (state_in(&mut self.segments, slot), &mut self.waiting, &self.files)
    }

    /// Appends a sample later than the series' last one, cutting chunks where Prometheus does.
    #[inline]
    pub fn append(&mut self, slot: Slot, t: Timestamp, v: u64, block_range: i64) -> Cut {
        let (state, waiting, _) = self.parts(slot);
        if state.is_histogram() {
            return self.append_behind_histograms(slot, t, v, block_range);
        }
        state.append(t, v, block_range, |chunk| waiting.add(chunk.of(slot)))
    }

    /// The same with a histogram, whose spans name its buckets.
    pub fn append_histogram(
        &mut self,
        slot: Slot,
        t: Timestamp,
        sample: &AnyHistogram,
        block_range: i64,
    ) -> Cut {
        let States { segments, tails, waiting, .. } = self;
        let state = state_in(segments, slot);
        debug_assert!(state.last().is_none_or(|(last, _)| last < t));
        let mut keep = |chunk: Filled| waiting.add(chunk.of(slot));
        let mut next_at = state.next_at();
        let appended = match tails.get_mut(&slot) {
            Some(tail) => tail.append(t, sample, &mut next_at, block_range),
            None => {
                if state.has_open_chunk() {
                    state.end_floats(&mut keep);
                }
                tails.insert(slot, Box::new(Tail::begin(t, sample)));
                next_at = range_end(t, block_range);
                Appended::Began(None)
            }
        };
        state.set_next_at(next_at);
        let Appended::Began(full) = appended else {
            let mint = state.open_range().map(|(mint, _)| mint);
            state.set_histogram(mint, t);
            return Cut::No;
        };
        if let Some(full) = full {
            state.push_full(full, keep);
        }
        state.set_histogram(Some(t), t);
        Cut::Began
    }

    /// The end of a series whose newest sample is a histogram.
    pub fn tail(&self, slot: Slot) -> Option<&Tail> {
        // Most heads have none.
        let tail = || self.tails.get(&slot);
        self.get(slot).is_histogram().then(tail).flatten().map(|tail| &**tail)
    }

    /// The kind of a series' newest sample, if that is a histogram.
    pub fn histogram_kind(&self, slot: Slot) -> Option<HistogramKind> {
        self.tail(slot).map(Tail::kind)
    }

    /// There is no open chunk, and this is the last sample of the full ones.
    pub fn set_last(&mut self, slot: Slot, t: Timestamp, v: u64) {
        self.tails.remove(&slot);
        self.get_mut(slot).set_last(t, v);
    }

    /// The same, if it is a histogram.
    pub fn set_last_histogram(&mut self, slot: Slot, t: Timestamp, last: AnyHistogram) {
        debug_assert!(!self.get(slot).has_open_chunk());
        self.tails.insert(slot, Box::new(Tail::full(last)));
        self.get_mut(slot).set_histogram(None, t);
    }

    #[cold]
    fn append_behind_histograms(
        &mut self,
        slot: Slot,
        t: Timestamp,
        v: u64,
        block_range: i64,
    ) -> Cut {
        let States { segments, tails, waiting, .. } = self;
        let state = state_in(segments, slot);
        state.end_histograms();
        if let Some(full) = tails.remove(&slot).and_then(|tail| tail.finish()) {
            state.push_full(full, |chunk| waiting.add(chunk.of(slot)));
        }
        state.append(t, v, block_range, |chunk| waiting.add(chunk.of(slot)))
    }

    /// The series has a chunk in a file, which no other of its chunks overlaps; or the first of those
    /// that do.
    pub fn attach(&mut self, slot: Slot, chunk: Listed) -> Result<(), Listed> {
        let (state, _, files) = self.parts(slot);
        state.full.insert(chunk)?;
        if let Place::File(place) = chunk.place {
            files.hold(place);
        }
        Ok(())
    }

    /// Takes all samples of a series away; how many chunks that were.
    pub fn clear(&mut self, slot: Slot) -> usize {
        let (state, waiting, files) = self.parts(slot);
        let count = state.chunk_count();
        state.full.iter().for_each(|chunk| let_go(waiting, files, chunk.place));
        let is_histogram = state.is_histogram();
        state.clear();
        if is_histogram {
            self.tails.remove(&slot);
            // What a head once had of them is not to be held for ever.
            if self.tails.is_empty() {
                self.tails = Tails::default();
            }
        }
        count
    }

    /// Takes samples out whose time is not kept. Blocks on the disk for what is in files.
    pub fn retain(
        &mut self,
        slot: Slot,
        keep: impl Fn(Timestamp) -> bool,
    ) -> Result<(), ReadError> {
        let chunks: Vec<_> = self.get(slot).full.iter().collect();
        for chunk in chunks {
            let HeadChunk { encoding, bytes, .. } = self.found(chunk).load()?;
            if !SampleIterator::new(encoding, &bytes).flatten().all(|(t, _)| keep(t)) {
                self.replace(slot, chunk, encode_if(encoding, &bytes, &keep).0);
            }
        }
        self.retain_open(slot, &keep);
        let state = self.get(slot);
        if state.full.is_empty() && !state.has_open_chunk() {
            self.clear(slot);
        }
        Ok(())
    }

    /// Drops the open chunk's samples whose time is not kept.
    fn retain_open(&mut self, slot: Slot, keep: impl Fn(Timestamp) -> bool) {
        let Some((_, maxt)) = self.get(slot).open_range() else { return };
        let mut bytes = Vec::new();
        let encoding = self.copy_open_chunk(slot, &mut bytes);
        let (kept, _) = encode_if(encoding, &bytes, keep);
        let States { segments, tails, .. } = self;
        let state = state_in(segments, slot);
        let Some(tail) = tails.get_mut(&slot) else {
            let (xor, bytes) = match kept {
                Some(OpenChunk::Float { xor, bytes, .. }) => (xor, bytes),
                _ => (XorState::default(), ThinVec::new()),
            };
            state.replace_open_floats(xor, bytes);
            return;
        };
        match kept {
            Some(kept) => tail.replace_open(kept),
            // What comes is to be behind it.
            None => **tail = Tail::full(tail.last()),
        }
        let open = tail.open_range();
        state.set_histogram(open.map(|(mint, _)| mint), open.map_or(maxt, |(_, maxt)| maxt));
    }

    /// Appends a copy of the open chunk, of which there is one, and gives its encoding.
    fn copy_open_chunk(&self, slot: Slot, into: &mut Vec<u8>) -> u8 {
        match self.tail(slot).and_then(Tail::open_chunk) {
            Some((encoding, bytes)) => {
                into.extend_from_slice(bytes);
                encoding
            }
            None => {
                self.get(slot).copy_open_floats(into);
                ENCODING_XOR
            }
        }
    }

    /// Brings what [`Self::chunks_in`] and [`SeriesState::overlaps`] look at of these series, all
    /// together: one after another they would be waited for.
    pub fn fetch(&self, slots: impl Iterator<Item = Slot> + Clone) {
        let lines = slots.clone().fold(0, |all, slot| all ^ self.get(slot).series_ref().0);
        std::hint::black_box(lines);
        let chunks = slots.fold(0, |all, slot| all ^ self.get(slot).touch_chunks());
        std::hint::black_box(chunks);
    }

    /// Chunks that overlap the range, both ends included, oldest first; those in memory are copied.
    pub fn chunks_in(
        &self,
        slot: Slot,
        mint: Timestamp,
        maxt: Timestamp,
        mut each: impl FnMut(FoundChunk),
    ) {
        let state = self.get(slot);
        for chunk in state.full.iter().filter(|chunk| chunk.overlaps(mint, maxt)) {
            each(self.found(chunk));
        }
        if let Some((open_mint, open_maxt)) = state.open_range()
            && open_mint <= maxt
            && mint <= open_maxt
        {
            let mut bytes = Vec::new();
            let encoding = self.copy_open_chunk(slot, &mut bytes);
            let (mint, maxt, bytes) = (open_mint, open_maxt, bytes.into());
            each(FoundChunk::Here(HeadChunk { mint, maxt, encoding, bytes }));
        }
    }

    /// Adds the chunks that overlap the range to `chunks`, oldest first; those in files are asked for.
    pub fn gather(&self, slot: Slot, range: TimeRange, chunks: &mut ChunkSet) {
        let state = self.get(slot);
        for chunk in state.full.iter().filter(|chunk| chunk.overlaps(range.mint, range.maxt)) {
            let Listed { mint, maxt, place } = chunk;
            match place {
                Place::Waiting(id) => {
                    let (encoding, bytes) = self.waiting_chunk(id);
                    chunks.push(mint, maxt, encoding, bytes);
                }
                Place::File(place) => self.files.gather(mint, maxt, place, chunks),
            }
        }
        if let Some((mint, maxt)) = state.open_range()
            && range.overlaps(mint, maxt)
        {
            chunks.push_with(mint, maxt, |bytes| self.copy_open_chunk(slot, bytes));
        }
    }

    /// Encoding and bytes of a chunk in memory.
    fn waiting_chunk(&self, id: WaitingId) -> (u8, &[u8]) {
        self.waiting.chunk(id).unwrap_or((ENCODING_XOR, &[]))
    }

    fn found(&self, chunk: Listed) -> FoundChunk {
        let Listed { mint, maxt, place } = chunk;
        match place {
            Place::Waiting(id) => {
                let (encoding, bytes) = self.waiting_chunk(id);
                FoundChunk::Here(HeadChunk { mint, maxt, encoding, bytes: bytes.into() })
            }
            Place::File(place) => FoundChunk::InFile(self.files.chunk(mint, maxt, place)),
        }
    }

    /// The chunk in which a sample at `t` would be.
    pub fn chunk_at(&self, slot: Slot, t: Timestamp) -> Option<FoundChunk> {
        let mut found = None;
        self.chunks_in(slot, t, t, |chunk| found = found.take().or(Some(chunk)));
        found
    }

    /// Drops the samples before `mint`, and gives their room back. A chunk that has samples on both
    /// sides is encoded anew if it is in memory.
    pub fn drop_before(&mut self, slot: Slot, mint: Timestamp) -> DroppedChunks {
        let (state, waiting, files) = self.parts(slot);
        let Some((last, _)) = state.last() else { return DroppedChunks::default() };
        if last < mint {
            return DroppedChunks { chunks: self.clear(slot), to_shorten: None };
        }
        let mut dropped = DroppedChunks::default();
        state.full.drop_before(mint, |chunk| {
            dropped.chunks += 1;
            let_go(waiting, files, chunk.place);
        });
        match state.full.first() {
            Some(first) if first.mint >= mint => {}
            Some(first) => match first.place {
                Place::Waiting(id) => {
                    let (encoding, bytes) = self.waiting_chunk(id);
                    let (kept, _) = encode_if(encoding, bytes, |t| t >= mint);
                    self.replace(slot, first, kept);
                }
                Place::File(place) => {
                    dropped.to_shorten = Some(files.chunk(first.mint, first.maxt, place));
                }
            },
            None if state.open_range().is_some_and(|(first, _)| first < mint) => {
                self.retain_open(slot, |t| t >= mint);
            }
            None => {}
        }
        dropped
    }

    /// Puts what a chunk in a file has from `mint` on in its place, if the series still has it. `bytes`
    /// are the chunk's, and their encoding.
    pub fn shorten(
        &mut self,
        slot: Slot,
        chunk: &ChunkInFile,
        mint: Timestamp,
        (encoding, bytes): (u8, &[u8]),
    ) {
        let (state, _, _) = self.parts(slot);
        let is_it = |first: &Listed| {
            let of_file = matches!(first.place, Place::File(_));
            of_file && (first.mint, first.maxt) == (chunk.mint, chunk.maxt)
        };
        if let Some(first) = state.full.first().filter(is_it) {
            self.replace(slot, first, encode_if(encoding, bytes, |t| t >= mint).0);
        }
    }

    /// Puts an encoded chunk in the place of one that has its samples; nothing, if it has none. One
    /// that waits keeps its turn: a program that finds a later chunk of the series in a file, and not
    /// this, takes it for lost.
    fn replace(&mut self, slot: Slot, chunk: Listed, by: Option<OpenChunk>) {
        let (state, waiting, files) = self.parts(slot);
        state.full.remove(chunk.place);
        let Some(by) = by else {
            let_go(waiting, files, chunk.place);
            return;
        };
        let Encoded { mint, maxt, encoding, bytes } = by.finish();
        let id = match chunk.place {
            Place::Waiting(id) => {
                if let Some(waits) = waiting.get_mut(id) {
                    (waits.mint, waits.maxt, waits.bytes) = (mint, maxt, bytes);
                }
                id
            }
            Place::File(place) => {
                let (series_ref, part_of) = (state.series_ref(), Some(place));
                waiting.keep(WaitingChunk {
                    slot,
                    series_ref,
                    mint,
                    maxt,
                    encoding,
                    bytes,
                    part_of,
                })
            }
        };
        let inserted = state.full.insert(Listed { mint, maxt, place: Place::Waiting(id) });
        debug_assert!(inserted.is_ok(), "it was there before");
    }

    /// Adds an encoded chunk between others; whether there was a gap for it. It waits to be written, or
    /// is kept in memory.
    pub fn insert(&mut self, slot: Slot, chunk: OpenChunk, is_kept: bool) -> bool {
        let Encoded { mint, maxt, encoding, bytes } = chunk.finish();
        let (state, waiting, _) = self.parts(slot);
        let place = Place::Waiting(waiting.end());
        let is_gap = state.full.insert(Listed { mint, maxt, place }).is_ok();
        if is_gap {
            let (series_ref, part_of) = (state.series_ref(), None);
            let chunk = WaitingChunk { slot, series_ref, mint, maxt, encoding, bytes, part_of };
            if is_kept {
                waiting.keep(chunk)
            } else {
                waiting.add(chunk)
            };
        }
        is_gap
    }

    /// Up to when sealed files have all of a series' samples; `None` if not even its first chunk is
    /// in one. Of a chunk that was shortened the file has more.
    pub fn sealed_to(&self, slot: Slot, sealed: &SealedFiles) -> Option<Timestamp> {
        let place_in_file = |chunk: &Listed| match chunk.place {
            Place::File(place) => Some(place),
            Place::Waiting(id) => self.waiting.part_of(id),
        };
        let is_sealed = |chunk: &Listed| place_in_file(chunk).is_some_and(|at| sealed.holds(at));
        self.get(slot).full.iter().take_while(is_sealed).last().map(|chunk| chunk.maxt)
    }

    /// All chunks that wait now come before this; `None` if none is to be written.
    pub fn waiting_end(&self) -> Option<WaitingId> {
        self.waiting.has_queue().then(|| self.waiting.end())
    }

    /// Copies of the next full chunks to be written, of those before `end`.
    pub fn next_to_write(&self, end: WaitingId, count: usize) -> Vec<(WaitingId, Slot, FullChunk)> {
        self.waiting.next_to_write(end, count)
    }

    /// The chunks lie in a file now.
    pub fn settle(&mut self, written: impl Iterator<Item = (WaitingId, Slot, ChunkPlace)>) {
        for (id, slot, place) in written {
            let (state, waiting, files) = self.parts(slot);
            // Dropped meanwhile, perhaps.
            if state.full.replace(Place::Waiting(id), Place::File(place)) {
                files.hold(place);
                waiting.remove(id);
                // It may have filled a gap, behind which there was a chunk in a file.
                let later = state.full.iter().skip_while(|chunk| chunk.place != Place::File(place));
                if later.skip(1).any(|chunk| matches!(chunk.place, Place::File(_))) {
                    files.note_out_of_sequence(place);
                }
            }
            waiting.written_to(id);
        }
    }
}

#[inline]
fn state_in(segments: &mut [Vec<SeriesState>], slot: Slot) -> &mut SeriesState {
    &mut segments[(slot >> SEGMENT_BITS) as usize][slot as usize & (SEGMENT_SLOTS - 1)]
}

fn let_go(waiting: &mut Waiting, files: &HeadChunkFiles, place: Place) {
    match place {
        Place::Waiting(id) => {
            let part_of = waiting.remove(id).and_then(|chunk| chunk.part_of);
            part_of.into_iter().for_each(|place| files.let_go(place));
        }
        Place::File(place) => files.let_go(place),
    }
}

#[cfg(test)]
mod tests;
