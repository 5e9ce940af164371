//! A second copy of what names series: one damaged byte in a series record of the log would cost all
//! samples of its series.
//!
//! `<dir>/ringest.names` lies beside the log, not in it. Each series record is written there as well,
//! once it is in the log, with its place in the log; what a crash leaves out is filled in when the log
//! is read. **The log is the truth**: a record that can be read there is used, whatever is here. Only
//! where a place of the log is damaged are the records that are known to begin in it taken from here,
//! and put back into the log when its segment is written anew.
//!
//! Another program may have written the log meanwhile, and given refs to other series. So each segment
//! of ours is noted before it gets a record, and at each opening how long those are that will not be
//! written any more. A segment that is not noted, one that is not as long as it was, a checkpoint that
//! is not noted, or a record in the log that is not the one which is noted for its place: then the file
//! is renamed, used for nothing, and made anew. So is one that does not begin as it should. Refs that
//! only this file knows are never given again.
//!
//! A checkpoint in the place of segments has the file made anew: with the checkpoint's records, and
//! what was noted of later segments.
//!
//! It is synced with the first sync of a segment, or the segment would be another program's after a
//! power cut; what that takes of later entries is filled in again.
//!
//! ```text
//! "RINGEST NAMES\n", version be16, then entries:
//! ┌───────────┬────────┬──────────────┬───────────────┬──────────────┬────────────┐
//! │ "RNGE"    │ tag 1B │ compressed 1B│ checkpoint 8B │ segment 8B   │ offset 8B  │  big endian
//! ├───────────┴──┬─────┴──────────────┼───────────────┴──────────────┴────────────┤
//! │ body len 4B  │ CRC-32C of the     │ CRC-32C of all before │ body
//! │              │ record 4B, body 4B │ it in the entry 4B    │
//! └──────────────┴────────────────────┴───────────────────────┴───────────────────┘
//! tag 1: a series record, as it is in the log, begins at this offset
//!     2: the file was begun: what was noted of it before counts no more
//!     3: the segment is as long as the offset says, for good
//! checkpoint: 0 for the log's own segments, else the checkpoint's number + 1; its segment is all
//!     ones where the checkpoint itself is meant
//! ```
//!
//! A damaged entry costs itself: the next one begins with the next `RNGE` whose checksum is right.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, lacks_descriptors};
use crate::error::chain;
use crate::metrics::Counter;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::file::FileWriter;
use crate::tsdb::refs;
use crate::tsdb::wal::reader::{Found, FoundRecord, SegmentReader};
use crate::tsdb::wal::record::Record;
use crate::tsdb::wal::repair::{LogDir, SET_ASIDE_PREFIX, free_name};
use crate::tsdb::wal::segment::{RECORD_BYTES_MAX, SegmentIndex};
use crate::tsdb::wal::{WalMetrics, segment_path};
use crate::tsdb::window::Window;

/// The file, in the database's directory.
pub const NAMES_FILE: &str = "ringest.names";

const FILE_HEADER: &[u8; 16] = b"RINGEST NAMES\n\x00\x01";
const MAGIC: &[u8; 4] = b"RNGE";
/// Of an entry before its body.
const HEAD_BYTES: usize = 46;

const TAG_SERIES: u8 = 1;
const TAG_BEGUN: u8 = 2;
const TAG_LENGTH: u8 = 3;

/// Entries gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes looked through at once for the next entry.
const SEARCH_BYTES: usize = 64 << 10;

/// A file of the log: of a checkpoint's, or a segment of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogFile {
    checkpoint: u64,
    segment: u64,
}

impl LogFile {
    pub fn segment(segment: SegmentIndex) -> LogFile {
        LogFile { checkpoint: 0, segment: segment.0 }
    }

    pub fn of_checkpoint(checkpoint: SegmentIndex, segment: SegmentIndex) -> LogFile {
        LogFile { checkpoint: checkpoint.0.saturating_add(1), segment: segment.0 }
    }

