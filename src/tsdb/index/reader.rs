//! Reading an index. In memory is where every 32nd symbol and value stands; the rest is read when it is
//! asked for, and checked by its checksum then.

use std::path::Path;
use std::sync::Arc;

use super::symbols::{SymbolWalk, Symbols};
use super::{
    BlockChunkRef, BlockSeriesRef, CRC_BYTES, ChunkMeta, HEADER_BYTES, LabelSymbols, MAGIC,
    SAMPLED, SERIES_ALIGN, Toc,
};
use crate::disk::Disk;
use crate::model::bytes::{Cursor, Malformed};
use crate::model::labels::KeyBuilder;
use crate::tsdb::error::ReadError;
use crate::tsdb::file::{PageCache, RangeReader, Section};

/// What is read of a series at first. Most are shorter.
const SERIES_BYTES: u64 = 512;
/// Bytes of a series' labels; no sender's request is larger than what it holds. An index can name one
/// long symbol often.
const KEY_BYTES_MAX: usize = 64 << 20;
/// Labels by whose place in a series they are remembered from one series to the next.
const KNOWN_MAX: usize = 64;

/// An index, open. Its methods may be called by several threads at once.
pub struct IndexReader {
    file: RangeReader,
    toc: Toc,
    version: u8,
    symbols: Symbols,
    table: PostingsTable,
}

impl IndexReader {
    /// Opens the index at `path`, and reads its symbols and postings table once, checking them.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        cache: Arc<PageCache>,
    ) -> Result<IndexReader, ReadError> {
        IndexReader::of_file(RangeReader::open(disk, path)?, cache)
    }

    /// The same of a file that is open.
    pub fn of_file(file: RangeReader, cache: Arc<PageCache>) -> Result<IndexReader, ReadError> {
        let file = file.with_cache(cache);
        let mut header = Vec::new();
        file.read(0, HEADER_BYTES, &mut header, "the header is not there")?;
        let (magic, version) = header.split_at(4);
        if magic != MAGIC.to_be_bytes() {
            return Err(file.corrupt(0, "this is no index"));
        }
        let version = version[0];
        if !matches!(version, 2 | 3) {
            return Err(file.corrupt(4, "an index of this version is not read"));
        }
        let toc = Toc::read(&file)?;
        let symbols = Symbols::read(&file, toc.symbols)?;
        let table = PostingsTable::read(&file, toc.postings_table)?;
        Ok(IndexReader { file, toc, version, symbols, table })
    }

    pub fn toc(&self) -> Toc {
        self.toc
    }

    /// 2 or 3.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.file.len()
    }

    /// Bytes that it keeps in memory, but for the cache's.
    pub fn bytes_in_memory(&self) -> usize {
        self.symbols.sampled.capacity() * size_of::<u32>() + self.table.bytes_in_memory()
    }

    /// All symbols, in their order.
    pub fn symbols(&self) -> SymbolStream<'_> {
        let Symbols { start, end, count, .. } = self.symbols;
        let section = Section::range(&self.file, start + 4, end, "the symbols are cut short");
        SymbolStream { section, left: count }
    }

    /// Names of all labels, sorted.
    pub fn label_names(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.table.names.len()).map(|i| self.table.names.get(i)).filter(|name| !name.is_empty())
    }

    /// The values of a label, sorted, with the places of their postings; none if there is no such
    /// label.
    pub fn values(&self, name: &[u8]) -> Values<'_> {
        let (start, end) = match self.table.names.find(name) {
            Some(i) => self.table.entries_of(i),
            None => (0, 0),
        };
        Values { section: self.table_range(start, end), value: Vec::new() }
    }

    /// The series that have this label, rising; none if there is no such label.
    pub fn postings(&self, name: &[u8], value: &[u8]) -> Result<Vec<u32>, ReadError> {
        let Some((start, end)) = self.table.entries_around(name, value) else {
            return Ok(Vec::new());
        };
        let mut values = Values { section: self.table_range(start, end), value: Vec::new() };
        while let Some((found, place)) = values.next()? {
            match found.cmp(value) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return self.postings_at(place),
                std::cmp::Ordering::Greater => break,
            }
        }
        Ok(Vec::new())
    }

    /// All series, rising.
    pub fn all_postings(&self) -> Result<Vec<u32>, ReadError> {
        self.postings(b"", b"")
    }

    /// The postings at a place that [`Values`] gave.
    pub fn postings_at(&self, place: u64) -> Result<Vec<u32>, ReadError> {
        let mut section = Section::open(&self.file, place, "the postings are cut short")?;
        let postings = self.read_postings(&mut section);
        section.check()?;
        postings
    }

    fn read_postings(&self, section: &mut Section<'_>) -> Result<Vec<u32>, ReadError> {
        /// What is taken at once.
        const TAKEN: u64 = 16 << 10;
        let place = section.start();
        let count = u64::from(section.be32()?);
        if section.remaining() != 4 * count {
            return Err(self.file.corrupt(place, "the postings are not as many as they say"));
        }
        let mut postings = Vec::with_capacity(count as usize);
        while section.remaining() > 0 {
            let bytes = section.take(section.remaining().min(TAKEN) as usize)?;
            let (numbers, _) = bytes.as_chunks::<4>();
            postings.extend(numbers.iter().map(|number| u32::from_be_bytes(*number)));
        }
        if !postings.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(self.file.corrupt(place, "the postings do not rise"));
        }
        let offset = |series: Option<&u32>| series.map(|series| BlockSeriesRef(*series).offset());
        let is_before = offset(postings.first()).is_some_and(|first| first < self.toc.series);
        let is_behind = offset(postings.last()).is_some_and(|last| last >= self.toc.series_end());
        if is_before || is_behind {
            return Err(self.file.corrupt(place, "the postings name what is no series"));
        }
        Ok(postings)
    }

    /// No more series than these have room in the file.
    pub(super) fn series_at_most(&self) -> u64 {
        (self.toc.series_end() - self.toc.series) / SERIES_ALIGN + 1
    }

    pub(super) fn too_many_postings(&self) -> ReadError {
        self.file
            .corrupt(self.toc.postings_table, "a label has more postings than there are series")
    }

    /// To read series with.
    pub fn series(&self) -> SeriesReader<'_> {
        SeriesReader {
            index: self,
            walk: SymbolWalk::new(&self.file, &self.symbols),
            entry: Vec::new(),
            offset: 0,
            labels: Vec::new(),
            chunks: Vec::new(),
            known: Vec::new(),
            last_name: Vec::new(),
            key: KeyBuilder::default(),
        }
    }

    fn table_range(&self, start: u32, end: u32) -> Section<'_> {
        let place = |at: u32| self.table.start + u64::from(at);
        let what = "the postings table is cut short";
        Section::range(&self.file, place(start), place(end), what)
    }
}

