//! The snapshot in force, shared by all who place series.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::hashring::Hashring;

/// The hashring in force. Clones share it. A request loads it once and keeps what it got.
#[derive(Clone)]
pub struct CurrentHashring {
    /// For readers on the write path.
    snapshot: Arc<ArcSwapOption<Hashring>>,
    /// For those who act on a change, such as dropping connections to peers that left.
    changes: watch::Sender<Option<Arc<Hashring>>>,
    /// Called with a snapshot before anybody is given it.
    prepare: Arc<dyn Fn(&Hashring) + Send + Sync>,
    /// Held from the preparation of a snapshot until it is in force.
    replacing: Arc<Mutex<()>>,
}

impl CurrentHashring {
    /// Nothing is in force yet: the node is not ready.
    pub fn none_yet() -> CurrentHashring {
        CurrentHashring::prepared_by(|_| ())
    }

    /// As [`CurrentHashring::none_yet`]. `prepare` is called with each snapshot before anybody is
    /// given it, so that the peers it needs are there.
    pub fn prepared_by(prepare: impl Fn(&Hashring) + Send + Sync + 'static) -> CurrentHashring {
        CurrentHashring {
            snapshot: Arc::default(),
            changes: watch::Sender::new(None),
            prepare: Arc::new(prepare),
            replacing: Arc::default(),
        }
    }

    /// A hashring that is given once and for all.
    pub fn fixed(hashring: Hashring) -> CurrentHashring {
        let current = CurrentHashring::none_yet();
        current.replace(hashring);
        current
    }

    /// The snapshot, or None if there was no usable configuration so far.
    pub fn load(&self) -> Option<Arc<Hashring>> {
        self.snapshot.load_full()
    }

    /// Told of each change after [`CurrentHashring::load`] gives the new snapshot.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Hashring>>> {
        self.changes.subscribe()
    }

    /// Calls `act` with the snapshot while no other is being prepared.
    pub fn while_settled<T>(&self, act: impl FnOnce(Option<&Hashring>) -> T) -> T {
        let _replacing = self.replacing.lock();
        act(self.snapshot.load().as_deref())
    }

    pub fn replace(&self, hashring: Hashring) {
        let _replacing = self.replacing.lock();
        (self.prepare)(&hashring);
        let hashring = Arc::new(hashring);
        self.snapshot.store(Some(hashring.clone()));
        self.changes.send_replace(Some(hashring));
    }
}
