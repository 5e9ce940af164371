//! Tenants that take writes before their logs are read.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Waker};

use super::*;
use crate::disk::Disk;
use crate::disk::faulty::FaultyDisk;
use crate::multi_tsdb::tests::{NOW, Storage, id, options};
use crate::multi_tsdb::{AppendError, MultiTsdbOptions, TenantError};
use crate::tsdb::head::append::AppendReport;
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::tests::{dump, push};

/// What a checkpoint would be that was not finished. It is removed when the log is read, and that
/// is held up here.
const UNFINISHED: &str = "/data/a/wal/checkpoint.00000000.tmp";

fn small_segments() -> MultiTsdbOptions {
    let mut options = options();
    options.db.wal_segment_bytes = 32 << 10;
    options
}

fn batch(db: &Db, series: &[u64], t: i64) -> Batch {
    let mut batch = Batch::default();
    for one in series {
        let labels = serde_json::json!([["__name__", "m"], ["n", one.to_string()]]);
        push(db, &mut batch, &labels, t, *one);
    }
    batch
}

/// A tenant that was killed, whose log is long enough, and whose reading is held up.
async fn killed() -> FaultyDisk {
    let disk = FaultyDisk::new();
    let storage = Storage::start_without_waiting_with(small_segments(), &disk);
    storage.wait_opened();
    let tenant = storage.tenants.create(&id("a")).await.unwrap();
    for i in 0..2_000 {
        let series = [i as u64 % 5];
        tenant.db.append(&batch(&tenant.db, &series, NOW - 2_000 + i)).unwrap();
    }
    let disk = disk.after_kill();
    disk.create_dir_all(Path::new(UNFINISHED)).unwrap();
    disk.stall(Path::new(UNFINISHED));
    disk
}

fn start(disk: &FaultyDisk) -> Storage {
    let storage = Storage::start_without_waiting_with(small_segments(), disk);
    disk.wait_stalled(1);
    storage.wait_opened();
    storage
}

fn wait_open(storage: &Storage) -> Arc<Tenant> {
    loop {
        match storage.tenants.tenant(&id("a")) {
            Some(tenant) => return tenant,
            None => thread::yield_now(),
        }
    }
}

