//! The chunks of a block: segments of up to 512 MiB, in which chunks lie one after another.
//!
//! ```text
//! magic 0x85BD40DD | version 1 | three zeros
//! chunk*:  length uvarint | encoding 1B | the chunk, of this length | CRC-32C of encoding and chunk
//! ```
//!
//! A segment's file is named by its number, from 1, in at least six digits. A chunk's reference says
//! which segment, from 0, and where in it. So a segment that is missing costs its own chunks alone.
//! (Prometheus `tsdb/docs/format/chunks.md`)

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::Disk;
use crate::model::Timestamp;
use crate::model::bytes::Cursor;
use crate::model::varint::push_varint;
use crate::tsdb::chunk_reads::{ChunkAt, ChunkFile, FIRST_READ_BYTES};
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::chunkenc::is_known;
use crate::tsdb::error::{Corruption, ReadError, WriteError};
use crate::tsdb::file::{FileWriter, RangeReader};
use crate::tsdb::index::{BlockChunkRef, ChunkMeta};

/// The directory's name in the block's.
pub const CHUNKS_DIR: &str = "chunks";
/// Bytes of a segment, if no chunk is larger.
pub const SEGMENT_BYTES: u64 = 512 << 20;

pub(super) const HEADER: [u8; 8] = [0x85, 0xbd, 0x40, 0xdd, 1, 0, 0, 0];
const CRC_BYTES: u64 = 4;
const ENCODING_BYTES: u64 = 1;
/// What a chunk's length takes at most.
pub(super) const LEN_BYTES_MAX: u64 = 5;
/// A longer chunk is taken for damage: 120 histograms of a hundred thousand buckets are shorter.
const CHUNK_BYTES_MAX: u64 = 256 << 20;

/// A segment's file.
pub fn segment_name(segment: u32) -> String {
    format!("{:06}", u64::from(segment) + 1)
}

fn segment_of(name: &str) -> Option<u32> {
    let number: u64 = name.parse().ok()?;
    let segment = u32::try_from(number.checked_sub(1)?).ok()?;
    // Other spellings are other files.
    (segment_name(segment) == name).then_some(segment)
}

/// A chunk as it lies in a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawChunk {
    /// Prometheus' number, as it stands there.
    pub encoding: u8,
    pub bytes: Vec<u8>,
}

/// The segments of a block, open.
pub struct ChunkReader {
    dir: PathBuf,
    segments: BTreeMap<u32, Result<Arc<Segment>, Corruption>>,
}

impl ChunkReader {
    /// Opens the segments in `dir`. One that is none, by its first bytes, costs its own chunks.
    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<ChunkReader, ReadError> {
        ChunkReader::open_at(disk, dir, dir)
    }

    /// Those that lie in `at` now, and are told of as in `dir`, where they will be.
    pub fn open_at(disk: &dyn Disk, at: &Path, dir: &Path) -> Result<ChunkReader, ReadError> {
        let mut segments = BTreeMap::new();
        for entry in disk.list(at).map_err(ReadError::io(dir))? {
            let segment = entry.name.to_str().filter(|_| !entry.is_dir).and_then(segment_of);
            let Some(segment) = segment else { continue };
            let file = RangeReader::open_at(disk, &at.join(&entry.name), &dir.join(&entry.name))?;
            let opened = match check_segment(file) {
                Ok(file) => Ok(Arc::new(Segment(file))),
                Err(ReadError::Corrupt(corruption)) => Err(corruption),
                Err(err) => return Err(err),
            };
            segments.insert(segment, opened);
        }
        Ok(ChunkReader { dir: dir.to_owned(), segments })
    }

    /// Segments of which no chunk can be read.
    pub fn damaged(&self) -> impl Iterator<Item = &Corruption> {
        self.segments.values().filter_map(|segment| segment.as_ref().err())
    }

    /// Bytes of all segments that can be read.
    pub fn bytes(&self) -> u64 {
        self.segments.values().flatten().map(|segment| segment.0.len()).sum()
    }

