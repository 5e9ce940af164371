//! Writes before the log is read.

use std::collections::BTreeMap;

use super::*;
use crate::tsdb::head::tests::Series;
use crate::tsdb::wal::names::NAMES_FILE;
use crate::tsdb::wal::repair::{LogDir, RepairCase};
use crate::tsdb::wal::{
    SegmentIndex, Wal, WalError, WalMetrics, WalOptions, record, segment_path, unsynced,
};

/// What was acknowledged, by series, time to value.
type Stored = BTreeMap<u64, BTreeMap<i64, u64>>;

const SERIES: u64 = 5;

fn begin(disk: &FaultyDisk) -> Result<Begun, OpenError> {
    let lock = Db::lock(disk, Path::new(DIR), &options())?;
    Db::begin_opening(Path::new(DIR), lock, options(), &env(disk.clone(), NOW), "t")
}

fn load(begun: Begun) -> Result<Opened, OpenError> {
    let opened = begun.load(&Loading::default())?;
    opened.db.release_writes();
    Ok(opened)
}

/// A sample of each of these series, in one batch.
fn write(db: &Db, series: &[u64], t: i64, v: u64) -> Result<AppendReport, WalError> {
    let mut batch = Batch::default();
    for one in series {
        push(db, &mut batch, &json!([["__name__", "m"], ["n", one.to_string()]]), t, v);
    }
    db.append(&batch)
}

fn note(stored: &mut Stored, series: &[u64], t: i64, v: u64) {
    series.iter().for_each(|one| _ = stored.entry(*one).or_default().insert(t, v));
}

/// A log of some segments, of which the last sample of each series is at `NOW`.
fn killed() -> (FaultyDisk, Stored) {
    let (disk, mut stored) = (FaultyDisk::new(), Stored::new());
    let db = open(&disk);
    for i in 0..1_200 {
        let (t, series) = (NOW - 1_199 + i, [i as u64 % SERIES, (i as u64 + 1) % SERIES]);
        assert_eq!(write(&db, &series, t, i as u64).unwrap().stored, 2);
        note(&mut stored, &series, t, i as u64);
    }
    (disk.after_kill(), stored)
}

fn found(db: &Db) -> Stored {
    let series = |(labels, samples): Series| {
        let count = samples.len();
        let samples: BTreeMap<_, _> = samples.into_iter().collect();
        assert_eq!(samples.len(), count, "a sample is there twice");
        (labels[1].1.parse().unwrap(), samples)
    };
    dump(db).into_iter().filter(|(_, samples)| !samples.is_empty()).map(series).collect()
}

/// As the next process finds it, and one that knows nothing but the log.
fn assert_is_in_log(disk: &FaultyDisk, stored: &Stored) {
    assert!(found(&open(&disk.after_kill())) == *stored);
    let disk = disk.after_kill();
    disk.remove_file(&Path::new(DIR).join(NAMES_FILE)).unwrap();
    assert!(found(&open(&disk)) == *stored);
}

/// Series records stand once, before their samples, and the samples of each are in order.
fn assert_log_is_sound(disk: &FaultyDisk) {
    let mut last = BTreeMap::new();
    let metrics = WalMetrics::new(&Registry::new(), "t");
    let contents = open_log(&disk.after_kill(), &Path::new(DIR).join("wal"), &metrics, |found| {
        match found.record {
            Record::Series(series) => {
                for (series_ref, _) in series {
                    assert!(last.insert(series_ref.0, i64::MIN).is_none(), "{series_ref:?}");
                }
            }
            Record::Samples(samples) => {
                for sample in samples {
                    let last = last.get_mut(&sample.series_ref.0).expect("it is named");
                    assert!(sample.t > *last, "{sample:?}");
                    *last = sample.t;
                }
            }
            _ => {}
        }
    });
    assert_eq!(contents.unwrap().cases, BTreeMap::new());
}

