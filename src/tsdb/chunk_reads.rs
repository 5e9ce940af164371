//! Chunks of many series, read together. Those that became full at the same time lie next to one
//! another in a file of head chunks, and those of a series and the next one in a block, so that a call
//! of the disk brings many of them.

use std::ops::Range;
use std::sync::Arc;

use crate::model::Timestamp;
use crate::model::stop;
use crate::tsdb::error::ReadError;

/// What a chunk is read with at first at most, as it is not known how long it is. A chunk of floats is
/// cut at a kilobyte, and something stands around it.
pub const FIRST_READ_BYTES: usize = 1024 + 64;

/// What stands around a chunk in a file.
const AROUND_BYTES: usize = 64;

/// What is read at once at most.
const READ_BYTES_MAX: u64 = 64 << 10;

/// From the beginning of one chunk to that of the next, at most, if both are read at once. To copy
/// what lies between costs no more than to call the disk again.
const STEP_BYTES_MAX: u64 = 4 << 10;

/// A file in which chunks lie.
pub trait ChunkFile: Send + Sync {
    /// Reads as much as the file has from `offset` on; how much that was.
    fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, ReadError>;

    /// The encoding of a chunk, and where it is in `bytes`, which are those of the file from its place
    /// on; `None` if it is not there as a whole, or not the one that is meant.
    fn find(&self, chunk: &ChunkAt, bytes: &[u8]) -> Option<(u8, Range<usize>)>;

    /// Reads a chunk by itself into `bytes`, in place of what is there, and gives its encoding.
    fn read(&self, chunk: &ChunkAt, bytes: &mut Vec<u8>) -> Result<u8, ReadError>;
}

/// Where a chunk lies, and by what it is known.
#[derive(Clone, Copy, Debug)]
pub struct ChunkAt {
    pub offset: u64,
    /// Times of its first and last sample.
    pub mint: Timestamp,
    pub maxt: Timestamp,
}

/// Chunks that are to be read, in files that stay readable for as long as this is held.
#[derive(Default)]
pub struct ChunkReads {
    files: Vec<Arc<dyn ChunkFile>>,
    wanted: Vec<Wanted>,
    /// Reused from read to read.
    buffer: Vec<u8>,
    lengths: Lengths,
}

/// Bytes of the chunks read last. The next one is taken to be no longer than these: series that are
/// read after one another are often of one metric, and theirs are of a length.
struct Lengths {
    latest: [usize; 16],
    /// The place of the oldest.
    oldest: usize,
}

impl Default for Lengths {
    fn default() -> Lengths {
        Lengths { latest: [FIRST_READ_BYTES; 16], oldest: 0 }
    }
}

impl Lengths {
    fn add(&mut self, bytes: usize) {
        self.latest[self.oldest] = bytes;
        self.oldest = (self.oldest + 1) % self.latest.len();
    }

    /// What the next chunk is read with.
    fn first_read(&self) -> usize {
        let longest = self.latest.iter().max().copied().unwrap_or_default();
        (longest + AROUND_BYTES).min(FIRST_READ_BYTES)
    }
}

#[derive(Clone, Copy)]
struct Wanted {
    /// Index into [`ChunkReads::files`].
    file: usize,
    chunk: ChunkAt,
    /// What whoever asked calls it.
    number: usize,
}

impl ChunkReads {
    /// Asks for a chunk, which is called by `number`.
    pub fn want<F: ChunkFile + 'static>(&mut self, file: &Arc<F>, chunk: ChunkAt, number: usize) {
        let address = Arc::as_ptr(file).cast::<()>();
        let is_it = |known: &Arc<dyn ChunkFile>| Arc::as_ptr(known).cast::<()>() == address;
        // Mostly it is the one that was seen last.
        let file = self.files.iter().rposition(is_it).unwrap_or_else(|| {
            self.files.push(file.clone());
            self.files.len() - 1
        });
        self.wanted.push(Wanted { file, chunk, number });
    }

    /// How many are to be read.
    pub fn count(&self) -> usize {
        self.wanted.len()
    }

    /// Wants those no more that were wanted behind the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.wanted.truncate(count);
    }

    /// Wants no chunk any more.
    pub fn clear(&mut self) {
        self.files.clear();
        self.wanted.clear();
    }

    /// Gives number, encoding and bytes of each chunk that is wanted, in the order in which they lie in
    /// the files, and wants them no more. Blocks on the disk. Ends early if it is [asked to](stop).
    pub fn read(&mut self, mut each: impl FnMut(usize, u8, &[u8])) -> Result<(), ReadError> {
        self.wanted.sort_unstable_by_key(|wanted| (wanted.file, wanted.chunk.offset));
        let mut rest = &self.wanted[..];
        while let (Some(first), false) = (rest.first(), stop::is_asked()) {
            let (near, others) = rest.split_at(near_the_first(rest));
            rest = others;
            let file = &*self.files[first.file];
            read_near(file, near, &mut self.lengths, &mut self.buffer, &mut each)?;
        }
        self.clear();
        Ok(())
    }
}

