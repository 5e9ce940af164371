//! Float chunks: Gorilla's delta of deltas and XOR, with Prometheus' bit widths.
//!
//! ```text
//! count u16 BE | t0 zigzag varint | v0 64 bits | t1-t0 uvarint | v1 xor | (dod | v xor)*
//!
//! dod:  0                        0
//!       10   + 14 bits           -8191 ..= 8192
//!       110  + 17 bits           -65535 ..= 65536
//!       1110 + 20 bits           -524287 ..= 524288
//!       1111 + 64 bits           anything else
//! xor:  0                        same bits as the value before
//!       10 + significant bits    inside the window of leading and trailing zeros in force
//!       11 + 5 bits leading + 6 bits length (64 is written as 0) + significant bits
//! ```

use std::sync::Arc;

use thin_vec::ThinVec;

use crate::tsdb::chunkenc::ChunkError;
use crate::tsdb::chunkenc::bits::{BitEnd, BitReader};

/// Bytes of the sample count that starts every chunk.
pub const COUNT_BYTES: usize = 2;

/// Bits of a sample that are pushed at once, see [`BitEnd::push_bits`].
const PUSHED_TOGETHER_MAX: u32 = 120;

/// Leading-zero count that says no window is in force yet.
const NO_WINDOW: u8 = 0xff;

/// Where the bits lie in which a value differs from the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct XorWindow {
    leading: u8,
    trailing: u8,
}

impl XorWindow {
    /// None is in force yet.
    pub const NONE: XorWindow = XorWindow { leading: NO_WINDOW, trailing: 0 };

    /// The bits of a value behind `before`, and how many they are, 77 at most. Opens the window that
    /// they say.
    #[inline]
    pub fn bits(&mut self, before: u64, v: u64) -> (u128, u32) {
        let xor = v ^ before;
        if xor == 0 {
            return (0, 1);
        }
        // Five bits hold the leading zeros, so more than 31 are treated as 31.
        let leading = (xor.leading_zeros() as u8).min(31);
        let trailing = xor.trailing_zeros() as u8;
        if self.leading != NO_WINDOW && leading >= self.leading && trailing >= self.trailing {
            let significant = 64 - u32::from(self.leading) - u32::from(self.trailing);
            let bits = 0b10u128 << significant | u128::from(xor >> self.trailing);
            return (bits, 2 + significant);
        }
        (self.leading, self.trailing) = (leading, trailing);
        let significant = 64 - u32::from(leading) - u32::from(trailing);
        let head = 0b11 << 11 | u128::from(leading) << 6 | u128::from(significant & 0x3f);
        (head << significant | u128::from(xor >> trailing), 13 + significant)
    }

    /// The value behind `before`; `None` at the end of the stream, or where it says an impossible
    /// width.
    #[inline]
    pub fn read(&mut self, bits: &mut BitReader<'_>, before: u64) -> Option<u64> {
        if !bits.read_bit()? {
            return Some(before);
        }
        if bits.read_bit()? {
            self.leading = bits.read_bits(5)? as u8;
            let significant = match bits.read_bits(6)? as u8 {
                0 => 64,
                significant => significant,
            };
            // Only damaged chunks say more than 64 bits in all.
            self.trailing = 64u8.checked_sub(self.leading)?.checked_sub(significant)?;
        }
        let significant = 64 - u32::from(self.leading) - u32::from(self.trailing);
        Some(before ^ bits.read_bits(significant)? << self.trailing)
    }
}

/// What the encoder must remember between samples. It lies in the series' hot line, not beside the
/// bytes, so that appending touches just the line and the end of the chunk. The sample count in the
/// chunk's first bytes is set only when the chunk is copied or finished.
#[derive(Clone, Copy, Debug)]
pub struct XorState {
    pub t: i64,
    /// Bits of the last value.
    pub v: u64,
    /// Time between the last two samples.
    t_delta: u64,
    /// Samples in the chunk.
    pub count: u16,
    window: XorWindow,
    end: BitEnd,
}

impl Default for XorState {
    fn default() -> XorState {
        XorState {
            t: 0,
            v: 0,
            t_delta: 0,
            count: 0,
            window: XorWindow::NONE,
            end: BitEnd::default(),
        }
    }
}

