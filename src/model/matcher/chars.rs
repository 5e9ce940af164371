//! An engine over characters, for expressions whose automaton over bytes would be too large.
//!
//! `\pL` is hundreds of states over bytes and one here, so `\pL{500}`, which Go takes, is 500 steps.
//! All threads go through a value together (Pike's way), so that the time is at most the steps times
//! the characters.

use std::collections::HashMap;
use std::ops::Range;

use parking_lot::Mutex;
use regex_syntax::hir::{Class, ClassUnicode, Hir, HirKind, Look, Repetition};

use crate::model::stop;

/// Steps of one expression: 12 bytes each, and 12 more while it matches.
const STEPS_MAX: usize = 1 << 18;

/// Steps between two looks at whether anybody waits.
const STEPS_PER_LOOK: usize = 1 << 16;

/// An expression that has to match the whole value.
#[derive(Debug)]
pub(super) struct Chars {
    steps: Vec<Step>,
    classes: Vec<ClassUnicode>,
    /// Put back after each match.
    threads: Mutex<Option<Box<[Threads; 2]>>>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Char(char),
    /// One of the classes.
    Class(u32),
    Look(Look),
    /// Both.
    Split(u32, u32),
    Jump(u32),
    Match,
}

/// More steps than there may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

impl Chars {
    /// What it takes, the places of a match under way included.
    pub(super) fn bytes(&self) -> usize {
        let ranges: usize = self.classes.iter().map(|class| class.ranges().len()).sum();
        self.steps.len() * 4 * size_of::<Step>() + ranges * size_of::<(char, char)>()
    }

    pub(super) fn compile(hir: &Hir) -> Result<Chars, TooLarge> {
        let mut compiler = Compiler::default();
        compiler.compile(hir)?;
        compiler.push(Step::Match)?;
        let classes = compiler.classes;
        Ok(Chars { steps: compiler.steps, classes, threads: Mutex::new(None) })
    }

    /// Whether the whole of `text` matches.
    pub(super) fn is_match(&self, text: &str) -> bool {
        let taken = self.threads.lock().take();
        let mut threads = taken.unwrap_or_else(|| {
            let threads = || Threads::new(self.steps.len());
            Box::new([threads(), threads()])
        });
        let matched = self.run(&mut threads, text);
        *self.threads.lock() = Some(threads);
        matched
    }

    fn run(&self, [now, next]: &mut [Threads; 2], text: &str) -> bool {
        let mut rest = text.chars();
        let mut steps = 0;
        now.clear();
        self.follow(now, 0, None, rest.clone().next());
        loop {
            let Some(c) = rest.next() else {
                return now.list.iter().any(|at| matches!(self.step(*at), Step::Match));
            };
            let behind = rest.clone().next();
            next.clear();
            for at in &now.list {
                let goes_on = match self.step(*at) {
                    Step::Char(other) => other == c,
                    Step::Class(class) => {
                        self.classes.get(class as usize).is_some_and(|class| contains(class, c))
                    }
                    _ => false,
                };
                if goes_on {
                    self.follow(next, at + 1, Some(c), behind);
                }
            }
            if next.list.is_empty() {
                return false;
            }
            steps += next.list.len();
            if steps >= STEPS_PER_LOOK {
                steps = 0;
                if stop::is_asked() {
                    return false;
                }
            }
            std::mem::swap(now, next);
        }
    }

    fn step(&self, at: u32) -> Step {
        self.steps.get(at as usize).copied().unwrap_or(Step::Match)
    }

    /// Adds a step, and those that follow it without a character.
    fn follow(&self, threads: &mut Threads, at: u32, before: Option<char>, behind: Option<char>) {
        let mut open = std::mem::take(&mut threads.open);
        open.push(at);
        while let Some(at) = open.pop() {
            if !threads.add(at) {
                continue;
            }
            match self.step(at) {
                Step::Split(first, second) => open.extend([second, first]),
                Step::Jump(to) => open.push(to),
                Step::Look(look) if holds(look, before, behind) => open.push(at + 1),
                Step::Look(_) | Step::Char(_) | Step::Class(_) | Step::Match => {}
            }
        }
        threads.open = open;
    }
}

/// Whether a look holds between two characters, of which the first or the last may be missing.
fn holds(look: Look, before: Option<char>, behind: Option<char>) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(|c| c == '_' || c.is_ascii_alphanumeric());
    match look {
        Look::Start => before.is_none(),
        Look::End => behind.is_none(),
        Look::StartLF => before.is_none_or(|c| c == '\n'),
        Look::EndLF => behind.is_none_or(|c| c == '\n'),
        Look::WordAscii => is_word(before) != is_word(behind),
        Look::WordAsciiNegate => is_word(before) == is_word(behind),
        // Go has no others.
        _ => false,
    }
}

fn contains(class: &ClassUnicode, c: char) -> bool {
    let ranges = class.ranges();
    let behind = ranges.partition_point(|range| range.start() <= c);
    behind.checked_sub(1).and_then(|i| ranges.get(i)).is_some_and(|range| c <= range.end())
}

