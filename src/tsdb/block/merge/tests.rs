use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::slice::from_ref;

use proptest::prelude::*;

use super::*;
use crate::disk::faulty::FaultyDisk;
use crate::disk::{Disk, SystemDisk};
use crate::model::labels::LabelIter;
use crate::tsdb::block::meta::{BlockMeta, Compaction};
use crate::tsdb::block::tests::{data_dir, read_block};
use crate::tsdb::block::tombstones::Tombstones;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::chunkenc::samples::{Value, encode};
use crate::tsdb::chunkenc::xor::XorIterator;
use crate::tsdb::file::PageCache;

fn open(disk: &dyn Disk, dir: &Path) -> Arc<Block> {
    Arc::new(Block::open(disk, dir, PageCache::new(1 << 20)).unwrap())
}

/// Merges blocks into one in `parent`, as a compactor does.
fn merged(
    disk: &dyn Disk,
    parent: &Path,
    ulid: Ulid,
    blocks: &[Arc<Block>],
) -> Result<Option<BlockMeta>, MergeError> {
    let metas: Vec<_> = blocks.iter().map(|block| block.meta().clone()).collect();
    let min_time = metas.iter().map(|meta| meta.min_time).min().unwrap();
    let max_time = metas.iter().map(|meta| meta.max_time).max().unwrap();
    let mut writer = BlockWriter::create(disk, parent, ulid)?;
    merge(blocks, &mut writer)?;
    Ok(writer.finish(min_time, max_time, Compaction::of_merged(&metas))?)
}

fn recorded(case: &str) -> (serde_json::Value, PathBuf) {
    let dir = data_dir().parent().unwrap().join("compaction/blocks");
    let json = std::fs::read(dir.join(format!("{case}.json"))).unwrap();
    (serde_json::from_slice(&json).unwrap(), dir.join(case))
}

