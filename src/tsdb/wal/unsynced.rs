//! The mark that a failed sync leaves in the log's directory until it is made good.
//!
//! The kernel calls pages clean that it could not write, so that a sync of the next process would
//! succeed and prove nothing. Where the mark is found at an opening, the segments from the one that it
//! names on are written again before they are served. It is for a process that is killed, whose files
//! are the kernel's as they were, and need not be durable: a power cut leaves what the medium has.

use std::io;
use std::path::Path;

use crate::disk::{Disk, read_file};
use crate::tsdb::wal::SegmentIndex;

/// Its file. Not a number and not a checkpoint's name, so that Prometheus does not look at it.
pub const UNSYNCED_NAME: &str = "unsynced";

/// A mark is a number.
const MARK_BYTES_MAX: u64 = 64;

/// Says that segments from this one on may not be on the medium, whatever later syncs say.
pub fn mark(disk: &dyn Disk, dir: &Path, from: SegmentIndex) -> io::Result<()> {
    disk.create(&dir.join(UNSYNCED_NAME))?.write_all_at(format!("{from}\n").as_bytes(), 0)
}

/// From which segment on the log is to be written again, if it is. What cannot be read as a number
/// means all of it.
pub fn marked_from(disk: &dyn Disk, dir: &Path) -> io::Result<Option<SegmentIndex>> {
    let bytes = match read_file(disk, &dir.join(UNSYNCED_NAME), MARK_BYTES_MAX) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) if err.kind() == io::ErrorKind::InvalidData => Vec::new(),
        read => read?,
    };
    let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n'));
    let number = number.and_then(|number| number.parse().ok()).unwrap_or_default();
    Ok(Some(SegmentIndex(number)))
}

/// Takes the mark away, if there is one.
pub fn unmark(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    match disk.remove_file(&dir.join(UNSYNCED_NAME)) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::FaultyDisk;

    #[test]
    fn a_mark_names_a_segment_and_a_damaged_one_all() {
        let (disk, dir) = (FaultyDisk::new(), Path::new("/wal"));
        disk.create_dir_all(dir).unwrap();
        assert_eq!(marked_from(&disk, dir).unwrap(), None);
        mark(&disk, dir, SegmentIndex(42)).unwrap();
        assert_eq!(marked_from(&disk, dir).unwrap(), Some(SegmentIndex(42)));
        for bytes in [&b""[..], &[0; 9], b"00000042", b"x\n", &[b'1'; 100]] {
            disk.create(&dir.join(UNSYNCED_NAME)).unwrap().write_all_at(bytes, 0).unwrap();
            assert_eq!(marked_from(&disk, dir).unwrap(), Some(SegmentIndex(0)));
        }
        unmark(&disk, dir).unwrap();
        unmark(&disk, dir).unwrap();
        assert_eq!(marked_from(&disk, dir).unwrap(), None);
    }
}
