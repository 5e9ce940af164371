//! A disk in memory that fails when told to, for tests.
//!
//! It keeps two images, what a process sees and what the medium holds, and follows the assumptions
//! of [`crate::disk`]: bytes reach the medium with [`DiskFile::sync`], names with
//! [`Disk::sync_dir`], and a failed sync leaves the pages clean without having written them.

mod gate;
mod image;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DirEntry, DirLock, Disk, DiskFile, OpenDir};
use crate::disk::faulty::gate::Gate;
use crate::disk::faulty::image::{Content, PAGE_BYTES, Tree};

/// What a failed sync does to what a reader sees. Both happen on Linux: ext4 and XFS keep the new
/// bytes in memory, Btrfs goes back to the old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedSync {
    KeepsBytes,
    DropsBytes,
}

/// A disk; clones are the same one.
#[derive(Clone, Default)]
pub struct FaultyDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    live: Tree,
    durable: Tree,
    /// Directories that were renamed, and the directory above not synced since: from, to.
    moves: Vec<(PathBuf, PathBuf)>,
    locks: BTreeSet<PathBuf>,
    /// Changing operations so far.
    operations: u64,
    /// Operations that fail, and how many bytes a write among them still writes.
    faults: BTreeMap<u64, (io::ErrorKind, usize)>,
    failing_from: Option<u64>,
    /// What changes below a directory fail with.
    refused: BTreeMap<PathBuf, io::ErrorKind>,
    /// What reads of files below a directory fail with.
    unreadable: BTreeMap<PathBuf, io::ErrorKind>,
    failing_syncs: Option<(u64, FailedSync)>,
    bytes_max: Option<u64>,
    /// What happens at the end of the next sync of the file system.
    once_synced: Option<Box<dyn FnOnce() + Send>>,
    /// What happens at the end of the next renaming of a directory.
    once_renamed: Option<Box<dyn FnOnce() + Send>>,
    /// Whether nothing can be opened.
    has_no_descriptors: bool,
    gate: Arc<Gate>,
}

/// What a changing operation may do.
enum Verdict {
    Proceed,
    Fail(io::Error),
    /// Write this many bytes, then fail.
    Tear(usize, io::Error),
}

impl FaultyDisk {
    pub fn new() -> FaultyDisk {
        FaultyDisk::default()
    }

    /// Changing operations (create, write, truncate, sync, rename, remove, …) so far.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Lets the changing operation `after` the next one fail; 0 is the next. A write writes `torn`
    /// bytes before.
    pub fn fail_operation(&self, after: u64, kind: io::ErrorKind, torn: usize) {
        let mut state = self.0.lock();
        let at = state.operations + after;
        state.faults.insert(at, (kind, torn));
    }

    /// Faults set by [`FaultyDisk::fail_operation`] that have not come yet.
    pub fn pending_faults(&self) -> usize {
        self.0.lock().faults.len()
    }

    /// Lets every changing operation from `after` the next one on fail, as if the machine had
    /// stopped there.
    pub fn fail_all_operations(&self, after: u64) {
        let mut state = self.0.lock();
        state.failing_from = Some(state.operations + after);
    }

    /// Refuses every change at and below `dir` from now on, as of another user's directory or one
    /// mounted read-only.
    pub fn refuse_changes(&self, dir: &Path, kind: io::ErrorKind) {
        self.0.lock().refused.insert(dir.to_owned(), kind);
    }

    /// Allows them again.
    pub fn allow_changes(&self, dir: &Path) {
        self.0.lock().refused.remove(dir);
    }

    /// Lets every read of a file at or below `path` fail from now on, as of a medium that is worn
    /// out.
    pub fn fail_reads(&self, path: &Path, kind: io::ErrorKind) {
        self.0.lock().unreadable.insert(path.to_owned(), kind);
    }

    /// Lets them succeed again.
    pub fn allow_reads(&self, path: &Path) {
        self.0.lock().unreadable.remove(path);
    }

    /// Lets the next `count` syncs of files or the file system fail.
    pub fn fail_syncs(&self, count: u64, how: FailedSync) {
        self.0.lock().failing_syncs = Some((count, how));
    }

    /// Lets this happen when the next sync of the file system has done its work and has not
    /// returned yet.
    pub fn once_synced(&self, then: impl FnOnce() + Send + 'static) {
        self.0.lock().once_synced = Some(Box::new(then));
    }

