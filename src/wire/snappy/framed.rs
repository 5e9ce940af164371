//! Snappy's framing format, in which gRPC messages of Thanos' nodes travel: a stream of chunks,
//! each of at most 64 KiB plain bytes.
//!
//! ```text
//! stream = ff 06 00 00 "sNaPpY" chunk*            (nothing at all when there are no plain bytes)
//! chunk  = type (1 byte)  length (3 bytes, little endian)  body
//! body   = masked CRC-32C of the plain bytes (4 bytes, little endian), then
//!          type 00: a snappy block              type 01: the plain bytes
//! ```
//!
//! Types from 80 to fe are skipped, those from 02 to 7f are errors. The identifier may come again.
//! Since every chunk says what it holds, the inflated length is known, and can be judged, before
//! memory is taken.

use crate::wire::snappy::{self, SnappyError};

const IDENTIFIER: &[u8] = b"sNaPpY";
const STREAM_HEAD: &[u8] = b"\xff\x06\x00\x00sNaPpY";

const COMPRESSED: u8 = 0x00;
const PLAIN: u8 = 0x01;
const IDENTIFIER_TYPE: u8 = 0xff;

/// Plain bytes of one chunk at most.
const CHUNK_BYTES_MAX: usize = 64 << 10;

const CRC_BYTES: usize = 4;

/// The inflated length of a stream in bytes, each chunk's being one that it can reach.
pub fn inflated_len(stream: &[u8], max: u64) -> Result<usize, SnappyError> {
    let mut len = 0u64;
    let mut chunks = Chunks::new(stream);
    while let Some(chunk) = chunks.next_chunk()? {
        len += chunk.plain_len()? as u64;
    }
    if len > max {
        return Err(SnappyError::TooLarge { len, max });
    }
    usize::try_from(len).map_err(|_| SnappyError::Corrupt)
}

/// Inflates a stream into the first bytes of `buffer` and returns those. `len` comes from
/// [`inflated_len`] of the same stream.
pub fn inflate<'a>(
    stream: &[u8],
    len: usize,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], SnappyError> {
    // The buffer keeps its length from use to use, so only growth is filled with zeros.
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let out = buffer.get_mut(..len).ok_or(SnappyError::Corrupt)?;
    let mut rest = &mut *out;
    let mut decoder = snap::raw::Decoder::new();
    let mut chunks = Chunks::new(stream);
    while let Some(chunk) = chunks.next_chunk()? {
        let (plain, after) =
            rest.split_at_mut_checked(chunk.plain_len()?).ok_or(SnappyError::Corrupt)?;
        rest = after;
        match chunk.body {
            Body::Plain(bytes) => plain.copy_from_slice(bytes),
            Body::Block(block) => {
                let inflated =
                    decoder.decompress(block, plain).map_err(|_| SnappyError::Corrupt)?;
                if inflated != plain.len() {
                    return Err(SnappyError::Corrupt);
                }
            }
        }
        if masked_crc(plain) != chunk.crc {
            return Err(SnappyError::Corrupt);
        }
    }
    if rest.is_empty() { Ok(out) } else { Err(SnappyError::Corrupt) }
}

/// Appends what a stream begins with.
pub fn push_stream_head(out: &mut Vec<u8>) {
    out.extend_from_slice(STREAM_HEAD);
}

/// Deflates streams. Its tables and buffers are used again.
pub struct Deflater {
    encoder: snap::raw::Encoder,
    plain: Vec<u8>,
    block: Vec<u8>,
}

impl Default for Deflater {
    fn default() -> Deflater {
        Deflater {
            encoder: snap::raw::Encoder::new(),
            plain: Vec::with_capacity(CHUNK_BYTES_MAX),
            block: vec![0; snap::raw::max_compress_len(CHUNK_BYTES_MAX)],
        }
    }
}

