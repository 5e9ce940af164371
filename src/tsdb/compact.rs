//! Blocks made of blocks: without what was deleted of them, and one of several.
//!
//! 1. The new block is written under a temporary name, is on the medium as a whole, and is read from
//!    there as a whole;
//! 2. it gets its name, and the blocks that it was made from, its parents, are handed on to nobody any
//!    more;
//! 3. readers that begin from now on see it and not its parents;
//! 4. the parents lose their names, and go when nobody has them open any more ([`replaced`]).
//!
//! A process that ends before 2 starts with the parents, later with the new block: a start leaves out
//! what a block that is read names as its parents ([`Blocks`](crate::tsdb::blocks::Blocks)). Parents of
//! which nothing is left go without a block that takes their place.
//!
//! Heads are cut and blocks deleted meanwhile: of all this the lock of cutting is held for 2 and 3
//! alone. If one of the parents was deleted by then, or something more of one, the new block is given
//! up.
//!
//! What fails costs the blocks that it was to be made of, for a while or for good, and no others.

mod metrics;
pub mod plan;
mod postponed;
pub mod replaced;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::Mutex;
use tokio::time::Instant;

use self::metrics::MergeMetrics;
use self::plan::{PlannedBlock, ladder, plan};
use self::postponed::Postponed;
use self::replaced::Replacing;
use crate::error::chain;
use crate::metrics::Registry;
use crate::model::Timestamp;
use crate::tsdb::Db;
use crate::tsdb::block::Block;
use crate::tsdb::block::merge::{MergeError, Outlook, is_anything_left, merge};
use crate::tsdb::block::meta::{BlockMeta, Compaction};
use crate::tsdb::block::tombstones::Tombstones;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::block::verify::{Verified, WHOLE_CACHE_BYTES};
use crate::tsdb::block::writer::{BlockWriter, CompleteBlock};
use crate::tsdb::blocks::{Replaced, View, effective_end, name_of};
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::file::PageCache;
use crate::tsdb::options::DbOptions;

/// Beside a new block the disk keeps room for so many segments of the log, which goes on meanwhile, and
/// for a twentieth of what the block may take.
const SEGMENTS_LEFT: u64 = 3;
const SHARE_LEFT: u64 = 20;

/// What is known between one new block and the next.
pub(super) struct Merging {
    ranges: Vec<i64>,
    segment_bytes: u64,
    /// Whether somebody writes a new block.
    is_under_way: AtomicBool,
    /// What is to be rewritten.
    asked: Mutex<BTreeSet<Ulid>>,
    replacing: Replacing,
    /// Taken behind the lock of cutting.
    state: Mutex<State>,
    metrics: MergeMetrics,
}

#[derive(Default)]
struct State {
    /// No block gets its name any more, nor loses it.
    is_closed: bool,
    /// Those of which nothing can be made, with the damage if it is that.
    failed: BTreeMap<Ulid, Option<String>>,
    /// Those of which nothing could be made.
    postponed: Postponed,
    /// The view in which there was nothing to merge.
    planned: Option<Weak<View>>,
}

/// What becomes of a block that is to be rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewriting {
    /// It will be.
    Comes,
    /// It is damaged.
    Damaged(String),
    /// This version cannot.
    Unsupported,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There was nothing to do.
    Idle,
    /// A new block has taken the place of others, or these had nothing left.
    Made,
    /// What was begun came to nothing, and that was told. There may be more to do.
    GivenUp,
}

impl Merging {
    /// `replaced` was found at opening.
    pub(super) fn new(
        options: &DbOptions,
        registry: &Registry,
        tenant: &str,
        replaced: Vec<Replaced>,
    ) -> Merging {
        Merging {
            ranges: ladder(options.block_range, options.merged_max),
            segment_bytes: options.wal_segment_bytes,
            is_under_way: AtomicBool::new(false),
            asked: Mutex::default(),
            replacing: Replacing::new(replaced),
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

impl Job<'_> {
    fn names(&self) -> Vec<Ulid> {
        self.parents.iter().map(|parent| parent.meta().ulid).collect()
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.db.merging.is_under_way.store(false, Ordering::Release);
        if thread::panicking() {
            // It would again.
            self.db.merging.state.lock().postponed.add(self.names());
        }
    }
}

/// A new block before it has its name.
struct Written<'d> {
    /// As they were read for it.
    inputs: Vec<Arc<Block>>,
    /// None if nothing is left of them.
    child: Option<Child<'d>>,
}

struct Child<'d> {
    complete: CompleteBlock<'d>,
    block: Block,
}

impl Db {
    /// Has blocks rewritten without what was deleted of them, by turns of [`Db::rewrite_next`]; what
    /// becomes of each. Does not wait.
    pub fn ask_to_rewrite(&self, blocks: impl IntoIterator<Item = Ulid>) -> Vec<(Ulid, Rewriting)> {
        let state = self.merging.state.lock();
        let judged = blocks.into_iter().map(|block| match state.failed.get(&block) {
            None => (block, Rewriting::Comes),
            Some(Some(damage)) => (block, Rewriting::Damaged(damage.clone())),
            Some(None) => (block, Rewriting::Unsupported),
        });
        let judged: Vec<_> = judged.collect();
        drop(state);
        let comes = judged.iter().filter(|(_, becomes)| *becomes == Rewriting::Comes);
        self.merging.asked.lock().extend(comes.map(|(block, _)| *block));
        judged
    }

