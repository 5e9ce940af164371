//! Sections of an index: bytes behind their length, with a checksum behind them.
//!
//! ```text
//! ┌───────────┬──────────┬───────────┐
//! │ length 4B │ contents │ CRC-32C 4B│     big endian; the length is the contents'
//! └───────────┴──────────┴───────────┘
//! ```

use super::RangeReader;
use crate::tsdb::error::ReadError;

/// What is read of a file at once.
const BITE_BYTES: usize = 64 << 10;
/// Up to so many bytes are read by way of the cache. A walk through much of a file does not fill it.
const SHORT_BYTES: usize = 16 << 10;
/// Longer texts are taken for damage. Prometheus knows no limit; no sender comes near it.
const TEXT_BYTES_MAX: u64 = 64 << 20;
const LEN_BYTES: u64 = 4;
const CRC_BYTES: u64 = 4;

/// Reads a range of a file from its beginning to its end, however long it is, in bites.
pub struct Section<'f> {
    file: &'f RangeReader,
    /// What the errors call it.
    what: &'static str,
    /// Where the next bite begins, and the range ends.
    next: u64,
    end: u64,
    /// What was read last; `at` is what is taken next of it.
    bite: Vec<u8>,
    at: usize,
    /// Of all bites, if somebody will ask.
    crc: Option<u32>,
    start: u64,
}

impl<'f> Section<'f> {
    /// The section whose length stands at `offset`.
    pub fn open(
        file: &'f RangeReader,
        offset: u64,
        what: &'static str,
    ) -> Result<Section<'f>, ReadError> {
        let mut len = Vec::new();
        file.read_cached(offset, LEN_BYTES, &mut len, what)?;
        let len = u64::from(u32::from_be_bytes(len.try_into().unwrap_or_default()));
        let start = offset + LEN_BYTES;
        file.check(start, len + CRC_BYTES, what).map_err(|_| file.corrupt(offset, what))?;
        Ok(Section { crc: Some(0), ..Section::range(file, start, start + len, what) })
    }

    /// Any range that the file has, without a checksum.
    pub fn range(file: &'f RangeReader, start: u64, end: u64, what: &'static str) -> Section<'f> {
        Section { file, what, next: start, end, bite: Vec::new(), at: 0, crc: None, start }
    }

    /// Where in the file the next byte stands.
    pub fn offset(&self) -> u64 {
        self.next - (self.bite.len() - self.at) as u64
    }

    /// Where in the file the contents begin.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Bytes left.
    pub fn remaining(&self) -> u64 {
        self.end - self.offset()
    }

    pub fn corrupt(&self) -> ReadError {
        self.file.corrupt(self.offset(), self.what)
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&[u8], ReadError> {
        if self.bite.len() - self.at < len {
            self.refill(len)?;
        }
        let taken = &self.bite[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    pub fn be32(&mut self) -> Result<u32, ReadError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().unwrap_or_default()))
    }

    pub fn uvarint(&mut self) -> Result<u64, ReadError> {
        let mut value = 0;
        for i in 0..10 {
            let byte = self.take(1)?[0];
            if i == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.corrupt())
    }

    /// Bytes behind their length.
    pub fn text(&mut self) -> Result<&[u8], ReadError> {
        let len = self.uvarint()?;
        if len > TEXT_BYTES_MAX || len > self.remaining() {
            return Err(self.corrupt());
        }
        self.take(len as usize)
    }

    /// Reads what is left, and compares the checksum. Whoever reads a section asks before believing it.
    pub fn check(mut self) -> Result<(), ReadError> {
        while self.next < self.end {
            self.at = self.bite.len();
            self.refill(1)?;
        }
        let Some(crc) = self.crc else { return Ok(()) };
        let mut stored = Vec::new();
        self.file.read_cached(self.end, CRC_BYTES, &mut stored, self.what)?;
        if stored != crc.to_be_bytes() {
            return Err(self.file.corrupt(self.start, "checksum does not match"));
        }
        Ok(())
    }

    /// Reads on until `len` bytes can be taken.
    fn refill(&mut self, len: usize) -> Result<(), ReadError> {
        if self.remaining() < len as u64 {
            return Err(self.corrupt());
        }
        self.bite.drain(..self.at);
        self.at = 0;
        let lacking = (len - self.bite.len()).max(BITE_BYTES) as u64;
        let more = lacking.min(self.end - self.next) as usize;
        let kept = self.bite.len();
        if more <= SHORT_BYTES {
            self.file.append_cached(self.next, more as u64, &mut self.bite, self.what)?;
        } else {
            self.bite.resize(kept + more, 0);
            self.file.fill(self.next, &mut self.bite[kept..], self.what)?;
        }
        self.next += more as u64;
        self.crc = self.crc.map(|crc| crc32c::crc32c_append(crc, &self.bite[kept..]));
        Ok(())
    }
}
