//! Label matchers, with Go's regular expressions.
//!
//! An expression means what it means to Prometheus: it is parsed by itself (so `\Qx` is whole) in
//! the syntax of Go's `regexp/syntax` with Perl flags, `.` matches line feeds, and it has to match
//! the whole value.
//!
//! Label values are bytes. Go's engine reads a byte that is no part of valid UTF-8 as one character
//! U+FFFD; so does ours: such a value is matched as the text it decodes to. (Prometheus compares
//! bytes where it can do without its engine, and then tells that byte from U+FFFD; its engine does
//! not. We follow the engine throughout.)

mod classes;
mod syntax;

use std::borrow::Cow;
use std::sync::Arc;

use regex_automata::meta::{self, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Bytes a compiled program may take. `\pL{50}` takes 1 MiB.
const PROGRAM_BYTES_MAX: usize = 32 << 20;
/// Bytes of states that the lazy DFA keeps per thread that matches at once.
const DFA_CACHE_BYTES: usize = 2 << 20;
/// Values that an expression without a plain alternation may stand for before it is no longer
/// taken for a set.
const SET_VALUES_MIN: usize = 256;

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
    /// Of `Regex` and `NotRegex`.
    program: Option<Arc<Program>>,
}

/// An expression that Go refuses, or that is too large to compile.
#[derive(Debug, thiserror::Error)]
#[error("invalid regular expression {pattern:?}: {detail}")]
pub struct RegexError {
    pub pattern: String,
    /// In Go's words.
    pub detail: String,
}

impl Matcher {
    pub fn new(op: MatchOp, name: &[u8], value: &[u8]) -> Result<Matcher, RegexError> {
        let program = match op {
            MatchOp::Equal | MatchOp::NotEqual => None,
            MatchOp::Regex | MatchOp::NotRegex => Some(Arc::new(Program::compile(value)?)),
        };
        Ok(Matcher { op, name: name.to_vec(), value: value.to_vec(), program })
    }

    pub fn matches(&self, value: &[u8]) -> bool {
        self.accepts(value) != self.is_negative()
    }

    /// Whether a series without the label matches.
    pub fn matches_empty(&self) -> bool {
        self.matches(b"")
    }

    /// Whether the matcher wants what its value does not accept.
    pub fn is_negative(&self) -> bool {
        matches!(self.op, MatchOp::NotEqual | MatchOp::NotRegex)
    }

    /// All values that `=` or `=~` matches, sorted, if these are few enough to list. `None` for
    /// `!=` and `!~`.
    pub fn set_values(&self) -> Option<&[Vec<u8>]> {
        if self.is_negative() { None } else { self.accepted_values() }
    }

    /// The same without regard to negation: for `!=` and `!~` the values that do *not* match.
    pub fn accepted_values(&self) -> Option<&[Vec<u8>]> {
        match self.program.as_deref() {
            None => Some(std::slice::from_ref(&self.value)),
            Some(Program::Set { values, byte_exact: true }) => Some(values),
            Some(_) => None,
        }
    }

    /// A prefix of every value that the expression accepts, for walks over sorted values.
    pub fn accepted_prefix(&self) -> &[u8] {
        match self.program.as_deref() {
            None => &self.value,
            Some(Program::Prefix { prefix, .. } | Program::Regex { prefix, .. })
                if is_byte_exact(prefix) =>
            {
                prefix
            }
            Some(_) => b"",
        }
    }

    fn accepts(&self, value: &[u8]) -> bool {
        match self.program.as_deref() {
            None => self.value == value,
            Some(program) => program.accepts(&decoded_as_go(value)),
        }
    }
}

/// An expression in the cheapest form that decides it.
#[derive(Debug)]
enum Program {
    /// Just these values, sorted, each once.
    Set {
        values: Vec<Vec<u8>>,
        /// No value has a U+FFFD, which would stand for stray bytes, too.
        byte_exact: bool,
    },
    /// At least so many bytes of anything: `.*` or `.+`.
    Any { at_least: usize },
    /// `prefix.*` or `prefix.+`
    Prefix { prefix: Vec<u8>, more_at_least: usize },
    /// `.*suffix` or `.+suffix`
    Suffix { suffix: Vec<u8>, more_at_least: usize },
    Regex {
        /// What every match begins with, compared before the engine starts.
        prefix: Vec<u8>,
        regex: Box<Regex>,
    },
}

