//! Makes every tenant's log durable at least once a second.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::multi_tsdb::{MultiTsdb, Tenant};

/// Half of the second that is promised: a sync takes its time, too.
pub(super) const SYNC_EVERY: Duration = Duration::from_millis(500);

/// With more dirty logs than this, one sync of the file system is cheaper than one per log.
const SYNCED_ONE_BY_ONE: usize = 4;

/// Syncs the logs that have something to sync.
pub(super) fn sync_dirty(tenants: &MultiTsdb) {
    let mut dirty = tenants.tenants();
    dirty.retain(|tenant| tenant.db.sync_handle().is_dirty());
    if dirty.len() > SYNCED_ONE_BY_ONE && sync_together(tenants, &dirty) {
        dirty.retain(|tenant| tenant.db.sync_handle().needs_rewrite());
    }
    sync_each(dirty);
}

/// Under the policy that syncs full segments only: makes failed syncs good, or their logs would
/// take no append any more.
pub(super) fn mend_failed(tenants: &MultiTsdb) {
    let mut failed = tenants.tenants();
    failed.retain(|tenant| tenant.db.sync_handle().needs_rewrite());
    sync_each(failed);
}

/// Each log makes its own failure good.
fn sync_each(tenants: Vec<Arc<Tenant>>) {
    for tenant in tenants {
        if let Err(err) = tenant.db.sync_handle().sync() {
            tracing::error!(tenant = %tenant.id, %err, "syncing the log failed");
        }
    }
}

/// One sync of the file system for all; whether it succeeded.
fn sync_together(tenants: &MultiTsdb, dirty: &[Arc<Tenant>]) -> bool {
    let written: Vec<_> =
        dirty.iter().map(|tenant| tenant.db.sync_handle().written_position()).collect();
    let synced = tenants.disk.sync_file_system(&tenants.options.dir);
    if let Err(err) = &synced {
        tracing::error!(%err, "syncing the file system failed");
        if was_not_tried(err) {
            return false;
        }
    }
    for (tenant, position) in dirty.iter().zip(written) {
        match synced {
            Ok(()) => tenant.db.sync_handle().mark_synced(position),
            Err(_) => tenant.db.sync_handle().mark_sync_failed(),
        }
    }
    synced.is_ok()
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
