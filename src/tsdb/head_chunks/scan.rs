//! What a start finds in the files of head chunks.
//!
//! A chunk is taken if its checksum vouches for it, whatever stands before it. Damage stays where it
//! is: Prometheus deletes the file in which it finds some, and all later ones, and reads the log
//! instead. In a file without that chunk it would take later chunks of the series for all there is. Two
//! things are mended, since Prometheus would not open the database, or call a power cut damage: a file
//! gets the header that it lacks, the original being kept beside, and what is not whole at the last
//! one's end is cut off.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::seal::Seal;
use super::{ChunkPlace, HeadChunkFile, HeadChunkFiles, file_name, format};
use crate::disk::Disk;
use crate::model::{HeadSeriesRef, Timestamp};
use crate::tsdb::chunkenc::{is_float, is_known};
use crate::tsdb::wal::repair::{DAMAGED_SUFFIX, REWRITE_SUFFIX, free_name};
use crate::tsdb::window::Window;

/// The bit of an encoding that says that the chunk is one of late samples.
const OUT_OF_ORDER: u8 = 0x80;

/// Bytes copied at a time.
const WRITE_BYTES: usize = 1 << 20;

/// A chunk of samples in order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedChunk {
    pub series_ref: HeadSeriesRef,
    pub mint: Timestamp,
    pub maxt: Timestamp,
    pub encoding: u8,
    pub place: ChunkPlace,
}

/// What was found beside the chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// The highest ref of any chunk, 0 if there is none.
    pub highest_ref: u64,
    /// Chunks that this version does not read: late samples, or encodings of later versions.
    pub others: u64,
    /// Files with damage.
    pub damaged: u64,
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    None,
    /// From here on there is nothing that is whole.
    Tail(u64),
    /// Something is behind it.
    Within,
    /// A part of it cannot be read.
    Unreadable,
    /// It does not begin as such a file does.
    Header,
    /// Nothing was written to it, or nothing of that is left.
    Blank,
}

impl HeadChunkFiles {
    /// Looks through the files, and gives each chunk that a series may take. What is below
    /// the floor is in blocks. An error is one that passes.
    pub fn open(
        &self,
        floor: Timestamp,
        each: &mut dyn FnMut(MappedChunk),
    ) -> io::Result<ScanReport> {
        let mut report = ScanReport::default();
        let entries = match self.disk.list(&self.dir) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(report),
            // The log may have lost what they have.
            Err(err) => return Err(err),
        };
        let files: Vec<_> = entries.into_iter().filter(|entry| !entry.is_dir).collect();
        let mut numbers: Vec<_> = files.iter().filter_map(|file| number_of(&file.name)).collect();
        numbers.sort_unstable();
        let rewrites = files.iter().filter_map(|file| rewrite_of(&file.name));
        for number in rewrites {
            match finish_rewrite(&*self.disk, &self.dir, number) {
                Ok(true) => numbers.push(number),
                Ok(false) => {}
                Err(err) => tracing::warn!(dir = %self.dir.display(), %err, "a rewrite stays"),
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        self.heed_mark(numbers.last().copied().unwrap_or(0))?;
        for number in &numbers {
            self.writer.lock().see(*number);
            let path = self.dir.join(file_name(*number));
            let is_last = Some(number) == numbers.last();
            self.open_file(*number, &path, (is_last, floor), &mut report, each)?;
        }
        Ok(report)
    }

    fn open_file(
        &self,
        number: u64,
        path: &Path,
        (is_last, floor): (bool, Timestamp),
        report: &mut ScanReport,
        each: &mut dyn FnMut(MappedChunk),
    ) -> io::Result<()> {
        let disk = &*self.disk;
        let mut walked = walk(disk, path)?;
        if walked.damage != Damage::None {
            report.damaged += 1;
            self.metrics.corruptions.inc();
            match mend(disk, path, walked.damage, is_last) {
                Ok(true) => walked = walk(disk, path)?,
                Ok(false) => tracing::warn!(
                    file = %path.display(),
                    "damage among head chunks; the log may have them"
                ),
                Err(err) => {
                    let file = path.display();
                    tracing::warn!(%file, %err, "a file of head chunks stays as it is");
                }
            }
        }
        if walked.damage == Damage::Unreadable {
            // It may be read again some day.
            self.writer.lock().stay_from(number);
        }
        let file = disk.open(path)?;
        let len = file.len()?;
        let seal = if walked.damage == Damage::None { Seal::Found } else { Seal::Unfit };
        let file = HeadChunkFile::new(number, path.to_owned(), file, seal);
        let Some(place) = self.add(Arc::new(file)) else {
            return Err(io::Error::other("there are too many files"));
        };
        self.metrics.bytes.add(len as f64);
        let others_before = report.others;
        for Walked { offset, head, is_sound } in walked.chunks {
            report.highest_ref = report.highest_ref.max(head.series_ref.0);
            match (head.encoding, ChunkPlace::new(place, offset)) {
                (encoding, Some(place)) if is_sound && is_known(encoding) => {
                    let format::Head { series_ref, mint, maxt, .. } = head;
                    each(MappedChunk { series_ref, mint, maxt, encoding, place });
                }
                // The log has it, too, and says more of it.
                (encoding, _) if is_known(encoding) => {}
                // Blocks have it. Of late samples one may be of any time.
                (encoding, _) if encoding & OUT_OF_ORDER == 0 && head.maxt < floor => {}
                _ => report.others += 1,
            }
        }
        if report.others > others_before {
            self.writer.lock().stay_from(number);
        }
        Ok(())
    }
}

impl super::Writer {
    fn see(&mut self, number: u64) {
        self.next_number = self.next_number.max(number.saturating_add(1));
    }

