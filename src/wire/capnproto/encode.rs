//! Series of a write request as Cap'n Proto messages, one for each peer that gets some of them.
//!
//! A request is taken apart once, into a [`SeriesTable`]: names and values of labels become numbers
//! of symbols. Each message then takes the series it is for, and numbers their symbols anew, so that
//! it carries no others. Its words are laid out in the order in which they are pointed to, symbols
//! last, and packed. Series that are too many for a message are [split](SeriesTable::split) over
//! several.
//!
//! They stand in the request's older form, for one tenant, which every peer reads: releases of Thanos
//! up to 0.42 know no other, find no series in the newer one and answer that they have stored them.

use std::collections::HashMap;

use rapidhash::fast::RandomState;

use crate::model::labels::split_label;
use crate::wire::capnproto::histogram;
use crate::wire::capnproto::packed::{pack, pack_as_is};
use crate::wire::capnproto::rpc::{
    self, CALL_HEAD_WORDS, list_pointer, struct_pointer, structs_pointer, structs_tag,
};
use crate::wire::histogram::HistogramMessage;
use crate::wire::remote_write_v1::{
    DecodeError, RequestField, RequestFields, SeriesField, SeriesFields, Value, WRONG_WIRE_TYPE,
    read_field, read_label, split_tail_sample,
};

/// The longest message that Thanos takes, unpacked and with its table. It closes the connection that
/// a longer one comes over, and follows pointers to so many bytes in all.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Series that take more are split over several messages: far enough below what peers take.
pub const PART_BYTES_MAX: usize = 32 << 20;

/// A message longer than any peer takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cap'n Proto message of {bytes} bytes is over the cap of {MESSAGE_BYTES_MAX}")]
pub struct TooLong {
    pub bytes: usize,
}

/// A `WriteRequest` and all it points to.
#[derive(Clone, Debug)]
pub struct EncodedWrite {
    /// Its length, unpacked.
    pub words: u32,
    pub packed: Vec<u8>,
}

/// About what a message takes besides its series and their symbols.
const AROUND_WORDS: usize = 64;

/// Some of a message's series, by their places among those asked for, rising.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A Cap'n Proto message takes them.
    CapnProto(Vec<u32>),
    /// None does: they are too long, or hold what the schema has no place for.
    Other(Vec<u32>),
}

/// Series of one request, in their order, their labels by numbers of symbols.
#[derive(Debug, Default)]
pub struct SeriesTable {
    symbols: Symbols,
    series: Vec<Entry>,
    labels: Vec<Label>,
    /// Time and bits of the value.
    samples: Vec<(i64, u64)>,
    exemplars: Vec<Exemplar>,
    exemplar_labels: Vec<Label>,
    histograms: Vec<HistogramMessage>,
    /// Numbers of the series that hold what the schema has no place for, rising. There is nothing of
    /// them in the lists.
    unfit: Vec<u32>,
}

/// Where in the lists the series' parts end.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    labels: u32,
    samples: u32,
    exemplars: u32,
    histograms: u32,
}

/// Numbers of symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Label {
    name: u32,
    value: u32,
}

#[derive(Clone, Copy, Debug)]
struct Exemplar {
    labels: u32,
    timestamp: i64,
    value: u64,
}

/// Names and values, one behind the other.
#[derive(Debug, Default)]
struct Symbols {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Symbols {
    // Rare, and in the way of the usual.
    #[inline(never)]
    fn push(&mut self, symbol: &[u8]) -> u32 {
        // All of a request's bytes together are numbered by 32 bits.
        let number = self.ends.len() as u32;
        self.bytes.extend_from_slice(symbol);
        self.ends.push(self.bytes.len() as u32);
        number
    }

    /// What they take in a message, about.
    fn words(&self) -> usize {
        self.bytes.len() / 8 + self.ends.len() / 2 + 2
    }

