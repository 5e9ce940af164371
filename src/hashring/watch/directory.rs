//! The watch on the directory that the hashrings file is in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use crate::metrics::Counter;

/// The watch on the directory.
pub(super) struct Follower {
    pub(super) directory: PathBuf,
    pub(super) watch_errors: Counter,
    /// Something happened in the directory. Many events are one.
    pub(super) changed: Arc<Notify>,
    /// None while there is no directory to watch.
    pub(super) watcher: Option<DirectoryWatch>,
}

pub(super) struct DirectoryWatch {
    /// Ends the watch when dropped.
    _watcher: RecommendedWatcher,
    /// The directory itself went away, and with it the watch.
    is_gone: Arc<AtomicBool>,
}

impl Follower {
    pub(super) fn is_watching(&self) -> bool {
        self.watcher.as_ref().is_some_and(|watch| !watch.is_gone.load(Ordering::Relaxed))
    }

    pub(super) fn ensure_watch(&mut self) {
        if !self.is_watching() {
            // The read that follows tells what is wrong with the path.
            self.watcher = self.watch().ok();
        }
    }

    fn watch(&self) -> notify::Result<DirectoryWatch> {
        let is_gone = Arc::new(AtomicBool::new(false));
        let changed = self.changed.clone();
        let errors = self.watch_errors.clone();
        let directory = self.directory.clone();
        let gone = is_gone.clone();
        let on_event = move |event: notify::Result<Event>| {
            match event {
                // Reading the file is an event too.
                Ok(Event { kind: EventKind::Access(_), .. }) => return,
                Ok(event) => {
                    let is_end = matches!(
                        event.kind,
                        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
                    );
                    if is_end && event.paths.contains(&directory) {
                        gone.store(true, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    errors.inc();
                    tracing::error!(component = "receive", err = %error, "error watching file");
                }
            }
            changed.notify_one();
        };
        let mut watcher = notify::recommended_watcher(on_event)?;
        watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
        Ok(DirectoryWatch { _watcher: watcher, is_gone })
    }
}

/// Absolute, as events tell it.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