    /// Not a file of it, but the directory.
    fn checkpoint(checkpoint: SegmentIndex) -> LogFile {
        LogFile::of_checkpoint(checkpoint, SegmentIndex(u64::MAX))
    }
}

/// Where in the log a record begins.
type Place = (LogFile, u64);

/// An entry without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    tag: u8,
    is_compressed: bool,
    file: LogFile,
    offset: u64,
    body_bytes: u32,
    record_checksum: u32,
    body_checksum: u32,
}

impl Head {
    fn push(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[self.tag, u8::from(self.is_compressed)]);
        out.extend_from_slice(&self.file.checkpoint.to_be_bytes());
        out.extend_from_slice(&self.file.segment.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.body_bytes.to_be_bytes());
        out.extend_from_slice(&self.record_checksum.to_be_bytes());
        out.extend_from_slice(&self.body_checksum.to_be_bytes());
        let checksum = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&checksum.to_be_bytes());
        debug_assert_eq!(out.len() - start, HEAD_BYTES);
    }

    fn parse(bytes: &[u8]) -> Option<Head> {
        let bytes = bytes.first_chunk::<HEAD_BYTES>()?;
        let (checked, checksum) = bytes.split_last_chunk::<4>()?;
        if !checked.starts_with(MAGIC) || crc32c::crc32c(checked) != u32::from_be_bytes(*checksum) {
            return None;
        }
        let be64 = |at: usize| {
            let bytes = checked.get(at..).and_then(|bytes| bytes.first_chunk::<8>());
            bytes.map(|bytes| u64::from_be_bytes(*bytes))
        };
        let be32 = |at: usize| {
            let bytes = checked.get(at..).and_then(|bytes| bytes.first_chunk::<4>());
            bytes.map(|bytes| u32::from_be_bytes(*bytes))
        };
        Some(Head {
            tag: *checked.get(4)?,
            is_compressed: *checked.get(5)? != 0,
            file: LogFile { checkpoint: be64(6)?, segment: be64(14)? },
            offset: be64(22)?,
            body_bytes: be32(30)?,
            record_checksum: be32(34)?,
            body_checksum: be32(38)?,
        })
    }

    /// Of a note that has no body.
    fn note(tag: u8, file: LogFile, offset: u64) -> Head {
        Head {
            tag,
            is_compressed: false,
            file,
            offset,
            body_bytes: 0,
            record_checksum: 0,
            body_checksum: 0,
        }
    }
}

/// Appends an entry for a series record. `snappy` is the same compressed, if it is shorter so.
pub(super) fn push_series(out: &mut Vec<u8>, place: Place, record: &[u8], snappy: Option<&[u8]>) {
    let body = snappy.unwrap_or(record);
    // Records are far shorter than 4 GiB.
    let Ok(body_bytes) = u32::try_from(body.len()) else { return };
    let head = Head {
        tag: TAG_SERIES,
        is_compressed: snappy.is_some(),
        file: place.0,
        offset: place.1,
        body_bytes,
        record_checksum: crc32c::crc32c(record),
        body_checksum: crc32c::crc32c(body),
    };
    head.push(out);
    out.extend_from_slice(body);
}

/// The file, to be written behind what is in it.
pub struct NamesWriter {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    end: u64,
    failed: Counter,
    is_failing: bool,
    /// Whether there is no file that could be written.
    is_off: bool,
}

impl NamesWriter {
    /// A file without entries, in place of any other. If it cannot be made, the log goes on without
    /// until its next opening.
    fn begin(disk: Arc<dyn Disk>, path: PathBuf, failed: Counter) -> NamesWriter {
        let begun = disk.create(&path).and_then(|file| file.write_all_at(FILE_HEADER, 0));
        let (end, is_off) = (FILE_HEADER.len() as u64, begun.is_err());
        let mut writer = NamesWriter { disk, path, end, failed, is_failing: false, is_off };
        writer.note(begun);
        writer
    }

