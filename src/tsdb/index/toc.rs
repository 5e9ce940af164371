//! The table of contents.

use super::{CRC_BYTES, HEADER_BYTES};
use crate::model::bytes::{Cursor, Malformed};
use crate::tsdb::error::ReadError;
use crate::tsdb::file::RangeReader;

const PLACES: usize = 6;
pub(super) const TOC_BYTES: u64 = 8 * PLACES as u64 + CRC_BYTES;

/// Where the sections of an index begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Toc {
    pub symbols: u64,
    pub series: u64,
    /// Not written any more: as `postings`, or 0.
    pub label_indices: u64,
    /// Not written any more: as `postings_table`, or 0.
    pub label_indices_table: u64,
    pub postings: u64,
    pub postings_table: u64,
}

impl Toc {
    pub(super) fn read(file: &RangeReader) -> Result<Toc, ReadError> {
        let what = "the table of contents is not there";
        let Some(start) = file.len().checked_sub(TOC_BYTES).filter(|at| *at >= HEADER_BYTES) else {
            return Err(file.corrupt(0, what));
        };
        let mut bytes = Vec::new();
        file.read(start, TOC_BYTES, &mut bytes, what)?;
        let (contents, crc) = bytes.split_at(8 * PLACES);
        if crc != crc32c::crc32c(contents).to_be_bytes() {
            let what = "the table of contents does not match its checksum";
            return Err(file.corrupt(start, what));
        }
        let toc = Toc::decode(contents).map_err(file.malformed(start))?;
        let places = [toc.symbols, toc.series, toc.postings_table];
        if places.iter().any(|at| *at < HEADER_BYTES || *at > start) || toc.symbols > toc.series {
            return Err(file.corrupt(start, "a section lies outside of the file"));
        }
        Ok(toc)
    }

    fn decode(bytes: &[u8]) -> Result<Toc, Malformed> {
        let mut cursor = Cursor::new(bytes);
        let mut place = || cursor.be64("a place");
        Ok(Toc {
            symbols: place()?,
            series: place()?,
            label_indices: place()?,
            label_indices_table: place()?,
            postings: place()?,
            postings_table: place()?,
        })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let Toc { symbols, series, label_indices, label_indices_table, postings, postings_table } =
            *self;
        let places =
            [symbols, series, label_indices, label_indices_table, postings, postings_table];
        let mut bytes = places.map(u64::to_be_bytes).concat();
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        bytes
    }

    /// Where the series end at the latest: at whatever begins behind them.
    pub(super) fn series_end(&self) -> u64 {
        let others =
            [self.label_indices, self.label_indices_table, self.postings, self.postings_table];
        let behind = others.into_iter().filter(|at| *at >= self.series);
        behind.min().unwrap_or(self.series)
    }
}
