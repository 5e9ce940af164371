//! What a query is answered from: a head, a block, and what lies between. Each answers the same
//! questions for itself, and may fail for itself.

use std::ops::ControlFlow;

use crate::model::matcher::Matcher;
use crate::model::{TimeRange, Timestamp};
use crate::tsdb::error::ReadError;

/// A part of a database that has series of its own.
///
/// Times asked for include both ends. Work that is [asked to stop](crate::model::stop) ends early, and
/// what it gave is not complete.
pub trait Source: Send + Sync {
    /// The times that samples may have; `None` if there are none.
    fn time_range(&self) -> Option<TimeRange>;

    /// Shows the series that match all `matchers` and have a chunk in the range, in order of their
    /// labels, until `each` breaks off. Nothing is collected: whoever asks counts what it keeps.
    fn select(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
        each: &mut dyn FnMut(SourceSeries<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError>;

    /// Appends the chunks of a series that overlap the range to `chunks`, in order of time.
    fn chunks(
        &self,
        series: SourceRef,
        range: TimeRange,
        chunks: &mut Vec<SourceChunk>,
    ) -> Result<(), ReadError>;

    /// Names of the labels of matching series (of all series without matchers), sorted.
    fn label_names(
        &self,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<Vec<u8>>, ReadError>;

    /// Values of one label over matching series (over all series without matchers), sorted.
    fn label_values(
        &self,
        name: &[u8],
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Vec<Vec<u8>>, ReadError>;
}

/// By what a source knows a series. Says nothing to another source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRef(pub u64);

/// A series that was selected.
#[derive(Clone, Copy, Debug)]
pub struct SourceSeries<'s> {
    pub series: SourceRef,
    /// Its canonical key.
    pub key: &'s [u8],
}

/// An encoded chunk, whole: it is not cut to the range that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceChunk {
    /// Times of the first and the last sample.
    pub mint: Timestamp,
    pub maxt: Timestamp,
    /// Prometheus' number.
    pub encoding: u8,
    pub bytes: Vec<u8>,
    /// Spans, sorted and without overlaps, whose samples are deleted: they are not to be handed on.
    /// Empty for nearly every chunk.
    pub deleted: Vec<TimeRange>,
}
