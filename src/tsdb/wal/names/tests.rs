//! Logs whose series records are damaged, with the second copy whole, damaged, behind or another's.

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::disk::faulty::FaultyDisk;
use crate::disk::read_file;
use crate::metrics::Registry;
use crate::tsdb::cut::tests::{HOUR, Life};
use crate::tsdb::env::Env;
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::tests::{Series, dump, push};
use crate::tsdb::options::DbOptions;
use crate::tsdb::wal::repair::SET_ASIDE_PREFIX;
use crate::tsdb::wal::{Compression, SyncPolicy, Wal, WalOptions, record};
use crate::tsdb::{Db, Opened};

const DIR: &str = "/t";
const NOW: i64 = 1_700_000_000_000;

fn options(wal_compression: Compression) -> DbOptions {
    DbOptions { wal_compression, wal_segment_bytes: 64 << 10, ..DbOptions::default() }
}

fn open_as(disk: &FaultyDisk, compression: Compression) -> Opened {
    let (dir, options) = (Path::new(DIR), options(compression));
    let lock = Db::lock(disk, dir, &options).unwrap();
    let env = Env::new(Arc::new(disk.clone()), Arc::new(ManualClock::at(NOW)), Registry::new());
    Db::open(dir, lock, options, &env, "t").unwrap()
}

fn open(disk: &FaultyDisk) -> Opened {
    open_as(disk, Compression::None)
}

/// A sample of a series.
fn append(db: &Db, series: u64, t: i64) {
    let mut batch = Batch::default();
    push(db, &mut batch, &json!([["__name__", "m"], ["n", format!("{series:020}")]]), t, series);
    assert_eq!(db.append(&batch).unwrap().stored, 1);
}

