//! Sorting millions of series, and stopping within milliseconds when nobody waits any more.

use std::cmp::Ordering;

use crate::model::stop;

/// Sorted in about a millisecond.
const RUN: usize = 8192;

/// Sorts in no particular order of equal ones. What is left by work that was asked to stop is in any
/// order.
pub(crate) fn sort_by<T>(items: &mut [T], mut compare: impl FnMut(&T, &T) -> Ordering) {
    for run in items.chunks_mut(RUN) {
        if stop::is_asked() {
            return;
        }
        run.sort_unstable_by(&mut compare);
    }
    if items.len() <= RUN {
        return;
    }
    // Places are merged rather than items, as they are small and can be copied.
    let mut order: Vec<usize> = (0..items.len()).collect();
    let mut merged = Vec::with_capacity(order.len());
    let mut width = RUN;
    while width < items.len() {
        merged.clear();
        for pair in order.chunks(2 * width) {
            let (left, right) = pair.split_at(width.min(pair.len()));
            merge(items, left, right, &mut compare, &mut merged);
        }
        if stop::is_asked() {
            return;
        }
        std::mem::swap(&mut order, &mut merged);
        width *= 2;
    }
    put_in_order(items, &mut order);
}

fn merge<T>(
    items: &[T],
    mut left: &[usize],
    mut right: &[usize],
    compare: &mut impl FnMut(&T, &T) -> Ordering,
    merged: &mut Vec<usize>,
) {
    while let (Some((l, left_rest)), Some((r, right_rest))) =
        (left.split_first(), right.split_first())
    {
        if compare(&items[*r], &items[*l]) == Ordering::Less {
            merged.push(*r);
            right = right_rest;
        } else {
            merged.push(*l);
            left = left_rest;
        }
        if merged.len().is_multiple_of(RUN) && stop::is_asked() {
            return;
        }
    }
    merged.extend_from_slice(left);
    merged.extend_from_slice(right);
}

/// Item `order[i]` gets to place `i`, one cycle after the other.
fn put_in_order<T>(items: &mut [T], order: &mut [usize]) {
    for start in 0..order.len() {
        let mut place = start;
        loop {
            let from = std::mem::replace(&mut order[place], place);
            if from == start || from == place {
                break;
            }
            items.swap(place, from);
            place = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_items_is_sorted() {
        for count in [0, 1, 2, RUN - 1, RUN, RUN + 1, 2 * RUN, 3 * RUN + 5, 8 * RUN + 1] {
            // All different, and well mixed: a prime multiplied.
            let mut items: Vec<u64> =
                (0..count as u64).map(|i| (i * 2_654_435_761) % 4_294_967_291).collect();
            let mut expected = items.clone();
            expected.sort_unstable();
            sort_by(&mut items, u64::cmp);
            assert!(items == expected, "{count}");
        }
    }

    #[test]
    fn a_sort_that_is_asked_to_stop_soon_compares_no_more() {
        for compared_max in [0, 1, 100_000, 600_000] {
            let (waiting, stop) = stop::pair();
            let mut waiting = Some(waiting);
            let mut items: Vec<u64> =
                (0..8 * RUN as u64).map(|i| (i * 2_654_435_761) % 4_294_967_291).collect();
            let (mut compared, mut after) = (0, 0);
            stop.run(|| {
                sort_by(&mut items, |a, b| {
                    compared += 1;
                    if compared > compared_max {
                        waiting = None;
                        after += 1;
                    }
                    a.cmp(b)
                });
            });
            assert!(after < 40 * RUN, "{after} comparisons after {compared_max}");
            items.sort_unstable();
            items.dedup();
            assert_eq!(items.len(), 8 * RUN, "none is lost");
        }
    }
}
