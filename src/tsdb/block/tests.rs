//! What was recorded of blocks, and what becomes of them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Block;
use super::chunks::{CHUNKS_DIR, ChunkReader, EncodedChunk, RawChunk, SEGMENT_BYTES};
use super::meta::{BlockMeta, Compaction};
use super::tombstones::Tombstones;
use super::ulid::Ulid;
use super::writer::BlockWriter;
use crate::disk::faulty::FaultyDisk;
use crate::disk::{Disk, SystemDisk};
use crate::model::TimeRange;
use crate::model::labels::LabelIter;
use crate::tsdb::chunkenc::{ENCODING_XOR, sample_count, xor::XorIterator};
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::file::PageCache;
use crate::tsdb::index::{
    BlockChunkRef, BlockSeriesRef, ChunkMeta, INDEX_FILE, IndexReader, LabelSymbols,
};
use crate::tsdb::source::Source;

pub(crate) fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb/blocks")
}

/// What is told of a recorded block.
pub(crate) fn recorded(file: &str) -> Value {
    let json = fs::read(data_dir().join(file)).unwrap();
    serde_json::from_slice(&json).unwrap()
}

/// All blocks among the test data.
pub(crate) fn recorded_blocks() -> Vec<PathBuf> {
    let mut blocks = Vec::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb")];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let entries: Vec<_> = entries.collect();
        if entries.iter().any(|path| path.ends_with("meta.json")) {
            blocks.push(dir);
        } else {
            dirs.extend(entries.into_iter().filter(|path| path.is_dir()));
        }
    }
    blocks.sort();
    blocks
}

pub(crate) fn open_index(disk: &dyn Disk, block: &Path) -> Result<IndexReader, ReadError> {
    IndexReader::open(disk, &block.join(INDEX_FILE), PageCache::new(1 << 20))
}

/// Everything that a block has.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Contents {
    pub(crate) symbols: Vec<Vec<u8>>,
    pub(crate) series: Vec<SeriesContents>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct SeriesContents {
    pub(crate) labels: Vec<LabelSymbols>,
    pub(crate) chunks: Vec<(ChunkMeta, RawChunk)>,
}

pub(crate) fn read_block(disk: &dyn Disk, block: &Path) -> Result<Contents, ReadError> {
    let index = open_index(disk, block)?;
    let chunks = ChunkReader::open(disk, &block.join(CHUNKS_DIR))?;
    let mut contents = Contents::default();
    let mut symbols = index.symbols();
    while let Some(symbol) = symbols.next()? {
        contents.symbols.push(symbol.to_vec());
    }
    let mut reader = index.series();
    for series in index.all_postings()? {
        reader.read(BlockSeriesRef(series))?;
        let mut read = Vec::new();
        for meta in reader.chunks() {
            let mut chunk = RawChunk::default();
            chunks.read(meta.chunk, &mut chunk)?;
            read.push((*meta, chunk));
        }
        let labels = reader.labels().to_vec();
        contents.series.push(SeriesContents { labels, chunks: read });
    }
    Ok(contents)
}

pub(crate) fn write_block(
    disk: &dyn Disk,
    parent: &Path,
    meta: &BlockMeta,
    contents: &Contents,
    segment_bytes: u64,
) -> Result<Option<BlockMeta>, WriteError> {
    let mut writer = BlockWriter::with_segments(disk, parent, meta.ulid, segment_bytes)?;
    for symbol in &contents.symbols {
        writer.add_symbol(symbol)?;
    }
    for series in &contents.series {
        let chunk = |(meta, chunk): &'_ (ChunkMeta, RawChunk)| (*meta, chunk.encoding);
        let metas: Vec<_> = series.chunks.iter().map(chunk).collect();
        let chunks: Vec<_> = metas
            .iter()
            .zip(&series.chunks)
            .map(|((meta, encoding), (_, chunk))| EncodedChunk {
                mint: meta.mint,
                maxt: meta.maxt,
                encoding: *encoding,
                bytes: &chunk.bytes,
            })
            .collect();
        writer.add_series(&series.labels, &chunks)?;
    }
    writer.finish(meta.min_time, meta.max_time, meta.compaction.clone())
}

