//! The append rules against what Prometheus recorded.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::ManualClock;
use crate::disk::faulty::FaultyDisk;
use crate::disk::{Disk, SystemDisk};
use crate::error::chain;
use crate::metrics::Registry;
use crate::model::STALE_NAN_BITS;
use crate::model::histogram::recorded::{digest, histogram};
use crate::model::histogram::{AnyHistogram, CUSTOM_BUCKETS_SCHEMA, Histogram, Layout};
use crate::model::labels::KeyBuilder;
use crate::tsdb::Db;
use crate::tsdb::chunkenc::sample_count;
use crate::tsdb::chunkenc::samples::{self, SampleIterator};
use crate::tsdb::env::Env;
use crate::tsdb::head::append::{AppendReport, Refusal};
use crate::tsdb::head::batch::{Batch, NEW_BIT};
use crate::tsdb::options::DbOptions;
use crate::tsdb::querier::tests::assert_gathered;
use crate::tsdb::wal::WalError;

/// A database in a directory of its own, whose clock stands far behind the recorded times' end.
pub(crate) struct TestDb {
    pub dir: tempfile::TempDir,
    pub db: Arc<Db>,
    options: DbOptions,
}

/// Labels, and samples as time and bits, or a histogram's [digest].
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

    /// Everything stored, as (labels, samples), sorted. It is the same when full chunks are in files.
    pub(crate) fn dump(&self) -> Vec<Series> {
        let in_memory = dump(&self.db);
        self.db.write_full_chunks().unwrap();
        let in_files = dump(&self.db);
        assert_eq!(in_files, in_memory);
        in_files
    }
}

pub(crate) fn open(dir: &Path, options: &DbOptions) -> Arc<Db> {
    open_in(dir, SystemDisk, options)
}

fn open_in(dir: &Path, disk: impl Disk + 'static, options: &DbOptions) -> Arc<Db> {
    let lock = Db::lock(&disk, dir, options).unwrap();
    let clock = Arc::new(ManualClock::at(LATER_THAN_ALL));
    let env = Env::new(Arc::new(disk), clock, Registry::new());
    Db::open(dir, lock, options.clone(), &env, "t").unwrap().db
}

pub(crate) fn dump(db: &Db) -> Vec<Series> {
    let querier = db.querier(i64::MIN, i64::MAX);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut all = Vec::new();
    let selected = querier.select(&[]).unwrap();
    assert_gathered(&querier, &selected);
    for series in selected {
        let labels = series.labels.iter().map(|(name, value)| (text(name), text(value))).collect();
        let mut chunks = Vec::new();
        querier.chunks(&series, &mut chunks).unwrap_or_else(|err| panic!("{}", chain(&err)));
        let samples =
            chunks.iter().flat_map(|chunk| SampleIterator::new(chunk.encoding, &chunk.bytes));
        let samples = samples.map(Result::unwrap).map(|(t, value)| (t, number(&value)));
        all.push((labels, samples.collect()));
    }
    all.sort();
    all
}

fn number(value: &samples::Value) -> u64 {
    match value {
        samples::Value::Float(bits) => *bits,
        samples::Value::Histogram(histogram) => digest(histogram),
    }
}

/// Bits of a recorded sample, or the digest of a histogram.
pub(crate) fn recorded_number(sample: &Value) -> u64 {
    match histogram(sample) {
        Some(histogram) => digest(&histogram),
        None => u64::from_str_radix(sample[1].as_str().unwrap(), 16).unwrap(),
    }
}

/// The number that samples of the series have in a batch, which it is added to if it is new.
pub(crate) fn series_number(db: &Db, batch: &mut Batch, key: &[u8]) -> u32 {
    let known = db.lookup(batch);
    let fingerprint = known.fingerprint(key);
    let found = known.find_canonical(fingerprint);
    found.unwrap_or_else(|| batch.push_new_series(fingerprint, key))
}

/// Adds a sample to a batch; labels are pairs.
pub(crate) fn push(db: &Db, batch: &mut Batch, labels: &Value, t: i64, v: u64) {
    let series = number_of_series(db, batch, labels);
    batch.push(series, t, v);
}

pub(crate) fn number_of_series(db: &Db, batch: &mut Batch, labels: &Value) -> u32 {
    let mut key = KeyBuilder::default();
    for pair in labels.as_array().unwrap() {
        key.push(pair[0].as_str().unwrap().as_bytes(), pair[1].as_str().unwrap().as_bytes());
    }
    series_number(db, batch, key.as_bytes())
}

/// The storage of Prometheus drops bounds that exponential buckets have; who writes to it refuses them.
fn without_needless_bounds(sample: &Value) -> Option<AnyHistogram> {
    let mut histogram = histogram(sample)?;
    let layout = match &mut histogram {
        AnyHistogram::Integer(histogram) => &mut histogram.layout,
        AnyHistogram::Float(histogram) => &mut histogram.layout,
    };
    if !layout.is_custom() {
        layout.custom_bounds.clear();
    }
    Some(histogram)
}