#[test]
fn what_is_certainly_later_is_taken_before_the_log_is_read() {
    let (disk, mut stored) = killed();
    let begun = begin(&disk).unwrap();
    let db = begun.early().expect("a look is enough");
    // Later than its last one, and the last one again.
    assert_eq!(write(&db, &[0, 1], NOW + 1, 7).unwrap().stored, 2);
    note(&mut stored, &[0, 1], NOW + 1, 7);
    assert_eq!(write(&db, &[0, 1], NOW + 1, 7).unwrap().stored, 2);
    let last = *stored[&2].keys().next_back().unwrap();
    assert_eq!(write(&db, &[2], last, stored[&2][&last]).unwrap().stored, 1);
    // A new series, twice, with one that is known.
    assert_eq!(write(&db, &[100, 3], NOW + 1, 8).unwrap().stored, 2);
    assert_eq!(write(&db, &[100, 101], NOW + 2, 9).unwrap().stored, 2);
    note(&mut stored, &[100, 3], NOW + 1, 8);
    note(&mut stored, &[100, 101], NOW + 2, 9);
    // What may be anything waits, with all its batch, and what comes later of these series.
    for (series, t, v) in [(&[2][..], last, 1), (&[4, 102], NOW - 900, 1), (&[0], NOW, 1)] {
        assert!(matches!(write(&db, series, t, v), Err(WalError::StillRead)), "{series:?}");
    }
    for series in [2, 4, 102, 0] {
        let later = write(&db, &[series], NOW + 50, 1);
        assert!(matches!(later, Err(WalError::StillRead)), "{series}");
    }
    assert_eq!(write(&db, &[1], NOW + 3, 9).unwrap().stored, 1);
    note(&mut stored, &[1], NOW + 3, 9);
    assert_is_in_log(&disk, &stored);
    assert_log_is_sound(&disk);
    let opened = load(begun).unwrap();
    assert!(Arc::ptr_eq(&opened.db, &db));
    assert!(found(&db) == stored);
    // Now it is known.
    let report = write(&db, &[2], last, 1).unwrap();
    assert!(report.refused[Refusal::DuplicateForTimestamp as usize].is_some());
    assert_eq!(write(&db, &[2, 4, 102, 0], NOW + 50, 1).unwrap().stored, 4);
    note(&mut stored, &[2, 4, 102, 0], NOW + 50, 1);
    assert!(found(&db) == stored);
    assert_is_in_log(&disk, &stored);
    assert_log_is_sound(&disk);
}

#[test]
fn a_batch_waits_while_the_end_of_the_log_is_read() {
    let (disk, _) = killed();
    let begun = begin(&disk).unwrap();
    let db = begun.early().unwrap();
    let opened = begun.load(&Loading::default()).unwrap();
    assert!(matches!(write(&db, &[0], NOW + 1, 1), Err(WalError::StillRead)));
    opened.db.release_writes();
    assert_eq!(write(&db, &[0], NOW + 1, 1).unwrap().stored, 1);
}

