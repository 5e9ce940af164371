use serde_json::json;

use super::*;
use crate::model::matcher::{MatchOp, Matcher};
use crate::tsdb::head::batch::{Batch, NEW_BIT};
use crate::tsdb::head::tests::{TestDb, push};
use crate::tsdb::options::DbOptions;

/// Samples at this time are to be forgotten, and those at the next are not.
const OLD: i64 = 1_000_000;
const NEW: i64 = 2_000_000;

fn append(test: &TestDb, names: impl IntoIterator<Item = usize>, t: i64) {
    let mut batch = Batch::default();
    let names = names.into_iter();
    names.for_each(|i| {
        push(&test.db, &mut batch, &json!([["__name__", "m"], ["i", i.to_string()]]), t, i as u64)
    });
    let count = batch.samples.len() as u64;
    assert_eq!(test.db.append(&batch).unwrap().stored, count);
}

fn forget_before(test: &TestDb, mint: i64) -> Dropped {
    let head = &test.db.head;
    head.raise_floor(mint);
    head.drop_before(mint)
}

fn names(test: &TestDb) -> Vec<String> {
    test.dump().into_iter().map(|(labels, _)| labels[1].1.clone()).collect()
}

#[test]
fn series_without_samples_are_forgotten_everywhere() {
    let test = TestDb::new(DbOptions::default());
    append(&test, 0..1000, OLD);
    append(&test, (0..1000).filter(|i| i % 3 == 0), NEW);
    let dropped = forget_before(&test, NEW);
    assert_eq!((dropped.chunks, dropped.series.len()), (1000 - 334, 1000 - 334));
    assert_eq!(test.db.series_count(), 334);
    assert_eq!(test.db.time_range(), Some((NEW, NEW)));
    let mut kept: Vec<_> = (0..1000).step_by(3).map(|i| i.to_string()).collect();
    kept.sort();
    assert_eq!(names(&test), kept);
    let querier = test.db.querier(i64::MIN, i64::MAX);
    let values: Vec<_> = kept.iter().map(|value| value.as_bytes().to_vec()).collect();
    assert_eq!(querier.label_values(b"i", &[]).unwrap(), values);
    let is = |value: &str| [Matcher::new(MatchOp::Equal, b"i", value.as_bytes()).unwrap()];
    assert_eq!(querier.select(&is("3")).unwrap().len(), 1);
    assert_eq!(querier.select(&is("4")).unwrap().len(), 0);
    // What is left is known, and what went is not.
    let mut batch = Batch::default();
    for i in [3, 4] {
        push(&test.db, &mut batch, &json!([["__name__", "m"], ["i", i.to_string()]]), NEW + 1, 0);
    }
    let is_known = batch.samples.iter().map(|sample| sample.series & NEW_BIT == 0);
    assert_eq!(is_known.collect::<Vec<_>>(), [true, false]);
    // There is nothing more to forget.
    let again = forget_before(&test, NEW);
    assert_eq!((again.chunks, again.series.len()), (0, 0));
}

#[test]
fn an_empty_head_has_no_times_and_begins_again() {
    let test = TestDb::new(DbOptions::default());
    append(&test, 0..10, OLD);
    assert_eq!(forget_before(&test, NEW).series.len(), 10);
    assert_eq!((test.db.time_range(), test.db.series_count()), (None, 0));
    append(&test, 5..7, NEW);
    assert_eq!(test.db.time_range(), Some((NEW, NEW)));
    assert_eq!(names(&test), ["5", "6"]);
}

#[test]
fn slots_are_used_again_and_refs_are_not() {
    let test = TestDb::new(DbOptions::default());
    for round in 0..5 {
        let t = OLD + round * 1000;
        append(&test, (0..100).map(|i| i + 1000 * round as usize), t);
        assert_eq!(forget_before(&test, t + 1).series.len(), 100);
    }
    let head = &test.db.head;
    let log = head.log.lock();
    assert_eq!(log.slots.used(), 100);
    drop(log);
    append(&test, 0..1, NEW);
    let states = head.states.read();
    let refs: Vec<_> = states.iter().map(|state| state.series_ref().0).collect();
    assert_eq!(refs.iter().max(), Some(&501));
}

