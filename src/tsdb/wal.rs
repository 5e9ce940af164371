//! The write-ahead log.

/// How records are compressed. Any log is read, whatever it was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Snappy,
    Zstd,
}

/// When the log reaches the medium. `--tsdb.wal-sync`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// At least every second.
    Interval,
    /// Before the answer, many requests at a time.
    Always,
    /// When a segment is full, as Prometheus.
    Segment,
}
