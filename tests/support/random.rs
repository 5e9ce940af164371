//! Randomness that can be had again.

use std::time::{SystemTime, UNIX_EPOCH};

/// What every suite takes its seed from, to play a failure again.
const VARIABLE: &str = "RINGEST_SEED";

/// A seed, printed for a failure's report.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var(VARIABLE) {
        Ok(given) => given.parse().unwrap_or_else(|error| panic!("{VARIABLE}={given}: {error}")),
        Err(_) => {
            SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64
        }
    };
    println!("{VARIABLE}={seed}");
    seed
}

/// SplitMix64: enough randomness for tests, from one number.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
