//! Making the log durable, beside the appends.
//!
//! A failed sync tells nothing about which bytes reached the medium, and Linux then calls the pages
//! clean, so that the next sync succeeds and proves nothing. So nothing since the last good sync
//! counts as durable until it was written again: each segment that is not wholly synced is written
//! anew, under a temporary name, from what was synced of it and the bytes kept in memory since;
//! synced; and renamed over the old file. No number changes and no record stands twice. Appends are
//! refused meanwhile.
//!
//! The bytes kept are those not synced yet. Under [`SyncPolicy::Always`] they are all kept, and
//! admission bounds them, since their requests are still unanswered; otherwise up to
//! [`TAIL_BYTES_KEPT`], and beyond that they are read back from the file, which most file systems
//! allow after a failed sync, and verified. Where that fails, too, the end is *lost*: it is cut off
//! the log, whose owner then logs again what he still knows of it ([`super::Wal::replace_lost_end`]).
//!
//! Until a failed sync is made good, a mark says so to the next process ([`super::unsynced`]). One
//! that is killed before it has made that file is the hole that is left.
//!
//! A sync that could not be tried, since no file descriptor was left, is no failed one: it is tried
//! again. The directories of a young log are held open until its first sync, which so needs none.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::names::NamesWriter;
use super::reader::{Found, SegmentReader};
use super::repair::REWRITE_SUFFIX;
use super::{
    LogPosition, SegmentIndex, SyncPolicy, WalMetrics, WalOptions, segment_path, unsynced,
};
use crate::disk::{Disk, DiskFile, OpenDir, lacks_descriptors};

/// Unsynced bytes kept in memory, a log, unless every append is synced.
const TAIL_BYTES_KEPT: usize = 1024 * 1024;
/// Threads that sync for those who wait, over all logs. A disk that hangs must not take all of the
/// runtime's threads for blocking work.
const THREADS_MAX: usize = 64;
/// Bytes copied at once from an old segment file to its successor.
const COPY_BYTES: usize = 1024 * 1024;
/// A tail buffer larger than this is freed when all is synced.
const TAIL_CAPACITY_KEPT: usize = 64 * 1024;

/// Why the log is not durable up to where it should be.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// May pass: another sync tries to write the unsynced bytes again.
    #[error("syncing the log: {0}")]
    Io(#[source] io::Error),
    /// The sync of other callers, whose error they report, failed.
    #[error("syncing the log failed")]
    Failed,
    /// The unsynced bytes are neither in memory nor whole in the file. Nothing is appended before
    /// the log's owner has replaced them.
    #[error("the log's unsynced end was lost after a failed sync")]
    TailLost,
}

/// Syncs a log. Cheap to clone, and valid as long as anyone holds it.
#[derive(Clone)]
pub struct SyncHandle(Arc<Shared>);

struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WalOptions,
    metrics: WalMetrics,
    tail_bytes_kept: usize,
    /// What waiters look at.
    status: watch::Sender<SyncStatus>,
    /// Whether a blocking task for waiters is on its way.
    is_scheduled: AtomicBool,
    /// Held by whoever syncs; taken before `log`.
    turn: Mutex<()>,
    /// Held by whoever makes a checkpoint; taken before `turn`.
    checkpoint_turn: Mutex<()>,
    /// A sync of the file system failed, which the log's state does not say yet.
    has_failed: AtomicBool,
    /// How many of these did.
    file_system_failures: AtomicU64,
    /// Whether the mark of a failed sync is in the log's directory.
    is_marked: AtomicBool,
    /// The first segment that is not wholly synced.
    unsynced_from: AtomicU64,
    /// Where series records are written a second time, and the path of the file, which is to be
    /// synced with the first bytes of each segment.
    names: OnceLock<(PathBuf, Arc<Mutex<NamesWriter>>)>,
    /// Held while an append writes, and otherwise for moments. Taken by [`Shared::lock`] only.
    log: Mutex<LogState>,
}

#[derive(Clone, Copy, Debug)]
struct SyncStatus {
    synced: LogPosition,
    failures: u64,
}

