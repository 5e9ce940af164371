//! How a forward ends that does not succeed.

use std::sync::Arc;

use tonic::Code;

use crate::peer::inflight::Bound;
use crate::wire::refused::RefusedSeries;

/// Why a forward did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// Refused for good, and everything else of the message is stored. With the refused series by
    /// their places in the message, if the peer has told them.
    #[error("peer {peer}: conflict: {detail}")]
    Conflict { peer: Arc<str>, detail: String, refused: Option<RefusedSeries> },
    /// The peer has a smaller replication factor, or does not like the tenant's name.
    #[error("peer {peer}: bad replica: {detail}")]
    BadReplica { peer: Arc<str>, detail: String },
    /// The peer said that it cannot take writes now, or the connection failed.
    #[error("peer {peer} is unavailable: {detail}")]
    Unavailable { peer: Arc<str>, detail: String },
    /// Not sent: no connection can be had.
    #[error("peer {peer} cannot be reached: {detail}")]
    Unreachable { peer: Arc<str>, detail: String },
    /// Not sent: earlier calls, of anybody or of this tenant, failed a moment ago.
    #[error("peer {peer} is backed off")]
    BackedOff { peer: Arc<str> },
    /// Not sent: too much is under way to this peer.
    #[error("peer {peer}: {bound}")]
    Full { peer: Arc<str>, bound: Bound },
    #[error("peer {peer} did not answer in time")]
    TimedOut { peer: Arc<str> },
    /// The peer said that it cannot store this tenant's series yet: it reads the tenant's log, say.
    #[error("peer {peer}: {detail}")]
    TenantNotReady { peer: Arc<str>, detail: String },
    /// Any other answer, of one tenant's storage, say. A retry may help.
    #[error("peer {peer}: {code:?}: {detail}")]
    Failed { peer: Arc<str>, code: Code, detail: String },
}

/// Why a call was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    Unreachable,
    BackedOff,
    Full,
}

impl ForwardError {
    /// Why the peer was not asked; None if it was.
    pub fn not_sent(&self) -> Option<NotSent> {
        match self {
            ForwardError::Unreachable { .. } => Some(NotSent::Unreachable),
            ForwardError::BackedOff { .. } => Some(NotSent::BackedOff),
            ForwardError::Full { .. } => Some(NotSent::Full),
            ForwardError::Conflict { .. }
            | ForwardError::BadReplica { .. }
            | ForwardError::Unavailable { .. }
            | ForwardError::TimedOut { .. }
            | ForwardError::TenantNotReady { .. }
            | ForwardError::Failed { .. } => None,
        }
    }

    /// As a gRPC client would tell it.
    pub(super) fn code(&self) -> Code {
        match self {
            ForwardError::Conflict { .. } => Code::AlreadyExists,
            ForwardError::BadReplica { .. } => Code::InvalidArgument,
            ForwardError::Unavailable { .. }
            | ForwardError::Unreachable { .. }
            | ForwardError::BackedOff { .. } => Code::Unavailable,
            ForwardError::Full { .. } => Code::ResourceExhausted,
            ForwardError::TimedOut { .. } => Code::DeadlineExceeded,
            ForwardError::TenantNotReady { .. } => Code::Internal,
            ForwardError::Failed { code, .. } => *code,
        }
    }
}
