//! The end of a cut: the log loses what blocks have, by a checkpoint in the place of old segments.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::chain;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::Db;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::head::replay::ReplayReport;
use crate::tsdb::wal::{CheckpointError, Retained, SegmentIndex, Share, WalError};

/// What is known about the log between two truncations.
#[derive(Default)]
pub(super) struct Truncation {
    /// The log has to lose what is before this time.
    due: Option<Timestamp>,
    /// Tries that failed since the last good one, and when the next one comes.
    failed: u32,
    next_try: Option<Instant>,
    /// Refs that are no series' of the head, and of which the log has samples: their records stay as
    /// long as these.
    forgotten: BTreeMap<HeadSeriesRef, InLog>,
    /// From this segment on the log is ours alone: it has series and float samples, nothing else.
    own_from: SegmentIndex,
    /// The log has what no block takes: it stays as it is.
    keeps_all: bool,
    /// It has what nothing here knows.
    has_unknown: bool,
}

/// Where the samples of a ref are in the log, and how late, at most.
#[derive(Clone, Copy)]
struct InLog {
    last_segment: SegmentIndex,
    newest: Timestamp,
}

/// A truncation that failed is tried again after so long at first, then after twice as long.
const RETRY: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(60 * 60);

/// Why the log is as long as it was.
#[derive(Debug, thiserror::Error)]
enum TruncateError {
    #[error("beginning a new segment")]
    Cut(#[from] WalError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Truncation {
    /// Heeds what a replay found. The log goes on with a new segment.
    pub(super) fn heed(&mut self, replay: &ReplayReport, newest: Timestamp, segment: SegmentIndex) {
        let in_log = InLog { last_segment: segment, newest };
        self.own_from = segment;
        self.forgotten = replay.further_refs.iter().map(|series| (*series, in_log)).collect();
        self.keeps_all |= replay.histograms_left > 0;
    }

    /// The log has records of types that nothing here knows, which checkpoints keep.
    pub(super) fn note_unknown(&mut self) {
        self.has_unknown = true;
    }

    /// Leaves the log as it is from now on.
    pub(super) fn keep_all(&mut self) {
        self.keeps_all = true;
    }

    /// Notes that the head forgot series whose samples are in blocks.
    pub(super) fn note_forgotten(
        &mut self,
        series: Vec<HeadSeriesRef>,
        last_segment: SegmentIndex,
    ) {
        let in_log = InLog { last_segment, newest: Timestamp::MIN };
        self.forgotten.extend(series.into_iter().map(|series| (series, in_log)));
    }

    /// Notes that blocks have all before `mint`, and that the head does not.
    pub(super) fn note_dropped(&mut self, mint: Timestamp) {
        (self.due, self.failed, self.next_try) = (Some(mint), 0, None);
    }

    /// Whether there is nothing left to lose, and nothing that no block takes.
    pub(super) fn is_at_rest(&self) -> bool {
        self.due.is_none() && !self.keeps_all && !self.has_unknown
    }

    /// What the log has to lose now.
    fn due_now(&self) -> Option<Timestamp> {
        let waits = self.keeps_all || self.next_try.is_some_and(|next| next > Instant::now());
        self.due.filter(|_| !waits)
    }

    fn note_failure(&mut self) {
        let wait = RETRY.saturating_mul(1 << self.failed.min(16)).min(RETRY_MAX);
        self.failed += 1;
        self.next_try = Some(Instant::now() + wait);
    }
}

impl Db {
    /// Cuts the log if there is something that it has to lose. What fails is tried again later; until
    /// then the log is longer than it need be.
    pub(super) fn truncate_log(&self, truncation: &mut Truncation) {
        let Some(mint) = truncation.due_now() else { return };
        match self.replace_segments(truncation, mint) {
            Ok(()) => truncation.due = None,
            Err(TruncateError::Checkpoint(CheckpointError::Stopped)) => {}
            Err(err) => {
                truncation.note_failure();
                let (dir, err) = (self.dir.display(), chain(&err));
                tracing::error!(%dir, err, "the log cannot be truncated; it will be tried again");
            }
        }
    }

    /// Puts a checkpoint in the place of what the log has below `mint`, as Prometheus does; of all of
    /// it when the head has nothing.
    fn replace_segments(
        &self,
        truncation: &mut Truncation,
        mint: Timestamp,
    ) -> Result<(), TruncateError> {
        let (begun, refs) = self.head.cut_log()?;
        let is_empty = self.head.time_range().is_none();
        let share = if is_empty { Share::All } else { Share::TwoThirds };
        // Segments that were filled since may name series that are not among the refs.
        let before_begun = SegmentIndex(begun.0.saturating_sub(1));
        let closed = self.sync.closed_segments()?.map(|closed| {
            let (first, last) = closed.into_inner();
            first..=last.min(before_begun)
        });
        let Some(last) = closed.and_then(|closed| share.last_of(closed)) else { return Ok(()) };
        self.remove_snapshots()?;
        let may_have_samples = |in_log: &InLog| in_log.last_segment > last || in_log.newest >= mint;
        let forgotten = &mut truncation.forgotten;
        let is_kept = |series: HeadSeriesRef| {
            refs.binary_search(&series).is_ok()
                || forgotten.get(&series).is_some_and(may_have_samples)
        };
        // A log of which nothing is kept need not be read, which takes as long as writing it did.
        let keeps_none = is_empty && refs.is_empty() && !forgotten.values().any(may_have_samples);
        let unread = keeps_none.then_some(truncation.own_from);
        self.sync.checkpoint_with_unread(last, &Retained { mint, keeps: &is_kept }, unread)?;
        forgotten.retain(|_, in_log| may_have_samples(in_log));
        Ok(())
    }

    /// Removes a Prometheus' snapshots of its head, which say from where on the log is to be read.
    fn remove_snapshots(&self) -> Result<(), TruncateError> {
        let disk = &*self.env.disk;
        let entries = disk.list(&self.dir).map_err(ReadError::io(&self.dir))?;
        let is_snapshot = |name: &OsStr| name.to_string_lossy().starts_with(SNAPSHOT_PREFIX);
        let mut snapshots = entries.iter().filter(|entry| is_snapshot(&entry.name)).peekable();
        if snapshots.peek().is_none() {
            return Ok(());
        }
        for snapshot in snapshots {
            let path = self.dir.join(&snapshot.name);
            disk.remove_dir_all(&path).map_err(WriteError::io(&path))?;
        }
        disk.sync_dir(&self.dir).map_err(WriteError::io(&self.dir))?;
        Ok(())
    }
}

/// What the names of a Prometheus' snapshots of its head begin with.
const SNAPSHOT_PREFIX: &str = "chunk_snapshot.";
