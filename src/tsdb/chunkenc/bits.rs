//! The bit stream under the chunk encodings: most significant bit first, bytes filled from the top.

use thin_vec::ThinVec;

use crate::model::varint::unzigzag;

/// Where a stream that is being written ends. Its bytes lie in a vector whose whole length counts as
/// room, so that writing is a copy into a slice and the vector's header is not touched.
#[derive(Clone, Copy, Debug, Default)]
pub struct BitEnd {
    /// Bytes in use. The head cuts a chunk at about 1 KiB; 64 KiB is never reached.
    pub used: u16,
    /// Unused low bits of the last byte in use.
    free: u8,
}

impl BitEnd {
    /// Appends the low `count` bits of `bits`. `count` is at most 120, bits above it are zero.
    #[inline]
    pub fn push_bits(&mut self, stream: &mut ThinVec<u8>, bits: u128, count: u32) {
        debug_assert!(0 < count && count <= 120 && bits >> count == 0);
        let free = u32::from(self.free);
        let mut left_aligned = bits << (128 - count);
        if free > 0 {
            stream[usize::from(self.used) - 1] |= (left_aligned >> (128 - free)) as u8;
            if count <= free {
                self.free -= count as u8;
                return;
            }
            left_aligned <<= free;
        }
        let rest = count - free;
        let whole = rest.div_ceil(8) as usize;
        self.push_first(stream, left_aligned.to_be_bytes(), whole);
        self.free = (whole as u32 * 8 - rest) as u8;
    }

    /// Appends the first `count` of some bytes at a byte border.
    #[inline]
    fn push_first(&mut self, stream: &mut ThinVec<u8>, bytes: [u8; 16], count: usize) {
        let start = usize::from(self.used);
        // What is behind the stream's end is room: a copy of fixed length costs no call.
        let room = stream.get_mut(start..).unwrap_or_default();
        if let Some(room) = room.first_chunk_mut::<8>()
            && count <= 8
        {
            *room = *bytes.first_chunk().expect("it is longer");
            self.used += count as u16;
        } else if let Some(room) = room.first_chunk_mut::<16>() {
            *room = bytes;
            self.used += count as u16;
        } else {
            self.push_bytes(stream, &bytes[..count]);
        }
    }

    /// Appends whole bytes at a byte border.
    #[inline]
    pub fn push_bytes(&mut self, stream: &mut ThinVec<u8>, bytes: &[u8]) {
        let start = usize::from(self.used);
        let end = start + bytes.len();
        if end > stream.len() {
            grow(stream, end);
        }
        stream[start..end].copy_from_slice(bytes);
        self.used = end as u16;
    }
}

/// Sizes an open chunk grows through. With the vector's header of 16 bytes each fills an
/// allocator size class; growing by less would mean a move every few samples.
const ROOMS: [usize; 10] = [32, 64, 112, 176, 240, 368, 496, 752, 1008, 1264];

#[cold]
fn grow(stream: &mut ThinVec<u8>, needed: usize) {
    let class = ROOMS.partition_point(|room| *room < needed);
    let room = ROOMS.get(class).copied().unwrap_or_else(|| needed.next_power_of_two());
    let more = room - stream.len();
    stream.reserve_exact(more);
    // Not `resize`, which asks for each byte whether there is room.
    stream.extend(std::iter::repeat_n(0, more));
}

/// A bit stream that is being written, however long.
#[derive(Clone, Debug, Default)]
pub struct BitWriter {
    bytes: Vec<u8>,
    /// Unused low bits of the last byte.
    free: u32,
}

impl BitWriter {
    /// Behind whole bytes.
    pub fn after(bytes: &[u8]) -> BitWriter {
        BitWriter { bytes: bytes.to_vec(), free: 0 }
    }

