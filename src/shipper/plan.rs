//! What is to be done about each block of a tenant: a decision without I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Timestamp;
use crate::tsdb::block::ulid::Ulid;

/// What the plan looks at of a block that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalBlock {
    pub ulid: Ulid,
    pub min_time: Timestamp,
    pub samples: u64,
    /// 1 for a block that was cut from a head.
    pub level: i64,
    pub has_tombstones: bool,
}

/// What is to be done about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It has no samples, and is nothing to anybody.
    Ignore,
    HoldBack(HeldBack),
    /// Whether its manifest is in the bucket.
    Ask,
    /// It is whole in the bucket.
    Note,
    Upload,
}

/// Why a block that can be read is not shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeldBack {
    /// It was made from others, which are shipped themselves.
    Compacted,
    /// What is deleted of it would be there again: only its index and chunks are shipped. It is
    /// rewritten before.
    Tombstones,
    /// The same, and this version cannot rewrite it.
    NotRewritten,
    /// It has chunks that Thanos' store gateway cannot read.
    Encoding,
}

impl HeldBack {
    pub const ALL: [HeldBack; 4] =
        [HeldBack::Compacted, HeldBack::Tombstones, HeldBack::NotRewritten, HeldBack::Encoding];

    /// As the metric has it.
    pub fn as_str(self) -> &'static str {
        match self {
            HeldBack::Compacted => "compacted",
            HeldBack::Tombstones => "tombstones",
            HeldBack::NotRewritten => "not_rewritten",
            HeldBack::Encoding => "encoding",
        }
    }

    /// In words that follow "the block is not shipped:".
    pub fn why(self) -> &'static str {
        match self {
            HeldBack::Compacted => {
                "it is above level 1, and only blocks cut from a head are shipped"
            }
            HeldBack::Tombstones => {
                "it has tombstones, and one without what they delete is shipped in its place"
            }
            HeldBack::NotRewritten => {
                "it has tombstones, and chunks that this version cannot write without what they \
                 delete"
            }
            HeldBack::Encoding => "it has chunks of an encoding that Thanos cannot read",
        }
    }
}

/// Decides about the blocks that are not in the record, oldest first. `answers` are what the bucket
/// has said so far: whether it has the block's manifest.
pub fn plan(
    blocks: &[LocalBlock],
    record: &BTreeSet<Ulid>,
    answers: &BTreeMap<Ulid, bool>,
) -> Vec<(Ulid, Step)> {
    let mut blocks: Vec<_> = blocks.iter().filter(|block| !record.contains(&block.ulid)).collect();
    // Blocks of one time are in the order in which they were made.
    blocks.sort_unstable_by_key(|block| (block.min_time, block.ulid));
    blocks.into_iter().map(|block| (block.ulid, step(block, answers))).collect()
}

fn step(block: &LocalBlock, answers: &BTreeMap<Ulid, bool>) -> Step {
    match answers.get(&block.ulid) {
        _ if block.samples == 0 => Step::Ignore,
        _ if block.level > 1 => Step::HoldBack(HeldBack::Compacted),
        None => Step::Ask,
        Some(true) => Step::Note,
        Some(false) if block.has_tombstones => Step::HoldBack(HeldBack::Tombstones),
        Some(false) => Step::Upload,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(ulid: u128, min_time: Timestamp) -> LocalBlock {
        LocalBlock { ulid: Ulid(ulid), min_time, samples: 9, level: 1, has_tombstones: false }
    }

    #[test]
    fn each_block_is_decided_by_what_is_known_of_it() {
        let usual = block(1, 10);
        let empty = LocalBlock { samples: 0, ..usual };
        let compacted = LocalBlock { level: 2, ..usual };
        let of_no_level = LocalBlock { level: 0, ..usual };
        let deleted_from = LocalBlock { has_tombstones: true, ..usual };
        use HeldBack::{Compacted, Tombstones};
        use Step::{Ask, HoldBack, Ignore, Note, Upload};
        let held = HoldBack(Compacted);
        // What the bucket has answered: nothing yet, no, yes.
        for (what, block, steps) in [
            ("usual", usual, [Ask, Upload, Note]),
            ("empty", empty, [Ignore, Ignore, Ignore]),
            ("empty and compacted", LocalBlock { samples: 0, ..compacted }, [Ignore; 3]),
            ("compacted", compacted, [held, held, held]),
            ("of no level", of_no_level, [Ask, Upload, Note]),
            // One that is there was uploaded by somebody who took no heed of them.
            ("with tombstones", deleted_from, [Ask, HoldBack(Tombstones), Note]),
            ("both", LocalBlock { level: 3, ..deleted_from }, [held, held, held]),
        ] {
            for (answer, step) in [None, Some(false), Some(true)].into_iter().zip(steps) {
                let answers = answer.map(|answer| (block.ulid, answer)).into_iter().collect();
                let planned = plan(&[block], &BTreeSet::new(), &answers);
                assert_eq!(planned, [(block.ulid, step)], "{what}, {answer:?}");
                let recorded = plan(&[block], &BTreeSet::from([block.ulid]), &answers);
                assert_eq!(recorded, [], "{what}, {answer:?}");
            }
        }
    }

    #[test]
    fn the_oldest_comes_first_whatever_it_is_called() {
        let blocks = [block(1, 30), block(5, 10), block(3, 20), block(2, 20), block(4, -7)];
        let answers = blocks.iter().map(|block| (block.ulid, false)).collect();
        let planned = plan(&blocks, &BTreeSet::from([Ulid(5)]), &answers);
        let order: Vec<u128> = planned.iter().map(|(ulid, _)| ulid.0).collect();
        assert_eq!(order, [4, 2, 3, 1]);
        assert!(planned.iter().all(|(_, step)| *step == Step::Upload));
    }
}