/// Symbols as they stand in the file.
pub struct SymbolStream<'r> {
    section: Section<'r>,
    left: u32,
}

impl SymbolStream<'_> {
    #[expect(clippy::should_implement_trait, reason = "what it gives is read into its own memory")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, ReadError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        self.section.text().map(Some)
    }
}

/// Entries of one label in the postings table.
pub struct Values<'r> {
    section: Section<'r>,
    value: Vec<u8>,
}

impl Values<'_> {
    /// The next value, and the place of its postings.
    #[expect(clippy::should_implement_trait, reason = "what it gives is read into its own memory")]
    pub fn next(&mut self) -> Result<Option<(&[u8], u64)>, ReadError> {
        if self.section.remaining() == 0 {
            return Ok(None);
        }
        read_key_count(&mut self.section)?;
        self.section.text()?;
        self.value.clear();
        self.value.extend_from_slice(self.section.text()?);
        let place = self.section.uvarint()?;
        Ok(Some((&self.value, place)))
    }
}

/// Each entry of the table begins with how many texts it has: two.
fn read_key_count(section: &mut Section<'_>) -> Result<(), ReadError> {
    if section.uvarint()? == 2 { Ok(()) } else { Err(section.corrupt()) }
}

/// Where every 32nd value of each label, and its first, stand in the postings table. All places are
/// counted from the table's beginning; it has no more than 4 GiB.
#[derive(Debug, Default)]
struct PostingsTable {
    start: u64,
    end: u32,
    names: Texts,
    /// For each name, the first of its values among those that are kept.
    first: Vec<u32>,
    values: Texts,
    places: Vec<u32>,
}

impl PostingsTable {
    fn read(file: &RangeReader, offset: u64) -> Result<PostingsTable, ReadError> {
        let mut section = Section::open(file, offset, "the postings table is cut short")?;
        let read = PostingsTable::walk(file, &mut section);
        section.check()?;
        read
    }

