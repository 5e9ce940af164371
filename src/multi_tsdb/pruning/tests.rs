//! Tenants that go, and what keeps them.

use std::path::Path;

use super::*;
use crate::clock::ManualClock;
use crate::disk::Disk;
use crate::disk::faulty::FaultyDisk;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::tests::{NOW, Storage, id, one_label, options};
use crate::multi_tsdb::{MultiTsdbOptions, TenantError};
use crate::objstore::filesystem::FileSystemBucket;
use crate::shipper::{ShipperOptions, ShippingOptions};
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::tests::series_number;
use crate::tsdb::retention::Retention;

const HOUR: i64 = 3_600_000;

fn one_day() -> MultiTsdbOptions {
    let mut options = options();
    options.db.retention = Retention { age_max: Some(24 * HOUR), bytes_max: None };
    options
}

fn append(tenant: &Tenant, t: i64) {
    let mut batch = Batch::default();
    let series = series_number(&tenant.db, &mut batch, one_label().as_bytes());
    batch.push(series, t, 1);
    assert_eq!(tenant.db.append(&batch).unwrap().stored, 1);
}

struct World {
    disk: FaultyDisk,
    clock: ManualClock,
    storage: Storage,
}

impl World {
    /// Tenant `a` was opened long ago, and has a block that ends at `NOW`.
    async fn begin(options: MultiTsdbOptions) -> World {
        let world = World::begin_now(options).await;
        tokio::time::advance(OPEN_FOR).await;
        world
    }

    async fn begin_now(options: MultiTsdbOptions) -> World {
        let (disk, clock) = (FaultyDisk::new(), ManualClock::at(NOW + 1));
        let storage = Storage::start_at(options, &disk, &clock).unwrap();
        let tenant = storage.tenants.create(&id("a")).await.unwrap();
        append(&tenant, NOW - HOUR);
        append(&tenant, NOW);
        assert!(tenant.db.flush().unwrap() > 0);
        World { disk, clock, storage }
    }

    /// Looks twice, long enough apart.
    async fn look_twice(&self) {
        self.storage.tenants.cut_heads();
        tokio::time::advance(OUTLIVED_FOR).await;
        self.storage.tenants.cut_heads();
    }

