//! The states of a head's series, by slot, and where their full chunks are.

use std::sync::Arc;

use thin_vec::ThinVec;

use crate::model::key_table::Slot;
use crate::model::{TimeRange, Timestamp};
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::chunkenc::ENCODING_XOR;
use crate::tsdb::chunkenc::xor::{XorIterator, XorState};
use crate::tsdb::error::ReadError;
use crate::tsdb::head::chunk_list::{Listed, Place, WaitingId};
use crate::tsdb::head::series::{Cut, SeriesState};
use crate::tsdb::head::waiting::{Waiting, WaitingChunk};
use crate::tsdb::head_chunks::seal::SealedFiles;
use crate::tsdb::head_chunks::{ChunkInFile, ChunkPlace, FullChunk, HeadChunkFiles};

/// The states of all slots, in segments that never move.
pub struct States {
    segments: Vec<Vec<SeriesState>>,
    waiting: Waiting,
    files: Arc<HeadChunkFiles>,
}

const SEGMENT_BITS: u32 = 10;
const SEGMENT_SLOTS: usize = 1 << SEGMENT_BITS;

/// An encoded chunk of floats, whole.
#[derive(Clone, Debug)]
pub struct HeadChunk {
    pub mint: Timestamp,
    /// Time of the last sample, included.
    pub maxt: Timestamp,
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
                chunk.read(&mut bytes)?;
                Ok(HeadChunk { mint: chunk.mint, maxt: chunk.maxt, bytes: bytes.into() })
            }
        }
    }
}

