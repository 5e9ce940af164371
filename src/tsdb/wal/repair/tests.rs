//! Recorded damage, played on a disk in memory, and what crashes leave of a repair.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::disk::faulty::FaultyDisk;
use crate::disk::read_file;
use crate::metrics::Registry;
use crate::tsdb::wal::reader::DamageKind;
use crate::tsdb::wal::tests::load;
use crate::tsdb::wal::{Compression, SyncPolicy, Wal, WalOptions};

const DB: &str = "/db";
const WAL: &str = "/db/wal";

fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb")
}

fn data(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data_dir().join(path)).unwrap()).unwrap()
}

fn unhex(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap_or_default();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn metrics() -> WalMetrics {
    WalMetrics::new(&Registry::new(), "t")
}

fn put(disk: &FaultyDisk, path: &Path, bytes: &[u8]) {
    disk.create_dir_all(path.parent().unwrap()).unwrap();
    disk.create(path).unwrap().write_all_at(bytes, 0).unwrap();
}

fn bytes_of(disk: &FaultyDisk, path: &Path) -> Vec<u8> {
    read_file(disk, path, 1 << 30).unwrap()
}

fn edit(disk: &FaultyDisk, edit: &Value) {
    let path = Path::new(DB).join(edit["file"].as_str().unwrap());
    let offset = edit["off"].as_u64().unwrap_or(0) as usize;
    let size = edit["size"].as_u64().unwrap_or(0) as usize;
    let hex = unhex(&edit["hex"]);
    match edit["op"].as_str().unwrap() {
        "set" => disk.open_write(&path).unwrap().write_all_at(&hex, offset as u64).unwrap(),
        "xor" => {
            let mut bytes = bytes_of(disk, &path);
            for (byte, mask) in bytes[offset..].iter_mut().zip(hex) {
                *byte ^= mask;
            }
            put(disk, &path, &bytes);
        }
        "zero" => {
            let zeros = vec![0; size];
            disk.open_write(&path).unwrap().write_all_at(&zeros, offset as u64).unwrap();
        }
        "truncate" => disk.open_write(&path).unwrap().truncate(size as u64).unwrap(),
        "append" => {
            let mut bytes = bytes_of(disk, &path);
            bytes.extend_from_slice(&hex);
            put(disk, &path, &bytes);
        }
        "write" => put(disk, &path, &hex),
        "delete" => match disk.remove_file(&path) {
            Ok(()) => {}
            Err(_) => disk.remove_dir_all(&path).unwrap(),
        },
        "mkdir" => disk.create_dir_all(&path).unwrap(),
        "rename" => {
            let to = edit["to"].as_str().unwrap();
            let to = path.parent().unwrap().join(Path::new(to).file_name().unwrap());
            disk.rename(&path, &to).unwrap();
        }
        "copy" => {
            let from = data_dir().join(edit["from"].as_str().unwrap());
            put(disk, &path, &std::fs::read(from).unwrap());
        }
        other => panic!("{other}"),
    }
}

/// All files below a directory.
fn files(disk: &FaultyDisk, dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in disk.list(dir).unwrap() {
        let path = dir.join(&entry.name);
        if entry.is_dir {
            found.extend(files(disk, &path));
        } else {
            found.insert(path);
        }
    }
    found
}

/// Series to times to values; histograms by their kind and count only.
type Samples = BTreeMap<String, BTreeMap<i64, String>>;

/// What a head would know after replay: samples of refs that were announced before.
#[derive(Default)]
struct Replay {
    /// Ref to place in `series`.
    refs: HashMap<u64, usize>,
    /// A label set may be there more than once.
    series: Vec<(String, BTreeMap<i64, String>)>,
}

impl Replay {
    fn add(&mut self, record: Record<'_>) {
        let mut add = |series_ref: u64, t: i64, value: String| {
            if let Some(at) = self.refs.get(&series_ref) {
                self.series[*at].1.entry(t).or_insert(value);
            }
        };
        match record {
            Record::Series(series) => {
                for (series_ref, labels) in series {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    let labels: Value =
                        labels.map(|(name, value)| json!([text(name), text(value)])).collect();
                    self.refs.insert(series_ref.0, self.series.len());
                    self.series.push((labels.to_string(), BTreeMap::new()));
                }
            }
            Record::Samples(samples) => {
                samples.for_each(|s| add(s.series_ref.0, s.t, format!("{:016x}", s.value_bits)));
            }
            Record::Histograms(histograms) => histograms.for_each(|h| {
                add(h.series_ref.0, h.t, format!("h {}", h.histogram.count));
            }),
            Record::FloatHistograms(histograms) => histograms.for_each(|h| {
                add(h.series_ref.0, h.t, format!("fh {:016x}", h.histogram.count));
            }),
            _ => {}
        }
    }

    fn samples(self) -> Samples {
        let mut samples = Samples::new();
        for (labels, mut of_series) in self.series {
            samples.entry(labels).or_default().append(&mut of_series);
        }
        samples
    }
}

fn open(disk: &FaultyDisk) -> (Samples, LogContents) {
    let mut replay = Replay::default();
    let contents =
        open_log(disk, Path::new(WAL), &metrics(), |found| replay.add(found.record)).unwrap();
    (replay.samples(), contents)
}

/// The value of a recorded sample as [`Replay`] writes it; `None` where a marker of another kind
/// may have been logged.
fn recorded_value(sample: &Value) -> Option<String> {
    match sample[1].as_str().unwrap() {
        kind @ ("h" | "fh") => {
            let count = &sample[2]["count"];
            let is_stale = sample[2]["sum"] == "7ff0000000000002";
            let count = count.as_str().map_or_else(|| count.to_string(), str::to_owned);
            (!is_stale).then(|| format!("{kind} {count}"))
        }
        bits => Some(bits.to_owned()),
    }
}

/// The samples that a case says came back.
fn kept_samples(all_series: &Value, kept: &Value) -> Vec<(String, i64, Option<String>)> {
    let mut samples = Vec::new();
    for (series, kept) in all_series.as_array().unwrap().iter().zip(kept.as_array().unwrap()) {
        let all = series["samples"].as_array().unwrap();
        let labels = series["labels"].to_string();
        let ranges: Vec<(usize, usize)> = match kept {
            Value::Array(ranges) => ranges
                .iter()
                .map(|r| (r[0].as_u64().unwrap() as usize, r[1].as_u64().unwrap() as usize))
                .collect(),
            all_or_none => vec![(0, all.len() * all_or_none.as_u64().unwrap() as usize)],
        };
        for sample in ranges.into_iter().flat_map(|(from, to)| &all[from..to]) {
            let t = sample[0].as_i64().unwrap();
            samples.push((labels.clone(), t, recorded_value(sample)));
        }
    }
    samples
}

/// Damage that lies in one record.
fn is_one_record(name: &str) -> bool {
    let kinds = ["flip", "length", "type", "flag", "undecodable", "torn in", "first record"];
    kinds.iter().any(|kind| name.contains(kind))
}

/// `logged_min`: how many samples of an undamaged set are in its log.
fn play(cases_path: &str, series: &Value, logged_min: usize) {
    let cases = data(cases_path);
    let mut undamaged: HashMap<String, (Samples, u64)> = HashMap::new();
    for case in cases["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let base = case["base"].as_str().unwrap();
        let base_dir = data_dir().join(cases["bases"][base]["dir"].as_str().unwrap());
        let disk = FaultyDisk::new();
        load(&disk, &base_dir, Path::new(DB));
        let edits = case["edits"].as_array().unwrap();
        edits.iter().for_each(|one| edit(&disk, one));
        let edited: Vec<PathBuf> =
            edits.iter().map(|edit| Path::new(DB).join(edit["file"].as_str().unwrap())).collect();
        let files_before = files(&disk, Path::new(DB));
        let (samples, contents) = open(&disk);

        if edits.is_empty() {
            assert_eq!((contents.damage_count, &contents.cut), (0, &None), "{name}: {contents:?}");
            undamaged.insert(base.to_owned(), (samples.clone(), contents.records));
            let kept = kept_samples(series, &case["open"]["kept"]);
            let logged = kept.iter().filter(|(labels, t, _)| {
                samples.get(labels).is_some_and(|samples| samples.contains_key(t))
            });
            assert!(logged.count() >= logged_min, "{name}");
        }
        let (all_samples, all_records) = &undamaged[base];
        if is_one_record(name) {
            assert!(contents.records + 1 >= *all_records, "{name}: {contents:?}");
            assert!(contents.damage_count + u64::from(contents.cut.is_some()) <= 1, "{name}");
        }
        if case["open"]["error"].is_null() {
            for (labels, t, value) in kept_samples(series, &case["open"]["kept"]) {
                // What is in a block only, or was deleted, is no concern of the log.
                if !all_samples.get(&labels).is_some_and(|samples| samples.contains_key(&t)) {
                    continue;
                }
                let found = samples.get(&labels).and_then(|samples| samples.get(&t));
                assert!(found.is_some(), "{name}: {labels} at {t} is lost: {contents:?}");
                assert!(value.is_none() || found == value.as_ref(), "{name}: {labels} at {t}");
            }
        }
        let is_edited = |file: &Path| edited.iter().any(|edited| file.starts_with(edited));
        let files_after = files(&disk, Path::new(DB));
        // Prometheus removes them as well.
        let is_unfinished = |file: &Path| file.to_string_lossy().contains(".tmp/");
        let is_to_stay = |file: &&PathBuf| !is_edited(file) && !is_unfinished(file);
        for file in files_before.iter().filter(is_to_stay) {
            assert!(files_after.contains(file), "{name}: {} is gone", file.display());
        }
        assert_serves_on(&disk, name, &samples);
    }
}

/// The log can be written now, and opened again: whole, without a gap, and with the same samples.
fn assert_serves_on(disk: &FaultyDisk, name: &str, samples: &Samples) {
    let options = WalOptions {
        segment_bytes: 65536,
        compression: Compression::Snappy,
        sync: SyncPolicy::Interval,
    };
    let mut wal = Wal::open(Arc::new(disk.clone()), Path::new(WAL), options, metrics()).unwrap();
    let _ = wal.append(&[&[99]]).unwrap();
    wal.close().unwrap();
    let log = LogDir::list(disk, Path::new(WAL)).unwrap();
    let numbers: Vec<u64> = log.segments.iter().map(|(segment, _)| segment.0).collect();
    let from = log.checkpoints.last().map_or(0, |(number, _)| number.0 + 1);
    let expected: Vec<u64> = (from..=*numbers.last().unwrap()).collect();
    let tail = &numbers[numbers.len() - expected.len()..];
    assert_eq!(tail, expected, "{name}: {numbers:?}");
    let (again, contents) = open(disk);
    assert_eq!(contents.damage_count, 0, "{name}: {contents:?}");
    assert!(contents.set_aside.is_empty() && contents.filled.is_empty(), "{name}: {contents:?}");
    assert!(again == *samples, "{name}: other samples at the second opening");
}

#[test]
fn recorded_damage_costs_no_more_than_recorded() {
    let cases = data("wal/damaged.json");
    play("wal/damaged.json", &cases["series"], 1945);
}

#[test]
fn recorded_checkpoint_damage_costs_no_more_than_recorded() {
    let checkpoint = data("wal/checkpoint.json");
    play("wal/damaged_checkpoint.json", &checkpoint["series"], 468);
}

/// Stops the machine at each operation of a repair.
fn stop_everywhere(base: &str, edits: &Value) {
    let loaded = FaultyDisk::new();
    load(&loaded, &data_dir().join(base), Path::new(DB));
    edits.as_array().unwrap().iter().for_each(|one| edit(&loaded, one));
    // All of it durable, and without faults.
    loaded.sync_file_system(Path::new(DB)).unwrap();
    let damaged = || loaded.after_power_cut();
    let (samples, contents) = open(&damaged());
    assert!(contents.damage_count > 0 || contents.cut.is_some() || !contents.filled.is_empty());

    let mut at = 0;
    loop {
        let disk = damaged();
        disk.fail_all_operations(at);
        let opened = open_log(&disk, Path::new(WAL), &metrics(), |_| {});
        for image in [disk.after_kill(), disk.after_power_cut()] {
            let (again, _) = open(&image);
            assert!(again == samples, "stopped at operation {at}");
            assert_serves_on(&image, "stopped", &samples);
        }
        if opened.is_ok() {
            break;
        }
        at += 1;
    }
    assert!(at > 1);
}

#[test]
fn a_repair_that_is_stopped_anywhere_is_completed_at_the_next_opening() {
    let edits = json!([
        {"op": "xor", "file": "wal/00000001", "off": 10822, "hex": "04"},
        {"op": "xor", "file": "wal/00000003", "off": 100, "hex": "04"},
        {"op": "delete", "file": "wal/00000002"},
        {"op": "write", "file": "wal/7", "hex": "ff"},
        {"op": "truncate", "file": "wal/00000004", "size": 11745},
    ]);
    stop_everywhere("wal/damaged/base-none", &edits);
    let edits = json!([
        {"op": "xor", "file": "wal/checkpoint.00000002/00000000", "off": 55825, "hex": "08"},
    ]);
    stop_everywhere("wal/checkpoint-snappy/after", &edits);
    // Its remains are read with those of the segments that it stands for.
    let edits = json!([
        {"op": "xor", "file": "wal/checkpoint.00000002/00000000", "off": 55825, "hex": "08"},
        {"op": "copy", "file": "wal/00000002",
         "from": "wal/checkpoint-snappy/before/wal/00000002"},
    ]);
    stop_everywhere("wal/checkpoint-snappy/after", &edits);
}

#[test]
fn a_damaged_checkpoint_is_given_up_only_for_what_is_whole() {
    let noise = json!({"op": "write", "file": "wal/checkpoint.00000000/00000000", "hex": "ff00ff"});
    let bit =
        json!({"op": "xor", "file": "wal/checkpoint.00000002/00000000", "off": 55825, "hex": "08"});
    let copy = |n: u32| {
        let file = format!("wal/0000000{n}");
        json!({"op": "copy", "file": file, "from": format!("wal/checkpoint-snappy/before/{file}")})
    };
    let opened = |edits: &[Value]| {
        let disk = FaultyDisk::new();
        load(&disk, &data_dir().join("wal/checkpoint-snappy/after"), Path::new(DB));
        edits.iter().for_each(|one| edit(&disk, one));
        let (samples, contents) = open(&disk);
        assert_serves_on(&disk, "checkpoints", &samples);
        (samples.values().map(BTreeMap::len).sum::<usize>(), contents)
    };
    let (all, _) = opened(&[copy(0), copy(1), copy(2), bit.clone()]);
    let (remains, _) = opened(std::slice::from_ref(&bit));
    let (undamaged, _) = opened(&[]);
    assert!(remains < undamaged && undamaged < all);
    // All segments are there: the older checkpoint does not matter.
    let (found, contents) = opened(&[copy(0), copy(1), copy(2), bit.clone(), noise.clone()]);
    assert_eq!((found, contents.set_aside.len()), (all, 2));
    // Segment 0 is gone, and so is what the older checkpoint should hold of it.
    let (found, contents) = opened(&[copy(1), copy(2), bit, noise]);
    assert!(found >= remains);
    assert!(contents.set_aside.is_empty());
}

#[test]
fn no_directory_is_an_empty_log() {
    let (samples, contents) = open(&FaultyDisk::new());
    assert!(samples.is_empty());
    assert_eq!(contents.records, 0);
}

#[test]
fn segments_are_named_as_go_reads_and_prometheus_writes_them() {
    for (name, segment) in [
        ("00000000", Some(0)),
        ("00000042", Some(42)),
        ("123456789", Some(123_456_789)),
        ("7", None),
        ("+0000007", None),
        ("0000000x", None),
        ("1099511627775", Some(SegmentIndex::LIMIT - 1)),
        ("1099511627776", None),
        ("9223372036854775807", None),
        ("99999999999999999999", None),
    ] {
        assert_eq!(segment_named(name), segment.map(SegmentIndex), "{name}");
    }
}

/// Behind the highest numbers there are none for the log's own segments: the one that was made there
/// was no segment at the next opening, and emptied.
#[test]
fn a_file_of_a_huge_number_costs_no_record() {
    for stranger in ["9223372036854775807", "9223372036854775806", "checkpoint.9223372036854775807"]
    {
        let disk = FaultyDisk::new();
        let append = |byte: u8| {
            let options = WalOptions {
                segment_bytes: 65536,
                compression: Compression::None,
                sync: SyncPolicy::Interval,
            };
            let mut wal =
                Wal::open(Arc::new(disk.clone()), Path::new(WAL), options, metrics()).unwrap();
            let _ = wal.append(&[&[99, byte]]).unwrap();
            wal.close().unwrap();
        };
        append(0);
        let path = Path::new(WAL).join(stranger);
        match stranger.starts_with("checkpoint") {
            true => disk.create_dir_all(&path).unwrap(),
            false => put(&disk, &path, b"of another program"),
        }
        for opening in 1..4 {
            let mut records = Vec::new();
            open_log(&disk, Path::new(WAL), &metrics(), |found| {
                records.push(found.bytes.to_vec());
            })
            .unwrap();
            let expected: Vec<Vec<u8>> = (0..opening).map(|byte| vec![99, byte]).collect();
            assert_eq!(records, expected, "{stranger}, opening {opening}");
            append(opening);
        }
    }
}

#[test]
fn originals_of_repeated_repairs_are_all_kept() {
    let disk = FaultyDisk::new();
    load(&disk, &data_dir().join("wal/damaged/base-none"), Path::new(DB));
    for off in [10822, 20000] {
        edit(&disk, &json!({"op": "xor", "file": "wal/00000001", "off": off, "hex": "04"}));
        let (_, contents) = open(&disk);
        assert_eq!(contents.rewritten, [Path::new(WAL).join("00000001")]);
    }
    let names: Vec<_> = files(&disk, Path::new(WAL)).into_iter().collect();
    let is_kept = |path: &&PathBuf| path.to_string_lossy().contains("00000001.damaged");
    assert_eq!(names.iter().filter(is_kept).count(), 2);
}

/// A directory for each repair, which is told, counted, and not made again.
#[test]
fn each_repair_is_counted_under_its_label_and_made_once() {
    use RepairCase::*;
    let checkpoint = "wal/checkpoint.00000002/00000000";
    let bit = json!({"op": "xor", "file": checkpoint, "off": 55825, "hex": "08"});
    let copy = |n: u32| {
        let file = format!("wal/0000000{n}");
        json!({"op": "copy", "file": file, "from": format!("wal/checkpoint-snappy/before/{file}")})
    };
    let (plain, after) = ("wal/damaged/base-none", "wal/checkpoint-snappy/after");
    let last = {
        let disk = FaultyDisk::new();
        load(&disk, &data_dir().join(plain), Path::new(DB));
        LogDir::list(&disk, Path::new(WAL)).unwrap().segments.last().copied().unwrap()
    };
    let (last_name, last_len) = (format!("wal/{}", last.0), last.1);
    let behind = |gap: u64| format!("wal/{}", SegmentIndex(last.0.0 + 1 + gap));
    let moved = |gap: u64| {
        let to = behind(gap);
        vec![json!({"op": "rename", "file": last_name, "to": to})]
    };
    let cases: Vec<(&[RepairCase], &str, Vec<Value>)> = vec![
        (&[], plain, vec![]),
        (&[], after, vec![]),
        // A segment that could not be removed yet, and the one behind the checkpoint.
        (
            &[],
            after,
            vec![
                copy(0),
                json!({"op": "delete", "file": "wal/00000004"}),
                json!({"op": "delete", "file": "wal/00000005"}),
                json!({"op": "write", "file": "wal/00000003", "hex": ""}),
            ],
        ),
        (&[TornEnd], plain, vec![json!({"op": "truncate", "file": "wal/00000004", "size": 11745})]),
        (
            &[DamagedSegment],
            plain,
            vec![json!({"op": "xor", "file": "wal/00000001", "off": 10822, "hex": "04"})],
        ),
        (&[DamagedCheckpoint], after, vec![bit.clone()]),
        (&[SpareCheckpoint], after, vec![copy(0), copy(1), copy(2), bit]),
        (
            &[FinishedRewrite],
            plain,
            vec![json!({"op": "rename", "file": "wal/00000001", "to": "wal/00000001.rewrite"})],
        ),
        (
            &[UnfinishedRewrite],
            plain,
            vec![json!({"op": "write", "file": "wal/00000001.rewrite", "hex": "00"})],
        ),
        (
            &[UnfinishedRewrite],
            after,
            vec![json!({"op": "mkdir", "file": "wal/rewrite.checkpoint.00000002"})],
        ),
        (
            &[FinishedRewrite],
            after,
            vec![json!({
                "op": "rename",
                "file": "wal/checkpoint.00000002",
                "to": "wal/rewrite.checkpoint.00000002"
            })],
        ),
        (
            &[UnfinishedCheckpoint],
            after,
            vec![json!({"op": "mkdir", "file": "wal/checkpoint.00000007.tmp"})],
        ),
        (&[Stranger], plain, vec![json!({"op": "write", "file": "wal/7", "hex": "ff"})]),
        (&[EmptyBehindGap], plain, vec![json!({"op": "write", "file": behind(1), "hex": ""})]),
        (&[Gap], plain, moved(0)),
        (&[WideGap], plain, moved(10_000)),
    ];
    assert!(last_len > 0);
    for (expected, base, edits) in cases {
        let disk = FaultyDisk::new();
        load(&disk, &data_dir().join(base), Path::new(DB));
        edits.iter().for_each(|one| edit(&disk, one));
        let registry = Registry::new();
        let open = |registry: &Registry| {
            let metrics = WalMetrics::new(registry, "t");
            open_log(&disk, Path::new(WAL), &metrics, |_| {}).unwrap()
        };
        let found: Vec<_> = open(&registry).cases.into_iter().collect();
        let counted: Vec<_> = expected.iter().map(|case| (*case, 1)).collect();
        assert_eq!(found, counted, "{edits:?}");
        for case in expected {
            let label = case.label();
            let line = format!("ringest_wal_repairs_total{{case=\"{label}\",tenant=\"t\"}} 1");
            let other = format!("ringest_wal_repairs_total{{tenant=\"t\",case=\"{label}\"}} 1");
            let page = registry.expose();
            assert!(page.lines().any(|shown| shown == line || shown == other), "{line}\n{page}");
        }
        let again: Vec<_> = open(&Registry::new()).cases.into_keys().collect();
        // What is too wide to fill stays so.
        let stays: &[RepairCase] = if expected == [WideGap] { &[WideGap] } else { &[] };
        assert_eq!(again, stays, "{edits:?}");
    }
}

/// A log of these records, as after a kill. Where each fragment starts in its one segment.
fn killed_log(disk: &FaultyDisk, compression: Compression, records: &[Vec<u8>]) -> Vec<usize> {
    let options = WalOptions { segment_bytes: 1 << 20, compression, sync: SyncPolicy::Interval };
    let mut wal = Wal::open(Arc::new(disk.clone()), Path::new(WAL), options, metrics()).unwrap();
    for record in records {
        let _ = wal.append(&[record]).unwrap();
    }
    let bytes = bytes_of(disk, &Path::new(WAL).join("00000000"));
    let mut starts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        starts.push(at);
        at += 7 + usize::from(u16::from_be_bytes([bytes[at + 1], bytes[at + 2]]));
    }
    assert_eq!(at, bytes.len());
    starts
}

