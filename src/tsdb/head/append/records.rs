//! The records of a batch.

use crate::model::histogram::{AnyHistogram, Histogram};
use crate::model::key_table::Slot;
use crate::model::labels::LabelIter;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::head::Head;
use crate::tsdb::head::append::group::{AcceptedKind, Group, Mark};
use crate::tsdb::head::append::{LogSide, Scratch};
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::head::histograms::HistogramKind;
use crate::tsdb::wal::{Wal, WalError, record};

/// A histogram that is to be logged.
#[derive(Clone, Copy)]
pub(super) struct RefHistogram {
    pub(super) series_ref: HeadSeriesRef,
    pub(super) t: Timestamp,
    pub(super) kind: AcceptedKind,
    /// In the batch, unless it is a staleness marker.
    pub(super) place: u32,
}

/// Finds the keys of the series that a batch made.
struct MadeKeys<'b> {
    batch: &'b Batch,
    made: &'b [(Slot, usize)],
    /// Where the one after the last that was asked for is: they mostly come in order.
    next: usize,
}

impl<'b> MadeKeys<'b> {
    fn of(&mut self, slot: Slot) -> Option<&'b [u8]> {
        let is_next = self.made.get(self.next).is_some_and(|(made, _)| *made == slot);
        let at = match is_next {
            true => self.next,
            false => self.made.binary_search_by_key(&slot, |(made, _)| *made).ok()?,
        };
        self.next = at + 1;
        Some(self.batch.key(&self.batch.new_series[self.made[at].1]))
    }
}

impl Head {
    /// Adds the records of the batch that was just checked: its series that are not in the log yet,
    /// then its accepted samples.
    pub(super) fn encode(
        &self,
        log: &mut LogSide,
        catalog: &Catalog,
        batch: &Batch,
        mark: &Mark,
    ) -> Result<(), WalError> {
        let Group { unlogged, exemplars, records, ends, .. } = &mut log.group;
        let unlogged = &unlogged[mark.unlogged..];
        if !unlogged.is_empty() {
            let mut made = MadeKeys { batch, made: &log.scratch.made, next: 0 };
            let labels = catalog.labels();
            let states = self.states.read();
            record::begin_series(records);
            for slot in unlogged {
                let series_ref = states.get(*slot).series_ref();
                match made.of(*slot) {
                    Some(key) => {
                        let labels = LabelIter::of_canonical(key);
                        record::push_series(records, series_ref, labels);
                    }
                    // One that was made before, and has no record yet.
                    None => {
                        let labels = catalog.labels_in(&labels, *slot);
                        record::push_series(records, series_ref, labels);
                    }
                }
            }
            ends.push(records.len());
        }
        let Scratch { record_samples, record_histograms, record_parts, .. } = &log.scratch;
        let mut begun = (0, 0);
        for &end in record_parts.iter().chain([&(record_samples.len(), record_histograms.len())]) {
            let samples = &record_samples[begun.0..end.0];
            if !samples.is_empty() {
                let samples = samples.iter();
                record::encode_samples(
                    records,
                    samples.map(|sample| (sample.series_ref, sample.t, sample.v)),
                );
                ends.push(records.len());
            }
            encode_histograms(records, ends, batch, &record_histograms[begun.1..end.1]);
            begun = end;
        }
        let exemplars = &exemplars[mark.exemplars..];
        if !exemplars.is_empty() {
            let exemplars = exemplars.iter();
            let exemplars = exemplars.map(|one| (one.series_ref, one.place as usize));
            encode_exemplars(records, batch, exemplars);
            ends.push(records.len());
        }
        // One that is too long is its own batch's fault, not the group's.
        let mut start = mark.records;
        for end in &ends[mark.ends..] {
            Wal::check_record(&records[start..*end])?;
            start = *end;
        }
        Ok(())
    }
}

/// Appends the record of exemplars of a batch, given by their series and their places in it.
pub(super) fn encode_exemplars(
    records: &mut Vec<u8>,
    batch: &Batch,
    exemplars: impl Iterator<Item = (HeadSeriesRef, usize)>,
) {
    let logged = exemplars.map(|(series_ref, place)| {
        let sent = &batch.exemplars[place];
        let labels = LabelIter::of_canonical(batch.exemplar_labels(sent));
        (series_ref, sent.t, sent.v, labels)
    });
    record::encode_exemplars(records, logged);
}

/// Appends the records of histograms of a batch, and where each ends.
pub(super) fn encode_histograms(
    records: &mut Vec<u8>,
    ends: &mut Vec<usize>,
    batch: &Batch,
    histograms: &[RefHistogram],
) {
    if histograms.is_empty() {
        return;
    }
    let (stale, stale_of_floats) = (Histogram::stale(), Histogram::stale());
    let (mut integers, mut of_floats) = (Vec::new(), Vec::new());
    for &RefHistogram { series_ref, t, kind, place } in histograms {
        match kind {
            AcceptedKind::Stale(HistogramKind::Integer) => integers.push((series_ref, t, &stale)),
            AcceptedKind::Stale(HistogramKind::Float) => {
                of_floats.push((series_ref, t, &stale_of_floats));
            }
            AcceptedKind::Histogram(_) => match batch.histogram(place) {
                AnyHistogram::Integer(histogram) => integers.push((series_ref, t, histogram)),
                AnyHistogram::Float(histogram) => of_floats.push((series_ref, t, histogram)),
            },
            AcceptedKind::Float => {}
        }
    }
    let mut custom = Vec::new();
    let mut end = |records: &mut Vec<u8>, custom: &mut Vec<u8>| {
        for more in [&mut Vec::new(), custom] {
            records.append(more);
            if ends.last() != Some(&records.len()) {
                ends.push(records.len());
            }
        }
    };
    record::encode_histograms(records, &mut custom, integers);
    end(records, &mut custom);
    record::encode_histograms(records, &mut custom, of_floats);
    end(records, &mut custom);
}
