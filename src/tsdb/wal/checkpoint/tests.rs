//! Checkpoints against Prometheus' own, against a model, and stopped at each operation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::*;
use crate::disk::faulty::{FailedSync, FaultyDisk};
use crate::disk::read_file;
use crate::metrics::Registry;
use crate::model::stop;
use crate::model::varint::push_varint;
use crate::tsdb::wal::reader::{Found, SegmentReader};
use crate::tsdb::wal::record::{self, Record, RecordTombstone};
use crate::tsdb::wal::repair::{LogContents, RepairCase, open_log};
use crate::tsdb::wal::segment::PAGE_BYTES;
use crate::tsdb::wal::tests::load;
use crate::tsdb::wal::{Compression, SyncPolicy, Wal, WalOptions};

const DB: &str = "/db";
const WAL: &str = "/db/wal";

impl SyncHandle {
    /// Makes a checkpoint of a share of the closed segments; `None` if they are too few.
    pub(in crate::tsdb::wal) fn truncate(
        &self,
        share: Share,
        retained: &Retained<'_>,
    ) -> Result<Option<CheckpointReport>, CheckpointError> {
        let last = self.closed_segments()?.and_then(|closed| share.last_of(closed));
        last.map(|last| self.checkpoint(last, retained)).transpose()
    }
}

fn metrics() -> WalMetrics {
    WalMetrics::new(&Registry::new(), "t")
}

fn open(disk: &FaultyDisk, compression: Compression) -> Wal {
    let segment_bytes = PAGE_BYTES as u64;
    let options = WalOptions { segment_bytes, compression, sync: SyncPolicy::Interval };
    Wal::open(Arc::new(disk.clone()), Path::new(WAL), options, metrics()).unwrap()
}

fn append(wal: &mut Wal, record: &[u8]) -> SegmentIndex {
    wal.append(&[record]).unwrap().end().segment
}

/// Names in the log's directory.
fn names(disk: &FaultyDisk) -> Vec<String> {
    let entries = disk.list(Path::new(WAL)).unwrap();
    entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect()
}

/// An item of a record, and what decides on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    kind: &'static str,
    series_ref: u64,
    t: i64,
    /// All else.
    text: String,
}

fn told(bytes: &[u8]) -> Vec<Told> {
    let item =
        |kind, series_ref: HeadSeriesRef, t, text| Told { kind, series_ref: series_ref.0, t, text };
    match Record::parse(bytes).unwrap() {
        Record::Series(series) => series
            .map(|(one, labels)| {
                item("series", one, 0, format!("{:?}", labels.collect::<Vec<_>>()))
            })
            .collect(),
        Record::Samples(samples) => samples
            .map(|s| item("sample", s.series_ref, s.t, format!("{:x} {:?}", s.value_bits, s.start)))
            .collect(),
        Record::Histograms(histograms) | Record::FloatHistograms(histograms) => histograms
            .map(|h| item("sample", h.series_ref, h.t, format!("{:?} {:?}", h.start, h.histogram)))
            .collect(),
        Record::Tombstones(tombstones) => tombstones
            .map(|one| item("tombstone", one.series_ref, one.maxt, one.mint.to_string()))
            .collect(),
        Record::Exemplars(exemplars) => exemplars
            .map(|e| {
                let labels: Vec<_> = e.labels.collect();
                item("exemplar", e.series_ref, e.t, format!("{:x} {labels:?}", e.value_bits))
            })
            .collect(),
        Record::Metadata(metadata) => metadata
            .map(|m| item("metadata", m.series_ref, 0, format!("{:?} {:?}", m.unit, m.help)))
            .collect(),
        Record::MmapMarkers(_) | Record::Unknown(_) => {
            vec![item("unknown", HeadSeriesRef(0), 0, format!("{bytes:?}"))]
        }
    }
}

fn is_kept(item: &Told, mint: i64, keeps: &dyn Fn(HeadSeriesRef) -> bool) -> bool {
    let keeps = keeps(HeadSeriesRef(item.series_ref));
    match item.kind {
        "series" | "metadata" => keeps,
        "tombstone" => item.t >= mint && keeps,
        "sample" | "exemplar" => item.t >= mint,
        _ => true,
    }
}

/// What a checkpoint of these holds.
fn checkpointed(items: &[Told], mint: i64, keeps: &dyn Fn(HeadSeriesRef) -> bool) -> Vec<Told> {
    let (metadata, others): (Vec<_>, Vec<_>) =
        items.iter().cloned().partition(|item| item.kind == "metadata");
    let newest: HashMap<u64, usize> =
        metadata.iter().enumerate().map(|(at, item)| (item.series_ref, at)).collect();
    let is_newest = |(at, item): &(usize, &Told)| newest[&item.series_ref] == *at;
    let newest = metadata.iter().enumerate().filter(is_newest).map(|(_, item)| item.clone());
    others.into_iter().chain(newest).filter(|item| is_kept(item, mint, keeps)).collect()
}

