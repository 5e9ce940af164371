//! The append rules against what Prometheus recorded.

use std::sync::Arc;

use serde_json::Value;

use crate::clock::ManualClock;
use crate::disk::SystemDisk;
use crate::metrics::Registry;
use crate::model::key_table::KeyHasher;
use crate::model::labels::KeyBuilder;
use crate::tsdb::Db;
use crate::tsdb::chunkenc::xor::XorIterator;
use crate::tsdb::head::append::Refusal;
use crate::tsdb::head::batch::Batch;
use crate::tsdb::options::DbOptions;

/// A database in a directory of its own, whose clock stands far behind the recorded times' end.
pub(crate) struct TestDb {
    pub dir: tempfile::TempDir,
    pub db: Db,
    options: DbOptions,
}

/// Labels, and samples as time and bits.
pub(crate) type Series = (Vec<(String, String)>, Vec<(i64, u64)>);

pub(crate) const LATER_THAN_ALL: i64 = i64::MAX / 2;

impl TestDb {
    pub(crate) fn new(options: DbOptions) -> TestDb {
        let dir = tempfile::tempdir().unwrap();
        let db = open(dir.path(), &options);
        TestDb { dir, db, options }
    }

    pub(crate) fn restart(self) -> TestDb {
        let TestDb { dir, db, options } = self;
        db.close().unwrap();
        drop(db);
        let db = open(dir.path(), &options);
        TestDb { dir, db, options }
    }

    /// Everything stored, as (labels, samples), sorted.
    pub(crate) fn dump(&self) -> Vec<Series> {
        dump(&self.db)
    }
}

pub(crate) fn open(dir: &std::path::Path, options: &DbOptions) -> Db {
    let lock = Db::lock(&SystemDisk, dir, options).unwrap();
    let clock = Arc::new(ManualClock::at(LATER_THAN_ALL));
    let (disk, registry) = (Arc::new(SystemDisk), Registry::new());
    let hasher = KeyHasher::random();
    Db::open(dir, lock, options.clone(), hasher, disk, clock, &registry, "t").unwrap().db
}

pub(crate) fn dump(db: &Db) -> Vec<Series> {
    let querier = db.querier(i64::MIN, i64::MAX);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut all = Vec::new();
    for series in querier.select(&[]) {
        let labels = series.key.labels().map(|(name, value)| (text(name), text(value))).collect();
        let mut chunks = Vec::new();
        querier.chunks(&series, &mut chunks);
        let samples =
            chunks.iter().flat_map(|chunk| XorIterator::new(&chunk.bytes)).map(Result::unwrap);
        all.push((labels, samples.collect()));
    }
    all.sort();
    all
}

fn push(db: &Db, batch: &mut Batch, labels: &Value, t: i64, v: u64) {
    let mut key = KeyBuilder::default();
    for pair in labels.as_array().unwrap() {
        key.push(pair[0].as_str().unwrap().as_bytes(), pair[1].as_str().unwrap().as_bytes());
    }
    let set = db.lookup();
    let hash = set.hash(key.as_bytes());
    let found = set.find(hash, key.as_bytes(), crate::tsdb::head::series::Rules::CANONICAL);
    let series = found.unwrap_or_else(|| batch.push_new_series(hash, key.as_bytes()));
    batch.push(series, t, v);
}

pub(crate) fn recorded_series(series: &Value) -> Vec<Series> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut all: Vec<_> = series
        .as_array()
        .unwrap()
        .iter()
        .map(|series| {
            let labels = series["labels"].as_array().unwrap().iter();
            let labels = labels.map(|pair| (text(&pair[0]), text(&pair[1])));
            let samples = series["samples"].as_array().unwrap().iter();
            let samples =
                samples.filter(|sample| sample[1] != "h" && sample[1] != "fh").map(|sample| {
                    let bits = u64::from_str_radix(sample[1].as_str().unwrap(), 16).unwrap();
                    (sample[0].as_i64().unwrap(), bits)
                });
            (labels.filter(|(_, value)| !value.is_empty()).collect(), samples.collect::<Vec<_>>())
        })
        .filter(|(_, samples)| !samples.is_empty())
        .collect();
    all.sort();
    all
}

/// What this version does not do, or what an appender of ours cannot do.
fn is_for_us(case: &Value) -> bool {
    let steps = case["steps"].as_array().unwrap();
    case["options"]["out_of_order_time_window_ms"] == 0
        && steps.iter().all(|step| {
            let kind = step[0].as_str().unwrap();
            let is_float = kind != "append" || step[3].as_array().unwrap().len() == 2;
            let is_valid = kind != "append" || step[4] != "invalid_sample";
            is_float
                && is_valid
                && ["append", "commit", "rollback", "restart"].contains(&kind)
                && step.get(1).is_none_or(|appender| kind == "restart" || appender == 0)
        })
}

fn refusal_of(outcome: &str) -> Option<Refusal> {
    match outcome {
        "ok" => None,
        "out_of_order" => Some(Refusal::OutOfOrder),
        "out_of_bounds" => Some(Refusal::OutOfBounds),
        "duplicate" => Some(Refusal::DuplicateForTimestamp),
        other => panic!("unknown outcome {other}"),
    }
}

#[test]
fn samples_are_taken_and_refused_as_in_prometheus() {
    let file = include_str!("../../../tests/data/append/append.json");
    let file: Value = serde_json::from_str(file).unwrap();
    let cases: Vec<_> = file["cases"].as_array().unwrap().iter().filter(|c| is_for_us(c)).collect();
    assert!(cases.len() > 25, "only {} cases are played", cases.len());
    for case in cases {
        play(case);
    }
}

fn play(case: &Value) {
    let name = &case["name"];
    let options = DbOptions {
        block_range: case["options"]["block_ms"].as_i64().unwrap(),
        ..DbOptions::default()
    };
    let mut test = TestDb::new(options);
    let mut batch = Batch::default();
    let mut outcomes = Vec::new();
    let mut pending = Vec::new();
    for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        match step[0].as_str().unwrap() {
            "append" => {
                let sample = &step[3];
                let bits = u64::from_str_radix(sample[1].as_str().unwrap(), 16).unwrap();
                let labels = &case["series"][step[2].as_u64().unwrap() as usize];
                pending.push((labels, sample[0].as_i64().unwrap(), bits));
                outcomes.push(step[4].as_str().unwrap());
            }
            "commit" => {
                for (labels, t, v) in pending.drain(..) {
                    push(&test.db, &mut batch, labels, t, v);
                }
                let report = test.db.append(&batch).unwrap();
                if let [outcome] = outcomes[..] {
                    let refused = Refusal::ALL.into_iter().zip(&report.refused);
                    let refused =
                        refused.filter(|(_, refused)| refused.is_some()).map(|(r, _)| r).next();
                    // An equal sample that is stored already is success.
                    let is_stored_already = report.stored == 1 && outcome != "ok";
                    assert!(
                        refused == refusal_of(outcome) || is_stored_already,
                        "{name}, step {i}: {refused:?}, recorded {outcome}"
                    );
                }
                batch.clear();
                outcomes.clear();
            }
            "rollback" => {
                pending.clear();
                outcomes.clear();
            }
            "restart" => test = test.restart(),
            other => panic!("unknown step {other}"),
        }
    }
    let expected = recorded_series(&case["final"]);
    assert_eq!(test.dump(), expected, "{name}");
    assert_eq!(test.restart().dump(), expected, "{name}, after a restart");
}
