//! What of the log goes into a checkpoint.

use std::collections::HashMap;

use super::{CheckpointError, CheckpointReport, CheckpointWriter, Retained, Source, Tally};
use crate::disk::Disk;
use crate::model::stop;
use crate::tsdb::error::ReadError;
use crate::tsdb::wal::WalMetrics;
use crate::tsdb::wal::reader::{Found, FoundRecord, SegmentReader};
use crate::tsdb::wal::record::Record;
use crate::tsdb::wal::record::filter::{Filtered, Item, filter};

/// The buffer is given back behind a record if it is larger than this.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// Passes on what is kept, a record at a time. A record of which nothing goes is passed on as it is
/// stored, and is not compressed again.
pub(super) struct Sieve<'s> {
    retained: &'s Retained<'s>,
    report: &'s mut CheckpointReport,
    metrics: &'s WalMetrics,
    /// A record without what goes of it.
    buffer: Vec<u8>,
    metadata: Metadata<'s>,
}

/// Which metadata is the newest of its series. Its text is read a second time, since all of it may not
/// fit into memory.
#[derive(Default)]
struct Metadata<'s> {
    /// Sources that have some.
    sources: Vec<&'s Source>,
    /// How many items were met.
    count: u64,
    /// The place of each kept series' newest one among them, by ref.
    newest: HashMap<u64, u64>,
}

impl<'s> Sieve<'s> {
    pub(super) fn new(
        retained: &'s Retained<'s>,
        report: &'s mut CheckpointReport,
        metrics: &'s WalMetrics,
    ) -> Sieve<'s> {
        Sieve { retained, report, metrics, buffer: Vec::new(), metadata: Metadata::default() }
    }

    /// Passes on what is kept of a file but for metadata.
    pub(super) fn sift(
        &mut self,
        disk: &dyn Disk,
        source: &'s Source,
        writer: &mut CheckpointWriter<'_>,
    ) -> Result<(), CheckpointError> {
        read(disk, source, |found| {
            match found {
                Found::Record(found) if matches!(found.record, Record::Metadata(_)) => {
                    self.note_metadata(&found, source);
                }
                Found::Record(found) => self.pass_on(&found, writer)?,
                Found::Damage(damage) => self.report.note_damage(source, damage, self.metrics),
            }
            Ok(())
        })
    }

    /// Passes on the newest metadata of each series.
    pub(super) fn write_metadata(
        self,
        disk: &dyn Disk,
        writer: &mut CheckpointWriter<'_>,
    ) -> Result<(), CheckpointError> {
        let Sieve { metadata: Metadata { sources, newest, .. }, mut buffer, .. } = self;
        let mut at = 0;
        for source in sources {
            read(disk, source, |found| {
                let Found::Record(found) = found else { return Ok(()) };
                if !matches!(found.record, Record::Metadata(_)) {
                    return Ok(());
                }
                let is_newest = |item| {
                    at += 1;
                    matches!(item, Item::Metadata(one) if newest.get(&one.0) == Some(&at))
                };
                filter_to(&found, is_newest, &mut buffer, writer).map(drop)
            })?;
        }
        Ok(())
    }

    fn note_metadata(&mut self, found: &FoundRecord<'_>, source: &'s Source) {
        let Record::Metadata(items) = found.record.clone() else { return };
        let Metadata { sources, count, newest } = &mut self.metadata;
        if !sources.last().is_some_and(|last| std::ptr::eq(*last, source)) {
            sources.push(source);
        }
        for item in items {
            *count += 1;
            if (self.retained.keeps)(item.series_ref) {
                newest.insert(item.series_ref.0, *count);
            }
        }
        let kept = newest.len() as u64;
        self.report.metadata = Tally { kept, dropped: *count - kept };
    }

    fn pass_on(
        &mut self,
        found: &FoundRecord<'_>,
        writer: &mut CheckpointWriter<'_>,
    ) -> Result<(), CheckpointError> {
        let Retained { mint, is_elsewhere, keeps } = *self.retained;
        let is_kept = |item: Item| match item {
            Item::Series(series_ref) | Item::Metadata(series_ref) => keeps(series_ref),
            Item::Sample(series_ref, t) => {
                t >= mint && !is_elsewhere.is_some_and(|is_elsewhere| is_elsewhere(series_ref, t))
            }
            Item::Exemplar(t) => t >= mint,
            Item::Tombstone(tombstone) => tombstone.maxt >= mint && keeps(tombstone.series_ref),
        };
        let Filtered { kept, dropped } = filter_to(found, is_kept, &mut self.buffer, writer)?;
        let report = &mut *self.report;
        let tally = match &found.record {
            Record::Series(_) => &mut report.series,
            Record::Samples(_) | Record::Histograms(_) | Record::FloatHistograms(_) => {
                &mut report.samples
            }
            Record::Tombstones(_) => &mut report.tombstones,
            Record::Exemplars(_) => &mut report.exemplars,
            Record::Metadata(_) => &mut report.metadata,
            Record::MmapMarkers(_) | Record::Unknown(_) => {
                report.unknown_records += 1;
                return Ok(());
            }
        };
        tally.kept += kept;
        tally.dropped += dropped;
        Ok(())
    }
}

/// Gives what a file holds to `on_found`, unless the work is to stop.
fn read(
    disk: &dyn Disk,
    source: &Source,
    mut on_found: impl FnMut(Found<'_>) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let path = &source.path;
    let mut reader = SegmentReader::open(disk, path).map_err(ReadError::io(path))?;
    while let Some(found) = reader.read_next().map_err(ReadError::io(path))? {
        if stop::is_asked() {
            return Err(CheckpointError::Stopped);
        }
        on_found(found)?;
    }
    Ok(())
}

/// Passes on what `keeps` says of a record.
fn filter_to(
    found: &FoundRecord<'_>,
    keeps: impl FnMut(Item) -> bool,
    buffer: &mut Vec<u8>,
    writer: &mut CheckpointWriter<'_>,
) -> Result<Filtered, CheckpointError> {
    buffer.clear();
    let filtered = filter(found.bytes, keeps, buffer);
    match filtered {
        Filtered { kept: 0, .. } => {}
        Filtered { dropped: 0, .. } => {
            writer.push_stored(found.bytes, found.stored, found.compression)?
        }
        _ => writer.push(buffer)?,
    }
    buffer.shrink_to(BUFFER_BYTES_KEPT);
    Ok(filtered)
}
