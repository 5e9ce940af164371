//! What databases are opened in: the same for all of a process.

use std::sync::Arc;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::metrics::Registry;
use crate::model::fingerprint::Fingerprinter;
use crate::tsdb::file::PageCache;

/// Bytes of indexes and tombstones of blocks that were read lately, for all databases together.
const BLOCK_CACHE_BYTES: u64 = 64 << 20;

#[derive(Clone)]
pub struct Env {
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub registry: Registry,
    /// With one secret, so that a request can be read before its database is there.
    pub fingerprinter: Fingerprinter,
    pub block_cache: Arc<PageCache>,
}

impl Env {
    pub fn new(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, registry: Registry) -> Env {
        let fingerprinter = Fingerprinter::random();
        Env { disk, clock, registry, fingerprinter, block_cache: PageCache::new(BLOCK_CACHE_BYTES) }
    }
}