/// All that a log holds.
fn read(disk: &FaultyDisk) -> (Vec<Told>, LogContents) {
    let mut items = Vec::new();
    let contents =
        open_log(disk, Path::new(WAL), &metrics(), |found| items.extend(told(found.bytes)));
    (items, contents.unwrap())
}

/// Random records, each of whose items is unlike all others.
struct Records {
    dice: u64,
    count: u64,
}

impl Records {
    fn new(seed: u64) -> Records {
        Records { dice: seed, count: 0 }
    }

    /// SplitMix64.
    fn below(&mut self, end: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn next_number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Of any type, with times around `t`.
    fn next(&mut self, t: i64) -> Vec<u8> {
        let kind = [1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 99][self.below(16) as usize];
        self.of_kind(kind, t)
    }

    fn of_kind(&mut self, kind: u8, t: i64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let items: Vec<(HeadSeriesRef, i64, u64)> = (0..=self.below(12))
            .map(|_| {
                let series_ref = HeadSeriesRef(1 + self.below(20));
                (series_ref, t + self.below(200) as i64 - 100, self.next_number())
            })
            .collect();
        let name = |number: u64| format!("value {number}").into_bytes();
        match kind {
            1 => {
                record::begin_series(&mut bytes);
                for (series_ref, _, number) in items {
                    let labels = [(&b"a"[..], &name(number)[..])];
                    record::push_series(&mut bytes, series_ref, labels.into_iter());
                }
            }
            2 => record::encode_samples(&mut bytes, items),
            3 => record::encode_tombstones(
                &mut bytes,
                items.into_iter().map(|(series_ref, maxt, number)| RecordTombstone {
                    series_ref,
                    mint: -(number as i64),
                    maxt,
                }),
            ),
            4 => {
                let value = name(7);
                let labels = [(&b"trace"[..], &value[..])];
                let items = items.into_iter().map(|(one, t, v)| (one, t, v, labels.into_iter()));
                record::encode_exemplars(&mut bytes, items);
            }
            6 => {
                let helps: Vec<_> = items.iter().map(|(_, _, number)| name(*number)).collect();
                let items = items.iter().zip(&helps).map(|((series_ref, ..), help)| {
                    record::RecordMetadata {
                        series_ref: *series_ref,
                        metric_type: 1,
                        unit: b"s",
                        help,
                    }
                });
                record::encode_metadata(&mut bytes, items);
            }
            5 | 99 => {
                bytes.push(kind);
                let number = self.next_number();
                bytes.extend_from_slice(&[number, number].map(u64::to_be_bytes).concat());
            }
            kind => encode_by_hand(&mut bytes, kind, &items),
        }
        bytes
    }
}

/// Records that we read and do not write.
fn encode_by_hand(out: &mut Vec<u8>, kind: u8, items: &[(HeadSeriesRef, i64, u64)]) {
    let varint = |out: &mut Vec<u8>, n: i64| push_varint(out, ((n << 1) ^ (n >> 63)) as u64);
    let is_float = matches!(kind, 8 | 10 | 13);
    let count = |out: &mut Vec<u8>, n: u64| match is_float {
        true => out.extend_from_slice(&(n as f64).to_be_bytes()),
        false => push_varint(out, n),
    };
    out.push(kind);
    let (first_ref, first_t, _) = items[0];
    let mut last_ref = 0;
    if kind < 11 {
        out.extend_from_slice(&first_ref.0.to_be_bytes());
        out.extend_from_slice(&first_t.to_be_bytes());
    }
    for (i, (series_ref, t, number)) in items.iter().enumerate() {
        let (base_ref, base_t) = match kind {
            0..11 => (first_ref.0, first_t),
            _ if i == 0 => (0, 0),
            _ => (last_ref, first_t),
        };
        varint(out, series_ref.0 as i64 - base_ref as i64);
        varint(out, t - base_t);
        last_ref = series_ref.0;
        match (kind < 11, i, number % 3) {
            (true, ..) => {}
            // The first one's start is its number.
            (_, 0, _) => varint(out, *number as i64),
            (_, _, 0) => out.push(0),
            (_, _, 1) => out.push(1),
            _ => {
                out.push(2);
                varint(out, t - 50);
            }
        }
        if kind == 11 {
            out.extend_from_slice(&number.to_be_bytes());
            continue;
        }
        let schema = if matches!(kind, 9 | 10) || number.is_multiple_of(4) { -53 } else { 3 };
        out.push((number % 4) as u8);
        varint(out, schema);
        out.extend_from_slice(&1e-3f64.to_be_bytes());
        count(out, 2);
        count(out, *number);
        out.extend_from_slice(&(*number as f64).to_be_bytes());
        // One span of two buckets, and no negative ones.
        out.push(1);
        varint(out, -1);
        out.extend_from_slice(&[2, 0, 2]);
        for bucket in [1, 2] {
            match is_float {
                true => out.extend_from_slice(&f64::from(bucket).to_be_bytes()),
                false => varint(out, bucket.into()),
            }
        }
        out.push(0);
        if schema == -53 {
            out.push(1);
            out.extend_from_slice(&0.5f64.to_be_bytes());
        }
    }
}

/// A log, and what it should hold: of each item also the segment, `None` for the checkpoint.
struct World {
    disk: FaultyDisk,
    wal: Wal,
    records: Records,
    items: Vec<(Option<SegmentIndex>, Told)>,
}

impl World {
    fn new(seed: u64, compression: Compression) -> World {
        let disk = FaultyDisk::new();
        let wal = open(&disk, compression);
        World { disk, wal, records: Records::new(seed), items: Vec::new() }
    }

