//! The only door to files.
//!
//! What we assume of the medium: a `rename` within a directory is atomic; a file's bytes are
//! durable once [`DiskFile::sync`] returned `Ok`; a name is durable once its directory was synced;
//! a failed sync may have dropped the dirty pages for good, so a later sync that succeeds says
//! nothing about bytes written before the failed one; a write may be torn at any byte.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "this is the door"))]

pub mod faulty;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One file open for positioned reading and writing. Whoever writes keeps the position.
#[expect(clippy::len_without_is_empty, reason = "no caller asks whether a file is empty")]
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads up to `buf.len()` bytes at `offset`; 0 means end of file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`. After an error any prefix may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes the file's bytes and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Tells the kernel that it need not keep these bytes in memory, once they are synced. Whether it
    /// heeds that changes nothing but what else it can keep.
    fn drop_cached(&self, _offset: u64, _len: u64) {}
}

/// A directory that is open: to make its names durable takes no file descriptor more.
pub trait OpenDir: Send + Sync {
    /// Makes the names in it durable.
    fn sync(&self) -> io::Result<()>;
}

/// Whether something could not be opened since no file descriptor is left. That passes, and says
/// nothing of the disk.
pub fn lacks_descriptors(err: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(err), Some(Errno::MFILE | Errno::NFILE))
}

/// A directory's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub name: OsString,
    pub is_dir: bool,
    /// Length in bytes, of files.
    pub len: u64,
}

/// Held while a directory is ours; released on drop.
pub trait DirLock: Send + Sync {}

/// The operations on a file system that the storage is built from.
pub trait Disk: Send + Sync + 'static {
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Entries in order of their names.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Makes an empty file for reading and writing; an existing one is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes an empty file for reading and writing; fails if there is one.
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Opens a directory, to be synced later.
    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn OpenDir>>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.open_dir(dir)?.sync()
    }
    /// Makes everything written to the file system that holds `dir` durable.
    fn sync_file_system(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that can still be written to the file system that holds `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
    /// Takes the lock file `path`, or fails with [`io::ErrorKind::WouldBlock`] while another
    /// process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>>;
}

/// Reads a whole file of at most `cap` bytes.
pub fn read_file(disk: &dyn Disk, path: &Path, cap: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let len = file.len()?;
    if len > cap {
        let what = format!("{}: {len} bytes are more than the {cap} allowed", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut bytes = vec![0; len as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        let n = file.read_at(&mut bytes[filled..], filled as u64)?;
        if n == 0 {
            break;
        }
        filled += n;
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Replaces `path` by a file with these bytes, so that after a crash either the old or the new one
/// is there: temporary name, sync, rename, sync of the directory.
pub fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary: OsString = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let file = disk.create(&temporary)?;
    file.write_all_at(bytes, 0)?;
    file.sync()?;
    drop(file);
    disk.rename(&temporary, path)?;
    match path.parent() {
        Some(dir) => disk.sync_dir(dir),
        None => Ok(()),
    }
}

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemDisk;

struct SystemFile(fs::File);

impl DiskFile for SystemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn drop_cached(&self, offset: u64, len: u64) {
        // To no length the kernel reads "to the end".
        if let Some(len) = NonZeroU64::new(len) {
            let advice = rustix::fs::Advice::DontNeed;
            let _ = rustix::fs::fadvise(&self.0, offset, Some(len), advice);
        }
    }
}

struct SystemDir(fs::File);

impl OpenDir for SystemDir {
    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

/// A lock file under `flock`, as Prometheus takes it; removed when released.
struct SystemLock {
    path: PathBuf,
    _file: fs::File,
}

impl DirLock for SystemLock {}

impl Drop for SystemLock {
    fn drop(&mut self) {
        // Nothing to do about a failure: the lock itself ends with the file handle.
        let _ = fs::remove_file(&self.path);
    }
}

impl Disk for SystemDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // Of what a link leads to: a tenant's directory may be on another disk.
            let metadata = fs::metadata(entry.path()).or_else(|_| entry.metadata())?;
            entries.push(DirEntry {
                name: entry.file_name(),
                is_dir: metadata.is_dir(),
                len: metadata.len(),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(SystemFile(file)))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(SystemFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(SystemFile(fs::File::open(path)?)))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(SystemFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn OpenDir>> {
        Ok(Box::new(SystemDir(fs::File::open(dir)?)))
    }

    fn sync_file_system(&self, dir: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(dir)?)?)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(dir)?;
        // Without what is kept for the superuser.
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(SystemLock { path: path.to_owned(), _file: file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        replace_file(&SystemDisk, &path, b"one").unwrap();
        replace_file(&SystemDisk, &path, b"two").unwrap();
        assert_eq!(read_file(&SystemDisk, &path, 3).unwrap(), b"two");
        assert!(read_file(&SystemDisk, &path, 2).is_err());
        assert_eq!(SystemDisk.list(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_link_is_listed_as_what_it_leads_to() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("a")).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("b")).unwrap();
        let listed = SystemDisk.list(dir.path()).unwrap();
        let listed: Vec<_> =
            listed.iter().map(|entry| (entry.name.to_str().unwrap(), entry.is_dir)).collect();
        assert_eq!(listed, [("a", true), ("b", false)]);
    }

    #[test]
    fn a_lock_keeps_a_second_holder_out_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = SystemDisk.lock(&path).unwrap();
        assert_eq!(SystemDisk.lock(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        SystemDisk.lock(&path).unwrap();
    }
}
