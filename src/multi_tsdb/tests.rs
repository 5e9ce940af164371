//! The storage as a whole, on a disk in memory.

use std::path::Path;

use super::*;
use crate::clock::ManualClock;
use crate::disk::faulty::{FailedSync, FaultyDisk};
use crate::model::labels::KeyBuilder;
use crate::objstore::filesystem::FileSystemBucket;
use crate::shipper::{Shipper, ShipperEnv, ShipperMetrics, ShipperOptions};
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::tests::series_number;

pub(super) const NOW: i64 = 1_700_000_000_000;

/// Whatever takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// A storage and its page of metrics.
pub(super) struct Storage {
    pub(super) tenants: Arc<MultiTsdb>,
    registry: Registry,
}

impl Storage {
    /// Opens what is in `/data`, with the replays done.
    fn open(disk: &FaultyDisk) -> Storage {
        Storage::start(disk).unwrap()
    }

    fn start(disk: &FaultyDisk) -> Result<Storage, StartError> {
        Storage::start_with(options(), disk)
    }

    fn start_with(options: MultiTsdbOptions, disk: &FaultyDisk) -> Result<Storage, StartError> {
        Storage::start_at(options, disk, &ManualClock::at(NOW))
    }

    pub(super) fn start_at(
        options: MultiTsdbOptions,
        disk: &FaultyDisk,
        clock: &ManualClock,
    ) -> Result<Storage, StartError> {
        let (disk, registry) = (Arc::new(disk.clone()), Registry::new());
        let tenants = MultiTsdb::open(options, disk, Arc::new(clock.clone()), &registry)?;
        let storage = Storage { tenants, registry };
        storage.wait_opened();
        Ok(storage)
    }

    /// With the replays still going on.
    pub(super) fn start_without_waiting(disk: &FaultyDisk) -> Storage {
        Storage::start_without_waiting_with(options(), disk)
    }

    pub(super) fn start_without_waiting_with(
        options: MultiTsdbOptions,
        disk: &FaultyDisk,
    ) -> Storage {
        let (disk, registry) = (Arc::new(disk.clone()), Registry::new());
        let clock = Arc::new(ManualClock::at(NOW));
        let tenants = MultiTsdb::open(options, disk, clock, &registry).unwrap();
        Storage { tenants, registry }
    }

    pub(super) fn wait_opened(&self) {
        while self.tenants.unopened.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
    }

    pub(super) fn shows(&self, line: &str) -> bool {
        self.registry.expose().lines().any(|shown| shown == line)
    }

    fn names(&self) -> [Vec<String>; 2] {
        let all = self.tenants.all_tenants();
        let unavailable = all.unavailable.iter().map(|tenant| tenant.id.to_string());
        [all.open.iter().map(|tenant| tenant.id.to_string()).collect(), unavailable.collect()]
    }
}

pub(super) fn options() -> MultiTsdbOptions {
    MultiTsdbOptions {
        dir: PathBuf::from("/data"),
        db: DbOptions { wal_sync: SyncPolicy::Segment, ..DbOptions::default() },
        labels: vec![("replica".into(), "r0".into())],
        tenant_label_name: "tenant_id".into(),
        rings: None,
        default_tenant: id("default-tenant"),
        tenants_max: 10,
        has_periodic_work: false,
        flush_within: None,
        shipping: None,
    }
}

pub(super) fn one_label() -> KeyBuilder {
    let mut key = KeyBuilder::default();
    key.push(b"__name__", b"m");
    key
}

pub(super) fn id(name: &str) -> TenantId {
    TenantId::parse(name.as_bytes()).unwrap()
}

/// A disk on which these tenants have directories.
pub(super) fn disk_with(tenants: &[&str]) -> FaultyDisk {
    let disk = FaultyDisk::new();
    for tenant in tenants {
        disk.create_dir_all(&Path::new("/data").join(tenant)).unwrap();
    }
    disk
}

