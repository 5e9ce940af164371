//! A checkpoint in the place of old segments.
//!
//! `checkpoint.N` holds what is still needed of the segments up to N and of the checkpoint before. Once
//! its name is on the medium these are removed, so that the log does not grow for ever (Prometheus
//! `tsdb/wlog/checkpoint.go`, and `truncateWAL` in `tsdb/head.go`). It is a directory with segments of
//! its own: series, samples, tombstones and exemplars in the order of the log, metadata at its end.
//!
//! It is made beside appends and syncs, in steps of which each leaves a log that opens whole:
//!
//! 1. The segments up to N are made durable ([`SyncHandle::settle`]). They are read from their files,
//!    and after a failed sync a file may not have what was appended. From then on only later segments
//!    are written again after a failed sync, so that no removed one comes back.
//! 2. What is kept goes to `checkpoint.N.tmp`, record by record, each file synced before the next; then
//!    the directory and the log's are synced. The latter holds the name of the segment that is written
//!    to: a checkpoint without a later segment would look as if it came from elsewhere.
//! 3. It gets its name, which is synced.
//! 4. The segments are removed, the lowest first, since a gap in the numbers keeps Prometheus from
//!    opening the log. Older checkpoints lose their name before their files.
//!
//! An error up to step 3 leaves all as it was, one in step 4 files that the next checkpoint removes;
//! nothing is removed before the name was synced without an error.
//!
//! **Damage** in what is read costs the records that it hits, as at an opening of the log: they are
//! not in the checkpoint. Each place is told and counted as there, and stands in the report; and the
//! file is not removed but renamed as a repair would rename it, so that nothing is gone that was there.
//! The head still has what these records said until the process ends.

mod removal;
mod sieve;
mod writer;

use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use tokio::time::Instant;

use self::sieve::Sieve;
use self::writer::CheckpointWriter;
use super::names::NamesOfCheckpoint;
use super::reader::Damage;
use super::repair::{DAMAGE_LISTED_MAX, LogDir};
use super::{SegmentIndex, SyncError, SyncHandle, WalError, WalMetrics, segment_path};
use crate::disk::Disk;
use crate::error::chain;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::error::{ReadError, WriteError};

/// What the name of a checkpoint begins with; its number follows, in at least eight digits.
pub const CHECKPOINT_PREFIX: &str = "checkpoint.";
/// What it ends with while the checkpoint is being made or deleted. Prometheus removes such as well.
pub const UNFINISHED_SUFFIX: &str = ".tmp";

/// What a checkpoint keeps. Records of types that this version does not know are all kept.
pub struct Retained<'k> {
    /// Samples and exemplars from this time on are kept, and tombstones that reach it.
    pub mint: Timestamp,
    /// Whether a sample is somewhere else, so that it is not kept; `None` if none is.
    pub is_elsewhere: Option<&'k dyn Fn(HeadSeriesRef, Timestamp) -> bool>,
    /// Whether the records of a series are kept, its tombstones and its newest metadata. It must say
    /// the same of a series as long as the checkpoint is made, and keep those of which the segments
    /// behind it may have samples.
    pub keeps: &'k dyn Fn(HeadSeriesRef) -> bool,
}

/// Which of the closed segments a checkpoint stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Prometheus' choice: two thirds of them but the last, which mostly hold samples that are older
    /// than a cut of the head. None if that is one segment.
    TwoThirds,
    All,
}

impl Share {
    /// The last segment of the share.
    pub fn last_of(self, closed: RangeInclusive<SegmentIndex>) -> Option<SegmentIndex> {
        let (SegmentIndex(first), SegmentIndex(last)) = closed.into_inner();
        let behind_first = match self {
            Share::All => last.checked_sub(first)?,
            Share::TwoThirds => last.checked_sub(first)?.checked_sub(1)? * 2 / 3,
        };
        (self == Share::All || behind_first > 0).then_some(SegmentIndex(first + behind_first))
    }
}

/// Why there is no new checkpoint. The log is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Nobody waits for it any more, see [`stop`](crate::model::stop).
    #[error("making the checkpoint was stopped")]
    Stopped,
    #[error("segment {segment} of the log is still written to")]
    Open { segment: SegmentIndex },
    /// The segments could not be made durable.
    #[error(transparent)]
    Sync(#[from] SyncError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("compressing a record")]
    Pack(#[source] WalError),
}

/// How many of a kind there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub kept: u64,
    pub dropped: u64,
}

/// What became of the log.
#[derive(Clone, Debug, Default)]
pub struct CheckpointReport {
    /// The checkpoint's number, if one was made: there may be one for these segments already.
    pub made: Option<SegmentIndex>,
    pub series: Tally,
    /// Histograms included.
    pub samples: Tally,
    pub tombstones: Tally,
    pub exemplars: Tally,
    pub metadata: Tally,
    /// Records of unknown types, all kept.
    pub unknown_records: u64,
    /// Bytes of the checkpoint's files.
    pub bytes: u64,
    /// Places that could not be read, the first [`DAMAGE_LISTED_MAX`] of them. What stood there is
    /// not in the checkpoint.
    pub damage: Vec<(PathBuf, Damage)>,
    pub damage_count: u64,
    /// New names of files and directories in which there is damage.
    pub set_aside: Vec<PathBuf>,
    pub segments_removed: u64,
    pub checkpoints_removed: u64,
    /// Bytes of what was removed.
    pub bytes_removed: u64,
    /// Numbers of segments with damage.
    damaged_segments: BTreeSet<SegmentIndex>,
    is_checkpoint_damaged: bool,
}

