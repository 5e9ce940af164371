//! How the values of flags are written. The grammars are those of Thanos, whose libraries are
//! Go's `strconv` and `time`, `prometheus/common/model`, and `alecthomas/units`; the texts of the
//! errors keep their key words, since operators search for them.

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("empty duration string")]
    EmptyDuration,
    #[error("not a valid duration string: {0:?}")]
    NotADuration(String),
    #[error("duration out of range")]
    DurationOutOfRange,
    #[error("unknown unit {unit:?} in duration {text:?}")]
    UnknownDurationUnit { unit: String, text: String },
    #[error("time: invalid duration {0:?}")]
    NotAGoDuration(String),
    #[error("time: missing unit in duration {0:?}")]
    MissingDurationUnit(String),
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownGoDurationUnit { unit: String, text: String },
    #[error("units: invalid {0:?}")]
    NotBytes(String),
    #[error("units: unknown unit {unit:?} in {text:?}")]
    UnknownBytesUnit { unit: String, text: String },
    #[error("units: overflow parsing unit: {0:?}")]
    BytesOutOfRange(String),
    #[error("parsing {0:?}: invalid syntax")]
    NotANumber(String),
    #[error("parsing {0:?}: value out of range")]
    NumberOutOfRange(String),
    #[error("enum value must be one of {}, got {text:?}", choices.join(","))]
    NotAChoice { choices: &'static [&'static str], text: String },
}

const NANOS_PER_MS: u64 = 1_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
const NANOS_PER_MINUTE: u64 = 60 * NANOS_PER_SECOND;
const NANOS_PER_HOUR: u64 = 60 * NANOS_PER_MINUTE;
const NANOS_PER_DAY: u64 = 24 * NANOS_PER_HOUR;
const NANOS_PER_WEEK: u64 = 7 * NANOS_PER_DAY;
const NANOS_PER_YEAR: u64 = 365 * NANOS_PER_DAY;

/// Parses `(integer unit)+` or a bare `0`: units from years to milliseconds, biggest first, each
/// at most once. Returns nanoseconds, never negative.
pub fn duration_model(text: &str) -> Result<i64, ValueError> {
    const UNITS: [(&str, u64); 7] = [
        ("y", NANOS_PER_YEAR),
        ("w", NANOS_PER_WEEK),
        ("d", NANOS_PER_DAY),
        ("h", NANOS_PER_HOUR),
        ("m", NANOS_PER_MINUTE),
        ("s", NANOS_PER_SECOND),
        ("ms", NANOS_PER_MS),
    ];
    match text {
        "0" => return Ok(0),
        "" => return Err(ValueError::EmptyDuration),
        _ => {}
    }
    let not_a_duration = || ValueError::NotADuration(text.to_owned());
    let mut total: u64 = 0;
    let mut units_left = &UNITS[..];
    let mut rest = text;
    while !rest.is_empty() {
        let (digits, after) = split_while(rest, |c| c.is_ascii_digit());
        let (unit, after) = split_while(after, |c| !c.is_ascii_digit());
        let count: u64 = digits.parse().map_err(|_| not_a_duration())?;
        if unit.is_empty() {
            return Err(not_a_duration());
        }
        if UNITS.iter().all(|(name, _)| *name != unit) {
            let (unit, text) = (unit.to_owned(), text.to_owned());
            return Err(ValueError::UnknownDurationUnit { unit, text });
        }
        let position = units_left.iter().position(|(name, _)| *name == unit);
        let position = position.ok_or_else(not_a_duration)?;
        let (_, nanos) = units_left[position];
        units_left = &units_left[position + 1..];
        total = count
            .checked_mul(nanos)
            .and_then(|nanos| total.checked_add(nanos))
            .ok_or(ValueError::DurationOutOfRange)?;
        rest = after;
    }
    i64::try_from(total).map_err(|_| ValueError::DurationOutOfRange)
}

