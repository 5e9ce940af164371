//! Which series of a message were refused, as nodes of ours tell one another.
//!
//! ```text
//! list = run*
//! run  = skipped (varint: series since the last run)   count (varint, at least 1)   reason (varint)
//! ```
//!
//! Series are counted from 0 in the order in which they stand in the message. Everything that is not
//! in the list is stored. What the reasons' numbers mean is up to those who use the list; one that is
//! not known is a refusal all the same.

use crate::model::varint::{push_varint, read_varint};
use crate::wire::remote_write_v1::DecodeError;

/// A longer list is not sent; the message is refused as a whole then.
pub const LIST_BYTES_MAX: usize = 1 << 20;

const NAME: &str = "list of refused series";

/// Refused series, in order, in runs of one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedSeries {
    runs: Vec<Run>,
}

/// So many series from `start` on. Runs rise, and do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: u32,
    count: u32,
    reason: u8,
}

impl RefusedSeries {
    /// Adds a series. One that is there already, or comes before the last one, is let go: each is
    /// told once, by the reason that was found first.
    pub fn push(&mut self, series: u32, reason: u8) {
        match self.runs.last_mut() {
            Some(last) if series < last.end() => {}
            Some(last) if series == last.end() && reason == last.reason => last.count += 1,
            _ => self.runs.push(Run { start: series, count: 1, reason }),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The series, rising, each with the reason's number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u8)> {
        self.runs.iter().flat_map(|run| (run.start..run.end()).map(|series| (series, run.reason)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.runs.iter().map(|run| run.count as usize).sum()
    }

    /// As it is sent; `None` if it would be longer than [`LIST_BYTES_MAX`].
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut end = 0;
        for run in &self.runs {
            debug_assert!(run.start >= end && run.count > 0, "runs rise, and none is empty");
            push_varint(&mut bytes, u64::from(run.start - end));
            push_varint(&mut bytes, u64::from(run.count));
            push_varint(&mut bytes, u64::from(run.reason));
            end = run.end();
            if bytes.len() > LIST_BYTES_MAX {
                return None;
            }
        }
        Some(bytes)
    }

    /// Reads a list about a message of `series_count` series.
    #[expect(clippy::cast_possible_truncation, reason = "all are at most `series_count`")]
    pub fn decode(mut bytes: &[u8], series_count: u32) -> Result<RefusedSeries, DecodeError> {
        if bytes.len() > LIST_BYTES_MAX {
            return Err(DecodeError::new(NAME, "too long"));
        }
        let mut runs = Vec::new();
        let mut end = 0u32;
        while !bytes.is_empty() {
            let mut number = || {
                let (number, rest) = read_varint(bytes)?;
                bytes = rest;
                Some(number)
            };
            let cut_short = DecodeError::new(NAME, "cut short");
            let (skipped, count, reason) = (
                number().ok_or(cut_short)?,
                number().ok_or(cut_short)?,
                number().ok_or(cut_short)?,
            );
            let start = u64::from(end).checked_add(skipped);
            let next = start.and_then(|start| start.checked_add(count));
            let is_of_message = |next: &u64| count > 0 && *next <= u64::from(series_count);
            let (Some(start), Some(next)) = (start, next.filter(is_of_message)) else {
                return Err(DecodeError::new(NAME, "names series that are not in the message"));
            };
            end = next as u32;
            let reason = u8::try_from(reason).unwrap_or(u8::MAX);
            runs.push(Run { start: start as u32, count: count as u32, reason });
        }
        Ok(RefusedSeries { runs })
    }
}

impl Run {
    fn end(&self) -> u32 {
        self.start.saturating_add(self.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_of_one_reason_are_one() {
        let mut list = RefusedSeries::default();
        for (series, reason) in [(3, 1), (4, 1), (5, 2), (5, 1), (4, 7), (9, 2)] {
            list.push(series, reason);
        }
        assert_eq!(list.encode().unwrap(), [3, 2, 1, 0, 1, 2, 3, 1, 2]);
        assert_eq!(list.len(), 4);
        assert_eq!(RefusedSeries::decode(&list.encode().unwrap(), 10), Ok(list));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for bad in [&[0][..], &[0, 1], &[0, 0, 1], &[9, 2, 1], &[0xff; 20]] {
            assert!(RefusedSeries::decode(bad, 10).is_err(), "{bad:?}");
        }
        let huge = [&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 1][..]].concat();
        assert!(RefusedSeries::decode(&huge, u32::MAX).is_err());
        assert!(RefusedSeries::decode(&vec![0; LIST_BYTES_MAX + 1], u32::MAX).is_err());
    }

    #[test]
    fn a_list_over_the_cap_is_not_sent() {
        let mut list = RefusedSeries::default();
        (0..LIST_BYTES_MAX as u32).step_by(2).for_each(|series| list.push(series, 1));
        assert_eq!(list.encode(), None);
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_it_was_made(
            series in proptest::collection::btree_map(0u32..2000, 0u8..4, 0..300)
        ) {
            let mut list = RefusedSeries::default();
            series.iter().for_each(|(series, reason)| list.push(*series, *reason));
            let read = RefusedSeries::decode(&list.encode().unwrap(), 2000).unwrap();
            prop_assert_eq!(read.len(), series.len());
            prop_assert!(read.iter().eq(series.into_iter()));
        }

        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(list) = RefusedSeries::decode(&bytes, 1000) {
                prop_assert!(list.iter().all(|(series, _)| series < 1000));
                prop_assert!(list.len() <= 1000);
            }
        }
    }
}
