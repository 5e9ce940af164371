//! What a head drops once a block holds it: samples, and then the series that have none left.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::model::key_table::Slot;
use crate::model::labels::{KeyBuilder, LabelIter};
use crate::model::stop;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::head::Head;
use crate::tsdb::head::append::LogSide;
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::head_chunks::ChunkInFile;
use crate::tsdb::wal::{SegmentIndex, WalError};

/// Series looked at under one hold of the locks: some ten microseconds that an append may wait.
const SERIES_PER_HOLD: usize = 256;

/// Series that may be left to be carried over while nothing is appended: about a millisecond.
const LEFT_FOR_THE_END_MAX: usize = 512;

/// How often what came meanwhile is carried over at most while appends go on.
const ROUNDS_MAX: usize = 8;

/// What [`Head::drop_before`] dropped.
#[derive(Default)]
pub struct Dropped {
    pub chunks: u64,
    /// Series that were forgotten and whose record is in the log, rising.
    pub series: Vec<HeadSeriesRef>,
    /// Their samples are in no later segment of the log than this.
    pub last_segment: SegmentIndex,
    /// What they were called in. To be let go of on a thread that has time, by who holds it last.
    pub catalog: Option<Arc<Catalog>>,
}

/// A bit for each slot.
struct SlotSet(Vec<u64>);

impl SlotSet {
    fn of(slots: usize) -> SlotSet {
        SlotSet(vec![0; slots.div_ceil(64)])
    }

    fn insert(&mut self, slot: Slot) {
        self.0[slot as usize / 64] |= 1 << (slot % 64);
    }

    fn contains(&self, slot: Slot) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|bits| bits >> (slot % 64) & 1 != 0)
    }
}

impl Head {
    /// Takes no more samples before `floor`.
    pub fn raise_floor(&self, floor: Timestamp) {
        let _log = self.log.lock();
        self.floor.fetch_max(floor, Ordering::AcqRel);
    }

    /// Takes samples from `floor` on again, which no block has.
    pub fn lower_floor(&self, floor: Timestamp) {
        let _log = self.log.lock();
        self.floor.store(floor, Ordering::Release);
    }

    /// Drops the samples before `mint`, which the floor has risen to and no reader looks for here any
    /// more, and forgets the series that then have none. One thread at a time may call it; appends go
    /// on meanwhile.
    pub fn drop_before(&self, mint: Timestamp) -> Dropped {
        let chunks = self.drop_samples_before(mint);
        if let Err(err) = self.files.remove_dead() {
            // The next drop tries again.
            tracing::error!(%err, "a file of head chunks cannot be removed");
        }
        Dropped { chunks, ..self.forget_empty_series() }
    }

    /// Forgets series that were made for requests whose write failed then, if there are any. As for
    /// [`Head::drop_before`].
    pub fn forget_refused(&self) -> Dropped {
        let has_refused = std::mem::take(&mut self.log.lock().has_refused_series);
        if has_refused { self.forget_empty_series() } else { Dropped::default() }
    }

    /// Begins a new segment of the log, and gives its number and the refs, rising, of the series whose
    /// records the segments before may have to keep.
    pub fn cut_log(&self) -> Result<(SegmentIndex, Vec<HeadSeriesRef>), WalError> {
        let begun = self.log.lock().cut_segment()?.segment;
        let catalog = self.catalog();
        let count = self.states.read().len();
        let mut refs = Vec::with_capacity(catalog.series_count());
        for first in (0..count).step_by(SERIES_PER_HOLD) {
            let (labels, states) = (catalog.labels(), self.states.read());
            let slots = (first..count.min(first + SERIES_PER_HOLD)).map(|slot| slot as Slot);
            let named = slots.filter(|slot| labels.get(*slot).is_some());
            refs.extend(named.map(|slot| states.get(slot).series_ref()));
        }
        refs.sort_unstable();
        Ok((begun, refs))
    }

    fn drop_samples_before(&self, mint: Timestamp) -> u64 {
        debug_assert!(mint <= self.floor(), "what is dropped must not come again");
        // Of all that comes from now on.
        self.min_time_meanwhile.store(Timestamp::MAX, Ordering::Relaxed);
        let count = self.log.lock().slots.used();
        let (mut chunks, mut oldest) = (0, Timestamp::MAX);
        let mut to_shorten = Vec::new();
        for first in (0..count).step_by(SERIES_PER_HOLD) {
            let mut states = self.states.write();
            for slot in first..count.min(first + SERIES_PER_HOLD) {
                let slot = slot as Slot;
                let dropped = states.drop_before(slot, mint);
                chunks += dropped.chunks as u64;
                to_shorten.extend(dropped.to_shorten.map(|chunk| (slot, chunk)));
                let first_time = states.get(slot).first_time();
                // What is to be shortened begins before.
                oldest = oldest.min(first_time.map_or(Timestamp::MAX, |first| first.max(mint)));
            }
        }
        self.shorten(to_shorten, mint);
        let log = self.log.lock();
        let oldest = oldest.min(self.min_time_meanwhile.load(Ordering::Relaxed));
        self.min_time.store(oldest, Ordering::Relaxed);
        if oldest == Timestamp::MAX {
            self.max_time.store(Timestamp::MIN, Ordering::Relaxed);
        }
        drop(log);
        self.show_time_range();
        self.metrics.chunks_removed.add(chunks);
        self.metrics.chunks.add(-(chunks as f64));
        chunks
    }

