//! Matchers to series to chunks.

use std::sync::Arc;

use crate::model::Timestamp;
use crate::model::labels::SeriesKey;
use crate::model::matcher::Matcher;

/// A reader over one time range of one database. Holds no lock between calls.
pub struct Querier {}

/// A series that a query selected.
#[derive(Clone)]
pub struct SelectedSeries {
    /// Labels as stored, without external labels.
    pub key: SeriesKey,
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
    /// Series that match all `matchers` and have a chunk in the range, in no particular order.
    pub fn select(&self, _matchers: &[Matcher]) -> Vec<SelectedSeries> {
        unimplemented!()
    }

    /// Appends the series' chunks that overlap the range to `chunks`, in order of time.
    pub fn chunks(&self, _series: &SelectedSeries, _chunks: &mut Vec<ChunkData>) {
        unimplemented!()
    }

    /// Names of the labels of matching series (of all series without matchers), sorted.
    pub fn label_names(&self, _matchers: &[Matcher]) -> Vec<Vec<u8>> {
        unimplemented!()
    }

    /// Values of one label over matching series, sorted.
    pub fn label_values(&self, _name: &[u8], _matchers: &[Matcher]) -> Vec<Vec<u8>> {
        unimplemented!()
    }
}