impl Deflater {
    /// Appends the stream of `parts`, one after another, to `out`.
    pub fn deflate<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        let begin = out.len();
        push_stream_head(out);
        let first_chunk = out.len();
        self.deflate_chunks(parts, out);
        if out.len() == first_chunk {
            out.truncate(begin);
        }
    }

    /// Appends the chunks of `parts`, one after another, to `out`. Chunks do not depend on each
    /// other: those of several calls may follow one stream head, in any order.
    pub fn deflate_chunks<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8]>,
        out: &mut Vec<u8>,
    ) {
        self.plain.clear();
        for mut part in parts {
            while !part.is_empty() {
                if self.plain.len() == CHUNK_BYTES_MAX {
                    self.push_chunk(out);
                }
                let room = CHUNK_BYTES_MAX - self.plain.len();
                let (now, later) = part.split_at(room.min(part.len()));
                self.plain.extend_from_slice(now);
                part = later;
            }
        }
        if !self.plain.is_empty() {
            self.push_chunk(out);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a chunk's length has 17 bits")]
    fn push_chunk(&mut self, out: &mut Vec<u8>) {
        let block = match self.encoder.compress(&self.plain, &mut self.block) {
            // What saves less than an eighth is not worth the receiver's work.
            Ok(len) if len < self.plain.len() - self.plain.len() / 8 => self.block.get(..len),
            _ => None,
        };
        let (kind, body) = block.map_or((PLAIN, &self.plain[..]), |block| (COMPRESSED, block));
        // At most 64 KiB and four bytes, so the fourth byte of the length is always zero.
        debug_assert!(body.len() <= CHUNK_BYTES_MAX);
        let len = ((body.len() + CRC_BYTES) as u32).to_le_bytes();
        out.extend_from_slice(&[kind, len[0], len[1], len[2]]);
        out.extend_from_slice(&masked_crc(&self.plain).to_le_bytes());
        out.extend_from_slice(body);
        self.plain.clear();
    }
}

/// Snappy's checksums are masked, since a CRC over bytes that contain CRCs is a weak one.
fn masked_crc(plain: &[u8]) -> u32 {
    crc32c::crc32c(plain).rotate_right(15).wrapping_add(0xa282_ead8)
}

struct Chunk<'a> {
    crc: u32,
    body: Body<'a>,
}

enum Body<'a> {
    Block(&'a [u8]),
    Plain(&'a [u8]),
}

impl Chunk<'_> {
    fn plain_len(&self) -> Result<usize, SnappyError> {
        match self.body {
            Body::Plain(bytes) if bytes.len() <= CHUNK_BYTES_MAX => Ok(bytes.len()),
            Body::Plain(_) => Err(SnappyError::Corrupt),
            Body::Block(block) => snappy::inflated_len(block, CHUNK_BYTES_MAX as u64)
                .map_err(|_| SnappyError::Corrupt),
        }
    }
}

/// The chunks of a stream that hold plain bytes, in order.
struct Chunks<'a> {
    rest: &'a [u8],
    is_identified: bool,
}

