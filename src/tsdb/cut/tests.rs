use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::disk::faulty::FaultyDisk;
use crate::disk::{Disk, SystemDisk};
use crate::model::HeadSeriesRef;
use crate::model::varint::push_varint;
use crate::tsdb::Begun;
use crate::tsdb::block::tests::read_block;
use crate::tsdb::env::Env;
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::tests::{Series, dump, push, push_recorded};
use crate::tsdb::loading::Loading;
use crate::tsdb::retention::Retention;
use crate::tsdb::wal::record::{self, Record};
use crate::tsdb::wal::repair::open_log;
use crate::tsdb::wal::{Compression, SyncPolicy, Wal, WalMetrics, WalOptions};

const MINUTE: i64 = 60_000;
pub(crate) const HOUR: i64 = 60 * MINUTE;
/// Five minutes after the begin of a range of two hours.
const START: i64 = 1_700_000 * HOUR / 1000 * 1000 / (2 * HOUR) * (2 * HOUR) + 5 * MINUTE;

pub(crate) struct Life {
    disk: Arc<dyn Disk>,
    pub clock: ManualClock,
    pub options: DbOptions,
    dir: std::path::PathBuf,
    db: Option<Arc<Db>>,
}

impl Life {
    pub(crate) fn begin(disk: Arc<dyn Disk>, dir: &std::path::Path) -> Life {
        // Segments of a page, so that a log of some hours has several.
        let options = DbOptions { wal_segment_bytes: 32 << 10, ..DbOptions::default() };
        let clock = ManualClock::at(START);
        let mut life = Life { disk, clock, options, dir: dir.to_owned(), db: None };
        life.open();
        life
    }

    pub(crate) fn open(&mut self) {
        self.db = None;
        let env = Env::new(self.disk.clone(), Arc::new(self.clock.clone()), Registry::new());
        let lock = Db::lock(&*self.disk, &self.dir, &self.options).unwrap();
        self.db = Some(Db::open(&self.dir, lock, self.options.clone(), &env, "t").unwrap().db);
    }

    /// Ends, and begins to open what is on another disk. If it takes writes before its log is read,
    /// it does so from now on.
    pub(crate) fn begin_on(&mut self, disk: Arc<dyn Disk>) -> Begun {
        (self.disk, self.db) = (disk, None);
        let env = Env::new(self.disk.clone(), Arc::new(self.clock.clone()), Registry::new());
        let lock = Db::lock(&*self.disk, &self.dir, &self.options).unwrap();
        let begun = Db::begin_opening(&self.dir, lock, self.options.clone(), &env, "t").unwrap();
        self.db = begun.early();
        begun
    }

    /// Reads its log.
    pub(crate) fn load(&mut self, begun: Begun) {
        let opened = begun.load(&Loading::default()).unwrap();
        opened.db.release_writes();
        self.db = Some(opened.db);
    }

