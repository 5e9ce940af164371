//! Reading the copies of series records, in the order of the log.

use std::io;
use std::ops::Range;

use super::entry::LogFile;
use super::{Copy, Names, Noted};
use crate::tsdb::refs;
use crate::tsdb::wal::record::Record;
use crate::tsdb::window::Window;

/// The file, and which copies were read.
pub(in crate::tsdb::wal) struct Copies<'n> {
    noted: &'n Noted,
    /// None where nothing is noted.
    file: Option<Window>,
    read: Vec<(LogFile, Range<u64>)>,
}

impl Names {
    pub(in crate::tsdb::wal) fn copies(&self) -> io::Result<Copies<'_>> {
        let noted = &self.noted;
        let has_file = !noted.copies.is_empty();
        let file = has_file.then(|| Window::open(&*self.disk, &self.path)).transpose()?;
        Ok(Copies { noted, file, read: Vec::new() })
    }
}

impl Copies<'_> {
    /// Gives the series records that begin in a place of the log; whether they are all whole.
    pub(in crate::tsdb::wal) fn read(
        &mut self,
        file: LogFile,
        place: Range<u64>,
        on_record: &mut dyn FnMut(Record<'_>),
    ) -> io::Result<bool> {
        let noted = self.noted;
        for copy in noted.copies.range((file, place.start)..(file, place.end)).map(|(_, copy)| copy)
        {
            let Some(bytes) = self.copy(copy)? else { return Ok(false) };
            match Record::of_parsed(&bytes) {
                Ok(record) => on_record(record),
                Err(_) => return Ok(false),
            }
        }
        self.read.push((file, place));
        Ok(true)
    }

    /// The highest ref of those that were not read; `None` if one is not whole.
    pub(in crate::tsdb::wal) fn highest_ref_of_rest(&mut self) -> io::Result<Option<u64>> {
        let mut read = std::mem::take(&mut self.read);
        read.sort_unstable_by_key(|(file, place)| (*file, place.start));
        let noted = self.noted;
        let mut highest = 0;
        for ((file, at), copy) in &noted.copies {
            let before = read.partition_point(|(of, place)| (*of, place.start) <= (*file, *at));
            let is_read =
                before.checked_sub(1).is_some_and(|i| read[i].0 == *file && read[i].1.contains(at));
            if is_read {
                continue;
            }
            let Some(bytes) = self.copy(copy)? else { return Ok(None) };
            let Ok(record) = Record::of_parsed(&bytes) else { return Ok(None) };
            highest = highest.max(refs::highest_in(record));
        }
        Ok(Some(highest))
    }

    fn copy(&mut self, copy: &Copy) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let stored = file.read(copy.offset, copy.bytes as usize)?;
        if stored.len() == copy.bytes as usize {
            return Ok(copy.unpack(stored));
        }
        // Longer than what is read at once.
        Ok(copy.read(file.file()))
    }
}
