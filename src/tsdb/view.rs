//! What of a database is in blocks.

use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{Disk, lacks_descriptors};
use crate::tsdb::block::Block;
use crate::tsdb::error::ReadError;
use crate::tsdb::file::PageCache;

/// The blocks of a database, open.
#[derive(Default)]
pub struct OpenBlocks {
    /// Those that are read, by name: as they were made.
    pub served: Vec<Arc<Block>>,
    /// Those that cannot be read, and why.
    pub set_aside: Vec<(PathBuf, ReadError)>,
}

impl OpenBlocks {
    /// Opens the blocks in `dirs`. One that is damaged is set aside and costs no other; an error is
    /// only what may pass.
    pub fn open(
        disk: &dyn Disk,
        dirs: &[PathBuf],
        cache: &Arc<PageCache>,
    ) -> Result<OpenBlocks, ReadError> {
        let mut blocks = OpenBlocks::default();
        for dir in dirs {
            match Block::open(disk, dir, cache.clone()) {
                Ok(block) => blocks.served.push(Arc::new(block)),
                Err(ReadError::Io { path, source }) if lacks_descriptors(&source) => {
                    return Err(ReadError::Io { path, source });
                }
                Err(err) => blocks.set_aside.push((dir.clone(), err)),
            }
        }
        Ok(blocks)
    }
}
