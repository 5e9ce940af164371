//! A batch into the head: check, log, apply, in one piece under the log's lock, so that the log
//! replays to exactly what was answered.
//!
//! The append rules are Prometheus' (v3), with three betterments: a sample that is already stored
//! is success even if newer ones exist; the bound follows the smaller of the newest sample and the
//! wall clock; what one request says twice is judged against what it said before.

use std::collections::HashMap;
use std::io;

use parking_lot::RwLockWriteGuard;

use crate::model::key_table::Slot;
use crate::model::labels::SeriesKey;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::head::Head;
use crate::tsdb::head::batch::{Batch, BatchSample, NEW_BIT};
use crate::tsdb::head::series::{Cut, Rules, SeriesState, States};
use crate::tsdb::wal::record;
use crate::tsdb::wal::{Appended, LogPosition, Wal, WalError};

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
    /// By [`Refusal`], in the order of [`Refusal::ALL`]: how many, and the key of one series.
    pub refused: [Option<(u64, SeriesKey)>; Refusal::ALL.len()],
    /// The log must be synced up to here for the samples to be durable.
    pub position: LogPosition,
    /// A segment was filled and is due for a sync under [`SyncPolicy::Segment`].
    ///
    /// [`SyncPolicy::Segment`]: crate::tsdb::wal::SyncPolicy::Segment
    pub closed_segment: bool,
}

