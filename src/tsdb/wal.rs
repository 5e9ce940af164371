//! The write-ahead log of one database: whatever was acknowledged is in it.
//!
//! [`Wal`] is its one writer, kept under the owner's log mutex. An append is one `write` of all
//! its records, and all or nothing: one that fails is cut off the log before anything is written
//! behind it. Only a successful append gives an [`Appended`], which the in-memory commit asks for,
//! so memory never runs ahead of the log.
//!
//! Syncing to the medium is [`SyncHandle`]'s and happens outside the log mutex, and so does putting a
//! [`checkpoint`] in the place of old segments. [`repair::open_log`] reads a log back, and repairs it,
//! before it is written again.

// A length cut off by a cast is a record that cannot be read back.
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod checkpoint;
pub mod follow;
pub mod look;
pub mod metrics;
pub mod names;
mod pack;
pub mod reader;
pub mod record;
pub mod repair;
pub mod segment;
mod sync;
pub mod unsynced;

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::Disk;
use crate::metrics::Counter;
use crate::tsdb::wal::names::{Gist, Growing, LogFile, NamesWriter};
use crate::tsdb::wal::pack::Packer;
use crate::tsdb::wal::segment::{FrameCounts, Framer, PAGE_BYTES, RECORD_BYTES_MAX};

pub use checkpoint::{CheckpointError, CheckpointReport, Retained, Share, Tally};
pub use metrics::WalMetrics;
pub use segment::{LogPosition, SegmentIndex};
pub use sync::{SyncError, SyncHandle};

/// How records are compressed. Any log is read, whatever it was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Snappy,
    Zstd,
}

impl Compression {
    pub fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Snappy => "snappy",
            Compression::Zstd => "zstd",
        }
    }
}

/// When the log reaches the medium. `--tsdb.wal-sync`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// At least every second.
    Interval,
    /// Before the answer, many requests at a time.
    Always,
    /// When a segment is full, as Prometheus.
    Segment,
}

#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// Rounded up to whole pages.
    pub segment_bytes: u64,
    pub compression: Compression,
    pub sync: SyncPolicy,
}

/// Why an append did not happen. The log is as it was; a retry may succeed unless the record
/// itself is too long.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    #[error("no space left for the log: {0}")]
    DiskFull(#[source] Arc<io::Error>),
    #[error("writing the log: {0}")]
    Io(#[source] Arc<io::Error>),
    /// A sync failed, and what it should have made durable has not been written again yet.
    #[error("the log could not be synced")]
    SyncFailed,
    /// What the log has is not known yet, and the batch cannot be judged without. It waits.
    #[error("the log is still being read")]
    StillRead,
    #[error("record of {bytes} bytes is longer than the {max} allowed", max = RECORD_BYTES_MAX)]
    RecordTooLong { bytes: usize },
}

impl WalError {
    pub fn is_retryable(&self) -> bool {
        !matches!(self, WalError::RecordTooLong { .. })
    }

    pub(super) fn io(err: io::Error) -> WalError {
        WalError::Io(Arc::new(err))
    }

    fn of_sync(err: SyncError) -> WalError {
        match err {
            SyncError::Io(err) => WalError::of_write(err),
            SyncError::Failed | SyncError::TailLost => WalError::SyncFailed,
        }
    }

    fn of_write(err: io::Error) -> WalError {
        match err.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                WalError::DiskFull(Arc::new(err))
            }
            _ => WalError::io(err),
        }
    }
}

/// Proof that records are in the log, and where they end. Only [`Wal::append`] makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Appended {
    end: LogPosition,
    closed_segment: bool,
}

impl Appended {
    /// The place behind the records: once the log is synced to it, they are durable.
    pub fn end(&self) -> LogPosition {
        self.end
    }

    /// Whether a segment was filled, and is due for a sync under [`SyncPolicy::Segment`].
    pub fn closed_segment(&self) -> bool {
        self.closed_segment
    }
}

