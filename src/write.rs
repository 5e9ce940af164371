//! The nouns of the write path.

pub mod admission;
pub mod alone;
pub mod decode;
pub mod distribute;
pub mod error;
pub mod fanout;
pub mod heavy;
pub mod label_rules;
pub mod local;
pub mod peer_writes;
pub mod quorum;
pub mod sink;

use crate::wire::refused::RefusedSeries;
use crate::write::error::{Reason, Refusals};

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
    /// Samples stored, repeats of equal samples included.
    pub samples_stored: u64,
    /// Exemplars counted and dropped, since exemplar storage is off.
    pub exemplars_dropped: u64,
    /// What of it is stored, as remote write 2.0 tells its senders.
    pub written: WrittenCounts,
    /// Metadata entries seen.
    pub metadata: u64,
    pub refusals: Refusals,
    /// Which series the refusals are about, by their places in the request, with the reasons'
    /// [codes](error::Reason::code). Empty where that is not known.
    pub refused_series: RefusedSeries,
}

/// What of a request was written. In a ring, that is what a quorum has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenCounts {
    /// Float samples, repeats of equal ones included.
    pub samples: u64,
    pub histograms: u64,
    /// Those dropped while exemplar storage is off included, as Prometheus and Thanos count them: to
    /// send them again changes nothing.
    pub exemplars: u64,
}

impl std::ops::AddAssign for WrittenCounts {
    fn add_assign(&mut self, more: WrittenCounts) {
        self.samples += more.samples;
        self.histograms += more.histograms;
        self.exemplars += more.exemplars;
    }
}

impl WriteOutcome {
    /// Adds refused series, given by their places, rising.
    pub fn refuse(&mut self, reason: Reason, places: &[u32], example: String) {
        let is_known = self.refusals.is_empty() || !self.refused_series.is_empty();
        self.refusals.add(reason, places.len() as u64, || example);
        if !is_known {
            return;
        }
        let places = places.iter().map(|place| (*place, reason.code()));
        let mut all: Vec<_> = self.refused_series.iter().chain(places).collect();
        all.sort_unstable();
        self.refused_series = RefusedSeries::default();
        all.into_iter().for_each(|(place, reason)| self.refused_series.push(place, reason));
    }
}
