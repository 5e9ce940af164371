//! Writing the file: behind what is in it, and anew with a checkpoint.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::entry::{HEAD_BYTES, Head, LogFile, TAG_BEGUN, next_magic, push_series};
use super::stretch::Growing;
use super::{FILE_HEADER, NAMES_FILE, UNFINISHED_NAMES_FILE, WRITE_BYTES, stretch_bytes};
use crate::disk::Disk;
use crate::error::chain;
use crate::metrics::Counter;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::file::FileWriter;
use crate::tsdb::wal::Compression;
use crate::tsdb::wal::record::is_series;
use crate::tsdb::wal::repair::{SET_ASIDE_PREFIX, free_name};
use crate::tsdb::wal::segment::SegmentIndex;
use crate::tsdb::window::Window;

/// The file, to be written behind what is in it.
pub struct NamesWriter {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) end: u64,
    pub(super) failed: Counter,
    pub(super) is_failing: bool,
    /// Whether there is no file that could be written.
    pub(super) is_off: bool,
}

impl NamesWriter {
    /// A file without entries, in place of any other. If it cannot be made, the log goes on without
    /// until its next opening.
    pub(super) fn begin(disk: Arc<dyn Disk>, path: PathBuf, failed: Counter) -> NamesWriter {
        let begun = disk.create(&path).and_then(|file| file.write_all_at(FILE_HEADER, 0));
        let (end, is_off) = (FILE_HEADER.len() as u64, begun.is_err());
        let mut writer = NamesWriter { disk, path, end, failed, is_failing: false, is_off };
        writer.note(begun);
        writer
    }

    /// A new file once the old one was set aside.
    pub(super) fn begin_again(&self) -> NamesWriter {
        let NamesWriter { disk, path, failed, is_off, .. } = self;
        let (disk, path, failed, is_off) = (disk.clone(), path.clone(), failed.clone(), *is_off);
        match is_off {
            true => NamesWriter { disk, path, end: 0, failed, is_failing: true, is_off },
            false => NamesWriter::begin(disk, path, failed),
        }
    }

    /// Renames the file, or goes on without.
    pub(super) fn set_aside(&mut self, why: &str) {
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

    /// Renames the file, and goes on without until the next opening.
    pub(super) fn give_up(&mut self, why: &str) {
        self.set_aside(why);
        self.is_off = true;
    }

    /// Says that a segment of the log is about to get its first record.
    pub(in crate::tsdb::wal) fn begin_segment(&mut self, segment: SegmentIndex) {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        Head::note(TAG_BEGUN, LogFile::segment(segment), 0).push(&mut bytes);
        self.append(&bytes);
    }

    pub(in crate::tsdb::wal) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file.
    pub(in crate::tsdb::wal) fn is_on(&self) -> bool {
        !self.is_off
    }

    /// Counts a file that could not be made behind a checkpoint.
    pub(in crate::tsdb::wal) fn note_remaking(&mut self, made: Result<(), WriteError>) {
        if let Err(err) = made {
            self.failed.inc();
            let (path, err) = (self.path.display(), chain(&err));
            tracing::warn!(%path, err, "the second copy of series names was not made anew");
        }
    }

    pub(in crate::tsdb::wal) fn sync(&mut self) {
        if self.is_off {
            return;
        }
        let synced = self.disk.open_write(&self.path).and_then(|file| file.sync());
        self.note(synced);
    }

    /// Appends whole entries; whether they are written. A failure costs them alone: they are written
    /// again from the log at its next opening.
    pub(in crate::tsdb::wal) fn append(&mut self, entries: &[u8]) -> bool {
        if self.is_off {
            return false;
        }
        // Opened each time: series are seldom new, and descriptors are few.
        let file = self.disk.open_write(&self.path);
        let written = file.and_then(|file| file.write_all_at(entries, self.end));
        if written.is_ok() {
            self.end += entries.len() as u64;
        }
        let is_written = written.is_ok();
        self.note(written);
        is_written
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
pub(in crate::tsdb::wal) struct NamesOfCheckpoint<'d> {
    disk: &'d dyn Disk,
    number: SegmentIndex,
    path: PathBuf,
    writer: FileWriter,
    entries: Vec<u8>,
    /// What is summed up next, of this segment.
    growing: (SegmentIndex, Growing),
    stretch_bytes: u64,
}

impl<'d> NamesOfCheckpoint<'d> {
    /// `names` is the file whose place it is to take. The checkpoint's segments have so many bytes.
    pub(in crate::tsdb::wal) fn begin(
        disk: &'d dyn Disk,
        names: &Path,
        number: SegmentIndex,
        segment_bytes: u64,
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
        let growing = (SegmentIndex(0), Growing::from(0));
        let stretch_bytes = stretch_bytes(segment_bytes);
        Ok(NamesOfCheckpoint { disk, number, path, writer, entries, growing, stretch_bytes })
    }

    /// A record that is in the checkpoint, and its place in this segment: what is said of it goes to
    /// the file, and a copy if it is one of series.
    pub(in crate::tsdb::wal) fn push(
        &mut self,
        (segment, place): (SegmentIndex, Range<u64>),
        record: &[u8],
        (stored, compression): (&[u8], Compression),
    ) -> Result<(), WriteError> {
        let file = LogFile::of_checkpoint(self.number, segment);
        if is_series(record) {
            let snappy = (compression == Compression::Snappy).then_some(stored);
            push_series(&mut self.entries, (file, place.start), record, snappy);
        }
        if self.growing.0 != segment {
            self.end_stretch();
            self.growing = (segment, Growing::from(place.start));
        }
        let (_, growing) = &mut self.growing;
        growing.grow_by((place.start, place.end), record, stored);
        if growing.bytes() >= self.stretch_bytes {
            growing.note(file, &mut self.entries);
        }
        match self.entries.len() >= WRITE_BYTES {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn end_stretch(&mut self) {
        let (segment, growing) = &mut self.growing;
        growing.note(LogFile::of_checkpoint(self.number, *segment), &mut self.entries);
    }

    /// Takes over what is noted of segments behind the checkpoint, which is on the medium, and the
    /// place of the file. Appends wait for the end of it alone.
    pub(in crate::tsdb::wal) fn take_place(
        mut self,
        names: &Mutex<NamesWriter>,
    ) -> Result<(), WriteError> {
        let (from, end) = {
            let names = names.lock();
            (names.path.clone(), names.end)
        };
        self.end_stretch();
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
