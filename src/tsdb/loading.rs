//! How far the reading of a database's log has come, for those who show it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::tsdb::wal::SegmentIndex;
use crate::tsdb::wal::repair::RecordSource;

/// Written by the one that loads, read by any.
#[derive(Default)]
pub struct Loading {
    /// None until the log is looked at.
    begun: OnceLock<Begun>,
    segments_read: AtomicU64,
    bytes_read: AtomicU64,
    series: AtomicU64,
    samples: AtomicU64,
}

struct Begun {
    at: Instant,
    /// Where each segment begins in the log, by number, rising.
    segments: Vec<(u64, u64)>,
    /// Of all segments; those of a checkpoint, which is short, do not count.
    bytes: u64,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadingStatus {
    pub segments: u64,
    pub segments_read: u64,
    /// Bytes of the segments.
    pub bytes: u64,
    pub bytes_read: u64,
    pub series: u64,
    /// Samples gone through, those that head chunks have included.
    pub samples: u64,
    pub elapsed: Duration,
}

impl LoadingStatus {
    /// How long the rest takes if it goes on like this; `None` while too little is read to tell.
    pub fn left(&self) -> Option<Duration> {
        if self.bytes_read == 0 {
            return None;
        }
        let left = self.bytes.saturating_sub(self.bytes_read) as f64;
        let left = self.elapsed.as_secs_f64() * left / self.bytes_read as f64;
        Duration::try_from_secs_f64(left).ok()
    }

    /// Samples a second.
    pub fn rate(&self) -> u64 {
        (self.samples as f64 / self.elapsed.as_secs_f64().max(0.001)) as u64
    }
}

impl Loading {
    /// The log is about to be read: these are its segments, and their bytes.
    pub(super) fn begin(&self, segments: &[(SegmentIndex, u64)]) {
        let mut bytes = 0;
        let segments = segments.iter().map(|(segment, len)| {
            let start = bytes;
            bytes += len;
            (segment.0, start)
        });
        let segments = segments.collect();
        let _ = self.begun.set(Begun { at: Instant::now(), segments, bytes });
    }

    /// A record was read.
    #[inline]
    pub(super) fn at(&self, source: RecordSource) {
        let RecordSource::Segment(end) = source else { return };
        let Some(begun) = self.begun.get() else { return };
        let found = begun.segments.binary_search_by_key(&end.segment.0, |(segment, _)| *segment);
        let (Ok(i) | Err(i)) = found;
        let start = begun.segments.get(i).map_or(begun.bytes, |(_, start)| *start);
        self.segments_read.store(i as u64, Ordering::Relaxed);
        self.bytes_read.store(start + end.offset, Ordering::Relaxed);
    }

    pub(super) fn built(&self, series: usize, samples: u64) {
        self.series.store(series as u64, Ordering::Relaxed);
        self.samples.store(samples, Ordering::Relaxed);
    }

    /// `None` before the log is looked at.
    pub fn status(&self) -> Option<LoadingStatus> {
        let begun = self.begun.get()?;
        Some(LoadingStatus {
            segments: begun.segments.len() as u64,
            segments_read: self.segments_read.load(Ordering::Relaxed),
            bytes: begun.bytes,
            bytes_read: self.bytes_read.load(Ordering::Relaxed).min(begun.bytes),
            series: self.series.load(Ordering::Relaxed),
            samples: self.samples.load(Ordering::Relaxed),
            elapsed: begun.at.elapsed(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tsdb::wal::LogPosition;

    #[tokio::test(start_paused = true)]
    async fn what_is_left_is_told_by_what_was_read() {
        let loading = Loading::default();
        assert_eq!(loading.status(), None);
        let segments = [(SegmentIndex(7), 1000), (SegmentIndex(8), 3000)];
        loading.begin(&segments);
        let begun = loading.status().unwrap();
        assert_eq!((begun.segments, begun.bytes, begun.left()), (2, 4000, None));
        loading.at(RecordSource::Checkpoint);
        assert_eq!(loading.status().unwrap().bytes_read, 0);
        let end = LogPosition { segment: SegmentIndex(8), offset: 1000 };
        loading.at(RecordSource::Segment(end));
        loading.built(3, 500);
        tokio::time::advance(Duration::from_secs(5)).await;
        let status = loading.status().unwrap();
        assert_eq!((status.segments_read, status.bytes_read, status.series), (1, 2000, 3));
        assert_eq!(status.left(), Some(Duration::from_secs(5)));
        assert_eq!(status.rate(), 100);
    }
}
