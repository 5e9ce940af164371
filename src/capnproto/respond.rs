//! Errors to the schema's own; nowhere else.

use crate::capnproto::CallError;
use crate::wire::capnproto::rpc::{Concern, WriteAnswer, WriteError as Answer};
use crate::write::error::{Class, WriteError};
use crate::write::peer_writes::PeerWriteError;

/// What a peer is told that writes to us.
pub fn written(result: &Result<(), CallError>) -> WriteAnswer {
    let (error, said) = match result {
        Ok(()) => (Answer::None, String::new()),
        Err(error) => (write(error), error.to_string()),
    };
    let concern = match result {
        Err(CallError::Write(PeerWriteError::Write(WriteError::TenantNotReady { .. }))) => {
            Concern::Tenant
        }
        _ => Concern::Unsaid,
    };
    let refused = match result {
        Err(CallError::Write(PeerWriteError::Refused { series, .. })) => series.encode(),
        _ => None,
    };
    // A list that is empty says that there are such, one that is too long that it is left out.
    WriteAnswer { error, said, refused: Some(refused.unwrap_or_default()), concern }
}

/// A Thanos router takes `alreadyExists` for final and
/// retries everything else. On `unavailable` it also backs off the whole peer, for all tenants, and
/// on `internal`, too, other than over gRPC; so what concerns one tenant or one message is
/// `invalidArgument`, which is retried and no more.
fn write(error: &CallError) -> Answer {
    match error {
        CallError::NoStorage | CallError::Overloaded(_) | CallError::Slow => Answer::Unavailable,
        CallError::TooLong { .. } | CallError::Request(_) | CallError::Expanded { .. } => {
            Answer::InvalidArgument
        }
        CallError::Write(error) => match error {
            PeerWriteError::Refused { .. } => Answer::AlreadyExists,
            PeerWriteError::BadReplica { .. }
            | PeerWriteError::TenantName(_)
            | PeerWriteError::Malformed(_)
            | PeerWriteError::NotUnderstood { .. } => Answer::InvalidArgument,
            PeerWriteError::Write(error) => match error.class() {
                // No retry could store it.
                Class::TooLarge => Answer::AlreadyExists,
                Class::Unavailable => Answer::Unavailable,
                Class::Malformed | Class::Misnamed | Class::Misplaced | Class::TenantNotReady => {
                    Answer::InvalidArgument
                }
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tenant::{TenantId, TenantNameError};
    use crate::multi_tsdb::TenantError;
    use crate::write::admission::Admission;
    use crate::write::error::Unavailable;

    #[test]
    fn only_a_node_that_cannot_write_at_all_is_backed_off() {
        let of_write = |error: PeerWriteError| write(&CallError::Write(error));
        let a = TenantId::parse(b"a").unwrap();
        let opening = WriteError::TenantNotReady { tenant: a, cause: TenantError::Opening.into() };
        assert_eq!(of_write(opening.into()), Answer::InvalidArgument);
        assert_eq!(of_write(TenantNameError::NotUtf8.into()), Answer::InvalidArgument);
        let full = WriteError::from(Unavailable::NotAccepting);
        assert_eq!(of_write(full.into()), Answer::Unavailable);
        let tenant = TenantId::parse(b"a").unwrap();
        let refused = PeerWriteError::Refused {
            tenant,
            refusals: Box::default(),
            series: Default::default(),
        };
        assert_eq!(of_write(refused), Answer::AlreadyExists);
        assert_eq!(write(&CallError::NoStorage), Answer::Unavailable);
        let overloaded = Admission::new(1).admit(2).err().unwrap();
        assert_eq!(write(&overloaded.into()), Answer::Unavailable);
    }
}
