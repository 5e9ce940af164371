//! Errors to gRPC status; nowhere else.

use tonic::{Code, Status};

use crate::store::error::QueryError;
use crate::write::error::WriteError;

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
        QueryError::Partial(_) => Code::Aborted,
        QueryError::TooLarge { .. } | QueryError::Overloaded => Code::ResourceExhausted,
        QueryError::NotReady => Code::Unavailable,
        QueryError::Damaged(_) => Code::DataLoss,
        QueryError::Interrupted => Code::Internal,
    };
    Status::new(code, error.to_string())
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

/// What a peer is told that writes to us. A Thanos router retries all of these, and backs off the
/// whole peer, for all tenants, on `Unavailable` alone: hence that is said for the node only.
pub fn write(error: &WriteError) -> Status {
    let code = match error {
        WriteError::Invalid { .. } | WriteError::TenantName(_) => Code::InvalidArgument,
        WriteError::TooLarge { .. } => Code::ResourceExhausted,
        WriteError::TenantNotReady { .. } => Code::Internal,
        WriteError::Unavailable(_) => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tenant::TenantNameError;

    #[test]
    fn only_a_node_that_cannot_write_at_all_is_backed_off() {
        let tenant = WriteError::TenantNotReady { tenant: "a".into(), detail: "opening".into() };
        assert_eq!(write(&tenant).code(), Code::Internal);
        assert_eq!(write(&WriteError::Unavailable("disk full".into())).code(), Code::Unavailable);
        let name = WriteError::TenantName(TenantNameError::NotUtf8);
        assert_eq!(write(&name).code(), Code::InvalidArgument);
    }

    #[test]
    fn a_query_is_told_what_to_change() {
        assert_eq!(query(&QueryError::NoMatchers).code(), Code::InvalidArgument);
        let status = query(&QueryError::UnknownMatcherType(9));
        assert_eq!(status.message(), "unrecognized label matcher type 9");
        assert_eq!(query(&QueryError::Overloaded).code(), Code::ResourceExhausted);
    }
}
