//! Go's regular-expression syntax (`regexp/syntax` with its Perl flags), parsed to the form that
//! `regex-automata` compiles.
//!
//! A parser of our own, because the syntax of the `regex` crate differs in what it takes and in
//! what it means: there `\d` is Unicode, `[a&&b]` an intersection, `{` must be escaped, `x**` is
//! legal, `(?x)` exists. Groups only group here: a matcher asks whether a whole value matches, so
//! what a group captured and whether a repetition is greedy makes no difference.
//!
//! The parser is a stack machine and never recurses, whatever the pattern.

use regex_syntax::hir::{Class, ClassUnicode, Hir, Look, Repetition};

use super::classes;

/// Nesting that Go allows, in nodes of its syntax tree.
const HEIGHT_MAX: u32 = 1000;
/// Instructions that Go allows in a program (128 MiB at 40 bytes each).
const SIZE_MAX: u64 = (128 << 20) / 40;
/// Greatest number in a counted repetition, and greatest product of nested ones.
const REPEAT_MAX: u32 = 1000;
/// Limits of our own, far above what queries need, so that a pattern costs some ten megabytes at
/// most before it is refused: its length, its pieces (a run of plain characters is one), and the
/// ranges that its classes take together (`\pL` alone has 600).
const PATTERN_BYTES_MAX: usize = 4 << 20;
const PIECES_MAX: usize = 1 << 17;
const CLASS_RANGES_MAX: usize = 1 << 20;

/// Why Go refuses a pattern. The text is the part of the pattern at fault.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SyntaxError {
    #[error("invalid UTF-8")]
    InvalidUtf8,
    #[error("invalid character class range: `{0}`")]
    InvalidCharRange(String),
    #[error("invalid escape sequence: `{0}`")]
    InvalidEscape(String),
    #[error("invalid named capture: `{0}`")]
    InvalidNamedCapture(String),
    #[error("invalid or unsupported Perl syntax: `{0}`")]
    InvalidPerlOp(String),
    #[error("invalid nested repetition operator: `{0}`")]
    InvalidRepeatOp(String),
    #[error("invalid repeat count: `{0}`")]
    InvalidRepeatSize(String),
    #[error("missing closing ]: `{0}`")]
    MissingBracket(String),
    #[error("missing closing ): `{0}`")]
    MissingParen(String),
    #[error("missing argument to repetition operator: `{0}`")]
    MissingRepeatArgument(String),
    #[error("trailing backslash at end of expression: ``")]
    TrailingBackslash,
    #[error("unexpected ): `{0}`")]
    UnexpectedParen(String),
    #[error("expression too large")]
    TooLarge,
    #[error("expression nests too deeply")]
    TooDeep,
}

/// Parses a pattern by itself; `.` matches line feeds, as in every Prometheus matcher.
pub(super) fn parse(pattern: &[u8]) -> Result<Hir, SyntaxError> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(SyntaxError::TooLarge);
    }
    let pattern = std::str::from_utf8(pattern).map_err(|_| SyntaxError::InvalidUtf8)?;
    Parser {
        cursor: Cursor { pattern, at: 0 },
        flags: Flags { fold_case: false, multi_line: false, dot_all: true },
        open: Vec::new(),
        group: Group::default(),
        pieces: 0,
        class_ranges: 0,
    }
    .parse()
}

/// Flags that change what matches. `U` (greed swapped) is read and forgotten.
#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    /// `i`
    fold_case: bool,
    /// `m`: `^` and `$` match at lines.
    multi_line: bool,
    /// `s`: `.` matches a line feed.
    dot_all: bool,
}

/// A parsed piece and what Go's limits need to know of it.
struct Node {
    hir: Hir,
    /// Height in Go's syntax tree.
    height: u32,
    /// Instructions in Go's program.
    size: u64,
    /// Greatest product of nested counted repetitions.
    repeats: u32,
}

impl Node {
    fn leaf(hir: Hir) -> Node {
        Node { hir, height: 1, size: 1, repeats: 1 }
    }
}