/// Parses `[+-](decimal unit)+` or a bare `0`: units from weeks to nanoseconds in any order,
/// repeats add. Returns nanoseconds.
pub fn duration_go(text: &str) -> Result<i64, ValueError> {
    const UNITS: [(&str, u64); 9] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", NANOS_PER_MS),
        ("s", NANOS_PER_SECOND),
        ("m", NANOS_PER_MINUTE),
        ("h", NANOS_PER_HOUR),
        ("d", NANOS_PER_DAY),
    ];
    let invalid = || ValueError::NotAGoDuration(text.to_owned());
    let (negative, unsigned) = split_sign(text);
    if unsigned == "0" {
        return Ok(0);
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    // Kept as a magnitude of at most 2^63 - 1, so negating it is safe.
    let mut total: i64 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let (number, after) = Decimal::split(rest).ok_or_else(invalid)?;
        let (unit, after) = split_while(after, |c| c != '.' && !c.is_ascii_digit());
        if unit.is_empty() {
            return Err(ValueError::MissingDurationUnit(text.to_owned()));
        }
        let named = UNITS.iter().chain([&("w", NANOS_PER_WEEK)]).find(|(name, _)| *name == unit);
        let Some((_, nanos)) = named else {
            let (unit, text) = (unit.to_owned(), text.to_owned());
            return Err(ValueError::UnknownGoDurationUnit { unit, text });
        };
        let nanos = number.times(*nanos).ok_or_else(invalid)?;
        total = total.checked_add(nanos).ok_or_else(invalid)?;
        rest = after;
    }
    Ok(if negative { -total } else { total })
}

/// Parses `[+-](decimal unit)+` or a bare `0`: `B`, then `K` to `E` followed by `B` or by `iB`,
/// all of them powers of 1024. One value stays with one of the two families.
pub fn bytes_base2(text: &str) -> Result<i64, ValueError> {
    // `EB` reaches 2^60 and a sum 2^63, which a float holds exactly; the conversion saturates.
    bytes_of_family(text, "iB").or_else(|_| bytes_of_family(text, "B"))
}

fn bytes_of_family(text: &str, suffix: &str) -> Result<i64, ValueError> {
    let invalid = || ValueError::NotBytes(text.to_owned());
    let (negative, unsigned) = split_sign(text);
    if unsigned == "0" {
        return Ok(0);
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let (number, after) = Decimal::split(rest).ok_or_else(invalid)?;
        let (unit, after) = split_while(after, |c| c != '.' && !c.is_ascii_digit());
        let power = match unit {
            "B" => Some(0),
            _ => unit
                .strip_suffix(suffix)
                .and_then(|prefix| ["K", "M", "G", "T", "P", "E"].iter().position(|p| *p == prefix))
                .map(|i| i as i32 + 1),
        };
        let Some(power) = power else {
            let (unit, text) = (unit.to_owned(), text.to_owned());
            return Err(ValueError::UnknownBytesUnit { unit, text });
        };
        total += number.as_f64() * 1024f64.powi(power);
        rest = after;
    }
    if total > i64::MAX as f64 {
        return Err(ValueError::BytesOutOfRange(text.to_owned()));
    }
    Ok(if negative { -total } else { total } as i64)
}

/// Parses a Go integer literal with an optional sign: `0x`, `0o`, `0b`, a leading 0 for octal, and
/// `_` between digits.
pub fn int(text: &str) -> Result<i64, ValueError> {
    let (negative, unsigned) = split_sign(text);
    let magnitude = i128::from(magnitude(text, unsigned)?);
    i64::try_from(if negative { -magnitude } else { magnitude })
        .map_err(|_| ValueError::NumberOutOfRange(text.to_owned()))
}

/// As [`int`], without a sign.
pub fn uint(text: &str) -> Result<u64, ValueError> {
    magnitude(text, text)
}