    /// Segments are cut by hand, too.
    fn append(&mut self, count: usize, t: i64) {
        for at in 0..count {
            if at % 12 == 11 {
                self.wal.cut_segment().unwrap();
            }
            let record = self.records.next(t);
            let segment = append(&mut self.wal, &record);
            self.items.extend(told(&record).into_iter().map(|item| (Some(segment), item)));
        }
    }

    /// What it holds once there is a checkpoint.
    fn with_checkpoint(
        &self,
        last: SegmentIndex,
        retained: &Retained<'_>,
    ) -> Vec<(Option<SegmentIndex>, Told)> {
        let is_covered = |segment: &Option<SegmentIndex>| segment.is_none_or(|one| one <= last);
        let (covered, left): (Vec<_>, Vec<_>) =
            self.items.iter().cloned().partition(|(segment, _)| is_covered(segment));
        let covered: Vec<_> = covered.into_iter().map(|(_, item)| item).collect();
        let kept = checkpointed(&covered, retained.mint, retained.keeps);
        kept.into_iter().map(|item| (None, item)).chain(left).collect()
    }

    fn told(&self) -> Vec<Told> {
        self.items.iter().map(|(_, item)| item.clone()).collect()
    }
}

fn seed() -> u64 {
    let seed = std::env::var("RINGEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| getrandom::u64().unwrap());
    println!("RINGEST_SEED={seed}");
    seed
}

#[test]
fn a_checkpoint_holds_what_the_model_says() {
    let seed = seed();
    for world in 0..9 {
        let mut dice = Records::new(seed ^ world);
        let compressions = [Compression::None, Compression::Snappy, Compression::Zstd];
        let mut world = World::new(dice.below(u64::MAX), compressions[world as usize % 3]);
        for round in 1..6 {
            world.append(dice.below(60) as usize, round * 100);
            world.wal.cut_segment().unwrap();
            world.append(dice.below(3) as usize, round * 100);
            let handle = world.wal.sync_handle();
            let dead = 1 + dice.below(20);
            let retained = Retained {
                mint: round * 100 - dice.below(300) as i64,
                is_elsewhere: None,
                keeps: &|one| one.0 != dead && one.0 % 7 != dead % 7,
            };
            let share = if dice.below(3) == 0 { Share::TwoThirds } else { Share::All };
            let Some(report) = handle.truncate(share, &retained).unwrap() else { continue };
            let last = report.made.unwrap();
            let items = world.with_checkpoint(last, &retained);
            assert_counts(&report, &world, &items, last);
            world.items = items;
            let (found, contents) = read(&world.disk.after_kill());
            assert!(found == world.told(), "round {round}");
            assert!(contents.cases.is_empty(), "{:?}", contents.cases);
            // It stays durable: only what came since may be lost.
            let (durable, contents) = read(&world.disk.after_power_cut());
            assert!(world.told().starts_with(&durable) && contents.damage_count == 0);
            assert!(durable.len() >= world.items.iter().filter(|(one, _)| one.is_none()).count());
        }
    }
}

fn assert_counts(
    report: &CheckpointReport,
    world: &World,
    items: &[(Option<SegmentIndex>, Told)],
    last: SegmentIndex,
) {
    let count = |items: &[(Option<SegmentIndex>, Told)], kind: &str| {
        let is_it = |(segment, item): &&(Option<SegmentIndex>, Told)| {
            item.kind == kind && segment.is_none_or(|segment| segment <= last)
        };
        items.iter().filter(is_it).count() as u64
    };
    for (kind, tally) in [
        ("series", report.series),
        ("sample", report.samples),
        ("tombstone", report.tombstones),
        ("exemplar", report.exemplars),
        ("metadata", report.metadata),
    ] {
        let (all, kept) = (count(&world.items, kind), count(items, kind));
        assert_eq!(tally, Tally { kept, dropped: all - kept }, "{kind}");
    }
    assert_eq!(report.unknown_records, count(items, "unknown"));
    let path = Path::new(WAL).join(format!("checkpoint.{last}"));
    let bytes: u64 = world.disk.list(&path).unwrap().iter().map(|file| file.len).sum();
    assert_eq!(report.bytes, bytes);
}

/// Records of a directory's segments.
fn records_in(disk: &FaultyDisk, dir: &Path) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for (segment, _) in LogDir::list(disk, dir).unwrap().segments {
        let mut reader = SegmentReader::open(disk, &segment_path(dir, segment)).unwrap();
        while let Some(found) = reader.read_next().unwrap() {
            let Found::Record(found) = found else { panic!("{found:?}") };
            records.push(found.bytes.to_vec());
        }
    }
    records
}

/// The recorded head kept the series of which its checkpoint has records.
#[test]
fn a_checkpoint_is_the_one_that_prometheus_makes_of_the_same_log() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb/wal");
    let recorded = std::fs::read(data.join("checkpoint.json")).unwrap();
    let recorded: Value = serde_json::from_slice(&recorded).unwrap();
    let mint = recorded["checkpoint_mint"].as_i64().unwrap();
    for (name, compression) in
        [("checkpoint-none", Compression::None), ("checkpoint-snappy", Compression::Snappy)]
    {
        let (disk, theirs) = (FaultyDisk::new(), FaultyDisk::new());
        load(&disk, &data.join(name).join("before"), Path::new(DB));
        load(&theirs, &data.join(name).join("after"), Path::new(DB));
        read(&disk);
        let wal = open(&disk, compression);
        let checkpoint = Path::new(WAL).join("checkpoint.00000002");
        let theirs = records_in(&theirs, &checkpoint);
        let kept: BTreeSet<u64> = theirs
            .iter()
            .flat_map(|record| told(record))
            .filter(|item| item.kind == "series")
            .map(|item| item.series_ref)
            .collect();
        let retained = Retained { mint, is_elsewhere: None, keeps: &|one| kept.contains(&one.0) };
        let report = wal.sync_handle().truncate(Share::TwoThirds, &retained).unwrap().unwrap();
        assert_eq!(report.made, Some(SegmentIndex(2)));
        assert!(report.samples.dropped > 0 && report.metadata.dropped > 0);
        assert!(disk.list(&checkpoint).unwrap().len() > 1, "over several segments");
        assert_eq!(names(&disk), ["00000003", "00000004", "00000005", "checkpoint.00000002"]);
        let ours = records_in(&disk, &checkpoint);
        let split = |records: &[Vec<u8>]| {
            let is_metadata = |record: &&Vec<u8>| record[0] == 6;
            let (metadata, others): (Vec<_>, Vec<_>) = records.iter().partition(is_metadata);
            let metadata: BTreeSet<_> = metadata.into_iter().flat_map(|one| told(one)).collect();
            (metadata, others.into_iter().cloned().collect::<Vec<_>>())
        };
        let ((metadata, records), (their_metadata, their_records)) = (split(&ours), split(&theirs));
        assert!(records.len() > 100 && !metadata.is_empty());
        assert!(records == their_records, "{name}");
        // Theirs come in any order.
        assert_eq!(metadata, their_metadata, "{name}");
    }
}

