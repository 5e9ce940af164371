//! A block: the samples of a span of time that do not change any more, in a directory of its own.
//!
//! ```text
//! <ULID>/meta.json        what it holds and was made from
//!        index            series, and what finds them
//!        chunks/000001    chunks one after another, in segments
//!        tombstones       what was deleted of it since
//! ```
//!
//! One that is being made is `<ULID>.tmp-for-creation` until it is whole and on the medium, one that is
//! being deleted `<ULID>.tmp-for-deletion`; neither is read.

pub mod chunks;
pub mod merge;
pub mod meta;
pub mod removal;
mod source;
pub mod tombstones;
pub mod ulid;
pub mod verify;
pub mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::chunks::{CHUNKS_DIR, ChunkReader};
use self::meta::BlockMeta;
use self::tombstones::Tombstones;
use crate::disk::Disk;
use crate::tsdb::error::{Corruption, ReadError};
use crate::tsdb::file::{PageCache, RangeReader};
use crate::tsdb::index::{INDEX_FILE, IndexReader};

/// A block, open to be read. It holds its files open, so it goes on where its directory was renamed or
/// removed meanwhile.
pub struct Block {
    dir: PathBuf,
    meta: BlockMeta,
    index: IndexReader,
    chunks: ChunkReader,
    tombstones: Tombstones,
}

impl Block {
    /// Opens the block in `dir`: reads what finds things in it, checking that. Series, postings and
    /// chunks are checked as they are read.
    pub fn open(disk: &dyn Disk, dir: &Path, cache: Arc<PageCache>) -> Result<Block, ReadError> {
        Block::open_as(disk, dir, BlockMeta::read(disk, dir)?, cache)
    }

    /// The same with a manifest that was read.
    pub fn open_as(
        disk: &dyn Disk,
        dir: &Path,
        meta: BlockMeta,
        cache: Arc<PageCache>,
    ) -> Result<Block, ReadError> {
        Block::open_at(disk, dir, dir, meta, cache)
    }

    /// One that lies in `at` now, and is told of as `dir`, where it will be: a name costs an open file
    /// nothing.
    pub fn open_at(
        disk: &dyn Disk,
        at: &Path,
        dir: &Path,
        meta: BlockMeta,
        cache: Arc<PageCache>,
    ) -> Result<Block, ReadError> {
        let index = RangeReader::open_at(disk, &at.join(INDEX_FILE), &dir.join(INDEX_FILE))?;
        Ok(Block {
            dir: dir.to_owned(),
            meta,
            index: IndexReader::of_file(index, cache)?,
            chunks: ChunkReader::open_at(disk, &at.join(CHUNKS_DIR), &dir.join(CHUNKS_DIR))?,
            tombstones: Tombstones::read(disk, at)?,
        })
    }

    /// Where it was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn meta(&self) -> &BlockMeta {
        &self.meta
    }

    pub fn index(&self) -> &IndexReader {
        &self.index
    }

    /// What was deleted of it when it was opened.
    pub fn tombstones(&self) -> &Tombstones {
        &self.tombstones
    }

    /// Segments whose chunks cannot be read; the others are served.
    pub fn damaged_segments(&self) -> impl Iterator<Item = &Corruption> {
        self.chunks.damaged()
    }

    /// Bytes of index and chunks.
    pub fn bytes(&self) -> u64 {
        self.index.bytes() + self.chunks.bytes()
    }
}

#[cfg(test)]
pub(crate) mod tests;
