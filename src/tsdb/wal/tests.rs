//! Framing byte for byte, appends under faults, syncing.

use std::path::Path;

use serde_json::Value;

use super::reader::{Found, SegmentReader};
use super::*;
use crate::disk::faulty::{FailedSync, FaultyDisk};
use crate::disk::{SystemDisk, read_file};
use crate::metrics::Registry;

const DIR: &str = "/wal";

fn metrics() -> WalMetrics {
    WalMetrics::new(&Registry::new(), "t")
}

fn options(segment_bytes: u64, compression: Compression, sync: SyncPolicy) -> WalOptions {
    WalOptions { segment_bytes, compression, sync }
}

fn open(disk: &FaultyDisk, options: WalOptions) -> Wal {
    Wal::open(Arc::new(disk.clone()), Path::new(DIR), options, metrics()).unwrap()
}

/// Copies a directory of the machine to `to`.
pub(super) fn load(disk: &FaultyDisk, from: &Path, to: &Path) {
    disk.create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            load(disk, &entry.path(), &target);
        } else {
            let bytes = std::fs::read(entry.path()).unwrap();
            disk.create(&target).unwrap().write_all_at(&bytes, 0).unwrap();
        }
    }
}

/// A samples record of one sample, so that it decodes.
fn sample(i: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    record::encode_samples(&mut bytes, [(crate::model::HeadSeriesRef(i), 1, i)]);
    bytes
}

/// Times as many samples as bytes of `noise`, hard to compress.
fn noise_record(noise: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let item = |(i, byte): (usize, &u8)| {
        let bits = u64::from(*byte).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32);
        (crate::model::HeadSeriesRef(i as u64), i64::from(*byte), bits)
    };
    record::encode_samples(&mut bytes, noise.iter().enumerate().map(item));
    bytes
}

/// All records in a log, and its damage.
fn read_all(disk: &dyn Disk, dir: &Path) -> (Vec<Vec<u8>>, Vec<reader::Damage>) {
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    for (segment, _) in repair::LogDir::list(disk, dir).unwrap().segments {
        let mut reader = SegmentReader::open(disk, &segment_path(dir, segment)).unwrap();
        while let Some(found) = reader.read_next().unwrap() {
            match found {
                Found::Record(record) => records.push(record.bytes.to_vec()),
                Found::Damage(found) => damage.push(found),
            }
        }
    }
    (records, damage)
}

