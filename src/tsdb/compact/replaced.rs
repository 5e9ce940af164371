//! Taking away the blocks that others have taken the place of.
//!
//! What a start finds of them is not read, but stays until the block in their place was read as a
//! whole: that it can be opened does not say that all of it is there, as where a directory was copied
//! in part. If it is damaged, it is renamed to `set-aside.<ULID>`, and its parents are read again.
//! Until then neither is handed on to anybody.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Merging;
use super::postponed::Postponed;
use crate::error::chain;
use crate::tsdb::Db;
use crate::tsdb::block::Block;
use crate::tsdb::block::removal::take_name;
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::block::verify::{Verified, WHOLE_CACHE_BYTES};
use crate::tsdb::blocks::{Blocks, Replaced, View, name_of, parents_of};
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::file::PageCache;

/// What a damaged block's name begins with. Prometheus, too, takes nothing of such a name for a block.
pub const SET_ASIDE_PREFIX: &str = "set-aside.";

/// Blocks that others have taken the place of, and that are still there.
#[derive(Default)]
pub(super) struct Replacing {
    list: Mutex<Vec<Replaced>>,
    /// Blocks that were read as a whole since they were made.
    verified: Mutex<BTreeSet<Ulid>>,
    /// Held while one loses its name. Taken behind the lock of cutting, or without it.
    removing: Mutex<()>,
    postponed: Mutex<Postponed>,
}

impl Replacing {
    pub(super) fn new(found: Vec<Replaced>) -> Replacing {
        Replacing { list: Mutex::new(found), ..Replacing::default() }
    }

    fn has(&self, block: Ulid) -> bool {
        self.list.lock().iter().any(|replaced| replaced.ulid == block)
    }

    /// Whether others may have to be read again in a block's place.
    fn is_doubted(&self, block: Ulid) -> bool {
        // Locked in this order everywhere.
        let list = self.list.lock();
        list.iter().any(|replaced| replaced.by == Some(block))
            && !self.verified.lock().contains(&block)
    }

    /// Nobody hands the parents on from now on, nor what takes their place until it has.
    pub(super) fn begin(&self, parents: &[Arc<Block>], child: Option<Ulid>) {
        let entries = parents.iter().map(|parent| Replaced {
            ulid: parent.meta().ulid,
            dir: parent.dir().to_owned(),
            parents: parents_of(parent.meta()),
            by: child,
        });
        self.list.lock().extend(entries);
    }

    /// The parents stay.
    pub(super) fn give_up(&self, parents: &[Arc<Block>]) {
        let is_parent =
            |replaced: &Replaced| parents.iter().any(|parent| parent.meta().ulid == replaced.ulid);
        self.list.lock().retain(|replaced| !is_parent(replaced));
    }

    /// A block that was read as a whole is read in the place of its parents, and of what these are read
    /// in the place of; or none, if nothing is left of them.
    pub(super) fn done(&self, parents: &[Arc<Block>], child: Option<Ulid>) {
        self.verified.lock().extend(child);
        let is_parent = |block: Ulid| parents.iter().any(|parent| parent.meta().ulid == block);
        let mut list = self.list.lock();
        let of_parents = list.iter_mut().filter(|replaced| replaced.by.is_some_and(is_parent));
        of_parents.for_each(|replaced| replaced.by = child);
    }

    /// Blocks in whose place others may have to be read again, and that can be read now.
    fn doubted(&self) -> BTreeSet<Ulid> {
        let list = self.list.lock();
        let (verified, postponed) = (self.verified.lock(), self.postponed.lock());
        let all = list.iter().filter_map(|replaced| replaced.by);
        all.filter(|by| !verified.contains(by) && !postponed.holds(*by)).collect()
    }

