//! One database on a disk in memory, opened and closed and cut off.

use serde_json::json;

use super::*;
use crate::clock::ManualClock;
use crate::disk::faulty::FaultyDisk;
use crate::tsdb::head::append::Refusal;
use crate::tsdb::head::tests::{dump, push};
use crate::tsdb::wal::Compression;

const DIR: &str = "/t";
const NOW: i64 = 1_700_000_000_000;
const HOUR: i64 = 3_600_000;

fn options() -> DbOptions {
    // So that a few samples take several segments.
    let (wal_segment_bytes, wal_compression) = (32 * 1024, Compression::None);
    DbOptions { wal_segment_bytes, wal_compression, ..DbOptions::default() }
}

fn open(disk: &FaultyDisk) -> Db {
    let dir = Path::new(DIR);
    let lock = Db::lock(disk, dir, &options()).unwrap();
    let (disk, clock) = (Arc::new(disk.clone()), Arc::new(ManualClock::at(NOW)));
    let hasher = KeyHasher::random();
    Db::open(dir, lock, options(), hasher, disk, clock, &Registry::new(), "t").unwrap().db
}

/// Appends a sample of a series with a long name of its own.
fn append(db: &Db, series: u64, t: i64) -> AppendReport {
    let mut batch = Batch::default();
    let name = format!("{series:01000}");
    push(db, &mut batch, &json!([["__name__", "m"], ["n", name]]), t, series);
    db.append(&batch).unwrap()
}

fn add_block(disk: &FaultyDisk, maxt: i64) {
    let block = Path::new(DIR).join("01M85ZRFJPEBJ4BHYM21MP7HFW");
    disk.create_dir_all(&block).unwrap();
    let meta = disk.create(&block.join("meta.json")).unwrap();
    meta.write_all_at(format!(r#"{{"minTime": 0, "maxTime": {maxt}}}"#).as_bytes(), 0).unwrap();
}

#[test]
fn a_block_shuts_out_what_is_older_and_a_clock_ahead_nobody() {
    let half_range = options().block_range / 2;
    for (end, bound) in
        [(NOW - half_range - 5, NOW - half_range - 5), (NOW + HOUR, NOW - half_range)]
    {
        let disk = FaultyDisk::new();
        add_block(&disk, end);
        let db = open(&disk);
        let report = append(&db, 1, bound - 1);
        let refused = Refusal::ALL.into_iter().zip(&report.refused);
        let refused: Vec<_> = refused.filter(|(_, refused)| refused.is_some()).collect();
        assert!(matches!(refused[..], [(Refusal::OutOfBounds, Some((1, _)))]), "{refused:?}");
        assert_eq!(append(&db, 1, bound).stored, 1);
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
    killed.fail_syncs(1, crate::disk::faulty::FailedSync::KeepsBytes);
    let lock = Db::lock(&killed, Path::new(DIR), &options()).unwrap();
    let (shared, clock) = (Arc::new(killed.clone()), Arc::new(ManualClock::at(NOW)));
    let hasher = KeyHasher::random();
    let registry = Registry::new();
    let opened = Db::open(Path::new(DIR), lock, options(), hasher, shared, clock, &registry, "t");
    let error = opened.err().unwrap();
    assert_eq!(error.to_string(), "syncing the log in /t/wal");
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
    add_block(&disk, NOW - HOUR);
    disk.create_dir_all(Path::new("/t/wbl")).unwrap();
    disk.create(Path::new("/t/wbl/00000000")).unwrap().write_all_at(&[0; 7], 0).unwrap();
    let (shared, clock) = (Arc::new(disk.clone()), Arc::new(ManualClock::at(NOW)));
    let hasher = KeyHasher::random();
    let registry = Registry::new();
    let opened = Db::open(Path::new(DIR), None, options(), hasher, shared, clock, &registry, "t");
    let Opened { blocks, out_of_order_log_bytes, .. } = opened.unwrap();
    assert_eq!((blocks.count, blocks.range, out_of_order_log_bytes), (1, Some((0, NOW - HOUR)), 7));
}
