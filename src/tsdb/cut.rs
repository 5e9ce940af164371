//! Cutting the head into blocks, in an order in which every sample is at every moment either in the
//! head or in a block, for whoever reads and for whoever starts after a crash:
//!
//! 1. the floor rises to the block's end, so that no more samples come there;
//! 2. the block is written under a temporary name, synced, and given its own;
//! 3. readers that begin from now on see the block, and the head from the floor on;
//! 4. when no reader is left that began before, the head drops what the block has, and forgets the
//!    series that have nothing else;
//! 5. the log is cut.
//!
//! If the options say so, the log also loses what [sealed](super::head_chunks::seal) files of head
//! chunks have, whenever that is most of it.
//!
//! A process that ends before the block has its name starts with all of it in the log, and after that
//! with a floor below which the log is not replayed. A cut that fails when the block has its name takes
//! the block away again; until that or 3 is done the block is not settled, and nobody else heeds it.

mod log;

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::disk::lacks_descriptors;
use crate::error::chain;
use crate::metrics::{Counter, Gauge, Registry};
use crate::model::Timestamp;
use crate::model::stop;
use crate::tsdb::Db;
use crate::tsdb::block::Block;
use crate::tsdb::block::meta::Compaction;
use crate::tsdb::block::removal::take_name;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::block::writer::BlockWriter;
use crate::tsdb::blocks::View;
use crate::tsdb::cut::log::Truncation;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::head::catalog::Catalog;
use crate::tsdb::head::cut::Span;
use crate::tsdb::head::gc::Dropped;
use crate::tsdb::head::replay::ReplayReport;
use crate::tsdb::head_chunks::HEAD_CHUNKS_DIR;
use crate::tsdb::options::DbOptions;
use crate::tsdb::wal::SegmentIndex;

/// Why a head was not cut. It is as it was, and may be cut later.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    #[error(transparent)]
    Write(WriteError),
    /// What was written cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The work was asked to stop.
    #[error("cutting was interrupted")]
    Interrupted,
}

impl From<WriteError> for CutError {
    fn from(err: WriteError) -> CutError {
        match err {
            WriteError::Interrupted => CutError::Interrupted,
            err => CutError::Write(err),
        }
    }
}

impl CutError {
    /// Whether a file of the head's chunks is damaged or cannot be read. The log has its samples,
    /// or it costs these.
    pub fn is_of_head_chunks(&self) -> bool {
        let file = match self {
            CutError::Write(WriteError::Read(ReadError::Corrupt(corruption))) => &corruption.file,
            CutError::Write(WriteError::Read(ReadError::Io { path, source }))
                if !lacks_descriptors(source) =>
            {
                path
            }
            _ => return false,
        };
        let dir = file.parent().and_then(|dir| dir.file_name());
        dir.is_some_and(|dir| dir == HEAD_CHUNKS_DIR)
    }
}

/// What is known about cutting between two cuts.
pub struct Cutting {
    range: i64,
    /// Views of readers that look for things in the head that blocks have by now.
    older_views: Vec<Weak<View>>,
    /// What the head has to drop once nobody holds these: all before this time.
    to_drop: Option<Timestamp>,
    truncation: Truncation,
    /// What forgotten series were called in, until nobody else holds it.
    older_catalogs: Vec<Arc<Catalog>>,
    /// When series that were made in vain were looked for last.
    looked_for_refused: Option<Instant>,
    metrics: CutMetrics,
}

/// Series that were made in vain are not looked for more often: a disk may be full for long.
const REFUSED_EVERY: Duration = Duration::from_secs(60);

struct CutMetrics {
    triggered: Counter,
    truncations: Counter,
    blocks_loaded: Gauge,
}