/// How many of the chunks are read at once with the first one.
fn near_the_first(wanted: &[Wanted]) -> usize {
    let Some(first) = wanted.first() else { return 0 };
    let is_near = |pair: &&[Wanted]| {
        let [before, next] = [pair[0], pair[1]];
        next.file == first.file
            && next.chunk.offset - before.chunk.offset <= STEP_BYTES_MAX
            && next.chunk.offset - first.chunk.offset + FIRST_READ_BYTES as u64 <= READ_BYTES_MAX
    };
    1 + wanted.windows(2).take_while(is_near).count()
}

fn read_near(
    file: &dyn ChunkFile,
    near: &[Wanted],
    lengths: &mut Lengths,
    buffer: &mut Vec<u8>,
    each: &mut impl FnMut(usize, u8, &[u8]),
) -> Result<(), ReadError> {
    let (Some(first), Some(last)) = (near.first(), near.last()) else { return Ok(()) };
    let start = first.chunk.offset;
    let span = (last.chunk.offset - start) as usize + lengths.first_read();
    if buffer.len() < span {
        buffer.resize(span, 0);
    }
    let filled = file.fill(start, &mut buffer[..span])?;
    for wanted in near {
        let bytes = buffer[..filled].get((wanted.chunk.offset - start) as usize..);
        let bytes = bytes.unwrap_or_default();
        if let Some((encoding, data)) = file.find(&wanted.chunk, bytes) {
            lengths.add(data.len());
            each(wanted.number, encoding, &bytes[data]);
            continue;
        }
        // It is longer than those before it, or damaged.
        let mut alone = Vec::new();
        let encoding = file.read(&wanted.chunk, &mut alone)?;
        lengths.add(alone.len());
        each(wanted.number, encoding, &alone);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_read_at_once_that_lie_near_one_another_in_one_file() {
        let wanted =
            |file, offset| Wanted { file, chunk: ChunkAt { offset, mint: 0, maxt: 0 }, number: 0 };
        let near = |offsets: &[(usize, u64)]| {
            let wanted: Vec<_> =
                offsets.iter().map(|(file, offset)| wanted(*file, *offset)).collect();
            near_the_first(&wanted)
        };
        let (step, end) = (STEP_BYTES_MAX, READ_BYTES_MAX - FIRST_READ_BYTES as u64);
        assert_eq!(near(&[]), 0);
        assert_eq!(near(&[(0, 8)]), 1);
        assert_eq!(near(&[(0, 8), (0, 400), (0, 800), (1, 800)]), 3);
        assert_eq!(near(&[(0, 400), (1, 8)]), 1);
        assert_eq!(near(&[(0, 8), (0, 8 + step), (0, 9 + 2 * step), (0, 9 + 2 * step)]), 2);
        let steps: Vec<_> = (0..100).map(|i| (0, 8 + i * 400)).collect();
        assert_eq!(near(&steps), 100);
        let steps: Vec<_> = (0..1000).map(|i| (0, 8 + i * 400)).collect();
        assert_eq!(near(&steps) as u64, 1 + end / 400);
    }

    #[test]
    fn a_chunk_is_read_with_what_the_longest_of_the_last_ones_would_have_taken() {
        let mut lengths = Lengths::default();
        assert_eq!(lengths.first_read(), FIRST_READ_BYTES);
        (0..15).for_each(|_| lengths.add(50));
        assert_eq!(lengths.first_read(), FIRST_READ_BYTES, "one is not known yet");
        lengths.add(400);
        assert_eq!(lengths.first_read(), 400 + AROUND_BYTES);
        (0..16).for_each(|_| lengths.add(50));
        assert_eq!(lengths.first_read(), 50 + AROUND_BYTES);
        lengths.add(1 << 20);
        assert_eq!(lengths.first_read(), FIRST_READ_BYTES);
    }
}
