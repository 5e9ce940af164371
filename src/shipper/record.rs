//! `thanos.shipper.json`: which of a tenant's blocks are in the bucket.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::disk::{Disk, read_file, replace_file};
use crate::tsdb::block::ulid::Ulid;

/// The file's name in the tenant's directory.
pub const RECORD_FILE: &str = "thanos.shipper.json";

const VERSION: i64 = 1;
/// Half a million blocks.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// As it stands in the file.
#[derive(Serialize, Deserialize)]
struct Content {
    version: i64,
    #[serde(default)]
    uploaded: Option<Vec<Ulid>>,
}

/// Why there is no record to go by.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoRecord {
    #[error("there is none")]
    NotThere,
    #[error("failed to read: {0}")]
    Io(io::Error),
    #[error("failed to parse: {0}")]
    Json(serde_json::Error),
    #[error("unexpected meta file version {0}")]
    Version(i64),
}

/// The blocks that are in the bucket as far as the record in a tenant's directory says; none if it
/// cannot be read. Only these may be deleted where blocks are shipped, and none of them is being
/// uploaded. Blocks on the disk.
pub fn shipped(disk: &dyn Disk, dir: &Path) -> BTreeSet<Ulid> {
    read(disk, dir).map(|uploaded| uploaded.into_iter().collect()).unwrap_or_default()
}

pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Vec<Ulid>, NoRecord> {
    let bytes = read_file(disk, &dir.join(RECORD_FILE), FILE_BYTES_MAX);
    let bytes = bytes.map_err(|err| match err.kind() {
        io::ErrorKind::NotFound => NoRecord::NotThere,
        _ => NoRecord::Io(err),
    })?;
    let content: Content = serde_json::from_slice(&bytes).map_err(NoRecord::Json)?;
    match content.version {
        VERSION => Ok(content.uploaded.unwrap_or_default()),
        version => Err(NoRecord::Version(version)),
    }
}

/// Replaces the record; the old or the new one is there after a crash.
pub(super) fn write(disk: &dyn Disk, dir: &Path, uploaded: &[Ulid]) -> io::Result<()> {
    replace_file(disk, &dir.join(RECORD_FILE), &to_bytes(uploaded))
}

/// As Go writes it: with tabs, and an empty list as null.
fn to_bytes(uploaded: &[Ulid]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let uploaded = Some(uploaded.to_vec()).filter(|uploaded| !uploaded.is_empty());
    let content = Content { version: VERSION, uploaded };
    let formatter = PrettyFormatter::with_indent(b"\t");
    // Neither a vector nor these types fail.
    let written = content.serialize(&mut Serializer::with_formatter(&mut bytes, formatter));
    debug_assert!(written.is_ok());
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;

    /// By `thanos receive`.
    const RECORDED: [(&str, &[&str]); 2] = [
        ("{\n\t\"version\": 1,\n\t\"uploaded\": null\n}\n", &[]),
        (
            "{\n\t\"version\": 1,\n\t\"uploaded\": [\n\t\t\"01M85X9ECNEYNRJR9PQ5Q106VD\",\n\
             \t\t\"01M85X9EDKNEX91JNRJMA1Q1JE\"\n\t]\n}\n",
            &["01M85X9ECNEYNRJR9PQ5Q106VD", "01M85X9EDKNEX91JNRJMA1Q1JE"],
        ),
    ];

    #[test]
    fn recorded_files_are_read_and_written_byte_for_byte() {
        for (text, names) in RECORDED {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(RECORD_FILE), text).unwrap();
            let uploaded = read(&SystemDisk, dir.path()).unwrap();
            assert_eq!(uploaded.iter().map(Ulid::to_string).collect::<Vec<_>>(), names);
            assert_eq!(String::from_utf8(to_bytes(&uploaded)).unwrap(), text);
        }
    }

    #[test]
    fn what_cannot_be_read_counts_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(&SystemDisk, dir.path()), Err(NoRecord::NotThere)));
        for text in ["", "{", r#"{"version": 2, "uploaded": []}"#, r#"{"uploaded": null}"#] {
            std::fs::write(dir.path().join(RECORD_FILE), text).unwrap();
            assert!(read(&SystemDisk, dir.path()).is_err(), "{text}");
            assert_eq!(shipped(&SystemDisk, dir.path()), BTreeSet::new(), "{text}");
        }
        let blocks = [Ulid(1), Ulid(7)];
        write(&SystemDisk, dir.path(), &blocks).unwrap();
        assert_eq!(shipped(&SystemDisk, dir.path()), BTreeSet::from(blocks));
        write(&SystemDisk, dir.path(), &[]).unwrap();
        let text = std::fs::read_to_string(dir.path().join(RECORD_FILE)).unwrap();
        assert_eq!(text, RECORDED[0].0);
    }
}
