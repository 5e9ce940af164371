//! A tenant of which a file was damaged under way is opened again: what the log has of it is there
//! then, and the rest is cut.

use std::sync::Arc;

use crate::model::tenant::TenantId;
use crate::multi_tsdb::tenant::ExternalLabels;
use crate::multi_tsdb::{Entry, MultiTsdb, Opening, Tenant};
use crate::tsdb::Db;

impl MultiTsdb {
    /// Writes meanwhile are to come again, and reads say that it is being opened.
    pub(super) fn reopen(&self, tenant: &Arc<Tenant>) {
        let id = &tenant.id;
        if !self.take_over(tenant, Entry::Opening(self.opening(id))) {
            return;
        }
        tenant.appends.refuse();
        tenant.appends.drain();
        if let Err(err) = tenant.db.close() {
            tracing::warn!(tenant = %id, %err, "a log that is opened again was not closed");
        }
        tenant.db.unlock();
        self.settle(id, Db::lock(&*self.env.disk, &self.dir_of(id), &self.options.db));
    }

    /// What stands for a tenant while it is opened.
    pub(super) fn opening(&self, id: &TenantId) -> Arc<Opening> {
        let external_labels = ExternalLabels::new(&self.options, id);
        Arc::new(Opening { external_labels, loading: Arc::default() })
    }

    /// Puts another entry in the place of the open tenant's, if it is still there.
    pub(super) fn take_over(&self, tenant: &Arc<Tenant>, instead: Entry) -> bool {
        let mut tenants = self.tenants.write();
        let Some(entry) = tenants.get_mut(&tenant.id) else { return false };
        let is_it = matches!(&*entry, Entry::Open(open) if Arc::ptr_eq(open, tenant));
        if is_it {
            *entry = instead;
        }
        is_it
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::clock::ManualClock;
    use crate::disk::Disk;
    use crate::disk::faulty::FaultyDisk;
    use crate::multi_tsdb::tests::{NOW, Storage, id, one_label, options};
    use crate::tsdb::head::batch::Batch;
    use crate::tsdb::head::tests::{dump, series_number};

    const HOUR: i64 = 3_600_000;

    #[tokio::test(start_paused = true)]
    async fn a_head_chunk_that_was_damaged_under_way_is_read_from_the_log() {
        let (disk, clock) = (FaultyDisk::new(), ManualClock::at(NOW));
        let storage = Storage::start_at(options(), &disk, &clock).unwrap();
        let tenant = storage.tenants.create(&id("a")).await.unwrap();
        for i in 0..400 {
            let mut batch = Batch::default();
            let series = series_number(&tenant.db, &mut batch, one_label().as_bytes());
            batch.push(series, NOW - 400 * 15_000 + i * 15_000, i as u64);
            assert_eq!(tenant.db.append(&batch).unwrap().stored, 1);
        }
        let expected = dump(&tenant.db);
        assert!(tenant.db.write_full_chunks().unwrap() > 1);
        let file = disk.open_write(Path::new("/data/a/chunks_head/000001")).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, 60).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 60).unwrap();
        clock.set(NOW + 4 * HOUR);
        tokio::time::advance(Duration::from_secs(7200)).await;
        // The cut meets it.
        storage.tenants.cut_heads();
        let again = storage.tenants.tenant(&id("a")).unwrap();
        assert!(!Arc::ptr_eq(&again, &tenant));
        assert_eq!(dump(&again.db), expected);
        tenant.appends.append(&mut Batch::default(), ()).await.unwrap_err();
        tokio::time::advance(Duration::from_secs(7200)).await;
        storage.tenants.cut_heads();
        assert!(again.db.has_blocks());
        assert_eq!(dump(&again.db), expected);
        assert!(Arc::ptr_eq(&again, &storage.tenants.tenant(&id("a")).unwrap()));
    }
}
