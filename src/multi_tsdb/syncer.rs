//! Makes every tenant's log durable at least once a second, each on a thread for the disk: one that
//! hangs holds up no other.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::model::tenant::TenantId;
use crate::multi_tsdb::disk_threads::{DiskThreads, Lane};
use crate::multi_tsdb::{MultiTsdb, Tenant};
use crate::tsdb::Db;
use crate::tsdb::wal::{LogPosition, SyncError};

/// Half of the second that is promised: a sync takes its time, too.
pub(super) const SYNC_EVERY: Duration = Duration::from_millis(500);

/// With more dirty logs than this, one sync of the file system is cheaper than one per log.
const SYNCED_ONE_BY_ONE: usize = 4;

/// Syncs the logs that have something to sync.
pub(super) fn sync_dirty(tenants: &MultiTsdb) {
    sync_each(sync_together(tenants));
}

/// The same on this thread, one log after another.
pub(super) fn sync_dirty_here(tenants: &MultiTsdb) {
    sync_together(tenants).iter().for_each(|tenant| tenant.syncs.0.sync());
}

/// Under the policy that syncs full segments only: makes failed syncs good, or their logs would
/// take no append any more.
pub(super) fn mend_failed(tenants: &MultiTsdb) {
    let mut failed = tenants.written_tenants();
    failed.retain(|tenant| tenant.db.sync_handle().needs_rewrite());
    sync_each(failed);
}

/// Each log makes its own failure good.
fn sync_each(tenants: Vec<Arc<Tenant>>) {
    tenants.iter().for_each(|tenant| tenant.syncs.schedule());
}

/// The syncs of one tenant's log.
pub(super) struct SyncLane(Arc<Inner>);

struct Inner {
    tenant: TenantId,
    db: Arc<Db>,
    threads: Arc<DiskThreads>,
    /// Whether a sync is under way or will be.
    is_scheduled: AtomicBool,
    /// Of the attempts to replace a lost end.
    back_off: Mutex<BackOff>,
}

/// Turns that are let pass between attempts.
#[derive(Default)]
struct BackOff {
    failures: u32,
    turns_left: u32,
}

/// Between two attempts at most: half a minute, with a turn each [`SYNC_EVERY`].
const TURNS_PASSED_MAX: u32 = 60;

impl BackOff {
    fn is_turn(&mut self) -> bool {
        let is_turn = self.turns_left == 0;
        self.turns_left = self.turns_left.saturating_sub(1);
        is_turn
    }

    fn failed(&mut self) {
        self.turns_left = (1 << self.failures.min(16)).min(TURNS_PASSED_MAX);
        self.failures += 1;
    }
}

impl SyncLane {
    pub(super) fn new(tenant: TenantId, db: Arc<Db>, threads: Arc<DiskThreads>) -> SyncLane {
        let (is_scheduled, back_off) = (AtomicBool::new(false), Mutex::default());
        SyncLane(Arc::new(Inner { tenant, db, threads, is_scheduled, back_off }))
    }

    /// Syncs what is written by now; with the sync that is under way or the next one.
    fn schedule(&self) {
        if !self.0.is_scheduled.swap(true, Ordering::AcqRel) {
            self.0.threads.schedule(self.0.clone());
        }
    }
}

impl Inner {
    fn sync(&self) {
        match self.db.sync_handle().sync() {
            Ok(_) => {}
            Err(SyncError::TailLost) => self.replace_lost_end(),
            Err(err) => tracing::error!(tenant = %self.tenant, %err, "syncing the log failed"),
        }
    }

    /// Until this is done the tenant takes no writes.
    fn replace_lost_end(&self) {
        let mut back_off = self.back_off.lock();
        if !back_off.is_turn() {
            return;
        }
        match self.db.replace_lost_end() {
            Ok(_) => {
                *back_off = BackOff::default();
                let message = "the log's lost end was logged again; writes are taken again";
                tracing::warn!(tenant = %self.tenant, "{message}");
            }
            Err(err) => {
                back_off.failed();
                let message = "the log's lost end could not be logged again";
                tracing::error!(tenant = %self.tenant, %err, "{message}");
            }
        }
    }
}

impl Lane for Inner {
    fn name(&self) -> &str {
        self.tenant.as_str()
    }

    fn serve(&self) -> bool {
        self.sync();
        // What is written since is dirty and comes with the next look.
        self.is_scheduled.store(false, Ordering::Release);
        false
    }
}

/// One sync of the file system for all logs that have something to sync, if they are many. Returns
/// those that are still to be synced by themselves.
fn sync_together(tenants: &MultiTsdb) -> Vec<Arc<Tenant>> {
    let mut dirty = tenants.written_tenants();
    dirty.retain(|tenant| tenant.db.sync_handle().is_dirty());
    if dirty.len() <= SYNCED_ONE_BY_ONE {
        return dirty;
    }
    // Before the sync: what is written meanwhile may not be covered by it. A log that is being
    // written may be on a disk that hangs, and is synced by itself.
    let written: Vec<_> =
        dirty.iter().map(|tenant| tenant.db.sync_handle().written_position()).collect();
    if let Err(err) = tenants.env.disk.sync_file_system(&tenants.options.dir) {
        tracing::error!(%err, "syncing the file system failed");
        if !was_not_tried(&err) {
            // Those that were written since are among what the kernel takes for clean now.
            tenants
                .written_tenants()
                .iter()
                .for_each(|tenant| tenant.db.sync_handle().mark_sync_failed());
        }
        return dirty;
    }
    let is_left = |(tenant, position): (Arc<Tenant>, Option<LogPosition>)| {
        let log = tenant.db.sync_handle();
        let is_noted = position.is_some_and(|position| log.mark_synced(position));
        (!is_noted || log.needs_rewrite()).then_some(tenant)
    };
    dirty.into_iter().zip(written).filter_map(is_left).collect()
}

/// Whether an error means that nothing was written back at all: no file handle was left, or the
/// system has no such call. Then nothing is lost, and each log is synced by itself.
fn was_not_tried(err: &io::Error) -> bool {
    use rustix::io::Errno;
    const NOT_TRIED: [Errno; 7] = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOSYS,
        Errno::PERM,
        Errno::ACCESS,
        Errno::INVAL,
        Errno::OPNOTSUPP,
    ];
    Errno::from_io_error(err).is_some_and(|errno| NOT_TRIED.contains(&errno))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn attempts_come_further_and_further_apart() {
        let mut back_off = BackOff::default();
        let mut tried = Vec::new();
        for turn in 0..250 {
            if back_off.is_turn() {
                tried.push(turn);
                back_off.failed();
            }
        }
        assert_eq!(tried, [0, 2, 5, 10, 19, 36, 69, 130, 191]);
    }

    #[test]
    fn only_an_error_before_anything_was_tried_says_nothing_of_what_is_on_the_medium() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOSYS, Errno::PERM, Errno::OPNOTSUPP] {
            assert!(was_not_tried(&errno.into()), "{errno}");
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT] {
            assert!(!was_not_tried(&errno.into()), "{errno}");
        }
        assert!(!was_not_tried(&io::Error::other("of the disk")));
    }
}
