//! Full chunks of a head, on disk: `chunks_head/000001` and so on, as Prometheus has them.
//!
//! They save memory while the head runs and reading when it starts, which takes what is whole
//! ([`scan`]) and has the log fill in the rest. As long as the log has all that these files have,
//! damage costs time only; it may lose what [sealed](seal) files have. Nothing is mapped into
//! memory; chunks are read one by one.
//!
//! Numbers rise without a gap, and files go from the front, once no series refers to a chunk in them.

mod format;
pub mod scan;
pub mod seal;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::disk::{Disk, DiskFile};
use crate::metrics::{Counter, Gauge, Registry};
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::chunk_reads::{ChunkAt, ChunkFile, FIRST_READ_BYTES};
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::chunkenc::is_known;
use crate::tsdb::error::{Corruption, ReadError, WriteError};
use crate::tsdb::head_chunks::seal::{Doubt, Seal};

/// The directory's name in the database's.
pub const HEAD_CHUNKS_DIR: &str = "chunks_head";

/// Bytes of a file, if no chunk is larger. Prometheus does not read larger ones.
pub const FILE_BYTES: u64 = 128 << 20;

/// Bytes of a chunk at most: longer ones are taken for damage when a file is read.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
const _: () = assert!(CHUNK_BYTES_MAX as u64 <= format::DATA_BYTES_MAX);

const REFERRED_TO_STAYS: &str = "a file with chunks that are referred to stays";

/// Where a chunk lies: 13 bits of the file's place in [`HeadChunkFiles`], 27 of the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkPlace(u64);

const OFFSET_BITS: u32 = 27;
const FILES_MAX: usize = 1 << (ChunkPlace::BITS - OFFSET_BITS);

impl ChunkPlace {
    /// Bits that the number of a place has.
    pub const BITS: u32 = 40;

    /// `None` if the file has a place or an offset that cannot be told.
    fn new(file: usize, offset: u64) -> Option<ChunkPlace> {
        let fits = file < FILES_MAX && offset >> OFFSET_BITS == 0;
        fits.then_some(ChunkPlace((file as u64) << OFFSET_BITS | offset))
    }

    pub fn from_bits(bits: u64) -> ChunkPlace {
        debug_assert!(bits >> Self::BITS == 0);
        ChunkPlace(bits)
    }

    pub fn to_bits(self) -> u64 {
        self.0
    }

    fn file(self) -> usize {
        (self.0 >> OFFSET_BITS) as usize
    }

    fn offset(self) -> u64 {
        self.0 & ((1 << OFFSET_BITS) - 1)
    }
}

/// A full chunk, to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FullChunk {
    pub series_ref: HeadSeriesRef,
    pub mint: Timestamp,
    pub maxt: Timestamp,
    pub encoding: u8,
    /// As its encoding has it: the count of samples (two bytes) first.
    pub bytes: Vec<u8>,
}

impl FullChunk {
    pub fn sample_count(&self) -> u64 {
        self.bytes.first_chunk().map_or(0, |count| u16::from_be_bytes(*count).into())
    }
}

/// A chunk in a file that stays readable for as long as this is held.
#[derive(Clone)]
pub struct ChunkInFile {
    pub mint: Timestamp,
    pub maxt: Timestamp,
    file: Arc<HeadChunkFile>,
    offset: u64,
}

impl ChunkInFile {
    /// Reads the chunk's bytes, in the place of what is in `bytes`, and gives its encoding.
    pub fn read(&self, bytes: &mut Vec<u8>) -> Result<u8, ReadError> {
        let &ChunkInFile { mint, maxt, offset, .. } = self;
        self.file.read(&ChunkAt { offset, mint, maxt }, bytes)
    }
}

/// The encoding of a chunk, and where it is in `bytes`, which are those of a file from its place on.
/// `None` if it is not there as a whole, or not the one with these times of its first and last
/// sample.
fn chunk_within(bytes: &[u8], times: (Timestamp, Timestamp)) -> Option<(u8, Range<usize>)> {
    let len = format::chunk_len(bytes)?;
    let (head, data) = bytes.get(..len).and_then(format::parse_chunk)?;
    let end = len - format::CHECKSUM_BYTES;
    // Its ref need not be the one that the series has now: a log may give it several.
    let is_it = (head.mint, head.maxt) == times && is_known(head.encoding);
    is_it.then_some((head.encoding, end - data.len()..end))
}

