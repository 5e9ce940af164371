//! What is known of a log's series before the log is read: enough to tell for most samples that
//! they are later than all that their series have.
//!
//! A look at the log ([`wal::look`](crate::tsdb::wal::look)) gives its series, and the samples at
//! its end. A series that has one there is known by that. Of any other it is known that it has none
//! later than the newest in what was not looked at, or than its chunks in files.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::fingerprint::{Fingerprint, Fingerprinter};
use crate::model::key_table::Slot;
use crate::model::labels::KeyBuilder;
use crate::model::{HeadSeriesRef, STALE_NAN_BITS, Timestamp};
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::head::ref_map::RefMap;
use crate::tsdb::head::replay::mapped::MappedChunks;
use crate::tsdb::head::replay::sort::build_key;
use crate::tsdb::head::series::SERIES_MAX;
use crate::tsdb::wal::LogPosition;
use crate::tsdb::wal::look::Looked;
use crate::tsdb::wal::record::Record;

/// Series that no sample names and that wait, at most; beyond that all new ones do.
const BLOCKED_NEW_MAX: usize = 1 << 20;

/// What is known of a series.
#[derive(Clone, Copy)]
pub(super) struct EarlySeries {
    /// Bits 0 to 39 the ref, none if it is not known; [`HAS_LAST`], [`HAS_VALUE`], [`IS_BLOCKED`].
    word: u64,
    /// Time of its last sample if that is known, else one that its last is not later than.
    last_t: Timestamp,
    /// Bits of the value, if they are known.
    last_v: u64,
}

const REF_MASK: u64 = HeadSeriesRef::LIMIT - 1;
/// Its last sample is known.
const HAS_LAST: u64 = 1 << 40;
/// It is a float, whose value is known.
const HAS_VALUE: u64 = 1 << 41;
/// A batch waits that has samples of it, and later ones are not to come before that.
const IS_BLOCKED: u64 = 1 << 42;
/// Its last sample is a histogram.
const IS_HISTOGRAM: u64 = 1 << 43;
/// It has no sample.
const IS_EMPTY: u64 = 1 << 44;
/// Of which kind the histogram is.
const KIND_SHIFT: u32 = 45;
const KIND_MASK: u64 = 7 << KIND_SHIFT;

/// That of a histogram of the log, whatever it is.
const ANY_KIND: u8 = 7;

/// The value of a sample that is to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EarlyValue {
    /// Bits of a float.
    Float(u64),
    /// Its kind, by which it has a record of its own; below 8.
    Histogram(u8),
}

/// What a sample is, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Early {
    /// Later than all that its series has.
    IsLater,
    /// The very sample is the series' last.
    IsStored,
    /// Only the log tells.
    Waits,
}

impl EarlySeries {
    /// One of which nothing is known, and everything waits.
    const UNKNOWN: EarlySeries = EarlySeries { word: 0, last_t: Timestamp::MAX, last_v: 0 };

    /// One that has no sample later than `last_t`.
    fn of(series_ref: HeadSeriesRef, last_t: Timestamp) -> EarlySeries {
        EarlySeries { word: series_ref.0, last_t, last_v: 0 }
    }

    /// One that has no sample.
    pub(super) fn new(series_ref: HeadSeriesRef) -> EarlySeries {
        let series = EarlySeries::of(series_ref, Timestamp::MIN);
        EarlySeries { word: series.word | HAS_LAST | IS_EMPTY, ..series }
    }

    pub(super) fn with_last(self, t: Timestamp, value: EarlyValue) -> EarlySeries {
        let word = (self.word | HAS_LAST) & !(HAS_VALUE | IS_HISTOGRAM | IS_EMPTY | KIND_MASK);
        match value {
            EarlyValue::Float(v) => EarlySeries { word: word | HAS_VALUE, last_t: t, last_v: v },
            EarlyValue::Histogram(kind) => {
                let word = word | IS_HISTOGRAM | u64::from(kind) << KIND_SHIFT;
                EarlySeries { word, last_t: t, last_v: 0 }
            }
        }
    }

    pub(super) fn series_ref(self) -> HeadSeriesRef {
        HeadSeriesRef(self.word & REF_MASK)
    }

    fn is_blocked(self) -> bool {
        self.word & IS_BLOCKED != 0
    }

    /// What was not looked at has nothing newer than `newest_unread`.
    #[inline]
    pub(super) fn judge(self, t: Timestamp, value: EarlyValue, newest_unread: Timestamp) -> Early {
        // Samples of a series that are of several kinds have records of each, which are to stand in
        // the order of the samples; and a float that marks the end of histograms is logged as one
        // of them.
        let waits = match value {
            _ if self.is_blocked() || self.word & REF_MASK == 0 => true,
            EarlyValue::Histogram(kind) => {
                let before = ((self.word & KIND_MASK) >> KIND_SHIFT) as u8;
                let is_other = before != kind && before != ANY_KIND;
                self.word & HAS_VALUE != 0 || self.word & IS_HISTOGRAM != 0 && is_other
            }
            EarlyValue::Float(STALE_NAN_BITS) => self.word & (HAS_VALUE | IS_EMPTY) == 0,
            EarlyValue::Float(_) => self.word & IS_HISTOGRAM != 0,
        };
        if waits {
            return Early::Waits;
        }
        let has_last = self.word & HAS_LAST != 0;
        let last = if has_last { self.last_t } else { self.last_t.max(newest_unread) };
        let is_last = self.word & HAS_VALUE != 0
            && (t, value) == (self.last_t, EarlyValue::Float(self.last_v));
        match t > last {
            true => Early::IsLater,
            false if is_last => Early::IsStored,
            false => Early::Waits,
        }
    }
}

