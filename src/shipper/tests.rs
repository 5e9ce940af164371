//! Shipping against buckets in memory that fail, and on disks that stop.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::clock::{Clock, ManualClock, SystemClock};
use crate::disk::faulty::FaultyDisk;
use crate::disk::{Disk, SystemDisk, read_file};
use crate::metrics::Registry;
use crate::model::TimeRange;
use crate::model::tenant::TenantId;
use crate::objstore::counted::Counted;
use crate::objstore::filesystem::FileSystemBucket;
use crate::objstore::{Bucket, BucketError, Content};
use crate::shipper::{
    RECORD_FILE, ShipError, ShippedDb, ShippedTenant, Shipper, ShipperEnv, ShipperMetrics,
    ShipperOptions, Shipping, ShippingOptions, shipped,
};
use crate::tsdb::Db;
use crate::tsdb::block::Block;
use crate::tsdb::block::meta::BlockMeta;
use crate::tsdb::block::tombstones::Tombstones;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::compact::Rewriting;
use crate::tsdb::env::Env;
use crate::tsdb::file::PageCache;
use crate::tsdb::head::tests::dump;
use crate::tsdb::options::DbOptions;

/// 2026-11-24T04:33:40.5Z
const NOW: i64 = 1_795_494_820_500;

fn recorded(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb").join(path)
}