    /// Reads a chunk into `chunk`, in place of what is there. The bytes are those that were written;
    /// whether they are what their encoding says is seen when they are decoded.
    pub fn read(&self, chunk: BlockChunkRef, into: &mut RawChunk) -> Result<(), ReadError> {
        let segment = self.segment(chunk)?;
        into.encoding = segment.read_chunk(u64::from(chunk.offset()), &mut into.bytes)?;
        Ok(())
    }

    /// Adds a chunk to `chunks`, to be read later.
    pub fn gather(&self, meta: &ChunkMeta, chunks: &mut ChunkSet) -> Result<(), ReadError> {
        let segment = self.segment(meta.chunk)?;
        let &ChunkMeta { mint, maxt, chunk } = meta;
        chunks.push_unread(segment, ChunkAt { offset: u64::from(chunk.offset()), mint, maxt });
        Ok(())
    }

    fn segment(&self, chunk: BlockChunkRef) -> Result<&Arc<Segment>, ReadError> {
        match self.segments.get(&chunk.segment()) {
            Some(Ok(file)) => Ok(file),
            Some(Err(corruption)) => Err(corruption.clone().into()),
            None => Err(ReadError::Corrupt(Corruption {
                file: self.dir.join(segment_name(chunk.segment())),
                offset: 0,
                what: "the segment is missing",
            })),
        }
    }
}

/// A file of chunks.
struct Segment(RangeReader);

impl Segment {
    /// Reads the chunk at `offset` into `bytes`, in place of what is there, and gives its encoding.
    fn read_chunk(&self, offset: u64, bytes: &mut Vec<u8>) -> Result<u8, ReadError> {
        let file = &self.0;
        let what = "the chunk is cut short";
        let room = file.len().saturating_sub(offset);
        file.read(offset, room.min(FIRST_READ_BYTES as u64), bytes, what)?;
        let mut cursor = Cursor::new(bytes);
        let len = u64::from(cursor.uvarint32(what).map_err(file.malformed(offset))?);
        let start = cursor.at();
        let total = start as u64 + ENCODING_BYTES + len + CRC_BYTES;
        if len > CHUNK_BYTES_MAX || total > room {
            return Err(file.corrupt(offset, what));
        }
        if total > bytes.len() as u64 {
            file.read(offset, total, bytes, what)?;
        }
        bytes.truncate(total as usize);
        let (checked, crc) = bytes[start..].split_at((ENCODING_BYTES + len) as usize);
        if crc != crc32c::crc32c(checked).to_be_bytes() {
            return Err(file.corrupt(offset, "the chunk does not match its checksum"));
        }
        let encoding = checked[0];
        bytes.drain(..start + ENCODING_BYTES as usize);
        bytes.truncate(len as usize);
        Ok(encoding)
    }
}

impl ChunkFile for Segment {
    fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, ReadError> {
        self.0.read_some(offset, bytes)
    }

    fn find(&self, _: &ChunkAt, bytes: &[u8]) -> Option<(u8, Range<usize>)> {
        let mut cursor = Cursor::new(bytes);
        let len = cursor.uvarint32("").ok()? as usize;
        let start = cursor.at();
        let (checked, behind) = bytes[start..].split_at_checked(ENCODING_BYTES as usize + len)?;
        let (encoding, chunk) = checked.split_first()?;
        let is_whole = behind.starts_with(&crc32c::crc32c(checked).to_be_bytes());
        let start = start + ENCODING_BYTES as usize;
        (is_whole && is_known(*encoding)).then_some((*encoding, start..start + chunk.len()))
    }

    fn read(&self, chunk: &ChunkAt, bytes: &mut Vec<u8>) -> Result<u8, ReadError> {
        match self.read_chunk(chunk.offset, bytes)? {
            encoding if is_known(encoding) => Ok(encoding),
            _ => Err(unsupported(self.0.path())),
        }
    }
}

/// What is said of a block or a segment in which there is another.
pub fn unsupported(path: &Path) -> ReadError {
    let what = "a chunk encoding of Prometheus 3.14";
    ReadError::Unsupported { path: path.to_owned(), what }
}