fn inputs(case: &serde_json::Value, dir: &Path) -> Vec<Arc<Block>> {
    let names = case["in"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
    names.map(|name| open(&SystemDisk, &dir.join("in").join(name))).collect()
}

/// `tests/data/tsdb/compaction/blocks`: blocks, and what Prometheus made of them.
#[test]
fn blocks_are_byte_for_byte_what_prometheus_makes_of_them() {
    let cases = [
        "consecutive",
        "levels",
        "one-block",
        "overlapping",
        "overlapping-histograms",
        "overlapping-partly",
        "tombstones",
    ];
    for name in cases {
        let (case, dir) = recorded(name);
        let expected = &case["out"][0];
        let ulid: Ulid = expected["ulid"].as_str().unwrap().parse().unwrap();
        let temp = tempfile::tempdir().unwrap();
        let made = merged(&SystemDisk, temp.path(), ulid, &inputs(&case, &dir)).unwrap();
        assert!(made.is_some(), "{name}");
        for file in ["chunks/000001", "index", "meta.json", "tombstones"] {
            let path = Path::new(expected["ulid"].as_str().unwrap()).join(file);
            let ours = std::fs::read(temp.path().join(&path)).unwrap();
            let theirs = std::fs::read(dir.join("out").join(&path)).unwrap();
            assert!(ours == theirs, "{name}: {file}");
        }
    }
}

#[test]
fn of_blocks_of_which_nothing_is_left_there_is_none() {
    let (case, dir) = recorded("all-deleted");
    let temp = tempfile::tempdir().unwrap();
    let made = merged(&SystemDisk, temp.path(), Ulid(1), &inputs(&case, &dir)).unwrap();
    assert_eq!(made, None);
    assert_eq!(SystemDisk.list(temp.path()).unwrap(), []);
}

type Samples = BTreeMap<Timestamp, u64>;
/// By the value of one label.
type Model = BTreeMap<String, Samples>;

/// A block of these samples, chunks of so many each.
fn write(disk: &dyn Disk, parent: &Path, ulid: Ulid, model: &Model, per_chunk: usize) -> PathBuf {
    let mut writer = BlockWriter::create(disk, parent, ulid).unwrap();
    let texts: BTreeSet<&str> = model.keys().map(String::as_str).chain(["", "i", "job"]).collect();
    let numbers: BTreeMap<&str, u32> =
        texts.iter().map(|text| (*text, writer.add_symbol(text.as_bytes()).unwrap())).collect();
    for (i, samples) in model {
        let samples: Vec<_> = samples.iter().map(|(t, v)| (*t, Value::Float(*v))).collect();
        let chunks = samples.chunks(per_chunk).flat_map(|samples| encode(samples.iter().cloned()));
        let chunks: Vec<_> = chunks.map(OwnedChunk::of).collect();
        let chunks: Vec<_> = chunks.iter().map(OwnedChunk::as_encoded).collect();
        writer.add_series(&[(numbers["i"], numbers[i.as_str()])], &chunks).unwrap();
    }
    let times = || model.values().flat_map(|samples| samples.keys().copied());
    let (mint, end) = (times().min().unwrap(), times().max().unwrap() + 1);
    writer.finish(mint, end, Compaction::of_head(ulid)).unwrap().unwrap();
    parent.join(ulid.to_string())
}

fn read(disk: &dyn Disk, dir: &Path) -> Model {
    let block = open(disk, dir);
    let contents = read_block(disk, dir).unwrap();
    let places = block.index.all_postings().unwrap();
    let mut reader = block.index.series();
    let mut model = Model::new();
    for (series, place) in contents.series.iter().zip(places) {
        reader.read(BlockSeriesRef(place)).unwrap();
        let (_, value) = LabelIter::of_canonical(reader.key().unwrap()).next().unwrap();
        let value = String::from_utf8(value.to_vec()).unwrap();
        let samples = model.entry(value).or_default();
        for (meta, chunk) in &series.chunks {
            let read: Vec<_> = XorIterator::new(&chunk.bytes).map(Result::unwrap).collect();
            assert_eq!((read[0].0, read[read.len() - 1].0), (meta.mint, meta.maxt));
            let before = samples.len();
            samples.extend(read.iter().copied());
            assert_eq!(samples.len(), before + read.len(), "each time is there once");
        }
    }
    model
}

#[derive(Clone, Debug)]
struct Case {
    blocks: Vec<Model>,
    /// Block, series, and what is deleted of it.
    deleted: Vec<(usize, u64, Timestamp, Timestamp)>,
    per_chunk: usize,
}

fn model() -> impl Strategy<Value = Model> {
    // Some of the values are equal, and whole chunks, too.
    let samples = prop::collection::btree_map(0..60_i64, 0..2_u64, 1..40);
    prop::collection::btree_map("[a-f]", samples, 1..5)
}

fn case() -> impl Strategy<Value = Case> {
    let deleted = (0..4_usize, 0..5_u64, -5..60_i64, 0..40_i64);
    let deleted = deleted.prop_map(|(block, series, from, len)| (block, series, from, from + len));
    let blocks = (prop::collection::vec((model(), 0..90_i64), 1..5)).prop_map(|blocks| {
        let moved = |(model, by): (Model, Timestamp)| -> Model {
            let moved = |samples: Samples| samples.into_iter().map(|(t, v)| (t + by, v)).collect();
            model.into_iter().map(|(i, samples)| (i, moved(samples))).collect()
        };
        blocks.into_iter().map(moved).collect()
    });
    (blocks, prop::collection::vec(deleted, 0..4), 1..9_usize)
        .prop_map(|(blocks, deleted, per_chunk)| Case { blocks, deleted, per_chunk })
}

proptest! {
    #[test]
    fn a_merged_block_is_the_union_of_what_is_left_of_the_others(case in case()) {
        let (disk, parent) = (FaultyDisk::new(), Path::new("/db/t"));
        let (mut left, mut blocks) = (BTreeMap::<(String, Timestamp), BTreeSet<u64>>::new(), Vec::new());
        for (b, model) in case.blocks.iter().enumerate() {
            let ulid = Ulid(b as u128 + 1);
            let dir = write(&disk, parent, ulid, model, case.per_chunk);
            let places = open(&disk, &dir).index.all_postings().unwrap();
            let mut spans = Vec::new();
            for (place, (i, samples)) in places.iter().zip(model) {
                let of = case.deleted.iter().filter(|(of, series, ..)| {
                    *of == b && (*series as usize) % model.len() == spans.len() % model.len()
                });
                let deleted: Vec<_> = of.map(|(_, _, mint, maxt)| TimeRange { mint: *mint, maxt: *maxt }).collect();
                for (t, v) in samples.iter().filter(|(t, _)| !deleted.iter().any(|span| span.overlaps(**t, **t))) {
                    left.entry((i.clone(), *t)).or_default().insert(*v);
                }
                spans.extend(deleted.into_iter().map(|span| (u64::from(*place), span)));
            }
            Tombstones::from_spans(spans).write(&disk, &dir).unwrap();
            blocks.push(open(&disk, &dir));
        }
        blocks.sort_by_key(|block| block.meta().min_time);
        let made = merged(&disk, parent, Ulid(99), &blocks).unwrap();
        prop_assert_eq!(made.is_none(), left.is_empty());
        let Some(meta) = made else { return Ok(()) };
        let model = read(&disk, &parent.join(Ulid(99).to_string()));
        prop_assert_eq!(meta.stats.num_samples, left.len() as u64);
        prop_assert_eq!(meta.stats.num_series, model.len() as u64);
        let found = model.iter().flat_map(|(i, samples)| samples.iter().map(move |(t, v)| (i, t, v)));
        for (i, t, v) in found {
            let values = left.remove(&(i.clone(), *t));
            prop_assert!(values.is_some_and(|values| values.contains(v)), "{} at {}", i, t);
        }
        prop_assert!(left.is_empty(), "{:?}", left);
    }
}

#[test]
fn work_that_nobody_waits_for_ends() {
    let (disk, parent) = (FaultyDisk::new(), Path::new("/db/t"));
    let model = Model::from([("a".to_owned(), Samples::from([(1, 1)]))]);
    let block = open(&disk, &write(&disk, parent, Ulid(1), &model, 9));
    let (asker, stop) = stop::pair();
    drop(asker);
    let merge = stop.clone().run(|| merged(&disk, parent, Ulid(2), from_ref(&block)));
    assert!(matches!(merge, Err(MergeError::Interrupted)));
    // Also while series are passed over of which nothing is left, and behind the last one.
    let input = Input::new(&block, Vec::new(), range_of(from_ref(&block)));
    let passed = stop.clone().run(|| input.unwrap().find_left());
    assert!(matches!(passed, Err(MergeError::Interrupted)));
    let mut writer = BlockWriter::create(&disk, parent, Ulid(3)).unwrap();
    merge_of(&[block], &mut writer);
    let finished = stop.run(|| writer.complete(1, 2, Compaction::of_head(Ulid(3))));
    assert!(matches!(finished, Err(WriteError::Interrupted)));
    let names = disk.list(parent).unwrap();
    assert_eq!(names.len(), 1, "what was begun has gone: {names:?}");
}

fn merge_of(blocks: &[Arc<Block>], writer: &mut BlockWriter<'_>) {
    merge(blocks, writer).unwrap();
}

/// As in Prometheus, by the times that the manifests tell.
#[test]
fn samples_of_no_time_of_the_blocks_go() {
    let (disk, parent) = (FaultyDisk::new(), Path::new("/db/t"));
    let samples = |from: i64| -> Samples { (from..from + 20).map(|t| (t, t as u64)).collect() };
    let model = |from| Model::from([("a".to_owned(), samples(from))]);
    let mut blocks = Vec::new();
    // What two of them say is in part another's time, and of one series nothing is left.
    for (i, (from, min, max)) in (0..).zip([(0, 5, 20), (40, 40, 55)]) {
        let mut model = model(from);
        model.insert("b".to_owned(), Samples::from([(if i == 0 { 2 } else { 57 }, 9)]));
        let dir = write(&disk, parent, Ulid(1 + i), &model, 7);
        let mut meta = BlockMeta::read(&disk, &dir).unwrap();
        (meta.min_time, meta.max_time) = (min, max);
        meta.write(&disk, &dir).unwrap();
        blocks.push(open(&disk, &dir));
    }
    merged(&disk, parent, Ulid(9), &blocks).unwrap().unwrap();
    let expected = (5..20).chain(40..55).map(|t| (t, t as u64)).collect();
    let left = read(&disk, &parent.join(Ulid(9).to_string()));
    assert_eq!(left, Model::from([("a".to_owned(), expected)]));
}

#[test]
fn a_look_tells_whether_anything_is_left() {
    let (disk, parent) = (FaultyDisk::new(), Path::new("/db/t"));
    let samples: Samples = (0..20).map(|t| (t, 1)).collect();
    let model = Model::from([("a".to_owned(), samples.clone()), ("b".to_owned(), samples)]);
    let dir = write(&disk, parent, Ulid(1), &model, 7);
    let places = open(&disk, &dir).index.all_postings().unwrap();
    for (count, is_left) in [(0, true), (1, true), (2, false)] {
        let all = |place: &u32| (u64::from(*place), TimeRange { mint: 0, maxt: 19 });
        let spans = places.iter().take(count).map(all).collect();
        Tombstones::from_spans(spans).write(&disk, &dir).unwrap();
        assert_eq!(is_anything_left(&[open(&disk, &dir)]).unwrap(), is_left, "{count}");
    }
}

/// A block of somebody else's may have chunks of one series that overlap.
#[test]
fn chunks_of_one_block_that_overlap_are_merged_as_well() {
    let (case, dir) = recorded("overlapping");
    let block = inputs(&case, &dir).into_iter().next().unwrap();
    let symbols: Vec<u32> = (0..100).collect();
    let range = range_of(from_ref(&block));
    let mut input = Input::new(&block, symbols, range).unwrap();
    assert!(input.advance().unwrap());
    let usual = input.chunks.clone();
    input.chunks.extend_from_slice(&usual);
    assert!(!input.are_chunks_apart());
    let mut merged = Merged::new([&input].into_iter()).unwrap();
    let mut samples = Vec::new();
    while let Some(chunk) = merged.next().unwrap() {
        samples.extend(XorIterator::new(&chunk.bytes).map(Result::unwrap));
    }
    assert!(samples.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let mut whole = Cursor::new(&input);
    let mut expected = BTreeSet::new();
    while let Some(chunk) = whole.next().unwrap() {
        expected.extend(XorIterator::new(&chunk.bytes).map(Result::unwrap));
    }
    assert_eq!(samples.into_iter().collect::<BTreeSet<_>>(), expected);
}
