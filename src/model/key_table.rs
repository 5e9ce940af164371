//! Fingerprints of label bytes to slots, read without a lock.
//!
//! An open-addressing table of 16-byte entries, four to a cache line:
//!
//! ```text
//! ┌───────────────────┬──────────────────┬─────────────────┐
//! │ high, all 64 bits │ low, all 32 bits │ slot + 1, 32 b. │   slot + 1 = 0: empty
//! └───────────────────┴──────────────────┴─────────────────┘
//! ```
//!
//! The line of an entry is taken from the upper bits of `high`, so entries lie in its order and
//! growing is one streaming pass, by half each time: 21 to 32 bytes an entry. A line is filled from
//! its beginning, and when it is full the next one takes what is for it: most look-ups wait for one
//! line.
//!
//! Beside it lies the `high` of each slot's canonical key, 8 to 12 bytes a series. Who sends series in
//! the order in which they were made is expected to send the next slot's, and where that is so, a
//! comparison with the neighbour of what was compared before takes the place of a look-up. A guess
//! that is wrong passes for right with the probability of one lane, 2⁻⁶³: it is one key against one,
//! not against all that the table has.
//!
//! One thread at a time adds entries, any number look up meanwhile. An entry is never moved or
//! overwritten where a look-up can see it: its slot is written last, and a table that is full is
//! copied into a larger one aside, which look-ups that begin later see. None is taken out either:
//! who wants fewer makes another table of those to be kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

use crate::model::fingerprint::{Fingerprint, Fingerprinter};

/// An index of a series within a head. Unlike a series ref it may be used again.
pub type Slot = u32;

/// The largest number of slots: entries hold `slot + 1` in 32 bits.
pub const SLOTS_MAX: usize = u32::MAX as usize - 1;

const ENTRIES_MIN: usize = 64;

/// The rules that label bytes were judged by.
///
/// A canonical key means its series under all rules, but for one weakness: a series without metric
/// name, or not UTF-8, that `/api/v1/receive` made is then taken on `/api/v1/write`, too. Other
/// bytes, an *alias*, mean it under the rules that accepted them, and nothing under others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules(pub u8);

/// What tells an alias' entry from one of the same bytes under other rules: a part of a secret, by
/// which its `low` differs.
#[derive(Clone, Copy)]
pub struct RulesMark(u32);

/// Which bytes mean which slot.
pub struct KeyTable {
    entries: ArcSwap<Entries>,
    /// Who adds. Not taken to look up.
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    series: usize,
    aliases: usize,
    /// Behind the greatest slot.
    slots_end: usize,
}

/// A table as it was when the look-up began, and what has been added to it since.
#[derive(Clone)]
pub struct Lookup(Arc<Entries>);

/// Adds entries, alone.
pub struct Adder<'t> {
    table: &'t KeyTable,
    entries: Arc<Entries>,
    counts: MutexGuard<'t, Counts>,
}

struct Entries {
    fingerprinter: Fingerprinter,
    /// Odd, so that no two rules have one mark and none has the mark 0.
    mark_factor: u32,
    lines: Box<[Line]>,
    /// `high` of the canonical key by slot; 0 where there is none that is known.
    highs: Box<[AtomicU64]>,
}

/// Entries that come into the cache together.
#[derive(Default)]
#[repr(align(64))]
struct Line([Entry; LINE_ENTRIES]);

const LINE_ENTRIES: usize = 4;

#[derive(Default)]
struct Entry {
    high: AtomicU64,
    low_and_slot: AtomicU64,
}

/// Aliases per series, on average: beyond it the slow path serves.
const ALIASES_PER_SERIES: usize = 1;

impl KeyTable {
    pub fn new(fingerprinter: Fingerprinter) -> KeyTable {
        let secret = fingerprinter.of(b"marks of rules").low;
        let highs = entries_max(ENTRIES_MIN);
        let entries = Entries::empty(fingerprinter, secret | 1, ENTRIES_MIN, highs);
        KeyTable { entries: ArcSwap::from_pointee(entries), counts: Mutex::default() }
    }

