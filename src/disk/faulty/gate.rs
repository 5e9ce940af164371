//! Where operations wait while a disk hangs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use parking_lot::{Condvar, Mutex};

/// What writes and syncs, and what makes files and directories, go through before they do anything.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) state: Mutex<GateState>,
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct GateState {
    /// Files below these directories are held up.
    pub(super) shut: BTreeSet<PathBuf>,
    pub(super) waiting: usize,
}

impl Gate {
    /// For a file below a directory that is not shut.
    pub(super) fn pass(&self, file: &Path) {
        self.pass_unless(|shut| file.starts_with(shut));
    }

    /// For a file system none of whose directories is shut.
    pub(super) fn pass_all(&self) {
        self.pass_unless(|_| true);
    }

    fn pass_unless(&self, is_held_by: impl Fn(&Path) -> bool) {
        let is_shut = |state: &GateState| state.shut.iter().any(|dir| is_held_by(dir));
        let mut state = self.state.lock();
        if !is_shut(&state) {
            return;
        }
        state.waiting += 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |state| is_shut(state));
        state.waiting -= 1;
    }
}
