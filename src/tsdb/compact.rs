//! Blocks made of blocks: without what was deleted of them, and one of several.
//!
//! 1. The new block is written under a temporary name, and is on the medium as a whole;
//! 2. it gets its name, and the blocks that it was made from, its parents, are handed on to nobody any
//!    more;
//! 3. readers that begin from now on see it and not its parents;
//! 4. the parents lose their names, and go when nobody has them open any more.
//!
//! A process that ends before 2 starts with the parents, later with the new block: a start leaves out
//! what a block that is read names as its parents ([`Blocks`](crate::tsdb::blocks::Blocks)). Parents of
//! which nothing is left go without a block that takes their place.
//!
//! While a block is written no lock is held: heads are cut and blocks deleted meanwhile. If one of the
//! parents was deleted, the new block is given up.

pub mod plan;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

use self::plan::{PlannedBlock, ladder, plan};
use crate::error::chain;
use crate::metrics::{Counter, Gauge, Histogram, Registry};
use crate::model::Timestamp;
use crate::tsdb::Db;
use crate::tsdb::block::Block;
use crate::tsdb::block::merge::{MergeError, merge};
use crate::tsdb::block::meta::{BlockMeta, Compaction};
use crate::tsdb::block::removal::take_name;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::block::writer::{BlockWriter, CompleteBlock, remove_unfinished};
use crate::tsdb::blocks::{View, effective_end, name_of};
use crate::tsdb::error::WriteError;
use crate::tsdb::file::PageCache;
use crate::tsdb::options::DbOptions;

/// What is kept of the inputs' indexes while they are read from front to back, beside the cache of
/// queries.
const CACHE_BYTES: u64 = 1 << 20;

/// What is known between one new block and the next.
pub(super) struct Merging {
    ranges: Vec<i64>,
    /// Whether somebody writes a new block.
    is_under_way: AtomicBool,
    /// What is to be rewritten.
    asked: Mutex<BTreeSet<Ulid>>,
    /// Blocks that others have taken the place of, and that are still there: none before its own
    /// parents, which are to go before it does. What names a block as its parent keeps a start from
    /// reading that.
    replaced: Mutex<Vec<(Ulid, PathBuf)>>,
    /// Taken behind the lock of cutting.
    state: Mutex<State>,
    metrics: MergeMetrics,
}

#[derive(Default)]
struct State {
    /// No block gets its name any more, nor loses it.
    is_closed: bool,
    /// Those of which nothing can be made.
    failed: BTreeSet<Ulid>,
    /// The view in which there was nothing to merge.
    planned: Option<Weak<View>>,
}

/// What is counted of new blocks, whether of a head or of other blocks.
pub(super) struct MergeMetrics {
    pub(super) done: Counter,
    pub(super) failed: Counter,
    vertical: Counter,
    duration: Histogram,
    populating: Gauge,
}

impl MergeMetrics {
    fn new(registry: &Registry, tenant: &str) -> MergeMetrics {
        let counter = |name, help| registry.counter_vec(name, help, &["tenant"]).with(&[tenant]);
        // Heads are always cut.
        counter(
            "prometheus_tsdb_compactions_skipped_total",
            "Total number of skipped compactions due to disabled auto compaction.",
        );
        let seconds: Vec<f64> = (0..14).map(|i| f64::from(1 << i)).collect();
        MergeMetrics {
            done: counter(
                "prometheus_tsdb_compactions_total",
                "Total number of compactions that were executed for the partition.",
            ),
            failed: counter(
                "prometheus_tsdb_compactions_failed_total",
                "Total number of compactions that failed for the partition.",
            ),
            vertical: counter(
                "prometheus_tsdb_vertical_compactions_total",
                "Total number of compactions done on overlapping blocks.",
            ),
            duration: registry
                .histogram_vec(
                    "prometheus_tsdb_compaction_duration_seconds",
                    "Duration of compaction runs",
                    &["tenant"],
                    &seconds,
                )
                .with(&[tenant]),
            populating: registry
                .gauge_vec(
                    "prometheus_tsdb_compaction_populating_block",
                    "Set to 1 when a block is currently being written to the disk.",
                    &["tenant"],
                )
                .with(&[tenant]),
        }
    }