    /// Rewrites a block that somebody has asked for. An error says that the disk takes nothing now.
    /// Blocks on the disk, and may take long.
    pub fn rewrite_next(&self) -> Result<Turn, MergeError> {
        self.work(self.begin(Made::Rewritten, |view, state| self.next_asked(view, state)))
    }

    /// Merges what Prometheus would merge next. As [`Db::rewrite_next`].
    pub fn merge_next(&self) -> Result<Turn, MergeError> {
        self.work(self.begin(Made::Merged, |view, state| self.planned(view, state)))
    }

    /// The first that is asked for and can be rewritten now. Those that are not there any more are
    /// forgotten, as are those of which it cannot be done.
    fn next_asked(&self, view: &Arc<View>, state: &mut State) -> Vec<Arc<Block>> {
        let find = |asked: Ulid| {
            let is_asked = |block: &&Arc<Block>| {
                name_of(block.dir()) == Some(asked) && block.meta().ulid == asked
            };
            view.blocks.iter().find(is_asked)
        };
        state.postponed.retain(|block| find(block).is_some());
        let mut asked = self.merging.asked.lock();
        asked.retain(|block| find(*block).is_some() && !state.failed.contains_key(block));
        let next = asked.iter().find(|block| !state.postponed.holds(**block));
        next.and_then(|block| find(*block)).cloned().into_iter().collect()
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
        state.postponed.retain(|name| blocks.iter().any(|block| block.meta().ulid == name));
        let judged = blocks.iter().map(|block| {
            let BlockMeta { ulid, compaction, .. } = block.meta();
            let is_failed = compaction.failed
                || state.failed.contains_key(ulid)
                || state.postponed.holds(*ulid);
            PlannedBlock { is_failed, ..PlannedBlock::of(block) }
        });
        let judged: Vec<_> = judged.collect();
        let planned = plan(&judged, &self.merging.ranges);
        if planned.is_empty() && state.postponed.is_empty() {
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

    fn work(&self, job: Option<Job<'_>>) -> Result<Turn, MergeError> {
        let Some(job) = job else { return Ok(Turn::Idle) };
        let err = match self.run(&job) {
            Ok(true) => {
                self.remove_replaced();
                return Ok(Turn::Made);
            }
            Ok(false) => return Ok(Turn::GivenUp),
            Err(err) => err,
        };
        match err.outlook() {
            Outlook::Interrupted => return Err(err),
            Outlook::OfDisk => {
                self.merging.state.lock().postponed.add(job.names());
                return Err(err);
            }
            Outlook::OfBlocks => {
                let retry_in = self.merging.state.lock().postponed.add(job.names());
                let (dir, blocks, err) = (self.dir.display(), tell(&job), chain(&err));
                let message = "blocks cannot be merged or rewritten now";
                tracing::error!(%dir, ?blocks, err, ?retry_in, "{message}");
            }
            Outlook::Never | Outlook::NotByThisVersion => self.note_failed(&job, &err),
        }
        Ok(Turn::GivenUp)
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
                .and_then(|written| self.put_in_place(ulid, parents, written))
        };
        let is_done = match done {
            Ok(is_done) => is_done,
            // It was deleted while it was to be read.
            Err(MergeError::Read(_)) if !self.view.load().has_all(parents) => false,
            Err(err) => {
                if err.outlook() != Outlook::Interrupted {
                    metrics.failed.inc();
                }
                return Err(err);
            }
        };
        if is_done {
            metrics.done.inc();
            let (dir, duration) = (self.dir.display(), begun.elapsed());
            let (sources, count) = (tell(job), parents.len());
            tracing::info!(%dir, count, %ulid, ?sources, ?duration, "compact blocks");
        }
        Ok(is_done)
    }

    /// Everything of the new block but its name.
    fn write_child(
        &self,
        ulid: Ulid,
        parents: &[Arc<Block>],
        made: Made,
    ) -> Result<Written<'_>, MergeError> {
        let disk = &*self.env.disk;
        let cache = PageCache::new(WHOLE_CACHE_BYTES);
        // Anew, so that what was deleted since is heeded, too.
        let open = |parent: &Arc<Block>| Block::open(disk, parent.dir(), cache.clone());
        let inputs = parents.iter().map(|parent| open(parent).map(Arc::new));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        self.check_room(&inputs)?;
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
        let mut writer = BlockWriter::create(disk, &self.dir, ulid)?;
        merge(&inputs, &mut writer)?;
        let complete = writer.complete(min_time, max_time, compaction)?;
        let child = complete.map(|complete| self.read_child(complete)).transpose()?;
        Ok(Written { inputs, child })
    }