fn payload(kind: &str, k: u64, len: usize) -> Vec<u8> {
    match kind {
        "ramp" => {
            let byte = |i: u64| (k * 31 + i * 7 + (i / 251) * 13) as u8;
            (0..len as u64).map(byte).collect()
        }
        "noise" => {
            let mut x = (k.wrapping_mul(2_654_435_761).wrapping_add(12_345)) as u32;
            let mut byte = || {
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                x as u8
            };
            (0..len).map(|_| byte()).collect()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn framing_is_prometheus_byte_for_byte_and_reads_back() {
    let data = format!("{}/tests/data/tsdb/wal/framing", env!("CARGO_MANIFEST_DIR"));
    let cases = std::fs::read(format!("{data}.json")).unwrap();
    let cases: Value = serde_json::from_slice(&cases).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let recorded_dir = Path::new(&data).join(name);
        let records: Vec<Vec<u8>> = case["records"]
            .as_array()
            .unwrap()
            .iter()
            .zip(1..)
            .map(|(record, k)| {
                let len = record[0].as_u64().unwrap() as usize;
                payload(case["payload"].as_str().unwrap(), k, len)
            })
            .collect();

        // Arbitrary bytes decode as records of unknown type, or are reported as undecodable.
        let raw_records = read_raw(&recorded_dir);
        assert_eq!(raw_records, records, "{name}");

        let compression = match case["compression"].as_str().unwrap() {
            "none" => Compression::None,
            "snappy" => Compression::Snappy,
            _ => Compression::Zstd,
        };
        let disk = FaultyDisk::new();
        let segment_bytes = case["segment_size"].as_u64().unwrap();
        let mut wal = open(&disk, options(segment_bytes, compression, SyncPolicy::Segment));
        for record in &records {
            let _ = wal.append(&[record]).unwrap();
        }
        if case["closed"].as_bool().unwrap() {
            wal.close().unwrap();
        }
        for file in case["files"].as_array().unwrap() {
            let file = file[0].as_str().unwrap();
            let ours = read_file(&disk, &Path::new(DIR).join(file), 1 << 30).unwrap();
            let theirs = std::fs::read(recorded_dir.join(file)).unwrap();
            if compression == Compression::None {
                assert!(ours == theirs, "{name} {file}");
            }
        }
    }
}

/// Records of a directory whether they decode or not, by the fragments alone.
fn read_raw(dir: &Path) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for (segment, _) in repair::LogDir::list(&SystemDisk, dir).unwrap().segments {
        let mut reader = SegmentReader::open(&SystemDisk, &segment_path(dir, segment)).unwrap();
        reader.for_each_payload(|bytes| records.push(bytes.to_vec())).unwrap();
    }
    records
}

#[test]
fn an_append_that_fails_at_any_operation_leaves_nothing_behind() {
    for torn in [0, 6, 20_000] {
        for at in 0.. {
            let disk = FaultyDisk::new();
            let mut wal = open(&disk, options(65536, Compression::None, SyncPolicy::Interval));
            // The log's cut may fail, too.
            for fault in [at, at + 1, at + 7] {
                disk.fail_operation(fault, io::ErrorKind::Other, torn);
            }
            let mut acknowledged = Vec::new();
            let mut failures = 0;
            for i in 0..12 {
                let records = [sample(i), noise_record(&[i as u8; 1500]), sample(i + 100)];
                let records: Vec<&[u8]> = records.iter().map(|record| &record[..]).collect();
                while let Err(err) = wal.append(&records) {
                    assert!(err.is_retryable());
                    failures += 1;
                    if !wal.is_unclean {
                        let found = read_all(&disk.after_kill(), Path::new(DIR));
                        assert_eq!(found, (acknowledged.clone(), vec![]));
                    }
                }
                acknowledged.extend(records.iter().map(|record| record.to_vec()));
                // At any moment a kill finds just what was acknowledged.
                let killed = disk.after_kill();
                assert_eq!(read_all(&killed, Path::new(DIR)), (acknowledged.clone(), vec![]));
            }
            assert!(wal.metrics.writes_failed.value() == failures as f64);
            if disk.pending_faults() == 3 {
                assert!(at > 12 && failures == 0, "{at}");
                break;
            }
        }
    }
}

#[test]
fn a_kill_at_any_operation_loses_nothing_acknowledged() {
    for at in 0.. {
        let disk = FaultyDisk::new();
        let mut wal = open(&disk, options(65536, Compression::Snappy, SyncPolicy::Interval));
        disk.fail_operation(at, io::ErrorKind::Other, 5000);
        disk.fail_all_operations(at + 1);
        let mut acknowledged = Vec::new();
        for i in 0..12 {
            let noise = payload("noise", i, 3000);
            let records = [sample(i), noise_record(&noise)];
            match wal.append(&[&records[0], &records[1]]) {
                Ok(_) => acknowledged.extend(records),
                Err(err) => assert!(err.is_retryable()),
            }
        }
        let killed = disk.after_kill();
        let mut found = Vec::new();
        let contents = repair::open_log(&killed, Path::new(DIR), &metrics(), |record| {
            found.push(record.bytes.to_vec());
        })
        .unwrap();
        assert_eq!(contents.damage_count, 0, "{at}: {contents:?}");
        // Of the append that was cut short, whole records may be there.
        assert!(found.starts_with(&acknowledged), "{at}: {contents:?}");
        assert!(found.len() <= acknowledged.len() + 2);
        if disk.pending_faults() == 1 {
            assert!(at > 12 && acknowledged.len() == 24, "{at}");
            break;
        }
    }
}

#[test]
fn a_full_disk_is_told_apart_and_forgotten_once_there_is_space() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, options(65536, Compression::None, SyncPolicy::Interval));
    let mut acknowledged = Vec::new();
    disk.limit_bytes(Some(100_000));
    for i in 0..200 {
        let record = noise_record(&[i as u8; 100]);
        match wal.append(&[&record]) {
            Ok(_) => acknowledged.push(record),
            Err(err) => assert!(matches!(err, WalError::DiskFull(_)), "{err}"),
        }
        assert!(disk.used_bytes() <= 100_000);
    }
    assert!(acknowledged.len() < 200);
    disk.limit_bytes(None);
    let record = sample(7);
    let _ = wal.append(&[&record]).unwrap();
    acknowledged.push(record);
    assert_eq!(read_all(&disk.after_kill(), Path::new(DIR)), (acknowledged, vec![]));
}