impl XorState {
    /// Appends a sample to the chunk. The caller upholds that `t` is later than the last, and that
    /// the chunk holds fewer than 65535 samples.
    #[inline]
    pub fn append(&mut self, chunk: &mut ThinVec<u8>, t: i64, v: u64) {
        debug_assert!(self.count < u16::MAX);
        match self.count {
            0 => self.append_first(chunk, t, v),
            1 => {
                let t_delta = t.wrapping_sub(self.t) as u64;
                self.push_uvarint(chunk, t_delta);
                let (bits, count) = self.window.bits(self.v, v);
                self.end.push_bits(chunk, bits, count);
                self.t_delta = t_delta;
            }
            _ => {
                let t_delta = t.wrapping_sub(self.t) as u64;
                let dod = t_delta.wrapping_sub(self.t_delta) as i64;
                let (mut bits, mut count) = dod_bits(dod);
                let (value_bits, value_count) = self.window.bits(self.v, v);
                if count + value_count > PUSHED_TOGETHER_MAX {
                    self.end.push_bits(chunk, bits, count);
                    (bits, count) = (0, 0);
                }
                self.end.push_bits(chunk, bits << value_count | value_bits, count + value_count);
                self.t_delta = t_delta;
            }
        }
        self.t = t;
        self.v = v;
        self.count += 1;
    }

    #[cold]
    fn append_first(&mut self, chunk: &mut ThinVec<u8>, t: i64, v: u64) {
        *self = XorState::default();
        self.end.push_bytes(chunk, &[0; COUNT_BYTES]);
        self.push_uvarint(chunk, (t << 1) as u64 ^ (t >> 63) as u64);
        self.end.push_bytes(chunk, &v.to_be_bytes());
    }

    #[inline]
    fn push_uvarint(&mut self, chunk: &mut ThinVec<u8>, mut value: u64) {
        let mut bytes = [0; 10];
        let mut len = 0;
        while value >= 0x80 {
            bytes[len] = value as u8 | 0x80;
            value >>= 7;
            len += 1;
        }
        bytes[len] = value as u8;
        self.end.push_bytes(chunk, &bytes[..=len]);
    }

    /// Bytes of the chunk.
    pub fn chunk_bytes(&self) -> usize {
        usize::from(self.end.used)
    }

    /// Time of the chunk's first sample, read from its bytes; 0 for an empty chunk.
    pub fn first_time(&self, chunk: &ThinVec<u8>) -> i64 {
        let stream = chunk.get(COUNT_BYTES..self.chunk_bytes()).unwrap_or_default();
        BitReader::new(stream).read_varint().unwrap_or(0)
    }

    /// Makes the chunk what it is when no sample is added any more: its sample count set, and without
    /// the room behind it.
    pub fn finish(&self, chunk: &mut ThinVec<u8>) {
        chunk.truncate(self.chunk_bytes());
        if let Some(count) = chunk.first_chunk_mut::<COUNT_BYTES>() {
            *count = self.count.to_be_bytes();
        }
    }

    /// A copy of the chunk as it stands, its sample count set.
    pub fn snapshot(&self, chunk: &ThinVec<u8>) -> Arc<[u8]> {
        let mut copy: Arc<[u8]> = Arc::from(&chunk[..self.chunk_bytes()]);
        if let Some(bytes) = Arc::get_mut(&mut copy)
            && let Some(count) = bytes.first_chunk_mut::<COUNT_BYTES>()
        {
            *count = self.count.to_be_bytes();
        }
        copy
    }

    /// Appends the same to `into`.
    pub fn copy_to(&self, chunk: &ThinVec<u8>, into: &mut Vec<u8>) {
        let start = into.len();
        into.extend_from_slice(&chunk[..self.chunk_bytes()]);
        if let Some(count) = into[start..].first_chunk_mut::<COUNT_BYTES>() {
            *count = self.count.to_be_bytes();
        }
    }
}

/// The bits of a delta of deltas, and how many they are.
#[inline]
fn dod_bits(dod: i64) -> (u128, u32) {
    match dod {
        0 => (0, 1),
        -8191..=8192 => (0b10 << 14 | (dod as u128 & 0x3fff), 16),
        -65535..=65536 => (0b110 << 17 | (dod as u128 & 0x1_ffff), 20),
        -524287..=524288 => (0b1110 << 20 | (dod as u128 & 0xf_ffff), 24),
        _ => (0b1111 << 64 | u128::from(dod as u64), 68),
    }
}

/// Samples of a chunk, as (time, bits of the value). Ends after the first error.
#[derive(Clone)]
pub struct XorIterator<'a> {
    bits: BitReader<'a>,
    remaining: u16,
    read: u16,
    t: i64,
    v: u64,
    t_delta: u64,
    window: XorWindow,
}