struct LogState {
    synced: LogPosition,
    /// Segments not wholly synced, and the one that is written to, which is the last.
    ///
    /// Invariant: never empty.
    segments: VecDeque<OpenSegment>,
    /// Whether there are names in the directory that may not be durable.
    has_new_names: bool,
    /// Whether the log's directory and the one it is in may have been made and not be durable.
    has_new_dirs: bool,
    /// The log's directory and those above it, of a young log.
    open_dirs: Option<Arc<OpenDirs>>,
    health: Health,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Sound,
    /// A sync failed: appends are refused until the tail was written again.
    TailUnsynced,
    TailLost,
}

/// Invariant: while its tail is kept, that ends where the segment does.
struct OpenSegment {
    index: SegmentIndex,
    file: Arc<dyn DiskFile>,
    written: u64,
    tail: Tail,
}

/// Directories that are held open.
struct OpenDirs {
    log: Box<dyn OpenDir>,
    above: Vec<Box<dyn OpenDir>>,
}

/// A segment's bytes that are not synced yet: those from `start` on.
#[derive(Clone)]
struct Tail {
    start: u64,
    /// `None` once there were too many to keep.
    bytes: Option<Vec<u8>>,
}

/// The log's state while an append writes.
pub(super) struct LogGuard<'s> {
    log: MutexGuard<'s, LogState>,
    tail_bytes_kept: usize,
}