    /// What is to go next; none before its own parents.
    fn next(&self) -> Option<Replaced> {
        let list = self.list.lock();
        let (verified, postponed) = (self.verified.lock(), self.postponed.lock());
        let may_go = |(at, replaced): &(usize, &Replaced)| {
            // Of those that name one another in a ring the first goes.
            replaced.by.is_none_or(|by| verified.contains(&by))
                && !postponed.holds(replaced.ulid)
                && !list[..*at].iter().any(|other| replaced.parents.contains(&other.ulid))
        };
        list.iter().enumerate().find(may_go).map(|(_, replaced)| replaced.clone())
    }

    /// Forgets a block that is not there any more, and what was known for its sake.
    fn has_gone(&self, block: Ulid) {
        let mut list = self.list.lock();
        list.retain(|replaced| replaced.ulid != block);
        let in_place = |block: Ulid| list.iter().any(|replaced| replaced.by == Some(block));
        let is_listed = |block: Ulid| list.iter().any(|replaced| replaced.ulid == block);
        self.verified.lock().retain(|block| in_place(*block));
        self.postponed.lock().retain(|block| in_place(block) || is_listed(block));
    }

    fn postpone(&self, block: Ulid, what: &str, err: &dyn std::error::Error) {
        let retry_in = self.postponed.lock().add(vec![block]);
        let err = chain(err);
        tracing::warn!(%block, err, ?retry_in, "{what}");
    }

    #[cfg(test)]
    pub(super) fn forget_postponed(&self) {
        self.postponed.lock().clear();
    }
}

impl Merging {
    /// Whether a block is one that nobody is to hand on, as it or another will go.
    pub(in crate::tsdb) fn is_in_doubt(&self, block: Ulid) -> bool {
        self.replacing.has(block) || self.replacing.is_doubted(block)
    }

    /// Waits for who takes names of blocks.
    pub(super) fn close(&self) {
        let _removing = self.replacing.removing.lock();
        self.state.lock().is_closed = true;
    }
}

impl Db {
    /// Takes away the blocks that others have taken the place of. Readers that have them open read on.
    /// What fails is told, and tried again by a later call. Blocks on the disk, and may take long.
    pub fn remove_replaced(&self) {
        let replacing = &self.merging.replacing;
        for block in replacing.doubted() {
            match self.verify_in_place(block) {
                Ok(()) => {}
                Err(err) => replacing.postpone(block, "a merged block cannot be read now", &err),
            }
        }
        while let Some(replaced) = replacing.next() {
            match self.remove_one(&replaced) {
                Ok(true) => {}
                Ok(false) => return,
                Err(err) => {
                    let what = "a block that another has taken the place of stays for now";
                    replacing.postpone(replaced.ulid, what, &err);
                }
            }
        }
    }

    /// The same for those in whose place this one is read, as it goes itself.
    pub(in crate::tsdb) fn remove_replaced_by(&self, block: Ulid) -> Result<(), WriteError> {
        let list = self.merging.replacing.list.lock().clone();
        for replaced in list.iter().filter(|replaced| replaced.by == Some(block)) {
            self.remove_one(replaced)?;
        }
        Ok(())
    }

