//! The reading thread's half of a replay: records into steps, keys and fingerprints made, histograms
//! read.

use std::sync::mpsc;

use crate::model::fingerprint::{Fingerprint, Fingerprinter};
use crate::model::histogram::{AnyHistogram, Histogram};
use crate::model::labels::{KeyBuilder, TAG_FIELD_1, push_label};
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::exemplars::Exemplar;
use crate::tsdb::head::append::RefSample;
use crate::tsdb::refs;
use crate::tsdb::wal::record::{
    ExemplarsIter, HistogramSample, HistogramsIter, Logged, Record, RecordExemplar, RecordTombstone,
};

/// Samples handed over together.
const BATCH_SAMPLES: usize = 8192;
const BATCH_HISTOGRAM_BYTES: usize = 256 << 10;

pub(super) enum Step {
    Series(SeriesBatch),
    Samples(Vec<RefSample>),
    Histograms(Vec<LoggedHistogram>),
    Exemplars(Vec<(HeadSeriesRef, Exemplar)>),
    Tombstones(Vec<RecordTombstone>),
}

/// A histogram of the log.
pub(super) struct LoggedHistogram {
    pub(super) series_ref: HeadSeriesRef,
    pub(super) t: Timestamp,
    pub(super) histogram: Box<AnyHistogram>,
}

/// Canonical keys, one after another.
#[derive(Default)]
pub(super) struct SeriesBatch {
    pub(super) keys: Vec<u8>,
    pub(super) series: Vec<NamedSeries>,
}

pub(super) struct NamedSeries {
    pub(super) series_ref: HeadSeriesRef,
    pub(super) fingerprint: Fingerprint,
    /// Where its key ends in `keys`.
    pub(super) key_end: usize,
}

/// The reading thread's half: records to steps.
pub(super) struct Sorter {
    steps: mpsc::SyncSender<Step>,
    fingerprinter: Fingerprinter,
    key: KeyBuilder,
    samples: Vec<RefSample>,
    keeps_exemplars: bool,
    pub(super) found: Found,
}

#[derive(Default)]
pub(super) struct Found {
    pub(super) max_ref: u64,
    pub(super) histograms_unusable: u64,
}

impl Sorter {
    pub(super) fn new(
        steps: mpsc::SyncSender<Step>,
        fingerprinter: Fingerprinter,
        keeps_exemplars: bool,
    ) -> Sorter {
        Sorter {
            steps,
            fingerprinter,
            key: KeyBuilder::default(),
            samples: Vec::new(),
            keeps_exemplars,
            found: Found::default(),
        }
    }

    pub(super) fn take(&mut self, record: Record<'_>) {
        match record {
            Record::Series(series) => {
                self.flush();
                let mut batch = SeriesBatch::default();
                for (series_ref, labels) in series {
                    build_key(&mut self.key, labels);
                    let key = self.key.as_bytes();
                    batch.keys.extend_from_slice(key);
                    let (fingerprint, key_end) = (self.fingerprinter.of(key), batch.keys.len());
                    batch.series.push(NamedSeries { series_ref, fingerprint, key_end });
                }
                self.send(Step::Series(batch));
            }
            Record::Samples(samples) => {
                for sample in samples {
                    let series_ref = sample.series_ref;
                    self.samples.push(RefSample { series_ref, t: sample.t, v: sample.value_bits });
                }
                if self.samples.len() >= BATCH_SAMPLES {
                    self.flush();
                }
            }
            Record::Tombstones(tombstones) => {
                self.flush();
                self.send(Step::Tombstones(tombstones.collect()));
            }
            Record::Histograms(histograms) => {
                self.take_histograms(histograms, AnyHistogram::Integer);
            }
            Record::FloatHistograms(histograms) => {
                self.take_histograms(histograms, AnyHistogram::Float);
            }
            Record::Exemplars(exemplars) if self.keeps_exemplars => self.take_exemplars(exemplars),
            // Their refs are not given again, whether they are named or not.
            record @ (Record::Exemplars(_) | Record::MmapMarkers(_) | Record::Metadata(_)) => {
                self.found.max_ref = self.found.max_ref.max(refs::highest_in(record));
            }
            Record::Unknown(_) => {}
        }
    }

    fn take_histograms<N: Logged>(
        &mut self,
        samples: HistogramsIter<'_>,
        of: impl Fn(Histogram<N>) -> AnyHistogram,
    ) {
        // A series' samples stay in their order.
        self.flush();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for sample in samples {
            let mut histogram = Histogram::default();
            sample.histogram.read_into(&mut histogram);
            if histogram.is_too_long() || !histogram.has_buckets_of_spans() {
                self.found.histograms_unusable += 1;
                continue;
            }
            bytes += size_of::<AnyHistogram>() + histogram.heap_bytes();
            let HistogramSample { series_ref, t, .. } = sample;
            batch.push(LoggedHistogram { series_ref, t, histogram: Box::new(of(histogram)) });
            if bytes >= BATCH_HISTOGRAM_BYTES {
                bytes = 0;
                self.send(Step::Histograms(std::mem::take(&mut batch)));
            }
        }
        if !batch.is_empty() {
            self.send(Step::Histograms(batch));
        }
    }

    /// A record is no longer than a request that was taken.
    fn take_exemplars(&mut self, exemplars: ExemplarsIter<'_>) {
        self.flush();
        let mut batch = Vec::new();
        for RecordExemplar { series_ref, t, value_bits, labels } in exemplars {
            let mut bytes = Vec::new();
            labels.for_each(|(name, value)| push_label(&mut bytes, TAG_FIELD_1, name, value));
            batch.push((series_ref, Exemplar { t, v: value_bits, labels: bytes.into() }));
        }
        self.send(Step::Exemplars(batch));
    }

    pub(super) fn flush(&mut self) {
        if !self.samples.is_empty() {
            let fresh = Vec::with_capacity(BATCH_SAMPLES * 2);
            let samples = std::mem::replace(&mut self.samples, fresh);
            self.send(Step::Samples(samples));
        }
    }

    fn send(&self, step: Step) {
        // The receiver lives until every sender is gone; were it to panic, its panic is what the
        // caller sees.
        let _ = self.steps.send(step);
    }
}

/// The canonical key of labels. Those in a log are sorted and not empty, unless somebody else wrote
/// it.
pub(in crate::tsdb::head) fn build_key<'r>(
    key: &mut KeyBuilder,
    labels: impl Iterator<Item = (&'r [u8], &'r [u8])> + Clone,
) {
    key.clear();
    let is_canonical = labels
        .clone()
        .try_fold(&[][..], |before, (name, value)| {
            ((before < name || name.is_empty()) && !value.is_empty()).then_some(name)
        })
        .is_some();
    if is_canonical {
        labels.for_each(|(name, value)| key.push(name, value));
        return;
    }
    let mut sorted: Vec<_> = labels.filter(|(_, value)| !value.is_empty()).collect();
    sorted.sort_by(|a, b| a.0.cmp(b.0));
    for (name, value) in sorted {
        key.push(name, value);
    }
}
