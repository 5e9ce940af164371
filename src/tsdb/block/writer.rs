//! Making a block: everything is written and on the medium before its name is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::Disk;
use crate::error::chain;
use crate::model::Timestamp;
use crate::tsdb::block::Block;
use crate::tsdb::block::chunks::{CHUNKS_DIR, ChunkWriter, EncodedChunk, SEGMENT_BYTES};
use crate::tsdb::block::meta::{
    BlockDesc, BlockMeta, BlockStats, Compaction, FROM_OUT_OF_ORDER, FROM_SELECTED_SERIES,
    FROM_STALE_SERIES, PARTIAL,
};
use crate::tsdb::block::removal::remove_dir;
use crate::tsdb::block::tombstones::Tombstones;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::chunkenc;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::file::PageCache;
use crate::tsdb::index::{BlockSeriesRef, ChunkMeta, INDEX_FILE, IndexWriter, LabelSymbols};

/// What the name of a block ends with while it is made. Prometheus removes such at its start, too.
pub const CREATION_SUFFIX: &str = ".tmp-for-creation";

const META_VERSION: i64 = 1;

/// Writes a block: all symbols, then all series, then the rest.
pub struct BlockWriter<'d> {
    disk: &'d dyn Disk,
    /// Where the block will be.
    dir: PathBuf,
    ulid: Ulid,
    /// Where it is until then.
    temporary: TemporaryDir<'d>,
    index: IndexWriter,
    chunks: ChunkWriter<'d>,
    stats: BlockStats,
    /// Of the last series.
    metas: Vec<ChunkMeta>,
}

impl<'d> BlockWriter<'d> {
    /// Begins a block in the database's directory `parent`. What is left there of one of this name
    /// that was not finished goes away.
    pub fn create(
        disk: &'d dyn Disk,
        parent: &Path,
        ulid: Ulid,
    ) -> Result<BlockWriter<'d>, WriteError> {
        BlockWriter::with_segments(disk, parent, ulid, SEGMENT_BYTES)
    }

    /// The same, with segments of so many bytes.
    pub fn with_segments(
        disk: &'d dyn Disk,
        parent: &Path,
        ulid: Ulid,
        segment_bytes: u64,
    ) -> Result<BlockWriter<'d>, WriteError> {
        let dir = parent.join(ulid.to_string());
        let temporary = parent.join(format!("{ulid}{CREATION_SUFFIX}"));
        remove_dir(disk, &temporary)?;
        let chunks_dir = temporary.join(CHUNKS_DIR);
        let index_path = temporary.join(INDEX_FILE);
        let temporary = TemporaryDir { disk, dir: Some(temporary) };
        disk.create_dir_all(&chunks_dir).map_err(WriteError::io(&chunks_dir))?;
        let index = IndexWriter::create(disk, &index_path)?;
        let chunks = ChunkWriter::new(disk, &chunks_dir, segment_bytes);
        let (stats, metas) = (BlockStats::default(), Vec::new());
        Ok(BlockWriter { disk, dir, ulid, temporary, index, chunks, stats, metas })
    }

    /// See [`IndexWriter::add_symbol`].
    pub fn add_symbol(&mut self, symbol: &[u8]) -> Result<u32, WriteError> {
        self.index.add_symbol(symbol)
    }

    /// Adds a series with its chunks, which rise in time. See [`IndexWriter::add_series`].
    pub fn add_series(
        &mut self,
        labels: &[LabelSymbols],
        chunks: &[EncodedChunk<'_>],
    ) -> Result<BlockSeriesRef, WriteError> {
        self.metas.clear();
        self.chunks.write(chunks, &mut self.metas)?;
        let series = self.index.add_series(labels, &self.metas)?;
        self.stats.num_series += 1;
        self.stats.num_chunks += chunks.len() as u64;
        for chunk in chunks {
            let samples = u64::from(chunkenc::sample_count(chunk.encoding, chunk.bytes));
            self.stats.num_samples += samples;
            match chunkenc::is_float(chunk.encoding) {
                true => self.stats.num_float_samples += samples,
                false => self.stats.num_histogram_samples += samples,
            }
        }
        Ok(series)
    }

    /// Finishes the block of the samples from `min_time` up to, and without, `max_time`, and gives it
    /// its name. One without samples is not made: it goes away again, and there is none.
    pub fn finish(
        self,
        min_time: Timestamp,
        max_time: Timestamp,
        compaction: Compaction,
    ) -> Result<Option<BlockMeta>, WriteError> {
        let complete = self.complete(min_time, max_time, compaction)?;
        complete.map(CompleteBlock::name).transpose()
    }

    /// The same but for the name.
    pub fn complete(
        self,
        min_time: Timestamp,
        max_time: Timestamp,
        compaction: Compaction,
    ) -> Result<Option<CompleteBlock<'d>>, WriteError> {
        if self.stats.num_samples == 0 {
            self.abort()?;
            return Ok(None);
        }
        let BlockWriter { disk, dir, ulid, temporary, index, chunks, stats, .. } = self;
        let at = temporary.path();
        chunks.finish()?;
        index.finish()?;
        let meta = BlockMeta {
            ulid,
            min_time,
            max_time,
            stats,
            compaction,
            version: META_VERSION,
            thanos: None,
        };
        meta.write(disk, at)?;
        Tombstones::default().write(disk, at)?;
        let chunks_dir = at.join(CHUNKS_DIR);
        disk.sync_dir(&chunks_dir).map_err(WriteError::io(&chunks_dir))?;
        disk.sync_dir(at).map_err(WriteError::io(at))?;
        Ok(Some(CompleteBlock { dir, temporary, meta }))
    }

    /// Removes what was written.
    pub fn abort(self) -> Result<(), WriteError> {
        let BlockWriter { temporary, index, chunks, .. } = self;
        drop((index, chunks));
        temporary.remove()
    }
}

