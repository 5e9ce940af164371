//! A file of arbitrary bytes in the place of the second copy of what names a log's series: whatever it
//! says, the log's samples are read as they are, and what is written before that is there, too.
//!
//! Input: the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use ringest::clock::ManualClock;
use ringest::disk::Disk;
use ringest::disk::faulty::FaultyDisk;
use ringest::metrics::Registry;
use ringest::model::labels::KeyBuilder;
use ringest::tsdb::Db;
use ringest::tsdb::chunkenc::xor::XorIterator;
use ringest::tsdb::env::Env;
use ringest::tsdb::head::batch::Batch;
use ringest::tsdb::loading::Loading;
use ringest::tsdb::options::DbOptions;
use ringest::tsdb::wal::Compression;
use ringest::tsdb::wal::names::NAMES_FILE;

const DIR: &str = "/db";
const NOW: i64 = 1_700_000_000_000;
const SERIES: u64 = 4;
const SAMPLES: i64 = 150;

/// Time to value, by series.
type Stored = BTreeMap<u64, BTreeMap<i64, u64>>;

fn options() -> DbOptions {
    // Small enough that writes are taken before all of it is read.
    let (wal_segment_bytes, wal_compression) = (32 << 10, Compression::None);
    DbOptions { wal_segment_bytes, wal_compression, ..DbOptions::default() }
}

fn env(disk: &FaultyDisk) -> Env {
    Env::new(Arc::new(disk.clone()), Arc::new(ManualClock::at(NOW)), Registry::new())
}

/// Writes a sample of a series; whether it is stored.
fn write(db: &Db, series: u64, t: i64) -> bool {
    let mut batch = Batch::default();
    let known = db.lookup(&mut batch);
    let mut key = KeyBuilder::default();
    key.push(b"__name__", b"m");
    key.push(b"n", format!("{series:060}").as_bytes());
    let fingerprint = known.fingerprint(key.as_bytes());
    let number = known
        .find_canonical(fingerprint)
        .unwrap_or_else(|| batch.push_new_series(fingerprint, key.as_bytes()));
    batch.push(number, t, t as u64);
    db.append(&batch).is_ok_and(|report| report.stored == 1)
}

fn found(db: &Db) -> Stored {
    let querier = db.querier(i64::MIN, i64::MAX);
    let mut found = Stored::new();
    for series in querier.select(&[]).expect("a head in memory") {
        let (_, name) = series.labels.iter().nth(1).expect("two labels");
        let name: u64 = str::from_utf8(name).expect("digits").parse().expect("digits");
        let mut chunks = Vec::new();
        querier.chunks(&series, &mut chunks).expect("a head in memory");
        let samples = chunks.iter().flat_map(|chunk| XorIterator::new(&chunk.bytes));
        for (t, v) in samples.map(|sample| sample.expect("whole")) {
            assert_eq!(found.entry(name).or_default().insert(t, v), None, "a sample twice");
        }
    }
    found
}

/// A log as a process leaves it that was killed, and what is in it. Each sample has a record, and
/// there are series that came late.
fn killed() -> &'static (FaultyDisk, Stored) {
    static KILLED: OnceLock<(FaultyDisk, Stored)> = OnceLock::new();
    KILLED.get_or_init(|| {
        let disk = FaultyDisk::new();
        let lock = Db::lock(&disk, Path::new(DIR), &options()).expect("the lock");
        let opened = Db::open(Path::new(DIR), lock, options(), &env(&disk), "t");
        let db = opened.expect("a disk in memory").db;
        let mut stored = Stored::new();
        for t in NOW - SAMPLES..NOW {
            for series in 0..SERIES + (t - NOW + SAMPLES) as u64 / 50 {
                assert!(write(&db, series, t));
                stored.entry(series).or_default().insert(t, t as u64);
            }
        }
        (disk.after_kill(), stored)
    })
}

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let (killed, stored) = killed();
    let (disk, mut stored) = (killed.after_kill(), stored.clone());
    let file = disk.create(&Path::new(DIR).join(NAMES_FILE)).expect("a disk in memory");
    file.write_all_at(input, 0).expect("a disk in memory");
    let lock = Db::lock(&disk, Path::new(DIR), &options()).expect("the lock");
    let begun = Db::begin_opening(Path::new(DIR), lock, options(), &env(&disk), "t");
    let begun = begun.expect("a disk in memory");
    if let Some(db) = begun.early() {
        // The last one again, a later one, and those of new series and of old times.
        for (series, t) in [(0, NOW - 1), (1, NOW), (2, NOW - 20), (40, NOW - 10), (40, NOW)] {
            if write(&db, series, t) {
                stored.entry(series).or_default().insert(t, t as u64);
            }
        }
        assert!(stored[&1].contains_key(&NOW), "it is certainly later");
    }
    let opened = begun.load(&Loading::default()).expect("the log is whole");
    opened.db.release_writes();
    assert_eq!(opened.log.damage_count, 0);
    assert!(found(&opened.db) == stored, "other samples than were written");
}

/// The file as it is, and without its end.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let (killed, _) = killed();
    let file = killed.open(&Path::new(DIR).join(NAMES_FILE)).expect("it is there");
    let mut bytes = vec![0; file.len().expect("its length") as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += file.read_at(&mut bytes[filled..], filled as u64).expect("a disk in memory");
    }
    vec![bytes[..bytes.len() / 2].to_vec(), bytes]
}
