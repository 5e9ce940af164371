//! The log loses what blocks have at the end of a cut, and, if that is wanted, what sealed files of
//! head chunks have, by a checkpoint in the place of old segments.
//!
//! By head chunks it is cut when they have two thirds of it: each time all of it is read, so a
//! sample is read one and a half times, as with a cut of the head.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::chain;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::Db;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::head::replay::ReplayReport;
use crate::tsdb::head_chunks::seal::{SealError, SealedFiles};
use crate::tsdb::options::DbOptions;
use crate::tsdb::wal::{CheckpointError, Retained, SegmentIndex, Share, Tally, WalError};

/// What is known about the log between two truncations.
pub(super) struct Truncation {
    /// The log has to lose what is before this time.
    due: Option<Timestamp>,
    /// Tries that failed since the last good one, and when the next one comes.
    failed: u32,
    next_try: Option<Instant>,
    /// Blocks have what is before this time.
    below: Timestamp,
    /// How far head chunks have what the log has; `None` if it is to have it all the same.
    coverage: Option<InFiles>,
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

/// Samples of the log, and how many of these are in files of head chunks.
struct InFiles {
    in_log: u64,
    in_files: u64,
    /// Samples that the head had stored when these were counted.
    stored: u64,
    /// A log of fewer bytes stays.
    log_bytes_min: u64,
}

impl InFiles {
    fn count(&mut self, stored: u64) {
        self.in_log += stored.saturating_sub(std::mem::replace(&mut self.stored, stored));
    }

