//! A Prometheus TSDB directory of one tenant. Knows no tenant, no HTTP and no Thanos.
//!
//! ```text
//! <dir>/lock                 held while the database is open
//! <dir>/wal/00000042         the log
//! <dir>/wal/checkpoint.00041 what is left of older segments
//! <dir>/ringest.names        a second copy of the log's series records
//! <dir>/<ULID>/               blocks
//! <dir>/ringest.floor         when the head's time begins, from the first block's deletion on
//! <dir>/chunks_head/000001   full chunks of the head
//! <dir>/wbl                  of Prometheus; this version only heeds which refs it knows
//! ```

pub mod block;
pub mod blocks;
pub mod chunk_reads;
pub mod chunk_set;
pub mod chunkenc;
pub mod compact;
pub mod cut;
pub mod env;
pub mod error;
pub mod exemplars;
pub mod file;
pub mod head;
pub mod head_chunks;
pub mod index;
pub mod loading;
pub mod opening;
pub mod options;
pub mod outlived;
pub mod querier;
mod refs;
pub mod retention;
pub mod source;
pub mod wal;
mod window;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::disk::{DirLock, Disk};
use crate::error::chain;
use crate::model::Timestamp;
use crate::model::key_table::Lookup;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::blocks::View;
use crate::tsdb::compact::Merging;
use crate::tsdb::cut::Cutting;
use crate::tsdb::env::Env;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::exemplars::Exemplars;
use crate::tsdb::head::Head;
use crate::tsdb::head::append::{AppendReport, AppendResults};
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::read::HeadReader;
use crate::tsdb::head::write_chunks::Written;
use crate::tsdb::options::DbOptions;
use crate::tsdb::querier::Querier;
use crate::tsdb::retention::{Retention, RetentionMetrics};
use crate::tsdb::source::Source as _;
use crate::tsdb::wal::{SyncError, SyncHandle, WalError};

pub use crate::tsdb::opening::{Begun, Opened};

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is locked by another process", dir.display())]
    Locked { dir: PathBuf },
    #[error("{what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Block(#[from] ReadError),
    #[error(transparent)]
    Leftovers(#[from] WriteError),
    /// A mistake of ours; the panic itself was logged.
    #[error("opening {} panicked", dir.display())]
    Panicked { dir: PathBuf },
    #[error("starting a new log segment in {}", dir.display())]
    Log { dir: PathBuf, source: io::Error },
}

impl OpenError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
        let path = path.to_owned();
        move |source| OpenError::Io { what, path, source }
    }
}

/// One tenant's database, open, or taking writes while it is [opened](opening).
pub struct Db {
    dir: PathBuf,
    env: Env,
    head: Arc<Head>,
    view: ArcSwap<View>,
    sync: SyncHandle,
    /// Blocks are made and deleted by one thread at a time.
    cutting: Mutex<Cutting>,
    /// See [`Db::is_settled`].
    unsettled: Mutex<BTreeSet<Ulid>>,
    merging: Merging,
    retention: Retention,
    retention_metrics: RetentionMetrics,
    /// Held while the floor is recorded.
    recording: Mutex<()>,
    /// Given away when the directory is no longer ours.
    lock: Mutex<Option<Box<dyn DirLock>>>,
}

