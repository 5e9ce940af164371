//! Writing an index front to back: symbols, then series, then what finds them.
//!
//! What stays in memory until the end is each label's postings, a byte or two a series and label where
//! many share it. Texts are not kept: they are read again from what was written.

use std::collections::HashMap;
use std::path::Path;

use rapidhash::fast::RandomState;
use thin_vec::ThinVec;

use super::symbols::{SymbolWalk, Symbols};
use super::{
    BlockChunkRef, BlockSeriesRef, ChunkMeta, HEADER_BYTES, LabelSymbols, MAGIC, POSTINGS_ALIGN,
    SAMPLED, SERIES_ALIGN, Toc,
};
use crate::disk::Disk;
use crate::model::bytes::push_zigzag;
use crate::model::stop;
use crate::model::varint::push_varint;
use crate::tsdb::error::WriteError;
use crate::tsdb::file::FileWriter;

/// Prometheus refuses to write more: series are named by their place divided by 16, in four bytes.
pub const INDEX_BYTES_MAX: u64 = SERIES_ALIGN * u32::MAX as u64;
/// A section's length has four bytes.
const SECTION_BYTES_MAX: u64 = u32::MAX as u64;
/// What fits into the postings of all series.
const SERIES_MAX: u32 = u32::MAX / 4 - 1;
const VERSION: u8 = 2;

/// Writes an index: all symbols, then all series, both in their order.
pub struct IndexWriter {
    file: FileWriter,
    bytes_max: u64,
    toc: Toc,
    symbols: Symbols,
    last_symbol: Vec<u8>,
    symbols_crc: u32,
    are_symbols_done: bool,
    series: PostingList,
    last_labels: Vec<LabelSymbols>,
    last_chunk: BlockChunkRef,
    postings: PostingLists,
    entry: Vec<u8>,
}

impl IndexWriter {
    /// Makes the file; there must be none.
    pub fn create(disk: &dyn Disk, path: &Path) -> Result<IndexWriter, WriteError> {
        let mut file = FileWriter::create(disk, path)?;
        file.write(&MAGIC.to_be_bytes())?;
        file.write(&[VERSION])?;
        // Length and count of the symbols, which are not known yet.
        file.write(&[0; 8])?;
        let start = HEADER_BYTES + 4;
        Ok(IndexWriter {
            file,
            bytes_max: INDEX_BYTES_MAX,
            toc: Toc { symbols: HEADER_BYTES, ..Toc::default() },
            symbols: Symbols { start, end: start + 4, ..Symbols::default() },
            last_symbol: Vec::new(),
            symbols_crc: 0,
            are_symbols_done: false,
            series: PostingList::default(),
            last_labels: Vec::new(),
            last_chunk: BlockChunkRef::default(),
            postings: PostingLists::default(),
            entry: Vec::new(),
        })
    }

    /// Adds a symbol, which is greater than all before, and returns its number. Prometheus' heads
    /// have an empty one as their first.
    pub fn add_symbol(&mut self, symbol: &[u8]) -> Result<u32, WriteError> {
        let number = self.symbols.count;
        if self.are_symbols_done || number > 0 && symbol <= &self.last_symbol[..] {
            return Err(self.unordered("symbols come sorted, and before all series"));
        }
        self.entry.clear();
        push_varint(&mut self.entry, symbol.len() as u64);
        self.entry.extend_from_slice(symbol);
        let position = self.file.position();
        let bytes = position + self.entry.len() as u64 - self.symbols.start;
        if bytes > SECTION_BYTES_MAX || number == u32::MAX {
            return Err(self.too_large("symbols", SECTION_BYTES_MAX));
        }
        self.check_room(self.entry.len() as u64)?;
        if number.is_multiple_of(SAMPLED) {
            self.symbols.sampled.push((position - self.symbols.start) as u32);
        }
        self.symbols_crc = crc32c::crc32c_append(self.symbols_crc, &self.entry);
        self.file.write(&self.entry)?;
        self.last_symbol.clear();
        self.last_symbol.extend_from_slice(symbol);
        self.symbols.count += 1;
        Ok(number)
    }