    fn walk(file: &RangeReader, section: &mut Section<'_>) -> Result<PostingsTable, ReadError> {
        let start = section.start();
        let mut table = PostingsTable { start, ..PostingsTable::default() };
        let count = section.be32()?;
        let mut of_name = 0_u32;
        let mut last = Vec::new();
        for _ in 0..count {
            let offset = section.offset();
            read_key_count(section)?;
            let name = section.text()?;
            let is_new = match table.names.last() {
                Some(last) if name < last => {
                    return Err(file.corrupt(offset, "the postings table is not sorted"));
                }
                last => last != Some(name),
            };
            if is_new {
                table.names.push(name);
                table.first.push(table.places.len() as u32);
                of_name = 0;
            }
            let value = section.text()?;
            if !is_new && value <= &last[..] {
                return Err(file.corrupt(offset, "the postings table is not sorted"));
            }
            if of_name.is_multiple_of(SAMPLED) {
                table.values.push(value);
                table.places.push((offset - start) as u32);
            }
            of_name += 1;
            last.clear();
            last.extend_from_slice(value);
            section.uvarint()?;
        }
        table.end = (section.offset() - start) as u32;
        Ok(table)
    }

    /// Where the entries of a name begin and end.
    fn entries_of(&self, name: usize) -> (u32, u32) {
        let begin = |name: usize| {
            let first = self.first.get(name)?;
            self.places.get(*first as usize).copied()
        };
        (begin(name).unwrap_or(self.end), begin(name + 1).unwrap_or(self.end))
    }

    /// The entries among which this label's must be.
    fn entries_around(&self, name: &[u8], value: &[u8]) -> Option<(u32, u32)> {
        let name = self.names.find(name)?;
        let first = *self.first.get(name)? as usize;
        let end = self.first.get(name + 1).map_or(self.places.len(), |end| *end as usize);
        let behind = self.values.partition_point(first, end, |kept| kept <= value);
        let before = behind.checked_sub(1).filter(|before| *before >= first)?;
        let places = |i: usize| self.places.get(i).copied().unwrap_or(self.end);
        Some((places(before), places(before + 1)))
    }

    fn bytes_in_memory(&self) -> usize {
        let numbers = self.first.capacity() + self.places.capacity();
        numbers * size_of::<u32>() + self.names.bytes_in_memory() + self.values.bytes_in_memory()
    }
}

/// Texts one after another.
#[derive(Debug, Default)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Texts {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        // Fits, as a section does.
        self.ends.push(self.bytes.len() as u32);
    }

    fn get(&self, i: usize) -> &[u8] {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.bytes[start..self.ends[i] as usize]
    }

    fn last(&self) -> Option<&[u8]> {
        Some(self.get(self.len().checked_sub(1)?))
    }

    /// Of sorted texts.
    fn find(&self, text: &[u8]) -> Option<usize> {
        let i = self.partition_point(0, self.len(), |known| known < text);
        (i < self.len() && self.get(i) == text).then_some(i)
    }

    /// The first text from `start` before `end` that `is_before` is not true of.
    fn partition_point(
        &self,
        mut start: usize,
        mut end: usize,
        is_before: impl Fn(&[u8]) -> bool,
    ) -> usize {
        while start < end {
            let middle = start + (end - start) / 2;
            if is_before(self.get(middle)) { start = middle + 1 } else { end = middle }
        }
        start
    }

    fn bytes_in_memory(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }
}

/// Reads series, one after the other, and keeps its memory between them. Series near to one another
/// share most labels, which are looked up once.
pub struct SeriesReader<'r> {
    index: &'r IndexReader,
    walk: SymbolWalk<'r>,
    entry: Vec<u8>,
    /// Where the entry stands.
    offset: u64,
    labels: Vec<LabelSymbols>,
    chunks: Vec<ChunkMeta>,
    known: Vec<KnownLabel>,
    last_name: Vec<u8>,
    key: KeyBuilder,
}

