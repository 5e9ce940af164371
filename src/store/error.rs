//! Why a query cannot be answered.

use std::time::Duration;

use crate::error::Stage;
use crate::model::matcher::RegexError;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::TenantError;
use crate::store::selectors::ExpressionError;
use crate::tsdb::chunkenc::ChunkError;
use crate::tsdb::error::ReadError;

/// A query that failed as a whole, sorted by what its sender can do about it. What each becomes on
/// the wire is decided in `grpc/respond.rs` and, for remote read, in `http/read.rs`.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The sender's fault: the query selects everything.
    #[error("no matchers specified")]
    NoMatchers,
    /// A query for exemplars names series by external labels alone.
    #[error("get exemplars for tenant {tenant}: no matchers specified (excluding external labels)")]
    NoSelectors { tenant: String },
    /// An expression whose selectors are asked for is none.
    #[error("{0}")]
    Expression(#[from] ExpressionError),
    #[error("unrecognized label matcher type {0}")]
    UnknownMatcherType(i32),
    #[error("{count} matchers exceed the {limit} that one query may have")]
    TooManyMatchers { count: usize, limit: usize },
    #[error(transparent)]
    Regex(#[from] RegexError),
    #[error("label name parameter cannot be empty")]
    EmptyLabelName,
    #[error("response batch size {0} is negative")]
    NegativeBatchSize(i64),
    #[error("limit {0} is negative")]
    NegativeLimit(i64),
    /// The bytes are no query.
    #[error("{stage}: {detail}")]
    Invalid { stage: Stage, detail: String },
    /// A part of the answer is missing, and the sender wants all or nothing.
    #[error("{0}")]
    Partial(String),
    /// The answer of this query alone is over a cap; a narrower query is answered.
    #[error("the answer exceeds {limit} bytes, ask for less or for a streamed answer")]
    TooLarge { limit: usize },
    /// Reads under way hold all the memory that reads may use. A retry may succeed.
    #[error("too many reads are under way")]
    Overloaded,
    /// The tenant has data that cannot be read now. A retry may succeed.
    #[error("tenant {tenant}: {reason}")]
    Unavailable { tenant: TenantId, reason: TenantError },
    /// The question did not come in time.
    #[error("the request did not arrive within {0:?}")]
    Slow(Duration),
    #[error("the client's deadline has passed")]
    DeadlineExceeded,
    /// Its reader has stopped reading.
    #[error("nothing was taken of the answer for {0:?}")]
    NotTaken(Duration),
    /// What is stored cannot be decoded.
    #[error(transparent)]
    Damaged(#[from] ChunkError),
    /// What is stored cannot be read now, or not any more.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
    /// The work was given up: the process is stopping, or a defect of ours.
    #[error("the query was interrupted")]
    Interrupted,
}