/// Gathers what a look at the log gives.
pub struct SeriesOfLog {
    catalog: Catalog,
    fingerprinter: Fingerprinter,
    refs: RefMap,
    series: Vec<EarlySeries>,
    key: KeyBuilder,
}

impl SeriesOfLog {
    pub fn new(fingerprinter: Fingerprinter) -> SeriesOfLog {
        SeriesOfLog {
            catalog: Catalog::new(fingerprinter.clone()),
            fingerprinter,
            refs: RefMap::default(),
            series: Vec::new(),
            key: KeyBuilder::default(),
        }
    }

    /// A record, in the order of the log.
    pub fn take(&mut self, record: Record<'_>) {
        match record {
            Record::Series(series) => {
                for (series_ref, labels) in series {
                    build_key(&mut self.key, labels);
                    self.add(series_ref);
                }
            }
            Record::Samples(samples) => {
                for sample in samples {
                    self.heed(sample.series_ref, sample.t, EarlyValue::Float(sample.value_bits));
                }
            }
            Record::Histograms(histograms) | Record::FloatHistograms(histograms) => {
                for sample in histograms {
                    let value = EarlyValue::Histogram(ANY_KIND);
                    self.heed(sample.series_ref, sample.t, value);
                }
            }
            _ => {}
        }
    }

    /// As a replay does, for which the first ref of a series is its own, and others feed it.
    fn add(&mut self, series_ref: HeadSeriesRef) {
        if !(1..HeadSeriesRef::LIMIT).contains(&series_ref.0)
            || self.refs.slot(series_ref).is_some()
        {
            return;
        }
        let fingerprint = self.fingerprinter.of(self.key.as_bytes());
        let mut known = self.catalog.known.adder();
        let slot = match known.find_canonical(fingerprint) {
            Some(slot) => slot,
            None if known.series_count() >= SERIES_MAX => return,
            None => {
                let slot = known.series_count() as Slot;
                known.add(fingerprint, slot);
                self.series.push(EarlySeries::of(series_ref, Timestamp::MIN));
                slot
            }
        };
        self.refs.insert(series_ref, slot);
    }

    #[inline]
    fn heed(&mut self, series_ref: HeadSeriesRef, t: Timestamp, value: EarlyValue) {
        let Some(slot) = self.refs.slot(series_ref) else { return };
        let series = &mut self.series[slot as usize];
        if t >= series.last_t {
            *series = series.with_last(t, value);
        }
    }

    /// What writes are judged by until the log is read, and what its series are called by then.
    /// `mapped` is what files have of them, and the log ends at `end`.
    pub fn finish(
        self,
        looked: &Looked,
        mapped: &MappedChunks,
        end: LogPosition,
    ) -> (Arc<Catalog>, EarlyWrites) {
        let SeriesOfLog { catalog, refs, mut series, .. } = self;
        for (series_ref, in_files) in mapped.last_times() {
            let Some(slot) = refs.slot(series_ref) else { continue };
            let series = &mut series[slot as usize];
            if in_files > series.last_t {
                *series = EarlySeries::of(series.series_ref(), in_files);
            }
        }
        let writes = EarlyWrites {
            known: series.len(),
            series,
            newest_unread: looked.newest_unread,
            newest: looked.newest.max(mapped.newest()),
            logged: end,
            is_over: false,
            blocked_new: HashSet::new(),
            blocks_all_new: false,
            undo: Vec::new(),
        };
        (Arc::new(catalog), writes)
    }
}

/// What writes are judged by until the log is read.
pub struct EarlyWrites {
    /// By slot.
    series: Vec<EarlySeries>,
    /// How many of these the log had when it was looked at.
    known: usize,
    newest_unread: Timestamp,
    newest: Timestamp,
    /// Up to here what was appended is written, and its series are in the catalog.
    pub(super) logged: LogPosition,
    /// The log is about to be read to its end: nothing is appended until it is.
    pub(super) is_over: bool,
    /// New series of batches that wait.
    blocked_new: HashSet<Fingerprint>,
    blocks_all_new: bool,
    /// What series were before the batch that is being judged.
    undo: Vec<(Slot, EarlySeries)>,
}

impl EarlyWrites {
    /// Time of the newest sample that the log or a file has; [`Timestamp::MIN`] if there is none.
    pub fn newest(&self) -> Timestamp {
        self.newest
    }

    /// The refs of the series that the log had when it was looked at, by slot.
    pub(super) fn known_refs(&self) -> impl Iterator<Item = HeadSeriesRef> {
        self.series.get(..self.known).unwrap_or_default().iter().map(|series| series.series_ref())
    }