    /// Appends the low `count` bits of `bits`. `count` is at most 120, bits above it are zero.
    pub fn push(&mut self, bits: u128, count: u32) {
        debug_assert!(0 < count && count <= 120 && bits >> count == 0);
        let mut left_aligned = bits << (128 - count);
        if let Some(last) = self.bytes.last_mut().filter(|_| self.free > 0) {
            *last |= (left_aligned >> (128 - self.free)) as u8;
            if count <= self.free {
                self.free -= count;
                return;
            }
            left_aligned <<= self.free;
        }
        let rest = count - self.free;
        let whole = rest.div_ceil(8);
        self.bytes.extend_from_slice(&left_aligned.to_be_bytes()[..whole as usize]);
        self.free = whole * 8 - rest;
    }

    /// What was written, the last byte filled with zeros.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub fn bit_count(&self) -> usize {
        self.bytes.len() * 8 - self.free as usize
    }
}

/// Reads a bit stream; `None` at its end.
#[derive(Clone)]
pub struct BitReader<'a> {
    rest: &'a [u8],
    /// Bits taken from the stream and not yet read, in the low `held_count` bits.
    held: u64,
    held_count: u32,
}

impl<'a> BitReader<'a> {
    pub fn new(stream: &'a [u8]) -> BitReader<'a> {
        BitReader { rest: stream, held: 0, held_count: 0 }
    }

    /// Takes bytes from the stream until nothing more fits.
    #[inline]
    fn refill(&mut self) {
        while self.held_count <= 56 {
            let Some((&byte, rest)) = self.rest.split_first() else { return };
            self.held = self.held << 8 | u64::from(byte);
            self.held_count += 8;
            self.rest = rest;
        }
    }

    #[inline]
    pub fn read_bit(&mut self) -> Option<bool> {
        if self.held_count == 0 {
            self.refill();
        }
        self.held_count = self.held_count.checked_sub(1)?;
        Some(self.held >> self.held_count & 1 == 1)
    }

    /// Reads `count` bits, at most 64.
    #[inline]
    pub fn read_bits(&mut self, count: u32) -> Option<u64> {
        debug_assert!(count <= 64);
        if count > 56 {
            let high = self.read_bits(count - 32)?;
            let low = self.read_bits(32)?;
            return Some(high << 32 | low);
        }
        if self.held_count < count {
            self.refill();
        }
        self.held_count = self.held_count.checked_sub(count)?;
        Some(self.held >> self.held_count & ((1 << count) - 1))
    }

    pub fn read_uvarint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for i in 0..10 {
            let byte = self.read_bits(8)?;
            // As Go: a tenth byte may hold one bit only.
            if i == 9 && byte > 1 {
                return None;
            }
            value |= (byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// Bits that are left.
    pub fn remaining(&self) -> u64 {
        self.rest.len() as u64 * 8 + u64::from(self.held_count)
    }

    /// A zigzag varint.
    pub fn read_varint(&mut self) -> Option<i64> {
        self.read_uvarint().map(unzigzag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_come_back_as_pushed(runs in prop::collection::vec((any::<u64>(), 1u32..=64), 1..60)) {
            let mut stream = ThinVec::new();
            let mut end = BitEnd::default();
            for (bits, count) in &runs {
                let bits = bits >> (64 - count);
                end.push_bits(&mut stream, u128::from(bits), *count);
            }
            let mut writer = BitWriter::default();
            for (bits, count) in &runs {
                writer.push(u128::from(bits >> (64 - count)), *count);
            }
            prop_assert_eq!(writer.bytes(), &stream[..usize::from(end.used)]);
            let total: u32 = runs.iter().map(|(_, count)| count).sum();
            prop_assert_eq!(u32::from(end.used) * 8 - u32::from(end.free), total);
            let mut reader = BitReader::new(&stream);
            for (bits, count) in &runs {
                prop_assert_eq!(reader.read_bits(*count), Some(bits >> (64 - count)));
            }
        }
    }

    #[test]
    fn a_stream_ends_with_its_last_bit() {
        let mut reader = BitReader::new(&[0x80]);
        assert_eq!(reader.read_bit(), Some(true));
        assert_eq!(reader.read_bits(8), None);
        assert_eq!(reader.read_bits(7), Some(0), "a failed read takes nothing");
    }
}
