//! The head's inverted index: from a label to the slots of the series that have it. It is here that
//! labels get their numbers, too.
//!
//! A *slot* is the index of a series in the head. The index knows no series, only slots.
//!
//! What it costs: a label that many series share takes one or two bytes of each series (see
//! [`list`]); one that a single series has takes an entry of 32 bytes, 9 of hash table and 28 for its
//! number, all with up to as much again of spare room, and the text of the value. A series of 12
//! labels, one of them its own, comes to about 20 bytes of lists, 90 of entries and its text; a test
//! prints it.
//!
//! Locking: one lock, written by whoever makes series (one at a time, under the log's mutex) and
//! read in short slices, so that no reader keeps an insert waiting for longer than it takes to copy
//! some hundred kilobytes. Between slices the index grows under the reader's feet. That is sound:
//! - a series is added with all its labels or not at all, as far as a reader sees;
//! - values keep their place, new ones come last, so a walk by position misses nothing old;
//! - what a selection excludes is read after what it includes, so a series that was included is in
//!   every list that could exclude it. A series made meanwhile is in the result or isn't.

mod list;

use std::borrow::Borrow as _;
use std::sync::Arc;

use indexmap::IndexMap;
use parking_lot::RwLock;
use rapidhash::fast::RandomState;

use self::list::PostingsList;
use crate::model::key_table::Slot;
use crate::model::labels::LabelIter;
use crate::model::matcher::{Deciding, Matcher};
use crate::model::pairs::{PairId, Pairs, Text};
use crate::model::stop;

/// What one slice of a reader may look at or copy while it holds the lock.
const SLICE_ITEMS: usize = 2048;
const SLICE_BYTES: usize = 256 << 10;
/// Values that are matched between two looks at whether anybody waits for the answer. An engine may
/// take some hundred microseconds for one.
const VALUES_PER_LOOK: usize = 8;
/// Positions in a series for which the label of the series before is remembered.
const EXPECTED_MAX: usize = 64;

/// The index of one head.
#[derive(Debug, Default)]
pub struct MemPostings {
    index: RwLock<Index>,
    /// Those of all labels in the index.
    pairs: Arc<Pairs>,
}

/// Text to `V` in order of insertion: an entry's position is its name as long as nothing is
/// removed. Hashed with a random seed, since clients choose the texts.
type ByText<V> = IndexMap<Text, V, RandomState>;

#[derive(Debug, Default)]
struct Index {
    names: ByText<Values>,
    all: Option<PostingsList>,
    series_count: usize,
    /// Positions of name and value of the last series' labels, in their order. Series that come
    /// together share most labels, so the first guess mostly spares both look-ups.
    expected: Vec<(usize, usize)>,
    /// Numbers of the last series' labels.
    added: Vec<PairId>,
}

impl MemPostings {
    pub fn new() -> MemPostings {
        MemPostings::default()
    }

    /// What labels are by their numbers.
    pub fn pairs(&self) -> &Arc<Pairs> {
        &self.pairs
    }

    /// Adds series, taking the lock once, and tells the numbers of each one's labels. Their slots are
    /// in no list yet, and normally are the greatest so far.
    pub fn add<'k>(
        &self,
        series: impl IntoIterator<Item = (Slot, LabelIter<'k>)>,
        mut tell: impl FnMut(Slot, &[PairId]),
    ) {
        let mut index = self.index.write();
        for (slot, labels) in series {
            index.add(&self.pairs, slot, labels);
            tell(slot, &index.added);
        }
    }

    /// Slots of the series that match all `matchers`, rising; all series without matchers.
    ///
    /// As in Prometheus, a label that a series does not have is an empty value, and `""=""`
    /// selects everything.
    pub fn select(&self, matchers: &[Matcher]) -> Vec<u32> {
        let mut included = Vec::new();
        let mut excluded = Vec::new();
        for matcher in matchers {
            if matcher.selects_all() {
                continue;
            }
            // The label decides: with a value that fares unlike the empty one the series is in
            // if the empty value does not match, and out if it does.
            let term = (&matcher.name[..], matcher.deciding());
            if matcher.matches_empty() { excluded.push(term) } else { included.push(term) }
        }
        // Cheap ones first: if they leave nothing, no values are walked.
        included.sort_by_key(|(_, deciding)| deciding.is_walk());

        let mut selected: Option<Vec<u32>> = None;
        for (name, deciding) in &included {
            let having = self.having(name, deciding);
            let both = match selected {
                None => having,
                Some(selected) => intersection(selected, &having),
            };
            if both.is_empty() {
                return both;
            }
            selected = Some(both);
        }
        let mut selected = selected.unwrap_or_else(|| self.all());
        for (name, deciding) in &excluded {
            if selected.is_empty() {
                break;
            }
            selected = difference(selected, &self.having(name, deciding));
        }
        selected
    }