    /// Adds a series, whose labels are greater than those of all before, sorted by name. Chunks rise
    /// in time, and in place over all series.
    pub fn add_series(
        &mut self,
        labels: &[LabelSymbols],
        chunks: &[ChunkMeta],
    ) -> Result<BlockSeriesRef, WriteError> {
        self.finish_symbols()?;
        self.check_order(labels, chunks)?;
        if self.series.count == SERIES_MAX {
            return Err(self.too_large("postings", SECTION_BYTES_MAX));
        }
        self.encode_entry(labels, chunks);
        let mut head = Vec::with_capacity(10);
        push_varint(&mut head, self.entry.len() as u64);
        let crc = crc32c::crc32c(&self.entry).to_be_bytes();
        self.check_room(SERIES_ALIGN + (head.len() + self.entry.len() + crc.len()) as u64)?;
        self.file.pad(SERIES_ALIGN)?;
        let series = (self.file.position() / SERIES_ALIGN) as u32;
        self.file.write(&head)?;
        self.file.write(&self.entry)?;
        self.file.write(&crc)?;

        self.series.push(series);
        self.postings.push(series, labels);
        self.last_labels.clear();
        self.last_labels.extend_from_slice(labels);
        self.last_chunk = chunks.last().map_or(self.last_chunk, |chunk| chunk.chunk);
        Ok(BlockSeriesRef(series))
    }

    /// Writes the rest and brings the file to the medium. Returns its bytes.
    pub fn finish(mut self) -> Result<u64, WriteError> {
        self.finish_symbols()?;
        let pairs = self.postings.sorted_pairs();
        let postings_bytes = self.series.section_bytes()
            + pairs.iter().map(|(_, list)| self.postings.lists[*list].section_bytes()).sum::<u64>();
        // Said before it is met: the postings are most of what is still to come.
        self.check_room(POSTINGS_ALIGN + postings_bytes)?;
        self.toc.label_indices = self.file.position();
        self.toc.postings = self.file.position();
        self.file.pad(POSTINGS_ALIGN)?;
        let start = self.file.position();
        write_postings(&mut self.file, &self.series)?;
        for (written, (_, list)) in pairs.iter().enumerate() {
            look_at_stop(written)?;
            write_postings(&mut self.file, &self.postings.lists[*list])?;
        }
        self.toc.label_indices_table = self.file.position();
        self.toc.postings_table = self.file.position();
        self.write_table(start, &pairs)?;
        self.file.write(&self.toc.encode())?;
        self.file.finish()
    }

    fn finish_symbols(&mut self) -> Result<(), WriteError> {
        if self.are_symbols_done {
            return Ok(());
        }
        self.are_symbols_done = true;
        let end = self.file.position();
        self.symbols.end = end;
        let count = self.symbols.count.to_be_bytes();
        let bytes = end - self.symbols.start;
        self.file.patch(HEADER_BYTES, &[(bytes as u32).to_be_bytes(), count].concat())?;
        // The count comes before the symbols, and was not known.
        let behind_count = bytes as usize - count.len();
        let crc = crc32c::crc32c_combine(crc32c::crc32c(&count), self.symbols_crc, behind_count);
        self.file.write(&crc.to_be_bytes())?;
        self.toc.series = self.file.position();
        Ok(())
    }

    fn check_order(&self, labels: &[LabelSymbols], chunks: &[ChunkMeta]) -> Result<(), WriteError> {
        let is_known = |(name, value): &LabelSymbols| (*name).max(*value) < self.symbols.count;
        let is_sorted = labels.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !is_sorted || !labels.iter().all(is_known) {
            return Err(self.unordered("a series' labels are sorted, and among the symbols"));
        }
        // Symbols are numbered in their order, so numbers compare as the texts do.
        if !self.series.is_empty() && labels <= &self.last_labels[..] {
            return Err(self.unordered("series come sorted"));
        }
        let mut last_chunk = self.last_chunk;
        let mut last_maxt = None;
        for chunk in chunks {
            let follows = last_maxt.is_none_or(|maxt| chunk.mint > maxt);
            if !follows || chunk.maxt < chunk.mint || chunk.chunk < last_chunk {
                return Err(self.unordered("chunks rise in time and place"));
            }
            (last_chunk, last_maxt) = (chunk.chunk, Some(chunk.maxt));
        }
        Ok(())
    }