/// Retention heeds it, and the one thing that could make it forget is that it comes first.
#[test]
fn with_a_bucket_only_blocks_that_are_in_it_may_go() {
    let disk = disk_with(&["a"]);
    let (gone, kept, a) = (Ulid(1), Ulid(2), id("a"));
    let record = format!("{{\"version\": 1, \"uploaded\": [\"{gone}\"]}}");
    let path = Path::new("/data/a").join(shipper::RECORD_FILE);
    disk.create_dir_all(&Path::new("/data/a").join(gone.to_string())).unwrap();
    disk.create(&path).unwrap().write_all_at(record.as_bytes(), 0).unwrap();
    let without = Storage::open(&disk);
    let may_go = without.tenants.may_go(&a);
    assert!(may_go(gone) && may_go(kept));
    drop(may_go);
    without.tenants.close();
    let root = PathBuf::from("/bucket");
    let bucket = Arc::new(FileSystemBucket::new(Arc::new(disk.clone()), root, ""));
    let shipping = ShippingOptions { bucket, shipper: ShipperOptions::default() };
    let options = MultiTsdbOptions { shipping: Some(shipping), ..options() };
    let with = Storage::start_with(options, &disk).unwrap();
    let may_go = with.tenants.may_go(&a);
    assert!(may_go(gone) && !may_go(kept));
    // Without a record nothing is known to be there.
    disk.fail_reads(&path, io::ErrorKind::Other);
    assert!(!with.tenants.may_go(&a)(gone));
    disk.allow_reads(&path);
    drop(may_go);
    with.tenants.close();
}

/// What its shipper sees at the worst moment: the block has its name, and its cut fails.
#[test]
fn a_block_whose_cut_may_still_fail_is_not_shipped() {
    let (disk, in_bucket) = (disk_with(&["a"]), FaultyDisk::new());
    let storage = Storage::open(&disk);
    let tenant = storage.tenants.tenant(&id("a")).unwrap();
    append(&tenant, -1);
    let bucket = FileSystemBucket::new(Arc::new(in_bucket.clone()), PathBuf::from("/bucket"), "");
    let env = ShipperEnv {
        disk: Arc::new(disk.clone()),
        clock: Arc::new(ManualClock::at(NOW)),
        bucket: Arc::new(bucket),
        options: ShipperOptions::default(),
    };
    let shipped = storage.tenants.shipped().into_iter().find(|tenant| tenant.id == id("a"));
    let ShippedTenant { dir, db, .. } = shipped.unwrap();
    let metrics = ShipperMetrics::new(&storage.registry, "a");
    let shipper = Shipper::new("a".to_owned(), dir.clone(), db, env, metrics);
    let runtime = Arc::new(tokio::runtime::Runtime::new().unwrap());
    let ship = move || runtime.block_on(shipper.ship()).unwrap().uploaded;
    let (ship, looking) = (Arc::new(ship), disk.clone());
    let (looks, (seen, saw)) = (ship.clone(), std::sync::mpsc::channel());
    disk.once_renamed(move || {
        seen.send((looks(), blocks_in(&looking, &dir))).unwrap();
        // Bringing the name to the medium.
        looking.fail_operation(0, io::ErrorKind::Other, 0);
    });
    tenant.db.flush().unwrap_err();
    let (uploaded, blocks) = saw.try_recv().unwrap();
    assert_eq!((uploaded, blocks.len()), (0, 1));
    assert_eq!(blocks_in(&disk, Path::new("/data/a")), []);
    assert_eq!((ship(), blocks_in(&in_bucket, Path::new("/bucket"))), (0, vec![]));
    // The next one is shipped.
    assert_eq!(tenant.db.flush().unwrap(), 1);
    assert_eq!(ship(), 1);
    let settled = blocks_in(&disk, Path::new("/data/a"));
    assert_eq!(blocks_in(&in_bucket, Path::new("/bucket")), settled);
    assert!(settled.len() == 1 && settled != blocks);
}

