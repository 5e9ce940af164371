//! Matchers to postings.

use super::IndexReader;
use super::postings::Postings;
use crate::model::matcher::{Deciding, Matcher};
use crate::model::stop;
use crate::tsdb::error::ReadError;

/// Values that are matched between two looks at whether anybody waits for the answer. An engine may
/// take some hundred microseconds for one.
const VALUES_PER_LOOK: usize = 8;

impl IndexReader {
    /// The series that match all `matchers`; all series without matchers. They are not complete if the
    /// work is [asked to stop](stop).
    ///
    /// As in Prometheus, a label that a series does not have is an empty value, and `""=""` selects
    /// everything. Each label's postings come into memory whole, four bytes a series, so that their
    /// checksum is seen; what they have in common is found as it is asked for.
    pub fn select(&self, matchers: &[Matcher]) -> Result<Postings, ReadError> {
        let matchers = matchers.iter().filter(|matcher| !matcher.selects_all());
        let (excluding, mut including): (Vec<_>, Vec<_>) =
            matchers.partition(|matcher| matcher.matches_empty());
        // Cheap ones first: if they leave nothing, no values are walked.
        including.sort_by_key(|matcher| matcher.deciding().is_walk());
        let mut included = Vec::with_capacity(including.len().max(1));
        for matcher in including {
            let having = self.having(matcher)?;
            if having.is_surely_empty() {
                return Ok(having);
            }
            included.push(having);
        }
        if included.is_empty() {
            included.push(Postings::of(self.all_postings()?));
        }
        let mut selected = Postings::intersection(included);
        for matcher in excluding {
            selected = Postings::difference(selected, self.having(matcher)?);
        }
        Ok(selected)
    }

    /// The series that have the matcher's label with a value that decides.
    fn having(&self, matcher: &Matcher) -> Result<Postings, ReadError> {
        // By no name the index has all series, and no series has such a label.
        if matcher.name.is_empty() {
            return Ok(Postings::empty());
        }
        let mut lists = Lists { of: Vec::new(), left: self.series_at_most() };
        match matcher.deciding() {
            Deciding::No => {}
            Deciding::These(values) => {
                for value in values {
                    if stop::is_asked() {
                        break;
                    }
                    self.keep(self.postings(&matcher.name, value)?, &mut lists)?;
                }
            }
            Deciding::Every => self.collect(matcher, &mut lists, |_| true)?,
            Deciding::Walk(matcher) => {
                let unlike = !matcher.matches_empty();
                self.collect(matcher, &mut lists, |value| matcher.matches(value) == unlike)?;
            }
        }
        Ok(Postings::union(lists.of))
    }

    /// The postings of all values that are wanted.
    fn collect(
        &self,
        matcher: &Matcher,
        lists: &mut Lists,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let mut values = self.values(&matcher.name);
        let mut walked = 0_usize;
        while let Some((value, place)) = values.next()? {
            if walked.is_multiple_of(VALUES_PER_LOOK) && stop::is_asked() {
                break;
            }
            walked += 1;
            if is_wanted(value) {
                self.keep(self.postings_at(place)?, lists)?;
            }
        }
        Ok(())
    }

    /// Adds the postings of one more value. A series has one value of a label, so all of them come to
    /// no more than there are series; else values share postings, and few bytes of a damaged file could
    /// take any amount of memory.
    fn keep(&self, list: Vec<u32>, lists: &mut Lists) -> Result<(), ReadError> {
        let left = lists.left.checked_sub(list.len() as u64);
        lists.left = left.ok_or_else(|| self.too_many_postings())?;
        if !list.is_empty() {
            lists.of.push(list);
        }
        Ok(())
    }
}

/// Postings of values of one label.
struct Lists {
    of: Vec<Vec<u32>>,
    /// How many more there can be.
    left: u64,
}
