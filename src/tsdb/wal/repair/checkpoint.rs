//! Which checkpoint is read, and from which segment on.
//!
//! `checkpoint.N` stands for the segments up to N, which are removed once it has its name. One that
//! is damaged must not keep us from segments that are still there.

use std::io;
use std::path::Path;

use super::LogDir;
use crate::disk::Disk;
use crate::tsdb::wal::reader::{Found, SegmentReader};
use crate::tsdb::wal::segment::{PAGE_BYTES, SegmentIndex};
use crate::tsdb::wal::segment_path;

/// What reading a checkpoint showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointState {
    /// Every byte reads, it ends with a whole page, and there is a record.
    Whole,
    Damaged,
    /// No record can be read.
    Empty,
    /// It stands for the last segment, too, which no checkpoint is made for.
    Ahead,
    /// Nothing else has what it stands for, so that it is used whatever it is, and was not looked at
    /// before.
    Unread,
}

/// What becomes of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointUse {
    /// Read; segments it stands for are not.
    Trusted,
    /// Read, older checkpoints before it, and then every segment there is.
    Remains,
    /// Renamed, and everything read that it would have replaced.
    SetAside,
}

/// A row of the table: all that the decision depends on, and the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointCase {
    pub state: CheckpointState,
    /// Whether all that it replaces is still there: every segment up to this checkpoint's number,
    /// from 0 or from the one before it that is whole.
    pub is_replaceable: bool,
    pub then: CheckpointUse,
}

pub const CHECKPOINT_CASES: [CheckpointCase; 9] = {
    use CheckpointState::{Ahead, Damaged, Empty, Unread, Whole};
    use CheckpointUse::{Remains, SetAside, Trusted};
    const fn case(
        state: CheckpointState,
        is_replaceable: bool,
        then: CheckpointUse,
    ) -> CheckpointCase {
        CheckpointCase { state, is_replaceable, then }
    }
    [
        // The ordinary case.
        case(Whole, false, Trusted),
        // A crash before the segments it stands for were removed: they hold nothing new.
        case(Whole, true, Trusted),
        // Nothing else has these records.
        case(Damaged, false, Remains),
        // A crash or damage before the segments were removed: they have all of it.
        case(Damaged, true, SetAside),
        // It gives nothing, but Prometheus needs its number to start from.
        case(Empty, false, Remains),
        case(Empty, true, SetAside),
        // The newest segments are lost, or it came from elsewhere: what there is is read.
        case(Ahead, false, Remains),
        case(Ahead, true, SetAside),
        // The usual one, and the only one there is; it is found out while it is read.
        case(Unread, false, Trusted),
    ]
};

/// What is read.
pub(super) struct CheckpointPlan {
    /// Numbers and names of the checkpoints to read, in this order. The last is the one that stays in
    /// use.
    pub(super) checkpoints: Vec<(SegmentIndex, String)>,
    /// Whether more than the last of them is read of what it stands for, so that it must come to
    /// hold all of it: the next opening will trust it.
    pub(super) is_merged: bool,
    /// Segments before this one are not read.
    pub(super) first_segment: SegmentIndex,
    /// Prometheus wants the segments from this number on to be there.
    pub(super) numbers_from: SegmentIndex,
    /// Names of checkpoints to set aside.
    pub(super) set_aside: Vec<String>,
}

