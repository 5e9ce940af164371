//! An index of arbitrary bytes: whatever is asked of it is answered or refused, and what is answered
//! can be written and is answered again.
//!
//! Input: the file. It is read as it is, and once more with the checksums set right.

use std::collections::BTreeMap;
use std::path::Path;

use ringest::disk::faulty::FaultyDisk;
use ringest::disk::{Disk, read_file};
use ringest::tsdb::error::{ReadError, WriteError};
use ringest::tsdb::file::PageCache;
use ringest::tsdb::index::{
    BlockChunkRef, BlockSeriesRef, ChunkMeta, INDEX_FILE, IndexReader, IndexWriter, LabelSymbols,
};

const DIR: &str = "/block";

/// What an index says.
#[derive(Debug, Default, PartialEq)]
struct Answers {
    symbols: Vec<Vec<u8>>,
    series: Vec<(Vec<LabelSymbols>, Vec<ChunkMeta>)>,
    keys: Vec<Vec<u8>>,
    /// Series by label, counted through.
    postings: BTreeMap<(Vec<u8>, Vec<u8>), Vec<usize>>,
}

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    read_and_write(input);
    let mut mended = input.to_vec();
    mend(&mut mended);
    read_and_write(&mended);
}

fn disk() -> FaultyDisk {
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new(DIR)).expect("a disk in memory");
    disk
}

fn read_and_write(bytes: &[u8]) {
    let before = disk();
    let file = before.create(&Path::new(DIR).join(INDEX_FILE)).expect("a disk in memory");
    file.write_all_at(bytes, 0).expect("a disk in memory");
    let Ok(answers) = read(&before) else { return };
    let after = disk();
    match write(&after, &answers) {
        Ok(()) => {
            let again = read(&after).expect("what we wrote");
            assert_eq!(again.symbols, answers.symbols);
            assert_eq!(again.series, answers.series);
            assert_eq!(again.keys, answers.keys);
            // Those that were read may name series without their label: nothing but the series'
            // labels says what is written.
            assert_eq!(again.postings, postings_of(&answers));
        }
        // Nothing obliges others to the order.
        Err(WriteError::Unordered { .. }) => {}
        Err(err) => panic!("{err}"),
    }
}

/// The postings that the series' labels make.
fn postings_of(answers: &Answers) -> BTreeMap<(Vec<u8>, Vec<u8>), Vec<usize>> {
    let mut postings = BTreeMap::<_, Vec<usize>>::new();
    let symbol = |at: u32| answers.symbols[at as usize].clone();
    for (i, (labels, _)) in answers.series.iter().enumerate() {
        for &(name, value) in labels {
            postings.entry((symbol(name), symbol(value))).or_default().push(i);
        }
    }
    postings
}

fn read(disk: &FaultyDisk) -> Result<Answers, ReadError> {
    let path = Path::new(DIR).join(INDEX_FILE);
    let index = IndexReader::open(disk, &path, PageCache::new(1 << 20))?;
    let mut answers = Answers::default();
    let mut symbols = index.symbols();
    while let Some(symbol) = symbols.next()? {
        answers.symbols.push(symbol.to_vec());
    }
    let all = index.all_postings()?;
    let mut reader = index.series();
    for series in &all {
        reader.read(BlockSeriesRef(*series))?;
        answers.series.push((reader.labels().to_vec(), reader.chunks().to_vec()));
        answers.keys.push(reader.key()?.to_vec());
    }
    for name in index.label_names() {
        let mut values = index.values(name);
        while let Some((value, place)) = values.next()? {
            let series = index.postings_at(place)?;
            let series = series.iter().filter_map(|series| all.binary_search(series).ok());
            answers.postings.insert((name.to_vec(), value.to_vec()), series.collect());
            assert_eq!(index.postings(name, value)?, index.postings_at(place)?);
        }
    }
    Ok(answers)
}

fn write(disk: &FaultyDisk, answers: &Answers) -> Result<(), WriteError> {
    let mut writer = IndexWriter::create(disk, &Path::new(DIR).join(INDEX_FILE))?;
    for symbol in &answers.symbols {
        writer.add_symbol(symbol)?;
    }
    for (labels, chunks) in &answers.series {
        writer.add_series(labels, chunks)?;
    }
    writer.finish().map(drop)
}

