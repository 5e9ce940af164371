//! The snapshot in force, shared by all who place series.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::hashring::Hashring;

/// The hashring in force. Clones share it. A request loads it once and keeps what it got.
#[derive(Clone)]
pub struct CurrentHashring {
    /// For readers on the write path.
    snapshot: Arc<ArcSwapOption<Hashring>>,
    /// Since when it is in force.
    since: Arc<Mutex<Option<Instant>>>,
    /// For those who act on a change, such as dropping connections to peers that left.
    changes: watch::Sender<Option<Arc<Hashring>>>,
    /// Called with a snapshot before anybody is given it.
    prepare: Arc<dyn Fn(&Hashring) + Send + Sync>,
    /// A snapshot that is prepared and may be in force some time. Held from the preparation of a
    /// snapshot until it is in force.
    next: Arc<Mutex<Option<Arc<Hashring>>>>,
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
            since: Arc::default(),
            changes: watch::Sender::new(None),
            prepare: Arc::new(prepare),
            next: Arc::default(),
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

    /// The snapshot, and since when it is in force.
    pub fn load_with_time(&self) -> Option<(Arc<Hashring>, Instant)> {
        let since = self.since.lock();
        Some((self.load()?, (*since)?))
    }

    /// Told of each change after [`CurrentHashring::load`] gives the new snapshot, and when a
    /// snapshot that was announced is withdrawn.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Hashring>>> {
        self.changes.subscribe()
    }

    /// Calls `act` with the snapshot, and with the one that is announced, while no other is being
    /// prepared.
    pub fn while_settled<T>(
        &self,
        act: impl FnOnce(Option<&Hashring>, Option<&Hashring>) -> T,
    ) -> T {
        let next = self.next.lock();
        act(self.snapshot.load().as_deref(), next.as_deref())
    }

    /// Puts a snapshot in force. None is announced then.
    pub fn replace(&self, hashring: impl Into<Arc<Hashring>>) {
        let hashring = hashring.into();
        let mut next = self.next.lock();
        (self.prepare)(&hashring);
        *next = None;
        {
            let mut since = self.since.lock();
            self.snapshot.store(Some(hashring.clone()));
            *since = Some(Instant::now());
        }
        self.changes.send_replace(Some(hashring));
    }

    /// Prepares a snapshot that may be put in force later, and stays prepared until then, until
    /// another is announced or until it is withdrawn.
    pub fn announce(&self, hashring: Arc<Hashring>) {
        let mut next = self.next.lock();
        (self.prepare)(&hashring);
        *next = Some(hashring);
    }

    /// The snapshot that was announced will not be put in force.
    pub fn withdraw(&self) {
        if self.next.lock().take().is_some() {
            self.changes.send_modify(|_| ());
        }
    }
}
