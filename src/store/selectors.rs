//! The selectors of a PromQL expression: which series it is about. Thanos' Exemplars API asks with
//! one; `thanos query` sends nothing but selectors, joined by `+`.
//!
//! An expression is read token by token (Prometheus' `promql/parser/lex.go`, 3.14), and what stands
//! between selectors is not judged beyond its brackets: no query language is spoken here, and what
//! Prometheus would refuse for its types is answered.

use crate::model::labels::METRIC_NAME;
use crate::store::matchers::{MATCHERS_MAX, WireMatcher};

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: parse error: {what}")]
pub struct ExpressionError {
    /// The byte of the text, from 1.
    at: usize,
    what: &'static str,
}

/// A matcher of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextMatcher {
    /// As on the wire: 0 `=`, 1 `!=`, 2 `=~`, 3 `!~`.
    op: i32,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl WireMatcher for TextMatcher {
    fn parts(&self) -> (i32, &[u8], &[u8]) {
        (self.op, &self.name, &self.value)
    }
}

impl TextMatcher {
    fn of_metric(name: &[u8]) -> TextMatcher {
        TextMatcher { op: 0, name: METRIC_NAME.to_vec(), value: name.to_vec() }
    }
}

/// The matchers of each selector of `expression`, in their order, [`MATCHERS_MAX`] at most. Takes time
/// in proportion to its length.
pub fn selectors(expression: &[u8]) -> Result<Vec<Vec<TextMatcher>>, ExpressionError> {
    let mut reader = Reader { text: expression, at: 0 };
    let mut found: Vec<Vec<TextMatcher>> = Vec::new();
    let mut open = Vec::new();
    let mut is_empty = true;
    let mut count = 0;
    loop {
        let before = found.len();
        reader.skip_blanks();
        let Some(byte) = reader.peek() else { break };
        is_empty = false;
        match byte {
            b'(' => open.push(reader.take()),
            b')' => {
                reader.take();
                open.pop().ok_or(reader.error("unexpected right parenthesis"))?;
            }
            b'[' => reader.skip_range()?,
            b'{' => found.push(reader.selector(None)?),
            b'"' | b'\'' | b'`' => drop(reader.string()?),
            b'0'..=b'9' | b'.' => reader.skip_number(),
            b if is_word(b) => {
                let word = reader.word();
                if let Some(selector) = reader.after_word(word)? {
                    found.push(selector);
                }
            }
            b'+' | b'-' | b'*' | b'/' | b'%' | b'^' | b'=' | b'!' | b'<' | b'>' | b',' | b'@'
            | b'~' => drop(reader.take()),
            _ => return Err(reader.error("unexpected character")),
        }
        count += found[before..].iter().map(Vec::len).sum::<usize>();
        if count > MATCHERS_MAX {
            return Err(reader.error("more matchers than one query may have"));
        }
    }
    match (is_empty, open.is_empty()) {
        (true, _) => Err(reader.error("no expression found in input")),
        (_, false) => Err(reader.error("unclosed left parenthesis")),
        _ => Ok(found),
    }
}

/// Behind these may come a list of label names in parentheses.
const TAKE_LABELS: [&[u8]; 6] =
    [b"by", b"without", b"on", b"ignoring", b"group_left", b"group_right"];

/// Words that are no metric's name.
const KEYWORDS: [&[u8]; 8] =
    [b"and", b"or", b"unless", b"atan2", b"bool", b"offset", b"inf", b"nan"];

/// Metrics may be called so, too: they aggregate if a grouping or an expression follows.
const AGGREGATES: [&[u8]; 14] = [
    b"sum",
    b"avg",
    b"count",
    b"min",
    b"max",
    b"group",
    b"stddev",
    b"stdvar",
    b"topk",
    b"bottomk",
    b"count_values",
    b"quantile",
    b"limitk",
    b"limit_ratio",
];

