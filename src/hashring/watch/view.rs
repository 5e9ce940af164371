//! What others see of the hashrings file.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::hashring::{Hashring, OutOfReach};
use crate::model::Timestamp;
use crate::model::ring_hash::RingHash;

/// How long somebody who wants held rings taken waits until they are.
const TAKE_PATIENCE: Duration = Duration::from_secs(10);

/// The state of the file, for people.
#[derive(Clone, Debug, Default)]
pub struct FileStatus {
    /// Of the content in force, as in `thanos_receive_config_hash`.
    pub config_hash: Option<u64>,
    /// When that content was taken.
    pub loaded_at: Option<Timestamp>,
    /// What is wrong with the content that was read last, if anything.
    pub last_error: Option<String>,
    /// A good content that is not in force yet.
    pub held: Option<HeldRings>,
}

/// Rings of the file that are held back.
#[derive(Clone, Debug)]
pub struct HeldRings {
    pub hashring: Arc<Hashring>,
    /// Of their content, as in `thanos_receive_config_hash`.
    pub config_hash: u64,
    pub since: Timestamp,
    /// When they are put in force whatever the reason.
    pub until: Timestamp,
    pub reason: OutOfReach,
}

/// What others see of the file, and may ask of whoever follows it. Clones share it.
#[derive(Clone)]
pub struct FileView {
    pub(super) status: watch::Receiver<FileStatus>,
    pub(super) asked: Arc<Asked>,
}

/// Held rings that are to be taken at once.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) rings: Mutex<Option<RingHash>>,
    pub(super) told: Notify,
}

impl FileView {
    /// Of rings that are no file's.
    pub fn fixed(status: FileStatus) -> FileView {
        FileView { status: watch::channel(status).1, asked: Arc::default() }
    }

    /// The state of the file now.
    pub fn status(&self) -> FileStatus {
        self.status.borrow().clone()
    }

    /// Has the rings taken that are held back, and waits until they are held no more.
    pub async fn take_held(&self) -> TakeHeld {
        let Some(hash) = self.held_hash() else { return TakeHeld::NoneHeld };
        *self.asked.rings.lock() = Some(hash);
        self.asked.told.notify_one();
        let mut status = self.status.clone();
        let is_over = |status: &FileStatus| {
            status.held.as_ref().is_none_or(|held| held.hashring.hash() != hash)
        };
        // The first fails if a disk hangs that the file is on, the second if nobody follows the file
        // any more, as when the node stops.
        match tokio::time::timeout(TAKE_PATIENCE, status.wait_for(is_over)).await {
            Ok(Ok(_)) => TakeHeld::Taken,
            Err(_) | Ok(Err(_)) => TakeHeld::Asked,
        }
    }

    fn held_hash(&self) -> Option<RingHash> {
        self.status.borrow().held.as_ref().map(|held| held.hashring.hash())
    }
}

/// What became of a wish to take the rings that are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeHeld {
    /// They are held no more.
    Taken,
    /// They will be taken, but are not yet.
    Asked,
    NoneHeld,
}