/// What is read of a group: the alternatives before the last `|`, and the pieces behind it.
#[derive(Default)]
struct Group {
    alternatives: Vec<Node>,
    pieces: Vec<Node>,
    /// Plain characters behind the last piece.
    literal: String,
}

impl Group {
    fn push(&mut self, node: Node) {
        self.end_literal();
        self.pieces.push(node);
    }

    /// Takes off what a repetition repeats: the last character or the last piece.
    fn pop(&mut self) -> Option<Node> {
        match self.literal.pop() {
            None => self.pieces.pop(),
            Some(last) => {
                self.end_literal();
                Some(literal(last.encode_utf8(&mut [0; 4]), 1))
            }
        }
    }

    fn end_literal(&mut self) {
        if !self.literal.is_empty() {
            let characters = self.literal.chars().count() as u64;
            self.pieces.push(literal(&self.literal, characters));
            self.literal.clear();
        }
    }

    /// Ends an alternative.
    fn concat(&mut self) -> Result<Node, SyntaxError> {
        self.end_literal();
        let mut pieces = std::mem::take(&mut self.pieces);
        match pieces.len() {
            0 => Ok(Node::leaf(Hir::empty())),
            1 => Ok(pieces.swap_remove(0)),
            _ => join(pieces, 0, Hir::concat),
        }
    }

    /// Ends the group.
    fn alternate(mut self) -> Result<Node, SyntaxError> {
        let last = self.concat()?;
        let mut alternatives = self.alternatives;
        if alternatives.is_empty() {
            return Ok(last);
        }
        alternatives.push(last);
        let choices = alternatives.len() as u64 - 1;
        join(alternatives, choices, Hir::alternation)
    }
}

fn literal(text: &str, characters: u64) -> Node {
    Node { size: characters, ..Node::leaf(Hir::literal(text.as_bytes())) }
}

/// A group that is not closed yet, with what stood before it.
struct OpenGroup {
    outer: Group,
    outer_flags: Flags,
    captures: bool,
}

struct Parser<'p> {
    cursor: Cursor<'p>,
    flags: Flags,
    open: Vec<OpenGroup>,
    group: Group,
    pieces: usize,
    class_ranges: usize,
}

impl<'p> Parser<'p> {
    fn parse(mut self) -> Result<Hir, SyntaxError> {
        // Where the operator before this one began, if that was a repetition.
        let mut last_repeat: Option<usize> = None;
        while let Some(c) = self.cursor.peek() {
            let start = self.cursor.at;
            let mut repeat = None;
            match c {
                '(' if self.cursor.rest().starts_with("(?") => self.perl_group()?,
                '(' => {
                    self.cursor.bump();
                    self.open_group(true, self.flags);
                }
                ')' => {
                    self.cursor.bump();
                    self.close_group()?;
                }
                '|' => {
                    self.cursor.bump();
                    let alternative = self.group.concat()?;
                    self.group.alternatives.push(alternative);
                    self.count_piece()?;
                }
                '^' => {
                    self.cursor.bump();
                    self.push_look(if self.flags.multi_line {
                        Look::StartLF
                    } else {
                        Look::Start
                    })?;
                }
                '$' => {
                    self.cursor.bump();
                    self.push_look(if self.flags.multi_line { Look::EndLF } else { Look::End })?;
                }
                '.' => {
                    self.cursor.bump();
                    self.push_class(if self.flags.dot_all {
                        classes::any()
                    } else {
                        classes::any_but_line_feed()
                    })?;
                }
                '[' => self.bracket_class()?,
                '*' | '+' | '?' => {
                    self.cursor.bump();
                    let (min, max) = match c {
                        '*' => (0, None),
                        '+' => (1, None),
                        _ => (0, Some(1)),
                    };
                    self.repeat(RepeatOp::Symbol, min, max, start, last_repeat)?;
                    repeat = Some(start);
                }
                '{' => match self.cursor.repeat_counts() {
                    None => {
                        self.cursor.bump();
                        self.push_literal('{' as u32)?;
                    }
                    Some((min, max)) => {
                        let most = max.unwrap_or(min);
                        if min > REPEAT_MAX || most > REPEAT_MAX || min > most {
                            return Err(SyntaxError::InvalidRepeatSize(self.cursor.since(start)));
                        }
                        self.repeat(RepeatOp::Counted, min, max, start, last_repeat)?;
                        repeat = Some(start);
                    }
                },
                '\\' => self.escape()?,
                _ => {
                    self.cursor.bump();
                    self.push_literal(c as u32)?;
                }
            }
            last_repeat = repeat;
        }
        if !self.open.is_empty() {
            return Err(SyntaxError::MissingParen(self.cursor.pattern.to_owned()));
        }
        Ok(self.group.alternate()?.hir)
    }