    /// A new file once the old one was set aside.
    fn begin_again(self) -> NamesWriter {
        let NamesWriter { disk, path, failed, is_off, .. } = self;
        match is_off {
            true => NamesWriter { disk, path, end: 0, failed, is_failing: true, is_off },
            false => NamesWriter::begin(disk, path, failed),
        }
    }

    /// Renames the file, or goes on without.
    fn set_aside(&mut self, why: &str) {
        let dir = self.path.parent().unwrap_or(Path::new(""));
        let free = free_name(&*self.disk, dir, &format!("{SET_ASIDE_PREFIX}{NAMES_FILE}"));
        let renamed = free.and_then(|free| {
            let to = free.display();
            tracing::warn!(why, %to, "the second copy of series names is not used, and made anew");
            self.disk.rename(&self.path, &free)
        });
        self.is_off |= renamed.is_err();
        self.note(renamed);
    }

    /// Says that a segment of the log is about to get its first record.
    pub(super) fn begin_segment(&mut self, segment: SegmentIndex) {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        Head::note(TAG_BEGUN, LogFile::segment(segment), 0).push(&mut bytes);
        self.append(&bytes);
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file.
    pub(super) fn is_on(&self) -> bool {
        !self.is_off
    }

    /// Counts a file that could not be made behind a checkpoint.
    pub(super) fn note_remaking(&mut self, made: Result<(), WriteError>) {
        if let Err(err) = made {
            self.failed.inc();
            let (path, err) = (self.path.display(), chain(&err));
            tracing::warn!(%path, err, "the second copy of series names was not made anew");
        }
    }

    pub(super) fn sync(&mut self) {
        if self.is_off {
            return;
        }
        let synced = self.disk.open_write(&self.path).and_then(|file| file.sync());
        self.note(synced);
    }

    /// Appends whole entries. A failure costs them alone: they are written again from the log at its
    /// next opening.
    pub(super) fn append(&mut self, entries: &[u8]) {
        if self.is_off {
            return;
        }
        // Opened each time: series are seldom new, and descriptors are few.
        let file = self.disk.open_write(&self.path);
        let written = file.and_then(|file| file.write_all_at(entries, self.end));
        if written.is_ok() {
            self.end += entries.len() as u64;
        }
        self.note(written);
    }

    fn note(&mut self, done: io::Result<()>) {
        match done {
            Ok(()) => self.is_failing = false,
            Err(err) => {
                self.failed.inc();
                if !self.is_failing {
                    let path = self.path.display();
                    tracing::warn!(%path, %err, "the second copy of series names cannot be written");
                }
                self.is_failing = true;
            }
        }
    }
}

/// A file that takes the place of another one, since a checkpoint takes that of segments. A failure
/// leaves the other one, which is made anew then at the next opening.
pub(super) struct NamesOfCheckpoint<'d> {
    disk: &'d dyn Disk,
    number: SegmentIndex,
    path: PathBuf,
    writer: FileWriter,
    entries: Vec<u8>,
}

/// Its name until it is whole.
pub const UNFINISHED_NAMES_FILE: &str = "ringest.names.tmp";