    /// A block is being written until this is dropped.
    pub(super) fn begin(&self) -> Writing<'_> {
        self.populating.set(1.0);
        Writing { metrics: self, begun: Instant::now() }
    }
}

pub(super) struct Writing<'m> {
    metrics: &'m MergeMetrics,
    begun: Instant,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.metrics.populating.set(0.0);
        self.metrics.duration.observe(self.begun.elapsed().as_secs_f64());
    }
}

impl Merging {
    /// `replaced` was found at opening.
    pub(super) fn new(
        options: &DbOptions,
        registry: &Registry,
        tenant: &str,
        replaced: Vec<(Ulid, PathBuf)>,
    ) -> Merging {
        Merging {
            ranges: ladder(options.block_range, options.merged_max),
            is_under_way: AtomicBool::new(false),
            asked: Mutex::default(),
            replaced: Mutex::new(replaced),
            state: Mutex::default(),
            metrics: MergeMetrics::new(registry, tenant),
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.is_under_way.load(Ordering::Acquire)
    }

    pub(super) fn metrics(&self) -> &MergeMetrics {
        &self.metrics
    }

    /// Whether a block has another in its place.
    pub(super) fn has_replaced(&self, block: Ulid) -> bool {
        self.replaced.lock().iter().any(|(replaced, _)| *replaced == block)
    }
}

/// What a new block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// Takes the place of one that lacks nothing but what was deleted of it.
    Rewritten,
    /// Takes the place of several, or goes up a level.
    Merged,
}

/// Blocks that are being read for a new one.
struct Job<'d> {
    db: &'d Db,
    made: Made,
    parents: Vec<Arc<Block>>,
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.db.merging.is_under_way.store(false, Ordering::Release);
    }
}

impl Db {
    /// Has blocks rewritten without what was deleted of them, with the next
    /// [`Db::rewrite_asked`], but for those of which it cannot be done; which these are. Does not
    /// wait.
    pub fn ask_to_rewrite(&self, blocks: impl IntoIterator<Item = Ulid>) -> Vec<Ulid> {
        let mut blocks: Vec<_> = blocks.into_iter().collect();
        let state = self.merging.state.lock();
        blocks.retain(|block| !state.failed.contains(block));
        drop(state);
        self.merging.asked.lock().extend(blocks.iter().copied());
        blocks
    }