/// Steps that are to be looked at, each once.
#[derive(Debug)]
struct Threads {
    list: Vec<u32>,
    /// Where in `list` a step is, if it is there.
    places: Vec<u32>,
    /// Kept between uses.
    open: Vec<u32>,
}

impl Threads {
    fn new(steps: usize) -> Threads {
        Threads { list: Vec::new(), places: vec![0; steps], open: Vec::new() }
    }

    fn clear(&mut self) {
        self.list.clear();
    }

    /// False if it is there.
    fn add(&mut self, at: u32) -> bool {
        let Some(place) = self.places.get_mut(at as usize) else { return false };
        if self.list.get(*place as usize) == Some(&at) {
            return false;
        }
        *place = self.list.len() as u32;
        self.list.push(at);
        true
    }
}

#[derive(Default)]
struct Compiler {
    steps: Vec<Step>,
    classes: Vec<ClassUnicode>,
    /// Where in `classes` one is.
    known: HashMap<Vec<(char, char)>, u32>,
}

impl Compiler {
    fn push(&mut self, step: Step) -> Result<usize, TooLarge> {
        if self.steps.len() >= STEPS_MAX {
            return Err(TooLarge);
        }
        self.steps.push(step);
        Ok(self.steps.len() - 1)
    }

    /// The next step's place.
    fn here(&self) -> u32 {
        self.steps.len() as u32
    }

    fn set(&mut self, at: usize, step: Step) {
        if let Some(place) = self.steps.get_mut(at) {
            *place = step;
        }
    }

    fn class(&mut self, class: &ClassUnicode) -> Result<(), TooLarge> {
        let ranges = class.ranges().iter().map(|range| (range.start(), range.end())).collect();
        let next = self.classes.len() as u32;
        let at = *self.known.entry(ranges).or_insert(next);
        if at == next {
            self.classes.push(class.clone());
        }
        self.push(Step::Class(at)).map(drop)
    }

    /// Nested as deep as the parser lets it be.
    fn compile(&mut self, hir: &Hir) -> Result<(), TooLarge> {
        match hir.kind() {
            HirKind::Empty => {}
            HirKind::Literal(literal) => {
                for c in String::from_utf8_lossy(&literal.0).chars() {
                    self.push(Step::Char(c))?;
                }
            }
            HirKind::Class(Class::Unicode(class)) => self.class(class)?,
            // One without members; the parser makes no other over bytes.
            HirKind::Class(Class::Bytes(_)) => self.class(&ClassUnicode::empty())?,
            HirKind::Look(look) => drop(self.push(Step::Look(*look))?),
            HirKind::Capture(capture) => self.compile(&capture.sub)?,
            HirKind::Concat(parts) => parts.iter().try_for_each(|part| self.compile(part))?,
            HirKind::Repetition(repetition) => self.repetition(repetition)?,
            HirKind::Alternation(choices) => {
                let mut ends = Vec::new();
                let Some((last, others)) = choices.split_last() else { return Ok(()) };
                for choice in others {
                    let split = self.push(Step::Jump(0))?;
                    self.compile(choice)?;
                    ends.push(self.push(Step::Jump(0))?);
                    let (first, second) = (split as u32 + 1, self.here());
                    self.set(split, Step::Split(first, second));
                }
                self.compile(last)?;
                let end = self.here();
                ends.into_iter().for_each(|at| self.set(at, Step::Jump(end)));
            }
        }
        Ok(())
    }

    fn repetition(&mut self, repetition: &Repetition) -> Result<(), TooLarge> {
        let Repetition { min, max, sub, .. } = repetition;
        let mut made = None;
        for _ in 0..*min {
            self.once_more(sub, &mut made)?;
        }
        let mut splits = Vec::new();
        for _ in 0..max.map_or(1, |max| max.saturating_sub(*min)) {
            let split = self.push(Step::Jump(0))?;
            splits.push(split);
            self.once_more(sub, &mut made)?;
            if max.is_none() {
                self.push(Step::Jump(split as u32))?;
            }
        }
        let behind = self.here();
        for split in splits {
            self.set(split, Step::Split(split as u32 + 1, behind));
        }
        Ok(())
    }

    /// Compiles what is repeated, or copies it from where it was `made` before.
    fn once_more(&mut self, sub: &Hir, made: &mut Option<Range<usize>>) -> Result<(), TooLarge> {
        let start = self.steps.len();
        let Some(made) = made else {
            self.compile(sub)?;
            *made = Some(start..self.steps.len());
            return Ok(());
        };
        let further = (start - made.start) as u32;
        for at in made.clone() {
            let step = match self.steps.get(at).copied().unwrap_or(Step::Match) {
                Step::Split(first, second) => Step::Split(first + further, second + further),
                Step::Jump(to) => Step::Jump(to + further),
                step => step,
            };
            self.push(step)?;
        }
        Ok(())
    }
}