    /// Takes what is before `mint` from chunks in files that have it. One that cannot be read stays as
    /// it is: a block has the same samples.
    fn shorten(&self, chunks: Vec<(Slot, ChunkInFile)>, mint: Timestamp) {
        let mut bytes = Vec::new();
        for (slot, chunk) in chunks {
            match chunk.read(&mut bytes) {
                Ok(encoding) => {
                    self.states.write().shorten(slot, &chunk, mint, (encoding, &bytes));
                }
                Err(err) => tracing::warn!(%err, "a head chunk cannot be shortened"),
            }
        }
    }

    /// Puts a catalog of the series that have samples in the place of today's.
    fn forget_empty_series(&self) -> Dropped {
        let (before, count) = {
            let mut log = self.log.lock();
            log.meanwhile = Some(Vec::new());
            (self.catalog.load_full(), log.slots.used())
        };
        let (kept, kept_count, empty) = self.sort_by_emptiness(&before, count);
        if empty.is_empty() {
            self.log.lock().meanwhile = None;
            return Dropped::default();
        }
        let known = before.known.with_only(kept_count, |slot| kept.contains(slot));
        let catalog = Catalog::of(known);
        let mut slots = (0..count).map(|slot| slot as Slot).filter(|slot| kept.contains(*slot));
        while carry_labels(&before, &catalog, slots.by_ref().take(SERIES_PER_HOLD)) > 0 {
            if stop::is_asked() {
                self.log.lock().meanwhile = None;
                return Dropped::default();
            }
        }
        for _ in 0..ROUNDS_MAX {
            let came = self.log.lock().meanwhile.replace(Vec::new()).unwrap_or_default();
            carry(&before, &catalog, &came);
            if came.len() <= LEFT_FOR_THE_END_MAX {
                break;
            }
        }
        self.replace_catalog(&before, catalog, empty)
    }

    /// The slots whose series have samples, how many these are, and the slots of the other series.
    fn sort_by_emptiness(&self, catalog: &Catalog, count: usize) -> (SlotSet, usize, Vec<Slot>) {
        let (mut kept, mut kept_count, mut empty) = (SlotSet::of(count), 0, Vec::new());
        for first in (0..count).step_by(SERIES_PER_HOLD) {
            let labels = catalog.labels();
            let states = self.states.read();
            for slot in first..count.min(first + SERIES_PER_HOLD) {
                let slot = slot as Slot;
                if labels.get(slot).is_none() {
                    continue;
                }
                match states.get(slot).last() {
                    Some(_) => {
                        kept.insert(slot);
                        kept_count += 1;
                    }
                    None => empty.push(slot),
                }
            }
        }
        (kept, kept_count, empty)
    }

    /// The last step, while nothing is appended.
    fn replace_catalog(
        &self,
        before: &Arc<Catalog>,
        catalog: Catalog,
        empty: Vec<Slot>,
    ) -> Dropped {
        let catalog = Arc::new(catalog);
        let mut log = self.log.lock();
        let last_segment = log.last_segment();
        let LogSide { meanwhile, slots, unsynced, .. } = &mut *log;
        carry(before, &catalog, &meanwhile.take().unwrap_or_default());
        let labels = catalog.labels();
        let forgotten: Vec<_> =
            empty.into_iter().filter(|slot| labels.get(*slot).is_none()).collect();
        unsynced.keep_series(|slot| labels.get(slot).is_some());
        let count = labels.count();
        drop(labels);
        self.metrics.series.set(count as f64);
        self.metrics.series_removed.add(forgotten.len() as u64);
        let states = self.states.read();
        let logged = forgotten.iter().map(|slot| states.get(*slot));
        let logged = logged.filter(|state| !state.is_unlogged());
        let mut series: Vec<_> = logged.map(|state| state.series_ref()).collect();
        drop(states);
        series.sort_unstable();
        slots.give_back(before, forgotten);
        self.catalog.store(catalog);
        Dropped { chunks: 0, series, last_segment, catalog: Some(before.clone()) }
    }
}

/// Gives slots the labels in `to` that they have in `from`, and returns how many there were.
fn carry_labels(from: &Catalog, to: &Catalog, slots: impl Iterator<Item = Slot>) -> usize {
    let labels = from.labels();
    let mut keys: Vec<(Slot, KeyBuilder)> = Vec::with_capacity(SERIES_PER_HOLD);
    for slot in slots {
        let mut key = KeyBuilder::default();
        from.labels_in(&labels, slot).for_each(|(name, value)| key.push(name, value));
        keys.push((slot, key));
    }
    drop(labels);
    to.name(keys.iter().map(|(slot, key)| (*slot, LabelIter::of_canonical(key.as_bytes()))));
    keys.len()
}

/// Adds to `to` those of the series that it does not have yet.
fn carry(from: &Catalog, to: &Catalog, slots: &[Slot]) {
    let lookup = to.lookup();
    for slots in slots.chunks(SERIES_PER_HOLD) {
        let mut new = Vec::new();
        for slot in slots {
            let fingerprint = lookup.fingerprint(from.key_of(*slot).as_bytes());
            let mut known = to.known.adder();
            if known.find_canonical(fingerprint).is_none() {
                known.add(fingerprint, *slot);
                new.push(*slot);
            }
        }
        carry_labels(from, to, new.into_iter());
    }
}

#[cfg(test)]
mod tests;