    /// Sees what was added before, and may see what is added meanwhile.
    pub fn lookup(&self) -> Lookup {
        Lookup(self.entries.load_full())
    }

    /// Waits for whoever adds now.
    pub fn adder(&self) -> Adder<'_> {
        let counts = self.counts.lock();
        Adder { table: self, entries: self.entries.load_full(), counts }
    }

    /// A table of the entries whose slot `keeps`, aliases included, and of room for as many more. What
    /// is added here meanwhile may be missing. `series` says how many series are kept.
    pub fn with_only(&self, series: usize, keeps: impl Fn(Slot) -> bool) -> KeyTable {
        let entries = self.entries.load_full();
        let kept = entries.iter().filter_map(|entry| {
            let low_and_slot = entry.low_and_slot.load(Ordering::Acquire);
            let slot = (low_and_slot as u32).checked_sub(1)?;
            keeps(slot).then(|| (entry.high.load(Ordering::Relaxed), low_and_slot))
        });
        // Aliases may come between two looks.
        let kept: Vec<_> = kept.collect();
        let slots_end = kept.iter().map(|(_, low_and_slot)| *low_and_slot as u32).max();
        let slots_end = slots_end.unwrap_or(0) as usize;
        let (fingerprinter, len) =
            (entries.fingerprinter.clone(), (kept.len() * 2).max(ENTRIES_MIN));
        let highs = slots_end + entries_max(len).saturating_sub(kept.len());
        let fewer = Entries::empty(fingerprinter, entries.mark_factor, len, highs);
        for (high, low_and_slot) in &kept {
            fewer.add(*high, *low_and_slot);
            let slot = *low_and_slot as u32 - 1;
            // An alias' is not that of its slot.
            if entries.is_canonical(slot, *high) {
                fewer.expect(slot, *high);
            }
        }
        let aliases = kept.len().saturating_sub(series);
        let counts = Counts { series, aliases, slots_end };
        KeyTable { entries: ArcSwap::from_pointee(fewer), counts: Mutex::new(counts) }
    }

    /// Bytes of memory that the table takes.
    pub fn bytes(&self) -> usize {
        let entries = self.entries.load();
        size_of_val(&*entries.lines) + size_of_val(&*entries.highs)
    }
}

impl Lookup {
    #[inline]
    pub fn fingerprint(&self, key: &[u8]) -> Fingerprint {
        self.0.fingerprinter.of(key)
    }

    /// Half of the key's fingerprint, at little more than half of its cost: see
    /// [`Lookup::is_canonical`].
    #[inline]
    pub fn high(&self, key: &[u8]) -> u64 {
        self.0.fingerprinter.high(key)
    }

    /// The fingerprint of the key that has this `high`.
    #[inline]
    pub fn with_low(&self, high: u64, key: &[u8]) -> Fingerprint {
        Fingerprint { high, low: self.0.fingerprinter.low(key) }
    }

    /// Whether a key with this `high` is the canonical one of `slot`, which is guessed. `false` says
    /// nothing.
    #[inline]
    pub fn is_canonical(&self, slot: Slot, high: u64) -> bool {
        self.0.is_canonical(slot, high)
    }

    /// What [`Lookup::find`] takes for these rules.
    pub fn mark(&self, rules: Rules) -> RulesMark {
        self.0.mark(rules)
    }

    /// Brings the line of a key's entry. For many keys in a row their misses overlap, while look-ups
    /// alone would wait for each.
    #[inline]
    pub fn touch(&self, key: Fingerprint) -> u64 {
        self.0.touch(key)
    }

    /// The slot that label bytes mean under the rules of a mark.
    #[inline]
    pub fn find(&self, key: Fingerprint, rules: RulesMark) -> Option<Slot> {
        self.0.find(key.high, |low| low == key.low || low == key.low ^ rules.0)
    }

    /// The slot of a canonical key.
    #[inline]
    pub fn find_canonical(&self, key: Fingerprint) -> Option<Slot> {
        self.0.find(key.high, |low| low == key.low)
    }
}

