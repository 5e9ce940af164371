//! One block of several, or of one without what is deleted of it: byte for byte what Prometheus'
//! compactor makes of the same blocks.
//!
//! Symbols are those of all inputs, used or not. Series come in the order of their labels, each once.
//! Chunks are copied as they lie, but for those with samples that are deleted, and those of a series
//! that overlap: these are merged and encoded anew, 120 samples each. A chunk of which nothing is left
//! is left out, and so is such a series.
//!
//! It goes series by series. What it takes: four bytes a symbol and a series of each input, the chunks
//! of one series, and what the writer keeps.

mod chunks;
mod heap;

use std::sync::Arc;
use std::vec;

use self::chunks::{Cursor, Merged, OwnedChunk};
use self::heap::GoHeap;
use super::Block;
use super::chunks::{EncodedChunk, RawChunk};
use super::writer::BlockWriter;
use crate::model::stop;
use crate::model::{TimeRange, Timestamp};
use crate::tsdb::chunkenc::is_known;
use crate::tsdb::chunkenc::samples::encode_if;
use crate::tsdb::error::{Corruption, ReadError, WriteError};
use crate::tsdb::index::{BlockSeriesRef, ChunkMeta, INDEX_FILE, LabelSymbols, SeriesReader};

/// Why blocks were not merged. They are as they were.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(WriteError),
    /// Nothing was begun.
    #[error(
        "{needed} bytes may be needed to make blocks of blocks beside {reserve} that are left to the \
         log, and {free} are free"
    )]
    NoRoom { needed: u64, reserve: u64, free: u64 },
    /// The work was asked to stop.
    #[error("merging blocks was interrupted")]
    Interrupted,
}

impl From<WriteError> for MergeError {
    fn from(err: WriteError) -> MergeError {
        match err {
            WriteError::Interrupted => MergeError::Interrupted,
            err => MergeError::Write(err),
        }
    }
}

/// What another attempt at the same blocks would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// The disk failed in reading these blocks, or has no room for what would be made of them. It may
    /// pass, and says nothing of others.
    OfBlocks,
    /// The disk does not take what is written, whatever it is made of.
    OfDisk,
    /// It would end as this one did, for anybody: something is damaged, or can be no block.
    Never,
    /// It would end as this one did, until another version makes it.
    NotByThisVersion,
    Interrupted,
}

impl MergeError {
    pub fn outlook(&self) -> Outlook {
        match self {
            MergeError::Read(err) | MergeError::Write(WriteError::Read(err)) => match err {
                ReadError::Io { .. } => Outlook::OfBlocks,
                ReadError::Unsupported { .. } => Outlook::NotByThisVersion,
                ReadError::Corrupt(_) | ReadError::Meta { .. } => Outlook::Never,
            },
            MergeError::Write(WriteError::TooLarge { .. } | WriteError::Unordered { .. }) => {
                Outlook::Never
            }
            MergeError::Write(WriteError::Io { .. }) => Outlook::OfDisk,
            MergeError::NoRoom { .. } => Outlook::OfBlocks,
            MergeError::Write(WriteError::Interrupted) | MergeError::Interrupted => {
                Outlook::Interrupted
            }
        }
    }
}

/// Symbols and series read or written between two looks at whether the work is to stop.
const PER_LOOK: usize = 256;

/// The times that blocks hold samples of, both ends included, as their manifests have it.
fn range_of(blocks: &[Arc<Block>]) -> TimeRange {
    let metas = || blocks.iter().map(|block| block.meta());
    let end = metas().map(|meta| meta.max_time).max().unwrap_or(Timestamp::MIN);
    TimeRange {
        mint: metas().map(|meta| meta.min_time).min().unwrap_or(Timestamp::MAX),
        maxt: end.saturating_sub(1),
    }
}

