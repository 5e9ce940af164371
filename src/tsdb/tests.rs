//! One database on a disk in memory, opened and closed and cut off.

mod early;
mod model;

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::clock::ManualClock;
use crate::disk::SystemDisk;
use crate::disk::faulty::{FailedSync, FaultyDisk};
use crate::metrics::Registry;
use crate::model::HeadSeriesRef;
use crate::model::STALE_NAN_BITS;
use crate::model::histogram::{AnyHistogram, CUSTOM_BUCKETS_SCHEMA, Histogram, Layout};
use crate::tsdb::chunkenc::xor::XorIterator;
use crate::tsdb::exemplars::Exemplar;
use crate::tsdb::head::append::Refusal;
use crate::tsdb::head::tests::{dump, number_of_series, push};
use crate::tsdb::loading::Loading;
use crate::tsdb::querier::tests::assert_gathered;
use crate::tsdb::wal::Compression;
use crate::tsdb::wal::WalMetrics;
use crate::tsdb::wal::record::Record;
use crate::tsdb::wal::repair::open_log;

const DIR: &str = "/t";
const NOW: i64 = 1_700_000_000_000;
const HOUR: i64 = 3_600_000;

fn options() -> DbOptions {
    // So that a few samples take several segments.
    let (wal_segment_bytes, wal_compression) = (32 * 1024, Compression::None);
    DbOptions { wal_segment_bytes, wal_compression, ..DbOptions::default() }
}

fn open(disk: &FaultyDisk) -> Arc<Db> {
    open_at(disk, NOW)
}

fn open_at(disk: &FaultyDisk, now: i64) -> Arc<Db> {
    open_with(disk, now, options())
}

fn open_with(disk: &FaultyDisk, now: i64, options: DbOptions) -> Arc<Db> {
    let lock = Db::lock(disk, Path::new(DIR), &options).unwrap();
    try_open(disk, lock, now, options).unwrap().db
}

fn try_open(
    disk: &FaultyDisk,
    lock: Option<Box<dyn DirLock>>,
    now: i64,
    options: DbOptions,
) -> Result<Opened, OpenError> {
    Db::open(Path::new(DIR), lock, options, &env(disk.clone(), now), "t")
}

fn env(disk: impl Disk + 'static, now: i64) -> Env {
    Env::new(Arc::new(disk), Arc::new(ManualClock::at(now)), Registry::new())
}

/// Appends a sample of a series with a long name of its own.
fn append(db: &Db, series: u64, t: i64) -> AppendReport {
    let mut batch = Batch::default();
    let name = format!("{series:01000}");
    push(db, &mut batch, &json!([["__name__", "m"], ["n", name]]), t, series);
    db.append(&batch).unwrap()
}

