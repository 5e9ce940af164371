//! What could not be done with some blocks, and is tried again later: after a minute at first, then
//! after twice as long each time. Others do not wait for it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::tsdb::block::ulid::Ulid;

const RETRY: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// By the blocks that it was to be done with, sorted.
#[derive(Debug, Default)]
pub(super) struct Postponed(BTreeMap<Vec<Ulid>, Wait>);

#[derive(Debug)]
struct Wait {
    until: Instant,
    /// How often it has failed.
    times: u32,
}

impl Postponed {
    /// It has failed once more; for how long it is left alone.
    pub(super) fn add(&mut self, mut blocks: Vec<Ulid>) -> Duration {
        blocks.sort_unstable();
        let wait = self.0.entry(blocks).or_insert(Wait { until: Instant::now(), times: 0 });
        let left_alone = (RETRY * (1 << wait.times.min(16))).min(RETRY_MAX);
        *wait = Wait { until: Instant::now() + left_alone, times: wait.times + 1 };
        left_alone
    }

    /// Whether a block is among some that are left alone.
    pub(super) fn holds(&self, block: Ulid) -> bool {
        let now = Instant::now();
        self.0.iter().any(|(blocks, wait)| wait.until > now && blocks.contains(&block))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets what was to be done with blocks of which one is not there any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(Ulid) -> bool) {
        self.0.retain(|blocks, _| blocks.iter().all(|block| is_there(*block)));
    }

    #[cfg(test)]
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_time_it_is_left_alone_for_twice_as_long() {
        let mut postponed = Postponed::default();
        let (one, two, three) = (Ulid(1), Ulid(2), Ulid(3));
        assert_eq!(postponed.add(vec![two, one]), RETRY);
        assert!(postponed.holds(one) && postponed.holds(two) && !postponed.holds(three));
        tokio::time::advance(RETRY).await;
        assert!(!postponed.holds(one));
        assert_eq!(postponed.add(vec![one, two]), 2 * RETRY);
        // With others it is something else.
        assert_eq!(postponed.add(vec![one, three]), RETRY);
        tokio::time::advance(RETRY).await;
        assert!(postponed.holds(one) && !postponed.holds(three));
        let waits: Vec<_> = (0..40).map(|_| postponed.add(vec![one, two])).collect();
        assert_eq!(waits[39], RETRY_MAX);
        postponed.retain(|block| block != two);
        assert!(!postponed.holds(one) && !postponed.is_empty());
    }
}
