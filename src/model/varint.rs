//! Varints of protobuf, and what they are the length of. Untrusted bytes are read as with a cursor:
//! every step is bounds-checked, nothing is indexed by a number that came from outside.

/// Reads a varint of at most ten bytes; `None` when it is cut short or longer. As in Go's decoder,
/// bits beyond the 64th are dropped.
#[inline]
pub fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    match *bytes {
        [only, ref rest @ ..] if only < 0x80 => Some((u64::from(only), rest)),
        [first, last, ref rest @ ..] if last < 0x80 => {
            Some((u64::from(first & 0x7f) | u64::from(last) << 7, rest))
        }
        _ => read_long_varint(bytes),
    }
}

fn read_long_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).wrapping_shl(7 * i as u32);
        if byte < 0x80 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

/// Splits off a length-prefixed run of bytes: (run, rest).
#[inline]
pub fn split_len_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = read_varint(bytes)?;
    let len = usize::try_from(len).ok()?;
    rest.split_at_checked(len)
}

/// Bytes that [`push_varint`] writes for `value`.
#[inline]
pub fn varint_len(value: u64) -> usize {
    // 7 payload bits a byte; zero takes one byte.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends `value` as a minimal varint.
#[inline]
pub fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The minimal varint of `value`, and how many of these bytes it takes.
#[inline]
pub fn varint_bytes(value: u64) -> ([u8; 10], usize) {
    let mut bytes = [0; 10];
    let len = varint_len(value);
    for (i, byte) in bytes.iter_mut().take(len).enumerate() {
        let more = if i + 1 < len { 0x80 } else { 0 };
        *byte = (value >> (7 * i)) as u8 & 0x7f | more;
    }
    (bytes, len)
}

/// A signed number for a varint, as protobuf's `sint64` and Go have it: the sign goes to the lowest
/// bit.
#[inline]
pub fn zigzag(value: i64) -> u64 {
    ((value as u64) << 1) ^ ((value >> 63) as u64)
}

#[inline]
pub fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_length() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut bytes = Vec::new();
                push_varint(&mut bytes, value);
                assert_eq!(bytes.len(), varint_len(value));
                let (in_array, len) = varint_bytes(value);
                assert_eq!(bytes, in_array[..len]);
                assert_eq!(read_varint(&bytes), Some((value, &[][..])));
                assert_eq!(read_varint(&bytes[..bytes.len() - 1]), None);
            }
        }
    }

    #[test]
    fn eleven_bytes_are_no_varint() {
        assert_eq!(read_varint(&[0x80; 11]), None);
        assert_eq!(split_len_prefixed(&[5, 1, 2]), None);
        assert_eq!(
            split_len_prefixed(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            None
        );
    }
}