/// The log's writer.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WalOptions,
    metrics: WalMetrics,
    /// Made with the first record.
    bytes_saved: Option<Counter>,
    /// End of the log: what is written next goes here.
    end: LogPosition,
    /// Files that a failed append left and that could not be removed yet.
    ///
    /// Invariant: while `is_unclean`, bytes may lie behind `end`.
    leftover_segments: Vec<SegmentIndex>,
    is_unclean: bool,
    /// Whether what is appended takes the place of a lost end.
    replaces_lost_end: bool,
    /// What was appended to the segment since it was summed up beside the names of series.
    stretch: Growing,
    stretch_bytes: u64,
    sync: SyncHandle,
}

/// Framed bytes for one segment.
struct Part {
    segment: SegmentIndex,
    start: u64,
    /// In the framed bytes.
    bytes: Range<usize>,
    records: PartRecords,
}

/// The records that begin in a part.
#[derive(Default)]
struct PartRecords {
    /// Start of the last one, and the checksum of it as stored.
    last: Option<(u64, u32)>,
    series: u32,
}

/// Buffers of an append. One set a thread, not one a log: most logs of many are idle.
#[derive(Default)]
struct Scratch {
    framed: Vec<u8>,
    parts: Vec<Part>,
    packer: Packer,
    /// Second copies of the series records among them.
    names: Vec<u8>,
}

