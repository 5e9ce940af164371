//! The head as a query sees it: slots to series and chunks, a few hundred at a time.

use std::sync::Arc;

use crate::model::key_table::Slot;
use crate::model::matcher::Matcher;
use crate::model::pairs::SeriesLabels;
use crate::model::stop;
use crate::model::{TimeRange, Timestamp};
use crate::tsdb::chunk_set::ChunkSet;
use crate::tsdb::error::ReadError;
use crate::tsdb::head::Head;
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::head::states::HeadChunk;

/// Series read under one hold of the locks: some ten microseconds that an append may wait.
const SERIES_PER_HOLD: usize = 256;

/// A head whose slots mean the same for as long as this is held. One that is forgotten meanwhile has no
/// samples any more.
#[derive(Clone)]
pub struct HeadReader {
    head: Arc<Head>,
    catalog: Arc<Catalog>,
}

impl HeadReader {
    pub fn new(head: Arc<Head>) -> HeadReader {
        let catalog = head.catalog();
        HeadReader { head, catalog }
    }

    /// Times of the oldest and the newest sample held now.
    pub fn time_range(&self) -> Option<(Timestamp, Timestamp)> {
        self.head.time_range()
    }

    /// Series that match and have a chunk in the range.
    pub fn select(
        &self,
        matchers: &[Matcher],
        mint: Timestamp,
        maxt: Timestamp,
    ) -> Vec<(Slot, SeriesLabels)> {
        let postings = &self.catalog.postings;
        let slots = postings.select(matchers);
        let mut selected = Vec::new();
        for slots in slots.chunks(SERIES_PER_HOLD) {
            if stop::is_asked() {
                break;
            }
            let labels = self.catalog.labels();
            let states = self.head.states.read();
            selected.extend(slots.iter().filter_map(|slot| {
                // One that is being made may have none yet, and has no sample.
                let pairs = labels.get(*slot).filter(|_| states.get(*slot).overlaps(mint, maxt))?;
                Some((*slot, SeriesLabels::new(postings.pairs().clone(), pairs)))
            }));
        }
        selected
    }

    /// Chunks of a series that overlap the range, oldest first. Blocks on the disk for those in files,
    /// without the locks.
    pub fn chunks(
        &self,
        slot: Slot,
        mint: Timestamp,
        maxt: Timestamp,
        mut each: impl FnMut(HeadChunk),
    ) -> Result<(), ReadError> {
        let mut found = Vec::new();
        self.head.states.read().chunks_in(slot, mint, maxt, |chunk| found.push(chunk));
        for chunk in found {
            each(chunk.load()?);
        }
        Ok(())
    }

    /// Adds the chunks of a series that overlap the range to `chunks`. Those in files are asked for, so
    /// that nothing here blocks on the disk.
    pub fn gather(&self, slot: Slot, range: TimeRange, chunks: &mut ChunkSet) {
        self.head.states.read().gather(slot, range, chunks);
    }

    pub fn label_names(&self) -> Vec<Vec<u8>> {
        self.catalog.postings.label_names()
    }

    pub fn label_values(&self, name: &[u8]) -> Vec<Vec<u8>> {
        self.catalog.postings.label_values(name)
    }
}
