//! Alternations of plain texts and gaps, as in `a|b.*|.*c|d.+e|.*f.*`, without an engine.
//!
//! People and dashboards write these, with thousands of terms. An engine would go through all of
//! them at each character; here the terms are found by the text that they begin or end with, or all
//! at once where it is in the middle.

use std::collections::{BTreeMap, HashSet};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use memchr::memmem::Finder;
use rapidhash::fast::RandomState;
use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};

use super::classes;

/// Terms with gaps of one expression, and their bytes: some ten megabytes when indexed.
const GAPPED_MAX: usize = 100_000;
const GAPPED_BYTES_MAX: usize = 1 << 20;

/// A text and what follows it: gaps, each with a text behind it. Between two gaps there is a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) first: Vec<u8>,
    pub(super) rest: Vec<(Gap, Vec<u8>)>,
}

/// Anything, line feeds included: at least so many bytes. 0 is `.*`; 1 is `.+`, as one character is
/// at least one byte.
pub(super) type Gap = usize;

impl Term {
    fn text(text: &[u8]) -> Term {
        Term { first: text.to_vec(), rest: Vec::new() }
    }

    fn gap(at_least: Gap) -> Term {
        Term { first: Vec::new(), rest: vec![(at_least, Vec::new())] }
    }

    pub(super) fn has_gap(&self) -> bool {
        !self.rest.is_empty()
    }

    fn bytes(&self) -> usize {
        self.first.len() + self.rest.iter().map(|(_, text)| 1 + text.len()).sum::<usize>()
    }

    /// This term with the other behind it; `None` for `.+.+`, which is two characters at least.
    fn followed_by(&self, other: &Term) -> Option<Term> {
        let mut both = self.clone();
        let last = both.rest.last_mut().map_or(&mut both.first, |(_, text)| text);
        last.extend_from_slice(&other.first);
        let mut rest = other.rest.iter();
        // Two gaps that meet are one.
        if let (Some((gap, text)), Some((next, behind))) =
            (both.rest.last_mut(), other.rest.first())
            && text.is_empty()
        {
            if *gap + next > 1 {
                return None;
            }
            *gap += next;
            text.extend_from_slice(behind);
            rest.next();
        }
        both.rest.extend(rest.cloned());
        Some(both)
    }
}

/// How many terms an expression may stand for.
#[derive(Clone, Copy)]
pub(super) struct Budget {
    pub(super) terms: usize,
    pub(super) bytes: usize,
}

impl Budget {
    fn admits(self, terms: usize, bytes: usize) -> bool {
        terms <= self.terms && bytes <= self.bytes
    }
}

/// The terms that an expression stands for, if it stands for such and they are within the budget.
/// `at_start` and `at_end` say whether it stands at the very start and end of the value, where
/// anchors hold.
pub(super) fn terms(hir: &Hir, at_start: bool, at_end: bool, budget: Budget) -> Option<Vec<Term>> {
    match hir.kind() {
        HirKind::Empty => Some(vec![Term::default()]),
        HirKind::Literal(literal) => Some(vec![Term::text(&literal.0)]),
        HirKind::Class(Class::Unicode(class)) => {
            let members: usize = class.ranges().iter().map(|range| range.len()).sum();
            if !budget.admits(members, members) {
                return None;
            }
            let chars = class.ranges().iter().flat_map(|range| range.start()..=range.end());
            Some(chars.map(|c| Term::text(c.encode_utf8(&mut [0; 4]).as_bytes())).collect())
        }
        // One without members; the parser makes no other over bytes.
        HirKind::Class(Class::Bytes(_)) => Some(Vec::new()),
        HirKind::Look(Look::Start) if at_start => Some(vec![Term::default()]),
        HirKind::Look(Look::End) if at_end => Some(vec![Term::default()]),
        HirKind::Look(_) => None,
        HirKind::Repetition(repetition) if is_anything(repetition) => {
            Some(vec![Term::gap(repetition.min as usize)])
        }
        HirKind::Repetition(repetition) => {
            let max = repetition.max? as usize;
            let sub = terms(&repetition.sub, false, false, budget)?;
            let mut exactly = vec![Term::default()];
            let mut all = Vec::new();
            for count in 0..=max {
                if count >= repetition.min as usize {
                    all.extend_from_slice(&exactly);
                }
                if !budget.admits(all.len(), bytes(&all)) {
                    return None;
                }
                if count < max {
                    exactly = product(&exactly, &sub, budget)?;
                }
            }
            Some(all)
        }
        HirKind::Capture(capture) => terms(&capture.sub, at_start, at_end, budget),
        HirKind::Concat(parts) => {
            let mut all = vec![Term::default()];
            for (i, part) in parts.iter().enumerate() {
                let part_at_start = at_start && only_empty(parts.iter().take(i));
                let part_at_end = at_end && only_empty(parts.iter().skip(i + 1));
                let of_part = terms(part, part_at_start, part_at_end, budget)?;
                all = product(&all, &of_part, budget)?;
            }
            Some(all)
        }
        HirKind::Alternation(choices) => {
            let mut all = Vec::new();
            let mut bytes = 0;
            for choice in choices {
                let of_choice = terms(choice, at_start, at_end, budget)?;
                bytes += self::bytes(&of_choice);
                all.extend(of_choice);
                if !budget.admits(all.len(), bytes) {
                    return None;
                }
            }
            Some(all)
        }
    }
}

