//! Files of a block: read in ranges, written front to back. Nothing is mapped into memory, and no
//! length that a file names sizes an allocation beyond what the file has.

mod pages;
mod section;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::pages::PageCache;
pub use self::section::Section;
pub use self::writer::FileWriter;
use crate::disk::{Disk, DiskFile};
use crate::model::bytes::Malformed;
use crate::tsdb::error::{Corruption, ReadError};

/// An open file whose bytes do not change any more.
pub struct RangeReader {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// When it was opened.
    len: u64,
    cache: Option<pages::CachedFile>,
}

impl RangeReader {
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<RangeReader, ReadError> {
        RangeReader::open_at(disk, path, path)
    }

    /// One that lies at `at` now, and is told of as `path`, where it will be.
    pub fn open_at(disk: &dyn Disk, at: &Path, path: &Path) -> Result<RangeReader, ReadError> {
        let file = disk.open(at).map_err(ReadError::io(path))?;
        let len = file.len().map_err(ReadError::io(path))?;
        Ok(RangeReader { path: path.to_owned(), file, len, cache: None })
    }

    /// Lets [`RangeReader::read_cached`] keep what it reads.
    pub fn with_cache(self, cache: Arc<PageCache>) -> RangeReader {
        RangeReader { cache: Some(pages::CachedFile::new(cache)), ..self }
    }

    /// What a writer has handed to the disk so far, `len` bytes.
    fn of_writer(path: &Path, file: Arc<dyn DiskFile>, len: u64) -> RangeReader {
        RangeReader { path: path.to_owned(), file, len, cache: None }
    }

    #[expect(clippy::len_without_is_empty, reason = "no caller asks whether a file is empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn corrupt(&self, offset: u64, what: &'static str) -> ReadError {
        self.corruption(offset, what).into()
    }

    pub fn corruption(&self, offset: u64, what: &'static str) -> Corruption {
        Corruption { file: self.path.clone(), offset, what }
    }

    /// What a cursor over bytes that begin at `start` did not find.
    pub fn malformed(&self, start: u64) -> impl Fn(Malformed) -> ReadError {
        move |Malformed { at, what }| self.corrupt(start + at as u64, what)
    }

    /// Reads `len` bytes at `offset` into `bytes`, in place of what is there. `what` is damaged if the
    /// file does not have them.
    pub fn read(
        &self,
        offset: u64,
        len: u64,
        bytes: &mut Vec<u8>,
        what: &'static str,
    ) -> Result<(), ReadError> {
        self.check(offset, len, what)?;
        bytes.clear();
        bytes.resize(len as usize, 0);
        self.fill(offset, bytes, what)
    }

    /// The same by way of the cache, if the file has one: for short ranges that lie near to others.
    pub fn read_cached(
        &self,
        offset: u64,
        len: u64,
        bytes: &mut Vec<u8>,
        what: &'static str,
    ) -> Result<(), ReadError> {
        bytes.clear();
        self.append_cached(offset, len, bytes, what)
    }

    /// The same, behind what is there.
    fn append_cached(
        &self,
        offset: u64,
        len: u64,
        bytes: &mut Vec<u8>,
        what: &'static str,
    ) -> Result<(), ReadError> {
        self.check(offset, len, what)?;
        let Some(cache) = self.cache.as_ref().filter(|_| len <= pages::CACHED_BYTES_MAX) else {
            let kept = bytes.len();
            bytes.resize(kept + len as usize, 0);
            return self.fill(offset, &mut bytes[kept..], what);
        };
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let start = at - at % pages::PAGE_BYTES;
            let page = cache.page(start, || {
                let mut page = vec![0; (self.len - start).min(pages::PAGE_BYTES) as usize];
                self.fill(start, &mut page, what)?;
                Ok(page)
            })?;
            let page_end = start + page.len() as u64;
            let taken = (at - start) as usize..(end.min(page_end) - start) as usize;
            bytes.extend_from_slice(&page[taken]);
            at = page_end;
        }
        Ok(())
    }

    /// Whether the file has this range.
    fn check(&self, offset: u64, len: u64, what: &'static str) -> Result<(), ReadError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(self.corrupt(offset.min(self.len), what)),
        }
    }

    fn fill(&self, offset: u64, bytes: &mut [u8], what: &'static str) -> Result<(), ReadError> {
        match self.read_some(offset, bytes)? {
            filled if filled == bytes.len() => Ok(()),
            // Somebody has cut it since.
            filled => Err(self.corrupt(offset + filled as u64, what)),
        }
    }

    /// Reads as much as the file has from `offset` on; how much that was.
    pub fn read_some(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, ReadError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
                Err(err) => return Err(ReadError::io(&self.path)(err)),
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests;
