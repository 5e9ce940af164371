//! Reading a log back, and leaving it so that Prometheus, too, finds it whole.
//!
//! Prometheus deletes everything behind the first damage it meets, and does not open a log whose
//! numbers have a gap. So before a log is written again, damaged segments are written anew under
//! their own numbers with every record that could be read; nothing is removed but our own
//! temporary files. What we rename gets a name that is no number and does not start with
//! `checkpoint`, since Prometheus takes both for its own.
//!
//! What is found and what is done is told by [`RepairCase`] and, of checkpoints,
//! [`CHECKPOINT_CASES`].

mod cases;
mod checkpoint;
mod rewrite;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::tsdb::wal::checkpoint::{CHECKPOINT_PREFIX, UNFINISHED_SUFFIX};
use crate::tsdb::wal::names::{LogFile, Names};
use crate::tsdb::wal::reader::{Damage, DamageKind, Found, FoundRecord, SegmentReader};
use crate::tsdb::wal::record::Record;
use crate::tsdb::wal::segment::{LogPosition, SegmentIndex};
use crate::tsdb::wal::{WalMetrics, segment_path, unsynced};

pub use cases::RepairCase;
use cases::SegmentState;
pub use checkpoint::{CHECKPOINT_CASES, CheckpointCase, CheckpointState, CheckpointUse};
pub(super) use rewrite::rewrite_path;

/// A segment being written anew.
pub const REWRITE_SUFFIX: &str = ".rewrite";
/// The original of a segment that was written anew.
pub const DAMAGED_SUFFIX: &str = ".damaged";
/// A checkpoint being written anew, and the original of one that was.
pub const REWRITE_PREFIX: &str = "rewrite.";
pub const DAMAGED_PREFIX: &str = "damaged.";
/// What we do not understand, or cannot use.
pub const SET_ASIDE_PREFIX: &str = "set-aside.";

/// Damaged places listed one by one; further ones are counted.
pub(super) const DAMAGE_LISTED_MAX: usize = 100;

/// A record of a log, whole and decodable.
#[derive(Debug)]
pub struct LogRecord<'r> {
    pub record: Record<'r>,
    /// What `record` was parsed from, for those who pass it on.
    pub bytes: &'r [u8],
    pub source: RecordSource,
}

/// Where a record was read: the checkpoint's records come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordSource {
    Checkpoint,
    /// The record's end.
    Segment(LogPosition),
}

/// What a log held, and what was done to it.
#[derive(Debug, Default)]
pub struct LogContents {
    pub records: u64,
    /// Records of types that this version does not know, left where they are.
    pub unknown_records: u64,
    /// Places that gave no record, the first [`DAMAGE_LISTED_MAX`] of them.
    pub damage: Vec<(PathBuf, Damage)>,
    pub damage_count: u64,
    /// Where a record was cut off that was being written when the process died.
    pub cut: Option<(PathBuf, Damage)>,
    /// New names of what was set aside.
    pub set_aside: Vec<PathBuf>,
    /// Segments and checkpoints written anew.
    pub rewritten: Vec<PathBuf>,
    /// Damaged series records that were put back from their copies.
    pub restored: u64,
    /// Empty segments made where numbers were missing.
    pub filled: Vec<SegmentIndex>,
    /// How often each repair was made.
    pub cases: BTreeMap<RepairCase, u64>,
}