/// Files below a directory, by their path in it.
fn files_in(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(of) = dirs.pop() {
        for entry in fs::read_dir(of).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Puts files below a directory, all of it on the medium.
fn put(disk: &dyn Disk, dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let path = dir.join(name);
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = disk.create(&path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync().unwrap();
        for dir in path.ancestors().skip(1).filter(|dir| dir.parent().is_some()) {
            disk.sync_dir(dir).unwrap();
        }
    }
}

/// A tenant's directory with two blocks of Thanos' that are as they were before they were uploaded.
fn two_blocks() -> BTreeMap<String, Vec<u8>> {
    files_in(&recorded("blocks/thanos-receive-sha256/data/team-a"))
}

fn names(blocks: &BTreeMap<String, Vec<u8>>) -> BTreeSet<Ulid> {
    blocks.keys().filter_map(|name| name.split('/').next()?.parse().ok()).collect()
}

/// A bucket in memory.
#[derive(Default)]
struct FakeBucket(Mutex<Fake>);

#[derive(Default)]
struct Fake {
    objects: BTreeMap<String, Vec<u8>>,
    calls: Vec<String>,
    /// The number of the call that fails, and whether it has its effect before.
    failing: Option<(usize, bool)>,
    /// Uploads of objects whose name has this in it fail.
    refused: Option<String>,
    /// What happens when it is next asked for an object.
    once_asked: Option<Box<dyn FnOnce() + Send>>,
}

impl Fake {
    /// Notes a call, and tells whether it fails.
    fn call(&mut self, what: String) -> Option<bool> {
        let number = self.calls.len();
        self.calls.push(what);
        self.failing.filter(|(failing, _)| *failing == number).map(|(_, has_effect)| has_effect)
    }

    fn fault(object: &str) -> BucketError {
        let source = std::io::Error::other("told to fail");
        BucketError::Io { object: object.to_owned(), source }
    }
}

#[async_trait]
impl Bucket for FakeBucket {
    fn name(&self) -> &str {
        "fake"
    }

    async fn exists(&self, object: &str) -> Result<bool, BucketError> {
        let mut fake = self.0.lock();
        if let Some(then) = fake.once_asked.take() {
            then();
        }
        match fake.call(format!("exists {object}")) {
            Some(_) => Err(Fake::fault(object)),
            None => Ok(fake.objects.contains_key(object)),
        }
    }

    async fn upload(&self, object: &str, content: Content) -> Result<(), BucketError> {
        let bytes = match &content {
            Content::Bytes(bytes) => bytes.to_vec(),
            Content::File { file, len } => {
                let mut bytes = vec![0; usize::try_from(*len).unwrap()];
                assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
                bytes
            }
        };
        let mut fake = self.0.lock();
        let fails = fake.call(format!("upload {object}"));
        if fake.refused.as_ref().is_some_and(|refused| object.contains(refused)) {
            return Err(Fake::fault(object));
        }
        if fails != Some(false) {
            fake.objects.insert(object.to_owned(), bytes);
            assert_whole(&fake.objects, object);
        }
        match fails {
            Some(_) => Err(Fake::fault(object)),
            None => Ok(()),
        }
    }
}

/// A block's manifest comes when all that it lists is there.
fn assert_whole(objects: &BTreeMap<String, Vec<u8>>, object: &str) {
    let Some(block) = object.strip_suffix("/meta.json") else { return };
    let meta = BlockMeta::from_bytes(&objects[object]).unwrap();
    let thanos = meta.thanos.unwrap();
    assert!(!thanos.labels.is_empty());
    for file in thanos.files.iter().filter(|file| file.rel_path != "meta.json") {
        let object = format!("{block}/{}", file.rel_path);
        let len = objects.get(&object).map(|bytes| bytes.len() as i64);
        assert_eq!(len, Some(file.size_bytes), "{object}");
    }
}

/// A database with these labels, whose blocks all stay.
struct FakeDb(Arc<Vec<(Vec<u8>, Vec<u8>)>>);

impl ShippedDb for FakeDb {
    fn external_labels(&self) -> Arc<Vec<(Vec<u8>, Vec<u8>)>> {
        self.0.clone()
    }

    fn is_settled(&self, _block: Ulid) -> bool {
        true
    }

    fn rewrite(&self, _blocks: &[Ulid]) -> Vec<(Ulid, Rewriting)> {
        Vec::new()
    }
}

/// A database that does what its shipper asks for.
struct RealDb(Arc<Db>);

impl RealDb {
    fn open(dir: &Path) -> Arc<RealDb> {
        let (disk, options) = (Arc::new(SystemDisk), DbOptions::default());
        let lock = Db::lock(&*disk, dir, &options).unwrap();
        let env = Env::new(disk, Arc::new(ManualClock::at(NOW)), Registry::new());
        Arc::new(RealDb(Db::open(dir, lock, options, &env, "t").unwrap().db))
    }
}

impl ShippedDb for RealDb {
    fn external_labels(&self) -> Arc<Vec<(Vec<u8>, Vec<u8>)>> {
        Arc::new(vec![(b"replica".to_vec(), b"r1".to_vec())])
    }

    fn is_settled(&self, block: Ulid) -> bool {
        self.0.is_settled(block)
    }

    fn rewrite(&self, blocks: &[Ulid]) -> Vec<(Ulid, Rewriting)> {
        self.0.ask_to_rewrite(blocks.iter().copied())
    }
}

struct World {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bucket: Arc<dyn Bucket>,
    options: ShipperOptions,
    registry: Registry,
}

impl World {
    fn new(disk: impl Disk, dir: &Path, bucket: Arc<dyn Bucket>) -> World {
        let options = ShipperOptions { has_hashes: true, ..ShipperOptions::default() };
        let registry = Registry::new();
        World { disk: Arc::new(disk), dir: dir.to_owned(), bucket, options, registry }
    }

    fn shipper(&self) -> Shipper {
        let labels = [("replica", "r1"), ("tenant_id", "team-a"), ("zone", "z")];
        let labels = labels.map(|(name, value)| (name.into(), value.into())).to_vec();
        self.shipper_with(labels)
    }

    fn shipper_with(&self, labels: Vec<(Vec<u8>, Vec<u8>)>) -> Shipper {
        self.shipper_of(Arc::new(FakeDb(Arc::new(labels))))
    }

    fn shipper_of(&self, db: Arc<dyn ShippedDb>) -> Shipper {
        let env = ShipperEnv {
            disk: self.disk.clone(),
            clock: Arc::new(ManualClock::at(NOW)),
            bucket: self.bucket.clone(),
            options: self.options,
        };
        let metrics = ShipperMetrics::new(&self.registry, "team-a");
        Shipper::new("team-a".to_owned(), self.dir.clone(), db, env, metrics)
    }

    /// The value of a line of the metrics page.
    fn metric(&self, line: &str) -> f64 {
        let page = self.registry.expose();
        let found = page.lines().find_map(|of| of.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{line} in {page}")).parse().unwrap()
    }

    fn held_back(&self, reason: &str) -> f64 {
        let name = "ringest_shipper_blocks_held_back";
        self.metric(&format!("{name}{{reason=\"{reason}\",tenant=\"team-a\"}}"))
    }

    fn of_tenant(&self, name: &str) -> f64 {
        self.metric(&format!("{name}{{tenant=\"team-a\"}}"))
    }
}

fn on_disk(files: &BTreeMap<String, Vec<u8>>) -> (tempfile::TempDir, World, Arc<FakeBucket>) {
    let dir = tempfile::tempdir().unwrap();
    put(&SystemDisk, dir.path(), files);
    let bucket = Arc::new(FakeBucket::default());
    let world = World::new(SystemDisk, dir.path(), bucket.clone());
    (dir, world, bucket)
}

#[tokio::test]
async fn a_bucket_holds_what_thanos_would_have_put_there() {
    for (set, has_hashes) in [("sha256", true), ("plain", false)] {
        let base = recorded(&format!("blocks/thanos-receive-{set}"));
        let (_dir, mut world, bucket) = on_disk(&files_in(&base.join("data/team-a")));
        world.options.has_hashes = has_hashes;
        let shipper = world.shipper();
        assert_eq!(shipper.ship().await.unwrap().uploaded, 2);
        let theirs = files_in(&base.join("bucket"));
        let ours = bucket.0.lock().objects.clone();
        for (name, bytes) in &ours {
            if name.ends_with("meta.json") {
                let lines = |bytes: &[u8]| {
                    let text = String::from_utf8(bytes.to_vec()).unwrap();
                    let (before, time) = text.split_once("\"upload_time\": \"").unwrap();
                    (before.to_owned(), time.split_once('"').unwrap().1.to_owned())
                };
                assert_eq!(lines(bytes), lines(&theirs[name]), "{name}");
                let time = "\"upload_time\": \"2026-11-24T04:33:40.5Z\"";
                assert!(String::from_utf8_lossy(bytes).contains(time), "{name}");
            } else {
                assert!(*bytes == theirs[name], "{name}");
            }
        }
        let blocks = names(&ours);
        assert_eq!((blocks.len(), ours.len()), (2, 6));
        assert_eq!(shipped(&SystemDisk, &world.dir), blocks);
        // Nothing is done twice, and nobody is asked.
        bucket.0.lock().calls.clear();
        assert_eq!(shipper.ship().await.unwrap().uploaded, 0);
        assert_eq!(bucket.0.lock().calls, [""; 0]);
        assert_eq!(world.of_tenant("thanos_shipper_uploads_total"), 2.0);
        assert_eq!(world.of_tenant("thanos_shipper_dir_syncs_total"), 2.0);
        assert_eq!(world.of_tenant("ringest_shipper_blocks_pending"), 0.0);
    }
}

#[tokio::test]
async fn files_are_uploaded_in_the_order_in_which_a_block_becomes_whole() {
    let (_dir, world, bucket) = on_disk(&two_blocks());
    world.shipper().ship().await.unwrap();
    let calls = bucket.0.lock().calls.clone();
    // The older one first, which the names do not tell.
    let metas = names(&two_blocks()).into_iter().map(|ulid| {
        let meta = BlockMeta::read(&SystemDisk, &world.dir.join(ulid.to_string())).unwrap();
        (meta.min_time, ulid)
    });
    let order: Vec<Ulid> = BTreeSet::from_iter(metas).into_iter().map(|(_, ulid)| ulid).collect();
    let asked = order.iter().map(|ulid| format!("exists {ulid}/meta.json"));
    let uploads = order.iter().flat_map(|ulid| {
        ["chunks/000001", "index", "meta.json"].map(|file| format!("upload {ulid}/{file}"))
    });
    assert_eq!(calls, asked.chain(uploads).collect::<Vec<_>>());
}

/// Whichever call fails, and whether or not it has its effect, the next round has every block in the
/// bucket.
#[tokio::test]
async fn a_bucket_that_fails_at_any_call_has_all_blocks_after_the_next_round() {
    for has_effect in [false, true] {
        for goes_on in [false, true] {
            let mut number = 0;
            loop {
                let (_dir, mut world, bucket) = on_disk(&two_blocks());
                world.options.goes_on_after_failure = goes_on;
                bucket.0.lock().failing = Some((number, has_effect));
                let shipper = world.shipper();
                let first = shipper.ship().await;
                let context = format!("call {number}, {has_effect}, {goes_on}: {first:?}");
                let was_called = bucket.0.lock().calls.len() > number;
                assert_eq!(first.is_err(), was_called, "{context}");
                bucket.0.lock().failing = None;
                // As after a restart every second time.
                let again = if number % 2 == 0 { shipper } else { world.shipper() };
                again.ship().await.unwrap();
                let blocks = names(&two_blocks());
                let fake = bucket.0.lock();
                assert_eq!((names(&fake.objects), fake.objects.len()), (blocks.clone(), 6));
                fake.objects.keys().for_each(|object| assert_whole(&fake.objects, object));
                assert_eq!(shipped(&SystemDisk, &world.dir), blocks, "{context}");
                if !was_called {
                    break;
                }
                number += 1;
            }
            // Two are asked for, and six files are uploaded.
            assert_eq!(number, 8);
        }
    }
}

const TENANT: &str = "/db/team-a";
const BUCKET: &str = "/bucket";

fn on_one_disk(disk: &FaultyDisk) -> World {
    let system: Arc<dyn Disk> = Arc::new(disk.clone());
    let bucket = FileSystemBucket::new(system, PathBuf::from(BUCKET), "a/b");
    World::new(disk.clone(), Path::new(TENANT), Arc::new(bucket))
}

fn objects_on(disk: &FaultyDisk) -> BTreeMap<String, Vec<u8>> {
    let base = Path::new(BUCKET).join("a/b");
    let mut objects = BTreeMap::new();
    let mut dirs = vec![base.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in disk.list(&dir).unwrap_or_default() {
            let path = dir.join(&entry.name);
            if entry.is_dir {
                dirs.push(path);
            } else if !entry.name.to_str().unwrap().starts_with(".tmp-") {
                let name = path.strip_prefix(&base).unwrap().to_str().unwrap().to_owned();
                objects.insert(name, read_file(disk, &path, 1 << 20).unwrap());
            }
        }
    }
    objects
}

/// Wherever the machine stops, what has a manifest is whole, and the next start brings the rest.
#[tokio::test]
async fn a_block_is_whole_in_the_bucket_wherever_the_machine_stops() {
    let blocks = names(&two_blocks());
    let mut stops = 0;
    loop {
        let disk = FaultyDisk::new();
        put(&disk, Path::new(TENANT), &two_blocks());
        disk.fail_all_operations(stops);
        let first = on_one_disk(&disk).shipper().ship().await;
        for after in [disk.after_kill(), disk.after_power_cut()] {
            let objects = objects_on(&after);
            objects.keys().for_each(|object| assert_whole(&objects, object));
            // What is in the record is in the bucket, or its block could be deleted.
            for block in shipped(&after, Path::new(TENANT)) {
                assert!(objects.contains_key(&format!("{block}/meta.json")), "{stops}: {block}");
            }
            on_one_disk(&after).shipper().ship().await.unwrap();
            let objects = objects_on(&after);
            objects.keys().for_each(|object| assert_whole(&objects, object));
            assert_eq!((names(&objects), objects.len()), (blocks.clone(), 6), "{stops}");
            assert_eq!(shipped(&after, Path::new(TENANT)), blocks, "{stops}");
        }
        let is_over = stops > disk.operations() || first.is_ok() && stops > 40;
        if is_over && shipped(&disk, Path::new(TENANT)) == blocks {
            break;
        }
        stops += 1;
    }
    assert!(stops > 40, "{stops}");
}

#[tokio::test]
async fn what_is_in_the_bucket_is_noted_without_a_record() {
    for record in [None, Some("{"), Some(r#"{"version": 2}"#)] {
        let (_dir, world, bucket) = on_disk(&two_blocks());
        world.shipper().ship().await.unwrap();
        let file = world.dir.join(RECORD_FILE);
        match record {
            None => fs::remove_file(&file).unwrap(),
            Some(text) => fs::write(&file, text).unwrap(),
        }
        bucket.0.lock().calls.clear();
        assert_eq!(world.shipper().ship().await.unwrap().uploaded, 0);
        let calls = bucket.0.lock().calls.clone();
        assert!(calls.len() == 2 && calls.iter().all(|call| call.starts_with("exists ")));
        assert_eq!(shipped(&SystemDisk, &world.dir), names(&two_blocks()));
    }
}

#[tokio::test]
async fn the_record_holds_what_is_still_here() {
    let (_dir, world, bucket) = on_disk(&two_blocks());
    let shipper = world.shipper();
    shipper.ship().await.unwrap();
    let gone = names(&two_blocks()).pop_first().unwrap();
    fs::remove_dir_all(world.dir.join(gone.to_string())).unwrap();
    bucket.0.lock().calls.clear();
    shipper.ship().await.unwrap();
    assert_eq!(bucket.0.lock().calls, [""; 0]);
    let left: BTreeSet<Ulid> =
        names(&two_blocks()).into_iter().filter(|ulid| *ulid != gone).collect();
    assert_eq!(shipped(&SystemDisk, &world.dir), left);
}

/// How one of two blocks is damaged.
type Damage = fn(&mut BTreeMap<String, Vec<u8>>, Ulid);

#[tokio::test]
async fn a_damaged_block_holds_the_others_back_unless_it_is_to_be_skipped() {
    let damages: [(&str, Damage); 6] = [
        ("no manifest", |files, ulid| drop(files.remove(&format!("{ulid}/meta.json")))),
        ("half a manifest", |files, ulid| {
            files.get_mut(&format!("{ulid}/meta.json")).unwrap().truncate(100);
        }),
        ("of a later version", |files, ulid| {
            let meta = files.get_mut(&format!("{ulid}/meta.json")).unwrap();
            let text = String::from_utf8(meta.clone()).unwrap();
            *meta = text.replace("\"version\": 1", "\"version\": 2").into_bytes();
        }),
        ("the manifest of another", |files, ulid| {
            let meta = files.get_mut(&format!("{ulid}/meta.json")).unwrap();
            let text = String::from_utf8(meta.clone()).unwrap();
            *meta = text.replace(&ulid.to_string(), &Ulid(7).to_string()).into_bytes();
        }),
        ("half an index", |files, ulid| {
            files.get_mut(&format!("{ulid}/index")).unwrap().truncate(100);
        }),
        ("a damaged chunk", |files, ulid| {
            files.get_mut(&format!("{ulid}/chunks/000001")).unwrap()[40] ^= 1;
        }),
    ];
    let blocks: Vec<Ulid> = names(&two_blocks()).into_iter().collect();
    for (what, damage) in damages {
        for damaged in [0, 1] {
            let (damaged, whole) = (blocks[damaged], blocks[1 - damaged]);
            let mut files = two_blocks();
            damage(&mut files, damaged);
            let (_dir, mut world, bucket) = on_disk(&files);
            let error = world.shipper().ship().await.unwrap_err();
            assert!(error.to_string().contains(&damaged.to_string()), "{what}: {error}");
            assert!(matches!(error, ShipError::Damaged { .. }), "{what}: {error}");
            assert_eq!(world.held_back("damaged"), 1.0, "{what}");
            assert_eq!(world.of_tenant("thanos_shipper_corrupted_blocks_total"), 1.0, "{what}");
            assert_eq!(world.of_tenant("thanos_shipper_dir_sync_failures_total"), 1.0, "{what}");

            world.options.goes_on_after_damage = true;
            let error = world.shipper().ship().await.unwrap_err();
            assert!(matches!(error, ShipError::Some { failed: 0, damaged: 1 }), "{what}: {error}");
            assert_eq!(names(&bucket.0.lock().objects), BTreeSet::from([whole]), "{what}");
            assert_eq!(shipped(&SystemDisk, &world.dir), BTreeSet::from([whole]), "{what}");

            // An operator moves it aside.
            world.options.goes_on_after_damage = false;
            let aside = world.dir.join(format!("{damaged}.aside"));
            fs::rename(world.dir.join(damaged.to_string()), aside).unwrap();
            world.shipper().ship().await.unwrap();
            assert_eq!(world.held_back("damaged"), 0.0, "{what}");
        }
    }
}

#[tokio::test]
async fn what_may_not_be_shipped_is_held_back_alone() {
    let mut files = two_blocks();
    let mut add = |from: &str| {
        for (name, bytes) in files_in(&recorded(from)) {
            files.insert(name, bytes);
        }
    };
    add("blocks/tombstones");
    add("newer/xor2");
    let all = names(&files);
    let (with_tombstones, of_newer): (Ulid, Ulid) = (
        "01M85ZRP9VA6NTPNHXS8YWCHYK".parse().unwrap(),
        "01M85ZRFH4Y84WM9EJ2AEFRMD1".parse().unwrap(),
    );
    let compacted = Ulid(5);
    let source = *names(&two_blocks()).first().unwrap();
    for (name, bytes) in two_blocks() {
        let Some(file) = name.strip_prefix(&format!("{source}/")) else { continue };
        let text =
            String::from_utf8_lossy(&bytes).replace(&source.to_string(), &compacted.to_string());
        let is_meta = file == "meta.json";
        let bytes =
            if is_meta { text.replace("\"level\": 1", "\"level\": 2").into_bytes() } else { bytes };
        files.insert(format!("{compacted}/{file}"), bytes);
    }
    assert!(all.contains(&with_tombstones) && all.contains(&of_newer), "{all:?}");
    // Neither blocks nor anybody's.
    files.insert(format!("{}.tmp-for-creation/meta.json", Ulid(9)), b"{".to_vec());
    files.insert("thanos/upload/left".to_owned(), Vec::new());
    let (_dir, world, bucket) = on_disk(&files);
    let shipper = world.shipper();
    shipper.ship().await.unwrap();
    shipper.ship().await.unwrap();
    let shipped_now = names(&bucket.0.lock().objects);
    let held = BTreeSet::from([with_tombstones, of_newer]);
    assert_eq!(shipped_now, all.difference(&held).copied().collect());
    for reason in ["tombstones", "encoding", "compacted"] {
        assert_eq!(world.held_back(reason), 1.0, "{reason}");
    }
    assert_eq!(world.held_back("damaged"), 0.0);
    assert!(fs::metadata(world.dir.join("thanos/upload")).is_err());
}

#[tokio::test]
async fn a_block_that_fails_ends_the_round_or_is_left_for_the_next() {
    let blocks: Vec<Ulid> = names(&two_blocks()).into_iter().collect();
    for goes_on in [false, true] {
        for failing in [0, 1] {
            let (failing, other) = (blocks[failing], blocks[1 - failing]);
            let (_dir, mut world, bucket) = on_disk(&two_blocks());
            world.options.goes_on_after_failure = goes_on;
            bucket.0.lock().refused = Some(format!("{failing}/index"));
            let shipper = world.shipper();
            let error = shipper.ship().await.unwrap_err();
            let is_first = {
                let meta = |ulid: Ulid| {
                    BlockMeta::read(&SystemDisk, &world.dir.join(ulid.to_string())).unwrap()
                };
                meta(failing).min_time < meta(other).min_time
            };
            let is_uploaded = goes_on || !is_first;
            let expected = if is_uploaded { BTreeSet::from([other]) } else { BTreeSet::new() };
            assert_eq!(shipped(&SystemDisk, &world.dir), expected, "{error}");
            match (&error, goes_on) {
                (ShipError::Upload { block, .. }, false) => assert_eq!(*block, failing),
                (ShipError::Some { failed: 1, damaged: 0 }, true) => {}
                _ => panic!("{error}"),
            }
            assert_eq!(world.of_tenant("thanos_shipper_upload_failures_total"), 1.0);
            bucket.0.lock().refused = None;
            shipper.ship().await.unwrap();
            assert_eq!(shipped(&SystemDisk, &world.dir).len(), 2);
        }
    }
}

/// As recorded from Thanos; a tenant's are there before its first round, a bucket's before its first
/// call.
#[test]
fn metrics_are_those_of_thanos() {
    let registry = Registry::new();
    let bucket = Arc::new(FakeBucket::default());
    Counted::new(bucket, Arc::new(SystemClock), &registry);
    ShipperMetrics::new(&registry, "t");
    let page = registry.expose();
    let has = |line: &str| assert!(page.lines().any(|of| of == line), "{line}: {page}");
    for name in [
        "corrupted_blocks_total",
        "dir_sync_failures_total",
        "dir_syncs_total",
        "upload_failures_total",
        "uploads_total",
    ] {
        has(&format!("# TYPE thanos_shipper_{name} counter"));
        has(&format!("thanos_shipper_{name}{{tenant=\"t\"}} 0"));
    }
    has("# TYPE thanos_shipper_upload_compacted_done gauge");
    has("thanos_shipper_upload_compacted_done{tenant=\"t\"} 0");
    has("# TYPE thanos_objstore_bucket_last_successful_upload_time gauge");
    has("thanos_objstore_bucket_last_successful_upload_time{bucket=\"fake\"} 0");
    let base = "thanos_objstore_bucket_operation";
    has(&format!("# TYPE {base}_duration_seconds histogram"));
    has(&format!("# TYPE {base}_transferred_bytes histogram"));
    has(&format!("# TYPE {base}_fetched_bytes_total counter"));
    for operation in ["attributes", "delete", "exists", "get", "get_range", "iter", "upload"] {
        let labels = format!("{{bucket=\"fake\",operation=\"{operation}\"}}");
        has(&format!("{base}s_total{labels} 0"));
        has(&format!("{base}_failures_total{labels} 0"));
        has(&format!("{base}_duration_seconds_count{labels} 0"));
        let has_bytes = ["get", "get_range", "upload"].contains(&operation);
        let line = format!("{base}_fetched_bytes_total{labels} 0");
        assert_eq!(page.lines().any(|of| of == line), has_bytes, "{line}");
    }
    let bounds = |name: &str| -> Vec<&str> {
        let start = format!("{base}_{name}_bucket{{bucket=\"fake\",operation=\"upload\",le=\"");
        let bounds = page.lines().filter_map(|line| line.strip_prefix(&start));
        bounds.map(|rest| rest.split_once('"').unwrap().0).collect()
    };
    let seconds = "0.001 0.01 0.1 0.3 0.6 1 3 6 9 20 30 60 90 120 +Inf";
    assert_eq!(bounds("duration_seconds").join(" "), seconds);
    let bytes = "32768 65536 131072 262144 524288 1048576 2097152 4194304 8388608 16777216 \
                 33554432 67108864 134217728 268435456 536870912 1073741824 +Inf";
    assert_eq!(bounds("transferred_bytes").join(" "), bytes);
}

#[tokio::test]
async fn a_block_that_is_taken_away_meanwhile_is_not_damaged() {
    let (_dir, world, bucket) = on_disk(&two_blocks());
    let blocks = names(&two_blocks());
    let (gone, other) = (*blocks.first().unwrap(), *blocks.last().unwrap());
    let dir = world.dir.join(gone.to_string());
    bucket.0.lock().once_asked = Some(Box::new(move || fs::remove_dir_all(dir).unwrap()));
    assert_eq!(world.shipper().ship().await.unwrap().uploaded, 1);
    assert_eq!(names(&bucket.0.lock().objects), BTreeSet::from([other]));
    assert_eq!(world.of_tenant("thanos_shipper_corrupted_blocks_total"), 0.0);
}

#[tokio::test]
async fn what_waits_is_shown_while_the_bucket_does_not_answer() {
    let (_dir, world, bucket) = on_disk(&two_blocks());
    bucket.0.lock().failing = Some((0, false));
    let shipper = world.shipper();
    assert!(matches!(shipper.ship().await, Err(ShipError::Exists(_))));
    assert_eq!(world.of_tenant("ringest_shipper_blocks_pending"), 2.0);
    shipper.ship().await.unwrap();
    assert_eq!(world.of_tenant("ringest_shipper_blocks_pending"), 0.0);
}

#[tokio::test]
async fn a_block_without_labels_stays_here() {
    let (_dir, world, bucket) = on_disk(&two_blocks());
    let error = world.shipper_with(Vec::new()).ship().await.unwrap_err().to_string();
    assert!(error.contains("empty external labels"), "{error}");
    let odd = vec![(b"a".to_vec(), b"\xff".to_vec())];
    let error = world.shipper_with(odd).ship().await.unwrap_err().to_string();
    assert!(error.contains("not valid UTF-8"), "{error}");
    assert_eq!(bucket.0.lock().objects, BTreeMap::new());
}

/// What may pass is neither damage nor absence.
#[tokio::test]
async fn a_disk_that_fails_reads_ends_the_round_and_calls_nothing_damaged() {
    let disk = FaultyDisk::new();
    put(&disk, Path::new(TENANT), &two_blocks());
    let block = *names(&two_blocks()).first().unwrap();
    for file in ["meta.json", "index", "chunks/000001"] {
        let path = Path::new(TENANT).join(block.to_string()).join(file);
        disk.fail_reads(&path, std::io::ErrorKind::Other);
        let world = on_one_disk(&disk);
        let error = world.shipper().ship().await.unwrap_err();
        assert!(matches!(error, ShipError::Read(_)), "{file}: {error}");
        assert_eq!(world.of_tenant("thanos_shipper_corrupted_blocks_total"), 0.0);
        disk.allow_reads(&path);
    }
    on_one_disk(&disk).shipper().ship().await.unwrap();
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
}

/// Tenants in directories of their own, each with the same two blocks under names of their own.
fn tenants_in(root: &Path, ids: &[&str]) -> impl Fn() -> Vec<ShippedTenant> + use<> {
    let dirs: Vec<(TenantId, PathBuf)> =
        ids.iter().map(|id| (TenantId::parse(id.as_bytes()).unwrap(), root.join(id))).collect();
    move || {
        let tenant = |(id, dir): &(TenantId, PathBuf)| {
            let labels = Arc::new(vec![(b"tenant_id".to_vec(), id.as_str().into())]);
            ShippedTenant { id: id.clone(), dir: dir.clone(), db: Arc::new(FakeDb(labels)) }
        };
        dirs.iter().map(tenant).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_failures_are_its_own_and_a_last_round_takes_what_is_left() {
    let root = tempfile::tempdir().unwrap();
    put(&SystemDisk, &root.path().join("a"), &two_blocks());
    let other = files_in(&recorded("blocks/thanos-receive-sha256/data/default-tenant"));
    put(&SystemDisk, &root.path().join("b"), &other);
    let bucket = Arc::new(FakeBucket::default());
    let failing = *names(&two_blocks()).first().unwrap();
    bucket.0.lock().refused = Some(failing.to_string());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let options = ShippingOptions { bucket: bucket.clone(), shipper: ShipperOptions::default() };
    let disk: Arc<dyn Disk> = Arc::new(SystemDisk);
    let registry = Registry::new();
    let tenants = tenants_in(root.path(), &["a", "b"]);
    let shipping = Shipping::start(options, disk, clock, &registry, tenants).unwrap();
    let (of_a, of_b) = (root.path().join("a"), root.path().join("b"));
    until(|| shipped(&SystemDisk, &of_b) == names(&other)).await;
    let failures = "thanos_shipper_dir_sync_failures_total{tenant=\"a\"} 1";
    until(|| registry.expose().contains(failures)).await;
    // Its next turn is half a minute away, the end is now.
    bucket.0.lock().refused = None;
    tokio::task::spawn_blocking(move || shipping.finish(Duration::from_secs(60))).await.unwrap();
    assert_eq!(shipped(&SystemDisk, &of_a), names(&two_blocks()));
}

/// A node may be stopped sooner after its start than it is looked for the next time who is open.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_was_opened_since_the_last_look_has_a_last_round_as_well() {
    let root = tempfile::tempdir().unwrap();
    put(&SystemDisk, &root.path().join("a"), &two_blocks());
    let options = ShippingOptions {
        bucket: Arc::new(FakeBucket::default()),
        shipper: ShipperOptions::default(),
    };
    let looks = Arc::new(AtomicUsize::new(0));
    let open = tenants_in(root.path(), &["a"]);
    let counted = looks.clone();
    let tenants = move || match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Vec::new(),
        _ => open(),
    };
    let (clock, disk): (Arc<dyn Clock>, Arc<dyn Disk>) =
        (Arc::new(SystemClock), Arc::new(SystemDisk));
    let shipping = Shipping::start(options, disk, clock, &Registry::new(), tenants).unwrap();
    until(|| looks.load(Ordering::SeqCst) > 0).await;
    tokio::task::spawn_blocking(move || shipping.finish(Duration::from_secs(60))).await.unwrap();
    assert_eq!(shipped(&SystemDisk, &root.path().join("a")), names(&two_blocks()));
}

/// A tenant's directory with the recorded block of which something was deleted.
fn one_with_tombstones() -> (BTreeMap<String, Vec<u8>>, Ulid) {
    let files = files_in(&recorded("blocks/tombstones"));
    let block = *names(&files).first().unwrap();
    (files, block)
}

#[tokio::test]
async fn a_block_with_tombstones_arrives_without_what_they_delete() {
    let (files, parent) = one_with_tombstones();
    let (dir, world, bucket) = on_disk(&files);
    let db = RealDb::open(dir.path());
    let before = dump(&db.0);
    let shipper = world.shipper_of(db.clone());
    assert_eq!(shipper.ship().await.unwrap().uploaded, 0);
    assert_eq!(world.held_back("tombstones"), 1.0);
    assert_eq!(db.0.rewrite_asked().unwrap(), 1);
    assert_eq!(dump(&db.0), before);
    assert_eq!(shipper.ship().await.unwrap().uploaded, 1);
    assert_eq!(world.held_back("tombstones"), 0.0);
    let objects = bucket.0.lock().objects.clone();
    let [child] = names(&objects).into_iter().collect::<Vec<_>>()[..] else {
        panic!("{objects:?}")
    };
    assert!(child != parent);
    let meta = BlockMeta::from_bytes(&objects[&format!("{child}/meta.json")]).unwrap();
    // By its sources Thanos knows it for the same samples as its parent's.
    assert_eq!((meta.compaction.level, &meta.compaction.sources[..]), (1, &[parent][..]));
    // What is read from the bucket is what was read here.
    let elsewhere = tempfile::tempdir().unwrap();
    put(&SystemDisk, elsewhere.path(), &objects);
    let arrived = elsewhere.path().join(child.to_string());
    Block::open(&SystemDisk, &arrived, PageCache::new(0)).unwrap();
    assert_eq!(dump(&RealDb::open(elsewhere.path()).0), before);
    assert_eq!(shipper.ship().await.unwrap().uploaded, 0);
}

/// Its samples would be in the bucket twice.
#[tokio::test]
async fn a_block_that_is_in_the_bucket_already_is_not_rewritten() {
    let (files, block) = one_with_tombstones();
    for is_recorded in [false, true] {
        let (dir, world, bucket) = on_disk(&files);
        match is_recorded {
            true => crate::shipper::record::write(&SystemDisk, dir.path(), &[block]).unwrap(),
            false => {
                let object = (format!("{block}/meta.json"), Vec::new());
                bucket.0.lock().objects.extend([object]);
            }
        }
        let db = RealDb::open(dir.path());
        assert_eq!(world.shipper_of(db.clone()).ship().await.unwrap().uploaded, 0);
        assert_eq!(db.0.rewrite_asked().unwrap(), 0);
        assert_eq!(shipped(&SystemDisk, dir.path()), BTreeSet::from([block]));
        assert!(dir.path().join(block.to_string()).is_dir());
    }
}

/// Deletes half of what the first series of a block has.
fn delete_half(dir: &Path) {
    let block = Block::open(&SystemDisk, dir, PageCache::new(1 << 20)).unwrap();
    let series = block.index().all_postings().unwrap()[0];
    let BlockMeta { min_time, max_time, .. } = *block.meta();
    let half = TimeRange { mint: min_time, maxt: (min_time + max_time) / 2 };
    let tombstones = Tombstones::from_spans(vec![(u64::from(series), half)]);
    tombstones.write(&SystemDisk, dir).unwrap();
}

/// Where it cannot be rewritten it is told why: what is damaged is damaged.
#[tokio::test]
async fn a_block_with_tombstones_that_cannot_be_rewritten_is_held_back_for_what_keeps_it_from_it() {
    let (mut files, block) = one_with_tombstones();
    let segment = files.get_mut(&format!("{block}/chunks/000001")).unwrap();
    segment[20] ^= 1;
    let (dir, world, _bucket) = on_disk(&files);
    let db = RealDb::open(dir.path());
    let shipper = world.shipper_of(db.clone());
    assert_eq!(shipper.ship().await.unwrap().uploaded, 0);
    assert_eq!((world.held_back("tombstones"), world.held_back("damaged")), (1.0, 0.0));
    assert_eq!(db.0.rewrite_asked().unwrap(), 0);
    let err = shipper.ship().await.unwrap_err();
    assert!(matches!(err, ShipError::Damaged { block: told, .. } if told == block), "{err}");
    assert_eq!((world.held_back("tombstones"), world.held_back("damaged")), (0.0, 1.0));

    // Chunks of Prometheus 3.14 of which a part is deleted.
    let block = "01M85ZRFH4Y84WM9EJ2AEFRMD1";
    let mut files = files_in(&recorded("newer/xor2"));
    files.retain(|name, _| name.starts_with(block));
    let (dir, world, _bucket) = on_disk(&files);
    delete_half(&dir.path().join(block));
    let db = RealDb::open(dir.path());
    let shipper = world.shipper_of(db.clone());
    shipper.ship().await.unwrap();
    db.0.rewrite_asked().unwrap();
    shipper.ship().await.unwrap();
    assert!(world.held_back("not_rewritten") > 0.0);
    assert_eq!((world.held_back("tombstones"), world.held_back("damaged")), (0.0, 0.0));
}