fn magnitude(text: &str, unsigned: &str) -> Result<u64, ValueError> {
    let syntax = || ValueError::NotANumber(text.to_owned());
    let prefixes = [("0x", 16), ("0X", 16), ("0o", 8), ("0O", 8), ("0b", 2), ("0B", 2)];
    let prefixed =
        prefixes.iter().find_map(|(prefix, radix)| Some((unsigned.strip_prefix(prefix)?, *radix)));
    let (digits, radix, has_base) = match prefixed {
        Some((digits, radix)) => (digits, radix, true),
        None => match unsigned.strip_prefix('0') {
            Some(digits) if !digits.is_empty() => (digits, 8, true),
            _ => (unsigned, 10, false),
        },
    };
    // An underscore stands between digits; a base prefix counts as one.
    let lone_underscore =
        digits.contains("__") || digits.ends_with('_') || (digits.starts_with('_') && !has_base);
    let plain = digits.replace('_', "");
    let all_digits = !plain.is_empty() && plain.chars().all(|c| c.is_digit(radix));
    if lone_underscore || !all_digits {
        return Err(syntax());
    }
    // Only the size can be wrong now.
    u64::from_str_radix(&plain, radix).map_err(|_| ValueError::NumberOutOfRange(text.to_owned()))
}

pub fn float(text: &str) -> Result<f64, ValueError> {
    text.parse().map_err(|_| ValueError::NotANumber(text.to_owned()))
}

pub fn choice(text: &str, choices: &'static [&'static str]) -> Result<(), ValueError> {
    if choices.contains(&text) {
        return Ok(());
    }
    Err(ValueError::NotAChoice { choices, text: text.to_owned() })
}

/// Why a `--label` is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    #[error("unrecognized label {0:?}: it must be name=\"value\"")]
    NoEqualsSign(String),
    #[error("unsupported format for label {0:?}: the name is empty")]
    EmptyName(String),
    #[error(
        "unquote label value {0:?}: invalid syntax: the value must be a Go string literal such as \
         \"value\", and the shell must leave the quotes in place"
    )]
    NotQuoted(String),
    #[error("label value {0:?} is not valid UTF-8")]
    ValueNotUtf8(String),
}

/// Parses `name="value"`, the value a Go string literal: in double quotes with escapes, in back
/// quotes, or one character in single quotes.
pub fn label(text: &str) -> Result<(String, String), LabelError> {
    let (name, quoted) =
        text.split_once('=').ok_or_else(|| LabelError::NoEqualsSign(text.to_owned()))?;
    if name.is_empty() {
        return Err(LabelError::EmptyName(text.to_owned()));
    }
    let value = unquote(quoted).ok_or_else(|| LabelError::NotQuoted(quoted.to_owned()))?;
    let value =
        String::from_utf8(value).map_err(|_| LabelError::ValueNotUtf8(quoted.to_owned()))?;
    Ok((name.to_owned(), value))
}

/// The bytes that a Go string literal stands for; `None` if it is none.
fn unquote(literal: &str) -> Option<Vec<u8>> {
    let quote = literal.chars().next()?;
    let inner = literal.strip_prefix(quote)?.strip_suffix(quote)?;
    match quote {
        '`' if !inner.contains('`') => Some(inner.replace('\r', "").into_bytes()),
        '"' => unescape(inner, '"').map(|(bytes, _)| bytes),
        '\'' => unescape(inner, '\'').and_then(|(bytes, count)| (count == 1).then_some(bytes)),
        _ => None,
    }
}