    /// Slots of all series, rising.
    pub fn all(&self) -> Vec<u32> {
        let snapshot = self.index.read().all.as_ref().map(PostingsList::snapshot);
        let mut slots = Vec::new();
        if let Some(snapshot) = snapshot {
            snapshot.decode(&mut slots);
        }
        sorted(slots)
    }

    pub fn series_count(&self) -> usize {
        self.index.read().series_count
    }

    /// Names of all labels, sorted.
    pub fn label_names(&self) -> Vec<Vec<u8>> {
        self.sorted_texts(|index| Some(&index.names))
    }

    /// Values of one label, sorted.
    pub fn label_values(&self, name: &[u8]) -> Vec<Vec<u8>> {
        self.sorted_texts(|index| Some(&index.names.get(name)?.lists))
    }

    /// All labels, sorted by name: each name with its values and their numbers, sorted.
    pub fn sorted_pairs(&self) -> Vec<(Text, Vec<(Text, PairId)>)> {
        let mut all = Vec::new();
        for at in 0.. {
            let Some(name) = self.index.read().names.get_index(at).map(|(name, _)| name.clone())
            else {
                break;
            };
            let mut values: Vec<(Text, PairId)> = Vec::new();
            loop {
                let index = self.index.read();
                let Some((_, Values { lists, pairs })) = index.names.get_index(at) else { break };
                let from = values.len();
                let to = lists.len().min(from + SLICE_ITEMS);
                let slice = lists.get_range(from..to).into_iter().flat_map(|slice| slice.keys());
                values.extend(slice.cloned().zip(pairs[from..to].iter().copied()));
                if values.len() == from {
                    break;
                }
            }
            values.sort_unstable_by(|(a, _), (b, _)| bytes(a).cmp(bytes(b)));
            all.push((name, values));
        }
        all.sort_unstable_by(|(a, _), (b, _)| bytes(a).cmp(bytes(b)));
        all
    }

    /// How many values each label name has, in no particular order.
    pub fn value_counts(&self) -> Vec<(Vec<u8>, usize)> {
        let index = self.index.read();
        let counts =
            index.names.iter().map(|(name, values)| (bytes(name).to_vec(), values.lists.len()));
        counts.collect()
    }

    /// Slots of the series that have the label with one of the deciding values, rising. They are not
    /// complete if the work is [asked to stop](stop).
    fn having(&self, name: &[u8], deciding: &Deciding<'_>) -> Vec<u32> {
        let mut slots = Vec::new();
        match deciding {
            Deciding::No => {}
            Deciding::These(values) => {
                self.decode_lists(name, values.len(), &mut slots, |lists, i| {
                    lists.get(&values.get(i)?[..])
                });
            }
            Deciding::Every => {
                let count =
                    self.index.read().names.get(name).map_or(0, |values| values.lists.len());
                self.decode_lists(name, count, &mut slots, |lists, i| {
                    lists.get_index(i).map(|(_, list)| list)
                });
            }
            Deciding::Walk(matcher) => {
                let unlike = !matcher.matches_empty();
                let mut from = 0;
                loop {
                    let texts = match self.index.read().names.get(name) {
                        None => break,
                        Some(values) => Texts::copy(&values.lists, from),
                    };
                    if texts.len() == 0 {
                        break;
                    }
                    let mut positions = Vec::new();
                    for (i, value) in texts.iter().enumerate() {
                        if i % VALUES_PER_LOOK == 0 && stop::is_asked() {
                            return slots;
                        }
                        if matcher.matches(value) == unlike {
                            positions.push(from + i);
                        }
                    }
                    self.decode_lists(name, positions.len(), &mut slots, |lists, i| {
                        lists.get_index(*positions.get(i)?).map(|(_, list)| list)
                    });
                    from += texts.len();
                }
            }
        }
        sorted(slots)
    }

    /// Appends the slots of `count` lists of a name to `slots`; `find` gives the i-th, if there is
    /// one. Decoded outside of the lock.
    fn decode_lists(
        &self,
        name: &[u8],
        count: usize,
        slots: &mut Vec<u32>,
        find: impl Fn(&ByText<PostingsList>, usize) -> Option<&PostingsList>,
    ) {
        let mut snapshots = Vec::new();
        let mut next = 0;
        while next < count && !stop::is_asked() {
            {
                let index = self.index.read();
                let Some(Values { lists, .. }) = index.names.get(name) else { return };
                let slice_end = count.min(next + SLICE_ITEMS);
                let mut copied = 0;
                while next < slice_end && copied < SLICE_BYTES {
                    if let Some(list) = find(lists, next) {
                        let snapshot = list.snapshot();
                        copied += snapshot.copied_bytes();
                        snapshots.push(snapshot);
                    }
                    next += 1;
                }
            }
            for snapshot in snapshots.drain(..) {
                snapshot.decode(slots);
            }
        }
    }