pub(super) fn plan(disk: &dyn Disk, dir: &Path, log: &LogDir) -> io::Result<CheckpointPlan> {
    let mut plan = CheckpointPlan {
        checkpoints: Vec::new(),
        is_merged: false,
        first_segment: SegmentIndex(0),
        numbers_from: SegmentIndex(0),
        set_aside: Vec::new(),
    };
    let mut candidates = log.checkpoints.as_slice();
    while let [older @ .., (number, name)] = candidates {
        let state = match (log.segments.first(), log.segments.last()) {
            // Nothing could take its place: whatever it is, it is read.
            (Some((first, _)), _) if first > number && older.is_empty() => CheckpointState::Unread,
            (_, Some((last, _))) if last > number => examine(disk, &dir.join(name))?,
            _ => CheckpointState::Ahead,
        };
        let is_replaceable = is_replaceable(disk, dir, log, older, *number)?;
        match decide(state, is_replaceable) {
            CheckpointUse::SetAside => {
                plan.set_aside.push(name.clone());
                candidates = older;
                continue;
            }
            CheckpointUse::Trusted => {
                plan.checkpoints.push((*number, name.clone()));
                plan.first_segment = number.next();
            }
            CheckpointUse::Remains => {
                plan.checkpoints = candidates.to_vec();
                let has_covered = log.segments.iter().any(|(segment, _)| segment <= number);
                plan.is_merged = has_covered || !older.is_empty();
            }
        }
        plan.numbers_from = number.next();
        break;
    }
    Ok(plan)
}

fn decide(state: CheckpointState, is_replaceable: bool) -> CheckpointUse {
    let is_it =
        |case: &&CheckpointCase| case.state == state && case.is_replaceable == is_replaceable;
    // The table has every combination that there can be; a test goes through them.
    debug_assert!(CHECKPOINT_CASES.iter().any(|case| is_it(&case)), "{state:?}");
    CHECKPOINT_CASES.iter().find(is_it).map_or(CheckpointUse::Remains, |case| case.then)
}

/// See [`CheckpointCase::is_replaceable`].
fn is_replaceable(
    disk: &dyn Disk,
    dir: &Path,
    log: &LogDir,
    older: &[(SegmentIndex, String)],
    number: SegmentIndex,
) -> io::Result<bool> {
    if has_all(log, SegmentIndex(0), number) {
        return Ok(true);
    }
    let Some((older_number, name)) = older.last() else { return Ok(false) };
    let has_segments = has_all(log, older_number.next(), number);
    Ok(has_segments && examine(disk, &dir.join(name))? == CheckpointState::Whole)
}

/// Whether every segment from `first` to `last` is there; those ahead of the log never were.
fn has_all(log: &LogDir, first: SegmentIndex, last: SegmentIndex) -> bool {
    let Some((last_segment, _)) = log.segments.last() else { return false };
    let last = last.min(*last_segment);
    let there = log.segments.iter().filter(|(segment, _)| (first..=last).contains(segment)).count();
    first <= last && there as u64 == last.0 - first.0 + 1
}

fn examine(disk: &dyn Disk, dir: &Path) -> io::Result<CheckpointState> {
    let mut has_records = false;
    let mut is_damaged = false;
    for (segment, len) in LogDir::list(disk, dir)?.segments {
        is_damaged |= !len.is_multiple_of(PAGE_BYTES as u64);
        let mut reader = SegmentReader::open(disk, &segment_path(dir, segment))?;
        while let Some(found) = reader.read_next()? {
            match found {
                Found::Record(_) => has_records = true,
                Found::Damage(_) => is_damaged = true,
            }
        }
    }
    Ok(match (has_records, is_damaged) {
        (false, _) => CheckpointState::Empty,
        (true, true) => CheckpointState::Damaged,
        (true, false) => CheckpointState::Whole,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_combination_of_facts_is_one_case() {
        use CheckpointState::{Ahead, Damaged, Empty, Unread, Whole};
        for state in [Whole, Damaged, Empty, Ahead, Unread] {
            for is_replaceable in [false, true] {
                // Where nothing else is, nothing can take its place.
                if state == Unread && is_replaceable {
                    continue;
                }
                let cases: Vec<_> = CHECKPOINT_CASES
                    .iter()
                    .filter(|case| case.state == state && case.is_replaceable == is_replaceable)
                    .collect();
                assert_eq!(cases.len(), 1, "{state:?} {is_replaceable}");
                assert_eq!(decide(state, is_replaceable), cases[0].then);
                // Whatever is renamed can be done without.
                assert!(cases[0].then != CheckpointUse::SetAside || is_replaceable);
            }
        }
    }
}