/// `.*` or `.+`, line feeds included.
fn is_anything(repetition: &Repetition) -> bool {
    let is_any = |class: &Class| matches!(class, Class::Unicode(class) if *class == classes::any());
    repetition.max.is_none()
        && repetition.min <= 1
        && matches!(repetition.sub.kind(), HirKind::Class(class) if is_any(class))
}

/// Each of `left` with each of `right` behind it.
fn product(left: &[Term], right: &[Term], budget: Budget) -> Option<Vec<Term>> {
    let count = left.len().checked_mul(right.len())?;
    let bytes = (bytes(left).checked_mul(right.len())?)
        .checked_add(bytes(right).checked_mul(left.len())?)?;
    if !budget.admits(count, bytes) {
        return None;
    }
    left.iter().flat_map(|l| right.iter().map(move |r| l.followed_by(r))).collect()
}

fn bytes(terms: &[Term]) -> usize {
    terms.iter().map(Term::bytes).sum()
}

fn only_empty<'h>(mut parts: impl Iterator<Item = &'h Hir>) -> bool {
    parts.all(|part| part.properties().maximum_len() == Some(0))
}

/// The alternatives of an expression. What the parser has lifted out of them is put back: it reads
/// `.*a.*|.*b.*` as `.*(?:a.*|b.*)`.
pub(super) fn alternatives(hir: &Hir) -> Vec<Hir> {
    match hir.kind() {
        HirKind::Alternation(choices) => choices.clone(),
        HirKind::Concat(parts) => {
            let is_alternation = |part: &Hir| matches!(part.kind(), HirKind::Alternation(_));
            let mut alternations = (0..parts.len()).filter(|i| is_alternation(&parts[*i]));
            let (Some(at), None) = (alternations.next(), alternations.next()) else {
                return vec![hir.clone()];
            };
            let (before, behind) = (&parts[..at], &parts[at + 1..]);
            let choices = alternatives(&parts[at]).into_iter();
            choices.map(|choice| Hir::concat([before, &[choice], behind].concat())).collect()
        }
        _ => vec![hir.clone()],
    }
}

/// Terms, of which one is to match. Values and texts are UTF-8, so a text that is found in a value
/// begins and ends between characters.
#[derive(Debug, Default)]
pub(super) struct Terms {
    /// `.*` or `.+`
    anything: Option<Gap>,
    /// Without a gap.
    whole: HashSet<Box<[u8]>, RandomState>,
    /// Those that begin with a text.
    begin: Starts<Behind>,
    /// Those that begin with a gap and end with a text. The text backwards.
    end: Starts<Before>,
    /// `.*a.*` and the like, by their gaps: what stands before and behind is not searched.
    within: Vec<(Gap, Gap, AhoCorasick)>,
    /// `.*a.*b.*`
    in_order: AnyInOrder,
}

/// What may follow a text that a value begins with.
#[derive(Debug, Default)]
struct Behind {
    /// `.*` or `.+`
    anything: Option<Gap>,
    /// A gap and a text, which is backwards.
    ends: Starts<Gap>,
    in_order: AnyInOrder,
}

/// What may stand before a text that a value ends with.
#[derive(Debug, Default)]
struct Before {
    anything: Option<Gap>,
    in_order: AnyInOrder,
}

/// Terms of several texts, of which one is to match.
#[derive(Debug, Default)]
struct AnyInOrder {
    terms: Vec<InOrder>,
    /// The longest text of each, by which those are found that may match; where they are many.
    longest: Option<AhoCorasick>,
}

impl AnyInOrder {
    fn new(terms: Vec<InOrder>) -> Option<AnyInOrder> {
        let longest = match terms.len() {
            0..IN_ORDER_MANY => None,
            _ => Some(AhoCorasick::new(terms.iter().map(InOrder::longest)).ok()?),
        };
        Some(AnyInOrder { terms, longest })
    }

