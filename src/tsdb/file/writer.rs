//! Writing a file front to back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::RangeReader;
use crate::disk::{Disk, DiskFile};
use crate::tsdb::error::WriteError;

/// What is handed to the disk at once.
const BITE_BYTES: usize = 256 << 10;
/// Bytes after which the file is brought to the medium and dropped from the page cache: whoever syncs
/// a log meanwhile does not wait for a whole block, and what others read stays in memory.
const SYNC_BYTES: u64 = 8 << 20;

/// Writes a new file.
pub struct FileWriter {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// What the disk does not have yet.
    bite: Vec<u8>,
    /// Bytes that the disk has, and those of them that are on the medium.
    written: u64,
    synced: u64,
}

impl FileWriter {
    /// Makes the file; there must be none.
    pub fn create(disk: &dyn Disk, path: &Path) -> Result<FileWriter, WriteError> {
        let file = disk.create_new(path).map_err(WriteError::io(path))?;
        Ok(FileWriter { path: path.to_owned(), file, bite: Vec::new(), written: 0, synced: 0 })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes so far.
    pub fn position(&self) -> u64 {
        self.written + self.bite.len() as u64
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.bite.extend_from_slice(bytes);
        if self.bite.len() < BITE_BYTES {
            return Ok(());
        }
        self.flush()?;
        if self.written - self.synced >= SYNC_BYTES { self.sync() } else { Ok(()) }
    }

    /// Zeros up to a multiple of `align`.
    pub fn pad(&mut self, align: u64) -> Result<(), WriteError> {
        let lacking = self.position().next_multiple_of(align) - self.position();
        self.bite.resize(self.bite.len() + lacking as usize, 0);
        Ok(())
    }

    /// Overwrites what was written at `offset`.
    pub fn patch(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        debug_assert!(offset + bytes.len() as u64 <= self.position());
        if offset < self.written {
            self.flush()?;
            let patched = self.file.write_all_at(bytes, offset);
            return patched.map_err(WriteError::io(&self.path));
        }
        let at = (offset - self.written) as usize;
        self.bite[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// What was written so far, to be read.
    pub fn reader(&mut self) -> Result<RangeReader, WriteError> {
        self.flush()?;
        Ok(RangeReader::of_writer(&self.path, self.file.clone(), self.written))
    }

    /// Brings what was written so far to the medium.
    pub fn sync_written(&mut self) -> Result<(), WriteError> {
        self.flush()?;
        self.sync()
    }

    /// Hands the rest to the disk; the file's length.
    pub fn finish_unsynced(mut self) -> Result<u64, WriteError> {
        self.flush()?;
        Ok(self.written)
    }

    /// Brings the rest to the medium. The name is the directory's.
    pub fn finish(mut self) -> Result<u64, WriteError> {
        self.flush()?;
        self.sync()?;
        Ok(self.written)
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        let written = self.file.write_all_at(&self.bite, self.written);
        written.map_err(WriteError::io(&self.path))?;
        self.written += self.bite.len() as u64;
        self.bite.clear();
        Ok(())
    }

    fn sync(&mut self) -> Result<(), WriteError> {
        self.file.sync().map_err(WriteError::io(&self.path))?;
        self.file.drop_cached(self.synced, self.written - self.synced);
        self.synced = self.written;
        Ok(())
    }
}
