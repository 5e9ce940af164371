//! Work on large requests, off the threads that serve the sockets.
//!
//! A worker of the runtime that inflates 200 MB answers nobody else meanwhile, probes included. So a
//! piece of work on more than [`LARGE_BYTES`] is done on a thread of the blocking pool: as many at a
//! time as there are cores, the others in the order in which they came. What waits is counted
//! against the budgets of its request. The usual request never comes here, and pays one comparison.
//!
//! Messages of reads have places of their own, or writes would wait behind the answers of queries.

use std::panic;
use std::sync::{Arc, LazyLock};
use std::thread;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::{Gauge, Registry};

/// What is worked on in about a millisecond, or less: 2,000 series of one sample are 0.8 MB.
pub const LARGE_BYTES: usize = 1 << 20;

/// The same for messages of reads, which are inflated and deflated: gzip takes a millisecond for it.
pub const LARGE_MESSAGE_BYTES: usize = 64 << 10;

static WRITES: LazyLock<Room> = LazyLock::new(Room::new);
static READS: LazyLock<Room> = LazyLock::new(Room::new);

/// As many pieces of work as are done at a time.
struct Room {
    places: Arc<Semaphore>,
    places_max: usize,
    /// Pieces of work that wait for one.
    waiting: Gauge,
}

impl Room {
    fn new() -> Room {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let places = Arc::new(Semaphore::new(cores));
        Room { places, places_max: cores, waiting: Gauge::default() }
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let _waits = self.waiting.count();
        // It is never closed.
        self.places.clone().acquire_owned().await.ok()
    }

    async fn off_thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let place = self.place().await;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        match done.await {
            Ok(result) => result,
            Err(failed) if failed.is_panic() => panic::resume_unwind(failed.into_panic()),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Does `work` on `bytes`: here if they are few, else elsewhere, when there is a place. Work whose
/// caller has gone before it began is not done; once begun it is finished, and its result dropped.
pub async fn off_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes <= LARGE_BYTES {
        return work();
    }
    WRITES.off_thread(work).await
}

/// The same for a read's message of `bytes` bytes: large is more than [`LARGE_MESSAGE_BYTES`].
pub async fn message_off_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes <= LARGE_MESSAGE_BYTES {
        return work();
    }
    READS.off_thread(work).await
}

/// As [`off_thread`] for work that borrows: when it is large, its thread stops serving meanwhile, and
/// another serves in its place. On a runtime of one thread it is done here.
#[expect(clippy::disallowed_methods, reason = "the door for it")]
pub async fn in_place<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let has_threads = || Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    if bytes <= LARGE_BYTES || !has_threads() {
        return work();
    }
    let _place = WRITES.place().await;
    tokio::task::block_in_place(work)
}

/// Shows on the page what is worked on and what waits.
pub fn show(registry: &Registry) {
    let limit = registry.gauge_vec(
        "ringest_large_work_under_way_max",
        "Pieces of work on large requests that are done at a time: as many as there are cores.",
        &["of"],
    );
    let used = registry.gauge_vec(
        "ringest_large_work_under_way",
        "Pieces of work on large requests that are being done.",
        &["of"],
    );
    let waiting = registry.gauge_vec(
        "ringest_large_work_waiting",
        "Pieces of work on large requests that wait for others.",
        &["of"],
    );
    for (of, room) in [("write", &WRITES), ("read", &READS)] {
        limit.with(&[of]).set(room.places_max as f64);
        let (used, waiting) = (used.with(&[of]), waiting.with(&[of]));
        registry.on_collect(move || {
            used.set(room.places_max.saturating_sub(room.places.available_permits()) as f64);
            waiting.set(room.waiting.value());
        });
    }
}

/// Takes all places, so that large work on writes waits until they are given back.
#[cfg(test)]
pub(crate) async fn take_all_places() -> OwnedSemaphorePermit {
    take_all_of(&WRITES).await
}

/// The same for messages of reads.
#[cfg(test)]
pub(crate) async fn take_all_places_of_reads() -> OwnedSemaphorePermit {
    take_all_of(&READS).await
}

