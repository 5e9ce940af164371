//! Which blocks are merged next: Prometheus' leveled planner, without I/O.
//!
//! Blocks that overlap come first, oldest first. Then those that fill a range of the ladder together,
//! or lie before the newest block and in one range; the newest block waits, so that somebody can copy
//! it before. Then one of which much is deleted. (Prometheus `tsdb/compact.go`)
//!
//! One thing is different: what could not be merged once is not planned again, neither for overlap nor
//! for tombstones, where Prometheus tries it for ever and gets to nothing else.

use crate::model::Timestamp;
use crate::tsdb::block::meta::{Compaction, FROM_SELECTED_SERIES, FROM_STALE_SERIES};

/// A range of the ladder has so many of the one below.
const STEP: i64 = 3;
/// Prometheus' ladder has no more ranges.
const RANGES_MAX: usize = 10;
/// A block with more tombstones a series is rewritten.
const TOMBSTONES_A_SERIES: f64 = 0.05;

/// Blocks of one class are merged with each other alone, so that what their hints say stays true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Usual,
    StaleSeries,
    SelectedSeries,
}

impl Class {
    pub fn of(compaction: &Compaction) -> Class {
        let has = |hint: &str| compaction.hints.iter().any(|of| of == hint);
        match () {
            () if has(FROM_STALE_SERIES) => Class::StaleSeries,
            () if has(FROM_SELECTED_SERIES) => Class::SelectedSeries,
            () => Class::Usual,
        }
    }
}

/// What the plan looks at of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedBlock {
    pub min_time: Timestamp,
    /// Not included.
    pub max_time: Timestamp,
    pub series: u64,
    pub tombstones: u64,
    /// It could not be merged before.
    pub is_failed: bool,
    pub class: Class,
}

/// The ranges that merged blocks may fill, in milliseconds: the shortest is the heads', each further
/// one is three times as long, and none is longer than `max`.
pub fn ladder(min: i64, max: i64) -> Vec<i64> {
    let mut ranges = vec![min];
    while let Some(next) = ranges.last().and_then(|last| last.checked_mul(STEP))
        && next <= max
        && ranges.len() < RANGES_MAX
    {
        ranges.push(next);
    }
    ranges
}

/// The blocks, by place and sorted by the times that they begin at, that are to become one; none if
/// there is nothing to do.
pub fn plan(blocks: &[PlannedBlock], ranges: &[i64]) -> Vec<usize> {
    let classes = [Class::Usual, Class::StaleSeries, Class::SelectedSeries].into_iter();
    let plans = classes.map(|class| {
        let of_class = (0..blocks.len()).filter(|i| blocks[*i].class == class);
        let mut sorted: Vec<(usize, PlannedBlock)> = of_class.map(|i| (i, blocks[i])).collect();
        sorted.sort_by_key(|(_, block)| block.min_time);
        plan_class(&sorted, ranges)
    });
    plans.into_iter().find(|planned| !planned.is_empty()).unwrap_or_default()
}

type Sorted = [(usize, PlannedBlock)];

fn plan_class(blocks: &Sorted, ranges: &[i64]) -> Vec<usize> {
    let places = |blocks: &Sorted| blocks.iter().map(|(i, _)| *i).collect::<Vec<_>>();
    if let Some(overlapping) = overlapping(blocks) {
        return places(overlapping);
    }
    let Some((_, older)) = blocks.split_last() else { return Vec::new() };
    if let Some(range) = full_range(older, ranges) {
        return places(range);
    }
    deleted_from(older, ranges).into_iter().collect()
}

fn has_failed(blocks: &Sorted) -> bool {
    blocks.iter().any(|(_, block)| block.is_failed)
}

/// The oldest blocks that overlap one another.
fn overlapping(blocks: &Sorted) -> Option<&Sorted> {
    let mut rest = blocks;
    while let Some((_, first)) = rest.first() {
        let mut end = first.max_time;
        let mut count = 1;
        while let Some((_, next)) = rest.get(count)
            && next.min_time < end
        {
            end = end.max(next.max_time);
            count += 1;
        }
        let (group, behind) = rest.split_at(count);
        if count > 1 && !has_failed(group) {
            return Some(group);
        }
        rest = behind;
    }
    None
}

/// The oldest blocks of the shortest range that is full, or will not get any more blocks.
fn full_range<'b>(blocks: &'b Sorted, ranges: &[i64]) -> Option<&'b Sorted> {
    let newest = blocks.last()?.1.min_time;
    ranges.iter().skip(1).find_map(|range| {
        split_by_range(blocks, *range).into_iter().find(|part| {
            let [(_, first), .., (_, last)] = part else { return false };
            let is_full = last.max_time.saturating_sub(first.min_time) == *range;
            !has_failed(part) && (is_full || last.max_time <= newest)
        })
    })
}

/// The blocks that lie in one range each, without those that lie in none as a whole.
fn split_by_range(blocks: &Sorted, range: i64) -> Vec<&Sorted> {
    let mut parts = Vec::new();
    let mut rest = blocks;
    while let Some((_, first)) = rest.first() {
        let start = first.min_time.saturating_sub(first.min_time.rem_euclid(range));
        let end = start.saturating_add(range);
        let count = rest.iter().take_while(|(_, block)| block.max_time <= end).count();
        let (part, behind) = rest.split_at(count.max(1));
        if count > 0 {
            parts.push(part);
        }
        rest = behind;
    }
    parts
}