/// An open file.
struct HeadChunkFile {
    number: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Chunks in it that a series refers to.
    live: AtomicUsize,
    seal: Mutex<Seal>,
}

impl ChunkFile for HeadChunkFile {
    fn fill(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, ReadError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
                Err(err) => return Err(ReadError::io(&self.path)(err)),
            }
        }
        Ok(filled)
    }

    fn find(&self, chunk: &ChunkAt, bytes: &[u8]) -> Option<(u8, Range<usize>)> {
        chunk_within(bytes, (chunk.mint, chunk.maxt))
    }

    fn read(&self, chunk: &ChunkAt, bytes: &mut Vec<u8>) -> Result<u8, ReadError> {
        let offset = chunk.offset;
        let corrupt = || {
            let (file, what) = (self.path.clone(), "this is not the chunk that was written here");
            ReadError::from(Corruption { file, offset, what })
        };
        bytes.resize(FIRST_READ_BYTES, 0);
        let filled = self.fill(offset, bytes)?;
        bytes.truncate(filled);
        let len = format::chunk_len(bytes).ok_or_else(corrupt)?;
        if len > bytes.len() {
            bytes.resize(len, 0);
            let filled = self.fill(offset, bytes)?;
            bytes.truncate(filled);
        }
        let (encoding, data) = self.find(chunk, bytes).ok_or_else(corrupt)?;
        bytes.truncate(data.end);
        bytes.drain(..data.start);
        Ok(encoding)
    }
}

impl HeadChunkFile {
    fn new(number: u64, path: PathBuf, file: Arc<dyn DiskFile>, seal: Seal) -> HeadChunkFile {
        HeadChunkFile { number, path, file, live: AtomicUsize::new(0), seal: Mutex::new(seal) }
    }

    fn is_dead(&self) -> bool {
        self.live.load(Ordering::Acquire) == 0
    }
}

/// The head chunk files of a database.
pub struct HeadChunkFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// By place; a place is used again only once no series refers to a chunk there.
    files: RwLock<Vec<Option<Arc<HeadChunkFile>>>>,
    /// One thread writes, and removes, at a time.
    writer: Mutex<Writer>,
    file_bytes: u64,
    metrics: HeadChunkMetrics,
}

struct Writer {
    /// The next file's number: above that of every file seen.
    next_number: u64,
    /// The first file that holds what this version does not read: it stays, and those behind it.
    stays_from: u64,
    doubt: Option<Doubt>,
    /// Failed syncs of the file system that were seen.
    failures_seen: u64,
    current: Option<Current>,
}

/// The file that is written to.
struct Current {
    file: Arc<HeadChunkFile>,
    place: usize,
    position: u64,
}

struct HeadChunkMetrics {
    written: Counter,
    corruptions: Counter,
    bytes: Gauge,
}

impl HeadChunkMetrics {
    fn new(registry: &Registry, tenant: &str) -> HeadChunkMetrics {
        let counter = |name, help| registry.counter_vec(name, help, &["tenant"]).with(&[tenant]);
        let gauge = |name, help| registry.gauge_vec(name, help, &["tenant"]).with(&[tenant]);
        HeadChunkMetrics {
            written: counter(
                "prometheus_tsdb_mmap_chunks_total",
                "Total number of chunks that were memory-mapped.",
            ),
            corruptions: counter(
                "prometheus_tsdb_mmap_chunk_corruptions_total",
                "Total number of memory-mapped chunk corruptions.",
            ),
            bytes: gauge(
                "prometheus_tsdb_head_chunks_storage_size_bytes",
                "Size of the chunks_head directory.",
            ),
        }
    }
}