#[cfg(test)]
async fn take_all_of(room: &Room) -> OwnedSemaphorePermit {
    let all = u32::try_from(room.places_max).unwrap();
    room.places.clone().acquire_many_owned(all).await.unwrap()
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::task::{Context, Poll, Waker};

    use futures::future::join_all;

    use super::*;

    const LARGE: usize = LARGE_BYTES + 1;

    fn this_thread() -> thread::ThreadId {
        thread::current().id()
    }

    #[tokio::test]
    async fn only_large_work_leaves_the_thread() {
        let here = this_thread();
        assert_eq!(off_thread(LARGE_BYTES, this_thread).await, here);
        assert_ne!(off_thread(LARGE, this_thread).await, here);
        assert_eq!(message_off_thread(LARGE_MESSAGE_BYTES, this_thread).await, here);
        assert_ne!(message_off_thread(LARGE_MESSAGE_BYTES + 1, this_thread).await, here);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn large_work_in_its_place_leaves_the_others_a_thread() {
        let (done, is_done) = mpsc::channel();
        let other = tokio::spawn(async move { done.send(()).unwrap() });
        // On a thread of the runtime, as tasks are.
        let work = async move { in_place(LARGE, move || is_done.recv().unwrap()).await };
        tokio::spawn(work).await.unwrap();
        other.await.unwrap();
    }

    #[tokio::test]
    async fn no_more_is_worked_on_at_a_time_than_there_are_cores() {
        let places_max = WRITES.places_max;
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let piece = || {
            let (now, most) = (now.clone(), most.clone());
            off_thread(LARGE, move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
            })
        };
        join_all((0..50 * places_max).map(|_| piece())).await;
        let most = most.load(Ordering::SeqCst);
        assert!((1..=places_max).contains(&most), "{most} of {places_max}");
    }

    #[tokio::test]
    async fn the_page_shows_what_waits() {
        let registry = Registry::new();
        show(&registry);
        let shown = |name: &str| {
            let page = registry.expose();
            let name = format!("{name}{{of=\"write\"}} ");
            let line = page.lines().find_map(|line| line.strip_prefix(&name));
            line.unwrap().parse::<usize>().unwrap()
        };
        let places = take_all_places().await;
        let mut work = std::pin::pin!(off_thread(LARGE, || ()));
        assert!(futures::poll!(&mut work).is_pending());
        // Other tests may have work that waits, too.
        assert!(shown("ringest_large_work_waiting") >= 1);
        assert_eq!(shown("ringest_large_work_under_way"), WRITES.places_max);
        assert_eq!(shown("ringest_large_work_under_way_max"), WRITES.places_max);
        drop(places);
        work.await;
    }

    #[tokio::test]
    async fn writes_do_not_wait_for_reads() {
        let places = take_all_places_of_reads().await;
        off_thread(LARGE, || ()).await;
        let mut read = std::pin::pin!(message_off_thread(LARGE, || ()));
        assert!(futures::poll!(&mut read).is_pending());
        drop(places);
        read.await;
    }

    #[tokio::test]
    async fn what_was_begun_is_finished_without_its_caller() {
        let (begun, has_begun) = mpsc::channel();
        let (go_on, waits) = mpsc::channel();
        let (finished, is_finished) = mpsc::channel();
        let mut work = Box::pin(off_thread(LARGE, move || {
            begun.send(()).unwrap();
            waits.recv().unwrap();
            finished.send(()).unwrap();
        }));
        // There may have to be waited for a place, which other tests have.
        loop {
            let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending));
            if has_begun.try_recv().is_ok() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(work);
        go_on.send(()).unwrap();
        tokio::task::spawn_blocking(move || is_finished.recv()).await.unwrap().unwrap();
    }

    #[tokio::test]
    #[should_panic(expected = "on the way")]
    async fn a_panic_is_the_callers() {
        off_thread(LARGE, || panic!("on the way")).await;
    }
}