/// A block that was made at a time, as its name says, and ends at another.
fn add_block(disk: &FaultyDisk, made_at: i64, maxt: i64) {
    let block = Path::new(DIR).join(ulid(made_at));
    disk.create_dir_all(&block).unwrap();
    let meta = disk.create(&block.join("meta.json")).unwrap();
    meta.write_all_at(format!(r#"{{"minTime": 0, "maxTime": {maxt}}}"#).as_bytes(), 0).unwrap();
}

fn ulid(made_at: i64) -> String {
    let digit =
        |i: u32| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[(made_at >> (45 - 5 * i)) as usize & 31];
    (0..10).map(|i| char::from(digit(i))).chain("EBJ4BHYM21MP7HFW".chars()).collect()
}

#[test]
fn a_block_shuts_out_what_is_older_and_one_of_a_clock_ahead_nobody() {
    let half_range = options().block_range / 2;
    let old = NOW - half_range - 5;
    for (made_at, end, floor) in [(NOW, old, old), (NOW - HOUR / 2, NOW + HOUR, NOW - HOUR / 2)] {
        let disk = FaultyDisk::new();
        add_block(&disk, made_at, end);
        let db = open(&disk);
        let report = append(&db, 1, floor - 1);
        let refused = Refusal::ALL.into_iter().zip(&report.refused);
        let refused: Vec<_> = refused.filter(|(_, refused)| refused.is_some()).collect();
        assert!(matches!(refused[..], [(Refusal::OutOfBounds, Some((1, _)))]), "{refused:?}");
        assert_eq!(append(&db, 1, floor).stored, 1);
    }
}

/// A floor that moved with the clock let samples in that a later start took for a block's.
#[test]
fn what_was_taken_beside_a_block_is_there_after_every_restart() {
    let made_at = [NOW - 3 * HOUR, NOW];
    let ends = [NOW - 4 * HOUR, NOW - HOUR, NOW, NOW + 2 * HOUR];
    for (made_at, end) in made_at.into_iter().flat_map(|at| ends.map(|end| (at, end))) {
        let disk = FaultyDisk::new();
        add_block(&disk, made_at, end);
        let db = open(&disk);
        let times = [-2 * HOUR, -HOUR / 2, -1, 0, HOUR].map(|ago| NOW + ago);
        let stored: u64 = (0..).zip(times).map(|(series, t)| append(&db, series, t).stored).sum();
        assert!(stored >= 2);
        let before = dump(&db);
        for later in [-5 * HOUR, 0, 2 * HOUR, 30 * HOUR] {
            let again = dump(&open_at(&disk.after_kill(), NOW + later));
            assert!(again == before, "made at {made_at}, ends at {end}, {later} later");
        }
    }
}

/// As a shutdown of Thanos leaves it, which cuts all but the last sample and keeps the log.
#[test]
fn a_log_that_a_block_was_cut_from_keeps_what_the_block_has_not() {
    let disk = FaultyDisk::new();
    let db = open(&disk);
    let times: Vec<i64> = (0..240).map(|i| NOW - 60_000 + i * 250).collect();
    times.iter().for_each(|t| assert_eq!(append(&db, 1, *t).stored, 1));
    let killed = disk.after_kill();
    add_block(&killed, NOW + 1, *times.last().unwrap());
    for later in [0, 2 * HOUR] {
        let [(_, samples)] = &dump(&open_at(&killed.after_kill(), NOW + later))[..] else {
            panic!()
        };
        assert_eq!(*samples, [(*times.last().unwrap(), 1)]);
    }
}

/// The process dies, the next one starts, and then the power goes: what the next one has told is
/// there.
#[test]
fn what_was_replayed_is_on_the_medium_segment_by_segment() {
    let disk = FaultyDisk::new();
    let db = open(&disk);
    (0..200).for_each(|series| assert_eq!(append(&db, series, NOW).stored, 1));
    let before = dump(&db);
    let segments = |disk: &FaultyDisk| disk.list(&Path::new(DIR).join("wal")).unwrap().len();
    assert!(segments(&disk) > 3);
    assert!(dump(&open(&disk.after_power_cut())).is_empty(), "nothing was synced");
    let killed = disk.after_kill();
    assert!(dump(&open(&killed)) == before);
    assert!(dump(&open(&killed.after_power_cut())) == before);
}

#[test]
fn a_log_that_cannot_be_made_durable_is_not_served() {
    let disk = FaultyDisk::new();
    append(&open(&disk), 1, NOW);
    let killed = disk.after_kill();
    killed.fail_syncs(1, FailedSync::KeepsBytes);
    let lock = Db::lock(&killed, Path::new(DIR), &options()).unwrap();
    let opened = try_open(&killed, lock, NOW, options());
    let error = opened.err().unwrap();
    assert_eq!(error.to_string(), "syncing the log in /t/wal");
}

/// The next sync succeeds and proves nothing of pages that the kernel calls clean.
#[test]
fn a_log_that_was_opened_after_a_failed_sync_is_on_the_medium() {
    let disk = FaultyDisk::new();
    let db = open(&disk);
    (0..100).for_each(|series| assert_eq!(append(&db, series, NOW).stored, 1));
    let killed = disk.after_kill();
    killed.fail_syncs(1, FailedSync::KeepsBytes);
    let lock = Db::lock(&killed, Path::new(DIR), &options()).unwrap();
    let opened = try_open(&killed, lock, NOW, options());
    assert!(opened.is_err());
    assert!(dump(&open(&killed)) == dump(&db));
    assert!(dump(&open(&killed.after_power_cut())) == dump(&db));
}

/// Names so long that the bytes that are not synced are more than are kept in memory. With an exemplar.
fn append_long(db: &Db, series: u64, t: i64) -> Result<AppendReport, WalError> {
    let mut batch = Batch::default();
    let name = format!("{series:050000}");
    push(db, &mut batch, &json!([["__name__", "m"], ["n", name]]), t, series);
    batch.push_exemplar(0, (t, series), b"");
    batch.end_exemplars(0, batch.samples[0].series, 0);
    db.append(&batch)
}

/// All of them, in the order in which they came.
fn exemplars(db: &Db) -> Vec<(HeadSeriesRef, Exemplar)> {
    db.exemplars().in_order_of_arrival(0, usize::MAX)
}

fn open_long(disk: &FaultyDisk) -> Arc<Db> {
    let options = DbOptions { wal_segment_bytes: 2 << 20, exemplars_max: 50, ..options() };
    open_with(disk, NOW, options)
}

/// A database whose log lost its end with the records of so many series, on a disk that forgets what
/// it could not write.
fn with_lost_end(series: u64) -> (FaultyDisk, Arc<Db>) {
    let disk = FaultyDisk::new();
    let db = open_long(&disk);
    for series in 0..3 {
        append_long(&db, series, NOW).unwrap();
    }
    db.sync_handle().sync().unwrap();
    for series in 0..series {
        append_long(&db, series, NOW + 1000).unwrap();
        append_long(&db, series % 3, NOW + 2000 + series as i64).unwrap();
    }
    disk.fail_syncs(1, FailedSync::DropsBytes);
    let lost = db.sync_handle().sync();
    assert!(matches!(lost, Err(SyncError::TailLost)), "{lost:?}");
    assert!(matches!(append_long(&db, 1, NOW + 5000), Err(WalError::SyncFailed)));
    (disk, db)
}

/// A series whose samples change from kind to kind, so that no order of records but that of the
/// samples gives them all back.
#[test]
fn a_lost_end_is_logged_again_whatever_kinds_of_samples_it_had() {
    let disk = FaultyDisk::new();
    let db = open_with(&disk, NOW, DbOptions { wal_segment_bytes: 2 << 20, ..options() });
    let append = |t: i64| {
        // What is short is kept and written again as it was.
        append_long(&db, t as u64, NOW + t).unwrap();
        let mut batch = Batch::default();
        for series in 0..3 {
            let labels = json!([["__name__", "m"], ["n", series.to_string()]]);
            let number = number_of_series(&db, &mut batch, &labels);
            let custom = Layout {
                schema: CUSTOM_BUCKETS_SCHEMA,
                custom_bounds: vec![1.0],
                ..Layout::default()
            };
            match (t / 5 + series) % 5 {
                0 => batch.push_histogram(
                    number,
                    NOW + t,
                    AnyHistogram::Integer(Histogram::default()),
                ),
                1 => {
                    batch.push_histogram(number, NOW + t, AnyHistogram::Float(Histogram::default()))
                }
                2 => {
                    let histogram = Histogram { layout: custom, ..Histogram::default() };
                    batch.push_histogram(number, NOW + t, AnyHistogram::Integer(histogram));
                }
                3 => batch.push(number, NOW + t, STALE_NAN_BITS),
                _ => batch.push(number, NOW + t, t as u64),
            }
        }
        assert_eq!(db.append(&batch).unwrap().stored, 3);
    };
    append(0);
    db.sync_handle().sync().unwrap();
    (1..200).for_each(append);
    let before = dump(&db);
    disk.fail_syncs(1, FailedSync::DropsBytes);
    assert!(db.sync_handle().sync().is_err());
    let reopened = |disk: &FaultyDisk| dump(&open(disk));
    assert!(reopened(&disk.after_power_cut()) != before, "it is lost indeed");
    assert!(db.replace_lost_end().unwrap());
    assert!(dump(&db) == before);
    assert!(reopened(&disk.after_power_cut()) == before);
}

#[test]
fn a_lost_end_of_the_log_is_logged_again_from_memory() {
    let (disk, db) = with_lost_end(60);
    let before = dump(&db);
    let reopened = |disk: &FaultyDisk| dump(&open(disk));
    assert!(reopened(&disk.after_power_cut()) != before, "it is lost indeed");
    assert!(db.replace_lost_end().unwrap());
    assert!(!db.sync_handle().is_dirty());
    assert!(dump(&db) == before);
    assert!(reopened(&disk.after_power_cut()) == before);
    let kept = exemplars(&open_long(&disk.after_power_cut()));
    assert_eq!((kept.len(), kept), (50, exemplars(&db)));
    assert!(!db.replace_lost_end().unwrap(), "there is nothing more to do");
    append_long(&db, 1, NOW + 5000).unwrap();
    append_long(&db, 77, NOW + 5000).unwrap();
    assert!(reopened(&disk.after_kill()) == dump(&db));
    // No series' record stands in the log twice: another program would forget what it has read.
    let mut refs = std::collections::BTreeSet::new();
    let metrics = WalMetrics::new(&Registry::new(), "t");
    let contents = open_log(&disk, &Path::new(DIR).join("wal"), &metrics, |found| {
        if let Record::Series(series) = found.record {
            series.for_each(|(series_ref, _)| assert!(refs.insert(series_ref.0), "{series_ref:?}"));
        }
    });
    assert_eq!(contents.unwrap().cases.len(), 0);
    assert_eq!(refs.len(), 61);
    // It is still a log of ours.
    drop(open(&disk.after_kill()));
    let names = disk.list(Path::new(DIR)).unwrap();
    assert!(!names.iter().any(|entry| entry.name.to_str().unwrap().starts_with("set-aside")));
}

#[test]
fn closing_logs_a_lost_end_again() {
    let (disk, db) = with_lost_end(60);
    db.close().unwrap();
    assert!(dump(&open(&disk.after_power_cut())) == dump(&db));
}

#[test]
fn a_lost_end_is_replaced_whatever_fails_meanwhile() {
    for at in 0.. {
        let (disk, db) = with_lost_end(25);
        let before = dump(&db);
        let durable = dump(&open(&disk.after_power_cut()));
        // The machine stops there, or goes on.
        disk.fail_operation(at, io::ErrorKind::Other, 1000);
        let failed = db.replace_lost_end().is_err();
        if failed {
            let found = dump(&open(&disk.after_power_cut()));
            for (series, samples) in &durable {
                let found = found.iter().find(|(found, _)| found == series);
                assert!(found.is_some_and(|(_, found)| found.starts_with(samples)), "at {at}");
            }
            assert!(db.replace_lost_end().unwrap(), "at {at}");
        }
        assert!(dump(&open(&disk.after_power_cut())) == before, "at {at}");
        if disk.pending_faults() > 0 {
            assert!(!failed && at > 10);
            break;
        }
    }
}

/// A directory of Prometheus whose log is gone: chunks and out-of-order records know series by their
/// refs, and a new series that got one of these would be shown with their samples.
#[test]
fn a_ref_that_anything_in_the_directory_knows_is_not_given_again() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb");
    let disk = FaultyDisk::new();
    for (file, highest) in [
        ("head_chunks/wal-lost/chunks_head/000001", 0),
        ("head_chunks/wal-lost/chunks_head/000002", 0),
        ("head_chunks/wal-lost/chunks_head/000003", 4),
        ("wal/series_state.json", 5_000_000),
    ] {
        let path = Path::new(DIR).join(file.strip_prefix("head_chunks/wal-lost/").unwrap_or(file));
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        let state = br#"{"last_series_id": 5000000, "clean_shutdown": true}"#.to_vec();
        let bytes = std::fs::read(data.join(file)).unwrap_or(state);
        disk.create(&path).unwrap().write_all_at(&bytes, 0).unwrap();
        let killed = disk.after_kill();
        let db = open(&killed);
        append(&db, 1, NOW);
        let mut given = 0;
        let metrics = WalMetrics::new(&Registry::new(), "t");
        open_log(&killed, &Path::new(DIR).join("wal"), &metrics, |found| {
            given = given.max(refs::highest_in(found.record));
        })
        .unwrap();
        assert!(given > highest, "{file}: {given}");
        let listed = killed.list(&Path::new(DIR).join("wal")).unwrap();
        assert!(listed.iter().all(|entry| entry.name != "series_state.json"));
    }
}

#[test]
fn an_opening_tells_how_far_it_has_come() {
    let disk = FaultyDisk::new();
    let db = open(&disk);
    for t in 0..60 {
        for series in 0..3 {
            append(&db, series, NOW - 60 + t);
        }
    }
    drop(db);
    let disk = disk.after_kill();
    let loading = Loading::default();
    let lock = Db::lock(&disk, Path::new(DIR), &options()).unwrap();
    let env = env(disk.clone(), NOW);
    Db::open_telling(Path::new(DIR), lock, options(), &env, "t", &loading).unwrap();
    let status = loading.status().unwrap();
    assert!(status.bytes > 0 && status.bytes_read == status.bytes, "{status:?}");
    assert_eq!((status.series, status.samples), (3, 180));
}

/// None of them is needed to serve.
#[test]
fn damage_in_what_is_not_served_hinders_no_opening() {
    let disk = FaultyDisk::new();
    let noise: Vec<u8> = (0..70_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    for file in ["chunks_head/000001", "wbl/00000000", "wal/series_state.json"] {
        let path = Path::new(DIR).join(file);
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        disk.create(&path).unwrap().write_all_at(&noise, 0).unwrap();
    }
    assert_eq!(append(&open(&disk), 1, NOW).stored, 1);
    for file in ["chunks_head/000001.damaged", "wbl/00000000"] {
        let kept = crate::disk::read_file(&disk, &Path::new(DIR).join(file), 1 << 20).unwrap();
        assert!(kept == noise, "{file}");
    }
}

#[test]
fn a_closed_database_is_on_the_medium_and_takes_no_more() {
    let disk = FaultyDisk::new();
    let db = open(&disk);
    append(&db, 1, NOW);
    db.close().unwrap();
    let mut batch = Batch::default();
    push(&db, &mut batch, &json!([["__name__", "m"]]), NOW, 1);
    db.append(&batch).unwrap_err();
    assert_eq!(dump(&open(&disk.after_power_cut())), dump(&db));
    assert_eq!(db.series_count(), 1);
}

#[test]
fn one_at_a_time_has_the_lock_unless_there_is_none() {
    let (disk, dir) = (FaultyDisk::new(), Path::new(DIR));
    let first = Db::lock(&disk, dir, &options()).unwrap();
    assert!(first.is_some());
    assert!(matches!(Db::lock(&disk, dir, &options()), Err(OpenError::Locked { .. })));
    let without = DbOptions { no_lockfile: true, ..options() };
    assert!(Db::lock(&disk, dir, &without).unwrap().is_none());
    drop(first);
    assert!(Db::lock(&disk, dir, &options()).unwrap().is_some());
}

#[test]
fn what_is_not_served_is_found() {
    let disk = FaultyDisk::new();
    add_block(&disk, NOW, NOW - HOUR);
    disk.create_dir_all(Path::new("/t/wbl")).unwrap();
    disk.create(Path::new("/t/wbl/00000000")).unwrap().write_all_at(&[0; 7], 0).unwrap();
    let opened = try_open(&disk, None, NOW, options());
    let Opened { blocks_set_aside, out_of_order_log_bytes, .. } = opened.unwrap();
    assert_eq!((blocks_set_aside.len(), out_of_order_log_bytes), (1, 7));
}

/// A copy of recorded blocks, and what else is with them.
fn recorded_copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&block::tests::data_dir().join(name), dir.path());
    dir
}

