//! Makes blocks of blocks, one at a time over all tenants: those with tombstones are rewritten before
//! they are shipped; where none are shipped, they are merged as Prometheus merges them.
//!
//! On a thread of its own, of low priority, so that no head waits for it to be cut.

use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::chain;
use crate::multi_tsdb::{MultiTsdb, Tenant};
use crate::shipper::record::RECORD_FILE;
use crate::tsdb::block::merge::MergeError;
use crate::tsdb::options::DbOptions;

/// When it is tried again after it failed, at first; then after twice as long.
const RETRY: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// A tenant's turns.
#[derive(Default)]
pub(super) struct MergeTurns(Mutex<Turns>);

#[derive(Default)]
struct Turns {
    /// Not before this.
    next: Option<Instant>,
    /// Turns that failed since the last good one.
    failed: u32,
    /// Whether blocks of the tenant were shipped once; `None` if nobody has looked yet.
    was_shipped: Option<bool>,
}

impl MergeTurns {
    fn has_come(&self) -> bool {
        self.0.lock().next.is_none_or(|next| next <= Instant::now())
    }

    fn end(&self, is_good: bool) {
        let mut turns = self.0.lock();
        turns.failed = if is_good { 0 } else { turns.failed + 1 };
        let wait = turns.failed.checked_sub(1).map(|before| RETRY * (1 << before.min(16)));
        turns.next = wait.map(|wait| Instant::now() + wait.min(RETRY_MAX));
    }
}

impl MultiTsdb {
    /// Gives each tenant its turn.
    pub(super) fn merge_blocks(&self) {
        for tenant in self.tenants() {
            if self.background.is_asked() {
                return;
            }
            if !tenant.merges.has_come() {
                continue;
            }
            let merge = || self.background.clone().run(|| self.merge_blocks_of(&tenant));
            let is_good = panic::catch_unwind(AssertUnwindSafe(merge)).unwrap_or_else(|_| {
                tracing::error!(tenant = %tenant.id, "making blocks of a tenant's blocks panicked");
                false
            });
            tenant.merges.end(is_good);
        }
    }

    /// Whether blocks of a tenant are merged where none are shipped. Not those that were shipped once,
    /// unless an operator says so: a start without the bucket may be a mistake, and what is merged is
    /// never shipped.
    fn merges(&self, tenant: &Tenant) -> bool {
        let DbOptions { merged_max, block_range, is_merged_max_given, .. } = self.options.db;
        if is_merged_max_given {
            return merged_max > block_range;
        }
        let mut turns = tenant.merges.0.lock();
        let was_shipped = *turns.was_shipped.get_or_insert_with(|| {
            let record = self.dir_of(&tenant.id).join(RECORD_FILE);
            let was_shipped = self.env.disk.open(&record).is_ok();
            if was_shipped {
                let message = "blocks are not merged: some were shipped once, and no bucket is \
                               configured; --tsdb.max-compacted-block-duration has them merged";
                tracing::warn!(tenant = %tenant.id, "{message}");
            }
            was_shipped
        });
        !was_shipped
    }

    fn merge_blocks_of(&self, tenant: &Tenant) -> bool {
        // What is in the bucket is merged there, and nothing else than what was cut is shipped.
        let (done, what) = match self.shipping.get() {
            Some(_) => {
                (tenant.db.rewrite_asked(), "blocks were rewritten without what was deleted")
            }
            None if !self.merges(tenant) => return true,
            None => (tenant.db.compact(), "blocks were merged"),
        };
        let tenant = &tenant.id;
        match done {
            Ok(0) | Err(MergeError::Interrupted) => {}
            Ok(blocks) => tracing::info!(%tenant, blocks, "{what}"),
            Err(err) => {
                let err = chain(&err);
                tracing::error!(%tenant, err, "making blocks of blocks failed; it will be tried again");
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;
    use crate::disk::Disk;
    use crate::disk::faulty::FaultyDisk;
    use crate::multi_tsdb::tests::{NOW, Storage, id, one_label, options};
    use crate::tsdb::block::ulid::Ulid;
    use crate::tsdb::head::batch::Batch;
    use crate::tsdb::head::tests::{dump, series_number};

    const HOUR: i64 = 3_600_000;

    /// A tenant with a day of blocks.
    async fn with_blocks(disk: &FaultyDisk) -> (Storage, Arc<Tenant>) {
        let clock = ManualClock::at(NOW);
        let storage = Storage::start_at(options(), disk, &clock).unwrap();
        let tenant = storage.tenants.create(&id("a")).await.unwrap();
        for hour in 0..24 {
            let t = NOW + hour * HOUR;
            clock.set(t);
            let mut batch = Batch::default();
            let series = series_number(&tenant.db, &mut batch, one_label().as_bytes());
            batch.push(series, t, hour as u64);
            assert_eq!(tenant.db.append(&batch).unwrap().stored, 1);
            tenant.db.cut_due().unwrap();
        }
        (storage, tenant)
    }

    fn block_count(disk: &FaultyDisk) -> usize {
        let names = disk.list(std::path::Path::new("/data/a")).unwrap();
        let names = names.iter().filter_map(|entry| entry.name.to_str()?.parse::<Ulid>().ok());
        names.count()
    }

    #[tokio::test(start_paused = true)]
    async fn blocks_that_were_shipped_once_are_not_merged_by_a_start_without_the_bucket() {
        let disk = FaultyDisk::new();
        let (storage, tenant) = with_blocks(&disk).await;
        let blocks = block_count(&disk);
        let record = std::path::Path::new("/data/a/thanos.shipper.json");
        disk.create(record).unwrap().write_all_at(b"{}", 0).unwrap();
        storage.tenants.merge_blocks();
        assert_eq!(block_count(&disk), blocks);
        drop((storage, tenant));
        let mut given = options();
        given.db.is_merged_max_given = true;
        let clock = ManualClock::at(NOW + 24 * HOUR);
        let storage = Storage::start_at(given, &disk, &clock).unwrap();
        storage.tenants.merge_blocks();
        assert!(block_count(&disk) < blocks);
    }

    #[tokio::test(start_paused = true)]
    async fn blocks_that_go_nowhere_are_merged_and_a_disk_that_fails_is_left_alone_for_a_minute() {
        let disk = FaultyDisk::new();
        let (storage, tenant) = with_blocks(&disk).await;
        let (before, blocks) = (dump(&tenant.db), block_count(&disk));
        assert!(blocks > 8, "{blocks}");
        let dir = std::path::Path::new("/data/a");
        disk.refuse_changes(dir, std::io::ErrorKind::StorageFull);
        storage.tenants.merge_blocks();
        disk.allow_changes(dir);
        storage.tenants.merge_blocks();
        assert_eq!(block_count(&disk), blocks, "its turn has not come");
        tokio::time::advance(Duration::from_secs(60)).await;
        storage.tenants.merge_blocks();
        assert!(block_count(&disk) < blocks, "{blocks}");
        assert_eq!(dump(&tenant.db), before);
        assert!(storage.shows("prometheus_tsdb_compactions_failed_total{tenant=\"a\"} 1"));
    }
}
