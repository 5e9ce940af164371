//! Work that nobody waits for any more.
//!
//! A query runs on a thread of its own, and its client may go away or its deadline pass meanwhile.
//! Whoever waits for it holds a [`StopOnDrop`]; the work looks at [`is_asked`] now and then, however
//! deep in it stands, and comes to an end. What it returns then is incomplete, and nobody sees it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    /// The wish that the work of this thread ends, if somebody can have it.
    static CURRENT: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Asks the work to stop when it is dropped.
#[derive(Debug)]
pub struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How the work learns of it.
#[derive(Clone, Debug)]
pub struct Stop(Arc<AtomicBool>);

/// Both ends.
pub fn pair() -> (StopOnDrop, Stop) {
    let asked = Arc::<AtomicBool>::default();
    (StopOnDrop(asked.clone()), Stop(asked))
}

impl Stop {
    /// Whether the work is to stop.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Runs `work` on this thread, within which [`is_asked`] tells of this.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        /// Also after a panic: the thread has other work to do.
        struct Restore(Option<Arc<AtomicBool>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(self.0)));
        work()
    }
}

/// Whether the work of this thread is to stop. Cheap.
pub fn is_asked() -> bool {
    CURRENT
        .with_borrow(|current| current.as_ref().is_some_and(|asked| asked.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_learns_that_nobody_waits() {
        assert!(!is_asked());
        let (waiting, stop) = pair();
        stop.run(|| {
            assert!(!is_asked());
            drop(waiting);
            assert!(is_asked());
            // Work within work is asked by itself.
            let (_waiting, stop) = pair();
            stop.run(|| assert!(!is_asked()));
            assert!(is_asked());
        });
        assert!(!is_asked());
        let (_, stop) = pair();
        let panicked = std::panic::catch_unwind(|| stop.run(|| panic!("a defect")));
        assert!(panicked.is_err() && !is_asked());
    }
}
