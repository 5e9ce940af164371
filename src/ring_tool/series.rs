//! Series as people and programs write them.

use serde::Deserialize;

/// A series to be located. Labels are in the order in which they are hashed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) tenant: String,
    pub(super) labels: Vec<(String, String)>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SeriesError {
    #[error("not a series in JSON: {0}")]
    Json(String),
    #[error("not a series: expected {expected} at byte {offset}")]
    Text { expected: &'static str, offset: usize },
    #[error("not a series: not UTF-8")]
    NotUtf8,
}

/// A line of input.
#[derive(Deserialize)]
struct JsonSeries {
    tenant: Option<String>,
    labels: Vec<(String, String)>,
}

impl Series {
    /// A series in JSON, or else as text.
    pub(super) fn parse_line(line: &[u8], tenant: &str) -> Result<Series, SeriesError> {
        if !line.starts_with(b"{\"") {
            let text = std::str::from_utf8(line).map_err(|_| SeriesError::NotUtf8)?;
            return Series::parse_text(text, tenant);
        }
        let series: JsonSeries =
            serde_json::from_slice(line).map_err(|error| SeriesError::Json(error.to_string()))?;
        let tenant = series.tenant.unwrap_or_else(|| tenant.to_owned());
        Ok(Series { tenant, labels: series.labels })
    }

    /// A series as in `up{job="a"}`, its labels sorted by name, as senders do.
    pub(super) fn parse_text(text: &str, tenant: &str) -> Result<Series, SeriesError> {
        let mut parser = Parser { text, rest: text.trim() };
        let mut labels = parser.series()?;
        labels.sort();
        Ok(Series { tenant: tenant.to_owned(), labels })
    }

    /// Series number `i` of as many as wanted, all different.
    pub(super) fn made_up(tenant: &str, i: u64) -> Series {
        let labels = vec![("__name__".to_owned(), "m".to_owned()), ("i".to_owned(), i.to_string())];
        Series { tenant: tenant.to_owned(), labels }
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn series(&mut self) -> Result<Vec<(String, String)>, SeriesError> {
        let mut labels = Vec::new();
        let name = self.word();
        if !name.is_empty() {
            labels.push(("__name__".to_owned(), name.to_owned()));
        }
        if self.eat('{') {
            while !self.eat('}') {
                let name = if self.rest.starts_with('"') {
                    self.quoted()?
                } else {
                    self.word().to_owned()
                };
                if name.is_empty() {
                    return Err(self.expected("a label name"));
                }
                if !self.eat('=') {
                    return Err(self.expected("="));
                }
                labels.push((name, self.quoted()?));
                if !self.eat(',') && !self.rest.starts_with('}') {
                    return Err(self.expected(", or }"));
                }
            }
        } else if labels.is_empty() {
            return Err(self.expected("a metric name or {"));
        }
        if self.rest.is_empty() { Ok(labels) } else { Err(self.expected("the end")) }
    }

    /// Letters, digits, `_`, `:` and whatever else a name may hold that ends no name.
    fn word(&mut self) -> &'a str {
        let ends = |c: char| c.is_whitespace() || "{}=,\"".contains(c);
        let (word, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest.trim_start();
        word
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    /// A text in quotes, in which `\"`, `\\` and `\n` stand for what they do in Prometheus.
    fn quoted(&mut self) -> Result<String, SeriesError> {
        let Some(inner) = self.rest.strip_prefix('"') else {
            return Err(self.expected("a text in quotes"));
        };
        let mut text = String::new();
        let mut chars = inner.chars();
        loop {
            match chars.next() {
                None => return Err(self.expected("a closing quote")),
                Some('"') => break,
                Some('\\') => match chars.next() {
                    Some('n') => text.push('\n'),
                    Some(c @ ('"' | '\\')) => text.push(c),
                    _ => return Err(self.expected("\\\\, \\\" or \\n after a backslash")),
                },
                Some(c) => text.push(c),
            }
        }
        self.rest = chars.as_str().trim_start();
        Ok(text)
    }

    fn expected(&self, expected: &'static str) -> SeriesError {
        let text = self.text.trim_end();
        SeriesError::Text { expected, offset: text.len().saturating_sub(self.rest.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Result<Vec<(String, String)>, SeriesError> {
        Series::parse_text(text, "t").map(|series| series.labels)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn text_is_read_and_sorted() {
        assert_eq!(labels("up").unwrap(), pairs(&[("__name__", "up")]));
        let expected = pairs(&[("__name__", "a:b"), ("job", "x\"\\\n}"), ("zone", "")]);
        assert_eq!(labels(r#" a:b { zone = "" , job="x\"\\\n}", } "#).unwrap(), expected);
        assert_eq!(labels(r#"{"my label"="1"}"#).unwrap(), pairs(&[("my label", "1")]));
        assert_eq!(labels("{}").unwrap(), []);
    }

    #[test]
    fn what_is_no_series_is_told_with_its_place() {
        let error = |expected, offset| Err(SeriesError::Text { expected, offset });
        assert_eq!(labels(""), error("a metric name or {", 0));
        assert_eq!(labels("up{job}"), error("=", 6));
        assert_eq!(labels("up{job=\"a}"), error("a closing quote", 7));
        assert_eq!(labels("up{job=a}"), error("a text in quotes", 7));
        assert_eq!(labels("up{job=\"a\"} 1"), error("the end", 12));
        assert_eq!(labels("up{a=\"1\" b=\"2\"}"), error(", or }", 9));
        assert_eq!(labels("up{=\"1\"}"), error("a label name", 3));
    }

    #[test]
    fn json_keeps_the_order() {
        let line = br#"{"tenant":"x","labels":[["z","1"],["a","2"]]}"#;
        let series = Series::parse_line(line, "t").unwrap();
        assert_eq!(series.tenant, "x");
        assert_eq!(series.labels, pairs(&[("z", "1"), ("a", "2")]));
        assert!(matches!(Series::parse_line(b"{\"tenant\":1}", "t"), Err(SeriesError::Json(_))));
        assert_eq!(Series::parse_line(b"\xff", "t"), Err(SeriesError::NotUtf8));
    }
}