impl SyncHandle {
    /// Segments that are not written to any more and that no checkpoint stands for.
    pub fn closed_segments(&self) -> Result<Option<RangeInclusive<SegmentIndex>>, CheckpointError> {
        let current = self.current_segment();
        let log = LogDir::list(self.disk(), self.dir()).map_err(ReadError::io(self.dir()))?;
        let is_closed = |segment: SegmentIndex| segment < current && !log.is_covered(segment);
        let mut closed =
            log.segments.iter().map(|(segment, _)| *segment).filter(|one| is_closed(*one));
        let first = closed.next();
        Ok(first.map(|first| first..=closed.next_back().unwrap_or(first)))
    }

    /// Puts a checkpoint in the place of the segments up to `last`, and of the checkpoint before. What
    /// `retained` does not keep is gone then.
    ///
    /// Blocks on the disk for as long as it takes to read these segments, beside appends and syncs; one
    /// is made at a time. It ends early if the work of this thread is to stop
    /// ([`stop`](crate::model::stop)). The directory must stay this process' until it has returned.
    pub fn checkpoint(
        &self,
        last: SegmentIndex,
        retained: &Retained<'_>,
    ) -> Result<CheckpointReport, CheckpointError> {
        self.checkpoint_with_unread(last, retained, None)
    }

    /// The same, the segments from `unread` on being known to have nothing that is kept: they go
    /// without a look at what is in them.
    pub fn checkpoint_with_unread(
        &self,
        last: SegmentIndex,
        retained: &Retained<'_>,
        unread: Option<SegmentIndex>,
    ) -> Result<CheckpointReport, CheckpointError> {
        let _turn = self.take_checkpoint_turn();
        if last >= self.current_segment() {
            return Err(CheckpointError::Open { segment: last });
        }
        let (started, metrics) = (Instant::now(), self.metrics());
        metrics.checkpoints.inc();
        let dir = self.dir().display();
        let report = self.make_checkpoint(last, retained, unread).inspect_err(|err| {
            if !matches!(err, CheckpointError::Stopped) {
                metrics.checkpoints_failed.inc();
            }
            tracing::warn!(%dir, %last, err = chain(err), "the log got no checkpoint");
        });
        let mut report = report?;
        removal::remove_covered(self, last, &mut report);
        let took = started.elapsed();
        metrics.truncate_duration.observe(took.as_secs_f64());
        let CheckpointReport { bytes, segments_removed, bytes_removed, damage_count, .. } = report;
        tracing::info!(
            %dir, %last, bytes, segments_removed, bytes_removed, damage_count, ?took,
            "the log has a checkpoint"
        );
        Ok(report)
    }

    /// Makes the checkpoint, with its name on the medium; nothing if there is one that stands for all
    /// these segments.
    fn make_checkpoint(
        &self,
        last: SegmentIndex,
        retained: &Retained<'_>,
        unread: Option<SegmentIndex>,
    ) -> Result<CheckpointReport, CheckpointError> {
        self.settle(last)?;
        let (disk, dir) = (self.disk(), self.dir());
        let log = LogDir::list(disk, dir).map_err(ReadError::io(dir))?;
        let mut report = CheckpointReport::default();
        let sources = sources(disk, dir, &log, last)?;
        if sources.is_empty() {
            // Its name may be of an attempt that could not sync it.
            disk.sync_dir(dir).map_err(WriteError::io(dir))?;
            return Ok(report);
        }
        for name in &log.unfinished_checkpoints {
            remove_dir(disk, &dir.join(name))?;
        }
        let is_read = |source: &&Source| match source.origin {
            Origin::Checkpoint => true,
            Origin::Segment(segment) => unread.is_none_or(|unread| segment < unread),
        };
        let name = format!("{CHECKPOINT_PREFIX}{last}");
        let unfinished = dir.join(format!("{name}{UNFINISHED_SUFFIX}"));
        let sources = sources.iter().filter(is_read);
        let made = self
            .write_checkpoint(last, sources, &unfinished, retained, &mut report)
            .and_then(|names| name_checkpoint(disk, &unfinished, &dir.join(name)).map(|()| names));
        if made.is_err() {
            // What is left is removed by the next one, or at the next opening.
            let _ = disk.remove_dir_all(&unfinished);
        }
        if let (Some(of_checkpoint), Some(names)) = (made?, self.names()) {
            let made = of_checkpoint.take_place(names);
            names.lock().note_remaking(made);
        }
        report.made = Some(last);
        self.metrics().storage_size.add(report.bytes as f64);
        Ok(report)
    }