/// Whether a merge would find anything to write: a look at the indexes alone, which ends at the first
/// chunk that is not deleted as a whole.
pub fn is_anything_left(blocks: &[Arc<Block>]) -> Result<bool, MergeError> {
    let range = range_of(blocks);
    for block in blocks {
        if Input::new(block, Vec::new(), range)?.find_left()?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes what is left of the blocks, which are sorted by the times that they begin at. What a block
/// holds of times that are not of any of them goes, as in Prometheus: nobody reads it.
pub fn merge(blocks: &[Arc<Block>], writer: &mut BlockWriter<'_>) -> Result<(), MergeError> {
    let (symbols, range) = (write_symbols(blocks, writer)?, range_of(blocks));
    let inputs = blocks.iter().zip(symbols);
    let inputs = inputs.map(|(block, symbols)| Input::new(block, symbols, range));
    let mut inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    // Equal series keep the places in the heap that Prometheus gives them: of two samples at one time
    // that decides which one stays.
    let mut heap: GoHeap<usize> = GoHeap::default();
    for i in 0..inputs.len() {
        advance(&mut inputs, i, &mut heap)?;
    }
    let mut same = Vec::with_capacity(inputs.len());
    for written in 0_usize.. {
        if written.is_multiple_of(PER_LOOK) && stop::is_asked() {
            return Err(MergeError::Interrupted);
        }
        same.clear();
        while let Some(next) = heap.peek()
            && same
                .first()
                .is_none_or(|first: &usize| inputs[*first].labels == inputs[*next].labels)
        {
            same.extend(heap.pop(|a, b| inputs[*a].labels < inputs[*b].labels));
        }
        if same.is_empty() {
            break;
        }
        write_series(&inputs, &same, writer)?;
        for i in &same {
            advance(&mut inputs, *i, &mut heap)?;
        }
    }
    Ok(())
}

fn advance(inputs: &mut [Input<'_>], i: usize, heap: &mut GoHeap<usize>) -> Result<(), MergeError> {
    if inputs[i].advance()? {
        heap.push(i, |a, b| inputs[*a].labels < inputs[*b].labels);
    }
    Ok(())
}

/// Writes the series at which the inputs named in `same` stand.
fn write_series(
    inputs: &[Input<'_>],
    same: &[usize],
    writer: &mut BlockWriter<'_>,
) -> Result<(), MergeError> {
    let Some(first) = same.first().map(|first| &inputs[*first]) else { return Ok(()) };
    let mut chunks: Vec<OwnedChunk> = Vec::new();
    if same.len() == 1 && first.are_chunks_apart() {
        let mut cursor = Cursor::new(first);
        while let Some(chunk) = cursor.next()? {
            chunks.push(chunk);
        }
    } else {
        let mut merged = Merged::new(same.iter().map(|i| &inputs[*i]))?;
        while let Some(chunk) = merged.next()? {
            chunks.push(chunk);
        }
    }
    if !chunks.is_empty() {
        let chunks: Vec<_> = chunks.iter().map(OwnedChunk::as_encoded).collect();
        writer.add_series(&first.labels, &chunks)?;
    }
    Ok(())
}

/// Writes all symbols of the blocks, and returns for each block the numbers that its own have now.
fn write_symbols(
    blocks: &[Arc<Block>],
    writer: &mut BlockWriter<'_>,
) -> Result<Vec<Vec<u32>>, MergeError> {
    let mut streams: Vec<_> = blocks.iter().map(|block| block.index.symbols()).collect();
    let mut numbers = vec![Vec::new(); blocks.len()];
    let mut next: Vec<Option<Vec<u8>>> = Vec::with_capacity(blocks.len());
    for stream in &mut streams {
        next.push(stream.next()?.map(<[u8]>::to_vec));
    }
    for written in 0_usize.. {
        if written.is_multiple_of(PER_LOOK) && stop::is_asked() {
            return Err(MergeError::Interrupted);
        }
        let Some(least) = next.iter().flatten().min().cloned() else { break };
        let number = writer.add_symbol(&least)?;
        for (i, text) in next.iter_mut().enumerate().filter(|(_, t)| t.as_ref() == Some(&least)) {
            numbers[i].push(number);
            *text = match streams[i].next()? {
                Some(following) if following <= &least[..] => {
                    return Err(blocks[i].corrupt("the symbols are not sorted").into());
                }
                following => following.map(<[u8]>::to_vec),
            };
        }
    }
    Ok(numbers)
}

/// A block that is read from its first series to its last.
struct Input<'b> {
    block: &'b Block,
    reader: SeriesReader<'b>,
    postings: vec::IntoIter<u32>,
    /// By the block's symbols: what number they have in the block that is made.
    symbols: Vec<u32>,
    /// Of the series at which it stands, by these numbers.
    labels: Vec<LabelSymbols>,
    /// Those that are not deleted as a whole.
    chunks: Vec<ChunkMeta>,
    deleted: Vec<TimeRange>,
    /// Samples of no other times are taken.
    range: TimeRange,
    /// How many series it has come by.
    passed: usize,
}

impl<'b> Input<'b> {
    fn new(block: &'b Block, symbols: Vec<u32>, range: TimeRange) -> Result<Input<'b>, ReadError> {
        Ok(Input {
            block,
            reader: block.index.series(),
            postings: block.index.all_postings()?.into_iter(),
            symbols,
            labels: Vec::new(),
            chunks: Vec::new(),
            deleted: Vec::new(),
            range,
            passed: 0,
        })
    }

    /// Goes on to the next series of which a chunk is left; whether there is one.
    fn advance(&mut self) -> Result<bool, MergeError> {
        let Some(series) = self.find_left()? else { return Ok(false) };
        self.deleted.clear();
        self.deleted.extend_from_slice(self.block.tombstones.of(u64::from(series)));
        let TimeRange { mint, maxt } = self.range;
        if self.chunks.iter().any(|chunk| chunk.mint < mint) {
            self.deleted.push(TimeRange { mint: Timestamp::MIN, maxt: mint.saturating_sub(1) });
        }
        if self.chunks.iter().any(|chunk| chunk.maxt > maxt) {
            self.deleted.push(TimeRange { mint: maxt.saturating_add(1), maxt: Timestamp::MAX });
        }
        self.labels.clear();
        for (name, value) in self.reader.labels() {
            let number = |symbol: &u32| self.symbols.get(*symbol as usize).copied();
            let (Some(name), Some(value)) = (number(name), number(value)) else {
                return Err(self.block.corrupt("a series has a symbol that there is not").into());
            };
            self.labels.push((name, value));
        }
        Ok(true)
    }

    /// Reads on to the next series of which a chunk is left, and takes its chunks.
    fn find_left(&mut self) -> Result<Option<u32>, MergeError> {
        for series in self.postings.by_ref() {
            if self.passed.is_multiple_of(PER_LOOK) && stop::is_asked() {
                return Err(MergeError::Interrupted);
            }
            self.passed += 1;
            self.reader.read(BlockSeriesRef(series))?;
            let deleted = self.block.tombstones.of(u64::from(series));
            let is_left = |chunk: &&ChunkMeta| {
                let covers = |span: &TimeRange| span.mint <= chunk.mint && chunk.maxt <= span.maxt;
                self.range.overlaps(chunk.mint, chunk.maxt) && !deleted.iter().any(covers)
            };
            self.chunks.clear();
            self.chunks.extend(self.reader.chunks().iter().filter(is_left));
            if !self.chunks.is_empty() {
                return Ok(Some(series));
            }
        }
        Ok(None)
    }

    /// Whether they can be written as they are.
    fn are_chunks_apart(&self) -> bool {
        self.chunks.windows(2).all(|pair| pair[0].maxt < pair[1].mint)
    }

    /// What is left of a chunk.
    fn load(&self, meta: &ChunkMeta) -> Result<Option<OwnedChunk>, ReadError> {
        let mut raw = RawChunk::default();
        self.block.chunks.read(meta.chunk, &mut raw)?;
        let RawChunk { encoding, bytes } = raw;
        let is_whole = !self.deleted.iter().any(|span| span.overlaps(meta.mint, meta.maxt));
        if is_whole {
            return Ok(Some(OwnedChunk { mint: meta.mint, maxt: meta.maxt, encoding, bytes }));
        }
        if !is_known(encoding) {
            let what = "chunks of Prometheus 3.14 of which samples are deleted";
            return Err(self.block.unsupported(what));
        }
        let is_left = |t: Timestamp| !self.deleted.iter().any(|span| span.overlaps(t, t));
        let (left, read) = encode_if(encoding, &bytes, is_left);
        read.map_err(|err| self.block.damaged_chunk(meta, err.0))?;
        Ok(left.map(|left| OwnedChunk::of(left.finish())))
    }
}

impl Block {
    fn corrupt(&self, what: &'static str) -> ReadError {
        Corruption { file: self.dir.join(INDEX_FILE), offset: 0, what }.into()
    }

    fn damaged_chunk(&self, chunk: &ChunkMeta, what: &'static str) -> ReadError {
        let segment = super::chunks::segment_name(chunk.chunk.segment());
        let file = self.dir.join(super::chunks::CHUNKS_DIR).join(segment);
        Corruption { file, offset: u64::from(chunk.chunk.offset()), what }.into()
    }

    fn unsupported(&self, what: &'static str) -> ReadError {
        ReadError::Unsupported { path: self.dir.clone(), what }
    }
}

#[cfg(test)]
mod tests;