    /// The ref of a series; `None` if it is not known.
    pub(super) fn ref_of(&self, slot: Slot) -> Option<HeadSeriesRef> {
        let series_ref = self.series.get(slot as usize)?.series_ref();
        (series_ref.0 != 0).then_some(series_ref)
    }

    /// Nothing is judged any more.
    pub(super) fn forget(&mut self) {
        (self.series, self.blocked_new, self.is_over) = (Vec::new(), HashSet::new(), true);
    }

    /// Judges a sample, and if it is to be appended goes on from there.
    #[inline]
    pub(super) fn take(
        &mut self,
        slot: Slot,
        t: Timestamp,
        value: EarlyValue,
    ) -> (Early, HeadSeriesRef) {
        let unknown = EarlySeries::UNKNOWN;
        let series = self.series.get(slot as usize).copied().unwrap_or(unknown);
        let early = series.judge(t, value, self.newest_unread);
        if early == Early::IsLater {
            self.undo.push((slot, series));
            self.series[slot as usize] = series.with_last(t, value);
        }
        (early, series.series_ref())
    }

    /// What was taken since is logged.
    pub(super) fn keep(&mut self) {
        self.undo.clear();
    }

    /// What was taken since is not.
    pub(super) fn take_back(&mut self) {
        while let Some((slot, before)) = self.undo.pop() {
            self.series[slot as usize] = before;
        }
    }

    pub(super) fn add(&mut self, slot: Slot, series: EarlySeries) {
        if self.series.len() <= slot as usize {
            self.series.resize(slot as usize + 1, EarlySeries::UNKNOWN);
        }
        self.series[slot as usize] = series;
    }

    /// A batch waits that has samples of the series.
    pub(super) fn block(&mut self, slot: Slot) {
        if let Some(series) = self.series.get_mut(slot as usize) {
            series.word |= IS_BLOCKED;
        }
    }

    /// The same of one that is new.
    pub(super) fn block_new(&mut self, series: Fingerprint) {
        if self.blocked_new.len() < BLOCKED_NEW_MAX {
            self.blocked_new.insert(series);
        } else {
            self.blocks_all_new = true;
        }
    }

    pub(super) fn is_blocked(&self, series: Fingerprint) -> bool {
        self.blocks_all_new || self.blocked_new.contains(&series)
    }
}

#[cfg(test)]
mod tests {
    use super::EarlyValue::{Float, Histogram};
    use super::*;

    #[test]
    fn a_sample_is_early_only_if_it_is_certainly_later() {
        use Early::{IsLater, IsStored, Waits};
        let series = EarlySeries::of(HeadSeriesRef(7), Timestamp::MIN);
        // Only what was not looked at may have samples of it.
        let judged = [99, 100, 101].map(|t| series.judge(t, Float(0), 100));
        assert_eq!(judged, [Waits, Waits, IsLater]);
        // And files, up to there.
        let in_files = EarlySeries::of(HeadSeriesRef(7), 200);
        assert_eq!([200, 201].map(|t| in_files.judge(t, Float(0), 100)), [Waits, IsLater]);
        // Its last one is known, though others' may be later.
        let last = series.with_last(50, Float(3));
        let judged = [(49, 3), (50, 3), (50, 4), (51, 3)];
        let judged = judged.map(|(t, v)| last.judge(t, Float(v), 100));
        assert_eq!(judged, [Waits, IsStored, Waits, IsLater]);
        let fresh = EarlySeries::new(HeadSeriesRef(8));
        assert_eq!([-1_000, 5].map(|t| fresh.judge(t, Float(0), 100)), [IsLater, IsLater]);
        assert_eq!(EarlySeries::UNKNOWN.judge(i64::MAX, Float(0), 0), Waits);
        let blocked = EarlySeries { word: last.word | IS_BLOCKED, ..last };
        assert_eq!(blocked.judge(51, Float(3), 0), Waits);
        assert_eq!(blocked.series_ref(), HeadSeriesRef(7));
    }

    #[test]
    fn a_sample_waits_where_it_hangs_on_what_came_before() {
        use Early::{IsLater, Waits};
        let series = EarlySeries::of(HeadSeriesRef(7), Timestamp::MIN);
        let kinds = [Float(0), Float(STALE_NAN_BITS), Histogram(1)];
        let of = |series: EarlySeries| kinds.map(|kind| series.judge(200, kind, 100));
        // It may be either of them.
        assert_eq!(of(series), [IsLater, Waits, IsLater]);
        assert_eq!(of(series.with_last(150, Float(1))), [IsLater, IsLater, Waits]);
        for kind in [1, ANY_KIND] {
            let histogram = series.with_last(150, Histogram(kind));
            assert_eq!(of(histogram), [Waits, Waits, IsLater]);
            // Its value is not known.
            assert_eq!(histogram.judge(150, Histogram(1), 100), Waits);
        }
        assert_eq!(of(series.with_last(150, Histogram(2))), [Waits; 3]);
        assert_eq!(of(EarlySeries::new(HeadSeriesRef(8))), [IsLater; 3]);
    }
}
