use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::faulty::FaultyDisk;
use crate::disk::{Disk, SystemDisk};
use crate::model::labels::LabelIter;
use crate::model::matcher::{MatchOp, Matcher};
use crate::tsdb::block::tests::{data_dir, labels_of, open_index, recorded};
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::file::PageCache;

type Label = (Vec<u8>, Vec<u8>);

/// Series by their labels, which sort as they do.
type Model = BTreeMap<Vec<Label>, Vec<ChunkMeta>>;

fn disk() -> FaultyDisk {
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new("/b")).unwrap();
    disk
}

fn path() -> PathBuf {
    Path::new("/b").join(INDEX_FILE)
}

fn symbols_of(model: &Model) -> BTreeSet<Vec<u8>> {
    let labels = model.keys().flatten();
    labels.flat_map(|(name, value)| [name.clone(), value.clone()]).chain([Vec::new()]).collect()
}

fn write(mut writer: IndexWriter, model: &Model) -> Result<u64, WriteError> {
    let mut numbers = BTreeMap::new();
    for symbol in symbols_of(model) {
        numbers.insert(symbol.clone(), writer.add_symbol(&symbol)?);
    }
    for (labels, chunks) in model {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| (numbers[name], numbers[value])).collect();
        writer.add_series(&labels, chunks)?;
    }
    writer.finish()
}

fn written(model: &Model) -> (FaultyDisk, IndexReader) {
    let disk = disk();
    write(IndexWriter::create(&disk, &path()).unwrap(), model).unwrap();
    let index = open_index(&disk, Path::new("/b")).unwrap();
    (disk, index)
}

fn values_of(index: &IndexReader, name: &[u8]) -> Result<Vec<(Vec<u8>, u64)>, ReadError> {
    let mut values = index.values(name);
    let mut all = Vec::new();
    while let Some((value, place)) = values.next()? {
        all.push((value.to_vec(), place));
    }
    Ok(all)
}

/// Reads an index whole.
fn read(index: &IndexReader) -> Result<Model, ReadError> {
    let mut model = Model::new();
    let mut reader = index.series();
    for series in index.all_postings()? {
        reader.read(BlockSeriesRef(series))?;
        let chunks = reader.chunks().to_vec();
        let labels = LabelIter::of_canonical(reader.key()?);
        let labels = labels.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        model.insert(labels, chunks);
    }
    Ok(model)
}

/// All that an index answers is what the model says.
fn assert_answers(index: &IndexReader, model: &Model) {
    assert_eq!(&read(index).unwrap(), model);
    let mut by_label: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<usize>>> = BTreeMap::new();
    for (i, labels) in model.keys().enumerate() {
        for (name, value) in labels {
            by_label.entry(name.clone()).or_default().entry(value.clone()).or_default().push(i);
        }
    }
    let all = index.all_postings().unwrap();
    let names: Vec<_> = index.label_names().map(<[u8]>::to_vec).collect();
    assert_eq!(names, by_label.keys().cloned().collect::<Vec<_>>());
    for (name, values) in &by_label {
        let found = values_of(index, name).unwrap();
        let texts: Vec<_> = found.iter().map(|(value, _)| value).collect();
        assert_eq!(texts, values.keys().collect::<Vec<_>>());
        for ((value, of_value), (_, place)) in values.iter().zip(&found) {
            let expected: Vec<u32> = of_value.iter().map(|i| all[*i]).collect();
            assert_eq!(index.postings_at(*place).unwrap(), expected);
            assert_eq!(index.postings(name, value).unwrap(), expected);
            // Neighbours of what is there are not.
            for absent in [[value, &b"\0"[..]].concat(), value[..value.len().max(1) - 1].to_vec()] {
                let expected: Vec<u32> =
                    values.get(&absent).into_iter().flatten().map(|i| all[*i]).collect();
                assert_eq!(index.postings(name, &absent).unwrap(), expected);
            }
        }
        assert_eq!(index.postings(name, &[0xff; 9]).unwrap(), [0u32; 0]);
    }
    assert_eq!(values_of(index, b"nothing has this").unwrap(), []);
    let mut symbols = index.symbols();
    for symbol in symbols_of(model) {
        assert_eq!(symbols.next().unwrap(), Some(&symbol[..]));
    }
    assert_eq!(symbols.next().unwrap(), None);
}