fn in_dir(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn bytes_of(disk: &FaultyDisk, path: &Path) -> Vec<u8> {
    read_file(disk, path, 1 << 30).unwrap()
}

fn put(disk: &FaultyDisk, path: &Path, bytes: &[u8]) {
    disk.create(path).unwrap().write_all_at(bytes, 0).unwrap();
}

fn flip(disk: &FaultyDisk, path: &Path, at: u64) {
    let mut bytes = bytes_of(disk, path);
    bytes[at as usize] ^= 0x10;
    put(disk, path, &bytes);
}

/// File and place of each series record in the log, those of its checkpoint first.
fn series_records(disk: &FaultyDisk) -> Vec<(PathBuf, Range<u64>)> {
    let wal = in_dir("wal");
    let mut places = Vec::new();
    let log = LogDir::list(disk, &wal).unwrap();
    let dirs = log.checkpoints.iter().map(|(_, name)| wal.join(name)).chain([wal.clone()]);
    let segments = dirs.flat_map(|dir| {
        let segments = LogDir::list(disk, &dir).unwrap().segments;
        segments.into_iter().map(move |(segment, _)| segment_path(&dir, segment))
    });
    for path in segments {
        let mut reader = SegmentReader::open(disk, &path).unwrap();
        while let Some(found) = reader.read_next().unwrap() {
            let Found::Record(found) = found else { panic!("{found:?}") };
            if let Record::Series(_) = found.record {
                places.push((path.clone(), found.start..found.end));
            }
        }
    }
    places
}

/// A database of some series with two samples each, as after a kill.
fn killed(compression: Compression, series: Range<u64>) -> (FaultyDisk, Vec<Series>) {
    let disk = FaultyDisk::new();
    let db = open_as(&disk, compression).db;
    series.clone().for_each(|one| append(&db, one, NOW));
    series.for_each(|one| append(&db, one, NOW + 1));
    let stored = dump(&db);
    (disk.after_kill(), stored)
}

fn is_set_aside(disk: &FaultyDisk) -> bool {
    disk.list(Path::new(DIR))
        .unwrap()
        .iter()
        .any(|entry| entry.name.to_str().unwrap().starts_with(SET_ASIDE_PREFIX))
}

#[test]
fn each_damaged_series_record_is_put_back() {
    for compression in [Compression::None, Compression::Snappy, Compression::Zstd] {
        let (written, stored) = killed(compression, 0..6);
        let places = series_records(&written);
        assert_eq!(places.len(), 6);
        for (path, place) in &places {
            // In the checksum, and in the payload.
            for at in [place.start + 4, place.start + 8, place.end - 1] {
                let disk = written.after_kill();
                flip(&disk, path, at);
                let opened = open_as(&disk, compression);
                assert_eq!((opened.log.damage_count, opened.log.restored), (1, 1));
                assert!(dump(&opened.db) == stored, "{compression:?}, {at} in {place:?}");
                append(&opened.db, 2, NOW + 5);
                let stored = dump(&opened.db);
                for disk in [disk.after_kill(), disk.after_kill().after_power_cut()] {
                    assert_eq!(series_records(&disk).len(), 6, "it is in the log again");
                }
                // A copy of it was made of its new place.
                let again = disk.after_kill();
                let (path, place) = series_records(&again).remove(3);
                flip(&again, &path, place.end - 1);
                let opened = open_as(&again, compression);
                assert_eq!(opened.log.restored, 1);
                assert!(dump(&opened.db) == stored);
                assert!(!is_set_aside(&again));
            }
        }
    }
}

#[test]
fn series_are_named_whose_records_are_gone_with_others() {
    let (disk, stored) = killed(Compression::None, 0..6);
    let places = series_records(&disk);
    let (path, first) = &places[2];
    let mut bytes = bytes_of(&disk, path);
    bytes[first.start as usize..places[4].1.end as usize].fill(0xff);
    put(&disk, path, &bytes);
    let opened = open(&disk);
    assert_eq!(opened.log.restored, 3);
    // Of two series the first sample was among what was overwritten.
    let mut left = stored.clone();
    left[2].1.remove(0);
    left[3].1.remove(0);
    assert_eq!(dump(&opened.db), left);
    assert_eq!(dump(&open(&disk.after_kill()).db), left);
}

#[test]
fn a_changed_byte_of_the_copies_costs_one_of_them() {
    let (written, stored) = killed(Compression::Snappy, 0..6);
    let names = in_dir(NAMES_FILE);
    let whole = bytes_of(&written, &names);
    for at in 0..whole.len() as u64 {
        let disk = written.after_kill();
        flip(&disk, &names, at);
        let Ok(noted) = Noted::read(&disk, &names) else {
            assert!(at < 16, "{at}");
            continue;
        };
        let file = disk.open(&names).unwrap();
        let readable = noted.copies.values().filter(|copy| copy.read(&*file).is_some()).count();
        assert!(readable >= 5, "{at}: {readable}");
    }
    // And whatever is damaged there, the log is read.
    for at in (0..whole.len() as u64).step_by(5) {
        let disk = written.after_kill();
        flip(&disk, &names, at);
        let opened = open_as(&disk, Compression::Snappy);
        assert!(dump(&opened.db) == stored, "{at}");
        drop(opened);
        // What was damaged is there again, or the whole file anew.
        let again = disk.after_kill();
        let (path, place) = series_records(&again).remove(0);
        flip(&again, &path, place.end - 1);
        assert!(dump(&open_as(&again, Compression::Snappy).db) == stored, "{at}");
    }
}

#[test]
fn copies_go_with_the_checkpoint_that_takes_the_place_of_segments() {
    let disk = FaultyDisk::new();
    let mut life = Life::begin(Arc::new(disk.clone()), Path::new(DIR));
    life.write(0..300, 150);
    life.write(200..310, 40);
    assert!(life.db().cut_due().unwrap() > 0);
    life.write(305..320, 3);
    let stored = dump(life.db());
    let written = disk.after_kill();
    let places = series_records(&written);
    let in_checkpoint =
        |path: &Path| path.components().count() > in_dir("wal/1").components().count();
    let is_there = |(path, _): &&(PathBuf, Range<u64>)| in_checkpoint(path);
    let count = places.iter().filter(is_there).count();
    assert!(0 < count && count < places.len(), "{count} of {}", places.len());
    for (path, place) in &places {
        let disk = written.after_kill();
        flip(&disk, path, place.end - 1);
        life.open_on(Arc::new(disk.clone()));
        assert!(dump(life.db()) == stored, "{}", path.display());
        assert!(!is_set_aside(&disk));
    }
    // What was noted of segments that are gone is gone as well.
    let names = |disk: &FaultyDisk| bytes_of(disk, &in_dir(NAMES_FILE)).len();
    let before = names(&written);
    life.open_on(Arc::new(written.clone()));
    life.clock.set(life.clock.now() + 4 * HOUR);
    life.db().flush().unwrap();
    assert!(names(&written) < before / 2, "{} of {before}", names(&written));
    let again = written.after_power_cut();
    life.open_on(Arc::new(again.clone()));
    assert!(dump(life.db()) == stored && !is_set_aside(&again));
}

#[test]
fn without_copies_they_are_made_from_the_log() {
    let (disk, stored) = killed(Compression::None, 0..6);
    disk.remove_file(&in_dir(NAMES_FILE)).unwrap();
    assert!(dump(&open(&disk).db) == stored);
    let disk = disk.after_kill();
    let (path, place) = series_records(&disk).remove(4);
    flip(&disk, &path, place.start + 9);
    assert!(dump(&open(&disk).db) == stored);
}

/// As a power cut leaves it that took the log's end and not the copies'.
#[test]
fn what_only_a_copy_names_is_no_series_and_its_ref_is_not_given_again() {
    let (disk, stored) = killed(Compression::None, 0..6);
    let (path, last) = series_records(&disk).pop().unwrap();
    disk.open_write(&path).unwrap().truncate(last.end - 3).unwrap();
    let opened = open(&disk);
    assert!(opened.log.cut.is_some());
    assert_eq!((opened.log.restored, opened.db.series_count()), (0, 5));
    append(&opened.db, 99, NOW);
    let before = dump(&opened.db);
    assert_eq!(before.len(), 6);
    assert!(before.iter().all(|(labels, _)| *labels != stored[5].0));
    let mut given = Vec::new();
    for (path, place) in series_records(&disk) {
        let mut reader = SegmentReader::open(&disk, &path).unwrap();
        while let Some(Found::Record(found)) = reader.read_next().unwrap() {
            if found.start == place.start {
                given.push(refs::highest_in(found.record));
            }
        }
    }
    assert_eq!(given, [1, 2, 3, 4, 5, 7]);
    assert!(dump(&open(&disk.after_kill()).db) == before);
}

/// What is noted of the log's files, each with its path.
fn stretches(disk: &FaultyDisk) -> Vec<(PathBuf, Stretch)> {
    let noted = Noted::read(disk, &in_dir(NAMES_FILE)).unwrap();
    let path_of = |file: &LogFile| match file.checkpoint.checked_sub(1) {
        None => segment_path(&in_dir("wal"), SegmentIndex(file.segment)),
        Some(number) => {
            let checkpoint = in_dir("wal").join(format!("checkpoint.{}", SegmentIndex(number)));
            segment_path(&checkpoint, SegmentIndex(file.segment))
        }
    };
    noted.stretches.iter().map(|((file, _), stretch)| (path_of(file), *stretch)).collect()
}

/// Holds what is noted of a file against what is in it; how many bytes of records nothing is noted of.
fn check_stretches(disk: &FaultyDisk, path: &Path, stretches: &[(PathBuf, Stretch)]) -> u64 {
    let of_file = || stretches.iter().filter(|(of, _)| of == path).map(|(_, stretch)| *stretch);
    let mut unknown = 0;
    let mut found: Vec<(u32, Gist, (u64, u32))> =
        of_file().map(|_| (0, Gist::NONE, (0, 0))).collect();
    let mut reader = SegmentReader::open(disk, path).unwrap();
    while let Some(Found::Record(FoundRecord { record, stored, start, end, .. })) =
        reader.read_next().unwrap()
    {
        let Some(at) = of_file().position(|one| (one.start..one.end).contains(&start)) else {
            unknown += end - start;
            continue;
        };
        let (series, gist, last) = &mut found[at];
        *series += u32::from(matches!(record, Record::Series(_)));
        *gist = gist.and(Gist::of(record).unwrap());
        *last = (start, crc32c::crc32c(stored));
    }
    for (stretch, (series, gist, last)) in of_file().zip(found) {
        assert_eq!((stretch.series_records, stretch.newest), (series, gist.newest), "{stretch:?}");
        assert!(stretch.highest_ref >= gist.highest_ref, "{stretch:?}");
        assert_eq!((stretch.last_start, stretch.last_checksum), last);
        assert!(stretch.end <= reader.file_bytes());
    }
    unknown
}

fn segment_files(disk: &FaultyDisk, dir: &Path) -> Vec<PathBuf> {
    let segments = LogDir::list(disk, dir).unwrap().segments;
    segments.into_iter().map(|(segment, _)| segment_path(dir, segment)).collect()
}

#[test]
fn what_is_appended_is_summed_up_every_few_pages() {
    for compression in [Compression::None, Compression::Snappy, Compression::Zstd] {
        let disk = FaultyDisk::new();
        let db = open_as(&disk, compression).db;
        for round in 0..400 {
            append(&db, round / 3, NOW + round as i64);
        }
        let mut disk = disk.after_kill();
        for life in 0..3 {
            let stretches = stretches(&disk);
            let files = segment_files(&disk, &in_dir("wal"));
            assert!(stretches.len() > files.len() + 4, "{compression:?}, {life}: {stretches:?}");
            for path in &files {
                // A record more than a stretch, at the end that was cut off.
                let unknown = check_stretches(&disk, path, &stretches);
                assert!(unknown < 2 * (64 << 10) / 32, "{compression:?}, {life}, {path:?}");
            }
            match life {
                // The replay sums up what is left, and nothing twice.
                0 => {}
                // And all of it, if nothing is noted.
                1 => disk.remove_file(&in_dir(NAMES_FILE)).unwrap(),
                _ => continue,
            }
            drop(open_as(&disk, compression));
            disk = disk.after_kill();
            let stretches = self::stretches(&disk);
            let unknown = segment_files(&disk, &in_dir("wal"))
                .iter()
                .map(|path| check_stretches(&disk, path, &stretches))
                .sum::<u64>();
            assert_eq!(unknown, 0, "{compression:?}, {life}");
        }
    }
}

#[test]
fn a_checkpoint_is_summed_up_and_what_is_behind_it_stays_so() {
    let disk = FaultyDisk::new();
    let mut life = Life::begin(Arc::new(disk.clone()), Path::new(DIR));
    life.options.wal_by_coverage = true;
    life.open();
    life.write(0..40, 60 * 5);
    life.db().write_full_chunks().unwrap();
    life.db().cut_due().unwrap();
    life.db().drop_cut();
    life.write(0..40, 60);
    let disk = disk.after_kill();
    let log = LogDir::list(&disk, &in_dir("wal")).unwrap();
    let [(_, checkpoint)] = &log.checkpoints[..] else { panic!("{log:?}") };
    let stretches = stretches(&disk);
    let unknown = |dir: &Path| {
        let files = segment_files(&disk, dir);
        assert!(!files.is_empty());
        files.iter().map(|path| check_stretches(&disk, path, &stretches)).sum::<u64>()
    };
    assert_eq!(unknown(&in_dir("wal").join(checkpoint)), 0);
    // All but the end of the last segment.
    assert!(unknown(&in_dir("wal")) < 32 << 10);
    assert!(stretches.iter().any(|(path, _)| path.parent() == Some(&in_dir("wal"))));
}

#[test]
fn nothing_is_noted_of_a_stretch_whose_copies_could_not_be_written() {
    let disk = FaultyDisk::new();
    let db = open_as(&disk, Compression::None).db;
    disk.refuse_changes(&in_dir(NAMES_FILE), io::ErrorKind::StorageFull);
    (0..20).for_each(|series| append(&db, series, NOW));
    disk.allow_changes(&in_dir(NAMES_FILE));
    (0..400).for_each(|i| append(&db, 3, NOW + 1 + i));
    let disk = disk.after_kill();
    let noted = Noted::read(&disk, &in_dir(NAMES_FILE)).unwrap();
    assert!(noted.copies.is_empty() && !noted.stretches.is_empty());
    for ((file, start), stretch) in &noted.stretches {
        assert_eq!(stretch.series_records, 0, "{file:?}, {start}");
    }
}

fn names_another(series_ref: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    record::begin_series(&mut bytes);
    let labels = [(&b"__name__"[..], &b"another"[..])];
    record::push_series(&mut bytes, crate::model::HeadSeriesRef(series_ref), labels.into_iter());
    bytes
}

#[test]
fn copies_of_a_log_that_another_program_wrote_are_used_for_nothing() {
    let (disk, stored) = killed(Compression::None, 0..6);
    let (path, place) = series_records(&disk).remove(3);
    flip(&disk, &path, place.start + 9);
    // It takes the damaged series' ref for one of its own.
    let options = WalOptions {
        segment_bytes: 64 << 10,
        compression: Compression::None,
        sync: SyncPolicy::Interval,
    };
    let metrics = WalMetrics::new(&Registry::new(), "t");
    let mut wal = Wal::open(Arc::new(disk.clone()), &in_dir("wal"), options, metrics).unwrap();
    let _ = wal.append(&[&names_another(4)]).unwrap();
    wal.close().unwrap();
    let opened = open(&disk);
    assert_eq!(opened.log.restored, 0);
    assert!(is_set_aside(&disk));
    let found = dump(&opened.db);
    assert!(found.iter().all(|(labels, _)| *labels != stored[3].0));
    // What there is was copied anew.
    let disk = disk.after_kill();
    let (path, place) = series_records(&disk).remove(0);
    flip(&disk, &path, place.start + 9);
    let opened = open(&disk);
    assert_eq!(opened.log.restored, 1);
    assert!(dump(&opened.db) == found);
}

/// A segment of the same number, as another program may leave one that deleted ours.
#[test]
fn copies_of_another_segment_of_the_same_number_are_found_out() {
    let (disk, _) = killed(Compression::None, 0..6);
    let (other, stored) = killed(Compression::None, 10..16);
    let (path, _) = series_records(&disk).remove(0);
    put(&disk, &path, &bytes_of(&other, &path));
    let opened = open(&disk);
    assert!(dump(&opened.db) == stored);
    assert!(is_set_aside(&disk));
    let disk = disk.after_kill();
    let (path, place) = series_records(&disk).remove(5);
    flip(&disk, &path, place.start + 9);
    let opened = open(&disk);
    assert_eq!(opened.log.restored, 1);
    assert!(dump(&opened.db) == stored);
}

/// One that is cut or grown is none that we left so.
#[test]
fn copies_of_a_log_whose_older_segments_changed_are_used_for_nothing() {
    let (disk, stored) = killed(Compression::None, 0..6);
    drop(open(&disk));
    let disk = disk.after_kill();
    let (path, _) = series_records(&disk).remove(0);
    let bytes = bytes_of(&disk, &path);
    put(&disk, &path, &[&bytes[..], &[0; 100]].concat());
    assert!(dump(&open(&disk).db) == stored);
    assert!(is_set_aside(&disk));
}

#[test]
fn copies_that_cannot_be_written_hinder_nothing() {
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk.refuse_changes(&in_dir(NAMES_FILE), io::ErrorKind::StorageFull);
    let db = open(&disk).db;
    (0..6).for_each(|series| append(&db, series, NOW));
    let stored = dump(&db);
    let disk = disk.after_kill();
    disk.refuse_changes(&in_dir(NAMES_FILE), io::ErrorKind::PermissionDenied);
    assert!(dump(&open(&disk).db) == stored);
    // Where they can be written again, they are.
    let disk = disk.after_kill();
    assert!(dump(&open(&disk).db) == stored);
    let disk = disk.after_kill();
    let (path, place) = series_records(&disk).remove(0);
    flip(&disk, &path, place.start + 9);
    assert!(dump(&open(&disk).db) == stored);
}

/// Many lives with kills, power cuts, faults and damage, against what was stored.
#[test]
fn no_sample_goes_to_another_series_whatever_is_damaged() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut restored = 0;
    for run in 0..40 {
        // Every second run damages the log, the others all else.
        let mut disk = FaultyDisk::new();
        let mut stored: Vec<Series> = Vec::new();
        let mut t = NOW;
        for life in 0..6 {
            let opened = open(&disk);
            restored += opened.log.restored;
            assert!(dump(&opened.db) == stored, "run {run}, life {life}");
            for _ in 0..random(30) {
                t += 1;
                // A copy that could not be written is missing until the next opening.
                if run % 2 == 1 && random(20) == 0 {
                    disk.fail_operation(random(3), io::ErrorKind::Other, random(80) as usize);
                }
                let mut batch = Batch::default();
                let name = format!("{:020}", random(40));
                let labels = json!([["__name__", "m"], ["n", name]]);
                push(&opened.db, &mut batch, &labels, t, t as u64);
                let _ = opened.db.append(&batch);
            }
            while opened.db.sync_handle().sync().is_err() {}
            stored = dump(&opened.db);
            stored.retain(|(_, samples)| !samples.is_empty());
            drop(opened);
            let is_power_cut = random(2) == 0;
            disk = if is_power_cut { disk.after_power_cut() } else { disk.after_kill() };
            let names = in_dir(NAMES_FILE);
            let places = series_records(&disk);
            // After a power cut the copies may lack what was not synced of them.
            match random(3) {
                0 if !places.is_empty() && !is_power_cut && run % 2 == 0 => {
                    let (path, place) = &places[random(places.len() as u64) as usize];
                    flip(&disk, path, place.start + 4 + random(place.end - place.start - 4));
                }
                1 if run % 2 == 1 => {
                    let len = bytes_of(&disk, &names).len() as u64;
                    if len > 0 {
                        flip(&disk, &names, random(len));
                    }
                }
                _ => {}
            }
        }
    }
    assert!(restored > 5, "{restored}");
}