#[test]
fn after_a_failed_sync_the_unsynced_end_is_written_again() {
    for how in [FailedSync::KeepsBytes, FailedSync::DropsBytes] {
        for (failing, policy) in [(1, SyncPolicy::Always), (3, SyncPolicy::Interval)] {
            let disk = FaultyDisk::new();
            let mut wal = open(&disk, options(65536, Compression::None, policy));
            let handle = wal.sync_handle();
            let mut written = Vec::new();
            let mut append = |wal: &mut Wal, range: std::ops::Range<u64>| {
                for i in range {
                    let record = noise_record(&payload("noise", i, 700));
                    let appended = wal.append(&[&record]).unwrap();
                    assert_eq!(appended.end(), wal.end());
                    written.push(record);
                }
            };
            append(&mut wal, 0..5);
            assert!(handle.is_dirty());
            assert_eq!(handle.sync().unwrap(), wal.end());
            assert!(!handle.is_dirty());
            // Over several segments, the first of which is synced in part.
            append(&mut wal, 5..40);
            assert!(wal.end().segment > SegmentIndex(1));
            let synced_before = handle.synced_position();
            disk.fail_syncs(failing, how);
            let mut failures = 0;
            while handle.sync().is_err() {
                failures += 1;
                assert_eq!(handle.synced_position(), synced_before);
                assert!(matches!(wal.append(&[b"x"]), Err(WalError::SyncFailed)));
                // A good sync of the file system does not make up for it.
                handle.mark_synced(wal.end());
                assert_eq!(handle.synced_position(), synced_before);
                assert!(handle.is_dirty());
            }
            assert_eq!(failures, failing - 1);
            assert_eq!(handle.synced_position(), wal.end());
            let durable = read_all(&disk.after_power_cut(), Path::new(DIR));
            assert!(durable == (written.clone(), vec![]), "{how:?} {policy:?}");
            // And it goes on in the new file.
            let last = sample(1);
            let _ = wal.append(&[&last]).unwrap();
            written.push(last);
            handle.sync().unwrap();
            let durable = read_all(&disk.after_power_cut(), Path::new(DIR));
            assert!(durable == (written, vec![]), "{how:?} {policy:?}");
        }
    }
}

#[test]
fn an_end_too_long_to_keep_is_read_back_or_known_to_be_lost() {
    for how in [FailedSync::KeepsBytes, FailedSync::DropsBytes] {
        let disk = FaultyDisk::new();
        let mut wal = open(&disk, options(4 << 20, Compression::None, SyncPolicy::Interval));
        let handle = wal.sync_handle();
        let record = noise_record(&payload("noise", 1, 200_000));
        let _ = wal.append(&[&record]).unwrap();
        assert!(record.len() > 1024 * 1024);
        disk.fail_syncs(1, how);
        let result = handle.sync();
        if how == FailedSync::KeepsBytes {
            result.unwrap();
            let durable = read_all(&disk.after_power_cut(), Path::new(DIR));
            assert!(durable == (vec![record], vec![]));
        } else {
            assert!(matches!(result, Err(SyncError::TailLost)));
            assert!(matches!(wal.append(&[b"x"]), Err(WalError::SyncFailed)));
            assert!(matches!(handle.sync(), Err(SyncError::TailLost)));
        }
    }
}

