//! Makes every tenant's log durable at least once a second.

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
        return;
    }
    // Each log makes its own failure good.
    for tenant in dirty {
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
    }
    for (tenant, position) in dirty.iter().zip(written) {
        match synced {
            Ok(()) => tenant.db.sync_handle().mark_synced(position),
            Err(_) => tenant.db.sync_handle().mark_sync_failed(),
        }
    }
    synced.is_ok()
}