impl SyncHandle {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        start: LogPosition,
        file: Arc<dyn DiskFile>,
        options: WalOptions,
        metrics: WalMetrics,
    ) -> SyncHandle {
        // One that could not be opened now is opened by the sync.
        let is_young = start == LogPosition::default();
        let open_dirs = is_young.then(|| OpenDirs::open(&*disk, dir).ok()).flatten();
        let tail = Tail { start: start.offset, bytes: Some(Vec::new()) };
        let current = OpenSegment { index: start.segment, file, written: start.offset, tail };
        SyncHandle(Arc::new(Shared {
            disk,
            dir: dir.to_owned(),
            options,
            metrics,
            tail_bytes_kept: match options.sync {
                SyncPolicy::Always => usize::MAX,
                SyncPolicy::Interval | SyncPolicy::Segment => TAIL_BYTES_KEPT,
            },
            status: watch::Sender::new(SyncStatus { synced: start, failures: 0 }),
            is_scheduled: AtomicBool::new(false),
            turn: Mutex::new(()),
            checkpoint_turn: Mutex::new(()),
            has_failed: AtomicBool::new(false),
            file_system_failures: AtomicU64::new(0),
            is_marked: AtomicBool::new(false),
            unsynced_from: AtomicU64::new(start.segment.0),
            names: OnceLock::new(),
            log: Mutex::new(LogState {
                synced: start,
                segments: VecDeque::from([current]),
                has_new_names: true,
                has_new_dirs: true,
                open_dirs: open_dirs.map(Arc::new),
                health: Health::Sound,
            }),
        }))
    }

    /// Up to where the log is durable.
    pub fn synced_position(&self) -> LogPosition {
        self.0.status.borrow().synced
    }

    /// Up to where the log is written; `None` while it is being written, which may take as long as
    /// the disk likes.
    pub fn written_position(&self) -> Option<LogPosition> {
        Some(self.0.try_lock()?.written())
    }

    /// Whether anything is written that is not durable, or a failed sync is to be made good. Does
    /// not wait for the disk: a log that is being written is dirty.
    pub fn is_dirty(&self) -> bool {
        let Some(log) = self.0.try_lock() else { return true };
        log.written() > log.synced || log.health != Health::Sound
    }

    /// Whether a sync failed and what it should have made durable is still to be written again.
    /// Until then appends are refused, so a log that is being written does not need it.
    pub fn needs_rewrite(&self) -> bool {
        self.0.try_lock().is_some_and(|log| log.health != Health::Sound)
    }

    /// Makes everything written before the call durable; up to where it then is. Blocks on the
    /// disk. After a failed sync it writes the unsynced bytes again.
    pub fn sync(&self) -> Result<LogPosition, SyncError> {
        self.sync_with(|| {})
    }

    /// `on_turn` is called before it is looked at what is to be synced.
    fn sync_with(&self, on_turn: impl FnOnce()) -> Result<LogPosition, SyncError> {
        let result = self.sync_in_turn(on_turn);
        if result.is_err() {
            self.0.status.send_modify(|status| status.failures += 1);
        }
        result
    }

    /// Says that the file system was synced after the log was written up to `position`. False if
    /// the log is being written, so that it cannot be noted now.
    pub fn mark_synced(&self, position: LogPosition) -> bool {
        let Some(mut log) = self.0.try_lock() else { return false };
        if log.health == Health::Sound {
            // Its names are older than its bytes, and those of its directories older still.
            log.has_new_names &= log.written().segment != position.segment;
            log.has_new_dirs = false;
            log.open_dirs = None;
            self.advance(&mut log, position);
        }
        true
    }

    /// Says that a sync of the file system failed, so that nothing since the last good one counts.
    /// Whoever holds the log now may go on; the next one knows.
    pub fn mark_sync_failed(&self) {
        self.0.file_system_failures.fetch_add(1, Ordering::AcqRel);
        self.0.has_failed.store(true, Ordering::Release);
        if self.is_dirty() {
            self.0.mark_unsynced();
        }
    }

    /// Waits until the log is durable up to `position`. Waiters share syncs: one runs at a time, on
    /// a thread for blocking work, and the next covers all that came meanwhile.
    pub async fn wait_synced(&self, position: LogPosition) -> Result<(), SyncError> {
        let mut status = self.0.status.subscribe();
        let failures_before = status.borrow_and_update().failures;
        loop {
            let SyncStatus { synced, failures } = *status.borrow_and_update();
            if synced >= position {
                return Ok(());
            }
            if failures != failures_before {
                return Err(SyncError::Failed);
            }
            if !self.0.is_scheduled.swap(true, Ordering::AcqRel) {
                let handle = self.clone();
                let sync = move || {
                    // Who comes once this sync has begun may not be covered by it and schedules the
                    // next, so there is at most one that waits for its turn.
                    let begin = || handle.0.is_scheduled.store(false, Ordering::Release);
                    // Waiters see an error in the status.
                    let _ = handle.sync_with(begin);
                };
                tokio::spawn(off_thread(sync));
            }
            if status.changed().await.is_err() {
                return Err(SyncError::Failed);
            }
        }
    }

    /// Syncs on a thread for blocking work. Nobody waits: an error is logged and counted.
    pub fn sync_in_background(&self) {
        let handle = self.clone();
        tokio::spawn(off_thread(move || drop(handle.sync())));
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.0.disk
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0.dir
    }

    pub(super) fn options(&self) -> &WalOptions {
        &self.0.options
    }

    pub(super) fn metrics(&self) -> &WalMetrics {
        &self.0.metrics
    }

    /// While this is held nobody else makes a checkpoint. Taken before all else.
    pub(super) fn take_checkpoint_turn(&self) -> MutexGuard<'_, ()> {
        self.0.checkpoint_turn.lock()
    }

    /// How often the file system could not be synced: what was written before and not synced since
    /// may not be on the medium, whatever its own sync says then.
    pub(in crate::tsdb) fn file_system_failures(&self) -> u64 {
        self.0.file_system_failures.load(Ordering::Acquire)
    }

    /// Bytes of the log's files, those of its checkpoint included.
    #[expect(clippy::cast_possible_truncation, reason = "a whole number, far below 2^53")]
    pub(in crate::tsdb) fn log_bytes(&self) -> u64 {
        self.metrics().storage_size.value() as u64
    }

    /// The segment that is written to. May wait for a write to the disk.
    pub(in crate::tsdb) fn current_segment(&self) -> SegmentIndex {
        self.0.lock().written().segment
    }

    /// Makes segments up to `last`, which must be closed, durable. From then on nobody touches them: a
    /// failed sync has only later ones written again, and a lost end begins behind them.
    pub(super) fn settle(&self, last: SegmentIndex) -> Result<(), SyncError> {
        let is_settled = || self.0.lock().segments.front().is_some_and(|first| first.index > last);
        if !is_settled() {
            self.sync()?;
            assert!(is_settled(), "segment {last} is written to");
        }
        Ok(())
    }

    /// The log's state for an append; `None` while appends are refused.
    pub(super) fn lock_for_append(&self) -> Option<LogGuard<'_>> {
        let log = self.0.lock();
        let tail_bytes_kept = self.0.tail_bytes_kept;
        (log.health == Health::Sound).then_some(LogGuard { log, tail_bytes_kept })
    }

    /// Series records are written a second time from now on. It is no part of the log, whose syncs do
    /// not fail with it.
    pub(super) fn keep_names(&self, names: Arc<Mutex<NamesWriter>>) {
        let path = names.lock().path().to_owned();
        let _ = self.0.names.set((path, names));
    }

    pub(super) fn names(&self) -> Option<&Mutex<NamesWriter>> {
        self.0.names.get().map(|(_, names)| &**names)
    }

    /// While this is held nobody syncs. Taken before the log's state.
    pub(super) fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.0.turn.lock()
    }

    /// The log's state for what is logged again, by the holder of the turn.
    pub(super) fn lock_to_log_again(&self) -> LogGuard<'_> {
        LogGuard { log: self.0.lock(), tail_bytes_kept: self.0.tail_bytes_kept }
    }

    pub(super) fn has_lost_tail(&self) -> bool {
        self.0.lock().health == Health::TailLost
    }

    /// Cuts the lost end off: what is not wholly synced is written anew up to where it is synced.
    /// The number of the last segment. By the holder of the turn.
    pub(super) fn cut_lost_tail(&self) -> Result<SegmentIndex, SyncError> {
        let (old, synced) = {
            let log = self.0.lock();
            let parts = |part: &OpenSegment| (part.index, part.file.clone());
            (log.segments.iter().map(parts).collect::<Vec<_>>(), log.synced)
        };
        let mut cut = Vec::with_capacity(old.len());
        for (index, file) in &old {
            let kept = if *index == synced.segment { synced.offset } else { 0 };
            let new = self.begin_rewrite(*index)?;
            let copied = copy(&**file, &*new, kept).map_err(SyncError::Io)?;
            if copied < kept {
                let file = segment_path(&self.0.dir, *index);
                let file = file.display();
                tracing::error!(%file, copied, kept, "what was durable is gone from the log");
            }
            self.end_rewrite(*index, &*new)?;
            cut.push((new, copied));
        }
        self.0
            .sync_names(&NewNames { in_log: true, dirs: true, open: None })
            .map_err(SyncError::Io)?;
        let mut log = self.0.lock();
        for (segment, (file, len)) in log.segments.iter_mut().zip(cut) {
            (segment.file, segment.written) = (file, len);
            segment.tail = Tail { start: len, bytes: Some(Vec::new()) };
        }
        Ok(log.written().segment)
    }

    /// Makes what was logged again durable, and lets appends in. By the holder of the turn.
    pub(super) fn end_lost_tail(&self) -> Result<(), SyncError> {
        let files: Vec<_> = {
            let log = self.0.lock();
            log.segments.iter().map(|segment| segment.file.clone()).collect()
        };
        files.iter().try_for_each(|file| file.sync()).map_err(SyncError::Io)?;
        self.0
            .sync_names(&NewNames { in_log: true, dirs: true, open: None })
            .map_err(SyncError::Io)?;
        self.become_sound();
        Ok(())
    }

    fn become_sound(&self) -> LogPosition {
        let mut log = self.0.lock();
        log.health = Health::Sound;
        log.has_new_names = false;
        log.has_new_dirs = false;
        let written = log.written();
        let synced = self.advance(&mut log, written);
        drop(log);
        self.0.sync_copies();
        self.0.unmark_unsynced();
        synced
    }

    fn sync_in_turn(&self, on_turn: impl FnOnce()) -> Result<LogPosition, SyncError> {
        let _turn = self.0.turn.lock();
        on_turn();
        let (files, written, new_names) = {
            let log = self.0.lock();
            match log.health {
                Health::TailLost => return Err(SyncError::TailLost),
                Health::TailUnsynced => {
                    drop(log);
                    return self.rewrite_tail();
                }
                Health::Sound if log.written() == log.synced => return Ok(log.synced),
                Health::Sound => {}
            }
            let files: Vec<_> = log.segments.iter().map(|segment| segment.file.clone()).collect();
            (files, log.written(), log.new_names())
        };
        let started = Instant::now();
        let files_synced = files.iter().try_for_each(|file| file.sync());
        let synced = match files_synced.and_then(|()| self.0.sync_names(&new_names)) {
            // Files are open, so it was a directory that could not be.
            Err(err) if lacks_descriptors(&err) => return Err(SyncError::Io(err)),
            synced => synced,
        };
        self.0.metrics.fsync_duration.observe(started.elapsed().as_secs_f64());
        if let Err(err) = synced {
            tracing::warn!(dir = %self.0.dir.display(), %err, "the log could not be synced");
            self.0.lock().fail();
            return self.rewrite_tail();
        }
        if new_names.in_log {
            self.0.sync_copies();
        }
        let mut log = self.0.lock();
        // A file-system sync may have been reported failed meanwhile.
        if log.health != Health::Sound {
            return Err(SyncError::Failed);
        }
        // A segment begun since has a name of its own to be synced.
        log.has_new_names &= log.written().segment != written.segment;
        log.has_new_dirs = false;
        log.open_dirs = None;
        Ok(self.advance(&mut log, written))
    }

    fn advance(&self, log: &mut LogState, position: LogPosition) -> LogPosition {
        log.advance(position);
        let synced = log.synced;
        if let Some(first) = log.segments.front() {
            self.0.unsynced_from.store(first.index.0, Ordering::Release);
        }
        self.0.status.send_modify(|status| status.synced = synced);
        synced
    }

    /// Writes the segments that are not synced again. The caller has the turn, and the state is
    /// `TailUnsynced`, so nothing is appended meanwhile.
    fn rewrite_tail(&self) -> Result<LogPosition, SyncError> {
        self.0.mark_unsynced();
        let old: Vec<_> = {
            let log = self.0.lock();
            let parts = |part: &OpenSegment| {
                (part.index, part.file.clone(), part.written, part.tail.clone())
            };
            log.segments.iter().map(parts).collect()
        };
        let mut files = Vec::with_capacity(old.len());
        for (index, file, written, tail) in &old {
            let rewritten = self.rewrite_segment(*index, &**file, *written, tail);
            if let Err(SyncError::TailLost) = rewritten {
                let dir = self.0.dir.display();
                tracing::error!(%dir, "the log's unsynced end was lost after a failed sync");
                self.0.metrics.ends_lost.inc();
                self.0.lock().health = Health::TailLost;
            }
            files.push(rewritten?);
        }
        let new_names = NewNames { in_log: true, dirs: true, open: None };
        self.0.sync_names(&new_names).map_err(SyncError::Io)?;
        let mut log = self.0.lock();
        for (segment, file) in log.segments.iter_mut().zip(files) {
            segment.file = file;
        }
        drop(log);
        Ok(self.become_sound())
    }

    /// Writes one segment anew, syncs it and gives it the segment's name.
    fn rewrite_segment(
        &self,
        index: SegmentIndex,
        old: &dyn DiskFile,
        written: u64,
        tail: &Tail,
    ) -> Result<Arc<dyn DiskFile>, SyncError> {
        debug_assert!(tail.ends_at(written));
        let new = self.begin_rewrite(index)?;
        let wanted = if tail.bytes.is_some() { tail.start } else { written };
        if copy(old, &*new, wanted).map_err(SyncError::Io)? < wanted {
            return Err(SyncError::TailLost);
        }
        if let Some(bytes) = &tail.bytes {
            new.write_all_at(bytes, tail.start).map_err(SyncError::Io)?;
        } else if !is_whole(&*self.0.disk, &self.rewrite_path(index), written)
            .map_err(SyncError::Io)?
        {
            return Err(SyncError::TailLost);
        }
        self.end_rewrite(index, &*new)?;
        Ok(new)
    }

    fn rewrite_path(&self, index: SegmentIndex) -> PathBuf {
        self.0.dir.join(format!("{index}{REWRITE_SUFFIX}"))
    }

    fn begin_rewrite(&self, index: SegmentIndex) -> Result<Arc<dyn DiskFile>, SyncError> {
        self.0.disk.create(&self.rewrite_path(index)).map_err(SyncError::Io)
    }

    fn end_rewrite(&self, index: SegmentIndex, new: &dyn DiskFile) -> Result<(), SyncError> {
        new.sync().map_err(SyncError::Io)?;
        let path = segment_path(&self.0.dir, index);
        self.0.disk.rename(&self.rewrite_path(index), &path).map_err(SyncError::Io)
    }
}