/// Bytes of all files in a directory and those below it, of which nothing else is read; none if it is
/// not there.
fn bytes_below(disk: &dyn Disk, dir: &Path) -> u64 {
    let (mut bytes, mut left) = (0, vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        match disk.list(&dir) {
            Ok(entries) => {
                for entry in entries {
                    match entry.is_dir {
                        true => left.push(dir.join(entry.name)),
                        false => bytes += entry.len,
                    }
                }
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => {
                tracing::warn!(dir = %dir.display(), %err, "a directory cannot be listed");
            }
        }
    }
    bytes
}

impl Db {
    /// Makes `dir` if it does not exist, and takes its lock unless the options say otherwise.
    pub fn lock(
        disk: &dyn Disk,
        dir: &Path,
        options: &DbOptions,
    ) -> Result<Option<Box<dyn DirLock>>, OpenError> {
        disk.create_dir_all(dir).map_err(OpenError::io("making", dir))?;
        if options.no_lockfile {
            return Ok(None);
        }
        let path = dir.join("lock");
        match disk.lock(&path) {
            Ok(lock) => Ok(Some(lock)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                Err(OpenError::Locked { dir: dir.to_owned() })
            }
            Err(source) => Err(OpenError::Io { what: "locking", path, source }),
        }
    }

    /// The series known now, to look a request up in that goes into the batch.
    pub fn lookup(&self, batch: &mut Batch) -> Lookup {
        batch.look_up_in(self.head.catalog())
    }

    /// See [`Head::append`].
    pub fn append(&self, batch: &Batch) -> Result<AppendReport, WalError> {
        self.head.append(batch)
    }

    /// See [`Head::append_group`].
    pub fn append_group(&self, batches: &[&Batch]) -> AppendResults {
        self.head.append_group(batches)
    }

    /// Takes writes at once that had to wait since the log was being read.
    pub fn release_writes(&self) {
        self.head.release_writes();
    }

    /// Makes the log durable, and says up to where it is.
    pub fn sync_handle(&self) -> &SyncHandle {
        &self.sync
    }

    /// A reader over `[mint, maxt]`, both included. Sees what was appended before the call.
    pub fn querier(&self, mint: Timestamp, maxt: Timestamp) -> Querier {
        // The view first: what is cut meanwhile is still in the head for who has an older one.
        let view = self.view.load_full();
        Querier::new(HeadReader::new(self.head.clone()), view, mint, maxt)
    }

    pub fn exemplars(&self) -> &Exemplars {
        self.head.exemplars()
    }

    /// A reader of the head alone, over all times.
    pub fn head_querier(&self) -> Querier {
        let view = View { blocks: Vec::new(), ..*self.view.load_full() };
        let head = HeadReader::new(self.head.clone());
        Querier::new(head, Arc::new(view), Timestamp::MIN, Timestamp::MAX)
    }

    /// Times of the oldest and the newest sample held; `None` while there is none.
    pub fn time_range(&self) -> Option<(Timestamp, Timestamp)> {
        let view = self.view.load();
        let in_blocks = view.blocks.iter().filter_map(|block| block.time_range());
        let ranges = in_blocks.map(|range| (range.mint, range.maxt)).chain(self.head.time_range());
        ranges.reduce(|(mint, maxt), other| (mint.min(other.0), maxt.max(other.1)))
    }

    /// As [`Db::time_range`], of the head alone.
    pub fn head_time_range(&self) -> Option<(Timestamp, Timestamp)> {
        self.head.time_range()
    }

    pub fn has_blocks(&self) -> bool {
        !self.view.load().blocks.is_empty()
    }

    pub fn series_count(&self) -> usize {
        self.head.series_count()
    }

    /// Writes the head's full chunks to files, so that they take no memory; how many that were. Blocks
    /// on the disk. On an error the rest stays in memory until the next call.
    pub fn write_full_chunks(&self) -> Result<usize, WriteError> {
        let mut cutting = self.cutting.lock();
        let Some(end) = self.head.waiting_end() else { return Ok(0) };
        if self.sync.is_dirty() {
            // What was appended before is durable then; what cannot be stays in memory.
            self.sync.sync().map_err(|err| {
                let source = io::Error::other(err);
                WriteError::Io { path: self.dir.join("wal"), source }
            })?;
        }
        let mut written = Written::default();
        let result = self.head.write_full_chunks(end, &mut written);
        cutting.note_in_files(written.samples);
        result.map(|()| written.chunks)
    }

    /// If the log's unsynced end was lost after a failed sync, logs again what it held, so that
    /// appends are taken again. Whether there was anything to do. Blocks on the disk.
    pub fn replace_lost_end(&self) -> Result<bool, WalError> {
        self.head.replace_lost_end()
    }

    /// Pads and syncs the log. Appends fail from here on.
    pub fn close(&self) -> Result<(), WalError> {
        self.stop_merging();
        let written = self.write_full_chunks().and_then(|_| self.head.sync_full_chunks());
        if let Err(err) = written {
            let dir = self.dir.display();
            tracing::warn!(%dir, err = chain(&err), "full chunks stay in the log alone");
        }
        if let Err(SyncError::TailLost) = self.sync.sync() {
            self.replace_lost_end()?;
        }
        self.head.close_log()
    }
}

#[cfg(test)]
mod tests;
