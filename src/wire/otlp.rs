//! OTLP metrics, `opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceRequest`, into the
//! form of remote write 1.0 that all the rest reads: names, labels and series are those that Thanos
//! makes of them.
//!
//! ```text
//! Request          1 resource metrics*
//! ResourceMetrics  1 resource { 1 attributes* }   2 scope metrics* { 2 metrics* }
//! Metric           1 name   3 unit   5 gauge   7 sum   9 histogram   10 exponential   11 summary
//! gauge, ...       1 points*   2 temporality   3 is monotonic
//! KeyValue         1 key    2 value
//! AnyValue         1 string   2 bool   3 int   4 double   5 array   6 key-value list   7 bytes
//! ```
//!
//! JSON is brought into protobuf first ([`json`]), so there is one reading of both. What a request
//! may hold is bounded point by point ([`caps`]), and what comes out is judged by its length before
//! it takes memory: the attributes of a resource go to each of its points.

pub mod json;
mod labels;
mod names;
mod points;
mod schema;
mod spans;
mod translate;
mod value;

pub use translate::{Settings, Translated, Untranslated, translate};

use crate::wire::remote_write_v1::DecodeError;
use crate::wire::request_builder::TooLong;

/// What one point, or one resource, may hold: far more than any in earnest.
pub mod caps {
    /// Attributes, and values in those that are lists.
    pub const VALUES_MAX: usize = 10_000;
    /// Bytes of the text of all attributes.
    pub const TEXT_BYTES_MAX: usize = 1 << 20;
    /// Buckets of a histogram, quantiles of a summary.
    pub const BUCKETS_MAX: usize = 65_536;
    pub const EXEMPLARS_MAX: usize = 1_000;
    /// Lists within lists.
    pub const DEPTH_MAX: usize = 32;
}

/// Why a request is not taken at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OtlpError {
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// Why a point, or all of a metric, cannot be a series of Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untranslatable {
    #[error("invalid temporality for metric {0:?}: only cumulative ones can be stored")]
    Temporality(String),
    #[error("empty data points: {0:?} is dropped")]
    NoPoints(String),
    #[error("invalid label name: {0:?}")]
    LabelName(String),
    #[error("metric {metric:?}: a scale of {scale}, and at least -4 is needed")]
    Scale { metric: String, scale: i32 },
    #[error("metric {metric:?}: more than {max} {what} in a point")]
    TooMany { metric: String, what: &'static str, max: usize },
}