    fn stay_from(&mut self, number: u64) {
        self.stays_from = self.stays_from.min(number);
    }
}

const NUMBER_MAX: u64 = u32::MAX as u64;

/// The number that a file is named by; other names are nobody's.
fn number_of(name: &OsStr) -> Option<u64> {
    let name = name.to_str()?;
    let number = name.parse().ok()?;
    // Nobody gets so far by counting.
    (file_name(number) == name && number <= NUMBER_MAX).then_some(number)
}

/// The number of the file that is being written anew under this name.
fn rewrite_of(name: &OsStr) -> Option<u64> {
    number_of(name.to_str()?.strip_suffix(REWRITE_SUFFIX)?.as_ref())
}

/// What a file holds.
struct FoundInFile {
    chunks: Vec<Walked>,
    damage: Damage,
}

/// A chunk whose checksum is right.
struct Walked {
    offset: u64,
    head: format::Head,
    /// It has room for as many samples as it says, and its times are in order.
    is_sound: bool,
}

/// Of floats, which get a new chunk at a kilobyte; what is encoded anew is no longer than this.
const FLOAT_CHUNK_BYTES_MAX: usize = 32 << 10;

/// Whether a chunk may have as many samples as it says, and has any. A float takes two bits at least,
/// a histogram four.
fn has_samples(encoding: u8, data: &[u8]) -> bool {
    let Some((count, stream)) = data.split_first_chunk::<2>() else { return false };
    let most = match is_float(encoding) {
        true if stream.len() > FLOAT_CHUNK_BYTES_MAX => return false,
        true => stream.len() * 4,
        false => stream.len() * 2,
    };
    (1..=most).contains(&usize::from(u16::from_be_bytes(*count)))
}

fn walk(disk: &dyn Disk, path: &Path) -> io::Result<FoundInFile> {
    let mut chunks = Vec::new();
    let damage = walk_with(disk, path, |offset, head, data| {
        let is_sound = head.mint <= head.maxt && has_samples(head.encoding, data);
        chunks.push(Walked { offset, head, is_sound });
    })?;
    Ok(FoundInFile { chunks, damage })
}

/// Gives each whole chunk, and where it lies, and says what is wrong with the file.
pub(super) fn walk_with(
    disk: &dyn Disk,
    path: &Path,
    mut each: impl FnMut(u64, format::Head, &[u8]),
) -> io::Result<Damage> {
    let mut file = Window::open_with_unreadable(disk, path)?;
    let header = file.read(0, format::HEADER.len())?;
    // The zeros behind the version are nobody's.
    let has_header = header.get(..5) == Some(&format::HEADER[..5]);
    let mut damage = if has_header { Damage::None } else { Damage::Header };
    if !has_header && format::first_nonzero(&mut file, 0)? == file.len {
        return Ok(if file.unreadable > 0 { Damage::Unreadable } else { Damage::Blank });
    }
    let mut offset = format::HEADER.len() as u64;
    while offset < file.len {
        if let Some((head, data, len)) = format::chunk_at(&mut file, offset)? {
            if matches!(damage, Damage::Tail(_)) {
                damage = Damage::Within;
            }
            each(offset, head, data);
            offset += len;
            continue;
        }
        let nonzero = format::first_nonzero(&mut file, offset)?;
        if nonzero < file.len && damage == Damage::None {
            damage = Damage::Tail(offset);
        }
        // A ref is never 0, so that a chunk begins at most seven zeros before another byte.
        let next = format::first_nonzero(&mut file, offset + 1)?;
        offset = next.saturating_sub(7).max(offset + 1);
    }
    if file.unreadable > 0 {
        let (path, pages) = (path.display(), file.unreadable);
        tracing::error!(%path, pages, "a part of a file of head chunks cannot be read");
        damage = Damage::Unreadable;
    }
    Ok(damage)
}

/// Mends what Prometheus would not open, or call damage after a power cut; whether there was such.
fn mend(disk: &dyn Disk, path: &Path, damage: Damage, is_last: bool) -> io::Result<bool> {
    match damage {
        Damage::Tail(end) if is_last => cut_off(disk, path, end)?,
        Damage::Header => write_header_anew(disk, path)?,
        Damage::Blank => {
            let file = disk.open_write(path)?;
            file.write_all_at(&format::HEADER, 0)?;
            file.sync()?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Cuts off what was not whole when the power went.
fn cut_off(disk: &dyn Disk, path: &Path, end: u64) -> io::Result<()> {
    let file = disk.open_write(path)?;
    let (bytes, path) = (file.len()?.saturating_sub(end), path.display());
    tracing::info!(%path, bytes, "a file of head chunks has no whole end, which is cut off");
    file.truncate(end)?;
    file.sync()
}

/// Gives a file that was written anew its name, if the original has lost it already; else it was not
/// finished. Whether there is such a file now.
fn finish_rewrite(disk: &dyn Disk, dir: &Path, number: u64) -> io::Result<bool> {
    let path = dir.join(file_name(number));
    let rewrite = rewrite_path(&path);
    match disk.open(&path) {
        Ok(_) => disk.remove_file(&rewrite).map(|()| true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            disk.rename(&rewrite, &path)?;
            disk.sync_dir(dir).map(|()| true)
        }
        Err(err) => Err(err),
    }
}

fn rewrite_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(REWRITE_SUFFIX);
    name.into()
}

/// Gives a file the header that it lacks, and leaves the rest as it is: damage that is in there is to
/// be seen by others as well. As with a segment of the log, the new file is durable before the original
/// loses its name.
fn write_header_anew(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("a file without a name"));
    };
    let rewrite = rewrite_path(path);
    let file = disk.create(&rewrite)?;
    file.write_all_at(&format::HEADER, 0)?;
    let mut original = Window::open(disk, path)?;
    let mut offset = format::HEADER.len() as u64;
    while offset < original.len {
        let bytes = original.read(offset, WRITE_BYTES)?;
        if bytes.is_empty() {
            break;
        }
        file.write_all_at(bytes, offset)?;
        offset += bytes.len() as u64;
    }
    file.sync()?;
    let original = free_name(disk, dir, &format!("{}{DAMAGED_SUFFIX}", name.to_string_lossy()))?;
    disk.sync_dir(dir)?;
    tracing::warn!(
        file = %path.display(),
        original = %original.display(),
        "a file of head chunks without its header got one"
    );
    disk.rename(path, &original)?;
    disk.rename(&rewrite, path)?;
    disk.sync_dir(dir)
}