fn blocks_in(disk: &FaultyDisk, dir: &Path) -> Vec<Ulid> {
    let entries = disk.list(dir).unwrap_or_default();
    entries.iter().filter_map(|entry| entry.name.to_str()?.parse().ok()).collect()
}

#[test]
fn a_data_directory_that_turns_read_only_ends_readiness_for_as_long() {
    let (disk, dir) = (disk_with(&["a"]), Path::new("/data"));
    let storage = Storage::open(&disk);
    let look = || storage.tenants.data_dir.look(&disk);
    look();
    assert!(storage.tenants.is_ready());
    assert!(storage.shows("ringest_data_directory_usable 1"));
    disk.refuse_changes(dir, io::ErrorKind::ReadOnlyFilesystem);
    look();
    let reason = storage.tenants.why_not_ready();
    assert_eq!(reason, Some("the data directory cannot be used"));
    assert!(storage.shows("ringest_data_directory_usable 0"));
    assert_eq!(storage.names(), [vec!["a", "default-tenant"], vec![]], "all can still be read");
    disk.allow_changes(dir);
    look();
    assert!(storage.tenants.is_ready());
}

#[test]
fn a_node_that_is_kept_out_of_every_tenant_does_not_start() {
    let disk = disk_with(&["a", "b"]);
    disk.refuse_changes(Path::new("/data/a"), io::ErrorKind::PermissionDenied);
    let storage = Storage::open(&disk);
    assert_eq!(storage.names(), [vec!["b", "default-tenant"], vec!["a"]]);
    assert!(storage.tenants.is_ready());
    drop(storage);
    for name in ["b", "default-tenant"] {
        disk.refuse_changes(&Path::new("/data").join(name), io::ErrorKind::PermissionDenied);
    }
    let error = Storage::start(&disk).err().unwrap();
    let said = "none of the tenants' directories can be used: making /data/b: \
                permission denied";
    assert_eq!(error.to_string(), said);
}

#[test]
fn a_node_none_of_whose_tenants_could_be_opened_is_not_ready() {
    let disk = disk_with(&["default-tenant"]);
    disk.create(Path::new("/data/default-tenant/wal")).unwrap();
    disk.refuse_changes(Path::new("/data/default-tenant/wal"), io::ErrorKind::NotADirectory);
    let storage = Storage::open(&disk);
    assert_eq!(storage.tenants.why_not_ready(), Some("no tenant could be opened"));
    disk.allow_changes(Path::new("/data/default-tenant/wal"));
    disk.remove_file(Path::new("/data/default-tenant/wal")).unwrap();
    storage.tenants.retry_quarantined();
    assert!(storage.tenants.is_ready());
    assert!(storage.shows("ringest_tenants_quarantined 0"));
    assert!(storage.shows("ringest_tenant_open_retries_total 1"));
}

#[test]
fn a_quarantined_tenant_is_neither_absent_nor_open() {
    let disk = disk_with(&["a", "b"]);
    disk.refuse_changes(Path::new("/data/a/wal"), io::ErrorKind::NotADirectory);
    let storage = Storage::open(&disk);
    assert!(storage.shows("ringest_tenants_quarantined 1"));
    assert!(matches!(storage.tenants.find(&id("a")), Err(TenantError::Quarantined(_))));
    assert!(storage.tenants.find(&id("b")).unwrap().is_some());
    assert!(storage.tenants.find(&id("c")).unwrap().is_none());
    let unavailable = storage.tenants.all_tenants().unavailable;
    let [UnavailableTenant { id, external_labels, reason }] = &unavailable[..] else { panic!() };
    let labels = [("replica", "r0"), ("tenant_id", "a")];
    let labels = labels.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    assert_eq!((id.as_str(), &external_labels[..]), ("a", &labels[..]));
    let said = "quarantined: making /data/a/wal: not a directory";
    assert_eq!(reason.to_string(), said);
}