impl Cutting {
    pub(super) fn new(
        options: &DbOptions,
        registry: &Registry,
        tenant: &str,
        block_count: usize,
    ) -> Cutting {
        let counter = |name, help| registry.counter_vec(name, help, &["tenant"]).with(&[tenant]);
        let gauge = |name, help| registry.gauge_vec(name, help, &["tenant"]).with(&[tenant]);
        let metrics = CutMetrics {
            triggered: counter(
                "prometheus_tsdb_compactions_triggered_total",
                "Total number of triggered compactions for the partition.",
            ),
            truncations: counter(
                "prometheus_tsdb_head_truncations_total",
                "Total number of head truncations attempted.",
            ),
            blocks_loaded: gauge(
                "prometheus_tsdb_blocks_loaded",
                "Number of currently loaded data blocks",
            ),
        };
        metrics.blocks_loaded.set(block_count as f64);
        Cutting {
            range: options.cut_range,
            older_views: Vec::new(),
            to_drop: None,
            truncation: Truncation::new(options),
            older_catalogs: Vec::new(),
            looked_for_refused: None,
            metrics,
        }
    }

    /// Heeds what a replay found. The log goes on with a new segment.
    pub(super) fn heed(
        &mut self,
        replay: &ReplayReport,
        (floor, newest): (Timestamp, Timestamp),
        segment: SegmentIndex,
    ) {
        self.truncation.heed(replay, (floor, newest), segment);
    }

    /// The head counts what it stores from here on.
    pub(super) fn count_from(&mut self, stored: u64) {
        self.truncation.count_from(stored);
    }

    /// So many samples more are in files of head chunks.
    pub(super) fn note_in_files(&mut self, samples: u64) {
        self.truncation.note_in_files(samples);
    }

    /// The log has records of types that nothing here knows.
    pub(super) fn note_unknown(&mut self) {
        self.truncation.note_unknown();
    }

    /// Whether there is nothing left to drop or to truncate, and the log has nothing that no block
    /// takes.
    pub(super) fn is_at_rest(&self) -> bool {
        self.to_drop.is_none() && self.truncation.is_at_rest()
    }

    /// There is a log of out-of-order samples, whose series are named in the log alone.
    pub(super) fn keep_log(&mut self) {
        self.truncation.keep_all();
    }

    pub(super) fn note_older(&mut self, view: &Arc<View>, now: &View) {
        self.older_views.push(Arc::downgrade(view));
        self.metrics.blocks_loaded.set(now.blocks.len() as f64);
    }
}

impl Db {
    /// Cuts what is due of the head, by Thanos' clock: when the oldest sample is older than one and a
    /// half ranges, the rest of the range that it is in, and so on while the head spans more than that.
    /// How many blocks were made. Blocks on the disk, and may take long.
    pub fn cut_due(&self) -> Result<usize, CutError> {
        self.cut_blocks(|cutting| self.cut_due_of(cutting))
    }

    fn cut_due_of(&self, cutting: &mut Cutting) -> Result<usize, CutError> {
        // What is cut already and still there would be looked through once more.
        self.drop_from_head(cutting);
        if cutting.to_drop.is_some() {
            return Ok(0);
        }
        let patience = cutting.range.saturating_mul(3) / 2;
        let is_old = |oldest| self.env.clock.now().saturating_sub(oldest) > patience;
        if !self.head.time_range().is_some_and(|(oldest, _)| is_old(oldest)) {
            return Ok(0);
        }
        cutting.metrics.triggered.inc();
        let mut made = 0;
        while let Some((oldest, newest)) = self.head_span()
            && (made == 0 || newest.saturating_sub(oldest) > patience)
        {
            let end = range_end(oldest, cutting.range);
            if end > self.env.clock.now() {
                break;
            }
            made += usize::from(self.cut(cutting, Span { start: oldest, end })?);
            if cutting.to_drop.is_some() {
                break;
            }
        }
        Ok(made)
    }

    /// Cuts all of the head that is not later than now, in blocks of a range each; the rest stays.
    pub fn flush(&self) -> Result<usize, CutError> {
        self.cut_blocks(|cutting| self.flush_of(cutting))
    }

    fn flush_of(&self, cutting: &mut Cutting) -> Result<usize, CutError> {
        let mut made = 0;
        while let Some((oldest, newest)) = self.head_span() {
            let now = self.env.clock.now();
            let end = range_end(oldest, cutting.range).min(newest.saturating_add(1)).min(now);
            if end <= oldest {
                break;
            }
            let has_block = self.cut(cutting, Span { start: oldest, end })?;
            made += usize::from(has_block);
            // What the head has not dropped yet hides where its next sample is.
            if !has_block && cutting.to_drop.is_some() {
                break;
            }
        }
        Ok(made)
    }

