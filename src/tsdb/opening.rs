//! Opening a database, in two steps.
//!
//! [`Db::begin_opening`] looks through the blocks and the head chunks, and at the log
//! ([`wal::look`](crate::tsdb::wal::look)). Where that tells enough, there is a database then that
//! takes writes: a new segment of the log is begun behind all there is, and what certainly comes
//! after all that the log has is appended there ([`head::append`](crate::tsdb::head::append)).
//! [`Begun::load`] reads the log, and then what was appended meanwhile, so that the head becomes
//! what it would be had all of it been there before. Nothing but appends and syncs goes on until
//! then: no block is cut, the log is not shortened, and nobody reads.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::time::Instant;

use crate::disk::{DirLock, Disk};
use crate::error::chain;
use crate::model::Timestamp;
use crate::model::fingerprint::Fingerprinter;
use crate::tsdb::block::Block;
use crate::tsdb::block::removal::remove_leftovers;
use crate::tsdb::blocks::{Blocks, Replaced, View};
use crate::tsdb::compact::Merging;
use crate::tsdb::cut::Cutting;
use crate::tsdb::env::Env;
use crate::tsdb::error::ReadError;
use crate::tsdb::exemplars::Exemplars;
use crate::tsdb::head::append::LogSide;
use crate::tsdb::head::early::SeriesOfLog;
use crate::tsdb::head::metrics::HeadMetrics;
use crate::tsdb::head::replay::mapped::MappedChunks;
use crate::tsdb::head::replay::{BesideLog, ReplayReport, replay};
use crate::tsdb::head::states::States;
use crate::tsdb::head::{Head, HeadContents};
use crate::tsdb::head_chunks::{FILE_BYTES, HeadChunkFiles};
use crate::tsdb::loading::Loading;
use crate::tsdb::options::DbOptions;
use crate::tsdb::retention::{RetentionMetrics, read_floor};
use crate::tsdb::wal::follow::Follower;
use crate::tsdb::wal::look::{Looked, look};
use crate::tsdb::wal::names::Names;
use crate::tsdb::wal::repair::{LogContents, LogDir, LogRecord, open_log_with_names};
use crate::tsdb::wal::{
    LogPosition, SegmentIndex, SyncHandle, Wal, WalMetrics, WalOptions, unsynced,
};
use crate::tsdb::{Db, OpenError, bytes_below, refs};

/// Exemplars are taken in order only, as samples are.
const NO_WINDOW: i64 = 0;

/// How often the log is read up to where it is written by then, at most, before writes are held.
const ROUNDS_MAX: usize = 8;
/// If less than that is left, it is read while they are.
const LEFT_FOR_THE_END: u64 = 256 << 10;

/// What opening a database found.
pub struct Opened {
    pub db: Arc<Db>,
    pub log: LogContents,
    pub replay: ReplayReport,
    /// Blocks that cannot be read, and why.
    pub blocks_set_aside: Vec<(PathBuf, ReadError)>,
    /// Bytes of the log of out-of-order samples, likewise.
    pub out_of_order_log_bytes: u64,
}

/// A database whose log is still to be read.
pub struct Begun {
    started: Instant,
    parts: Parts,
    blocks_set_aside: Vec<(PathBuf, ReadError)>,
    out_of_order_log_bytes: u64,
    files: Arc<HeadChunkFiles>,
    mapped: MappedChunks,
    /// What head chunks have that is no series' of this version.
    has_foreign_chunks: bool,
    highest_ref_in_chunks: u64,
    names: Names,
    wal_metrics: WalMetrics,
    /// Bytes of the log when it was looked at.
    log_bytes: u64,
    early: Option<Early>,
}

/// What a database is put together from, beside its head.
struct Parts {
    dir: PathBuf,
    env: Env,
    options: DbOptions,
    tenant: String,
    floor: Timestamp,
    blocks: Vec<Arc<Block>>,
    replaced: Vec<Replaced>,
    lock: Option<Box<dyn DirLock>>,
}

/// A database that takes writes.
struct Early {
    db: Arc<Db>,
    /// Where what it appends begins.
    start: LogPosition,
    looked: Looked,
}

impl Db {
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

    /// Opens the database in `dir`, whose lock [`Db::lock`] took, and replays its log. Damage in
    /// the log costs what is damaged and is told in the result.
    pub fn open_telling(
        dir: &Path,
        lock: Option<Box<dyn DirLock>>,
        options: DbOptions,
        env: &Env,
        tenant: &str,
        loading: &Loading,
    ) -> Result<Opened, OpenError> {
        let opened = Db::begin_opening(dir, lock, options, env, tenant)?.load(loading)?;
        opened.db.release_writes();
        Ok(opened)
    }