/// Reads the log in `dir`, gives every record to `on_record` in order, and repairs what it must.
/// A directory that does not exist is an empty log. An error is the disk's, and leaves a log that
/// can be opened again.
///
/// After damage a series' record may come twice, and samples may come that are older than ones
/// before; without damage neither happens.
pub fn open_log(
    disk: &dyn Disk,
    dir: &Path,
    metrics: &WalMetrics,
    on_record: impl FnMut(LogRecord<'_>),
) -> io::Result<LogContents> {
    open_log_with_names(disk, dir, metrics, None, None, on_record)
}

/// The same for a log of whose series records there may be copies: those that are damaged are taken
/// from there, given in their place, and put back into the log. From the segment `end` on it is
/// being written, and that is left alone.
pub fn open_log_with_names(
    disk: &dyn Disk,
    dir: &Path,
    metrics: &WalMetrics,
    mut names: Option<&mut Names>,
    end: Option<SegmentIndex>,
    mut on_record: impl FnMut(LogRecord<'_>),
) -> io::Result<LogContents> {
    let mut contents = LogContents::default();
    let Some(log) = settle_names(disk, dir, end, &mut contents)? else {
        return Ok(contents);
    };
    let plan = checkpoint::plan(disk, dir, &log)?;
    for name in &plan.set_aside {
        set_aside(disk, dir, name, RepairCase::SpareCheckpoint, &mut contents)?;
    }

    let mut checkpoint_files = Vec::new();
    let mut is_checkpoint_damaged = false;
    for (number, name) in &plan.checkpoints {
        let checkpoint_dir = dir.join(name);
        for (segment, _) in LogDir::list(disk, &checkpoint_dir)?.segments {
            let path = segment_path(&checkpoint_dir, segment);
            let file = LogFile::of_checkpoint(*number, segment);
            let damage = read_segment(disk, &path, &mut contents, |found| {
                let source = |_| RecordSource::Checkpoint;
                give(found, file, names.as_deref_mut(), source, &mut on_record);
            })?;
            if damage.count > 0 {
                is_checkpoint_damaged = true;
                contents.report(&path, &damage, metrics);
            }
            checkpoint_files.push((path, file));
        }
    }
    let mut repairs = Vec::new();
    let last_with_content =
        log.segments.iter().rev().find(|(_, len)| *len > 0).map(|(segment, _)| *segment);
    for (segment, _) in log.segments.iter().filter(|(segment, _)| *segment >= plan.first_segment) {
        let path = segment_path(dir, *segment);
        let file = LogFile::segment(*segment);
        let damage = read_segment(disk, &path, &mut contents, |found| {
            let source = |offset| RecordSource::Segment(LogPosition { segment: *segment, offset });
            give(found, file, names.as_deref_mut(), source, &mut on_record);
        })?;
        let case = RepairCase::of_segment(damage.state(), last_with_content == Some(*segment));
        match (case, damage.listed.first()) {
            (Some(case @ RepairCase::TornEnd), Some(torn)) => {
                contents.note(case, &path);
                let file = disk.open_write(&path)?;
                file.truncate(torn.start)?;
                file.sync()?;
                contents.cut = Some((path, *torn));
            }
            (Some(case), _) => {
                contents.note(case, &path);
                repairs.push(*segment);
                contents.report(&path, &damage, metrics);
            }
            (None, _) => {}
        }
    }

    for segment in &repairs {
        let (path, file) = (segment_path(dir, *segment), LogFile::segment(*segment));
        let restored = rewrite::rewrite(disk, dir, *segment, names.as_deref_mut())?;
        if let Some(names) = names.as_deref_mut() {
            names.restored(restored);
            names.read_again(file, &path)?;
        }
        contents.restored += restored;
        contents.rewritten.push(path);
    }
    // A mark that is made meanwhile is the writer's.
    if end.is_none() {
        write_unsynced_again(disk, dir, &log, &repairs, &mut contents)?;
    }
    if let Some((number, name)) = plan.checkpoints.last()
        && let Some(case) = RepairCase::of_checkpoint(is_checkpoint_damaged, plan.is_merged)
    {
        contents.note(case, &dir.join(name));
        let read = plan.first_segment..plan.numbers_from;
        let covered = log.segments.iter().filter(|(segment, _)| read.contains(segment));
        let mut sources = checkpoint_files;
        sources.extend(
            covered.map(|(segment, _)| (segment_path(dir, *segment), LogFile::segment(*segment))),
        );
        let restored =
            rewrite::rewrite_checkpoint(disk, dir, name, &sources, names.as_deref_mut())?;
        if let Some(names) = names {
            names.restored(restored);
            let checkpoint_dir = dir.join(name);
            for (segment, _) in LogDir::list(disk, &checkpoint_dir)?.segments {
                let file = LogFile::of_checkpoint(*number, segment);
                names.read_again(file, &segment_path(&checkpoint_dir, segment))?;
            }
        }
        contents.restored += restored;
        contents.rewritten.push(dir.join(name));
    }
    fill_gaps(disk, dir, &log, plan.numbers_from, &mut contents)?;
    for (case, count) in &contents.cases {
        metrics.repairs(case.label()).add(*count);
    }
    Ok(contents)
}

/// The names in a log's directory that mean something.
#[derive(Debug, Default)]
pub struct LogDir {
    /// Number and length of each segment, rising.
    pub segments: Vec<(SegmentIndex, u64)>,
    /// Number and name of each checkpoint, rising.
    pub checkpoints: Vec<(SegmentIndex, String)>,
    /// Bytes of all files, checkpoints' included.
    pub file_bytes: u64,
    /// Names that Prometheus would take for segments or checkpoints, and that are none.
    strangers: Vec<String>,
    /// Segments and checkpoints of which a rewrite was begun.
    pub(super) rewrites: Vec<SegmentIndex>,
    checkpoint_rewrites: Vec<String>,
    /// Names of checkpoints that were being made or deleted.
    pub(super) unfinished_checkpoints: Vec<String>,
}

impl LogDir {
    pub fn list(disk: &dyn Disk, dir: &Path) -> io::Result<LogDir> {
        let mut log = LogDir::default();
        for entry in disk.list(dir)? {
            log.file_bytes += if entry.is_dir { 0 } else { entry.len };
            // A name that is not UTF-8 is neither a number nor a checkpoint's.
            let Ok(name) = entry.name.into_string() else { continue };
            if let Some(number) = name.strip_prefix(CHECKPOINT_PREFIX) {
                match number.parse() {
                    Ok(number) if entry.is_dir && number < SegmentIndex::LIMIT => {
                        log.checkpoints.push((SegmentIndex(number), name));
                    }
                    Ok(_) => log.strangers.push(name),
                    Err(_) if entry.is_dir && number.ends_with(UNFINISHED_SUFFIX) => {
                        log.unfinished_checkpoints.push(name);
                    }
                    Err(_) => {}
                }
            } else if let Some(segment) = segment_named(&name)
                && !entry.is_dir
            {
                log.segments.push((segment, entry.len));
            } else if let Some(segment) = name.strip_suffix(REWRITE_SUFFIX).and_then(segment_named)
            {
                log.rewrites.push(segment);
            } else if let Some(checkpoint) = name.strip_prefix(REWRITE_PREFIX)
                && checkpoint.starts_with(CHECKPOINT_PREFIX)
                && entry.is_dir
            {
                log.checkpoint_rewrites.push(checkpoint.to_owned());
            } else if name.parse::<i64>().is_ok() {
                // Go reads signs and any number of digits.
                log.strangers.push(name);
            }
        }
        for (_, name) in &log.checkpoints {
            let files = disk.list(&dir.join(name))?;
            log.file_bytes += files.iter().map(|file| file.len).sum::<u64>();
        }
        log.segments.sort_unstable();
        log.checkpoints.sort_unstable();
        Ok(log)
    }

    /// The number behind all segments and checkpoints.
    pub fn next_segment(&self) -> SegmentIndex {
        let last_segment = self.segments.last().map(|(segment, _)| *segment);
        let last_checkpoint = self.checkpoints.last().map(|(number, _)| *number);
        last_segment.max(last_checkpoint).map_or(SegmentIndex(0), SegmentIndex::next)
    }

    /// Whether there is a checkpoint that stands for the segment.
    pub fn is_covered(&self, segment: SegmentIndex) -> bool {
        self.checkpoints.last().is_some_and(|(number, _)| segment <= *number)
    }

    /// Leaves out what is from this segment on, which is being written.
    pub(super) fn end_before(&mut self, end: SegmentIndex) {
        self.segments.retain(|(segment, _)| *segment < end);
        self.rewrites.retain(|segment| *segment < end);
    }

    /// Whether there are names about which something is to be decided, but for those of checkpoints
    /// that were being made or deleted.
    pub(super) fn needs_settling(&self) -> bool {
        !self.strangers.is_empty()
            || !self.rewrites.is_empty()
            || !self.checkpoint_rewrites.is_empty()
    }

    /// Whether `segment` goes on where `before` ends, or where a checkpoint does that stands for
    /// it.
    fn follows(&self, segment: SegmentIndex, before: SegmentIndex) -> bool {
        before.next() == segment || self.checkpoints.iter().any(|(last, _)| last.next() == segment)
    }

    fn has(&self, segment: SegmentIndex) -> bool {
        self.segments.binary_search_by_key(&segment, |(segment, _)| *segment).is_ok()
    }
}

/// The segment whose file has just this name.
fn segment_named(name: &str) -> Option<SegmentIndex> {
    let segment = SegmentIndex(name.parse().ok()?);
    (segment.0 < SegmentIndex::LIMIT && segment.to_string() == name).then_some(segment)
}

/// Brings rewrites to an end and sets strangers aside; `None` if there is no such directory.
fn settle_names(
    disk: &dyn Disk,
    dir: &Path,
    end: Option<SegmentIndex>,
    contents: &mut LogContents,
) -> io::Result<Option<LogDir>> {
    let list = || {
        LogDir::list(disk, dir).map(|mut log| {
            end.into_iter().for_each(|end| log.end_before(end));
            log
        })
    };
    let found = match list() {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    for segment in &found.rewrites {
        let rewrite = rewrite::rewrite_path(dir, *segment);
        let case = RepairCase::of_rewrite(found.has(*segment));
        contents.note(case, &rewrite);
        match case {
            RepairCase::FinishedRewrite => disk.rename(&rewrite, &segment_path(dir, *segment))?,
            _ => disk.remove_file(&rewrite)?,
        }
    }
    for name in &found.checkpoint_rewrites {
        let rewrite = dir.join(format!("{REWRITE_PREFIX}{name}"));
        let case = RepairCase::of_rewrite(found.checkpoints.iter().any(|(_, found)| found == name));
        contents.note(case, &rewrite);
        match case {
            RepairCase::FinishedRewrite => disk.rename(&rewrite, &dir.join(name))?,
            _ => disk.remove_dir_all(&rewrite)?,
        }
    }
    for name in &found.unfinished_checkpoints {
        contents.note(RepairCase::UnfinishedCheckpoint, &dir.join(name));
        disk.remove_dir_all(&dir.join(name))?;
    }
    for name in &found.strangers {
        set_aside(disk, dir, name, RepairCase::Stranger, contents)?;
    }
    let mut segments = found.segments.as_slice();
    while let [.., (before, _), (last, len)] = segments
        && let Some(case) = RepairCase::of_last(*len == 0, found.follows(*last, *before))
    {
        set_aside(disk, dir, &last.to_string(), case, contents)?;
        segments = &segments[..segments.len() - 1];
    }
    if !found.rewrites.is_empty() || !found.checkpoint_rewrites.is_empty() {
        disk.sync_dir(dir)?;
    }
    list().map(Some)
}

/// Renames an entry of `dir`, to a name that is not taken.
fn set_aside(
    disk: &dyn Disk,
    dir: &Path,
    name: &str,
    case: RepairCase,
    contents: &mut LogContents,
) -> io::Result<()> {
    contents.note(case, &dir.join(name));
    let free = free_name(disk, dir, &format!("{SET_ASIDE_PREFIX}{name}"))?;
    disk.rename(&dir.join(name), &free)?;
    disk.sync_dir(dir)?;
    tracing::warn!(from = %dir.join(name).display(), to = %free.display(), "set aside in the log");
    contents.set_aside.push(free);
    Ok(())
}

/// `wanted` in `dir`, numbered if it is taken.
pub(in crate::tsdb) fn free_name(disk: &dyn Disk, dir: &Path, wanted: &str) -> io::Result<PathBuf> {
    let taken = disk.list(dir)?;
    let is_free = |name: &String| taken.iter().all(|entry| entry.name != name.as_str());
    let numbered = (1u64..).map(|n| format!("{wanted}.{n}"));
    let free = std::iter::once(wanted.to_owned()).chain(numbered).find(is_free);
    Ok(dir.join(free.unwrap_or_default()))
}

/// What a segment could not give.
#[derive(Default)]
struct SegmentDamage {
    /// The first [`DAMAGE_LISTED_MAX`].
    listed: Vec<Damage>,
    count: u64,
}

/// Gives a record, or those that were lost to damage, and shows the names what there is.
fn give(
    found: Found<'_>,
    file: LogFile,
    mut names: Option<&mut Names>,
    source: impl Fn(u64) -> RecordSource,
    on_record: &mut impl FnMut(LogRecord<'_>),
) {
    match found {
        Found::Record(found) => {
            if let Some(names) = names {
                names.saw(file, &found);
            }
            let FoundRecord { record, bytes, end, .. } = found;
            on_record(LogRecord { record, bytes, source: source(end) });
        }
        Found::Damage(damage) => {
            if let Some(names) = names.as_deref_mut() {
                names.end_stretch();
            }
            for bytes in lost_in(&damage, file, names) {
                // It was looked at when it was read.
                if let Ok(record) = Record::parse(&bytes) {
                    let source = source(damage.end);
                    on_record(LogRecord { record, bytes: &bytes, source });
                }
            }
        }
    }
}

/// Series records that are known to begin where the log is damaged. A torn end may be cut off, and
/// then nothing of it is put back.
fn lost_in(damage: &Damage, file: LogFile, names: Option<&mut Names>) -> Vec<Vec<u8>> {
    match (names, damage.kind) {
        (None, _) | (_, DamageKind::Mended) => Vec::new(),
        (Some(_), _) if damage.is_torn => Vec::new(),
        (Some(names), _) => names.lost_in(file, damage.start..damage.end),
    }
}

/// Gives a segment's records and its damage, and returns the damage.
fn read_segment(
    disk: &dyn Disk,
    path: &Path,
    contents: &mut LogContents,
    mut on_found: impl FnMut(Found<'_>),
) -> io::Result<SegmentDamage> {
    let mut damage = SegmentDamage::default();
    let mut reader = SegmentReader::open(disk, path)?;
    while let Some(found) = reader.read_next()? {
        match &found {
            Found::Record(found) => {
                contents.records += 1;
                if let Record::Unknown(_) = found.record {
                    contents.unknown_records += 1;
                }
            }
            Found::Damage(found) => {
                damage.count += 1;
                if damage.listed.len() < DAMAGE_LISTED_MAX {
                    damage.listed.push(*found);
                }
            }
        }
        on_found(found);
    }
    Ok(damage)
}

impl SegmentDamage {
    fn state(&self) -> SegmentState {
        match self.listed.as_slice() {
            [] => SegmentState::Whole,
            [only] if only.is_torn => SegmentState::Torn,
            _ => SegmentState::Damaged,
        }
    }
}

impl LogContents {
    /// Adds what a look at the log cut off, before it was read.
    pub(in crate::tsdb) fn note_cut(&mut self, cut: (PathBuf, Damage), metrics: &WalMetrics) {
        self.note(RepairCase::TornEnd, &cut.0);
        metrics.repairs(RepairCase::TornEnd.label()).inc();
        self.cut = Some(cut);
    }

    /// Tells of a repair, before it is made.
    fn note(&mut self, case: RepairCase, path: &Path) {
        let (case_label, file) = (case.label(), path.display());
        tracing::warn!(case = case_label, %file, "repairing the log");
        *self.cases.entry(case).or_default() += 1;
    }

    fn report(&mut self, path: &Path, damage: &SegmentDamage, metrics: &WalMetrics) {
        for found in &damage.listed {
            let Damage { kind, start, end, .. } = found;
            tracing::warn!(file = %path.display(), ?kind, start, end, "damage in the log");
            if self.damage.len() < DAMAGE_LISTED_MAX {
                self.damage.push((path.to_owned(), *found));
            }
        }
        self.damage_count += damage.count;
        metrics.corruptions.add(damage.count);
    }
}

/// Makes a failed sync good that the process before left, see [`unsynced`].
fn write_unsynced_again(
    disk: &dyn Disk,
    dir: &Path,
    log: &LogDir,
    rewritten: &[SegmentIndex],
    contents: &mut LogContents,
) -> io::Result<()> {
    let Some(from) = unsynced::marked_from(disk, dir)? else { return Ok(()) };
    contents.note(RepairCase::UnsyncedEnd, &segment_path(dir, from));
    let is_left = |segment: &SegmentIndex| *segment >= from && !rewritten.contains(segment);
    for segment in log.segments.iter().map(|(segment, _)| *segment).filter(is_left) {
        rewrite::write_again(disk, dir, segment)?;
    }
    disk.sync_dir(dir)?;
    unsynced::unmark(disk, dir)
}

/// Makes the numbers from `numbers_from` to the last segment follow one another.
fn fill_gaps(
    disk: &dyn Disk,
    dir: &Path,
    log: &LogDir,
    numbers_from: SegmentIndex,
    contents: &mut LogContents,
) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut expected = numbers_from;
    for (segment, _) in log.segments.iter().filter(|(segment, _)| *segment >= numbers_from) {
        missing.push(expected.0..segment.0);
        expected = segment.next();
    }
    let missing_count: u64 = missing.iter().map(|range| range.end - range.start).sum();
    let Some(case) = RepairCase::of_missing(missing_count) else { return Ok(()) };
    contents.note(case, dir);
    if case == RepairCase::WideGap {
        tracing::warn!(dir = %dir.display(), missing_count, "too many segments are missing to fill");
        return Ok(());
    }
    for segment in missing.into_iter().flatten().map(SegmentIndex) {
        disk.create(&segment_path(dir, segment))?;
        contents.filled.push(segment);
    }
    disk.sync_dir(dir)
}

#[cfg(test)]
mod tests;
