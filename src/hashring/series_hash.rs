//! The hash that places a series: xxHash64, seed 0, over
//!
//! ```text
//! tenant 0xff ( name 0xff value 0xff )*      labels in the order received
//! ```

use xxhash_rust::xxh64::xxh64;

/// Stands between the parts, since it occurs in no UTF-8 text.
const SEPARATOR: u8 = 0xff;

/// Hashes the series of one tenant, reusing its memory.
pub struct SeriesHasher {
    /// The tenant and a separator, then the labels of the last series.
    bytes: Vec<u8>,
    prefix_len: usize,
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

    /// Copying the parts together and hashing once is faster than hashing part by part: labels are
    /// shorter than the 32 bytes that the hash takes at a time.
    pub fn hash<'a>(&mut self, labels: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> u64 {
        self.bytes.truncate(self.prefix_len);
        for (name, value) in labels {
            self.bytes.extend_from_slice(name);
            self.bytes.push(SEPARATOR);
            self.bytes.extend_from_slice(value);
            self.bytes.push(SEPARATOR);
        }
        xxh64(&self.bytes, 0)
    }
}