    /// The first step: all but the reading of the log.
    pub fn begin_opening(
        dir: &Path,
        lock: Option<Box<dyn DirLock>>,
        options: DbOptions,
        env: &Env,
        tenant: &str,
    ) -> Result<Begun, OpenError> {
        let started = Instant::now();
        remove_leftovers(&*env.disk, dir)?;
        let Env { disk, registry, .. } = env.clone();
        let Blocks { served: blocks, set_aside: blocks_set_aside, replaced, floor } =
            Blocks::open(&*disk, dir, &env.block_cache)?;
        let recorded = read_floor(&*disk, dir);
        let floor = floor.max(recorded.map_err(OpenError::io("reading the floor in", dir))?);
        let out_of_order_log_bytes = bytes_below(&*disk, &dir.join("wbl"));
        let wal_dir = dir.join("wal");
        disk.create_dir_all(&wal_dir).map_err(OpenError::io("making", &wal_dir))?;
        let wal_metrics = WalMetrics::new(&registry, tenant);
        let files = HeadChunkFiles::new(disk.clone(), dir, FILE_BYTES, &registry, tenant);
        let log = LogDir::list(&*disk, &wal_dir).map_err(OpenError::io("listing", &wal_dir))?;
        let log_bytes = log.file_bytes;
        let names = Names::open(disk.clone(), dir, options.wal_segment_bytes, &wal_metrics);
        let mut mapped = MappedChunks::default();
        // Both take long where there is much, and the look only reads.
        let read_min = options.wal_looked_at_bytes.min(options.wal_segment_bytes / 4);
        let (head_chunks, looked) = thread::scope(|scope| {
            let look = || look_at_series(&*disk, &wal_dir, &names, read_min, &env.fingerprinter);
            let look = names
                .has_stretches()
                .then(|| thread::Builder::new().name("wal-look".into()).spawn_scoped(scope, look));
            let head_chunks = files.open(floor, &mut |chunk| mapped.add(&files, chunk));
            let looked = look.transpose()?.map_or(Ok(None), |look| {
                look.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            Ok((head_chunks, looked))
        })
        .map_err(OpenError::io("starting a thread for", dir))?;
        let head_chunks = head_chunks.map_err(OpenError::io("looking for head chunks in", dir))?;
        let looked = looked.map_err(OpenError::io("looking at the log in", &wal_dir))?;
        if mapped.contested() > 0 {
            let (dir, chunks) = (dir.display(), mapped.contested());
            tracing::warn!(%dir, chunks, "head chunks overlap earlier ones and are not used");
        }
        let marked = unsynced::marked_from(&*disk, &wal_dir);
        let is_marked = marked.map_err(OpenError::io("looking for a mark in", &wal_dir))?.is_some();
        if is_marked {
            files.doubt_found();
        }
        let dir = dir.to_owned();
        let (env, tenant) = (env.clone(), tenant.to_owned());
        let mut begun = Begun {
            started,
            parts: Parts { dir, env, options, tenant, floor, blocks, replaced, lock },
            blocks_set_aside,
            out_of_order_log_bytes,
            files: Arc::new(files),
            mapped,
            has_foreign_chunks: head_chunks.others > 0,
            highest_ref_in_chunks: head_chunks.highest_ref,
            names,
            wal_metrics,
            log_bytes,
            early: None,
        };
        // Any of these is a reason to see all of the log first.
        let is_doubtful = is_marked
            || begun.mapped.contested() > 0
            || begun.has_foreign_chunks
            || begun.out_of_order_log_bytes > 0;
        if let Some((looked, series)) = looked
            && !is_doubtful
        {
            begun.take_writes(looked, series)?;
        }
        Ok(begun)
    }
}

impl Begun {
    /// The database, if it takes writes already.
    pub fn early(&self) -> Option<Arc<Db>> {
        self.early.as_ref().map(|early| early.db.clone())
    }

    /// Whether it takes a while to read the log: longer than to look at that of another.
    pub fn is_long(&self) -> bool {
        self.log_bytes > self.parts.options.wal_segment_bytes
    }

    /// Lets writes in.
    fn take_writes(&mut self, looked: Looked, series: SeriesOfLog) -> Result<(), OpenError> {
        let Parts { dir, env, .. } = &self.parts;
        let disk = &*env.disk;
        let wal_dir = dir.join("wal");
        looked.cut_torn(disk).map_err(OpenError::io("cutting the log in", &wal_dir))?;
        // What is there is answered as stored from here on.
        sync_log(disk, &wal_dir).map_err(OpenError::io("syncing the log in", &wal_dir))?;
        let highest_ref = self.parts.highest_ref_beside_log()?;
        let highest_ref = highest_ref.max(self.highest_ref_in_chunks).max(looked.highest_ref);
        let mut wal = self.parts.open_log(&self.wal_metrics)?;
        wal.keep_names(self.names.share());
        let (start, sync) = (wal.end(), wal.sync_handle());
        let (catalog, writes) = series.finish(&looked, &self.mapped, start);
        // What the head has, as far as it is known.
        let (min_time, max_time) = match writes.newest() {
            Timestamp::MIN => (Timestamp::MAX, Timestamp::MIN),
            newest => (newest, newest),
        };
        let states = States::new(self.files.clone());
        let exemplars = VecDeque::new();
        let contents = HeadContents { catalog, states, min_time, max_time, exemplars };
        let log_side = LogSide::new(wal, highest_ref + 1).with_early(writes);
        let db = Arc::new(self.parts.assemble(contents, log_side, sync));
        self.early = Some(Early { db, start, looked });
        Ok(())
    }

    /// The second step: reads the log. Where writes were taken before, they wait from the end of
    /// the log on until they are [released](Db::release_writes): whoever let some wait has them go
    /// first.
    pub fn load(mut self, loading: &Loading) -> Result<Opened, OpenError> {
        let Parts { dir, env, options, floor, .. } = &self.parts;
        let (dir, floor, disk) = (dir.clone(), *floor, env.disk.clone());
        let wal_dir = dir.join("wal");
        let early = self.early.take();
        let end = early.as_ref().map(|early| early.start.segment);
        let log = LogDir::list(&*disk, &wal_dir).map_err(OpenError::io("listing", &wal_dir))?;
        let log: Vec<_> = log
            .segments
            .into_iter()
            .filter(|(segment, _)| end.is_none_or(|end| *segment < end))
            .collect();
        loading.begin(&log);
        let beside = BesideLog {
            files: self.files.clone(),
            mapped: std::mem::take(&mut self.mapped),
            keeps_gaps: options.wal_by_coverage,
            exemplars_max: options.exemplars_max,
            loading,
            known: early.as_ref().map(|early| early.db.head.catalog()),
        };
        let (fingerprinter, block_range) = (env.fingerprinter.clone(), options.block_range);
        let (names, metrics) = (&mut self.names, &self.wal_metrics);
        let (mut log, contents, report) =
            replay(fingerprinter, floor, block_range, beside, |take| {
                let mut take = |found: LogRecord<'_>| {
                    loading.at(found.source);
                    take(found.record);
                };
                let names = Some(names);
                let log = open_log_with_names(&*disk, &wal_dir, metrics, names, end, &mut take)?;
                if let Some(early) = &early {
                    early.follow(&disk, &wal_dir, &mut take)?;
                }
                Ok(log)
            })
            .map_err(OpenError::io("reading the log in", &wal_dir))?;
        let newest = contents.max_time;
        let (db, start) = match early {
            Some(Early { db, start, looked }) => {
                let names = self.names.finish(&wal_dir, Some(start.segment));
                names.map_err(OpenError::io("writing the names of series in", &dir))?;
                if let Some(cut) = looked.torn {
                    log.note_cut(cut, &self.wal_metrics);
                }
                if !db.head.end_loading(contents, report.next_ref) {
                    let source = io::Error::new(io::ErrorKind::InvalidData, NOT_AS_LOOKED);
                    return Err(OpenError::io("reading the log in", &wal_dir)(source));
                }
                (db, start)
            }
            None => {
                sync_log(&*disk, &wal_dir)
                    .map_err(OpenError::io("syncing the log in", &wal_dir))?;
                let names = self.names.finish(&wal_dir, None);
                let (names, highest_name) =
                    names.map_err(OpenError::io("writing the names of series in", &dir))?;
                let highest_ref = self.parts.highest_ref_beside_log()?;
                let highest_ref = highest_ref.max(self.highest_ref_in_chunks).max(highest_name);
                let mut wal = self.parts.open_log(&self.wal_metrics)?;
                wal.keep_names(names);
                let (start, sync) = (wal.end(), wal.sync_handle());
                let log_side = LogSide::new(wal, report.next_ref.max(highest_ref + 1));
                (Arc::new(self.parts.assemble(contents, log_side, sync)), start)
            }
        };
        db.head.note_replay(self.started.elapsed());
        let mut cutting = db.cutting.lock();
        cutting.heed(&report, (floor, newest), start.segment);
        if self.out_of_order_log_bytes > 0 || self.has_foreign_chunks {
            cutting.keep_log();
        }
        if log.unknown_records > 0 {
            cutting.note_unknown();
        }
        cutting.count_from(db.head.samples_stored());
        drop(cutting);
        if report.gaps_filled > 0 {
            // Before it serves: what is in no file while later chunks are, Prometheus would not
            // find.
            if let Err(err) = db.write_full_chunks() {
                tracing::warn!(dir = %dir.display(), err = chain(&err), "full chunks stay in memory");
            }
        }
        let Begun { blocks_set_aside, out_of_order_log_bytes, .. } = self;
        Ok(Opened { db, log, replay: report, blocks_set_aside, out_of_order_log_bytes })
    }
}

/// Series or their refs are others than the look at the log said.
const NOT_AS_LOOKED: &str = "the log names its series otherwise than was noted";

impl Early {
    /// Reads what is appended meanwhile, and at last lets appends wait.
    fn follow(
        &self,
        disk: &Arc<dyn Disk>,
        wal_dir: &Path,
        take: &mut dyn FnMut(LogRecord<'_>),
    ) -> io::Result<()> {
        let head = &self.db.head;
        let mut follower = Follower::new(disk.clone(), wal_dir.to_owned(), self.start);
        for _ in 0..ROUNDS_MAX {
            let (at, end) = (follower.position(), head.logged_early());
            if at.segment == end.segment && end.offset - at.offset < LEFT_FOR_THE_END {
                break;
            }
            follower.read_to(end, &mut *take)?;
        }
        follower.read_to(head.hold_writes(), take)
    }
}

impl Parts {
    /// The highest ref that other files know, but for head chunks. No other program is to go on
    /// from what they say of it.
    fn highest_ref_beside_log(&self) -> Result<u64, OpenError> {
        let (dir, disk) = (&self.dir, &*self.env.disk);
        let highest = refs::highest_in_others(disk, dir)
            .map_err(OpenError::io("looking for refs in", dir))?;
        refs::forget_series_state(disk, dir)
            .map_err(OpenError::io("cleaning up", &dir.join("wal")))?;
        Ok(highest)
    }