#[test]
fn blocks_that_are_not_served_are_counted_by_tenant() {
    let disk = disk_with(&[
        "a/01M85ZRFJPEBJ4BHYM21MP7HFW",
        "a/01M85ZRFJPEBJ4BHYM21MP7HFX",
        "b/wal",
        "01M85ZRFJPEBJ4BHYM21MP7HFY",
    ]);
    disk.create(Path::new("/data/01M85ZRFJPEBJ4BHYM21MP7HFY/meta.json")).unwrap();
    let storage = Storage::open(&disk);
    assert!(storage.shows("ringest_blocks_not_served{tenant=\"\"} 1"));
    assert!(storage.shows("ringest_blocks_not_served{tenant=\"a\"} 2"));
    assert!(!storage.registry.expose().contains("ringest_blocks_not_served{tenant=\"b\"}"));
    assert_eq!(storage.names(), [vec!["a", "b", "default-tenant"], vec![]]);
}

/// Appends a sample of one series, past the lane, which has threads of its own.
fn append(tenant: &Tenant, t: i64) {
    let mut key = KeyBuilder::default();
    key.push(b"__name__", b"m");
    let mut batch = Batch::default();
    let series = series_number(&tenant.db, &mut batch, key.as_bytes());
    batch.push(series, NOW + t, 1);
    assert_eq!(tenant.db.append(&batch).unwrap().stored, 1);
}

impl Storage {
    fn append_to_each(&self, t: i64) {
        self.tenants.tenants().iter().for_each(|tenant| append(tenant, t));
    }

    /// Times of the newest samples by tenant; those without any are left out.
    fn newest(&self) -> Vec<(String, i64)> {
        let newest = |tenant: Arc<Tenant>| {
            let (_, maxt) = tenant.db.time_range()?;
            Some((tenant.id.to_string(), maxt - NOW))
        };
        self.tenants.tenants().into_iter().filter_map(newest).collect()
    }

    fn is_dirty(&self) -> bool {
        self.tenants.tenants().iter().any(|tenant| tenant.db.sync_handle().is_dirty())
    }
}

const SIX: [&str; 6] = ["a", "b", "c", "d", "e", "default-tenant"];

/// Of each of these tenants a sample of this time.
fn each(tenants: &[&str], t: i64) -> Vec<(String, i64)> {
    tenants.iter().map(|tenant| (tenant.to_string(), t)).collect()
}

#[test]
fn what_a_restart_found_outlives_a_power_cut() {
    let disk = disk_with(&["a", "default-tenant"]);
    let storage = Storage::open(&disk);
    storage.append_to_each(1);
    // The kernel alone has them.
    assert_eq!(Storage::open(&disk.after_power_cut()).newest(), []);
    let killed = disk.after_kill();
    let restarted = Storage::open(&killed);
    assert_eq!(restarted.newest(), each(&["a", "default-tenant"], 1));
    let cut = Storage::open(&killed.after_power_cut());
    assert_eq!(cut.newest(), restarted.newest());
}

#[test]
fn five_dirty_logs_are_synced_with_one_sync_and_four_are_not() {
    let disk = disk_with(&SIX);
    let storage = Storage::open(&disk);
    storage.append_to_each(1);
    storage.tenants.sync();
    for (dirty, together) in [(&SIX[..4], false), (&SIX[..5], true)] {
        let t = dirty.len() as i64;
        dirty.iter().for_each(|name| append(&storage.tenants.tenant(&id(name)).unwrap(), t));
        let before = disk.operations();
        storage.tenants.sync();
        assert_eq!(disk.operations() - before == 1, together);
        assert!(!storage.is_dirty());
        let cut = Storage::open(&disk.after_power_cut()).newest();
        for name in dirty {
            assert!(cut.contains(&(name.to_string(), t)), "{name}: {cut:?}");
        }
        // Nothing is left to do.
        let before = disk.operations();
        storage.tenants.sync();
        assert_eq!(disk.operations(), before);
    }
}

