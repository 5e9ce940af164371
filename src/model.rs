//! The nouns every layer shares: times, tenants, references, labels, matchers. No I/O here.

pub mod bytes;
pub mod fingerprint;
pub mod histogram;
pub mod key_table;
pub mod labels;
pub mod matcher;
pub mod pairs;
pub mod ring_hash;
pub mod router_path;
pub mod stop;
pub mod target;
pub mod tenant;
pub mod varint;

/// Milliseconds since the Unix epoch. Any `i64` is a legal sample time.
pub type Timestamp = i64;

/// The staleness marker: a NaN of these very bits (Prometheus `model/value`), kept bit for bit.
pub const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// What the log knows a series by: rises with every new series, is never reused, stays below 2^40
/// (Prometheus queries panic from there on). Not an index; see [`crate::tsdb::head`] for slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeadSeriesRef(pub u64);

impl HeadSeriesRef {
    pub const LIMIT: u64 = 1 << 40;
}

/// A span of time, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    pub mint: Timestamp,
    pub maxt: Timestamp,
}

impl TimeRange {
    pub fn overlaps(&self, mint: Timestamp, maxt: Timestamp) -> bool {
        self.mint <= maxt && mint <= self.maxt
    }
}
