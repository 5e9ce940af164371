//! What is counted of new blocks, whether of a head or of other blocks.

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::{Counter, Gauge, Histogram, Registry};

pub(in crate::tsdb) struct MergeMetrics {
    pub(in crate::tsdb) done: Counter,
    pub(in crate::tsdb) failed: Counter,
    pub(super) vertical: Counter,
    duration: Histogram,
    populating: Gauge,
    /// Blocks that are being written: one of the head and one of blocks at most.
    writing: Mutex<usize>,
}

impl MergeMetrics {
    pub(super) fn new(registry: &Registry, tenant: &str) -> MergeMetrics {
        let counter = |name, help| registry.counter_vec(name, help, &["tenant"]).with(&[tenant]);
        // Heads are always cut.
        counter(
            "prometheus_tsdb_compactions_skipped_total",
            "Total number of skipped compactions due to disabled auto compaction.",
        );
        let seconds: Vec<f64> = (0..14).map(|i| f64::from(1 << i)).collect();
        MergeMetrics {
            done: counter(
                "prometheus_tsdb_compactions_total",
                "Total number of compactions that were executed for the partition.",
            ),
            failed: counter(
                "prometheus_tsdb_compactions_failed_total",
                "Total number of compactions that failed for the partition.",
            ),
            vertical: counter(
                "prometheus_tsdb_vertical_compactions_total",
                "Total number of compactions done on overlapping blocks.",
            ),
            duration: registry
                .histogram_vec(
                    "prometheus_tsdb_compaction_duration_seconds",
                    "Duration of compaction runs",
                    &["tenant"],
                    &seconds,
                )
                .with(&[tenant]),
            populating: registry
                .gauge_vec(
                    "prometheus_tsdb_compaction_populating_block",
                    "Set to 1 when a block is currently being written to the disk.",
                    &["tenant"],
                )
                .with(&[tenant]),
            writing: Mutex::new(0),
        }
    }

    /// A block is being written until this is dropped.
    pub(in crate::tsdb) fn begin(&self) -> Writing<'_> {
        let mut writing = self.writing.lock();
        *writing += 1;
        self.populating.set(1.0);
        Writing { metrics: self, begun: Instant::now() }
    }
}

pub(in crate::tsdb) struct Writing<'m> {
    metrics: &'m MergeMetrics,
    begun: Instant,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let mut writing = self.metrics.writing.lock();
        *writing -= 1;
        if *writing == 0 {
            self.metrics.populating.set(0.0);
        }
        drop(writing);
        self.metrics.duration.observe(self.begun.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_being_written_until_the_last_of_them_is_done() {
        let metrics = MergeMetrics::new(&Registry::new(), "t");
        let of_head = metrics.begin();
        let of_blocks = metrics.begin();
        drop(of_head);
        assert_eq!(metrics.populating.value(), 1.0);
        drop(of_blocks);
        assert_eq!(metrics.populating.value(), 0.0);
    }
}
