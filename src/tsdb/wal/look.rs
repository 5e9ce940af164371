//! A look at a log before it is read: which series it names, and how new what it has of them is.
//!
//! [Stretches](super::names) that were noted are not read: their series are known by the copies
//! beside the log. Everything else is, and so is the log's end, even where it is noted: who was
//! being written when the process ended has its last sample there.
//!
//! The look is there to save time, and changes nothing: where anything is not as a Ringest that was
//! killed leaves it, there is none, and all of the log is read before it is written again. A record
//! that was being written is no reason.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::names::{Copies, Gist, LogFile, Names, Stretch};
use super::reader::{Damage, Found, SegmentReader};
use super::record::Record;
use super::repair::LogDir;
use super::segment::PAGE_BYTES;
use super::segment_path;
use crate::disk::Disk;
use crate::model::Timestamp;
use crate::tsdb::refs;

const PAGE: u64 = PAGE_BYTES as u64;

/// What a look found.
#[derive(Debug)]
pub struct Looked {
    /// No sample in what was not read is newer.
    pub newest_unread: Timestamp,
    /// Nor is one in all of the log.
    pub newest: Timestamp,
    /// No record of the log has a higher ref, and no series that only its copies name.
    pub highest_ref: u64,
    /// A record that was being written when the process died. It is to be cut off before the log is
    /// written.
    pub torn: Option<(PathBuf, Damage)>,
}

impl Looked {
    pub fn cut_torn(&self, disk: &dyn Disk) -> io::Result<()> {
        let Some((path, torn)) = &self.torn else { return Ok(()) };
        let file = disk.open_write(path)?;
        file.truncate(torn.start)?;
        file.sync()
    }
}

/// A part of a file of the log, from the begin of a record to the end of one, or of the file.
enum Part {
    Noted(Stretch),
    ToRead(Range<u64>),
}

struct LogPart {
    path: PathBuf,
    file: LogFile,
    part: Part,
}

