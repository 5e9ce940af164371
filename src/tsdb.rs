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
pub mod file;
pub mod head;
pub mod head_chunks;
pub mod index;
pub mod loading;
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
use rustix::io::Errno;
use tokio::time::Instant;

use crate::disk::{DirLock, Disk};
use crate::error::chain;
use crate::model::Timestamp;
use crate::model::key_table::Lookup;
use crate::tsdb::block::removal::remove_leftovers;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::blocks::{Blocks, View};
use crate::tsdb::compact::Merging;
use crate::tsdb::cut::Cutting;
use crate::tsdb::env::Env;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::head::Head;
use crate::tsdb::head::append::{AppendReport, AppendResults, LogSide};
use crate::tsdb::head::batch::Batch;
use crate::tsdb::head::metrics::HeadMetrics;
use crate::tsdb::head::read::HeadReader;
use crate::tsdb::head::replay::mapped::MappedChunks;
use crate::tsdb::head::replay::{BesideLog, ReplayReport, replay};
use crate::tsdb::head::write_chunks::Written;
use crate::tsdb::head_chunks::{FILE_BYTES, HeadChunkFiles};
use crate::tsdb::loading::Loading;
use crate::tsdb::options::DbOptions;
use crate::tsdb::querier::Querier;
use crate::tsdb::retention::{Retention, RetentionMetrics, read_floor};
use crate::tsdb::source::Source as _;
use crate::tsdb::wal::names::Names;
use crate::tsdb::wal::repair::{LogContents, LogDir, LogRecord, open_log_with_names};
use crate::tsdb::wal::{
    SegmentIndex, SyncError, SyncHandle, Wal, WalError, WalMetrics, WalOptions, unsynced,
};

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

/// One tenant's database, open.
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

