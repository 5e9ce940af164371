//! The chunks of one series of several blocks, in order of time and without overlap.

use std::cmp::Ordering;
use std::vec;

use super::heap::GoHeap;
use super::{EncodedChunk, Input};
use crate::model::Timestamp;
use crate::tsdb::chunkenc::samples::{Encoded, SampleIterator, Value, encode};
use crate::tsdb::chunkenc::{ChunkError, is_known};
use crate::tsdb::error::ReadError;

type Sample = (Timestamp, Value);

/// A chunk that was read or made.
#[derive(Debug)]
pub(super) struct OwnedChunk {
    pub(super) mint: Timestamp,
    pub(super) maxt: Timestamp,
    pub(super) encoding: u8,
    pub(super) bytes: Vec<u8>,
}

impl OwnedChunk {
    pub(super) fn of(chunk: Encoded) -> OwnedChunk {
        let Encoded { mint, maxt, encoding, bytes } = chunk;
        OwnedChunk { mint, maxt, encoding, bytes: bytes.to_vec() }
    }

    pub(super) fn as_encoded(&self) -> EncodedChunk<'_> {
        let OwnedChunk { mint, maxt, encoding, ref bytes } = *self;
        EncodedChunk { mint, maxt, encoding, bytes }
    }

    fn is_same(&self, other: &OwnedChunk) -> bool {
        (self.mint, self.maxt) == (other.mint, other.maxt) && self.bytes == other.bytes
    }
}

/// What is left of an input's chunks of the series at which it stands.
pub(super) struct Cursor<'i, 'b> {
    input: &'i Input<'b>,
    next: usize,
}

impl<'i, 'b> Cursor<'i, 'b> {
    pub(super) fn new(input: &'i Input<'b>) -> Cursor<'i, 'b> {
        Cursor { input, next: 0 }
    }

    pub(super) fn next(&mut self) -> Result<Option<OwnedChunk>, ReadError> {
        while let Some(meta) = self.input.chunks.get(self.next) {
            self.next += 1;
            if let Some(chunk) = self.input.load(meta)? {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }
}

/// Chunks in order of time that are still to come.
enum Rest<'i, 'b> {
    OfInput(Cursor<'i, 'b>),
    Encoded(vec::IntoIter<OwnedChunk>),
}

struct Source<'i, 'b> {
    first: OwnedChunk,
    rest: Rest<'i, 'b>,
}

fn is_earlier(a: &Source<'_, '_>, b: &Source<'_, '_>) -> bool {
    (a.first.mint, a.first.maxt) < (b.first.mint, b.first.maxt)
}

/// Merges the chunks of a series as Prometheus' compactor does: what overlaps becomes one sequence of
/// samples, but for chunks that are there twice, bit for bit.
pub(super) struct Merged<'i, 'b> {
    sources: GoHeap<Source<'i, 'b>>,
    /// Which is to be blamed for what cannot be merged.
    blamed: &'i Input<'b>,
}

impl<'i, 'b> Merged<'i, 'b> {
    /// Of the inputs in the order in which they came.
    pub(super) fn new(
        inputs: impl Iterator<Item = &'i Input<'b>> + Clone,
    ) -> Result<Merged<'i, 'b>, ReadError> {
        // There is one, or there would be no series.
        let blamed = inputs.clone().next().expect("a series is some input's");
        let mut merged = Merged { sources: GoHeap::default(), blamed };
        for input in inputs {
            merged.push(Rest::OfInput(Cursor::new(input)))?;
        }
        Ok(merged)
    }

    fn push(&mut self, mut rest: Rest<'i, 'b>) -> Result<(), ReadError> {
        let first = match &mut rest {
            Rest::OfInput(cursor) => cursor.next()?,
            Rest::Encoded(chunks) => chunks.next(),
        };
        if let Some(first) = first {
            self.sources.push(Source { first, rest }, is_earlier);
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Result<Option<OwnedChunk>, ReadError> {
        let Some(Source { first, rest }) = self.sources.pop(is_earlier) else { return Ok(None) };
        self.push(rest)?;
        let mut end = first.maxt;
        let mut overlapping: Vec<OwnedChunk> = Vec::new();
        while let Some(next) = self.sources.peek()
            && next.first.mint <= end
        {
            let Some(Source { first: next, rest }) = self.sources.pop(is_earlier) else { break };
            if !next.is_same(overlapping.last().unwrap_or(&first)) {
                end = end.max(next.maxt);
                overlapping.push(next);
            }
            self.push(rest)?;
        }
        if overlapping.is_empty() {
            return Ok(Some(first));
        }
        overlapping.push(first);
        if overlapping.iter().any(|chunk| !is_known(chunk.encoding)) {
            return Err(self
                .blamed
                .block
                .unsupported("chunks of Prometheus 3.14 that overlap others"));
        }
        let samples = chained(&overlapping).map_err(|ChunkError(what)| {
            self.blamed.block.damaged_chunk(&self.blamed.chunks[0], what)
        })?;
        let chunks: Vec<_> = encode(samples).into_iter().map(OwnedChunk::of).collect();
        let mut chunks = chunks.into_iter();
        let first = chunks.next();
        self.push(Rest::Encoded(chunks))?;
        Ok(first)
    }
}

/// The samples of a chunk, and the one that was read last.
struct Samples<'c> {
    rest: SampleIterator<'c>,
    at: Sample,
}

impl Samples<'_> {
    fn advance(&mut self) -> Result<bool, ChunkError> {
        match self.rest.next().transpose()? {
            Some(sample) => self.at = sample,
            None => return Ok(false),
        }
        Ok(true)
    }
}

/// The samples of all chunks in order of time, each time once. Which of several at one time stays
/// hangs on the places that the chunks have in a heap, as in Prometheus.
fn chained(chunks: &[OwnedChunk]) -> Result<Vec<Sample>, ChunkError> {
    let is_earlier = |a: &Samples<'_>, b: &Samples<'_>| a.at.0 < b.at.0;
    let mut begun = chunks.iter().map(|chunk| {
        let rest = SampleIterator::new(chunk.encoding, &chunk.bytes);
        Samples { rest, at: (0, Value::Float(0)) }
    });
    let mut chained: Vec<Sample> = Vec::new();
    let Some(mut current) = begun.next() else { return Ok(chained) };
    let mut others = GoHeap::default();
    for mut samples in begun {
        if samples.advance()? {
            others.push(samples, is_earlier);
        }
    }
    loop {
        let is_new =
            |at: &Sample, chained: &[Sample]| chained.last().is_none_or(|last| last.0 != at.0);
        if current.advance()? {
            if !is_new(&current.at, &chained) {
                continue;
            }
            let Some(next) = others.peek() else {
                chained.push(current.at.clone());
                continue;
            };
            if current.at.0.cmp(&next.at.0) == Ordering::Less {
                chained.push(current.at.clone());
                continue;
            }
            others.push(current, is_earlier);
        }
        match others.pop(is_earlier) {
            Some(next) => current = next,
            None => return Ok(chained),
        }
        if is_new(&current.at, &chained) {
            chained.push(current.at.clone());
        }
    }
}
