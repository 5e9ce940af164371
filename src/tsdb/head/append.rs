//! Batches into the head: check, log, apply, in one piece under the log's lock, so that the log
//! replays to exactly what was answered.
//!
//! Batches that wait at the same time are a *group*: each is checked and encoded in its turn, one
//! write takes all their records to the log, and then all are applied. So that each is judged by
//! what is stored, no two batches of a group have a series in common: one that meets a series of an
//! earlier one has the group written and applied first, and begins the next.
//!
//! The append rules are Prometheus' (v3), with three betterments: a sample that is already stored
//! is success even if newer ones exist; the bound follows the smaller of the newest sample and the
//! wall clock; what one request says twice is judged against what it said before.

mod early;
mod exemplars;
mod group;
mod judge;
mod records;
mod series;
mod unsynced;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

use parking_lot::RwLockWriteGuard;

use crate::model::key_table::Slot;
use crate::model::labels::SeriesKey;
use crate::model::{HeadSeriesRef, STALE_NAN_BITS, Timestamp};
use crate::tsdb::chunkenc::samples::ValueRef;
use crate::tsdb::head::Head;
use crate::tsdb::head::append::group::{
    AcceptedKind, AcceptedSample, BATCH_SHIFT, Group, Mark, RecordKind,
};
use crate::tsdb::head::append::judge::{LateSample, Repeats, Verdict, judge, judge_late};
use crate::tsdb::head::append::records::RefHistogram;
use crate::tsdb::head::append::unsynced::Unsynced;
use crate::tsdb::head::batch::{Batch, BatchSample, NEW_BIT, SampleKind};
use crate::tsdb::head::early::EarlyWrites;
use crate::tsdb::head::series::Cut;
use crate::tsdb::head::slots::FreeSlots;
use crate::tsdb::head::states::States;
use crate::tsdb::wal::names::Gist;
use crate::tsdb::wal::{Appended, LogPosition, SegmentIndex, Wal, WalError};

/// Why a sample was refused for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    OutOfOrder,
    OutOfBounds,
    TooFarInFuture,
    DuplicateForTimestamp,
    /// The head has as many series as it may, or has given its last ref.
    TooManySeries,
}

impl Refusal {
    pub const ALL: [Refusal; 5] = [
        Refusal::OutOfOrder,
        Refusal::OutOfBounds,
        Refusal::TooFarInFuture,
        Refusal::DuplicateForTimestamp,
        Refusal::TooManySeries,
    ];
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct AppendReport {
    /// Samples that are in the head now, those that were there before included.
    pub stored: u64,
    /// Those of them that are histograms.
    pub histograms_stored: u64,
    /// By [`Refusal`], in the order of [`Refusal::ALL`]: how many, and the key of one series.
    pub refused: [Option<(u64, SeriesKey)>; Refusal::ALL.len()],
    /// The log must be synced up to here for the samples to be durable.
    pub position: LogPosition,
    /// A segment was filled and is due for a sync under [`SyncPolicy::Segment`].
    ///
    /// [`SyncPolicy::Segment`]: crate::tsdb::wal::SyncPolicy::Segment
    pub closed_segment: bool,
    /// Which samples of the batch were refused, by their places in it, not in order.
    pub refused_samples: Vec<(u32, Refusal)>,
    /// Exemplars that are stored now, those that were there before included.
    pub exemplars_stored: u64,
    /// Those that are out of order, by their places in the batch, and the key of one series.
    pub refused_exemplars: Vec<u32>,
    pub refused_exemplar: Option<SeriesKey>,
}

/// What became of each batch of a group, in their order.
pub type AppendResults = Vec<Result<AppendReport, WalError>>;

impl AppendReport {
    /// Counts a sample that is in the head now.
    #[inline]
    fn count_stored(&mut self, kind: SampleKind) {
        self.stored += 1;
        self.histograms_stored += u64::from(kind == SampleKind::Histogram);
    }

