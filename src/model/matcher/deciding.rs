//! Which values of a label decide whether a series matches.

use super::Matcher;

/// The values of a label that make a series fare unlike one without the label. If the matcher takes a
/// series without it, these are the values of series that are out; if not, of those that are in.
#[derive(Clone, Copy, Debug)]
pub enum Deciding<'m> {
    No,
    /// Sorted. Some of these may be in no series. Never the empty value.
    These(&'m [Vec<u8>]),
    Every,
    /// Those that the matcher tells.
    Walk(&'m Matcher),
}

impl Matcher {
    pub fn deciding(&self) -> Deciding<'_> {
        // Negation turns the verdict on every value round, the empty one's too: the values that
        // decide are the same.
        let accepts_empty = self.matches_empty() != self.is_negative();
        match (accepts_empty, self.accepted_values()) {
            (false, Some(values)) => Deciding::These(values),
            (true, Some([only])) if only.is_empty() => Deciding::Every,
            (false, None) if self.accepts_every_text() => Deciding::Every,
            (true, None) if self.accepts_every_text() => Deciding::No,
            _ => Deciding::Walk(self),
        }
    }

    /// Whether it takes whatever there is: `""=""`, by which Prometheus asks for all series.
    pub fn selects_all(&self) -> bool {
        self.op == super::MatchOp::Equal && self.name.is_empty() && self.value.is_empty()
    }
}

impl Deciding<'_> {
    /// Whether all values of the label have to be looked at.
    pub fn is_walk(&self) -> bool {
        matches!(self, Deciding::Walk(_))
    }
}

#[cfg(test)]
mod tests {
    use super::super::MatchOp::{self, Equal, NotEqual, NotRegex, Regex};
    use super::*;

    #[test]
    fn the_values_that_decide_are_those_that_fare_unlike_none() {
        let cases: [(MatchOp, &str, &str); 14] = [
            (Equal, "a", "these"),
            (NotEqual, "a", "these"),
            (Equal, "", "every"),
            (NotEqual, "", "every"),
            (Regex, "a|b", "these"),
            (NotRegex, "a|b", "these"),
            (Regex, ".*", "no"),
            (NotRegex, ".*", "no"),
            (Regex, ".+", "every"),
            (NotRegex, ".+", "every"),
            (Regex, "a.*", "walk"),
            (NotRegex, "a.*", "walk"),
            (Regex, "a|", "walk"),
            (Regex, "", "every"),
        ];
        for (op, value, expected) in cases {
            let matcher = Matcher::new(op, b"n", value.as_bytes()).unwrap();
            let deciding = matcher.deciding();
            let found = match deciding {
                Deciding::No => "no",
                Deciding::These(_) => "these",
                Deciding::Every => "every",
                Deciding::Walk(_) => "walk",
            };
            assert_eq!(found, expected, "{op:?} {value}");
            // What is said of values is what the matcher says.
            for text in ["a", "b", "ab", "x"] {
                let decides = match deciding {
                    Deciding::No => false,
                    Deciding::These(values) => values.contains(&text.as_bytes().to_vec()),
                    Deciding::Every => true,
                    Deciding::Walk(matcher) => {
                        matcher.matches(text.as_bytes()) != matcher.matches_empty()
                    }
                };
                let is_unlike = matcher.matches(text.as_bytes()) != matcher.matches_empty();
                assert_eq!(decides, is_unlike, "{op:?} {value} {text}");
            }
        }
    }
}