/// A world with a checkpoint and segments behind it, all of it durable.
fn prepared(compression: Compression) -> World {
    let mut world = World::new(7, compression);
    world.append(40, 100);
    world.wal.cut_segment().unwrap();
    let retained = Retained { mint: 50, is_elsewhere: None, keeps: &|one| one.0 != 3 };
    let report = world.wal.sync_handle().truncate(Share::All, &retained).unwrap().unwrap();
    world.items = world.with_checkpoint(report.made.unwrap(), &retained);
    world.append(70, 200);
    world.wal.sync_handle().sync().unwrap();
    world.disk.sync_dir(Path::new(DB)).unwrap();
    world.disk.sync_dir(Path::new("/")).unwrap();
    world
}

impl World {
    /// The same on a disk of its own, written to by a new process.
    fn again(&self, compression: Compression) -> World {
        let disk = self.disk.after_power_cut();
        let (wal, records) = (open(&disk, compression), Records::new(9));
        let records = Records { count: self.records.count, ..records };
        let mut world = World { disk, wal, records, items: self.items.clone() };
        world.append(3, 200);
        world.wal.sync_handle().sync().unwrap();
        world
    }
}

/// How often each item is there.
fn counted(items: &[Told]) -> BTreeMap<&Told, usize> {
    let mut counts = BTreeMap::new();
    items.iter().for_each(|item| *counts.entry(item).or_default() += 1);
    counts
}

