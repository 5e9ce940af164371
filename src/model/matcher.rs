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

mod chars;
mod classes;
mod deciding;
mod syntax;
mod terms;

use std::borrow::Cow;
use std::sync::Arc;

use regex_automata::meta::{self, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_automata::{Anchored, Input};
use regex_syntax::hir::{Hir, HirKind, Look};

use self::chars::{Chars, TooLarge};
pub use self::deciding::Deciding;
use self::terms::{Budget, Term, Terms};

/// Bytes that an automaton over bytes may take. `\pL{100}` takes 2 MiB. What would take more is
/// decided over characters.
const PROGRAM_BYTES_MAX: usize = 16 << 20;
/// Bytes of states that the lazy DFA keeps per thread that matches at once.
const DFA_CACHE_BYTES: usize = 2 << 20;
/// What a byte of an alternation takes at most: `a|b|c` is a text of its own every two bytes.
const TERM_BYTES: usize = 32;
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

    /// What it takes, roughly and rather more.
    pub fn bytes(&self) -> usize {
        let program = self.program.as_deref().map_or(0, |program| {
            program.bytes().saturating_add(TERM_BYTES.saturating_mul(self.value.len()))
        });
        program.saturating_add(self.name.len() + self.value.len())
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

    /// Whether the expression accepts every value, the empty one perhaps excepted: `.*` or `.+`.
    pub fn accepts_every_text(&self) -> bool {
        matches!(self.program.as_deref(), Some(Program::Any { .. }))
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
    /// Alternatives of texts and gaps, and what is none.
    Terms { terms: Box<Terms>, others: Option<Engine> },
    Engine {
        /// What every match begins with, compared before the engine starts.
        prefix: Vec<u8>,
        engine: Engine,
    },
}

impl Program {
    fn compile(pattern: &[u8]) -> Result<Program, RegexError> {
        let refuse = |detail: String| RegexError {
            pattern: String::from_utf8_lossy(pattern).into_owned(),
            detail,
        };
        let hir = syntax::parse(pattern).map_err(|error| refuse(error.to_string()))?;
        let budget = Budget {
            terms: SET_VALUES_MIN.max(pattern.len()),
            bytes: 16 * SET_VALUES_MIN.max(pattern.len()),
        };
        let too_large = |_| refuse("expression too large".to_owned());
        let engine = |hir: &Hir| Engine::compile(hir).map_err(too_large);
        if let Some(program) = terms::terms(&hir, true, true, budget).and_then(Program::of_terms) {
            return Ok(program);
        }
        let (terms, others) = split(&hir, budget);
        if let (false, Some(found)) = (terms.is_empty(), Terms::new(terms)) {
            let others = Some(engine(&Hir::alternation(others))?);
            return Ok(Program::Terms { terms: Box::new(found), others });
        }
        let first = match hir.kind() {
            HirKind::Concat(parts) => parts.first(),
            _ => Some(&hir),
        };
        let prefix = match first.map(Hir::kind) {
            Some(HirKind::Literal(literal)) => literal.0.to_vec(),
            _ => Vec::new(),
        };
        Ok(Program::Engine { prefix, engine: engine(&hir)? })
    }

    /// `None` if they are too many.
    fn of_terms(terms: Vec<Term>) -> Option<Program> {
        if !terms.iter().any(Term::has_gap) {
            let mut values: Vec<_> = terms.into_iter().map(|term| term.first).collect();
            values.sort_unstable();
            values.dedup();
            let byte_exact = values.iter().all(|value| is_byte_exact(value));
            return Some(Program::Set { values, byte_exact });
        }
        match &terms[..] {
            [Term { first, rest }]
                if first.is_empty() && rest.len() == 1 && rest[0].1.is_empty() =>
            {
                Some(Program::Any { at_least: rest[0].0 })
            }
            _ => Some(Program::Terms { terms: Box::new(Terms::new(terms)?), others: None }),
        }
    }

    /// What it takes beside its texts.
    fn bytes(&self) -> usize {
        match self {
            Program::Set { .. } | Program::Any { .. } => 0,
            Program::Terms { terms, others } => {
                terms.bytes().saturating_add(others.as_ref().map_or(0, Engine::bytes))
            }
            Program::Engine { engine, .. } => engine.bytes(),
        }
    }

    /// `value` is valid UTF-8.
    fn accepts(&self, value: &str) -> bool {
        match self {
            Program::Set { values, .. } => {
                values.binary_search_by(|known| known.as_slice().cmp(value.as_bytes())).is_ok()
            }
            Program::Any { at_least } => value.len() >= *at_least,
            Program::Terms { terms, others } => {
                terms.matches(value.as_bytes())
                    || others.as_ref().is_some_and(|engine| engine.is_match(value))
            }
            Program::Engine { prefix, engine } => {
                value.as_bytes().starts_with(prefix) && engine.is_match(value)
            }
        }
    }
}

/// Alternatives that are texts and gaps, and those that are not.
fn split(hir: &Hir, budget: Budget) -> (Vec<Term>, Vec<Hir>) {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for alternative in terms::alternatives(hir) {
        match terms::terms(&alternative, true, true, budget) {
            Some(of_alternative) if found.len() + of_alternative.len() <= budget.terms => {
                found.extend(of_alternative);
            }
            _ => others.push(alternative),
        }
    }
    (found, others)
}

/// Decides what nothing cheaper does.
#[derive(Debug)]
enum Engine {
    Bytes(Box<Regex>),
    /// Slower, and small where the other would be too large.
    Chars(Box<Chars>),
}

impl Engine {
    fn compile(hir: &Hir) -> Result<Engine, TooLarge> {
        let whole = Hir::concat(vec![Hir::look(Look::Start), hir.clone(), Hir::look(Look::End)]);
        let config = Regex::config()
            .utf8_empty(false)
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(PROGRAM_BYTES_MAX))
            .hybrid_cache_capacity(DFA_CACHE_BYTES);
        match meta::Builder::new().configure(config).build_from_hir(&whole) {
            Ok(regex) => Ok(Engine::Bytes(Box::new(regex))),
            Err(_) => Ok(Engine::Chars(Box::new(Chars::compile(hir)?))),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            // As it is used it makes states, of which it keeps some.
            Engine::Bytes(regex) => {
                let program = regex.memory_usage();
                program.saturating_add(program.saturating_mul(16).min(DFA_CACHE_BYTES))
            }
            Engine::Chars(chars) => chars.bytes(),
        }
    }

    /// Whether the whole value matches.
    fn is_match(&self, value: &str) -> bool {
        match self {
            Engine::Bytes(regex) => regex.is_match(Input::new(value).anchored(Anchored::Yes)),
            Engine::Chars(chars) => chars.is_match(value),
        }
    }
}

/// Whether no stray byte of a value can be read as a part of `text`.
fn is_byte_exact(text: &[u8]) -> bool {
    const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();
    !text.windows(REPLACEMENT.len()).any(|window| window == REPLACEMENT)
}

/// A value as Go's engine reads it: every byte that is no part of valid UTF-8 is U+FFFD.
fn decoded_as_go(value: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(value) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(value.len() * 2);
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests;