/// Does `sync` on a thread for blocking work, as soon as fewer than [`THREADS_MAX`] do.
async fn off_thread(sync: impl FnOnce() + Send + 'static) {
    static PLACES: Semaphore = Semaphore::const_new(THREADS_MAX);
    // It is never closed.
    let Ok(_place) = PLACES.acquire().await else { return };
    // A panic was logged; waiters have their time-outs.
    let _ = tokio::task::spawn_blocking(sync).await;
}

impl Shared {
    /// May wait for a write to the disk.
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.with_failure(self.log.lock())
    }

    /// `None` while an append writes, and now and then otherwise.
    fn try_lock(&self) -> Option<MutexGuard<'_, LogState>> {
        Some(self.with_failure(self.log.try_lock()?))
    }

    fn with_failure<'s>(&self, mut log: MutexGuard<'s, LogState>) -> MutexGuard<'s, LogState> {
        if self.has_failed.swap(false, Ordering::AcqRel) {
            log.fail();
        }
        log
    }

    fn sync_copies(&self) {
        // Without its lock: an append does not wait for this.
        let Some((path, _)) = self.names.get() else { return };
        if let Err(err) = self.disk.open_write(path).and_then(|file| file.sync()) {
            tracing::warn!(path = %path.display(), %err, "a file beside the log cannot be synced");
        }
    }

    /// Leaves the mark of a failed sync, unless it is there.
    fn mark_unsynced(&self) {
        if self.is_marked.load(Ordering::Acquire) {
            return;
        }
        let from = SegmentIndex(self.unsynced_from.load(Ordering::Acquire));
        let mark = || unsynced::mark(&*self.disk, &self.dir, from);
        // A fault that passes is no reason to go without.
        match mark().or_else(|_| mark()) {
            Ok(()) => self.is_marked.store(true, Ordering::Release),
            Err(err) => {
                let dir = self.dir.display();
                tracing::error!(%dir, %err, "a failed sync could not be marked in the log");
            }
        }
    }

    fn unmark_unsynced(&self) {
        if !self.is_marked.load(Ordering::Acquire) {
            return;
        }
        match unsynced::unmark(&*self.disk, &self.dir) {
            Ok(()) => self.is_marked.store(false, Ordering::Release),
            // The next opening writes the log's end again for nothing.
            Err(err) => {
                let dir = self.dir.display();
                tracing::warn!(%dir, %err, "the mark of a failed sync could not be taken away");
            }
        }
    }

    /// Makes names of segments durable, and of the directories that lead to them.
    fn sync_names(&self, new: &NewNames) -> io::Result<()> {
        if new.in_log {
            match &new.open {
                Some(open) => open.log.sync()?,
                None => self.disk.sync_dir(&self.dir)?,
            }
        }
        match &new.open {
            _ if !new.dirs => Ok(()),
            Some(open) => open.above.iter().try_for_each(|dir| dir.sync()),
            None => dirs_above(&self.dir).try_for_each(|dir| self.disk.sync_dir(dir)),
        }
    }
}