/// The kernel calls the pages clean that it could not write, and shows them to the next process.
#[test]
fn a_sync_that_failed_before_a_kill_is_made_good_at_the_next_opening() {
    for is_of_file_system in [false, true] {
        let disk = FaultyDisk::new();
        let mut wal = open(&disk, options(65536, Compression::None, SyncPolicy::Always));
        // Its directory is on the medium before it is served.
        disk.sync_dir(Path::new("/")).unwrap();
        let handle = wal.sync_handle();
        let records: Vec<_> = (0..30).map(|i| noise_record(&payload("noise", i, 700))).collect();
        records.iter().for_each(|record| {
            let _ = wal.append(&[record]).unwrap();
        });
        assert!(wal.end().segment > SegmentIndex(1));
        // The one that makes it good fails as well.
        disk.fail_syncs(2, FailedSync::KeepsBytes);
        if is_of_file_system {
            disk.sync_file_system(Path::new(DIR)).unwrap_err();
            handle.mark_sync_failed();
        } else {
            handle.sync().unwrap_err();
        }
        let killed = disk.after_kill();
        let mut found = Vec::new();
        let take = |record: repair::LogRecord<'_>| found.push(record.bytes.to_vec());
        let contents = repair::open_log(&killed, Path::new(DIR), &metrics(), take).unwrap();
        assert!(found == records);
        // Beside what the sync that failed to make it good has begun.
        assert_eq!(contents.cases.get(&repair::RepairCase::UnsyncedEnd), Some(&1));
        assert!(read_all(&killed.after_power_cut(), Path::new(DIR)) == (records, vec![]));
        let again = repair::open_log(&killed, Path::new(DIR), &metrics(), |_| {}).unwrap();
        assert!(again.cases.is_empty(), "{:?}", again.cases);
    }
}

#[test]
fn a_sync_that_was_made_good_leaves_no_mark() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, options(65536, Compression::None, SyncPolicy::Always));
    let handle = wal.sync_handle();
    let _ = wal.append(&[&sample(1)]).unwrap();
    disk.fail_syncs(2, FailedSync::KeepsBytes);
    handle.sync().unwrap_err();
    let is_marked = || unsynced::marked_from(&disk, Path::new(DIR)).unwrap().is_some();
    assert!(is_marked());
    handle.sync().unwrap();
    assert!(!is_marked());
    // Of a log that is durable nothing was to be synced.
    handle.mark_sync_failed();
    assert!(!is_marked());
}

#[test]
fn a_file_system_sync_counts_up_to_where_the_log_was() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, options(1 << 20, Compression::None, SyncPolicy::Interval));
    let handle = wal.sync_handle();
    let _ = wal.append(&[&sample(1)]).unwrap();
    let position = handle.written_position().unwrap();
    disk.sync_file_system(Path::new(DIR)).unwrap();
    let _ = wal.append(&[&sample(2)]).unwrap();
    assert!(handle.mark_synced(position));
    assert_eq!(handle.synced_position(), position);
    assert!(handle.is_dirty());
    // What came behind is still kept: a failure now does not lose it.
    handle.mark_sync_failed();
    handle.sync().unwrap();
    let durable = read_all(&disk.after_power_cut(), Path::new(DIR));
    assert_eq!(durable, (vec![sample(1), sample(2)], vec![]));
}

#[test]
fn the_first_sync_of_a_young_log_needs_no_descriptor() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, options(1 << 20, Compression::None, SyncPolicy::Interval));
    let handle = wal.sync_handle();
    let _ = wal.append(&[&sample(1)]).unwrap();
    disk.take_descriptors(true);
    handle.sync().unwrap();
    let durable = read_all(&disk.after_power_cut(), Path::new(DIR));
    assert_eq!(durable, (vec![sample(1)], vec![]));
    let _ = wal.append(&[&sample(2)]).unwrap();
    handle.sync().unwrap();
}