/// What is kept is there once, and what is not at most so; the log can be written and opened again.
fn assert_holds(image: &FaultyDisk, all: &[Told], kept: &[Told], context: &str) -> LogContents {
    let (found, contents) = read(image);
    assert_eq!(contents.damage_count, 0, "{context}: {contents:?}");
    let only = RepairCase::UnfinishedCheckpoint;
    assert!(contents.cases.keys().all(|case| *case == only), "{context}: {:?}", contents.cases);
    let (all, counts) = (counted(all), counted(&found));
    for (item, count) in &counts {
        assert!(all.contains_key(item) && *count == 1, "{context}: {count} times {item:?}");
    }
    for item in kept {
        assert!(counts.contains_key(item), "{context}: {item:?} is lost");
    }
    let mut wal = open(image, Compression::None);
    append(&mut wal, &[99, 1]);
    wal.close().unwrap();
    let (again, repaired) = read(image);
    assert!(repaired.cases.is_empty(), "{context}: {:?}", repaired.cases);
    assert_eq!(again.len(), found.len() + 1, "{context}");
    assert!(again.starts_with(&found), "{context}");
    contents
}

#[test]
fn a_checkpoint_that_is_stopped_anywhere_loses_nothing_that_is_kept() {
    for (share, compression) in
        [(Share::All, Compression::Snappy), (Share::TwoThirds, Compression::None)]
    {
        let mut unfinished = 0;
        let prepared = prepared(compression);
        for at in 0.. {
            let mut world = prepared.again(compression);
            let all = world.told();
            let retained =
                Retained { mint: 180, is_elsewhere: None, keeps: &|one| !one.0.is_multiple_of(5) };
            world.disk.fail_all_operations(at);
            let cut = world.wal.cut_segment();
            let made = world.wal.sync_handle().truncate(share, &retained);
            let last = LogDir::list(&world.disk, Path::new(WAL)).unwrap().segments.last().copied();
            let kept = world.with_checkpoint(last.unwrap().0, &retained);
            let kept: Vec<_> = kept.into_iter().map(|(_, item)| item).collect();
            assert!(kept.len() * 3 < all.len() * 2 && !kept.is_empty());
            for (image, what) in
                [(world.disk.after_kill(), "kill"), (world.disk.after_power_cut(), "power cut")]
            {
                let context = format!("{what} at operation {at}, {share:?}");
                let contents = assert_holds(&image, &all, &kept, &context);
                unfinished += contents.cases.len();
            }
            let is_done = made.as_ref().is_ok_and(|report| {
                let is_all = |report: &CheckpointReport| {
                    report.segments_removed > 1 && report.checkpoints_removed == 1
                };
                report.as_ref().is_some_and(is_all)
            });
            // The old checkpoint counts as removed when it has lost its name, before its files.
            let is_clean = names(&world.disk).iter().all(|name| !name.ends_with(".tmp"));
            if cut.is_ok() && is_done && is_clean {
                assert!(at > 15, "{at}");
                break;
            }
        }
        assert!(unfinished > 3, "the names of unfinished checkpoints were durable");
    }
}

/// One operation fails, and the disk is well again.
#[test]
fn a_checkpoint_that_fails_leaves_the_log_as_it_was_and_the_next_one_succeeds() {
    let (mut failures, mut removals_failed) = (0, 0);
    let prepared = prepared(Compression::Snappy);
    for at in 0.. {
        let mut world = prepared.again(Compression::Snappy);
        world.wal.cut_segment().unwrap();
        let (all, handle) = (world.told(), world.wal.sync_handle());
        let retained =
            Retained { mint: 180, is_elsewhere: None, keeps: &|one| !one.0.is_multiple_of(5) };
        let before = names(&world.disk);
        let (made_before, size) =
            (world.wal.metrics.checkpoints.value(), world.wal.metrics.storage_size.value());
        world.disk.fail_operation(at, io::ErrorKind::Other, 100);
        let made = handle.truncate(Share::All, &retained);
        if world.disk.pending_faults() > 0 {
            assert!(at > 15 && failures > 7 && removals_failed > 5, "{at}: {failures}");
            break;
        }
        let metrics = &world.wal.metrics;
        assert_eq!(metrics.checkpoints.value(), made_before + 1.0);
        if let Err(err) = made {
            failures += 1;
            assert_eq!(metrics.checkpoints_failed.value(), 1.0, "{err}");
            assert!(matches!(err, CheckpointError::Write(_) | CheckpointError::Sync(_)), "{err}");
            let after = names(&world.disk);
            assert!(before.iter().all(|name| after.contains(name)), "{at}: {after:?}");
            assert_eq!(metrics.storage_size.value(), size);
        } else {
            // What could not be removed is counted.
            let failed = metrics.truncations_failed.value();
            let failed = failed + metrics.checkpoint_deletions_failed.value();
            assert!(failed <= 2.0);
            removals_failed += failed as u64;
        }
        // Appends go on.
        world.append(20, 200);
        world.wal.cut_segment().unwrap();
        let mut all = all;
        all.extend(world.told().into_iter().skip(all.len()));
        let report = handle.truncate(Share::All, &retained).unwrap().unwrap();
        let kept = world.with_checkpoint(report.made.unwrap(), &retained);
        let kept: Vec<_> = kept.into_iter().map(|(_, item)| item).collect();
        let names = names(&world.disk);
        assert_eq!(names.len(), 2, "{at}: {names:?}");
        let listed = LogDir::list(&world.disk, Path::new(WAL)).unwrap();
        assert_eq!(world.wal.metrics.storage_size.value(), listed.file_bytes as f64, "{at}");
        assert_holds(&world.disk.after_power_cut(), &all, &kept, &format!("fault at {at}"));
    }
}