/// The directory in which the log's is, and the one in which that is.
fn dirs_above(dir: &Path) -> impl Iterator<Item = &Path> {
    dir.ancestors().skip(1).take(2).filter(|dir| !dir.as_os_str().is_empty())
}

/// Names that may not be durable.
struct NewNames {
    in_log: bool,
    dirs: bool,
    open: Option<Arc<OpenDirs>>,
}

impl OpenDirs {
    fn open(disk: &dyn Disk, dir: &Path) -> io::Result<OpenDirs> {
        let above = dirs_above(dir).map(|dir| disk.open_dir(dir)).collect::<io::Result<_>>()?;
        Ok(OpenDirs { log: disk.open_dir(dir)?, above })
    }
}

/// Copies the first `len` bytes; how many there were.
#[expect(clippy::cast_possible_truncation, reason = "at most `COPY_BYTES`")]
fn copy(from: &dyn DiskFile, to: &dyn DiskFile, len: u64) -> io::Result<u64> {
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(len).unwrap_or(COPY_BYTES))];
    let mut copied = 0;
    while copied < len {
        let wanted = (len - copied).min(COPY_BYTES as u64) as usize;
        let read = from.read_at(&mut buffer[..wanted], copied)?;
        if read == 0 {
            break;
        }
        to.write_all_at(&buffer[..read], copied)?;
        copied += read as u64;
    }
    Ok(copied)
}

