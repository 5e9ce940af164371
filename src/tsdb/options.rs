//! How a database behaves.

use std::time::Duration;

use crate::tsdb::retention::Retention;
use crate::tsdb::wal::{Compression, SyncPolicy};

#[derive(Clone, Debug)]
pub struct DbOptions {
    /// `--tsdb.min-block-duration`, in milliseconds: the head's chunks end at its multiples.
    pub block_range: i64,
    /// `--tsdb.max-block-duration`, in milliseconds: blocks end at its multiples.
    pub cut_range: i64,
    /// In milliseconds: blocks are merged up to this length.
    pub merged_max: i64,
    /// Whether an operator has said so.
    pub is_merged_max_given: bool,
    pub retention: Retention,
    pub wal_compression: Compression,
    pub wal_segment_bytes: u64,
    /// At least so much of the log's end is read before writes are taken, but not more than a quarter
    /// of a segment. A million series have their last samples in 32 MiB.
    pub wal_looked_at_bytes: u64,
    pub wal_sync: SyncPolicy,
    /// `--tsdb.wal-truncate-by-head-chunks`
    pub wal_by_coverage: bool,
    /// `--tsdb.no-lockfile`
    pub no_lockfile: bool,
    /// `--tsdb.too-far-in-future.time-window`; zero takes any future time.
    pub too_far_in_future: Duration,
    /// Series a head takes; further ones are refused.
    pub series_max: usize,
    /// `--tsdb.max-exemplars`: how many are kept; none are stored at 0.
    pub exemplars_max: usize,
}

impl Default for DbOptions {
    fn default() -> DbOptions {
        DbOptions {
            block_range: 2 * 60 * 60 * 1000,
            cut_range: 2 * 60 * 60 * 1000,
            is_merged_max_given: false,
            merged_max: 31 * 24 * 60 * 60 * 1000,
            retention: Retention::default(),
            wal_compression: Compression::Snappy,
            wal_segment_bytes: 128 * 1024 * 1024,
            wal_looked_at_bytes: 32 * 1024 * 1024,
            wal_sync: SyncPolicy::Interval,
            wal_by_coverage: false,
            no_lockfile: false,
            too_far_in_future: Duration::ZERO,
            series_max: 50_000_000,
            exemplars_max: 0,
        }
    }
}
