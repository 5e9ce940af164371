//! Go's `math/rand` source, an additive lagged Fibonacci generator, bit for bit: shuffle sharding
//! draws its positions from it.
//!
//! ```text
//! draw k = draw k−607 + draw k−273        of which those before the first are the start words
//! start word i = table[i] ^ x(21+3i) << 40 ^ x(22+3i) << 20 ^ x(23+3i)
//! x(n) = seed · 48271ⁿ mod 2³¹−1
//! ```
//!
//! Go makes all start words at once, which takes longer than placing the series of a small request.
//! A shard draws a few numbers, and each of them needs two words: they are made when they are
//! needed.

mod start;

use std::collections::VecDeque;

use start::{START, STATE_LEN};

/// Distance between the two words that are added.
const TAP: usize = 273;
/// Modulus of the Lehmer generator that spreads the seed.
const SEED_MODULUS: u64 = (1 << 31) - 1;
const SEED_MULTIPLIER: u64 = 48_271;
/// Values of the Lehmer generator that are thrown away first.
const SEED_WARM_UP: usize = 20;
/// Stands for seed zero, from which the Lehmer generator would never move.
const SEED_FOR_ZERO: u64 = 89_482_311;

/// What the seed is multiplied with for each value of the Lehmer generator that is used.
static MULTIPLIERS: [u32; 3 * STATE_LEN] = {
    let mut multipliers = [0; 3 * STATE_LEN];
    let mut power = 1;
    let mut i = 0;
    while i < SEED_WARM_UP + multipliers.len() {
        power = power * SEED_MULTIPLIER % SEED_MODULUS;
        if i >= SEED_WARM_UP {
            // It is below the modulus.
            multipliers[i - SEED_WARM_UP] = power as u32;
        }
        i += 1;
    }
    multipliers
};

/// The generator that `rand.NewSource(seed)` gives.
pub(crate) struct GoRand {
    /// Where the Lehmer generator begins.
    seed: u64,
    /// What was drawn last, at most as many numbers as there are start words.
    drawn: VecDeque<u64>,
}

impl GoRand {
    pub(crate) fn from_seed(seed: i64) -> GoRand {
        let seed = match seed.rem_euclid(SEED_MODULUS as i64) as u64 {
            0 => SEED_FOR_ZERO,
            seed => seed,
        };
        GoRand { seed, drawn: VecDeque::new() }
    }

    /// What `Uint64()` gives.
    pub(crate) fn next_u64(&mut self) -> u64 {
        let next = self.back(STATE_LEN).wrapping_add(self.back(TAP));
        if self.drawn.len() == STATE_LEN {
            self.drawn.pop_front();
        }
        self.drawn.push_back(next);
        next
    }

    /// The number that was drawn so many draws ago, or the start word in its place.
    fn back(&self, distance: usize) -> u64 {
        match self.drawn.len().checked_sub(distance) {
            Some(i) => self.drawn[i],
            // Only before all start words are used up.
            None => self.start_word(distance - self.drawn.len()),
        }
    }

    /// The start word so far before the first draw. Go's generator walks down its state: the first
    /// draw takes the last word, and the one a tap before.
    fn start_word(&self, before_first: usize) -> u64 {
        let i = (before_first + STATE_LEN - TAP - 1) % STATE_LEN;
        let lehmer = |j: usize| self.seed * u64::from(MULTIPLIERS[3 * i + j]) % SEED_MODULUS;
        START[i] ^ lehmer(0) << 40 ^ lehmer(1) << 20 ^ lehmer(2)
    }
}
