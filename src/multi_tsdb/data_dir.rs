//! Whether the data directory can be used at all.
//!
//! One that belongs to another user or is mounted read-only, from the start or since the kernel met
//! an error, takes no write of any tenant. The node then does not start, or is not ready, so that a
//! rolling update ends at the first of its pods.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::disk::Disk;
use crate::metrics::{Gauge, Registry};
use crate::model::tenant::DATA_DIRECTORY_PROBE;

/// How often it is looked whether the directory can be used.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Makes a file in the directory and removes it again. A disk that is full passes: what is stored
/// can be read, and there may be room again. So does a process without file handles.
pub fn try_out(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let path = dir.join(DATA_DIRECTORY_PROBE);
    let made = disk.create(&path).and_then(|file| file.write_all_at(b"ringest\n", 0));
    let removed = match disk.remove_file(&path) {
        // Another process may use the directory, where there are no locks.
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    match made.and(removed) {
        Err(err) if !may_pass(&err) => Err(err),
        _ => Ok(()),
    }
}

/// Whether an error is one of a lack that may end by itself.
fn may_pass(err: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, OutOfMemory, QuotaExceeded, StorageFull};
    use rustix::io::Errno;
    let errno = Errno::from_io_error(err);
    matches!(err.kind(), Interrupted | OutOfMemory | QuotaExceeded | StorageFull)
        || errno.is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno))
}

/// Whether an error is one of ownership, mode or mount, and says nothing of what is stored.
pub(super) fn is_denied(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// The data directory as it was found at the last look.
pub(super) struct DataDir {
    path: PathBuf,
    is_usable: AtomicBool,
    shown: Gauge,
}

impl DataDir {
    pub(super) fn new(path: PathBuf, registry: &Registry) -> DataDir {
        let shown = registry.gauge(
            "ringest_data_directory_usable",
            "Whether files could be made in the data directory at the last look.",
        );
        shown.set(1.0);
        DataDir { path, is_usable: AtomicBool::new(true), shown }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.is_usable.load(Ordering::Relaxed)
    }

    /// Looks whether it can be used, and tells of a change.
    pub(super) fn look(&self, disk: &dyn Disk) {
        let found = try_out(disk, &self.path);
        self.shown.set(if found.is_ok() { 1.0 } else { 0.0 });
        let was_usable = self.is_usable.swap(found.is_ok(), Ordering::Relaxed);
        match found {
            Err(err) if was_usable => {
                let path = self.path.display();
                tracing::error!(%path, %err, "the data directory cannot be used");
            }
            Ok(()) if !was_usable => {
                tracing::info!(path = %self.path.display(), "the data directory can be used again");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;
    use crate::disk::faulty::FaultyDisk;

    #[test]
    fn a_directory_that_cannot_be_written_is_found_out_and_a_full_one_is_not() {
        let disk = FaultyDisk::new();
        let dir = Path::new("/data");
        assert_eq!(try_out(&disk, dir).unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.create_dir_all(dir).unwrap();
        try_out(&disk, dir).unwrap();
        assert_eq!(disk.list(dir).unwrap(), []);
        disk.limit_bytes(Some(0));
        try_out(&disk, dir).unwrap();
        for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
            disk.refuse_changes(dir, kind);
            assert_eq!(try_out(&disk, dir).unwrap_err().kind(), kind);
        }
        disk.allow_changes(dir);
        try_out(&disk, dir).unwrap();
        let no_handles = io::Error::from(rustix::io::Errno::MFILE);
        assert!(may_pass(&no_handles));
    }

    #[test]
    fn what_is_in_the_way_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        try_out(&SystemDisk, dir.path()).unwrap();
        std::fs::create_dir(dir.path().join(DATA_DIRECTORY_PROBE)).unwrap();
        try_out(&SystemDisk, dir.path()).unwrap_err();
    }
}