impl<'a> XorIterator<'a> {
    pub fn new(chunk: &'a [u8]) -> XorIterator<'a> {
        let (count, stream) = match chunk.split_first_chunk::<COUNT_BYTES>() {
            Some((count, stream)) => (u16::from_be_bytes(*count), stream),
            None => (0, &[][..]),
        };
        XorIterator {
            bits: BitReader::new(stream),
            remaining: count,
            read: 0,
            t: 0,
            v: 0,
            t_delta: 0,
            window: XorWindow::default(),
        }
    }

    #[inline]
    fn read_sample(&mut self) -> Option<()> {
        match self.read {
            0 => {
                self.t = self.bits.read_varint()?;
                self.v = self.bits.read_bits(64)?;
                return Some(());
            }
            1 => self.t_delta = self.bits.read_uvarint()?,
            _ => {
                let dod = self.read_dod()?;
                self.t_delta = self.t_delta.wrapping_add(dod as u64);
            }
        }
        self.t = self.t.wrapping_add(self.t_delta as i64);
        self.v = self.window.read(&mut self.bits, self.v)?;
        Some(())
    }

    #[inline]
    fn read_dod(&mut self) -> Option<i64> {
        for count in [0, 14, 17, 20] {
            if !self.bits.read_bit()? {
                if count == 0 {
                    return Some(0);
                }
                let bits = self.bits.read_bits(count)? as i64;
                // The widths are lopsided: 2^(n-1) itself is positive.
                let negative = bits > 1 << (count - 1);
                return Some(if negative { bits - (1 << count) } else { bits });
            }
        }
        Some(self.bits.read_bits(64)? as i64)
    }
}

impl Iterator for XorIterator<'_> {
    type Item = Result<(i64, u64), ChunkError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        if self.read_sample().is_none() {
            self.remaining = 0;
            return Some(Err(ChunkError("float chunk ends early or has an impossible width")));
        }
        self.read += 1;
        Some(Ok((self.t, self.v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn encode(samples: &[(i64, u64)]) -> Vec<u8> {
        let mut state = XorState::default();
        let mut chunk = ThinVec::new();
        if samples.is_empty() {
            return vec![0; COUNT_BYTES];
        }
        for &(t, v) in samples {
            state.append(&mut chunk, t, v);
        }
        state.snapshot(&chunk).to_vec()
    }

    fn samples_of(case: &Value) -> Vec<(i64, u64)> {
        if case["samples"].is_null() {
            // The value is 0 throughout.
            let number = |field: &str| case[field].as_i64().unwrap();
            return (0..number("count"))
                .map(|i| (number("first") + i * number("step"), 0))
                .collect();
        }
        let sample = |pair: &Value| {
            let bits = u64::from_str_radix(pair[1].as_str().unwrap(), 16).unwrap();
            (pair[0].as_i64().unwrap(), bits)
        };
        case["samples"].as_array().unwrap().iter().map(sample).collect()
    }

    fn bytes_of(case: &Value) -> Vec<u8> {
        let hex = case["bytes"].as_str().unwrap();
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    fn cases(json: &str) -> Vec<Value> {
        let file: Value = serde_json::from_str(json).unwrap();
        file["cases"].as_array().unwrap().clone()
    }

    #[test]
    fn chunks_are_prometheus_bytes() {
        for case in cases(include_str!("../../../tests/data/chunks/xor.json")) {
            let samples = samples_of(&case);
            assert_eq!(encode(&samples), bytes_of(&case), "{}", case["name"]);
            let bytes = bytes_of(&case);
            let read: Result<Vec<_>, _> = XorIterator::new(&bytes).collect();
            assert_eq!(read.unwrap(), samples, "{}", case["name"]);
        }
    }

    /// Prometheus' reader makes up bits behind the end of a chunk; ours gives an error there.
    #[test]
    fn damaged_chunks_give_no_sample_that_prometheus_does_not_give() {
        for case in cases(include_str!("../../../tests/data/chunks/damaged.json")) {
            if case["encoding"] != 1 {
                continue;
            }
            let bytes = bytes_of(&case);
            let mut read = Vec::new();
            let mut failed = false;
            for sample in XorIterator::new(&bytes) {
                match sample {
                    Ok(sample) => read.push(sample),
                    Err(_) => failed = true,
                }
            }
            let name = case["name"].as_str().unwrap();
            let theirs = samples_of(&case);
            if !failed {
                assert_eq!(read, theirs, "{name}");
                assert!(case["error"].is_null(), "{name}");
            }
            assert!(theirs.starts_with(&read), "{name}");
        }
    }

    proptest! {
        #[test]
        fn samples_come_back(
            start in any::<i64>(),
            steps in prop::collection::vec((1u64..1 << 40, any::<u64>(), 0u32..64), 0..200),
        ) {
            let mut t = start >> 2;
            let samples: Vec<_> = steps
                .into_iter()
                .map(|(step, v, shift)| {
                    t += (step >> (shift % 40)) as i64 + 1;
                    (t, v >> shift)
                })
                .collect();
            let bytes = encode(&samples);
            let read: Result<Vec<_>, _> = XorIterator::new(&bytes).collect();
            prop_assert_eq!(read.unwrap(), samples);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(XorIterator::new(&bytes).count() <= 65535);
        }
    }
}
