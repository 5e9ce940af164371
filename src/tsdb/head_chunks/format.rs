//! Head chunk files, byte by byte.
//!
//! ```text
//! magic 0x0130BC91 | version 1 | three zeros
//! chunk*:  ref be64 | mint be64 | maxt be64 | encoding | length uvarint | the chunk, of this length
//!          | CRC-32C be32 of all that
//! ```
//!
//! Chunks end where the file does or where zeros begin. The highest bit of the encoding says that the
//! chunk is one of out-of-order samples. (Prometheus `tsdb/docs/format/head_chunks.md`)

use std::io;

use crate::model::varint::{push_varint, read_varint};
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::window::{WINDOW_BYTES, Window};

pub(super) const HEADER: [u8; 8] = [0x01, 0x30, 0xbc, 0x91, 1, 0, 0, 0];
/// Ref, times and encoding.
pub(super) const FIXED_BYTES: usize = 8 + 8 + 8 + 1;
const LENGTH_BYTES_MAX: usize = 10;
pub(super) const CHECKSUM_BYTES: usize = 4;
/// Longer ones are taken for damage. Chunks are meant to have a kilobyte.
pub(super) const DATA_BYTES_MAX: u64 = 1 << 20;
const _: () =
    assert!(WINDOW_BYTES as u64 > 2 * (DATA_BYTES_MAX + (FIXED_BYTES + LENGTH_BYTES_MAX) as u64));

/// What stands before a chunk's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub series_ref: HeadSeriesRef,
    pub mint: Timestamp,
    pub maxt: Timestamp,
    /// As it stands there.
    pub encoding: u8,
}

impl Head {
    /// Its beginning and what follows, if there is enough of both.
    fn parse(bytes: &[u8]) -> Option<(Head, &[u8])> {
        let (series_ref, bytes) = bytes.split_first_chunk::<8>()?;
        let (mint, bytes) = bytes.split_first_chunk::<8>()?;
        let (maxt, bytes) = bytes.split_first_chunk::<8>()?;
        let (encoding, bytes) = bytes.split_first()?;
        let head = Head {
            series_ref: HeadSeriesRef(u64::from_be_bytes(*series_ref)),
            mint: Timestamp::from_be_bytes(*mint),
            maxt: Timestamp::from_be_bytes(*maxt),
            encoding: *encoding,
        };
        Some((head, bytes))
    }
}

/// Appends a chunk.
pub(super) fn push_chunk(into: &mut Vec<u8>, head: Head, bytes: &[u8]) {
    let start = into.len();
    into.extend(head.series_ref.0.to_be_bytes());
    into.extend(head.mint.to_be_bytes());
    into.extend(head.maxt.to_be_bytes());
    into.push(head.encoding);
    push_varint(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
    let checksum = crc32c::crc32c(&into[start..]);
    into.extend(checksum.to_be_bytes());
}

/// What a chunk of so many bytes takes at most.
pub(super) fn chunk_bytes_max(bytes: usize) -> usize {
    FIXED_BYTES + LENGTH_BYTES_MAX + bytes + CHECKSUM_BYTES
}

/// How many bytes the chunk that begins here takes, as far as its first ones tell.
pub(super) fn chunk_len(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(FIXED_BYTES..)?;
    let (data_bytes, rest) = read_varint(&length[..length.len().min(LENGTH_BYTES_MAX)])?;
    let length_bytes = length.len().min(LENGTH_BYTES_MAX) - rest.len();
    let is_bounded = data_bytes <= DATA_BYTES_MAX;
    // Below a megabyte and some bytes.
    is_bounded.then(|| FIXED_BYTES + length_bytes + data_bytes as usize + CHECKSUM_BYTES)
}

/// The chunk that takes just these bytes, if its checksum says so.
pub(super) fn parse_chunk(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let (checked, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    if crc32c::crc32c(checked) != u32::from_be_bytes(*checksum) {
        return None;
    }
    let (head, rest) = Head::parse(checked)?;
    let (data_bytes, data) = read_varint(rest)?;
    (data_bytes == data.len() as u64).then_some((head, data))
}

/// The whole chunk at `offset`, and how many bytes it takes; `None` if there is none.
pub(super) fn chunk_at(file: &mut Window, offset: u64) -> io::Result<Option<(Head, &[u8], u64)>> {
    let begin = file.read(offset, FIXED_BYTES + LENGTH_BYTES_MAX)?;
    // A ref that no head gives is no beginning.
    let is_ref = |head: &Head| (1..HeadSeriesRef::LIMIT).contains(&head.series_ref.0);
    if !Head::parse(begin).is_some_and(|(head, _)| is_ref(&head)) {
        return Ok(None);
    }
    let Some(len) = chunk_len(begin) else { return Ok(None) };
    let bytes = file.read(offset, len)?;
    if bytes.len() < len {
        return Ok(None);
    }
    Ok(parse_chunk(bytes).map(|(head, data)| (head, data, len as u64)))
}

/// Where the next byte is that is not 0; the file's end if there is none.
pub(super) fn first_nonzero(file: &mut Window, mut offset: u64) -> io::Result<u64> {
    while offset < file.len {
        let bytes = file.read(offset, FIXED_BYTES)?;
        match bytes.iter().position(|byte| *byte != 0) {
            Some(at) => return Ok(offset + at as u64),
            None => offset += bytes.len().max(1) as u64,
        }
    }
    Ok(file.len)
}