#[test]
fn recorded_indexes_answer_what_was_recorded() {
    for file in ["histograms.json", "labels.json", "segments.json", "tombstones.json"] {
        let case = recorded(file);
        let index =
            open_index(&SystemDisk, &data_dir().join(case["dir"].as_str().unwrap())).unwrap();
        assert_eq!(u64::from(index.version()), case["index_version"]);
        let toc = index.toc();
        for (name, place) in [
            ("symbols", toc.symbols),
            ("series", toc.series),
            ("label_indices", toc.label_indices),
            ("label_indices_table", toc.label_indices_table),
            ("postings", toc.postings),
            ("postings_table", toc.postings_table),
        ] {
            assert_eq!(case["toc"][name], place, "{file} {name}");
        }
        let mut symbols = index.symbols();
        for symbol in case["symbols"].as_array().unwrap() {
            assert_eq!(symbols.next().unwrap(), symbol.as_str().map(str::as_bytes));
        }
        assert_eq!(symbols.next().unwrap(), None);
        let names: Vec<String> = serde_json::from_value(case["label_names"].clone()).unwrap();
        let found: Vec<_> = index.label_names().collect();
        assert_eq!(found, names.iter().map(String::as_bytes).collect::<Vec<_>>());
        let values: BTreeMap<String, Vec<String>> =
            serde_json::from_value(case["label_values"].clone()).unwrap();
        for (name, values) in values {
            let found = values_of(&index, name.as_bytes()).unwrap();
            let found: Vec<_> = found.iter().map(|(value, _)| &value[..]).collect();
            assert_eq!(found, values.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
        let postings: Option<BTreeMap<String, BTreeMap<String, Vec<u32>>>> =
            serde_json::from_value(case["postings"].clone()).unwrap();
        for (name, values) in postings.unwrap_or_default() {
            for (value, postings) in values {
                let found = index.postings(name.as_bytes(), value.as_bytes()).unwrap();
                assert_eq!(found, postings, "{file} {name}={value}");
            }
        }
        let ranges: Option<Vec<(String, String, u64, u64)>> =
            serde_json::from_value(case["postings_ranges"].clone()).unwrap();
        for (name, value, start, _) in ranges.unwrap_or_default() {
            let found = values_of(&index, name.as_bytes()).unwrap();
            let place = found.iter().find(|(known, _)| *known == value.as_bytes()).unwrap().1;
            assert_eq!(place + 4, start, "{file} {name}={value}");
        }
        let all = index.all_postings().unwrap();
        let series = case["series"].as_array().unwrap();
        let refs: Vec<_> = series.iter().map(|series| series["ref"].as_u64().unwrap()).collect();
        assert_eq!(all.iter().map(|series| u64::from(*series)).collect::<Vec<_>>(), refs);
        let read = read(&index).unwrap();
        let labels: Vec<_> = series.iter().map(|series| labels_of(&series["labels"])).collect();
        assert_eq!(read.into_keys().collect::<Vec<_>>(), labels);
    }
}

fn label(name: &str, value: &str) -> Label {
    (name.as_bytes().to_vec(), value.as_bytes().to_vec())
}

/// So many series of five labels, two of which all share.
fn many(count: u32) -> Model {
    let series = |i: u32| {
        let labels = vec![
            label("__name__", "m"),
            label("i", &format!("{i:08}")),
            label("job", &format!("j{}", i % 7)),
            label("pod", &format!("p{}", i / 3)),
            label("zone", "z"),
        ];
        let chunk = |n: u32| ChunkMeta {
            mint: i64::from(n) * 100,
            maxt: i64::from(n) * 100 + 99,
            chunk: BlockChunkRef::new(0, 8 + i * 300 + n * 100),
        };
        (labels, (0..i % 3 + 1).map(chunk).collect())
    };
    (0..count).map(series).collect()
}

#[test]
fn many_series_are_found_and_little_of_them_is_kept_in_memory() {
    let model = many(5000);
    let (_disk, index) = written(&model);
    assert_answers(&index, &model);
    // A thirty-second of symbols and values, with numbers for each.
    let bytes = index.bytes_in_memory();
    assert!(bytes < 24 << 10, "{bytes} bytes for an index of {}", index.bytes());
}

#[test]
fn an_index_without_series_is_one() {
    let (_disk, index) = written(&Model::new());
    assert_answers(&index, &Model::new());
}

/// Bytes as they come, names among them, times and places from end to end.
#[test]
fn corners_come_back() {
    let chunk = |mint, maxt, chunk| ChunkMeta { mint, maxt, chunk: BlockChunkRef(chunk) };
    let long = vec![b'x'; 300_000];
    let mut model = Model::new();
    model.insert(vec![(vec![0xff, 0xfe], vec![0x80])], vec![chunk(i64::MIN, i64::MAX, 0)]);
    model.insert(vec![(b"a".to_vec(), long.clone())], vec![chunk(i64::MAX, i64::MAX, 1 << 40)]);
    model.insert(
        vec![(b"a".to_vec(), vec![0]), (vec![0xff], b"\xc3".to_vec())],
        vec![chunk(i64::MIN, -1, 5), chunk(0, 0, 5), chunk(i64::MAX, i64::MAX, u64::MAX >> 1)],
    );
    model.insert(vec![(long, b"v".to_vec())], vec![]);
    // Places rise with the series.
    let mut place = 0;
    for chunk in model.values_mut().flatten() {
        place += 1 << 40;
        chunk.chunk = BlockChunkRef(place);
    }
    let (_disk, index) = written(&model);
    assert_answers(&index, &model);
}

#[test]
fn what_does_not_come_in_order_is_refused() {
    let disk = disk();
    let mut writer = IndexWriter::create(&disk, &path()).unwrap();
    let is_unordered = |result: Result<(), WriteError>| {
        assert!(matches!(result, Err(WriteError::Unordered { .. })), "{result:?}");
    };
    for symbol in ["", "a", "b", "c"] {
        writer.add_symbol(symbol.as_bytes()).unwrap();
    }
    is_unordered(writer.add_symbol(b"c").map(drop));
    is_unordered(writer.add_symbol(b"b").map(drop));
    let chunk = |mint, maxt, chunk| ChunkMeta { mint, maxt, chunk: BlockChunkRef(chunk) };
    writer.add_series(&[(1, 2)], &[chunk(1, 5, 8)]).unwrap();
    is_unordered(writer.add_symbol(b"d").map(drop));
    // The same series, one before, labels twice or not sorted, what is no symbol.
    for labels in [&[(1, 2)][..], &[(1, 1)], &[(1, 3), (1, 3)], &[(2, 3), (1, 3)], &[(1, 4)], &[]] {
        is_unordered(writer.add_series(labels, &[]).map(drop));
    }
    // Chunks that end before they begin, overlap, or lie before others.
    for chunks in [
        &[chunk(5, 4, 9)][..],
        &[chunk(1, 5, 9), chunk(5, 6, 10)],
        &[chunk(1, 5, 7)],
        &[chunk(1, 2, 10), chunk(3, 4, 9)],
    ] {
        is_unordered(writer.add_series(&[(1, 3)], chunks).map(drop));
    }
    // None of these left anything.
    writer.add_series(&[(1, 2), (2, 3)], &[chunk(1, 5, 8)]).unwrap();
    writer.finish().unwrap();
    let index = open_index(&disk, Path::new("/b")).unwrap();
    assert_eq!(index.all_postings().unwrap().len(), 2);
    assert_eq!(index.postings(b"a", b"b").unwrap().len(), 2);
    assert_eq!(index.postings(b"b", b"c").unwrap().len(), 1);
}

/// At every limit below its size an index is refused before it has more than that.
#[test]
fn an_index_that_grows_too_large_is_refused_before_it_is_written() {
    let model = many(40);
    let whole = {
        let disk = disk();
        write(IndexWriter::create(&disk, &path()).unwrap(), &model).unwrap()
    };
    for bytes_max in (60..whole).step_by(7).chain([whole - 1]) {
        let disk = disk();
        let writer = IndexWriter::create(&disk, &path()).unwrap().limited(bytes_max);
        let err = write(writer, &model).unwrap_err();
        let WriteError::TooLarge { bytes_max: told, .. } = err else { panic!("{err}") };
        assert_eq!(told, bytes_max);
        assert!(disk.used_bytes() <= bytes_max);
    }
    let disk = disk();
    let writer = IndexWriter::create(&disk, &path()).unwrap().limited(whole + 200);
    assert_eq!(write(writer, &model).unwrap(), whole);
}

fn open_bytes(bytes: &[u8]) -> Result<IndexReader, ReadError> {
    let disk = disk();
    disk.create(&path()).unwrap().write_all_at(bytes, 0).unwrap();
    IndexReader::open(&disk, &path(), PageCache::new(1 << 16))
}

fn bytes_of(disk: &FaultyDisk) -> Vec<u8> {
    crate::disk::read_file(disk, &path(), 1 << 30).unwrap()
}

/// Sets a section's checksum right again.
fn forge(bytes: &mut [u8], section: usize) {
    let len = u32::from_be_bytes(bytes[section..section + 4].try_into().unwrap()) as usize;
    let (start, end) = (section + 4, section + 4 + len);
    let crc = crc32c::crc32c(&bytes[start..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_be_bytes());
}

/// Every bit of an index is covered by a checksum or by a check, but for padding.
#[test]
fn no_flipped_bit_changes_an_answer_unnoticed() {
    let model = many(12);
    let (disk, index) = written(&model);
    let whole = bytes_of(&disk);
    let toc = index.toc();
    let mut unnoticed = 0;
    for at in 0..whole.len() {
        for bit in [0, 7] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            let read = open_bytes(&damaged).and_then(|index| {
                for name in index.label_names() {
                    for (value, place) in values_of(&index, name)? {
                        assert_eq!(index.postings(name, &value)?, index.postings_at(place)?);
                    }
                }
                read(&index)
            });
            match read {
                Ok(read) => {
                    unnoticed += 1;
                    assert_eq!(read, model, "byte {at}");
                }
                Err(ReadError::Corrupt(corruption)) => {
                    // A section is told by where its contents begin, behind the length.
                    assert!(corruption.offset <= at as u64 + 4, "byte {at}: {corruption}");
                }
                Err(err) => panic!("{err}"),
            }
        }
    }
    // Padding before the series and the postings, and the version that is 3 as well.
    let padding = 16 * 13 + 4;
    assert!(unnoticed < 2 * padding, "{unnoticed} of {}", toc.series);
}

/// Numbers in a section whose checksum is right.
#[test]
fn forged_numbers_are_errors() {
    let (disk, index) = written(&many(40));
    let whole = bytes_of(&disk);
    let toc = index.toc();
    let at = |forge_at: u64, bytes: &[u8], section: u64| {
        let mut forged = whole.clone();
        forged[forge_at as usize..forge_at as usize + bytes.len()].copy_from_slice(bytes);
        forge(&mut forged, section as usize);
        forged
    };
    let huge = [0xff; 4];
    // Counts of symbols and of table entries.
    assert!(open_bytes(&at(toc.symbols + 4, &huge, toc.symbols)).is_err());
    assert!(open_bytes(&at(toc.postings_table + 4, &huge, toc.postings_table)).is_err());
    // A text's length, a table entry's count of texts.
    assert!(open_bytes(&at(toc.symbols + 8, &[0xff, 0xff, 0xff, 0x7f], toc.symbols)).is_err());
    assert!(open_bytes(&at(toc.postings_table + 8, &[3], toc.postings_table)).is_err());
    // The postings of all series: their count, one that is no series, two that do not rise.
    let all = toc.postings.next_multiple_of(4);
    let fails = |bytes: Vec<u8>| {
        let err = open_bytes(&bytes).unwrap().all_postings().unwrap_err();
        assert!(matches!(err, ReadError::Corrupt(_)), "{err}");
    };
    fails(at(all + 4, &huge, all));
    fails(at(all + 8, &[0, 0, 0, 0], all));
    fails(at(all + 4 + 4 * 40, &huge, all));
    fails(at(all + 12, &whole[all as usize + 8..all as usize + 12], all));
    // A place in the table that is none.
    let mut forged = whole.clone();
    let entry = toc.postings_table as usize + 8 + 3;
    forged[entry..entry + 2].copy_from_slice(&[0xff, 0x7f]);
    forge(&mut forged, toc.postings_table as usize);
    fails(forged);
}

/// A table in which two hundred values share the postings of all series.
#[test]
fn values_that_share_postings_take_no_more_memory_than_series() {
    let (disk, index) = written(&many(40));
    let (whole, toc) = (bytes_of(&disk), index.toc());
    let entry = |name: &str, value: &str| {
        let place = toc.postings.next_multiple_of(4);
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        let mut entry = [&[2][..], &text(name), &text(value)].concat();
        crate::model::varint::push_varint(&mut entry, place);
        entry
    };
    let entries: Vec<u8> = (0..200).flat_map(|i| entry("v", &format!("{i:03}"))).collect();
    let table = [&201_u32.to_be_bytes()[..], &entry("", ""), &entries].concat();
    let mut forged = whole[..toc.postings_table as usize].to_vec();
    forged.extend((table.len() as u32).to_be_bytes());
    forged.extend(&table);
    forged.extend(crc32c::crc32c(&table).to_be_bytes());
    forged.extend(toc.encode());
    let index = open_bytes(&forged).unwrap();
    let select = |op, value: &[u8]| index.select(&[Matcher::new(op, b"v", value).unwrap()]);
    assert_eq!(select(MatchOp::Equal, b"000").unwrap().into_iter().count(), 40);
    for (op, value) in [(MatchOp::Regex, ".+"), (MatchOp::Regex, "0.*"), (MatchOp::Equal, "")] {
        let err = select(op, value.as_bytes()).unwrap_err();
        assert!(matches!(err, ReadError::Corrupt(_)), "{err}");
    }
}

#[test]
fn series_that_are_none_are_errors() {
    let (_disk, index) = written(&many(40));
    let all: BTreeSet<u32> = index.all_postings().unwrap().into_iter().collect();
    let mut reader = index.series();
    for series in (0..index.bytes() as u32 / 16 + 3).chain([u32::MAX]) {
        let read = reader.read(BlockSeriesRef(series));
        assert_eq!(read.is_ok(), all.contains(&series), "{series}");
    }
}

fn models() -> impl Strategy<Value = Model> {
    let text = prop_oneof![
        3 => prop::collection::vec(b'a'..b'd', 1..3),
        1 => prop::collection::vec(any::<u8>(), 1..6),
    ];
    let labels = prop::collection::btree_map(text.clone(), text, 0..6);
    let chunks = prop::collection::vec((1i64..1 << 40, 0i64..1 << 40, 0u64..1 << 34), 0..4);
    prop::collection::vec((labels, chunks, any::<i64>()), 0..60).prop_map(|series| {
        let mut model = Model::new();
        for (labels, chunks, start) in series {
            let mut t = start / 4;
            let metas = chunks.into_iter().map(|(gap, span, step)| {
                let meta =
                    ChunkMeta { mint: t + gap, maxt: t + gap + span, chunk: BlockChunkRef(step) };
                t = meta.maxt;
                meta
            });
            model.insert(labels.into_iter().collect(), metas.collect());
        }
        let mut place = 0;
        for chunk in model.values_mut().flatten() {
            place += chunk.chunk.0;
            chunk.chunk = BlockChunkRef(place);
        }
        model
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_written_is_what_is_read(model in models()) {
        let (disk, index) = written(&model);
        assert_answers(&index, &model);
        // Nothing hangs on the cache.
        let cache: Arc<PageCache> = PageCache::new(0);
        let index = IndexReader::open(&disk, &path(), cache).unwrap();
        assert_answers(&index, &model);
    }
}
