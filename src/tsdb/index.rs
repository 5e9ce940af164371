//! The index of a block: which series it has, by which labels they are found, where their chunks are.
//!
//! ```text
//! magic 0xBAAAD700 | version 2
//! symbols             all label names and values, sorted, each once; a symbol's number is its place
//! series              each at a multiple of 16: labels by symbols, chunks by time and place
//! postings            each at a multiple of 4: the series that have a label, by their places / 16
//! postings table      by name and value, sorted: where their postings are
//! table of contents   where the sections begin
//!
//! symbols          section ( count u32, ( length uvarint, bytes )* )
//! a series         length uvarint | count of labels uvarint, ( name uvarint, value uvarint )*,
//!                    count of chunks uvarint, chunk*                        | CRC-32C of these
//! first chunk      mint varint, maxt - mint uvarint, place uvarint
//! another          mint - maxt before uvarint, maxt - mint uvarint, place - place before varint
//! postings         section ( count u32, ( place / 16 u32 )* ), rising
//! postings table   section ( count u32, ( 2, name, value, place uvarint )* )
//! contents         six places u64 | CRC-32C of these                       (the file's last 52 bytes)
//! ```
//!
//! See [`Section`](super::file::Section) for sections. The table of contents also names two sections
//! of label values that are not written any more; their places repeat those of the postings and of
//! the postings table. The first postings, under no name and no value, are those of all series.
//! Version 3 is read as version 2 is. (Prometheus `tsdb/docs/format/index.md`)

pub mod postings;
mod reader;
mod select;
mod symbols;
mod toc;
mod writer;

pub use self::reader::{IndexReader, SeriesReader, SymbolStream, Values};
pub use self::toc::Toc;
pub use self::writer::{INDEX_BYTES_MAX, IndexWriter};

use crate::model::Timestamp;

/// The file's name in the block's directory.
pub const INDEX_FILE: &str = "index";

const MAGIC: u32 = 0xbaaa_d700;
const HEADER_BYTES: u64 = 5;
const SERIES_ALIGN: u64 = 16;
const POSTINGS_ALIGN: u64 = 4;
/// Of symbols and values one in so many is kept in memory, as in Prometheus.
const SAMPLED: u32 = 32;
const CRC_BYTES: u64 = 4;

/// A series of a block: where it stands in the index, divided by 16. Says nothing in another block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSeriesRef(pub u32);

impl BlockSeriesRef {
    fn offset(self) -> u64 {
        u64::from(self.0) * SERIES_ALIGN
    }
}

/// A chunk of a block: the number of its segment, from 0, in the high half, where it begins there in
/// the low one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockChunkRef(pub u64);

impl BlockChunkRef {
    pub fn new(segment: u32, offset: u32) -> BlockChunkRef {
        BlockChunkRef(u64::from(segment) << 32 | u64::from(offset))
    }

    pub fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub fn offset(self) -> u32 {
        self.0 as u32
    }
}

/// What an index says of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkMeta {
    /// Times of the first and the last sample.
    pub mint: Timestamp,
    pub maxt: Timestamp,
    pub chunk: BlockChunkRef,
}

/// Numbers of a label's name and value among the symbols.
pub type LabelSymbols = (u32, u32);

#[cfg(test)]
mod tests;