impl<'a> Chunks<'a> {
    fn new(stream: &'a [u8]) -> Chunks<'a> {
        Chunks { rest: stream, is_identified: false }
    }

    fn next_chunk(&mut self) -> Result<Option<Chunk<'a>>, SnappyError> {
        while !self.rest.is_empty() {
            let (&[kind, a, b, c], rest) =
                self.rest.split_first_chunk().ok_or(SnappyError::Corrupt)?;
            let len = u32::from_le_bytes([a, b, c, 0]) as usize;
            let (body, rest) = rest.split_at_checked(len).ok_or(SnappyError::Corrupt)?;
            self.rest = rest;
            match kind {
                IDENTIFIER_TYPE if body == IDENTIFIER => self.is_identified = true,
                IDENTIFIER_TYPE => return Err(SnappyError::Corrupt),
                _ if !self.is_identified => return Err(SnappyError::Corrupt),
                COMPRESSED | PLAIN => {
                    let (crc, bytes) = body.split_first_chunk().ok_or(SnappyError::Corrupt)?;
                    let body = if kind == PLAIN { Body::Plain(bytes) } else { Body::Block(bytes) };
                    return Ok(Some(Chunk { crc: u32::from_le_bytes(*crc), body }));
                }
                0x02..=0x7f => return Err(SnappyError::Corrupt),
                // Padding, and what is reserved to be skipped.
                0x80..=0xfe => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use proptest::prelude::*;

    use super::*;

    fn round(stream: &[u8]) -> Result<Vec<u8>, SnappyError> {
        let len = inflated_len(stream, 1 << 30)?;
        inflate(stream, len, &mut vec![7; 3]).map(<[u8]>::to_vec)
    }

    fn deflate(plain: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        Deflater::default().deflate([plain], &mut out);
        out.split_off(6)
    }

    /// Text that deflates well, followed by bytes that do not.
    fn mixed(len: usize) -> Vec<u8> {
        let noise = (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8);
        let text = b"host-000:9100 ".iter().copied().cycle().take(len);
        text.chain(noise).collect()
    }

    #[test]
    fn streams_are_read_by_another_reader_and_its_streams_by_ours() {
        for len in [0, 1, 100, 32 << 10, (32 << 10) + 1, 100_000, 300_000] {
            let plain = mixed(len);
            let ours = deflate(&plain);
            let mut read = Vec::new();
            snap::read::FrameDecoder::new(&ours[..]).read_to_end(&mut read).unwrap();
            assert!(read == plain, "of {len} bytes");
            assert!(round(&ours).unwrap() == plain, "of {len} bytes");
            let mut writer = snap::write::FrameEncoder::new(Vec::new());
            writer.write_all(&plain).unwrap();
            assert!(round(&writer.into_inner().unwrap()).unwrap() == plain, "of {len} bytes");
        }
        assert_eq!(deflate(b""), b"");
    }

    #[test]
    fn parts_make_one_stream_wherever_they_are_cut() {
        let plain = mixed(70_000);
        let whole = deflate(&plain);
        for size in [1, 999, 65_535, 65_537] {
            let mut cut = Vec::new();
            Deflater::default().deflate(plain.chunks(size), &mut cut);
            assert!(cut == whole, "in parts of {size} bytes");
        }
    }

    #[test]
    fn a_stream_cut_or_changed_anywhere_is_corrupt() {
        let whole = deflate(b"some bytes some bytes some bytes some bytes some bytes");
        for cut in 1..whole.len() {
            // A cut right after the identifier leaves a stream of nothing.
            let expected =
                if cut == STREAM_HEAD.len() { Ok(vec![]) } else { Err(SnappyError::Corrupt) };
            assert_eq!(round(&whole[..cut]), expected, "cut at {cut}");
        }
        for i in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[i] ^= 0x40;
            assert_eq!(round(&wrong), Err(SnappyError::Corrupt), "changed at {i}");
        }
        let without_head = &whole[STREAM_HEAD.len()..];
        assert_eq!(round(without_head), Err(SnappyError::Corrupt));
    }

    #[test]
    fn chunks_without_plain_bytes_are_skipped() {
        let whole = deflate(b"bytes");
        let padding = b"\xfe\x03\x00\x00abc";
        let padded = [STREAM_HEAD, padding, &whole, &whole[STREAM_HEAD.len()..], padding].concat();
        assert_eq!(round(&padded).unwrap(), b"bytesbytes");
        let reserved = [STREAM_HEAD, b"\x02\x00\x00\x00"].concat();
        assert_eq!(round(&reserved), Err(SnappyError::Corrupt));
    }

    #[test]
    fn a_chunk_over_64_kib_and_a_stream_over_the_cap_are_refused() {
        let plain = vec![b'a'; CHUNK_BYTES_MAX + 1];
        let len = (plain.len() + CRC_BYTES) as u32;
        let mut stream = [STREAM_HEAD, &[PLAIN], &len.to_le_bytes()[..3]].concat();
        stream.extend_from_slice(&masked_crc(&plain).to_le_bytes());
        stream.extend_from_slice(&plain);
        assert_eq!(round(&stream), Err(SnappyError::Corrupt));

        let stream = deflate(&vec![0; 1_000_000]);
        let refused = SnappyError::TooLarge { len: 1_000_000, max: 999_999 };
        assert_eq!(inflated_len(&stream, 999_999), Err(refused));
        assert_eq!(inflated_len(&stream, 1_000_000), Ok(1_000_000));
    }

    proptest! {
        #[test]
        fn any_bytes_round_trip(plain in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert!(round(&deflate(&plain)).unwrap() == plain);
        }

        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let stream = [STREAM_HEAD, &bytes].concat();
            let _ = round(&bytes);
            let _ = round(&stream);
        }
    }
}