/// Makes a log that was read durable, and the names that lead to it. A process that was killed may
/// have left its end to the kernel alone, and a sample sent again is answered as stored by what was
/// replayed.
fn sync_log(disk: &dyn Disk, wal_dir: &Path) -> io::Result<()> {
    for segment in disk.list(wal_dir)?.into_iter().filter(|entry| !entry.is_dir) {
        let file = disk.open_write(&wal_dir.join(&segment.name))?;
        match file.sync() {
            // A pipe or a device that stands there has no medium.
            Err(err) if Errno::from_io_error(&err) == Some(Errno::INVAL) => {}
            Err(err) => {
                // The next attempt would succeed and prove nothing.
                let number = segment.name.to_str().and_then(|name| name.parse().ok());
                let marked = unsynced::mark(disk, wal_dir, SegmentIndex(number.unwrap_or(0)));
                if let Err(err) = marked {
                    let dir = wal_dir.display();
                    tracing::error!(%dir, %err, "a failed sync could not be marked in the log");
                }
                return Err(err);
            }
            Ok(()) => {}
        }
    }
    // The log's directory, that of the database, and the one that it is in.
    let mut dirs = wal_dir.ancestors().take(3).filter(|dir| !dir.as_os_str().is_empty());
    dirs.try_for_each(|dir| disk.sync_dir(dir))
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

/// What opening a database found.
pub struct Opened {
    pub db: Db,
    pub log: LogContents,
    pub replay: ReplayReport,
    /// Blocks that cannot be read, and why.
    pub blocks_set_aside: Vec<(PathBuf, ReadError)>,
    /// Bytes of the log of out-of-order samples, likewise.
    pub out_of_order_log_bytes: u64,
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

    /// [`Db::open_telling`] nobody how far it has come.
    pub fn open(
        dir: &Path,
        lock: Option<Box<dyn DirLock>>,
        options: DbOptions,
        env: &Env,
        tenant: &str,
    ) -> Result<Opened, OpenError> {
        Db::open_telling(dir, lock, options, env, tenant, &Loading::default())
    }

    /// Opens the database in `dir`, whose lock [`Db::lock`] took, and replays its log. Damage in the
    /// log costs what is damaged and is told in the result.
    pub fn open_telling(
        dir: &Path,
        lock: Option<Box<dyn DirLock>>,
        options: DbOptions,
        env: &Env,
        tenant: &str,
        loading: &Loading,
    ) -> Result<Opened, OpenError> {
        let started = Instant::now();
        remove_leftovers(&*env.disk, dir)?;
        let Env { disk, clock, registry, .. } = env.clone();
        let Blocks { served: blocks, set_aside: blocks_set_aside, replaced, floor } =
            Blocks::open(&*disk, dir, &env.block_cache)?;
        let recorded = read_floor(&*disk, dir);
        let floor = floor.max(recorded.map_err(OpenError::io("reading the floor in", dir))?);
        let out_of_order_log_bytes = bytes_below(&*disk, &dir.join("wbl"));
        let wal_dir = dir.join("wal");
        disk.create_dir_all(&wal_dir).map_err(OpenError::io("making", &wal_dir))?;
        let wal_metrics = WalMetrics::new(&registry, tenant);
        let files = HeadChunkFiles::new(disk.clone(), dir, FILE_BYTES, &registry, tenant);
        let mut mapped = MappedChunks::default();
        let head_chunks = files
            .open(floor, &mut |chunk| mapped.add(&files, chunk))
            .map_err(OpenError::io("looking for head chunks in", dir))?;
        if mapped.contested() > 0 {
            let (dir, chunks) = (dir.display(), mapped.contested());
            tracing::warn!(%dir, chunks, "head chunks overlap earlier ones and are not used");
        }
        let marked = unsynced::marked_from(&*disk, &wal_dir);
        if marked.map_err(OpenError::io("looking for a mark in", &wal_dir))?.is_some() {
            files.doubt_found();
        }
        let mut names = Names::open(disk.clone(), dir, options.wal_segment_bytes, &wal_metrics);
        let log = LogDir::list(&*disk, &wal_dir).map_err(OpenError::io("listing", &wal_dir))?;
        loading.begin(&log.segments);
        let beside = BesideLog {
            files: Arc::new(files),
            mapped,
            keeps_gaps: options.wal_by_coverage,
            loading,
        };
        let (log, contents, report) =
            replay(env.fingerprinter.clone(), floor, options.block_range, beside, |take| {
                let take = |found: LogRecord<'_>| {
                    loading.at(found.source);
                    take(found.record);
                };
                open_log_with_names(&*disk, &wal_dir, &wal_metrics, Some(&mut names), take)
            })
            .map_err(OpenError::io("reading the log in", &wal_dir))?;
        sync_log(&*disk, &wal_dir).map_err(OpenError::io("syncing the log in", &wal_dir))?;
        let (names, highest_name) =
            names.finish(&wal_dir).map_err(OpenError::io("writing the names of series in", dir))?;
        let highest_ref = refs::highest_in_others(&*disk, dir)
            .map_err(OpenError::io("looking for refs in", dir))?
            .max(head_chunks.highest_ref)
            .max(highest_name);
        refs::forget_series_state(&*disk, dir).map_err(OpenError::io("cleaning up", &wal_dir))?;

        let wal_options = WalOptions {
            segment_bytes: options.wal_segment_bytes,
            compression: options.wal_compression,
            sync: options.wal_sync,
        };
        let mut wal = Wal::open(disk, &wal_dir, wal_options, wal_metrics)
            .map_err(|source| OpenError::Log { dir: wal_dir, source })?;
        wal.keep_names(names);
        let (sync, wal_end) = (wal.sync_handle(), wal.end());
        let metrics = HeadMetrics::new(&registry, tenant);
        metrics.replay_seconds.set(started.elapsed().as_secs_f64());
        let log_side = LogSide::new(wal, report.next_ref.max(highest_ref + 1));
        let retention = options.retention;
        let mut cutting = Cutting::new(&options, &registry, tenant, blocks.len());
        cutting.heed(&report, (floor, contents.max_time), wal_end.segment);
        if out_of_order_log_bytes > 0 || head_chunks.others > 0 {
            cutting.keep_log();
        }
        if log.unknown_records > 0 {
            cutting.note_unknown();
        }
        let merging = Merging::new(&options, &registry, tenant, replaced);
        let head = Head::new(options, clock, metrics, floor, contents, log_side);
        cutting.count_from(head.samples_stored());
        let db = Db {
            dir: dir.to_owned(),
            env: env.clone(),
            head: Arc::new(head),
            view: ArcSwap::from_pointee(View { blocks, floor }),
            sync,
            cutting: Mutex::new(cutting),
            unsettled: Mutex::default(),
            merging,
            retention,
            retention_metrics: RetentionMetrics::new(retention, &registry, tenant),
            recording: Mutex::new(()),
            lock: Mutex::new(lock),
        };
        if report.gaps_filled > 0 {
            // Before it serves: what is in no file while later chunks are, Prometheus would not find.
            if let Err(err) = db.write_full_chunks() {
                tracing::warn!(dir = %dir.display(), err = chain(&err), "full chunks stay in memory");
            }
        }
        Ok(Opened { db, log, replay: report, blocks_set_aside, out_of_order_log_bytes })
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
