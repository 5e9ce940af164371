//! Go's `math/rand` source, an additive lagged Fibonacci generator, bit for bit: shuffle sharding
//! draws its positions from it.

mod start;

use start::{START, STATE_LEN};

/// Distance between the two words that are added.
const TAP: usize = 273;
/// Modulus of the Lehmer generator that spreads the seed.
const SEED_MODULUS: i64 = (1 << 31) - 1;
const SEED_MULTIPLIER: u64 = 48_271;
/// Values of the Lehmer generator that are thrown away first.
const SEED_WARM_UP: usize = 20;
/// Stands for seed zero, from which the Lehmer generator would never move.
const SEED_FOR_ZERO: u64 = 89_482_311;

/// The generator that `rand.NewSource(seed)` gives.
pub(crate) struct GoRand {
    state: Box<[u64; STATE_LEN]>,
    tap: usize,
    feed: usize,
}

impl GoRand {
    pub(crate) fn from_seed(seed: i64) -> GoRand {
        let mut x = match seed.rem_euclid(SEED_MODULUS) as u64 {
            0 => SEED_FOR_ZERO,
            x => x,
        };
        let mut next = || {
            x = x * SEED_MULTIPLIER % SEED_MODULUS as u64;
            x
        };
        for _ in 0..SEED_WARM_UP {
            next();
        }
        let mut state = Box::new(START);
        for word in state.iter_mut() {
            *word ^= next() << 40;
            *word ^= next() << 20;
            *word ^= next();
        }
        GoRand { state, tap: 0, feed: STATE_LEN - TAP }
    }

    /// What `Uint64()` gives.
    pub(crate) fn next_u64(&mut self) -> u64 {
        let before = |i: usize| if i == 0 { STATE_LEN - 1 } else { i - 1 };
        self.tap = before(self.tap);
        self.feed = before(self.feed);
        let sum = self.state[self.feed].wrapping_add(self.state[self.tap]);
        self.state[self.feed] = sum;
        sum
    }
}
