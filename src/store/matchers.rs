//! Matchers as they travel, into those of the model.

use crate::model::matcher::{MatchOp, Matcher};
use crate::model::stop;
use crate::store::budget::ReadBudgetGuard;
use crate::store::error::QueryError;

/// A matcher message: Thanos and Prometheus have one each, alike on the wire.
pub trait WireMatcher {
    /// Type number, label name, value.
    fn parts(&self) -> (i32, &[u8], &[u8]);
}

/// Matchers of one query: far more than people write, few enough to compile.
pub const MATCHERS_MAX: usize = 1000;

/// What a query's matchers may take without being held: those of most.
const FREE_BYTES: usize = 1024;

/// Compiles all matchers of a query, and holds what they take. Takes long for hostile ones, so it's
/// work for the blocking pool.
pub fn parse<M: WireMatcher>(
    matchers: &[M],
    held: &mut ReadBudgetGuard,
) -> Result<Vec<Matcher>, QueryError> {
    if matchers.len() > MATCHERS_MAX {
        let count = matchers.len();
        return Err(QueryError::TooManyMatchers { count, limit: MATCHERS_MAX });
    }
    let mut owed = 0;
    matchers
        .iter()
        .map(|matcher| {
            if stop::is_asked() {
                return Err(QueryError::Interrupted);
            }
            let (number, name, value) = matcher.parts();
            let op = match number {
                0 => MatchOp::Equal,
                1 => MatchOp::NotEqual,
                2 => MatchOp::Regex,
                3 => MatchOp::NotRegex,
                other => return Err(QueryError::UnknownMatcherType(other)),
            };
            let matcher = Matcher::new(op, name, value)?;
            owed += matcher.bytes();
            if owed >= FREE_BYTES {
                held.hold(std::mem::take(&mut owed))?;
            }
            Ok(matcher)
        })
        .collect()
}
