//! The head: everything of a tenant that is in no block yet, in memory and in the log.
//!
//! A series has a *slot*, its index here, and a *ref*, which the log knows it by. A request finds
//! the slots of its series without a lock, see [`catalog`]. Three locks are always taken in this
//! order:
//!
//! 1. `log`: one request at a time is checked, logged and applied (see [`append`]);
//! 2. the catalog's: what the series are called, by slot;
//! 3. `states`: the samples; readers copy a few hundred series' open chunks at a time under a shared
//!    guard, so an append waits for microseconds at most.

pub mod append;
pub mod batch;
pub mod catalog;
pub mod chunk_list;
pub mod coverage;
pub mod cut;
pub mod early;
pub mod gc;
pub mod histograms;
pub mod labels;
pub mod metrics;
pub mod postings;
pub mod read;
pub mod ref_map;
pub mod replay;
pub mod series;
mod slots;
pub mod states;
pub mod waiting;
pub mod write_chunks;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};

use crate::clock::Clock;
use crate::model::fingerprint::Fingerprinter;
use crate::model::key_table::Slot;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::exemplars::{Exemplar, Exemplars};
use crate::tsdb::head::append::LogSide;
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::head::metrics::HeadMetrics;
use crate::tsdb::head::states::States;
use crate::tsdb::head_chunks::HeadChunkFiles;
use crate::tsdb::options::DbOptions;

pub struct Head {
    options: DbOptions,
    clock: Arc<dyn Clock>,
    metrics: HeadMetrics,
    /// Samples below belong to blocks and are out of bounds: [`Blocks::floor`]. Rises under the
    /// log's lock, before what is below is cut into a block.
    ///
    /// [`Blocks::floor`]: crate::tsdb::blocks::Blocks::floor
    floor: AtomicI64,
    /// Times of the oldest and newest sample; reversed while there is none.
    min_time: AtomicI64,
    max_time: AtomicI64,
    /// Time of the oldest sample that came since old ones began to be dropped.
    min_time_meanwhile: AtomicI64,
    catalog: ArcSwap<Catalog>,

    /// Where full chunks go.
    files: Arc<HeadChunkFiles>,
    exemplars: Exemplars,

    log: Mutex<LogSide>,
    states: RwLock<States>,
}

/// What a head is made of before it has a log: replay fills it alone, without locks.
pub struct HeadContents {
    pub catalog: Arc<Catalog>,
    pub states: States,
    pub min_time: Timestamp,
    pub max_time: Timestamp,
    /// The last of the log, of series by their slots.
    pub exemplars: VecDeque<(Slot, Exemplar)>,
}

impl HeadContents {
    pub fn new(fingerprinter: Fingerprinter, files: Arc<HeadChunkFiles>) -> HeadContents {
        HeadContents {
            catalog: Arc::new(Catalog::new(fingerprinter)),
            states: States::new(files),
            min_time: Timestamp::MAX,
            max_time: Timestamp::MIN,
            exemplars: VecDeque::new(),
        }
    }

    /// The exemplars, taken out, with the refs of their series.
    fn loaded_exemplars(&mut self) -> Vec<(HeadSeriesRef, Slot, Exemplar)> {
        let exemplars = std::mem::take(&mut self.exemplars).into_iter();
        let of_series = |(slot, exemplar)| (self.states.get(slot).series_ref(), slot, exemplar);
        exemplars.map(of_series).collect()
    }
}

impl Head {
    pub fn new(
        options: DbOptions,
        clock: Arc<dyn Clock>,
        metrics: HeadMetrics,
        floor: Timestamp,
        mut contents: HeadContents,
        exemplars: Exemplars,
        mut log: LogSide,
    ) -> Head {
        metrics.series.set(contents.catalog.series_count() as f64);
        log.slots.begin_behind(contents.states.len());
        // Counted as an integer: no floats at all add up to -0.
        let chunk_count: usize = contents.states.iter().map(|state| state.chunk_count()).sum();
        metrics.chunks.set(chunk_count as f64);
        let files = contents.states.files().clone();
        exemplars.add(contents.loaded_exemplars(), |slot| contents.catalog.key_of(slot));
        let head = Head {
            options,
            clock,
            metrics,
            floor: AtomicI64::new(floor),
            min_time: AtomicI64::new(contents.min_time),
            max_time: AtomicI64::new(contents.max_time),
            min_time_meanwhile: AtomicI64::new(Timestamp::MAX),
            catalog: ArcSwap::new(contents.catalog),
            files,
            exemplars,
            log: Mutex::new(log),
            states: RwLock::new(contents.states),
        };
        head.show_time_range();
        head
    }

    /// Says how long it took to read the log.
    pub fn note_replay(&self, took: Duration) {
        self.metrics.replay_seconds.set(took.as_secs_f64());
    }

    /// Puts what was read of the log into a head that took writes meanwhile, which it has as well;
    /// they were [held](Head::hold_writes) before the end was read. The next ref is at least
    /// `next_ref`. False if it is not the log that these writes went by: then all are held for
    /// good.
    pub fn end_loading(&self, mut contents: HeadContents, next_ref: u64) -> bool {
        let mut log = self.log.lock();
        let exemplars = contents.loaded_exemplars();
        let HeadContents { catalog, states, min_time, max_time, .. } = contents;
        if !log.end_early(&states, next_ref) {
            return false;
        }
        debug_assert!(Arc::ptr_eq(&catalog, &self.catalog.load()));
        let chunk_count: usize = states.iter().map(|state| state.chunk_count()).sum();
        self.metrics.series.set(catalog.series_count() as f64);
        self.metrics.chunks.set(chunk_count as f64);
        self.exemplars.add(exemplars, |slot| catalog.key_of(slot));
        *self.states.write() = states;
        self.min_time.store(min_time, Ordering::Relaxed);
        self.max_time.store(max_time, Ordering::Relaxed);
        drop(log);
        self.show_time_range();
        true
    }

    pub fn exemplars(&self) -> &Exemplars {
        &self.exemplars
    }

    /// What the series are called now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    pub fn series_count(&self) -> usize {
        self.catalog.load().series_count()
    }

    /// Samples below are not taken.
    pub fn floor(&self) -> Timestamp {
        self.floor.load(Ordering::Acquire)
    }

    /// Times of the oldest and the newest sample held.
    pub fn time_range(&self) -> Option<(Timestamp, Timestamp)> {
        let mint = self.min_time.load(Ordering::Relaxed);
        let maxt = self.max_time.load(Ordering::Relaxed);
        (mint <= maxt).then_some((mint, maxt))
    }

    fn extend_time_range(&self, mint: Timestamp, maxt: Timestamp) {
        self.min_time_meanwhile.fetch_min(mint, Ordering::Relaxed);
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
