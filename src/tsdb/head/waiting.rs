//! Full chunks that are in memory: those that wait to be written to a file, and the few that never are.

use std::collections::{HashMap, VecDeque};

use thin_vec::ThinVec;

use crate::model::key_table::Slot;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::head::chunk_list::WaitingId;
use crate::tsdb::head_chunks::{ChunkPlace, FullChunk};

/// A full chunk in memory.
pub struct WaitingChunk {
    pub slot: Slot,
    pub series_ref: HeadSeriesRef,
    pub mint: Timestamp,
    pub maxt: Timestamp,
    pub encoding: u8,
    /// As its encoding has it.
    pub bytes: ThinVec<u8>,
    /// The chunk in a file that it is a part of. That file stays as long as this does: a program that
    /// finds later chunks of the series, and not this, takes it for lost.
    pub part_of: Option<ChunkPlace>,
}

#[derive(Default)]
pub struct Waiting {
    chunks: HashMap<WaitingId, WaitingChunk>,
    /// Those that are to be written, oldest first. Some may be gone.
    queue: VecDeque<WaitingId>,
    next: u64,
}

impl Waiting {
    /// Takes a chunk that is to be written.
    pub fn add(&mut self, chunk: WaitingChunk) -> WaitingId {
        let id = self.keep(chunk);
        self.queue.push_back(id);
        id
    }

    /// Takes a chunk that is a part of one in a file, and stays here: no sample is in two files.
    pub fn keep(&mut self, mut chunk: WaitingChunk) -> WaitingId {
        let id = WaitingId(self.next);
        self.next += 1;
        if chunk.part_of.is_some() {
            chunk.bytes.shrink_to_fit();
        }
        self.chunks.insert(id, chunk);
        id
    }

    pub fn get_mut(&mut self, id: WaitingId) -> Option<&mut WaitingChunk> {
        self.chunks.get_mut(&id)
    }

    pub fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The number that the next chunk gets: all that wait now have lower ones.
    pub fn end(&self) -> WaitingId {
        WaitingId(self.next)
    }

    /// Encoding and bytes of a chunk.
    pub fn chunk(&self, id: WaitingId) -> Option<(u8, &[u8])> {
        self.chunks.get(&id).map(|chunk| (chunk.encoding, &chunk.bytes[..]))
    }

    /// The chunk in a file that one in memory is a part of.
    pub fn part_of(&self, id: WaitingId) -> Option<ChunkPlace> {
        self.chunks.get(&id)?.part_of
    }

    pub fn remove(&mut self, id: WaitingId) -> Option<WaitingChunk> {
        self.chunks.remove(&id)
    }

    /// Copies of the next chunks to be written, of those before `end`.
    pub fn next_to_write(&self, end: WaitingId, count: usize) -> Vec<(WaitingId, Slot, FullChunk)> {
        let next = self.queue.iter().take_while(|id| **id < end);
        let next = next.filter_map(|id| Some((*id, self.chunks.get(id)?)));
        let copy = |(id, chunk): (WaitingId, &WaitingChunk)| {
            let &WaitingChunk { slot, series_ref, mint, maxt, encoding, ref bytes, .. } = chunk;
            (id, slot, FullChunk { series_ref, mint, maxt, encoding, bytes: bytes.to_vec() })
        };
        next.take(count).map(copy).collect()
    }

    /// Those up to this one were written, or are gone.
    pub fn written_to(&mut self, id: WaitingId) {
        while self.queue.pop_front_if(|front| *front <= id).is_some() {}
        const KEPT: usize = 1024;
        if self.queue.is_empty() && self.queue.capacity() > KEPT {
            self.queue.shrink_to(KEPT);
            self.chunks.shrink_to(KEPT);
        }
    }
}