    fn get(&self, number: u32) -> &[u8] {
        let number = number as usize;
        let start = number.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        let end = self.ends.get(number).copied().unwrap_or_default();
        self.bytes.get(start.unwrap_or_default() as usize..end as usize).unwrap_or_default()
    }
}

impl SeriesTable {
    /// Takes apart whole fields of a `prometheus.WriteRequest`, each with its tag: the series.
    pub fn new<'r>(fields: impl IntoIterator<Item = &'r [u8]>) -> Result<SeriesTable, DecodeError> {
        let mut builder = TableBuilder::default();
        for field in fields.into_iter().flat_map(RequestFields::of_peer) {
            if let RequestField::TimeSeries(series) = field? {
                builder.push(series);
            }
        }
        Ok(builder.table)
    }

    /// How many series there are.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Writes the series with these numbers as those of one tenant.
    pub fn encode(&self, tenant: &str, numbers: &[u32]) -> Result<EncodedWrite, TooLong> {
        let words = self.words(numbers);
        if words > MESSAGE_BYTES_MAX / 8 {
            return Err(TooLong { bytes: words.saturating_mul(8) });
        }
        let others = 16 + tenant.len() / 8 + self.symbols.ends.len() / 2;
        let has_all = numbers.len() == self.series.len();
        let mut encoder = Encoder {
            table: self,
            segment: Segment(Vec::with_capacity(words + others)),
            symbols: (!has_all).then(|| SomeSymbols::of(&self.symbols)),
        };
        encoder.write(tenant, numbers);
        encoder.finish()
    }

    /// Splits these series into what messages of `bytes_max` take. `None` if one takes them all, as
    /// it nearly always does.
    pub fn split(&self, numbers: &[u32], bytes_max: usize) -> Option<Vec<Part>> {
        let words_max = bytes_max / 8;
        let others = self.rare_words(Entry::default(), self.end()) + self.symbols.words();
        let is_short = AROUND_WORDS + self.words(numbers) + others <= words_max;
        match is_short && self.unfit.is_empty() {
            true => None,
            false => Some(self.split_long(numbers, words_max)),
        }
    }