    /// Counts the refusal of the batch's `sample`.
    fn refuse(&mut self, sample: usize, refusal: Refusal, key: impl FnOnce() -> SeriesKey) {
        // A batch has fewer samples than 2^32.
        self.refused_samples.push((sample as u32, refusal));
        match &mut self.refused[refusal as usize] {
            Some((count, _)) => *count += 1,
            empty => *empty = Some((1, key())),
        }
    }
}

/// A sample as the log writes it.
#[derive(Clone, Copy, Debug)]
pub struct RefSample {
    pub series_ref: HeadSeriesRef,
    pub t: Timestamp,
    /// Bits of the value.
    pub v: u64,
}

/// What only the holder of the log's lock touches.
pub struct LogSide {
    /// `None` once closed.
    wal: Option<Wal>,
    /// The next series' ref.
    next_ref: u64,
    pub(super) slots: FreeSlots,
    /// While series are being forgotten: those that were made or got their first sample meanwhile.
    pub(super) meanwhile: Option<Vec<Slot>>,
    /// Series were made for what could not be written then.
    pub(super) has_refused_series: bool,
    /// Number of the batch, for marks.
    request: u64,
    pub(super) unsynced: Unsynced,
    /// While the log is read that is written here.
    early: Option<Box<EarlyWrites>>,
    group: Group,
    scratch: Scratch,
}

/// What only the check of one batch uses.
#[derive(Default)]
struct Scratch {
    /// Slot of each new series of the batch; `None` for one that was not made.
    resolved: Vec<Option<Slot>>,
    /// Series that were forgotten since the look-up: their slots now, likewise.
    forgotten: HashMap<Slot, Option<Slot>>,
    /// The slots of the series that the batch made, rising, and their places among its new series.
    made: Vec<(Slot, usize)>,
    record_samples: Vec<RefSample>,
    record_histograms: Vec<RefHistogram>,
    /// How many samples and histograms go into the records before others: those of a series are to be
    /// found in their order.
    record_parts: Vec<(usize, usize)>,
}

impl Scratch {
    fn capacity_bytes(&self) -> usize {
        self.record_samples.capacity() * size_of::<RefSample>()
            + self.record_histograms.capacity() * size_of::<RefHistogram>()
            + self.record_parts.capacity() * size_of::<(usize, usize)>()
            + self.resolved.capacity() * size_of::<Option<Slot>>()
            + self.forgotten.capacity() * size_of::<(Slot, Option<Slot>)>()
            + self.made.capacity() * size_of::<(Slot, usize)>()
    }

    /// The slot of a sample's series.
    #[inline]
    fn slot_of(&self, series: u32) -> Option<Slot> {
        match series & NEW_BIT {
            0 if !self.forgotten.is_empty() => {
                self.forgotten.get(&series).copied().unwrap_or(Some(series))
            }
            _ => Batch::slot_of(series, &self.resolved),
        }
    }
}

/// A series of the batch is one of an earlier batch of the group, too.
struct SharesSeries;

/// The lowest time that a sample may have: the one below it marks a head without samples, in
/// Prometheus as well.
const LOWEST_TIME: Timestamp = Timestamp::MIN + 1;

const LOG_CLOSED: &str = "the log is closed";

/// Buffers larger than this are given back after a group: those of the largest groups of usual
/// requests are smaller.
const BUFFER_BYTES_KEPT: usize = 4 << 20;

thread_local! {
    /// Buffers of the groups. One set a thread, not one a head: most heads of many are idle.
    static BUFFERS: RefCell<(Group, Scratch)> = RefCell::default();
}

/// States are touched this many at a time before they are used, so that their lines come
/// together: 36 ns a series against 330 one after another.
const TOUCHED_TOGETHER: usize = 16;

/// Series that get their labels under one hold of the locks: some hundred microseconds.
const SERIES_PER_HOLD: usize = 256;

impl LogSide {
    pub fn new(wal: Wal, next_ref: u64) -> LogSide {
        LogSide {
            wal: Some(wal),
            next_ref,
            slots: FreeSlots::default(),
            meanwhile: None,
            has_refused_series: false,
            request: 0,
            unsynced: Unsynced::default(),
            early: None,
            group: Group::default(),
            scratch: Scratch::default(),
        }
    }
}

/// Bounds of one request, fixed when it takes its place in the log.
#[derive(Clone, Copy)]
struct Bounds {
    /// Older samples are out of bounds.
    mint: Timestamp,
    /// Newer samples are too far in the future.
    maxt: Timestamp,
}

impl Bounds {
    fn take(self, t: Timestamp) -> bool {
        self.mint <= t && t <= self.maxt
    }
}

impl Head {
    /// Stores what of the batch can be stored. On an error nothing of it is stored, and a retry
    /// may succeed.
    pub fn append(&self, batch: &Batch) -> Result<AppendReport, WalError> {
        let mut results = self.append_group(&[batch]);
        results.pop().expect("a result for each batch")
    }