/// A directory that goes away when this is dropped, after an error and a panic, too: what is in it is
/// large, and the disk may be full. What cannot be removed then is removed by the next start.
struct TemporaryDir<'d> {
    disk: &'d dyn Disk,
    /// None once it has gone or has another name.
    dir: Option<PathBuf>,
}

impl TemporaryDir<'_> {
    fn path(&self) -> &Path {
        self.dir.as_deref().unwrap_or(Path::new(""))
    }

    fn remove(mut self) -> Result<(), WriteError> {
        self.dir.take().map_or(Ok(()), |dir| remove_dir(self.disk, &dir))
    }

    fn rename(mut self, to: &Path) -> Result<(), WriteError> {
        self.disk.rename(self.path(), to).map_err(WriteError::io(to))?;
        self.dir = None;
        let parent = to.parent().unwrap_or(to);
        self.disk.sync_dir(parent).map_err(WriteError::io(parent))
    }
}

impl Drop for TemporaryDir<'_> {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take()
            && let Err(err) = remove_dir(self.disk, &dir)
        {
            let err = chain(&err);
            tracing::warn!(err, "a block that was not finished stays until a restart");
        }
    }
}

/// A block that is on the medium as a whole, under a name that nobody reads. It goes away again unless
/// it gets its name.
#[must_use = "it goes away again unless it gets its name"]
pub struct CompleteBlock<'d> {
    dir: PathBuf,
    temporary: TemporaryDir<'d>,
    meta: BlockMeta,
}

impl CompleteBlock<'_> {
    /// Gives it its name. After an error it may have it, or not.
    pub fn name(self) -> Result<BlockMeta, WriteError> {
        self.temporary.rename(&self.dir)?;
        Ok(self.meta)
    }

    /// Opens it where it is, as the block that it will be.
    pub fn open(&self, cache: Arc<PageCache>) -> Result<Block, ReadError> {
        Block::open_at(
            self.temporary.disk,
            self.temporary.path(),
            &self.dir,
            self.meta.clone(),
            cache,
        )
    }

    /// Removes it.
    pub fn abort(self) -> Result<(), WriteError> {
        self.temporary.remove()
    }
}

impl Compaction {
    /// Of a block that is cut from a head.
    pub fn of_head(ulid: Ulid) -> Compaction {
        Compaction { level: 1, sources: vec![ulid], ..Compaction::default() }
    }

    /// Of a block that is cut from samples out of order: as Prometheus has it, with a parent that is
    /// no block.
    pub fn of_out_of_order(ulid: Ulid) -> Compaction {
        Compaction {
            parents: vec![BlockDesc::default()],
            hints: vec![FROM_OUT_OF_ORDER.to_owned()],
            ..Compaction::of_head(ulid)
        }
    }

    /// Of a block that takes the place of another of the same samples, but for deleted ones.
    ///
    /// Its sources are its parent's, where Prometheus names the block itself as one that was cut anew.
    /// Samples are known by the sources of what holds them: of two blocks in a bucket of which one has
    /// all of the other's sources Thanos takes the other for a copy. So it does no harm if the parent,
    /// or what a compactor made of it, is in the bucket already and nobody here knows it any more.
    pub fn of_rewritten(ulid: Ulid, parent: &BlockMeta) -> Compaction {
        let of_parent = &parent.compaction;
        let hints = of_parent.hints.iter().filter(|hint| PARTIAL.contains(&hint.as_str()));
        let cut = Compaction::of_head(ulid);
        Compaction {
            parents: vec![BlockDesc::of(parent)],
            hints: hints.cloned().collect(),
            sources: match of_parent.sources.is_empty() {
                true => cut.sources,
                false => of_parent.sources.clone(),
            },
            ..cut
        }
    }

    /// Of a block that takes the place of several, sorted by the times that they begin at. It holds
    /// some of its time's samples only if all of them do, or one that lacks series.
    pub fn of_merged(parents: &[BlockMeta]) -> Compaction {
        let of = || parents.iter().map(|parent| &parent.compaction);
        let has = |parent: &Compaction, hint: &str| parent.hints.iter().any(|of| of == hint);
        let hints = [FROM_OUT_OF_ORDER, FROM_SELECTED_SERIES, FROM_STALE_SERIES].into_iter();
        let hints = hints.filter(|hint| match *hint {
            FROM_OUT_OF_ORDER => of().all(|parent| has(parent, FROM_OUT_OF_ORDER)),
            hint => of().any(|parent| has(parent, hint)),
        });
        let sources: BTreeSet<Ulid> =
            of().flat_map(|parent| parent.sources.iter().copied()).collect();
        Compaction {
            level: of().map(|parent| parent.level).max().unwrap_or(0).saturating_add(1),
            sources: sources.into_iter().collect(),
            parents: parents.iter().map(BlockDesc::of).collect(),
            hints: hints.map(str::to_owned).collect(),
            ..Compaction::default()
        }
    }
}

impl BlockDesc {
    fn of(meta: &BlockMeta) -> BlockDesc {
        BlockDesc { ulid: meta.ulid, min_time: meta.min_time, max_time: meta.max_time }
    }
}