    /// Cuts what no sender can add to any more: all that is older than what is taken now, which stays
    /// so. For heads whose series are written elsewhere from now on.
    pub fn cut_settled(&self) -> Result<usize, CutError> {
        self.cut_blocks(|cutting| self.cut_settled_of(cutting))
    }

    fn cut_settled_of(&self, cutting: &mut Cutting) -> Result<usize, CutError> {
        let mut made = 0;
        self.drop_from_head(cutting);
        if cutting.to_drop.is_some() {
            return Ok(0);
        }
        let settled = self.head.oldest_taken().unwrap_or(Timestamp::MIN);
        while let Some((oldest, _)) = self.head_span() {
            let end = range_end(oldest, cutting.range).min(settled);
            if end <= oldest {
                break;
            }
            made += usize::from(self.cut(cutting, Span { start: oldest, end })?);
            if cutting.to_drop.is_some() {
                break;
            }
        }
        Ok(made)
    }

    /// Cuts, and then cuts the log, once for all blocks: each time two thirds of it are read.
    fn cut_blocks(
        &self,
        cut: impl FnOnce(&mut Cutting) -> Result<usize, CutError>,
    ) -> Result<usize, CutError> {
        let mut cutting = self.cutting.lock();
        let made = cut(&mut cutting);
        self.truncate_log(&mut cutting.truncation);
        made
    }

    /// Times of the oldest and newest sample that only the head has.
    fn head_span(&self) -> Option<(Timestamp, Timestamp)> {
        let (oldest, newest) = self.head.time_range()?;
        let floor = self.view.load().floor;
        (newest >= floor).then_some((oldest.max(floor), newest))
    }

    /// Whether a block was made: of no samples there is none.
    fn cut(&self, cutting: &mut Cutting, span: Span) -> Result<bool, CutError> {
        if stop::is_asked() {
            return Err(CutError::Interrupted);
        }
        self.withdraw_left()?;
        let ulid = self.new_ulid_at(u64::try_from(self.env.clock.now()).unwrap_or(0))?;
        let before = self.head.floor();
        self.head.raise_floor(span.end);
        self.unsettled.lock().insert(ulid);
        let written = {
            let _writing = self.merging.metrics().begin();
            self.write_block(ulid, span)
        };
        match written {
            Ok(block) => {
                self.merging.metrics().done.inc();
                let has_block = block.is_some();
                self.replace_view(cutting, block, span.end);
                self.unsettled.lock().remove(&ulid);
                self.drop_from_head(cutting);
                Ok(has_block)
            }
            Err(err) => {
                if !matches!(err, CutError::Interrupted) {
                    self.merging.metrics().failed.inc();
                }
                match self.withdraw(ulid) {
                    Ok(()) => self.head.lower_floor(before),
                    Err(left) => {
                        let left = chain(&left);
                        tracing::warn!(block = %ulid, left, "a block that failed cannot be taken away");
                    }
                }
                Err(err)
            }
        }
    }

    /// A name for a block that says it was made at this time.
    pub(super) fn new_ulid_at(&self, millis: u64) -> Result<Ulid, WriteError> {
        let mut random = [0; 16];
        let filled = getrandom::fill(&mut random).map_err(std::io::Error::other);
        filled.map_err(WriteError::io(&self.dir))?;
        Ok(Ulid::new(millis, u128::from_le_bytes(random)))
    }

    fn write_block(&self, ulid: Ulid, span: Span) -> Result<Option<Block>, CutError> {
        let disk = &*self.env.disk;
        let mut writer = BlockWriter::create(disk, &self.dir, ulid)?;
        match self.head.write_block(&mut writer, span) {
            Ok(true) => {}
            Ok(false) => return Err(CutError::Interrupted),
            Err(err) => return Err(err.into()),
        }
        let Some(meta) = writer.finish(span.start, span.end, Compaction::of_head(ulid))? else {
            return Ok(None);
        };
        let dir = self.dir.join(ulid.to_string());
        Ok(Some(Block::open_as(disk, &dir, meta, self.env.block_cache.clone())?))
    }