    /// Stores what of each batch can be stored, in this order; a result for each. Blocks on the
    /// disk. On an error nothing of that batch is stored.
    pub fn append_group(&self, batches: &[&Batch]) -> AppendResults {
        let mut results = AppendResults::with_capacity(batches.len());
        let log = &mut *self.log.lock();
        if log.early.is_some() {
            return self.append_early(log, batches);
        }
        // Where in the results the group begins.
        let mut begun_at = 0;
        (log.group, log.scratch) = BUFFERS.take();
        log.begin_group();
        while let Some(batch) = batches.get(results.len()) {
            match self.stage(log, batch, results.len()) {
                Ok(result) => results.push(result),
                Err(SharesSeries) => {
                    self.commit(log, batches, &mut results[begun_at..]);
                    begun_at = results.len();
                    log.begin_group();
                }
            }
        }
        self.commit(log, batches, &mut results[begun_at..]);
        log.give_back_buffers();
        results
    }

    /// Checks a batch and adds what it stores to the group. `number` is its place among those that are
    /// appended together.
    fn stage(
        &self,
        log: &mut LogSide,
        batch: &Batch,
        number: usize,
    ) -> Result<Result<AppendReport, WalError>, SharesSeries> {
        let Some(wal) = &log.wal else {
            return Ok(Err(WalError::io(io::Error::other(LOG_CLOSED))));
        };
        // Repeats answer success only once what they repeat is durable.
        let mut report = AppendReport { position: wal.end(), ..AppendReport::default() };
        let Some(bounds) = self.bounds_of(batch, &log.group) else {
            return Ok(Ok(report));
        };
        let catalog = &*self.catalog.load();
        self.resolve_forgotten(log, catalog, batch, bounds);
        self.resolve_new_series(log, catalog, batch, bounds);
        let mark = log.group.mark();
        let checked = self.check(log, (batch, number), bounds, &mut report);
        let looked = checked.map(|late| self.look_up_late(late, batch, bounds, &mut report));
        if !matches!(looked, Ok(Ok(()))) {
            log.has_refused_series |= log.group.unlogged.len() > mark.unlogged;
            self.take_back(&mut log.group, &mark);
        }
        if let Err(unread) = looked? {
            return Ok(Err(unread));
        }
        self.count_refusals(batch, &report);
        self.check_exemplars(log, catalog, (batch, number), &mut report);
        let Group { accepted, exemplars, .. } = &log.group;
        if accepted.len() == mark.accepted && exemplars.len() == mark.exemplars {
            return Ok(Ok(report));
        }
        if let Err(too_long) = self.encode(log, catalog, batch, &mark) {
            log.has_refused_series |= log.group.unlogged.len() > mark.unlogged;
            self.take_back(&mut log.group, &mark);
            return Ok(Err(too_long));
        }
        Ok(Ok(report))
    }

    /// Writes the group to the log and applies it. When that fails, nothing of it is stored, and
    /// all its results become the error: even what was refused was judged by what failed.
    fn commit(
        &self,
        log: &mut LogSide,
        batches: &[&Batch],
        results: &mut [Result<AppendReport, WalError>],
    ) {
        if log.group.ends.is_empty() {
            return;
        }
        let logged = match &mut log.wal {
            Some(wal) => {
                let records: Vec<_> = log.group.records().collect();
                let newest = log.group.maxt;
                let highest_ref = log.next_ref.saturating_sub(1);
                wal.append_summed_up(&records, Some(Gist { newest, highest_ref }))
            }
            None => Err(WalError::io(io::Error::other(LOG_CLOSED))),
        };
        match logged {
            Ok(logged) => {
                for report in results.iter_mut().flatten() {
                    report.position = logged.end();
                }
                // One of them sees to the sync.
                if let Some(report) = results.iter_mut().flatten().next_back() {
                    report.closed_segment = logged.closed_segment();
                }
                log.note_unsynced(logged.end());
                self.apply(&log.group, batches, logged);
            }
            Err(err) => {
                log.has_refused_series |= !log.group.unlogged.is_empty();
                self.take_back(&mut log.group, &Mark::START);
                for result in results.iter_mut().filter(|result| result.is_ok()) {
                    *result = Err(err.clone());
                }
            }
        }
    }