    /// Ends, and goes on with what is on another disk.
    pub(crate) fn open_on(&mut self, disk: Arc<dyn Disk>) {
        self.disk = disk;
        self.open();
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    pub(crate) fn db(&self) -> &Db {
        self.db.as_ref().unwrap()
    }

    /// A sample of each of some series each minute, as the clock goes.
    pub(crate) fn write(&self, series: std::ops::Range<usize>, minutes: i64) {
        for _ in 0..minutes {
            let now = self.clock.now() + MINUTE;
            self.clock.set(now);
            let mut batch = Batch::default();
            for i in series.clone() {
                let labels = json!([["__name__", "m"], ["i", i.to_string()], ["job", "j"]]);
                push(self.db(), &mut batch, &labels, now, (i as i64 * now) as u64);
            }
            assert_eq!(self.db().append(&batch).unwrap().stored, series.len() as u64);
            // Some of the full chunks are in files, and some are not yet.
            if now / MINUTE % 50 == 0 {
                self.db().write_full_chunks().unwrap();
            }
        }
    }

    pub(crate) fn blocks(&self) -> Vec<(i64, i64, u64)> {
        let view = self.db().view.load_full();
        let metas = view.blocks.iter().map(|block| block.meta());
        metas.map(|meta| (meta.min_time, meta.max_time, meta.stats.num_series)).collect()
    }
}

pub(crate) fn in_temp(test: impl FnOnce(Life)) {
    let dir = tempfile::tempdir().unwrap();
    test(Life::begin(Arc::new(SystemDisk), dir.path()));
}

pub(crate) fn sample_count(all: &[Series]) -> usize {
    all.iter().map(|(_, samples)| samples.len()).sum()
}

#[test]
fn a_head_is_cut_when_thanos_cuts_it_and_loses_nothing() {
    in_temp(|mut life| {
        life.write(0..10, 110);
        life.write(5..15, 70);
        // The oldest sample is three hours old, and a minute is missing.
        assert_eq!(life.db().cut_due().unwrap(), 0);
        life.write(5..15, 2);
        let before = dump(life.db());
        assert_eq!(sample_count(&before), 1820);
        assert_eq!(life.db().cut_due().unwrap(), 1);
        let end = START - 5 * MINUTE + 2 * HOUR;
        assert_eq!(life.blocks(), [(START + MINUTE, end, 15)]);
        assert_eq!(dump(life.db()), before);
        // The head has what is behind the block, of the series that still have something.
        assert_eq!(life.db().head_time_range(), Some((end, START + 182 * MINUTE)));
        assert_eq!(life.db().series_count(), 10);
        assert_eq!(life.db().cut_due().unwrap(), 0);
        life.open();
        assert_eq!(dump(life.db()), before);
        assert_eq!(life.db().head_time_range(), Some((end, START + 182 * MINUTE)));
        // It goes on as if nothing had been.
        life.write(0..20, 120);
        assert_eq!(life.db().cut_due().unwrap(), 1);
        assert_eq!(life.blocks()[1], (end, end + 2 * HOUR, 20));
        assert_eq!(sample_count(&dump(life.db())), 1820 + 2400);
    });
}

#[test]
fn a_head_that_was_left_alone_is_cut_into_one_block_a_range() {
    in_temp(|life| {
        life.write(0..3, 10);
        life.clock.set(life.clock.now() + 4 * HOUR);
        life.write(0..3, 10);
        life.clock.set(life.clock.now() + 4 * HOUR);
        let before = dump(life.db());
        let ends: Vec<_> = {
            // The head spans more than three hours until the first is cut.
            assert_eq!(life.db().cut_due().unwrap(), 1);
            assert_eq!(life.db().cut_due().unwrap(), 1);
            life.blocks().iter().map(|(_, end, _)| (end - (START - 5 * MINUTE)) / HOUR).collect()
        };
        assert_eq!(ends, [2, 6]);
        assert_eq!(dump(life.db()), before);
        assert_eq!((life.db().head_time_range(), life.db().series_count()), (None, 0));
    });
}

#[test]
fn a_flush_takes_all_and_late_samples_are_refused_behind_it() {
    in_temp(|mut life| {
        life.write(0..3, 150);
        let before = dump(life.db());
        let now = life.clock.now();
        life.clock.set(now + 1);
        assert_eq!(life.db().flush().unwrap(), 2);
        let end = START - 5 * MINUTE + 2 * HOUR;
        assert_eq!(life.blocks(), [(START + MINUTE, end, 3), (end, now + 1, 3)]);
        assert_eq!(dump(life.db()), before);
        assert_eq!(life.db().head_time_range(), None);
        life.open();
        assert_eq!(dump(life.db()), before);
        assert_eq!(life.db().flush().unwrap(), 0);
        life.write(0..3, 1);
        assert_eq!(sample_count(&dump(life.db())), sample_count(&before) + 3);
    });
}

#[test]
fn the_log_loses_what_blocks_have_and_names_what_it_has() {
    in_temp(|mut life| {
        let log_bytes = |life: &Life| crate::tsdb::bytes_below(&*life.disk, &life.dir.join("wal"));
        let mut longest = 0;
        for round in 0..6 {
            // Other series in each round, and some that stay.
            life.write(round * 100..round * 100 + 100, 60);
            life.write(0..10, 60);
            longest = longest.max(log_bytes(&life));
            life.db().cut_due().unwrap();
        }
        assert!(log_bytes(&life) < longest, "{} of {longest} bytes", log_bytes(&life));
        let before = dump(life.db());
        assert_eq!(sample_count(&before), 6 * (6000 + 600));
        let env = Env::new(life.disk.clone(), Arc::new(life.clock.clone()), Registry::new());
        life.db = None;
        let lock = Db::lock(&*life.disk, &life.dir, &life.options).unwrap();
        let opened = Db::open(&life.dir, lock, life.options.clone(), &env, "t").unwrap();
        // A sample of a forgotten series that is still in the log has its series there.
        assert_eq!((opened.replay.unknown_refs, opened.log.damage_count), (0, 0));
        life.db = Some(opened.db);
        assert!(dump(life.db()) == before);
        // A flushed head needs no log.
        life.clock.set(life.clock.now() + 1);
        life.db().flush().unwrap();
        assert!(dump(life.db()) == before);
        assert_eq!((life.db().series_count(), life.db().head_time_range()), (0, None));
        life.open();
        assert!(dump(life.db()) == before);
        assert_eq!(life.db().series_count(), 0);
        assert!(log_bytes(&life) < 32 << 10);
    });
}

/// What this process wrote is not read again for a log of which nothing is kept; what it found is.
#[test]
fn a_flush_reads_only_what_others_wrote_of_the_log() {
    let disk = FaultyDisk::new();
    let mut life = Life::begin(Arc::new(disk.clone()), std::path::Path::new("/db/t"));
    life.write(0..200, 5);
    life.clock.set(life.clock.now() + 1);
    let wal = std::path::Path::new("/db/t/wal");
    let segments = || disk.list(wal).unwrap().into_iter().map(|entry| wal.join(entry.name));
    for segment in segments() {
        disk.fail_reads(&segment, std::io::ErrorKind::Other);
    }
    let before = sample_count(&dump(life.db()));
    life.db().flush().unwrap();
    assert!(disk.list(wal).unwrap().iter().any(|entry| entry.is_dir), "there is a checkpoint");
    life.open();
    assert_eq!(sample_count(&dump(life.db())), before);
    // Now of a log that was there before.
    life.write(0..200, 5);
    life.open();
    life.clock.set(life.clock.now() + 1);
    let of_before: Vec<_> = segments().collect();
    for segment in of_before {
        disk.fail_reads(&segment, std::io::ErrorKind::Other);
    }
    let checkpoints = || disk.list(wal).unwrap().into_iter().filter(|entry| entry.is_dir);
    let checkpoint: Vec<_> = checkpoints().collect();
    life.db().flush().unwrap();
    assert_eq!(checkpoints().collect::<Vec<_>>(), checkpoint, "it waits for what cannot be read");
}

#[test]
fn a_reader_that_began_before_finds_all_until_it_ends() {
    in_temp(|life| {
        life.write(0..300, 5);
        life.clock.set(life.clock.now() + 4 * HOUR);
        let before = dump(life.db());
        let querier = life.db().querier(i64::MIN, i64::MAX);
        let selected = querier.select(&[]).unwrap();
        assert_eq!(life.db().cut_due().unwrap(), 1);
        assert!(!life.db().drop_cut(), "somebody still reads");
        let mut chunks = Vec::new();
        for series in &selected {
            let count = chunks.len();
            querier.chunks(series, &mut chunks).unwrap();
            assert_eq!(chunks.len(), count + 1);
        }
        // Those that begin now find each sample once.
        assert_eq!(dump(life.db()), before);
        assert_eq!(
            life.db().querier(i64::MIN, i64::MAX).label_values(b"i", &[]).unwrap().len(),
            300
        );
        drop((querier, selected));
        assert!(life.db().drop_cut());
        assert_eq!(life.db().series_count(), 0);
        assert_eq!(dump(life.db()), before);
    });
}

/// What a start finds, however the process ended.
pub(crate) fn restarted(life: &Life, disk: FaultyDisk) -> Life {
    let mut again = Life {
        disk: Arc::new(disk),
        clock: life.clock.clone(),
        options: life.options.clone(),
        dir: life.dir.clone(),
        db: None,
    };
    again.open();
    again
}

#[test]
fn at_whatever_operation_a_cut_fails_or_ends_nothing_is_lost_and_a_later_one_succeeds() {
    for operation in 0.. {
        let disk = FaultyDisk::new();
        let mut life = Life::begin(Arc::new(disk.clone()), std::path::Path::new("/db/t"));
        life.write(0..5, 110);
        life.db().sync_handle().sync().unwrap();
        life.clock.set(life.clock.now() + 2 * HOUR);
        let before = dump(life.db());
        disk.fail_all_operations(operation);
        let is_cut = life.db().cut_due().is_ok();
        let context = format!("operation {operation}, cut: {is_cut}");
        assert_eq!(dump(life.db()), before, "{context}");
        for (disk, end) in [(disk.after_kill(), "killed"), (disk.after_power_cut(), "power cut")] {
            let again = restarted(&life, disk);
            assert_eq!(dump(again.db()), before, "{context}, {end}");
            let _ = again.db().cut_due().unwrap();
            assert_eq!(dump(again.db()), before, "{context}, {end} and cut");
            assert_eq!(again.db().head_time_range(), None, "{context}, {end} and cut");
        }
        // The same with one operation that fails, and the process going on.
        let disk = FaultyDisk::new();
        life = Life::begin(Arc::new(disk.clone()), std::path::Path::new("/db/t"));
        life.write(0..5, 110);
        life.clock.set(life.clock.now() + 2 * HOUR);
        disk.fail_operation(operation, std::io::ErrorKind::Other, 0);
        let is_cut = life.db().cut_due().is_ok();
        let has_failed = disk.pending_faults() == 0;
        if !has_failed {
            assert!(is_cut && operation > 10, "a cut has {operation} operations");
            return;
        }
        life.write(0..5, 1);
        let before = dump(life.db());
        assert_eq!(sample_count(&before), 555, "{context}");
        life.open();
        assert_eq!(dump(life.db()), before, "{context}, reopened");
        let _ = life.db().flush().unwrap();
        assert_eq!(dump(life.db()), before, "{context}, reopened and flushed");
        life.open();
        assert_eq!(dump(life.db()), before, "{context}, flushed and reopened");
    }
}

/// `tests/data/tsdb/compaction/head`: samples, and the blocks that Prometheus cut of them.
#[test]
fn blocks_are_byte_for_byte_what_prometheus_cuts() {
    let data = std::path::Path::new("tests/data/tsdb/compaction/head");
    for name in ["floats", "histograms", "ranges", "restarts", "unaligned"] {
        let case = std::fs::read(data.join(format!("{name}.json"))).unwrap();
        let case: serde_json::Value = serde_json::from_slice(&case).unwrap();
        in_temp(|life| {
            life.clock.set(i64::MAX / 2);
            let mut samples = Vec::new();
            for series in case["series"].as_array().unwrap() {
                let of_series = series["samples"].as_array().unwrap().iter();
                samples.extend(of_series.map(|sample| (sample, &series["labels"])));
            }
            samples.sort_by_key(|(sample, _)| sample[0].as_i64());
            for (sample, labels) in samples {
                let mut batch = Batch::default();
                push_recorded(life.db(), &mut batch, labels, sample);
                assert_eq!(life.db().append(&batch).unwrap().stored, 1);
            }
            let blocks = case["blocks"].as_array().unwrap();
            for (step, expected) in case["steps"].as_array().unwrap().iter().zip(blocks) {
                let (start, end) = (step[1].as_i64().unwrap(), step[2].as_i64().unwrap() + 1);
                let span = Span { start, end };
                assert!(life.db().cut(&mut life.db().cutting.lock(), span).unwrap());
                let view = life.db().view.load_full();
                let block = view.blocks.last().unwrap();
                let recorded = data.join(name).join(expected["ulid"].as_str().unwrap());
                for file in ["index", "chunks/000001", "tombstones"] {
                    let [ours, theirs] =
                        [block.dir(), &recorded].map(|dir| std::fs::read(dir.join(file)).unwrap());
                    if ours != theirs && file == "chunks/000001" {
                        assert_only_open_chunks_say_more(block.dir(), &recorded);
                        continue;
                    }
                    assert!(ours == theirs, "{name}: {file} of {span:?}");
                }
                let stats = serde_json::to_value(block.meta().stats).unwrap();
                assert_eq!(stats, expected["stats"], "{name}");
            }
            let series = case["head_after"]["series"].as_u64().unwrap();
            assert_eq!(life.db().series_count() as u64, series, "{name}");
        });
    }
}

/// Prometheus encodes a chunk anew that is open when it is cut, and what it said of resets is gone.
fn assert_only_open_chunks_say_more(ours: &std::path::Path, theirs: &std::path::Path) {
    let chunks = |dir| read_block(&SystemDisk, dir).unwrap().series;
    let mut differing = 0;
    for (ours, theirs) in chunks(ours).iter().zip(&chunks(theirs)) {
        let count = theirs.chunks.len();
        for (i, ((meta, ours), (_, theirs))) in ours.chunks.iter().zip(&theirs.chunks).enumerate() {
            let mut ours = ours.clone();
            if ours != *theirs {
                let is_last = i + 1 == count;
                assert!(is_last && theirs.bytes[2] == 0, "not an open chunk: {meta:?}");
                ours.bytes[2] = 0;
                differing += 1;
            }
            assert!(ours == *theirs, "{meta:?}");
        }
    }
    assert_eq!(differing, 1);
}

#[test]
fn series_come_in_order_whatever_their_labels() {
    in_temp(|life| {
        let now = life.clock.now();
        let mut batch = Batch::default();
        // Of seven labels each is there with one of two values or not: many begin alike, some with
        // all of another's labels. Not in their order.
        let count = 3usize.pow(7);
        for i in (0..count).map(|i| i * 1000 % count) {
            let digits = (0..7).map(|at| (at, i / 3usize.pow(at) % 3));
            let labels: Vec<_> = [json!(["a", "b"])]
                .into_iter()
                .chain(
                    digits
                        .filter(|(_, digit)| *digit > 0)
                        .map(|(at, digit)| json!([format!("n{at}"), format!("v{digit}")])),
                )
                .collect();
            push(life.db(), &mut batch, &json!(labels), now, 1);
        }
        life.db().append(&batch).unwrap();
        life.clock.set(now + 4 * HOUR);
        let before = dump(life.db());
        // The writer refuses what is not in order.
        assert_eq!(life.db().cut_due().unwrap(), 1);
        assert_eq!(life.blocks()[0].2, count as u64);
        assert_eq!(dump(life.db()), before);
    });
}

#[test]
fn returned_series_outlives_two_restarts() {
    in_temp(|mut life| {
        life.write(0..300, 60);
        life.write(10..300, 122);
        assert_eq!(life.db().cut_due().unwrap(), 1);
        assert_eq!(life.db().series_count(), 290);
        life.write(0..300, 78);
        life.open();
        life.write(0..300, 45);
        assert_eq!(life.db().cut_due().unwrap(), 1);
        let before = dump(life.db());
        life.open();
        let after = dump(life.db());
        assert_eq!(sample_count(&after), sample_count(&before));
    });
}

#[test]
fn a_reader_from_before_a_deletion_reads_on_behind_a_cut() {
    in_temp(|mut life| {
        life.options.retention = Retention { age_max: Some(5 * HOUR), bytes_max: None };
        life.open();
        life.write(0..3, 12 * 60);
        assert_eq!(life.db().cut_due().unwrap(), 5);
        let all = sample_count(&dump(life.db()));
        let begun = life.clock.now();
        let querier = life.db().querier(i64::MIN, i64::MAX);
        let selected = querier.select(&[]).unwrap();
        assert_eq!(life.db().drop_expired(|_| true).unwrap(), 2);
        life.write(0..3, 130);
        assert_eq!(life.db().cut_due().unwrap(), 1);
        let mut chunks = Vec::new();
        selected.iter().for_each(|series| querier.chunks(series, &mut chunks).unwrap());
        let samples = chunks
            .iter()
            .flat_map(|chunk| crate::tsdb::chunkenc::xor::XorIterator::new(&chunk.bytes))
            .filter(|sample| sample.as_ref().unwrap().0 <= begun)
            .count();
        assert!(samples >= all, "{samples} of {all}");
    });
}

#[test]
fn a_second_cut_while_a_reader_holds_the_head_takes_no_sample_twice() {
    in_temp(|life| {
        life.write(0..3, 150);
        let querier = life.db().querier(i64::MIN, i64::MAX);
        assert_eq!(life.db().cut_settled().unwrap(), 1);
        life.clock.set(life.clock.now() + 1);
        life.db().flush().unwrap();
        let view = life.db().view.load_full();
        let in_blocks: u64 = view.blocks.iter().map(|block| block.meta().stats.num_samples).sum();
        assert_eq!(in_blocks, 450, "{:?}", life.blocks());
        drop(querier);
    });
}

#[test]
fn a_floor_is_recorded_only_of_what_blocks_have() {
    let mut lost = Vec::new();
    for operation in 0..60 {
        for gap in 1..5 {
            let disk = FaultyDisk::new();
            let mut life = Life::begin(Arc::new(disk.clone()), std::path::Path::new("/db/t"));
            life.options.retention = Retention { age_max: None, bytes_max: Some(1) };
            life.open();
            life.write(0..2, 182);
            assert_eq!(life.db().cut_due().unwrap(), 1);
            life.write(0..2, 120);
            disk.fail_operation(operation, std::io::ErrorKind::Other, 0);
            disk.fail_operation(operation + gap, std::io::ErrorKind::Other, 0);
            let is_cut = life.db().cut_due().is_ok();
            if is_cut || life.db().drop_expired(|_| true).is_err() {
                continue;
            }
            let before = dump(life.db());
            let again = restarted(&life, disk.after_kill());
            if dump(again.db()) != before {
                lost.push((operation, gap, sample_count(&before), sample_count(&dump(again.db()))));
            }
        }
    }
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn a_block_that_somebody_removed_keeps_no_other() {
    in_temp(|mut life| {
        life.options.retention = Retention { age_max: Some(5 * HOUR), bytes_max: None };
        life.open();
        life.write(0..3, 12 * 60);
        assert_eq!(life.db().cut_due().unwrap(), 5);
        let dir = life.db().view.load().blocks[0].dir().to_owned();
        std::fs::remove_dir_all(dir).unwrap();
        let gone: Vec<_> = (0..3)
            .map(|_| life.db().drop_expired(|_| true).map_err(|err| crate::error::chain(&err)))
            .collect();
        assert!(gone.iter().any(Result::is_ok), "{gone:?}");
    });
}

#[test]
fn a_gap_is_not_walked_while_a_reader_holds_the_head() {
    let disk = FaultyDisk::new();
    let life = Life::begin(Arc::new(disk.clone()), std::path::Path::new("/db/t"));
    let mut batch = Batch::default();
    push(life.db(), &mut batch, &json!([["__name__", "old"]]), START - 400 * HOUR, 1);
    assert_eq!(life.db().append(&batch).unwrap().stored, 1);
    life.write(0..2, 5);
    let querier = life.db().querier(i64::MIN, i64::MAX);
    let before = disk.operations();
    let (asker, stop) = crate::model::stop::pair();
    drop(asker);
    let first = disk.operations();
    let cut = stop.run(|| life.db().cut_due());
    let asked = disk.operations() - first;
    let cut_again = life.db().cut_due();
    let operations = disk.operations() - before;
    assert!(
        operations < 100,
        "{operations} ({asked} after being asked to stop: {cut:?}), {cut_again:?}"
    );
    drop(querier);
}

/// What stays behind a cut that failed would have its samples once more when they are cut again.
#[test]
fn a_block_that_cannot_be_taken_away_is_before_the_next_cut() {
    let (disk, dir) = (FaultyDisk::new(), std::path::Path::new("/db/t"));
    let life = Life::begin(Arc::new(disk.clone()), dir);
    life.write(0..3, 182);
    let before = dump(life.db());
    let blocks = || -> Vec<Ulid> {
        let entries = disk.list(dir).unwrap();
        entries.iter().filter_map(|entry| entry.name.to_str()?.parse().ok()).collect()
    };
    let gone = disk.clone();
    disk.once_renamed(move || gone.refuse_changes(dir, std::io::ErrorKind::Other));
    life.db().cut_due().unwrap_err();
    let left = blocks();
    assert_eq!(left.len(), 1);
    assert!(!life.db().is_settled(left[0]));
    // A start finds it, and each sample once.
    let again = restarted(&life, disk.after_kill());
    assert_eq!(dump(again.db()), before);
    // As long as it is there nothing is cut.
    life.db().cut_due().unwrap_err();
    assert_eq!(blocks(), left);
    disk.allow_changes(dir);
    assert_eq!(life.db().cut_due().unwrap(), 1);
    let made = blocks();
    assert!(made.len() == 1 && made != left);
    assert!(life.db().is_settled(made[0]));
    assert_eq!(dump(life.db()), before);
}

/// A time before 1970 would keep the head of its tenant from ever being cut.
#[test]
fn a_head_with_negative_times_is_cut_as_well() {
    in_temp(|mut life| {
        let mut batch = Batch::default();
        for (i, t) in [(0, -5 * HOUR), (1, -1), (2, 0)] {
            push(life.db(), &mut batch, &json!([["__name__", "old"], ["i", i.to_string()]]), t, 1);
        }
        assert_eq!(life.db().append(&batch).unwrap().stored, 3);
        life.write(0..2, 182);
        let before = dump(life.db());
        assert_eq!(life.db().cut_due().unwrap(), 4);
        let ranges: Vec<_> = life.blocks().iter().map(|(from, to, _)| (*from, *to)).collect();
        let end = START - 5 * MINUTE + 2 * HOUR;
        let old = [(-5 * HOUR, -4 * HOUR), (-1, 0), (0, 2 * HOUR)];
        assert_eq!((&ranges[..3], &ranges[3..]), (&old[..], &[(START + MINUTE, end)][..]));
        assert_eq!(dump(life.db()), before);
        life.open();
        assert_eq!(dump(life.db()), before);
    });
}

/// Half of a full disk is a log that was not cut.
#[tokio::test(start_paused = true)]
async fn a_log_that_could_not_be_cut_is_cut_after_a_minute_and_not_before() {
    let (disk, dir) = (FaultyDisk::new(), std::path::Path::new("/db/t"));
    let life = Life::begin(Arc::new(disk.clone()), dir);
    life.write(0..100, 182);
    let before = dump(life.db());
    let names = || -> Vec<String> {
        let entries = disk.list(&dir.join("wal")).unwrap();
        entries.iter().map(|entry| entry.name.to_string_lossy().into_owned()).collect()
    };
    let has_checkpoint = || names().iter().any(|name| name.starts_with("checkpoint."));
    let reader = life.db().querier(i64::MIN, i64::MAX);
    assert_eq!(life.db().cut_due().unwrap(), 1);
    drop(reader);
    disk.refuse_changes(&dir.join("wal"), std::io::ErrorKind::StorageFull);
    assert!(life.db().drop_cut());
    disk.allow_changes(&dir.join("wal"));
    let full = names();
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(life.db().drop_cut());
    assert_eq!(names(), full);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(life.db().drop_cut());
    assert!(has_checkpoint() && !names().contains(&full[0]), "{:?}", names());
    // Once is enough.
    let cut = names();
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert!(life.db().drop_cut());
    assert_eq!(names(), cut);
    assert_eq!(dump(restarted(&life, disk.after_kill()).db()), before);
}

fn log_bytes(life: &Life) -> u64 {
    crate::tsdb::bytes_below(&*life.disk, &life.dir.join("wal"))
}

#[test]
fn the_log_loses_what_sealed_head_chunks_have() {
    let disk = FaultyDisk::new();
    let mut lives = [false, true].map(|wal_by_coverage| {
        let dir = std::path::PathBuf::from(format!("/db/{wal_by_coverage}"));
        let mut life = Life::begin(Arc::new(disk.clone()), &dir);
        life.options.wal_by_coverage = wal_by_coverage;
        life.open();
        // One is slow: its samples stay in the log.
        life.write(100..101, 2);
        life.write(0..400, 125);
        life.db().write_full_chunks().unwrap();
        life.db().drop_cut();
        life
    });
    let [with_all, with_rest] = lives.each_ref().map(log_bytes);
    assert!(with_rest * 4 < with_all, "{with_rest} of {with_all} bytes");
    let before = dump(lives[0].db());
    assert_eq!(sample_count(&before), 2 + 400 * 125);
    let life = &mut lives[1];
    for end in ["closed", "killed", "power cut"] {
        let disk = match end {
            "closed" => {
                life.db().close().unwrap();
                disk.after_kill()
            }
            "killed" => disk.after_kill(),
            _ => disk.after_power_cut(),
        };
        life.open_on(Arc::new(disk));
        assert!(dump(life.db()) == before, "{end}");
    }
    // It goes on: cut by blocks, and covered again.
    life.write(0..400, 130);
    life.write(100..101, 1);
    assert_eq!(life.db().cut_due().unwrap(), 1);
    let before = dump(life.db());
    assert_eq!(sample_count(&before), 2 + 400 * 255 + 1);
    life.open();
    assert!(dump(life.db()) == before);
    life.write(0..400, 130);
    life.db().write_full_chunks().unwrap();
    let longest = log_bytes(life);
    life.db().drop_cut();
    assert!(log_bytes(life) * 2 < longest, "{} of {longest} bytes", log_bytes(life));
    assert_eq!(sample_count(&dump(life.db())), sample_count(&before) + 400 * 130);
    // A damaged chunk costs what it holds, and nothing else.
    let path = life.dir.join("chunks_head");
    let newest = life.disk.list(&path).unwrap().into_iter().map(|entry| entry.name).max().unwrap();
    let file = life.disk.open_write(&path.join(newest)).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, 40).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 40).unwrap();
    let expected = sample_count(&before) + 400 * 130;
    life.open();
    let lost = expected - sample_count(&dump(life.db()));
    assert!((1..=120).contains(&lost), "{lost}");
    // Nor does it keep the head from being cut.
    let before = dump(life.db());
    life.clock.set(life.clock.now() + 4 * HOUR);
    assert!(life.db().cut_due().unwrap() > 0);
    assert!(dump(life.db()) == before);
}