#[test]
fn a_failed_sync_of_the_file_system_counts_for_nothing() {
    for how in [FailedSync::KeepsBytes, FailedSync::DropsBytes] {
        for failing in 1..4 {
            let disk = disk_with(&SIX);
            let storage = Storage::open(&disk);
            storage.append_to_each(1);
            storage.tenants.sync();
            storage.append_to_each(2);
            disk.fail_syncs(failing, how);
            let mut looks = 0;
            while storage.is_dirty() {
                storage.tenants.sync();
                looks += 1;
                assert!(looks < 10, "{how:?}: {failing} failures are not made good");
            }
            let cut = Storage::open(&disk.after_power_cut());
            let mut six = each(&SIX, 2);
            six.sort();
            assert_eq!(cut.newest(), six, "{how:?}, {failing} failures");
            storage.append_to_each(3);
        }
    }
}

#[test]
fn a_failed_sync_of_the_file_system_counts_for_nothing_that_was_written_meanwhile() {
    let elsewhere = Path::new("/elsewhere");
    for how in [FailedSync::KeepsBytes, FailedSync::DropsBytes] {
        let disk = disk_with(&SIX);
        let storage = Storage::open(&disk);
        storage.append_to_each(1);
        storage.tenants.sync();
        let tenant = |name: &str| storage.tenants.tenant(&id(name)).unwrap();
        SIX[..5].iter().for_each(|name| append(&tenant(name), 2));
        disk.fail_syncs(1, how);
        disk.stall(elsewhere);
        thread::scope(|scope| {
            scope.spawn(|| storage.tenants.sync());
            disk.wait_stalled(1);
            // The sync knows of five, and fails for six.
            append(&tenant(SIX[5]), 2);
            disk.release(elsewhere);
        });
        while storage.is_dirty() {
            storage.tenants.sync();
        }
        let cut = Storage::open(&disk.after_power_cut());
        let mut six = each(&SIX, 2);
        six.sort();
        assert_eq!(cut.newest(), six, "{how:?}");
    }
}

#[test]
fn what_is_written_during_a_sync_of_the_file_system_is_not_covered_by_it() {
    let disk = disk_with(&SIX);
    let storage = Storage::open(&disk);
    storage.append_to_each(1);
    let late = storage.tenants.tenant(&id("c")).unwrap();
    disk.once_synced(move || append(&late, 2));
    storage.tenants.sync();
    let dirty: Vec<_> = storage.tenants.tenants();
    let dirty = dirty.iter().filter(|tenant| tenant.db.sync_handle().is_dirty());
    assert_eq!(dirty.map(|tenant| tenant.id.as_str()).collect::<Vec<_>>(), ["c"]);
    storage.tenants.sync();
    assert!(!storage.is_dirty());
    let cut = Storage::open(&disk.after_power_cut());
    assert!(cut.newest().contains(&("c".to_owned(), 2)), "{:?}", cut.newest());
}

#[test]
fn a_log_that_is_not_synced_from_time_to_time_is_mended_all_the_same() {
    let disk = disk_with(&["a"]);
    let storage = Storage::open(&disk);
    storage.append_to_each(1);
    syncer::mend_failed(&storage.tenants);
    assert!(storage.is_dirty(), "there is nothing to mend");
    let tenant = storage.tenants.tenant(&id("a")).unwrap();
    disk.fail_syncs(2, FailedSync::DropsBytes);
    tenant.db.sync_handle().sync().unwrap_err();
    // A log that is being synced does not say that it needs it, but is dirty until it is mended.
    while tenant.db.sync_handle().is_dirty() {
        syncer::mend_failed(&storage.tenants);
        thread::yield_now();
    }
    append(&tenant, 2);
}

