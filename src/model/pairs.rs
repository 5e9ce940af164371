//! Labels as numbers: each pair of a name and a value is kept once, however many series have it.
//!
//! Pairs are only ever added, by one thread at a time, and read without a lock, so that a reader
//! holds numbers of four bytes where it would hold texts, and compares numbers before texts.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use triomphe::ThinArc;

use crate::model::labels::fmt_labels;

/// A pair's number among the [`Pairs`] that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairId(u32);

impl PairId {
    /// Numbers are given from 0 on, without a gap.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A text that is kept once for all who name it.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(ThinArc<(), u8>);

impl Text {
    pub fn new(bytes: &[u8]) -> Text {
        Text(ThinArc::from_header_and_slice((), bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0.slice
    }
}

impl Borrow<[u8]> for Text {
    fn borrow(&self) -> &[u8] {
        &self.0.slice
    }
}

/// As that of the bytes that it can be looked up by.
impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.slice.hash(state);
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.slice.escape_ascii())
    }
}

/// All pairs that series of one head have or had.
#[derive(Debug, Default)]
pub struct Pairs(boxcar::Vec<(Text, Text)>);

impl Pairs {
    /// Adds a pair. The caller upholds that it is not among them.
    pub fn add(&self, name: Text, value: Text) -> PairId {
        let number = self.0.push((name, value));
        PairId(u32::try_from(number).expect("memory ends before the numbers of pairs do"))
    }

    fn get(&self, id: PairId) -> (&[u8], &[u8]) {
        let (name, value) = &self.0[id.0 as usize];
        (name.borrow(), value.borrow())
    }
}

/// The labels of a series, by their pairs: 4 bytes each.
#[derive(Clone)]
pub struct SeriesLabels {
    pairs: Arc<Pairs>,
    /// In order of names.
    ids: Box<[PairId]>,
}

impl SeriesLabels {
    pub fn new(pairs: Arc<Pairs>, ids: impl Into<Box<[PairId]>>) -> SeriesLabels {
        SeriesLabels { pairs, ids: ids.into() }
    }

    /// Names and values in order of names.
    pub fn iter(&self) -> LabelPairs<'_> {
        self.iter_from(0)
    }

    /// Those behind the first `skipped`.
    pub fn iter_from(&self, skipped: usize) -> LabelPairs<'_> {
        LabelPairs { pairs: &self.pairs, ids: self.ids.get(skipped..).unwrap_or(&[]) }
    }

    /// How many labels both begin with.
    pub fn shared_with(&self, other: &SeriesLabels) -> usize {
        let both = self.ids.iter().zip(&other.ids);
        let is_same = |(a, b): &(&PairId, &PairId)| a == b;
        match Arc::ptr_eq(&self.pairs, &other.pairs) {
            true => both.take_while(is_same).count(),
            false => self.iter().zip(other.iter()).take_while(|(a, b)| a == b).count(),
        }
    }

    /// Bytes that the numbers take.
    pub fn bytes(&self) -> usize {
        self.ids.len() * size_of::<PairId>()
    }
}

/// By labels, one after the other.
impl Ord for SeriesLabels {
    fn cmp(&self, other: &SeriesLabels) -> Ordering {
        let shared = self.shared_with(other);
        self.iter_from(shared).cmp(other.iter_from(shared))
    }
}

impl PartialOrd for SeriesLabels {
    fn partial_cmp(&self, other: &SeriesLabels) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for SeriesLabels {
    fn eq(&self, other: &SeriesLabels) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for SeriesLabels {}

impl fmt::Debug for SeriesLabels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_labels(f, self.iter())
    }
}

/// Walks labels by their pairs.
#[derive(Clone)]
pub struct LabelPairs<'p> {
    pairs: &'p Pairs,
    ids: &'p [PairId],
}

impl<'p> LabelPairs<'p> {
    pub fn new(pairs: &'p Pairs, ids: &'p [PairId]) -> LabelPairs<'p> {
        LabelPairs { pairs, ids }
    }
}

impl<'p> Iterator for LabelPairs<'p> {
    type Item = (&'p [u8], &'p [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (id, rest) = self.ids.split_first()?;
        self.ids = rest;
        Some(self.pairs.get(*id))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.ids.len(), Some(self.ids.len()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Labels with pairs of their own.
    pub(crate) fn series_labels<'l>(
        labels: impl IntoIterator<Item = (&'l [u8], &'l [u8])>,
    ) -> SeriesLabels {
        let pairs = Pairs::default();
        let ids: Vec<_> = labels
            .into_iter()
            .map(|(name, value)| pairs.add(Text::new(name), Text::new(value)))
            .collect();
        SeriesLabels::new(Arc::new(pairs), ids)
    }

    #[test]
    fn labels_are_compared_by_their_texts_whatever_their_numbers() {
        let pairs = Arc::new(Pairs::default());
        let add = |name: &[u8], value: &[u8]| pairs.add(Text::new(name), Text::new(value));
        // Numbers rise against the order of texts.
        let (z, b, a) = (add(b"n", b"z"), add(b"a", b"b"), add(b"a", b"a"));
        let series = |ids: &[PairId]| SeriesLabels::new(pairs.clone(), ids);
        let rising = [series(&[]), series(&[a]), series(&[a, z]), series(&[b]), series(&[b, z])];
        for (i, one) in rising.iter().enumerate() {
            for (j, other) in rising.iter().enumerate() {
                assert_eq!(one.cmp(other), i.cmp(&j), "{one:?} and {other:?}");
                let apart = series_labels(other.iter());
                assert_eq!(one.cmp(&apart), i.cmp(&j), "{one:?} and {other:?}, apart");
                assert_eq!(one.shared_with(&apart), one.shared_with(other));
            }
        }
    }
}
