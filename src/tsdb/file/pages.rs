//! Pages of files that were read lately.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use crate::tsdb::error::ReadError;

pub(super) const PAGE_BYTES: u64 = 16 << 10;
/// Longer reads would push out what others still need.
pub(super) const CACHED_BYTES_MAX: u64 = 4 * PAGE_BYTES;

/// By file, and by where in it they begin.
type Pages = LruCache<(u64, u64), Arc<[u8]>>;

/// Holds up to so many bytes of pages for any number of files; the least recently used go first.
pub struct PageCache {
    pages: Mutex<Pages>,
    files: AtomicU64,
}

impl PageCache {
    pub fn new(bytes_max: u64) -> Arc<PageCache> {
        let pages = NonZeroUsize::new((bytes_max / PAGE_BYTES) as usize);
        Arc::new(PageCache {
            pages: Mutex::new(LruCache::new(pages.unwrap_or(NonZeroUsize::MIN))),
            files: AtomicU64::new(0),
        })
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.pages.lock().iter().map(|(_, page)| page.len()).sum()
    }
}

/// One file's part in a cache. A number is never given to a second file, so what the cache still has of
/// one that was closed is nobody's, and leaves as it gets old.
pub(super) struct CachedFile {
    cache: Arc<PageCache>,
    number: u64,
}

impl CachedFile {
    pub(super) fn new(cache: Arc<PageCache>) -> CachedFile {
        let number = cache.files.fetch_add(1, Ordering::Relaxed);
        CachedFile { cache, number }
    }

    /// The page that begins at `start`; `read` gives it if the cache does not have it. No lock is held
    /// meanwhile: two may read one page.
    pub(super) fn page(
        &self,
        start: u64,
        read: impl FnOnce() -> Result<Vec<u8>, ReadError>,
    ) -> Result<Arc<[u8]>, ReadError> {
        let key = (self.number, start);
        if let Some(page) = self.cache.pages.lock().get(&key) {
            return Ok(page.clone());
        }
        let page: Arc<[u8]> = read()?.into();
        self.cache.pages.lock().put(key, page.clone());
        Ok(page)
    }
}