    /// Makes the group what it was at `mark`.
    fn take_back(&self, group: &mut Group, mark: &Mark) {
        if group.unlogged.len() > mark.unlogged {
            let mut states = self.states.write();
            for slot in group.unlogged.drain(mark.unlogged..) {
                states.get_mut(slot).set_unlogged();
            }
        }
        group.accepted.truncate(mark.accepted);
        group.exemplars.truncate(mark.exemplars);
        group.records.truncate(mark.records);
        group.ends.truncate(mark.ends);
        (group.mint, group.maxt) = (mark.mint, mark.maxt);
    }

    fn count_refusals(&self, batch: &Batch, report: &AppendReport) {
        for (refusal, refused) in Refusal::ALL.into_iter().zip(&report.refused) {
            let Some((count, _)) = refused else { continue };
            let is_such = |(place, why): &&(u32, Refusal)| {
                let kind = batch.samples[*place as usize].kind;
                *why == refusal && kind == SampleKind::Histogram
            };
            let histograms = report.refused_samples.iter().filter(is_such).count() as u64;
            self.metrics.count_refusals(refusal, count - histograms, histograms);
        }
    }

    /// Pads and syncs the log; appends fail from here on.
    pub fn close_log(&self) -> Result<(), WalError> {
        // Not under the lock: closing waits for the disk.
        let wal = self.log.lock().wal.take();
        wal.map_or(Ok(()), Wal::close)
    }

    /// Older samples than this are refused now; `None` while there is none.
    pub fn oldest_taken(&self) -> Option<Timestamp> {
        let (_, newest) = self.time_range()?;
        let behind = newest.min(self.clock.now()).saturating_sub(self.options.block_range / 2);
        Some(behind.max(self.floor()))
    }

    /// As if the group were applied; `None` for a batch without samples and exemplars.
    fn bounds_of(&self, batch: &Batch, group: &Group) -> Option<Bounds> {
        if batch.samples.is_empty() && batch.exemplars.is_empty() {
            return None;
        }
        let now = self.clock.now();
        let maxt = match self.options.too_far_in_future.as_millis() {
            0 => Timestamp::MAX,
            window => now.saturating_add(Timestamp::try_from(window).unwrap_or(Timestamp::MAX)),
        };
        let lowest = self.floor().max(LOWEST_TIME);
        let newest = self.time_range().into_iter().chain(group.time_range());
        let head_max = match newest.map(|(_, maxt)| maxt).max() {
            Some(head_max) => head_max,
            // Of an empty head it is the first sample that the other bounds let in.
            None => {
                let mut times = batch.samples.iter().map(|sample| sample.t);
                times.find(|t| (lowest..=maxt).contains(t)).unwrap_or(now)
            }
        };
        let mint = head_max.min(now).saturating_sub(self.options.block_range / 2);
        Some(Bounds { mint: mint.max(lowest), maxt })
    }