/// Buffers larger than this are given back after an append.
const SCRATCH_BYTES_KEPT: usize = 4 * 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Wal {
    /// Starts a new segment behind all segments and checkpoints in `dir`, which is made if it is
    /// not there. A log that holds anything goes through [`repair::open_log`] first.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
        metrics: WalMetrics,
    ) -> io::Result<Wal> {
        disk.create_dir_all(dir)?;
        let listing = repair::LogDir::list(&*disk, dir)?;
        let segment = listing.next_segment();
        let page_bytes = PAGE_BYTES as u64;
        let segment_bytes = options.segment_bytes.max(page_bytes).next_multiple_of(page_bytes);
        let options = WalOptions { segment_bytes, ..options };
        // What else has that name is none of ours, and nothing to be emptied.
        let file = disk.create_new(&segment_path(dir, segment))?;
        metrics.segment_current.set(segment.0 as f64);
        metrics.storage_size.set(listing.file_bytes as f64);
        let end = LogPosition { segment, offset: 0 };
        let sync = SyncHandle::new(disk.clone(), dir, end, file, options, metrics.clone());
        Ok(Wal {
            disk,
            dir: dir.to_owned(),
            options,
            metrics,
            bytes_saved: None,
            end,
            leftover_segments: Vec::new(),
            is_unclean: false,
            replaces_lost_end: false,
            stretch: Growing::from(0),
            stretch_bytes: names::stretch_bytes(options.segment_bytes),
            sync,
        })
    }

    /// Writes each series record a second time from now on. Nothing was appended before.
    pub fn keep_names(&mut self, names: Arc<Mutex<NamesWriter>>) {
        self.sync.keep_names(names);
    }

    /// Whether a record may be appended at all.
    pub fn check_record(record: &[u8]) -> Result<(), WalError> {
        match record.len() {
            bytes if bytes > RECORD_BYTES_MAX => Err(WalError::RecordTooLong { bytes }),
            _ => Ok(()),
        }
    }

    /// Appends all `records`, or none.
    pub fn append(&mut self, records: &[&[u8]]) -> Result<Appended, WalError> {
        self.append_summed_up(records, None)
    }

    /// The same for records of which it is known what they come to.
    pub fn append_summed_up(
        &mut self,
        records: &[&[u8]],
        gist: Option<Gist>,
    ) -> Result<Appended, WalError> {
        SCRATCH.with_borrow_mut(|scratch| {
            let appended = self.append_with(records, gist, scratch);
            if appended.is_err() {
                self.metrics.writes_failed.inc();
            }
            scratch.give_back();
            appended
        })
    }

    /// Ends the segment that is written to, unless it is empty, and begins the next one, so that a
    /// checkpoint may stand for it ([`SyncHandle::checkpoint`]). The place at which the log goes on.
    /// As an append, it syncs nothing, and is undone if it fails.
    pub fn cut_segment(&mut self) -> Result<LogPosition, WalError> {
        if self.end.offset == 0 {
            return Ok(self.end);
        }
        let cut = SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            let completed_page = self.pad(scratch);
            let segment = self.end.segment.next();
            let bytes = scratch.framed.len()..scratch.framed.len();
            let records = PartRecords::default();
            scratch.parts.push(Part { segment, start: 0, bytes, records });
            self.write(scratch, 0).map(|()| {
                self.sum_up(scratch, Some(Gist::NONE));
                self.write_names(scratch);
                completed_page
            })
        });
        match cut {
            Ok(completed_page) => self.metrics.completed_pages.add(u64::from(completed_page)),
            Err(_) => self.metrics.writes_failed.inc(),
        }
        cut.map(|_| self.end)
    }

    /// The place behind the last record.
    pub fn end(&self) -> LogPosition {
        self.end
    }

    pub fn sync_handle(&self) -> SyncHandle {
        self.sync.clone()
    }

    /// Up to where the log is durable.
    pub fn synced_position(&self) -> LogPosition {
        self.sync.synced_position()
    }

    /// If the log's unsynced end was lost ([`SyncError::TailLost`]), cuts it off, has `log_again`
    /// append what it held, and makes that durable; then appends are taken again. Positions given
    /// before count as durable from then on. On an error the end is still lost, and this is to be
    /// called again. Whether there was anything to do.
    pub fn replace_lost_end(
        &mut self,
        log_again: impl FnOnce(&mut Wal) -> Result<(), WalError>,
    ) -> Result<bool, WalError> {
        let sync = self.sync.clone();
        // Held to the end: a sync between would call durable what was not logged again yet.
        let _turn = sync.take_turn();
        if !sync.has_lost_tail() {
            return Ok(false);
        }
        self.replaces_lost_end = true;
        let replaced = self.replace_end(&sync, log_again);
        self.replaces_lost_end = false;
        if replaced.is_ok() {
            self.metrics.ends_replaced.inc();
        }
        replaced.map(|()| true)
    }

    fn replace_end(
        &mut self,
        sync: &SyncHandle,
        log_again: impl FnOnce(&mut Wal) -> Result<(), WalError>,
    ) -> Result<(), WalError> {
        self.clean(&mut sync.lock_to_log_again())?;
        let cut = sync.cut_lost_tail().map_err(WalError::of_sync)?;
        // Behind every position that was given.
        let segment = cut.next();
        let file =
            self.disk.create(&segment_path(&self.dir, segment)).map_err(WalError::of_write)?;
        sync.lock_to_log_again().begin_segment(segment, file);
        self.end = LogPosition { segment, offset: 0 };
        self.stretch = Growing::from(0);
        log_again(self)?;
        sync.end_lost_tail().map_err(WalError::of_sync)
    }

    /// Ends the log with a whole page and syncs it.
    pub fn close(mut self) -> Result<(), WalError> {
        // Makes good a sync that failed, too: nothing is written before that.
        self.sync.sync().map_err(|_| WalError::SyncFailed)?;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            self.pad(scratch);
            let end_offset = self.end.offset + scratch.framed.len() as u64;
            self.write(scratch, end_offset)?;
            self.sum_up(scratch, Some(Gist::NONE));
            self.stretch.note(LogFile::segment(self.end.segment), &mut scratch.names);
            self.write_names(scratch);
            Ok::<_, WalError>(())
        })?;
        self.sync.sync().map_err(|_| WalError::SyncFailed)?;
        if let Some(names) = self.sync.names() {
            names.lock().sync();
        }
        Ok(())
    }

    /// Has the current segment filled up to a whole page; whether there was room left in one.
    fn pad(&self, scratch: &mut Scratch) -> bool {
        let LogPosition { segment, offset: start } = self.end;
        let mut framer = Framer::new(self.options.segment_bytes, start);
        let has_room = framer.push_padding(&mut scratch.framed);
        let bytes = 0..scratch.framed.len();
        scratch.parts.push(Part { segment, start, bytes, records: PartRecords::default() });
        has_room
    }

    fn append_with(
        &mut self,
        records: &[&[u8]],
        gist: Option<Gist>,
        scratch: &mut Scratch,
    ) -> Result<Appended, WalError> {
        records.iter().try_for_each(|record| Wal::check_record(record))?;
        scratch.clear();
        let mut counts = FrameCounts::default();
        let end_offset = self.frame(records, scratch, &mut counts)?;
        let closed_segment = scratch.parts.len() > 1;
        if let Some(names) = self.sync.names() {
            // An idle log's last segment needs no note.
            let begun = scratch.parts.iter().filter(|part| part.start == 0);
            begun.for_each(|part| names.lock().begin_segment(part.segment));
        }
        self.write(scratch, end_offset)?;
        self.sum_up(scratch, gist);
        self.write_names(scratch);
        self.metrics.record_part_writes.add(counts.fragments);
        self.metrics.record_parts_bytes_written.add(counts.fragment_bytes);
        self.metrics.completed_pages.add(counts.pages_completed);
        self.metrics.page_flushes.add(counts.pages_completed + 1);
        Ok(Appended { end: self.end, closed_segment })
    }

    /// Adds what was written to its stretch. Those that are long enough, or whose segment is full, are
    /// noted behind the names of series that were written with it.
    fn sum_up(&mut self, scratch: &mut Scratch, gist: Option<Gist>) {
        let Scratch { parts, names, .. } = scratch;
        for (i, part) in parts.iter().enumerate() {
            let PartRecords { last, series } = part.records;
            if i > 0 {
                self.stretch = Growing::from(0);
            }
            // What follows is no record, but for those of the part.
            let gist = if last.is_some() { gist } else { Some(Gist::NONE) };
            self.stretch.grow(part.start + part.bytes.len() as u64, last, series, gist);
            if i + 1 < parts.len() || self.stretch.bytes() >= self.stretch_bytes {
                self.stretch.note(LogFile::segment(part.segment), names);
            }
        }
    }

    /// Writes what belongs beside the log, once that is written.
    fn write_names(&mut self, scratch: &Scratch) {
        if let Some(names) = self.sync.names()
            && !scratch.names.is_empty()
            && !names.lock().append(&scratch.names)
        {
            // It would have fewer copies than series records.
            self.stretch.give_up();
        }
    }

    /// Fills `scratch` with what is to be written, one part a segment; where the last one ends.
    fn frame(
        &mut self,
        records: &[&[u8]],
        scratch: &mut Scratch,
        counts: &mut FrameCounts,
    ) -> Result<u64, WalError> {
        let Scratch { framed, parts, packer, names } = scratch;
        let has_names = self.sync.names().is_some();
        let mut framer = Framer::new(self.options.segment_bytes, self.end.offset);
        let mut segment = self.end.segment;
        let mut part_start = self.end.offset;
        let mut part_begin = 0;
        let mut bytes_saved = 0;
        let mut part_records = PartRecords::default();
        for record in records {
            let (compression, payload) = packer.pack(self.options.compression, record)?;
            bytes_saved += record.len() - payload.len();
            if !framer.fits(payload.len()) {
                counts.pages_completed += u64::from(framer.push_padding(framed));
                let bytes = part_begin..framed.len();
                let records = std::mem::take(&mut part_records);
                parts.push(Part { segment, start: part_start, bytes, records });
                segment = segment.next();
                part_begin = framed.len();
                part_start = 0;
                framer = Framer::new(self.options.segment_bytes, 0);
            }
            if has_names {
                part_records.last = Some((framer.offset(), crc32c::crc32c(payload)));
                part_records.series += u32::from(record::is_series(record));
            }
            if has_names && record::is_series(record) {
                let place = (LogFile::segment(segment), framer.offset());
                let snappy = (compression == Compression::Snappy).then_some(payload);
                names::push_series(names, place, record, snappy);
            }
            framer.push_record(framed, payload, segment::flags_of(compression), counts);
        }
        let bytes = part_begin..framed.len();
        parts.push(Part { segment, start: part_start, bytes, records: part_records });
        if self.options.compression != Compression::None {
            let compression = self.options.compression;
            let metrics = &self.metrics;
            self.bytes_saved
                .get_or_insert_with(|| metrics.record_bytes_saved(compression))
                .add(bytes_saved as u64);
        }
        Ok(framer.offset())
    }

    /// Writes the parts, or cuts off what was written of them.
    fn write(&mut self, scratch: &Scratch, end_offset: u64) -> Result<(), WalError> {
        let sync = self.sync.clone();
        let mut log = match self.replaces_lost_end {
            true => sync.lock_to_log_again(),
            false => sync.lock_for_append().ok_or(WalError::SyncFailed)?,
        };
        debug_assert_eq!(log.end(), self.end, "the syncs' end is another one");
        debug_assert!(scratch.parts.first().is_none_or(|part| part.begin() == self.end));
        self.clean(&mut log)?;
        let mut created = Vec::new();
        for part in &scratch.parts {
            let bytes = &scratch.framed[part.bytes.clone()];
            let written = match part.segment == self.end.segment {
                true => log.current_file().write_all_at(bytes, part.start),
                false => {
                    self.disk.create(&segment_path(&self.dir, part.segment)).and_then(|file| {
                        created.push((part.segment, file.clone()));
                        file.write_all_at(bytes, part.start)
                    })
                }
            };
            if let Err(err) = written {
                // A file may have been made even if its handle was not given.
                self.leftover_segments.extend(created.iter().map(|(segment, _)| *segment));
                if part.segment != self.end.segment
                    && self.leftover_segments.last() != Some(&part.segment)
                {
                    self.leftover_segments.push(part.segment);
                }
                self.is_unclean = true;
                // If this fails, too, the next append tries again before it writes.
                let _ = self.clean(&mut log);
                return Err(WalError::of_write(err));
            }
        }
        let mut created = created.into_iter();
        for part in &scratch.parts {
            let bytes = &scratch.framed[part.bytes.clone()];
            if part.segment != self.end.segment
                && let Some((segment, file)) = created.next()
            {
                log.begin_segment(segment, file);
                self.end = LogPosition { segment, offset: 0 };
            }
            log.wrote(bytes);
            self.end.offset = part.start + bytes.len() as u64;
        }
        debug_assert_eq!(self.end.offset, end_offset);
        debug_assert_eq!(log.end(), self.end);
        self.metrics.segment_current.set(self.end.segment.0 as f64);
        self.metrics.storage_size.add(scratch.framed.len() as f64);
        Ok(())
    }

    /// Cuts what a failed append left behind the log's end.
    fn clean(&mut self, log: &mut sync::LogGuard<'_>) -> Result<(), WalError> {
        if !self.is_unclean {
            return Ok(());
        }
        // From the last one on, so that a crash between leaves no gap in the numbers.
        while let Some(segment) = self.leftover_segments.last() {
            assert!(*segment > self.end.segment, "segment {segment} holds records");
            match self.disk.remove_file(&segment_path(&self.dir, *segment)) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    return Err(WalError::of_write(err));
                }
                _ => {}
            }
            self.leftover_segments.pop();
        }
        log.current_file().truncate(self.end.offset).map_err(WalError::of_write)?;
        self.is_unclean = false;
        Ok(())
    }
}

impl Part {
    fn begin(&self) -> LogPosition {
        LogPosition { segment: self.segment, offset: self.start }
    }
}

impl Scratch {
    fn clear(&mut self) {
        self.framed.clear();
        self.parts.clear();
        self.names.clear();
    }

    fn give_back(&mut self) {
        self.clear();
        self.framed.shrink_to(SCRATCH_BYTES_KEPT);
        self.packer.give_back(SCRATCH_BYTES_KEPT);
        self.names.shrink_to(SCRATCH_BYTES_KEPT);
    }
}

/// The file of a segment in a log's directory.
pub fn segment_path(dir: &Path, segment: SegmentIndex) -> PathBuf {
    dir.join(segment.to_string())
}

#[cfg(test)]
mod tests;
