//! Label matchers, with Go's regular expressions.

/// What a matcher asks of a label's value. A label that a series does not have is an empty value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchOp {
    Equal,
    NotEqual,
    Regex,
    NotRegex,
}

/// A matcher on one label, its expression compiled.
#[derive(Clone, Debug)]
pub struct Matcher {
    pub op: MatchOp,
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// An expression that Go refuses, or that is too large to compile.
#[derive(Debug, thiserror::Error)]
#[error("invalid regular expression {pattern:?}: {detail}")]
pub struct RegexError {
    pub pattern: String,
    pub detail: String,
}

impl Matcher {
    pub fn new(op: MatchOp, name: &[u8], value: &[u8]) -> Result<Matcher, RegexError> {
        Ok(Matcher { op, name: name.to_vec(), value: value.to_vec() })
    }

    pub fn matches(&self, _value: &[u8]) -> bool {
        unimplemented!()
    }
}