/// A series whose labels take so many bytes, and do not get shorter by compression.
fn append_long(tenant: &Tenant, series: u64, bytes: usize) {
    let mut state = series;
    let value = std::iter::repeat_with(|| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b'!' + (state >> 58) as u8
    });
    let mut key = KeyBuilder::default();
    key.push(b"long", &value.take(bytes).collect::<Vec<_>>());
    let mut batch = Batch::default();
    let number = series_number(&tenant.db, &mut batch, key.as_bytes());
    batch.push(number, NOW, 1);
    assert_eq!(tenant.db.append(&batch).unwrap().stored, 1);
}

/// More is written between two syncs than is kept in memory, and the file system forgets it.
#[test]
fn a_tenant_whose_log_lost_its_end_takes_writes_again_by_itself() {
    let disk = disk_with(&["a"]);
    let storage = Storage::open(&disk);
    let tenant = storage.tenants.tenant(&id("a")).unwrap();
    append(&tenant, 1);
    tenant.db.sync_handle().sync().unwrap();
    (0..30).for_each(|series| append_long(&tenant, series, 50_000));
    disk.fail_syncs(1, FailedSync::DropsBytes);
    tenant.db.sync_handle().sync().unwrap_err();
    assert!(storage.shows("ringest_wal_ends_lost_total{tenant=\"a\"} 1"));
    // The first attempt to replace it fails.
    disk.fail_operation(0, io::ErrorKind::StorageFull, 0);
    // It is counted once it is done.
    while !storage.shows("ringest_wal_ends_replaced_total{tenant=\"a\"} 1") {
        syncer::mend_failed(&storage.tenants);
        thread::yield_now();
    }
    assert_eq!(disk.pending_faults(), 0);
    assert!(!tenant.db.sync_handle().is_dirty());
    let series_in =
        |disk: &FaultyDisk| Storage::open(disk).tenants.tenant(&id("a")).unwrap().db.series_count();
    assert_eq!(series_in(&disk.after_power_cut()), 31);
    append(&tenant, 2);
    append_long(&tenant, 77, 10);
    assert_eq!(series_in(&disk.after_kill()), 32);
}

#[tokio::test]
async fn several_first_writes_make_a_tenant_once() {
    let disk = disk_with(&["default-tenant"]);
    let storage = Storage::open(&disk);
    let making = (0..20).map(|_| {
        let tenants = storage.tenants.clone();
        async move { tenants.create(&id("new")).await.unwrap() }
    });
    let made = futures::future::join_all(making).await;
    assert!(made.iter().all(|tenant| Arc::ptr_eq(tenant, &made[0])));
    assert_eq!(storage.names(), [vec!["default-tenant", "new"], vec![]]);
    // It is there for those who write later, too.
    assert!(Arc::ptr_eq(&storage.tenants.find(&id("new")).unwrap().unwrap(), &made[0]));
}

#[tokio::test]
async fn a_tenant_that_could_not_be_made_is_made_by_a_later_write() {
    let disk = disk_with(&["default-tenant"]);
    let storage = Storage::open(&disk);
    disk.refuse_changes(Path::new("/data/new"), io::ErrorKind::StorageFull);
    for _ in 0..3 {
        // Nobody waits for a maker that is gone.
        let refused = tokio::time::timeout(PATIENCE, storage.tenants.create(&id("new"))).await;
        assert!(matches!(refused, Ok(Err(TenantError::NotMade(_)))));
    }
    assert!(storage.tenants.find(&id("new")).unwrap().is_none(), "it holds no place");
    assert_eq!(storage.names(), [vec!["default-tenant"], vec![]]);
    disk.allow_changes(Path::new("/data/new"));
    storage.tenants.create(&id("new")).await.unwrap();
}