fn open_dir(dir: &Path) -> Opened {
    Db::open(dir, None, options(), &env(SystemDisk, NOW), "t").unwrap()
}

fn open_recorded(name: &str) -> (tempfile::TempDir, Arc<Db>) {
    let dir = recorded_copy(name);
    let Opened { db, blocks_set_aside, .. } = open_dir(dir.path());
    assert!(blocks_set_aside.is_empty(), "{blocks_set_aside:?}");
    (dir, db)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(std::fs::copy(&from, &to).unwrap()),
        }
    }
}

type Content = BTreeMap<String, BTreeMap<i64, u64>>;

/// What a query over everything answers. Chunks come in order and without overlap.
fn content(db: &Db) -> Content {
    let querier = db.querier(i64::MIN, i64::MAX);
    let mut content = Content::new();
    let selected = querier.select(&[]).unwrap();
    assert_gathered(&querier, &selected);
    for series in selected {
        let mut chunks = Vec::new();
        querier.chunks(&series, &mut chunks).unwrap();
        assert!(chunks.windows(2).all(|pair| pair[0].maxt < pair[1].mint));
        let samples = chunks.iter().flat_map(|chunk| XorIterator::new(&chunk.bytes));
        let before = content.insert(format!("{:?}", series.labels), samples.flatten().collect());
        assert!(before.is_none(), "{:?} comes twice", series.labels);
    }
    content
}

