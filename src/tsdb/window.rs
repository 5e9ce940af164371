//! A file that is read once from front to back, a piece of it in memory.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};

/// Bytes read from the file at once, and the most that can be asked for.
pub(super) const WINDOW_BYTES: usize = 4 << 20;

/// What is read at a time where more cannot be read.
const PAGE_BYTES: usize = 4096;
/// How often a page is tried.
const PAGE_TRIES: usize = 3;

pub(super) struct Window {
    file: Arc<dyn DiskFile>,
    /// Length of the file when it was opened.
    pub(super) len: u64,
    bytes: Vec<u8>,
    start: u64,
    /// Pages that cannot be read are zeros; else they are an error.
    bears_unreadable: bool,
    /// How many pages could not be read.
    pub(super) unreadable: u64,
}

impl Window {
    pub(super) fn open(disk: &dyn Disk, path: &Path) -> io::Result<Window> {
        let file = disk.open(path)?;
        let len = file.len()?;
        let (bears_unreadable, unreadable) = (false, 0);
        Ok(Window { file, len, bytes: Vec::new(), start: 0, bears_unreadable, unreadable })
    }

    /// The same, of a file of which each page that cannot be read counts as zeros.
    pub(super) fn open_with_unreadable(disk: &dyn Disk, path: &Path) -> io::Result<Window> {
        Ok(Window { bears_unreadable: true, ..Window::open(disk, path)? })
    }

    pub(super) fn file(&self) -> &dyn DiskFile {
        &*self.file
    }

    /// At most `count` bytes from `offset` on: fewer where the file ends, or beyond
    /// [`WINDOW_BYTES`].
    pub(super) fn read(&mut self, offset: u64, count: usize) -> io::Result<&[u8]> {
        let wanted_end = self.len.min(offset.saturating_add(count as u64));
        let is_there = self.start <= offset && wanted_end <= self.start + self.bytes.len() as u64;
        if !is_there {
            self.fill(offset)?;
        }
        let behind = self.bytes.get((offset - self.start) as usize..).unwrap_or_default();
        Ok(behind.get(..count).unwrap_or(behind))
    }

    fn fill(&mut self, offset: u64) -> io::Result<()> {
        let room = self.len.saturating_sub(offset).min(WINDOW_BYTES as u64) as usize;
        self.start = offset;
        self.bytes.resize(room, 0);
        let mut filled = 0;
        while filled < room {
            match self.file.read_at(&mut self.bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(_) if self.bears_unreadable => filled += self.fill_page(offset, filled),
                Err(err) => return Err(err),
            }
        }
        self.bytes.truncate(filled);
        // What was cut off meanwhile is not looked for again.
        if filled < room {
            self.len = offset + filled as u64;
        }
        Ok(())
    }

    /// One page, or zeros in its place.
    fn fill_page(&mut self, offset: u64, from: usize) -> usize {
        let end = self.bytes.len().min(from + PAGE_BYTES);
        let page = &mut self.bytes[from..end];
        for _ in 0..PAGE_TRIES {
            match self.file.read_at(page, offset + from as u64) {
                Ok(read) if read > 0 => return read,
                _ => {}
            }
        }
        page.fill(0);
        self.unreadable += 1;
        end - from
    }
}
