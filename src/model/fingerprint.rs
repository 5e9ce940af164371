//! Label bytes to a number that stands for them.
//!
//! No two series are told apart by anything else, so whoever can choose labels must not be able to
//! choose two with one fingerprint. That is proven for a *universal* hash, whose key nobody knows
//! and whose values nobody sees: fingerprints are kept in memory only, and are the order of nothing.
//!
//! Bytes are taken sixteen at a time, as two words `x` and `y`, the last sixteen overlapping those
//! before. NH of UMAC (Black et al., CRYPTO '99; RFC 4418), with words of 64 bits, in two lanes whose
//! keys are shifted by a pair (Toeplitz):
//!
//! ```text
//! lane₀ = Σ (x + k₀)(y + k₁)      mod 2¹²⁸,  k₀, k₁ from 2i on for the i-th sixteen
//! lane₁ = Σ (x + k₂)(y + k₃)      mod 2¹²⁸
//! high  = upper half of ( m₀·lower half + m₁·upper half + m₂·length  of lane₀ )  mod 2¹²⁸
//! low   = likewise of lane₁, its upper 32 bits
//! ```
//!
//! Two different keys agree with a probability of at most 2⁻⁶³ in one lane and 2⁻³¹·⁹ in the other,
//! 2⁻⁹⁴ in all: among a million series that were chosen to collide, any two do with 2⁻⁵⁵. Keys
//! longer than the secret reaches are hashed with SipHash-2-4.

use std::hash::Hasher as _;
use std::sync::Arc;

use siphasher::sip128::{Hasher128 as _, SipHasher24};

/// What stands for the labels of a series, in this process alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    pub high: u64,
    pub low: u32,
}

/// Bytes that make a step.
const STEP: usize = 16;
/// Longer keys are rare, and hashed otherwise.
const STEPS_MAX: usize = 64;

/// Makes fingerprints with secrets of its own.
#[derive(Clone)]
pub struct Fingerprinter(Arc<Secrets>);

struct Secrets {
    /// A pair for each step, and one more for the second lane.
    steps: [[u64; 2]; STEPS_MAX + 1],
    last: [[u128; 3]; 2],
    sip: [u8; 16],
}

impl Fingerprinter {
    /// With secrets that the system draws.
    pub fn random() -> Fingerprinter {
        let steps = std::array::from_fn(|_| [draw(), draw()].map(u64::from_le_bytes));
        let last = std::array::from_fn(|_| std::array::from_fn(|_| u128::from_le_bytes(draw())));
        Fingerprinter(Arc::new(Secrets { steps, last, sip: draw() }))
    }

    #[inline]
    pub fn of(&self, key: &[u8]) -> Fingerprint {
        let secrets = &*self.0;
        let (steps, _) = key.as_chunks::<STEP>();
        if steps.len() >= STEPS_MAX {
            return secrets.of_long(key);
        }
        let mut lanes = [0_u128; 2];
        let mut secret = secrets.steps[0];
        let mut take = |step: &[u8; STEP], next: [u64; 2]| {
            let words = u128::from_le_bytes(*step);
            let (x, y) = (words as u64, (words >> 64) as u64);
            lanes[0] = lanes[0].wrapping_add(product(x, y, secret));
            lanes[1] = lanes[1].wrapping_add(product(x, y, next));
            secret = next;
        };
        for (step, next) in steps.iter().zip(&secrets.steps[1..]) {
            take(step, *next);
        }
        if !key.len().is_multiple_of(STEP) {
            take(&last_step(key), secrets.steps[steps.len() + 1]);
        }
        let [high, low] = [0, 1].map(|i| reduce(lanes[i], key.len(), &secrets.last[i]));
        Fingerprint { high, low: (low >> 32) as u32 }
    }

    /// [`Fingerprint::high`] of a key, at little more than half of the cost.
    #[inline]
    pub fn high(&self, key: &[u8]) -> u64 {
        match key.len() / STEP >= STEPS_MAX {
            true => self.0.of_long(key).high,
            false => self.0.one::<0>(key),
        }
    }

    /// [`Fingerprint::low`] of a key, likewise.
    #[inline]
    pub fn low(&self, key: &[u8]) -> u32 {
        match key.len() / STEP >= STEPS_MAX {
            true => self.0.of_long(key).low,
            false => (self.0.one::<1>(key) >> 32) as u32,
        }
    }
}