/// The newest block of which so much is deleted that it is worth writing anew: a long one, or any of
/// which nothing is left.
fn deleted_from(blocks: &Sorted, ranges: &[i64]) -> Option<usize> {
    let long = ranges.get(ranges.len() / 2).copied().unwrap_or(i64::MAX);
    for (i, block) in blocks.iter().rev() {
        let PlannedBlock { min_time, max_time, series, tombstones, is_failed, .. } = *block;
        let is_long = max_time.saturating_sub(min_time) >= long;
        let is_worth_it = match is_long {
            true => tombstones as f64 / (series as f64 + 1.0) > TOMBSTONES_A_SERIES,
            false => tombstones > 0 && tombstones >= series,
        };
        if is_worth_it && !is_failed {
            return Some(*i);
        }
        if !is_long {
            break;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn block(value: &Value) -> PlannedBlock {
        let number = |name: &str| value[name].as_i64().unwrap_or(0);
        PlannedBlock {
            min_time: number("min_time"),
            max_time: number("max_time"),
            series: number("series") as u64,
            tombstones: number("tombstones") as u64,
            is_failed: value["failed"] == true,
            class: Class::Usual,
        }
    }

    /// `tests/data/tsdb/planner.json`: block lists and what Prometheus' compactor plans of them.
    #[test]
    fn blocks_are_planned_as_by_prometheus() {
        let file = std::fs::read("tests/data/tsdb/planner.json").unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        let mut played = 0;
        for case in file["cases"].as_array().unwrap() {
            let of = case["blocks"].as_array().unwrap();
            let blocks: Vec<_> = of.iter().map(block).collect();
            let ranges: Vec<i64> = serde_json::from_value(case["ranges"].clone()).unwrap();
            let mut sorted: Vec<_> = blocks.iter().copied().enumerate().collect();
            sorted.sort_by_key(|(_, block)| block.min_time);
            let merges_overlapping = case["overlapping_compaction"] == true;
            let is_excluded = of.iter().any(|block| block["excluded"] == true);
            // Here no block is left out, and what overlaps is always merged.
            if is_excluded || !merges_overlapping && overlapping(&sorted).is_some() {
                continue;
            }
            let mut planned = plan(&blocks, &ranges);
            planned.sort_unstable();
            let expected: Vec<usize> = serde_json::from_value(case["plan"].clone()).unwrap();
            if expected.iter().any(|i| blocks[*i].is_failed) {
                // It is tried for ever there.
                assert!(planned.iter().all(|i| !blocks[*i].is_failed), "{}", case["name"]);
                continue;
            }
            assert_eq!(planned, expected, "{}: {of:?}", case["name"]);
            played += 1;
        }
        assert!(played > 100, "{played}");
    }

    fn of(spans: &[(i64, i64)]) -> Vec<PlannedBlock> {
        let block = |&(min_time, max_time): &(i64, i64)| PlannedBlock {
            min_time,
            max_time,
            series: 10,
            tombstones: 0,
            is_failed: false,
            class: Class::Usual,
        };
        spans.iter().map(block).collect()
    }

    #[test]
    fn what_cannot_be_merged_holds_nothing_else_up() {
        let mut blocks = of(&[
            (0, 20),
            (10, 20),
            (20, 40),
            (30, 50),
            (60, 80),
            (80, 100),
            (100, 120),
            (120, 140),
        ]);
        let ranges = ladder(20, 100);
        assert_eq!(ranges, [20, 60]);
        assert_eq!(plan(&blocks, &ranges), [0, 1]);
        blocks[1].is_failed = true;
        assert_eq!(plan(&blocks, &ranges), [2, 3]);
        blocks[2].is_failed = true;
        assert_eq!(plan(&blocks, &ranges), [4, 5, 6]);
        blocks[5].is_failed = true;
        assert_eq!(plan(&blocks, &ranges), [] as [usize; 0]);
        blocks[6].tombstones = 10;
        assert_eq!(plan(&blocks, &ranges), [6]);
        blocks[6].is_failed = true;
        assert_eq!(plan(&blocks, &ranges), [] as [usize; 0]);
    }

    #[test]
    fn classes_are_not_mixed_and_the_usual_one_comes_first() {
        let mut blocks = of(&[(0, 20), (0, 20), (5, 20), (0, 20), (20, 40), (40, 60), (60, 80)]);
        (blocks[1].class, blocks[2].class) = (Class::StaleSeries, Class::StaleSeries);
        blocks[3].class = Class::SelectedSeries;
        assert_eq!(plan(&blocks, &[20, 60]), [0, 4, 5]);
        blocks[0].is_failed = true;
        assert_eq!(plan(&blocks, &[20, 60]), [1, 2]);
    }

    #[test]
    fn a_ladder_ends_where_it_is_told_to() {
        assert_eq!(ladder(20, 0), [20]);
        assert_eq!(ladder(20, 59), [20]);
        assert_eq!(ladder(20, 180), [20, 60, 180]);
        assert_eq!(ladder(1, i64::MAX).len(), RANGES_MAX);
        assert_eq!(ladder(i64::MAX / 2, i64::MAX).len(), 1);
    }
}
