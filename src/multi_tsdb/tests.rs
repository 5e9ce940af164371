//! The storage as a whole, on a disk in memory.

use super::*;
use crate::clock::ManualClock;
use crate::disk::faulty::FaultyDisk;

const NOW: i64 = 1_700_000_000_000;

/// A storage and its page of metrics.
struct Storage {
    tenants: Arc<MultiTsdb>,
    registry: Registry,
}

impl Storage {
    /// Opens what is in `/data`, with the replays done.
    fn open(disk: &FaultyDisk) -> Storage {
        Storage::start(disk).unwrap()
    }

    fn start(disk: &FaultyDisk) -> Result<Storage, StartError> {
        let options = MultiTsdbOptions {
            dir: PathBuf::from("/data"),
            db: DbOptions { wal_sync: SyncPolicy::Segment, ..DbOptions::default() },
            labels: vec![("replica".into(), "r0".into())],
            tenant_label_name: "tenant_id".into(),
            rings: None,
            default_tenant: id("default-tenant"),
            tenants_max: 10,
        };
        let (disk, registry) = (Arc::new(disk.clone()), Registry::new());
        let tenants = MultiTsdb::open(options, disk, Arc::new(ManualClock::at(NOW)), &registry)?;
        while tenants.unopened.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        Ok(Storage { tenants, registry })
    }

    fn shows(&self, line: &str) -> bool {
        self.registry.expose().lines().any(|shown| shown == line)
    }

    fn names(&self) -> [Vec<String>; 2] {
        let all = self.tenants.all_tenants();
        let unavailable = all.unavailable.iter().map(|tenant| tenant.id.to_string());
        [all.open.iter().map(|tenant| tenant.id.to_string()).collect(), unavailable.collect()]
    }
}

fn id(name: &str) -> TenantId {
    TenantId::parse(name.as_bytes()).unwrap()
}

/// A disk on which these tenants have directories.
fn disk_with(tenants: &[&str]) -> FaultyDisk {
    let disk = FaultyDisk::new();
    for tenant in tenants {
        disk.create_dir_all(&Path::new("/data").join(tenant)).unwrap();
    }
    disk
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