    #[cold]
    fn split_long(&self, numbers: &[u32], words_max: usize) -> Vec<Part> {
        let (mut parts, mut part, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let mut part_words = AROUND_WORDS;
        // The part in which a symbol was last needed, counted from 1.
        let mut needed_in = vec![0; self.symbols.ends.len()];
        for (place, number) in (0..).zip(numbers) {
            let Some((start, end)) = self.entry(*number) else { continue };
            let series = self.words(&[*number]) + self.rare_words(start, end);
            let mut words = series + self.symbol_words(start, end, &mut needed_in, parts.len() + 1);
            if part_words + words > words_max && !part.is_empty() {
                parts.push(Part::CapnProto(std::mem::take(&mut part)));
                part_words = AROUND_WORDS;
                words = series + self.symbol_words(start, end, &mut needed_in, parts.len() + 1);
            }
            if self.unfit.binary_search(number).is_ok() || part_words + words > words_max {
                others.push(place);
            } else {
                part.push(place);
                part_words += words;
            }
        }
        parts.extend((!part.is_empty()).then_some(Part::CapnProto(part)));
        parts.extend((!others.is_empty()).then_some(Part::Other(others)));
        parts
    }

    /// Words that the symbols take which no series of this part has needed before.
    fn symbol_words(
        &self,
        start: Entry,
        end: Entry,
        needed_in: &mut [usize],
        part: usize,
    ) -> usize {
        let labels = slice(&self.labels, start.labels, end.labels);
        let labels = labels.iter().chain(self.exemplar_labels(start, end));
        let new_words = |symbol: u32| {
            let last = needed_in.get_mut(symbol as usize);
            match last.is_some_and(|last| std::mem::replace(last, part) != part) {
                // At most: texts and offsets are not filled up to words one by one.
                true => 1 + self.symbols.get(symbol).len().div_ceil(8),
                false => 0,
            }
        };
        labels.flat_map(|label| [label.name, label.value]).map(new_words).sum()
    }

    /// Words that the histograms and exemplars in between take, but for their symbols.
    fn rare_words(&self, start: Entry, end: Entry) -> usize {
        const TAGS: usize = 2;
        let histograms = slice(&self.histograms, start.histograms, end.histograms);
        let exemplars = (end.exemplars - start.exemplars) as usize;
        TAGS + histograms.iter().map(HistogramMessage::capnproto_words).sum::<usize>()
            + exemplars * (EXEMPLAR_WORDS + 1)
            + self.exemplar_labels(start, end).len()
    }

    /// Labels of the exemplars in between.
    fn exemplar_labels(&self, start: Entry, end: Entry) -> &[Label] {
        let labels_before = |exemplar: u32| {
            let before = exemplar.checked_sub(1).and_then(|at| self.exemplars.get(at as usize));
            before.map_or(0, |before| before.labels)
        };
        let (start, end) = (labels_before(start.exemplars), labels_before(end.exemplars));
        slice(&self.exemplar_labels, start, end)
    }

    fn end(&self) -> Entry {
        self.series.last().copied().unwrap_or_default()
    }

    /// Where the lists end. Each part takes at least two bytes of the request, which has fewer than
    /// 2^32.
    fn filled(&self) -> Entry {
        Entry {
            labels: self.labels.len() as u32,
            samples: self.samples.len() as u32,
            exemplars: self.exemplars.len() as u32,
            histograms: self.histograms.len() as u32,
        }
    }

    /// Lets go of what was put in since the lists ended there.
    #[cold]
    fn cut(&mut self, end: Entry) {
        self.labels.truncate(end.labels as usize);
        self.samples.truncate(end.samples as usize);
        self.exemplars.truncate(end.exemplars as usize);
        self.histograms.truncate(end.histograms as usize);
        let labels = self.exemplars.last().map_or(0, |last| last.labels);
        self.exemplar_labels.truncate(labels as usize);
    }

    /// Words that these series take, but for their histograms, exemplars and symbols.
    fn words(&self, numbers: &[u32]) -> usize {
        let words = |(start, end): (Entry, Entry)| {
            let (labels, samples) = (end.labels - start.labels, end.samples - start.samples);
            usize::from(SERIES_POINTERS) + 2 + labels as usize + 2 * samples as usize
        };
        numbers.iter().filter_map(|number| self.entry(*number)).map(words).sum()
    }

    fn entry(&self, number: u32) -> Option<(Entry, Entry)> {
        let number = number as usize;
        let start = number.checked_sub(1).and_then(|before| self.series.get(before)).copied();
        Some((start.unwrap_or_default(), *self.series.get(number)?))
    }
}

/// Interns symbols.
#[derive(Default)]
struct TableBuilder<'r> {
    table: SeriesTable,
    numbers: HashMap<&'r [u8], u32, RandomState>,
    /// The labels of the series before in the encoding that senders normally use, which are likely
    /// to come again at the same places.
    before: Vec<(&'r [u8], Label)>,
    /// Of all series so far.
    bytes: usize,
}

impl<'r> TableBuilder<'r> {
    fn push(&mut self, series: &'r [u8]) {
        self.bytes += series.len();
        let before = self.table.filled();
        let is_usual = self.push_usual(series).is_some();
        if !is_usual {
            self.table.cut(before);
            if !self.push_any(series) {
                self.table.cut(before);
                self.table.unfit.push(self.table.series.len() as u32);
            }
        }
        let filled = self.table.filled();
        self.table.series.push(filled);
    }

    /// Takes a series of labels and one sample in the encoding that senders normally use.
    #[inline]
    fn push_usual(&mut self, series: &'r [u8]) -> Option<()> {
        let (mut rest, t, v) = split_tail_sample(series)?;
        let mut place = 0;
        while !rest.is_empty() {
            // A field carries its length, so that one which begins the same is the same.
            let (label, after) = match self.before.get(place) {
                Some((before, label)) if let Some(after) = rest.strip_prefix(*before) => {
                    (*label, after)
                }
                _ => self.intern_usual(place, rest)?,
            };
            self.table.labels.push(label);
            place += 1;
            rest = after;
        }
        self.table.samples.push((t, v));
        Some(())
    }