    /// Lets this happen when the next directory has its new name and the renaming has not returned
    /// yet.
    pub fn once_renamed(&self, then: impl FnOnce() + Send + 'static) {
        self.0.lock().once_renamed = Some(Box::new(then));
    }

    /// Limits the bytes of all files; a write beyond fills what is left and fails.
    pub fn limit_bytes(&self, bytes_max: Option<u64>) {
        self.0.lock().bytes_max = bytes_max;
    }

    /// Lets nothing be opened from now on, as in a process that has too many files open, or again.
    pub fn take_descriptors(&self, all: bool) {
        self.0.lock().has_no_descriptors = all;
    }

    /// Lets writes and syncs of files below `dir`, the making of such, and the removal of
    /// directories, wait from now on, as on a disk that hangs.
    pub fn stall(&self, dir: &Path) {
        self.gate().state.lock().shut.insert(dir.to_owned());
    }

    /// Blocks until so many operations wait.
    pub fn wait_stalled(&self, count: usize) {
        let gate = self.gate();
        gate.changed.wait_while(&mut gate.state.lock(), |state| state.waiting < count);
    }

    /// Lets what waits below `dir` go on.
    pub fn release(&self, dir: &Path) {
        let gate = self.gate();
        gate.state.lock().shut.remove(dir);
        gate.changed.notify_all();
    }

    fn gate(&self) -> Arc<Gate> {
        self.0.lock().gate.clone()
    }

    /// Bytes of all files.
    pub fn used_bytes(&self) -> u64 {
        self.0.lock().used_bytes()
    }

    /// What the medium holds after the power was cut: a new disk without faults.
    pub fn after_power_cut(&self) -> FaultyDisk {
        let mut image = self.0.lock().durable.clone();
        image.drop_unreachable();
        for file in image.files.values_mut() {
            let bytes = file.lock().durable.clone();
            let content =
                Content { live: bytes.clone(), durable: bytes, dirty_pages: BTreeSet::new() };
            *file = Arc::new(Mutex::new(content));
        }
        let state = State { live: image.clone(), durable: image, ..State::default() };
        FaultyDisk(Arc::new(Mutex::new(state)))
    }

    /// What a new process finds after this one was killed: a new disk without faults. The kernel
    /// still has what was not synced, and no more of it is on the medium than was.
    pub fn after_kill(&self) -> FaultyDisk {
        let state = self.0.lock();
        // A file has one content under its names in both trees.
        let mut copies = HashMap::new();
        let mut copied = |tree: &Tree| {
            let mut tree = tree.clone();
            for file in tree.files.values_mut() {
                let copy = || Arc::new(Mutex::new(file.lock().clone()));
                *file = copies.entry(Arc::as_ptr(file)).or_insert_with(copy).clone();
            }
            tree
        };
        let (live, durable) = (copied(&state.live), copied(&state.durable));
        let moves = state.moves.clone();
        FaultyDisk(Arc::new(Mutex::new(State { live, durable, moves, ..State::default() })))
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.live.files.values().map(|file| file.lock().live.len() as u64).sum()
    }

    /// Counts a changing operation.
    fn begin(&mut self) -> Verdict {
        let at = self.operations;
        self.operations += 1;
        if self.failing_from.is_some_and(|from| at >= from) {
            return Verdict::Fail(io::Error::other("the disk is gone"));
        }
        match self.faults.remove(&at) {
            Some((kind, torn)) => Verdict::Tear(torn, kind.into()),
            None => Verdict::Proceed,
        }
    }

    /// What a change at this path is refused with.
    fn refusal(&self, path: &Path) -> Option<io::Error> {
        find_above(&self.refused, path).map(io::Error::from)
    }

    /// Counts a changing operation that cannot be torn.
    fn begin_whole(&mut self, path: &Path) -> io::Result<()> {
        let verdict = self.begin();
        if let Some(err) = self.refusal(path) {
            return Err(err);
        }
        match verdict {
            Verdict::Proceed => Ok(()),
            Verdict::Fail(err) | Verdict::Tear(_, err) => Err(err),
        }
    }

    fn take_descriptor(&self) -> io::Result<()> {
        match self.has_no_descriptors {
            true => Err(rustix::io::Errno::MFILE.into()),
            false => Ok(()),
        }
    }

