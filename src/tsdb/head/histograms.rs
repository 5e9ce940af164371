//! The open chunks of series whose newest sample is a histogram. They lie beside the states, so that a
//! series of floats has no room for them.
//!
//! Chunks are cut where Prometheus cuts them: at a range's end, at about a kilobyte, where counts have
//! fallen or buckets cannot be told by the ones before.

use std::collections::HashMap;

use crate::model::Timestamp;
use crate::model::histogram::{AnyHistogram, BUCKETS_MAX, Float, Histogram, Integer};
use crate::model::key_table::Slot;
use crate::tsdb::chunkenc::histogram::{Encoded as Kind, OpenHistogramChunk, Taken};
use crate::tsdb::chunkenc::samples::{Encoded, OpenChunk};
use crate::tsdb::chunkenc::{ENCODING_FLOAT_HISTOGRAM, ENCODING_HISTOGRAM};
use crate::tsdb::head::series::{predicted_end, range_end};
use crate::tsdb::head_chunks::CHUNK_BYTES_MAX;

/// Bytes that a chunk is meant to have. (Prometheus' `TargetBytesPerHistogramChunk`)
const CHUNK_BYTES: usize = 1024;
/// Samples that it has at least, unless its range ends.
const SAMPLES_MIN: u16 = 10;

/// What a sample takes beside its buckets, and a bucket, at most.
const SAMPLE_BYTES_MAX: usize = 64;
const BUCKET_BYTES_MAX: usize = 10;

/// Series by slot: those whose newest sample is a histogram, and no others.
pub type Tails = HashMap<Slot, Box<Tail>>;

/// The end of a series whose newest sample is a histogram.
pub struct Tail {
    pub chunk: TailChunk,
    /// Where the chunk is to be cut was predicted already.
    is_end_predicted: bool,
}

pub enum TailChunk {
    Integer(OpenHistogramChunk<Integer>),
    Float(OpenHistogramChunk<Float>),
    /// Nothing is open, and this is the last sample of the full chunks.
    Full(AnyHistogram),
}

/// The kind of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramKind {
    Integer,
    Float,
}

impl HistogramKind {
    /// A staleness marker of this kind.
    pub fn stale(self) -> AnyHistogram {
        match self {
            HistogramKind::Integer => AnyHistogram::Integer(Histogram::stale()),
            HistogramKind::Float => AnyHistogram::Float(Histogram::stale()),
        }
    }

    pub fn of(histogram: &AnyHistogram) -> HistogramKind {
        match histogram {
            AnyHistogram::Integer(_) => HistogramKind::Integer,
            AnyHistogram::Float(_) => HistogramKind::Float,
        }
    }
}

/// What appending a sample to a tail did.
pub enum Appended {
    /// The open chunk has it.
    Here,
    /// A chunk begins with it, and this one is full, if there was one.
    Began(Option<Encoded>),
}

impl Tail {
    /// One with a sample alone.
    pub fn begin(t: Timestamp, sample: &AnyHistogram) -> Tail {
        Tail { chunk: TailChunk::begin(t, sample), is_end_predicted: false }
    }

    /// One whose chunks are full.
    pub fn full(last: AnyHistogram) -> Tail {
        Tail { chunk: TailChunk::Full(last), is_end_predicted: false }
    }

    pub fn kind(&self) -> HistogramKind {
        match &self.chunk {
            TailChunk::Integer(_) => HistogramKind::Integer,
            TailChunk::Float(_) => HistogramKind::Float,
            TailChunk::Full(last) => HistogramKind::of(last),
        }
    }

    /// The newest sample.
    pub fn last(&self) -> AnyHistogram {
        match &self.chunk {
            TailChunk::Integer(chunk) => AnyHistogram::Integer(chunk.last()),
            TailChunk::Float(chunk) => AnyHistogram::Float(chunk.last()),
            TailChunk::Full(last) => last.clone(),
        }
    }

    /// Encoding and bytes of the open chunk.
    pub fn open_chunk(&self) -> Option<(u8, &[u8])> {
        match &self.chunk {
            TailChunk::Integer(chunk) => Some((ENCODING_HISTOGRAM, chunk.bytes())),
            TailChunk::Float(chunk) => Some((ENCODING_FLOAT_HISTOGRAM, chunk.bytes())),
            TailChunk::Full(_) => None,
        }
    }

    /// Times of the open chunk's first and last sample.
    pub fn open_range(&self) -> Option<(Timestamp, Timestamp)> {
        match &self.chunk {
            TailChunk::Integer(chunk) => Some((chunk.first_time(), chunk.last_time())),
            TailChunk::Float(chunk) => Some((chunk.first_time(), chunk.last_time())),
            TailChunk::Full(_) => None,
        }
    }

    /// The open chunk as it is when no sample is added any more.
    pub fn finish(self) -> Option<Encoded> {
        match self.chunk {
            TailChunk::Integer(chunk) => Some(finished(&chunk)),
            TailChunk::Float(chunk) => Some(finished(&chunk)),
            TailChunk::Full(_) => None,
        }
    }

    /// Puts another open chunk in the place of the one that there is.
    pub fn replace_open(&mut self, chunk: OpenChunk) {
        match chunk {
            OpenChunk::Integer(chunk) => self.chunk = TailChunk::Integer(*chunk),
            OpenChunk::FloatHistogram(chunk) => self.chunk = TailChunk::Float(*chunk),
            OpenChunk::Float { .. } => debug_assert!(false, "histograms do not become floats"),
        }
    }