struct Reader<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Reader<'t> {
    fn error(&self, what: &'static str) -> ExpressionError {
        ExpressionError { at: self.at + 1, what }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// Blanks and comments.
    fn skip_blanks(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                b'#' => self.skip_while(|byte| byte != b'\n'),
                _ => return,
            }
        }
    }

    fn skip_while(&mut self, is_wanted: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&is_wanted) {
            self.at += 1;
        }
    }

    fn word(&mut self) -> &'t [u8] {
        let start = self.at;
        self.skip_while(|byte| is_word(byte) || byte.is_ascii_digit());
        &self.text[start..self.at]
    }

    /// A number or a duration: an exponent may have a sign.
    fn skip_number(&mut self) {
        let is_hexadecimal = self.text[self.at..].starts_with(b"0x");
        let mut before = 0;
        while let Some(byte) = self.peek() {
            let is_sign =
                matches!(byte, b'+' | b'-') && matches!(before, b'e' | b'E') && !is_hexadecimal;
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || is_sign) {
                return;
            }
            before = byte;
            self.at += 1;
        }
    }

    /// What stands in brackets: no selector does.
    fn skip_range(&mut self) -> Result<(), ExpressionError> {
        self.skip_while(|byte| byte != b']');
        self.take().map(drop).ok_or(self.error("unclosed left bracket"))
    }

    /// What a word is that was just read, by what follows.
    fn after_word(&mut self, word: &[u8]) -> Result<Option<Vec<TextMatcher>>, ExpressionError> {
        let is_one_of = |words: &[&[u8]]| words.iter().any(|one| one.eq_ignore_ascii_case(word));
        self.skip_blanks();
        let next = self.peek();
        if is_one_of(&TAKE_LABELS) {
            if next == Some(b'(') {
                self.skip_while(|byte| byte != b')');
                self.take().ok_or(self.error("unclosed left parenthesis"))?;
            }
            return Ok(None);
        }
        if is_one_of(&KEYWORDS) || next == Some(b'(') {
            return Ok(None);
        }
        if is_one_of(&AGGREGATES) {
            let mut ahead = Reader { text: self.text, at: self.at };
            let follows = ahead.word();
            if [&b"by"[..], b"without"].iter().any(|one| one.eq_ignore_ascii_case(follows)) {
                return Ok(None);
            }
        }
        match next {
            Some(b'{') => self.selector(Some(word)).map(Some),
            _ => Ok(Some(vec![TextMatcher::of_metric(word)])),
        }
    }

    /// The matchers in braces, behind the metric's name if it stands before them.
    fn selector(&mut self, metric: Option<&[u8]>) -> Result<Vec<TextMatcher>, ExpressionError> {
        let mut matchers: Vec<_> = metric.into_iter().map(TextMatcher::of_metric).collect();
        self.take();
        loop {
            self.skip_blanks();
            let (name, is_quoted) = match self.peek() {
                Some(b'}') => break,
                Some(b'"' | b'\'' | b'`') => (self.string()?, true),
                Some(byte) if is_word(byte) => (self.label_name()?, false),
                Some(_) => return Err(self.error("unexpected character inside braces")),
                None => return Err(self.error("unexpected end of input inside braces")),
            };
            self.skip_blanks();
            match self.operator() {
                Some(op) => {
                    self.skip_blanks();
                    let value = self.string()?;
                    matchers.push(TextMatcher { op, name, value });
                }
                None if is_quoted => matchers.push(TextMatcher::of_metric(&name)),
                None => return Err(self.error("expected a label matching operator")),
            }
            self.skip_blanks();
            match self.peek() {
                Some(b',') => drop(self.take()),
                Some(b'}') => {}
                _ => return Err(self.error("expected a comma or a right brace")),
            }
        }
        self.take();
        let names = matchers.iter().filter(|one| one.op == 0 && one.name == METRIC_NAME).count();
        if metric.is_some() && names > 1 {
            return Err(self.error("metric name must not be set twice"));
        }
        let says_nothing = |one: &TextMatcher| match one.op {
            0 | 2 => one.value.is_empty(),
            _ => !one.value.is_empty(),
        };
        if matchers.iter().all(says_nothing) {
            let what = "vector selector must contain at least one non-empty matcher";
            return Err(self.error(what));
        }
        Ok(matchers)
    }

    /// A label's name has no colons, as a metric's may.
    fn label_name(&mut self) -> Result<Vec<u8>, ExpressionError> {
        let before = self.error("unexpected character inside braces");
        let name = self.word();
        if name.contains(&b':') {
            return Err(before);
        }
        Ok(name.to_vec())
    }

    fn operator(&mut self) -> Option<i32> {
        let operators: [(&[u8], i32); 4] = [(b"=~", 2), (b"!~", 3), (b"!=", 1), (b"=", 0)];
        let rest = &self.text[self.at..];
        let (text, number) = operators.into_iter().find(|(text, _)| rest.starts_with(text))?;
        self.at += text.len();
        Some(number)
    }

    /// A string in any of the three quotes, with Go's escapes but in backticks.
    fn string(&mut self) -> Result<Vec<u8>, ExpressionError> {
        let quote = match self.peek() {
            Some(quote @ (b'"' | b'\'' | b'`')) => quote,
            _ => return Err(self.error("expected a string")),
        };
        self.take();
        let mut value = Vec::new();
        loop {
            match self.take() {
                Some(byte) if byte == quote => return Ok(value),
                Some(b'\\') if quote != b'`' => self.escape(quote, &mut value)?,
                None | Some(b'\n') if quote != b'`' => {
                    return Err(self.error("unterminated quoted string"));
                }
                None => return Err(self.error("unterminated raw string")),
                Some(byte) => value.push(byte),
            }
        }
    }

    fn escape(&mut self, quote: u8, value: &mut Vec<u8>) -> Result<(), ExpressionError> {
        let wrong = self.error("unknown escape sequence");
        let byte = match self.take() {
            Some(b'a') => 7,
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'v') => 11,
            Some(b'\\') => b'\\',
            Some(byte) if byte == quote => byte,
            Some(b'x') => u8::try_from(self.digits(2, 16).ok_or(wrong.clone())?).unwrap_or(0),
            Some(b'0'..=b'7') => {
                self.at -= 1;
                let number = self.digits(3, 8).ok_or(wrong.clone())?;
                u8::try_from(number).map_err(|_| wrong)?
            }
            Some(long @ (b'u' | b'U')) => {
                let count = if long == b'u' { 4 } else { 8 };
                let number = self.digits(count, 16).ok_or(wrong.clone())?;
                let char = char::from_u32(number).ok_or(wrong)?;
                value.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(wrong),
        };
        value.push(byte);
        Ok(())
    }

    fn digits(&mut self, count: usize, radix: u32) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + count)?;
        self.at += count;
        digits.iter().try_fold(0_u32, |number, digit| {
            number.checked_mul(radix)?.checked_add(char::from(*digit).to_digit(radix)?)
        })
    }
}

