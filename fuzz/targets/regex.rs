//! Expressions from outside: no input panics, and the shortcuts agree with the engine.
//!
//! Input: the pattern up to the first zero byte, the value behind it.

use ringest::model::matcher::{MatchOp, Matcher};

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let mut halves = input.splitn(2, |byte| *byte == 0);
    let pattern = halves.next().unwrap_or_default();
    let value = halves.next().unwrap_or_default();
    let matcher_of = |op, pattern: &[u8]| Matcher::new(op, b"name", pattern);

    let plain = pattern.iter().all(|byte| byte.is_ascii_alphanumeric());
    let Ok(matcher) = matcher_of(MatchOp::Regex, pattern) else {
        assert!(!plain, "a plain word is refused");
        return;
    };
    let matches = matcher.matches(value);
    if plain {
        assert_eq!(matches, pattern == value);
    }
    if let Some(values) = matcher.set_values() {
        assert!(values.is_sorted());
        assert_eq!(values.iter().any(|known| known == value), matches);
        assert!(values.iter().all(|known| matcher.matches(known)));
    }
    if matcher.accepts_every_text() && !value.is_empty() {
        assert!(matches);
    }
    let negated = matcher_of(MatchOp::NotRegex, pattern).expect("it was taken above");
    assert_eq!(negated.matches(value), !matches);

    // In a form that no shortcut knows the engine decides. The form may be too large.
    let wrapped = [b"(?:", pattern, br"|[^\x00-\x{10FFFF}]+)(?:\b|\B)"].concat();
    if let Ok(wrapped) = matcher_of(MatchOp::Regex, &wrapped)
        && !pattern.windows(2).any(|pair| pair == br"\Q")
    {
        assert_eq!(wrapped.matches(value), matches);
    }
}

/// Inputs to begin with.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const SEEDS: [&[u8]; 10] = [
        b"up\0up",
        b"a|b|c\0b",
        b".*x.*|.*y\0axb",
        b"foo.+bar\0foo-bar",
        b"(?i:abc)\0ABC",
        b"[a-f]{2,5}\0cafe",
        b"\\pL+\0\xc3\xa9",
        b"^(?:a|ab)(?:c|bcd)$\0abcd",
        b"\\Qa.b\\E\0a.b",
        b"a(b(c(d)?)?)?\0abc",
    ];
    SEEDS.map(<[u8]>::to_vec).to_vec()
}