    fn is_most(&self, log_bytes: u64) -> bool {
        log_bytes >= self.log_bytes_min && self.in_files > 0 && self.in_files >= self.in_log / 3 * 2
    }
}

/// Where the samples of a ref are in the log, and how late, at most.
#[derive(Clone, Copy)]
struct InLog {
    last_segment: SegmentIndex,
    newest: Timestamp,
    /// The ref that the series is known by, if it has another one. Prometheus forgets the chunks in
    /// files that it has by then where the log names a series anew, so their samples stay in the
    /// log.
    known_by: Option<HeadSeriesRef>,
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
    #[error("sealing head chunks")]
    Seal(#[from] SealError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Truncation {
    pub(super) fn new(options: &DbOptions) -> Truncation {
        let log_bytes_min = options.wal_segment_bytes / 16;
        let coverage = InFiles { in_log: 0, in_files: 0, stored: 0, log_bytes_min };
        Truncation {
            due: None,
            failed: 0,
            next_try: None,
            below: Timestamp::MIN,
            coverage: options.wal_by_coverage.then_some(coverage),
            forgotten: BTreeMap::new(),
            own_from: SegmentIndex(0),
            keeps_all: false,
            has_unknown: false,
        }
    }

    /// Heeds what a replay found. The log goes on with a new segment.
    pub(super) fn heed(
        &mut self,
        replay: &ReplayReport,
        (floor, newest): (Timestamp, Timestamp),
        segment: SegmentIndex,
    ) {
        let in_log = |known_by| InLog { last_segment: segment, newest, known_by: Some(known_by) };
        self.below = floor;
        self.own_from = segment;
        let further = replay.further_refs.iter();
        self.forgotten = further.map(|(series, known_by)| (*series, in_log(*known_by))).collect();
        if let Some(coverage) = &mut self.coverage {
            let ReplayReport { samples, samples_skipped, samples_mapped, .. } = *replay;
            coverage.in_log = samples + samples_skipped + samples_mapped;
            coverage.in_files = samples_mapped;
        }
    }

    /// The head counts what it stores from here on.
    pub(super) fn count_from(&mut self, stored: u64) {
        if let Some(coverage) = &mut self.coverage {
            coverage.stored = stored;
        }
    }

    /// So many samples more are in files of head chunks.
    pub(super) fn note_in_files(&mut self, samples: u64) {
        if let Some(coverage) = &mut self.coverage {
            coverage.in_files += samples;
        }
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
        let in_log = InLog { last_segment, newest: Timestamp::MIN, known_by: None };
        self.forgotten.extend(series.into_iter().map(|series| (series, in_log)));
    }

    /// Notes that blocks have all before `mint`, and that the head does not.
    pub(super) fn note_dropped(&mut self, mint: Timestamp) {
        (self.due, self.failed, self.next_try) = (Some(mint), 0, None);
        self.below = mint;
    }

    /// Whether there is nothing left to lose, and nothing that no block takes.
    pub(super) fn is_at_rest(&self) -> bool {
        self.due.is_none() && !self.keeps_all && !self.has_unknown
    }

    /// Whether the log has to lose something now. It is `log_bytes` long, and the head has stored
    /// so many samples so far.
    fn is_due(&mut self, stored: u64, log_bytes: u64) -> bool {
        let waits = self.keeps_all || self.next_try.is_some_and(|next| next > Instant::now());
        let is_covered = self.coverage.as_mut().is_some_and(|coverage| {
            coverage.count(stored);
            coverage.is_most(log_bytes)
        });
        !waits && (self.due.is_some() || is_covered)
    }

    /// The log has lost what it can for now, of this share of it.
    fn note_done(&mut self, share: Share, samples: Tally) {
        (self.due, self.failed, self.next_try) = (None, 0, None);
        if let Some(coverage) = &mut self.coverage {
            coverage.in_log = match share {
                // Of a part that was not read it is not known how many were dropped.
                Share::All => samples.kept,
                Share::TwoThirds => coverage.in_log.saturating_sub(samples.dropped),
            };
            coverage.in_files = 0;
        }
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
        if !truncation.is_due(self.head.samples_stored(), self.sync.log_bytes()) {
            return;
        }
        match self.replace_segments(truncation) {
            Ok(()) => {}
            Err(TruncateError::Checkpoint(CheckpointError::Stopped)) => {}
            Err(err) => {
                truncation.note_failure();
                let (dir, err) = (self.dir.display(), chain(&err));
                tracing::error!(%dir, err, "the log cannot be truncated; it will be tried again");
            }
        }
    }

    /// Puts a checkpoint in the place of what the log has that blocks have, as Prometheus does, or
    /// head chunks, if these are heeded; of all of it when the head has nothing.
    fn replace_segments(&self, truncation: &mut Truncation) -> Result<(), TruncateError> {
        let is_empty = self.head.time_range().is_none();
        let sealed = match truncation.coverage {
            Some(_) if !is_empty => self.seal_full_chunks(truncation)?,
            _ => None,
        };
        // What it says stays so: files go only when the head drops what they have.
        let coverage = sealed.map(|sealed| self.head.coverage(&sealed)).unwrap_or_default();
        if truncation.due.is_none() && coverage.is_empty() {
            truncation.note_done(Share::TwoThirds, Tally::default());
            return Ok(());
        }
        let share = if is_empty || !coverage.is_empty() { Share::All } else { Share::TwoThirds };
        let (begun, refs) = self.head.cut_log()?;
        // Segments that were filled since may name series that are not among the refs.
        let before_begun = SegmentIndex(begun.0.saturating_sub(1));
        let closed = self.sync.closed_segments()?.map(|closed| {
            let (first, last) = closed.into_inner();
            first..=last.min(before_begun)
        });
        let Some(last) = closed.and_then(|closed| share.last_of(closed)) else {
            truncation.note_done(share, Tally::default());
            return Ok(());
        };
        self.remove_snapshots()?;
        let mint = truncation.below;
        let may_have_samples = |in_log: &InLog| in_log.last_segment > last || in_log.newest >= mint;
        let forgotten = &mut truncation.forgotten;
        let is_kept = |series: HeadSeriesRef| {
            refs.binary_search(&series).is_ok()
                || forgotten.get(&series).is_some_and(may_have_samples)
        };
        // A log of which nothing is kept need not be read, which takes as long as writing it did.
        let keeps_none = is_empty && refs.is_empty() && !forgotten.values().any(may_have_samples);
        let unread = keeps_none.then_some(truncation.own_from);
        let shared: BTreeSet<_> = forgotten.values().filter_map(|in_log| in_log.known_by).collect();
        let is_in_files = |series: HeadSeriesRef, t: Timestamp| {
            coverage.has(series, t) && (shared.is_empty() || !shared.contains(&series))
        };
        let is_elsewhere: &dyn Fn(_, _) -> _ = &is_in_files;
        let is_elsewhere = (!coverage.is_empty()).then_some(is_elsewhere);
        let retained = Retained { mint, is_elsewhere, keeps: &is_kept };
        let report = self.sync.checkpoint_with_unread(last, &retained, unread)?;
        forgotten.retain(|_, in_log| may_have_samples(in_log));
        truncation.note_done(share, report.samples);
        Ok(())
    }

    /// The files of head chunks that the log need not vouch for. If there are none for now, what
    /// blocks have can still leave it.
    fn seal_full_chunks(&self, truncation: &Truncation) -> Result<Option<SealedFiles>, SealError> {
        match self.head.seal_full_chunks(&|| self.sync.file_system_failures()) {
            Ok(sealed) => Ok(Some(sealed)),
            Err(err) if truncation.due.is_some() => {
                let (dir, err) = (self.dir.display(), chain(&err));
                tracing::warn!(%dir, err, "head chunks cannot be sealed; the log keeps them");
                Ok(None)
            }
            Err(err) => Err(err),
        }
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
