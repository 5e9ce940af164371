//! A series in chunks, in memory and in files.

use std::path::Path;

use super::*;
use crate::disk::faulty::FaultyDisk;
use crate::metrics::Registry;
use crate::model::HeadSeriesRef;
use crate::tsdb::chunkenc::samples::{Value, value_in};
use crate::tsdb::chunkenc::xor::XorIterator;

const RANGE: i64 = 7_200_000;

/// One series, in slot 0, and files on a disk in memory.
fn states() -> States {
    let disk = Arc::new(FaultyDisk::new());
    let files = HeadChunkFiles::new(disk, Path::new("/db"), 4096, &Registry::new(), "t");
    let mut states = States::new(Arc::new(files));
    states.push(SeriesState::new(HeadSeriesRef(1)));
    states
}

impl States {
    /// Writes at most so many full chunks to files.
    fn write(&mut self, count: usize) {
        let Some(end) = self.waiting_end() else { return };
        let next = self.next_to_write(end, count);
        let chunks: Vec<_> = next.iter().map(|(.., chunk)| chunk.clone()).collect();
        let (places, result) = self.files.append(&chunks);
        result.unwrap();
        let written = next.iter().zip(places);
        self.settle(written.map(|((id, slot, _), place)| (*id, *slot, place)));
    }

    fn loaded(&self, mint: Timestamp, maxt: Timestamp) -> Vec<HeadChunk> {
        let mut chunks = Vec::new();
        self.chunks_in(0, mint, maxt, |chunk| chunks.push(chunk.load().unwrap()));
        chunks
    }

    /// All samples, each chunk's times checked.
    fn samples(&self) -> Vec<(Timestamp, u64)> {
        let of_chunk = |chunk: &HeadChunk| {
            let samples: Vec<_> = XorIterator::new(&chunk.bytes).map(Result::unwrap).collect();
            assert_eq!((samples[0].0, samples[samples.len() - 1].0), (chunk.mint, chunk.maxt));
            samples
        };
        self.loaded(i64::MIN, i64::MAX).iter().flat_map(of_chunk).collect()
    }
}

