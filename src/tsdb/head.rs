//! The head: everything of a tenant that is in no block yet, in memory and in the log.
//!
//! A series has a *slot*, its index here, and a *ref*, which the log knows it by. A request finds the
//! slots of its series without a lock. Three locks are always taken in this order:
//!
//! 1. `log`: one request at a time is checked, logged and applied (see [`append`]);
//! 2. `labels`: what the series are called, by slot;
//! 3. `states`: the samples; readers copy a few hundred series' open chunks at a time under a shared
//!    guard, so an append waits for microseconds at most.

pub mod append;
pub mod batch;
pub mod labels;
pub mod metrics;
pub mod postings;
pub mod read;
pub mod replay;
pub mod series;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::clock::Clock;
use crate::model::Timestamp;
use crate::model::fingerprint::Fingerprinter;
use crate::model::key_table::{KeyTable, Lookup, Slot};
use crate::model::labels::{KeyBuilder, SeriesKey};
use crate::model::pairs::LabelPairs;
use crate::tsdb::head::append::LogSide;
use crate::tsdb::head::labels::SlotLabels;
use crate::tsdb::head::metrics::HeadMetrics;
use crate::tsdb::head::postings::MemPostings;
use crate::tsdb::head::series::States;
use crate::tsdb::options::DbOptions;

pub struct Head {
    options: DbOptions,
    clock: Arc<dyn Clock>,
    metrics: HeadMetrics,
    /// Samples below belong to blocks and are out of bounds: [`Blocks::floor`].
    ///
    /// [`Blocks::floor`]: crate::tsdb::meta::Blocks::floor
    floor: Timestamp,
    /// Times of the oldest and newest sample; reversed while there is none.
    min_time: AtomicI64,
    max_time: AtomicI64,
    known: KeyTable,
    postings: MemPostings,

    log: Mutex<LogSide>,
    labels: RwLock<SlotLabels>,
    states: RwLock<States>,
}

/// What a head is made of before it has a log: replay fills it alone, without locks.
pub struct HeadContents {
    pub known: KeyTable,
    pub labels: SlotLabels,
    pub states: States,
    pub postings: MemPostings,
    pub min_time: Timestamp,
    pub max_time: Timestamp,
}

impl HeadContents {
    pub fn new(fingerprinter: Fingerprinter) -> HeadContents {
        HeadContents {
            known: KeyTable::new(fingerprinter),
            labels: SlotLabels::default(),
            states: States::default(),
            postings: MemPostings::new(),
            min_time: Timestamp::MAX,
            max_time: Timestamp::MIN,
        }
    }
}

impl Head {
    pub fn new(
        options: DbOptions,
        clock: Arc<dyn Clock>,
        metrics: HeadMetrics,
        floor: Timestamp,
        contents: HeadContents,
        log: LogSide,
    ) -> Head {
        metrics.series.set(contents.labels.len() as f64);
        // Counted as an integer: no floats at all add up to -0.
        let chunk_count: usize = contents.states.iter().map(|state| state.chunk_count()).sum();
        metrics.chunks.set(chunk_count as f64);
        let head = Head {
            options,
            clock,
            metrics,
            floor,
            min_time: AtomicI64::new(contents.min_time),
            max_time: AtomicI64::new(contents.max_time),
            known: contents.known,
            postings: contents.postings,
            log: Mutex::new(log),
            labels: RwLock::new(contents.labels),
            states: RwLock::new(contents.states),
        };
        head.show_time_range();
        head
    }

    /// The series known now, to look a request up in.
    pub fn lookup(&self) -> Lookup {
        self.known.lookup()
    }

    pub fn series_count(&self) -> usize {
        self.labels.read().len()
    }

    /// The canonical key of a slot, put together from its labels.
    #[cold]
    fn key_of(&self, slot: Slot) -> SeriesKey {
        let mut key = KeyBuilder::default();
        let labels = self.labels.read();
        for (name, value) in self.labels_in(&labels, slot) {
            key.push(name, value);
        }
        SeriesKey::from_canonical(key.as_bytes())
    }

    fn labels_in<'h>(&'h self, labels: &'h SlotLabels, slot: Slot) -> LabelPairs<'h> {
        LabelPairs::new(self.postings.pairs(), labels.get(slot).unwrap_or(&[]))
    }

    /// Times of the oldest and the newest sample held.
    pub fn time_range(&self) -> Option<(Timestamp, Timestamp)> {
        let mint = self.min_time.load(Ordering::Relaxed);
        let maxt = self.max_time.load(Ordering::Relaxed);
        (mint <= maxt).then_some((mint, maxt))
    }

    fn extend_time_range(&self, mint: Timestamp, maxt: Timestamp) {
        let older = self.min_time.fetch_min(mint, Ordering::Relaxed) > mint;
        let newer = self.max_time.fetch_max(maxt, Ordering::Relaxed) < maxt;
        if older || newer {
            self.show_time_range();
        }
    }

    fn show_time_range(&self) {
        if let Some((mint, maxt)) = self.time_range() {
            self.metrics.min_time.set(mint as f64);
            self.metrics.max_time.set(maxt as f64);
            self.metrics.lowest_timestamp.set(mint as f64);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