#[test]
fn at_whatever_operation_the_log_loses_head_chunks_nothing_is_lost() {
    for operation in 0.. {
        let disk = FaultyDisk::new();
        let begin = |disk: &FaultyDisk| {
            let mut life = Life::begin(Arc::new(disk.clone()), std::path::Path::new("/db/t"));
            life.options.wal_by_coverage = true;
            life.open();
            life.write(0..20, 125);
            life.db().sync_handle().sync().unwrap();
            life
        };
        let life = begin(&disk);
        let before = dump(life.db());
        disk.fail_all_operations(operation);
        let _ = life.db().write_full_chunks();
        life.db().drop_cut();
        assert!(dump(life.db()) == before, "operation {operation}");
        for (disk, end) in [(disk.after_kill(), "killed"), (disk.after_power_cut(), "power cut")] {
            let mut again = restarted(&life, disk.clone());
            let context = format!("operation {operation}, {end}");
            assert!(dump(again.db()) == before, "{context}");
            let _ = again.db().write_full_chunks().unwrap();
            again.db().drop_cut();
            again.open_on(Arc::new(disk.after_power_cut()));
            assert!(dump(again.db()) == before, "{context}, and covered");
        }
        // The same with one operation that fails, and the process going on.
        let disk = FaultyDisk::new();
        let mut life = begin(&disk);
        disk.fail_operation(operation, std::io::ErrorKind::Other, 0);
        let _ = life.db().write_full_chunks();
        life.db().drop_cut();
        if disk.pending_faults() > 0 {
            assert!(operation > 10, "{operation}");
            let wal = disk.list(std::path::Path::new("/db/t/wal")).unwrap();
            assert!(wal.iter().any(|entry| entry.is_dir), "there is a checkpoint");
            return;
        }
        life.write(0..20, 125);
        let _ = life.db().write_full_chunks();
        life.db().drop_cut();
        life.db().sync_handle().sync().unwrap();
        let before = dump(life.db());
        assert_eq!(sample_count(&before), 20 * 250, "operation {operation}");
        life.open_on(Arc::new(disk.after_power_cut()));
        assert!(dump(life.db()) == before, "operation {operation}, went on");
    }
}