#[test]
fn chunks_are_cut_where_prometheus_cuts() {
    let file = include_str!("../../../../tests/data/chunks/cuts.json");
    let file: serde_json::Value = serde_json::from_str(file).unwrap();
    for case in file["cases"].as_array().unwrap() {
        let number = |field: &str| case[field].as_i64().unwrap();
        let mut states = states();
        for i in 0..number("count") {
            let jitter = case["jitter"].get(i as usize).map_or(0, |j| j.as_i64().unwrap());
            let t = number("first") + i * number("step") + jitter;
            let v = match case["value"].as_str().unwrap() {
                "zero" => 0,
                "index" => (i as f64).to_bits(),
                "mixed" => {
                    (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2 | 0x3000_0000_0000_0000
                }
                other => panic!("unknown value rule {other}"),
            };
            states.append(0, t, v, number("block_ms"));
        }
        let chunks = |states: &States| {
            let chunks = states.loaded(i64::MIN, i64::MAX).into_iter().map(|chunk| {
                let samples = XorIterator::new(&chunk.bytes).count();
                serde_json::json!([chunk.mint, chunk.maxt, samples, chunk.bytes.len()])
            });
            serde_json::Value::from(chunks.collect::<Vec<_>>())
        };
        assert_eq!(chunks(&states), case["chunks"], "{}", case["name"]);
        states.write(usize::MAX);
        assert_eq!(chunks(&states), case["chunks"], "{} from files", case["name"]);
    }
}

#[test]
fn a_stored_value_is_found_in_its_chunk_wherever_that_is() {
    let mut states = states();
    for i in 0..500 {
        states.append(0, i * 1000, i as u64, RANGE);
    }
    for written in [0, 1, usize::MAX] {
        states.write(written);
        let value_at = |t| {
            let chunk = states.chunk_at(0, t)?.load().unwrap();
            value_in(chunk.encoding, &chunk.bytes, t)
        };
        assert_eq!(value_at(3000), Some(Value::Float(3)));
        assert_eq!(value_at(499_000), Some(Value::Float(499)));
        assert_eq!(value_at(3001), None);
        assert_eq!(value_at(500_000), None);
        let state = states.get(0);
        assert!(state.chunk_count() > 1);
        assert!(state.overlaps(0, 0) && !state.overlaps(-10, -1));
        assert!(!state.overlaps(500_000, 600_000));
    }
}

#[test]
fn what_is_before_a_time_is_dropped_and_nothing_else() {
    for mint in [-5, 0, 1, 119, 120, 121, 240, 333, 399, 400] {
        for written in [0, 1, 2, usize::MAX] {
            let context = format!("from {mint}, {written} written");
            let mut states = states();
            let all: Vec<_> = (0..400).map(|i| (i, i as u64 * 3)).collect();
            for (t, v) in &all {
                states.append(0, *t, *v, RANGE);
            }
            states.write(written);
            let before = states.get(0).chunk_count();
            let dropped = states.drop_before(0, mint);
            if let Some(chunk) = dropped.to_shorten {
                let mut bytes = Vec::new();
                chunk.read(&mut bytes).unwrap();
                states.shorten(0, &chunk, mint, (ENCODING_XOR, &bytes));
                // Once more does nothing.
                states.shorten(0, &chunk, mint, (ENCODING_XOR, &bytes));
            }
            let mut kept: Vec<_> = all.into_iter().filter(|(t, _)| *t >= mint).collect();
            assert_eq!(states.samples(), kept, "{context}");
            let state = states.get(0);
            assert_eq!(state.first_time(), kept.first().map(|(t, _)| *t));
            assert_eq!(state.chunk_count() + dropped.chunks, before, "{context}");
            // It goes on where it was.
            for t in 500..700 {
                states.append(0, t, 7, RANGE);
                kept.push((t, 7));
            }
            states.write(usize::MAX);
            assert_eq!(states.samples(), kept, "{context}");
            // Only what is referred to keeps its file.
            states.clear(0);
            states.files.remove_dead().unwrap();
            assert!(states.files.numbers().is_empty(), "{context}");
        }
    }
}

#[test]
fn a_chunk_that_was_found_is_read_though_its_file_is_removed() {
    let mut states = states();
    for t in 0..400 {
        states.append(0, t, 1, RANGE);
    }
    states.write(usize::MAX);
    let mut found = Vec::new();
    states.chunks_in(0, 0, 400, |chunk| found.push(chunk));
    let expected = states.samples();
    states.clear(0);
    states.files.remove_dead().unwrap();
    assert!(states.files.numbers().is_empty());
    let chunks = found.into_iter().map(|chunk| chunk.load().unwrap());
    let samples: Vec<_> = chunks
        .flat_map(|chunk| XorIterator::new(&chunk.bytes).flatten().collect::<Vec<_>>())
        .collect();
    assert_eq!(samples, expected);
}

#[test]
fn samples_are_taken_out_of_chunks_wherever_these_are() {
    for written in [0, 1, 2, usize::MAX] {
        let mut states = states();
        for t in 0..400 {
            states.append(0, t, 1, RANGE);
        }
        states.write(written);
        let files = states.files.numbers();
        // All of the second chunk, and some of the others.
        let second = states.get(0).full.iter().nth(1).unwrap();
        let keep = |t: i64| t % 7 != 0 && !(second.mint..=second.maxt).contains(&t);
        let some: Vec<_> = states.samples().into_iter().filter(|(t, _)| keep(*t)).collect();
        states.retain(0, keep).unwrap();
        assert_eq!(states.samples(), some);
        // What is left of chunks in files is not written, and keeps these.
        states.write(usize::MAX);
        assert_eq!(states.samples(), some);
        states.files.remove_dead().unwrap();
        assert_eq!(states.files.numbers().first(), files.first().or(Some(&1)), "{written}");
        states.clear(0);
        states.files.remove_dead().unwrap();
        assert!(states.files.numbers().is_empty(), "{written}");
    }
}

#[test]
fn a_shortened_chunk_keeps_its_turn() {
    let mut states = states();
    for t in 0..400 {
        states.append(0, t, 1, RANGE);
    }
    let before: Vec<_> = states.get(0).full.iter().map(|chunk| chunk.maxt).collect();
    let _ = states.drop_before(0, 50);
    let end = states.waiting_end().unwrap();
    let order: Vec<_> = states.next_to_write(end, 9).iter().map(|(.., chunk)| chunk.maxt).collect();
    assert_eq!(order, before);
    assert_eq!(states.next_to_write(end, 1)[0].2.mint, 50);
}

#[test]
fn a_gap_is_filled_once() {
    let mut states = states();
    let chunk = |range: std::ops::Range<i64>| {
        let mut open = OpenChunk::begin(range.start, &Value::Float(1));
        for t in range.skip(1) {
            assert!(open.append(t, &Value::Float(1)).is_none());
        }
        open
    };
    assert!(states.insert(0, chunk(0..10), false));
    assert!(states.insert(0, chunk(20..30), false));
    assert!(!states.insert(0, chunk(9..12), false));
    assert!(states.insert(0, chunk(10..20), false));
    assert_eq!(states.samples().len(), 30);
    states.write(usize::MAX);
    assert_eq!((states.samples().len(), states.waiting_end()), (30, None));
}
