//! Expressions from outside: no input panics, and the shortcuts agree with the engine.
//!
//! Input: the pattern up to the first zero byte, the value behind it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringest::model::matcher::{MatchOp, Matcher};

fuzz_target!(|input: &[u8]| {
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
    if matches {
        assert!(value.starts_with(matcher.accepted_prefix()));
    }
    if matcher.accepts_every_text() && !value.is_empty() {
        assert!(matches);
    }
    let negated = matcher_of(MatchOp::NotRegex, pattern).expect("it was taken above");
    assert_eq!(negated.matches(value), !matches);

    // In a form that no shortcut knows the engine decides. The form may be too large.
    let wrapped = [b"(?:", pattern, br"|[^\x00-\x{10FFFF}]+)(?:\b|\B)"].concat();
    if let Ok(wrapped) = matcher_of(MatchOp::Regex, &wrapped) {
        if !pattern.windows(2).any(|pair| pair == br"\Q") {
            assert_eq!(wrapped.matches(value), matches);
        }
    }
});