    fn count_piece(&mut self) -> Result<(), SyntaxError> {
        self.pieces += 1;
        if self.pieces > PIECES_MAX { Err(SyntaxError::TooLarge) } else { Ok(()) }
    }

    fn push_node(&mut self, node: Node) -> Result<(), SyntaxError> {
        self.count_piece()?;
        self.group.push(check(node)?);
        Ok(())
    }

    fn push_look(&mut self, look: Look) -> Result<(), SyntaxError> {
        self.push_node(Node::leaf(Hir::look(look)))
    }

    fn push_class(&mut self, class: ClassUnicode) -> Result<(), SyntaxError> {
        self.class_ranges += class.ranges().len();
        if self.class_ranges > CLASS_RANGES_MAX {
            return Err(SyntaxError::TooLarge);
        }
        self.push_node(Node::leaf(Hir::class(Class::Unicode(class))))
    }

    /// A code point that is no character (a surrogate) is in no value, and matches nothing.
    fn push_literal(&mut self, rune: u32) -> Result<(), SyntaxError> {
        match char::from_u32(rune) {
            Some(c) if !self.flags.fold_case => {
                self.group.literal.push(c);
                Ok(())
            }
            _ => {
                let mut class = ClassUnicode::empty();
                classes::push_range(&mut class, rune, rune);
                self.push_class(classes::folded_then_negated(class, self.flags.fold_case, false))
            }
        }
    }

    fn open_group(&mut self, captures: bool, inner_flags: Flags) {
        self.open.push(OpenGroup {
            outer: std::mem::take(&mut self.group),
            outer_flags: self.flags,
            captures,
        });
        self.flags = inner_flags;
    }

    fn close_group(&mut self) -> Result<(), SyntaxError> {
        let Some(OpenGroup { outer, outer_flags, captures }) = self.open.pop() else {
            return Err(SyntaxError::UnexpectedParen(self.cursor.pattern.to_owned()));
        };
        let mut node = std::mem::replace(&mut self.group, outer).alternate()?;
        self.flags = outer_flags;
        if captures {
            node.height += 1;
            node.size += 2;
        }
        self.push_node(node)
    }

    /// What begins with `(?`: a named group, a group with flags, or flags for the rest of the group.
    fn perl_group(&mut self) -> Result<(), SyntaxError> {
        let start = self.cursor.at;
        let rest = self.cursor.rest();
        let name_at = match rest.as_bytes() {
            [_, _, b'P', b'<', _, ..] => Some(4),
            [_, _, b'<', _, ..] => Some(3),
            _ => None,
        };
        if let Some(name_at) = name_at {
            let Some(end) = rest.find('>') else {
                return Err(SyntaxError::InvalidNamedCapture(rest.to_owned()));
            };
            self.cursor.at += end + 1;
            let name = rest.get(name_at..end).unwrap_or_default();
            if name.is_empty() || !name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()) {
                return Err(SyntaxError::InvalidNamedCapture(self.cursor.since(start)));
            }
            self.open_group(true, self.flags);
            return Ok(());
        }