    /// How the next sync fails, if it does.
    fn take_failing_sync(&mut self) -> Option<FailedSync> {
        let (count, how) = self.failing_syncs?;
        let left = count.checked_sub(1)?;
        self.failing_syncs = Some((left, how));
        Some(how)
    }

    fn find(&self, path: &Path) -> io::Result<Arc<Mutex<Content>>> {
        self.live.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What is said of a path or of a directory above it.
fn find_above(said: &BTreeMap<PathBuf, io::ErrorKind>, path: &Path) -> Option<io::ErrorKind> {
    said.iter().find(|(above, _)| path.starts_with(above)).map(|(_, kind)| *kind)
}

/// An open file; it outlives its name.
struct FaultyFile {
    disk: Arc<Mutex<State>>,
    /// As which it was opened.
    path: PathBuf,
    content: Arc<Mutex<Content>>,
}

impl FaultyFile {
    fn pass_gate(&self) {
        let gate = self.disk.lock().gate.clone();
        gate.pass(&self.path);
    }
}

impl DiskFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().live.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.disk.lock();
        if let Some(kind) = find_above(&disk.unreadable, &self.path) {
            return Err(kind.into());
        }
        drop(disk);
        let content = self.content.lock();
        let behind = content.live.get(offset as usize..).unwrap_or_default();
        let n = behind.len().min(buf.len());
        buf[..n].copy_from_slice(&behind[..n]);
        Ok(n)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.pass_gate();
        let mut disk = self.disk.lock();
        let verdict = disk.begin();
        if let Some(err) = disk.refusal(&self.path) {
            return Err(err);
        }
        let used = disk.used_bytes();
        let mut content = self.content.lock();
        let (written, result) = match verdict {
            Verdict::Proceed => {
                let growth =
                    (offset + bytes.len() as u64).saturating_sub(content.live.len() as u64);
                let free = disk.bytes_max.map_or(u64::MAX, |max| max.saturating_sub(used));
                let lacking = growth.saturating_sub(free) as usize;
                let result = match lacking {
                    0 => Ok(()),
                    _ => Err(io::ErrorKind::StorageFull.into()),
                };
                (bytes.len().saturating_sub(lacking), result)
            }
            Verdict::Tear(torn, err) => (torn.min(bytes.len()), Err(err)),
            Verdict::Fail(err) => (0, Err(err)),
        };
        content.write(&bytes[..written], offset);
        result
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.lock().begin_whole(&self.path)?;
        let mut content = self.content.lock();
        content.live.resize(len as usize, 0);
        content.dirty_pages.insert(len / PAGE_BYTES);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.pass_gate();
        let mut disk = self.disk.lock();
        disk.begin_whole(&self.path)?;
        let failing = disk.take_failing_sync();
        let mut content = self.content.lock();
        match failing {
            None => {
                content.sync();
                Ok(())
            }
            Some(how) => {
                content.fail_sync(how);
                Err(io::Error::other("the medium did not take it"))
            }
        }
    }
}

struct FaultyLock {
    disk: FaultyDisk,
    path: PathBuf,
}

impl DirLock for FaultyLock {}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        self.disk.0.lock().locks.remove(&self.path);
    }
}

/// An open directory.
struct FaultyDir {
    disk: FaultyDisk,
    path: PathBuf,
}