#[test]
fn damage_is_told_and_its_file_kept() {
    let world = &mut prepared(Compression::None);
    world.wal.cut_segment().unwrap();
    let listed = LogDir::list(&world.disk, Path::new(WAL)).unwrap();
    let segment = listed.segments[1].0;
    let checkpoint = Path::new(WAL).join(&listed.checkpoints[0].1);
    let damaged = [segment_path(Path::new(WAL), segment), checkpoint.join("00000000")];
    let mut originals = Vec::new();
    for path in &damaged {
        let mut bytes = read_file(&world.disk, path, 1 << 30).unwrap();
        bytes[300] ^= 1;
        world.disk.open_write(path).unwrap().write_all_at(&bytes, 0).unwrap();
        originals.push(bytes);
    }
    let retained = Retained { mint: i64::MIN, is_elsewhere: None, keeps: &|_| true };
    let report = world.wal.sync_handle().truncate(Share::All, &retained).unwrap().unwrap();
    let places: Vec<_> = report.damage.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(places, [damaged[1].clone(), damaged[0].clone()]);
    assert_eq!(report.damage_count, 2);
    assert_eq!(world.wal.metrics.corruptions.value(), 2.0);
    let kept_as = [
        Path::new(WAL).join(format!("{segment}.damaged")),
        Path::new(WAL).join(format!("damaged.{}", listed.checkpoints[0].1)),
    ];
    assert_eq!(report.set_aside, kept_as);
    let kept_as = [kept_as[0].clone(), kept_as[1].join("00000000")];
    for (path, original) in kept_as.iter().zip(originals) {
        assert!(read_file(&world.disk, path, 1 << 30).unwrap() == original);
    }
    // Two records are lost, and nothing else.
    let (found, contents) = read(&world.disk.after_kill());
    assert_eq!((contents.damage_count, contents.cases.len()), (0, 0), "{contents:?}");
    let (all, found) = (world.with_checkpoint(report.made.unwrap(), &retained), counted(&found));
    let lost = all.iter().filter(|(_, item)| !found.contains_key(item)).count();
    assert!((2..=26).contains(&lost), "{lost} of {}", all.len());
}

/// What cannot be read may be readable later.
#[test]
fn a_segment_that_the_disk_does_not_give_stays() {
    let mut world = prepared(Compression::None);
    world.wal.cut_segment().unwrap();
    let before = names(&world.disk);
    let (handle, all) = (world.wal.sync_handle(), world.told());
    let retained = Retained { mint: i64::MIN, is_elsewhere: None, keeps: &|_| true };
    let first = handle.closed_segments().unwrap().unwrap().start().next();
    let path = segment_path(Path::new(WAL), first);
    world.disk.fail_reads(&path, io::ErrorKind::Other);
    let err = handle.truncate(Share::All, &retained).unwrap_err();
    assert!(chain(&err).contains(path.to_str().unwrap()), "{}", chain(&err));
    assert_eq!(names(&world.disk), before);
    world.disk.allow_reads(&path);
    let report = handle.truncate(Share::All, &retained).unwrap().unwrap();
    assert!(report.segments_removed > 1 && report.samples.dropped == 0);
    let kept = checkpointed(&all, i64::MIN, &|_| true);
    assert_holds(&world.disk.after_power_cut(), &all, &kept, "read later");
}

#[test]
fn a_checkpoint_stops_when_nobody_waits_for_it() {
    let mut world = prepared(Compression::None);
    world.wal.cut_segment().unwrap();
    let (before, handle) = (names(&world.disk), world.wal.sync_handle());
    let (waiting, stop) = stop::pair();
    let waiting = std::cell::RefCell::new(Some(waiting));
    // Somewhere in the middle.
    let keeps = |_| {
        waiting.take();
        true
    };
    let made = stop.run(|| {
        handle.truncate(Share::All, &Retained { mint: 0, is_elsewhere: None, keeps: &keeps })
    });
    assert!(matches!(made, Err(CheckpointError::Stopped)));
    assert!(waiting.borrow().is_none());
    assert_eq!(names(&world.disk), before);
    assert_eq!(world.wal.metrics.checkpoints_failed.value(), 0.0);
}

