//! Writing a damaged segment or checkpoint anew, with every record that can be read.

use std::io;
use std::path::{Path, PathBuf};

use super::{DAMAGED_PREFIX, DAMAGED_SUFFIX, REWRITE_PREFIX, REWRITE_SUFFIX, free_name, lost_in};
use crate::disk::Disk;
use crate::tsdb::wal::Compression;
use crate::tsdb::wal::names::{LogFile, Names};
use crate::tsdb::wal::reader::{Found, SegmentReader};
use crate::tsdb::wal::segment::{FrameCounts, Framer, SegmentIndex, flags_of};
use crate::tsdb::wal::segment_path;

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1024 * 1024;

pub(in crate::tsdb::wal) fn rewrite_path(dir: &Path, segment: SegmentIndex) -> PathBuf {
    dir.join(format!("{segment}{REWRITE_SUFFIX}"))
}

/// Replaces a segment by one that holds its readable records, in order and stored as they were.
///
/// The rewrite is durable before the original loses its name. A crash between the two renames
/// leaves a rewrite without a segment, which the next opening completes. How many series records
/// were put back from their copies.
pub(super) fn rewrite(
    disk: &dyn Disk,
    dir: &Path,
    segment: SegmentIndex,
    names: Option<&mut Names>,
) -> io::Result<u64> {
    let path = segment_path(dir, segment);
    let rewrite = rewrite_path(dir, segment);
    let restored = copy_records(disk, &path, &rewrite, LogFile::segment(segment), names)?;
    let original = free_name(disk, dir, &format!("{segment}{DAMAGED_SUFFIX}"))?;
    // The rewrite's name must be durable before the original's is taken.
    disk.sync_dir(dir)?;
    disk.rename(&path, &original)?;
    disk.rename(&rewrite, &path)?;
    disk.sync_dir(dir)?;
    Ok(restored)
}

/// Writes a segment again as it is, so that its bytes are the kernel's to write back once more. It is
/// durable with its name once `dir` is synced.
pub(super) fn write_again(disk: &dyn Disk, dir: &Path, segment: SegmentIndex) -> io::Result<()> {
    let path = segment_path(dir, segment);
    let rewrite = rewrite_path(dir, segment);
    let (old, new) = (disk.open(&path)?, disk.create(&rewrite)?);
    let mut buffer = vec![0; WRITE_BYTES];
    let mut copied = 0;
    loop {
        let read = old.read_at(&mut buffer, copied)?;
        if read == 0 {
            break;
        }
        new.write_all_at(&buffer[..read], copied)?;
        copied += read as u64;
    }
    new.sync()?;
    disk.rename(&rewrite, &path)
}

/// Replaces a checkpoint by one that holds the readable records of `sources`, segment files in this
/// order. As with a segment, a crash leaves a rewrite that is complete or not needed.
pub(super) fn rewrite_checkpoint(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    sources: &[(PathBuf, LogFile)],
    mut names: Option<&mut Names>,
) -> io::Result<u64> {
    let rewrite = dir.join(format!("{REWRITE_PREFIX}{name}"));
    disk.create_dir_all(&rewrite)?;
    let mut restored = 0;
    for ((source, file), i) in sources.iter().zip(0..) {
        let to = segment_path(&rewrite, SegmentIndex(i));
        restored += copy_records(disk, source, &to, *file, names.as_deref_mut())?;
    }
    disk.sync_dir(&rewrite)?;
    let original = free_name(disk, dir, &format!("{DAMAGED_PREFIX}{name}"))?;
    disk.sync_dir(dir)?;
    disk.rename(&dir.join(name), &original)?;
    disk.rename(&rewrite, &dir.join(name))?;
    disk.sync_dir(dir)?;
    Ok(restored)
}

fn copy_records(
    disk: &dyn Disk,
    from: &Path,
    to: &Path,
    log_file: LogFile,
    mut names: Option<&mut Names>,
) -> io::Result<u64> {
    let mut reader = SegmentReader::open(disk, from)?;
    let file = disk.create(to)?;
    let mut framer = Framer::new(u64::MAX, 0);
    let mut framed = Vec::new();
    let (mut written, mut restored) = (0, 0);
    while let Some(found) = reader.read_next()? {
        let counts = &mut FrameCounts::default();
        match found {
            Found::Record(found) => {
                let flags = flags_of(found.compression);
                framer.push_record(&mut framed, found.stored, flags, counts);
            }
            Found::Damage(damage) => {
                for record in lost_in(&damage, log_file, names.as_deref_mut()) {
                    framer.push_record(&mut framed, &record, flags_of(Compression::None), counts);
                    restored += 1;
                }
            }
        }
        if framed.len() >= WRITE_BYTES {
            file.write_all_at(&framed, written)?;
            written += framed.len() as u64;
            framed.clear();
        }
    }
    framer.push_padding(&mut framed);
    file.write_all_at(&framed, written)?;
    file.sync()?;
    Ok(restored)
}