/// Bits of the value at `t` in an encoded chunk, if there is one.
pub fn value_in(chunk: &[u8], t: Timestamp) -> Option<u64> {
    let at = |sample: Result<(Timestamp, u64), _>| match sample {
        Ok((time, v)) if time == t => Some(v),
        _ => None,
    };
    XorIterator::new(chunk).find_map(at)
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
        States { segments: Vec::new(), waiting: Waiting::default(), files }
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
        &mut self.segments[(slot >> SEGMENT_BITS) as usize][slot as usize & (SEGMENT_SLOTS - 1)]
    }

    pub fn iter(&self) -> impl Iterator<Item = &SeriesState> {
        self.segments.iter().flatten()
    }

    /// A series' state, and where its full chunks go.
    #[inline]
    fn parts(&mut self, slot: Slot) -> (&mut SeriesState, &mut Waiting, &HeadChunkFiles) {
        let segment = &mut self.segments[(slot >> SEGMENT_BITS) as usize];
        let state = &mut segment[slot as usize & (SEGMENT_SLOTS - 1)];
        (state, &mut self.waiting, &self.files)
    }

    /// Appends a sample later than the series' last one, cutting chunks where Prometheus does.
    #[inline]
    pub fn append(&mut self, slot: Slot, t: Timestamp, v: u64, block_range: i64) -> Cut {
        let (state, waiting, _) = self.parts(slot);
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
        state.clear();
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
            let bytes = self.found(chunk).load()?.bytes;
            let is_kept = |(t, _): &(Timestamp, u64)| keep(*t);
            if !XorIterator::new(&bytes).flatten().all(|sample| is_kept(&sample)) {
                self.replace(slot, chunk, encode_if(&bytes, &keep));
            }
        }
        self.get_mut(slot).retain_open(&keep);
        Ok(())
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
            let bytes = state.open_chunk();
            each(FoundChunk::Here(HeadChunk { mint: open_mint, maxt: open_maxt, bytes }));
        }
    }

    /// Adds the chunks that overlap the range to `chunks`, oldest first; those in files are asked for.
    pub fn gather(&self, slot: Slot, range: TimeRange, chunks: &mut ChunkSet) {
        let state = self.get(slot);
        for chunk in state.full.iter().filter(|chunk| chunk.overlaps(range.mint, range.maxt)) {
            let Listed { mint, maxt, place } = chunk;
            match place {
                Place::Waiting(id) => {
                    let bytes = self.waiting.bytes(id).unwrap_or_default();
                    chunks.push(mint, maxt, ENCODING_XOR, bytes);
                }
                Place::File(place) => self.files.gather(mint, maxt, place, chunks),
            }
        }
        if let Some((mint, maxt)) = state.open_range()
            && range.overlaps(mint, maxt)
        {
            chunks.push_with(mint, maxt, ENCODING_XOR, |bytes| state.copy_open_chunk(bytes));
        }
    }

    fn found(&self, chunk: Listed) -> FoundChunk {
        let Listed { mint, maxt, place } = chunk;
        match place {
            Place::Waiting(id) => {
                FoundChunk::Here(HeadChunk { mint, maxt, bytes: self.waiting.copy(id) })
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
                    let bytes = encode_from(mint, self.waiting.bytes(id).unwrap_or_default());
                    self.replace(slot, first, bytes);
                }
                Place::File(place) => {
                    dropped.to_shorten = Some(files.chunk(first.mint, first.maxt, place));
                }
            },
            None => state.drop_open_before(mint),
        }
        dropped
    }

    /// Puts what a chunk in a file has from `mint` on in its place, if the series still has it. `bytes`
    /// are the chunk's.
    pub fn shorten(&mut self, slot: Slot, chunk: &ChunkInFile, mint: Timestamp, bytes: &[u8]) {
        let (state, _, _) = self.parts(slot);
        let is_it = |first: &Listed| {
            let of_file = matches!(first.place, Place::File(_));
            of_file && (first.mint, first.maxt) == (chunk.mint, chunk.maxt)
        };
        if let Some(first) = state.full.first().filter(is_it) {
            self.replace(slot, first, encode_from(mint, bytes));
        }
    }

    /// Puts an encoded chunk in the place of one that has its samples; nothing, if it has none. One
    /// that waits keeps its turn: a program that finds a later chunk of the series in a file, and not
    /// this, takes it for lost.
    fn replace(&mut self, slot: Slot, chunk: Listed, (xor, mut bytes): (XorState, ThinVec<u8>)) {
        let (state, waiting, files) = self.parts(slot);
        state.full.remove(chunk.place);
        if xor.count == 0 {
            let_go(waiting, files, chunk.place);
            return;
        }
        let (mint, maxt) = (xor.first_time(&bytes), xor.t);
        xor.finish(&mut bytes);
        let id = match chunk.place {
            Place::Waiting(id) => {
                if let Some(waits) = waiting.get_mut(id) {
                    (waits.mint, waits.maxt, waits.bytes) = (mint, maxt, bytes);
                }
                id
            }
            Place::File(place) => {
                let (series_ref, part_of) = (state.series_ref(), Some(place));
                waiting.keep(WaitingChunk { slot, series_ref, mint, maxt, bytes, part_of })
            }
        };
        let inserted = state.full.insert(Listed { mint, maxt, place: Place::Waiting(id) });
        debug_assert!(inserted.is_ok(), "it was there before");
    }

    /// Adds an encoded chunk between others; whether there was a gap for it. It waits to be written, or
    /// is kept in memory.
    pub fn insert(
        &mut self,
        slot: Slot,
        (xor, mut bytes): (XorState, ThinVec<u8>),
        is_kept: bool,
    ) -> bool {
        let (mint, maxt) = (xor.first_time(&bytes), xor.t);
        xor.finish(&mut bytes);
        let (state, waiting, _) = self.parts(slot);
        let place = Place::Waiting(waiting.end());
        let is_gap = state.full.insert(Listed { mint, maxt, place }).is_ok();
        if is_gap {
            let (series_ref, part_of) = (state.series_ref(), None);
            let chunk = WaitingChunk { slot, series_ref, mint, maxt, bytes, part_of };
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

fn let_go(waiting: &mut Waiting, files: &HeadChunkFiles, place: Place) {
    match place {
        Place::Waiting(id) => {
            let part_of = waiting.remove(id).and_then(|chunk| chunk.part_of);
            part_of.into_iter().for_each(|place| files.let_go(place));
        }
        Place::File(place) => files.let_go(place),
    }
}

/// The samples of a chunk from `mint` on.
fn encode_from(mint: Timestamp, chunk: &[u8]) -> (XorState, ThinVec<u8>) {
    encode_if(chunk, |t| t >= mint)
}

/// The samples of a chunk whose time is kept.
pub fn encode_if(chunk: &[u8], keep: impl Fn(Timestamp) -> bool) -> (XorState, ThinVec<u8>) {
    let (mut xor, mut bytes) = (XorState::default(), ThinVec::new());
    let kept = XorIterator::new(chunk).flatten().filter(|(t, _)| keep(*t));
    kept.for_each(|(t, v)| xor.append(&mut bytes, t, v));
    (xor, bytes)
}

#[cfg(test)]
mod tests;
