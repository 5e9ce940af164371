//! Taking a block away: first its name, then what it holds.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::block::writer::CREATION_SUFFIX;
use crate::tsdb::error::WriteError;

/// What the name of a block ends with while it is deleted. Prometheus removes such at its start, too.
pub const DELETION_SUFFIX: &str = ".tmp-for-deletion";
/// What older versions of Prometheus made and deleted blocks under.
const LEGACY_SUFFIX: &str = ".tmp";

/// A block that has lost its name. What it holds is still there, for those who have it open.
#[derive(Debug)]
#[must_use = "what the block holds takes up room until it is removed"]
pub struct Nameless {
    dir: PathBuf,
}

/// Takes the name of the block in `dir`, for good: once this has returned, no start finds it again.
pub fn take_name(disk: &dyn Disk, dir: &Path) -> Result<Nameless, WriteError> {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(DELETION_SUFFIX);
    let nameless = dir.with_file_name(name);
    // A directory is renamed to no name that there is.
    remove_dir(disk, &nameless)?;
    disk.rename(dir, &nameless).map_err(WriteError::io(dir))?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(parent).map_err(WriteError::io(parent))?;
    }
    Ok(Nameless { dir: nameless })
}

impl Nameless {
    /// Removes what the block holds, once nobody reads it. What is left after an error goes away with
    /// [`remove_leftovers`].
    pub fn remove(self, disk: &dyn Disk) -> Result<(), WriteError> {
        remove_dir(disk, &self.dir)
    }
}

/// Removes what is left in the database's directory of blocks that were being made or deleted when the
/// process ended, and returns how many these were. Nobody may be at work in it.
pub fn remove_leftovers(disk: &dyn Disk, parent: &Path) -> Result<usize, WriteError> {
    let entries = disk.list(parent).map_err(WriteError::io(parent))?;
    let mut count = 0;
    for entry in entries.iter().filter(|entry| entry.is_dir && is_leftover(&entry.name)) {
        remove_dir(disk, &parent.join(&entry.name))?;
        count += 1;
    }
    Ok(count)
}

pub(in crate::tsdb) fn is_leftover(name: &OsStr) -> bool {
    let suffixes = [CREATION_SUFFIX, DELETION_SUFFIX, LEGACY_SUFFIX];
    let name = name.to_str().unwrap_or_default();
    let mut blocks = suffixes.into_iter().filter_map(|suffix| name.strip_suffix(suffix));
    blocks.any(|block| block.parse::<Ulid>().is_ok())
}

/// Removes a directory, if it is there.
pub(in crate::tsdb) fn remove_dir(disk: &dyn Disk, dir: &Path) -> Result<(), WriteError> {
    match disk.remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(WriteError::io(dir)(err)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::FaultyDisk;

    const PARENT: &str = "/db/t";
    const ULID: &str = "01M85ZRFJPEBJ4BHYM21MP7HFW";
    const FILES: [&str; 3] = ["index", "meta.json", "chunks/000001"];

    fn make(disk: &FaultyDisk, dir: &Path) {
        disk.create_dir_all(&dir.join("chunks")).unwrap();
        for file in FILES {
            disk.create(&dir.join(file)).unwrap().sync().unwrap();
        }
        let dirs = [&dir.join("chunks"), dir, Path::new(PARENT), Path::new("/db")];
        dirs.into_iter().for_each(|dir| disk.sync_dir(dir).unwrap());
    }

    fn is_whole(disk: &FaultyDisk, dir: &Path) -> bool {
        FILES.iter().all(|file| disk.open(&dir.join(file)).is_ok())
    }

    /// Wherever the disk stops, a block is whole under its name, or no start finds it.
    #[test]
    fn a_block_is_whole_or_nameless_wherever_the_disk_stops() {
        let block = Path::new(PARENT).join(ULID);
        let mut stops = 0;
        loop {
            let disk = FaultyDisk::new();
            make(&disk, &block);
            // A second try finds what the first one left.
            make(&disk, &Path::new(PARENT).join(format!("{ULID}{DELETION_SUFFIX}")));
            disk.fail_all_operations(stops);
            let nameless = take_name(&disk, &block);
            let is_taken = nameless.is_ok();
            let removed = nameless.and_then(|nameless| nameless.remove(&disk));
            for after in [disk.after_power_cut(), disk.after_kill()] {
                let is_there = after.list(&block).is_ok();
                assert!(!is_there || is_whole(&after, &block), "{stops}");
                assert!(!is_there || !is_taken, "{stops}");
                remove_leftovers(&after, Path::new(PARENT)).unwrap();
                let left = after.list(Path::new(PARENT)).unwrap();
                assert_eq!(left.len(), usize::from(is_there), "{stops}: {left:?}");
            }
            if removed.is_ok() {
                break;
            }
            stops += 1;
        }
        assert_eq!(stops, 4);
    }

    #[test]
    fn what_a_reader_has_open_stays_until_it_is_removed() {
        let disk = FaultyDisk::new();
        let block = Path::new(PARENT).join(ULID);
        make(&disk, &block);
        let nameless = take_name(&disk, &block).unwrap();
        assert!(disk.list(&block).is_err());
        assert!(is_whole(&disk, &nameless.dir));
        nameless.remove(&disk).unwrap();
        assert_eq!(disk.list(Path::new(PARENT)).unwrap(), []);
        assert!(take_name(&disk, &block).is_err(), "there is none");
    }

    #[test]
    fn leftovers_are_those_of_blocks_and_nothing_else() {
        let disk = FaultyDisk::new();
        let parent = Path::new(PARENT);
        let lower = ULID.to_lowercase();
        let left = [
            format!("{ULID}{CREATION_SUFFIX}"),
            format!("{ULID}{DELETION_SUFFIX}"),
            format!("{lower}.tmp"),
        ];
        let kept = [
            ULID.to_owned(),
            format!("{ULID}.tmp-for-something"),
            format!("{ULID}{CREATION_SUFFIX}.kept"),
            "lost+found".to_owned(),
            "notes.tmp".to_owned(),
            "notes.tmp-for-deletion".to_owned(),
            "wal".to_owned(),
        ];
        left.iter().chain(&kept).for_each(|name| make(&disk, &parent.join(name)));
        // A file of such a name is nobody's.
        disk.create(&parent.join(format!("{ULID}0.tmp"))).unwrap();
        disk.create(&parent.join("01M85ZRFJPEBJ4BHYM21MP7HFX.tmp")).unwrap();
        assert_eq!(remove_leftovers(&disk, parent).unwrap(), left.len());
        assert_eq!(disk.list(parent).unwrap().len(), kept.len() + 2);
        assert!(kept.iter().all(|name| is_whole(&disk, &parent.join(name))));
        assert_eq!(remove_leftovers(&disk, parent).unwrap(), 0);
    }
}