#[test]
fn a_sync_for_which_there_is_no_descriptor_is_not_a_failed_one() {
    let disk = FaultyDisk::new();
    let segment_bytes = 2 * PAGE_BYTES as u64;
    let mut wal = open(&disk, options(segment_bytes, Compression::None, SyncPolicy::Interval));
    let handle = wal.sync_handle();
    let large = payload("noise", 1, PAGE_BYTES * 3 / 2);
    let _ = wal.append(&[&large]).unwrap();
    handle.sync().unwrap();
    // It begins a second segment, whose name is not durable.
    let _ = wal.append(&[&large]).unwrap();
    disk.take_descriptors(true);
    assert!(matches!(handle.sync(), Err(SyncError::Io(_))));
    assert!(handle.is_dirty() && !handle.needs_rewrite());
    let _ = wal.append(&[&sample(3)]).expect("appends go on");
    disk.take_descriptors(false);
    handle.sync().unwrap();
    assert!(!handle.is_dirty());
    let durable = read_all(&disk.after_power_cut(), Path::new(DIR));
    assert_eq!(durable, (vec![large.clone(), large, sample(3)], vec![]));
}

#[test]
fn a_file_system_sync_is_the_first_one_too() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, options(1 << 20, Compression::None, SyncPolicy::Interval));
    let handle = wal.sync_handle();
    let _ = wal.append(&[&sample(1)]).unwrap();
    let position = handle.written_position().unwrap();
    disk.sync_file_system(Path::new(DIR)).unwrap();
    assert!(handle.mark_synced(position));
    let _ = wal.append(&[&sample(2)]).unwrap();
    // The names are durable, and nothing is held open for them.
    disk.take_descriptors(true);
    handle.sync().unwrap();
    let durable = read_all(&disk.after_power_cut(), Path::new(DIR));
    assert_eq!(durable, (vec![sample(1), sample(2)], vec![]));
}

#[tokio::test]
async fn waiters_share_syncs_and_hear_of_failures() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, options(1 << 20, Compression::None, SyncPolicy::Always));
    let handle = wal.sync_handle();
    let mut waiters = tokio::task::JoinSet::new();
    for i in 0..100 {
        let end = wal.append(&[&sample(i)]).unwrap().end();
        let handle = handle.clone();
        waiters.spawn(async move { handle.wait_synced(end).await.map(|()| end) });
    }
    while let Some(waited) = waiters.join_next().await {
        let end = waited.unwrap().unwrap();
        assert!(handle.synced_position() >= end);
    }
    assert!(wal.metrics.fsync_duration.count() < 10, "{}", wal.metrics.fsync_duration.count());
    assert_eq!(read_all(&disk.after_power_cut(), Path::new(DIR)).0.len(), 100);

    let end = wal.append(&[&sample(1)]).unwrap().end();
    disk.fail_syncs(2, FailedSync::DropsBytes);
    handle.wait_synced(end).await.unwrap_err();
    handle.wait_synced(end).await.unwrap();
    assert_eq!(read_all(&disk.after_power_cut(), Path::new(DIR)).0.len(), 101);
}

#[test]
fn a_record_over_the_cap_is_refused_for_good() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, options(1 << 20, Compression::None, SyncPolicy::Interval));
    let err = wal.append(&[&vec![0; RECORD_BYTES_MAX + 1]]).unwrap_err();
    assert!(!err.is_retryable());
    assert_eq!(wal.end().offset, 0);
}

/// A log of records of these sizes: segment bytes, and each record with its place.
fn written_log(
    disk: &FaultyDisk,
    sizes: &[usize],
    compression: Compression,
    pages: u64,
) -> Vec<Vec<u8>> {
    let mut wal = open(disk, options(pages * PAGE_BYTES as u64, compression, SyncPolicy::Segment));
    let records: Vec<Vec<u8>> =
        sizes.iter().zip(0..).map(|(size, i)| noise_record(&payload("ramp", i, *size))).collect();
    for pair in records.chunks(2) {
        let pair: Vec<&[u8]> = pair.iter().map(|record| &record[..]).collect();
        let _ = wal.append(&pair).unwrap();
    }
    wal.close().unwrap();
    records
}

