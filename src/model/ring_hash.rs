//! The name of a state of the rings, by which nodes see whether they have the same.

use std::fmt;

/// A hash of all that the placement of series depends on, of 48 bits: as many as a float of a metric
/// holds. [`crate::hashring::Hashring::hash`] tells what goes into it. Written as 12 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingHash(u64);

impl RingHash {
    const DIGITS: usize = 12;

    /// Of the first six bytes of a digest.
    pub fn of_digest(digest: [u8; 32]) -> RingHash {
        RingHash(digest[..6].iter().fold(0, |hash, byte| hash << 8 | u64::from(*byte)))
    }

    /// Reads what [`RingHash`] is written as. None if it is anything else.
    pub fn parse(text: &[u8]) -> Option<RingHash> {
        if text.len() != RingHash::DIGITS {
            return None;
        }
        let digit = |byte: &u8| char::from(*byte).to_digit(16).map(u64::from);
        text.iter().try_fold(0, |hash, byte| Some(hash << 4 | digit(byte)?)).map(RingHash)
    }

    /// The same as a number.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for RingHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written_and_nothing_else_is() {
        let mut digest = [0xff; 32];
        digest[..6].copy_from_slice(&[0, 0x0a, 0xb0, 0, 1, 2]);
        let hash = RingHash::of_digest(digest);
        assert_eq!(hash.to_string(), "000ab0000102");
        assert_eq!(RingHash::parse(b"000ab0000102"), Some(hash));
        for other in [&b""[..], b"000ab000010", b"000ab00001020", b"000ab000010g", b"+00ab0000102"]
        {
            assert_eq!(RingHash::parse(other), None, "{other:?}");
        }
    }
}
