//! Refs that other files than the log know.
//!
//! A ref that is given twice makes another program show one series with another's samples: chunks in
//! `chunks_head` and records of the out-of-order log find their series by ref alone, and the log that
//! named them first may be gone. So all of it is looked through for the highest one, however damaged:
//! what a checksum does not vouch for is stepped over, up to the next chunk or record that is whole.
//! Nothing is changed but for `wal/series_state.json`, from which Prometheus 3.14 would go on counting
//! where it left off, and which is removed.
//!
//! ```text
//! chunks_head/000001   magic be32, version 1, three zeros, then chunks up to zeros or the end:
//!                      ref be64, mint be64, maxt be64, encoding, length uvarint, data,
//!                      CRC-32C be32 of all that
//! ```

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::disk::{Disk, lacks_descriptors, read_file};
use crate::model::HeadSeriesRef;
use crate::model::varint::read_varint;
use crate::tsdb::wal::reader::{Found, SegmentReader};
use crate::tsdb::wal::record::Record;
use crate::tsdb::wal::repair::LogDir;
use crate::tsdb::wal::segment_path;
use crate::tsdb::window::{WINDOW_BYTES, Window};

/// The file in the log's directory that says which ref Prometheus 3.14 gave last.
const SERIES_STATE: &str = "series_state.json";
const SERIES_STATE_BYTES_MAX: u64 = 64 << 10;

/// Bytes of a head chunk file before its first chunk.
const FILE_HEADER_BYTES: u64 = 8;
/// Ref, times and encoding.
const CHUNK_FIXED_BYTES: usize = 8 + 8 + 8 + 1;
const CHUNK_LENGTH_BYTES_MAX: usize = 10;
const CHECKSUM_BYTES: usize = 4;
/// Longer ones are taken for damage. Chunks are meant to have a kilobyte.
const CHUNK_DATA_BYTES_MAX: u64 = 1 << 20;
const _: () = assert!(
    WINDOW_BYTES as u64
        > 2 * (CHUNK_DATA_BYTES_MAX + (CHUNK_FIXED_BYTES + CHUNK_LENGTH_BYTES_MAX) as u64)
);

/// The highest ref that anything in a database's directory knows beside its log; 0 if there is none.
/// Damage costs what is damaged. An error is one that passes.
pub(super) fn highest_beside_log(disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
    let highest = [
        (dir.join("chunks_head"), of_head_chunks as fn(&dyn Disk, &Path) -> io::Result<u64>),
        (dir.join("wbl"), of_out_of_order_log),
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

fn of_head_chunks(disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
    let mut highest = 0;
    for entry in disk.list(dir)?.into_iter().filter(|entry| !entry.is_dir) {
        let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        if entry.name.to_str().is_some_and(is_number) {
            highest = highest.max(of_head_chunk_file(disk, &dir.join(entry.name))?);
        }
    }
    Ok(highest)
}

fn of_head_chunk_file(disk: &dyn Disk, path: &Path) -> io::Result<u64> {
    let mut file = Window::open(disk, path)?;
    let (mut highest, mut offset, mut skipped) = (0, FILE_HEADER_BYTES, 0u64);
    while offset < file.len {
        if let Some((series_ref, bytes)) = chunk_at(&mut file, offset)? {
            highest = highest.max(known(series_ref));
            offset += bytes;
            continue;
        }
        // A ref is never 0, so that a chunk begins at most seven zeros before another byte.
        let next = first_nonzero(&mut file, offset + 1)?.saturating_sub(7).max(offset + 1);
        skipped += u64::from(first_nonzero(&mut file, offset)? < file.len);
        offset = next;
    }
    if skipped > 0 {
        tracing::warn!(file = %path.display(), "damage among head chunks");
    }
    Ok(highest)
}

/// Ref and length of the whole chunk at `offset`, if there is one.
fn chunk_at(file: &mut Window, offset: u64) -> io::Result<Option<(u64, u64)>> {
    let head = file.read(offset, CHUNK_FIXED_BYTES + CHUNK_LENGTH_BYTES_MAX)?;
    let Some((series_ref, behind)) = head.split_first_chunk::<8>() else { return Ok(None) };
    let series_ref = u64::from_be_bytes(*series_ref);
    if !(1..HeadSeriesRef::LIMIT).contains(&series_ref) {
        return Ok(None);
    }
    let length = behind.get(CHUNK_FIXED_BYTES - 8..).unwrap_or_default();
    let Some((data_bytes, rest)) = read_varint(length) else { return Ok(None) };
    let length_bytes = length.len() - rest.len();
    if data_bytes > CHUNK_DATA_BYTES_MAX {
        return Ok(None);
    }
    // Below a megabyte and some bytes.
    let checked = CHUNK_FIXED_BYTES + length_bytes + data_bytes as usize;
    let chunk = file.read(offset, checked + CHECKSUM_BYTES)?;
    let Some((checked_bytes, checksum)) = chunk.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Ok(None);
    };
    let is_whole = checked_bytes.len() == checked
        && crc32c::crc32c(checked_bytes) == u32::from_be_bytes(*checksum);
    Ok(is_whole.then_some((series_ref, (checked + CHECKSUM_BYTES) as u64)))
}

/// Where the next byte is that is not 0; the file's end if there is none.
fn first_nonzero(file: &mut Window, mut offset: u64) -> io::Result<u64> {
    while offset < file.len {
        let bytes = file.read(offset, CHUNK_FIXED_BYTES)?;
        match bytes.iter().position(|byte| *byte != 0) {
            Some(at) => return Ok(offset + at as u64),
            None => offset += bytes.len().max(1) as u64,
        }
    }
    Ok(file.len)
}

#[cfg(test)]
mod tests;