fn compression() -> impl proptest::strategy::Strategy<Value = Compression> {
    proptest::sample::select(vec![Compression::None, Compression::Snappy, Compression::Zstd])
}

/// Sizes around everything from a fragment to several pages.
fn sizes() -> impl proptest::strategy::Strategy<Value = Vec<usize>> {
    use proptest::prelude::*;
    let size = prop_oneof![4 => 1usize..200, 2 => 200usize..3000, 1 => 3000usize..12_000];
    proptest::collection::vec(size, 1..30)
}

/// What may happen to a log before the power is cut.
#[derive(Clone, Debug)]
enum Event {
    /// Samples in the record.
    Append(usize),
    Sync,
    FileSystemSync,
    SyncsFail(u64, FailedSync),
    OperationFails(u64, usize),
    Cut,
    /// That keeps everything.
    Checkpoint,
}

fn events() -> impl proptest::strategy::Strategy<Value = Vec<Event>> {
    use proptest::prelude::*;
    let how = prop_oneof![Just(FailedSync::KeepsBytes), Just(FailedSync::DropsBytes)];
    let event = prop_oneof![
        6 => (1usize..2500).prop_map(Event::Append),
        3 => Just(Event::Sync),
        1 => Just(Event::FileSystemSync),
        1 => (1u64..3, how).prop_map(|(count, how)| Event::SyncsFail(count, how)),
        1 => (0u64..4, 0usize..9000).prop_map(|(after, torn)| Event::OperationFails(after, torn)),
        1 => Just(Event::Cut),
        1 => Just(Event::Checkpoint),
    ];
    proptest::collection::vec(event, 1..40)
}

