//! The head as a query sees it: slots to series and chunks, a few hundred at a time.

use crate::model::Timestamp;
use crate::model::key_table::Slot;
use crate::model::matcher::Matcher;
use crate::model::pairs::SeriesLabels;
use crate::model::stop;
use crate::tsdb::head::Head;
use crate::tsdb::head::series::FullChunk;

/// Series read under one hold of the locks: some ten microseconds that an append may wait.
const SERIES_PER_HOLD: usize = 256;

impl Head {
    /// Series that match and have a chunk in the range.
    pub fn select(
        &self,
        matchers: &[Matcher],
        mint: Timestamp,
        maxt: Timestamp,
    ) -> Vec<(Slot, SeriesLabels)> {
        let slots = self.postings.select(matchers);
        let mut selected = Vec::new();
        for slots in slots.chunks(SERIES_PER_HOLD) {
            if stop::is_asked() {
                break;
            }
            let labels = self.labels.read();
            let states = self.states.read();
            selected.extend(slots.iter().filter_map(|slot| {
                // One that is being made may have none yet, and has no sample.
                let pairs = labels.get(*slot).filter(|_| states.get(*slot).overlaps(mint, maxt))?;
                Some((*slot, SeriesLabels::new(self.postings.pairs().clone(), pairs)))
            }));
        }
        selected
    }

    /// Chunks of a series that overlap the range, oldest first.
    pub fn chunks(
        &self,
        slot: Slot,
        mint: Timestamp,
        maxt: Timestamp,
        each: impl FnMut(FullChunk),
    ) {
        self.states.read().get(slot).chunks_in(mint, maxt, each);
    }

    pub fn label_names(&self) -> Vec<Vec<u8>> {
        self.postings.label_names()
    }

    pub fn label_values(&self, name: &[u8]) -> Vec<Vec<u8>> {
        self.postings.label_values(name)
    }
}
