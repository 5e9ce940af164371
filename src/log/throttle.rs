//! Lines that the outside can cause as often as it likes, said now and then.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Says of each kind of line whether it is its time. Kinds are few and known: none is forgotten.
pub struct Throttle<K> {
    kinds: Mutex<HashMap<K, Said>>,
}

struct Said {
    at: Instant,
    /// Times that it was not its time since then.
    unsaid: u64,
}

/// A kind is told once in this time. Senders and peers repeat what failed.
const INTERVAL: Duration = Duration::from_secs(10);

impl<K> Default for Throttle<K> {
    fn default() -> Throttle<K> {
        Throttle { kinds: Mutex::default() }
    }
}

impl<K: Eq + Hash> Throttle<K> {
    /// How many lines of this kind were left out since the last one, if one may be said now.
    pub fn pass(&self, kind: K) -> Option<u64> {
        self.pass_at(kind, Instant::now())
    }

    fn pass_at(&self, kind: K, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock();
        let Some(said) = kinds.get_mut(&kind) else {
            kinds.insert(kind, Said { at: now, unsaid: 0 });
            return Some(0);
        };
        if now.duration_since(said.at) < INTERVAL {
            said.unsaid += 1;
            return None;
        }
        said.at = now;
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_once_in_the_interval_and_the_others_are_counted() {
        let throttle = Throttle::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(throttle.pass_at("a", begin), Some(0));
        assert_eq!(throttle.pass_at("a", at(1)), None);
        assert_eq!(throttle.pass_at("b", at(1)), Some(0));
        assert_eq!(throttle.pass_at("a", at(9)), None);
        assert_eq!(throttle.pass_at("a", at(10)), Some(2));
        assert_eq!(throttle.pass_at("a", at(20)), Some(0));
    }
}
