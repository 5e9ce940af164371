//! The blocks in a database's directory: which of them are read, and where the head's time begins
//! behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, lacks_descriptors};
use crate::model::Timestamp;
use crate::tsdb::block::Block;
use crate::tsdb::block::meta::BlockMeta;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::error::ReadError;
use crate::tsdb::file::PageCache;

/// What is read beside the head at one moment. A reader holds one, so that what was cut from the head
/// stays there until nobody looks for it there any more.
#[derive(Default)]
pub struct View {
    /// By name: as they were made.
    pub blocks: Vec<Arc<Block>>,
    /// See [`Blocks::floor`]: the head is read from here on.
    pub floor: Timestamp,
}

impl View {
    /// The same with one more block.
    pub fn with(&self, block: Block) -> View {
        let floor = match block.meta().is_partial() {
            true => self.floor,
            false => self.floor.max(effective_end(block.meta(), block.meta().ulid)),
        };
        let mut blocks = self.blocks.clone();
        blocks.push(Arc::new(block));
        View { blocks, floor }
    }

    /// The same with a block, if there is one, in the place of those that it was made from.
    pub fn replacing(&self, parents: &[Arc<Block>], child: Option<Block>) -> View {
        let mut view = match child {
            Some(child) => self.with(child),
            None => View { blocks: self.blocks.clone(), floor: self.floor },
        };
        view.blocks.retain(|block| !parents.iter().any(|parent| Arc::ptr_eq(parent, block)));
        view.blocks.sort_by_key(|block| block.meta().ulid);
        view
    }

    /// Whether all of these are read.
    pub fn has_all(&self, blocks: &[Arc<Block>]) -> bool {
        blocks.iter().all(|block| self.blocks.iter().any(|own| Arc::ptr_eq(own, block)))
    }
}

/// A block that is not read, as another has its samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    pub ulid: Ulid,
    pub dir: PathBuf,
    /// The blocks that it was made from itself. It is to go after them, as it is what keeps a start
    /// from reading them.
    pub parents: Vec<Ulid>,
    /// The block that is read in its place; none if it has nothing left.
    pub by: Option<Ulid>,
}

/// The blocks of a database, open.
pub struct Blocks {
    /// Those that are read, by name: as they were made.
    pub served: Vec<Arc<Block>>,
    /// Those that cannot be read, and why.
    pub set_aside: Vec<(PathBuf, ReadError)>,
    /// Those whose samples others have that were made from them: what is left of a process that ended
    /// before it had deleted them. They are not read. None comes before its own parents.
    pub replaced: Vec<Replaced>,
    /// The one floor of in-order samples: what is older belongs to a block, and is neither taken nor
    /// replayed. It is the latest of the blocks' effective ends, the smallest time if there is no
    /// block, and hangs on nothing but them: one that moved with the clock would let samples in that
    /// a later start leaves out. A block whose `meta.json` cannot be read counts as none here, as in
    /// Prometheus, and so does one that holds some of its time's samples only.
    pub floor: Timestamp,
}

impl Blocks {
    /// Opens the blocks in `dir`. One that is damaged is set aside and costs no other; an error is
    /// only what may pass, since the floor would be another one then.
    pub fn open(disk: &dyn Disk, dir: &Path, cache: &Arc<PageCache>) -> Result<Blocks, ReadError> {
        Blocks::open_without(disk, dir, cache, None)
    }

    /// The same as if one of them were not there.
    pub fn open_without(
        disk: &dyn Disk,
        dir: &Path,
        cache: &Arc<PageCache>,
        left_out: Option<Ulid>,
    ) -> Result<Blocks, ReadError> {
        let mut blocks = Blocks {
            served: Vec::new(),
            set_aside: Vec::new(),
            replaced: Vec::new(),
            floor: Timestamp::MIN,
        };
        let entries = disk.list(dir).map_err(ReadError::io(dir))?;
        let mut names: Vec<_> = entries
            .into_iter()
            .filter(|entry| entry.is_dir)
            .filter_map(|entry| Some((entry.name.to_str()?.parse::<Ulid>().ok()?, entry.name)))
            .filter(|(ulid, _)| Some(*ulid) != left_out)
            .collect();
        names.sort_unstable();
        for (ulid, name) in names {
            let block = dir.join(name);
            match blocks.open_one(disk, &block, ulid, cache) {
                Ok(block) => blocks.served.push(Arc::new(block)),
                Err(ReadError::Io { path, source }) if lacks_descriptors(&source) => {
                    return Err(ReadError::Io { path, source });
                }
                Err(err) => blocks.set_aside.push((block, err)),
            }
        }
        blocks.leave_out_replaced();
        Ok(blocks)
    }