impl Secrets {
    /// One lane of a key that the secrets reach.
    #[inline]
    fn one<const LANE: usize>(&self, key: &[u8]) -> u64 {
        let (steps, _) = key.as_chunks::<STEP>();
        let secrets = &self.steps[LANE..];
        let take = |lane: u128, (step, secret): (&[u8; STEP], &[u64; 2])| {
            let words = u128::from_le_bytes(*step);
            lane.wrapping_add(product(words as u64, (words >> 64) as u64, *secret))
        };
        let mut lane = steps.iter().zip(secrets).fold(0, take);
        if !key.len().is_multiple_of(STEP) {
            lane = take(lane, (&last_step(key), &secrets[steps.len()]));
        }
        reduce(lane, key.len(), &self.last[LANE])
    }

    #[cold]
    fn of_long(&self, key: &[u8]) -> Fingerprint {
        let mut hasher = SipHasher24::new_with_key(&self.sip);
        hasher.write(key);
        let hash = hasher.finish128();
        Fingerprint { high: hash.h1, low: (hash.h2 >> 32) as u32 }
    }
}

/// A key's last bytes, of which some may have been taken before. A shorter one is filled up.
#[inline]
fn last_step(key: &[u8]) -> [u8; STEP] {
    key.last_chunk().copied().unwrap_or_else(|| {
        let mut step = [0; STEP];
        step[..key.len()].copy_from_slice(key);
        step
    })
}

#[inline(always)]
fn product(x: u64, y: u64, secret: [u64; 2]) -> u128 {
    u128::from(x.wrapping_add(secret[0])) * u128::from(y.wrapping_add(secret[1]))
}

/// A lane to 64 bits (Dietzfelbinger's multiply-shift of vectors). Keys of another length are
/// another vector, whatever their sums.
#[inline(always)]
fn reduce(lane: u128, len: usize, secret: &[u128; 3]) -> u64 {
    let words = [lane as u64, (lane >> 64) as u64, len as u64];
    let products = words.iter().zip(secret).map(|(word, m)| m.wrapping_mul(u128::from(*word)));
    (products.fold(0, u128::wrapping_add) >> 64) as u64
}

fn draw<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_that_differ_anywhere_have_other_fingerprints() {
        let fingerprinter = Fingerprinter::random();
        let mut seen = HashSet::new();
        for len in (0..80).chain(STEP * STEPS_MAX - 2..STEP * STEPS_MAX + 3) {
            let key = vec![0; len];
            assert!(seen.insert(fingerprinter.of(&key)), "{len} zeros");
            for at in 0..len {
                let mut other = key.clone();
                other[at] = 1;
                assert!(seen.insert(fingerprinter.of(&other)), "byte {at} of {len}");
            }
            let Fingerprint { high, low } = fingerprinter.of(&key);
            assert_eq!((fingerprinter.high(&key), fingerprinter.low(&key)), (high, low));
        }
        let highs: HashSet<_> = seen.iter().map(|found| found.high).collect();
        assert_eq!(highs.len(), seen.len(), "each lane tells them apart");
    }

    #[test]
    fn a_fingerprint_is_of_its_secrets() {
        let (one, other) = (Fingerprinter::random(), Fingerprinter::random());
        for len in [1, 3, 16, 100, 5000] {
            let key = vec![7; len];
            assert!(one.of(&key) == one.clone().of(&key) && one.of(&key) != other.of(&key));
        }
    }

    /// What the definition says, one product after another.
    #[test]
    fn a_fingerprint_is_what_the_definition_says() {
        let fingerprinter = Fingerprinter::random();
        let secrets = &fingerprinter.0;
        let key: Vec<u8> = (0..45).collect();
        let mut lanes = [0_u128; 2];
        for (i, start) in [0, 16, 29].into_iter().enumerate() {
            let word = |at: usize| u64::from_le_bytes(key[at..at + 8].try_into().unwrap());
            let flat = secrets.steps.as_flattened();
            for (lane, sum) in lanes.iter_mut().enumerate() {
                let at = 2 * (i + lane);
                let factors = [word(start), word(start + 8)];
                let x = factors[0].wrapping_add(flat[at]);
                let y = factors[1].wrapping_add(flat[at + 1]);
                *sum = sum.wrapping_add(u128::from(x) * u128::from(y));
            }
        }
        let [high, low] = [0, 1].map(|i| {
            let m = secrets.last[i];
            let sum = m[0]
                .wrapping_mul(lanes[i] & u128::from(u64::MAX))
                .wrapping_add(m[1].wrapping_mul(lanes[i] >> 64))
                .wrapping_add(m[2].wrapping_mul(45));
            (sum >> 64) as u64
        });
        assert!(fingerprinter.of(&key) == Fingerprint { high, low: (low >> 32) as u32 });
    }
}