impl<'d> NamesOfCheckpoint<'d> {
    /// `names` is the file whose place it is to take.
    pub(super) fn begin(
        disk: &'d dyn Disk,
        names: &Path,
        number: SegmentIndex,
    ) -> Result<NamesOfCheckpoint<'d>, WriteError> {
        let path = names.with_file_name(UNFINISHED_NAMES_FILE);
        // Of a checkpoint that was not finished.
        match disk.remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(WriteError::io(&path)(err));
            }
            _ => {}
        }
        let mut writer = FileWriter::create(disk, &path)?;
        writer.write(FILE_HEADER)?;
        let mut entries = Vec::new();
        Head::note(TAG_BEGUN, LogFile::checkpoint(number), 0).push(&mut entries);
        Ok(NamesOfCheckpoint { disk, number, path, writer, entries })
    }

    /// A series record, as it is in the checkpoint, where it begins at `offset` of this segment.
    pub(super) fn push_series(
        &mut self,
        (segment, offset): (SegmentIndex, u64),
        record: &[u8],
        snappy: Option<&[u8]>,
    ) -> Result<(), WriteError> {
        let file = LogFile::of_checkpoint(self.number, segment);
        push_series(&mut self.entries, (file, offset), record, snappy);
        self.flush()
    }

    /// Takes over what is noted of segments behind the checkpoint, which is on the medium, and the
    /// place of the file. Appends wait for the end of it alone.
    pub(super) fn take_place(mut self, names: &Mutex<NamesWriter>) -> Result<(), WriteError> {
        let (from, end) = {
            let names = names.lock();
            (names.path.clone(), names.end)
        };
        let read = self.take_over(&from, FILE_HEADER.len() as u64, end)?;
        self.flush()?;
        self.writer.sync_written()?;
        let mut names = names.lock();
        self.take_over(&from, read, names.end)?;
        self.flush()?;
        let written = self.writer.finish_unsynced()?;
        self.disk.rename(&self.path, &from).map_err(WriteError::io(&from))?;
        names.end = written;
        drop(names);
        let dir = from.parent().unwrap_or(Path::new(""));
        self.disk.sync_dir(dir).map_err(WriteError::io(dir))
    }

    /// Of the entries in a part of the file; where the last whole one ends.
    fn take_over(&mut self, from: &Path, start: u64, end: u64) -> Result<u64, WriteError> {
        let read_error = |source| WriteError::Read(ReadError::io(from)(source));
        let mut file = Window::open(self.disk, from).map_err(read_error)?;
        let mut offset = start;
        while offset < end {
            let head = Head::parse(file.read(offset, HEAD_BYTES).map_err(read_error)?);
            let Some(head) = head else {
                offset = next_magic(&mut file, offset + 1).map_err(read_error)?;
                continue;
            };
            let bytes = HEAD_BYTES + head.body_bytes as usize;
            let LogFile { checkpoint, segment } = head.file;
            if checkpoint == 0 && segment > self.number.0 {
                let entry = file.read(offset, bytes).map_err(read_error)?;
                // One that is longer than what is read at once is left out.
                if entry.len() == bytes {
                    self.entries.extend_from_slice(entry);
                    self.flush()?;
                }
            }
            offset += bytes as u64;
        }
        Ok(offset)
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        self.writer.write(&self.entries)?;
        self.entries.clear();
        self.entries.shrink_to(WRITE_BYTES);
        Ok(())
    }
}

/// Where the copy of a record is.
#[derive(Clone, Copy, Debug)]
struct Copy {
    offset: u64,
    bytes: u32,
    is_compressed: bool,
    record_checksum: u32,
    /// Whether the log has it.
    is_in_log: bool,
}

/// What the file says.
#[derive(Default)]
struct Noted {
    copies: BTreeMap<Place, Copy>,
    begun: BTreeSet<LogFile>,
    lengths: BTreeMap<LogFile, u64>,
    /// Where the last whole entry ends.
    end: u64,
}

/// The file while the log is read.
pub struct Names {
    writer: NamesWriter,
    noted: Noted,
    /// Entries to be written.
    fresh: Vec<u8>,
    /// Whether the log is not what the file says, so that nothing more is used.
    is_foreign: bool,
    /// Places whose copies were given: they are put back whatever is found out later.
    used: BTreeSet<Place>,
    restored: Counter,
    snappy: snap::raw::Encoder,
}