#[tokio::test]
async fn tenants_beyond_the_last_place_are_refused_and_counted() {
    let storage = Storage::open(&disk_with(&["default-tenant"]));
    for i in 0..9 {
        storage.tenants.create(&id(&format!("t{i}"))).await.unwrap();
    }
    for _ in 0..2 {
        let refused = storage.tenants.create(&id("one-too-many")).await;
        assert!(matches!(refused, Err(TenantError::TooMany)));
    }
    storage.tenants.create(&id("t0")).await.unwrap();
    for line in ["ringest_tenants 10", "ringest_tenants_max 10", "ringest_tenants_refused_total 2"]
    {
        assert!(storage.shows(line), "{line}");
    }
}

#[tokio::test]
async fn a_closed_storage_has_everything_on_the_medium_and_takes_nothing() {
    let disk = disk_with(&SIX);
    let storage = Storage::open(&disk);
    storage.append_to_each(1);
    storage.tenants.close();
    let refused = storage.tenants.create(&id("new")).await;
    assert!(matches!(refused, Err(TenantError::Closed)));
    let mut six = each(&SIX, 1);
    six.sort();
    assert_eq!(Storage::open(&disk.after_power_cut()).newest(), six);
    // Its locks are free for the next process.
    assert_eq!(Storage::open(&disk).newest(), six);
}

#[test]
fn a_tenant_whose_lock_another_has_ends_the_start() {
    let disk = disk_with(&["a", "b"]);
    let _lock = disk.lock(Path::new("/data/b/lock")).unwrap();
    let error = Storage::start(&disk).err().unwrap();
    assert_eq!(error.to_string(), "/data/b is locked by another process");
}

#[test]
fn a_hashmod_ring_that_changes_has_the_heads_cut_up_to_what_is_still_taken() {
    use crate::hashring::{
        Algorithm, AlgorithmChoice, Endpoint, HashringMetrics, RingDefaults, RingOptions,
    };
    const MINUTE: i64 = 60_000;
    let current = CurrentHashring::none_yet();
    let metrics = HashringMetrics::new(&Registry::new());
    let ring = |algorithm: &str, endpoints: &[&str]| {
        let defaults = RingDefaults { algorithm: Algorithm::Hashmod, replication_factor: 1 };
        let options = RingOptions {
            algorithm: AlgorithmChoice::parse(algorithm),
            endpoints: endpoints.iter().map(|address| Endpoint::at(address)).collect(),
            ..RingOptions::default()
        };
        current.replace(Hashring::build(vec![options], defaults, None, &metrics));
    };
    let options = MultiTsdbOptions { rings: Some(current.clone()), ..options() };
    let storage = Storage::start_with(options, &FaultyDisk::new()).unwrap();
    let tenants = &storage.tenants;
    let tenant = tenants.tenant(&id("default-tenant")).unwrap();
    // Three hours, the last sample now.
    for minute in (0..=180).rev() {
        let mut batch = Batch::default();
        let series = series_number(&tenant.db, &mut batch, one_label().as_bytes());
        batch.push(series, NOW - minute * MINUTE, 1);
        assert_eq!(tenant.db.append(&batch).unwrap().stored, 1);
    }
    let oldest_in_head = || tenant.db.head_time_range().unwrap().0;
    let before = oldest_in_head();
    for endpoints in [&["a:1"][..], &["a:1"], &["a:1", "b:1"]] {
        ring("ketama", endpoints);
        tenants.cut_heads();
        assert_eq!(oldest_in_head(), before, "{endpoints:?}");
    }
    ring("hashmod", &["a:1", "b:1"]);
    tenants.cut_heads();
    assert_eq!(oldest_in_head(), NOW - 60 * MINUTE);
    // What was taken before is taken still.
    let mut batch = Batch::default();
    let mut key = KeyBuilder::default();
    key.push(b"__name__", b"late");
    let series = series_number(&tenant.db, &mut batch, key.as_bytes());
    batch.push(series, NOW - 60 * MINUTE, 1);
    assert_eq!(tenant.db.append(&batch).unwrap().stored, 1);
}