        self.cursor.at += "(?".len();
        let mut flags = self.flags;
        let mut on = true;
        let mut saw_flag = false;
        while let Some(c) = self.cursor.bump() {
            match c {
                'i' => flags.fold_case = on,
                'm' => flags.multi_line = on,
                's' => flags.dot_all = on,
                'U' => {}
                '-' if on => {
                    on = false;
                    saw_flag = false;
                    continue;
                }
                ':' | ')' if on || saw_flag => {
                    match c {
                        ':' => self.open_group(false, flags),
                        _ => self.flags = flags,
                    }
                    return Ok(());
                }
                _ => break,
            }
            saw_flag = true;
        }
        Err(SyntaxError::InvalidPerlOp(self.cursor.since(start)))
    }

    /// Repeats the last piece. `start` is where the operator began; the cursor is behind it.
    fn repeat(
        &mut self,
        op: RepeatOp,
        min: u32,
        max: Option<u32>,
        start: usize,
        last_repeat: Option<usize>,
    ) -> Result<(), SyntaxError> {
        let greedy = !self.cursor.eat('?');
        if let Some(last_repeat) = last_repeat {
            return Err(SyntaxError::InvalidRepeatOp(self.cursor.since(last_repeat)));
        }
        let Some(sub) = self.group.pop() else {
            return Err(SyntaxError::MissingRepeatArgument(self.cursor.since(start)));
        };
        let (size, repeats) = match (op, max) {
            (RepeatOp::Symbol, None) if min == 0 => (sub.size + 2, sub.repeats),
            (RepeatOp::Symbol, _) => (sub.size + 1, sub.repeats),
            (RepeatOp::Counted, None) if min == 0 => (sub.size + 2, sub.repeats),
            (RepeatOp::Counted, None) => {
                (sub.size * u64::from(min) + 1, sub.repeats.saturating_mul(min))
            }
            (RepeatOp::Counted, Some(0)) => (1, 1),
            (RepeatOp::Counted, Some(max)) => {
                (sub.size * u64::from(max) + u64::from(max - min), sub.repeats.saturating_mul(max))
            }
        };
        if repeats > REPEAT_MAX {
            return Err(SyntaxError::InvalidRepeatSize(self.cursor.since(start)));
        }
        let hir = Hir::repetition(Repetition { min, max, greedy, sub: Box::new(sub.hir) });
        let node = Node { hir, height: sub.height + 1, size: size.max(1), repeats };
        self.push_node(node)
    }

    /// What begins with a backslash, outside of brackets.
    fn escape(&mut self) -> Result<(), SyntaxError> {
        let rest = self.cursor.rest();
        let second = rest.as_bytes().get(1).copied();
        match second {
            Some(b'A') => self.push_look(Look::Start)?,
            Some(b'z') => self.push_look(Look::End)?,
            Some(b'b') => self.push_look(Look::WordAscii)?,
            Some(b'B') => self.push_look(Look::WordAsciiNegate)?,
            // "Any byte" exists in RE2, not in Go.
            Some(b'C') => return Err(SyntaxError::InvalidEscape(r"\C".to_owned())),
            Some(b'Q') => {
                self.cursor.at += 2;
                let quoted = self.cursor.rest();
                let (literal, behind) = match quoted.split_once(r"\E") {
                    Some((literal, _)) => (literal, literal.len() + 2),
                    None => (quoted, quoted.len()),
                };
                for c in literal.chars() {
                    self.push_literal(c as u32)?;
                }
                self.cursor.at += behind;
                return Ok(());
            }
            _ => {
                return match self.cursor.class_escape(self.flags)? {
                    Some(class) => self.push_class(class),
                    None => {
                        let rune = self.cursor.char_escape()?;
                        self.push_literal(rune)
                    }
                };
            }
        }
        self.cursor.at += 2;
        Ok(())
    }

    fn bracket_class(&mut self) -> Result<(), SyntaxError> {
        let start = self.cursor.at;
        let whole = self.cursor.rest();
        self.cursor.bump();
        let negated = self.cursor.eat('^');
        let mut class = ClassUnicode::empty();
        // A `]` that comes first is a member.
        let mut first = true;
        while first || self.cursor.peek() != Some(']') {
            first = false;
            let named = match self.cursor.posix_class(self.flags)? {
                None => self.cursor.class_escape(self.flags)?,
                some => some,
            };
            if let Some(named) = named {
                class.union(&named);
                continue;
            }
            let range_start = self.cursor.at;
            let lo = self.cursor.class_char(whole)?;
            let mut hi = lo;
            let rest = self.cursor.rest();
            if rest.len() >= 2 && rest.starts_with('-') && !rest.starts_with("-]") {
                self.cursor.bump();
                hi = self.cursor.class_char(whole)?;
                if hi < lo {
                    return Err(SyntaxError::InvalidCharRange(self.cursor.since(range_start)));
                }
            }
            let mut range = ClassUnicode::empty();
            classes::push_range(&mut range, lo, hi);
            class.union(&classes::folded_then_negated(range, self.flags.fold_case, false));
            if self.cursor.at - start > CLASS_RANGES_MAX {
                return Err(SyntaxError::TooLarge);
            }
        }
        self.cursor.bump();
        self.push_class(classes::folded_then_negated(class, false, negated))
    }
}