impl Names {
    /// Reads the file of the database in `dir`, or makes one. Where there is neither, the log goes on
    /// without.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, metrics: &WalMetrics) -> Names {
        let path = dir.join(NAMES_FILE);
        let noted = Noted::read(&*disk, &path).and_then(|noted| {
            let log = LogDir::list(&*disk, &dir.join("wal"))?;
            match noted.contradiction(&log) {
                None => Ok(noted),
                Some(what) => Err(io::Error::new(io::ErrorKind::InvalidData, what)),
            }
        });
        let failed = metrics.names_failed.clone();
        let (noted, writer) = match noted {
            Ok(noted) => {
                let (end, is_failing, is_off) = (noted.end, false, false);
                (noted, NamesWriter { disk, path, end, failed, is_failing, is_off })
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                (Noted::default(), NamesWriter::begin(disk, path, failed))
            }
            Err(err) => {
                let (end, is_failing) = (0, false);
                let is_off = lacks_descriptors(&err);
                let mut old = NamesWriter { disk, path, end, failed, is_failing, is_off };
                if !is_off {
                    old.set_aside(&err.to_string());
                }
                (Noted::default(), old.begin_again())
            }
        };
        Names {
            writer,
            noted,
            fresh: Vec::new(),
            is_foreign: false,
            used: BTreeSet::new(),
            restored: metrics.names_restored.clone(),
            snappy: snap::raw::Encoder::new(),
        }
    }

    /// Looks at a record of the log, and keeps a copy if it is one of series and there is none.
    pub fn saw(&mut self, file: LogFile, found: &FoundRecord<'_>) {
        let FoundRecord { record, bytes, start, end, .. } = found;
        let series = matches!(record, Record::Series(_));
        if let Some((place, copy)) =
            self.noted.copies.range_mut((file, *start)..(file, *end)).next()
        {
            let is_same =
                series && place.1 == *start && copy.record_checksum == crc32c::crc32c(bytes);
            copy.is_in_log |= is_same;
            if !is_same && !self.is_foreign {
                tracing::warn!(?place, "the log has another record than was noted for its place");
                self.is_foreign = true;
            }
        } else if series {
            let snappy = self.snappy.compress_vec(bytes).ok();
            let snappy = snappy.filter(|snappy| snappy.len() < bytes.len());
            push_series(&mut self.fresh, (file, *start), bytes, snappy.as_deref());
            if self.fresh.len() >= WRITE_BYTES {
                self.flush();
            }
        }
    }

    /// The series records that begin in a damaged place of the log, in their order.
    pub fn lost_in(&mut self, file: LogFile, place: Range<u64>) -> Vec<Vec<u8>> {
        let Names { noted, used, is_foreign, .. } = self;
        let known = noted.copies.range((file, place.start)..(file, place.end));
        let known = known.filter(|(place, _)| !*is_foreign || used.contains(place));
        let lost: Vec<(Place, Copy)> = known.map(|(place, copy)| (*place, *copy)).collect();
        used.extend(lost.iter().map(|(place, _)| *place));
        let copies: Vec<Copy> = lost.into_iter().map(|(_, copy)| copy).collect();
        if copies.is_empty() {
            return Vec::new();
        }
        let names = self.writer.disk.open(&self.writer.path);
        let records: Vec<_> = names.map_or_else(
            |_| Vec::new(),
            |names| copies.iter().filter_map(|copy| copy.read(&*names)).collect(),
        );
        let (copies, restored) = (copies.len(), records.len());
        let path = self.writer.path.display();
        tracing::warn!(?file, copies, restored, %path, "damaged series records are taken from their copies");
        records
    }

    /// Counts records that were put back into the log.
    pub fn restored(&self, records: u64) {
        self.restored.add(records);
    }

    /// Says that a file of the log was written anew: its records are elsewhere in it.
    pub fn read_again(&mut self, file: LogFile, path: &Path) -> io::Result<()> {
        Head::note(TAG_BEGUN, file, 0).push(&mut self.fresh);
        self.noted.begin(file);
        let disk = self.writer.disk.clone();
        let mut reader = SegmentReader::open(&*disk, path)?;
        while let Some(found) = reader.read_next()? {
            if let Found::Record(found) = found {
                self.saw(file, &found);
            }
        }
        Ok(())
    }

    /// Makes the file say all of the log, which is durable and not written any more. What it is
    /// written on with, and the highest ref that only it knows.
    pub fn finish(mut self, wal_dir: &Path) -> io::Result<(NamesWriter, u64)> {
        if self.is_foreign {
            self = self.make_anew(wal_dir)?;
        }
        let log = LogDir::list(&*self.writer.disk, wal_dir)?;
        for (number, _) in &log.checkpoints {
            let file = LogFile::checkpoint(*number);
            if !self.noted.begun.contains(&file) {
                Head::note(TAG_BEGUN, file, 0).push(&mut self.fresh);
            }
        }
        for (segment, len) in log.segments.iter().filter(|(one, _)| !log.is_covered(*one)) {
            let file = LogFile::segment(*segment);
            if self.noted.lengths.get(&file) != Some(len) {
                Head::note(TAG_LENGTH, file, *len).push(&mut self.fresh);
            }
        }
        self.flush();
        let highest = self.highest_ref_beside_log()?;
        Ok((self.writer, highest))
    }

    /// Of a log that another program wrote, which was found out while it was read.
    fn make_anew(self, wal_dir: &Path) -> io::Result<Names> {
        let Names { mut writer, restored, snappy, .. } = self;
        writer.set_aside("it is not of this log");
        let mut names = Names {
            writer: writer.begin_again(),
            noted: Noted::default(),
            fresh: Vec::new(),
            is_foreign: false,
            used: BTreeSet::new(),
            restored,
            snappy,
        };
        let disk = names.writer.disk.clone();
        let log = LogDir::list(&*disk, wal_dir)?;
        for (number, name) in &log.checkpoints {
            let checkpoint = wal_dir.join(name);
            for (segment, _) in LogDir::list(&*disk, &checkpoint)?.segments {
                let path = segment_path(&checkpoint, segment);
                names.read_again(LogFile::of_checkpoint(*number, segment), &path)?;
            }
        }
        for (segment, _) in &log.segments {
            let path = segment_path(wal_dir, *segment);
            names.read_again(LogFile::segment(*segment), &path)?;
        }
        Ok(names)
    }

    fn highest_ref_beside_log(&self) -> io::Result<u64> {
        let mut beside = self.noted.copies.values().filter(|copy| !copy.is_in_log).peekable();
        if beside.peek().is_none() {
            return Ok(0);
        }
        let names = self.writer.disk.open(&self.writer.path)?;
        let records = beside.filter_map(|copy| copy.read(&*names));
        let refs = records.filter_map(|bytes| Some(refs::highest_in(Record::parse(&bytes).ok()?)));
        Ok(refs.max().unwrap_or(0))
    }

    fn flush(&mut self) {
        if !self.fresh.is_empty() {
            self.writer.append(&self.fresh);
            self.fresh.clear();
        }
    }
}