    /// Judges each sample and adds the accepted ones to the group, and gives those for which a
    /// chunk on disk must be looked into. What it has added before it finds a shared series is for
    /// the caller to take back.
    fn check(
        &self,
        log: &mut LogSide,
        (batch, number): (&Batch, usize),
        bounds: Bounds,
        report: &mut AppendReport,
    ) -> Result<Vec<LateSample>, SharesSeries> {
        log.request += 1;
        let LogSide { request, group, scratch, meanwhile, .. } = log;
        let batches_before = *request - group.first_request;
        let Group { accepted, unlogged, mint, maxt, .. } = group;
        let mut record_samples = std::mem::take(&mut scratch.record_samples);
        let accepted_before = accepted.len();
        record_samples.clear();
        scratch.record_histograms.clear();
        scratch.record_parts.clear();
        let mut repeats = Repeats::default();
        let (mut refused, mut late) = (Vec::new(), Vec::new());
        let mut states = self.states.write();
        for (i, window) in batch.samples.chunks(TOUCHED_TOGETHER).enumerate() {
            let_readers_in(i, &mut states);
            let known = window.iter().map(|sample| sample.series);
            touch_states(&states, known.filter(|series| series & NEW_BIT == 0));
            for (j, sample) in window.iter().enumerate() {
                let place = i * TOUCHED_TOGETHER + j;
                let Some(slot) = scratch.slot_of(sample.series) else {
                    refuse_unmade(batch, place, bounds, report);
                    continue;
                };
                let state = states.get_mut(slot);
                let own = match state.mark(*request) {
                    0 => repeats.last_of(slot, &accepted[accepted_before..]),
                    batches if batches <= batches_before => {
                        scratch.record_samples = record_samples;
                        return Err(SharesSeries);
                    }
                    _ => None,
                };
                let last = own.map(|own| own.t).or_else(|| state.last().map(|(t, _)| t));
                let verdict = match judge(sample.t, last, bounds) {
                    Some(verdict) => verdict,
                    None => judge_late(batch, sample, last, own, bounds, &states, slot),
                };
                match verdict {
                    Verdict::Append => {
                        let kind = match sample.kind {
                            SampleKind::Float if sample.v != STALE_NAN_BITS => AcceptedKind::Float,
                            _ => accepted_kind(batch, sample, own, &states, slot),
                        };
                        if own.is_some_and(|own| own.kind.record() != kind.record()) {
                            let ends = (record_samples.len(), scratch.record_histograms.len());
                            scratch.record_parts.push(ends);
                        }
                        let state = states.get_mut(slot);
                        if state.is_unlogged() {
                            unlogged.push(slot);
                            // Its record is part of this append; were that to fail, the next
                            // append finds the series unlogged again: see `take_back`.
                            state.set_logged();
                        }
                        if last.is_none()
                            && let Some(meanwhile) = meanwhile
                        {
                            meanwhile.push(slot);
                        }
                        let series_ref = state.series_ref();
                        let &BatchSample { t, mut v, .. } = sample;
                        if kind == AcceptedKind::Float {
                            record_samples.push(RefSample { series_ref, t, v });
                        } else {
                            // A batch has fewer histograms than 2^32.
                            let place = v as u32;
                            let logged = RefHistogram { series_ref, t, kind, place };
                            scratch.record_histograms.push(logged);
                            if let AcceptedKind::Histogram(_) = kind {
                                v |= (number as u64) << BATCH_SHIFT;
                            }
                        }
                        accepted.push(AcceptedSample { t, v, slot, kind });
                        repeats.note(slot, accepted.len() - accepted_before - 1);
                        *mint = (*mint).min(t);
                        *maxt = (*maxt).max(t);
                        report.count_stored(sample.kind);
                    }
                    Verdict::Stored => report.count_stored(sample.kind),
                    Verdict::Refuse(refusal) => refused.push((place, refusal, slot)),
                    Verdict::LookInto(chunk) => late.push(LateSample { place, slot, chunk }),
                }
            }
        }
        scratch.record_samples = record_samples;
        // Labels come before states in the order of locks.
        drop(states);
        for (place, refusal, slot) in refused {
            report.refuse(place, refusal, || self.catalog.load().key_of(slot));
        }
        Ok(late)
    }

