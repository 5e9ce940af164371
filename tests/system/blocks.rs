//! Blocks that we write, in Prometheus and promtool, and beside a head of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use ringest::disk::SystemDisk;
use ringest::tsdb::block::chunks::EncodedChunk;
use ringest::tsdb::block::meta::{BlockMeta, Compaction};
use ringest::tsdb::block::ulid::Ulid;
use ringest::tsdb::block::writer::BlockWriter;
use ringest::tsdb::chunkenc::ENCODING_XOR;
use ringest::tsdb::chunkenc::xor::XorState;
use thin_vec::ThinVec;

use crate::directories::{NO_TARGETS, judge_with_promtool};
use crate::programs::{Prometheus, start_node};
use crate::support::messages::WriteRequest;
use crate::support::node::{DEFAULT_TENANT, Node};
use crate::support::process::wait_until;
use crate::support::remote_read::{Content, Samples, everything};
use crate::support::same::assert_same;

const BLOCK_MS: i64 = 2 * 60 * 60 * 1000;
const STEP_MS: i64 = 30_000;
const CHUNK_SAMPLES: usize = 120;
const SERIES: i64 = 250;

/// Samples of `[mint, mint + two hours)`: many series of one metric and some others, with texts of
/// several scripts.
fn content(mint: i64) -> Content {
    let mut content = Content::new();
    for i in 0..SERIES {
        let name = if i % 9 == 0 { "other_total" } else { "requests_total" };
        let labels = [
            ("__name__", name.to_owned()),
            ("i", i.to_string()),
            ("job", format!("job-{}", i % 4)),
            ("text", format!("gr\u{f6}\u{df}e \u{6f22}\n\"{}\"", i % 3)),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let sample = |n: i64| (mint + n * STEP_MS + i, ((n * i) as f64 / 3.0).to_bits());
        content.insert(labels, (0..BLOCK_MS / STEP_MS).map(sample).collect());
    }
    content
}

struct Chunk {
    mint: i64,
    maxt: i64,
    bytes: Vec<u8>,
}

fn chunks_of(samples: &Samples) -> Vec<Chunk> {
    let chunk = |samples: &[(i64, u64)]| {
        let (mut state, mut bytes) = (XorState::default(), ThinVec::new());
        samples.iter().for_each(|(t, v)| state.append(&mut bytes, *t, *v));
        let (first, last) = (samples[0], samples[samples.len() - 1]);
        Chunk { mint: first.0, maxt: last.0, bytes: state.snapshot(&bytes).to_vec() }
    };
    samples.chunks(CHUNK_SAMPLES).map(chunk).collect()
}

fn write_block(dir: &Path, mint: i64, content: &Content) {
    let ulid = Ulid::new((mint + BLOCK_MS) as u64, mint as u128);
    let mut writer = BlockWriter::create(&SystemDisk, dir, ulid).unwrap();
    let labels = content.keys().flatten();
    let texts: BTreeSet<&str> =
        labels.flat_map(|(name, value)| [&**name, &**value]).chain([""]).collect();
    let symbols: BTreeMap<&str, u32> =
        texts.into_iter().map(|text| (text, writer.add_symbol(text.as_bytes()).unwrap())).collect();
    for (labels, samples) in content {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| (symbols[&**name], symbols[&**value])).collect();
        let chunks = chunks_of(samples);
        let chunks: Vec<_> = chunks
            .iter()
            .map(|Chunk { mint, maxt, bytes }| EncodedChunk {
                mint: *mint,
                maxt: *maxt,
                encoding: ENCODING_XOR,
                bytes,
            })
            .collect();
        writer.add_series(&labels, &chunks).unwrap();
    }
    writer.finish(mint, mint + BLOCK_MS, Compaction::of_head(ulid)).unwrap().unwrap();
}

#[test]
fn a_block_opens_in_prometheus_and_promtool() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let end = now.as_millis() as i64 / BLOCK_MS * BLOCK_MS;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    fs::create_dir(&dir).unwrap();

    // One block alone, which promtool counts through.
    let first = content(end - 2 * BLOCK_MS);
    write_block(&dir, end - 2 * BLOCK_MS, &first);
    // `dump` opens the log, too.
    fs::create_dir(dir.join("wal")).unwrap();
    judge_with_promtool(&dir, &first, &["analyze"]);

    let second = content(end - BLOCK_MS);
    write_block(&dir, end - BLOCK_MS, &second);
    let mut all = first;
    for (labels, samples) in second {
        all.get_mut(&labels).unwrap().extend(samples);
    }
    let prometheus = Prometheus::start(&dir, NO_TARGETS, &[]);
    assert_eq!(prometheus.complaints(), [""; 0]);
    assert_same("what Prometheus serves", &everything(prometheus.address()), &all);
    prometheus.stop();
}

