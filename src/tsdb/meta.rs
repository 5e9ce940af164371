//! The `meta.json` of blocks, as far as this version heeds it.

use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::disk::{Disk, read_file};
use crate::model::Timestamp;

#[derive(Deserialize)]
struct BlockMeta {
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

/// Where the newest block in `dir` ends (not included in it): older samples are out of bounds, since
/// the block may hold others of their time. The smallest time if there is no block. A block whose
/// `meta.json` cannot be read counts as none, as in Prometheus, and so does one that was cut from
/// out-of-order samples or from some series only.
pub fn newest_block_end(disk: &dyn Disk, dir: &Path) -> io::Result<Timestamp> {
    let mut end = Timestamp::MIN;
    for entry in disk.list(dir)? {
        if !entry.is_dir || !entry.name.to_str().is_some_and(is_ulid) {
            continue;
        }
        let path = dir.join(&entry.name).join("meta.json");
        let meta = read_file(disk, &path, META_BYTES_MAX)
            .and_then(|bytes| Ok(serde_json::from_slice::<BlockMeta>(&bytes)?));
        match meta {
            Ok(meta) if meta.is_partial() => {}
            Ok(meta) => end = end.max(meta.max_time),
            Err(err) => {
                tracing::warn!(path = %path.display(), %err, "skipping a block without readable meta.json");
            }
        }
    }
    Ok(end)
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
        assert_eq!(newest_block_end(&SystemDisk, dir.path()).unwrap(), Timestamp::MIN);
        block("01M85ZRFJPEBJ4BHYM21MP7HFW", r#"{"version": 1, "minTime": 1, "maxTime": 20}"#);
        block("01M85ZRFJPEBJ4BHYM21MP7HFX", r#"{"version": 1, "minTime": 1, "maxTime": 10}"#);
        block("01M85ZRFJPEBJ4BHYM21MP7HFY", "{");
        let hints = r#""compaction": {"hints": ["from-out-of-order"]}"#;
        block("01M85ZRFJPEBJ4BHYM21MP7HFZ", &format!(r#"{{"maxTime": 30, {hints}}}"#));
        block("wal", r#"{"maxTime": 99}"#);
        assert_eq!(newest_block_end(&SystemDisk, dir.path()).unwrap(), 20);
    }
}
