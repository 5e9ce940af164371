//! Tenants that nobody writes go, once all they had is older than is kept and in the bucket. The next
//! write makes them anew.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::chain;
use crate::metrics::TENANT;
use crate::multi_tsdb::{ClaimGuard, Entry, MultiTsdb, Tenant};
use crate::shipper;
use crate::tsdb::Db;

/// A tenant goes if it was found outlived twice, so long apart at least, and not otherwise meanwhile.
const OUTLIVED_FOR: Duration = Duration::from_secs(60);
/// And not sooner after it was opened: the clock may be wrong, and then somebody may see it.
const OPEN_FOR: Duration = Duration::from_secs(6 * 60 * 60);

/// What a shipper has in a tenant's directory, Thanos' own included.
const OF_OTHERS: [&str; 2] = [shipper::RECORD_FILE, "thanos"];

impl MultiTsdb {
    /// Prunes the tenant if its time has come. The default tenant is there until the end.
    pub(super) fn prune_if_outlived(&self, tenant: &Arc<Tenant>) {
        if tenant.id == self.options.default_tenant {
            return;
        }
        let found = Instant::now();
        let is_outlived = self.is_outlived(tenant);
        let since = tenant.cuts.outlived_since(is_outlived.then_some(found));
        if since.is_some_and(|since| found.duration_since(since) >= OUTLIVED_FOR) {
            self.prune(tenant);
        }
    }

    fn is_outlived(&self, tenant: &Tenant) -> bool {
        // One that has never held a sample has nothing whose age could be told.
        let age_max = self.options.db.retention.age_max.and_then(|age| u64::try_from(age).ok());
        let Some(age_max) = age_max.map(Duration::from_millis) else { return false };
        let open_for = if tenant.db.has_blocks() { age_max.min(OPEN_FOR) } else { age_max };
        let is_young = tenant.cuts.opened().elapsed() < open_for;
        if is_young || tenant.cuts.has_failed() || tenant.appends.has_backlog() {
            return false;
        }
        tenant.db.is_outlived(&OF_OTHERS, self.may_go(&tenant.id)).unwrap_or_else(|err| {
            let (tenant, err) = (&tenant.id, chain(&err));
            tracing::warn!(%tenant, err, "it cannot be seen whether the tenant is to be pruned");
            false
        })
    }

    /// Whoever writes meanwhile waits, as for one that is being made.
    fn prune(&self, tenant: &Arc<Tenant>) {
        let id = &tenant.id;
        let (done, is_done) = watch::channel(());
        if !self.take_over(tenant, Entry::Creating(is_done)) {
            return;
        }
        let claim = ClaimGuard { tenants: self, id, done: Some(done) };
        tenant.appends.refuse();
        tenant.appends.drain();
        match tenant.db.remove() {
            Ok(()) => {
                // Before it can be made again, under the same name.
                self.env.registry.remove(TENANT, id.as_str());
                tracing::info!(tenant = %id, "pruned a tenant of which nothing is kept any longer");
            }
            Err(err) => {
                let err = chain(&err);
                tracing::warn!(tenant = %id, err, "a tenant was not pruned and is opened again");
                tenant.db.unlock();
                self.tenants.write().insert(id.clone(), Entry::Opening(self.opening(id)));
                self.settle(id, Db::lock(&*self.env.disk, &self.dir_of(id), &self.options.db));
            }
        }
        drop(claim);
    }
}

#[cfg(test)]
mod tests;