    fn sorted_texts<V>(&self, map: impl Fn(&Index) -> Option<&ByText<V>>) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let texts = match map(&self.index.read()) {
                None => break,
                Some(map) => Texts::copy(map, all.len()),
            };
            if texts.len() == 0 {
                break;
            }
            all.extend(texts.iter().map(<[u8]>::to_vec));
        }
        all.sort_unstable();
        all
    }
}

impl Index {
    fn add(&mut self, pairs: &Pairs, slot: u32, labels: LabelIter<'_>) {
        match &mut self.all {
            Some(all) => all.push(slot),
            None => self.all = Some(PostingsList::of_one(slot)),
        }
        self.series_count += 1;
        self.added.clear();
        for (i, (name, value)) in labels.enumerate() {
            let expected = self.expected.get(i).copied();
            let found = self.add_label(pairs, slot, name, value, expected);
            self.added.push(self.names[found.0].pairs[found.1]);
            match self.expected.get_mut(i) {
                Some(expected) => *expected = found,
                None if i < EXPECTED_MAX => self.expected.push(found),
                None => {}
            }
        }
    }

    /// Returns the positions of name and value.
    fn add_label(
        &mut self,
        pairs: &Pairs,
        slot: u32,
        name: &[u8],
        value: &[u8],
        expected: Option<(usize, usize)>,
    ) -> (usize, usize) {
        let name_at = expected
            .map(|(name_at, _)| name_at)
            .filter(|&at| self.names.get_index(at).is_some_and(|(known, _)| bytes(known) == name))
            .or_else(|| self.names.get_index_of(name))
            .unwrap_or_else(|| self.names.insert_full(Text::new(name), Values::default()).0);
        let (name, values) = self.names.get_index_mut(name_at).expect("it was found or added");

        let value_at = expected
            .map(|(_, value_at)| value_at)
            .filter(|&at| {
                values.lists.get_index(at).is_some_and(|(known, _)| bytes(known) == value)
            })
            .or_else(|| values.lists.get_index_of(value));
        match value_at {
            Some(value_at) => {
                values.lists[value_at].push(slot);
                (name_at, value_at)
            }
            None => {
                let value = Text::new(value);
                values.pairs.push(pairs.add(name.clone(), value.clone()));
                (name_at, values.lists.insert_full(value, PostingsList::of_one(slot)).0)
            }
        }
    }
}

/// The values of one name.
#[derive(Debug, Default)]
struct Values {
    lists: ByText<PostingsList>,
    /// In their order, each with the name.
    pairs: Vec<PairId>,
}

/// Texts of consecutive entries, copied into one buffer.
#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    /// A slice's worth of the entries from a position on; at least one, if there is one.
    fn copy<V>(map: &ByText<V>, from: usize) -> Texts {
        let mut texts = Texts::default();
        for at in from..map.len().min(from.saturating_add(SLICE_ITEMS)) {
            let Some((text, _)) = map.get_index(at) else { break };
            texts.bytes.extend_from_slice(bytes(text));
            texts.ends.push(texts.bytes.len());
            if texts.bytes.len() >= SLICE_BYTES {
                break;
            }
        }
        texts
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }
}

fn bytes(text: &Text) -> &[u8] {
    text.borrow()
}

/// Lists are rising sequences in a row, which the standard sort merges.
fn sorted(mut slots: Vec<u32>) -> Vec<u32> {
    slots.sort();
    slots
}

/// Of two rising sequences, what is in both.
fn intersection(mut left: Vec<u32>, right: &[u32]) -> Vec<u32> {
    retain(&mut left, right, true);
    left
}

/// Of two rising sequences, what is in `left` alone.
fn difference(mut left: Vec<u32>, right: &[u32]) -> Vec<u32> {
    retain(&mut left, right, false);
    left
}

fn retain(left: &mut Vec<u32>, right: &[u32], if_found: bool) {
    let mut right = right.iter().copied().peekable();
    left.retain(|&slot| {
        while right.next_if(|&other| other < slot).is_some() {}
        (right.peek() == Some(&slot)) == if_found
    });
}

#[cfg(test)]
mod tests;
