//! Whether a sample is taken, is stored already, or is refused.

use std::collections::HashMap;

use crate::disk::lacks_descriptors;
use crate::model::key_table::Slot;
use crate::model::{STALE_NAN_BITS, Timestamp};
use crate::tsdb::chunkenc::samples::{Value, ValueRef, value_in};
use crate::tsdb::error::ReadError;
use crate::tsdb::head::Head;
use crate::tsdb::head::append::group::{AcceptedKind, AcceptedSample};
use crate::tsdb::head::append::{AppendReport, Bounds, Refusal};
use crate::tsdb::head::batch::{Batch, BatchSample};
use crate::tsdb::head::states::{FoundChunk, HeadChunk, States};
use crate::tsdb::wal::WalError;

pub(super) enum Verdict {
    Append,
    /// The very sample is stored already.
    Stored,
    Refuse(Refusal),
    /// It would be in this chunk, which is on disk.
    LookInto(FoundChunk),
}

/// A sample whose verdict is in a chunk on disk.
pub(super) struct LateSample {
    /// Its place in the batch.
    pub(super) place: usize,
    pub(super) slot: Slot,
    pub(super) chunk: FoundChunk,
}

/// `last` is the time of the series' newest sample, those accepted earlier in the request included.
/// `None` if the sample is no later, or below the bound.
#[inline]
pub(super) fn judge(t: Timestamp, last: Option<Timestamp>, bounds: Bounds) -> Option<Verdict> {
    if t > bounds.maxt {
        return Some(Verdict::Refuse(Refusal::TooFarInFuture));
    }
    match last {
        None if t < bounds.mint => Some(Verdict::Refuse(Refusal::OutOfBounds)),
        None => Some(Verdict::Append),
        Some(last) if t > last && t >= bounds.mint => Some(Verdict::Append),
        Some(_) => None,
    }
}

/// `own` is the series' newest sample if it came earlier in the batch.
#[cold]
pub(super) fn judge_late(
    batch: &Batch,
    sample: &BatchSample,
    last: Option<Timestamp>,
    own: Option<AcceptedSample>,
    bounds: Bounds,
    states: &States,
    slot: Slot,
) -> Verdict {
    let (t, value) = (sample.t, batch.value(sample));
    if last == Some(t) && is_last(batch, value, own, states, slot) {
        return Verdict::Stored;
    }
    if last.is_some_and(|last| t < last) {
        match states.chunk_at(slot, t) {
            Some(FoundChunk::Here(chunk)) if chunk.has(t, value) => return Verdict::Stored,
            Some(chunk @ FoundChunk::InFile(_)) => return Verdict::LookInto(chunk),
            _ => {}
        }
    }
    Verdict::Refuse(refusal_of_late(t, last, bounds))
}

/// Whether the series' newest sample is the very one.
fn is_last(
    batch: &Batch,
    sent: ValueRef<'_>,
    own: Option<AcceptedSample>,
    states: &States,
    slot: Slot,
) -> bool {
    match (own, sent) {
        (Some(own), _) => match (own.kind, sent) {
            (AcceptedKind::Histogram(_), ValueRef::Histogram(sent)) => {
                batch.histogram(own.v as u32).tells_the_same(sent)
            }
            (AcceptedKind::Histogram(_), ValueRef::Float(v)) => {
                v == STALE_NAN_BITS && batch.histogram(own.v as u32).is_stale()
            }
            (AcceptedKind::Float | AcceptedKind::Stale(_), ValueRef::Float(v)) => own.v == v,
            (AcceptedKind::Float | AcceptedKind::Stale(_), ValueRef::Histogram(_)) => false,
        },
        (None, _) => {
            let stored = match states.tail(slot) {
                Some(tail) => Value::Histogram(Box::new(tail.last())),
                None => Value::Float(states.get(slot).last().map_or(0, |(_, v)| v)),
            };
            stored.tells_the_same(sent)
        }
    }
}

impl HeadChunk {
    /// Whether the very sample is in it.
    fn has(&self, t: Timestamp, sent: ValueRef<'_>) -> bool {
        let stored = value_in(self.encoding, &self.bytes, t);
        stored.is_some_and(|stored| stored.tells_the_same(sent))
    }
}

/// Why a sample that is not stored and not later than the last one is refused.
fn refusal_of_late(t: Timestamp, last: Option<Timestamp>, bounds: Bounds) -> Refusal {
    if t < bounds.mint {
        Refusal::OutOfBounds
    } else if last == Some(t) {
        Refusal::DuplicateForTimestamp
    } else {
        Refusal::OutOfOrder
    }
}

/// Newest accepted sample of the series that a request names more than once.
#[derive(Default)]
pub(super) struct Repeats {
    /// Built when a series first comes again: index of its newest accepted sample.
    newest: Option<HashMap<Slot, usize>>,
}

impl Repeats {
    pub(super) fn last_of(
        &mut self,
        slot: Slot,
        accepted: &[AcceptedSample],
    ) -> Option<AcceptedSample> {
        if let Some(last) = accepted.last()
            && last.slot == slot
        {
            // Several samples of one series in a row, as in a catch-up, need no map.
            return Some(*last);
        }
        let newest = self.newest.get_or_insert_with(|| {
            accepted.iter().enumerate().map(|(i, sample)| (sample.slot, i)).collect()
        });
        newest.get(&slot).map(|i| accepted[*i])
    }

    #[inline]
    pub(super) fn note(&mut self, slot: Slot, index: usize) {
        if let Some(newest) = &mut self.newest {
            newest.insert(slot, index);
        }
    }
}

impl Head {
    /// Judges samples that would be in chunks on disk. A chunk that is damaged, or on a medium that is,
    /// holds no sample for certain; without a file handle for it the batch is to come again.
    pub(super) fn look_up_late(
        &self,
        late: Vec<LateSample>,
        batch: &Batch,
        bounds: Bounds,
        report: &mut AppendReport,
    ) -> Result<(), WalError> {
        // What is sent again comes series by series, in order.
        let mut last: Option<(Slot, HeadChunk)> = None;
        for LateSample { place, slot, chunk } in late {
            let (t, sent) = (batch.samples[place].t, batch.value(&batch.samples[place]));
            let has = |(of, chunk): &(Slot, HeadChunk)| *of == slot && chunk.holds(t);
            if !last.as_ref().is_some_and(has) {
                last = match chunk.load() {
                    Ok(chunk) => Some((slot, chunk)),
                    Err(ReadError::Io { source, .. }) if lacks_descriptors(&source) => {
                        return Err(WalError::io(source));
                    }
                    Err(_) => None,
                };
            }
            match last.as_ref().is_some_and(|(_, chunk)| chunk.has(t, sent)) {
                true => report.count_stored(batch.samples[place].kind),
                false => {
                    let refusal = refusal_of_late(t, None, bounds);
                    report.refuse(place, refusal, || self.catalog.load().key_of(slot));
                }
            }
        }
        Ok(())
    }
}