/// Whether a segment file holds records without damage up to its end at `len`.
fn is_whole(disk: &dyn Disk, path: &Path, len: u64) -> io::Result<bool> {
    let mut reader = SegmentReader::open(disk, path)?;
    let mut end = 0;
    while let Some(found) = reader.read_next()? {
        match found {
            Found::Record(record) => end = record.end,
            Found::Damage(_) => return Ok(false),
        }
    }
    // Behind the last record there is at most a page's padding.
    Ok(reader.file_bytes() == len && len - end < super::segment::PAGE_BYTES as u64)
}

impl LogState {
    fn written(&self) -> LogPosition {
        let current = self.segments.back().expect("a log has a current segment");
        LogPosition { segment: current.index, offset: current.written }
    }

    fn new_names(&self) -> NewNames {
        NewNames {
            in_log: self.has_new_names,
            dirs: self.has_new_dirs,
            open: self.open_dirs.clone(),
        }
    }

    /// Of a log that is synced to its end, nothing was to reach the medium.
    fn fail(&mut self) {
        if self.health == Health::Sound && self.written() > self.synced {
            self.health = Health::TailUnsynced;
        }
    }

    fn advance(&mut self, position: LogPosition) {
        self.synced = self.synced.max(position.min(self.written()));
        while let Some(first) = self.segments.front()
            && first.index < self.synced.segment
        {
            self.segments.pop_front();
        }
        if let Some(first) = self.segments.front_mut()
            && first.index == self.synced.segment
        {
            first.tail.drop_until(self.synced.offset, first.written);
            debug_assert!(first.tail.ends_at(first.written));
        }
        debug_assert!(self.synced <= self.written());
    }
}