impl OpenDir for FaultyDir {
    fn sync(&self) -> io::Result<()> {
        let dir = &*self.path;
        self.disk.gate().pass(dir);
        let mut state = self.disk.0.lock();
        state.begin_whole(dir)?;
        let State { live, durable, moves, .. } = &mut *state;
        moves.retain(|(from, to)| {
            let is_here = from.parent() == Some(dir) && to.parent() == Some(dir);
            if is_here {
                durable.move_dir(from, to);
            }
            !is_here
        });
        durable.files.retain(|path, _| path.parent() != Some(dir));
        let in_dir = live.files.iter().filter(|(path, _)| path.parent() == Some(dir));
        durable.files.extend(in_dir.map(|(path, file)| (path.clone(), file.clone())));
        // Directories go with what is in them, and others are nothing to this one: what was renamed
        // in another directory, whose names were not made durable yet, is there under its old name.
        let of_dir = durable.dirs.iter().filter(|path| path.parent() == Some(dir));
        let gone: Vec<_> = of_dir.filter(|path| !live.dirs.contains(*path)).cloned().collect();
        durable.dirs.retain(|path| !gone.iter().any(|gone| path.starts_with(gone)));
        durable.files.retain(|path, _| !gone.iter().any(|gone| path.starts_with(gone)));
        durable.dirs.extend(live.dirs.iter().filter(|path| path.parent() == Some(dir)).cloned());
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.gate().pass(path);
        let mut state = self.0.lock();
        state.begin_whole(path)?;
        for dir in path.ancestors() {
            state.live.dirs.insert(dir.to_owned());
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.0.lock();
        if !state.live.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name_of = |path: &Path| -> Option<OsString> {
            (path.parent() == Some(dir)).then(|| path.file_name().map(|name| name.to_owned()))?
        };
        let dirs =
            state.live.dirs.iter().filter_map(|path| {
                name_of(path).map(|name| DirEntry { name, is_dir: true, len: 0 })
            });
        let files = state.live.files.iter().filter_map(|(path, content)| {
            let len = content.lock().live.len() as u64;
            name_of(path).map(|name| DirEntry { name, is_dir: false, len })
        });
        let mut entries: Vec<_> = dirs.chain(files).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.gate().pass(path);
        let mut state = self.0.lock();
        state.take_descriptor()?;
        state.begin_whole(path)?;
        if !path.parent().is_some_and(|dir| state.live.dirs.contains(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let content = state.live.files.entry(path.to_owned()).or_default().clone();
        content.lock().live.clear();
        Ok(Arc::new(FaultyFile { disk: self.0.clone(), path: path.to_owned(), content }))
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let is_there = self.0.lock().live.files.contains_key(path);
        if is_there { Err(io::ErrorKind::AlreadyExists.into()) } else { self.create(path) }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.0.lock();
        state.take_descriptor()?;
        let content = state.find(path)?;
        drop(state);
        Ok(Arc::new(FaultyFile { disk: self.0.clone(), path: path.to_owned(), content }))
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let refusal = self.0.lock().refusal(path);
        refusal.map_or_else(|| self.open(path), Err)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin_whole(from)?;
        if let Some(file) = state.live.files.remove(from) {
            state.live.files.insert(to.to_owned(), file);
            return Ok(());
        }
        if !state.live.dirs.contains(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.live.move_dir(from, to);
        state.moves.push((from.to_owned(), to.to_owned()));
        let then = state.once_renamed.take();
        drop(state);
        if let Some(then) = then {
            then();
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.begin_whole(path)?;
        match state.live.files.remove(path) {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.gate().pass(path);
        let mut state = self.0.lock();
        state.begin_whole(path)?;
        state.live.dirs.retain(|dir| !dir.starts_with(path));
        state.live.files.retain(|file, _| !file.starts_with(path));
        Ok(())
    }

    fn open_dir(&self, dir: &Path) -> io::Result<Box<dyn OpenDir>> {
        self.0.lock().take_descriptor()?;
        Ok(Box::new(FaultyDir { disk: self.clone(), path: dir.to_owned() }))
    }

    fn sync_file_system(&self, dir: &Path) -> io::Result<()> {
        let gate = self.gate();
        gate.pass_all();
        let mut state = self.0.lock();
        state.take_descriptor()?;
        state.begin_whole(dir)?;
        let failing = state.take_failing_sync();
        for file in state.live.files.values() {
            match failing {
                None => file.lock().sync(),
                Some(how) => file.lock().fail_sync(how),
            }
        }
        if failing.is_none() {
            state.durable = state.live.clone();
            state.moves.clear();
        }
        let then = state.once_synced.take();
        drop(state);
        if let Some(then) = then {
            then();
        }
        match failing {
            None => Ok(()),
            Some(_) => Err(io::Error::other("the medium did not take it")),
        }
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let state = self.0.lock();
        Ok(state.bytes_max.map_or(u64::MAX, |max| max.saturating_sub(state.used_bytes())))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let mut state = self.0.lock();
        if let Some(err) = state.refusal(path) {
            return Err(err);
        }
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(FaultyLock { disk: self.clone(), path: path.to_owned() }))
    }
}

#[cfg(test)]
mod tests;