    /// Puts logged samples into their series. The proof that they are logged is the argument.
    fn apply(&self, group: &Group, batches: &[&Batch], _logged: Appended) {
        let block_range = self.options.block_range;
        let (mut chunks_created, mut histograms) = (0, 0);
        let mut states = self.states.write();
        for (i, window) in group.accepted.chunks(TOUCHED_TOGETHER).enumerate() {
            let_readers_in(i, &mut states);
            touch(&states, window.iter().map(|sample| sample.slot));
            for sample in window {
                let &AcceptedSample { t, v, slot, kind } = sample;
                let cut = match kind {
                    AcceptedKind::Float => states.append(slot, t, v, block_range),
                    AcceptedKind::Histogram(_) => {
                        histograms += 1;
                        let histogram = batches[(v >> BATCH_SHIFT) as usize].histogram(v as u32);
                        states.append_histogram(slot, t, histogram, block_range)
                    }
                    AcceptedKind::Stale(kind) => {
                        histograms += 1;
                        states.append_histogram(slot, t, &kind.stale(), block_range)
                    }
                };
                if cut == Cut::Began {
                    chunks_created += 1;
                }
            }
        }
        drop(states);
        self.apply_exemplars(group, batches);
        self.extend_time_range(group.mint, group.maxt);
        self.metrics.samples_appended.add(group.accepted.len() as u64 - histograms);
        self.metrics.histograms_appended.add(histograms);
        self.metrics.chunks_created.add(chunks_created);
        self.metrics.chunks.add(chunks_created as f64);
    }
}

/// What a sample is that is not a plain float. A float that is a staleness marker goes to what it ends.
#[cold]
fn accepted_kind(
    batch: &Batch,
    sample: &BatchSample,
    own: Option<AcceptedSample>,
    states: &States,
    slot: Slot,
) -> AcceptedKind {
    if let ValueRef::Histogram(histogram) = batch.value(sample) {
        return AcceptedKind::Histogram(RecordKind::of(histogram));
    }
    let before = match own {
        Some(own) => own.kind.histograms(),
        None => states.histogram_kind(slot),
    };
    before.map_or(AcceptedKind::Float, AcceptedKind::Stale)
}

fn refuse_unmade(batch: &Batch, place: usize, bounds: Bounds, report: &mut AppendReport) {
    let sample = &batch.samples[place];
    let refusal = if sample.t > bounds.maxt {
        Refusal::TooFarInFuture
    } else if sample.t < bounds.mint {
        Refusal::OutOfBounds
    } else {
        Refusal::TooManySeries
    };
    report.refuse(place, refusal, || batch.key_of(sample.series));
}

/// Between the windows of a large request, lets readers that wait have their turn.
#[inline]
fn let_readers_in(window: usize, states: &mut RwLockWriteGuard<'_, States>) {
    const WINDOWS_PER_HOLD: usize = 256;
    if window % WINDOWS_PER_HOLD == WINDOWS_PER_HOLD - 1 {
        RwLockWriteGuard::bump(states);
    }
}

/// Brings the lines of the slots' states.
#[inline]
fn touch_states(states: &States, slots: impl Iterator<Item = Slot>) {
    let sum = slots.fold(0u64, |sum, slot| sum.wrapping_add(states.get(slot).series_ref().0));
    std::hint::black_box(sum);
}

/// Brings those, and the lines of their chunks' ends.
#[inline]
fn touch(states: &States, slots: impl Iterator<Item = Slot>) {
    let sum = slots.fold(0u8, |sum, slot| sum.wrapping_add(states.get(slot).touch()));
    std::hint::black_box(sum);
}

impl LogSide {
    /// Writes are judged by this until the log is read.
    pub fn with_early(self, early: EarlyWrites) -> LogSide {
        LogSide { early: Some(Box::new(early)), ..self }
    }

    /// The log is read, and these are its series; whether they are those that early writes went by.
    /// All writes wait on.
    pub(super) fn end_early(&mut self, states: &States, next_ref: u64) -> bool {
        let Some(early) = &mut self.early else { return false };
        let mut refs = early.known_refs().zip(states.iter());
        if !refs.all(|(series_ref, state)| state.series_ref() == series_ref) {
            return false;
        }
        drop(refs);
        early.forget();
        self.next_ref = self.next_ref.max(next_ref);
        self.slots.begin_behind(states.len());
        true
    }

    pub(super) fn cut_segment(&mut self) -> Result<LogPosition, WalError> {
        match &mut self.wal {
            Some(wal) => wal.cut_segment(),
            None => Err(WalError::io(io::Error::other(LOG_CLOSED))),
        }
    }

    /// The last segment in which there is something.
    pub(super) fn last_segment(&self) -> SegmentIndex {
        let end = self.wal.as_ref().map_or(LogPosition::default(), Wal::end);
        match end.offset {
            0 => SegmentIndex(end.segment.0.saturating_sub(1)),
            _ => end.segment,
        }
    }

    /// The group before is applied or given up.
    fn begin_group(&mut self) {
        self.group.clear();
        self.group.first_request = self.request + 1;
    }

    /// Leaves the buffers to the next group of this thread, but for those that only a large one
    /// needs.
    fn give_back_buffers(&mut self) {
        let (group, scratch) = (std::mem::take(&mut self.group), std::mem::take(&mut self.scratch));
        if group.capacity_bytes() + scratch.capacity_bytes() <= BUFFER_BYTES_KEPT {
            BUFFERS.set((group, scratch));
        }
    }
}
