//! The chunks that head chunk files have, by ref, until the log names their series.

use crate::model::key_table::Slot;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::head::chunk_list::{ChunkList, Listed, Place};
use crate::tsdb::head::ref_map::RefMap;
use crate::tsdb::head_chunks::HeadChunkFiles;
use crate::tsdb::head_chunks::scan::MappedChunk;

/// The chunks of a ref.
#[derive(Default)]
pub struct MappedList {
    pub chunks: ChunkList,
    /// That of the last one.
    pub last_encoding: u8,
}

#[derive(Default)]
pub struct MappedChunks {
    /// Ref to place in `lists`.
    refs: RefMap,
    lists: Vec<MappedList>,
    /// The ref of each list.
    list_refs: Vec<HeadSeriesRef>,
    /// Chunks that overlap others, and are not used.
    contested: u64,
    newest: Option<Timestamp>,
}

impl MappedChunks {
    /// Takes a chunk. Of two that overlap and are not the same the one that was written first is used:
    /// the log may have lost its samples since, and has those of the other.
    pub fn add(&mut self, files: &HeadChunkFiles, chunk: MappedChunk) {
        let MappedChunk { series_ref, mint, maxt, encoding, place } = chunk;
        self.newest = self.newest.max(Some(maxt));
        let at = match self.refs.slot(series_ref) {
            Some(at) => at,
            None => {
                // Each takes 34 bytes in a file, and 2^32 of those do not fit into all files.
                let at = self.lists.len() as Slot;
                self.refs.insert(series_ref, at);
                self.lists.push(MappedList::default());
                self.list_refs.push(series_ref);
                at
            }
        };
        let MappedList { chunks: list, last_encoding } = &mut self.lists[at as usize];
        if list.last().is_some_and(|last| mint <= last.maxt) {
            files.note_out_of_sequence(place);
        }
        let listed = Listed { mint, maxt, place: Place::File(place) };
        match list.insert(listed) {
            Ok(()) if list.last() == Some(listed) => *last_encoding = encoding,
            Ok(()) => {}
            Err(other) if is_same(files, listed, other) => {}
            Err(_) => self.contested += 1,
        }
    }

    /// Chunks that are not used since they overlap others.
    pub fn contested(&self) -> u64 {
        self.contested
    }

    /// Time of the newest sample in any chunk; [`Timestamp::MIN`] if there is none.
    pub fn newest(&self) -> Timestamp {
        self.newest.unwrap_or(Timestamp::MIN)
    }

    /// Time of the newest sample that each ref has here.
    pub fn last_times(&self) -> impl Iterator<Item = (HeadSeriesRef, Timestamp)> {
        let lists = self.list_refs.iter().zip(&self.lists);
        lists.filter_map(|(series_ref, list)| Some((*series_ref, list.chunks.last()?.maxt)))
    }

    /// The chunks of a ref, which are its series' from now on.
    pub fn take(&mut self, series_ref: HeadSeriesRef) -> MappedList {
        match self.refs.slot(series_ref) {
            Some(at) => std::mem::take(&mut self.lists[at as usize]),
            None => MappedList::default(),
        }
    }
}

fn is_same(files: &HeadChunkFiles, one: Listed, other: Listed) -> bool {
    let bytes = |chunk: Listed| {
        let Place::File(place) = chunk.place else { return None };
        let mut bytes = Vec::new();
        let chunk = files.chunk(chunk.mint, chunk.maxt, place);
        chunk.read(&mut bytes).ok().map(|encoding| (encoding, bytes))
    };
    (one.mint, one.maxt) == (other.mint, other.maxt)
        && bytes(one).is_some_and(|one| bytes(other) == Some(one))
}
