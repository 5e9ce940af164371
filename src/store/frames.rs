//! Series as the messages of a Series answer, written as they go over the wire: what is stored is
//! copied once, into the bytes that are sent.
//!
//! ```text
//! SeriesResponse  series: Series = 1 | warning: string = 2 | batch: SeriesBatch = 4
//! SeriesBatch     series: Series* = 1
//! Series          labels: Label* = 1 | chunks: AggrChunk* = 2
//! Label           name: bytes = 1 | value: bytes = 2
//! AggrChunk       min_time: int64 = 1 | max_time: int64 = 2 | raw: Chunk = 3
//! Chunk           type: enum = 1 | data: bytes = 2 | hash: uint64 = 3
//! ```
//!
//! What is zero or empty is left out, as proto3 has it; `raw` is always there. Before each message
//! stands its [head](crate::wire::grpc::Head). (`proto/thanos/`)

use std::collections::VecDeque;

use bytes::Bytes;
use xxhash_rust::xxh64::xxh64;

use crate::model::varint::{push_varint, varint_len};
use crate::tsdb::chunk_set::ChunkView;
use crate::wire::grpc::{HEAD_BYTES, Head};

/// Labels and chunks of one message take about this much: a frame is sent once it is reached, so
/// one may exceed it by a chunk. Thanos cuts at the same place, for clients that cap messages.
pub const FRAME_BYTES: usize = 1024 * 1024;

// Numbers of fields, with the type that their tags carry.
const FIELD_1: u8 = 1 << 3 | LEN;
const FIELD_2: u8 = 2 << 3 | LEN;
const FIELD_3: u8 = 3 << 3 | LEN;
const FIELD_4: u8 = 4 << 3 | LEN;
const NUMBER_1: u8 = 1 << 3;
const NUMBER_2: u8 = 2 << 3;
const NUMBER_3: u8 = 3 << 3;
const LEN: u8 = 2;

/// What stands before a message: its head, and tag and length of its one field.
const BEFORE_BYTES: usize = HEAD_BYTES + 1 + 10;

/// What a chunk takes beside its bytes, at most: tags, times, hash, three lengths.
const CHUNK_HEAD_BYTES: usize = 64;

/// What room for labels is reckoned with.
const LABEL_BYTES_EXPECTED: usize = 512;

/// Writes the messages of an answer.
pub struct FrameWriter {
    /// Series of a message, at most.
    batch_len_max: usize,
    done: VecDeque<Bytes>,
    /// Whole messages.
    messages: Vec<u8>,
    /// The series of the next batch, behind [`BEFORE_BYTES`] for what stands before them.
    batch: Vec<u8>,
    batch_len: usize,
    batch_bytes: usize,
    /// Reused from series to series.
    labels: Vec<u8>,
    lens: Vec<ChunkLens>,
}

/// Lengths of a chunk's messages, and its hash.
struct ChunkLens {
    hash: u64,
    raw: usize,
    aggr: usize,
}

impl FrameWriter {
    /// So many series come in a message, if `batch_len_max` is above 1; else each comes alone.
    pub fn new(batch_len_max: usize) -> FrameWriter {
        FrameWriter {
            batch_len_max,
            done: VecDeque::new(),
            messages: Vec::new(),
            batch: Vec::new(),
            batch_len: 0,
            batch_bytes: 0,
            labels: Vec::new(),
            lens: Vec::new(),
        }
    }

    /// Makes room for so many series, with so many chunks of so many bytes.
    pub fn reserve(&mut self, series: usize, chunks: usize, chunk_bytes: usize) {
        if self.batch_len_max <= 1 {
            let around = series * LABEL_BYTES_EXPECTED + chunks * CHUNK_HEAD_BYTES;
            self.messages.reserve(chunk_bytes + around);
        }
    }

    pub fn warning(&mut self, text: &str) {
        self.begin_message(FIELD_2, text.len());
        self.messages.extend_from_slice(text.as_bytes());
    }

