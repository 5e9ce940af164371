use super::*;

#[derive(serde::Deserialize)]
struct Recorded {
    strings: Vec<String>,
    patterns: Vec<RecordedPattern>,
}

#[derive(serde::Deserialize)]
struct RecordedPattern {
    re: String,
    /// One digit per string; 1 is a match.
    m: Option<String>,
    /// The values the pattern was reduced to.
    set: Option<Vec<String>>,
    error: Option<String>,
}

fn regex(pattern: &[u8]) -> Result<Matcher, RegexError> {
    Matcher::new(MatchOp::Regex, b"a", pattern)
}

fn sorted(mut values: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    values.sort();
    values.dedup();
    values
}

#[test]
fn patterns_match_what_prometheus_matches() {
    let recorded: Recorded =
        serde_json::from_str(include_str!("../../../tests/data/regex/regex.json")).unwrap();
    let mut checked = 0;
    for RecordedPattern { re, m, set, error } in recorded.patterns {
        let matcher = match (regex(re.as_bytes()), error) {
            (Err(ours), Some(theirs)) => {
                assert_eq!(format!("error parsing regexp: {}", ours.detail), theirs, "{re:?}");
                checked += 1;
                continue;
            }
            (Err(ours), None) => panic!("{re:?} is refused: {ours}"),
            (Ok(_), Some(theirs)) => panic!("{re:?} is taken, not refused with {theirs}"),
            (Ok(matcher), None) => matcher,
        };
        let negative = Matcher::new(MatchOp::NotRegex, b"a", re.as_bytes()).unwrap();
        for (string, digit) in recorded.strings.iter().zip(m.unwrap().chars()) {
            let expected = digit == '1';
            assert_eq!(matcher.matches(string.as_bytes()), expected, "{re:?} on {string:?}");
            assert_eq!(negative.matches(string.as_bytes()), !expected, "{re:?} on {string:?}");
            if let Some(set) = matcher.set_values() {
                let listed = set.contains(&string.as_bytes().to_vec());
                assert_eq!(listed, expected, "{re:?} on {string:?}");
            }
            if expected {
                assert!(string.as_bytes().starts_with(matcher.accepted_prefix()), "{re:?}");
            }
            checked += 1;
        }
        if let Some(set) = set {
            let expected = sorted(set.into_iter().map(String::into_bytes).collect());
            assert_eq!(matcher.set_values(), Some(&expected[..]), "{re:?}");
        }
    }
    assert!(checked > 50_000, "{checked}");
}
