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
//! Every few MiB of log are summed up in a [stretch], once they are in the log with the copies of their
//! series records. Versions before that pass over these entries.
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
//!     4: a stretch of the log begins at this offset; its body has  end 8B, start of its last record
//!        8B, newest time 8B, highest ref 8B, CRC-32C of the last record as stored 4B, number of
//!        series records 4B
//! checkpoint: 0 for the log's own segments, else the checkpoint's number + 1; its segment is all
//!     ones where the checkpoint itself is meant
//! ```
//!
//! A damaged entry costs itself: the next one begins with the next `RNGE` whose checksum is right.

mod copies;
mod entry;
mod stretch;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use self::entry::{
    HEAD_BYTES, Head, Place, TAG_BEGUN, TAG_LENGTH, TAG_SERIES, TAG_STRETCH, next_magic,
};
use crate::disk::{Disk, DiskFile, lacks_descriptors};
use crate::metrics::Counter;
use crate::tsdb::refs;
use crate::tsdb::wal::reader::{Found, FoundRecord, SegmentReader};
use crate::tsdb::wal::record::Record;
use crate::tsdb::wal::repair::LogDir;
use crate::tsdb::wal::segment::{RECORD_BYTES_MAX, SegmentIndex};
use crate::tsdb::wal::{WalMetrics, segment_path};
use crate::tsdb::window::Window;

pub(in crate::tsdb::wal) use self::copies::Copies;
pub use self::entry::LogFile;
pub(in crate::tsdb::wal) use self::entry::push_series;
pub use self::stretch::Gist;
pub(in crate::tsdb::wal) use self::stretch::{Growing, Stretch};
pub(in crate::tsdb::wal) use self::writer::NamesOfCheckpoint;
pub use self::writer::NamesWriter;

/// The file, in the database's directory.
pub const NAMES_FILE: &str = "ringest.names";

/// The name of one that a checkpoint makes, until it is whole.
pub const UNFINISHED_NAMES_FILE: &str = "ringest.names.tmp";

const FILE_HEADER: &[u8; 16] = b"RINGEST NAMES\n\x00\x01";

/// Entries gathered before they are written.
const WRITE_BYTES: usize = 1 << 20;

/// A segment has at least so many stretches when it is full: by default they have 4 MiB.
const STRETCHES_PER_SEGMENT: u64 = 32;

/// Bytes from which on a stretch is noted.
pub(in crate::tsdb::wal) fn stretch_bytes(segment_bytes: u64) -> u64 {
    segment_bytes / STRETCHES_PER_SEGMENT
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
    stretches: BTreeMap<Place, Stretch>,
    /// Where the last whole entry ends.
    end: u64,
}

/// The file while the log is read.
pub struct Names {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// The log's writer has it, too, once it is [shared](Names::share).
    writer: Arc<Mutex<NamesWriter>>,
    is_shared: bool,
    noted: Noted,
    /// Entries to be written.
    fresh: Vec<u8>,
    /// Whether the log is not what the file says, so that nothing more is used.
    is_foreign: bool,
    /// Places whose copies were given: they are put back whatever is found out later.
    used: BTreeSet<Place>,
    restored: Counter,
    snappy: snap::raw::Encoder,
    stretch_bytes: u64,
    /// A stretch that is not noted and that is being read.
    growing: Option<(LogFile, Growing)>,
    /// Where the stretch ends that is being read, if it is noted.
    noted_to: (LogFile, u64),
}

