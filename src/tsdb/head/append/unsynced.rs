//! What was logged since the last good sync, and logging it again.
//!
//! After a failed sync the log's end may be lost, see [`Wal::replace_lost_end`], but the head still
//! has what it held: the series that were named there, and samples that are no older than its oldest.
//! More samples than those are logged again; a replay skips what it had before.

use std::collections::VecDeque;

use crate::model::histogram::AnyHistogram;
use crate::model::key_table::Slot;
use crate::model::labels::LabelIter;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::chunkenc::samples::{SampleIterator, Value};
use crate::tsdb::head::Head;
use crate::tsdb::head::append::LogSide;
use crate::tsdb::head::append::group::RecordKind;
use crate::tsdb::head::states::FoundChunk;
use crate::tsdb::wal::{LogPosition, Wal, WalError, record};

/// Groups noted apart; further ones are noted with the one before.
const NOTES_MAX: usize = 1024;
/// Series of which a record is made, and that are read under one hold of the locks.
const SERIES_TOGETHER: usize = 256;
/// Samples of a record, more or less.
const SAMPLES_TOGETHER: usize = 8192;
const HISTOGRAMS_TOGETHER: usize = 64;
const EXEMPLARS_TOGETHER: usize = 1024;

/// Groups that were logged since the last good sync, in order of the log.
#[derive(Default)]
pub(in crate::tsdb::head) struct Unsynced(VecDeque<Note>);

struct Note {
    end: LogPosition,
    /// Time of the oldest sample.
    mint: Timestamp,
    /// Series whose record was written.
    series: Vec<Slot>,
}

impl Unsynced {
    pub(super) fn note(
        &mut self,
        synced: LogPosition,
        end: LogPosition,
        mint: Timestamp,
        series: &[Slot],
    ) {
        while self.0.front().is_some_and(|note| note.end <= synced) {
            self.0.pop_front();
        }
        if self.0.len() < NOTES_MAX {
            self.0.push_back(Note { end, mint, series: series.to_vec() });
        } else if let Some(last) = self.0.back_mut() {
            (last.end, last.mint) = (end, last.mint.min(mint));
            last.series.extend_from_slice(series);
        }
    }
}

impl Unsynced {
    /// Series whose slots are not kept are gone, and with them all that their records are for.
    pub(in crate::tsdb::head) fn keep_series(&mut self, keeps: impl Fn(Slot) -> bool) {
        self.0.iter_mut().for_each(|note| note.series.retain(|slot| keeps(*slot)));
    }
}

impl LogSide {
    /// Notes that the group was logged.
    pub(super) fn note_unsynced(&mut self, end: LogPosition) {
        let Some(wal) = &self.wal else { return };
        let synced = wal.synced_position();
        self.unsynced.note(synced, end, self.group.mint, &self.group.unlogged);
    }
}

impl Head {
    /// See [`Db::replace_lost_end`](crate::tsdb::Db::replace_lost_end).
    pub fn replace_lost_end(&self) -> Result<bool, WalError> {
        let LogSide { wal, unsynced, early, .. } = &mut *self.log.lock();
        let Some(wal) = wal else { return Ok(false) };
        if early.is_some() {
            // The head does not have it yet.
            return Err(WalError::StillRead);
        }
        wal.replace_lost_end(|wal| {
            self.log_series_again(wal, unsynced)?;
            self.log_samples_again(wal, unsynced)?;
            self.log_exemplars_again(wal)
        })
    }

    /// Only those whose record may be lost: a second one makes Prometheus drop what it read of the
    /// series before.
    fn log_series_again(&self, wal: &mut Wal, unsynced: &Unsynced) -> Result<(), WalError> {
        let synced = wal.synced_position();
        let catalog = self.catalog.load();
        for note in unsynced.0.iter().filter(|note| note.end > synced) {
            for slots in note.series.chunks(SERIES_TOGETHER) {
                let mut bytes = Vec::new();
                record::begin_series(&mut bytes);
                let (labels, states) = (catalog.labels(), self.states.read());
                for slot in slots {
                    let series_ref = states.get(*slot).series_ref();
                    let labels = catalog.labels_in(&labels, *slot);
                    record::push_series(&mut bytes, series_ref, labels);
                }
                drop((labels, states));
                let _ = wal.append(&[&bytes])?;
            }
        }
        Ok(())
    }