impl HeadChunkFiles {
    /// Those in `dir`, a database's directory; none are known yet.
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        file_bytes: u64,
        registry: &Registry,
        tenant: &str,
    ) -> HeadChunkFiles {
        let metrics = HeadChunkMetrics::new(registry, tenant);
        // A database may be opened again in the same process.
        metrics.bytes.set(0.0);
        HeadChunkFiles {
            disk,
            dir: dir.join(HEAD_CHUNKS_DIR),
            files: RwLock::default(),
            writer: Mutex::new(Writer {
                next_number: 1,
                stays_from: u64::MAX,
                doubt: None,
                failures_seen: 0,
                current: None,
            }),
            file_bytes: file_bytes.min(FILE_BYTES),
            metrics,
        }
    }

    /// The chunk at a place that a series refers to, for as long as it does.
    pub fn chunk(&self, mint: Timestamp, maxt: Timestamp, place: ChunkPlace) -> ChunkInFile {
        ChunkInFile { mint, maxt, file: self.file_at(place), offset: place.offset() }
    }

    /// Adds the same chunk to `chunks`, to be read later.
    pub fn gather(
        &self,
        mint: Timestamp,
        maxt: Timestamp,
        place: ChunkPlace,
        chunks: &mut ChunkSet,
    ) {
        let files = self.files.read();
        let file = files[place.file()].as_ref().expect(REFERRED_TO_STAYS);
        chunks.push_unread(file, ChunkAt { offset: place.offset(), mint, maxt });
    }

    /// A series refers to the chunk at `place` from now on.
    pub fn hold(&self, place: ChunkPlace) {
        self.file_at(place).live.fetch_add(1, Ordering::AcqRel);
    }

    /// A series refers to the chunk no more.
    pub fn let_go(&self, place: ChunkPlace) {
        self.file_at(place).live.fetch_sub(1, Ordering::AcqRel);
    }

    fn file_at(&self, place: ChunkPlace) -> Arc<HeadChunkFile> {
        let files = self.files.read();
        files[place.file()].clone().expect(REFERRED_TO_STAYS)
    }

    /// Writes chunks, in this order, and says where each is of as many as were written. These are to be
    /// [held](Self::hold) before the next [`Self::remove_dead`].
    pub fn append(&self, chunks: &[FullChunk]) -> (Vec<ChunkPlace>, Result<(), WriteError>) {
        let mut writer = self.writer.lock();
        let mut places = Vec::with_capacity(chunks.len());
        while let Some(rest) = chunks.get(places.len()..).filter(|rest| !rest.is_empty()) {
            if let Err(err) = self.append_some(&mut writer, rest, &mut places) {
                return (places, Err(err));
            }
        }
        (places, Ok(()))
    }

    /// As many as go into the file that is written to; one at least.
    fn append_some(
        &self,
        writer: &mut Writer,
        chunks: &[FullChunk],
        places: &mut Vec<ChunkPlace>,
    ) -> Result<(), WriteError> {
        let current = self.current_with_room(writer, &chunks[0])?;
        let (mut bytes, before) = (Vec::new(), places.len());
        for chunk in chunks {
            let offset = current.position + bytes.len() as u64;
            let end = offset + format::chunk_bytes_max(chunk.bytes.len()) as u64;
            let Some(place) = ChunkPlace::new(current.place, offset) else { break };
            if !bytes.is_empty() && end > self.file_bytes {
                break;
            }
            let &FullChunk { series_ref, mint, maxt, encoding, .. } = chunk;
            let head = format::Head { series_ref, mint, maxt, encoding };
            format::push_chunk(&mut bytes, head, &chunk.bytes);
            places.push(place);
        }
        if let Err(err) = current.file.file.write_all_at(&bytes, current.position) {
            places.truncate(before);
            // What is torn would be damage, were this file to get nothing more.
            let _ = current.file.file.truncate(current.position);
            return Err(WriteError::io(&current.file.path)(err));
        }
        current.position += bytes.len() as u64;
        self.metrics.bytes.add(bytes.len() as f64);
        self.metrics.written.add((places.len() - before) as u64);
        Ok(())
    }

    /// The file in which there is room for the chunk, begun if need be.
    fn current_with_room<'w>(
        &self,
        writer: &'w mut Writer,
        chunk: &FullChunk,
    ) -> Result<&'w mut Current, WriteError> {
        let bytes = format::chunk_bytes_max(chunk.bytes.len()) as u64;
        let header = format::HEADER.len() as u64;
        let has_room = |current: &Current| {
            current.position == header || current.position + bytes <= self.file_bytes
        };
        if writer.current.as_ref().is_none_or(|current| !has_room(current)) {
            self.finish_current(writer)?;
            let current = self.begin_file(writer.next_number)?;
            writer.next_number += 1;
            return Ok(writer.current.insert(current));
        }
        Ok(writer.current.as_mut().expect("there is one with room"))
    }

    /// Makes the file that is written to durable, and writes no more to it. After a power cut
    /// Prometheus bears with a last file that is not whole, and with no other.
    fn finish_current(&self, writer: &mut Writer) -> Result<(), WriteError> {
        let Some(Current { file, position, .. }) = &writer.current else { return Ok(()) };
        let (file, position) = (file.clone(), *position);
        let error = WriteError::io(&file.path);
        let len = file.file.len();
        // What a failed write left was not cut off then.
        let cut =
            len.and_then(|len| if len > position { file.file.truncate(position) } else { Ok(()) });
        cut.map_err(error)?;
        self.sync_file(writer, file.number, &file.path, &*file.file)?;
        file.seal.lock().end_writing();
        writer.current = None;
        Ok(())
    }

    /// Makes the names that lead to the files durable.
    fn sync_dirs(&self) -> Result<(), WriteError> {
        let mut dirs = self.dir.ancestors().take(2).filter(|dir| !dir.as_os_str().is_empty());
        dirs.try_for_each(|dir| self.disk.sync_dir(dir).map_err(WriteError::io(dir)))
    }

    /// Makes all that was written durable.
    pub fn sync(&self) -> Result<(), WriteError> {
        self.finish_current(&mut self.writer.lock())
    }

    fn begin_file(&self, number: u64) -> Result<Current, WriteError> {
        self.disk.create_dir_all(&self.dir).map_err(WriteError::io(&self.dir))?;
        let path = self.dir.join(file_name(number));
        // One that could not be begun before may be there without its header.
        let file = self.disk.create(&path).map_err(WriteError::io(&path))?;
        file.write_all_at(&format::HEADER, 0).map_err(WriteError::io(&path))?;
        let file = Arc::new(HeadChunkFile::new(number, path, file, Seal::Open));
        let Some(place) = self.add(file.clone()) else {
            let (path, what) = (self.dir.clone(), "head chunks");
            let bytes_max = FILES_MAX as u64 * self.file_bytes;
            return Err(WriteError::TooLarge { path, what, bytes_max });
        };
        let position = format::HEADER.len() as u64;
        self.metrics.bytes.add(position as f64);
        Ok(Current { file, place, position })
    }

    /// Gives the file a place, if there is one. No lock is held across a call to the disk: readers wait
    /// for it.
    fn add(&self, file: Arc<HeadChunkFile>) -> Option<usize> {
        let mut files = self.files.write();
        let free = files.iter().position(Option::is_none);
        let place = free.unwrap_or(files.len());
        if place >= FILES_MAX {
            return None;
        }
        match files.get_mut(place) {
            Some(free) => *free = Some(file),
            None => files.push(Some(file)),
        }
        Some(place)
    }

    /// Removes files from the front for as long as no series refers to a chunk in them, and has the
    /// next chunk begin a new one, so that the one that is written to can go some day.
    pub fn remove_dead(&self) -> Result<(), WriteError> {
        let mut writer = self.writer.lock();
        let stays_from = writer.stays_from;
        let goes = |file: &HeadChunkFile| file.number < stays_from && file.is_dead();
        for (file, place) in self.by_number().into_iter().take_while(|(file, _)| goes(file)) {
            let len = file.file.len().unwrap_or(0);
            match self.disk.remove_file(&file.path) {
                Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                    return Err(WriteError::io(&file.path)(err));
                }
                _ => {}
            }
            self.files.write()[place] = None;
            self.metrics.bytes.add(-(len as f64));
            if writer.current.as_ref().is_some_and(|current| current.place == place) {
                // Nobody needs it on the medium any more.
                writer.current = None;
            }
        }
        self.end_doubt(&mut writer);
        self.finish_current(&mut writer)
    }

    /// The files and their places, in the order of their numbers.
    fn by_number(&self) -> Vec<(Arc<HeadChunkFile>, usize)> {
        let files = self.files.read();
        let files = files.iter().enumerate();
        let mut files: Vec<_> =
            files.filter_map(|(place, file)| Some((file.clone()?, place))).collect();
        files.sort_unstable_by_key(|(file, _)| file.number);
        files
    }
}

#[cfg(test)]
impl HeadChunkFiles {
    /// Numbers of the files that are there.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<_> =
            self.files.read().iter().flatten().map(|file| file.number).collect();
        numbers.sort_unstable();
        numbers
    }
}

fn file_name(number: u64) -> String {
    format!("{number:06}")
}

#[cfg(test)]
mod tests;
