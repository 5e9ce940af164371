//! What the series of a head are called: from bytes to slots, from slots to labels, and from labels
//! to slots.
//!
//! A catalog only grows. Series are forgotten by making another one aside, of those that are kept,
//! and putting it in place of this one (see [`gc`](crate::tsdb::head::gc)); slots stay what
//! they are. Whoever holds slots holds the catalog that gave them, and a slot is given to another
//! series only when nobody holds a catalog any more in which it was one's. So a slot means one series
//! for as long as it is held, though that one may be gone.

use parking_lot::{RwLock, RwLockReadGuard};

use crate::model::fingerprint::Fingerprinter;
use crate::model::key_table::{KeyTable, Lookup, Slot};
use crate::model::labels::{KeyBuilder, LabelIter, SeriesKey};
use crate::model::pairs::LabelPairs;
use crate::tsdb::head::labels::SlotLabels;
use crate::tsdb::head::postings::MemPostings;

pub struct Catalog {
    pub(super) known: KeyTable,
    pub(super) postings: MemPostings,
    labels: RwLock<SlotLabels>,
}

impl Catalog {
    pub fn new(fingerprinter: Fingerprinter) -> Catalog {
        Catalog::of(KeyTable::new(fingerprinter))
    }

    /// One whose series have no labels yet.
    pub fn of(known: KeyTable) -> Catalog {
        Catalog { known, postings: MemPostings::new(), labels: RwLock::default() }
    }

    /// The series known now, to look a request up in.
    pub fn lookup(&self) -> Lookup {
        self.known.lookup()
    }

    pub fn series_count(&self) -> usize {
        self.labels.read().count()
    }

    /// Gives series their labels, holding the locks once.
    pub fn name<'k>(&self, series: impl IntoIterator<Item = (Slot, LabelIter<'k>)>) {
        let mut labels = self.labels.write();
        self.postings.add(series, |slot, pairs| labels.set(slot, pairs));
    }

    /// The labels of the slots. Comes before the states in the order of locks.
    pub fn labels(&self) -> RwLockReadGuard<'_, SlotLabels> {
        self.labels.read()
    }

    pub fn labels_in<'c>(&'c self, labels: &'c SlotLabels, slot: Slot) -> LabelPairs<'c> {
        LabelPairs::new(self.postings.pairs(), labels.get(slot).unwrap_or(&[]))
    }

    /// The canonical key of a slot, put together from its labels.
    #[cold]
    pub fn key_of(&self, slot: Slot) -> SeriesKey {
        let mut key = KeyBuilder::default();
        let labels = self.labels();
        self.labels_in(&labels, slot).for_each(|(name, value)| key.push(name, value));
        SeriesKey::from_canonical(key.as_bytes())
    }
}