    /// Of a block and those that it was made from only the block is read, as in Prometheus. One that
    /// cannot be read as a whole takes nobody's place.
    fn leave_out_replaced(&mut self) {
        let is_whole = |block: &&Arc<Block>| block.damaged_segments().next().is_none();
        let whole: BTreeMap<Ulid, Vec<Ulid>> = self
            .served
            .iter()
            .filter(is_whole)
            .filter_map(|block| Some((name_of(block.dir())?, parents_of(block.meta()))))
            .collect();
        let named: BTreeSet<Ulid> = whole.values().flatten().copied().collect();
        // From those that no other was made from, so that blocks that name one another in a ring,
        // which only a mistake or malice makes, are all read.
        let roots = whole.keys().filter(|block| !named.contains(block));
        let mut left: Vec<(Ulid, Ulid)> = roots.map(|root| (*root, *root)).collect();
        // Each with what is read in its place.
        let mut replaced: Vec<(Ulid, Ulid)> = Vec::new();
        while let Some((block, root)) = left.pop() {
            for parent in whole.get(&block).into_iter().flatten() {
                if !replaced.iter().any(|(known, _)| known == parent) {
                    replaced.push((*parent, root));
                    left.push((*parent, root));
                }
            }
        }
        let is_replaced = |name: &Ulid| replaced.iter().any(|(replaced, _)| replaced == name);
        let mut dirs = BTreeMap::new();
        let mut is_read = |dir: &Path| match name_of(dir).filter(is_replaced) {
            Some(name) => dirs.insert(name, dir.to_owned()).is_some(),
            None => true,
        };
        self.served.retain(|block| is_read(block.dir()));
        self.set_aside.retain(|(dir, _)| is_read(dir));
        let oldest_first = replaced.into_iter().rev().filter_map(|(ulid, by)| {
            let parents = whole.get(&ulid).cloned().unwrap_or_default();
            Some(Replaced { ulid, dir: dirs.remove(&ulid)?, parents, by: Some(by) })
        });
        self.replaced = oldest_first.collect();
    }

    fn open_one(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        ulid: Ulid,
        cache: &Arc<PageCache>,
    ) -> Result<Block, ReadError> {
        let meta = BlockMeta::read(disk, dir)?;
        // The floor heeds it even if the rest cannot be read.
        if !meta.is_partial() {
            self.floor = self.floor.max(effective_end(&meta, ulid));
        }
        Block::open_as(disk, dir, meta, cache.clone())
    }
}

/// The blocks that a block says it was made from.
pub(super) fn parents_of(meta: &BlockMeta) -> Vec<Ulid> {
    meta.compaction.parents.iter().map(|parent| parent.ulid).collect()
}

/// By what name a block lies in the database's directory.
pub(super) fn name_of(dir: &Path) -> Option<Ulid> {
    dir.file_name()?.to_str()?.parse().ok()
}

/// Where a block ends (not included in it), for what it may shut out. One that ends later than it was
/// made at holds samples of a clock that ran ahead, and others of that time are still to come. What it
/// has of them may then be in the log, too, and a query takes it from one of both.
pub(super) fn effective_end(meta: &BlockMeta, ulid: Ulid) -> Timestamp {
    meta.max_time.min(ulid.millis() as Timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;
    use crate::tsdb::block::meta::PARTIAL;

    fn open(dir: &Path) -> Blocks {
        Blocks::open(&SystemDisk, dir, &PageCache::new(0)).unwrap()
    }

    fn add_block(dir: &Path, name: &str, meta: &str) {
        let block = dir.join(name);
        std::fs::create_dir(&block).unwrap();
        std::fs::write(block.join("meta.json"), meta).unwrap();
    }

    #[test]
    fn the_newest_block_counts_and_strangers_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let block = |name: &str, meta: &str| add_block(dir.path(), name, meta);
        let none = open(dir.path());
        assert_eq!((none.floor, none.set_aside.len()), (Timestamp::MIN, 0));
        block("01M85ZRFJPEBJ4BHYM21MP7HFW", r#"{"version": 1, "minTime": 1, "maxTime": 20}"#);
        block("01M85ZRFJPEBJ4BHYM21MP7HFX", r#"{"version": 1, "minTime": -1, "maxTime": 10}"#);
        block("01M85ZRFJPEBJ4BHYM21MP7HFY", "{");
        for (digit, hint) in ["1", "2", "3"].into_iter().zip(PARTIAL) {
            let hints = format!(r#""compaction": {{"hints": ["some", "{hint}"]}}"#);
            block(
                &format!("01M85ZRFJPEBJ4BHYM21MP7HF{digit}"),
                &format!(r#"{{"maxTime": 30, {hints}}}"#),
            );
        }
        block("81M85ZRFJPEBJ4BHYM21MP7HFW", r#"{"maxTime": 99}"#);
        block("wal", r#"{"maxTime": 99}"#);
        let found = open(dir.path());
        let names = found.set_aside.iter().map(|(block, _)| block.clone()).collect::<Vec<_>>();
        let expected = ["1", "2", "3", "W", "X", "Y"]
            .map(|last| dir.path().join(format!("01M85ZRFJPEBJ4BHYM21MP7HF{last}")));
        assert_eq!((found.floor, &names[..]), (20, &expected[..]));
    }

    #[test]
    fn a_block_shuts_out_nothing_later_than_it_was_made_at() {
        let made_at = 1_795_497_410_134;
        for (end, floor) in [(made_at - 1, made_at - 1), (made_at + 1, made_at)] {
            let dir = tempfile::tempdir().unwrap();
            let meta = format!(r#"{{"maxTime": {end}}}"#);
            add_block(dir.path(), "01M85ZRFJPEBJ4BHYM21MP7HFW", &meta);
            assert_eq!(open(dir.path()).floor, floor);
        }
    }
}
