//! Prometheus' float chunk (encoding 1), read only: big-endian sample count, then a bit stream.
//!
//! ```text
//! sample 0   timestamp signed varint · value 64 bits
//! sample 1   delta unsigned varint · value
//! sample n   delta of delta, by prefix: 0 → 0 · 10 → 14 bits · 110 → 17 · 1110 → 20 · 1111 → 64
//! value      0 → same · 10 → within the last window · 11 → 5 bits leading, 6 bits width (0 is
//!            64), then that many bits of the XOR with the last value
//! ```

/// Appends the chunk's samples as (timestamp, bits of the value); `None` if it ends too early.
pub(super) fn decode(chunk: &[u8], samples: &mut Vec<(i64, u64)>) -> Option<()> {
    let (count, stream) = chunk.split_first_chunk::<2>()?;
    let count = u16::from_be_bytes(*count);
    let mut bits = BitReader { bytes: stream, position: 0 };
    let (mut time, mut delta) = (0i64, 0i64);
    let mut value = Value::default();
    for n in 0..count {
        match n {
            0 => {
                time = bits.signed_varint()?;
                value.bits = bits.take(64)?;
            }
            1 => {
                delta = bits.unsigned_varint()? as i64;
                time = time.wrapping_add(delta);
                value.next(&mut bits)?;
            }
            _ => {
                delta = delta.wrapping_add(bits.delta_of_delta()?);
                time = time.wrapping_add(delta);
                value.next(&mut bits)?;
            }
        }
        samples.push((time, value.bits));
    }
    Some(())
}

/// The last value and the window of bits in which the last one differed from its predecessor.
#[derive(Default)]
struct Value {
    bits: u64,
    trailing: u32,
    width: u32,
}

impl Value {
    fn next(&mut self, bits: &mut BitReader<'_>) -> Option<()> {
        if bits.take(1)? == 0 {
            return Some(());
        }
        if bits.take(1)? == 1 {
            let leading = bits.take(5)? as u32;
            self.width = match bits.take(6)? as u32 {
                0 => 64,
                width => width,
            };
            self.trailing = 64u32.checked_sub(leading)?.checked_sub(self.width)?;
        }
        let changed = bits.take(self.width)?;
        self.bits ^= changed.checked_shl(self.trailing)?;
        Some(())
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    /// In bits.
    position: usize,
}

impl BitReader<'_> {
    /// The next `count` bits, at most 64, most significant first.
    fn take(&mut self, count: u32) -> Option<u64> {
        let mut value = 0u64;
        let mut missing = count;
        while missing > 0 {
            let byte = u64::from(*self.bytes.get(self.position / 8)?);
            let left_in_byte = 8 - (self.position % 8) as u32;
            let taken = left_in_byte.min(missing);
            let bits = (byte >> (left_in_byte - taken)) & ((1 << taken) - 1);
            value = value << taken | bits;
            self.position += taken as usize;
            missing -= taken;
        }
        Some(value)
    }

    fn unsigned_varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for i in 0..10 {
            let byte = self.take(8)?;
            value |= (byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn signed_varint(&mut self) -> Option<i64> {
        let zigzag = self.unsigned_varint()?;
        Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    fn delta_of_delta(&mut self) -> Option<i64> {
        let mut ones = 0;
        while ones < 4 && self.take(1)? == 1 {
            ones += 1;
        }
        let width = match ones {
            0 => return Some(0),
            1 => 14,
            2 => 17,
            3 => 20,
            _ => return Some(self.take(64)? as i64),
        };
        let bits = self.take(width)? as i64;
        // The range is (-2^(w-1), 2^(w-1)]: its upper end keeps its sign.
        Some(if bits > 1 << (width - 1) { bits - (1 << width) } else { bits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Recorded {
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        bytes: String,
        #[serde(flatten)]
        samples: Samples,
    }

    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Samples {
        Listed { samples: Vec<(i64, String)> },
        Zeros { first: i64, step: i64, count: i64 },
    }

    #[test]
    fn chunks_written_by_prometheus_decode() {
        let recorded: Recorded =
            serde_json::from_str(include_str!("../../tests/data/load/xor.json")).unwrap();
        for case in &recorded.cases {
            let chunk: Vec<u8> = (0..case.bytes.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&case.bytes[i..i + 2], 16).unwrap())
                .collect();
            let expected: Vec<_> = match &case.samples {
                Samples::Listed { samples } => samples
                    .iter()
                    .map(|(time, bits)| (*time, u64::from_str_radix(bits, 16).unwrap()))
                    .collect(),
                Samples::Zeros { first, step, count } => {
                    (0..*count).map(|n| (first + n * step, 0)).collect()
                }
            };
            let mut samples = Vec::new();
            assert_eq!(decode(&chunk, &mut samples), Some(()), "{}", case.name);
            assert_eq!(samples, expected, "{}", case.name);
        }
        assert!(recorded.cases.len() > 10);
    }

    #[test]
    fn truncated_chunks_are_refused() {
        let chunk = [0, 2, 0x80, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0x05, 0x00];
        let mut samples = Vec::new();
        assert_eq!(decode(&chunk, &mut samples), Some(()));
        assert_eq!(samples, [(64, 0), (69, 0)]);
        for len in 0..13 {
            assert_eq!(decode(&chunk[..len], &mut Vec::new()), None, "{len}");
        }
    }
}
