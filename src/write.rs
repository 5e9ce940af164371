//! The nouns of the write path.

pub mod admission;
pub mod distribute;
pub mod error;
pub mod fanout;
pub mod heavy;
pub mod known;
pub mod local;
pub mod quorum;
pub mod service;

use crate::wire::refused::RefusedSeries;
use crate::write::error::Refusals;

/// Whose rules an endpoint follows where Thanos and Prometheus differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// `/api/v1/receive`: labels out of order are refused, a conflict is 409, success 200.
    Thanos,
    /// `/api/v1/write`: labels out of order are sorted, a refused sample is 400, success 204.
    Prometheus,
}

/// What became of one request whose bytes could be decoded. Whatever is not refused is stored.
#[derive(Debug, Default)]
pub struct WriteOutcome {
    /// Series messages in the request.
    pub series: u64,
    /// Float samples stored, repeats of equal samples included.
    pub samples_stored: u64,
    /// Exemplars counted and dropped, since exemplar storage is off.
    pub exemplars_dropped: u64,
    /// Metadata entries seen.
    pub metadata: u64,
    pub refusals: Refusals,
    /// Which series the refusals are about, by their places in the request, with the reasons'
    /// [codes](error::Reason::code). Empty where that is not known.
    pub refused_series: RefusedSeries,
}