    /// Whether it has gone; not once the database is closed.
    fn remove_one(&self, replaced: &Replaced) -> Result<bool, WriteError> {
        let (disk, replacing) = (&*self.env.disk, &self.merging.replacing);
        let _removing = replacing.removing.lock();
        if self.merging.state.lock().is_closed {
            return Ok(false);
        }
        let Replaced { ulid, dir, .. } = replaced;
        // What they shut out stays out, whatever becomes of those in their place.
        self.record_floor(&self.view.load(), |_| true)?;
        match take_name(disk, dir) {
            Ok(nameless) => {
                if let Err(err) = nameless.remove(disk) {
                    let err = chain(&err);
                    tracing::warn!(err, "what is left of a block stays until a restart");
                }
            }
            Err(WriteError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
        }
        replacing.has_gone(*ulid);
        tracing::info!(block = %ulid, "deleted a block that another has taken the place of");
        Ok(true)
    }

    /// Reads a block as a whole that others were found beside that it was made from. Damage has these
    /// read in its place.
    fn verify_in_place(&self, ulid: Ulid) -> Result<(), ReadError> {
        let view = self.view.load_full();
        let is_it = |block: &&Arc<Block>| name_of(block.dir()) == Some(ulid);
        let Some(block) = view.blocks.iter().find(is_it) else { return Ok(()) };
        let cache = PageCache::new(WHOLE_CACHE_BYTES);
        let opened = Block::open_as(&*self.env.disk, block.dir(), block.meta().clone(), cache);
        match opened.and_then(|block| block.verify()) {
            Ok(Verified::Whole { .. }) => self.merging.replacing.verified.lock().extend([ulid]),
            Ok(Verified::Interrupted) => {}
            // It was deleted meanwhile.
            Err(_) if !self.view.load().has_all(std::slice::from_ref(block)) => {}
            Err(err @ ReadError::Io { .. }) => return Err(err),
            Err(err) => self.put_parents_back(ulid, block, &err),
        }
        Ok(())
    }

    /// Sets a damaged block aside and has its parents read in its place, if these are all there.
    fn put_parents_back(&self, ulid: Ulid, block: &Arc<Block>, damage: &ReadError) {
        let (dir, err) = (block.dir().display(), chain(damage));
        tracing::error!(block = %ulid, %dir, err, "a block that was made of others is damaged");
        let done = self.try_to_put_parents_back(ulid, block);
        let replacing = &self.merging.replacing;
        match done {
            Ok(true) => {
                tracing::warn!(block = %ulid, "it is set aside, and those are read again");
            }
            Ok(false) => {
                let retry_in = replacing.postponed.lock().add(vec![ulid]);
                let message =
                    "it is read all the same: of those it was made from some are not there";
                tracing::error!(block = %ulid, ?retry_in, "{message}");
            }
            Err(err) => replacing.postpone(ulid, "it cannot be set aside", &err),
        }
    }

    fn try_to_put_parents_back(&self, ulid: Ulid, block: &Arc<Block>) -> Result<bool, WriteError> {
        let (disk, replacing) = (&*self.env.disk, &self.merging.replacing);
        let mut cutting = self.cutting.lock();
        let before = self.view.load_full();
        if self.merging.state.lock().is_closed || !before.has_all(std::slice::from_ref(block)) {
            return Ok(false);
        }
        let cache = &self.env.block_cache;
        let found = Blocks::open_without(disk, &self.dir, cache, Some(ulid))?;
        let name = |block: &Arc<Block>| name_of(block.dir());
        let is_whole = |block: &Arc<Block>| block.damaged_segments().next().is_none();
        let is_there = |parent: &Ulid| {
            found.served.iter().any(|block| name(block) == Some(*parent) && is_whole(block))
                || found.replaced.iter().any(|replaced| replaced.ulid == *parent)
        };
        if !parents_of(block.meta()).iter().all(is_there) {
            return Ok(false);
        }
        let aside = self.dir.join(format!("{SET_ASIDE_PREFIX}{ulid}"));
        disk.rename(block.dir(), &aside).map_err(WriteError::io(block.dir()))?;
        disk.sync_dir(&self.dir).map_err(WriteError::io(&self.dir))?;
        let mut list = replacing.list.lock();
        let (of_this, mut others): (Vec<_>, Vec<_>) =
            list.drain(..).partition(|replaced| replaced.by == Some(ulid));
        let was_of_this = |name: Ulid| of_this.iter().any(|replaced| replaced.ulid == name);
        // Of what is in the directory, as it may hold what a cut has failed to take back.
        let again = found.served.iter().filter(|block| name(block).is_some_and(was_of_this));
        let kept = before.blocks.iter().filter(|own| !Arc::ptr_eq(own, block));
        let mut blocks: Vec<_> = kept.chain(again).cloned().collect();
        blocks.sort_by_key(|block| block.meta().ulid);
        others.extend(found.replaced.into_iter().filter(|replaced| was_of_this(replaced.ulid)));
        *list = others;
        drop(list);
        let view = View { blocks, floor: before.floor };
        cutting.note_older(&before, &view);
        self.view.store(Arc::new(view));
        Ok(true)
    }
}
