//! What one write takes to the log.

use crate::model::histogram::AnyHistogram;
use crate::model::key_table::Slot;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::head::histograms::HistogramKind;

/// What one write takes to the log: batches that were checked and are neither logged nor applied.
pub(super) struct Group {
    /// Number of its first batch, for marks.
    pub(super) first_request: u64,
    pub(super) accepted: Vec<AcceptedSample>,
    pub(super) exemplars: Vec<AcceptedExemplar>,
    /// Series whose record is among `records`.
    pub(super) unlogged: Vec<Slot>,
    /// Records one after another, and where each ends.
    pub(super) records: Vec<u8>,
    pub(super) ends: Vec<usize>,
    /// Times of the oldest and newest accepted sample; reversed while there is none.
    pub(super) mint: Timestamp,
    pub(super) maxt: Timestamp,
}

/// What the group was before a batch that is taken out again.
pub(super) struct Mark {
    pub(super) accepted: usize,
    pub(super) exemplars: usize,
    pub(super) unlogged: usize,
    pub(super) records: usize,
    pub(super) ends: usize,
    pub(super) mint: Timestamp,
    pub(super) maxt: Timestamp,
}

#[derive(Clone, Copy)]
pub(super) struct AcceptedSample {
    pub(super) t: Timestamp,
    /// Bits of a float; of a histogram its place in its batch, and above [`BATCH_SHIFT`] that of the
    /// batch among those that are appended together.
    pub(super) v: u64,
    pub(super) slot: Slot,
    pub(super) kind: AcceptedKind,
}

/// An exemplar that goes to the log.
#[derive(Clone, Copy)]
pub(super) struct AcceptedExemplar {
    pub(super) series_ref: HeadSeriesRef,
    pub(super) slot: Slot,
    /// The place of its batch among those that are appended together, and its own in that.
    pub(super) batch: usize,
    pub(super) place: u32,
}

const _: () = assert!(size_of::<AcceptedSample>() == 24, "the kind fills a gap");

/// Places in a batch have fewer bits.
pub(super) const BATCH_SHIFT: u32 = u32::BITS;

/// What an accepted sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptedKind {
    Float,
    Histogram(RecordKind),
    /// A float that is a staleness marker, behind histograms of this kind: it becomes one of them.
    Stale(HistogramKind),
}

impl AcceptedKind {
    /// The record into which it goes.
    pub(super) fn record(self) -> RecordKind {
        match self {
            AcceptedKind::Float => RecordKind::Float,
            AcceptedKind::Histogram(kind) => kind,
            AcceptedKind::Stale(HistogramKind::Integer) => RecordKind::Integer,
            AcceptedKind::Stale(HistogramKind::Float) => RecordKind::FloatHistogram,
        }
    }

    /// That of histograms.
    pub(super) fn histograms(self) -> Option<HistogramKind> {
        match self.record() {
            RecordKind::Float => None,
            RecordKind::Integer | RecordKind::CustomInteger => Some(HistogramKind::Integer),
            RecordKind::FloatHistogram | RecordKind::CustomFloatHistogram => {
                Some(HistogramKind::Float)
            }
        }
    }
}

/// The log has records of a type each for these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordKind {
    Float,
    Integer,
    CustomInteger,
    FloatHistogram,
    CustomFloatHistogram,
}

impl RecordKind {
    pub(super) fn of(histogram: &AnyHistogram) -> RecordKind {
        match histogram {
            AnyHistogram::Integer(one) if one.layout.is_custom() => RecordKind::CustomInteger,
            AnyHistogram::Integer(_) => RecordKind::Integer,
            AnyHistogram::Float(one) if one.layout.is_custom() => RecordKind::CustomFloatHistogram,
            AnyHistogram::Float(_) => RecordKind::FloatHistogram,
        }
    }
}

impl Default for Group {
    fn default() -> Group {
        Group {
            first_request: 0,
            accepted: Vec::new(),
            exemplars: Vec::new(),
            unlogged: Vec::new(),
            records: Vec::new(),
            ends: Vec::new(),
            mint: Mark::START.mint,
            maxt: Mark::START.maxt,
        }
    }
}

impl Group {
    pub(super) fn clear(&mut self) {
        self.accepted.clear();
        self.exemplars.clear();
        self.unlogged.clear();
        self.records.clear();
        self.ends.clear();
        (self.mint, self.maxt) = (Mark::START.mint, Mark::START.maxt);
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            accepted: self.accepted.len(),
            exemplars: self.exemplars.len(),
            unlogged: self.unlogged.len(),
            records: self.records.len(),
            ends: self.ends.len(),
            mint: self.mint,
            maxt: self.maxt,
        }
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &[u8]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.records[start..*end])
    }

    /// Times of the oldest and newest sample.
    pub(super) fn time_range(&self) -> Option<(Timestamp, Timestamp)> {
        (self.mint <= self.maxt).then_some((self.mint, self.maxt))
    }

    pub(super) fn capacity_bytes(&self) -> usize {
        self.accepted.capacity() * size_of::<AcceptedSample>()
            + self.exemplars.capacity() * size_of::<AcceptedExemplar>()
            + self.unlogged.capacity() * size_of::<Slot>()
            + self.records.capacity()
            + self.ends.capacity() * size_of::<usize>()
    }
}

impl Mark {
    /// Of a group without batches.
    pub(super) const START: Mark = Mark {
        accepted: 0,
        exemplars: 0,
        unlogged: 0,
        records: 0,
        ends: 0,
        mint: Timestamp::MAX,
        maxt: Timestamp::MIN,
    };
}
