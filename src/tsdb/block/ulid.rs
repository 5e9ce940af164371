//! Names of blocks.

use std::fmt;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A ULID: 48 bits of milliseconds since 1970, then 80 random ones. Written as 26 digits of
/// Crockford's base 32, by which it sorts as well. Zero stands for no block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ulid(pub u128);

const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LEN: usize = 26;
const RANDOM_BITS: u32 = 80;

impl Ulid {
    /// `millis` since 1970; of it the low 48 bits count, of `random` the low 80.
    pub fn new(millis: u64, random: u128) -> Ulid {
        let random = random & ((1 << RANDOM_BITS) - 1);
        Ulid(u128::from(millis & ((1 << 48) - 1)) << RANDOM_BITS | random)
    }

    /// When the block was made, in milliseconds since 1970.
    pub fn millis(self) -> u64 {
        (self.0 >> RANDOM_BITS) as u64
    }
}

/// No ULID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a ULID")]
pub struct NoUlid;

impl FromStr for Ulid {
    type Err = NoUlid;

    /// As for Prometheus, small letters are digits, too.
    fn from_str(text: &str) -> Result<Ulid, NoUlid> {
        let digit = |byte: u8| {
            let upper = byte.to_ascii_uppercase();
            DIGITS.iter().position(|digit| *digit == upper).map(|digit| digit as u128)
        };
        // 26 digits have two bits more than the 128 there are.
        let fits = text.len() == LEN && text.as_bytes()[0] <= b'7';
        let digits = if fits { text.bytes() } else { return Err(NoUlid) };
        let value = |value: u128, byte| Some(value << 5 | digit(byte)?);
        digits.into_iter().try_fold(0, value).map(Ulid).ok_or(NoUlid)
    }
}

impl fmt::Display for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; LEN];
        for (i, digit) in digits.iter_mut().rev().enumerate() {
            *digit = DIGITS[(self.0 >> (5 * i)) as usize & 31];
        }
        f.pad(std::str::from_utf8(&digits).unwrap_or_default())
    }
}

impl Serialize for Ulid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ulid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ulid, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_back_and_other_names_are_none() {
        for text in [
            "01M85ZRFJPEBJ4BHYM21MP7HFW",
            "00000000000000000000000000",
            "7ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        ] {
            let ulid: Ulid = text.parse().unwrap();
            assert_eq!(ulid.to_string(), text);
            assert_eq!(text.to_lowercase().parse(), Ok(ulid));
        }
        assert_eq!("7ZZZZZZZZZZZZZZZZZZZZZZZZZ".parse(), Ok(Ulid(u128::MAX)));
        for text in [
            "",
            "01M85ZRFJPEBJ4BHYM21MP7HF",
            "01M85ZRFJPEBJ4BHYM21MP7HFWW",
            "81M85ZRFJPEBJ4BHYM21MP7HFW",
            "01M85ZRFJPEBJ4BHYM21MP7HFU",
            "01M85ZRFJPEBJ4BHYM21MP7HF\u{e9}",
        ] {
            assert_eq!(text.parse::<Ulid>(), Err(NoUlid), "{text}");
        }
    }

    #[test]
    fn the_time_is_in_front() {
        let ulid = Ulid::new(1_700_000_000_123, u128::MAX);
        assert_eq!(ulid.millis(), 1_700_000_000_123);
        assert!(ulid < Ulid::new(1_700_000_000_124, 0));
        assert_eq!(Ulid::new(u64::MAX, 0).millis(), (1 << 48) - 1);
        let named: Ulid = "01M85ZRFJPEBJ4BHYM21MP7HFW".parse().unwrap();
        assert_eq!(named.millis(), 1_795_497_410_134);
    }
}