    fn encode_entry(&mut self, labels: &[LabelSymbols], chunks: &[ChunkMeta]) {
        let entry = &mut self.entry;
        entry.clear();
        push_varint(entry, labels.len() as u64);
        for (name, value) in labels {
            push_varint(entry, u64::from(*name));
            push_varint(entry, u64::from(*value));
        }
        push_varint(entry, chunks.len() as u64);
        let mut last: Option<&ChunkMeta> = None;
        for chunk in chunks {
            match last {
                None => push_zigzag(entry, chunk.mint),
                Some(last) => push_varint(entry, chunk.mint.wrapping_sub(last.maxt) as u64),
            }
            push_varint(entry, chunk.maxt.wrapping_sub(chunk.mint) as u64);
            match last {
                None => push_varint(entry, chunk.chunk.0),
                Some(last) => push_zigzag(entry, chunk.chunk.0.wrapping_sub(last.chunk.0) as i64),
            }
            last = Some(chunk);
        }
    }

    /// The table of where the postings are, which begin at `place` in the order of `pairs`.
    fn write_table(
        &mut self,
        mut place: u64,
        pairs: &[(LabelSymbols, usize)],
    ) -> Result<(), WriteError> {
        let written = self.file.reader()?;
        let mut names = SymbolWalk::new(&written, &self.symbols);
        let mut values = SymbolWalk::new(&written, &self.symbols);
        let table = self.file.position();
        // Its length, which is not known yet.
        self.file.write(&[0; 4])?;
        let count = (pairs.len() as u64 + 1) as u32;
        self.entry.clear();
        self.entry.extend(count.to_be_bytes());
        push_table_entry(&mut self.entry, b"", b"", place);
        place += self.series.section_bytes();
        let mut crc = crc32c::crc32c(&self.entry);
        self.file.write(&self.entry)?;
        for (written, ((name, value), list)) in pairs.iter().enumerate() {
            look_at_stop(written)?;
            self.entry.clear();
            push_table_entry(&mut self.entry, names.get(*name)?, values.get(*value)?, place);
            place += self.postings.lists[*list].section_bytes();
            let bytes = self.file.position() - table - 4 + self.entry.len() as u64;
            if bytes > SECTION_BYTES_MAX {
                return Err(self.too_large("postings table", SECTION_BYTES_MAX));
            }
            self.check_room(self.entry.len() as u64)?;
            crc = crc32c::crc32c_append(crc, &self.entry);
            self.file.write(&self.entry)?;
        }
        let bytes = (self.file.position() - table - 4) as u32;
        self.file.patch(table, &bytes.to_be_bytes())?;
        self.file.write(&crc.to_be_bytes())
    }

    /// Whether so many bytes, and then the checksums and the table of contents, still fit.
    fn check_room(&self, bytes: u64) -> Result<(), WriteError> {
        const END_BYTES: u64 = 4 + super::toc::TOC_BYTES;
        if self.file.position() + bytes + END_BYTES > self.bytes_max {
            return Err(self.too_large("an index", self.bytes_max));
        }
        Ok(())
    }

    fn too_large(&self, what: &'static str, bytes_max: u64) -> WriteError {
        WriteError::TooLarge { path: self.file.path().to_owned(), what, bytes_max }
    }

    fn unordered(&self, what: &'static str) -> WriteError {
        WriteError::Unordered { path: self.file.path().to_owned(), what }
    }

    /// Of so many bytes at most, to see what happens then.
    #[cfg(test)]
    pub(super) fn limited(self, bytes_max: u64) -> IndexWriter {
        IndexWriter { bytes_max, ..self }
    }
}