    /// Takes any other series; false if the schema has no place for all of it. What cannot be read
    /// is for the peer to judge.
    fn push_any(&mut self, series: &'r [u8]) -> bool {
        let mut fields = SeriesFields::new(series);
        loop {
            let pushed = match fields.next_field() {
                Ok(None) => return true,
                Ok(Some(field)) => self.push_field(field),
                Err(_) => false,
            };
            if !pushed {
                return false;
            }
        }
    }

    fn push_field(&mut self, field: SeriesField<'r>) -> bool {
        match field {
            SeriesField::Label { name, value } => {
                let label = Label { name: self.intern(name), value: self.intern(value) };
                self.table.labels.push(label);
                true
            }
            SeriesField::Sample { t, v } => self.push_sample(t, v),
            SeriesField::Exemplar(message) => self.push_exemplar(message).is_ok(),
            SeriesField::Histogram(message) => {
                let histogram = HistogramMessage::read(message);
                let fits = histogram.as_ref().is_ok_and(HistogramMessage::fits_capnproto);
                self.table.histograms.extend(histogram.ok().filter(|_| fits));
                fits
            }
        }
    }

    /// A sample takes 16 bytes here and two of a request if it is all zero. So there may be no more
    /// than a request of its length can have in earnest.
    fn push_sample(&mut self, t: i64, v: u64) -> bool {
        const SAMPLE_BYTES_MIN: usize = 9;
        const SAMPLES_ALLOWED: usize = 4096;
        let has_room = self.table.samples.len() < SAMPLES_ALLOWED + self.bytes / SAMPLE_BYTES_MIN;
        if has_room {
            self.table.samples.push((t, v));
        }
        has_room
    }

    /// Interns the label at the front of `fields`, which stands at this place of its series; returns
    /// what follows it, too.
    fn intern_usual(&mut self, place: usize, fields: &'r [u8]) -> Option<(Label, &'r [u8])> {
        let (name, value, rest) = split_label(fields)?;
        let field = fields.get(..fields.len() - rest.len())?;
        // Series that differ in a label's value have its name in common.
        let before = self.before.get(place).map(|(_, label)| label.name);
        let same = before.filter(|before| self.table.symbols.get(*before) == name);
        let name = same.unwrap_or_else(|| self.intern(name));
        let label = Label { name, value: self.intern(value) };
        match self.before.get_mut(place) {
            Some(before) => *before = (field, label),
            None => self.before.push((field, label)),
        }
        Some((label, rest))
    }

    fn intern(&mut self, symbol: &'r [u8]) -> u32 {
        let symbols = &mut self.table.symbols;
        *self.numbers.entry(symbol).or_insert_with(|| symbols.push(symbol))
    }

    fn push_exemplar(&mut self, mut message: &'r [u8]) -> Result<(), DecodeError> {
        const EXEMPLAR: &str = "exemplar";
        let (mut value, mut timestamp) = (0, 0);
        while !message.is_empty() {
            let (number, field, rest) = read_field(message, EXEMPLAR)?;
            message = rest;
            match (number, field) {
                (1, Value::Bytes(label)) => {
                    let (name, value) = read_label(label)?;
                    let label = Label { name: self.intern(name), value: self.intern(value) };
                    self.table.exemplar_labels.push(label);
                }
                (2, Value::Fixed64(bits)) => value = bits,
                (3, Value::Varint(time)) => timestamp = time as i64,
                (1..=3, _) => return Err(DecodeError::new(EXEMPLAR, WRONG_WIRE_TYPE)),
                _ => {}
            }
        }
        let labels = self.table.exemplar_labels.len() as u32;
        self.table.exemplars.push(Exemplar { labels, timestamp, value });
        Ok(())
    }
}

/// The words of a message's only segment, from the `WriteRequest` on.
#[derive(Default)]
pub(super) struct Segment(Vec<u64>);

impl Segment {
    pub(super) fn push(&mut self, word: u64) {
        self.0.push(word);
    }

    pub(super) fn set(&mut self, at: usize, word: u64) {
        if let Some(to) = self.0.get_mut(at) {
            *to = word;
        }
    }

    /// Makes the word `at` a pointer to what is pushed next.
    pub(super) fn point(&mut self, at: usize, pointer: impl FnOnce(u32) -> u64) {
        // Over-long messages are told when they are done; until then they only wrap.
        let offset = self.0.len().wrapping_sub(at + 1) as u32;
        self.set(at, pointer(offset));
    }

