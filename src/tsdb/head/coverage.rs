//! What the log need not have, since files of head chunks have it.
//!
//! Samples of a series leave the log up to the end of its last chunk in a [sealed](SealedFiles)
//! file, if all chunks before are in such files as well. A replay, Prometheus' too, skips what is
//! no later than the last chunk that it finds in a file.

use crate::model::key_table::Slot;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::head::Head;
use crate::tsdb::head::ref_map::RefMap;
use crate::tsdb::head_chunks::seal::{SealError, SealedFiles};

/// Series looked at under one hold of the states' lock.
const SERIES_PER_HOLD: usize = 1024;

/// Up to when sealed files have the samples of each series.
#[derive(Default)]
pub struct Coverage {
    /// Ref to place in `ends`.
    refs: RefMap,
    ends: Vec<Timestamp>,
}

impl Coverage {
    /// Whether sealed files have the sample of this series at this time, if there is one.
    #[inline]
    pub fn has(&self, series_ref: HeadSeriesRef, t: Timestamp) -> bool {
        self.refs.slot(series_ref).is_some_and(|at| t <= self.ends[at as usize])
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
        self.metrics.samples_appended.value() as u64
    }

    /// What sealed files have. Takes 12 bytes a series, and looks at a thousand at a time.
    pub fn coverage(&self, sealed: &SealedFiles) -> Coverage {
        let mut coverage = Coverage::default();
        let count = self.states.read().len();
        for first in (0..count).step_by(SERIES_PER_HOLD) {
            let states = self.states.read();
            for slot in first..count.min(first + SERIES_PER_HOLD) {
                let slot = slot as Slot;
                if let Some(end) = states.sealed_to(slot, sealed) {
                    let at = coverage.ends.len() as Slot;
                    coverage.refs.insert(states.get(slot).series_ref(), at);
                    coverage.ends.push(end);
                }
            }
        }
        coverage
    }
}