#[derive(Default)]
struct KnownLabel {
    symbols: Option<LabelSymbols>,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl SeriesReader<'_> {
    /// Reads a series that postings name.
    pub fn read(&mut self, series: BlockSeriesRef) -> Result<(), ReadError> {
        let file = &self.index.file;
        let (offset, end) = (series.offset(), self.index.toc.series_end());
        let what = "the series is cut short";
        let Some(room) = end.checked_sub(offset).filter(|_| offset >= self.index.toc.series) else {
            return Err(file.corrupt(offset, "there is no series"));
        };
        file.read_cached(offset, room.min(SERIES_BYTES), &mut self.entry, what)?;
        let mut cursor = Cursor::new(&self.entry);
        let len = cursor.uvarint(what).map_err(file.malformed(offset))?;
        let start = cursor.at();
        let bytes = len.checked_add(start as u64 + CRC_BYTES).filter(|bytes| *bytes <= room);
        let bytes = bytes.ok_or_else(|| file.corrupt(offset, what))?;
        if bytes > self.entry.len() as u64 {
            file.read_cached(offset, bytes, &mut self.entry, what)?;
        }
        let (entry, crc) = self.entry[start..bytes as usize].split_at(len as usize);
        if crc != crc32c::crc32c(entry).to_be_bytes() {
            return Err(file.corrupt(offset, "the series does not match its checksum"));
        }
        self.offset = offset;
        self.labels.clear();
        self.chunks.clear();
        let mut cursor = Cursor::new(entry);
        let decoded = decode_labels(&mut cursor, &mut self.labels)
            .and_then(|()| decode_chunks(&mut cursor, &mut self.chunks));
        decoded.map_err(file.malformed(offset + start as u64))
    }

    /// The labels, as they stand in the index.
    pub fn labels(&self) -> &[LabelSymbols] {
        &self.labels
    }

    pub fn chunks(&self) -> &[ChunkMeta] {
        &self.chunks
    }

    /// The series' canonical key. A label with an empty value, which stands for none, is not in it.
    pub fn key(&mut self) -> Result<&[u8], ReadError> {
        let file = &self.index.file;
        self.key.clear();
        self.known.resize_with(self.labels.len().min(KNOWN_MAX), KnownLabel::default);
        let mut beyond = KnownLabel::default();
        self.last_name.clear();
        for (i, &(name, value)) in self.labels.iter().enumerate() {
            let label = self.known.get_mut(i).unwrap_or(&mut beyond);
            if label.symbols != Some((name, value)) {
                label.symbols = None;
                copy(&mut label.name, self.walk.get(name)?);
                copy(&mut label.value, self.walk.get(value)?);
                label.symbols = Some((name, value));
            }
            if label.name <= self.last_name {
                return Err(file.corrupt(self.offset, "the series' labels are not sorted"));
            }
            copy(&mut self.last_name, &label.name);
            if !label.value.is_empty() {
                self.key.push(&label.name, &label.value);
            }
            if self.key.as_bytes().len() > KEY_BYTES_MAX {
                return Err(file.corrupt(self.offset, "the series' labels are too long"));
            }
        }
        Ok(self.key.as_bytes())
    }
}

fn copy(to: &mut Vec<u8>, from: &[u8]) {
    to.clear();
    to.extend_from_slice(from);
}

fn decode_labels(cursor: &mut Cursor<'_>, labels: &mut Vec<LabelSymbols>) -> Result<(), Malformed> {
    let count = cursor.uvarint("a count of labels")?;
    for _ in 0..count {
        let name = cursor.uvarint32("a label's name")?;
        labels.push((name, cursor.uvarint32("a label's value")?));
    }
    Ok(())
}

fn decode_chunks(cursor: &mut Cursor<'_>, chunks: &mut Vec<ChunkMeta>) -> Result<(), Malformed> {
    let count = cursor.uvarint("a count of chunks")?;
    // The first one's time counts from 0, and its place, too.
    let mut last: Option<ChunkMeta> = None;
    for _ in 0..count {
        let out_of_range = cursor.malformed("a chunk's time is out of range");
        let mint = match last {
            None => Some(cursor.varint("a chunk's time")?),
            Some(last) => last.maxt.checked_add_unsigned(cursor.uvarint("a chunk's time")?),
        };
        let span = cursor.uvarint("a chunk's span")?;
        let maxt = mint.and_then(|mint| mint.checked_add_unsigned(span));
        let chunk = match last {
            None => cursor.uvarint("a chunk's place")?,
            Some(last) => last.chunk.0.wrapping_add_signed(cursor.varint("a chunk's place")?),
        };
        let (Some(mint), Some(maxt)) = (mint, maxt) else { return Err(out_of_range) };
        let meta = ChunkMeta { mint, maxt, chunk: BlockChunkRef(chunk) };
        chunks.push(meta);
        last = Some(meta);
    }
    cursor.end("more than the series' chunks")
}

const _: () = assert!(SERIES_BYTES >= SERIES_ALIGN);
