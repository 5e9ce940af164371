//! A life of a database by chance, against a map: writes of floats, histograms and markers, late
//! repeats, full chunks into files, cuts, deletions, blocks made of blocks, operations that fail, kills
//! and power cuts; in every second one the log loses what sealed files have, and starts take writes
//! before they have read the log. What was acknowledged is there, and nothing else.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::json;

use crate::clock::Clock as _;
use crate::disk::faulty::FaultyDisk;
use crate::model::STALE_NAN_BITS;
use crate::model::TimeRange;
use crate::model::histogram::recorded::digest;
use crate::model::histogram::{AnyHistogram, Histogram, Layout, ResetHint, Span};
use crate::model::matcher::{MatchOp, Matcher};
use crate::tsdb::Db;
use crate::tsdb::block::merge::MergeError;
use crate::tsdb::block::meta::BlockMeta;
use crate::tsdb::block::tombstones::Tombstones;
use crate::tsdb::cut::tests::{HOUR, Life};
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::tests::{Series, dump, number_of_series, push};
use crate::tsdb::source::Source as _;

/// Numbers that depend on their seed alone.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

struct Model {
    life: Life,
    disk: FaultyDisk,
    numbers: Numbers,
    /// By series, time to sample.
    samples: BTreeMap<u64, BTreeMap<i64, Sample>>,
    /// Batches that were stored before the log was read.
    early: u64,
}

/// What was written: everything else follows from its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    kind: u64,
    v: u64,
}

/// Kinds of samples; series of floats are the most.
const KINDS: u64 = 7;

impl Sample {
    fn histogram(self, t: i64) -> Option<AnyHistogram> {
        let Sample { kind, v } = self;
        // Counts rise, but where buckets come and go.
        let count = (t / 1000) as u64 % 100_000;
        let layout = Layout {
            positive_spans: vec![Span { offset: v as i32, length: 2 }],
            ..Layout::default()
        };
        let sum = v as f64;
        let reset_hint = if kind == 2 { ResetHint::Gauge } else { ResetHint::Unknown };
        match kind {
            0..3 => Some(AnyHistogram::Integer(Histogram {
                reset_hint,
                layout,
                count,
                sum,
                positive: vec![count as i64, -(count as i64)],
                ..Histogram::default()
            })),
            3 => Some(AnyHistogram::Float(Histogram {
                layout,
                count: count as f64,
                sum,
                positive: vec![0.0, count as f64],
                ..Histogram::default()
            })),
            _ => None,
        }
    }

    /// Bits of a float.
    fn bits(self) -> u64 {
        if self.kind == 4 { STALE_NAN_BITS } else { self.v }
    }

    fn push(self, db: &Db, batch: &mut Batch, series: u64, t: i64) {
        match self.histogram(t) {
            Some(histogram) => {
                let number = number_of_series(db, batch, &Model::labels(series));
                batch.push_histogram(number, t, histogram);
            }
            None => push(db, batch, &Model::labels(series), t, self.bits()),
        }
    }

    /// As a dump has it.
    fn number(self, t: i64) -> u64 {
        self.histogram(t).map_or_else(|| self.bits(), |histogram| digest(&histogram))
    }
}

impl Model {
    fn begin(seed: u64) -> Model {
        let disk = FaultyDisk::new();
        let mut life = Life::begin(Arc::new(disk.clone()), "/db/t".as_ref());
        life.options.wal_by_coverage = seed.is_multiple_of(2);
        // Their logs are short.
        life.options.wal_looked_at_bytes = 512;
        life.open();
        Model { life, disk, numbers: Numbers(seed), samples: BTreeMap::new(), early: 0 }
    }

    fn labels(series: u64) -> serde_json::Value {
        json!([["__name__", "m"], ["series", series.to_string()]])
    }

    /// Some rounds, each a step later, of some series.
    fn write(&mut self) {
        let kinds = [(); 5].map(|()| self.numbers.below(KINDS));
        self.write_kinds(kinds, 20);
    }

    /// What series have: another kind would wait until the log is read.
    fn kinds(&self) -> [u64; 5] {
        [0, 1, 2, 3, 4].map(|series| {
            let samples = self.samples.get(&series);
            // A marker is of the kind of what it ends.
            let mut kinds = samples.into_iter().flatten().rev().map(|(_, sample)| sample.kind);
            kinds.find(|kind| *kind != 4).unwrap_or(5)
        })
    }