impl Program {
    fn compile(pattern: &[u8]) -> Result<Program, RegexError> {
        let refuse = |detail: String| RegexError {
            pattern: String::from_utf8_lossy(pattern).into_owned(),
            detail,
        };
        let hir = syntax::parse(pattern).map_err(|error| refuse(error.to_string()))?;
        let parts = match hir.kind() {
            HirKind::Concat(parts) => parts.as_slice(),
            _ => std::slice::from_ref(&hir),
        };
        let budget = SetBudget {
            values: SET_VALUES_MIN.max(pattern.len()),
            bytes: 16 * SET_VALUES_MIN.max(pattern.len()),
        };
        if let Some(mut values) = finite_set(&hir, true, true, budget) {
            values.sort_unstable();
            values.dedup();
            let byte_exact = values.iter().all(|value| is_byte_exact(value));
            return Ok(Program::Set { values, byte_exact });
        }
        match parts.iter().map(Part::of).collect::<Vec<_>>().as_slice() {
            &[Part::Any { at_least }] => return Ok(Program::Any { at_least }),
            &[Part::Literal(prefix), Part::Any { at_least }] => {
                return Ok(Program::Prefix { prefix: prefix.to_vec(), more_at_least: at_least });
            }
            &[Part::Any { at_least }, Part::Literal(suffix)] => {
                return Ok(Program::Suffix { suffix: suffix.to_vec(), more_at_least: at_least });
            }
            _ => {}
        }
        let prefix = match parts.first().map(Hir::kind) {
            Some(HirKind::Literal(literal)) => literal.0.to_vec(),
            _ => Vec::new(),
        };
        let whole = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
        let config = Regex::config()
            .utf8_empty(false)
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(PROGRAM_BYTES_MAX))
            .hybrid_cache_capacity(DFA_CACHE_BYTES);
        let regex = meta::Builder::new()
            .configure(config)
            .build_from_hir(&whole)
            .map_err(|_| refuse("expression too large".to_owned()))?;
        Ok(Program::Regex { prefix, regex: Box::new(regex) })
    }

    /// `value` is valid UTF-8.
    fn accepts(&self, value: &[u8]) -> bool {
        match self {
            Program::Set { values, .. } => {
                values.binary_search_by(|known| known.as_slice().cmp(value)).is_ok()
            }
            Program::Any { at_least } => value.len() >= *at_least,
            Program::Prefix { prefix, more_at_least } => {
                value.strip_prefix(&prefix[..]).is_some_and(|more| more.len() >= *more_at_least)
            }
            Program::Suffix { suffix, more_at_least } => {
                value.strip_suffix(&suffix[..]).is_some_and(|more| more.len() >= *more_at_least)
            }
            Program::Regex { prefix, regex } => {
                value.starts_with(prefix)
                    && regex.is_match(Input::new(value).anchored(Anchored::Yes))
            }
        }
    }
}

/// What the cheap forms are made of.
enum Part<'h> {
    Literal(&'h [u8]),
    /// `.*` (0) or `.+` (1), line feeds included. One character is at least one byte.
    Any {
        at_least: usize,
    },
    Other,
}

