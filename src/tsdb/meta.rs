//! The blocks in a database's directory, and where the head's time begins behind them.

use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{Disk, lacks_descriptors};
use crate::error::chain;
use crate::model::Timestamp;
use crate::tsdb::block::meta::BlockMeta;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::error::ReadError;

impl BlockMeta {
    /// Where the block ends (not included in it), for what it may shut out. One that ends later than
    /// it was made at holds samples of a clock that ran ahead, and others of that time are still to
    /// come. What it has of them may then be in the log, too: rather twice than not at all, until
    /// blocks can be read and asked.
    fn effective_end(&self, made_at: Timestamp) -> Timestamp {
        self.max_time.min(made_at)
    }
}

/// The blocks in a database's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The one floor of in-order samples: what is older belongs to a block, and is neither taken nor
    /// replayed. It is the latest of the blocks' effective ends, the smallest time if there is no
    /// block, and hangs on nothing but them: one that moved with the clock would let samples in that
    /// a later start leaves out. A block whose `meta.json` cannot be read counts as none here, as in
    /// Prometheus, and so does one that holds some of its time's samples only.
    pub floor: Timestamp,
    /// Their directories, by name.
    pub dirs: Vec<PathBuf>,
    /// Oldest time and end of the samples in those whose `meta.json` can be read.
    pub range: Option<(Timestamp, Timestamp)>,
}

/// Looks at the blocks in `dir`.
pub fn find_blocks(disk: &dyn Disk, dir: &Path) -> io::Result<Blocks> {
    let mut blocks = Blocks { floor: Timestamp::MIN, dirs: Vec::new(), range: None };
    for entry in disk.list(dir)?.into_iter().filter(|entry| entry.is_dir) {
        let Some(name) = entry.name.to_str() else { continue };
        let Ok(ulid) = name.parse::<Ulid>() else { continue };
        let block = dir.join(name);
        blocks.dirs.push(block.clone());
        let meta = match BlockMeta::read(disk, &block) {
            Ok(meta) => meta,
            // It can be read later, and the floor would be another one then.
            Err(ReadError::Io { source, .. }) if lacks_descriptors(&source) => return Err(source),
            Err(err) => {
                let err = chain(&err);
                tracing::warn!(block = %block.display(), err, "a block has no readable meta.json");
                continue;
            }
        };
        let (mint, maxt) = blocks.range.unwrap_or((meta.min_time, meta.max_time));
        blocks.range = Some((mint.min(meta.min_time), maxt.max(meta.max_time)));
        if !meta.is_partial() {
            blocks.floor = blocks.floor.max(meta.effective_end(ulid.millis() as Timestamp));
        }
    }
    blocks.dirs.sort_unstable();
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;
    use crate::tsdb::block::meta::PARTIAL;

    fn add_block(dir: &Path, name: &str, meta: &str) {
        let block = dir.join(name);
        std::fs::create_dir(&block).unwrap();
        std::fs::write(block.join("meta.json"), meta).unwrap();
    }

    #[test]
    fn the_newest_block_counts_and_strangers_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let block = |name: &str, meta: &str| add_block(dir.path(), name, meta);
        let none = Blocks { floor: Timestamp::MIN, dirs: Vec::new(), range: None };
        assert_eq!(find_blocks(&SystemDisk, dir.path()).unwrap(), none);
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
        let found = Blocks {
            floor: 20,
            dirs: ["1", "2", "3", "W", "X", "Y"]
                .map(|last| dir.path().join(format!("01M85ZRFJPEBJ4BHYM21MP7HF{last}")))
                .to_vec(),
            range: Some((-1, 30)),
        };
        assert_eq!(find_blocks(&SystemDisk, dir.path()).unwrap(), found);
    }

    #[test]
    fn a_block_shuts_out_nothing_later_than_it_was_made_at() {
        let made_at = 1_795_497_410_134;
        for (end, floor) in [(made_at - 1, made_at - 1), (made_at + 1, made_at)] {
            let dir = tempfile::tempdir().unwrap();
            let meta = format!(r#"{{"maxTime": {end}}}"#);
            add_block(dir.path(), "01M85ZRFJPEBJ4BHYM21MP7HFW", &meta);
            let found = find_blocks(&SystemDisk, dir.path()).unwrap();
            assert_eq!((found.floor, found.range), (floor, Some((0, end))));
        }
    }
}
