//! The entries of the file.

use std::io;

use crate::tsdb::wal::segment::SegmentIndex;
use crate::tsdb::window::Window;

const MAGIC: &[u8; 4] = b"RNGE";
/// Of an entry before its body.
pub(super) const HEAD_BYTES: usize = 46;

pub(super) const TAG_SERIES: u8 = 1;
pub(super) const TAG_BEGUN: u8 = 2;
pub(super) const TAG_LENGTH: u8 = 3;
pub(super) const TAG_STRETCH: u8 = 4;

/// Bytes looked through at once for the next entry.
const SEARCH_BYTES: usize = 64 << 10;

/// A file of the log: of a checkpoint's, or a segment of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogFile {
    pub(super) checkpoint: u64,
    pub(super) segment: u64,
}

impl LogFile {
    /// None that there is.
    pub(super) const NONE: LogFile = LogFile { checkpoint: u64::MAX, segment: 0 };

    pub fn segment(segment: SegmentIndex) -> LogFile {
        LogFile { checkpoint: 0, segment: segment.0 }
    }

    pub fn of_checkpoint(checkpoint: SegmentIndex, segment: SegmentIndex) -> LogFile {
        LogFile { checkpoint: checkpoint.0.saturating_add(1), segment: segment.0 }
    }

    /// Not a file of it, but the directory.
    pub(super) fn checkpoint(checkpoint: SegmentIndex) -> LogFile {
        LogFile::of_checkpoint(checkpoint, SegmentIndex(u64::MAX))
    }
}

/// Where in the log a record begins.
pub(super) type Place = (LogFile, u64);

/// An entry without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) tag: u8,
    pub(super) is_compressed: bool,
    pub(super) file: LogFile,
    pub(super) offset: u64,
    pub(super) body_bytes: u32,
    pub(super) record_checksum: u32,
    pub(super) body_checksum: u32,
}

impl Head {
    pub(super) fn push(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[self.tag, u8::from(self.is_compressed)]);
        out.extend_from_slice(&self.file.checkpoint.to_be_bytes());
        out.extend_from_slice(&self.file.segment.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.body_bytes.to_be_bytes());
        out.extend_from_slice(&self.record_checksum.to_be_bytes());
        out.extend_from_slice(&self.body_checksum.to_be_bytes());
        let checksum = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&checksum.to_be_bytes());
        debug_assert_eq!(out.len() - start, HEAD_BYTES);
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Head> {
        let bytes = bytes.first_chunk::<HEAD_BYTES>()?;
        let (checked, checksum) = bytes.split_last_chunk::<4>()?;
        if !checked.starts_with(MAGIC) || crc32c::crc32c(checked) != u32::from_be_bytes(*checksum) {
            return None;
        }
        let be64 = |at: usize| {
            let bytes = checked.get(at..).and_then(|bytes| bytes.first_chunk::<8>());
            bytes.map(|bytes| u64::from_be_bytes(*bytes))
        };
        let be32 = |at: usize| {
            let bytes = checked.get(at..).and_then(|bytes| bytes.first_chunk::<4>());
            bytes.map(|bytes| u32::from_be_bytes(*bytes))
        };
        Some(Head {
            tag: *checked.get(4)?,
            is_compressed: *checked.get(5)? != 0,
            file: LogFile { checkpoint: be64(6)?, segment: be64(14)? },
            offset: be64(22)?,
            body_bytes: be32(30)?,
            record_checksum: be32(34)?,
            body_checksum: be32(38)?,
        })
    }

    /// Of a note that has no body.
    pub(super) fn note(tag: u8, file: LogFile, offset: u64) -> Head {
        Head {
            tag,
            is_compressed: false,
            file,
            offset,
            body_bytes: 0,
            record_checksum: 0,
            body_checksum: 0,
        }
    }
}

/// Appends an entry for a series record. `snappy` is the same compressed, if it is shorter so.
pub(in crate::tsdb::wal) fn push_series(
    out: &mut Vec<u8>,
    place: Place,
    record: &[u8],
    snappy: Option<&[u8]>,
) {
    let body = snappy.unwrap_or(record);
    // Records are far shorter than 4 GiB.
    let Ok(body_bytes) = u32::try_from(body.len()) else { return };
    let head = Head {
        tag: TAG_SERIES,
        is_compressed: snappy.is_some(),
        file: place.0,
        offset: place.1,
        body_bytes,
        record_checksum: crc32c::crc32c(record),
        body_checksum: crc32c::crc32c(body),
    };
    head.push(out);
    out.extend_from_slice(body);
}

/// Where the next entry may begin; the file's end if nowhere.
pub(super) fn next_magic(file: &mut Window, mut offset: u64) -> io::Result<u64> {
    while offset < file.len {
        let bytes = file.read(offset, SEARCH_BYTES)?;
        if let Some(at) = bytes.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) {
            return Ok(offset + at as u64);
        }
        // It may lie over the end of what was looked through.
        offset += (bytes.len().max(MAGIC.len()) - MAGIC.len() + 1) as u64;
    }
    Ok(file.len)
}