    /// Whether a block in the database's directory stays there. One whose cut is not done or has
    /// failed does not, and what is in it may be cut once more; nor does one that another has taken the
    /// place of, nor, maybe, one that was found beside what it was made from. Nobody is to hand it on.
    pub fn is_settled(&self, block: Ulid) -> bool {
        !self.unsettled.lock().contains(&block) && !self.merging.is_in_doubt(block)
    }

    /// Takes away a block that failed late, so that no start finds it. After an error one may, and the
    /// floor must stay where it would be then.
    pub(super) fn withdraw(&self, ulid: Ulid) -> Result<(), WriteError> {
        let disk = &*self.env.disk;
        match take_name(disk, &self.dir.join(ulid.to_string())) {
            Ok(nameless) => {
                if let Err(err) = nameless.remove(disk) {
                    tracing::warn!(%err, "a block that was not finished stays until a restart");
                }
            }
            // It never had its name, or has lost it to a try that could not be synced.
            Err(WriteError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                disk.sync_dir(&self.dir).map_err(WriteError::io(&self.dir))?;
            }
            Err(err) => return Err(err),
        }
        self.unsettled.lock().remove(&ulid);
        Ok(())
    }

    /// Takes away what failed cuts have left: behind the next one its samples would be there twice.
    pub(super) fn withdraw_left(&self) -> Result<(), WriteError> {
        let left: Vec<Ulid> = self.unsettled.lock().iter().copied().collect();
        left.into_iter().try_for_each(|ulid| self.withdraw(ulid))
    }

    /// Lets readers that begin from now on see the block, and the head behind it.
    fn replace_view(&self, cutting: &mut Cutting, block: Option<Block>, floor: Timestamp) {
        let before = self.view.load_full();
        let mut view = match block {
            Some(block) => before.with(block),
            None => View { blocks: before.blocks.clone(), floor: before.floor },
        };
        view.floor = view.floor.max(floor);
        cutting.note_older(&before, &view);
        self.view.store(Arc::new(view));
        cutting.to_drop = Some(floor);
    }

    /// Lets the head drop what blocks have, unless a reader still looks for it there; whether there is
    /// nothing left to drop. Does not wait. Also forgets series that were made in vain.
    pub fn drop_cut(&self) -> bool {
        let mut cutting = self.cutting.lock();
        cutting.older_catalogs.retain(|catalog| Arc::strong_count(catalog) > 1);
        if cutting.looked_for_refused.is_none_or(|at| at.elapsed() >= REFUSED_EVERY) {
            cutting.looked_for_refused = Some(Instant::now());
            let dropped = self.head.forget_refused();
            cutting.note_forgotten(dropped);
        }
        self.drop_cut_of(&mut cutting)
    }

    /// The same, and cuts the log behind it.
    fn drop_cut_of(&self, cutting: &mut Cutting) -> bool {
        let is_dropped = self.drop_from_head(cutting);
        if is_dropped {
            self.truncate_log(&mut cutting.truncation);
        }
        is_dropped
    }

    fn drop_from_head(&self, cutting: &mut Cutting) -> bool {
        cutting.older_views.retain(|view| view.strong_count() > 0);
        if !cutting.older_views.is_empty() {
            return false;
        }
        if let Some(mint) = cutting.to_drop.take() {
            cutting.metrics.truncations.inc();
            let dropped = self.head.drop_before(mint);
            cutting.note_forgotten(dropped);
            cutting.truncation.note_dropped(mint);
        }
        true
    }
}

impl Cutting {
    fn note_forgotten(&mut self, dropped: Dropped) {
        let Dropped { series, last_segment, catalog, .. } = dropped;
        self.truncation.note_forgotten(series, last_segment);
        self.older_catalogs.extend(catalog);
    }
}

/// End of the range that a time falls into.
fn range_end(t: Timestamp, range: i64) -> Timestamp {
    t.saturating_sub(t.rem_euclid(range)).saturating_add(range)
}

#[cfg(test)]
pub(super) mod tests;
