//! Which blocks are kept no longer, by age and by size, as Prometheus judges it; and taking them away.
//!
//! Ages are measured between blocks and not by the clock, so that neither a clock that jumps nor a
//! sample of the future deletes anything: from the newest block's end, or the time at which it was made
//! if it claims to end later, back to a block's own end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, read_file, replace_file};
use crate::error::chain;
use crate::metrics::{Counter, Registry};
use crate::model::Timestamp;
use crate::tsdb::block::Block;
use crate::tsdb::block::removal::take_name;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::blocks::{View, effective_end, name_of};
use crate::tsdb::cut::Cutting;
use crate::tsdb::error::WriteError;
use crate::tsdb::{Db, bytes_below};

/// How long and how much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// `--tsdb.retention`, in milliseconds; `None` for ever.
    pub age_max: Option<i64>,
    /// `--tsdb.max-retention-bytes`: of a database, with what its head has on the disk; `None` for as
    /// many as there are.
    pub bytes_max: Option<u64>,
}

/// What is kept no longer, by place.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expired {
    by_age: Vec<usize>,
    by_size: Vec<usize>,
}

/// A block as it is judged.
#[derive(Clone, Copy, Debug)]
struct Judged {
    max_time: Timestamp,
    /// Where it ends for what it says of others' age.
    effective_end: Timestamp,
    bytes: u64,
}

impl Retention {
    /// Of a database whose head has `head_bytes` on the disk.
    fn judge(self, blocks: &[Judged], head_bytes: u64) -> Expired {
        // Newest first; of two that end together the one that was made first is the older.
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_by_key(|i| (std::cmp::Reverse(blocks[*i].max_time), std::cmp::Reverse(*i)));
        let newest = blocks.iter().map(|block| block.effective_end).max();
        let is_too_old = |i: usize| {
            let age = newest.map_or(0, |newest| newest.saturating_sub(blocks[i].max_time));
            self.age_max.is_some_and(|age_max| age >= age_max)
        };
        // All behind the first that is too old are older; the newest stays whatever it claims.
        let by_age = order.iter().skip(1).position(|i| is_too_old(*i));
        let by_age = by_age.map_or(Vec::new(), |first| order.split_off(first + 1));
        let mut bytes = head_bytes;
        let by_size = order.iter().position(|i| {
            bytes = bytes.saturating_add(blocks[*i].bytes);
            self.bytes_max.is_some_and(|bytes_max| bytes > bytes_max)
        });
        let by_size = by_size.map_or(Vec::new(), |first| order.split_off(first));
        Expired { by_age, by_size }
    }
}

pub(super) struct RetentionMetrics {
    by_age: Counter,
    by_size: Counter,
}

impl RetentionMetrics {
    pub(super) fn new(retention: Retention, registry: &Registry, tenant: &str) -> RetentionMetrics {
        let counter = |name, help| registry.counter_vec(name, help, &["tenant"]).with(&[tenant]);
        let gauge = |name, help| registry.gauge_vec(name, help, &["tenant"]).with(&[tenant]);
        gauge("prometheus_tsdb_retention_limit_seconds", "How long to retain samples in storage.")
            .set(retention.age_max.map_or(0.0, |millis| millis as f64 / 1000.0));
        gauge(
            "prometheus_tsdb_retention_limit_bytes",
            "Max number of bytes to be retained in the tsdb blocks, configured 0 means disabled",
        )
        .set(retention.bytes_max.unwrap_or(0) as f64);
        RetentionMetrics {
            by_age: counter(
                "prometheus_tsdb_time_retentions_total",
                "The number of times that blocks were deleted because the maximum time limit was \
                 exceeded.",
            ),
            by_size: counter(
                "prometheus_tsdb_size_retentions_total",
                "The number of times that blocks were deleted because the maximum number of bytes was \
                 exceeded.",
            ),
        }
    }
}

impl Db {
    /// Deletes the blocks that are kept no longer, of those that `may_go`. How many went. Blocks on
    /// the disk.
    pub fn drop_expired(&self, may_go: impl Fn(Ulid) -> bool) -> Result<usize, WriteError> {
        let mut cutting = self.cutting.lock();
        let view = self.view.load_full();
        let judged: Vec<_> = view.blocks.iter().map(judged).collect();
        let head_bytes = if self.retention.bytes_max.is_some() { self.head_bytes() } else { 0 };
        let Expired { by_age, by_size } = self.retention.judge(&judged, head_bytes);
        let (mut gone, mut failed) = (0, None);
        for (expired, counter) in
            [(by_age, &self.retention_metrics.by_age), (by_size, &self.retention_metrics.by_size)]
        {
            let going: Vec<_> = expired
                .into_iter()
                .map(|i| view.blocks[i].clone())
                .filter(|block| may_go(block.meta().ulid))
                .collect();
            if going.is_empty() {
                continue;
            }
            counter.inc();
            // What they shut out stays out without them.
            let stays = |block: &Arc<Block>| !going.iter().any(|one| Arc::ptr_eq(one, block));
            self.record_floor(&self.view.load(), stays)?;
            for block in going {
                match self.delete(&mut cutting, &block) {
                    Ok(()) => gone += 1,
                    Err(err) => failed = Some(err),
                }
            }
        }
        failed.map_or(Ok(gone), Err)
    }

