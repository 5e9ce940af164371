//! Files of head chunks: recorded ones, damaged ones, and what is written and read back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::scan::{MappedChunk, ScanReport};
use super::*;
use crate::disk::SystemDisk;
use crate::disk::faulty::FaultyDisk;
use crate::model::stop;
use crate::tsdb::chunkenc::ENCODING_XOR;
use crate::tsdb::chunkenc::xor::XorState;
use crate::tsdb::head::tests::{dump, open, recorded_number};
use crate::tsdb::options::DbOptions;
use crate::tsdb::refs::tests::{copy_dir, data, data_dir, edit, unhex};

fn files_in(disk: impl Disk, dir: &Path, file_bytes: u64) -> HeadChunkFiles {
    HeadChunkFiles::new(Arc::new(disk), dir, file_bytes, &Registry::new(), "t")
}

fn scan(files: &HeadChunkFiles) -> (Vec<MappedChunk>, ScanReport) {
    let mut chunks = Vec::new();
    let report = files.open(i64::MIN, &mut |chunk| chunks.push(chunk)).unwrap();
    chunks.iter().for_each(|chunk| files.hold(chunk.place));
    (chunks, report)
}

fn read(files: &HeadChunkFiles, chunk: &MappedChunk) -> FullChunk {
    let &MappedChunk { series_ref, mint, maxt, encoding, place } = chunk;
    let mut bytes = Vec::new();
    assert_eq!(files.chunk(mint, maxt, place).read(&mut bytes).unwrap(), encoding);
    FullChunk { series_ref, mint, maxt, encoding, bytes }
}

