//! Messages on a packed stream: a table with the lengths of the segments, then the segments.

use std::io;

use capnp::Word;
use capnp::message::{Reader, ReaderOptions, ReaderSegments};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

use crate::wire::capnproto::packed::Unpacker;

pub const WORD_BYTES: usize = 8;

/// Builders make a few, each as long as all before it.
const SEGMENTS_MAX: usize = 512;

/// Why there is no next message.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("message of {0} segments is over the cap of {SEGMENTS_MAX}")]
    TooManySegments(u64),
}

/// The lengths of a message's segments, in words.
#[derive(Clone, Debug, Default)]
pub struct SegmentTable(Vec<u32>);

impl SegmentTable {
    /// Words of all segments.
    pub fn words(&self) -> usize {
        self.0.iter().map(|words| *words as usize).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.words() as u64 * WORD_BYTES as u64
    }
}

/// A message's words, in the order in which they came.
pub struct Message {
    table: SegmentTable,
    /// There may be fewer than the table says, and more.
    words: Vec<Word>,
}

impl Message {
    pub fn new(table: SegmentTable, words: Vec<Word>) -> Message {
        Message { table, words }
    }

    /// Reads the message. Pointers are checked as they are followed; what several of them lead to
    /// counts as often as it is read, and may not be much longer than the message.
    pub fn reader(&self) -> Reader<&Message> {
        let mut options = ReaderOptions::new();
        options.traversal_limit_in_words(Some(self.words.len() * 2 + 1024));
        Reader::new(self, options)
    }

    /// What has been read of it.
    pub fn bytes(&self) -> usize {
        self.words.len() * WORD_BYTES
    }

    pub fn into_words(self) -> Vec<Word> {
        self.words
    }
}

impl ReaderSegments for Message {
    fn get_segment(&self, index: u32) -> Option<&[u8]> {
        let index = index as usize;
        let words = *self.table.0.get(index)? as usize;
        let start: usize = self.table.0.iter().take(index).map(|words| *words as usize).sum();
        // One that was not read to its end is as long as it is.
        let start = start.min(self.words.len());
        let end = start.saturating_add(words).min(self.words.len());
        self.words.get(start..end).map(Word::words_to_bytes)
    }

    fn len(&self) -> usize {
        self.table.0.len()
    }
}

/// Takes messages off a packed stream.
pub struct FrameReader<R> {
    stream: R,
    unpacker: Unpacker,
}

impl<R: AsyncBufRead + Unpin> FrameReader<R> {
    pub fn new(stream: R) -> FrameReader<R> {
        FrameReader { stream, unpacker: Unpacker::default() }
    }

    /// Waits until something has come; false at the end of the stream. May be dropped.
    pub async fn wait(&mut self) -> io::Result<bool> {
        Ok(!self.stream.fill_buf().await?.is_empty())
    }

    /// What it reads from.
    pub fn stream_mut(&mut self) -> &mut R {
        &mut self.stream
    }

    /// The next message's table.
    pub async fn read_table(&mut self) -> Result<SegmentTable, FrameError> {
        let [last, first_words] = self.read_pair().await?;
        let count = u64::from(last) + 1;
        if count > SEGMENTS_MAX as u64 {
            return Err(FrameError::TooManySegments(count));
        }
        let mut words = vec![first_words];
        // The table is filled up to whole words.
        while (words.len() as u64) < count {
            words.extend(self.read_pair().await?);
        }
        words.truncate(count as usize);
        Ok(SegmentTable(words))
    }

    async fn read_pair(&mut self) -> io::Result<[u32; 2]> {
        let mut bytes = [0; WORD_BYTES];
        self.read(&mut bytes).await?;
        let word = u64::from_le_bytes(bytes);
        Ok([word as u32, (word >> 32) as u32])
    }

    /// Appends `count` of the message's words to `words`.
    pub async fn read_words(&mut self, words: &mut Vec<Word>, count: usize) -> io::Result<()> {
        let before = words.len();
        words.resize(before + count, capnp::word(0, 0, 0, 0, 0, 0, 0, 0));
        let new = words.get_mut(before..).unwrap_or_default();
        self.read(Word::words_to_bytes_mut(new)).await
    }

    /// Passes over `count` of the message's words.
    pub async fn skip_words(&mut self, count: usize) -> io::Result<()> {
        let mut scratch = [0; 4096];
        let mut left = count.saturating_mul(WORD_BYTES);
        while left > 0 {
            let len = left.min(scratch.len());
            self.read(scratch.get_mut(..len).unwrap_or_default()).await?;
            left -= len;
        }
        Ok(())
    }

    async fn read(&mut self, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            let buffered = self.stream.fill_buf().await?;
            if buffered.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut input = buffered;
            let written = self.unpacker.unpack(&mut input, out);
            let taken = buffered.len() - input.len();
            self.stream.consume(taken);
            out = out.get_mut(written..).unwrap_or_default();
        }
        Ok(())
    }
}