    /// Writes a series in one or several frames.
    pub fn series<'s>(
        &mut self,
        labels: impl Iterator<Item = (&'s [u8], &'s [u8])>,
        chunks: impl ExactSizeIterator<Item = ChunkView<'s>> + Clone,
    ) {
        let label_bytes = self.write_labels(labels);
        self.lens.clear();
        self.lens.extend(chunks.clone().map(|chunk| ChunkLens::of(&chunk)));
        let (mut first, mut rest) = (0, chunks);
        loop {
            let mut frame_bytes = label_bytes;
            let lens = self.lens.get(first..).unwrap_or_default();
            let is_cut = |lens: &ChunkLens| {
                frame_bytes += lens.aggr;
                frame_bytes >= FRAME_BYTES
            };
            let count = lens.iter().position(is_cut).map_or(lens.len(), |last| last + 1);
            self.frame(first, rest.by_ref().take(count), frame_bytes);
            first += count;
            if first >= self.lens.len() {
                return;
            }
        }
    }

    /// Ends the batch that is not full.
    pub fn flush_batch(&mut self) {
        if self.batch_len == 0 {
            return;
        }
        self.flush_messages();
        let mut batch = std::mem::take(&mut self.batch);
        let mut before = Vec::with_capacity(BEFORE_BYTES);
        push_before(&mut before, FIELD_4, batch.len() - BEFORE_BYTES);
        let start = BEFORE_BYTES - before.len();
        batch[start..BEFORE_BYTES].copy_from_slice(&before);
        self.done.push_back(Bytes::from(batch).slice(start..));
        (self.batch_len, self.batch_bytes) = (0, 0);
    }

    /// Whether there is nothing to be taken.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.messages.is_empty()
    }

    /// Appends what was written to `ready`, in pieces of whole messages.
    pub fn take(&mut self, ready: &mut VecDeque<Bytes>) {
        self.flush_messages();
        ready.append(&mut self.done);
    }

    fn flush_messages(&mut self) {
        if !self.messages.is_empty() {
            self.done.push_back(std::mem::take(&mut self.messages).into());
        }
    }

    /// Puts the labels into `labels`, as fields of a series. Returns the bytes of their messages.
    fn write_labels<'s>(&mut self, labels: impl Iterator<Item = (&'s [u8], &'s [u8])>) -> usize {
        let out = &mut self.labels;
        out.clear();
        let mut bytes = 0;
        for (name, value) in labels {
            let label = bytes_len(name.len()) + bytes_len(value.len());
            bytes += label;
            out.push(FIELD_1);
            push_varint(out, label as u64);
            push_bytes(out, FIELD_1, name);
            push_bytes(out, FIELD_2, value);
        }
        bytes
    }

    /// Writes the labels and some chunks, whose lengths begin at `first`, as a series of their own.
    fn frame<'s>(
        &mut self,
        first: usize,
        chunks: impl ExactSizeIterator<Item = ChunkView<'s>>,
        frame_bytes: usize,
    ) {
        let lens = self.lens.get(first..first + chunks.len()).unwrap_or_default();
        let chunk_fields: usize = lens.iter().map(|lens| message_len(lens.aggr)).sum();
        let len = self.labels.len() + chunk_fields;
        let is_alone = self.batch_len_max <= 1;
        if is_alone {
            self.begin_message(FIELD_1, len);
        } else {
            // A batch is one message, and stays within what a message may hold.
            if self.batch_bytes + frame_bytes > FRAME_BYTES {
                self.flush_batch();
            }
            self.begin_series_of_batch(len);
        }
        let out = if is_alone { &mut self.messages } else { &mut self.batch };
        out.extend_from_slice(&self.labels);
        let lens = self.lens.get(first..).unwrap_or_default();
        for (chunk, lens) in chunks.zip(lens) {
            push_chunk(out, &chunk, lens);
        }
        if !is_alone {
            self.batch_bytes += frame_bytes;
            if self.batch_len >= self.batch_len_max {
                self.flush_batch();
            }
        }
    }

    /// Writes what stands before a message's one field, which takes `len` bytes.
    fn begin_message(&mut self, tag: u8, len: usize) {
        self.messages.reserve(BEFORE_BYTES + len);
        push_before(&mut self.messages, tag, len);
    }

    fn begin_series_of_batch(&mut self, len: usize) {
        if self.batch.is_empty() {
            self.batch.resize(BEFORE_BYTES, 0);
        }
        self.batch.reserve(message_len(len));
        self.batch.push(FIELD_1);
        push_varint(&mut self.batch, len as u64);
        self.batch_len += 1;
    }
}

impl ChunkLens {
    fn of(chunk: &ChunkView<'_>) -> ChunkLens {
        let hash = xxh64(chunk.bytes, 0);
        let raw = number_len(chunk_type(chunk)) + bytes_len(chunk.bytes.len()) + number_len(hash);
        let times = number_len(chunk.mint as u64) + number_len(chunk.maxt as u64);
        ChunkLens { hash, raw, aggr: times + message_len(raw) }
    }
}

/// Thanos' number of a chunk's encoding.
fn chunk_type(chunk: &ChunkView<'_>) -> u64 {
    // What is no encoding is a negative number to an enum.
    (i64::from(chunk.encoding) - 1) as u64
}

fn push_chunk(out: &mut Vec<u8>, chunk: &ChunkView<'_>, lens: &ChunkLens) {
    out.push(FIELD_2);
    push_varint(out, lens.aggr as u64);
    push_number(out, NUMBER_1, chunk.mint as u64);
    push_number(out, NUMBER_2, chunk.maxt as u64);
    out.push(FIELD_3);
    push_varint(out, lens.raw as u64);
    push_number(out, NUMBER_1, chunk_type(chunk));
    push_bytes(out, FIELD_2, chunk.bytes);
    push_number(out, NUMBER_3, lens.hash);
}

/// Appends the head of a message that has one field of `len` bytes, and the tag and the length of
/// that.
fn push_before(out: &mut Vec<u8>, tag: u8, len: usize) {
    let message = message_len(len);
    // A message has about a megabyte, unless a chunk or a label is larger, which has far less than
    // four gigabytes.
    out.extend_from_slice(&Head { is_encoded: false, len: message as u32 }.to_bytes());
    out.push(tag);
    push_varint(out, len as u64);
}

/// Bytes of a nested message with its tag and length.
fn message_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// Bytes of a field that holds `len` bytes.
fn bytes_len(len: usize) -> usize {
    if len == 0 { 0 } else { message_len(len) }
}

fn push_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(tag);
        push_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

/// Bytes of a field that holds a number.
fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + varint_len(number) }
}

fn push_number(out: &mut Vec<u8>, tag: u8, number: u64) {
    if number != 0 {
        out.push(tag);
        push_varint(out, number);
    }
}

#[cfg(test)]
pub(crate) mod tests;
