//! What an answer says of tenants that would have a part in it but cannot be read now: their log is
//! being replayed, they could not be opened, or a block of theirs fails. Nobody is told less than there
//! is without being told so.

use crate::error::chain;
use crate::model::matcher::Matcher;
use crate::multi_tsdb::UnavailableTenant;
use crate::store::error::QueryError;
use crate::store::source::ReadTenant;
use crate::tsdb::error::ReadError;
use crate::wire::proto::thanos::PartialResponseStrategy;

/// Tenants that one answer names. Of more it gives the number: a node that starts may be opening
/// thousands.
const NAMED_MAX: usize = 10;

/// What is done about a missing part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The answer comes with warnings.
    IsWarnedOf,
    /// There is no answer.
    Aborts,
}

impl Missing {
    /// What a request asks for, which it can say in two ways.
    pub fn of_request(partial_response_disabled: bool, strategy: i32) -> Missing {
        match partial_response_disabled || strategy == PartialResponseStrategy::Abort as i32 {
            true => Missing::Aborts,
            false => Missing::IsWarnedOf,
        }
    }

    /// The warnings that the answer comes with, or the error in its place.
    pub fn settle(self, warnings: Vec<String>) -> Result<Vec<String>, QueryError> {
        match warnings.first() {
            Some(first) if self == Missing::Aborts => Err(QueryError::Partial(first.clone())),
            _ => Ok(warnings),
        }
    }

    /// What was read of a tenant; `None` and a warning, or the error, if that failed.
    pub fn read<T>(
        self,
        tenant: &dyn ReadTenant,
        read: Result<T, ReadError>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<T>, QueryError> {
        let Err(err) = read else { return Ok(read.ok()) };
        let (tenant, err) = (tenant.name(), chain(&err));
        let warning = format!("tenant {tenant} cannot be read now: {err}");
        match self {
            Missing::Aborts => Err(QueryError::Partial(warning)),
            Missing::IsWarnedOf => {
                warnings.push(warning);
                Ok(None)
            }
        }
    }
}

/// Whether series of the tenant can match, as far as its external labels tell.
pub fn can_match(tenant: &UnavailableTenant, matchers: &[Matcher]) -> bool {
    let value_of = |name: &[u8]| tenant.external_labels.iter().find(|(other, _)| other == name);
    let mut matchers = matchers.iter();
    matchers.all(|matcher| match value_of(&matcher.name) {
        Some((_, value)) => matcher.matches(value),
        None => true,
    })
}

/// A warning for each tenant, up to a number.
pub fn warnings<'t>(tenants: impl Iterator<Item = &'t UnavailableTenant>) -> Vec<String> {
    let mut tenants = tenants;
    let named = tenants.by_ref().take(NAMED_MAX);
    let mut warnings: Vec<_> = named
        .map(|UnavailableTenant { id, reason, .. }| {
            format!("tenant {id} cannot be read now: {reason}")
        })
        .collect();
    match tenants.count() {
        0 => {}
        more => warnings.push(format!("{more} more tenants cannot be read now")),
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::matcher::MatchOp;
    use crate::model::tenant::TenantId;
    use crate::multi_tsdb::TenantError;

    fn tenant(name: &str) -> UnavailableTenant {
        UnavailableTenant {
            id: TenantId::parse(name.as_bytes()).unwrap(),
            external_labels: Arc::new(vec![(b"tenant_id".to_vec(), name.as_bytes().to_vec())]),
            reason: TenantError::Opening,
        }
    }

    #[test]
    fn ten_are_named_and_the_rest_is_counted() {
        let tenants: Vec<_> = (0..13).map(|i| tenant(&format!("t{i}"))).collect();
        assert_eq!(warnings([].iter()), [""; 0]);
        let one = "tenant t0 cannot be read now: its log is being replayed";
        assert_eq!(warnings(tenants[..1].iter()), [one]);
        let all = warnings(tenants.iter());
        assert_eq!(
            (all.len(), &*all[0], &*all[10]),
            (11, one, "3 more tenants cannot be read now")
        );
    }

    #[test]
    fn external_labels_tell_who_cannot_have_a_part() {
        let matcher = |op, name: &[u8], value: &[u8]| Matcher::new(op, name, value).unwrap();
        let is = |name: &[u8], value: &[u8]| matcher(MatchOp::Equal, name, value);
        assert!(can_match(&tenant("a"), &[]));
        assert!(can_match(&tenant("a"), &[is(b"tenant_id", b"a"), is(b"x", b"y")]));
        assert!(!can_match(&tenant("a"), &[is(b"x", b"y"), is(b"tenant_id", b"b")]));
        assert!(!can_match(&tenant("a"), &[matcher(MatchOp::NotRegex, b"tenant_id", b"a|b")]));
    }

    #[test]
    fn who_wants_all_or_nothing_gets_nothing() {
        assert_eq!(Missing::of_request(false, 0), Missing::IsWarnedOf);
        assert_eq!(Missing::of_request(true, 0), Missing::Aborts);
        assert_eq!(Missing::of_request(false, 1), Missing::Aborts);
        let warnings = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(Missing::IsWarnedOf.settle(warnings()).unwrap(), warnings());
        assert!(
            matches!(Missing::Aborts.settle(warnings()), Err(QueryError::Partial(w)) if w == "a")
        );
        assert_eq!(Missing::Aborts.settle(Vec::new()).unwrap(), [""; 0]);
    }
}