/// Whether it is done by now: the first look gives it to its lane.
fn is_done<F: Future>(future: Pin<&mut F>) -> bool {
    future.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[tokio::test]
async fn a_tenant_takes_writes_and_nothing_else_until_its_log_is_read() {
    let disk = killed().await;
    let storage = start(&disk);
    assert!(storage.tenants.is_ready());
    assert!(storage.shows("ringest_tenants_opening 1"));
    assert!(storage.tenants.tenant(&id("a")).is_none());
    let all = storage.tenants.all_tenants();
    assert!(all.open.iter().all(|tenant| tenant.id != id("a")));
    assert!(matches!(all.unavailable[..], [ref one] if matches!(one.reason, TenantError::Opening)));
    assert!(matches!(storage.tenants.find_to_read(&id("a")), Err(TenantError::Opening)));
    let tenant = storage.tenants.find(&id("a")).unwrap().expect("it takes writes");
    assert!(Arc::ptr_eq(&storage.tenants.create(&id("a")).await.unwrap(), &tenant));
    let stored = |report: Result<AppendReport, AppendError>| report.unwrap().stored;
    let mut early = batch(&tenant.db, &[0, 100], NOW + 1);
    assert_eq!(stored(tenant.appends.append(&mut early, ()).await), 2);
    // One waits, and one of the same series behind it; others go by.
    let mut first = batch(&tenant.db, &[1, 2], NOW - 2_000);
    let mut second = batch(&tenant.db, &[2, 3], NOW + 5);
    let mut other = batch(&tenant.db, &[4, 101], NOW + 5);
    let mut first = pin!(tenant.appends.append(&mut first, ()));
    assert!(!is_done(first.as_mut()));
    let mut second = pin!(tenant.appends.append(&mut second, ()));
    assert!(!is_done(second.as_mut()));
    assert_eq!(stored(tenant.appends.append(&mut other, ()).await), 2);
    assert!(tenant.appends.has_backlog());
    // One goes away.
    let mut gone = batch(&tenant.db, &[2], NOW + 3);
    let mut gone = Box::pin(tenant.appends.append(&mut gone, ()));
    assert!(!is_done(gone.as_mut()));
    let mut sent_again = batch(&tenant.db, &[0], NOW + 1);
    assert_eq!(stored(tenant.appends.append(&mut sent_again, ()).await), 1);
    drop(gone);
    storage.tenants.sync();
    disk.release(Path::new(UNFINISHED));
    // In their order: the later one would have made the other out of order.
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!((first.stored, second.stored), (0, 2), "{first:?}");
    let open = wait_open(&storage);
    assert!(Arc::ptr_eq(&open, &tenant));
    assert!(storage.shows("ringest_tenants_opening 0"));
    assert!(storage.shows("ringest_append_waiting_requests 0"));
    let found = dump(&tenant.db);
    let count: usize = found.iter().map(|(_, samples)| samples.len()).sum();
    assert_eq!(count, 2_000 + 2 + 2 + 2);
    let again = Storage::start_without_waiting_with(small_segments(), &disk.after_kill());
    assert_eq!(dump(&wait_open(&again).db), found);
}

/// However many logs are read, and however long that takes.
#[tokio::test]
async fn every_tenant_takes_writes_before_any_long_log_is_read() {
    let disk = FaultyDisk::new();
    let storage = Storage::start_without_waiting_with(small_segments(), &disk);
    storage.wait_opened();
    let names = ["a", "b", "c", "d", "e"];
    let unfinished = |name: &str| Path::new("/data").join(name).join("wal/checkpoint.00000000.tmp");
    for name in names {
        let tenant = storage.tenants.create(&id(name)).await.unwrap();
        for i in 0..2_000 {
            tenant.db.append(&batch(&tenant.db, &[i as u64 % 5], NOW - 2_000 + i)).unwrap();
        }
    }
    let disk = disk.after_kill();
    // One is to be read as a whole first.
    disk.remove_file(Path::new("/data/e/ringest.names")).unwrap();
    for name in names {
        disk.create_dir_all(&unfinished(name)).unwrap();
        disk.stall(&unfinished(name));
    }
    let storage = Storage::start_without_waiting_with(small_segments(), &disk);
    disk.wait_stalled(2);
    for name in &names[..4] {
        let tenant = storage.tenants.find(&id(name)).unwrap().expect(name);
        let mut early = batch(&tenant.db, &[0, 100], NOW + 1);
        assert_eq!(tenant.appends.append(&mut early, ()).await.unwrap().stored, 2);
    }
    assert!(!storage.tenants.is_ready());
    assert!(matches!(storage.tenants.find(&id("e")), Err(TenantError::Opening)));
    names.iter().for_each(|name| disk.release(&unfinished(name)));
    storage.wait_opened();
    assert!(storage.tenants.is_ready());
    while storage.tenants.tenants().len() < 6 {
        thread::yield_now();
    }
}

#[tokio::test]
async fn who_waits_for_a_log_that_is_closed_is_told_so() {
    let disk = killed().await;
    let storage = start(&disk);
    let tenant = storage.tenants.find(&id("a")).unwrap().unwrap();
    let mut early = batch(&tenant.db, &[0, 100], NOW + 1);
    assert_eq!(tenant.appends.append(&mut early, ()).await.unwrap().stored, 2);
    let mut waits = batch(&tenant.db, &[1], NOW - 2_000);
    let mut waits = pin!(tenant.appends.append(&mut waits, ()));
    assert!(!is_done(waits.as_mut()));
    let tenants = storage.tenants.clone();
    tokio::task::spawn_blocking(move || tenants.close()).await.unwrap();
    assert!(matches!(waits.await, Err(AppendError::Interrupted)));
    let mut late = batch(&tenant.db, &[0], NOW + 2);
    assert!(tenant.appends.append(&mut late, ()).await.is_err());
    let after = disk.after_kill();
    disk.release(Path::new(UNFINISHED));
    let again = Storage::start_without_waiting_with(small_segments(), &after);
    let count: usize = dump(&wait_open(&again).db).iter().map(|(_, samples)| samples.len()).sum();
    assert_eq!(count, 2_002);
}

#[tokio::test]
async fn a_tenant_whose_log_cannot_be_read_is_quarantined_with_what_it_took() {
    let disk = killed().await;
    let storage = start(&disk);
    let tenant = storage.tenants.find(&id("a")).unwrap().unwrap();
    let mut early = batch(&tenant.db, &[0, 100], NOW + 1);
    assert_eq!(tenant.appends.append(&mut early, ()).await.unwrap().stored, 2);
    let mut waits = batch(&tenant.db, &[1], NOW - 2_000);
    let mut waits = pin!(tenant.appends.append(&mut waits, ()));
    assert!(!is_done(waits.as_mut()));
    let segment = Path::new("/data/a/wal/00000000");
    disk.fail_reads(segment, io::ErrorKind::Other);
    disk.release(Path::new(UNFINISHED));
    assert!(matches!(waits.await, Err(AppendError::Interrupted)));
    while !matches!(storage.tenants.find(&id("a")), Err(TenantError::Quarantined(_))) {
        thread::yield_now();
    }
    disk.allow_reads(segment);
    storage.tenants.retry_quarantined();
    let again = wait_open(&storage);
    assert!(!Arc::ptr_eq(&again, &tenant));
    let count: usize = dump(&again.db).iter().map(|(_, samples)| samples.len()).sum();
    assert_eq!(count, 2_002);
    let mut next = batch(&again.db, &[0, 1], NOW + 2);
    assert_eq!(again.appends.append(&mut next, ()).await.unwrap().stored, 2);
}
