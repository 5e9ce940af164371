//! Integers of 1 to 72 bits, the small ones short, as histogram chunks have them. (Prometheus
//! `tsdb/chunkenc/varbit.go`)
//!
//! ```text
//! 0                0
//! 10       +  3    signed -3 ..= 4, and so on: of n bits -(2^(n-1) - 1) ..= 2^(n-1); unsigned up to 7
//! 110      +  6
//! 1110     +  9
//! 11110    + 12
//! 111110   + 18
//! 1111110  + 25
//! 11111110 + 56
//! 11111111 + 64
//! ```

use crate::tsdb::chunkenc::bits::{BitReader, BitWriter};

/// Bits behind a prefix of as many ones, but the last, which has no zero behind it.
const WIDTHS: [u32; 7] = [3, 6, 9, 12, 18, 25, 56];
const WIDEST: u32 = 64;
const WIDEST_PREFIX: u32 = 8;

pub fn push_signed(bits: &mut BitWriter, value: i64) {
    let fits = |width: &u32| {
        let most = 1i64 << (width - 1);
        -most < value && value <= most
    };
    push(bits, value as u64, WIDTHS.iter().position(fits));
}

pub fn push_unsigned(bits: &mut BitWriter, value: u64) {
    push(bits, value, WIDTHS.iter().position(|width| value >> width == 0));
}

fn push(bits: &mut BitWriter, value: u64, width: Option<usize>) {
    match width {
        _ if value == 0 => bits.push(0, 1),
        Some(class) => {
            let (ones, width) = (class as u32 + 1, WIDTHS[class]);
            let prefix = (1u128 << (ones + 1)) - 2;
            let value = u128::from(value) & ((1 << width) - 1);
            bits.push(prefix << width | value, ones + 1 + width);
        }
        None => {
            let prefix = (1u128 << WIDEST_PREFIX) - 1;
            bits.push(prefix << WIDEST | u128::from(value), WIDEST_PREFIX + WIDEST);
        }
    }
}

/// `None` at the end of the stream.
pub fn read_signed(bits: &mut BitReader<'_>) -> Option<i64> {
    let (value, width) = read(bits)?;
    // The widths are lopsided: 2^(n-1) itself is positive.
    let is_negative = width < WIDEST && width > 0 && value > 1 << (width - 1);
    Some(if is_negative { value as i64 - (1 << width) } else { value as i64 })
}

/// `None` at the end of the stream.
pub fn read_unsigned(bits: &mut BitReader<'_>) -> Option<u64> {
    read(bits).map(|(value, _)| value)
}

fn read(bits: &mut BitReader<'_>) -> Option<(u64, u32)> {
    let mut ones = 0;
    while ones < WIDEST_PREFIX && bits.read_bit()? {
        ones += 1;
    }
    let width = match ones {
        0 => return Some((0, 0)),
        WIDEST_PREFIX => WIDEST,
        ones => WIDTHS[ones as usize - 1],
    };
    Some((bits.read_bits(width)?, width))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bits_of(push: impl FnOnce(&mut BitWriter)) -> u32 {
        let mut bits = BitWriter::default();
        push(&mut bits);
        bits.bit_count() as u32
    }

    #[test]
    fn a_number_takes_the_bits_that_the_table_says() {
        let signed = |value| bits_of(|bits| push_signed(bits, value));
        for (value, expected) in [
            (0, 1),
            (1, 5),
            (4, 5),
            (5, 9),
            (-3, 5),
            (-4, 9),
            (32, 9),
            (-31, 9),
            (-32, 13),
            (131_072, 24),
            (131_073, 32),
            (1 << 24, 32),
            ((1 << 24) + 1, 64),
            (1 << 55, 64),
            ((1 << 55) + 1, 72),
            (i64::MIN, 72),
        ] {
            assert_eq!(signed(value), expected, "{value}");
        }
        let unsigned = |value| bits_of(|bits| push_unsigned(bits, value));
        for (value, expected) in [(0, 1), (7, 5), (8, 9), (63, 9), (64, 13), (u64::MAX, 72)] {
            assert_eq!(unsigned(value), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn numbers_come_back(values in prop::collection::vec((any::<i64>(), 0u32..64), 1..60)) {
            let values: Vec<_> = values.iter().map(|(value, by)| value >> by).collect();
            let mut bits = BitWriter::default();
            for value in &values {
                push_signed(&mut bits, *value);
                push_unsigned(&mut bits, *value as u64);
            }
            let mut reader = BitReader::new(bits.bytes());
            for value in &values {
                prop_assert_eq!(read_signed(&mut reader), Some(*value));
                prop_assert_eq!(read_unsigned(&mut reader), Some(*value as u64));
            }
        }
    }
}