fn files_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(inner) = dirs.pop() {
        for entry in fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Bytes of a segment with which a block was recorded.
fn segment_bytes(block: &Path) -> u64 {
    let is_in = |dir: &str| block.components().any(|part| part.as_os_str() == dir);
    match () {
        () if is_in("segments") => 5120,
        () if is_in("damaged-base") => 320,
        () => SEGMENT_BYTES,
    }
}

#[test]
fn recorded_blocks_are_written_again_byte_for_byte() {
    for block in recorded_blocks() {
        let context = block.display();
        let contents = read_block(&SystemDisk, &block).unwrap();
        let meta = BlockMeta::read(&SystemDisk, &block).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let written =
            write_block(&SystemDisk, dir.path(), &meta, &contents, segment_bytes(&block)).unwrap();
        let mut written = written.unwrap();
        written.stats.num_tombstones = meta.stats.num_tombstones;
        // Prometheus did not count them apart at first.
        if meta.stats.num_float_samples == 0 && meta.stats.num_histogram_samples == 0 {
            written.stats.num_float_samples = 0;
            written.stats.num_histogram_samples = 0;
        }
        written.thanos = meta.thanos.clone();
        assert_eq!(written, meta, "{context}");

        let (recorded, files) =
            (files_of(&block), files_of(&dir.path().join(meta.ulid.to_string())));
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<PathBuf> {
            let is_data = |name: &&PathBuf| name.starts_with(CHUNKS_DIR) || name.ends_with("index");
            files.keys().filter(is_data).cloned().collect()
        };
        assert_eq!(names(&files), names(&recorded), "{context}");
        for name in names(&files) {
            assert!(files[&name] == recorded[&name], "{context}: {}", name.display());
        }
        assert_eq!(files[Path::new("tombstones")].len(), 9);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn recorded_chunks_are_whole() {
    let (mut floats, mut histograms) = (0, 0);
    for block in recorded_blocks() {
        let stats = BlockMeta::read(&SystemDisk, &block).unwrap().stats;
        let mut samples = 0;
        for series in read_block(&SystemDisk, &block).unwrap().series {
            for (meta, chunk) in series.chunks {
                samples += u64::from(sample_count(chunk.encoding, &chunk.bytes));
                if chunk.encoding != ENCODING_XOR {
                    histograms += 1;
                    continue;
                }
                floats += 1;
                let times = XorIterator::new(&chunk.bytes).map(|sample| sample.unwrap().0);
                let times: Vec<_> = times.collect();
                assert_eq!(times.first(), Some(&meta.mint));
                assert_eq!(times.last(), Some(&meta.maxt));
            }
        }
        assert_eq!(samples, stats.num_samples, "{}", block.display());
    }
    assert!(floats > 200 && histograms > 50, "{floats} {histograms}");
}

/// Labels of a series as they are recorded.
pub(crate) fn labels_of(value: &Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let labels: Vec<(String, String)> = serde_json::from_value(value.clone()).unwrap();
    labels.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect()
}

#[test]
fn chunks_are_where_they_were_recorded() {
    for file in ["histograms.json", "labels.json", "segments.json", "tombstones.json"] {
        let case = recorded(file);
        let block = data_dir().join(case["dir"].as_str().unwrap());
        let index = open_index(&SystemDisk, &block).unwrap();
        let chunks = ChunkReader::open(&SystemDisk, &block.join(CHUNKS_DIR)).unwrap();
        let mut reader = index.series();
        for series in case["series"].as_array().unwrap() {
            reader.read(BlockSeriesRef(series["ref"].as_u64().unwrap() as u32)).unwrap();
            let key = reader.key().unwrap();
            let labels: Vec<_> =
                LabelIter::of_canonical(key).map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            assert_eq!(labels, labels_of(&series["labels"]));
            let mut found = Vec::new();
            for meta in reader.chunks() {
                let mut chunk = RawChunk::default();
                chunks.read(meta.chunk, &mut chunk).unwrap();
                let samples = sample_count(chunk.encoding, &chunk.bytes);
                let (segment, offset) = (meta.chunk.segment() + 1, meta.chunk.offset());
                let place = (segment, offset, chunk.encoding, samples);
                found.push((meta.mint, meta.maxt, place.0, place.1, place.2, place.3));
            }
            let expected: Vec<(i64, i64, u32, u32, u8, u16)> =
                serde_json::from_value(series["chunks"].clone()).unwrap();
            assert_eq!(found, expected, "{file}");
        }
    }
}

/// One edit of a recorded damage.
fn edit(root: &Path, edit: &Value) {
    let path = root.join(edit["file"].as_str().unwrap());
    let hex = edit["hex"].as_str().unwrap_or_default();
    let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
    let hex: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let number = |name: &str| edit[name].as_u64().unwrap_or(0) as usize;
    let change = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    };
    match edit["op"].as_str().unwrap() {
        "xor" => change(&|bytes| {
            bytes[number("off")..].iter_mut().zip(&hex).for_each(|(byte, x)| *byte ^= x);
        }),
        "set" => change(&|bytes| bytes[number("off")..][..hex.len()].copy_from_slice(&hex)),
        "truncate" => change(&|bytes| bytes.truncate(number("size"))),
        "append" => change(&|bytes| bytes.extend(&hex)),
        "write" => {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, hex).unwrap();
        }
        "delete" if path.is_dir() => fs::remove_dir_all(path).unwrap(),
        "delete" => fs::remove_file(path).unwrap(),
        "mkdir" => fs::create_dir_all(path).unwrap(),
        "rename" => fs::rename(&path, root.join(edit["to"].as_str().unwrap())).unwrap(),
        other => panic!("{other}"),
    }
}

fn copy_dir(from: &Path, to: &Path) {
    for (name, bytes) in files_of(from) {
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::write(to.join(&name), bytes).unwrap();
    }
}

/// What of a damaged block can be had, and where what cannot was found to be damaged.
#[derive(Debug, Default, PartialEq)]
struct Rest {
    samples: u64,
    faults: Vec<(String, u64)>,
}

/// Reads a block as far as that goes: a chunk or a series that is damaged costs itself alone.
fn read_rest(block: &Path) -> Rest {
    let mut rest = Rest::default();
    let mut note = |err: ReadError| {
        let fault = match err {
            ReadError::Corrupt(corruption) => (corruption.file, corruption.offset),
            ReadError::Io { path, .. }
            | ReadError::Meta { path, .. }
            | ReadError::Unsupported { path, .. } => (path, u64::MAX),
        };
        let name = fault.0.strip_prefix(block).unwrap().to_str().unwrap().to_owned();
        rest.faults.push((name, fault.1));
    };
    let mut samples = 0;
    if let Err(err) = BlockMeta::read(&SystemDisk, block) {
        note(err);
    }
    if let Err(err) = Tombstones::read(&SystemDisk, block) {
        note(err);
    }
    let index = open_index(&SystemDisk, block).map_err(&mut note);
    let chunks = ChunkReader::open(&SystemDisk, &block.join(CHUNKS_DIR)).map_err(&mut note);
    if let (Ok(index), Ok(chunks)) = (index, chunks) {
        let mut reader = index.series();
        for series in index.all_postings().map_err(&mut note).unwrap_or_default() {
            if let Err(err) = reader.read(BlockSeriesRef(series)) {
                note(err);
                continue;
            }
            for meta in reader.chunks() {
                let mut chunk = RawChunk::default();
                match chunks.read(meta.chunk, &mut chunk) {
                    Ok(()) => samples += u64::from(sample_count(chunk.encoding, &chunk.bytes)),
                    Err(err) => note(err),
                }
            }
        }
    }
    rest.faults.sort();
    rest.faults.dedup();
    Rest { samples, ..rest }
}

#[test]
fn damage_is_found_where_it_is_and_costs_no_more() {
    let recorded = recorded("damaged.json");
    let all = recorded["samples"].as_u64().unwrap();
    let blocks: Vec<String> = serde_json::from_value(recorded["blocks"].clone()).unwrap();
    const WHOLE: u64 = 360;
    const NONE: u64 = u64::MAX;
    // What is left of the first block, of 360 samples in three series and segments, and where the
    // damage is told to be.
    let expected = |name: &str| -> (u64, &[(&str, u64)]) {
        match name {
            "index magic" | "index 3 bytes" | "index empty" => (0, &[("index", 0)]),
            // Version 1 numbers symbols by their places.
            "index version 1" => (0, &[("index", 4)]),
            "index symbols bit" => (0, &[("index", 9)]),
            "index symbols length" => (0, &[("index", 5)]),
            "index series bit" => (240, &[("index", 48)]),
            "index postings bit" => (0, &[("index", 144)]),
            "index postings table bit" => (0, &[("index", 276)]),
            "index TOC bit" | "index TOC checksum" => (0, &[("index", 346)]),
            "index cut by 1" => (0, &[("index", 345)]),
            "index cut to half" => (0, &[("index", 147)]),
            "index longer" => (0, &[("index", 354)]),
            "index missing" | "damaged but superseded" => (0, &[("index", NONE)]),
            "chunk data bit" | "chunk encoding byte" => (240, &[("chunks/000001", 8)]),
            "chunk checksum bit" => (240, &[("chunks/000001", 8)]),
            "chunk segment magic" => (240, &[("chunks/000001", 0)]),
            "chunk segment version" => (240, &[("chunks/000001", 4)]),
            "chunk segment cut" => (240, &[("chunks/000002", 8)]),
            "chunk segment empty" => (240, &[("chunks/000002", 0)]),
            "first chunk segment missing" => (240, &[("chunks/000001", 0)]),
            "second chunk segment missing" => (240, &[("chunks/000002", 0)]),
            "chunks directory missing" => (0, &[("chunks", NONE)]),
            "chunks directory empty" => {
                (0, &[("chunks/000001", 0), ("chunks/000002", 0), ("chunks/000003", 0)])
            }
            "meta.json missing" | "meta.json empty" | "meta.json cut" => {
                (WHOLE, &[("meta.json", NONE)])
            }
            "tombstones empty" | "tombstones magic" => (WHOLE, &[("tombstones", 0)]),
            "tombstones checksum" => (WHOLE, &[("tombstones", 5)]),
            _ => (WHOLE, &[]),
        }
    };
    let mut tried = 0;
    for case in recorded["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&data_dir().join("damaged-base"), dir.path());
        case["edits"].as_array().unwrap().iter().for_each(|e| edit(dir.path(), e));
        let find = |ulid: &str| {
            let names = [ulid.to_owned(), ulid.to_lowercase()];
            names.into_iter().map(|name| dir.path().join(name)).find(|path| path.is_dir())
        };
        assert_eq!(read_rest(&find(&blocks[1]).unwrap()).faults, [], "{name}");
        let Some(first) = find(&blocks[0]) else { continue };
        let rest = read_rest(&first);
        let (samples, faults) = expected(name);
        let faults: Vec<_> = faults.iter().map(|(name, at)| (name.to_string(), *at)).collect();
        assert_eq!(rest.faults, faults, "{name}");
        // Of a segment that is missing Prometheus shows another's samples as this one's.
        assert_eq!(rest.samples, samples, "{name}");
        // What it says nothing of is whole for us as well, and it reads no more than we do.
        let says_nothing = case["error"].is_null() && case["read_error"].is_null();
        let is_read = case["samples"] == all;
        assert!(
            !(says_nothing && is_read)
                || rest == read_rest(&data_dir().join("damaged-base").join(&blocks[0])),
            "{name}"
        );
        tried += 1;
    }
    assert!(tried > 40, "{tried}");
}

#[test]
fn a_chunk_that_is_nowhere_is_an_error() {
    let block = data_dir().join(recorded("segments.json")["dir"].as_str().unwrap());
    let chunks = ChunkReader::open(&SystemDisk, &block.join(CHUNKS_DIR)).unwrap();
    let mut chunk = RawChunk::default();
    for (segment, offset, told) in
        [(0, 5000, 5000), (0, u32::MAX, 5000), (5, 8, 0), (u32::MAX, 8, 0), (0, 4999, 4999)]
    {
        let err = chunks.read(BlockChunkRef::new(segment, offset), &mut chunk).unwrap_err();
        let ReadError::Corrupt(corruption) = err else { panic!("{err}") };
        assert_eq!(corruption.offset, told, "{segment} {offset}");
    }
    // Every place that is no chunk's, as the checksum tells.
    let place = |offset| chunks.read(BlockChunkRef::new(0, offset), &mut RawChunk::default());
    let found: Vec<u32> = (0..5000).filter(|offset| place(*offset).is_ok()).collect();
    assert_eq!(found, [8, 193, 374, 556, 715, 1731, 2747, 3763, 4779]);
}

fn small_block() -> (BlockMeta, Contents) {
    let block = data_dir().join(recorded("segments.json")["dir"].as_str().unwrap());
    let meta = BlockMeta::read(&SystemDisk, &block).unwrap();
    (meta, read_block(&SystemDisk, &block).unwrap())
}

/// A disk stops at each of the operations that making a block takes: whatever is on the medium then is
/// a whole block, or none, and the next try makes it.
#[test]
fn a_block_is_there_whole_or_not_at_all_wherever_the_disk_stops() {
    let (meta, contents) = small_block();
    let parent = Path::new("/db/t");
    let block = parent.join(meta.ulid.to_string());
    let mut stops = 0;
    loop {
        let disk = FaultyDisk::new();
        disk.create_dir_all(parent).unwrap();
        disk.sync_dir(Path::new("/db")).unwrap();
        disk.sync_dir(parent).unwrap();
        disk.fail_all_operations(stops);
        let made = write_block(&disk, parent, &meta, &contents, 5120);
        for after in [disk.after_power_cut(), disk.after_kill()] {
            match after.list(&block) {
                Ok(_) => {
                    assert_eq!(read_block(&after, &block).unwrap(), contents, "{stops}");
                    assert_eq!(BlockMeta::read(&after, &block).unwrap(), meta, "{stops}");
                    assert!(Tombstones::read(&after, &block).unwrap().is_empty());
                }
                Err(_) => {
                    assert!(made.is_err(), "{stops}");
                    write_block(&after, parent, &meta, &contents, 5120).unwrap().unwrap();
                    assert_eq!(read_block(&after, &block).unwrap(), contents, "{stops}");
                }
            }
            let names = after.list(parent).unwrap();
            assert_eq!(names.len(), 1, "{stops}: {names:?}");
        }
        if made.is_ok() {
            break;
        }
        stops += 1;
    }
    assert!(stops > 20, "{stops}");
}

#[test]
fn a_full_disk_is_told_and_leaves_no_block() {
    let (meta, contents) = small_block();
    let parent = Path::new("/db");
    let disk = FaultyDisk::new();
    disk.create_dir_all(parent).unwrap();
    disk.limit_bytes(Some(10_000));
    let err = write_block(&disk, parent, &meta, &contents, 5120).unwrap_err();
    let WriteError::Io { path, source } = err else { panic!("{err}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    assert!(path.starts_with(parent));
    assert!(disk.list(&parent.join(meta.ulid.to_string())).is_err());
    disk.limit_bytes(None);
    write_block(&disk, parent, &meta, &contents, 5120).unwrap().unwrap();
}

/// A medium that cannot be read is another thing than bytes that are wrong, and it may pass.
#[test]
fn a_read_that_fails_is_no_damage_and_leaves_nothing_behind() {
    let (meta, contents) = small_block();
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new("/db")).unwrap();
    write_block(&disk, Path::new("/db"), &meta, &contents, 5120).unwrap().unwrap();
    let block = Path::new("/db").join(meta.ulid.to_string());
    let is_io = |err: ReadError, file: &Path| match err {
        ReadError::Io { path, source } => {
            assert_eq!((&*path, source.kind()), (file, std::io::ErrorKind::TimedOut));
        }
        err => panic!("{err}"),
    };
    // While it is opened.
    for file in [INDEX_FILE, "meta.json", "tombstones", "chunks/000002"] {
        let file = block.join(file);
        disk.fail_reads(&file, std::io::ErrorKind::TimedOut);
        is_io(Block::open(&disk, &block, PageCache::new(1 << 20)).err().unwrap(), &file);
        disk.allow_reads(&file);
    }
    // And once it is open.
    let opened = Block::open(&disk, &block, PageCache::new(1 << 20)).unwrap();
    let all = TimeRange { mint: i64::MIN, maxt: i64::MAX };
    let read = || -> Result<usize, ReadError> {
        let mut series = Vec::new();
        opened.select(&[], all, &mut |found| {
            series.push(found.series);
            ControlFlow::Continue(())
        })?;
        let mut chunks = Vec::new();
        series.into_iter().try_for_each(|found| opened.chunks(found, all, &mut chunks))?;
        Ok(chunks.len())
    };
    let segment = block.join("chunks/000002");
    disk.fail_reads(&segment, std::io::ErrorKind::TimedOut);
    is_io(read().unwrap_err(), &segment);
    disk.allow_reads(&segment);
    // So small an index is in the cache by now.
    disk.fail_reads(&block.join(INDEX_FILE), std::io::ErrorKind::TimedOut);
    assert_eq!(read().unwrap(), 30);
}

#[test]
fn a_block_without_samples_is_not_made() {
    let disk = FaultyDisk::new();
    let parent = Path::new("/db");
    disk.create_dir_all(parent).unwrap();
    let ulid = Ulid::new(1_700_000_000_000, 7);
    let mut writer = BlockWriter::create(&disk, parent, ulid).unwrap();
    let symbols = ["", "a", "b"].map(|symbol| writer.add_symbol(symbol.as_bytes()).unwrap());
    writer.add_series(&[(symbols[1], symbols[2])], &[]).unwrap();
    assert_eq!(writer.finish(0, 1, Compaction::of_head(ulid)).unwrap(), None);
    assert_eq!(disk.list(parent).unwrap(), []);
}

#[test]
fn a_block_of_late_samples_says_so_as_prometheus_does() {
    for block in recorded_blocks() {
        let meta = BlockMeta::read(&SystemDisk, &block).unwrap();
        let expected = match meta.is_partial() {
            true => Compaction::of_out_of_order(meta.ulid),
            false => Compaction::of_head(meta.ulid),
        };
        if meta.compaction.level == 1 && meta.compaction.sources == [meta.ulid] {
            assert_eq!(meta.compaction, expected, "{}", block.display());
        }
    }
}