/// A closed segment whose sync fails is written again under its name; one that is gone must not be.
#[test]
fn a_segment_that_cannot_be_made_durable_stays() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, Compression::None);
    let handle = wal.sync_handle();
    let mut records = Records::new(1);
    let mut all = Vec::new();
    let retained = Retained { mint: i64::MIN, is_elsewhere: None, keeps: &|_| true };
    let mut fill = |wal: &mut Wal| {
        for _ in 0..30 {
            let record = records.of_kind(2, 0);
            append(wal, &record);
            all.extend(told(&record));
        }
        wal.cut_segment().unwrap();
        all.clone()
    };
    fill(&mut wal);
    disk.fail_syncs(4, FailedSync::DropsBytes);
    for _ in 0..2 {
        let err = handle.truncate(Share::All, &retained).unwrap_err();
        assert!(matches!(err, CheckpointError::Sync(_)), "{err}");
    }
    assert!(names(&disk).iter().all(|name| !name.starts_with("checkpoint")));
    // The third has them written again, from memory.
    let report = loop {
        if let Ok(report) = handle.truncate(Share::All, &retained) {
            break report.unwrap();
        }
    };
    let last = report.made.unwrap();
    let all = fill(&mut wal);
    disk.fail_syncs(1, FailedSync::DropsBytes);
    handle.sync().unwrap();
    let is_back = |name: &String| name.parse().is_ok_and(|number: u64| number <= last.0);
    assert!(!names(&disk).iter().any(is_back), "{:?}", names(&disk));
    let (found, contents) = read(&disk.after_power_cut());
    assert!(found == all, "{} of {}", found.len(), all.len());
    // That the mark was taken away may not be durable.
    let only = RepairCase::UnsyncedEnd;
    assert!(contents.cases.keys().all(|case| *case == only), "{:?}", contents.cases);
}

/// The sync of a file proves nothing once one of its file system has failed.
#[test]
fn a_failed_sync_of_the_file_system_is_a_failed_checkpoint() {
    let mut world = prepared(Compression::None);
    world.wal.cut_segment().unwrap();
    let handle = world.wal.sync_handle();
    let (before, is_told) = (names(&world.disk), AtomicBool::new(false));
    let keeps = |_| {
        if !is_told.swap(true, Ordering::Relaxed) {
            world.disk.fail_syncs(1, FailedSync::KeepsBytes);
            world.disk.sync_file_system(Path::new(WAL)).unwrap_err();
            handle.mark_sync_failed();
        }
        true
    };
    let err = handle
        .truncate(Share::All, &Retained { mint: 0, is_elsewhere: None, keeps: &keeps })
        .unwrap_err();
    assert!(matches!(err, CheckpointError::Sync(SyncError::Failed)), "{err}");
    let is_mark = |name: &String| name == crate::tsdb::wal::unsynced::UNSYNCED_NAME;
    let after: Vec<_> = names(&world.disk).into_iter().filter(|name| !is_mark(name)).collect();
    assert_eq!(after, before);
    let report =
        handle.truncate(Share::All, &Retained { mint: 0, is_elsewhere: None, keeps: &keeps });
    assert!(report.unwrap().unwrap().made.is_some());
}

/// Appends, syncs that fail, and checkpoints at once.
#[test]
fn a_checkpoint_is_made_beside_appends_and_syncs() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, Compression::Snappy);
    let handle = wal.sync_handle();
    let is_over = AtomicBool::new(false);
    let (mut records, mut all) = (Records::new(3), Vec::new());
    let made = std::thread::scope(|scope| {
        let syncs = scope.spawn(|| {
            for round in 1u64.. {
                if round.is_multiple_of(16) {
                    disk.fail_syncs(1, FailedSync::KeepsBytes);
                }
                let _ = handle.sync();
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::yield_now();
            }
        });
        let checkpoints = scope.spawn(|| {
            let retained = Retained { mint: i64::MIN, is_elsewhere: None, keeps: &|_| true };
            let mut made = 0;
            loop {
                let is_last = is_over.load(Ordering::Relaxed);
                made += u32::from(matches!(handle.truncate(Share::All, &retained), Ok(Some(_))));
                if is_last && made > 0 {
                    return made;
                }
                std::thread::yield_now();
            }
        });
        while all.len() < 2000 {
            let record = records.of_kind(2, 0);
            // Refused while a failed sync is made good.
            if wal.append(&[&record]).is_ok() {
                all.extend(told(&record));
            }
            if all.len() % 40 < 10 {
                let _ = wal.cut_segment();
            }
        }
        is_over.store(true, Ordering::Relaxed);
        syncs.join().unwrap();
        checkpoints.join().unwrap()
    });
    assert!(made > 0);
    while handle.sync().is_err() {}
    for image in [disk.after_kill(), disk.after_power_cut()] {
        let (found, contents) = read(&image);
        assert!(found == all, "{} of {}", found.len(), all.len());
        assert_eq!(contents.damage_count, 0);
    }
}