/// What a log of which nothing was kept had is not counted any more.
#[test]
fn a_log_is_covered_again_after_the_head_was_empty() {
    let mut life = Life::begin(Arc::new(FaultyDisk::new()), std::path::Path::new("/db/t"));
    life.options.wal_by_coverage = true;
    life.open();
    life.write(0..200, 300);
    life.clock.set(life.clock.now() + 1);
    assert!(life.db().flush().unwrap() > 0);
    assert_eq!((life.db().head_time_range(), samples_in_log(&life).len()), (None, 0));
    // Chunks end with the range, so that some are shorter.
    life.write(0..200, 240);
    life.db().write_full_chunks().unwrap();
    life.db().drop_cut();
    let counts = samples_in_log(&life);
    let left: usize = counts.values().sum();
    assert!(left < 200 * 240 / 2, "{left}");
}

/// Ends, and begins again behind what another program wrote into the log.
fn reopen_behind(life: &mut Life, records: &[Vec<u8>]) {
    life.db().close().unwrap();
    life.db = None;
    let options = WalOptions {
        segment_bytes: 32 << 10,
        compression: Compression::None,
        sync: SyncPolicy::Always,
    };
    let metrics = WalMetrics::new(&Registry::new(), "t");
    let mut wal = Wal::open(life.disk.clone(), &life.dir.join("wal"), options, metrics).unwrap();
    let records: Vec<_> = records.iter().map(Vec::as_slice).collect();
    let _ = wal.append(&records).unwrap();
    wal.close().unwrap();
    life.open();
}