fn numbers(random: &mut u64) -> u64 {
    *random =
        random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

fn chunk(random: &mut u64, series_ref: u64, mint: Timestamp) -> FullChunk {
    let (mut xor, mut bytes) = (XorState::default(), thin_vec::ThinVec::new());
    for i in 0..1 + numbers(random) as i64 % 120 {
        xor.append(&mut bytes, mint + i * 15_000, numbers(random));
    }
    xor.finish(&mut bytes);
    let series_ref = HeadSeriesRef(series_ref);
    FullChunk { series_ref, mint, maxt: xor.t, encoding: ENCODING_XOR, bytes: bytes.to_vec() }
}

#[test]
fn recorded_chunks_are_read_and_what_is_written_has_their_bytes() {
    let recorded = data("head_chunks/mapper.json");
    let temporary = tempfile::tempdir().unwrap();
    copy_dir(&data_dir().join("head_chunks/mapper"), temporary.path());
    let files = files_in(SystemDisk, temporary.path(), FILE_BYTES);
    let (chunks, report) = scan(&files);
    let written = recorded["written"].as_array().unwrap();
    let number = |chunk: &Value, i: usize| chunk[i].as_i64().unwrap();
    let in_order = written.iter().filter(|chunk| chunk[4] == false);
    let expected: Vec<_> = in_order
        .map(|chunk| FullChunk {
            series_ref: HeadSeriesRef(chunk[0].as_u64().unwrap()),
            mint: number(chunk, 1),
            maxt: number(chunk, 2),
            encoding: number(chunk, 3) as u8,
            bytes: unhex(chunk[7].as_str().unwrap()),
        })
        .collect();
    assert!(expected.len() > 10);
    let found: Vec<_> = chunks.iter().map(|chunk| read(&files, chunk)).collect();
    assert!(found == expected);
    let histograms = expected.iter().filter(|chunk| chunk.encoding != ENCODING_XOR).count();
    let late = written.iter().filter(|chunk| chunk[4] == true).count();
    assert!(histograms > 0 && late > 0);
    assert_eq!((report.others, report.damaged), (late as u64, 0));

    // Each by itself, as it lies in the recorded file.
    for chunk in written.iter().filter(|chunk| number(chunk, 3) == 1 && chunk[4] == false) {
        let name = format!("chunks_head/{:06}", number(chunk, 5));
        let recorded = std::fs::read(data_dir().join("head_chunks/mapper").join(name)).unwrap();
        let mut bytes = Vec::new();
        let head = format::Head {
            series_ref: HeadSeriesRef(chunk[0].as_u64().unwrap()),
            mint: number(chunk, 1),
            maxt: number(chunk, 2),
            encoding: 1,
        };
        format::push_chunk(&mut bytes, head, &unhex(chunk[7].as_str().unwrap()));
        let offset = number(chunk, 6) as usize;
        assert_eq!(recorded[offset..offset + bytes.len()], bytes);
    }
}

#[test]
fn what_is_written_is_found_again_over_many_files() {
    let disk = FaultyDisk::new();
    let dir = Path::new("/db");
    let mut random = 7;
    let files = files_in(disk.after_kill(), dir, 8192);
    let mut all = Vec::new();
    for i in 0..60_u64 {
        let chunks: Vec<_> = (1..=i % 5 + 1)
            .map(|series| chunk(&mut random, series, i as i64 * 7_200_000))
            .collect();
        let (places, result) = files.append(&chunks);
        result.unwrap();
        places.iter().for_each(|place| files.hold(*place));
        for (chunk, place) in chunks.into_iter().zip(places) {
            let &FullChunk { series_ref, mint, maxt, encoding, .. } = &chunk;
            let mapped = MappedChunk { series_ref, mint, maxt, encoding, place };
            assert!(read(&files, &mapped) == chunk);
            all.push(chunk);
        }
    }
    let written = files.numbers();
    assert!(written.len() > 5, "{written:?}");
    assert_eq!(written, (1..=written.len() as u64).collect::<Vec<_>>());
    for number in &written {
        let path = dir.join(HEAD_CHUNKS_DIR).join(file_name(*number));
        assert!(files.disk.open(&path).unwrap().len().unwrap() <= 8192);
    }
    let again = HeadChunkFiles { files: RwLock::default(), ..files };
    let (chunks, report) = scan(&again);
    let found: Vec<_> = chunks.iter().map(|chunk| read(&again, chunk)).collect();
    assert!(found == all);
    assert_eq!((report.damaged, report.highest_ref), (0, 5));

    // The front goes as far as nothing is referred to; a new file follows the last.
    let first_file = |chunk: &&MappedChunk| chunk.place.file() < 2;
    chunks.iter().filter(first_file).for_each(|chunk| again.let_go(chunk.place));
    let in_fourth = chunks.iter().filter(|chunk| chunk.place.file() == 3);
    in_fourth.for_each(|chunk| again.let_go(chunk.place));
    again.remove_dead().unwrap();
    assert_eq!(again.numbers(), written[2..]);
    let (places, result) = again.append(&all[..1]);
    result.unwrap();
    assert_eq!(again.numbers().last(), Some(&(written.len() as u64 + 1)));
    // In the place of the first, which is free.
    assert_eq!(places[0].file(), 0);
    again.hold(places[0]);
    let &FullChunk { series_ref, mint, maxt, encoding, .. } = &all[0];
    let mapped = MappedChunk { series_ref, mint, maxt, encoding, place: places[0] };
    assert!(read(&again, &mapped) == all[0]);
    // A place that now has another chunk gives that to nobody.
    let stranger = again.chunk(mint + 1, maxt, places[0]);
    assert!(matches!(stranger.read(&mut Vec::new()), Err(ReadError::Corrupt(_))));
}

/// Any damage costs the chunks that it touches, at the second opening as at the first.
#[test]
fn damage_costs_what_it_touches() {
    let seed = getrandom::u64().unwrap();
    println!("seed {seed}");
    let mut random = seed;
    let dir = Path::new("/db");
    for round in 0..400 {
        let disk = FaultyDisk::new();
        let path = dir.join(HEAD_CHUNKS_DIR).join("000001");
        let (mut bytes, mut all) = (format::HEADER.to_vec(), Vec::new());
        for i in 0..1 + numbers(&mut random) % 12 {
            let chunk = chunk(&mut random, 1 + i, 1000);
            let start = bytes.len();
            let &FullChunk { series_ref, mint, maxt, .. } = &chunk;
            format::push_chunk(
                &mut bytes,
                format::Head { series_ref, mint, maxt, encoding: 1 },
                &chunk.bytes,
            );
            all.push((start..bytes.len(), chunk));
        }
        let whole_len = bytes.len();
        let at = numbers(&mut random) as usize % bytes.len();
        let touched = match round % 5 {
            0 => {
                bytes[at] ^= 1 << (numbers(&mut random) % 8);
                at..at + 1
            }
            1 => {
                let end = (at + numbers(&mut random) as usize % 2000).min(bytes.len());
                bytes[at..end].fill(0);
                at..end
            }
            2 => {
                bytes.truncate(at);
                at..whole_len
            }
            3 => {
                bytes.extend((0..numbers(&mut random) % 300).map(|i| (i * i) as u8));
                whole_len..whole_len
            }
            _ => {
                let noise: Vec<_> =
                    (0..1 + numbers(&mut random) % 90).map(|i| (i * 7) as u8).collect();
                bytes.splice(at..at, noise);
                at..at + 1
            }
        };
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        disk.create(&path).unwrap().write_all_at(&bytes, 0).unwrap();
        let files = files_in(disk.after_kill(), dir, FILE_BYTES);
        let (found, report) = scan(&files);
        let found: Vec<_> = found.iter().map(|chunk| read(&files, chunk)).collect();
        // A splice at a chunk's beginning touches none.
        let is_touched = |range: &std::ops::Range<usize>| {
            let begins = touched.start.max(range.start + usize::from(round % 5 == 4));
            begins < touched.end.min(range.end)
        };
        let expected: Vec<_> = all
            .iter()
            .filter(|(range, _)| !is_touched(range))
            .map(|(_, chunk)| chunk.clone())
            .collect();
        let kept: Vec<_> = expected.iter().filter(|chunk| found.contains(chunk)).collect();
        assert_eq!(kept.len(), expected.len(), "round {round}: {report:?}");
        // Zeros may have been written over zeros.
        assert!(found.iter().all(|chunk| all.iter().any(|(_, one)| one == chunk)), "round {round}");
        let again = HeadChunkFiles { files: RwLock::default(), ..files };
        let (found_again, second) = scan(&again);
        assert!(second.damaged <= report.damaged, "round {round}");
        let found_again: Vec<_> = found_again.iter().map(|chunk| read(&again, chunk)).collect();
        assert!(found_again == found, "round {round}");
    }
}

/// A start that ends while a file is written anew loses nothing of it.
#[test]
fn a_file_without_its_header_is_written_anew_whenever_the_power_goes() {
    let dir = Path::new("/db");
    let path = dir.join(HEAD_CHUNKS_DIR).join("000001");
    let mut random = 3;
    let all: Vec<_> = (1..6).map(|series| chunk(&mut random, series, 1000)).collect();
    let mut bytes = format::HEADER.to_vec();
    for chunk in &all {
        let &FullChunk { series_ref, mint, maxt, .. } = chunk;
        format::push_chunk(
            &mut bytes,
            format::Head { series_ref, mint, maxt, encoding: 1 },
            &chunk.bytes,
        );
    }
    bytes[1] ^= 1;
    let mut stops = 0;
    loop {
        let disk = FaultyDisk::new();
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = disk.create(&path).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file.sync().unwrap();
        for dir in path.ancestors().skip(1) {
            disk.sync_dir(dir).unwrap();
        }
        let disk = disk.after_power_cut();
        let before = disk.operations();
        disk.fail_all_operations(stops);
        let _ = files_in(disk.clone(), dir, FILE_BYTES).open(i64::MIN, &mut |_| {});
        let is_done = disk.operations() - before <= stops;
        for after in [disk.after_kill(), disk.after_power_cut()] {
            let files = files_in(after, dir, FILE_BYTES);
            let (found, _) = scan(&files);
            let found: Vec<_> = found.iter().map(|chunk| read(&files, chunk)).collect();
            assert!(found == all, "stopped at {stops}: {} chunks", found.len());
        }
        if is_done {
            break;
        }
        stops += 1;
    }
    assert!(stops > 6, "{stops}");
}

/// Labels to samples by time: bits, or the digest of a histogram.
fn samples_of(recorded: &Value) -> BTreeMap<String, BTreeMap<i64, String>> {
    let mut all = BTreeMap::new();
    for series in recorded.as_array().unwrap() {
        let samples = series["samples"].as_array().unwrap().iter();
        let samples =
            samples.map(|s| (s[0].as_i64().unwrap(), format!("{:016x}", recorded_number(s))));
        let samples: BTreeMap<_, _> = samples.collect();
        if !samples.is_empty() {
            all.insert(series["labels"].to_string(), samples);
        }
    }
    all
}

fn dump_of(dir: &Path) -> BTreeMap<String, BTreeMap<i64, String>> {
    let db = open(dir, &DbOptions::default());
    let dump = dump(&db).into_iter();
    let all = dump.map(|(labels, samples)| {
        let labels: Vec<_> = labels.iter().map(|(name, value)| [name, value]).collect();
        let samples = samples.into_iter().map(|(t, v)| (t, format!("{v:016x}")));
        (serde_json::json!(labels).to_string(), samples.collect::<BTreeMap<_, _>>())
    });
    let all = all.filter(|(_, samples)| !samples.is_empty()).collect();
    db.close().unwrap();
    all
}

/// Where the log has all, damage costs nothing; else what it touches.
#[test]
fn recorded_damage_costs_no_sample_that_anything_has() {
    let cases = data("head_chunks/damaged.json");
    let mapped = samples_of(&data("head_chunks/mapped.json")["series"]);
    let wal_lost = samples_of(&cases["bases"]["wal-lost"]["series"]);
    for case in cases["cases"].as_array().unwrap() {
        let (name, base) = (case["name"].as_str().unwrap(), case["base"].as_str().unwrap());
        let temporary = tempfile::tempdir().unwrap();
        copy_dir(&data_dir().join("head_chunks").join(base), temporary.path());
        let edits = case["edits"].as_array().unwrap();
        edits.iter().for_each(|one| edit(temporary.path(), one));
        let found = dump_of(temporary.path());
        match base {
            "mapped" => assert!(found == mapped, "{name}: {found:?}"),
            _ => {
                let lost =
                    |found: &BTreeMap<String, BTreeMap<i64, String>>| -> BTreeSet<(String, i64)> {
                        let of_series = |(labels, samples): (&String, &BTreeMap<i64, String>)| {
                            let found = found.get(labels).cloned().unwrap_or_default();
                            let lost = samples.keys().filter(|t| !found.contains_key(t));
                            lost.map(|t| (labels.clone(), *t)).collect::<Vec<_>>()
                        };
                        wal_lost.iter().flat_map(of_series).collect()
                    };
                let strangers = found.iter().any(|(labels, samples)| {
                    samples.iter().any(|(t, v)| wal_lost[labels].get(t) != Some(v))
                });
                assert!(!strangers, "{name}");
                let lost_here = lost(&found).len();
                let what = name.split_once(": ").unwrap().1;
                let most = match what {
                    "undamaged"
                    | "zero tail"
                    | "cut in chunk header, zeros remain"
                    | "foreign file"
                    | "files renumbered from 5"
                    | "chunk twice" => 0,
                    _ if what.starts_with("garbage tail")
                        || what.starts_with("magic")
                        || what == "version 2" =>
                    {
                        0
                    }
                    "directory missing" => 12 * 120,
                    _ if edits.iter().any(|e| e["op"] == "delete" || e["op"] == "truncate") => {
                        4 * 120
                    }
                    _ => 120,
                };
                assert!(lost_here <= most, "{name}: {lost_here} samples are lost");
            }
        }
        // Once more, with what the first opening left.
        assert!(dump_of(temporary.path()) == found, "{name}, opened again");
    }
}

/// Of what could not be written as a whole the rest is written later, and nothing twice or in part.
#[test]
fn what_a_full_disk_took_is_told() {
    let disk = FaultyDisk::new();
    let dir = Path::new("/db");
    let mut random = 5;
    let all: Vec<_> = (1..40).map(|series| chunk(&mut random, series, 1000)).collect();
    for operation in 0..20 {
        let disk = disk.after_kill();
        let files = files_in(disk.clone(), dir, 4096);
        disk.create_dir_all(&dir.join(HEAD_CHUNKS_DIR)).unwrap();
        [Path::new("/"), dir].into_iter().for_each(|dir| disk.sync_dir(dir).unwrap());
        disk.fail_operation(operation, std::io::ErrorKind::StorageFull, 700);
        let (places, result) = files.append(&all);
        assert_eq!(result.is_ok(), places.len() == all.len());
        places.iter().for_each(|place| files.hold(*place));
        let mut written = places.len();
        while disk.pending_faults() > 0 || written < all.len() {
            let (rest, _) = files.append(&all[written..]);
            rest.iter().for_each(|place| files.hold(*place));
            written += rest.len();
            let _ = files.sync();
            // One more operation, where there is none left to do.
            let _ = disk.sync_dir(dir);
        }
        files.sync().unwrap();
        for after in [disk.after_kill(), disk.after_power_cut()] {
            let again = files_in(after, dir, 4096);
            let (found, report) = scan(&again);
            assert_eq!(report.damaged, 0, "at {operation}");
            let found: Vec<_> = found.iter().map(|chunk| read(&again, chunk)).collect();
            assert!(found == all, "at {operation}: {} of {}", found.len(), all.len());
        }
    }
}

/// A power cut leaves files before the last one whole.
#[test]
fn only_the_last_file_can_lack_its_end_after_a_power_cut() {
    let disk = FaultyDisk::new();
    let dir = Path::new("/db");
    let mut random = 9;
    let files = files_in(disk.clone(), dir, 4096);
    disk.create_dir_all(dir).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let all: Vec<_> = (1..60).map(|series| chunk(&mut random, series, 1000)).collect();
    files.append(&all).1.unwrap();
    disk.sync_dir(dir).unwrap();
    let last = *files.numbers().last().unwrap();
    assert!(last > 3);
    let cut = disk.after_power_cut();
    for number in 1..last {
        let path = dir.join(HEAD_CHUNKS_DIR).join(file_name(number));
        let [now, before] = [&cut, &disk].map(|disk| crate::disk::read_file(disk, &path, 1 << 20));
        assert!(now.unwrap() == before.unwrap(), "{number}");
    }
}

#[test]
fn a_file_without_a_byte_gets_its_header() {
    for bytes in [&[][..], &[0; 3], &[0; 5000]] {
        let disk = FaultyDisk::new();
        let path = Path::new("/db").join(HEAD_CHUNKS_DIR).join("000001");
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        disk.create(&path).unwrap().write_all_at(bytes, 0).unwrap();
        for damaged in [1, 0] {
            let (found, report) = scan(&files_in(disk.clone(), Path::new("/db"), FILE_BYTES));
            assert_eq!((found.len(), report.damaged), (0, damaged));
        }
        let names = disk.list(path.parent().unwrap()).unwrap();
        assert_eq!(names.len(), 1, "no original is kept of nothing");
    }
}

/// Numbers of the files that are sealed.
fn sealed(files: &HeadChunkFiles, failures: u64) -> Vec<u64> {
    let sealed = files.seal(&|| failures).unwrap();
    let numbers = files.by_number().into_iter();
    let is_sealed = |place| ChunkPlace::new(place, 8).is_some_and(|at| sealed.holds(at));
    numbers.filter(|(_, place)| is_sealed(*place)).map(|(file, _)| file.number).collect()
}

#[test]
fn files_are_sealed_from_the_first_on_while_prometheus_would_read_them() {
    let (disk, dir) = (FaultyDisk::new(), Path::new("/db"));
    let mut random = 1;
    let open = |disk: &FaultyDisk| {
        let files = files_in(disk.clone(), dir, 4096);
        let (chunks, report) = scan(&files);
        (files, chunks, report)
    };
    let (files, ..) = open(&disk);
    assert_eq!(sealed(&files, 0), [0; 0]);
    let mut place = None;
    for i in 1..=3 {
        let (places, result) = files.append(&[chunk(&mut random, i, 0)]);
        result.unwrap();
        places.iter().for_each(|place| files.hold(*place));
        place = places.first().copied().or(place);
        // What is sealed gets no other byte.
        assert_eq!(sealed(&files, 0), (1..=i).collect::<Vec<_>>());
    }
    // All of it survives a power cut.
    let (files, chunks, _) = open(&disk.after_power_cut());
    assert_eq!((chunks.len(), sealed(&files, 0)), (3, vec![1, 2, 3]));
    // One that is damaged ends it, also when it was sealed before.
    let second = disk.open_write(Path::new("/db/chunks_head/000002")).unwrap();
    let mut byte = [0];
    second.read_at(&mut byte, 40).unwrap();
    second.write_all_at(&[byte[0] ^ 1], 40).unwrap();
    assert_eq!(sealed(&open(&disk).0, 0), [1]);
    second.write_all_at(&byte, 40).unwrap();
    // And one that is not there.
    let other = disk.after_kill();
    other.remove_file(Path::new("/db/chunks_head/000002")).unwrap();
    assert_eq!(sealed(&open(&other).0, 0), [1]);
    // And a chunk behind a later one of its series.
    let (files, ..) = open(&disk);
    assert_eq!(sealed(&files, 0), [1, 2, 3]);
    let (places, _) = files.append(&[chunk(&mut random, 1, -90_000_000)]);
    files.note_out_of_sequence(places[0]);
    files.append(&[chunk(&mut random, 2, 90_000_000)]).1.unwrap();
    // With one of these a Prometheus takes none at all.
    assert_eq!(sealed(&files, 0), [0; 0]);
}

#[test]
fn what_cannot_be_read_stays_and_costs_no_more_than_itself() {
    let (disk, dir) = (FaultyDisk::new(), Path::new("/db"));
    let files = files_in(disk.clone(), dir, 4096);
    let mut random = 1;
    for i in 1..=3 {
        files.append(&[chunk(&mut random, i, 0)]).1.unwrap();
        files.sync().unwrap();
    }
    let second = Path::new("/db/chunks_head/000002");
    disk.fail_reads(second, std::io::ErrorKind::Other);
    let again = files_in(disk.clone(), dir, 4096);
    let (chunks, report) = scan(&again);
    assert_eq!((chunks.len(), report.damaged, sealed(&again, 0)), (2, 1, vec![1]));
    chunks.iter().for_each(|chunk| again.let_go(chunk.place));
    again.remove_dead().unwrap();
    assert_eq!(again.numbers(), [2, 3]);
    disk.allow_reads(second);
    assert_eq!(scan(&files_in(disk.clone(), dir, 4096)).0.len(), 2);
    // One that cannot be opened is not left out.
    disk.take_descriptors(true);
    files_in(disk, dir, 4096).open(i64::MIN, &mut |_| {}).unwrap_err();
}

#[test]
fn what_a_failed_write_left_is_cut_off_before_the_file_is_sealed() {
    let (disk, dir) = (FaultyDisk::new(), Path::new("/db"));
    let files = files_in(disk.clone(), dir, 4096);
    let mut random = 1;
    let both = [chunk(&mut random, 1, 0), chunk(&mut random, 2, 0)];
    files.append(&both[..1]).1.unwrap();
    // The write fails when the chunk is in the file, and so does cutting it off.
    disk.fail_operation(0, std::io::ErrorKind::Other, 4096);
    disk.fail_operation(1, std::io::ErrorKind::Other, 0);
    files.append(&both[1..]).1.unwrap_err();
    assert_eq!(disk.pending_faults(), 0);
    assert_eq!(sealed(&files, 0), [1]);
    files.append(&both[1..]).1.unwrap();
    assert_eq!(sealed(&files, 0), [1, 2]);
    let (chunks, _) = scan(&files_in(disk, dir, 4096));
    assert_eq!(chunks.len(), 2);
}

#[test]
fn what_could_not_be_synced_is_not_sealed_until_it_is_gone() {
    for is_file_system in [false, true] {
        let (disk, dir) = (FaultyDisk::new(), Path::new("/db"));
        let files = files_in(disk.clone(), dir, 4096);
        scan(&files);
        let mut random = 1;
        let mut add = |files: &HeadChunkFiles, i| {
            let (places, result) = files.append(&[chunk(&mut random, i, 0)]);
            result.unwrap();
            files.hold(places[0]);
            places[0]
        };
        let first = add(&files, 1);
        assert_eq!(sealed(&files, 0), [1]);
        let second = add(&files, 2);
        let mut failures = 0;
        if is_file_system {
            failures = 1;
        } else {
            disk.fail_operation(0, std::io::ErrorKind::Other, 0);
            files.seal(&|| 0).map(drop).unwrap_err();
        }
        assert_eq!(sealed(&files, failures), [1]);
        add(&files, 3);
        assert_eq!(sealed(&files, failures), [1]);
        // Nor by a process after this one.
        let disk = disk.after_kill();
        let again = files_in(disk.clone(), dir, 4096);
        let (chunks, _) = scan(&again);
        assert_eq!((chunks.len(), sealed(&again, 0)), (3, vec![1]));
        again.let_go(first);
        again.let_go(second);
        again.remove_dead().unwrap();
        // Nobody knows how far it went.
        assert_eq!(sealed(&again, 0), [0; 0]);
        chunks.iter().skip(2).for_each(|chunk| again.let_go(chunk.place));
        again.remove_dead().unwrap();
        add(&again, 4);
        assert_eq!(sealed(&again, 0), [4]);
        files.let_go(first);
        files.let_go(second);
        files.remove_dead().unwrap();
        assert_eq!(sealed(&files, failures), [3]);
    }
}

/// Chunks of floats and longer ones, up to more than is read at once.
fn chunks_of_all_lengths(random: &mut u64) -> Vec<FullChunk> {
    let long = [FIRST_READ_BYTES - 40, FIRST_READ_BYTES, 3000, 70_000, 200_000];
    (0..150)
        .map(|i| {
            let mut chunk = chunk(random, i + 1, i as i64 * 1000);
            if numbers(random).is_multiple_of(8) {
                chunk.bytes.resize(long[numbers(random) as usize % long.len()], i as u8);
            }
            chunk
        })
        .collect()
}

#[test]
fn chunks_that_are_read_together_are_those_that_are_read_one_by_one() {
    let seed = getrandom::u64().unwrap();
    println!("seed {seed}");
    let mut random = seed;
    let disk = FaultyDisk::new();
    let files = files_in(disk.after_kill(), Path::new("/db"), 64 << 10);
    let all = chunks_of_all_lengths(&mut random);
    let (places, result) = files.append(&all);
    result.unwrap();
    places.iter().for_each(|place| files.hold(*place));
    assert!(files.numbers().len() > 3);
    let mut set = ChunkSet::default();
    for share in [1, 2, 30, 200] {
        let mut wanted: Vec<_> =
            (0..all.len()).filter(|_| numbers(&mut random).is_multiple_of(share)).collect();
        for i in (1..wanted.len()).rev() {
            wanted.swap(i, numbers(&mut random) as usize % (i + 1));
        }
        set.clear();
        for i in &wanted {
            files.gather(all[*i].mint, all[*i].maxt, places[*i], &mut set);
            set.end_series();
        }
        set.load().unwrap();
        assert_eq!(set.series_count(), wanted.len());
        for (i, chunk) in wanted.iter().enumerate() {
            let found: Vec<_> = set.of(i).map(|chunk| chunk.bytes).collect();
            assert!(found == [&all[*chunk].bytes], "one in {share}");
        }
    }
    // Whoever has nobody that waits reads no more.
    let (waiting, stop) = stop::pair();
    drop(waiting);
    set.clear();
    files.gather(all[0].mint, all[0].maxt, places[0], &mut set);
    set.end_series();
    stop.run(|| set.load()).unwrap();
    assert_eq!(set.of(0).map(|chunk| chunk.bytes.len()).collect::<Vec<_>>(), [0]);
}

#[test]
fn damage_among_chunks_that_are_read_together_is_told_by_its_place() {
    let mut random = 5;
    let disk = FaultyDisk::new();
    let files = files_in(disk.after_kill(), Path::new("/db"), FILE_BYTES);
    let all: Vec<_> = (0..20).map(|i| chunk(&mut random, i + 1, i as i64 * 1000)).collect();
    let (places, result) = files.append(&all);
    result.unwrap();
    places.iter().for_each(|place| files.hold(*place));
    let path = Path::new("/db").join(HEAD_CHUNKS_DIR).join(file_name(1));
    let (first, last) = (places[0], places[all.len() - 1]);
    let want = |skipped: usize| {
        let mut set = ChunkSet::default();
        for (i, chunk) in all.iter().enumerate().filter(|(i, _)| *i != skipped) {
            files.gather(chunk.mint, chunk.maxt, places[i], &mut set);
        }
        set.end_series();
        set
    };
    for damaged in [first, places[7], last] {
        let file = files.disk.open_write(&path).unwrap();
        let at = damaged.offset() + format::FIXED_BYTES as u64 + 8;
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let err = want(usize::MAX).load().unwrap_err();
        let place = format!("{}, byte {}: ", path.display(), damaged.offset());
        assert!(err.to_string().starts_with(&place), "{err}");
        // It costs itself alone.
        let damaged = places.iter().position(|place| *place == damaged).unwrap();
        let mut others = want(damaged);
        others.load().unwrap();
        assert_eq!(others.of(0).filter(|chunk| !chunk.bytes.is_empty()).count(), all.len() - 1);
        file.write_all_at(&byte, at).unwrap();
    }
    // So does another chunk's descriptor.
    let mut set = want(3);
    files.gather(all[3].mint, all[3].maxt + 1, places[3], &mut set);
    assert!(matches!(set.load(), Err(ReadError::Corrupt(_))));
}