/// Records read back by [`repair::open_log`].
fn reopened(disk: &FaultyDisk) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    repair::open_log(disk, Path::new(DIR), &metrics(), |found| records.push(found.bytes.to_vec()))
        .unwrap();
    records
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    #[test]
    fn what_counts_as_synced_survives_a_power_cut_and_the_rest_a_kill(
        events in events(),
        compression in compression(),
        policy in proptest::sample::select(vec![SyncPolicy::Always, SyncPolicy::Interval]),
    ) {
        let disk = FaultyDisk::new();
        let mut wal = open(&disk, options(65536, compression, policy));
        let handle = wal.sync_handle();
        let mut acknowledged: Vec<(Vec<u8>, LogPosition)> = Vec::new();
        for (event, i) in events.into_iter().zip(0..) {
            match event {
                Event::Append(samples) => {
                    let record = noise_record(&payload("noise", i, samples));
                    if let Ok(appended) = wal.append(&[&record]) {
                        acknowledged.push((record, appended.end()));
                    }
                }
                Event::Sync => drop(handle.sync()),
                Event::FileSystemSync => {
                    let written = handle.written_position().unwrap();
                    match disk.sync_file_system(Path::new(DIR)) {
                        Ok(()) => assert!(handle.mark_synced(written)),
                        Err(_) => handle.mark_sync_failed(),
                    }
                }
                Event::SyncsFail(count, how) => disk.fail_syncs(count, how),
                Event::OperationFails(after, torn) => {
                    disk.fail_operation(after, io::ErrorKind::Other, torn);
                }
                Event::Cut => drop(wal.cut_segment()),
                Event::Checkpoint => {
                    let retained = Retained { mint: i64::MIN, is_elsewhere: None, keeps: &|_| true };
                    drop(handle.truncate(Share::All, &retained));
                }
            }
            let synced = handle.synced_position();
            let synced_count = acknowledged.iter().filter(|(_, end)| *end <= synced).count();
            let survived = reopened(&disk.after_power_cut());
            proptest::prop_assert!(survived.len() >= synced_count, "synced to {synced}");
            for (found, (record, _)) in survived.iter().zip(&acknowledged[..synced_count]) {
                proptest::prop_assert!(found == record);
            }
        }
        // A failed sync that dropped bytes is not made good by a kill, only by a sync.
        while handle.sync().is_err() {}
        let acknowledged: Vec<_> = acknowledged.into_iter().map(|(record, _)| record).collect();
        proptest::prop_assert!(reopened(&disk.after_kill()).starts_with(&acknowledged));
        proptest::prop_assert!(reopened(&disk.after_power_cut()).starts_with(&acknowledged));
    }

    #[test]
    fn any_log_reads_back(sizes in sizes(), compression in compression(), pages in 1u64..5) {
        let disk = FaultyDisk::new();
        let records = written_log(&disk, &sizes, compression, pages);
        let (found, damage) = read_all(&disk, Path::new(DIR));
        proptest::prop_assert!(found == records);
        proptest::prop_assert_eq!(damage, vec![]);
        let log = repair::LogDir::list(&disk, Path::new(DIR)).unwrap();
        for (_, len) in log.segments {
            proptest::prop_assert_eq!(len % PAGE_BYTES as u64, 0);
        }
    }

    #[test]
    fn a_changed_byte_costs_one_record_and_a_cut_what_lies_behind(
        sizes in sizes(),
        compression in compression(),
        pages in 1u64..5,
        changes in proptest::collection::vec((0.0..1.0f64, 1u8..=255), 1..4),
        cut in proptest::option::of(0.0..1.0f64),
    ) {
        let disk = FaultyDisk::new();
        let records = written_log(&disk, &sizes, compression, pages);
        // A first record larger than a segment leaves the first segment empty.
        let log = repair::LogDir::list(&disk, Path::new(DIR)).unwrap();
        let (segment, _) = log.segments.iter().find(|(_, len)| *len > 0).unwrap();
        let path = segment_path(Path::new(DIR), *segment);
        let mut bytes = read_file(&disk, &path, 1 << 30).unwrap();
        let mut places = Vec::new();
        let mut reader = SegmentReader::open(&disk, &path).unwrap();
        while let Some(Found::Record(record)) = reader.read_next().unwrap() {
            places.push(record.start..record.end);
        }
        let mut hit = vec![false; places.len()];
        for (at, mask) in changes {
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] ^= mask;
            // Padding belongs to nobody, but a changed byte in it may hide what follows it in no
            // page: nothing.
            for (place, hit) in places.iter().zip(&mut hit) {
                *hit |= place.contains(&(at as u64));
            }
        }
        if let Some(cut) = cut {
            let cut = (cut * bytes.len() as f64) as usize;
            bytes.truncate(cut);
            for (place, hit) in places.iter().zip(&mut hit) {
                *hit |= place.end > cut as u64;
            }
        }
        let file = disk.create(&path).unwrap();
        file.write_all_at(&bytes, 0).unwrap();

        let wanted: Vec<_> =
            records.iter().zip(&hit).filter(|(_, hit)| !**hit).map(|(record, _)| record).collect();
        let mut found = Vec::new();
        let mut reader = SegmentReader::open(&disk, &path).unwrap();
        while let Some(one) = reader.read_next().unwrap() {
            if let Found::Record(record) = one {
                found.push(record.bytes.to_vec());
            }
        }
        // In order, and nothing that was not written but what a changed type byte makes of it.
        let mut rest = found.iter();
        for record in wanted {
            proptest::prop_assert!(rest.any(|one| one == record), "{} found", found.len());
        }

        // Repaired, it reads without damage and holds the same.
        let mut count = 0;
        let contents =
            repair::open_log(&disk, Path::new(DIR), &metrics(), |_| count += 1).unwrap();
        let (again, damage) = read_all(&disk, Path::new(DIR));
        proptest::prop_assert_eq!(damage, vec![]);
        proptest::prop_assert_eq!(again.len(), count, "{:?}", contents);
    }
}