/// How many samples of each ref the log has.
fn samples_in_log(life: &Life) -> std::collections::BTreeMap<u64, usize> {
    let mut counts = std::collections::BTreeMap::new();
    let metrics = WalMetrics::new(&Registry::new(), "t");
    open_log(&*life.disk, &life.dir.join("wal"), &metrics, |found| {
        if let Record::Samples(samples) = found.record {
            samples.for_each(|sample| *counts.entry(sample.series_ref.0).or_default() += 1);
        }
    })
    .unwrap();
    counts
}

/// Where a log names a series anew, Prometheus forgets the chunks in files that it found for it.
#[test]
fn a_series_with_two_refs_keeps_its_samples_in_the_log() {
    let mut life = Life::begin(Arc::new(FaultyDisk::new()), std::path::Path::new("/db/t"));
    life.options.wal_by_coverage = true;
    life.write(0..200, 125);
    let mut named = Vec::new();
    record::begin_series(&mut named);
    let labels = [("__name__", "m"), ("i", "0"), ("job", "j")];
    let labels = labels.into_iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    record::push_series(&mut named, HeadSeriesRef(1000), labels);
    reopen_behind(&mut life, &[named]);
    life.db().write_full_chunks().unwrap();
    life.db().drop_cut();
    let counts = samples_in_log(&life);
    assert_eq!((counts[&1], counts.len()), (125, 200), "{counts:?}");
    assert!(counts.iter().all(|(series, count)| *series == 1 || *count < 60), "{counts:?}");
}