    fn a(&self) -> Option<Arc<Tenant>> {
        self.storage.tenants.find(&id("a")).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn an_outlived_tenant_goes_and_its_next_write_makes_it_anew() {
    let world = World::begin(one_day()).await;
    let metric = "prometheus_tsdb_blocks_loaded{tenant=\"a\"} 2";
    assert!(world.storage.shows(metric));
    world.clock.set(NOW + 24 * HOUR);
    world.look_twice().await;
    assert!(world.a().is_some(), "its last sample is of the last day");
    world.clock.set(NOW + 24 * HOUR + 2);
    world.storage.tenants.cut_heads();
    tokio::time::advance(OUTLIVED_FOR - Duration::from_millis(1)).await;
    world.storage.tenants.cut_heads();
    assert!(world.a().is_some(), "the second look comes too soon");
    let old = world.a().unwrap();
    let mut writes = Batch::default();
    let series = series_number(&old.db, &mut writes, one_label().as_bytes());
    writes.push(series, NOW + 24 * HOUR, 1);
    tokio::time::advance(Duration::from_millis(1)).await;
    world.storage.tenants.cut_heads();
    assert!(world.a().is_none());
    let names: Vec<_> = world.disk.list(Path::new("/data")).unwrap();
    let names: Vec<_> = names.iter().map(|entry| entry.name.to_str().unwrap()).collect();
    assert_eq!(names, ["default-tenant"]);
    assert!(!world.storage.shows(metric));
    // Who had it before is told to come again, and then it is there, with nothing of before.
    old.appends.append(&mut writes, ()).await.unwrap_err();
    let new = world.storage.tenants.create(&id("a")).await.unwrap();
    assert!(!new.db.has_blocks());
    append(&new, NOW + 24 * HOUR);
    assert_eq!(new.db.time_range(), Some((NOW + 24 * HOUR, NOW + 24 * HOUR)));
    world.look_twice().await;
    assert!(world.a().is_some());
}

#[tokio::test(start_paused = true)]
async fn what_may_still_be_wanted_keeps_a_tenant() {
    let later = NOW + 30 * 24 * HOUR;
    // Samples that no block has.
    let world = World::begin(one_day()).await;
    world.clock.set(later);
    append(&world.a().unwrap(), later - HOUR);
    world.look_twice().await;
    assert!(world.a().is_some());

    // A reader.
    let world = World::begin(one_day()).await;
    world.clock.set(later);
    let querier = world.a().unwrap().db.querier(i64::MIN, i64::MAX);
    world.look_twice().await;
    assert!(world.a().is_some());
    drop(querier);
    world.look_twice().await;
    assert!(world.a().is_none());

    // What nobody here understands.
    for name in ["notes.txt", "wal/00000000.damaged", "wal/notes", "chunks_head/000001.damaged"] {
        let world = World::begin(one_day()).await;
        world.clock.set(later);
        let path = Path::new("/data/a").join(name);
        world.disk.create_dir_all(path.parent().unwrap()).unwrap();
        world.disk.create(&path).unwrap();
        world.look_twice().await;
        assert!(world.a().is_some(), "{name}");
        world.disk.remove_file(&path).unwrap();
        world.look_twice().await;
        assert!(world.a().is_none(), "{name}");
    }

    // What Thanos' shipper left is nothing, as long as it is empty.
    let world = World::begin(one_day()).await;
    world.clock.set(later);
    let upload = Path::new("/data/a/thanos/upload");
    world.disk.create_dir_all(upload).unwrap();
    world.disk.create(&upload.join("file")).unwrap();
    world.look_twice().await;
    assert!(world.a().is_some());
    world.disk.remove_file(&upload.join("file")).unwrap();
    world.look_twice().await;
    assert!(world.a().is_none());

    // A log that somebody else goes on with.
    let world = World::begin(one_day()).await;
    world.clock.set(later);
    world.disk.create(Path::new("/data/a/wal/00000900")).unwrap();
    world.look_twice().await;
    assert!(world.a().is_some());

    // A start that was just now: the clock may be wrong.
    let world = World::begin_now(one_day()).await;
    world.clock.set(later);
    world.look_twice().await;
    assert!(world.a().is_some());

    // No retention.
    let world = World::begin(options()).await;
    world.clock.set(later);
    world.look_twice().await;
    assert!(world.a().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_tenant_whose_blocks_are_not_in_the_bucket_stays() {
    let bucket_disk = Arc::new(FaultyDisk::new());
    let bucket = Arc::new(FileSystemBucket::new(bucket_disk, "/bucket".into(), ""));
    let shipping = Some(ShippingOptions { bucket, shipper: ShipperOptions::default() });
    let world = World::begin(MultiTsdbOptions { shipping, ..one_day() }).await;
    world.clock.set(NOW + 30 * 24 * HOUR);
    world.look_twice().await;
    assert!(world.a().is_some());
    let blocks = world.disk.list(Path::new("/data/a")).unwrap().into_iter();
    let blocks = blocks.filter_map(|entry| entry.name.into_string().ok());
    let blocks: Vec<_> = blocks.filter(|name| name.len() == 26).collect();
    assert_eq!(blocks.len(), 2);
    let record = serde_json::json!({"version": 1, "uploaded": blocks}).to_string();
    let file = world.disk.create(Path::new("/data/a/thanos.shipper.json")).unwrap();
    file.write_all_at(record.as_bytes(), 0).unwrap();
    // What a checkpoint that was not finished left keeps nothing.
    world.disk.create(Path::new("/data/a/ringest.names.tmp")).unwrap();
    world.look_twice().await;
    assert!(world.a().is_none());
}

/// Whatever fails, the tenant is gone or is served, and a start finds no sample out of its block.
#[tokio::test(start_paused = true)]
async fn a_tenant_that_cannot_be_removed_is_served() {
    let mut operation = 0;
    loop {
        let world = World::begin(one_day()).await;
        world.clock.set(NOW + 30 * 24 * HOUR);
        world.storage.tenants.cut_heads();
        tokio::time::advance(OUTLIVED_FOR).await;
        world.disk.fail_operation(operation, std::io::ErrorKind::Other, 0);
        world.storage.tenants.cut_heads();
        let has_failed = world.disk.pending_faults() == 0;
        match world.storage.tenants.find(&id("a")) {
            Ok(found) => assert!(found.is_some() || !has_failed || !exists(&world.disk)),
            // The failure met the second opening.
            Err(TenantError::Quarantined(_)) => {}
            Err(err) => panic!("{operation}: {err}"),
        }
        for disk in [world.disk.after_kill(), world.disk.after_power_cut()] {
            let again = Storage::start_at(one_day(), &disk, &world.clock).unwrap();
            if let Some(tenant) = again.tenants.find(&id("a")).unwrap() {
                assert_eq!(tenant.db.head_time_range(), None, "stopped at {operation}");
            }
        }
        if !has_failed {
            assert!(operation > 5, "{operation}");
            assert!(world.a().is_none());
            return;
        }
        operation += 1;
    }
}

fn exists(disk: &FaultyDisk) -> bool {
    disk.list(Path::new("/data/a")).is_ok_and(|entries| !entries.is_empty())
}

#[tokio::test(start_paused = true)]
async fn the_default_tenant_stays() {
    let disk = FaultyDisk::new();
    let clock = ManualClock::at(NOW + 1);
    let storage = Storage::start_at(one_day(), &disk, &clock).unwrap();
    let default: TenantId = id("default-tenant");
    append(&storage.tenants.tenant(&default).unwrap(), NOW);
    storage.tenants.tenant(&default).unwrap().db.flush().unwrap();
    tokio::time::advance(OPEN_FOR).await;
    clock.set(NOW + 30 * 24 * HOUR);
    storage.tenants.cut_heads();
    tokio::time::advance(OUTLIVED_FOR).await;
    storage.tenants.cut_heads();
    assert!(storage.tenants.tenant(&default).is_some());
}
