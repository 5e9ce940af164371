use proptest::prelude::*;

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
            checked += 1;
        }
        if let Some(set) = set {
            let expected = sorted(set.into_iter().map(String::into_bytes).collect());
            assert_eq!(matcher.set_values(), Some(&expected[..]), "{re:?}");
        }
    }
    assert!(checked > 50_000, "{checked}");
}

#[test]
fn hostile_patterns_are_refused_or_cheap() {
    let nested = |n: usize| format!("{}a{}", "(".repeat(n), ")*".repeat(n));
    for (pattern, refused) in [
        (nested(98), false),
        (nested(100), true),
        (nested(1_000_000), true),
        (format!("{}a{}", "(?:".repeat(100_000), ")".repeat(100_000)), false),
        ("(".repeat(1_000_000), true),
        ("a|".repeat(1_000_000), true),
        ("(((a{10}){10}){10}){10}".to_owned(), true),
        ("(((a{10}){10}){10})".to_owned(), false),
        (r"\pL{1000}".to_owned(), false),
        (format!("({})+", r"\pL{1000}|".repeat(100)), false),
        (format!("({})+", r"\pL{1000}|".repeat(1000)), true),
        (".*x.*|".repeat(100_000), true),
        ((0..20_000).map(|i| format!(".*{i}.*|")).collect(), false),
        (r"(?i)\pL".repeat(10_000), true),
        ("(a{1000}){0}".to_owned(), false),
        ("(([ab]{1000}|b{999}c){0,1}d)+".to_owned(), false),
        ("x".repeat(5 << 20), true),
        ("x".repeat(1 << 20), false),
        ("[a-z]".repeat(200_000), true),
        (format!("[{}]", "ac".repeat(100_000)), false),
        (format!("(?i)[{}]", r"\pL".repeat(3000)), true),
        (format!("(?i){}", r"[\x00-\x{1e942}]".repeat(1000)), true),
        (format!("[{}]", ('\u{1000}'..'\u{d000}').step_by(2).collect::<String>()), false),
    ] {
        let head: String = pattern.chars().take(40).collect();
        assert_eq!(regex(pattern.as_bytes()).is_err(), refused, "{head}");
    }
}

/// What a comparison with Go's engine over random patterns and values showed to be easily missed.
#[test]
fn go_decides_the_odd_cases() {
    for (pattern, value, expected) in [
        // A class of one member is a class.
        (r"\p{Zp}", &b"\xe2\x80\xa9"[..], true),
        (r"\p{Zl}|\p{Line_Separator}", b"\xe2\x80\xa8", true),
        // Each stray byte is one U+FFFD.
        (r".", b"\xff", true),
        (r".", b"\xe2\x82", false),
        (r"..", b"\xe2\x82", true),
        (r"...", b"\xed\xa0\x80", true),
        (r"\x{fffd}", b"\xff", true),
        (r"\x{fffd}", b"\xef\xbf\xbd", true),
        (r"[\x{d800}-\x{dfff}]", b"\xed\xa0\x80", false),
        (r"[^a]", b"\xff", true),
        // Groups are folded before they are negated.
        (r"(?i)\W", "\u{212a}".as_bytes(), false),
        (r"(?i)[^\W]", "\u{17f}".as_bytes(), true),
        (r"\W", "\u{212a}".as_bytes(), true),
        // Flags end with their group; a repetition may stand behind flags.
        (r"((?i)a)b", b"AB", false),
        (r"((?i)a)b", b"Ab", true),
        (r"a*(?i)*", b"aa", true),
        (r"(?i-s:a.)", b"A\n", false),
        (r"x|(?i)a|b", b"B", true),
        // Quoted text is repeated by its last character.
        (r"\Qab\E+", b"abb", true),
        (r"\Qab\E+", b"abab", false),
        (r"(?m)^a$\n^b$", b"a\nb", true),
        (r"a$b", b"ab", false),
        (r"a{01}", b"a{01}", true),
        (r"\p{old italic}", "\u{10300}".as_bytes(), true),
    ] {
        let matcher = regex(pattern.as_bytes()).unwrap();
        assert_eq!(matcher.matches(value), expected, "{pattern} on {value:?}");
    }
    for pattern in [r"(?P<a", "(?i-)", r"\p{Foo}", "a**", "(?:)|*", r"\8", "[a-\\d]"] {
        assert!(regex(pattern.as_bytes()).is_err(), "{pattern}");
    }
    assert!(regex(b"a\xff").is_err());
}

#[test]
fn absent_labels_are_empty_values() {
    for (op, value, expected) in [
        (MatchOp::Equal, "", true),
        (MatchOp::Equal, "x", false),
        (MatchOp::NotEqual, "", false),
        (MatchOp::NotEqual, "x", true),
        (MatchOp::Regex, ".*", true),
        (MatchOp::Regex, ".+", false),
        (MatchOp::Regex, "x|", true),
        (MatchOp::NotRegex, ".*", false),
        (MatchOp::NotRegex, ".+", true),
    ] {
        let matcher = Matcher::new(op, b"a", value.as_bytes()).unwrap();
        assert_eq!(matcher.matches_empty(), expected, "{op:?} {value:?}");
    }
}

