//! What the log need not have, since files of head chunks have it.
//!
//! Samples of a series leave the log up to the end of its last chunk in a [sealed](SealedFiles)
//! file, if all chunks before are in such files as well. A replay, Prometheus' too, skips what is
//! no later than the last chunk that it finds in a file.

use std::cell::Cell;

use crate::model::key_table::Slot;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::head::Head;
use crate::tsdb::head::metrics::HeadMetrics;
use crate::tsdb::head_chunks::seal::{SealError, SealedFiles};

/// Series looked at under one hold of the states' lock.
const SERIES_PER_HOLD: usize = 256;

/// Up to when sealed files have the samples of each series: 16 bytes each.
#[derive(Default)]
pub struct Coverage {
    /// By ref, rising.
    ends: Vec<(HeadSeriesRef, Timestamp)>,
    /// Where the last question ended. Samples stand in the log mostly as series were made.
    at: Cell<usize>,
}

impl Coverage {
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether sealed files have the sample of this series at this time, if there is one.
    #[inline]
    pub fn has(&self, series_ref: HeadSeriesRef, t: Timestamp) -> bool {
        let at = self.at.get();
        let is_at = |at: usize| self.ends.get(at).is_some_and(|(one, _)| *one == series_ref);
        let found = [at + 1, at].into_iter().find(|at| is_at(*at));
        let found =
            found.or_else(|| self.ends.binary_search_by_key(&series_ref, |(one, _)| *one).ok());
        let Some(found) = found else { return false };
        self.at.set(found);
        t <= self.ends[found].1
    }
}

impl Head {
    /// Seals the files that full chunks were written to; see [`HeadChunkFiles::seal`].
    ///
    /// [`HeadChunkFiles::seal`]: crate::tsdb::head_chunks::HeadChunkFiles::seal
    pub fn seal_full_chunks(&self, failures: &dyn Fn() -> u64) -> Result<SealedFiles, SealError> {
        self.files.seal(failures)
    }

    /// Samples that were stored so far.
    pub fn samples_stored(&self) -> u64 {
        let HeadMetrics { samples_appended, histograms_appended, .. } = &self.metrics;
        (samples_appended.value() + histograms_appended.value()) as u64
    }

    /// What sealed files have.
    pub fn coverage(&self, sealed: &SealedFiles) -> Coverage {
        let mut coverage = Coverage::default();
        let count = self.states.read().len();
        for first in (0..count).step_by(SERIES_PER_HOLD) {
            let states = self.states.read();
            let slots = (first..count.min(first + SERIES_PER_HOLD)).map(|slot| slot as Slot);
            states.fetch(slots.clone());
            let end = |slot| Some((states.get(slot).series_ref(), states.sealed_to(slot, sealed)?));
            coverage.ends.extend(slots.filter_map(end));
        }
        coverage.ends.sort_unstable();
        coverage
    }
}