#[test]
fn what_is_written_to_has_no_checkpoint_and_what_has_one_gets_no_second() {
    let disk = FaultyDisk::new();
    let mut wal = open(&disk, Compression::None);
    let (handle, retained) =
        (wal.sync_handle(), Retained { mint: 0, is_elsewhere: None, keeps: &|_| true });
    assert_eq!(wal.cut_segment().unwrap(), wal.end(), "there is nothing to cut");
    assert_eq!(names(&disk), ["00000000"]);
    append(&mut wal, &[99, 1]);
    let err = handle.checkpoint(SegmentIndex(0), &retained).unwrap_err();
    assert!(matches!(err, CheckpointError::Open { segment: SegmentIndex(0) }));
    assert!(handle.truncate(Share::All, &retained).unwrap().is_none());
    let end = wal.cut_segment().unwrap();
    assert_eq!((end.segment, end.offset), (SegmentIndex(1), 0));
    assert!(handle.truncate(Share::TwoThirds, &retained).unwrap().is_none());
    let report = handle.truncate(Share::All, &retained).unwrap().unwrap();
    assert_eq!((report.made, report.unknown_records), (Some(SegmentIndex(0)), 1));
    assert_eq!(names(&disk), ["00000001", "checkpoint.00000000"]);
    // A segment that could not be removed.
    disk.create(&segment_path(Path::new(WAL), SegmentIndex(0))).unwrap();
    let report = handle.checkpoint(SegmentIndex(0), &retained).unwrap();
    assert_eq!((report.made, report.segments_removed), (None, 1));
    assert_eq!(names(&disk), ["00000001", "checkpoint.00000000"]);
}

#[test]
fn leftovers_of_a_checkpoint_go_at_the_next_opening_and_before_the_next_one() {
    let mut world = prepared(Compression::None);
    let leave = |disk: &FaultyDisk| {
        let dir = Path::new(WAL).join("checkpoint.00000042.tmp");
        disk.create_dir_all(&dir).unwrap();
        disk.create(&dir.join("00000000")).unwrap().write_all_at(b"half", 0).unwrap();
    };
    leave(&world.disk);
    let (_, contents) = read(&world.disk.after_kill());
    let cases: Vec<_> = contents.cases.into_iter().collect();
    assert_eq!(cases, [(RepairCase::UnfinishedCheckpoint, 1)]);
    world.wal.cut_segment().unwrap();
    let retained = Retained { mint: 0, is_elsewhere: None, keeps: &|_| true };
    world.wal.sync_handle().truncate(Share::All, &retained).unwrap();
    assert!(names(&world.disk).iter().all(|name| !name.contains(".tmp")));
}

/// Prometheus' choice: `last - 1` is no candidate, and two thirds of the way from the first to it.
#[test]
fn two_thirds_are_what_prometheus_takes() {
    let last_of = |share: Share, first, last| {
        share.last_of(SegmentIndex(first)..=SegmentIndex(last)).map(|SegmentIndex(last)| last)
    };
    for first in [0u64, 1, 1000] {
        for last in first..first + 50 {
            let theirs = first + (last.saturating_sub(1).saturating_sub(first)) * 2 / 3;
            assert_eq!(last_of(Share::TwoThirds, first, last), (theirs > first).then_some(theirs));
            assert_eq!(last_of(Share::All, first, last), Some(last));
        }
    }
    assert_eq!(last_of(Share::TwoThirds, 0, 4), Some(2));
    assert_eq!(last_of(Share::TwoThirds, 3, 2), None);
    assert_eq!(last_of(Share::All, 3, 2), None);
}

#[test]
fn what_is_known_to_hold_nothing_goes_unread() {
    let mut world = prepared(Compression::None);
    world.wal.cut_segment().unwrap();
    let handle = world.wal.sync_handle();
    let closed = handle.closed_segments().unwrap().unwrap();
    let (first, last) = closed.into_inner();
    assert!(last > first, "several are to go");
    // Nothing of a time is kept, and no series.
    let retained = Retained { mint: i64::MAX, is_elsewhere: None, keeps: &|_| false };
    for segment in first.0..=last.0 {
        let path = segment_path(Path::new(WAL), SegmentIndex(segment));
        world.disk.fail_reads(&path, std::io::ErrorKind::Other);
    }
    handle.checkpoint(last, &retained).unwrap_err();
    // One that is not known to is read.
    handle.checkpoint_with_unread(last, &retained, Some(first.next())).unwrap_err();
    let report = handle.checkpoint_with_unread(last, &retained, Some(first)).unwrap();
    assert_eq!(report.made, Some(last));
    // What the checkpoint before has is looked at.
    assert!(report.series.dropped > 0);
    let left = names(&world.disk);
    assert_eq!(left, [format!("{}", last.next()), format!("{CHECKPOINT_PREFIX}{last}")]);
}
