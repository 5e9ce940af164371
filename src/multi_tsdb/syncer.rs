//! Makes every tenant's log durable at least once a second.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::multi_tsdb::{MultiTsdb, QUARANTINE_RETRY, Tenant};

/// Half of the second that is promised: a sync takes its time, too.
const SYNC_EVERY: Duration = Duration::from_millis(500);

/// With more dirty logs than this, one sync of the file system is cheaper than one per log.
const SYNCED_ONE_BY_ONE: usize = 4;

/// The thread, ended by dropping this.
pub(super) struct Syncer {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Syncer {
    pub(super) fn start(tenants: &Arc<MultiTsdb>) -> Syncer {
        let (stop, stopped) = mpsc::channel();
        let tenants = Arc::downgrade(tenants);
        let run = move || run(&tenants, &stopped);
        let thread = thread::Builder::new().name("wal-sync".into()).spawn(run);
        match thread {
            Ok(thread) => Syncer { stop: Some(stop), thread: Some(thread) },
            // A process that cannot have one more thread cannot serve.
            Err(err) => panic!("starting the wal-sync thread: {err}"),
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // Its panic was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn run(tenants: &Weak<MultiTsdb>, stopped: &mpsc::Receiver<()>) {
    let mut retried = Instant::now();
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(SYNC_EVERY) {
        let Some(tenants) = tenants.upgrade() else { return };
        sync_dirty(&tenants);
        if retried.elapsed() >= QUARANTINE_RETRY {
            retried = Instant::now();
            tenants.retry_quarantined();
        }
    }
}

fn sync_dirty(tenants: &MultiTsdb) {
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