    fn matches(&self, value: &[u8]) -> bool {
        let Some(longest) = &self.longest else {
            return self.terms.iter().any(|term| term.matches(value));
        };
        let mut found = longest.find_overlapping_iter(value);
        found.any(|found| {
            let term = self.terms.get(found.pattern().as_usize());
            term.is_some_and(|term| term.matches(value))
        })
    }
}

/// So many terms are no longer tried one by one.
const IN_ORDER_MANY: usize = 8;

/// Texts behind gaps, and what is at the end.
#[derive(Debug)]
struct InOrder {
    texts: Vec<(Gap, Finder<'static>)>,
    gap: Gap,
    last: Box<[u8]>,
}

impl InOrder {
    fn new(rest: &[(Gap, Vec<u8>)]) -> Option<InOrder> {
        let ((gap, last), before) = rest.split_last()?;
        let texts = before.iter().map(|(gap, text)| (*gap, Finder::new(text).into_owned()));
        Some(InOrder { texts: texts.collect(), gap: *gap, last: last[..].into() })
    }

    /// Of those behind a gap; there is one, and none is empty.
    fn longest(&self) -> &[u8] {
        let texts = self.texts.iter().map(|(_, text)| text.needle());
        texts.max_by_key(|text| text.len()).unwrap_or_default()
    }

    /// `value` is what stands behind the first text.
    fn matches(&self, value: &[u8]) -> bool {
        let Some(mut value) = value.strip_suffix(&*self.last) else { return false };
        // The first place for a text leaves the others most room.
        for (gap, text) in &self.texts {
            let Some(found) = value.get(*gap..) else { return false };
            let Some(at) = text.find(found) else { return false };
            value = &found[at + text.needle().len()..];
        }
        value.len() >= self.gap
    }
}

/// What is gathered before it is put in order.
#[derive(Default)]
struct Gathered {
    begin: BTreeMap<Vec<u8>, GatheredBehind>,
    end: BTreeMap<Vec<u8>, GatheredBefore>,
    within: BTreeMap<(Gap, Gap), Vec<Vec<u8>>>,
    in_order: Vec<InOrder>,
}

#[derive(Default)]
struct GatheredBefore {
    anything: Option<Gap>,
    in_order: Vec<InOrder>,
}

#[derive(Default)]
struct GatheredBehind {
    anything: Option<Gap>,
    ends: BTreeMap<Vec<u8>, Gap>,
    in_order: Vec<InOrder>,
}

/// The easier of two ways.
fn easier(gap: &mut Option<Gap>, other: Gap) {
    *gap = Some(gap.map_or(other, |gap| gap.min(other)));
}

fn backwards(text: &[u8]) -> Vec<u8> {
    text.iter().rev().copied().collect()
}

/// An automaton of more bytes of texts is not made a table, which takes a kilobyte a byte.
const TABLE_TEXT_BYTES_MAX: usize = 4096;

fn automaton(texts: Vec<Vec<u8>>) -> Option<AhoCorasick> {
    let bytes: usize = texts.iter().map(Vec::len).sum();
    let kind = (bytes > TABLE_TEXT_BYTES_MAX).then_some(AhoCorasickKind::ContiguousNFA);
    AhoCorasick::builder().kind(kind).build(texts).ok()
}

impl Terms {
    /// What it takes beside texts and their places.
    pub(super) fn bytes(&self) -> usize {
        self.within.iter().map(|(.., automaton)| automaton.memory_usage()).sum()
    }