    /// Appends `count` words of zeros; returns where they begin.
    fn reserve(&mut self, count: usize) -> usize {
        let at = self.0.len();
        self.0.resize(at + count, 0);
        at
    }
}

/// Pointers of the schema's structs, by the order in which they were added to it.
const WRITE_REQUEST_POINTERS: usize = rpc::WRITE_REQUEST_POINTERS as usize;
const SYMBOLS: usize = 0;
const TIME_SERIES: usize = 1;
const TENANT: usize = 2;
const SERIES_POINTERS: u16 = 4;
const EXEMPLAR_WORDS: usize = EXEMPLAR_DATA_WORDS as usize + 1;
const EXEMPLAR_DATA_WORDS: u16 = 2;
const SERIES_LABELS: usize = 0;
const SERIES_SAMPLES: usize = 1;
const SERIES_HISTOGRAMS: usize = 2;
const SERIES_EXEMPLARS: usize = 3;

const BYTES: u32 = 2;
const FOUR_BYTES: u32 = 4;

struct Encoder<'t> {
    table: &'t SeriesTable,
    segment: Segment,
    /// `None` for all of the table's, by their numbers there.
    symbols: Option<SomeSymbols<'t>>,
}

/// Those symbols of a table that a message needs, numbered anew.
struct SomeSymbols<'t> {
    table: &'t Symbols,
    /// By a symbol's number in the table: its number in the message, counted from 1.
    numbers: Vec<u32>,
    symbols: Symbols,
}

impl SomeSymbols<'_> {
    fn of(table: &Symbols) -> SomeSymbols<'_> {
        let numbers = vec![0; table.ends.len()];
        SomeSymbols { table, numbers, symbols: Symbols::default() }
    }

    fn number(&mut self, symbol: u32) -> u32 {
        let Some(number) = self.numbers.get_mut(symbol as usize) else { return 0 };
        if *number == 0 {
            *number = 1 + self.symbols.push(self.table.get(symbol));
        }
        *number - 1
    }
}

