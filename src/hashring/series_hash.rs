//! The hash that places a series: xxHash64, seed 0, over
//!
//! ```text
//! tenant 0xff ( name 0xff value 0xff )*      labels in the order received
//! ```

use xxhash_rust::xxh64::xxh64;

/// Stands between the parts, since it occurs in no UTF-8 text.
const SEPARATOR: u8 = 0xff;

/// Copies are made in steps of this many bytes: a copy of a fixed length is two loads and two
/// stores, one of any length is a call, and most names and values are shorter than a step.
const STEP_BYTES: usize = 32;

/// Hashes the series of one tenant, reusing its memory.
pub struct SeriesHasher {
    /// The tenant and a separator, then room for the labels of a series.
    bytes: Vec<u8>,
    prefix_len: usize,
}

/// The labels of one series on their way to its hash. Copying the parts together and hashing once is
/// faster than hashing part by part: they are shorter than the 32 bytes that the hash takes at a
/// time.
pub struct SeriesText<'h> {
    bytes: &'h mut Vec<u8>,
    len: usize,
}

impl SeriesHasher {
    pub fn for_tenant(tenant: &[u8]) -> SeriesHasher {
        let mut hasher = SeriesHasher { bytes: Vec::new(), prefix_len: 0 };
        hasher.set_tenant(tenant);
        hasher
    }

    /// Goes on with another tenant.
    pub fn set_tenant(&mut self, tenant: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(tenant);
        self.bytes.push(SEPARATOR);
        self.prefix_len = self.bytes.len();
    }

    /// Begins the next series.
    #[inline]
    pub fn begin(&mut self) -> SeriesText<'_> {
        SeriesText { len: self.prefix_len, bytes: &mut self.bytes }
    }

    pub fn hash<'a>(&mut self, labels: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> u64 {
        let mut text = self.begin();
        for (name, value) in labels {
            text.push(name, name.len());
            text.push(value, value.len());
        }
        text.finish()
    }
}

impl SeriesText<'_> {
    /// Adds a name or a value: the first `len` bytes of `from`. The bytes behind them are of no
    /// account, but where there are enough of them, copying takes a fraction of the time.
    #[inline(always)]
    pub fn push(&mut self, from: &[u8], len: usize) {
        let end = self.len + len;
        // The last step may reach so far, and the separator is one more.
        if end + STEP_BYTES > self.bytes.len() {
            self.grow(end + STEP_BYTES);
        }
        let mut done = 0;
        while done < len {
            let to = self.bytes.get_mut(self.len + done..self.len + done + STEP_BYTES);
            match (from.get(done..done + STEP_BYTES), to) {
                (Some(from), Some(to)) => to.copy_from_slice(from),
                _ => return self.push_exactly(from.get(..len).unwrap_or(from)),
            }
            done += STEP_BYTES;
        }
        self.bytes[end] = SEPARATOR;
        self.len = end + 1;
    }

    /// Near the end of the bytes at hand.
    #[cold]
    fn push_exactly(&mut self, part: &[u8]) {
        let end = self.len + part.len();
        self.bytes[self.len..end].copy_from_slice(part);
        self.bytes[end] = SEPARATOR;
        self.len = end + 1;
    }

    #[cold]
    fn grow(&mut self, len: usize) {
        self.bytes.resize(len.next_power_of_two().max(1024), 0);
    }

    #[inline(always)]
    pub fn finish(self) -> u64 {
        xxh64(&self.bytes[..self.len], 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_hash_is_that_of_the_parts_put_together(
            tenant in "[a-z]{0,40}",
            all in prop::collection::vec(
                prop::collection::vec(
                    (
                        prop::collection::vec(any::<u8>(), 0..80),
                        prop::collection::vec(any::<u8>(), 0..400),
                    ),
                    0..12,
                ),
                1..4,
            ),
            behind in 0usize..80,
        ) {
            let mut hasher = SeriesHasher::for_tenant(tenant.as_bytes());
            for labels in all {
                let mut plain = [tenant.as_bytes(), &[0xff]].concat();
                let mut text = hasher.begin();
                for (name, value) in &labels {
                    for part in [name, value] {
                        plain.extend_from_slice(part);
                        plain.push(0xff);
                        let ahead = [&part[..], &vec![7; behind]].concat();
                        text.push(&ahead, part.len());
                    }
                }
                prop_assert_eq!(text.finish(), xxh64(&plain, 0));
                let pairs = labels.iter().map(|(name, value)| (&name[..], &value[..]));
                prop_assert_eq!(hasher.hash(pairs), xxh64(&plain, 0));
            }
        }
    }
}