/// Whether a metric's name may begin with the byte.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(expression: &str) -> String {
        let shown = |matcher: &TextMatcher| {
            let TextMatcher { op, name, value } = matcher;
            let op = ["=", "!=", "=~", "!~"][*op as usize];
            format!("{}{op}{}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
        };
        match selectors(expression.as_bytes()) {
            Ok(found) => {
                let sets = found.iter().map(|set| set.iter().map(shown).collect::<Vec<_>>());
                sets.map(|set| set.join(",")).collect::<Vec<_>>().join(" | ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn selectors_are_found_in_expressions() {
        for (expression, expected) in [
            ("m", "__name__=m"),
            ("{a=\"b\"}+{c!='d', e=~`f\\d`,g!~\"h\",}", "a=b | c!=d,e=~f\\d,g!~h"),
            ("m{tenant_id=\"ok\"}", "__name__=m,tenant_id=ok"),
            ("rate(m{a=\"b\"}[5m])", "__name__=m,a=b"),
            ("sum(m) / sum(nope)", "__name__=m | __name__=nope"),
            ("sum by (job, m) (x) + on (a) group_left (b) y", "__name__=x | __name__=y"),
            ("sum(x) without (y)", "__name__=x"),
            ("SUM BY (y) (x)", "__name__=x"),
            ("sum + count{a=\"b\"}", "__name__=sum | __name__=count,a=b"),
            ("histogram_quantile(0.9, sum by(le)(rate(a:b:c[5m] offset -1h)))", "__name__=a:b:c"),
            ("m @ 1609746000.5e-3 > bool 1e+3 and n @ start()", "__name__=m | __name__=n"),
            ("max_over_time(m[1h:5m] offset 1d) unless 0x1F == Inf", "__name__=m"),
            ("m # and n\n - o", "__name__=m | __name__=o"),
            ("{\"a.b\", \"c.d\"=\"e\"}", "__name__=a.b,c.d=e"),
            ("label_replace(m, \"x\", \"$1\", \"y\", \"n{a='b'}\")", "__name__=m"),
            ("{by=\"1\",a=\"\\n\\x41\\101\\u00e9\\\"\"}", "by=1,a=\nAAé\""),
            ("1", ""),
            ("\"str\"", ""),
        ] {
            assert_eq!(shown(expression), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for (expression, expected) in [
            ("", "1: parse error: no expression found in input"),
            ("  # m", "6: parse error: no expression found in input"),
            ("((", "3: parse error: unclosed left parenthesis"),
            ("m)", "3: parse error: unexpected right parenthesis"),
            ("m[5m", "5: parse error: unclosed left bracket"),
            ("{a=\"b\"", "7: parse error: expected a comma or a right brace"),
            ("{a}", "3: parse error: expected a label matching operator"),
            ("{a=b}", "4: parse error: expected a string"),
            ("{a=\"b}", "7: parse error: unterminated quoted string"),
            ("{a=\"\\q\"}", "6: parse error: unknown escape sequence"),
            ("{a=\"\\xz0\"}", "6: parse error: unknown escape sequence"),
            ("{a:b=\"c\"}", "2: parse error: unexpected character inside braces"),
            ("m $ n", "3: parse error: unexpected character"),
            ("m{__name__=\"n\"}", "16: parse error: metric name must not be set twice"),
        ] {
            assert_eq!(shown(expression), expected, "{expression}");
        }
        assert!(selectors("m+".repeat(MATCHERS_MAX).as_bytes()).is_ok());
        assert!(shown(&"m+".repeat(MATCHERS_MAX + 1)).ends_with("one query may have"));
        assert!(shown(&format!("{{{}}}", "a='b',".repeat(1 << 16))).ends_with("may have"));
        for empty in ["{}", "{a=\"\"}", "{a!=\"b\",c=~\"\"}"] {
            assert!(shown(empty).ends_with("at least one non-empty matcher"), "{empty}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = selectors(&bytes);
        }

        #[test]
        fn any_text_of_tokens_is_read_without_a_panic(
            tokens in prop::collection::vec(
                prop::sample::select(vec![
                    "m", "by", "(", ")", "{", "}", "[", "]", "\"", "'", "`", "\\x", "=", "=~", ",",
                    "1e", "+", "#", "\n", " ", "sum", "offset", "a=\"b\"", "\u{e9}",
                ]),
                0..40,
            ),
        ) {
            let _ = selectors(tokens.concat().as_bytes());
        }
    }
}