#[test]
fn a_batch_from_before_finds_its_series_whatever_has_become_of_them() {
    let test = TestDb::new(DbOptions::default());
    append(&test, 0..200, OLD);
    // Knows all of them, and one that is new.
    let mut batch = Batch::default();
    for i in 0..201 {
        push(&test.db, &mut batch, &json!([["__name__", "m"], ["i", i.to_string()]]), NEW, i);
    }
    assert_eq!(batch.new_series.len(), 1);
    append(&test, (0..200).step_by(2), NEW - 1);
    assert_eq!(forget_before(&test, NEW - 1).series.len(), 100);
    // Others come, and must not get slots that the batch means something else by; of the forgotten
    // ones some have come back.
    append(&test, 300..500, NEW);
    append(&test, (0..40).filter(|i| i % 2 == 1), NEW - 1);
    assert_eq!(test.db.append(&batch).unwrap().stored, 201);
    let check = |test: &TestDb| {
        let mut expected: Vec<(String, Vec<(i64, u64)>)> = Vec::new();
        for i in (0..=200).chain(300..500) {
            let mut samples = vec![(NEW, i)];
            if i < 200 && (i % 2 == 0 || i < 40) {
                samples.insert(0, (NEW - 1, i));
            }
            expected.push((i.to_string(), samples));
        }
        expected.sort();
        let found = test.dump().into_iter();
        let found: Vec<_> = found.map(|(labels, samples)| (labels[1].1.clone(), samples)).collect();
        assert_eq!(found, expected);
    };
    check(&test);
    // The log says the same, though it has records of the forgotten ones, too.
    let test = test.restart();
    let stored = test.dump().into_iter().flat_map(|(_, samples)| samples);
    assert_eq!(stored.filter(|(t, _)| *t == NEW).count(), 401);
}

#[test]
fn a_reader_from_before_sees_no_other_series_in_a_slot() {
    let test = TestDb::new(DbOptions::default());
    append(&test, 0..100, OLD);
    let querier = test.db.querier(i64::MIN, i64::MAX);
    let selected = querier.select(&[]).unwrap();
    assert_eq!(forget_before(&test, NEW).series.len(), 100);
    append(&test, 100..400, NEW);
    for series in &selected {
        let mut chunks = Vec::new();
        querier.chunks(series, &mut chunks).unwrap();
        assert!(chunks.is_empty(), "{:?} has {} chunks", series.labels, chunks.len());
    }
    assert_eq!(test.db.head.log.lock().slots.used(), 400);
    drop((querier, selected));
    assert_eq!(test.db.head.drop_before(NEW).series.len(), 0);
    append(&test, 400..450, NEW);
    assert_eq!(test.db.head.log.lock().slots.used(), 400);
    assert_eq!(test.db.series_count(), 350);
}

#[test]
fn nothing_is_lost_while_series_are_forgotten() {
    let test = TestDb::new(DbOptions::default());
    append(&test, 0..20_000, OLD);
    append(&test, (0..20_000).filter(|i| i % 4 == 0), NEW);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (test, is_over) = (&test, &is_over);
    let appended = std::thread::scope(|scope| {
        // Known ones, forgotten ones and new ones, again and again.
        let writers = [0, 1].map(|writer| {
            scope.spawn(move || {
                let mut appended = Vec::new();
                for round in 0.. {
                    let t = NEW + 1 + round;
                    let names: Vec<_> = (0..50)
                        .map(|i| (round as usize * 97 + i * 401) % 21_000 * 2 + writer)
                        .filter(|name| name % 7 != 0)
                        .collect();
                    append(test, names.iter().copied(), t);
                    appended.extend(names.into_iter().map(|name| (name, t)));
                    if is_over.load(Ordering::Relaxed) && round > 20 {
                        return appended;
                    }
                }
                unreachable!()
            })
        });
        let forgotten = forget_before(test, NEW).series.len();
        for _ in 0..20 {
            test.db.head.drop_before(NEW);
        }
        is_over.store(true, Ordering::Relaxed);
        let appended = writers.map(|writer| writer.join().unwrap()).concat();
        // Those that no writer ever names, at least.
        assert!(forgotten > 2000, "{forgotten} series are forgotten");
        appended
    });
    let stored: std::collections::HashSet<(usize, i64)> = test
        .dump()
        .into_iter()
        .flat_map(|(labels, samples)| {
            let name = labels[1].1.parse().unwrap();
            samples.into_iter().map(move |(t, _)| (name, t))
        })
        .collect();
    let lost: Vec<_> = appended.iter().filter(|sample| !stored.contains(*sample)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} are lost: {:?}",
        lost.len(),
        appended.len(),
        &lost[..lost.len().min(5)]
    );
}

#[test]
fn series_of_a_request_that_could_not_be_written_do_not_stay() {
    use crate::disk::faulty::FaultyDisk;
    use crate::tsdb::head::tests::open_on;
    let disk = FaultyDisk::new();
    let db = open_on(&disk, &DbOptions::default());
    let batch = |names: std::ops::Range<usize>| {
        let mut batch = Batch::default();
        for i in names {
            push(&db, &mut batch, &json!([["__name__", "m"], ["i", i.to_string()]]), OLD, 1);
        }
        batch
    };
    assert_eq!(db.append(&batch(0..10)).unwrap().stored, 10);
    disk.limit_bytes(Some(disk.used_bytes()));
    let refused = batch(10..1000);
    assert!(db.append(&refused).is_err());
    assert_eq!(db.series_count(), 1000);
    db.head.forget_refused();
    assert_eq!(db.series_count(), 10);
    // The same request, and one that was looked up in between.
    disk.limit_bytes(None);
    assert_eq!(db.append(&refused).unwrap().stored, 990);
    assert_eq!(db.append(&batch(500..1500)).unwrap().stored, 1000);
    assert_eq!(crate::tsdb::head::tests::dump(&db).len(), 1500);
}