    /// One in `others_in` is of another kind.
    fn write_kinds(&mut self, kinds: [u64; 5], others_in: u64) {
        let step = [1_000, 15_000, 60_000, HOUR * 2][self.numbers.below(4) as usize];
        let rounds = if step == HOUR * 2 { 2 } else { self.numbers.below(200) as i64 };
        for _ in 0..rounds {
            let now = self.life.clock.now() + step;
            self.life.clock.set(now);
            let mut batch = Batch::default();
            let mut written = Vec::new();
            for series in 0..5 {
                if self.numbers.below(4) > 0 {
                    let v = self.numbers.below(3);
                    let kind = match self.numbers.below(others_in) {
                        0 => self.numbers.below(KINDS),
                        _ => kinds[series as usize],
                    };
                    let sample = Sample { kind, v };
                    sample.push(self.life.db(), &mut batch, series, now);
                    written.push((series, sample));
                }
            }
            // A disk that fails takes none of it.
            if let Ok(report) = self.life.db().append(&batch) {
                assert_eq!(report.stored, written.len() as u64, "{report:?}");
                for (series, sample) in written {
                    self.samples.entry(series).or_default().insert(now, sample);
                }
            }
        }
    }

    /// A sample that is stored comes again, and another one at its time.
    fn repeat(&mut self) {
        let series = self.numbers.below(5);
        let Some(samples) = self.samples.get(&series).filter(|samples| !samples.is_empty()) else {
            return;
        };
        let at = self.numbers.below(samples.len() as u64) as usize;
        let (t, sample) = samples.iter().nth(at).map(|(t, sample)| (*t, *sample)).unwrap();
        // Below the floor it may be found: while a cut that failed could not be taken back.
        let in_head = t >= self.life.db().head.floor();
        let other = match sample.kind {
            4 => Sample { kind: 5, v: 1 },
            kind => Sample { kind, v: sample.v + 1 },
        };
        let of_other_kind = Sample { kind: if sample.kind < 3 { 3 } else { 1 }, ..sample };
        let all = [(sample, u64::from(in_head)..=1), (other, 0..=0), (of_other_kind, 0..=0)];
        for (sent, stored) in all {
            let mut batch = Batch::default();
            sent.push(self.life.db(), &mut batch, series, t);
            if let Ok(report) = self.life.db().append(&batch) {
                assert!(stored.contains(&report.stored), "{series} at {t}: {report:?}");
            }
        }
    }

    fn step(&mut self) {
        match self.numbers.below(18) {
            0..4 => self.write(),
            4 => self.repeat(),
            5 | 6 => drop(self.life.db().write_full_chunks()),
            7 => drop(self.life.db().cut_due()),
            8 => drop(self.life.db().cut_settled()),
            9 => {
                self.life.clock.set(self.life.clock.now() + 1);
                drop(self.life.db().flush());
            }
            10 => {
                let after = self.numbers.below(30);
                let torn = self.numbers.below(2000) as usize;
                self.disk.fail_operation(after, std::io::ErrorKind::StorageFull, torn);
            }
            11 | 12 => _ = self.life.db().drop_cut(),
            13 => drop(self.life.db().compact()),
            14 | 15 => self.delete(),
            16 => drop(self.rewrite()),
            _ => self.restart(),
        }
    }

    /// Deletes a part of a series from a block, as a Prometheus does that has the directory
    /// meanwhile: of what a start finds, which is not what is read while a block that failed could
    /// not be taken away.
    fn delete(&mut self) {
        self.restart();
        let blocks = self.life.db().view.load().blocks.clone();
        if blocks.is_empty() {
            return;
        }
        let block = &blocks[self.numbers.below(blocks.len() as u64) as usize];
        let series = self.numbers.below(5);
        let matcher = Matcher::new(MatchOp::Equal, b"series", series.to_string().as_bytes());
        let all = TimeRange { mint: i64::MIN, maxt: i64::MAX };
        let mut found = None;
        block
            .select(&[matcher.unwrap()], all, &mut |series| {
                found = Some(series.series.0);
                ControlFlow::Continue(())
            })
            .unwrap();
        let Some(place) = found else { return };
        let BlockMeta { min_time, max_time, .. } = *block.meta();
        let len = (max_time - min_time) as u64;
        let mint = min_time + self.numbers.below(len) as i64;
        let span = TimeRange { mint, maxt: mint + self.numbers.below(len) as i64 };
        let spans = block.tombstones().iter().chain([(place, span)]).collect();
        Tombstones::from_spans(spans).write(&self.disk, block.dir()).unwrap();
        self.restart();
        let is_deleted = |t: &i64| span.overlaps(*t, *t) && *t < max_time;
        self.samples.entry(series).or_default().retain(|t, _| !is_deleted(t));
        self.samples.retain(|_, samples| !samples.is_empty());
    }

