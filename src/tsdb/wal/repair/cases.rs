//! What can be found in a log's directory, what of it needs a repair, and what that is called.
//!
//! Each decision is a `match` over all that it depends on; what is done stands beside it in
//! [`super::open_log`]. Checkpoints have a table of their own, [`super::CHECKPOINT_CASES`].

/// A repair. Its label is in the log line and in `ringest_wal_repairs_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RepairCase {
    /// The last segment with content ends within a record. It is cut at the record's start: nobody
    /// was told that it is stored.
    TornEnd,
    /// Any other damage in a segment. It is rewritten with every record that can be read, the
    /// original kept as `NNNNNNNN.damaged`.
    DamagedSegment,
    /// Damage in a checkpoint that stays in use. It is rewritten with all that was read up to its
    /// number, the original kept as `damaged.checkpoint.…`.
    DamagedCheckpoint,
    /// More was read than the checkpoint holds of what it stands for. It is rewritten likewise.
    MergedCheckpoint,
    /// `NNNNNNNN.rewrite` or `rewrite.checkpoint.…`, and not what it replaces. The rewrite was
    /// complete and is given its name.
    FinishedRewrite,
    /// One of these beside what it replaces. The rewrite was not complete and is removed.
    UnfinishedRewrite,
    /// A name that Prometheus takes for a segment's or a checkpoint's, and that is none. It is
    /// renamed to `set-aside.…`.
    Stranger,
    /// A checkpoint that can be done without, see [`super::CHECKPOINT_CASES`]. It is renamed
    /// likewise.
    SpareCheckpoint,
    /// An empty segment at the end, behind a gap. It is renamed likewise.
    EmptyBehindGap,
    /// Any other gap in the numbers. It is filled with empty segments.
    Gap,
    /// A gap too wide to fill. It stays.
    WideGap,
    /// The mark of a failed sync, see [`super::super::unsynced`]. The segments it names are written
    /// again as they are.
    UnsyncedEnd,
    /// `checkpoint.….tmp`, which was being made or deleted when the process ended. It is removed:
    /// what it was made of is still there, or what replaces it.
    UnfinishedCheckpoint,
}

/// Empty segments made to close gaps.
pub(super) const GAP_FILLED_MAX: u64 = 10_000;

/// What reading a segment showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentState {
    Whole,
    /// Its one damage is a record that ends with the file.
    Torn,
    Damaged,
}

impl RepairCase {
    pub const ALL: [RepairCase; 13] = [
        RepairCase::TornEnd,
        RepairCase::DamagedSegment,
        RepairCase::DamagedCheckpoint,
        RepairCase::MergedCheckpoint,
        RepairCase::FinishedRewrite,
        RepairCase::UnfinishedRewrite,
        RepairCase::Stranger,
        RepairCase::SpareCheckpoint,
        RepairCase::EmptyBehindGap,
        RepairCase::Gap,
        RepairCase::WideGap,
        RepairCase::UnsyncedEnd,
        RepairCase::UnfinishedCheckpoint,
    ];

    pub fn label(self) -> &'static str {
        match self {
            RepairCase::TornEnd => "torn end",
            RepairCase::DamagedSegment => "damaged segment",
            RepairCase::DamagedCheckpoint => "damaged checkpoint",
            RepairCase::MergedCheckpoint => "merged checkpoint",
            RepairCase::FinishedRewrite => "finished rewrite",
            RepairCase::UnfinishedRewrite => "unfinished rewrite",
            RepairCase::Stranger => "stranger",
            RepairCase::SpareCheckpoint => "spare checkpoint",
            RepairCase::EmptyBehindGap => "empty segment behind a gap",
            RepairCase::Gap => "gap",
            RepairCase::WideGap => "wide gap",
            RepairCase::UnsyncedEnd => "unsynced end",
            RepairCase::UnfinishedCheckpoint => "unfinished checkpoint",
        }
    }

    pub(super) fn of_segment(
        state: SegmentState,
        is_last_with_content: bool,
    ) -> Option<RepairCase> {
        match (state, is_last_with_content) {
            (SegmentState::Whole, _) => None,
            (SegmentState::Torn, true) => Some(RepairCase::TornEnd),
            // Something was written behind it, so it was whole once.
            (SegmentState::Torn, false) | (SegmentState::Damaged, _) => {
                Some(RepairCase::DamagedSegment)
            }
        }
    }

    pub(super) fn of_checkpoint(is_damaged: bool, is_merged: bool) -> Option<RepairCase> {
        match (is_damaged, is_merged) {
            (true, _) => Some(RepairCase::DamagedCheckpoint),
            (false, true) => Some(RepairCase::MergedCheckpoint),
            (false, false) => None,
        }
    }

    pub(super) fn of_rewrite(is_original_there: bool) -> RepairCase {
        match is_original_there {
            true => RepairCase::UnfinishedRewrite,
            false => RepairCase::FinishedRewrite,
        }
    }

    /// Of the last segment, and whether its number follows the one before.
    pub(super) fn of_last(is_empty: bool, follows: bool) -> Option<RepairCase> {
        match (is_empty, follows) {
            (true, false) => Some(RepairCase::EmptyBehindGap),
            // The gap before one with content is filled.
            (false, false) | (_, true) => None,
        }
    }

    /// Of so many numbers that are missing in all.
    pub(super) fn of_missing(count: u64) -> Option<RepairCase> {
        match count {
            0 => None,
            1..=GAP_FILLED_MAX => Some(RepairCase::Gap),
            _ => Some(RepairCase::WideGap),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_combination_of_facts_is_one_case() {
        use RepairCase::*;
        use SegmentState::*;
        let segments = [Whole, Torn, Damaged]
            .map(|state| [false, true].map(|is_last| RepairCase::of_segment(state, is_last)));
        let damaged = Some(DamagedSegment);
        assert_eq!(segments, [[None, None], [damaged, Some(TornEnd)], [damaged, damaged]]);
        let checkpoints = [false, true]
            .map(|is_damaged| [false, true].map(|m| RepairCase::of_checkpoint(is_damaged, m)));
        let damaged = Some(DamagedCheckpoint);
        assert_eq!(checkpoints, [[None, Some(MergedCheckpoint)], [damaged, damaged]]);
        assert_eq!([false, true].map(RepairCase::of_rewrite), [FinishedRewrite, UnfinishedRewrite]);
        let last = [false, true].map(|empty| [false, true].map(|f| RepairCase::of_last(empty, f)));
        assert_eq!(last, [[None, None], [Some(EmptyBehindGap), None]]);
        let missing = [0, 1, GAP_FILLED_MAX, GAP_FILLED_MAX + 1].map(RepairCase::of_missing);
        assert_eq!(missing, [None, Some(Gap), Some(Gap), Some(WideGap)]);
    }

    #[test]
    fn labels_are_told_apart() {
        let labels: BTreeSet<_> = RepairCase::ALL.into_iter().map(RepairCase::label).collect();
        assert_eq!(labels.len(), RepairCase::ALL.len());
    }
}