#[test]
fn cheap_forms_are_found() {
    let program = |pattern: &str| Program::compile(pattern.as_bytes()).unwrap();
    assert!(matches!(program(".*"), Program::Any { at_least: 0 }));
    assert!(matches!(program("(.+)"), Program::Any { at_least: 1 }));
    for pattern in [
        "foo.*",
        ".+foo",
        ".*foo.*|.*bar.*",
        "a(b|c).*(d|e.+)",
        "a.*|b.*|c|.*d|e.+f|.*g.*h.*",
        "(.*a|b)?c.*",
    ] {
        assert!(matches!(program(pattern), Program::Terms { others: None, .. }), "{pattern}");
    }
    for pattern in [".*a.*|.*b[0-9]+.*", "a.*|[0-9]+"] {
        assert!(matches!(program(pattern), Program::Terms { others: Some(_), .. }), "{pattern}");
    }
    for pattern in ["(?-s)foo.*", "foo[0-9]+", "..+", ".+.+"] {
        let program = program(pattern);
        let is_engine = matches!(program, Program::Engine { engine: Engine::Bytes(_), .. });
        assert!(is_engine, "{pattern}: {program:?}");
    }
    assert!(matches!(program(r"\pL{500}"), Program::Engine { engine: Engine::Chars(_), .. }));
    let many: Vec<String> = (0..20_000).map(|i| format!("instance-{i}\\.local")).collect();
    let set = regex(many.join("|").as_bytes()).unwrap();
    assert_eq!(set.set_values().unwrap().len(), many.len());
    assert!(set.matches(b"instance-7.local") && !set.matches(b"instance-7xlocal"));
    // A stray byte would be found in no list of texts.
    assert_eq!(regex("a|\u{fffd}".as_bytes()).unwrap().set_values(), None);
}

/// Patterns of few letters, so that their parts meet and overlap.
fn any_pattern() -> impl Strategy<Value = String> {
    let text = || "[ab\u{e9}]{0,3}";
    let gap = || prop::sample::select(vec![".*", ".+", "", "(a|.*)", "(b|\u{e9}a)?"]);
    let term = (text(), gap(), text(), gap(), text(), gap(), text());
    let term = term.prop_map(|(a, b, c, d, e, f, g)| [&a, b, &c, d, &e, f, &g].concat());
    prop::collection::vec(term, 1..20).prop_map(|terms| terms.join("|"))
}

proptest! {
    /// The cheap forms and the engines agree, whatever the value.
    #[test]
    fn every_form_decides_alike(
        pattern in any_pattern(),
        with_others in any::<bool>(),
        values in prop::collection::vec("[ab\u{e9}\n]{0,9}", 32),
    ) {
        let pattern = if with_others { format!("{pattern}|a[^b]b{{2,3}}a?") } else { pattern };
        let program = Program::compile(pattern.as_bytes()).unwrap();
        let hir = syntax::parse(pattern.as_bytes()).unwrap();
        let bytes = Engine::compile(&hir).unwrap();
        prop_assert!(matches!(bytes, Engine::Bytes(_)));
        let chars = Chars::compile(&hir).unwrap();
        for value in values {
            let expected = bytes.is_match(&value);
            prop_assert_eq!(program.accepts(&value), expected, "{} on {:?}", pattern, value);
            prop_assert_eq!(chars.is_match(&value), expected, "{} on {:?}", pattern, value);
        }
    }
}

#[test]
fn the_engine_over_characters_decides_as_the_other() {
    let recorded: Recorded =
        serde_json::from_str(include_str!("../../../tests/data/regex/regex.json")).unwrap();
    let patterns = recorded.patterns.iter().filter(|pattern| pattern.error.is_none());
    for RecordedPattern { re, m, .. } in patterns {
        let chars = Chars::compile(&syntax::parse(re.as_bytes()).unwrap()).unwrap();
        for (string, digit) in recorded.strings.iter().zip(m.as_ref().unwrap().chars()) {
            assert_eq!(chars.is_match(string), digit == '1', "{re:?} on {string:?}");
        }
    }
}

#[test]
fn large_classes_may_be_repeated() {
    let letters = regex(r"\pL{500}".as_bytes()).unwrap();
    assert!(letters.matches("\u{e9}".repeat(500).as_bytes()));
    assert!(!letters.matches("\u{e9}".repeat(501).as_bytes()));
    assert!(!letters.matches("\u{e9}".repeat(499).as_bytes()));
    let optional = regex(r"a(\pL{0,900}1)?\pN{2,300}".as_bytes()).unwrap();
    for (value, expected) in [("ab1234", true), ("a123", true), ("a1", false), ("ab12", false)] {
        assert_eq!(optional.matches(value.as_bytes()), expected, "{value}");
    }
}

#[test]
fn many_terms_of_several_texts_are_found_by_one_of_them() {
    let numbered = |term: &str| -> Vec<String> {
        (10..40).map(|i| term.replace('N', &i.to_string())).collect()
    };
    for (term, yes, no) in [
        (".*aN.*b.+", "xa33b1", "xa33b"),
        ("p.*aN.*b", "pa33b", "a33b"),
        (".+aN.*b.*c", "xa33bc", "a33bc"),
    ] {
        let matcher = regex(numbered(term).join("|").as_bytes()).unwrap();
        assert!(matcher.matches(yes.as_bytes()), "{term}");
        for no in [no, "a33", "xa9b1", "b1a33", ""] {
            assert!(!matcher.matches(no.as_bytes()), "{term} on {no}");
        }
    }
}