    /// Begins a new segment behind all there is.
    fn open_log(&self, metrics: &WalMetrics) -> Result<Wal, OpenError> {
        let Parts { dir, env, options, .. } = self;
        let wal_dir = dir.join("wal");
        let wal_options = WalOptions {
            segment_bytes: options.wal_segment_bytes,
            compression: options.wal_compression,
            sync: options.wal_sync,
        };
        Wal::open(env.disk.clone(), &wal_dir, wal_options, metrics.clone())
            .map_err(|source| OpenError::Log { dir: wal_dir, source })
    }

    /// The database, once: its blocks and its lock go with it.
    fn assemble(&mut self, contents: HeadContents, log: LogSide, sync: SyncHandle) -> Db {
        let Parts { dir, env, options, tenant, floor, blocks, replaced, lock } = self;
        let Env { clock, registry, .. } = env.clone();
        let (blocks, replaced, floor) = (std::mem::take(blocks), std::mem::take(replaced), *floor);
        let metrics = HeadMetrics::new(&registry, tenant);
        let retention = options.retention;
        let cutting = Cutting::new(options, &registry, tenant, blocks.len());
        let merging = Merging::new(options, &registry, tenant, replaced);
        let exemplars = Exemplars::new(options.exemplars_max, NO_WINDOW, &registry, tenant);
        let head = Head::new(options.clone(), clock, metrics, floor, contents, exemplars, log);
        Db {
            dir: dir.clone(),
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
            lock: Mutex::new(lock.take()),
        }
    }
}

/// A look at the log, and the series that it gave.
fn look_at_series(
    disk: &dyn Disk,
    wal_dir: &Path,
    names: &Names,
    read_min: u64,
    fingerprinter: &Fingerprinter,
) -> io::Result<Option<(Looked, SeriesOfLog)>> {
    let mut series = SeriesOfLog::new(fingerprinter.clone());
    let looked = look(disk, wal_dir, names, read_min, &mut |record| series.take(record))?;
    Ok(looked.map(|looked| (looked, series)))
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