/// Adds a recorded sample of any kind.
pub(crate) fn push_recorded(db: &Db, batch: &mut Batch, labels: &Value, sample: &Value) {
    let t = sample[0].as_i64().unwrap();
    let series = number_of_series(db, batch, labels);
    match without_needless_bounds(sample) {
        Some(histogram) => batch.push_histogram(series, t, histogram),
        None => batch.push(series, t, recorded_number(sample)),
    }
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
                samples.map(|sample| (sample[0].as_i64().unwrap(), recorded_number(sample)));
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
            let is_valid = kind != "append" || step[4] != "invalid_sample";
            is_valid
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
    assert!(cases.len() > 32, "only {} cases are played", cases.len());
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
                let labels = &case["series"][step[2].as_u64().unwrap() as usize];
                // Who decodes a request judges whether it is a histogram at all.
                let histogram = without_needless_bounds(sample);
                let is_valid = histogram.is_none_or(|histogram| histogram.check().is_ok());
                assert_eq!(is_valid, step[4] != "invalid_histogram", "{name}, step {i}");
                if !is_valid {
                    continue;
                }
                pending.push((labels, sample));
                outcomes.push(step[4].as_str().unwrap());
            }
            "commit" => {
                for (labels, sample) in pending.drain(..) {
                    push_recorded(&test.db, &mut batch, labels, sample);
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

/// `[mint, maxt, encoding, samples, bytes]` of the chunks of the one series.
fn chunks_of(db: &Db) -> Value {
    let querier = db.querier(i64::MIN, i64::MAX);
    let selected = querier.select(&[]).unwrap();
    let [series] = &selected[..] else { panic!("{} series", selected.len()) };
    let mut chunks = Vec::new();
    querier.chunks(series, &mut chunks).unwrap();
    let chunks = chunks.iter().map(|chunk| {
        let count = sample_count(chunk.encoding, &chunk.bytes);
        let hex: String = chunk.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        json!([chunk.mint, chunk.maxt, chunk.encoding, count, hex])
    });
    Value::from(chunks.collect::<Vec<_>>())
}

/// Bit for bit, as they come and when they lie in files.
#[test]
fn chunks_of_histograms_are_cut_where_prometheus_cuts() {
    let file = include_str!("../../../tests/data/chunks/histogram_cuts.json");
    let file: Value = serde_json::from_str(file).unwrap();
    for case in file["cases"].as_array().unwrap() {
        let name = &case["name"];
        let block_range = case["block_ms"].as_i64().unwrap();
        let options = DbOptions { block_range, ..DbOptions::default() };
        let mut test = TestDb::new(options);
        let mut batch = Batch::default();
        for sample in case["samples"].as_array().unwrap() {
            push_recorded(&test.db, &mut batch, &json!([["__name__", "h"]]), sample);
            assert_eq!(test.db.append(&batch).unwrap().stored, 1, "{name}");
            batch.clear();
        }
        assert_eq!(chunks_of(&test.db), case["chunks"], "{name}");
        let stored = dump(&test.db);
        // The last chunk begins behind those in files, and nothing is known there of what was before
        // it: so it is in Prometheus.
        let full = case["chunks"].as_array().unwrap().split_last().unwrap().1;
        for when in ["at a start", "at another"] {
            test = test.restart();
            let chunks = chunks_of(&test.db);
            assert_eq!(chunks.as_array().unwrap()[..full.len()], *full, "{name}, {when}");
            assert_eq!(test.dump(), stored, "{name}, {when}");
        }
    }
}

/// A batch of a few series and times, so that batches meet each other's series and samples.
fn small_batch(db: &Db, random: &mut impl FnMut(u64) -> u64) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..1 + random(4) {
        let mut key = KeyBuilder::default();
        key.push(b"series", random(12).to_string().as_bytes());
        let series = series_number(db, &mut batch, key.as_bytes());
        let t = 1_000_000 + random(30) as i64 * 1_000_000;
        match random(6) {
            0 => batch.push(series, t, STALE_NAN_BITS),
            1 => {
                let (count, zero_count) = (random(2), 0);
                let histogram = Histogram { count, zero_count, ..Histogram::default() };
                batch.push_histogram(series, t, AnyHistogram::Integer(histogram));
            }
            2 => {
                let layout = Layout { schema: CUSTOM_BUCKETS_SCHEMA, ..Layout::default() };
                let histogram =
                    Histogram { count: random(2) as f64, layout, ..Histogram::default() };
                batch.push_histogram(series, t, AnyHistogram::Float(histogram));
            }
            _ => batch.push(series, t, random(2)),
        }
    }
    batch
}

/// What was answered, but for the place in the log.
fn answers(report: &AppendReport) -> (u64, Vec<Option<u64>>) {
    let refused = report.refused.iter().map(|refused| refused.as_ref().map(|(count, _)| *count));
    (report.stored, refused.collect())
}

#[test]
fn a_group_is_answered_and_stored_as_its_batches_one_by_one() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for run in 0..100 {
        // A range in which some samples fall behind the bounds.
        let options = DbOptions { block_range: 40_000_000, ..DbOptions::default() };
        let (grouped, single) = (TestDb::new(options.clone()), TestDb::new(options));
        for _ in 0..6 {
            let batches: Vec<_> =
                (0..1 + random(5)).map(|_| small_batch(&grouped.db, &mut random)).collect();
            let results = grouped.db.append_group(&batches.iter().collect::<Vec<_>>());
            assert_eq!(results.len(), batches.len());
            for (batch, result) in batches.iter().zip(&results) {
                let expected = single.db.append(&renamed(batch, &single.db)).unwrap();
                assert_eq!(answers(result.as_ref().unwrap()), answers(&expected), "run {run}");
            }
        }
        let expected = single.dump();
        assert_eq!(grouped.dump(), expected, "run {run}");
        assert_eq!(grouped.restart().dump(), expected, "run {run}: the log");
    }
}