    /// Writes the checkpoint's files, and makes them durable.
    fn write_checkpoint<'s>(
        &self,
        number: SegmentIndex,
        sources: impl Iterator<Item = &'s Source>,
        unfinished: &Path,
        retained: &Retained<'_>,
        report: &mut CheckpointReport,
    ) -> Result<Option<NamesOfCheckpoint<'_>>, CheckpointError> {
        let (disk, dir) = (self.disk(), self.dir());
        let failures_before = self.file_system_failures();
        disk.create_dir_all(unfinished).map_err(WriteError::io(unfinished))?;
        let writer = CheckpointWriter::create(disk, unfinished, *self.options())?;
        let mut writer = writer.with_names(self.begin_names(number));
        let mut sieve = Sieve::new(retained, report, self.metrics());
        for source in sources {
            sieve.sift(disk, source, &mut writer)?;
        }
        sieve.write_metadata(disk, &mut writer)?;
        let (bytes, names) = writer.finish()?;
        report.bytes = bytes;
        disk.sync_dir(unfinished).map_err(WriteError::io(unfinished))?;
        disk.sync_dir(dir).map_err(WriteError::io(dir))?;
        // A failed sync of the file system may have been one of these files: their own proves nothing.
        match self.file_system_failures() == failures_before {
            true => Ok(names),
            false => Err(SyncError::Failed.into()),
        }
    }

    /// Begins the second copy of series names that goes with a checkpoint.
    fn begin_names(&self, number: SegmentIndex) -> Option<NamesOfCheckpoint<'_>> {
        let names = self.names()?;
        let path = {
            let names = names.lock();
            names.is_on().then(|| names.path().to_owned())?
        };
        let segment_bytes = self.options().segment_bytes;
        let begun = NamesOfCheckpoint::begin(self.disk(), &path, number, segment_bytes);
        begun.map_err(|err| names.lock().note_remaking(Err(err))).ok()
    }
}

/// A file of which a checkpoint is made.
struct Source {
    path: PathBuf,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Checkpoint,
    Segment(SegmentIndex),
}

/// The files of the newest checkpoint and the segments behind it up to `last`, in their order; none
/// if there are no such segments.
fn sources(
    disk: &dyn Disk,
    dir: &Path,
    log: &LogDir,
    last: SegmentIndex,
) -> Result<Vec<Source>, ReadError> {
    let is_behind = |segment: &SegmentIndex| *segment <= last && !log.is_covered(*segment);
    let segments: Vec<_> =
        log.segments.iter().map(|(segment, _)| *segment).filter(is_behind).collect();
    let Some(first) = segments.first() else { return Ok(Vec::new()) };
    let first = log.checkpoints.last().map_or(*first, |(number, _)| number.next());
    let missing = (last.0 + 1 - first.0).saturating_sub(segments.len() as u64);
    if missing > 0 {
        let dir = dir.display();
        tracing::error!(%dir, %first, %last, missing, "segments of the log are missing");
    }
    let mut sources = Vec::new();
    if let Some((_, name)) = log.checkpoints.last() {
        let dir = dir.join(name);
        let files = LogDir::list(disk, &dir).map_err(ReadError::io(&dir))?.segments;
        let source =
            |segment| Source { path: segment_path(&dir, segment), origin: Origin::Checkpoint };
        sources.extend(files.into_iter().map(|(segment, _)| source(segment)));
    }
    let source =
        |segment| Source { path: segment_path(dir, segment), origin: Origin::Segment(segment) };
    sources.extend(segments.into_iter().map(source));
    Ok(sources)
}

/// Gives a checkpoint that is on the medium its name there.
fn name_checkpoint(
    disk: &dyn Disk,
    unfinished: &Path,
    named: &Path,
) -> Result<(), CheckpointError> {
    disk.rename(unfinished, named).map_err(WriteError::io(named))?;
    let dir = named.parent().unwrap_or(Path::new(""));
    disk.sync_dir(dir).map_err(|err| {
        // Nobody knows whether the name is on the medium. If it stays here, too, it does no harm.
        let _ = disk.rename(named, unfinished);
        WriteError::io(dir)(err).into()
    })
}

/// Removes a directory, if it is there.
fn remove_dir(disk: &dyn Disk, dir: &Path) -> Result<(), WriteError> {
    match disk.remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(WriteError::io(dir)(err)),
        _ => Ok(()),
    }
}

impl CheckpointReport {
    fn note_damage(&mut self, source: &Source, damage: Damage, metrics: &WalMetrics) {
        match source.origin {
            Origin::Checkpoint => self.is_checkpoint_damaged = true,
            Origin::Segment(segment) => _ = self.damaged_segments.insert(segment),
        }
        if self.damage.len() < DAMAGE_LISTED_MAX {
            let Damage { kind, start, end, .. } = damage;
            let file = source.path.display();
            tracing::warn!(%file, ?kind, start, end, "damage in the log, lost to its checkpoint");
            self.damage.push((source.path.clone(), damage));
        }
        self.damage_count += 1;
        metrics.corruptions.inc();
    }
}

#[cfg(test)]
mod tests;
