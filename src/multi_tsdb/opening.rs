//! Tenants that were found at start, and those that are tried again.
//!
//! A tenant comes to be open in one of two ways. Either all of its log is read before anything is
//! done with it ([`Entry::Opening`] until then), or a look at the log is enough for it to take
//! writes ([`Entry::Loading`]) while the rest is read: it is synced and closed like an open one,
//! and nothing else is done with it. If the reading fails, it is quarantined like any other that
//! cannot be opened; what it took is in its log.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use parking_lot::Mutex;

use crate::disk::DirLock;
use crate::error::chain;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::cutter::CutTurns;
use crate::multi_tsdb::found::{Found, show_unserved_blocks};
use crate::multi_tsdb::merger::MergeTurns;
use crate::multi_tsdb::syncer::SyncLane;
use crate::multi_tsdb::tenant::{self, ExternalLabels};
use crate::multi_tsdb::{
    AppendLane, Entry, LoadingTenant, MultiTsdb, Quarantine, REPLAYS_TOGETHER, Tenant,
};
use crate::tsdb::loading::Loading;
use crate::tsdb::{Begun, Db, OpenError};

/// A tenant found at start, counted until it takes writes or cannot be opened.
struct Unopened(Option<Arc<MultiTsdb>>);

impl Drop for Unopened {
    fn drop(&mut self) {
        if let Some(tenants) = self.0.take() {
            tenants.unopened.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// A tenant whose log is still to be read.
struct Halfway {
    id: TenantId,
    begun: Box<Begun>,
    /// The tenant, if it takes writes.
    early: Option<Arc<Tenant>>,
    loading: Arc<Loading>,
    unopened: Unopened,
}

/// What is left of a start. Each step of it comes before those below.
#[derive(Default)]
struct Start {
    found: Vec<Found>,
    /// Those with long logs that take no writes before.
    closed: Vec<Halfway>,
    early: Vec<Halfway>,
}

enum Next {
    Begin(Found),
    Load(Halfway),
}

impl Start {
    fn next(&mut self) -> Option<Next> {
        let Start { found, closed, early } = self;
        let begin = found.pop().map(Next::Begin);
        begin.or_else(|| closed.pop().or_else(|| early.pop()).map(Next::Load))
    }
}

impl MultiTsdb {
    /// Each tenant is to take writes before the long log of any is read.
    pub(super) fn open_found(self: &Arc<Self>, found: Vec<Found>) {
        let threads = REPLAYS_TOGETHER.min(found.len());
        let start = Arc::new(Mutex::new(Start { found, ..Start::default() }));
        for i in 0..threads {
            let (tenants, start) = (self.clone(), start.clone());
            let replay = move || {
                while !tenants.is_closed.load(Ordering::Acquire)
                    && let Some(next) = next(&start)
                {
                    tenants.take_step(next, &start);
                }
            };
            let spawned = thread::Builder::new().name(format!("replay-{i}")).spawn(replay);
            if let Err(err) = spawned {
                // One thread suffices; without any, the process cannot do its work.
                tracing::error!(%err, "starting a replay thread failed");
            }
        }
    }

    fn take_step(self: &Arc<Self>, next: Next, start: &Mutex<Start>) {
        match next {
            Next::Begin(Found { id, lock }) => {
                // Over when it takes writes or is quarantined, not before: else the node would be
                // ready for a moment though nothing serves.
                let unopened = Unopened(Some(self.clone()));
                match lock.and_then(|lock| self.begin_tenant(&id, lock)) {
                    Ok(halfway) if halfway.early.is_some() => start.lock().early.push(halfway),
                    Ok(halfway) => {
                        let halfway = Halfway { unopened, ..halfway };
                        match halfway.begun.is_long() {
                            true => start.lock().closed.push(halfway),
                            false => self.settle_halfway(halfway),
                        }
                    }
                    Err(err) => self.settle_as(&id, Err(err)),
                }
            }
            Next::Load(halfway) => self.settle_halfway(halfway),
        }
    }

    /// Opens a tenant, or quarantines it.
    pub(super) fn settle(&self, id: &TenantId, lock: Result<Option<Box<dyn DirLock>>, OpenError>) {
        match lock.and_then(|lock| self.begin_tenant(id, lock)) {
            Ok(halfway) => self.settle_halfway(halfway),
            Err(err) => self.settle_as(id, Err(err)),
        }
    }

    /// Reads the log of a tenant.
    fn settle_halfway(&self, halfway: Halfway) {
        let Halfway { id, begun, early, loading, unopened } = halfway;
        self.settle_as(&id, self.load_tenant(&id, begun, early, &loading));
        // It is open or quarantined now, if it was neither before.
        drop(unopened);
    }

    fn settle_as(&self, id: &TenantId, opened: Result<Arc<Tenant>, OpenError>) {
        let opened = opened.map_err(|err| {
            let (reason, external_labels) = (chain(&err), ExternalLabels::new(&self.options, id));
            Arc::new(Quarantine { reason, external_labels })
        });
        let entry = match &opened {
            Ok(tenant) => Entry::Open(tenant.clone()),
            Err(quarantine) => Entry::Quarantined(quarantine.clone()),
        };
        let mut tenants = self.tenants.write();
        if self.is_closed.load(Ordering::Acquire) {
            return;
        }
        let before = tenants.insert(id.clone(), entry);
        let is_quarantined = |entry: &&Entry| matches!(entry, Entry::Quarantined(_));
        self.quarantined.set(tenants.values().filter(is_quarantined).count() as f64);
        drop(tenants);
        match opened {
            Ok(tenant) => tenant.appends.resume(),
            Err(quarantine) => {
                let err = &quarantine.reason;
                let is_told = matches!(
                    before,
                    Some(Entry::Quarantined(before)) if before.reason == *err
                );
                if !is_told {
                    tracing::error!(tenant = %id, err, "tenant cannot be opened and is quarantined");
                }
            }
        }
    }

    /// Tries quarantined tenants again.
    pub(super) fn retry_quarantined(&self) {
        let quarantined: Vec<TenantId> = {
            let tenants = self.tenants.read();
            let ids = tenants.iter().filter(|(_, entry)| matches!(entry, Entry::Quarantined(_)));
            ids.map(|(id, _)| id.clone()).collect()
        };
        for id in quarantined {
            if self.is_closed.load(Ordering::Acquire) {
                return;
            }
            self.open_retries.inc();
            self.settle(&id, Db::lock(&*self.env.disk, &self.dir_of(&id), &self.options.db));
        }
    }

    /// Opens a tenant that this process has claimed, so that nobody reads or writes it yet.
    pub(super) fn open_new(
        &self,
        id: &TenantId,
        lock: Option<Box<dyn DirLock>>,
    ) -> Result<Arc<Tenant>, OpenError> {
        let (dir, options) = (self.dir_of(id), self.options.db.clone());
        let open = || Db::open(&dir, lock, options, &self.env, id.as_str());
        let opened = self.unless_it_panics(id, open)?;
        tenant::log_opened(id, &opened);
        show_unserved_blocks(&self.env.registry, id.as_str(), opened.blocks_set_aside.len());
        Ok(self.tenant_with(id, opened.db))
    }

    /// Opens a tenant as far as it can be without reading its log, and lets writes to it if that is
    /// far enough.
    fn begin_tenant(
        &self,
        id: &TenantId,
        lock: Option<Box<dyn DirLock>>,
    ) -> Result<Halfway, OpenError> {
        let loading = match self.tenants.read().get(id) {
            Some(Entry::Opening(opening)) => opening.loading.clone(),
            _ => Arc::default(),
        };
        let (dir, options) = (self.dir_of(id), self.options.db.clone());
        let begin = || Db::begin_opening(&dir, lock, options, &self.env, id.as_str());
        let begun = self.unless_it_panics(id, begin)?;
        let early = begun.early().map(|db| self.tenant_with(id, db));
        if let Some(tenant) = &early {
            tracing::info!(tenant = %id, "writes are taken while the log is read");
            self.let_write(tenant, &loading);
        }
        let (id, begun, unopened) = (id.clone(), Box::new(begun), Unopened(None));
        Ok(Halfway { id, begun, early, loading, unopened })
    }

    /// The second step. If the tenant took writes before, those that wait do so until it
    /// [resumes](AppendLane::resume).
    fn load_tenant(
        &self,
        id: &TenantId,
        begun: Box<Begun>,
        early: Option<Arc<Tenant>>,
        loading: &Loading,
    ) -> Result<Arc<Tenant>, OpenError> {
        let opened = match self.unless_it_panics(id, || begun.load(loading)) {
            Ok(opened) => opened,
            Err(err) => {
                early.iter().for_each(|tenant| give_up(tenant));
                return Err(err);
            }
        };
        tenant::log_opened(id, &opened);
        show_unserved_blocks(&self.env.registry, id.as_str(), opened.blocks_set_aside.len());
        Ok(early.unwrap_or_else(|| self.tenant_with(id, opened.db)))
    }

    /// What is on disk may have been written by anyone. Were it to meet a mistake of ours, it is to
    /// cost its own tenant, not the readiness of the node. Nothing of a database that did not open
    /// is used again.
    fn unless_it_panics<T>(
        &self,
        id: &TenantId,
        open: impl FnOnce() -> Result<T, OpenError>,
    ) -> Result<T, OpenError> {
        panic::catch_unwind(AssertUnwindSafe(open))
            .unwrap_or_else(|_| Err(OpenError::Panicked { dir: self.dir_of(id) }))
    }

    /// Lets writes to a tenant whose log is being read.
    fn let_write(&self, tenant: &Arc<Tenant>, loading: &Arc<Loading>) {
        let loading = LoadingTenant { tenant: tenant.clone(), loading: loading.clone() };
        let mut tenants = self.tenants.write();
        if !self.is_closed.load(Ordering::Acquire) {
            tenants.insert(tenant.id.clone(), Entry::Loading(Arc::new(loading)));
        }
    }

    fn tenant_with(&self, id: &TenantId, db: Arc<Db>) -> Arc<Tenant> {
        let external_labels = ExternalLabels::new(&self.options, id);
        let (threads, metrics) = (self.append_threads.clone(), self.append_metrics.clone());
        let appends = AppendLane::new(id.clone(), db.clone(), threads, metrics);
        let syncs = SyncLane::new(id.clone(), db.clone(), self.sync_threads.clone());
        let cuts = CutTurns::new(self.cut_range());
        let (id, merges) = (id.clone(), MergeTurns::default());
        Arc::new(Tenant { id, db, appends, syncs, cuts, merges, external_labels })
    }
}

/// The log of a tenant that took writes cannot be read: it takes no more, and its directory is to
/// be opened anew.
fn give_up(tenant: &Tenant) {
    tenant.appends.refuse();
    tenant.appends.drain();
    if let Err(err) = tenant.db.close() {
        tracing::warn!(tenant = %tenant.id, %err, "a log that could not be read was not closed");
    }
    tenant.db.unlock();
}

fn next(start: &Mutex<Start>) -> Option<Next> {
    start.lock().next()
}

#[cfg(test)]
mod tests;
