//! Why a write failed, sorted by what the caller can do about it.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::error::Stage;
use crate::hashring::PlacementError;
use crate::model::router_path::Loop;
use crate::model::tenant::{TenantId, TenantNameError};
use crate::multi_tsdb::{AppendError, TenantError};
use crate::peer::ForwardError;
use crate::tsdb::wal::SyncError;
use crate::wire::inflate::StreamError;
use crate::wire::otlp::json::JsonError;
use crate::wire::remote_write_v1::DecodeError;
use crate::wire::request_builder::TooLong;
use crate::wire::snappy::SnappyError;
use crate::write::WrittenCounts;
use crate::write::admission::Overloaded;
use crate::write::distribute::DistributeError;

/// A request that failed as a whole. What each becomes on the wire is decided by its [`Class`] in
/// `http/respond.rs`, `grpc/respond.rs` and `capnproto/respond.rs`, nowhere else.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The sender's fault: the bytes are no write request.
    #[error("{stage}: {0}", stage = .0.stage())]
    Invalid(#[from] Invalid),
    #[error("tenant: {0}")]
    TenantName(#[from] TenantNameError),
    /// A request, its declared or its inflated size, is over the cap.
    #[error("{stage}: {0}", stage = .0.stage())]
    TooLarge(#[from] TooLarge),
    /// This tenant cannot be written now, others can: it is opening, or was quarantined.
    #[error("tenant {tenant} is not ready: {cause}")]
    TenantNotReady {
        tenant: TenantId,
        #[source]
        cause: NotReady,
    },
    /// The node as a whole cannot take writes now: starting, stopping, overloaded, disk full.
    #[error("unavailable: {0}")]
    Unavailable(#[from] Unavailable),
    /// Most likely the replication factors of two nodes differ, while a change rolls out.
    #[error("replica {replica} is above the replication factor of {factor}")]
    BadReplica { replica: u64, factor: u64 },
    /// It came back to where it was, or most likely would for ever.
    #[error(
        "a write goes round in circles: {0}. Is --receive.local-endpoint missing on a node that the \
         hashring names?"
    )]
    Loop(#[from] Loop),
    /// There was no usable hashring configuration so far.
    #[error("no hashring is in force yet")]
    NoHashring,
    /// The tenant's series have no place, as the hashrings are now.
    #[error("hashring: {0}")]
    Placement(#[source] PlacementError),
    /// Too few replicas stored some of the series, and a retry may succeed. With what some of the
    /// replicas said, what the request held, and what of it has a quorum all the same.
    #[error("no quorum: {}", in_a_row(.failures))]
    NoQuorum { failures: Vec<ReplicaFailure>, series: u64, samples: u64, written: WrittenCounts },
}

/// Why bytes are no write request.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// The connection failed, or what came over it is no HTTP.
    #[error("request body: {0}")]
    Body(#[source] Box<dyn Error + Send + Sync>),
    #[error("missing Content-Type header")]
    NoContentType,
    /// What the header holds.
    #[error("{0:?} is no replica number")]
    ReplicaNumber(String),
    #[error(transparent)]
    Snappy(SnappyError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("content encoding {0:?}: send gzip, zstd, snappy or identity")]
    ContentEncoding(String),
    #[error("{0}")]
    Inflate(#[source] StreamError),
    #[error(transparent)]
    Json(JsonError),
    /// Points of OTLP, where all of them are to be taken or none.
    #[error("{0}")]
    Untranslated(String),
}

/// What of a request is over its cap. Sizes are in bytes.
#[derive(Debug, thiserror::Error)]
pub enum TooLarge {
    #[error("{bytes} bytes are over the cap of {max}")]
    Declared { bytes: u64, max: u64 },
    #[error("{bytes} bytes are over the cap of {max}")]
    Read { bytes: u64, max: u64 },
    #[error(transparent)]
    Inflated(SnappyError),
    #[error(transparent)]
    Unpacked(StreamError),
    /// Of a request of remote write 2.0 or of OTLP with the labels of each series written out.
    #[error(transparent)]
    Resolved(TooLong),
    #[error(transparent)]
    Placed(DistributeError),
    /// With nothing else in flight there would be no room for it.
    #[error("{bytes} bytes, as sent and decoded, are over the {max} that may be in flight")]
    Decoded { bytes: u64, max: u64 },
    #[error("tenant {tenant}: {cause}")]
    Record {
        tenant: TenantId,
        #[source]
        cause: AppendError,
    },
}

/// Why a tenant cannot be written now.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error(transparent)]
    Tenant(#[from] TenantError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error("its log has not taken the write within {0:?}")]
    Slow(Duration),
}

/// Why the node takes no writes now.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("not accepting writes")]
    NotAccepting,
    #[error("overload: {0}")]
    Overload(#[from] Overloaded),
    /// Not the sender's fault for certain, so it may try again.
    #[error("request body did not arrive within {0:?}")]
    SlowBody(Duration),
    #[error("{0} writes of peers are under way")]
    Placing(usize),
    #[error(transparent)]
    Storage(#[from] TenantError),
    #[error("tenant {tenant}: {cause}")]
    Append {
        tenant: TenantId,
        #[source]
        cause: AppendError,
    },
    #[error("tenant {tenant}: {cause}")]
    Sync {
        tenant: TenantId,
        #[source]
        cause: SyncError,
    },
}

/// Why a replica does not have what it was to store.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaFailure {
    #[error("this node: {0}")]
    Here(#[source] Box<WriteError>),
    #[error("this node did not store it in time")]
    SlowHere,
    #[error(transparent)]
    Peer(#[from] ForwardError),
    /// The message to the peer could not be made, for this reason.
    #[error("{0}")]
    NotMade(String),
    /// Of all replicas that have not answered.
    #[error("no answer in time")]
    Silent,
}

fn in_a_row(failures: &[ReplicaFailure]) -> String {
    let texts: Vec<_> = failures.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl Invalid {
    fn stage(&self) -> Stage {
        match self {
            Invalid::Body(_) => Stage::Read,
            Invalid::NoContentType => Stage::Version,
            Invalid::ReplicaNumber(_) => Stage::ReplicaHeader,
            Invalid::Snappy(_) => Stage::Snappy,
            Invalid::Decode(_) => Stage::Decode,
            Invalid::ContentEncoding(_) => Stage::MediaType,
            Invalid::Inflate(_) => Stage::Inflate,
            Invalid::Json(_) => Stage::Json,
            Invalid::Untranslated(_) => Stage::Translate,
        }
    }
}

impl TooLarge {
    fn stage(&self) -> Stage {
        match self {
            TooLarge::Declared { .. } => Stage::Size,
            TooLarge::Read { .. } => Stage::Read,
            TooLarge::Inflated(_) => Stage::Snappy,
            TooLarge::Unpacked(_) => Stage::Inflate,
            TooLarge::Placed(_) => Stage::Place,
            TooLarge::Resolved(_) | TooLarge::Decoded { .. } => Stage::Decode,
            TooLarge::Record { .. } => Stage::Log,
        }
    }
}

impl WriteError {
    /// Of a request that takes `held` bytes and would take more: a retry of one that is over the whole
    /// budget would be refused as well.
    pub fn no_room(held: u64, over: Overloaded) -> WriteError {
        let (bytes, max) = (held + over.bytes, over.max);
        if bytes > max { TooLarge::Decoded { bytes, max }.into() } else { over.into() }
    }
}

impl From<Overloaded> for WriteError {
    fn from(error: Overloaded) -> WriteError {
        Unavailable::Overload(error).into()
    }
}

/// What a failure calls for, whoever is told. Each way of answering has a code for each of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The bytes must be other ones.
    Malformed,
    /// The tenant or the replica must be named otherwise.
    Misnamed,
    /// The request must be smaller.
    TooLarge,
    /// A retry may succeed once this tenant is open.
    TenantNotReady,
    /// A retry may succeed, of any tenant's write.
    Unavailable,
    /// A retry may succeed once the rings are others.
    Misplaced,
}

impl WriteError {
    pub fn class(&self) -> Class {
        match self {
            WriteError::Invalid(_) => Class::Malformed,
            WriteError::TenantName(_) | WriteError::BadReplica { .. } => Class::Misnamed,
            WriteError::TooLarge(_) => Class::TooLarge,
            WriteError::TenantNotReady { .. } => Class::TenantNotReady,
            WriteError::Unavailable(_) | WriteError::NoHashring | WriteError::NoQuorum { .. } => {
                Class::Unavailable
            }
            WriteError::Loop(_) | WriteError::Placement(_) => Class::Misplaced,
        }
    }

    /// Whether it is for the operator to see to, rather than for the sender.
    pub fn is_ours(&self) -> bool {
        match self.class() {
            Class::TenantNotReady | Class::Unavailable | Class::Misplaced => true,
            Class::Malformed | Class::Misnamed | Class::TooLarge => false,
        }
    }
}

/// Why one series or sample was refused for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Older than the newest sample of its series.
    OutOfOrder,
    /// Older than the head still takes.
    OutOfBounds,
    /// Newer than `--tsdb.too-far-in-future.time-window` allows.
    TooFarInFuture,
    /// Another value for a time that already has one.
    DuplicateForTimestamp,
    /// A series without any label.
    EmptyLabels,
    /// A label without name, or (on `/api/v1/receive`) without value.
    EmptyLabel,
    DuplicateLabel,
    OutOfOrderLabels,
    /// On `/api/v1/write`: no metric name, an empty name, or bytes that are not UTF-8.
    InvalidLabels,
    /// More labels, or longer ones, than the caps allow.
    TooManyLabels,
    /// A native histogram that contradicts itself, or is longer than any is to be.
    InvalidHistogram,
    /// An exemplar older than the newest one of its series.
    ExemplarOutOfOrder,
    /// An exemplar whose labels have more characters than they may.
    ExemplarTooLong,
    /// The tenant or node is at its cap of series.
    TooManySeries,
    /// A histogram with custom buckets that a peer sent over Cap'n Proto, where it has no bounds.
    CustomBoundsLost,
}

impl Reason {
    /// Every reason, in the order in which an answer lists them.
    pub const ALL: [Reason; 15] = [
        Reason::OutOfOrder,
        Reason::OutOfBounds,
        Reason::TooFarInFuture,
        Reason::DuplicateForTimestamp,
        Reason::EmptyLabels,
        Reason::EmptyLabel,
        Reason::DuplicateLabel,
        Reason::OutOfOrderLabels,
        Reason::InvalidLabels,
        Reason::TooManyLabels,
        Reason::InvalidHistogram,
        Reason::ExemplarOutOfOrder,
        Reason::ExemplarTooLong,
        Reason::TooManySeries,
        Reason::CustomBoundsLost,
    ];

    /// The number by which nodes tell it to one another. Numbers stay as they are for ever.
    pub fn code(self) -> u8 {
        match self {
            Reason::OutOfOrder => 1,
            Reason::OutOfBounds => 2,
            Reason::TooFarInFuture => 3,
            Reason::DuplicateForTimestamp => 4,
            Reason::EmptyLabels => 5,
            Reason::EmptyLabel => 6,
            Reason::DuplicateLabel => 7,
            Reason::OutOfOrderLabels => 8,
            Reason::InvalidLabels => 9,
            Reason::TooManyLabels => 10,
            // 11 was that of histograms when they were not stored.
            Reason::InvalidHistogram => 14,
            Reason::ExemplarOutOfOrder => 15,
            Reason::ExemplarTooLong => 16,
            Reason::TooManySeries => 12,
            Reason::CustomBoundsLost => 13,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::OutOfOrder => "out of order sample",
            Reason::OutOfBounds => "out of bounds",
            Reason::TooFarInFuture => "too far in the future",
            Reason::DuplicateForTimestamp => "duplicate sample for timestamp",
            Reason::EmptyLabels => "series without labels",
            Reason::EmptyLabel => "empty label name or value",
            Reason::DuplicateLabel => "duplicate label name",
            Reason::OutOfOrderLabels => "labels out of order",
            Reason::InvalidLabels => "invalid metric name or labels",
            Reason::TooManyLabels => "labels over the cap",
            Reason::InvalidHistogram => "invalid native histogram",
            Reason::ExemplarOutOfOrder => "out of order exemplar",
            Reason::ExemplarTooLong => "exemplar labels of more than 128 characters",
            Reason::TooManySeries => "series over the cap",
            Reason::CustomBoundsLost => "histogram buckets whose bounds Cap'n Proto has lost",
        }
    }
}

/// Refused series and samples by reason, with one example series each. Bounded: the example is cut.
#[derive(Debug, Default)]
pub struct Refusals {
    /// In the order of the reasons' numbers.
    by_reason: Vec<Refused>,
    /// What other nodes said that refused series. They tell no counts.
    replicas: Vec<Box<str>>,
}

#[derive(Debug)]
struct Refused {
    reason: Reason,
    count: u64,
    example: Box<str>,
}

/// An example series longer than this is cut.
const EXAMPLE_BYTES_MAX: usize = 1024;

impl Refusals {
    /// Counts `count` refusals; `example` is asked for only if the reason has none yet.
    pub fn add(&mut self, reason: Reason, count: u64, example: impl FnOnce() -> String) {
        match self.by_reason.binary_search_by_key(&reason, |refused| refused.reason) {
            Ok(i) => self.by_reason[i].count += count,
            Err(i) => {
                let mut example = example();
                if example.len() > EXAMPLE_BYTES_MAX {
                    let end = example.floor_char_boundary(EXAMPLE_BYTES_MAX);
                    example.truncate(end);
                    example.push('…');
                }
                let example = example.into_boxed_str();
                self.by_reason.insert(i, Refused { reason, count, example });
            }
        }
    }

    /// Notes what another node said that refused some of the series.
    pub fn add_replica(&mut self, said: String) {
        self.replicas.push(said.into_boxed_str());
    }

    /// Takes in what `other` counted.
    pub fn merge(&mut self, other: Refusals) {
        for Refused { reason, count, example } in other.by_reason {
            self.add(reason, count, || example.into());
        }
        self.replicas.extend(other.replicas);
    }

    pub fn is_empty(&self) -> bool {
        self.total() == 0 && self.replicas.is_empty()
    }

    /// Those that this node counted.
    pub fn total(&self) -> u64 {
        self.by_reason.iter().map(|refused| refused.count).sum()
    }

    /// Reason, count and example, for reasons that occurred.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64, &str)> {
        self.by_reason.iter().map(|refused| (refused.reason, refused.count, &*refused.example))
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (reason, count, example)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{} {count} ({example})", reason.as_str())?;
        }
        for (i, said) in self.replicas.iter().enumerate() {
            if i > 0 || self.total() > 0 {
                f.write_str("; ")?;
            }
            f.write_str(said)?;
        }
        Ok(())
    }
}

/// Without any reason, of a request that held so much.
#[cfg(test)]
pub(crate) fn no_quorum(series: u64, samples: u64) -> WriteError {
    let written = WrittenCounts::default();
    WriteError::NoQuorum { failures: Vec::new(), series, samples, written }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_counts_and_the_first_example_of_each_reason() {
        let mut refusals = Refusals::default();
        refusals.add(Reason::OutOfBounds, 1, || "{a=\"1\"}".into());
        refusals.add(Reason::OutOfOrder, 2, || "{a=\"2\"}".into());
        refusals.add(Reason::OutOfBounds, 1, || unreachable!("has an example"));
        let text = refusals.to_string();
        assert_eq!(text, "out of order sample 2 ({a=\"2\"}); out of bounds 2 ({a=\"1\"})");
        assert_eq!(refusals.total(), 4);
    }

    #[test]
    fn reasons_are_listed_in_the_order_of_their_numbers() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
    }
}
