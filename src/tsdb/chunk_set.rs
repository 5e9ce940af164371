//! Chunks of several series, read together: their bytes lie in one buffer, which is used again and
//! again, and those in files are read in the order in which they lie there.

use std::sync::Arc;

use crate::model::Timestamp;
use crate::tsdb::chunk_reads::{ChunkAt, ChunkFile, ChunkReads};
use crate::tsdb::chunkenc::ENCODING_XOR;
use crate::tsdb::error::ReadError;

/// What a chunk in a file is reckoned with before it is read: 120 samples of a counter.
const CHUNK_BYTES_EXPECTED: usize = 512;

/// An encoded chunk of a [`ChunkSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkView<'c> {
    pub mint: Timestamp,
    /// Time of the last sample, included.
    pub maxt: Timestamp,
    /// Prometheus' chunk encoding number; 1 is XOR.
    pub encoding: u8,
    /// The chunk as Prometheus stores it: sample count (u16, big endian), then the bit stream.
    pub bytes: &'c [u8],
}

/// The chunks of series, one series after another. First series are gathered, then what of them lies
/// in files is [loaded](Self::load).
#[derive(Default)]
pub struct ChunkSet {
    bytes: Vec<u8>,
    chunks: Vec<Entry>,
    /// Of each series, how many chunks there are up to its end.
    ends: Vec<usize>,
    reads: ChunkReads,
}

/// A place among the chunks of a [`ChunkSet`].
pub struct Mark {
    bytes: usize,
    chunks: usize,
    reads: usize,
}

struct Entry {
    mint: Timestamp,
    maxt: Timestamp,
    encoding: u8,
    start: usize,
    len: usize,
}

impl ChunkSet {
    /// Forgets the chunks and keeps their room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.chunks.clear();
        self.ends.clear();
        self.reads.clear();
    }

    /// Bytes of the chunks; what is not loaded yet is estimated.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.reads.count() * CHUNK_BYTES_EXPECTED
    }

    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// How many series there are.
    pub fn series_count(&self) -> usize {
        self.ends.len()
    }

    /// The chunks of the series that was gathered as number `i`.
    pub fn of(&self, i: usize) -> impl ExactSizeIterator<Item = ChunkView<'_>> + Clone {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        let view = |entry: &Entry| ChunkView {
            mint: entry.mint,
            maxt: entry.maxt,
            encoding: entry.encoding,
            bytes: &self.bytes[entry.start..entry.start + entry.len],
        };
        self.chunks[start..self.ends[i]].iter().map(view)
    }

    /// The next series has this chunk.
    pub fn push(&mut self, mint: Timestamp, maxt: Timestamp, encoding: u8, bytes: &[u8]) {
        self.push_with(mint, maxt, |all| {
            all.extend_from_slice(bytes);
            encoding
        });
    }

    /// The same with a chunk that is `append`ed to the bytes, which gives its encoding.
    pub fn push_with(
        &mut self,
        mint: Timestamp,
        maxt: Timestamp,
        append: impl FnOnce(&mut Vec<u8>) -> u8,
    ) {
        let start = self.bytes.len();
        let encoding = append(&mut self.bytes);
        let len = self.bytes.len() - start;
        self.chunks.push(Entry { mint, maxt, encoding, start, len });
    }

    /// The next series has this chunk, which is to be read.
    pub fn push_unread<F: ChunkFile + 'static>(&mut self, file: &Arc<F>, chunk: ChunkAt) {
        let ChunkAt { mint, maxt, .. } = chunk;
        self.reads.want(file, chunk, self.chunks.len());
        self.chunks.push(Entry { mint, maxt, encoding: ENCODING_XOR, start: 0, len: 0 });
    }

    /// Where the next series begins.
    pub fn mark(&self) -> Mark {
        let (bytes, chunks) = (self.bytes.len(), self.chunks.len());
        Mark { bytes, chunks, reads: self.reads.count() }
    }

    /// Whether the chunks of the series that begins there are in order of time and do not overlap.
    pub fn is_in_order(&self, mark: &Mark) -> bool {
        self.chunks[mark.chunks..].windows(2).all(|pair| pair[0].maxt < pair[1].mint)
    }

    /// Takes the chunks of the series that begins there out.
    pub fn return_to(&mut self, mark: &Mark) {
        self.bytes.truncate(mark.bytes);
        self.chunks.truncate(mark.chunks);
        self.reads.truncate(mark.reads);
    }

    /// The next series has no chunks but those that were pushed.
    pub fn end_series(&mut self) {
        self.ends.push(self.chunks.len());
    }

    /// Reads the chunks that lie in files; blocks on the disk. What is loaded by work that was
    /// [asked to stop](crate::model::stop) is not complete.
    pub fn load(&mut self) -> Result<(), ReadError> {
        let ChunkSet { bytes, chunks, reads, .. } = self;
        reads.read(|number, encoding, read| {
            let chunk = &mut chunks[number];
            (chunk.encoding, chunk.start, chunk.len) = (encoding, bytes.len(), read.len());
            bytes.extend_from_slice(read);
        })
    }
}
