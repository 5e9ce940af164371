//! Segment files: pages, fragments, checksums.
//!
//! A segment is a run of 32 KiB pages. A record lies in it as one fragment, or as several when it
//! reaches over the end of a page (Prometheus `tsdb/docs/format/wal.md`):
//!
//! ```text
//! ┌─────────┬────────────┬───────────────┬─────────┐
//! │ type 1B │ length 2B  │ CRC-32C 4B    │ payload │     big endian; the CRC is the payload's
//! └─────────┴────────────┴───────────────┴─────────┘
//! type, bits 0 to 2:  0 rest of the page is zeros   1 full   2 first   3 middle   4 last
//!       bit 3: snappy (block format)   bit 4: zstd      of the record as a whole
//! ```
//!
//! A first or middle fragment always ends with its page, a middle or last one always starts it. A
//! page with fewer than 7 bytes left is filled with zeros at once. A record never crosses
//! segments; one larger than a segment makes its segment larger. A segment that is no longer
//! written ends with a whole page; one that was being written when the process died does not.

use std::fmt;

use crate::tsdb::wal::Compression;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 32 * 1024;
/// Bytes of a fragment's header.
pub const HEADER_BYTES: usize = 7;
/// Longest record, as encoded and before compression, that is written or read. Twice the default
/// segment: ten million samples in one request's record. It bounds what a damaged length can make
/// a reader allocate.
pub const RECORD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bits of a fragment's type byte.
pub(super) const KIND_MASK: u8 = 0b0000_0111;
pub(super) const SNAPPY_FLAG: u8 = 0b0000_1000;
pub(super) const ZSTD_FLAG: u8 = 0b0001_0000;

pub(super) const KIND_FULL: u8 = 1;
pub(super) const KIND_FIRST: u8 = 2;
pub(super) const KIND_MIDDLE: u8 = 3;
pub(super) const KIND_LAST: u8 = 4;

const _: () = assert!(PAGE_BYTES - HEADER_BYTES <= u16::MAX as usize);

/// Number of a segment; its file is named by it, in at least eight digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentIndex(pub u64);

impl SegmentIndex {
    /// No log comes to so many segments: at a thousand a second it would take thirty years. A file of
    /// a higher number is another program's, and behind it there might be no number left.
    pub const LIMIT: u64 = 1 << 40;

    pub fn next(self) -> SegmentIndex {
        SegmentIndex(self.0.saturating_add(1))
    }
}

impl fmt::Display for SegmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.0)
    }
}

/// A place in the log: `offset` bytes into the segment's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    pub segment: SegmentIndex,
    pub offset: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

/// The type byte's bits for records stored under `compression`.
pub(super) fn flags_of(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Snappy => SNAPPY_FLAG,
        Compression::Zstd => ZSTD_FLAG,
    }
}

/// What framing wrote, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FrameCounts {
    pub(super) fragments: u64,
    /// Headers and payloads, without padding.
    pub(super) fragment_bytes: u64,
    pub(super) pages_completed: u64,
}

/// Lays records out in one segment.
///
/// Invariant: `offset` never lies within the last 6 bytes of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framer {
    segment_bytes: u64,
    /// Where in the segment the next fragment starts.
    offset: u64,
}

impl Framer {
    /// `offset` must come from an earlier framer of the same segment.
    pub(super) fn new(segment_bytes: u64, offset: u64) -> Framer {
        let framer = Framer { segment_bytes, offset };
        debug_assert!(framer.room() >= HEADER_BYTES, "no fragment begins at {offset}");
        framer
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether a record of `payload_bytes` still belongs into this segment, by Prometheus' count:
    /// room in this page, and in the whole pages the segment has left.
    pub(super) fn fits(&self, payload_bytes: usize) -> bool {
        let page_bytes = PAGE_BYTES as i64;
        let header_bytes = HEADER_BYTES as i64;
        let pages_done = (self.offset / PAGE_BYTES as u64) as i64;
        let pages = (self.segment_bytes / PAGE_BYTES as u64) as i64;
        let room_in_page = self.room() as i64 - header_bytes;
        let left = room_in_page + (page_bytes - header_bytes) * (pages - pages_done - 1);
        payload_bytes as i64 <= left
    }

    /// Appends a record's fragments to `out`.
    #[expect(clippy::cast_possible_truncation, reason = "a fragment is shorter than a page")]
    pub(super) fn push_record(
        &mut self,
        out: &mut Vec<u8>,
        payload: &[u8],
        flags: u8,
        counts: &mut FrameCounts,
    ) {
        out.reserve(payload.len() + HEADER_BYTES * (payload.len() / (PAGE_BYTES / 2) + 2));
        let mut rest = payload;
        let mut is_first = true;
        loop {
            let part_bytes = rest.len().min(self.room() - HEADER_BYTES);
            let (part, behind) = rest.split_at(part_bytes);
            let kind = match (is_first, behind.is_empty()) {
                (true, true) => KIND_FULL,
                (true, false) => KIND_FIRST,
                (false, false) => KIND_MIDDLE,
                (false, true) => KIND_LAST,
            };
            let mut header = [0; HEADER_BYTES];
            header[0] = kind | flags;
            header[1..3].copy_from_slice(&(part.len() as u16).to_be_bytes());
            header[3..7].copy_from_slice(&crc32c::crc32c(part).to_be_bytes());
            out.extend_from_slice(&header);
            out.extend_from_slice(part);
            self.offset += (HEADER_BYTES + part.len()) as u64;
            counts.fragments += 1;
            counts.fragment_bytes += (HEADER_BYTES + part.len()) as u64;
            if self.room() < HEADER_BYTES {
                self.push_padding(out);
            }
            if self.offset.is_multiple_of(PAGE_BYTES as u64) {
                counts.pages_completed += 1;
            }
            debug_assert!(self.room() >= HEADER_BYTES);
            debug_assert!(behind.is_empty() || self.room() == PAGE_BYTES, "a page has room left");
            rest = behind;
            is_first = false;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Fills a begun page with zeros; whether there was one.
    pub(super) fn push_padding(&mut self, out: &mut Vec<u8>) -> bool {
        if self.offset.is_multiple_of(PAGE_BYTES as u64) {
            return false;
        }
        let room = self.room();
        out.resize(out.len() + room, 0);
        self.offset += room as u64;
        true
    }

    /// Bytes left in the page.
    #[expect(clippy::cast_possible_truncation, reason = "within a page")]
    fn room(&self) -> usize {
        PAGE_BYTES - (self.offset % PAGE_BYTES as u64) as usize
    }
}