impl Encoder<'_> {
    fn write(&mut self, tenant: &str, numbers: &[u32]) {
        let segment = &mut self.segment;
        segment.reserve(WRITE_REQUEST_POINTERS);
        // Text ends with a zero.
        let text = tenant.len() + 1;
        segment.point(TENANT, |offset| list_pointer(offset, BYTES, text as u32));
        let words = tenant.as_bytes().chunks(8).map(word_of);
        words
            .chain(tenant.len().is_multiple_of(8).then_some(0))
            .for_each(|word| segment.push(word));

        let count = numbers.len();
        let words = count * usize::from(SERIES_POINTERS);
        segment.point(TIME_SERIES, |offset| structs_pointer(offset, words as u32));
        segment.push(structs_tag(count as u32, 0, SERIES_POINTERS));
        let first = segment.reserve(words);
        for (i, number) in numbers.iter().enumerate() {
            self.write_series(first + i * usize::from(SERIES_POINTERS), *number);
        }
    }

    /// Fills the struct at `at`.
    fn write_series(&mut self, at: usize, number: u32) {
        let table = self.table;
        let Some((start, end)) = table.entry(number) else {
            debug_assert!(false, "series {number} is not in the table");
            return;
        };
        let labels = slice(&table.labels, start.labels, end.labels);
        self.write_labels(at + SERIES_LABELS, labels);
        let samples = slice(&table.samples, start.samples, end.samples);
        if !samples.is_empty() {
            let count = samples.len() as u32;
            let pointer = |offset| structs_pointer(offset, count.wrapping_mul(2));
            self.segment.point(at + SERIES_SAMPLES, pointer);
            self.segment.push(structs_tag(count, 2, 0));
            for (t, v) in samples {
                self.segment.push(*t as u64);
                self.segment.push(*v);
            }
        }
        if start.histograms < end.histograms {
            let histograms = slice(&table.histograms, start.histograms, end.histograms);
            self.write_histograms(at + SERIES_HISTOGRAMS, histograms);
        }
        if start.exemplars < end.exemplars {
            self.write_exemplars(at + SERIES_EXEMPLARS, start.exemplars, end.exemplars);
        }
    }

    fn write_labels(&mut self, pointer: usize, labels: &[Label]) {
        if labels.is_empty() {
            return;
        }
        let count = labels.len() as u32;
        self.segment.point(pointer, |offset| structs_pointer(offset, count));
        self.segment.push(structs_tag(count, 1, 0));
        let word = |name, value| u64::from(name) | u64::from(value) << 32;
        let words = &mut self.segment.0;
        match &mut self.symbols {
            None => words.extend(labels.iter().map(|label| word(label.name, label.value))),
            Some(symbols) => words.extend(
                labels.iter().map(|l| word(symbols.number(l.name), symbols.number(l.value))),
            ),
        }
    }

    #[cold]
    fn write_histograms(&mut self, pointer: usize, histograms: &[HistogramMessage]) {
        let (count, segment) = (histograms.len(), &mut self.segment);
        let size = usize::from(histogram::DATA_WORDS + histogram::POINTERS);
        segment.point(pointer, |offset| structs_pointer(offset, (count * size) as u32));
        segment.push(structs_tag(count as u32, histogram::DATA_WORDS, histogram::POINTERS));
        let first = segment.reserve(count * size);
        for (i, histogram) in histograms.iter().enumerate() {
            histogram.write_capnproto(segment, first + i * size);
        }
    }

    #[cold]
    fn write_exemplars(&mut self, pointer: usize, start: u32, end: u32) {
        let table = self.table;
        let exemplars = slice(&table.exemplars, start, end);
        let words = exemplars.len() * EXEMPLAR_WORDS;
        self.segment.point(pointer, |offset| structs_pointer(offset, words as u32));
        self.segment.push(structs_tag(exemplars.len() as u32, EXEMPLAR_DATA_WORDS, 1));
        let first = self.segment.reserve(words);
        let before = start.checked_sub(1).and_then(|before| table.exemplars.get(before as usize));
        let mut labels = before.map_or(0, |before| before.labels);
        for (i, exemplar) in exemplars.iter().enumerate() {
            let at = first + i * EXEMPLAR_WORDS;
            self.segment.set(at, exemplar.value);
            self.segment.set(at + 1, exemplar.timestamp as u64);
            self.write_labels(at + 2, slice(&table.exemplar_labels, labels, exemplar.labels));
            labels = exemplar.labels;
        }
    }

    /// Writes the symbols, and packs.
    fn finish(mut self) -> Result<EncodedWrite, TooLong> {
        let symbols = self.symbols.as_ref().map_or(&self.table.symbols, |some| &some.symbols);
        let Symbols { bytes, ends } = symbols;
        let segment = &mut self.segment;
        segment.point(SYMBOLS, |offset| struct_pointer(offset, 0, 2));
        let symbols = segment.reserve(2);
        segment.point(symbols + 1, |offset| list_pointer(offset, FOUR_BYTES, ends.len() as u32));
        for pair in ends.chunks(2) {
            let [first, second] = [0, 1].map(|i| pair.get(i).copied().unwrap_or_default());
            segment.push(u64::from(first) | u64::from(second) << 32);
        }
        segment.point(symbols, |offset| list_pointer(offset, BYTES, bytes.len() as u32));
        let words = segment.0.len() + bytes.len().div_ceil(8);
        let message_bytes = (words + CALL_HEAD_WORDS + 1).saturating_mul(8);
        if message_bytes > MESSAGE_BYTES_MAX {
            return Err(TooLong { bytes: message_bytes });
        }
        let mut packed = Vec::with_capacity(segment.0.len() * 5 + bytes.len() + bytes.len() / 128);
        pack(&segment.0, &mut packed);
        pack_as_is(bytes, &mut packed);
        Ok(EncodedWrite { words: words as u32, packed })
    }
}

fn slice<T>(list: &[T], start: u32, end: u32) -> &[T] {
    list.get(start as usize..end as usize).unwrap_or_default()
}

/// Up to eight bytes as a word.
fn word_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
