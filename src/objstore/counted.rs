//! A bucket with Thanos' metrics.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::metrics::{Counter, Gauge, Histogram, Registry};
use crate::objstore::{Bucket, BucketError, Content};

/// What Thanos counts; a receiver does two of them.
const OPERATIONS: [&str; 7] =
    ["iter", "get", "get_range", "exists", "upload", "attributes", "delete"];
const WITH_BYTES: [&str; 3] = ["get", "get_range", "upload"];

const SECONDS: [f64; 14] =
    [0.001, 0.01, 0.1, 0.3, 0.6, 1.0, 3.0, 6.0, 9.0, 20.0, 30.0, 60.0, 90.0, 120.0];

/// Counts the calls of a bucket.
pub struct Counted {
    bucket: Arc<dyn Bucket>,
    clock: Arc<dyn Clock>,
    exists: Operation,
    upload: Operation,
    upload_bytes: Histogram,
    last_upload: Gauge,
}

struct Operation {
    calls: Counter,
    failures: Counter,
    seconds: Histogram,
}

impl Operation {
    async fn count<T>(
        &self,
        call: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        self.calls.inc();
        let started = Instant::now();
        let done = call.await;
        match done {
            Ok(_) => self.seconds.observe(started.elapsed().as_secs_f64()),
            Err(_) => self.failures.inc(),
        }
        done
    }
}

impl Counted {
    pub fn new(bucket: Arc<dyn Bucket>, clock: Arc<dyn Clock>, registry: &Registry) -> Counted {
        let labels = &["bucket", "operation"];
        let calls = registry.counter_vec(
            "thanos_objstore_bucket_operations_total",
            "Total number of all attempted operations against a bucket.",
            labels,
        );
        let failures = registry.counter_vec(
            "thanos_objstore_bucket_operation_failures_total",
            "Total number of operations against a bucket that failed, but were not expected to fail in \
             certain way from caller perspective. Those errors have to be investigated.",
            labels,
        );
        let seconds = registry.histogram_vec(
            "thanos_objstore_bucket_operation_duration_seconds",
            "Duration of successful operations against the bucket per operation.",
            labels,
            &SECONDS,
        );
        let fetched = registry.counter_vec(
            "thanos_objstore_bucket_operation_fetched_bytes_total",
            "Total number of bytes fetched from bucket, per operation.",
            labels,
        );
        // From 32 KiB to 1 GiB.
        let sizes: Vec<f64> = (15..=30).map(|power| f64::from(1u32 << power)).collect();
        let transferred = registry.histogram_vec(
            "thanos_objstore_bucket_operation_transferred_bytes",
            "Number of bytes transferred from/to bucket per operation.",
            labels,
            &sizes,
        );
        let last_upload = registry.gauge_vec(
            "thanos_objstore_bucket_last_successful_upload_time",
            "Second timestamp of the last successful upload to the bucket.",
            &["bucket"],
        );
        let name = bucket.name().to_owned();
        let operation = |operation| Operation {
            calls: calls.with(&[&name, operation]),
            failures: failures.with(&[&name, operation]),
            seconds: seconds.with(&[&name, operation]),
        };
        // All are there from the start, as a dashboard expects.
        OPERATIONS.into_iter().for_each(|name| drop(operation(name)));
        for operation in WITH_BYTES {
            fetched.with(&[&name, operation]);
            transferred.with(&[&name, operation]);
        }
        Counted {
            exists: operation("exists"),
            upload: operation("upload"),
            upload_bytes: transferred.with(&[&name, "upload"]),
            last_upload: last_upload.with(&[&name]),
            bucket,
            clock,
        }
    }
}

#[async_trait]
impl Bucket for Counted {
    fn name(&self) -> &str {
        self.bucket.name()
    }

    async fn exists(&self, object: &str) -> Result<bool, BucketError> {
        self.exists.count(self.bucket.exists(object)).await
    }

    async fn upload(&self, object: &str, content: Content) -> Result<(), BucketError> {
        let len = content.len();
        self.upload.count(self.bucket.upload(object, content)).await?;
        self.upload_bytes.observe(len as f64);
        self.last_upload.set((self.clock.now() / 1000) as f64);
        Ok(())
    }
}