/// Resolves Go's escapes; also counts the characters.
fn unescape(text: &str, quote: char) -> Option<(Vec<u8>, usize)> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut count = 0;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        count += 1;
        if c == quote || c == '\n' {
            return None;
        }
        if c != '\\' {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        match rest.next()? {
            'a' => bytes.push(0x07),
            'b' => bytes.push(0x08),
            'f' => bytes.push(0x0c),
            'n' => bytes.push(b'\n'),
            'r' => bytes.push(b'\r'),
            't' => bytes.push(b'\t'),
            'v' => bytes.push(0x0b),
            '\\' => bytes.push(b'\\'),
            c if c == quote => bytes.push(c as u8),
            'x' => bytes.push(u8::try_from(digits(&mut rest, 2, 16, 0)?).ok()?),
            'u' => push_char(&mut bytes, digits(&mut rest, 4, 16, 0)?)?,
            'U' => push_char(&mut bytes, digits(&mut rest, 8, 16, 0)?)?,
            c @ '0'..='7' => {
                bytes.push(u8::try_from(digits(&mut rest, 2, 8, c.to_digit(8)?)?).ok()?);
            }
            _ => return None,
        }
    }
    Some((bytes, count))
}

fn push_char(bytes: &mut Vec<u8>, code: u32) -> Option<()> {
    bytes.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

/// Takes exactly `count` digits, which follow those that gave `value`.
fn digits(chars: &mut std::str::Chars<'_>, count: u32, radix: u32, mut value: u32) -> Option<u32> {
    for _ in 0..count {
        value = value.checked_mul(radix)?.checked_add(chars.next()?.to_digit(radix)?)?;
    }
    Some(value)
}

/// Replaces every `$(NAME)` by the environment variable, as Thanos does in the content of
/// configuration, from a file or inline. Fails with the name of a variable that is not set.
pub fn expand_variables(
    content: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut expanded = String::with_capacity(content.len());
    let mut rest = content;
    while let Some((before, after)) = rest.split_once("$(") {
        expanded.push_str(before);
        let (name, tail) = split_while(after, |c| c.is_ascii_alphanumeric() || c == '_');
        match tail.strip_prefix(')') {
            Some(tail) if !name.is_empty() => {
                expanded.push_str(&variable(name).ok_or_else(|| name.to_owned())?);
                rest = tail;
            }
            // No reference: the characters stand for themselves.
            _ => {
                expanded.push_str("$(");
                rest = after;
            }
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// A number with an optional fraction, as it was written.
struct Decimal<'a> {
    whole: &'a str,
    fraction: &'a str,
}

impl<'a> Decimal<'a> {
    /// Splits a number off the front; at least one digit stands before or after the point.
    fn split(text: &'a str) -> Option<(Decimal<'a>, &'a str)> {
        let (whole, rest) = split_while(text, |c| c.is_ascii_digit());
        let (fraction, rest) = match rest.strip_prefix('.') {
            Some(rest) => split_while(rest, |c| c.is_ascii_digit()),
            None => ("", rest),
        };
        let has_digits = !whole.is_empty() || !fraction.is_empty();
        has_digits.then_some((Decimal { whole, fraction }, rest))
    }

    /// The number times `unit`, cut to an integer; `None` when it does not fit.
    fn times(&self, unit: u64) -> Option<i64> {
        let whole: u64 = if self.whole.is_empty() { 0 } else { self.whole.parse().ok()? };
        let fraction: f64 = format!("0.{}", self.fraction).parse().unwrap_or(0.0);
        let nanos = whole.checked_mul(unit)?.checked_add((fraction * unit as f64) as u64)?;
        i64::try_from(nanos).ok()
    }

    fn as_f64(&self) -> f64 {
        // Digits only, so this cannot fail.
        format!("0{}.{}0", self.whole, self.fraction).parse().unwrap_or(f64::INFINITY)
    }
}

fn split_sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

fn split_while(text: &str, keep: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !keep(c)).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_the_model_grammar() {
        let cases = [
            ("0", Ok(0)),
            ("0s", Ok(0)),
            ("15d", Ok(15 * NANOS_PER_DAY)),
            ("1w2d", Ok(9 * NANOS_PER_DAY)),
            ("1y", Ok(365 * NANOS_PER_DAY)),
            ("1h30m", Ok(90 * NANOS_PER_MINUTE)),
            ("500ms", Ok(500 * NANOS_PER_MS)),
            ("90", Err("not a valid duration string")),
            ("1.5h", Err("unknown unit")),
            ("-1h", Err("not a valid duration string")),
            ("+1h", Err("not a valid duration string")),
            ("", Err("empty duration string")),
            ("1m1h", Err("not a valid duration string")),
            ("1us", Err("unknown unit")),
            ("1H", Err("unknown unit")),
            ("1d1d", Err("not a valid duration string")),
            (" 1d", Err("not a valid duration string")),
            ("300y", Err("duration out of range")),
            ("292y300y", Err("not a valid duration string")),
            ("99999999999999999999s", Err("not a valid duration string")),
        ];
        check(duration_model, &cases);
    }

    #[test]
    fn durations_of_the_go_grammar() {
        let cases = [
            ("60m", Ok(NANOS_PER_HOUR)),
            ("0", Ok(0)),
            ("0s", Ok(0)),
            ("90", Err("missing unit in duration")),
            ("1.5h", Ok(90 * NANOS_PER_MINUTE)),
            ("+1h", Ok(NANOS_PER_HOUR)),
            ("", Err("time: invalid duration")),
            ("+", Err("time: invalid duration")),
            (".s", Err("time: invalid duration")),
            ("1m1h", Ok(61 * NANOS_PER_MINUTE)),
            ("1h1h", Ok(2 * NANOS_PER_HOUR)),
            ("1d", Ok(NANOS_PER_DAY)),
            ("1w", Ok(NANOS_PER_WEEK)),
            ("1y", Err("unknown unit")),
            ("1us", Ok(1000)),
            ("1µs", Ok(1000)),
            ("1ns", Ok(1)),
            (".5s", Ok(500 * NANOS_PER_MS)),
            ("1H", Err("unknown unit")),
            ("9999999h", Err("time: invalid duration")),
        ];
        check(duration_go, &cases);
        assert_eq!(duration_go("-1h"), Ok(-(NANOS_PER_HOUR as i64)));
    }

    #[test]
    fn sizes_in_bytes() {
        let cases = [
            ("0", Ok(0)),
            ("512MB", Ok(512 << 20)),
            ("512MiB", Ok(512 << 20)),
            ("1.5GB", Ok(3 << 29)),
            ("10KB", Ok(10 << 10)),
            ("1GB512MB", Ok((1 << 30) + (512 << 20))),
            ("7B", Ok(7)),
            ("1EB", Ok(1 << 60)),
            ("8EB", Ok(i64::MAX as u64)),
            ("512", Err("unknown unit")),
            ("10kB", Err("unknown unit")),
            ("10K", Err("unknown unit")),
            ("1 GB", Err("unknown unit")),
            ("1gb", Err("unknown unit")),
            ("1GB1MiB", Err("unknown unit")),
            ("", Err("units: invalid")),
            ("100EB", Err("overflow parsing unit")),
        ];
        check(bytes_base2, &cases);
        assert_eq!(bytes_base2("-1MB"), Ok(-(1 << 20)));
    }

    #[test]
    fn integers_are_go_literals() {
        let cases = [
            ("0", Ok(0)),
            ("0x1F", Ok(31)),
            ("010", Ok(8)),
            ("0o10", Ok(8)),
            ("0b11", Ok(3)),
            ("1_000", Ok(1000)),
            ("0x_f", Ok(15)),
            ("0_7", Ok(7)),
            ("+5", Ok(5)),
            ("1__0", Err("invalid syntax")),
            ("_1", Err("invalid syntax")),
            ("1_", Err("invalid syntax")),
            ("08", Err("invalid syntax")),
            ("1.5", Err("invalid syntax")),
            ("two", Err("invalid syntax")),
            ("", Err("invalid syntax")),
            ("-", Err("invalid syntax")),
            ("+-1", Err("invalid syntax")),
            ("9223372036854775808", Err("value out of range")),
        ];
        check(int, &cases);
        assert_eq!(int("-5"), Ok(-5));
        assert_eq!(int("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(uint("18446744073709551615"), Ok(u64::MAX));
        assert!(uint("-1").unwrap_err().to_string().contains("invalid syntax"));
        assert!(uint("+1").unwrap_err().to_string().contains("invalid syntax"));
    }

    /// Results are given as magnitudes, errors by a part of their text.
    fn check(parse: impl Fn(&str) -> Result<i64, ValueError>, cases: &[(&str, Result<u64, &str>)]) {
        for (text, expected) in cases {
            match (parse(text), expected) {
                (Ok(value), Ok(expected)) => assert_eq!(value as u64, *expected, "{text:?}"),
                (Err(error), Err(part)) => {
                    assert!(error.to_string().contains(part), "{text:?}: {error}");
                }
                (result, expected) => panic!("{text:?}: {result:?} instead of {expected:?}"),
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in "[-+0-9.a-zA-Zµ_ \"'`\\\\=$()]{0,24}|\\PC{0,24}") {
            let _ = (duration_model(&text), duration_go(&text), bytes_base2(&text));
            let _ = (int(&text), uint(&text), label(&text), label(&format!("a=\"{text}\"")));
            let expanded = expand_variables(&text, |_| Some(String::new()));
            proptest::prop_assert!(expanded.is_ok_and(|expanded| expanded.len() <= text.len()));
        }

        #[test]
        fn numbers_and_durations_come_back(number: i64, ms in 0..i64::MAX / 1_000_000) {
            proptest::prop_assert_eq!(int(&number.to_string()), Ok(number));
            proptest::prop_assert_eq!(duration_go(&format!("{number}ns")), match number {
                i64::MIN => Err(ValueError::NotAGoDuration(format!("{number}ns"))),
                _ => Ok(number),
            });
            proptest::prop_assert_eq!(duration_model(&format!("{ms}ms")), Ok(ms * 1_000_000));
        }
    }

    #[test]
    fn labels_are_go_string_literals() {
        let taken = [
            (r#"a="b""#, "a", "b"),
            ("a='b'", "a", "b"),
            ("a='\\''", "a", "'"),
            ("a=`b\"\\n`", "a", "b\"\\n"),
            (r#"a="""#, "a", ""),
            (r#"a.b-c="x""#, "a.b-c", "x"),
            (r#"a="x\ny\x41\101\u00e4\U0001f600\"""#, "a", "x\nyAAä😀\""),
            (r#"a="b=c""#, "a", "b=c"),
        ];
        for (text, name, value) in taken {
            assert_eq!(label(text), Ok((name.to_owned(), value.to_owned())), "{text}");
        }
        let refused = [
            ("foo", "unrecognized label"),
            ("a=b", "unquote label value"),
            ("a='bc'", "unquote label value"),
            ("a=''", "unquote label value"),
            ("a=\"", "unquote label value"),
            ("a=", "unquote label value"),
            ("a=\"\\q\"", "unquote label value"),
            ("a=\"\\'\"", "unquote label value"),
            ("a=\"\\400\"", "unquote label value"),
            ("a=\"\\ud800\"", "unquote label value"),
            ("a=\"x\ny\"", "unquote label value"),
            (r#"a="1",b="2""#, "unquote label value"),
            (r#"="x""#, "unsupported format for label"),
            (r#"a="\xff""#, "not valid UTF-8"),
        ];
        for (text, part) in refused {
            let error = label(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn variables_are_expanded_or_missed_by_name() {
        let variable = |name: &str| (name == "DIR").then(|| "bkt".to_owned());
        let expand = |content| expand_variables(content, variable);
        assert_eq!(expand("a: $(DIR)/x$(DIR)"), Ok("a: bkt/xbkt".to_owned()));
        assert_eq!(expand("${DIR} $() $(a b) $"), Ok("${DIR} $() $(a b) $".to_owned()));
        assert_eq!(expand("$($(DIR)"), Ok("$(bkt".to_owned()));
        assert_eq!(expand("$(UNSET)"), Err("UNSET".to_owned()));
    }
}