    /// Rewrites the blocks that somebody has asked for; how many. Those of which it cannot be done are
    /// told, and stay. Blocks on the disk, and may take long.
    pub fn rewrite_asked(&self) -> Result<usize, MergeError> {
        self.remove_replaced_again();
        let mut done = 0;
        loop {
            let Some(asked) = self.merging.asked.lock().pop_first() else { return Ok(done) };
            let Some(job) = self.begin(Made::Rewritten, |view, state| {
                let is_asked = |block: &&Arc<Block>| {
                    name_of(block.dir()) == Some(asked) && block.meta().ulid == asked
                };
                let blocks = view.blocks.iter().filter(is_asked).cloned();
                blocks.filter(|_| !state.failed.contains(&asked)).collect()
            }) else {
                continue;
            };
            match self.run(&job) {
                Ok(is_done) => done += usize::from(is_done),
                Err(err) if err.is_for_good() => {
                    self.merging.state.lock().failed.insert(asked);
                    let (dir, err) = (self.dir.join(asked.to_string()), chain(&err));
                    let dir = dir.display();
                    let message =
                        "a block with tombstones cannot be rewritten, so it is not shipped";
                    tracing::error!(block = %asked, %dir, err, "{message}");
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// Merges blocks as Prometheus does, until there is nothing left to merge; how many new ones there
    /// are. Blocks on the disk, and may take long.
    pub fn compact(&self) -> Result<usize, MergeError> {
        self.remove_replaced_again();
        let mut done = 0;
        while let Some(job) = self.begin(Made::Merged, |view, state| self.planned(view, state)) {
            match self.run(&job) {
                Ok(is_done) => done += usize::from(is_done),
                Err(err) if err.is_for_good() => self.mark_failed(&job.parents, &err),
                Err(err) => return Err(err),
            }
        }
        Ok(done)
    }

    /// What is to be merged next.
    fn planned(&self, view: &Arc<View>, state: &mut State) -> Vec<Arc<Block>> {
        let now = Arc::downgrade(view);
        if state.planned.as_ref().is_some_and(|planned| planned.ptr_eq(&now)) {
            return Vec::new();
        }
        // A start would not know one of another name again as a parent.
        let is_well_named = |block: &&Arc<Block>| name_of(block.dir()) == Some(block.meta().ulid);
        let blocks: Vec<_> = view.blocks.iter().filter(is_well_named).collect();
        let judged = blocks.iter().map(|block| PlannedBlock {
            is_failed: block.meta().compaction.failed || state.failed.contains(&block.meta().ulid),
            ..PlannedBlock::of(block)
        });
        let judged: Vec<_> = judged.collect();
        let planned = plan(&judged, &self.merging.ranges);
        if planned.is_empty() {
            state.planned = Some(now);
        }
        planned.into_iter().map(|i| blocks[i].clone()).collect()
    }

    fn begin(
        &self,
        made: Made,
        choose: impl FnOnce(&Arc<View>, &mut State) -> Vec<Arc<Block>>,
    ) -> Option<Job<'_>> {
        let _cutting = self.cutting.lock();
        let mut state = self.merging.state.lock();
        if state.is_closed {
            return None;
        }
        let mut parents = choose(&self.view.load_full(), &mut state);
        parents.sort_by_key(|block| block.meta().min_time);
        if parents.is_empty() {
            return None;
        }
        self.merging.is_under_way.store(true, Ordering::Release);
        Some(Job { db: self, made, parents })
    }

    /// Whether the parents have gone. If not, they are not what they were any more.
    fn run(&self, job: &Job<'_>) -> Result<bool, MergeError> {
        let begun = Instant::now();
        let Job { parents, made, .. } = job;
        let metrics = &self.merging.metrics;
        let ulid = self.new_ulid_at(child_millis(parents, self.env.clock.now()))?;
        let done = {
            let _writing = metrics.begin();
            self.write_child(ulid, parents, *made)
                .and_then(|child| self.put_in_place(ulid, parents, child))
        };
        let is_done = match done {
            Ok(is_done) => is_done,
            // It was deleted while it was to be read.
            Err(MergeError::Read(_)) if !self.view.load().has_all(parents) => false,
            Err(err) => {
                if !matches!(err, MergeError::Interrupted) {
                    metrics.failed.inc();
                }
                return Err(err);
            }
        };
        if is_done {
            metrics.done.inc();
            let (dir, duration) = (self.dir.display(), begun.elapsed());
            let sources: Vec<_> =
                parents.iter().map(|parent| parent.meta().ulid.to_string()).collect();
            let count = parents.len();
            tracing::info!(%dir, count, %ulid, ?sources, ?duration, "compact blocks");
        }
        Ok(is_done)
    }

    /// Everything of the new block but its name; none if nothing is left of the parents.
    fn write_child(
        &self,
        ulid: Ulid,
        parents: &[Arc<Block>],
        made: Made,
    ) -> Result<Option<CompleteBlock<'_>>, MergeError> {
        let disk = &*self.env.disk;
        self.check_room(parents)?;
        let cache = PageCache::new(CACHE_BYTES);
        // Anew, so that what was deleted since is heeded, too.
        let open = |parent: &Arc<Block>| Block::open(disk, parent.dir(), cache.clone());
        let inputs = parents.iter().map(|parent| open(parent).map(Arc::new));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let metas: Vec<BlockMeta> = inputs.iter().map(|input| input.meta().clone()).collect();
        let compaction = match (made, &metas[..]) {
            (Made::Rewritten, [parent]) => Compaction::of_rewritten(ulid, parent),
            _ => Compaction::of_merged(&metas),
        };
        let min_time = metas.iter().map(|meta| meta.min_time).min().unwrap_or(0);
        let max_time = metas.iter().map(|meta| meta.max_time).max().unwrap_or(0);
        if metas.windows(2).any(|pair| pair[1].min_time < pair[0].max_time) {
            self.merging.metrics.vertical.inc();
        }
        let write = || {
            let mut writer = BlockWriter::create(disk, &self.dir, ulid)?;
            merge(&inputs, &mut writer)?;
            Ok(writer.complete(min_time, max_time, compaction)?)
        };
        write().inspect_err(|_| self.remove_unfinished(ulid))
    }

    /// Whether the disk has room for the new block beside its parents. What others write meanwhile is
    /// not known, and where it cannot be said how much there is it is tried.
    fn check_room(&self, parents: &[Arc<Block>]) -> Result<(), MergeError> {
        let needed = parents.iter().map(|parent| parent.bytes()).sum();
        match self.env.disk.free_bytes(&self.dir) {
            Ok(free) if free < needed => Err(MergeError::NoRoom { needed, free }),
            _ => Ok(()),
        }
    }

    /// Takes away what has no name. It is large, and the disk may be full.
    pub(super) fn remove_unfinished(&self, ulid: Ulid) {
        if let Err(err) = remove_unfinished(&*self.env.disk, &self.dir, ulid) {
            tracing::warn!(%err, "a block that was not finished stays until a restart");
        }
    }

    /// Lets the new block, if there is one, take the place of its parents. Whether it has it.
    fn put_in_place(
        &self,
        ulid: Ulid,
        parents: &[Arc<Block>],
        child: Option<CompleteBlock<'_>>,
    ) -> Result<bool, MergeError> {
        let mut cutting = self.cutting.lock();
        let is_wanted = !self.merging.state.lock().is_closed && self.view.load().has_all(parents);
        if !is_wanted {
            child.map_or(Ok(()), CompleteBlock::abort)?;
            return Ok(false);
        }
        if let Err(err) = self.withdraw_left() {
            self.remove_unfinished(ulid);
            return Err(err.into());
        }
        // From now on nobody hands them on.
        let names = parents.iter().map(|parent| (parent.meta().ulid, parent.dir().to_owned()));
        self.merging.replaced.lock().extend(names);
        let child = child.map(|child| self.name(ulid, child)).transpose();
        let child = child.inspect_err(|_| {
            let mut replaced = self.merging.replaced.lock();
            replaced.retain(|(name, _)| parents.iter().all(|parent| parent.meta().ulid != *name));
        })?;
        let before = self.view.load_full();
        let view = before.replacing(parents, child);
        cutting.note_older(&before, &view);
        self.view.store(Arc::new(view));
        self.unsettled.lock().remove(&ulid);
        if let Err(err) = self.remove_replaced() {
            let err = chain(&err);
            tracing::warn!(err, "blocks that others have taken the place of stay for now");
        }
        Ok(true)
    }

    fn name(&self, ulid: Ulid, child: CompleteBlock<'_>) -> Result<Block, MergeError> {
        self.unsettled.lock().insert(ulid);
        let disk = &*self.env.disk;
        let dir = self.dir.join(ulid.to_string());
        let open = |meta| Block::open_as(disk, &dir, meta, self.env.block_cache.clone());
        let named = child.name().map_err(MergeError::from).and_then(|meta| Ok(open(meta)?));
        named.inspect_err(|_| {
            if let Err(left) = self.withdraw(ulid) {
                let left = chain(&left);
                tracing::warn!(block = %ulid, left, "a block that failed cannot be taken away");
            }
        })
    }

    /// Takes away the blocks that others have taken the place of. Readers that have them open read on.
    /// Whoever calls holds the lock of cutting, or nobody else has the database yet.
    pub(super) fn remove_replaced(&self) -> Result<(), WriteError> {
        let disk = &*self.env.disk;
        let replaced = self.merging.replaced.lock().clone();
        if replaced.is_empty() {
            return Ok(());
        }
        // What they shut out stays out, whatever becomes of those in their place.
        self.record_floor(&self.view.load(), |_| true)?;
        for (ulid, dir) in replaced {
            match take_name(disk, &dir) {
                Ok(nameless) => {
                    if let Err(err) = nameless.remove(disk) {
                        tracing::warn!(%err, "what is left of a block stays until a restart");
                    }
                }
                Err(WriteError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(err) => return Err(err),
            }
            self.merging.replaced.lock().retain(|(replaced, _)| *replaced != ulid);
            tracing::info!(block = %ulid, "deleted a block that another has taken the place of");
        }
        Ok(())
    }

    /// Lets no block get a name or lose it from now on: the directory may be another's then.
    pub(super) fn stop_merging(&self) {
        let _cutting = self.cutting.lock();
        self.merging.state.lock().is_closed = true;
    }

    /// What could not be taken away before.
    fn remove_replaced_again(&self) {
        if self.merging.replaced.lock().is_empty() {
            return;
        }
        let _cutting = self.cutting.lock();
        if !self.merging.state.lock().is_closed
            && let Err(err) = self.remove_replaced()
        {
            let err = chain(&err);
            tracing::debug!(err, "blocks that others have taken the place of are still there");
        }
    }

    /// As Prometheus notes it, so that they are not tried for ever.
    fn mark_failed(&self, parents: &[Arc<Block>], err: &MergeError) {
        let _cutting = self.cutting.lock();
        let blocks: Vec<_> = parents.iter().map(|parent| parent.meta().ulid.to_string()).collect();
        let (dir, err) = (self.dir.display(), chain(err));
        tracing::error!(%dir, ?blocks, err, "blocks cannot be merged, and stay as they are");
        for parent in parents {
            self.merging.state.lock().failed.insert(parent.meta().ulid);
            let mut meta = parent.meta().clone();
            meta.compaction.failed = true;
            let is_there = self.view.load().has_all(std::slice::from_ref(parent));
            if is_there && let Err(err) = meta.write(&*self.env.disk, parent.dir()) {
                let (block, err) = (meta.ulid, chain(&err));
                tracing::warn!(%block, err, "it cannot be noted that a block cannot be merged");
            }
        }
    }
}

/// When a block says that it was made. Usually now; but where a parent ends later than it was made at,
/// the new block is to shut out neither more nor less than its parents did ([`effective_end`]).
fn child_millis(parents: &[Arc<Block>], now: Timestamp) -> u64 {
    let metas = || parents.iter().map(|parent| parent.meta());
    let whole = metas().filter(|meta| !meta.is_partial());
    let shut_out = whole.map(|meta| effective_end(meta, meta.ulid)).max();
    let end = metas().map(|meta| meta.max_time).max();
    let millis = match shut_out {
        Some(shut_out) if Some(shut_out) < end => shut_out,
        Some(shut_out) => shut_out.max(now),
        None => now,
    };
    u64::try_from(millis).unwrap_or(0)
}

impl PlannedBlock {
    fn of(block: &Block) -> PlannedBlock {
        let meta = block.meta();
        PlannedBlock {
            min_time: meta.min_time,
            max_time: meta.max_time,
            series: meta.stats.num_series,
            tombstones: block.tombstones().count() as u64,
            is_failed: meta.compaction.failed,
            class: plan::Class::of(&meta.compaction),
        }
    }
}

#[cfg(test)]
mod tests;