    fn log_samples_again(&self, wal: &mut Wal, unsynced: &Unsynced) -> Result<(), WalError> {
        let synced = wal.synced_position();
        let lost = unsynced.0.iter().filter(|note| note.end > synced);
        let Some(mint) = lost.map(|note| note.mint).min() else { return Ok(()) };
        let count = self.states.read().len();
        let mut samples = Vec::new();
        for first in (0..count).step_by(SERIES_TOGETHER) {
            self.samples_since(first..count.min(first + SERIES_TOGETHER), mint, &mut samples);
            if samples.len() >= SAMPLES_TOGETHER || first + SERIES_TOGETHER >= count {
                // Those of a kind that follow one another, so that a replay finds a series' samples in
                // their order.
                for same in samples.chunk_by(|a, b| kind(a) == kind(b)) {
                    let together = match kind(&same[0]) {
                        RecordKind::Float => SAMPLES_TOGETHER,
                        _ => HISTOGRAMS_TOGETHER,
                    };
                    for part in same.chunks(together) {
                        log(wal, part)?;
                    }
                }
                samples.clear();
            }
        }
        Ok(())
    }

    /// All that are kept. A replay passes over those that it has.
    fn log_exemplars_again(&self, wal: &mut Wal) -> Result<(), WalError> {
        let mut first = 0;
        loop {
            let exemplars = self.exemplars.in_order_of_arrival(first, EXEMPLARS_TOGETHER);
            if exemplars.is_empty() {
                return Ok(());
            }
            first += exemplars.len();
            let logged = exemplars.iter().map(|(series_ref, one)| {
                (*series_ref, one.t, one.v, LabelIter::of_canonical(&one.labels))
            });
            let mut bytes = Vec::new();
            record::encode_exemplars(&mut bytes, logged);
            let _ = wal.append(&[&bytes])?;
        }
    }

    /// Samples of these slots from `mint` on, each series' in order. What is in files was durable in
    /// the log before it came there.
    fn samples_since(
        &self,
        slots: std::ops::Range<usize>,
        mint: Timestamp,
        samples: &mut Vec<Stored>,
    ) {
        let states = self.states.read();
        for slot in slots {
            // Slots are below 2^31.
            let slot = slot as Slot;
            let series_ref = states.get(slot).series_ref();
            states.chunks_in(slot, mint, Timestamp::MAX, |chunk| {
                let FoundChunk::Here(chunk) = chunk else { return };
                let stored = SampleIterator::new(chunk.encoding, &chunk.bytes).flatten();
                let stored = stored.filter(|(t, _)| *t >= mint);
                samples.extend(stored.map(|(t, value)| (series_ref, t, value)));
            });
        }
    }
}

/// A sample of a series.
type Stored = (HeadSeriesRef, Timestamp, Value);

fn kind((.., value): &Stored) -> RecordKind {
    match value {
        Value::Float(_) => RecordKind::Float,
        Value::Histogram(histogram) => RecordKind::of(histogram),
    }
}

/// Logs samples that go into one record.
fn log(wal: &mut Wal, samples: &[Stored]) -> Result<(), WalError> {
    let mut floats = Vec::new();
    let (mut integers, mut float_histograms) = (Vec::new(), Vec::new());
    for (series_ref, t, value) in samples {
        match value {
            Value::Float(v) => floats.push((*series_ref, *t, *v)),
            Value::Histogram(histogram) => match &**histogram {
                AnyHistogram::Integer(histogram) => integers.push((*series_ref, *t, histogram)),
                AnyHistogram::Float(histogram) => {
                    float_histograms.push((*series_ref, *t, histogram));
                }
            },
        }
    }
    let mut records = [const { Vec::new() }; 5];
    let [samples, exponential, custom, float_exponential, float_custom] = &mut records;
    if !floats.is_empty() {
        record::encode_samples(samples, floats);
    }
    record::encode_histograms(exponential, custom, integers);
    record::encode_histograms(float_exponential, float_custom, float_histograms);
    for record in records.iter().filter(|record| !record.is_empty()) {
        let _ = wal.append(&[record])?;
    }
    Ok(())
}