impl AppendReport {
    fn refuse(&mut self, refusal: Refusal, key: impl FnOnce() -> SeriesKey) {
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
    /// Number of the request, for marks.
    request: u64,
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    /// Slot of each new series of the batch; `None` for one that was not made.
    resolved: Vec<Option<Slot>>,
    accepted: Vec<AcceptedSample>,
    record_samples: Vec<RefSample>,
    unlogged: Vec<Slot>,
    series_record: Vec<u8>,
    samples_record: Vec<u8>,
}

/// The lowest time that a sample may have: the one below it marks a head without samples, in
/// Prometheus as well.
const LOWEST_TIME: Timestamp = Timestamp::MIN + 1;

const LOG_CLOSED: &str = "the log is closed";

/// Scratch space larger than this is given back after the request.
const KEPT_SCRATCH_BYTES_MAX: usize = 256 << 10;

#[derive(Clone, Copy)]
struct AcceptedSample {
    t: Timestamp,
    v: u64,
    slot: Slot,
}

/// States are touched this many at a time before they are used, so that their lines come
/// together: 36 ns a series against 330 one after another.
const TOUCHED_TOGETHER: usize = 16;

impl LogSide {
    pub fn new(wal: Wal, next_ref: u64) -> LogSide {
        LogSide { wal: Some(wal), next_ref, request: 0, scratch: Scratch::default() }
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

impl Head {
    /// Stores what of the batch can be stored. On an error nothing of it is stored, and a retry
    /// may succeed.
    pub fn append(&self, batch: &Batch) -> Result<AppendReport, WalError> {
        let mut report = AppendReport::default();
        let log = &mut *self.log.lock();
        let Some(wal) = &log.wal else {
            return Err(WalError::Io(io::Error::other(LOG_CLOSED)));
        };
        // Repeats answer success only once what they repeat is durable.
        report.position = wal.end();
        log.request += 1;
        let Some(bounds) = self.bounds_of(batch) else {
            return Ok(report);
        };
        self.resolve_new_series(log, batch, bounds);
        self.check(log, batch, bounds, &mut report);
        if log.scratch.accepted.is_empty() && log.scratch.unlogged.is_empty() {
            return Ok(report);
        }
        let logged = self.write_records(log);
        if let Ok(logged) = &logged {
            report.position = logged.end();
            report.closed_segment = logged.closed_segment();
        }
        let applied = logged.map(|logged| self.apply(log, logged));
        log.scratch.shrink();
        applied.map(|()| report)
    }

    /// Pads and syncs the log; appends fail from here on.
    pub fn close_log(&self) -> Result<(), WalError> {
        // Not under the lock: closing waits for the disk.
        let wal = self.log.lock().wal.take();
        wal.map_or(Ok(()), Wal::close)
    }

    /// `None` for a batch without samples.
    fn bounds_of(&self, batch: &Batch) -> Option<Bounds> {
        if batch.samples.is_empty() {
            return None;
        }
        let now = self.clock.now();
        let maxt = match self.options.too_far_in_future.as_millis() {
            0 => Timestamp::MAX,
            window => now.saturating_add(Timestamp::try_from(window).unwrap_or(Timestamp::MAX)),
        };
        let lowest = self.min_valid_time.max(LOWEST_TIME);
        let head_max = match self.time_range() {
            Some((_, head_max)) => head_max,
            // Of an empty head it is the first sample that the other bounds let in.
            None => {
                let mut times = batch.samples.iter().map(|sample| sample.t);
                times.find(|t| (lowest..=maxt).contains(t)).unwrap_or(now)
            }
        };
        let mint = head_max.min(now).saturating_sub(self.options.block_range / 2);
        Some(Bounds { mint: mint.max(lowest), maxt })
    }

    /// Makes the series of the batch that do not exist and have a sample to hold.
    fn resolve_new_series(&self, log: &mut LogSide, batch: &Batch, bounds: Bounds) {
        let resolved = &mut log.scratch.resolved;
        resolved.clear();
        if batch.new_series.is_empty() && batch.aliases.is_empty() {
            return;
        }
        let mut wanted = vec![false; batch.new_series.len()];
        for sample in batch.samples.iter().filter(|sample| sample.series & NEW_BIT != 0) {
            wanted[(sample.series & !NEW_BIT) as usize] |=
                bounds.mint <= sample.t && sample.t <= bounds.maxt;
        }
        let mut made = Vec::new();
        let mut set = self.series.write();
        // Another program's log may leave few refs or none.
        let refs_left = HeadSeriesRef::LIMIT.saturating_sub(log.next_ref);
        let has_room = |series: usize, made: usize| {
            series < self.options.series_max && (made as u64) < refs_left
        };
        for (i, (series, wanted)) in batch.new_series.iter().zip(wanted).enumerate() {
            if i.is_multiple_of(TOUCHED_TOGETHER) {
                let window = batch.new_series[i..].iter().take(TOUCHED_TOGETHER);
                let sum = window.fold(0u8, |sum, new| sum.wrapping_add(set.touch(new.hash)));
                std::hint::black_box(sum);
            }
            let key = batch.key(series);
            // Another request may have made it since the look-up, or this one names it twice.
            let mut slot = set.find(series.hash, key, Rules::CANONICAL);
            if slot.is_none() && wanted && has_room(set.len(), made.len()) {
                let key = SeriesKey::from_canonical(key);
                let new = set.insert(series.hash, key.clone());
                made.push((new, key));
                slot = Some(new);
            }
            resolved.push(slot);
        }
        for alias in &batch.aliases {
            if let Some(slot) = Batch::slot_of(alias.series, resolved) {
                set.insert_alias(batch.raw(alias), slot, alias.rules);
            }
        }
        drop(set);
        let mut states = self.states.write();
        for _ in &made {
            states.push(SeriesState::new(HeadSeriesRef(log.next_ref)));
            log.next_ref += 1;
        }
        drop(states);
        self.postings.add_batch(&made);
        self.metrics.series_created.add(made.len() as u64);
        self.metrics.series.add(made.len() as f64);
    }

    /// Judges each sample; the accepted ones are left in the scratch space.
    fn check(&self, log: &mut LogSide, batch: &Batch, bounds: Bounds, report: &mut AppendReport) {
        let Scratch { resolved, accepted, record_samples, unlogged, .. } = &mut log.scratch;
        accepted.clear();
        record_samples.clear();
        unlogged.clear();
        let mut repeats = Repeats::default();
        let mut refused = Vec::new();
        let mut states = self.states.write();
        for (i, window) in batch.samples.chunks(TOUCHED_TOGETHER).enumerate() {
            let_readers_in(i, &mut states);
            let known = window.iter().map(|sample| sample.series);
            touch(&states, known.filter(|series| series & NEW_BIT == 0));
            for sample in window {
                let Some(slot) = Batch::slot_of(sample.series, resolved) else {
                    self.refuse_unmade(batch, sample, bounds, report);
                    continue;
                };
                let state = states.get_mut(slot);
                let last = match state.mark(log.request) {
                    false => state.last(),
                    true => repeats.last_of(slot, accepted).or_else(|| state.last()),
                };
                match judge(sample, last, bounds, state) {
                    Verdict::Append => {
                        if state.is_unlogged() {
                            unlogged.push(slot);
                            // Its record is part of this append; were that to fail, the next
                            // append finds the series unlogged again: see `write_records`.
                            state.set_logged();
                        }
                        let series_ref = state.series_ref();
                        record_samples.push(RefSample { series_ref, t: sample.t, v: sample.v });
                        accepted.push(AcceptedSample { t: sample.t, v: sample.v, slot });
                        repeats.note(slot, accepted.len() - 1);
                        report.stored += 1;
                    }
                    Verdict::Stored => report.stored += 1,
                    Verdict::Refuse(refusal) => {
                        refused.push((refusal, slot));
                        self.metrics.count_refusal(refusal);
                    }
                }
            }
        }
        // Keys come before states in the order of locks.
        drop(states);
        for (refusal, slot) in refused {
            report.refuse(refusal, || self.series.read().key(slot).clone());
        }
    }

    fn refuse_unmade(
        &self,
        batch: &Batch,
        sample: &BatchSample,
        bounds: Bounds,
        report: &mut AppendReport,
    ) {
        let refusal = if sample.t > bounds.maxt {
            Refusal::TooFarInFuture
        } else if sample.t < bounds.mint {
            Refusal::OutOfBounds
        } else {
            Refusal::TooManySeries
        };
        let series = &batch.new_series[(sample.series & !NEW_BIT) as usize];
        report.refuse(refusal, || SeriesKey::from_canonical(batch.key(series)));
        self.metrics.count_refusal(refusal);
    }

    /// Writes the series that are not in the log yet, then the accepted samples.
    fn write_records(&self, log: &mut LogSide) -> Result<Appended, WalError> {
        let scratch = &mut log.scratch;
        scratch.series_record.clear();
        scratch.samples_record.clear();
        if !scratch.unlogged.is_empty() {
            let set = self.series.read();
            let states = self.states.read();
            record::begin_series(&mut scratch.series_record);
            for slot in &scratch.unlogged {
                let series_ref = states.get(*slot).series_ref();
                let labels = set.key(*slot).labels();
                record::push_series(&mut scratch.series_record, series_ref, labels);
            }
        }
        let samples = scratch.record_samples.iter();
        record::encode_samples(
            &mut scratch.samples_record,
            samples.map(|sample| (sample.series_ref, sample.t, sample.v)),
        );
        let records: &[&[u8]] = match scratch.series_record.is_empty() {
            true => &[&scratch.samples_record],
            false => &[&scratch.series_record, &scratch.samples_record],
        };
        let logged = match &mut log.wal {
            Some(wal) => wal.append(records),
            None => Err(WalError::Io(io::Error::other(LOG_CLOSED))),
        };
        if logged.is_err() {
            let mut states = self.states.write();
            for slot in &scratch.unlogged {
                states.get_mut(*slot).set_unlogged();
            }
        }
        logged
    }

    /// Puts logged samples into their series. The proof that they are logged is the argument.
    fn apply(&self, log: &LogSide, _logged: Appended) {
        let accepted = &log.scratch.accepted;
        let block_range = self.options.block_range;
        let mut chunks_created = 0;
        let (mut mint, mut maxt) = (Timestamp::MAX, Timestamp::MIN);
        let mut states = self.states.write();
        for (i, window) in accepted.chunks(TOUCHED_TOGETHER).enumerate() {
            let_readers_in(i, &mut states);
            touch(&states, window.iter().map(|sample| sample.slot));
            for sample in window {
                let state = states.get_mut(sample.slot);
                if state.append(sample.t, sample.v, block_range) == Cut::Began {
                    chunks_created += 1;
                }
                mint = mint.min(sample.t);
                maxt = maxt.max(sample.t);
            }
        }
        drop(states);
        self.extend_time_range(mint, maxt);
        self.metrics.samples_appended.add(accepted.len() as u64);
        self.metrics.chunks_created.add(chunks_created);
        self.metrics.chunks.add(chunks_created as f64);
    }
}

/// Between the windows of a large request, lets readers that wait have their turn.
#[inline]
fn let_readers_in(window: usize, states: &mut RwLockWriteGuard<'_, States>) {
    const WINDOWS_PER_HOLD: usize = 256;
    if window % WINDOWS_PER_HOLD == WINDOWS_PER_HOLD - 1 {
        RwLockWriteGuard::bump(states);
    }
}

/// Brings the lines of the slots' states and of their chunks' ends.
#[inline]
fn touch(states: &States, slots: impl Iterator<Item = Slot>) {
    let sum = slots.fold(0u8, |sum, slot| sum.wrapping_add(states.get(slot).touch()));
    std::hint::black_box(sum);
}

enum Verdict {
    Append,
    /// The very sample is stored already.
    Stored,
    Refuse(Refusal),
}

/// `last` is the series' newest sample, those accepted earlier in the request included.
#[inline]
fn judge(
    sample: &BatchSample,
    last: Option<(Timestamp, u64)>,
    bounds: Bounds,
    state: &SeriesState,
) -> Verdict {
    let t = sample.t;
    if t > bounds.maxt {
        return Verdict::Refuse(Refusal::TooFarInFuture);
    }
    match last {
        None if t < bounds.mint => Verdict::Refuse(Refusal::OutOfBounds),
        None => Verdict::Append,
        Some((last_t, _)) if t > last_t && t >= bounds.mint => Verdict::Append,
        Some(last) => judge_late(sample, last, bounds, state),
    }
}

#[cold]
fn judge_late(
    sample: &BatchSample,
    (last_t, last_v): (Timestamp, u64),
    bounds: Bounds,
    state: &SeriesState,
) -> Verdict {
    let BatchSample { t, v, .. } = *sample;
    if t == last_t && v == last_v || t < last_t && state.value_at(t) == Some(v) {
        Verdict::Stored
    } else if t < bounds.mint {
        Verdict::Refuse(Refusal::OutOfBounds)
    } else if t == last_t {
        Verdict::Refuse(Refusal::DuplicateForTimestamp)
    } else {
        Verdict::Refuse(Refusal::OutOfOrder)
    }
}

/// Newest accepted sample of the series that a request names more than once.
#[derive(Default)]
struct Repeats {
    /// Built when a series first comes again: index of its newest accepted sample.
    newest: Option<HashMap<Slot, usize>>,
}

impl Repeats {
    fn last_of(&mut self, slot: Slot, accepted: &[AcceptedSample]) -> Option<(Timestamp, u64)> {
        if let Some(last) = accepted.last()
            && last.slot == slot
        {
            // Several samples of one series in a row, as in a catch-up, need no map.
            return Some((last.t, last.v));
        }
        let newest = self.newest.get_or_insert_with(|| {
            accepted.iter().enumerate().map(|(i, sample)| (sample.slot, i)).collect()
        });
        newest.get(&slot).map(|i| (accepted[*i].t, accepted[*i].v))
    }

    #[inline]
    fn note(&mut self, slot: Slot, index: usize) {
        if let Some(newest) = &mut self.newest {
            newest.insert(slot, index);
        }
    }
}

impl Scratch {
    fn shrink(&mut self) {
        let kept = self.samples_record.capacity()
            + self.series_record.capacity()
            + self.accepted.capacity() * size_of::<AcceptedSample>()
            + self.record_samples.capacity() * size_of::<RefSample>()
            + (self.resolved.capacity() + self.unlogged.capacity()) * size_of::<Option<Slot>>();
        if kept > KEPT_SCRATCH_BYTES_MAX {
            *self = Scratch::default();
        }
    }
}