impl Names {
    /// Reads the file of the database in `dir`, or makes one. Where there is neither, the log goes on
    /// without. Its segments have so many bytes, more or less.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: u64,
        metrics: &WalMetrics,
    ) -> Names {
        let path = dir.join(NAMES_FILE);
        let noted = Noted::read(&*disk, &path).and_then(|noted| {
            let log = LogDir::list(&*disk, &dir.join("wal"))?;
            match noted.contradiction(&log) {
                None => Ok(noted),
                Some(what) => Err(io::Error::new(io::ErrorKind::InvalidData, what)),
            }
        });
        let failed = metrics.names_failed.clone();
        let (disk_of_file, path_of_file) = (disk.clone(), path.clone());
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
            disk: disk_of_file,
            path: path_of_file,
            writer: Arc::new(Mutex::new(writer)),
            is_shared: false,
            noted,
            fresh: Vec::new(),
            is_foreign: false,
            used: BTreeSet::new(),
            restored: metrics.names_restored.clone(),
            snappy: snap::raw::Encoder::new(),
            stretch_bytes: stretch_bytes(segment_bytes),
            growing: None,
            noted_to: (LogFile::NONE, 0),
        }
    }

    /// Has the log written on while it is read, with what it is written on with.
    pub fn share(&mut self) -> Arc<Mutex<NamesWriter>> {
        self.is_shared = true;
        self.writer.clone()
    }

    /// Whether anything is noted of the log.
    pub fn has_stretches(&self) -> bool {
        !self.noted.stretches.is_empty()
    }

    /// What is noted of a file of the log, in order.
    pub(in crate::tsdb::wal) fn stretches(&self, file: LogFile) -> impl Iterator<Item = &Stretch> {
        let of_file = self.noted.stretches.range((file, 0)..=(file, u64::MAX));
        of_file.map(|(_, stretch)| stretch)
    }

    /// Whether there is a copy of each series record of a stretch.
    pub(in crate::tsdb::wal) fn has_copies(&self, file: LogFile, stretch: &Stretch) -> bool {
        let copies = self.noted.copies.range((file, stretch.start)..(file, stretch.end));
        copies.count() == stretch.series_records as usize
    }

    /// Looks at a record of the log, and keeps a copy if it is one of series and there is none.
    pub fn saw(&mut self, file: LogFile, found: &FoundRecord<'_>) {
        self.sum_up(file, found);
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

    /// Adds a record to the stretch that is being read, unless that is noted.
    fn sum_up(&mut self, file: LogFile, found: &FoundRecord<'_>) {
        let FoundRecord { bytes, stored, start, end, .. } = *found;
        if self.noted_to.0 == file && start < self.noted_to.1 {
            return;
        }
        if let Some(end) = self.noted.stretch_at((file, start)).map(|noted| noted.end) {
            self.end_stretch();
            self.noted_to = (file, end);
            return;
        }
        if self.growing.is_some_and(|(growing, _)| growing != file) {
            self.end_stretch();
        }
        let (_, growing) = self.growing.get_or_insert_with(|| (file, Growing::from(start)));
        growing.grow_by((start, end), bytes, stored);
        if growing.bytes() >= self.stretch_bytes {
            growing.note(file, &mut self.fresh);
        }
    }

    /// The stretch that is being read ends before damage, before one that is noted, or with its file.
    pub(in crate::tsdb::wal) fn end_stretch(&mut self) {
        if let Some((file, mut growing)) = self.growing.take() {
            growing.note(file, &mut self.fresh);
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
        let names = self.disk.open(&self.path);
        let records: Vec<_> = names.map_or_else(
            |_| Vec::new(),
            |names| copies.iter().filter_map(|copy| copy.read(&*names)).collect(),
        );
        let (copies, restored) = (copies.len(), records.len());
        let path = self.path.display();
        tracing::warn!(?file, copies, restored, %path, "damaged series records are taken from their copies");
        records
    }

    /// Counts records that were put back into the log.
    pub fn restored(&self, records: u64) {
        self.restored.add(records);
    }

    /// Says that a file of the log was written anew: its records are elsewhere in it.
    pub fn read_again(&mut self, file: LogFile, path: &Path) -> io::Result<()> {
        self.end_stretch();
        Head::note(TAG_BEGUN, file, 0).push(&mut self.fresh);
        self.noted.begin(file);
        self.noted_to = (LogFile::NONE, 0);
        let disk = self.disk.clone();
        let mut reader = SegmentReader::open(&*disk, path)?;
        while let Some(found) = reader.read_next()? {
            if let Found::Record(found) = found {
                self.saw(file, &found);
            }
        }
        Ok(())
    }

    /// Makes the file say all of the log, which is durable and not written any more, but for the
    /// segments from `end` on. What it is written on with, and the highest ref that only it knows.
    pub fn finish(
        mut self,
        wal_dir: &Path,
        end: Option<SegmentIndex>,
    ) -> io::Result<(Arc<Mutex<NamesWriter>>, u64)> {
        if self.is_foreign && self.is_shared {
            // What was written meanwhile went by it.
            self.writer.lock().give_up("it is not of this log");
            let what = "the log is not the one that the names of its series were noted of";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if self.is_foreign {
            self = self.make_anew(wal_dir)?;
        }
        self.end_stretch();
        let mut log = LogDir::list(&*self.disk, wal_dir)?;
        end.into_iter().for_each(|end| log.end_before(end));
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
        let Names { disk, path, writer, restored, snappy, stretch_bytes, .. } = self;
        let mut writer = writer.lock();
        writer.set_aside("it is not of this log");
        let mut names = Names {
            disk: disk.clone(),
            path,
            writer: Arc::new(Mutex::new(writer.begin_again())),
            is_shared: false,
            noted: Noted::default(),
            fresh: Vec::new(),
            is_foreign: false,
            used: BTreeSet::new(),
            restored,
            snappy,
            stretch_bytes,
            growing: None,
            noted_to: (LogFile::NONE, 0),
        };
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
        let names = self.disk.open(&self.path)?;
        let records = beside.filter_map(|copy| copy.read(&*names));
        let refs = records.filter_map(|bytes| Some(refs::highest_in(Record::parse(&bytes).ok()?)));
        Ok(refs.max().unwrap_or(0))
    }

    fn flush(&mut self) {
        if !self.fresh.is_empty() {
            // A stretch of which copies are missing then is known by their number.
            let _ = self.writer.lock().append(&self.fresh);
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
        self.unpack(&stored)
    }

    /// The same from what is stored.
    fn unpack(&self, stored: &[u8]) -> Option<Vec<u8>> {
        let record = match self.is_compressed {
            true => {
                let bytes = snap::raw::decompress_len(stored).ok()?;
                // Snappy's densest element gives 64 bytes for 3.
                if bytes > RECORD_BYTES_MAX || bytes / 22 > stored.len() {
                    return None;
                }
                let mut record = vec![0; bytes];
                let written = snap::raw::Decoder::new().decompress(stored, &mut record).ok()?;
                record.truncate(written);
                record
            }
            false => stored.to_vec(),
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
                noted.take(head, body, stored);
            }
            (noted.end, offset) = (end, end);
        }
        Ok(noted)
    }

    /// An entry whose body is at this place of the file. It is `stored`, unless it is longer.
    fn take(&mut self, head: Head, body: u64, stored: &[u8]) {
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
            TAG_STRETCH => {
                if let Some(stretch) = Stretch::parse(offset, stored) {
                    self.stretches.insert((file, offset), stretch);
                }
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
        let before = self.stretches.range((file, 0)..=(file, u64::MAX));
        let before: Vec<Place> = before.map(|(place, _)| *place).collect();
        for place in before {
            self.stretches.remove(&place);
        }
        self.lengths.remove(&file);
        self.begun.insert(file);
    }

    /// The stretch that has this place.
    fn stretch_at(&self, (file, at): Place) -> Option<&Stretch> {
        let (_, stretch) = self.stretches.range((file, 0)..=(file, at)).next_back()?;
        (at < stretch.end).then_some(stretch)
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

#[cfg(test)]
mod tests;