fn check_segment(file: RangeReader) -> Result<RangeReader, ReadError> {
    let mut header = Vec::new();
    file.read(0, HEADER.len() as u64, &mut header, "the segment has no header")?;
    // The zeros behind the version are nobody's.
    match (header[..4] == HEADER[..4], header[4] == HEADER[4]) {
        (true, true) => Ok(file),
        (true, false) => Err(file.corrupt(4, "a segment of this version is not read")),
        (false, _) => Err(file.corrupt(0, "this is no segment of chunks")),
    }
}

/// A chunk to be written.
#[derive(Clone, Copy, Debug)]
pub struct EncodedChunk<'c> {
    /// Times of its first and last sample.
    pub mint: Timestamp,
    pub maxt: Timestamp,
    pub encoding: u8,
    /// As its encoding has it: the count of samples (two bytes) first.
    pub bytes: &'c [u8],
}

/// Writes segments. Room is not set aside for them, as most blocks come to a small part of one; what
/// is written lies together because it reaches the medium in runs of 8 MiB.
pub struct ChunkWriter<'d> {
    disk: &'d dyn Disk,
    dir: PathBuf,
    segment_bytes: u64,
    current: Option<FileWriter>,
    /// How many segments were begun.
    segments: u32,
}

impl<'d> ChunkWriter<'d> {
    /// Into `dir`, which is there and empty. A segment ends before it has more than `segment_bytes`.
    pub fn new(disk: &'d dyn Disk, dir: &Path, segment_bytes: u64) -> ChunkWriter<'d> {
        ChunkWriter { disk, dir: dir.to_owned(), segment_bytes, current: None, segments: 0 }
    }

    /// Writes the chunks of a series, and appends to `metas` where they are.
    ///
    /// Segments end where Prometheus' do: it reckons with the longest that a length can be, but knows
    /// the true length of what earlier series have in the segment; and a series' first chunk does not
    /// begin a segment anew if it is the segment's first, too.
    pub fn write(
        &mut self,
        chunks: &[EncodedChunk<'_>],
        metas: &mut Vec<ChunkMeta>,
    ) -> Result<(), WriteError> {
        let header = HEADER.len() as u64;
        let mut before = self.current.as_ref().map_or(header, FileWriter::position);
        let mut reckoned = 0;
        for (i, chunk) in chunks.iter().enumerate() {
            let most = LEN_BYTES_MAX + ENCODING_BYTES + chunk.bytes.len() as u64 + CRC_BYTES;
            reckoned += most;
            let may_cut = i > 0 || before > header;
            if may_cut && before + reckoned > self.segment_bytes {
                self.finish_segment()?;
                (before, reckoned) = (header, most);
            }
            let place = self.append(chunk)?;
            metas.push(ChunkMeta { mint: chunk.mint, maxt: chunk.maxt, chunk: place });
        }
        Ok(())
    }

    /// Brings the last segment to the medium. The names are the directory's. Returns how many segments
    /// there are.
    pub fn finish(mut self) -> Result<u32, WriteError> {
        self.finish_segment()?;
        Ok(self.segments)
    }

    fn append(&mut self, chunk: &EncodedChunk<'_>) -> Result<BlockChunkRef, WriteError> {
        let file = match &mut self.current {
            Some(file) => file,
            current => {
                let path = self.dir.join(segment_name(self.segments));
                let mut file = FileWriter::create(self.disk, &path)?;
                file.write(&HEADER)?;
                self.segments += 1;
                current.insert(file)
            }
        };
        let len = chunk.bytes.len() as u64;
        let (Ok(offset), true) = (u32::try_from(file.position()), len <= CHUNK_BYTES_MAX) else {
            let (path, what) = (file.path().to_owned(), "a chunk");
            return Err(WriteError::TooLarge { path, what, bytes_max: CHUNK_BYTES_MAX });
        };
        let mut head = Vec::with_capacity(8);
        push_varint(&mut head, len);
        head.push(chunk.encoding);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[chunk.encoding]), chunk.bytes);
        file.write(&head)?;
        file.write(chunk.bytes)?;
        file.write(&crc.to_be_bytes())?;
        Ok(BlockChunkRef::new(self.segments - 1, offset))
    }

    fn finish_segment(&mut self) -> Result<(), WriteError> {
        match self.current.take() {
            Some(file) => file.finish().map(drop),
            None => Ok(()),
        }
    }
}
