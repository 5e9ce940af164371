//! What a process sees of files, and what the medium holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::faulty::FailedSync;

/// What dirtiness is counted in.
pub(super) const PAGE_BYTES: u64 = 4096;

#[derive(Clone, Default)]
pub(super) struct Tree {
    pub(super) dirs: BTreeSet<PathBuf>,
    pub(super) files: BTreeMap<PathBuf, Arc<Mutex<Content>>>,
}

#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) live: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) dirty_pages: BTreeSet<u64>,
}

impl Tree {
    /// Renames a directory, with what is in it.
    pub(super) fn move_dir(&mut self, from: &Path, to: &Path) {
        let moved = |path: &Path| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
            Ok(rest) => to.join(rest),
            Err(_) => path.to_owned(),
        };
        let Tree { dirs, files } = std::mem::take(self);
        self.dirs = dirs.iter().map(|path| moved(path)).collect();
        self.files = files.into_iter().map(|(path, file)| (moved(&path), file)).collect();
    }

    /// Takes out what is in directories that are not there. The topmost ones always are.
    pub(super) fn drop_unreachable(&mut self) {
        let Tree { dirs, files } = self;
        let is_there = |dirs: &BTreeSet<PathBuf>, path: &Path| {
            let above = path.ancestors().skip(1);
            above.take_while(|dir| dir.components().count() > 2).all(|dir| dirs.contains(dir))
        };
        let all = dirs.clone();
        dirs.retain(|path| is_there(&all, path));
        files.retain(|path, _| is_there(&all, path));
    }
}

impl Content {
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let start = offset as usize;
        let end = start + bytes.len();
        if self.live.len() < end {
            self.live.resize(end, 0);
        }
        self.live[start..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty_pages.extend(offset / PAGE_BYTES..=(end as u64 - 1) / PAGE_BYTES);
        }
    }

    pub(super) fn sync(&mut self) {
        self.durable.resize(self.live.len(), 0);
        for page in std::mem::take(&mut self.dirty_pages) {
            copy_page(&self.live, &mut self.durable, page);
        }
    }

    pub(super) fn fail_sync(&mut self, how: FailedSync) {
        let dropped = std::mem::take(&mut self.dirty_pages);
        if how == FailedSync::DropsBytes {
            let mut old = self.durable.clone();
            old.resize(self.live.len(), 0);
            dropped.iter().for_each(|page| copy_page(&old, &mut self.live, *page));
        }
    }
}

fn copy_page(from: &[u8], to: &mut [u8], page: u64) {
    let start = ((page * PAGE_BYTES) as usize).min(from.len()).min(to.len());
    let end = (start + PAGE_BYTES as usize).min(from.len()).min(to.len());
    to[start..end].copy_from_slice(&from[start..end]);
}