/// Looks at the log in `dir`, of which at least the last `read_min` bytes are read, and not many
/// more. `on_record` gets the records that name series, in the order of the log, and all others of
/// what is read. `None` if the log is to be read as a whole; what `on_record` got counts for
/// nothing then.
pub fn look(
    disk: &dyn Disk,
    dir: &Path,
    names: &Names,
    read_min: u64,
    on_record: &mut dyn FnMut(Record<'_>),
) -> io::Result<Option<Looked>> {
    let log = LogDir::list(disk, dir)?;
    if !is_as_left(&log) {
        return Ok(None);
    }
    let mut parts = Vec::new();
    for (number, name) in &log.checkpoints {
        let checkpoint_dir = dir.join(name);
        for (segment, len) in LogDir::list(disk, &checkpoint_dir)?.segments {
            let path = segment_path(&checkpoint_dir, segment);
            add_parts(&mut parts, &path, LogFile::of_checkpoint(*number, segment), len, names);
        }
    }
    let segments_from = parts.len();
    for (segment, len) in &log.segments {
        let path = segment_path(dir, *segment);
        add_parts(&mut parts, &path, LogFile::segment(*segment), *len, names);
    }
    read_the_end(&mut parts[segments_from..], read_min);
    let (to_read, noted) = parts.iter().fold((0, 0), |(to_read, noted), part| match &part.part {
        // What is left of a page is padding.
        Part::ToRead(place) => (to_read + (place.end - place.start).saturating_sub(PAGE), noted),
        Part::Noted(stretch) => (to_read, noted + stretch.end - stretch.start),
    });
    // A short log is read as soon as it is looked at.
    let is_worth_it = noted >= read_min && to_read / 4 <= read_min;
    if !is_worth_it || !are_as_noted(disk, &parts)? {
        return Ok(None);
    }
    let last = log.segments.iter().rev().find(|(_, len)| *len > 0).map(|(segment, _)| *segment);
    let mut reading = Reading {
        disk,
        copies: names.copies()?,
        last_file: last.map(LogFile::segment),
        newest_unread: Timestamp::MIN,
        gist: Gist::NONE,
        torn: None,
        on_record,
    };
    if !parts
        .iter()
        .try_fold(true, |so_far, part| Ok::<_, io::Error>(so_far && reading.take(part)?))?
    {
        return Ok(None);
    }
    let Some(highest_beside) = reading.copies.highest_ref_of_rest()? else { return Ok(None) };
    let Reading { newest_unread, gist, torn, .. } = reading;
    Ok(Some(Looked {
        newest_unread,
        newest: gist.newest,
        highest_ref: gist.highest_ref.max(highest_beside),
        torn,
    }))
}

/// Whether nothing in the log's directory needs a repair or a decision.
fn is_as_left(log: &LogDir) -> bool {
    let follow_one_another = log.segments.windows(2).all(|two| two[0].0.next() == two[1].0);
    let follow_checkpoint = match (&log.checkpoints[..], log.segments.first()) {
        ([], first) => first.is_none_or(|(first, _)| first.0 == 0),
        ([(number, _)], Some((first, _))) => number.next() == *first,
        _ => false,
    };
    follow_one_another && follow_checkpoint && !log.needs_settling()
}

/// Adds what a file consists of.
fn add_parts(parts: &mut Vec<LogPart>, path: &Path, file: LogFile, len: u64, names: &Names) {
    let mut at = 0;
    let mut add = |part| parts.push(LogPart { path: path.to_owned(), file, part });
    for stretch in names.stretches(file) {
        // Its end was lost to a power cut, or a copy was.
        if stretch.start < at || stretch.end > len || !names.has_copies(file, stretch) {
            continue;
        }
        if stretch.start > at {
            add(Part::ToRead(at..stretch.start));
        }
        add(Part::Noted(*stretch));
        at = stretch.end;
    }
    if at < len {
        add(Part::ToRead(at..len));
    }
}

/// Has so many bytes at the end of the log read.
fn read_the_end(parts: &mut [LogPart], read_min: u64) {
    let mut bytes = 0;
    for LogPart { part, .. } in parts.iter_mut().rev() {
        if bytes >= read_min {
            return;
        }
        let place = match part {
            Part::Noted(stretch) => stretch.start..stretch.end,
            Part::ToRead(place) => place.clone(),
        };
        bytes += place.end - place.start;
        *part = Part::ToRead(place);
    }
}

/// Whether the last record of the last stretch of each file is the one that was noted.
fn are_as_noted(disk: &dyn Disk, parts: &[LogPart]) -> io::Result<bool> {
    let mut parts = parts.iter().filter_map(|part| match &part.part {
        Part::Noted(stretch) => Some((&part.path, part.file, stretch)),
        Part::ToRead(_) => None,
    });
    let mut next = parts.next();
    while let Some((path, file, stretch)) = next {
        next = parts.next();
        if next.is_some_and(|(_, next, _)| next == file) {
            continue;
        }
        let place = stretch.last_start..stretch.end;
        let mut reader = SegmentReader::open_part(disk, path, place)?;
        let is_it = match reader.read_next()? {
            Some(Found::Record(found)) => {
                found.start == stretch.last_start
                    && crc32c::crc32c(found.stored) == stretch.last_checksum
            }
            _ => false,
        };
        if !is_it {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Reading<'l> {
    disk: &'l dyn Disk,
    copies: Copies<'l>,
    /// What the process was writing to when it ended.
    last_file: Option<LogFile>,
    newest_unread: Timestamp,
    gist: Gist,
    torn: Option<(PathBuf, Damage)>,
    on_record: &'l mut dyn FnMut(Record<'_>),
}

impl Reading<'_> {
    /// Whether the look goes on.
    fn take(&mut self, part: &LogPart) -> io::Result<bool> {
        match &part.part {
            Part::Noted(stretch) => {
                let Stretch { newest, highest_ref, .. } = *stretch;
                self.newest_unread = self.newest_unread.max(newest);
                self.gist = self.gist.and(Gist { newest, highest_ref });
                let place = stretch.start..stretch.end;
                self.copies.read(part.file, place, &mut *self.on_record)
            }
            Part::ToRead(place) => self.read(part, place.clone()),
        }
    }

    fn read(&mut self, part: &LogPart, place: Range<u64>) -> io::Result<bool> {
        let mut reader = SegmentReader::open_part(self.disk, &part.path, place)?;
        while let Some(found) = reader.read_next()? {
            match found {
                Found::Record(found) => {
                    let Some(gist) = Gist::of(found.record.clone()) else { return Ok(false) };
                    self.gist = self.gist.and(gist);
                    self.gist.highest_ref =
                        self.gist.highest_ref.max(refs::highest_in(found.record.clone()));
                    (self.on_record)(found.record);
                }
                Found::Damage(damage) => {
                    if !damage.is_torn || self.last_file != Some(part.file) || self.torn.is_some() {
                        return Ok(false);
                    }
                    self.torn = Some((part.path.clone(), damage));
                }
            }
        }
        Ok(true)
    }
}
