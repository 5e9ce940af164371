//! Makes blocks of blocks, one at a time over all tenants, in turn: those with tombstones are rewritten
//! before they are shipped; where none are shipped, they are merged as Prometheus merges them.
//!
//! On a thread of its own, of low priority, so that no head waits for it to be cut.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::chain;
use crate::multi_tsdb::{MultiTsdb, Tenant};
use crate::shipper::record::RECORD_FILE;
use crate::tsdb::block::merge::{MergeError, Outlook};
use crate::tsdb::compact::Turn;
use crate::tsdb::options::DbOptions;

/// When a tenant's turn comes again after its disk took nothing, at first; then after twice as long.
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
    /// Has the tenants take turns until none has anything left to do: a block each, so that nobody
    /// waits for all that another has.
    pub(super) fn merge_blocks(&self) {
        let mut tenants = self.tenants();
        tenants.retain(|tenant| tenant.merges.has_come());
        tenants.retain(|tenant| {
            self.take_turn(tenant, || {
                tenant.db.remove_replaced();
                Ok(Turn::Made)
            })
        });
        while !tenants.is_empty() {
            self.merge_a_block_each(&mut tenants);
        }
    }

    /// Keeps those that may have more to do.
    fn merge_a_block_each(&self, tenants: &mut Vec<Arc<Tenant>>) {
        tenants.retain(|tenant| self.take_turn(tenant, || self.merge_next_of(tenant)));
    }

    /// Whether there may be more to do.
    fn take_turn(&self, tenant: &Tenant, turn: impl FnOnce() -> Result<Turn, MergeError>) -> bool {
        if self.background.is_asked() {
            return false;
        }
        let turn = || self.background.clone().run(turn);
        let is_good = match panic::catch_unwind(AssertUnwindSafe(turn)) {
            Ok(Ok(Turn::Idle)) => true,
            Ok(Ok(Turn::Made | Turn::GivenUp)) => return true,
            Ok(Err(err)) if err.outlook() == Outlook::Interrupted => true,
            Ok(Err(err)) => {
                let (tenant, err) = (&tenant.id, chain(&err));
                tracing::error!(%tenant, err, "making blocks of blocks failed; it will be tried again");
                false
            }
            Err(_) => {
                tracing::error!(tenant = %tenant.id, "making blocks of a tenant's blocks panicked");
                false
            }
        };
        tenant.merges.end(is_good);
        false
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

    fn merge_next_of(&self, tenant: &Tenant) -> Result<Turn, MergeError> {
        // What is in the bucket is merged there, and nothing else than what was cut is shipped.
        match self.shipping.get() {
            Some(_) => tenant.db.rewrite_next(),
            None if self.merges(tenant) => tenant.db.merge_next(),
            None => Ok(Turn::Idle),
        }
    }
}

#[cfg(test)]
mod tests {
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
        let (storage, mut tenants) = with_blocks_of(disk, &["a"]).await;
        (storage, tenants.remove(0))
    }

    async fn with_blocks_of(disk: &FaultyDisk, ids: &[&str]) -> (Storage, Vec<Arc<Tenant>>) {
        let clock = ManualClock::at(NOW);
        let storage = Storage::start_at(options(), disk, &clock).unwrap();
        let mut tenants = Vec::new();
        for name in ids {
            tenants.push(storage.tenants.create(&id(name)).await.unwrap());
        }
        for hour in 0..24 {
            let t = NOW + hour * HOUR;
            clock.set(t);
            for tenant in &tenants {
                let mut batch = Batch::default();
                let series = series_number(&tenant.db, &mut batch, one_label().as_bytes());
                batch.push(series, t, hour as u64);
                assert_eq!(tenant.db.append(&batch).unwrap().stored, 1);
                tenant.db.cut_due().unwrap();
            }
        }
        (storage, tenants)
    }

    fn block_count(disk: &FaultyDisk) -> usize {
        block_count_of(disk, "a")
    }

    fn block_count_of(disk: &FaultyDisk, tenant: &str) -> usize {
        let names = disk.list(&std::path::Path::new("/data").join(tenant)).unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn tenants_take_turns_and_the_last_is_not_kept_waiting_by_what_the_first_has() {
        let disk = FaultyDisk::new();
        let (storage, tenants) = with_blocks_of(&disk, &["a", "b"]).await;
        let before = [block_count_of(&disk, "a"), block_count_of(&disk, "b")];
        let mut left = tenants.clone();
        storage.tenants.merge_a_block_each(&mut left);
        // More than one block of each is still to be made.
        assert_eq!(left.len(), 2);
        let after = [block_count_of(&disk, "a"), block_count_of(&disk, "b")];
        assert!(after[0] < before[0] && after == [after[0]; 2], "{before:?}, {after:?}");
        storage.tenants.merge_blocks();
        assert!(block_count_of(&disk, "b") < after[1]);
        assert_eq!(block_count_of(&disk, "a"), block_count_of(&disk, "b"));
    }
}
