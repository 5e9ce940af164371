//! The blocks in a tenant's directory that are not in the record yet. All of it blocks on the disk.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::shipper::ShippedDb;
use crate::shipper::plan::LocalBlock;
use crate::tsdb::block::Block;
use crate::tsdb::block::meta::BlockMeta;
use crate::tsdb::block::tombstones::Tombstones;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::block::verify::{Verified, WHOLE_CACHE_BYTES};
use crate::tsdb::error::ReadError;
use crate::tsdb::file::PageCache;

/// Why a block cannot be shipped as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{}: unexpected meta file version {version}", dir.display())]
    Version { dir: PathBuf, version: i64 },
    #[error("{}: its manifest is that of {ulid}", dir.display())]
    Ulid { dir: PathBuf, ulid: Ulid },
}

/// What is in a tenant's directory.
#[derive(Default)]
pub(super) struct Found {
    /// Of the record those that are still here.
    pub(super) recorded: BTreeSet<Ulid>,
    pub(super) blocks: Vec<(LocalBlock, BlockMeta)>,
    pub(super) damaged: Vec<(Ulid, Damage)>,
}

/// Looks through the directory. Only the blocks that are not in the record are read, of them those that
/// are settled; an error is what may pass.
pub(super) fn find(
    disk: &dyn Disk,
    dir: &Path,
    record: &BTreeSet<Ulid>,
    db: &dyn ShippedDb,
) -> Result<Found, ReadError> {
    let mut found = Found::default();
    for entry in disk.list(dir).map_err(ReadError::io(dir))? {
        let name = entry.name.to_str().unwrap_or_default();
        let Some(ulid) = name.parse::<Ulid>().ok().filter(|_| entry.is_dir) else { continue };
        if record.contains(&ulid) {
            found.recorded.insert(ulid);
            continue;
        }
        // Asked when its name was seen: by now it is one that stays, one that does not, or gone.
        if !db.is_settled(ulid) {
            continue;
        }
        let block = dir.join(&entry.name);
        match read(disk, &block, ulid) {
            Ok(read) => found.blocks.push(read),
            Err(_) if is_gone(disk, &block) => {}
            Err(Damage::Read(ReadError::Io { path, source })) if may_pass(&source) => {
                return Err(ReadError::Io { path, source });
            }
            Err(damage) => found.damaged.push((ulid, damage)),
        }
    }
    Ok(found)
}

fn read(disk: &dyn Disk, dir: &Path, ulid: Ulid) -> Result<(LocalBlock, BlockMeta), Damage> {
    let meta = BlockMeta::read(disk, dir)?;
    // Thanos takes no other.
    if meta.version != 1 {
        return Err(Damage::Version { dir: dir.to_owned(), version: meta.version });
    }
    if meta.ulid != ulid {
        return Err(Damage::Ulid { dir: dir.to_owned(), ulid: meta.ulid });
    }
    let block = LocalBlock {
        ulid,
        min_time: meta.min_time,
        samples: meta.stats.num_samples,
        level: meta.compaction.level,
        has_tombstones: !Tombstones::read(disk, dir)?.is_empty(),
    };
    Ok((block, meta))
}

/// Whether somebody has taken the block away meanwhile.
fn is_gone(disk: &dyn Disk, dir: &Path) -> bool {
    matches!(disk.list(dir), Err(err) if err.kind() == io::ErrorKind::NotFound)
}

/// A file that is missing in a block is missing for good.
fn may_pass(err: &io::Error) -> bool {
    !matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        && err.kind() != io::ErrorKind::InvalidData
}

/// Numbers of the encodings that Thanos' store gateway reads: floats and both kinds of histograms.
const READ_BY_THANOS: std::ops::RangeInclusive<u8> = 1..=3;

/// What came of reading a block as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// Thanos can read all of it.
    Readable,
    OfNewerEncoding,
    /// The work was asked to stop.
    Interrupted,
    /// Somebody has taken it away meanwhile.
    Gone,
}

/// Reads a block as it will be read from the bucket: what finds things in it, and every chunk.
pub(super) fn check(disk: &dyn Disk, dir: &Path) -> Result<Checked, ReadError> {
    let read = || Block::open(disk, dir, PageCache::new(WHOLE_CACHE_BYTES))?.verify();
    match read() {
        Ok(Verified::Whole { encodings })
            if encodings.iter().all(|encoding| READ_BY_THANOS.contains(encoding)) =>
        {
            Ok(Checked::Readable)
        }
        Ok(Verified::Whole { .. }) => Ok(Checked::OfNewerEncoding),
        Ok(Verified::Interrupted) => Ok(Checked::Interrupted),
        Err(_) if is_gone(disk, dir) => Ok(Checked::Gone),
        Err(err) => Err(err),
    }
}

/// Whether a block that cannot be read will never be.
pub(super) fn is_damage(err: &ReadError) -> bool {
    !matches!(err, ReadError::Io { source, .. } if may_pass(source))
}