    /// Opens the new block, and reads it as a whole, by another cache than that of queries.
    fn read_child<'d>(&self, complete: CompleteBlock<'d>) -> Result<Child<'d>, MergeError> {
        let verified =
            complete.open(PageCache::new(WHOLE_CACHE_BYTES)).and_then(|block| block.verify());
        let opened = match verified {
            Ok(Verified::Interrupted) => return Err(MergeError::Interrupted),
            Ok(Verified::Whole { .. }) => complete.open(self.env.block_cache.clone()),
            Err(err) => Err(err),
        };
        match opened {
            Ok(block) => Ok(Child { complete, block }),
            // No fault of those that it was made from: the disk does not hold what was written.
            Err(err) => {
                let source = io::Error::new(io::ErrorKind::InvalidData, err);
                Err(WriteError::Io { path: self.dir.clone(), source }.into())
            }
        }
    }

    /// Whether the disk has room for the new block beside its parents, and something left then for what
    /// others write. Where it cannot be said how much there is it is tried. A block of which nothing is
    /// left needs none.
    fn check_room(&self, inputs: &[Arc<Block>]) -> Result<(), MergeError> {
        let needed: u64 = inputs.iter().map(|input| input.bytes()).sum();
        let reserve = (SEGMENTS_LEFT * self.merging.segment_bytes).max(needed / SHARE_LEFT);
        match self.env.disk.free_bytes(&self.dir) {
            Ok(free) if free < needed.saturating_add(reserve) && is_anything_left(inputs)? => {
                Err(MergeError::NoRoom { needed, reserve, free })
            }
            _ => Ok(()),
        }
    }

    /// Lets the new block, if there is one, take the place of its parents. Whether it has it.
    fn put_in_place(
        &self,
        ulid: Ulid,
        parents: &[Arc<Block>],
        Written { inputs, child }: Written<'_>,
    ) -> Result<bool, MergeError> {
        let mut cutting = self.cutting.lock();
        if !self.is_wanted(parents, &inputs)? {
            drop(cutting);
            child.map_or(Ok(()), |child| child.complete.abort())?;
            return Ok(false);
        }
        self.withdraw_left()?;
        let (replacing, name) = (&self.merging.replacing, child.as_ref().map(|_| ulid));
        replacing.begin(parents, name);
        let child = child.map(|child| self.name(ulid, child)).transpose();
        let child = child.inspect_err(|_| replacing.give_up(parents))?;
        let before = self.view.load_full();
        let view = before.replacing(parents, child);
        cutting.note_older(&before, &view);
        self.view.store(Arc::new(view));
        replacing.done(parents, name);
        self.unsettled.lock().remove(&ulid);
        Ok(true)
    }

    /// Whether the parents are read still, and nothing was deleted of them since they were read for the
    /// new block.
    fn is_wanted(&self, parents: &[Arc<Block>], inputs: &[Arc<Block>]) -> Result<bool, ReadError> {
        if self.merging.state.lock().is_closed || !self.view.load().has_all(parents) {
            return Ok(false);
        }
        for input in inputs {
            if Tombstones::read(&*self.env.disk, input.dir())? != *input.tombstones() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn name(&self, ulid: Ulid, child: Child<'_>) -> Result<Block, MergeError> {
        self.unsettled.lock().insert(ulid);
        let Child { complete, block } = child;
        match complete.name() {
            Ok(_) => Ok(block),
            Err(err) => {
                if let Err(left) = self.withdraw(ulid) {
                    let left = chain(&left);
                    tracing::warn!(block = %ulid, left, "a block that failed cannot be taken away");
                }
                Err(err.into())
            }
        }
    }

    /// Lets no block get a name or lose it from now on: the directory may be another's then.
    pub(super) fn stop_merging(&self) {
        let _cutting = self.cutting.lock();
        self.merging.close();
    }

    /// Has it not tried again: not as long as the process runs, and if it would be in vain for anybody,
    /// never, as Prometheus notes it.
    fn note_failed(&self, job: &Job<'_>, err: &MergeError) {
        let is_for_good = err.outlook() == Outlook::Never;
        let (dir, blocks, err) = (self.dir.display(), tell(job), chain(err));
        let damage = is_for_good.then(|| err.clone());
        let failed = job.names().into_iter().map(|block| (block, damage.clone()));
        self.merging.state.lock().failed.extend(failed);
        match job.made {
            Made::Rewritten => {
                let message = "a block with tombstones cannot be rewritten, so it is not shipped";
                tracing::error!(%dir, ?blocks, err, "{message}");
            }
            Made::Merged => {
                tracing::error!(%dir, ?blocks, err, "blocks cannot be merged, and stay as they are");
                if is_for_good {
                    self.mark_failed(&job.parents);
                }
            }
        }
    }

    /// In the blocks' manifests.
    fn mark_failed(&self, parents: &[Arc<Block>]) {
        let _cutting = self.cutting.lock();
        if self.merging.state.lock().is_closed {
            return;
        }
        for parent in parents {
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

fn tell(job: &Job<'_>) -> Vec<String> {
    job.names().iter().map(Ulid::to_string).collect()
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