    /// `None` if they are too many.
    pub(super) fn new(terms: Vec<Term>) -> Option<Terms> {
        let gapped = || terms.iter().filter(|term| term.has_gap());
        let bytes: usize = gapped().map(Term::bytes).sum();
        if gapped().count() > GAPPED_MAX || bytes > GAPPED_BYTES_MAX {
            return None;
        }
        let mut found = Terms::default();
        let mut gathered = Gathered::default();
        for Term { first, rest } in terms {
            match &rest[..] {
                [] => drop(found.whole.insert(first.into())),
                [(gap, last)] if first.is_empty() && last.is_empty() => {
                    easier(&mut found.anything, *gap);
                }
                [(gap, last)] if first.is_empty() => {
                    easier(&mut gathered.end.entry(backwards(last)).or_default().anything, *gap);
                }
                [(before, text), (behind, last)] if first.is_empty() && last.is_empty() => {
                    gathered.within.entry((*before, *behind)).or_default().push(text.clone());
                }
                [.., (_, last)] if first.is_empty() && last.is_empty() => {
                    gathered.in_order.extend(InOrder::new(&rest));
                }
                [.., (_, last)] if first.is_empty() => {
                    let before = gathered.end.entry(backwards(last)).or_default();
                    before.in_order.extend(InOrder::new(&rest));
                }
                [(gap, last)] => {
                    let behind = gathered.begin.entry(first).or_default();
                    if last.is_empty() {
                        easier(&mut behind.anything, *gap);
                    } else {
                        let least = behind.ends.entry(backwards(last)).or_insert(*gap);
                        *least = (*least).min(*gap);
                    }
                }
                _ => {
                    let behind = gathered.begin.entry(first).or_default();
                    behind.in_order.extend(InOrder::new(&rest));
                }
            }
        }
        let begin = gathered.begin.into_iter().map(|(text, behind)| {
            let GatheredBehind { anything, ends, in_order } = behind;
            let in_order = AnyInOrder::new(in_order)?;
            Some((text, Behind { anything, ends: Starts::new(ends), in_order }))
        });
        found.begin = Starts::new(begin.collect::<Option<Vec<_>>>()?);
        let end = gathered.end.into_iter().map(|(text, before)| {
            let GatheredBefore { anything, in_order } = before;
            Some((text, Before { anything, in_order: AnyInOrder::new(in_order)? }))
        });
        found.end = Starts::new(end.collect::<Option<Vec<_>>>()?);
        found.in_order = AnyInOrder::new(gathered.in_order)?;
        for ((before, behind), texts) in gathered.within {
            found.within.push((before, behind, automaton(texts)?));
        }
        Some(found)
    }

    /// `value` is valid UTF-8.
    pub(super) fn matches(&self, value: &[u8]) -> bool {
        if self.anything.is_some_and(|gap| value.len() >= gap) || self.whole.contains(value) {
            return true;
        }
        let from_behind = match self.begin.is_empty() && self.end.is_empty() {
            true => Vec::new(),
            false => backwards(value),
        };
        self.begin.any(value, |text, behind| {
            let rest = &value[text.len()..];
            behind.anything.is_some_and(|gap| rest.len() >= gap)
                || behind
                    .ends
                    .any(&from_behind[..rest.len()], |end, gap| rest.len() >= end.len() + gap)
                || behind.in_order.matches(rest)
        }) || self.end.any(&from_behind, |text, before| {
            before.anything.is_some_and(|gap| value.len() >= text.len() + gap)
                || before.in_order.matches(value)
        }) || self.within.iter().any(|(before, behind, texts)| {
            let end = value.len().checked_sub(*behind);
            end.and_then(|end| value.get(*before..end)).is_some_and(|part| texts.is_match(part))
        }) || self.in_order.matches(value)
    }
}

/// Texts in their order, of which those are found that a value begins with.
#[derive(Debug)]
struct Starts<T>(Vec<Start<T>>);

#[derive(Debug)]
struct Start<T> {
    text: Box<[u8]>,
    /// The longest of the others that it begins with.
    shorter: Option<u32>,
    of: T,
}

impl<T> Default for Starts<T> {
    fn default() -> Starts<T> {
        Starts(Vec::new())
    }
}

impl<T> Starts<T> {
    /// From texts that rise.
    fn new(texts: impl IntoIterator<Item = (Vec<u8>, T)>) -> Starts<T> {
        let mut starts: Vec<Start<T>> = Vec::new();
        // Each begins with the one before.
        let mut chain: Vec<u32> = Vec::new();
        for (text, of) in texts {
            let is_start = |i: &u32| text.starts_with(&starts[*i as usize].text);
            while chain.last().is_some_and(|last| !is_start(last)) {
                chain.pop();
            }
            let shorter = chain.last().copied();
            // There are at most `GAPPED_MAX`.
            chain.push(starts.len() as u32);
            starts.push(Start { text: text.into(), shorter, of });
        }
        Starts(starts)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `is` holds for one of the texts that `value` begins with. All of them lie below it in
    /// order, and what lies between one of them and the value begins with it, too.
    fn any(&self, value: &[u8], is: impl Fn(&[u8], &T) -> bool) -> bool {
        let behind = self.0.partition_point(|start| *start.text <= *value);
        let mut next = behind.checked_sub(1).and_then(|last| self.0.get(last));
        while let Some(Start { text, shorter, of }) = next {
            if value.starts_with(text) && is(text, of) {
                return true;
            }
            next = shorter.and_then(|i| self.0.get(i as usize));
        }
        false
    }
}