/// The same batch, its series looked up in another database.
fn renamed(batch: &Batch, to: &Db) -> Batch {
    let mut renamed = Batch::default();
    for sample in &batch.samples {
        let key = match sample.series & NEW_BIT {
            0 => batch.key_of(sample.series).as_bytes().to_vec(),
            _ => batch.key(&batch.new_series[(sample.series & !NEW_BIT) as usize]).to_vec(),
        };
        let series = series_number(to, &mut renamed, &key);
        match batch.value(sample) {
            samples::ValueRef::Float(v) => renamed.push(series, sample.t, v),
            samples::ValueRef::Histogram(histogram) => {
                renamed.push_histogram(series, sample.t, histogram.clone());
            }
        }
    }
    renamed
}

#[test]
fn a_group_whose_write_fails_leaves_no_trace() {
    let disk = FaultyDisk::new();
    let options = DbOptions::default();
    let db = open_on(&disk, &options);
    let batch = |series: &[u64], t: i64| {
        let mut batch = Batch::default();
        for series in series {
            let mut key = KeyBuilder::default();
            key.push(b"series", series.to_string().as_bytes());
            let number = series_number(&db, &mut batch, key.as_bytes());
            batch.push(number, t, *series);
        }
        batch
    };
    db.append(&batch(&[1], 10)).unwrap();
    let before = dump(&db);
    // Two of new series, one of a known series; the last one would be refused.
    let group = [batch(&[2, 3], 20), batch(&[1], 20), batch(&[4], 20), batch(&[1], 5)];
    let group: Vec<_> = group.iter().collect();
    disk.fail_operation(0, std::io::ErrorKind::StorageFull, 7);
    // The last one has a series in common with the second, so it is none of the failed group.
    let results = db.append_group(&group);
    for result in &results[..3] {
        assert!(matches!(result, Err(WalError::DiskFull(_))), "{result:?}");
    }
    assert!(results[3].as_ref().unwrap().refused[Refusal::OutOfOrder as usize].is_some());
    assert_eq!(dump(&db), before);
    assert_eq!(dump(&open_on(&disk.after_kill(), &options)), before);

    let results = db.append_group(&group);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let after = dump(&db);
    assert_eq!(after.len(), 4);
    assert_eq!(dump(&open_on(&disk.after_kill(), &options)), after);
}

#[test]
fn batches_without_common_series_are_one_write() {
    let disk = FaultyDisk::new();
    let db = open_on(&disk, &DbOptions::default());
    let batch = |series: u64| {
        let mut batch = Batch::default();
        let mut key = KeyBuilder::default();
        key.push(b"series", series.to_string().as_bytes());
        let number = series_number(&db, &mut batch, key.as_bytes());
        batch.push(number, 10, series);
        batch
    };
    // A segment's first write notes its beginning.
    db.append(&batch(4)).unwrap();
    let batches: Vec<_> = [0, 1, 2, 3, 1].map(batch).into_iter().collect();
    let before = disk.operations();
    let results = db.append_group(&batches.iter().collect::<Vec<_>>());
    assert!(results.iter().all(Result::is_ok));
    // The last one repeats a sample of a batch before, which is in the log when it is judged. The
    // other one writes what names the series a second time.
    assert_eq!(disk.operations() - before, 2);
    let positions: Vec<_> = results.iter().flatten().map(|report| report.position).collect();
    assert!(positions.windows(2).all(|pair| pair[0] == pair[1]), "{positions:?}");
}

pub(crate) fn open_on(disk: &FaultyDisk, options: &DbOptions) -> Arc<Db> {
    open_in(Path::new("/data/t"), disk.clone(), options)
}
