//! Label names and values, by number.

use super::SAMPLED;
use crate::tsdb::error::ReadError;
use crate::tsdb::file::{RangeReader, Section};

/// Where every 32nd symbol stands.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// Where the section's contents begin, and end.
    pub(super) start: u64,
    pub(super) end: u64,
    /// From `start`; a section has no more than 4 GiB.
    pub(super) sampled: Vec<u32>,
    pub(super) count: u32,
}

impl Symbols {
    pub(super) fn read(file: &RangeReader, offset: u64) -> Result<Symbols, ReadError> {
        let mut section = Section::open(file, offset, "the symbols are cut short")?;
        let read = Symbols::walk(&mut section);
        section.check()?;
        read
    }

    fn walk(section: &mut Section<'_>) -> Result<Symbols, ReadError> {
        let start = section.start();
        let mut symbols = Symbols { start, end: start + section.remaining(), ..Symbols::default() };
        let count = section.be32()?;
        for number in 0..count {
            if number.is_multiple_of(SAMPLED) {
                symbols.sampled.push((section.offset() - start) as u32);
            }
            section.text()?;
        }
        symbols.count = count;
        Ok(symbols)
    }

    /// The range of the symbols that begins with the `i`th that is kept.
    fn window(&self, i: usize) -> Option<(u64, u64)> {
        let place = |i: usize| self.sampled.get(i).map(|at| self.start + u64::from(*at));
        Some((place(i)?, place(i + 1).unwrap_or(self.end)))
    }
}

/// Looks symbols up. Those of rising numbers are found by reading on.
pub(super) struct SymbolWalk<'f> {
    file: &'f RangeReader,
    symbols: &'f Symbols,
    window: Option<Section<'f>>,
    /// The symbol that was read last.
    last: Option<u32>,
    text: Vec<u8>,
}

impl<'f> SymbolWalk<'f> {
    pub(super) fn new(file: &'f RangeReader, symbols: &'f Symbols) -> SymbolWalk<'f> {
        SymbolWalk { file, symbols, window: None, last: None, text: Vec::new() }
    }

    pub(super) fn get(&mut self, number: u32) -> Result<&[u8], ReadError> {
        if self.last != Some(number) {
            self.find(number)?;
        }
        Ok(&self.text)
    }

    fn find(&mut self, number: u32) -> Result<(), ReadError> {
        if number >= self.symbols.count {
            return Err(self.file.corrupt(self.symbols.start, "there is no symbol of this number"));
        }
        let i = number / SAMPLED;
        let last = self.last.take().filter(|last| last / SAMPLED == i && *last < number);
        let mut window = match (last, self.window.take()) {
            (Some(_), Some(window)) => window,
            _ => {
                let range = self.symbols.window(i as usize);
                let (start, end) = range.unwrap_or((self.symbols.end, self.symbols.end));
                Section::range(self.file, start, end, "the symbols are cut short")
            }
        };
        let first = last.map_or(i * SAMPLED, |last| last + 1);
        for _ in first..number {
            window.text()?;
        }
        self.text.clear();
        self.text.extend_from_slice(window.text()?);
        (self.last, self.window) = (Some(number), Some(window));
        Ok(())
    }
}