/// Ends work that nobody waits for, now and then while something is `written` often.
fn look_at_stop(written: usize) -> Result<(), WriteError> {
    const WRITTEN_PER_LOOK: usize = 256;
    if written.is_multiple_of(WRITTEN_PER_LOOK) && stop::is_asked() {
        return Err(WriteError::Interrupted);
    }
    Ok(())
}

fn push_table_entry(entry: &mut Vec<u8>, name: &[u8], value: &[u8], place: u64) {
    // How many texts.
    entry.push(2);
    for text in [name, value] {
        push_varint(entry, text.len() as u64);
        entry.extend_from_slice(text);
    }
    push_varint(entry, place);
}

fn write_postings(file: &mut FileWriter, list: &PostingList) -> Result<(), WriteError> {
    /// What is put together at once.
    const BITE: usize = 4096;
    file.write(&(4 + 4 * list.count).to_be_bytes())?;
    let count = list.count.to_be_bytes();
    let mut crc = crc32c::crc32c(&count);
    file.write(&count)?;
    let mut bite = Vec::with_capacity(4 * (list.count as usize).min(BITE));
    let mut series = list.iter();
    loop {
        bite.clear();
        bite.extend(series.by_ref().take(BITE).flat_map(u32::to_be_bytes));
        if bite.is_empty() {
            break;
        }
        crc = crc32c::crc32c_append(crc, &bite);
        file.write(&bite)?;
    }
    file.write(&crc.to_be_bytes())
}

/// The postings of each label that occurs.
#[derive(Default)]
struct PostingLists {
    by_pair: HashMap<LabelSymbols, u32, RandomState>,
    lists: Vec<PostingList>,
    /// The list of each label of the series before, by its place: the next one shares most.
    before: Vec<(LabelSymbols, u32)>,
}

impl PostingLists {
    fn push(&mut self, series: u32, labels: &[LabelSymbols]) {
        for (i, label) in labels.iter().enumerate() {
            let list = match self.before.get(i) {
                Some((before, list)) if before == label => *list,
                _ => self.find(i, *label),
            };
            self.lists[list as usize].push(series);
        }
    }

    fn find(&mut self, place: usize, label: LabelSymbols) -> u32 {
        let next = self.lists.len() as u32;
        let list = *self.by_pair.entry(label).or_insert(next);
        if list == next {
            self.lists.push(PostingList::default());
        }
        match self.before.get_mut(place) {
            Some(before) => *before = (label, list),
            None => self.before.push((label, list)),
        }
        list
    }

    /// All labels, sorted, with their lists.
    fn sorted_pairs(&self) -> Vec<(LabelSymbols, usize)> {
        let pairs = self.by_pair.iter().map(|(label, list)| (*label, *list as usize));
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_unstable();
        pairs
    }
}

/// Rising series: the first, then the difference to the one before as varints.
#[derive(Default)]
struct PostingList {
    first: u32,
    last: u32,
    count: u32,
    differences: ThinVec<u8>,
}

impl PostingList {
    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn push(&mut self, series: u32) {
        if self.count == 0 {
            self.first = series;
        } else {
            self.push_difference(series - self.last);
        }
        self.last = series;
        self.count += 1;
    }

    /// Grows by a quarter, where a vector would double.
    fn push_difference(&mut self, mut difference: u32) {
        if self.differences.capacity() - self.differences.len() < 5 {
            self.differences.reserve_exact(8.max(self.differences.len() / 4));
        }
        while difference >= 0x80 {
            self.differences.push(difference as u8 | 0x80);
            difference >>= 7;
        }
        self.differences.push(difference as u8);
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        let mut series = self.first;
        let mut bytes = self.differences.iter();
        let first = (self.count > 0).then_some(series);
        first.into_iter().chain((1..self.count).map(move |_| {
            let mut difference = 0;
            for (i, byte) in bytes.by_ref().enumerate() {
                difference |= u32::from(byte & 0x7f) << (7 * i);
                if *byte < 0x80 {
                    break;
                }
            }
            series += difference;
            series
        }))
    }

    /// Bytes of its section: a multiple of four, so that the next one is aligned, too.
    fn section_bytes(&self) -> u64 {
        4 + 4 + 4 * u64::from(self.count) + 4
    }
}
