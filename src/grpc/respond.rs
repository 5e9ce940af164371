//! Errors to gRPC status; nowhere else.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::door::heads::HeadError;
use crate::grpc::remote_write::CallError;
use crate::store::error::QueryError;
use crate::wire::grpc::{MessageError, TENANT_NOT_READY};
use crate::wire::shape::ShapeError;
use crate::write::error::{Class, WriteError};
use crate::write::peer_writes::PeerWriteError;

/// What a querier is told.
pub fn query(error: &QueryError) -> Status {
    let code = match error {
        QueryError::NoMatchers
        | QueryError::UnknownMatcherType(_)
        | QueryError::TooManyMatchers { .. }
        | QueryError::Regex(_)
        | QueryError::EmptyLabelName
        | QueryError::NegativeBatchSize(_)
        | QueryError::NegativeLimit(_)
        | QueryError::Invalid { .. } => Code::InvalidArgument,
        QueryError::Partial(_) | QueryError::NoSelectors { .. } => Code::Aborted,
        QueryError::TooLarge { .. } | QueryError::Overloaded => Code::ResourceExhausted,
        QueryError::Unavailable { .. } | QueryError::Unreadable(_) => Code::Unavailable,
        QueryError::Slow(_) | QueryError::DeadlineExceeded | QueryError::NotTaken(_) => {
            Code::DeadlineExceeded
        }
        QueryError::Damaged(_) => Code::DataLoss,
        // So answers Thanos, whoever's fault it is.
        QueryError::Expression(_) | QueryError::Interrupted => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// What the sender of a question is told that has more of something than one may have.
pub fn shape(error: &ShapeError) -> Status {
    match error {
        ShapeError::Malformed(_) => undecodable(error),
        ShapeError::TooMany { .. } => Status::invalid_argument(error.to_string()),
    }
}

/// What the sender of bytes is told that are no message, as grpc-go tells it.
pub fn undecodable(error: &impl std::fmt::Display) -> Status {
    Status::internal(format!("grpc: error unmarshalling request: {error}"))
}

/// What a client of the Status API is told, where Thanos knows no code for a bad matcher.
pub fn statistics(error: &QueryError) -> Status {
    match error {
        QueryError::Regex(_) | QueryError::UnknownMatcherType(_) => {
            Status::unknown(format!("failed to convert matchers: {error}"))
        }
        _ => query(error),
    }
}

/// What a peer is told that writes to us. A Thanos router takes `AlreadyExists` for final and
/// retries everything else; on `Unavailable` it also backs off the whole peer, for all tenants,
/// hence that is said for the node only. That one tenant is not ready is told to a peer of ours by a
/// header.
pub fn write(error: &CallError) -> Status {
    let code = match error {
        CallError::Overloaded(_) | CallError::Slow(_) => Code::Unavailable,
        CallError::Body(_) | CallError::Interrupted => Code::Internal,
        CallError::Message(error) => of_message(error),
        CallError::Write(error) => match error {
            PeerWriteError::Refused { .. } => Code::AlreadyExists,
            PeerWriteError::BadReplica { .. } | PeerWriteError::TenantName(_) => {
                Code::InvalidArgument
            }
            PeerWriteError::Malformed(_) | PeerWriteError::NotUnderstood { .. } => Code::Internal,
            PeerWriteError::Write(error) => match error.class() {
                Class::Misnamed => Code::InvalidArgument,
                Class::Unavailable => Code::Unavailable,
                // No retry could store it.
                Class::TooLarge => Code::AlreadyExists,
                Class::Malformed | Class::Misplaced | Class::TenantNotReady => Code::Internal,
            },
        },
    };
    let mut status = Status::new(code, error.to_string());
    if let CallError::Write(PeerWriteError::Write(WriteError::TenantNotReady { .. })) = error {
        status.metadata_mut().insert(TENANT_NOT_READY, MetadataValue::from_static("true"));
    }
    status
}

/// What a client is told whose call has too much of a head.
pub(super) fn head(error: &HeadError) -> Status {
    match error {
        HeadError::TooLarge { .. } | HeadError::TooMany { .. } | HeadError::Unread { .. } => {
            Status::resource_exhausted(error.to_string())
        }
        HeadError::Overloaded(_) => Status::unavailable(error.to_string()),
    }
}

/// What the sender of a message is told that cannot be taken.
pub fn message(error: &MessageError) -> Status {
    Status::new(of_message(error), error.to_string())
}

/// The codes of grpc-go.
fn of_message(error: &MessageError) -> Code {
    match error {
        MessageError::UnknownEncoding(_) => Code::Unimplemented,
        MessageError::TooLarge { .. } => Code::ResourceExhausted,
        MessageError::UnknownFlag(_)
        | MessageError::NoEncoding
        | MessageError::Corrupt(_)
        | MessageError::CutShort => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::tenant::{TenantId, TenantNameError};
    use crate::multi_tsdb::TenantError;
    use crate::write::error::{TooLarge, Unavailable};

    #[test]
    fn only_a_node_that_cannot_write_at_all_is_backed_off() {
        let code = |error: PeerWriteError| write(&CallError::Write(error)).code();
        let a = TenantId::parse(b"a").unwrap();
        let tenant = WriteError::TenantNotReady { tenant: a, cause: TenantError::Opening.into() };
        let status = write(&CallError::Write(tenant.into()));
        assert_eq!(status.code(), Code::Internal);
        assert!(status.into_http::<()>().headers().contains_key(TENANT_NOT_READY));
        let status = write(&CallError::Write(WriteError::from(Unavailable::NotAccepting).into()));
        assert_eq!(status.code(), Code::Unavailable);
        assert!(!status.into_http::<()>().headers().contains_key(TENANT_NOT_READY));
        assert_eq!(code(TenantNameError::NotUtf8.into()), Code::InvalidArgument);
        assert_eq!(
            code(PeerWriteError::BadReplica { replica: 4, factor: 3 }),
            Code::InvalidArgument
        );
        let tenant = TenantId::parse(b"a").unwrap();
        let refused = PeerWriteError::Refused {
            tenant,
            refusals: Box::default(),
            series: Default::default(),
        };
        assert_eq!(code(refused), Code::AlreadyExists);
        let too_large = WriteError::from(TooLarge::Declared { bytes: 2, max: 1 });
        assert_eq!(code(too_large.into()), Code::AlreadyExists);
        assert_eq!(write(&CallError::Slow(Duration::ZERO)).code(), Code::Unavailable);
    }

    #[test]
    fn a_query_is_told_what_to_change() {
        assert_eq!(query(&QueryError::NoMatchers).code(), Code::InvalidArgument);
        let status = query(&QueryError::UnknownMatcherType(9));
        assert_eq!(status.message(), "unrecognized label matcher type 9");
        assert_eq!(query(&QueryError::Overloaded).code(), Code::ResourceExhausted);
    }
}