impl<'h> Part<'h> {
    fn of(hir: &'h Hir) -> Part<'h> {
        match hir.kind() {
            HirKind::Literal(literal) => Part::Literal(&literal.0),
            HirKind::Repetition(repetition) if repetition.max.is_none() && repetition.min <= 1 => {
                match repetition.sub.kind() {
                    HirKind::Class(Class::Unicode(class)) if *class == classes::any() => {
                        Part::Any { at_least: repetition.min as usize }
                    }
                    _ => Part::Other,
                }
            }
            _ => Part::Other,
        }
    }
}

/// How large a set may grow.
#[derive(Clone, Copy)]
struct SetBudget {
    values: usize,
    bytes: usize,
}

impl SetBudget {
    fn admits(self, values: usize, bytes: usize) -> bool {
        values <= self.values && bytes <= self.bytes
    }
}

/// All texts that match `hir`, if that is a set within the budget. `at_start` and `at_end` say
/// whether it stands at the very start and end of the value, where anchors hold.
fn finite_set(hir: &Hir, at_start: bool, at_end: bool, budget: SetBudget) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Empty => Some(vec![Vec::new()]),
        HirKind::Literal(literal) => Some(vec![literal.0.to_vec()]),
        HirKind::Class(Class::Unicode(class)) => {
            let members: usize = class.ranges().iter().map(|range| range.len()).sum();
            if !budget.admits(members, members) {
                return None;
            }
            let chars = class.ranges().iter().flat_map(|range| range.start()..=range.end());
            Some(chars.map(|c| c.to_string().into_bytes()).collect())
        }
        HirKind::Class(Class::Bytes(_)) => None,
        HirKind::Look(Look::Start) if at_start => Some(vec![Vec::new()]),
        HirKind::Look(Look::End) if at_end => Some(vec![Vec::new()]),
        HirKind::Look(_) => None,
        HirKind::Repetition(repetition) => {
            let max = repetition.max? as usize;
            let sub = finite_set(&repetition.sub, false, false, budget)?;
            let mut exactly = vec![Vec::new()];
            let mut all = Vec::new();
            for count in 0..=max {
                if count >= repetition.min as usize {
                    all.extend_from_slice(&exactly);
                }
                if !budget.admits(all.len(), byte_len(&all)) {
                    return None;
                }
                if count < max {
                    exactly = product(&exactly, &sub, budget)?;
                }
            }
            Some(all)
        }
        HirKind::Capture(capture) => finite_set(&capture.sub, at_start, at_end, budget),
        HirKind::Concat(parts) => {
            let mut all = vec![Vec::new()];
            for (i, part) in parts.iter().enumerate() {
                let part_at_start = at_start && only_empty(parts.iter().take(i));
                let part_at_end = at_end && only_empty(parts.iter().skip(i + 1));
                let set = finite_set(part, part_at_start, part_at_end, budget)?;
                all = product(&all, &set, budget)?;
            }
            Some(all)
        }
        HirKind::Alternation(choices) => {
            let mut all = Vec::new();
            let mut bytes = 0;
            for choice in choices {
                let set = finite_set(choice, at_start, at_end, budget)?;
                bytes += byte_len(&set);
                all.extend(set);
                if !budget.admits(all.len(), bytes) {
                    return None;
                }
            }
            Some(all)
        }
    }
}

/// Each of `left` with each of `right` behind it.
fn product(left: &[Vec<u8>], right: &[Vec<u8>], budget: SetBudget) -> Option<Vec<Vec<u8>>> {
    let values = left.len().checked_mul(right.len())?;
    let bytes = (byte_len(left).checked_mul(right.len())?)
        .checked_add(byte_len(right).checked_mul(left.len())?)?;
    if !budget.admits(values, bytes) {
        return None;
    }
    Some(left.iter().flat_map(|l| right.iter().map(move |r| [&l[..], r].concat())).collect())
}

fn byte_len(values: &[Vec<u8>]) -> usize {
    values.iter().map(Vec::len).sum()
}

fn only_empty<'h>(mut parts: impl Iterator<Item = &'h Hir>) -> bool {
    parts.all(|part| part.properties().maximum_len() == Some(0))
}

/// Whether no stray byte of a value can be read as a part of `text`.
fn is_byte_exact(text: &[u8]) -> bool {
    const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();
    !text.windows(REPLACEMENT.len()).any(|window| window == REPLACEMENT)
}

/// A value as Go's engine reads it: every byte that is no part of valid UTF-8 is U+FFFD.
fn decoded_as_go(value: &[u8]) -> Cow<'_, [u8]> {
    if std::str::from_utf8(value).is_ok() {
        return Cow::Borrowed(value);
    }
    let mut text = String::with_capacity(value.len() * 2);
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(text.into_bytes())
}

#[cfg(test)]
mod tests;