#[test]
fn blocks_and_what_comes_after_them_are_one_answer() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let end = now.as_millis() as i64 / BLOCK_MS * BLOCK_MS;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data").join(DEFAULT_TENANT);
    fs::create_dir_all(&dir).unwrap();
    let mut all = content(end - BLOCK_MS);
    write_block(&dir, end - BLOCK_MS, &all);
    let node = start_node(root.path(), &[]);
    assert_same("what we serve of a block", &everything(&node.http), &all);

    let (labels, samples) = all.iter_mut().next().unwrap();
    let pairs: Vec<_> = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
    let t = now.as_millis() as i64;
    let answer = node.write(DEFAULT_TENANT, &WriteRequest::of(&pairs, t, 7.0));
    assert_eq!(answer.status, 200, "{}", answer.text());
    samples.push((t, 7.0_f64.to_bits()));
    assert_same("what we serve of block and head", &everything(&node.http), &all);
    node.kill();
    let node = start_node(root.path(), &[]);
    assert_same("what we serve after a restart", &everything(&node.http), &all);
    node.stop();
}

/// Writes the nth sample of each of the series, at time `t`, and adds it to `all`.
fn write_round(
    node: &Node,
    (n, t): (i64, i64),
    series: impl Iterator<Item = i64>,
    all: &mut Content,
) {
    let mut request = WriteRequest::default();
    for i in series {
        let labels = [("__name__", "m"), ("i", &*i.to_string()), ("z", "\u{6f22}")];
        let v = (n * i) as f64 / 7.0;
        request = request.with(&labels, &[(t, v)]);
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        all.entry(labels.to_vec()).or_default().push((t, v.to_bits()));
    }
    let answer = node.write(DEFAULT_TENANT, &request);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Samples of five hours, the last ones now: a stop makes blocks of them, and leaves nothing else.
#[test]
fn a_head_is_flushed_into_blocks_that_prometheus_takes_over_and_gives_back() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data").join(DEFAULT_TENANT);
    let node = start_node(root.path(), &[]);
    let mut all = Content::new();
    let mut write = |node: &Node, from: i64, count: i64| {
        for n in 0..count {
            let t = from + n * STEP_MS;
            write_round(node, (n, t), 0..20, &mut all);
        }
        all.clone()
    };
    let count = 5 * 60 * 60 * 1000 / STEP_MS;
    let first = write(&node, now - count * STEP_MS, count);
    assert_same("what we serve of the head", &everything(&node.http), &first);
    node.stop();
    let blocks = fs::read_dir(&dir).unwrap();
    let blocks = blocks.filter(|entry| entry.as_ref().unwrap().path().join("index").exists());
    assert!((3..=4).contains(&blocks.count()), "one for each range of two hours");
    judge_with_promtool(&dir, &first, &[]);
    let prometheus = Prometheus::start(&dir, NO_TARGETS, &[]);
    assert_eq!(prometheus.complaints(), [""; 0]);
    assert_same("what Prometheus serves", &everything(prometheus.address()), &first);
    prometheus.stop();

    let node = start_node(root.path(), &[]);
    assert_same("what we serve of the blocks", &everything(&node.http), &first);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    let second = write(&node, now, 2);
    node.kill();
    let node = start_node(root.path(), &[]);
    assert_same("what we serve of blocks and log", &everything(&node.http), &second);
    node.stop();
}

/// The levels of the blocks in a tenant's directory.
fn levels(dir: &Path) -> Vec<i64> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().parse::<Ulid>().is_ok());
    named
        // One may go meanwhile.
        .filter_map(|entry| fs::read(entry.path().join("meta.json")).ok())
        .map(|meta| BlockMeta::from_bytes(&meta).unwrap().compaction.level)
        .collect()
}

/// Ten minutes in blocks of half a minute become blocks of four and a half.
#[test]
fn blocks_that_are_not_shipped_are_merged_into_ones_that_prometheus_takes_over() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data").join(DEFAULT_TENANT);
    let flags = [
        "--tsdb.min-block-duration=30s",
        "--tsdb.max-block-duration=30s",
        "--tsdb.max-compacted-block-duration=5m",
        "--no-tsdb.flush-on-shutdown",
    ];
    let node = start_node(root.path(), &flags);
    let mut all = Content::new();
    for n in 0..120 {
        let t = now - 600_000 + n * 5_000;
        // Some come and go.
        let series = (0..20).filter(|i| i % 4 > 0 || (n / 10) % 5 == i / 4);
        write_round(&node, (n, t), series, &mut all);
    }
    wait_until("blocks of level 3 are there", || {
        let levels = levels(&dir);
        levels.len() < 10 && levels.iter().any(|level| *level >= 3)
    });
    assert_same("what we serve of merged blocks and the head", &everything(&node.http), &all);
    node.kill();
    judge_with_promtool(&dir, &all, &[]);
    let node = start_node(root.path(), &flags);
    assert_same("what we serve after a restart", &everything(&node.http), &all);
    node.stop();
    let prometheus = Prometheus::start(&dir, NO_TARGETS, &[]);
    assert_eq!(prometheus.complaints(), [""; 0]);
    assert_same("what Prometheus serves", &everything(prometheus.address()), &all);
    prometheus.stop();
}
