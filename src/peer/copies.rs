//! How many copies of series were handed on: the two counters that Thanos has of it, whoever counts.
//!
//! | what | a forward | replications |
//! |---|---|---|
//! | a call to a peer | each, but for conflicts | its batches |
//! | batches of a request that are stored here | each write | its batches |
//! | series that a peer has placed here | each write | none |
//! | a request on a node without a ring | each | one |
//!
//! What was not sent is no replication, nor is a copy of a request that already is one replica.

use crate::metrics::{Counter, Registry};

/// `thanos_receive_forward_requests_total` and `thanos_receive_replications_total`.
#[derive(Clone)]
pub struct CopyCounts {
    forwards: ByResult,
    replications: ByResult,
}

#[derive(Clone)]
struct ByResult {
    success: Counter,
    error: Counter,
}

impl CopyCounts {
    pub fn new(registry: &Registry) -> CopyCounts {
        let by_result = |name, help| {
            let family = registry.counter_vec(name, help, &["result"]);
            ByResult { success: family.with(&["success"]), error: family.with(&["error"]) }
        };
        CopyCounts {
            forwards: by_result(
                "thanos_receive_forward_requests_total",
                "The number of forward requests.",
            ),
            replications: by_result(
                "thanos_receive_replications_total",
                "The number of replication operations done by the receiver.",
            ),
        }
    }

    /// Counts one write to an endpoint, be it this node itself.
    pub fn count_forward(&self, is_success: bool) {
        self.forwards.of(is_success).inc();
    }

    /// Counts as many copies of series, one for each batch.
    pub fn count_replications(&self, is_success: bool, count: u64) {
        self.replications.of(is_success).add(count);
    }
}

impl ByResult {
    fn of(&self, is_success: bool) -> &Counter {
        if is_success { &self.success } else { &self.error }
    }
}
