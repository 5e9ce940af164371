//! A database that nobody writes any more, and of which nothing is kept any longer: whether that is so,
//! and how it goes.
//!
//! What is not understood keeps it: a file that nothing here wrote, a block that is set aside, a log
//! with what no block takes, an original that damage left.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use crate::disk::Disk;
use crate::tsdb::Db;
use crate::tsdb::block::removal::{is_leftover, remove_dir, take_name};
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::head_chunks::HEAD_CHUNKS_DIR;
use crate::tsdb::retention::FLOOR_FILE;
use crate::tsdb::wal::checkpoint::CHECKPOINT_PREFIX;
use crate::tsdb::wal::names::{NAMES_FILE, UNFINISHED_NAMES_FILE};

/// Why a database did not go. It takes no appends any more, and is to be opened again.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Something was stored since the last look.
    #[error("it has samples")]
    NotEmpty,
    /// Blocks are made of its blocks.
    #[error("its blocks are read")]
    InUse,
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Db {
    /// Whether all samples are in blocks, all of these are older than is kept, all `may_go`, nobody
    /// reads, and the directory holds nothing else but the files named in `known`.
    pub fn is_outlived(
        &self,
        known: &[&str],
        may_go: impl Fn(Ulid) -> bool,
    ) -> Result<bool, ReadError> {
        let Some(age_max) = self.retention.age_max else { return Ok(false) };
        if self.head.time_range().is_some() {
            return Ok(false);
        }
        let view = self.view.load_full();
        let oldest_kept = self.env.clock.now().saturating_sub(age_max);
        let metas = || view.blocks.iter().map(|block| block.meta());
        // One is ours, one the database's.
        let is_read = Arc::strong_count(&view) > 2;
        if is_read
            || !self.cutting.lock().is_at_rest()
            || self.merging.is_under_way()
            || metas().any(|meta| meta.max_time > oldest_kept || !may_go(meta.ulid))
        {
            return Ok(false);
        }
        let is_served = |name: &str| metas().any(|meta| meta.ulid.to_string() == name);
        let is_known = |name: &OsStr| {
            let name = name.to_str().unwrap_or_default();
            OURS.contains(&name)
                || known.contains(&name)
                || is_served(name)
                || is_leftover(name.as_ref())
        };
        let disk = &*self.env.disk;
        Ok(holds_only(disk, &self.dir, is_known)?
            && holds_only(disk, &self.dir.join("wal"), |name| self.is_of_log(name))?
            && known.iter().all(|name| has_no_file(disk, &self.dir.join(name)))
            && has_no_file(disk, &self.dir.join("wbl"))
            && holds_only(disk, &self.dir.join(HEAD_CHUNKS_DIR), is_number)?)
    }

    /// Removes the database with its directory, once nothing is appended any more. In an order in which
    /// a process that ends in between leaves one that holds no more than its blocks.
    pub fn remove(&self) -> Result<(), RemoveError> {
        self.stop_merging();
        if self.merging.is_under_way() {
            return Err(RemoveError::InUse);
        }
        // Before the look: what is appended then is refused.
        if let Err(err) = self.head.close_log() {
            tracing::debug!(dir = %self.dir.display(), %err, "a log that goes was not closed");
        }
        if self.head.time_range().is_some() {
            return Err(RemoveError::NotEmpty);
        }
        let disk = &*self.env.disk;
        // Else a later start would read from it what blocks had.
        remove_dir(disk, &self.dir.join("wal"))?;
        remove_dir(disk, &self.dir.join(HEAD_CHUNKS_DIR))?;
        disk.sync_dir(&self.dir).map_err(WriteError::io(&self.dir))?;
        for block in &self.view.load_full().blocks {
            take_name(disk, block.dir())?.remove(disk)?;
        }
        remove_dir(disk, &self.dir)?;
        if let Some(parent) = self.dir.parent() {
            disk.sync_dir(parent).map_err(WriteError::io(parent))?;
        }
        self.unlock();
        Ok(())
    }

    /// Whether a name in the log's directory is one that this process, or one before it, wrote. A later
    /// segment than ours is another's, who has the directory now.
    fn is_of_log(&self, name: &OsStr) -> bool {
        let name = name.to_str().unwrap_or_default();
        let number = name.strip_prefix(CHECKPOINT_PREFIX).unwrap_or(name);
        let is_ours = |number: u64| number <= self.sync.current_segment().0;
        is_number(OsStr::new(number)) && number.parse().is_ok_and(is_ours)
    }

    /// Gives the lock away, whoever still reads.
    pub fn unlock(&self) {
        drop(self.lock.lock().take());
    }
}

/// What a database's directory has beside blocks.
const OURS: [&str; 7] =
    ["lock", "wal", "wbl", HEAD_CHUNKS_DIR, FLOOR_FILE, NAMES_FILE, UNFINISHED_NAMES_FILE];

/// Whether there is no file below a directory, if it is one.
fn has_no_file(disk: &dyn Disk, dir: &Path) -> bool {
    let entries = disk.list(dir).unwrap_or_default();
    entries.iter().all(|entry| entry.is_dir && has_no_file(disk, &dir.join(&entry.name)))
}

fn holds_only(
    disk: &dyn Disk,
    dir: &Path,
    is_known: impl Fn(&OsStr) -> bool,
) -> Result<bool, ReadError> {
    match disk.list(dir) {
        Ok(entries) => Ok(entries.iter().all(|entry| is_known(&entry.name))),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(err) => Err(ReadError::io(dir)(err)),
    }
}

fn is_number(name: &OsStr) -> bool {
    let name = name.to_str().unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}