impl Adder<'_> {
    /// How many series have an entry.
    pub fn series_count(&self) -> usize {
        self.counts.series
    }

    /// See [`Lookup::touch`].
    pub fn touch(&self, key: Fingerprint) -> u64 {
        self.entries.touch(key)
    }

    pub fn find_canonical(&self, key: Fingerprint) -> Option<Slot> {
        self.entries.find(key.high, |low| low == key.low)
    }

    /// Adds a series. The caller upholds that its key is not in the table.
    pub fn add(&mut self, key: Fingerprint, slot: Slot) {
        self.counts.series += 1;
        self.counts.slots_end = self.counts.slots_end.max(slot as usize + 1);
        self.place(key.high, key.low, slot);
        self.entries.expect(slot, key.high);
    }

    /// Lets `raw`, which is not the canonical key of `slot`, mean it under the rules, unless there
    /// are too many aliases already.
    pub fn add_alias(&mut self, raw: &[u8], slot: Slot, rules: Rules) {
        let (key, mark) = (self.entries.fingerprinter.of(raw), self.entries.mark(rules));
        let has_room = self.counts.aliases < self.counts.series * ALIASES_PER_SERIES;
        let is_known = |low| low == key.low || low == key.low ^ mark.0;
        if has_room && self.entries.find(key.high, is_known).is_none() {
            self.counts.aliases += 1;
            self.place(key.high, key.low ^ mark.0, slot);
        }
    }

    fn place(&mut self, high: u64, low: u32, slot: Slot) {
        assert!((slot as usize) < SLOTS_MAX);
        let count = self.counts.series + self.counts.aliases;
        if count > entries_max(self.entries.len()) {
            self.entries = Arc::new(self.entries.grown(count, self.counts.slots_end));
            self.table.entries.store(self.entries.clone());
        }
        self.entries.add(high, (u64::from(low) << 32) | (u64::from(slot) + 1));
    }
}

/// Entries that a table with places for `len` has before it grows.
fn entries_max(len: usize) -> usize {
    len / 4 * 3
}

impl Entries {
    /// With places for `len` entries, and for the canonical keys of the first `highs` slots.
    fn empty(fingerprinter: Fingerprinter, mark_factor: u32, len: usize, highs: usize) -> Entries {
        let lines = std::iter::repeat_with(Line::default);
        let lines = lines.take(len.div_ceil(LINE_ENTRIES)).collect();
        let highs = std::iter::repeat_with(AtomicU64::default).take(highs).collect();
        Entries { fingerprinter, mark_factor, lines, highs }
    }

    fn len(&self) -> usize {
        self.lines.len() * LINE_ENTRIES
    }

    fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.lines.iter().flat_map(|line| &line.0)
    }

    fn mark(&self, rules: Rules) -> RulesMark {
        RulesMark((u32::from(rules.0) + 1).wrapping_mul(self.mark_factor))
    }

    #[inline]
    fn touch(&self, key: Fingerprint) -> u64 {
        self.lines[self.line_of(key.high)].0[0].high.load(Ordering::Relaxed)
    }

    /// A larger one for more than `count` entries, of slots below `slots_end`.
    fn grown(&self, count: usize, slots_end: usize) -> Entries {
        let len = self.len() / 2 * 3;
        // As many as there can be before it grows again, if slots are given without a gap.
        let highs = slots_end + entries_max(len).saturating_sub(count);
        let grown = Entries::empty(self.fingerprinter.clone(), self.mark_factor, len, highs);
        for entry in self.iter() {
            let low_and_slot = entry.low_and_slot.load(Ordering::Relaxed);
            if low_and_slot != 0 {
                grown.add(entry.high.load(Ordering::Relaxed), low_and_slot);
            }
        }
        for (grown, high) in grown.highs.iter().zip(&self.highs) {
            grown.store(high.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        grown
    }

    /// Writes an entry at the first empty place of its key.
    fn add(&self, high: u64, low_and_slot: u64) {
        let is_empty = |entry: &&Entry| entry.low_and_slot.load(Ordering::Relaxed) == 0;
        let mut line = self.line_of(high);
        let entry = loop {
            match self.lines[line].0.iter().find(is_empty) {
                Some(entry) => break entry,
                None => line = self.line_behind(line),
            }
        };
        entry.high.store(high, Ordering::Relaxed);
        // Whoever sees it sees all of the entry.
        entry.low_and_slot.store(low_and_slot, Ordering::Release);
    }

    #[inline]
    fn find(&self, high: u64, is_low: impl Fn(u32) -> bool) -> Option<Slot> {
        let mut line = self.line_of(high);
        loop {
            for entry in &self.lines[line].0 {
                let low_and_slot = entry.low_and_slot.load(Ordering::Acquire);
                let slot = (low_and_slot as u32).checked_sub(1)?;
                let is_high = || entry.high.load(Ordering::Relaxed) == high;
                if is_low((low_and_slot >> 32) as u32) && is_high() {
                    return Some(slot);
                }
            }
            line = self.line_behind(line);
        }
    }

    /// Where the search for a key begins.
    #[inline]
    fn line_of(&self, high: u64) -> usize {
        ((u128::from(high) * self.lines.len() as u128) >> 64) as usize
    }

    #[inline]
    fn line_behind(&self, line: usize) -> usize {
        let behind = line + 1;
        if behind == self.lines.len() { 0 } else { behind }
    }

    /// Lets the canonical key of `slot` be recognized by its `high`.
    fn expect(&self, slot: Slot, high: u64) {
        if let Some(expected) = self.highs.get(slot as usize) {
            expected.store(high, Ordering::Release);
        }
    }

    #[inline]
    fn is_canonical(&self, slot: Slot, high: u64) -> bool {
        let expected = self.highs.get(slot as usize);
        high != 0 && expected.is_some_and(|expected| expected.load(Ordering::Acquire) == high)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const RULES: Rules = Rules(1);

    fn table() -> KeyTable {
        KeyTable::new(Fingerprinter::random())
    }

    #[test]
    fn every_key_is_found_and_no_other() {
        let table = table();
        let keys: Vec<String> = (0..10_000).map(|i| format!("key {i}")).collect();
        let find = |key: &str| {
            let lookup = table.lookup();
            lookup.find(lookup.fingerprint(key.as_bytes()), lookup.mark(RULES))
        };
        for (slot, key) in keys.iter().enumerate() {
            assert_eq!(find(key), None);
            table.adder().add(table.lookup().fingerprint(key.as_bytes()), slot as Slot);
        }
        for (slot, key) in keys.iter().enumerate() {
            assert_eq!(find(key), Some(slot as Slot));
        }
        assert_eq!(table.adder().series_count(), keys.len());
        assert!(table.bytes() <= (32 + 12) * keys.len());
    }

    #[test]
    fn keys_of_one_place_are_told_apart() {
        let table = table();
        let key = |low| Fingerprint { high: u64::MAX, low };
        for slot in 0..200 {
            table.adder().add(key(slot), slot);
        }
        for slot in 0..200 {
            assert_eq!(table.lookup().find_canonical(key(slot)), Some(slot));
        }
        assert_eq!(table.lookup().find_canonical(key(200)), None);
    }

    #[test]
    fn an_alias_means_its_series_under_its_rules_alone() {
        let table = table();
        let add = |key: &[u8], slot| table.adder().add(table.lookup().fingerprint(key), slot);
        let find = |key: &[u8], rules| {
            let lookup = table.lookup();
            lookup.find(lookup.fingerprint(key), lookup.mark(Rules(rules)))
        };
        add(b"canonical", 3);
        table.adder().add_alias(b"other", 3, RULES);
        table.adder().add_alias(b"one too many", 3, RULES);
        for rules in 0..=u8::MAX {
            assert_eq!(find(b"canonical", rules), Some(3));
            assert_eq!(find(b"other", rules), (rules == RULES.0).then_some(3));
            assert_eq!(find(b"one too many", rules), None);
        }
        assert_eq!(table.lookup().find_canonical(table.lookup().fingerprint(b"other")), None);
        add(b"second", 4);
        table.adder().add_alias(b"other", 4, Rules(2));
        assert_eq!((find(b"other", 1), find(b"other", 2)), (Some(3), Some(4)));
    }

    #[test]
    fn a_table_of_fewer_entries_knows_those_alone() {
        let table = table();
        let add = |key: &[u8], slot| table.adder().add(table.lookup().fingerprint(key), slot);
        for slot in 0..1000_u32 {
            add(&slot.to_be_bytes(), slot);
            table.adder().add_alias(format!("alias {slot}").as_bytes(), slot, RULES);
        }
        let fewer = table.with_only(334, |slot| slot % 3 == 0);
        let find = |key: &[u8]| {
            let lookup = fewer.lookup();
            lookup.find(lookup.fingerprint(key), lookup.mark(RULES))
        };
        for slot in 0..1000_u32 {
            let kept = (slot % 3 == 0).then_some(slot);
            assert_eq!(find(&slot.to_be_bytes()), kept);
            assert_eq!(find(format!("alias {slot}").as_bytes()), kept);
        }
        let counts = *fewer.counts.lock();
        assert_eq!((counts.series, counts.aliases), (334, 334));
        // It grows as any other.
        for slot in 1000..3000_u32 {
            let key = fewer.lookup().fingerprint(&slot.to_be_bytes());
            fewer.adder().add(key, slot);
            assert_eq!(find(&slot.to_be_bytes()), Some(slot));
        }
    }

    #[test]
    fn a_guess_is_right_for_the_canonical_key_of_the_slot_alone() {
        let table = table();
        let add = |key: &[u8], slot| table.adder().add(table.lookup().fingerprint(key), slot);
        // Through many a growth, and not in the order of slots.
        for i in 0..1000_u32 {
            add(&(i ^ 1).to_be_bytes(), i ^ 1);
            if i % 2 == 1 {
                table.adder().add_alias(format!("alias {i}").as_bytes(), i, RULES);
            }
        }
        let is_right = |table: &KeyTable, key: &[u8], slot| {
            let lookup = table.lookup();
            let high = lookup.high(key);
            assert!(lookup.with_low(high, key) == lookup.fingerprint(key));
            lookup.is_canonical(slot, high)
        };
        for slot in 0..1000_u32 {
            assert!(is_right(&table, &slot.to_be_bytes(), slot));
            assert!(!is_right(&table, &slot.to_be_bytes(), slot ^ 1));
            assert!(!is_right(&table, format!("alias {slot}").as_bytes(), slot));
        }
        for nowhere in [1000, 2000, Slot::MAX] {
            assert!(!is_right(&table, b"unknown", nowhere));
            assert!(!table.lookup().is_canonical(nowhere, 0));
        }
        let fewer = table.with_only(334, |slot| slot % 3 == 0);
        for slot in 0..1000_u32 {
            assert_eq!(is_right(&fewer, &slot.to_be_bytes(), slot), slot % 3 == 0);
            assert!(!is_right(&fewer, format!("alias {slot}").as_bytes(), slot));
        }
        // A slot that was given back and is another series' now.
        fewer.adder().add(fewer.lookup().fingerprint(b"another"), 1);
        assert!(is_right(&fewer, b"another", 1) && !is_right(&fewer, &1_u32.to_be_bytes(), 1));
    }

    #[test]
    fn look_ups_see_whole_entries_while_the_table_grows() {
        const KEYS: usize = 20_000;
        let table = table();
        // Of each key both halves and the slot say the same number.
        let key = |i: usize| {
            let high = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Fingerprint { high, low: i as u32 }
        };
        let added = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let known = added.load(Ordering::Acquire);
                        let lookup = table.lookup();
                        let from = known.saturating_sub(50);
                        for i in from..known {
                            assert_eq!(lookup.find_canonical(key(i)), Some(i as Slot));
                        }
                        let next = lookup.find_canonical(key(known));
                        assert!(next.is_none_or(|slot| slot as usize == known));
                        if known == KEYS {
                            break;
                        }
                    }
                });
            }
            for i in 0..KEYS {
                table.adder().add(key(i), i as Slot);
                added.store(i + 1, Ordering::Release);
            }
        });
    }
}