/// Sets the checksums right of the table of contents and of what it leads to.
fn mend(bytes: &mut [u8]) {
    const TOC_BYTES: usize = 52;
    let Some(toc) = bytes.len().checked_sub(TOC_BYTES) else { return };
    mend_range(bytes, toc, TOC_BYTES - 4);
    let place = |i: usize| {
        let place = &bytes[toc + 8 * i..toc + 8 * i + 8];
        usize::try_from(u64::from_be_bytes(place.try_into().expect("eight bytes"))).ok()
    };
    let places: Vec<Option<usize>> = (0..6).map(place).collect();
    let Some([Some(symbols), Some(series), .., Some(postings), Some(table)]) =
        places.first_chunk::<6>()
    else {
        return;
    };
    mend_section(bytes, *symbols);
    mend_section(bytes, *table);
    let mut at = postings.next_multiple_of(4);
    while at < *table && mend_section(bytes, at) {
        at = end_of_section(bytes, at).next_multiple_of(4);
    }
    let mut at = series.next_multiple_of(16);
    while at < *postings && at < toc {
        let len = usize::from(bytes[at]);
        // Longer ones are left alone.
        if len < 0x80 {
            mend_range(bytes, at + 1, len);
        }
        at += 16;
    }
}

fn end_of_section(bytes: &[u8], at: usize) -> usize {
    let len = bytes.get(at..at + 4).and_then(|len| len.try_into().ok());
    let len = len.map_or(0, u32::from_be_bytes) as usize;
    at.saturating_add(4).saturating_add(len).saturating_add(4)
}

fn mend_section(bytes: &mut [u8], at: usize) -> bool {
    let Some(rest) = bytes.get(at..) else { return false };
    if rest.len() < 4 {
        return false;
    }
    let end = end_of_section(bytes, at);
    mend_range(bytes, at + 4, end - at - 8)
}

fn mend_range(bytes: &mut [u8], start: usize, len: usize) -> bool {
    let Some(end) = start.checked_add(len) else { return false };
    let Some(checked) = bytes.get(start..end) else { return false };
    let crc = crc32c::crc32c(checked).to_be_bytes();
    match bytes.get_mut(end..end + 4) {
        Some(stored) => stored.copy_from_slice(&crc),
        None => return false,
    }
    true
}

/// An index of Prometheus.
const RECORDED: &[u8] =
    include_bytes!("../../tests/data/tsdb/blocks/tombstones/01M85ZRP9VA6NTPNHXS8YWCHYK/index");

/// Inputs to begin with: an index without series, one of three series, the same with postings that
/// name a series without their label, and one of Prometheus.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let chunk = |n: u32| ChunkMeta {
        mint: i64::from(n) * 1000,
        maxt: i64::from(n) * 1000 + 999,
        chunk: BlockChunkRef::new(0, 8 + 100 * n),
    };
    let series = [
        (vec![(1, 2)], vec![chunk(0), chunk(1)]),
        (vec![(1, 2), (3, 4)], vec![]),
        (vec![(1, 4)], vec![chunk(2)]),
    ];
    let symbols = ["", "a", "b", "c", "d"].map(|symbol| symbol.as_bytes().to_vec());
    let seed = |series: &[(Vec<LabelSymbols>, Vec<ChunkMeta>)]| {
        let disk = disk();
        let series = series.to_vec();
        let answers = Answers { symbols: symbols.to_vec(), series, ..Answers::default() };
        write(&disk, &answers).expect("a disk in memory");
        read_file(&disk, &Path::new(DIR).join(INDEX_FILE), 1 << 20).expect("a disk in memory")
    };
    let whole = seed(&series);
    let mut other_label = whole.clone();
    // The value of the first series' label, behind the entry's length, the count and the name.
    other_label[2 * 16 + 3] = 1;
    vec![seed(&[]), whole, other_label, RECORDED.to_vec()]
}
