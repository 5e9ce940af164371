//! The chunks that head chunk files have, by ref, until the log names their series.

use crate::model::HeadSeriesRef;
use crate::model::key_table::Slot;
use crate::tsdb::head::chunk_list::{ChunkList, Listed, Place};
use crate::tsdb::head::ref_map::RefMap;
use crate::tsdb::head_chunks::HeadChunkFiles;
use crate::tsdb::head_chunks::scan::MappedChunk;

#[derive(Default)]
pub struct MappedChunks {
    /// Ref to place in `lists`.
    refs: RefMap,
    lists: Vec<ChunkList>,
    /// Chunks that overlap others, and are not used.
    contested: u64,
}

impl MappedChunks {
    /// Takes a chunk. Of two that overlap and are not the same the one that was written first is used:
    /// the log may have lost its samples since, and has those of the other.
    pub fn add(&mut self, files: &HeadChunkFiles, chunk: MappedChunk) {
        let MappedChunk { series_ref, mint, maxt, place } = chunk;
        let at = match self.refs.slot(series_ref) {
            Some(at) => at,
            None => {
                // Each takes 34 bytes in a file, and 2^32 of those do not fit into all files.
                let at = self.lists.len() as Slot;
                self.refs.insert(series_ref, at);
                self.lists.push(ChunkList::default());
                at
            }
        };
        let list = &mut self.lists[at as usize];
        if list.last().is_some_and(|last| mint <= last.maxt) {
            files.note_out_of_sequence(place);
        }
        let listed = Listed { mint, maxt, place: Place::File(place) };
        if let Err(other) = list.insert(listed)
            && !is_same(files, listed, other)
        {
            self.contested += 1;
        }
    }

    /// Chunks that are not used since they overlap others.
    pub fn contested(&self) -> u64 {
        self.contested
    }

    /// The chunks of a ref, which are its series' from now on.
    pub fn take(&mut self, series_ref: HeadSeriesRef) -> ChunkList {
        match self.refs.slot(series_ref) {
            Some(at) => std::mem::take(&mut self.lists[at as usize]),
            None => ChunkList::default(),
        }
    }
}

fn is_same(files: &HeadChunkFiles, one: Listed, other: Listed) -> bool {
    let bytes = |chunk: Listed| {
        let Place::File(place) = chunk.place else { return None };
        let mut bytes = Vec::new();
        let chunk = files.chunk(chunk.mint, chunk.maxt, place);
        chunk.read(&mut bytes).ok().map(|()| bytes)
    };
    (one.mint, one.maxt) == (other.mint, other.maxt)
        && bytes(one).is_some_and(|one| bytes(other) == Some(one))
}