impl Tail {
    /// Whether what is kept ends there.
    fn ends_at(&self, end: u64) -> bool {
        self.bytes.as_ref().is_none_or(|bytes| self.start + bytes.len() as u64 == end)
    }

    fn push(&mut self, bytes: &[u8], kept_max: usize) {
        match &mut self.bytes {
            Some(kept) if kept.len().saturating_add(bytes.len()) <= kept_max => {
                kept.extend_from_slice(bytes);
            }
            kept => *kept = None,
        }
    }

    /// Forgets what is synced, of a segment `written` bytes long.
    fn drop_until(&mut self, synced: u64, written: u64) {
        if synced == written {
            let mut kept = self.bytes.take().unwrap_or_default();
            kept.clear();
            kept.shrink_to(TAIL_CAPACITY_KEPT);
            self.bytes = Some(kept);
        } else if let Some(kept) = &mut self.bytes {
            let dropped = usize::try_from(synced - self.start).unwrap_or(usize::MAX);
            kept.drain(..dropped.min(kept.len()));
        }
        self.start = synced;
    }
}

impl LogGuard<'_> {
    /// The place behind what was written.
    pub(super) fn end(&self) -> LogPosition {
        self.log.written()
    }

    /// The file of the segment that is written to.
    pub(super) fn current_file(&self) -> &dyn DiskFile {
        let current = self.log.segments.back().expect("a log has a current segment");
        &*current.file
    }

    pub(super) fn begin_segment(&mut self, index: SegmentIndex, file: Arc<dyn DiskFile>) {
        debug_assert!(index > self.log.written().segment, "segment {index} is not the next");
        let tail = Tail { start: 0, bytes: Some(Vec::new()) };
        self.log.segments.push_back(OpenSegment { index, file, written: 0, tail });
        self.log.has_new_names = true;
    }

    /// Says that `bytes` were written behind the current segment's end.
    pub(super) fn wrote(&mut self, bytes: &[u8]) {
        let tail_bytes_kept = self.tail_bytes_kept;
        if let Some(current) = self.log.segments.back_mut() {
            current.written += bytes.len() as u64;
            current.tail.push(bytes, tail_bytes_kept);
            debug_assert!(current.tail.ends_at(current.written));
        }
    }
}
