//! What is fuzzed, without a fuzzer: each target takes its seeds, the inputs in `fuzz/corpus/TARGET`
//! (those that once found something), and a few thousand changes of both. `RINGEST_SEED` repeats a run;
//! `cargo +nightly fuzz run TARGET` goes on from there.

#[path = "../../fuzz/targets/block_meta.rs"]
mod block_meta;
#[path = "../../fuzz/targets/capnproto.rs"]
mod capnproto;
#[path = "../../fuzz/targets/chunk_segment.rs"]
mod chunk_segment;
#[path = "../../fuzz/targets/hashrings.rs"]
mod hashrings;
#[path = "../../fuzz/targets/head_chunks.rs"]
mod head_chunks;
#[path = "../../fuzz/targets/histogram_chunk.rs"]
mod histogram_chunk;
#[path = "../../fuzz/targets/index.rs"]
mod index;
#[path = "../../fuzz/targets/log_names.rs"]
mod log_names;
#[path = "../../fuzz/targets/otlp.rs"]
mod otlp;
#[path = "../../fuzz/targets/peer_message.rs"]
mod peer_message;
#[path = "../../fuzz/targets/regex.rs"]
mod regex;
#[path = "../../fuzz/targets/tombstones.rs"]
mod tombstones;
#[path = "../../fuzz/targets/wal_reader.rs"]
mod wal_reader;
#[path = "../../fuzz/targets/write_request.rs"]
mod write_request;
#[path = "../../fuzz/targets/write_request_v2.rs"]
mod write_request_v2;
#[path = "../../fuzz/targets/xor_chunk.rs"]
mod xor_chunk;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

/// Changes of each input that are tried.
const CHANGES: u64 = 400;

/// A small generator whose numbers depend on its seed only (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// A seed of the run's own, or the one that is to be repeated.
fn seed() -> u64 {
    let given = std::env::var("RINGEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| getrandom::u64().unwrap());
    println!("RINGEST_SEED={seed}");
    seed
}

/// Changes an input as a fuzzer does: bits, bytes, runs that are doubled, cut out, or another's.
fn change(input: &mut Vec<u8>, others: &[Vec<u8>], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(4) {
        let (at, other) = (numbers.below(input.len()), &others[numbers.below(others.len())]);
        let end = (at + 1 + numbers.below(16)).min(input.len());
        match numbers.below(7) {
            _ if input.is_empty() => input.push(numbers.next() as u8),
            0 => input[at] ^= 1 << numbers.below(8),
            1 => input[at] = [0, 1, 0x7f, 0x80, 0xff][numbers.below(5)],
            2 => input[at] = numbers.next() as u8,
            3 => drop(input.drain(at..end)),
            4 => {
                let run = input[at..end].to_vec();
                input.splice(at..at, run);
            }
            5 => input.truncate(at),
            _ => {
                let run = &other[numbers.below(other.len())..];
                input.splice(at..at, run.iter().take(64).copied().collect::<Vec<u8>>());
            }
        }
    }
}

/// Tries all of a target's inputs and changes of them. An input that fails is shown.
fn replay(name: &str, seeds: Vec<Vec<u8>>, run: fn(&[u8])) {
    let mut inputs = seeds;
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    for entry in fs::read_dir(corpus).into_iter().flatten() {
        inputs.push(fs::read(entry.unwrap().path()).unwrap());
    }
    let tried = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(input))) {
            println!("{name} fails for b\"{}\"", input.escape_ascii());
            resume_unwind(panic);
        }
    };
    inputs.iter().for_each(|input| tried(input));
    let mut numbers = Numbers(seed());
    for input in &inputs {
        for _ in 0..CHANGES {
            let mut changed = input.clone();
            change(&mut changed, &inputs, &mut numbers);
            tried(&changed);
        }
    }
}

#[test]
fn streams_of_capnproto() {
    replay("capnproto", capnproto::seeds(), capnproto::run);
}

#[test]
fn hashrings_files() {
    replay("hashrings", hashrings::seeds(), hashrings::run);
}

#[test]
fn messages_of_peers() {
    replay("peer_message", peer_message::seeds(), peer_message::run);
}

#[test]
fn exports_of_otlp() {
    replay("otlp", otlp::seeds(), otlp::run);
}

#[test]
fn expressions() {
    replay("regex", regex::seeds(), regex::run);
}

#[test]
fn logs() {
    replay("wal_reader", wal_reader::seeds(), wal_reader::run);
}

#[test]
fn files_of_names_beside_a_log() {
    replay("log_names", log_names::seeds(), log_names::run);
}

#[test]
fn write_requests() {
    replay("write_request", write_request::seeds(), write_request::run);
}

#[test]
fn write_requests_of_2_0() {
    replay("write_request_v2", write_request_v2::seeds(), write_request_v2::run);
}

#[test]
fn chunks() {
    replay("xor_chunk", xor_chunk::seeds(), xor_chunk::run);
}

#[test]
fn histogram_chunks() {
    replay("histogram_chunk", histogram_chunk::seeds(), histogram_chunk::run);
}

#[test]
fn indexes() {
    replay("index", index::seeds(), index::run);
}

#[test]
fn files_of_head_chunks() {
    replay("head_chunks", head_chunks::seeds(), head_chunks::run);
}

#[test]
fn segments_of_chunks() {
    replay("chunk_segment", chunk_segment::seeds(), chunk_segment::run);
}

#[test]
fn manifests_of_blocks() {
    replay("block_meta", block_meta::seeds(), block_meta::run);
}

#[test]
fn tombstones_of_blocks() {
    replay("tombstones", tombstones::seeds(), tombstones::run);
}