impl Copy {
    /// The record, if it is whole.
    fn read(&self, names: &dyn DiskFile) -> Option<Vec<u8>> {
        if self.bytes as usize > RECORD_BYTES_MAX {
            return None;
        }
        let mut stored = vec![0; self.bytes as usize];
        let mut filled = 0;
        while filled < stored.len() {
            match names.read_at(&mut stored[filled..], self.offset + filled as u64) {
                Ok(read) if read > 0 => filled += read,
                _ => return None,
            }
        }
        let record = match self.is_compressed {
            true => {
                let bytes = snap::raw::decompress_len(&stored).ok()?;
                // Snappy's densest element gives 64 bytes for 3.
                if bytes > RECORD_BYTES_MAX || bytes / 22 > stored.len() {
                    return None;
                }
                let mut record = vec![0; bytes];
                let written = snap::raw::Decoder::new().decompress(&stored, &mut record).ok()?;
                record.truncate(written);
                record
            }
            false => stored,
        };
        let is_whole = crc32c::crc32c(&record) == self.record_checksum;
        (is_whole && matches!(Record::parse(&record), Ok(Record::Series(_)))).then_some(record)
    }
}

impl Noted {
    fn read(disk: &dyn Disk, path: &Path) -> io::Result<Noted> {
        let mut file = Window::open(disk, path)?;
        // As a power cut leaves one that was just made.
        if file.len == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        if file.read(0, FILE_HEADER.len())? != FILE_HEADER {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not begin as it should",
            ));
        }
        let mut noted = Noted { end: FILE_HEADER.len() as u64, ..Noted::default() };
        let mut offset = noted.end;
        while offset < file.len {
            let Some(head) = Head::parse(file.read(offset, HEAD_BYTES)?) else {
                offset = next_magic(&mut file, offset + 1)?;
                continue;
            };
            let body = offset + HEAD_BYTES as u64;
            let end = body + u64::from(head.body_bytes);
            if end > file.len {
                break;
            }
            // One that is longer is looked at when it is needed.
            let stored = file.read(body, head.body_bytes as usize)?;
            if stored.len() < head.body_bytes as usize
                || crc32c::crc32c(stored) == head.body_checksum
            {
                noted.take(head, body);
            }
            (noted.end, offset) = (end, end);
        }
        Ok(noted)
    }

    fn take(&mut self, head: Head, body: u64) {
        let Head { tag, is_compressed, file, offset, body_bytes, record_checksum, .. } = head;
        match tag {
            TAG_SERIES => {
                let bytes = body_bytes;
                let is_in_log = false;
                let copy = Copy { offset: body, bytes, is_compressed, record_checksum, is_in_log };
                self.copies.insert((file, offset), copy);
            }
            TAG_BEGUN => self.begin(file),
            TAG_LENGTH => {
                self.lengths.insert(file, offset);
            }
            // Of a later version.
            _ => {}
        }
    }

    fn begin(&mut self, file: LogFile) {
        let before = self.copies.range((file, 0)..=(file, u64::MAX));
        let before: Vec<Place> = before.map(|(place, _)| *place).collect();
        for place in before {
            self.copies.remove(&place);
        }
        self.lengths.remove(&file);
        self.begun.insert(file);
    }

    /// What shows that the log is not the one that the file is of.
    fn contradiction(&self, log: &LogDir) -> Option<&'static str> {
        let length_of = |file: &LogFile| {
            let segment = SegmentIndex(file.segment);
            let found = log.segments.binary_search_by_key(&segment, |(segment, _)| *segment);
            found.ok().map(|at| log.segments[at].1)
        };
        let is_noted =
            |file: LogFile| self.begun.contains(&file) || self.lengths.contains_key(&file);
        // A checkpoint that was made stands for segments that could not be removed yet.
        let mut own = log.segments.iter().filter(|(one, len)| *len > 0 && !log.is_covered(*one));
        if own.any(|(one, _)| !is_noted(LogFile::segment(*one))) {
            return Some("the log has a segment that is not noted");
        }
        if self.lengths.iter().any(|(file, len)| length_of(file) != Some(*len)) {
            return Some("a segment of the log is not as long as it was");
        }
        let is_known = |number: &SegmentIndex| self.begun.contains(&LogFile::checkpoint(*number));
        if !log.checkpoints.iter().all(|(number, _)| is_known(number)) {
            return Some("the log has a checkpoint that is not noted");
        }
        None
    }
}

/// Where the next entry may begin; the file's end if nowhere.
fn next_magic(file: &mut Window, mut offset: u64) -> io::Result<u64> {
    while offset < file.len {
        let bytes = file.read(offset, SEARCH_BYTES)?;
        if let Some(at) = bytes.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) {
            return Ok(offset + at as u64);
        }
        // It may lie over the end of what was looked through.
        offset += (bytes.len().max(MAGIC.len()) - MAGIC.len() + 1) as u64;
    }
    Ok(file.len)
}

#[cfg(test)]
mod tests;