    /// Records the floor. A full disk has no room for a file, and blocks that go are what helps it:
    /// that the blocks that stay say it to a start is enough then.
    pub(super) fn record_floor(
        &self,
        view: &View,
        stays: impl Fn(&Arc<Block>) -> bool,
    ) -> Result<(), WriteError> {
        let metas = view.blocks.iter().filter(|block| stays(block)).map(|block| block.meta());
        let ends = metas.filter(|meta| !meta.is_partial());
        let is_said = ends.map(|meta| effective_end(meta, meta.ulid)).max() >= Some(view.floor);
        // Who has an older view is not to put its floor in the place of a later one.
        let _recording = self.recording.lock();
        let disk = &*self.env.disk;
        if read_floor(disk, &self.dir).is_ok_and(|recorded| recorded >= view.floor) {
            return Ok(());
        }
        match write_floor(disk, &self.dir, view.floor) {
            Err(err) if is_said => {
                tracing::warn!(
                    err = chain(&err),
                    "the floor of a head is told by its blocks alone"
                );
                Ok(())
            }
            written => written,
        }
    }

    /// Bytes of what the head has on the disk: all files of the log and its checkpoint, of the log of
    /// out-of-order samples and of head chunks, as Prometheus counts them.
    fn head_bytes(&self) -> u64 {
        let bytes_in = |name| bytes_below(&*self.env.disk, &self.dir.join(name));
        ["wal", "wbl", "chunks_head"].map(bytes_in).into_iter().sum()
    }

    /// Readers that have it open read on.
    fn delete(&self, cutting: &mut Cutting, block: &Arc<Block>) -> Result<(), WriteError> {
        let disk = &*self.env.disk;
        // Without it a start would read them.
        if let Some(name) = name_of(block.dir()) {
            self.remove_replaced_by(name)?;
        }
        let nameless = match take_name(disk, block.dir()) {
            Ok(nameless) => Some(nameless),
            // Somebody was quicker.
            Err(WriteError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(err) => return Err(err),
        };
        let before = self.view.load_full();
        let others = before.blocks.iter().filter(|one| !Arc::ptr_eq(one, block));
        let view = View { blocks: others.cloned().collect(), floor: before.floor };
        // Its readers look for things in the head as well.
        cutting.note_older(&before, &view);
        self.view.store(Arc::new(view));
        let meta = block.meta();
        let (ulid, min_time, max_time) = (meta.ulid, meta.min_time, meta.max_time);
        tracing::info!(block = %ulid, min_time, max_time, "deleted a block that is kept no longer");
        nameless.map_or(Ok(()), |nameless| nameless.remove(disk))
    }
}

fn judged(block: &Arc<Block>) -> Judged {
    let meta = block.meta();
    let effective_end = effective_end(meta, meta.ulid);
    Judged { max_time: meta.max_time, effective_end, bytes: block.bytes() }
}

/// The file that says from when on the head's time begins if no block says so.
pub(super) const FLOOR_FILE: &str = "ringest.floor";
/// A number with its sign.
const FLOOR_BYTES_MAX: u64 = 32;

pub(super) fn write_floor(disk: &dyn Disk, dir: &Path, floor: Timestamp) -> Result<(), WriteError> {
    let path = dir.join(FLOOR_FILE);
    replace_file(disk, &path, format!("{floor}\n").as_bytes()).map_err(WriteError::io(&path))
}

/// The floor that was recorded before blocks were deleted; the smallest time if there is none.
pub(super) fn read_floor(disk: &dyn Disk, dir: &Path) -> io::Result<Timestamp> {
    let path: PathBuf = dir.join(FLOOR_FILE);
    let bytes = match read_file(disk, &path, FLOOR_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Timestamp::MIN),
        Err(err) if err.kind() == io::ErrorKind::InvalidData => Vec::new(),
        Err(err) => return Err(err),
    };
    let floor = str::from_utf8(&bytes).ok().and_then(|text| text.trim_ascii().parse().ok());
    Ok(floor.unwrap_or_else(|| {
        // Samples that deleted blocks had may be read from the log once more, and cut again.
        let file = path.display();
        tracing::error!(%file, "it holds no time; the floor is that of the blocks");
        Timestamp::MIN
    }))
}

#[cfg(test)]
mod tests;