    /// Appends a sample that is later than the last one. `next_at` is where the open chunk is to be
    /// cut.
    pub fn append(
        &mut self,
        t: Timestamp,
        sample: &AnyHistogram,
        next_at: &mut Timestamp,
        block_range: i64,
    ) -> Appended {
        let is_predicted = &mut self.is_end_predicted;
        match (&mut self.chunk, sample) {
            (TailChunk::Integer(chunk), AnyHistogram::Integer(sample)) => {
                append(chunk, t, sample, is_predicted, next_at, block_range)
            }
            (TailChunk::Float(chunk), AnyHistogram::Float(sample)) => {
                append(chunk, t, sample, is_predicted, next_at, block_range)
            }
            // Of another kind, or behind chunks that are full.
            _ => {
                let before = std::mem::replace(self, Tail::begin(t, sample));
                *next_at = range_end(t, block_range);
                Appended::Began(before.finish())
            }
        }
    }
}

impl TailChunk {
    fn begin(t: Timestamp, sample: &AnyHistogram) -> TailChunk {
        match sample {
            AnyHistogram::Integer(sample) => {
                TailChunk::Integer(OpenHistogramChunk::begin(t, sample, None))
            }
            AnyHistogram::Float(sample) => {
                TailChunk::Float(OpenHistogramChunk::begin(t, sample, None))
            }
        }
    }
}

/// As Prometheus' `histogramsAppendPreprocessor` and what follows it.
fn append<N: Kind>(
    chunk: &mut OpenHistogramChunk<N>,
    t: Timestamp,
    sample: &Histogram<N>,
    is_end_predicted: &mut bool,
    next_at: &mut Timestamp,
    block_range: i64,
) -> Appended {
    let range_ends_at = match *is_end_predicted {
        true => range_end(chunk.first_time(), block_range),
        false => *next_at,
    };
    let bytes = chunk.bytes().len();
    if !*is_end_predicted && bytes >= CHUNK_BYTES / 4 {
        let parts = CHUNK_BYTES as f64 / bytes as f64;
        *next_at = predicted_end(chunk.first_time(), chunk.last_time(), *next_at, parts);
        *is_end_predicted = true;
    }
    let is_full = t >= *next_at || bytes >= CHUNK_BYTES * 2;
    if is_full && (chunk.count() >= SAMPLES_MIN || t >= range_ends_at) {
        let begun = OpenHistogramChunk::begin(t, sample, Some(chunk));
        *is_end_predicted = false;
        return begin(chunk, begun, t, next_at, block_range);
    }
    if !has_room(chunk, sample) {
        let begun = OpenHistogramChunk::begin(t, sample, None);
        *is_end_predicted = false;
        return begin(chunk, begun, t, next_at, block_range);
    }
    match chunk.append(t, sample) {
        Taken::Appended | Taken::Recoded => Appended::Here,
        // That its end was predicted stays as it is, as in Prometheus.
        Taken::Begun(begun) => begin(chunk, *begun, t, next_at, block_range),
    }
}

/// Puts a chunk that was begun in the place of the one that is full.
fn begin<N: Kind>(
    chunk: &mut OpenHistogramChunk<N>,
    begun: OpenHistogramChunk<N>,
    t: Timestamp,
    next_at: &mut Timestamp,
    block_range: i64,
) -> Appended {
    let full = std::mem::replace(chunk, begun);
    *next_at = range_end(t, block_range);
    Appended::Began(Some(finished(&full)))
}

/// Whether the chunk stays within what a file takes, and its buckets within what memory is to hold.
/// Prometheus does not ask; nobody's histograms of some hundred buckets come to this.
fn has_room<N: Kind>(chunk: &OpenHistogramChunk<N>, sample: &Histogram<N>) -> bool {
    let buckets = chunk.bucket_count() + sample.bucket_count();
    let sample_bytes = SAMPLE_BYTES_MAX + buckets * BUCKET_BYTES_MAX;
    if chunk.has_buckets_of(sample) || sample.is_stale() {
        return chunk.bytes().len() + sample_bytes <= CHUNK_BYTES_MAX;
    }
    if buckets > 2 * BUCKETS_MAX {
        return false;
    }
    // It is written anew.
    let all_bytes = (usize::from(chunk.count()) + 1).saturating_mul(sample_bytes);
    if all_bytes <= CHUNK_BYTES_MAX {
        return true;
    }
    let mut tried = chunk.clone();
    tried.append(sample_time(chunk), sample);
    tried.bytes().len() + BUCKET_BYTES_MAX <= CHUNK_BYTES_MAX
}

/// Some time that the next sample may have.
fn sample_time<N: Kind>(chunk: &OpenHistogramChunk<N>) -> Timestamp {
    chunk.last_time().saturating_add(1)
}

fn finished<N: Kind>(chunk: &OpenHistogramChunk<N>) -> Encoded {
    Encoded {
        mint: chunk.first_time(),
        maxt: chunk.last_time(),
        encoding: N::ENCODING,
        bytes: chunk.bytes().into(),
    }
}

#[cfg(test)]
mod tests;
