//! Refs that other files than the log know, beside those of [head chunks](crate::tsdb::head_chunks).
//!
//! A ref that is given twice makes another program show one series with another's samples: records of
//! the out-of-order log find their series by ref alone, and the log that named them first may be gone.
//! So all of it is looked through for the highest one, however damaged: what a checksum does not vouch
//! for is stepped over, up to the next record that is whole. Nothing is changed but for
//! `wal/series_state.json`, from which Prometheus 3.14 would go on counting where it left off, and
//! which is removed.

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::disk::{Disk, lacks_descriptors, read_file};
use crate::model::HeadSeriesRef;
use crate::tsdb::wal::reader::{Found, SegmentReader};
use crate::tsdb::wal::record::Record;
use crate::tsdb::wal::repair::LogDir;
use crate::tsdb::wal::segment_path;

/// The file in the log's directory that says which ref Prometheus 3.14 gave last.
const SERIES_STATE: &str = "series_state.json";
const SERIES_STATE_BYTES_MAX: u64 = 64 << 10;

/// The highest ref that these files in a database's directory know; 0 if there is none.
/// Damage costs what is damaged. An error is one that passes.
pub(super) fn highest_in_others(disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
    let highest = [
        (dir.join("wbl"), of_out_of_order_log as fn(&dyn Disk, &Path) -> io::Result<u64>),
        (dir.join("wal").join(SERIES_STATE), of_series_state),
    ]
    .map(|(path, highest)| match highest(disk, &path) {
        Ok(highest) => Ok(highest),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(err) if lacks_descriptors(&err) => Err(err),
        Err(err) => {
            let path = path.display();
            tracing::warn!(%path, %err, "the refs in a file cannot be read");
            Ok(0)
        }
    });
    highest.into_iter().try_fold(0, |before, highest| Ok(before.max(highest?)))
}

/// Takes away what would let another program give refs again that are given from now on.
pub(super) fn forget_series_state(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let wal_dir = dir.join("wal");
    match disk.remove_file(&wal_dir.join(SERIES_STATE)) {
        Ok(()) => disk.sync_dir(&wal_dir),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err),
    }
}

/// `series_ref` unless it is none that a head has.
fn known(series_ref: u64) -> u64 {
    if series_ref < HeadSeriesRef::LIMIT { series_ref } else { 0 }
}

fn of_series_state(disk: &dyn Disk, path: &Path) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct SeriesState {
        last_series_id: u64,
    }
    let bytes = read_file(disk, path, SERIES_STATE_BYTES_MAX)?;
    let state: SeriesState = serde_json::from_slice(&bytes)?;
    Ok(known(state.last_series_id))
}

fn of_out_of_order_log(disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
    let mut highest = 0;
    for (segment, _) in LogDir::list(disk, dir)?.segments {
        let mut reader = SegmentReader::open(disk, &segment_path(dir, segment))?;
        while let Some(found) = reader.read_next()? {
            if let Found::Record(found) = found {
                highest = highest.max(highest_in(found.record));
            }
        }
    }
    Ok(highest)
}

/// The highest ref in a record.
pub(super) fn highest_in(record: Record<'_>) -> u64 {
    fn highest(refs: impl Iterator<Item = HeadSeriesRef>) -> u64 {
        refs.map(|series_ref| known(series_ref.0)).max().unwrap_or(0)
    }
    match record {
        Record::Series(series) => highest(series.map(|(series_ref, _)| series_ref)),
        Record::Samples(samples) => highest(samples.map(|sample| sample.series_ref)),
        Record::Tombstones(tombstones) => highest(tombstones.map(|one| one.series_ref)),
        Record::Exemplars(exemplars) => highest(exemplars.map(|one| one.series_ref)),
        Record::MmapMarkers(markers) => highest(markers.map(|marker| marker.series_ref)),
        Record::Metadata(metadata) => highest(metadata.map(|one| one.series_ref)),
        Record::Histograms(histograms) | Record::FloatHistograms(histograms) => {
            highest(histograms.map(|one| one.series_ref))
        }
        Record::Unknown(_) => 0,
    }
}

#[cfg(test)]
pub(super) mod tests;