/// Go sizes `x{1,}` and `x+` alike but checks only the counted form against its limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RepeatOp {
    Symbol,
    Counted,
}

fn join(
    nodes: Vec<Node>,
    own_size: u64,
    of: impl FnOnce(Vec<Hir>) -> Hir,
) -> Result<Node, SyntaxError> {
    let height = 1 + nodes.iter().map(|node| node.height).max().unwrap_or(0);
    let repeats = nodes.iter().map(|node| node.repeats).max().unwrap_or(1);
    let size = nodes.iter().map(|node| node.size).sum::<u64>() + own_size;
    let hir = of(nodes.into_iter().map(|node| node.hir).collect());
    check(Node { hir, height, size, repeats })
}

/// Every node that is put together passes here, so sizes stay far from overflow.
fn check(node: Node) -> Result<Node, SyntaxError> {
    if node.size > SIZE_MAX {
        return Err(SyntaxError::TooLarge);
    }
    if node.height > HEIGHT_MAX {
        return Err(SyntaxError::TooDeep);
    }
    Ok(node)
}

/// A place in the pattern that only moves forward.
struct Cursor<'p> {
    pattern: &'p str,
    /// Invariant: at a character boundary, or at the end.
    at: usize,
}

impl<'p> Cursor<'p> {
    fn rest(&self) -> &'p str {
        self.pattern.get(self.at..).unwrap_or_default()
    }

    /// The text from `start` to here, for errors.
    fn since(&self, start: usize) -> String {
        self.pattern.get(start..self.at).unwrap_or_default().to_owned()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    /// `{min}`, `{min,}` or `{min,max}`; with anything else the cursor stays, and the brace is a
    /// literal.
    fn repeat_counts(&mut self) -> Option<(u32, Option<u32>)> {
        let rest = self.rest().strip_prefix('{')?;
        let (min, rest) = split_number(rest)?;
        let (max, rest) = match rest.strip_prefix(',') {
            None => (Some(min), rest),
            Some(rest) if rest.starts_with('}') => (None, rest),
            Some(rest) => {
                let (max, rest) = split_number(rest)?;
                (Some(max), rest)
            }
        };
        let rest = rest.strip_prefix('}')?;
        self.at = self.pattern.len() - rest.len();
        Some((min, max))
    }

    /// A Perl or Unicode class behind a backslash, if there is one.
    fn class_escape(&mut self, flags: Flags) -> Result<Option<ClassUnicode>, SyntaxError> {
        let &[b'\\', letter, ..] = self.rest().as_bytes() else { return Ok(None) };
        if let Some((class, negated)) = classes::perl(letter) {
            self.at += 2;
            return Ok(Some(classes::folded_then_negated(class, flags.fold_case, negated)));
        }
        if letter != b'p' && letter != b'P' {
            return Ok(None);
        }
        let start = self.at;
        let rest = self.rest();
        self.at += 2;
        let name = match self.bump() {
            Some('{') => {
                let Some(end) = rest.find('}') else {
                    return Err(SyntaxError::InvalidCharRange(rest.to_owned()));
                };
                self.at = start + end + 1;
                rest.get(3..end)
            }
            _ => rest.get(2..self.at - start),
        }
        .unwrap_or_default();
        let (name, inverted) = match name.strip_prefix('^') {
            Some(name) => (name, true),
            None => (name, false),
        };
        let Some(class) = classes::unicode(name) else {
            return Err(SyntaxError::InvalidCharRange(self.since(start)));
        };
        let negated = (letter == b'P') != inverted;
        Ok(Some(classes::folded_then_negated(class, flags.fold_case, negated)))
    }

    /// `[:name:]` inside of brackets, if there is one.
    fn posix_class(&mut self, flags: Flags) -> Result<Option<ClassUnicode>, SyntaxError> {
        let Some(inner) = self.rest().strip_prefix("[:") else { return Ok(None) };
        let Some((name, _)) = inner.split_once(":]") else { return Ok(None) };
        let start = self.at;
        self.at += "[:".len() + name.len() + ":]".len();
        let (name, negated) = match name.strip_prefix('^') {
            Some(name) => (name, true),
            None => (name, false),
        };
        match classes::posix(name) {
            None => Err(SyntaxError::InvalidCharRange(self.since(start))),
            Some(class) => Ok(Some(classes::folded_then_negated(class, flags.fold_case, negated))),
        }
    }

    /// One member or end of a range inside of brackets.
    fn class_char(&mut self, whole: &str) -> Result<u32, SyntaxError> {
        match self.peek() {
            None => Err(SyntaxError::MissingBracket(whole.to_owned())),
            Some('\\') => self.char_escape(),
            Some(c) => {
                self.bump();
                Ok(c as u32)
            }
        }
    }

    /// An escape that stands for one code point, at most [`classes::RUNE_MAX`].
    fn char_escape(&mut self) -> Result<u32, SyntaxError> {
        let start = self.at;
        self.bump();
        let Some(c) = self.bump() else { return Err(SyntaxError::TrailingBackslash) };
        let rune = match c {
            '0' => Some(self.octal(0)),
            '1'..='7' if self.peek().is_some_and(|c| c.is_digit(8)) => {
                Some(self.octal(c as u32 - '0' as u32))
            }
            'x' => self.hexadecimal(),
            'a' => Some(0x07),
            'f' => Some(0x0c),
            'n' => Some(0x0a),
            'r' => Some(0x0d),
            't' => Some(0x09),
            'v' => Some(0x0b),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c as u32),
            _ => None,
        };
        rune.ok_or_else(|| SyntaxError::InvalidEscape(self.since(start)))
    }

    /// Up to two more octal digits.
    fn octal(&mut self, first: u32) -> u32 {
        let mut rune = first;
        for _ in 0..2 {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else { break };
            self.bump();
            rune = rune * 8 + digit;
        }
        rune
    }

    /// Two hexadecimal digits, or any number of them in braces.
    fn hexadecimal(&mut self) -> Option<u32> {
        let first = self.bump()?;
        if first != '{' {
            // Go reads both characters before it judges either.
            let second = self.bump();
            return Some(first.to_digit(16)? * 16 + second?.to_digit(16)?);
        }
        let mut rune = None;
        loop {
            match self.bump()? {
                '}' => return rune,
                c => {
                    let value = rune.unwrap_or(0) * 16 + c.to_digit(16)?;
                    if value > classes::RUNE_MAX {
                        return None;
                    }
                    rune = Some(value);
                }
            }
        }
    }
}

/// Splits off a decimal number without leading zeros; one too large is `u32::MAX`.
fn split_number(text: &str) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(digits)?;
    if number.is_empty() || (number.len() > 1 && number.starts_with('0')) {
        return None;
    }
    Some((number.parse().unwrap_or(u32::MAX), rest))
}