fn samples_record(count: u64, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let bits = |i: u64| (i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let samples = (0..count).map(|i| (crate::model::HeadSeriesRef(i), 1000, bits(i)));
    crate::tsdb::wal::record::encode_samples(&mut bytes, samples);
    bytes
}

fn read_back(disk: &FaultyDisk) -> (Vec<Vec<u8>>, LogContents) {
    let mut records = Vec::new();
    let take = |found: LogRecord<'_>| records.push(found.bytes.to_vec());
    let contents = open_log(disk, Path::new(WAL), &metrics(), take).unwrap();
    (records, contents)
}

/// The checksum is the payload's alone. A changed length or type made the last record look like one
/// that was being written, and it was cut off.
#[test]
fn a_header_is_mended_where_the_checksum_calls_the_payload_whole() {
    let path = Path::new(WAL).join("00000000");
    // The third reaches over the end of its page, as does the last.
    let records: Vec<_> = [20, 300, 3000, 7, 3000]
        .into_iter()
        .zip(0..)
        .map(|(count, seed)| samples_record(count, seed << 32))
        .collect();
    for compression in [Compression::None, Compression::Snappy, Compression::Zstd] {
        for (last, fragments, of_interest) in [(4, 5, 4..5), (5, 7, 0..7)] {
            let records = &records[..last];
            let written = FaultyDisk::new();
            let starts = killed_log(&written, compression, records);
            assert_eq!(starts.len(), fragments);
            let starts = &starts[of_interest];
            // Of the type byte all that mean something, of the length some.
            let bits = [3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 19, 23];
            for (start, bit) in starts.iter().flat_map(|start| bits.map(|bit| (start, bit))) {
                let disk = written.after_kill();
                let mut bytes = bytes_of(&disk, &path);
                bytes[start + bit / 8] ^= 0x80 >> (bit % 8);
                put(&disk, &path, &bytes);
                let (found, contents) = read_back(&disk);
                let context = format!("{compression:?}, bit {bit} at {start}: {contents:?}");
                assert!(found == records, "{context}");
                assert_eq!(contents.cut, None, "{context}");
                // Both flags of compression mean the first one.
                if bit >= 8 || contents.damage_count > 0 {
                    let kinds: Vec<_> =
                        contents.damage.iter().map(|(_, found)| found.kind).collect();
                    assert_eq!(kinds, [DamageKind::Mended], "{context}");
                    assert_eq!(contents.rewritten, [path.as_path()]);
                    assert_eq!(bytes_of(&disk, &path.with_extension("damaged")), bytes);
                }
                let (again, contents) = read_back(&disk);
                assert!(again == records && contents.damage_count == 0, "{context}");
            }
        }
    }
}

#[test]
fn an_end_is_not_torn_where_something_whole_lies_behind() {
    let path = Path::new(WAL).join("00000000");
    let records = [samples_record(20, 0), samples_record(20, 1), vec![99, 1, 2, 3]];
    let disk = FaultyDisk::new();
    let starts = killed_log(&disk, Compression::None, &records);
    let mut bytes = bytes_of(&disk, &path);
    // Nothing tells its length any more.
    bytes[starts[1] + 1] = 0x70;
    bytes[starts[1] + 20] ^= 1;
    put(&disk, &path, &bytes);
    let (found, contents) = read_back(&disk);
    assert_eq!(found, [records[0].clone()]);
    assert_eq!((contents.damage_count, contents.cut), (1, None));
    assert_eq!(bytes_of(&disk, &path.with_extension("damaged")), bytes);
}
