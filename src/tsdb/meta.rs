//! The `meta.json` of blocks, as far as this version heeds it.

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::disk::{Disk, read_file};
use crate::model::Timestamp;

#[derive(Deserialize)]
struct BlockMeta {
    #[serde(rename = "minTime", default)]
    min_time: Timestamp,
    #[serde(rename = "maxTime")]
    max_time: Timestamp,
    #[serde(default)]
    compaction: Compaction,
}

#[derive(Default, Deserialize)]
struct Compaction {
    #[serde(default)]
    hints: Option<Vec<String>>,
}

/// Hints of blocks that hold only some of their time's samples: the head still has the others.
const PARTIAL: [&str; 3] = ["from-out-of-order", "from-stale-series", "from-selected-series"];

impl BlockMeta {
    fn is_partial(&self) -> bool {
        let hints = self.compaction.hints.iter().flatten();
        hints.into_iter().any(|hint| PARTIAL.contains(&hint.as_str()))
    }
}

/// A `meta.json` is a few kilobytes.
const META_BYTES_MAX: u64 = 16 << 20;

/// The blocks in a database's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Where the newest block ends (not included in it): older samples are out of bounds, since the
    /// block may hold others of their time. The smallest time if there is no block. A block whose
    /// `meta.json` cannot be read counts as none here, as in Prometheus, and so does one that was
    /// cut from out-of-order samples or from some series only.
    pub end: Timestamp,
    /// All there are.
    pub count: usize,
    /// The name of one of them.
    pub example: Option<String>,
    /// Oldest time and end of the samples in those whose `meta.json` can be read.
    pub range: Option<(Timestamp, Timestamp)>,
}

/// Looks at the blocks in `dir`.
pub fn find_blocks(disk: &dyn Disk, dir: &Path) -> io::Result<Blocks> {
    let mut blocks = Blocks { end: Timestamp::MIN, count: 0, example: None, range: None };
    for entry in disk.list(dir)?.into_iter().filter(|entry| entry.is_dir) {
        let Some(name) = entry.name.to_str().filter(|name| is_ulid(name)) else { continue };
        blocks.count += 1;
        blocks.example.get_or_insert_with(|| name.to_owned());
        let path = dir.join(name).join("meta.json");
        let meta = read_file(disk, &path, META_BYTES_MAX)
            .and_then(|bytes| Ok(serde_json::from_slice::<BlockMeta>(&bytes)?));
        let meta = match meta {
            Ok(meta) => meta,
            Err(err) => {
                tracing::warn!(path = %path.display(), %err, "a block has no readable meta.json");
                continue;
            }
        };
        let (mint, maxt) = blocks.range.unwrap_or((meta.min_time, meta.max_time));
        blocks.range = Some((mint.min(meta.min_time), maxt.max(meta.max_time)));
        if !meta.is_partial() {
            blocks.end = blocks.end.max(meta.max_time);
        }
    }
    Ok(blocks)
}

/// Whether a directory's name is that of a block: 26 digits of Crockford's base 32.
fn is_ulid(name: &str) -> bool {
    let is_digit =
        |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase() && !b"ILOU".contains(&byte);
    name.len() == 26 && name.bytes().all(is_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;

    #[test]
    fn the_newest_block_counts_and_strangers_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let block = |name: &str, meta: &str| {
            let block = dir.path().join(name);
            std::fs::create_dir(&block).unwrap();
            std::fs::write(block.join("meta.json"), meta).unwrap();
        };
        let none = Blocks { end: Timestamp::MIN, count: 0, example: None, range: None };
        assert_eq!(find_blocks(&SystemDisk, dir.path()).unwrap(), none);
        block("01M85ZRFJPEBJ4BHYM21MP7HFW", r#"{"version": 1, "minTime": 1, "maxTime": 20}"#);
        block("01M85ZRFJPEBJ4BHYM21MP7HFX", r#"{"version": 1, "minTime": -1, "maxTime": 10}"#);
        block("01M85ZRFJPEBJ4BHYM21MP7HFY", "{");
        let hints = r#""compaction": {"hints": ["from-out-of-order"]}"#;
        block("01M85ZRFJPEBJ4BHYM21MP7HFZ", &format!(r#"{{"maxTime": 30, {hints}}}"#));
        block("wal", r#"{"maxTime": 99}"#);
        let found = Blocks {
            end: 20,
            count: 4,
            example: Some("01M85ZRFJPEBJ4BHYM21MP7HFW".to_owned()),
            range: Some((-1, 30)),
        };
        assert_eq!(find_blocks(&SystemDisk, dir.path()).unwrap(), found);
    }
}
