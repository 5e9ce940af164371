//! Matchers to series to chunks.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::Timestamp;
use crate::model::key_table::Slot;
use crate::model::labels::SeriesKey;
use crate::model::matcher::Matcher;
use crate::model::stop;
use crate::tsdb::chunkenc::ENCODING_XOR;
use crate::tsdb::head::Head;

/// A reader over one time range of one database. Holds no lock between calls.
pub struct Querier {
    head: Arc<Head>,
    mint: Timestamp,
    maxt: Timestamp,
}

/// A series that a query selected.
#[derive(Clone)]
pub struct SelectedSeries {
    /// Labels as stored, without external labels.
    pub key: SeriesKey,
    pub(crate) slot: Slot,
}

/// An encoded chunk, whole (not cut to the query's range).
#[derive(Clone, Debug)]
pub struct ChunkData {
    pub mint: Timestamp,
    /// Time of the last sample, included.
    pub maxt: Timestamp,
    /// Prometheus' chunk encoding number; 1 is XOR.
    pub encoding: u8,
    /// The chunk as Prometheus stores it: sample count (u16, big endian), then the bit stream.
    pub bytes: Arc<[u8]>,
}

impl Querier {
    pub(super) fn new(head: Arc<Head>, mint: Timestamp, maxt: Timestamp) -> Querier {
        Querier { head, mint, maxt }
    }

    /// Series that match all `matchers` and have a chunk in the range, in no particular order.
    pub fn select(&self, matchers: &[Matcher]) -> Vec<SelectedSeries> {
        let selected = self.head.select(matchers, self.mint, self.maxt);
        selected.into_iter().map(|(slot, key)| SelectedSeries { key, slot }).collect()
    }

    /// Appends the series' chunks that overlap the range to `chunks`, in order of time.
    pub fn chunks(&self, series: &SelectedSeries, chunks: &mut Vec<ChunkData>) {
        self.head.chunks(series.slot, self.mint, self.maxt, |chunk| {
            chunks.push(ChunkData {
                mint: chunk.mint,
                maxt: chunk.maxt,
                encoding: ENCODING_XOR,
                bytes: chunk.bytes,
            });
        });
    }

    /// Names of the labels of matching series (of all series without matchers), sorted.
    pub fn label_names(&self, matchers: &[Matcher]) -> Vec<Vec<u8>> {
        if !self.overlaps_head() {
            return Vec::new();
        }
        if matchers.is_empty() {
            return self.head.label_names();
        }
        let mut names = BTreeSet::new();
        for series in self.select(matchers).into_iter().take_while(|_| !stop::is_asked()) {
            for (name, _) in series.key.labels() {
                if !names.contains(name) {
                    names.insert(name.to_vec());
                }
            }
        }
        names.into_iter().collect()
    }

    /// Values of one label over matching series, sorted.
    pub fn label_values(&self, name: &[u8], matchers: &[Matcher]) -> Vec<Vec<u8>> {
        if !self.overlaps_head() {
            return Vec::new();
        }
        if matchers.is_empty() {
            return self.head.label_values(name);
        }
        let mut values = BTreeSet::new();
        for series in self.select(matchers).into_iter().take_while(|_| !stop::is_asked()) {
            let value = series.key.labels().find(|(label, _)| *label == name);
            if let Some((_, value)) = value
                && !values.contains(value)
            {
                values.insert(value.to_vec());
            }
        }
        values.into_iter().collect()
    }

    fn overlaps_head(&self) -> bool {
        self.head.time_range().is_some_and(|(mint, maxt)| mint <= self.maxt && self.mint <= maxt)
    }
}
