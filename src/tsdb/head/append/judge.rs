//! Whether a sample is taken, is stored already, or is refused.

use std::collections::HashMap;

use crate::disk::lacks_descriptors;
use crate::model::Timestamp;
use crate::model::key_table::Slot;
use crate::tsdb::error::ReadError;
use crate::tsdb::head::Head;
use crate::tsdb::head::append::group::AcceptedSample;
use crate::tsdb::head::append::{AppendReport, Bounds, Refusal};
use crate::tsdb::head::batch::{Batch, BatchSample};
use crate::tsdb::head::states::{FoundChunk, HeadChunk, States, value_in};
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

/// `last` is the series' newest sample, those accepted earlier in the request included. `None` if the
/// sample is no later, or below the bound.
#[inline]
pub(super) fn judge(
    sample: &BatchSample,
    last: Option<(Timestamp, u64)>,
    bounds: Bounds,
) -> Option<Verdict> {
    let t = sample.t;
    if t > bounds.maxt {
        return Some(Verdict::Refuse(Refusal::TooFarInFuture));
    }
    match last {
        None if t < bounds.mint => Some(Verdict::Refuse(Refusal::OutOfBounds)),
        None => Some(Verdict::Append),
        Some((last_t, _)) if t > last_t && t >= bounds.mint => Some(Verdict::Append),
        Some(_) => None,
    }
}

#[cold]
pub(super) fn judge_late(
    sample: &BatchSample,
    last: Option<(Timestamp, u64)>,
    bounds: Bounds,
    states: &States,
    slot: Slot,
) -> Verdict {
    let BatchSample { t, v, .. } = *sample;
    if last == Some((t, v)) {
        return Verdict::Stored;
    }
    if last.is_some_and(|(last_t, _)| t < last_t) {
        match states.chunk_at(slot, t) {
            Some(FoundChunk::Here(chunk)) if value_in(&chunk.bytes, t) == Some(v) => {
                return Verdict::Stored;
            }
            Some(chunk @ FoundChunk::InFile(_)) => return Verdict::LookInto(chunk),
            _ => {}
        }
    }
    Verdict::Refuse(refusal_of_late(t, last, bounds))
}

/// Why a sample that is not stored and not later than the last one is refused.
fn refusal_of_late(t: Timestamp, last: Option<(Timestamp, u64)>, bounds: Bounds) -> Refusal {
    if t < bounds.mint {
        Refusal::OutOfBounds
    } else if last.is_some_and(|(last_t, _)| last_t == t) {
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
    ) -> Option<(Timestamp, u64)> {
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
            let BatchSample { t, v, .. } = batch.samples[place];
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
            let stored = last.as_ref().and_then(|(_, chunk)| value_in(&chunk.bytes, t));
            match stored == Some(v) {
                true => report.stored += 1,
                false => {
                    let refusal = refusal_of_late(t, None, bounds);
                    report.refuse(place, refusal, || self.catalog.load().key_of(slot));
                }
            }
        }
        Ok(())
    }
}