    fn rewrite(&self) -> Result<usize, MergeError> {
        let blocks = self.life.db().view.load().blocks.clone();
        let deleted_from = blocks.iter().filter(|block| !block.tombstones().is_empty());
        self.life.db().ask_to_rewrite(deleted_from.map(|block| block.meta().ulid));
        self.life.db().rewrite_asked()
    }

    fn restart(&mut self) {
        self.disk = match self.numbers.below(4) {
            // The next process finds what this one left to the kernel, and writes on.
            3 if self.disk.pending_faults() == 0 => self.disk.clone(),
            0 if self.life.db().sync_handle().sync().is_ok() => self.disk.after_power_cut(),
            1 => {
                let _ = self.life.db().close();
                self.disk.after_kill()
            }
            _ => self.disk.after_kill(),
        };
        let begun = self.life.begin_on(Arc::new(self.disk.clone()));
        if begun.early().is_some() && self.write_early() {
            // It is killed before it has read the log.
            self.disk = self.disk.after_kill();
            drop(begun);
            return self.life.open_on(Arc::new(self.disk.clone()));
        }
        self.life.load(begun);
    }

    /// Writes while the log is read; whether that is all.
    fn write_early(&mut self) -> bool {
        for i in 0..=self.numbers.below(4) {
            let before: usize = self.samples.values().map(BTreeMap::len).sum();
            match self.numbers.below(3) {
                // What is old lets all of its series wait.
                0 if i > 0 => self.repeat(),
                _ => self.write_kinds(self.kinds(), 500),
            }
            let after: usize = self.samples.values().map(BTreeMap::len).sum();
            self.early += u64::from(after > before);
        }
        self.numbers.below(3) == 0
    }

    fn check(&self, context: &str) {
        let found: BTreeMap<u64, BTreeMap<i64, u64>> = dump(self.life.db())
            .into_iter()
            .filter(|(_, samples)| !samples.is_empty())
            .map(|(labels, samples): Series| {
                let count = samples.len();
                let samples: BTreeMap<_, _> = samples.into_iter().collect();
                assert_eq!(samples.len(), count, "{context}: a sample is there twice");
                (labels[1].1.parse().unwrap(), samples)
            })
            .collect();
        for (series, samples) in &self.samples {
            let of_series = found.get(series).cloned().unwrap_or_default();
            let is_lost =
                |(t, sample): &(&i64, &Sample)| of_series.get(*t) != Some(&sample.number(**t));
            let lost: Vec<_> = samples.iter().filter(is_lost).collect();
            assert!(
                lost.is_empty(),
                "{context}: {series} lacks {} from {:?}",
                lost.len(),
                lost.first()
            );
        }
        let count = |held: usize, more: usize| held + more;
        let held = self.samples.values().map(BTreeMap::len).fold(0, count);
        let found = found.values().map(BTreeMap::len).fold(0, count);
        assert_eq!(found, held, "{context}: there is more than was written");
    }
}

#[test]
fn a_life_by_chance_is_what_a_map_holds() {
    let given = std::env::var("RINGEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = given.unwrap_or_else(|| getrandom::u64().unwrap());
    let mut early = 0;
    for round in 0..if given.is_some() { 1 } else { 12 } {
        let seed = first.wrapping_add(round);
        println!("RINGEST_SEED={seed}");
        let mut model = Model::begin(seed);
        for step in 0..60 {
            model.step();
            model.check(&format!("seed {seed}, step {step}"));
        }
        early += model.early;
    }
    println!("{early} writes came before a log was read");
    assert!(early > 0 || given.is_some(), "none of the starts took writes early");
}