#[test]
fn a_query_is_answered_from_overlapping_blocks_and_the_head_together() {
    let (_dir, db) = open_recorded("overlapping");
    let found = content(&db);
    let case = block::tests::recorded("overlapping.json");
    let mut recorded = Content::new();
    for series in head::tests::recorded_series(&case["series"]) {
        let (labels, samples) = series;
        let labels = labels.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let labels = crate::model::pairs::tests::series_labels(labels);
        recorded.insert(format!("{labels:?}"), samples.into_iter().collect());
    }
    // The out-of-order head is in a log of its own, which is not read yet.
    for (series, samples) in &found {
        for (t, v) in samples {
            assert_eq!(recorded[series].get(t), Some(v), "{series} at {t}");
        }
    }
    let held = |content: &Content| content.values().map(BTreeMap::len).sum::<usize>();
    let blocks = &db.view.load_full().blocks;
    let mut in_parts = blocks.iter().map(|block| block.meta().stats.num_samples).sum::<u64>();
    let in_head = db.head_querier();
    for series in in_head.select(&[]).unwrap() {
        let mut chunks = Vec::new();
        in_head.chunks(&series, &mut chunks).unwrap();
        let samples = chunks.iter().map(|chunk| XorIterator::new(&chunk.bytes).count() as u64);
        in_parts += samples.sum::<u64>();
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
    // No time is in two of them.
    assert_eq!(held(&found) as u64, in_parts);
    let (mint, maxt) = db.time_range().unwrap();
    let times = || recorded.values().flat_map(BTreeMap::keys);
    assert!(mint <= *times().min().unwrap() && *times().max().unwrap() <= maxt);
    assert_eq!(db.querier(mint, maxt).label_values(b"s", &[]).unwrap(), [b"a", b"b", b"c"]);
    assert_eq!(db.querier(mint, maxt).label_names(&[]).unwrap(), [&b"__name__"[..], b"s"]);
}

#[test]
fn what_is_deleted_of_a_block_is_not_in_its_chunks() {
    let (_dir, db) = open_recorded("tombstones");
    let case = block::tests::recorded("tombstones.json");
    let queried: Vec<(String, usize, i64, i64)> =
        serde_json::from_value(case["queried"].clone()).unwrap();
    let found: Vec<_> = content(&db)
        .into_values()
        .filter_map(|samples| {
            let (first, last) = (*samples.keys().next()?, *samples.keys().last()?);
            Some((samples.len(), first, last))
        })
        .collect();
    let mut expected: Vec<_> =
        queried.into_iter().map(|(_, count, first, last)| (count, first, last)).collect();
    let mut found = found;
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_block_of_which_a_series_is_damaged_fails_the_queries_that_ask_it() {
    let dir = recorded_copy("labels");
    let case = block::tests::recorded("labels.json");
    let index = dir.path().join(case["dir"].as_str().unwrap().trim_start_matches("labels/"));
    let index = index.join("index");
    let mut bytes = std::fs::read(&index).unwrap();
    let series = case["series"][0]["ref"].as_u64().unwrap() as usize * 16;
    bytes[series + 2] ^= 0xff;
    std::fs::write(&index, bytes).unwrap();
    let Opened { db, blocks_set_aside, .. } = open_dir(dir.path());
    assert!(blocks_set_aside.is_empty(), "it is found when it is read");
    let block = db.view.load().blocks[0].time_range().unwrap();
    assert!(db.querier(block.mint, block.maxt).select(&[]).is_err());
    assert!(db.querier(block.maxt + 1, i64::MAX).select(&[]).unwrap().is_empty());
}

#[test]
fn a_block_that_cannot_be_opened_is_set_aside_and_costs_no_other() {
    let dir = recorded_copy("overlapping");
    let blocks = open_dir(dir.path()).db.view.load().blocks.len();
    let (_, whole) = open_recorded("overlapping");
    let damaged = dir.path().join("01M85ZRPC29QEN34G1NZQVWHK8");
    std::fs::write(damaged.join("index"), "none").unwrap();
    let Opened { db, blocks_set_aside, .. } = open_dir(dir.path());
    assert_eq!((db.view.load().blocks.len(), blocks_set_aside.len()), (blocks - 1, 1));
    assert_eq!(blocks_set_aside[0].0, damaged);
    let (rest, all) = (content(&db), content(&whole));
    for (series, samples) in rest {
        assert!(samples.iter().all(|(t, v)| all[&series].get(t) == Some(v)), "{series}");
    }
}
