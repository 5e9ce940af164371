//! Float chunks to points. Written against Prometheus' format alone, so that a mistake that our
//! encoder and decoder share is seen.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// Times and the bits of values.
pub(crate) type Points = Vec<(i64, u64)>;

/// The points of an XOR chunk in base64.
pub(crate) fn xor_points(data: &str) -> Result<Points, String> {
    let bytes = BASE64_STANDARD.decode(data).map_err(|error| error.to_string())?;
    decode(&bytes).ok_or_else(|| "chunk cut short".to_owned())
}

fn decode(bytes: &[u8]) -> Option<Points> {
    let (count, bits) = bytes.split_first_chunk::<2>()?;
    let mut bits = Bits { bytes: bits, next: 0 };
    let mut points = Points::new();
    let (mut time, mut delta, mut value) = (0i64, 0i64, 0u64);
    let (mut leading, mut trailing) = (0, 0);
    for i in 0..u16::from_be_bytes(*count) {
        match i {
            0 => {
                time = zigzag(bits.varint()?);
                value = bits.take(64)?;
                points.push((time, value));
                continue;
            }
            1 => delta = i64::try_from(bits.varint()?).ok()?,
            _ => delta = delta.wrapping_add(bits.delta_of_delta()?),
        }
        time = time.wrapping_add(delta);
        if bits.take(1)? == 1 {
            if bits.take(1)? == 1 {
                leading = bits.take(5)?;
                let significant = match bits.take(6)? {
                    0 => 64,
                    significant => significant,
                };
                trailing = 64u64.checked_sub(leading + significant)?;
            }
            value ^= bits.take(64 - leading - trailing)? << trailing;
        }
        points.push((time, value));
    }
    Some(points)
}

struct Bits<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u64) -> Option<u64> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.next / 8)?;
            value = value << 1 | u64::from(byte >> (7 - self.next % 8) & 1);
            self.next += 1;
        }
        Some(value)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(8)?;
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A prefix of ones chooses the width.
    fn delta_of_delta(&mut self) -> Option<i64> {
        for width in [0, 14, 17, 20] {
            if self.take(1)? == 0 {
                return self.narrow(width);
            }
        }
        self.take(64).map(|value| value as i64)
    }

    /// Of 2^n values of n bits those above 2^(n - 1) stand for negative ones.
    fn narrow(&mut self, width: u64) -> Option<i64> {
        let value = self.take(width)? as i64;
        let is_negative = width > 0 && value > 1 << (width - 1);
        Some(if is_negative { value - (1 << width) } else { value })
    }
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
