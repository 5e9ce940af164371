//! Removing what a checkpoint stands for.

use std::io;
use std::path::Path;

use super::{CHECKPOINT_PREFIX, CheckpointReport, UNFINISHED_SUFFIX, remove_dir};
use crate::disk::Disk;
use crate::error::chain;
use crate::tsdb::error::WriteError;
use crate::tsdb::wal::repair::{DAMAGED_PREFIX, DAMAGED_SUFFIX, LogDir, free_name, rewrite_path};
use crate::tsdb::wal::{SegmentIndex, SyncHandle, segment_path};

/// Removes the segments up to `last`, for which a checkpoint stands whose name is on the medium, and
/// the checkpoints before it. What cannot be removed does no harm, and is tried again behind the next
/// checkpoint: an error is told and counted.
pub(super) fn remove_covered(sync: &SyncHandle, last: SegmentIndex, report: &mut CheckpointReport) {
    let (disk, dir, metrics) = (sync.disk(), sync.dir(), sync.metrics());
    let bytes_before = report.bytes_removed;
    metrics.truncations.inc();
    if let Err(err) = remove_segments(disk, dir, last, report) {
        metrics.truncations_failed.inc();
        let dir = dir.display();
        tracing::warn!(%dir, err = chain(&err), "old segments of the log could not be removed");
    }
    metrics.checkpoint_deletions.inc();
    if let Err(err) = remove_checkpoints(disk, dir, last, report) {
        metrics.checkpoint_deletions_failed.inc();
        let dir = dir.display();
        tracing::warn!(%dir, err = chain(&err), "an old checkpoint could not be removed");
    }
    metrics.storage_size.add(-((report.bytes_removed - bytes_before) as f64));
}

/// From the lowest one on, and none behind one that stays.
fn remove_segments(
    disk: &dyn Disk,
    dir: &Path,
    last: SegmentIndex,
    report: &mut CheckpointReport,
) -> Result<(), WriteError> {
    let log = LogDir::list(disk, dir).map_err(WriteError::io(dir))?;
    // An opening would take one whose segment is gone for that.
    for segment in log.rewrites.iter().filter(|segment| **segment <= last) {
        remove_file(disk, &rewrite_path(dir, *segment))?;
    }
    for (segment, len) in log.segments.iter().filter(|(segment, _)| *segment <= last) {
        let path = segment_path(dir, *segment);
        if report.damaged_segments.contains(segment) {
            set_aside(disk, dir, &path, &format!("{segment}{DAMAGED_SUFFIX}"), report)?;
            continue;
        }
        remove_file(disk, &path)?;
        report.segments_removed += 1;
        report.bytes_removed += len;
    }
    disk.sync_dir(dir).map_err(WriteError::io(dir))
}

/// Those with a number below `last`. The name goes first: one of which files are gone must not be found
/// under it.
fn remove_checkpoints(
    disk: &dyn Disk,
    dir: &Path,
    last: SegmentIndex,
    report: &mut CheckpointReport,
) -> Result<(), WriteError> {
    let log = LogDir::list(disk, dir).map_err(WriteError::io(dir))?;
    let newest_before = log.checkpoints.iter().rfind(|(number, _)| *number < last);
    for (number, name) in log.checkpoints.iter().filter(|(number, _)| *number < last) {
        let path = dir.join(name);
        // Older ones were not read.
        let is_damaged =
            report.is_checkpoint_damaged && newest_before.is_some_and(|(one, _)| one == number);
        if is_damaged {
            set_aside(disk, dir, &path, &format!("{DAMAGED_PREFIX}{name}"), report)?;
            continue;
        }
        let files = disk.list(&path).map_err(WriteError::io(&path))?;
        let nameless = dir.join(format!("{CHECKPOINT_PREFIX}{number}{UNFINISHED_SUFFIX}"));
        remove_dir(disk, &nameless)?;
        disk.rename(&path, &nameless).map_err(WriteError::io(&path))?;
        report.checkpoints_removed += 1;
        report.bytes_removed += files.iter().map(|file| file.len).sum::<u64>();
        disk.sync_dir(dir).map_err(WriteError::io(dir))?;
        remove_dir(disk, &nameless)?;
    }
    Ok(())
}

fn set_aside(
    disk: &dyn Disk,
    dir: &Path,
    path: &Path,
    name: &str,
    report: &mut CheckpointReport,
) -> Result<(), WriteError> {
    let free = free_name(disk, dir, name).map_err(WriteError::io(dir))?;
    disk.rename(path, &free).map_err(WriteError::io(path))?;
    tracing::warn!(from = %path.display(), to = %free.display(), "damaged, set aside in the log");
    report.set_aside.push(free);
    Ok(())
}

fn remove_file(disk: &dyn Disk, path: &Path) -> Result<(), WriteError> {
    match disk.remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(WriteError::io(path)(err)),
        _ => Ok(()),
    }
}