#[test]
fn what_others_deleted_does_not_come_between_what_files_have() {
    let tombstone = |series_ref: u64, mint: i64, maxt: i64| {
        let mut record = vec![3];
        record.extend(series_ref.to_be_bytes());
        for t in [mint, maxt] {
            push_varint(&mut record, (t as u64) << 1);
        }
        record
    };
    let mut life = Life::begin(Arc::new(FaultyDisk::new()), std::path::Path::new("/db/t"));
    life.options.wal_by_coverage = true;
    life.write(0..200, 125);
    let end = life.clock.now();
    // Of one series what is in no file, of another one all.
    let last_deleted = tombstone(1, end - 30 * MINUTE, end);
    reopen_behind(&mut life, &[last_deleted, tombstone(2, 0, end)]);
    let write_at = |life: &Life, i: usize, t: i64| {
        let mut batch = Batch::default();
        let labels = json!([["__name__", "m"], ["i", i.to_string()], ["job", "j"]]);
        push(life.db(), &mut batch, &labels, t, 1);
        life.db().append(&batch).unwrap().stored
    };
    assert_eq!(write_at(&life, 0, end - 40 * MINUTE), 0, "it is out of order");
    assert_eq!(write_at(&life, 1, end - 40 * MINUTE), 1, "nothing is there");
    for _ in 0..3 {
        life.write(0..200, 125);
        life.db().write_full_chunks().unwrap();
        life.db().drop_cut();
        let before = dump(life.db());
        life.open();
        assert!(dump(life.db()) == before);
    }
    let count = |i: usize| dump(life.db())[i].1.len();
    assert_eq!(count(1), 1 + 3 * 125);
    assert!((375 + 90..375 + 96).contains(&count(0)), "{}", count(0));
}
