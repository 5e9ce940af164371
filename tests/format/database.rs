//! A copy of a recorded directory, and the database in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringest::clock::ManualClock;
use ringest::disk::SystemDisk;
use ringest::metrics::Registry;
use ringest::model::labels::KeyBuilder;
use ringest::tsdb::chunkenc::samples::{SampleIterator, Value};
use ringest::tsdb::env::Env;
use ringest::tsdb::head::append::AppendReport;
use ringest::tsdb::head::batch::Batch;
use ringest::tsdb::options::DbOptions;
use ringest::tsdb::querier::Querier;
use ringest::tsdb::{Db, Opened};

use crate::histograms::digest;

/// Later than every recorded time, so that the wall clock bounds nothing.
const NOW: i64 = i64::MAX / 2;

/// Labels, sorted and without empty values.
pub(crate) type Labels = Vec<(String, String)>;

/// Times to bits of values by series: all float samples of a database.
pub(crate) type Stored = BTreeMap<Labels, BTreeMap<i64, u64>>;

pub(crate) fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb")
}

/// A copy of `from`, a directory below the test data.
pub(crate) struct Copy {
    pub(crate) dir: tempfile::TempDir,
}

impl Copy {
    pub(crate) fn of(from: &str) -> Copy {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&data_dir().join(from), dir.path());
        Copy { dir }
    }

    /// All files, relative to the directory. The lock comes and goes.
    pub(crate) fn files(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        list_files(self.dir.path(), &mut found);
        let relative = |path: &PathBuf| path.strip_prefix(self.dir.path()).unwrap().to_owned();
        found.iter().map(relative).filter(|path| path != Path::new("lock")).collect()
    }

    pub(crate) fn open(&self) -> Opened {
        let (dir, options) = (self.dir.path(), DbOptions::default());
        let lock = Db::lock(&SystemDisk, dir, &options).unwrap();
        let (disk, clock) = (Arc::new(SystemDisk), Arc::new(ManualClock::at(NOW)));
        let env = Env::new(disk, clock, Registry::new());
        Db::open(dir, lock, options, &env, "t").unwrap()
    }

    /// Opens again until the end of a process would have come twice, once without a goodbye: both
    /// times `expected` is there, and both times what is written in between stays.
    pub(crate) fn assert_serves_on(&self, name: &str, mut expected: Stored) {
        let Opened { db, log, .. } = self.open();
        assert_eq!((log.damage_count, log.cut), (0, None), "{name}, at the second opening");
        assert!(stored(&db) == expected, "{name}: other samples at the second opening");

        let newest = expected.values().flat_map(BTreeMap::keys).max().copied();
        let t = newest.unwrap_or(1_700_000_000_000) + 1;
        let mut labels: Vec<Labels> = expected.keys().cloned().collect();
        labels.push(vec![("__name__".into(), "new".into())]);
        append(&db, &labels, t);
        for labels in labels {
            expected.entry(labels).or_default().insert(t, t as u64);
        }
        assert!(stored(&db) == expected, "{name}: other samples after an append");
        // As a killed process leaves it: not closed.
        drop(db);
        let Opened { db, .. } = self.open();
        assert!(stored(&db) == expected, "{name}: other samples after an append and a kill");
        db.close().unwrap();
        drop(db);
        let Opened { db, .. } = self.open();
        assert!(stored(&db) == expected, "{name}: other samples after a close");
    }
}

/// Gives each series the sample (`t`, `t`).
pub(crate) fn append(db: &Db, series: &[Labels], t: i64) {
    let report = try_append(db, series, t);
    assert_eq!(report.stored as usize, series.len(), "{:?}", report.refused);
}

pub(crate) fn try_append(db: &Db, series: &[Labels], t: i64) -> AppendReport {
    let mut batch = Batch::default();
    let mut key = KeyBuilder::default();
    let known = db.lookup(&mut batch);
    for labels in series {
        key.clear();
        for (name, value) in labels {
            key.push(name.as_bytes(), value.as_bytes());
        }
        let key = key.as_bytes();
        let fingerprint = known.fingerprint(key);
        let number = known.find_canonical(fingerprint);
        let number = number.unwrap_or_else(|| batch.push_new_series(fingerprint, key));
        batch.push(number, t, t as u64);
    }
    drop(known);
    db.append(&batch).unwrap()
}

/// What a query over the whole head answers: what its log has given it.
pub(crate) fn stored(db: &Db) -> Stored {
    stored_of(&db.head_querier())
}

/// What a query over head and blocks answers.
pub(crate) fn all_stored(db: &Db) -> Stored {
    stored_of(&db.querier(i64::MIN, i64::MAX))
}

fn stored_of(querier: &Querier) -> Stored {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut all = Stored::new();
    for series in querier.select(&[]).unwrap() {
        let labels = series.labels.iter().map(|(name, value)| (text(name), text(value)));
        let mut chunks = Vec::new();
        querier.chunks(&series, &mut chunks).unwrap();
        let samples =
            chunks.iter().flat_map(|chunk| SampleIterator::new(chunk.encoding, &chunk.bytes));
        let number = |value| match value {
            Value::Float(bits) => bits,
            Value::Histogram(histogram) => digest(&histogram),
        };
        let samples = samples.map(Result::unwrap).map(|(t, value)| (t, number(value)));
        let samples: Vec<(i64, u64)> = samples.collect();
        assert!(samples.is_sorted_by_key(|(t, _)| *t));
        let before = all.insert(labels.collect(), samples.into_iter().collect());
        assert!(before.is_none(), "a series comes twice");
    }
    all
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn list_files(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list_files(&path, found);
        } else {
            found.insert(path);
        }
    }
}