/// Chunks are cut where they are cut if all of it was there before.
#[test]
fn a_head_becomes_what_a_full_reading_makes_of_the_log() {
    let (disk, mut stored) = killed();
    let begun = begin(&disk).unwrap();
    let db = begun.early().unwrap();
    for i in 1..500 {
        let series = [i as u64 % 7, 200 + i as u64 / 50];
        assert_eq!(write(&db, &series, NOW + i, i as u64).unwrap().stored, 2);
        note(&mut stored, &series, NOW + i, i as u64);
    }
    let opened = load(begun).unwrap();
    let chunks_of = |db: &Db| {
        let querier = db.querier(i64::MIN, i64::MAX);
        let chunks = |series| {
            let mut chunks = Vec::new();
            querier.chunks(&series, &mut chunks).unwrap();
            chunks.iter().map(|chunk| chunk.bytes.to_vec()).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = querier.select(&[]).unwrap().into_iter().map(chunks).collect();
        all.sort();
        all
    };
    let full = disk.after_kill();
    full.remove_file(&Path::new(DIR).join(NAMES_FILE)).unwrap();
    assert!(chunks_of(&opened.db) == chunks_of(&open(&full)));
    assert!(found(&opened.db) == stored);
    assert_eq!(opened.db.series_count(), stored.len());
}

/// Kills while the log is read, one after another.
#[test]
fn early_writes_outlive_kills_while_the_log_is_read() {
    let (mut disk, mut stored) = killed();
    for life in 1..6 {
        let begun = begin(&disk).unwrap();
        let db = begun.early().expect("a look is enough");
        for i in 0..life * 30 {
            let series = [i as u64 % (SERIES + life as u64), 300 + life as u64];
            let t = NOW + life * 1_000 + i;
            assert_eq!(write(&db, &series, t, i as u64).unwrap().stored, 2, "{life}, {i}");
            note(&mut stored, &series, t, i as u64);
        }
        let killed = disk.after_kill();
        assert_is_in_log(&disk, &stored);
        // The load that goes on where nobody sees it does no harm to what is there.
        assert!(found(&load(begun).unwrap().db) == stored);
        disk = killed;
        assert_log_is_sound(&disk);
    }
}

/// The machine stops at each operation of a start with writes before its log is read.
#[test]
fn what_is_acknowledged_is_there_wherever_a_start_stops() {
    let (killed, before) = killed();
    // One that was being written, too.
    let log = LogDir::list(&killed, &Path::new(DIR).join("wal")).unwrap();
    let (segment, len) = *log.segments.last().unwrap();
    let path = segment_path(&Path::new(DIR).join("wal"), segment);
    killed.open_write(&path).unwrap().write_all_at(&[1, 0, 200, 1, 2], len).unwrap();
    for at in 0.. {
        let disk = killed.after_kill();
        disk.fail_all_operations(at);
        let mut stored = before.clone();
        let begun = begin(&disk);
        let is_begun = begun.is_ok();
        let mut acknowledged = 0;
        let mut is_loaded = false;
        if let Ok(begun) = begun {
            let db = begun.early().expect("a look is enough");
            for i in 1..60 {
                let series = [i as u64 % SERIES, 100 + i as u64 % 3];
                if let Ok(report) = write(&db, &series, NOW + i, i as u64) {
                    assert_eq!(report.stored, 2);
                    note(&mut stored, &series, NOW + i, i as u64);
                    acknowledged += 1;
                }
            }
            if let Ok(opened) = load(begun) {
                assert!(found(&opened.db) == stored, "at {at}");
                is_loaded = true;
            }
        }
        // A stop may leave the end of what it stopped in, which nobody was told of.
        let found = found(&open(&disk.after_kill()));
        for (series, samples) in &stored {
            let of_series = found.get(series).cloned().unwrap_or_default();
            let is_there = |(t, v): (&i64, &u64)| of_series.get(t) == Some(v);
            assert!(samples.iter().all(is_there), "at {at}: {series}");
        }
        if is_loaded && disk.operations() < at {
            assert!(is_begun && acknowledged == 59 && at > 60, "{at}");
            break;
        }
    }
}

/// Each of a start's operations fails once, and it goes on.
#[test]
fn an_operation_that_fails_costs_no_acknowledged_write() {
    let (killed, before) = killed();
    for at in 0.. {
        let disk = killed.after_kill();
        disk.fail_operation(at, io::ErrorKind::StorageFull, 40);
        let mut stored = before.clone();
        let begun = match begin(&disk) {
            Ok(begun) => begun,
            Err(_) => {
                assert!(found(&open(&disk.after_kill())) == stored, "at {at}");
                continue;
            }
        };
        let db = begun.early().expect("a look is enough");
        let mut refused = 0;
        for i in 1..60 {
            let series = [i as u64 % SERIES, 100 + i as u64 % 3];
            match write(&db, &series, NOW + i, i as u64) {
                Ok(_) => note(&mut stored, &series, NOW + i, i as u64),
                Err(WalError::StillRead) => panic!("it is certainly later, at {at}"),
                Err(_) => refused += 1,
            }
        }
        assert!(refused <= 1, "at {at}: {refused}");
        let opened = load(begun);
        if let Ok(opened) = &opened {
            assert!(found(&opened.db) == stored, "at {at}");
        }
        assert_is_in_log(&disk, &stored);
        assert_log_is_sound(&disk);
        if disk.pending_faults() > 0 {
            assert!(opened.is_ok() && at > 60, "{at}");
            break;
        }
    }
}

#[test]
fn a_failed_sync_is_made_good_while_the_log_is_read() {
    let (disk, mut stored) = killed();
    let begun = begin(&disk).unwrap();
    let db = begun.early().unwrap();
    let mut write_some = |from: i64| {
        for i in from..from + 20 {
            let report = write(&db, &[0, 100], NOW + i, 1).unwrap();
            assert_eq!(report.stored, 2);
            note(&mut stored, &[0, 100], NOW + i, 1);
        }
    };
    write_some(1);
    disk.fail_syncs(1, FailedSync::KeepsBytes);
    while db.sync_handle().sync().is_err() {}
    write_some(30);
    db.sync_handle().sync().unwrap();
    assert!(found(&open(&disk.after_power_cut())) == stored);
    assert!(found(&load(begun).unwrap().db) == stored);
    assert!(found(&open(&disk.after_kill())) == stored);
}

/// Whatever is not as a kill leaves it is looked at as a whole before anything is written.
#[test]
fn a_log_that_is_in_doubt_is_read_first() {
    let wal = Path::new(DIR).join("wal");
    let put = |disk: &FaultyDisk, name: &str, bytes: &[u8]| {
        disk.create(&Path::new(DIR).join(name)).unwrap().write_all_at(bytes, 0).unwrap();
    };
    let foreign_record = |disk: &FaultyDisk, bytes: &[u8]| {
        let options = WalOptions {
            segment_bytes: 32 << 10,
            compression: Compression::None,
            sync: crate::tsdb::wal::SyncPolicy::Interval,
        };
        let metrics = WalMetrics::new(&Registry::new(), "t");
        let mut log = Wal::open(Arc::new(disk.clone()), &wal, options, metrics).unwrap();
        let _ = log.append(&[bytes]).unwrap();
        log.close().unwrap();
    };
    let mut series = Vec::new();
    record::begin_series(&mut series);
    let labels = [(&b"__name__"[..], &b"other"[..])];
    record::push_series(&mut series, crate::model::HeadSeriesRef(3), labels.into_iter());
    type Change<'c> = &'c dyn Fn(&FaultyDisk);
    let changes: [(&str, Change<'_>); 9] = [
        ("nothing is noted", &|disk| disk.remove_file(&Path::new(DIR).join(NAMES_FILE)).unwrap()),
        ("another file is noted", &|disk| put(disk, NAMES_FILE, b"noise")),
        ("a sync failed", &|disk| unsynced::mark(disk, &wal, SegmentIndex(0)).unwrap()),
        ("a segment is missing", &|disk| {
            disk.remove_file(&segment_path(&wal, SegmentIndex(0))).unwrap();
        }),
        ("another program has written", &|disk| foreign_record(disk, &series)),
        ("something unknown is named like a segment", &|disk| put(disk, "wal/5000000000000", b"")),
        ("a rewrite was begun", &|disk| put(disk, "wal/00000000.rewrite", b"x")),
        ("there is a log of out-of-order samples", &|disk| {
            disk.create_dir_all(&Path::new(DIR).join("wbl")).unwrap();
            put(disk, "wbl/00000000", &[0; 100]);
        }),
        ("a byte at the end is damaged", &|disk| {
            let log = LogDir::list(disk, &wal).unwrap();
            let (segment, len) = *log.segments.last().unwrap();
            let file = disk.open_write(&segment_path(&wal, segment)).unwrap();
            file.write_all_at(&[0xa5], len - 4_000).unwrap();
        }),
    ];
    for (what, change) in changes {
        let (disk, _) = killed();
        assert!(begin(&disk.after_kill()).unwrap().early().is_some());
        change(&disk);
        let expected = found(&open(&disk.after_kill()));
        let begun = begin(&disk).unwrap();
        assert!(begun.early().is_none(), "{what}");
        let opened = load(begun).unwrap();
        assert!(found(&opened.db) == expected, "{what}");
        assert_eq!(write(&opened.db, &[0], NOW + 1, 1).unwrap().stored, 1);
    }
}

/// A copy that is lost costs the stretch it is in, which is read then.
#[test]
fn a_damaged_note_is_looked_behind() {
    let (killed, mut stored) = killed();
    let names = Path::new(DIR).join(NAMES_FILE);
    let len = killed.open(&names).unwrap().len().unwrap();
    let mut early = 0;
    for at in (16..len).step_by(37) {
        let disk = killed.after_kill();
        let mut byte = [0];
        disk.open(&names).unwrap().read_at(&mut byte, at).unwrap();
        disk.open_write(&names).unwrap().write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        let begun = begin(&disk).unwrap();
        if let Some(db) = begun.early() {
            early += 1;
            for series in 0..SERIES {
                assert_eq!(write(&db, &[series], NOW + 1, 5).unwrap().stored, 1, "{at}");
            }
        } else {
            continue;
        }
        let before = stored.clone();
        (0..SERIES).for_each(|series| note(&mut stored, &[series], NOW + 1, 5));
        assert!(found(&load(begun).unwrap().db) == stored, "{at}");
        assert_is_in_log(&disk, &stored);
        stored = before;
    }
    assert!(early > 20, "{early}");
}

/// Its record was cut off, and it was never acknowledged: were it known by its copy, its samples
/// would have no series.
#[test]
fn a_torn_record_is_cut_off_before_anything_is_written_behind_it() {
    let (disk, mut stored) = killed();
    let wal = Path::new(DIR).join("wal");
    let (segment, len) = *LogDir::list(&disk, &wal).unwrap().segments.last().unwrap();
    let path = segment_path(&wal, segment);
    disk.open_write(&path).unwrap().write_all_at(&[1, 0, 200, 1, 2], len).unwrap();
    let begun = begin(&disk).unwrap();
    let db = begun.early().expect("a look is enough");
    assert_eq!(disk.open(&path).unwrap().len().unwrap(), len);
    assert_eq!(write(&db, &[0, 100], NOW + 1, 1).unwrap().stored, 2);
    note(&mut stored, &[0, 100], NOW + 1, 1);
    assert_log_is_sound(&disk);
    let opened = load(begun).unwrap();
    assert_eq!(opened.log.cases, BTreeMap::from([(RepairCase::TornEnd, 1)]));
    assert!(opened.log.cut.is_some());
    assert!(found(&opened.db) == stored);
}

/// Damage in what was not looked at is found when it is read: it costs what is damaged.
#[test]
fn damage_in_what_was_not_looked_at_costs_what_is_damaged() {
    let (disk, mut stored) = killed();
    let wal = Path::new(DIR).join("wal");
    let path = segment_path(&wal, SegmentIndex(0));
    // The first record names a series, and has a copy.
    disk.open_write(&path).unwrap().write_all_at(&[0xff], 12).unwrap();
    let begun = begin(&disk).unwrap();
    let db = begun.early().expect("a look is enough");
    for i in 0..40 {
        assert_eq!(write(&db, &[0, 1, 100 + i], NOW + 1 + i as i64, 1).unwrap().stored, 3);
        note(&mut stored, &[0, 1, 100 + i], NOW + 1 + i as i64, 1);
    }
    let opened = load(begun).unwrap();
    assert_eq!((opened.log.restored, opened.log.damage_count), (1, 1));
    assert!(found(&opened.db) == stored);
    assert_is_in_log(&disk, &stored);
    assert_log_is_sound(&disk);
}

#[test]
fn a_load_that_fails_leaves_a_log_that_has_all() {
    let (disk, mut stored) = killed();
    let begun = begin(&disk).unwrap();
    let db = begun.early().unwrap();
    assert_eq!(write(&db, &[0, 100], NOW + 1, 1).unwrap().stored, 2);
    note(&mut stored, &[0, 100], NOW + 1, 1);
    let path = segment_path(&Path::new(DIR).join("wal"), SegmentIndex(0));
    disk.fail_reads(&path, io::ErrorKind::Other);
    load(begun).err().expect("it cannot be read");
    disk.allow_reads(&path);
    // It waits for ever, and its log can be closed.
    assert!(write(&db, &[0], NOW + 2, 1).is_ok() || db.close().is_ok());
    assert!(db.close().is_ok());
    assert!(found(&open(&disk.after_kill())).ge(&stored));
}

#[test]
fn exemplars_are_taken_before_the_log_is_read_and_judged_when_it_is() {
    let options = || DbOptions { exemplars_max: 10, ..options() };
    let disk = FaultyDisk::new();
    let send = |db: &Db, series: u64, t: i64| {
        let mut batch = Batch::default();
        push(db, &mut batch, &json!([["__name__", "m"], ["n", series.to_string()]]), t, 1);
        batch.push_exemplar(0, (t, 1), b"");
        // Older than the one of the log, whatever that is.
        batch.push_exemplar(0, (0, 1), b"");
        batch.end_exemplars(0, batch.samples[0].series, 0);
        db.append(&batch).map(|report| report.exemplars_stored)
    };
    let times = |db: &Db| exemplars(db).iter().map(|(_, one)| one.t).collect::<Vec<_>>();
    let db = open_with(&disk, NOW, options());
    (0..2000).for_each(|i| assert_eq!(send(&db, 1, NOW + i).unwrap(), 1));
    let disk = disk.after_kill();
    let begin = |disk: &FaultyDisk| {
        let lock = Db::lock(disk, Path::new(DIR), &options()).unwrap();
        Db::begin_opening(Path::new(DIR), lock, options(), &env(disk.clone(), NOW), "t").unwrap()
    };
    let begun = begin(&disk);
    let db = begun.early().expect("a look is enough");
    for series in [1, 2] {
        assert_eq!(send(&db, series, NOW + 3000).unwrap(), 2, "none is refused by now");
    }
    assert_eq!(times(&db), [0; 0]);
    load(begun).unwrap();
    // The last ten of the log are loaded, of which two are out of order.
    let before: Vec<_> = (NOW + 1994..NOW + 2000).chain([NOW + 3000; 2]).collect();
    assert_eq!(times(&db), before);
    assert_eq!(times(&load(begin(&disk.after_kill())).unwrap().db), before);
}
