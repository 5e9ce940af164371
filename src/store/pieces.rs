//! Long answers in pieces, each made on the blocking pool when the client asks for more.
//!
//! The pool's threads are few: none is held while a client doesn't read. Nor is anything else held
//! for long: an answer whose client takes nothing of it for [`Patience::stall`] ends, and so does
//! one whose client's deadline has passed. Work for a client that has gone is told to stop.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::model::stop;
use crate::store::error::QueryError;
use crate::store::slices::Taken;

/// How long a reader may take nothing of its answer. It may have reasons, such as another store that
/// it waits for; a query that takes so long has mostly been given up.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// An answer that is made as it is taken.
pub trait Cursor: Send + 'static {
    type Message: Send + 'static;

    /// Appends the next messages to `ready`. False once all were given; while true, at least one
    /// was appended.
    fn fill(&mut self, ready: &mut VecDeque<Self::Message>) -> Result<bool, QueryError>;
}

/// Bytes of an answer that are given at a time.
const WHOLE_PIECE_BYTES: usize = 1024 * 1024;

/// An answer that is there as a whole, and what it is held by until it is taken.
pub struct Whole<H> {
    rest: Bytes,
    _held: H,
}

impl<H> Whole<H> {
    pub fn new(bytes: Bytes, held: H) -> Whole<H> {
        Whole { rest: bytes, _held: held }
    }

    /// Bytes that are left.
    pub fn rest(&self) -> &Bytes {
        &self.rest
    }
}

impl<H: Send + 'static> Cursor for Whole<H> {
    type Message = Bytes;

    fn fill(&mut self, ready: &mut VecDeque<Bytes>) -> Result<bool, QueryError> {
        ready.push_back(self.rest.split_to(self.rest.len().min(WHOLE_PIECE_BYTES)));
        Ok(!self.rest.is_empty())
    }
}

/// How long the client of a call waits, and how long for it is waited.
#[derive(Clone, Debug)]
pub struct Patience {
    /// In which the client takes nothing.
    pub stall: Duration,
    /// How far it has come with the piece it was given.
    pub taken: Taken,
    /// When the client gives up, if it has said so.
    pub deadline: Option<Instant>,
    /// Ends the client's connection when cancelled. That is the last resort: an answer that ended
    /// holds what the transport has of it until the client has taken that, too.
    pub connection: Option<CancellationToken>,
}

impl Default for Patience {
    fn default() -> Patience {
        let taken = Taken::default();
        Patience { stall: STALL_TIMEOUT, taken, deadline: None, connection: None }
    }
}

/// The messages of an answer. Ends after the first error.
pub fn pieces<C: Cursor>(
    cursor: C,
    patience: Patience,
) -> impl Stream<Item = Result<C::Message, QueryError>> + Send + 'static {
    let kept = Arc::new(Mutex::new(Kept {
        cursor: Some(cursor),
        has_more: true,
        ready: VecDeque::new(),
        untaken_since: None,
        waker: None,
        ended: None,
    }));
    let watch = tokio::spawn(watch(kept.clone(), patience));
    Pieces { kept, work: None, watch: watch.abort_handle() }
}

/// Runs `query` on the blocking pool: it is CPU work of unbounded length, and may read files. When
/// this is dropped, as the client has gone or its deadline has passed, the work is asked to stop.
pub async fn blocking<T: Send + 'static>(
    query: impl FnOnce() -> Result<T, QueryError> + Send + 'static,
) -> Result<T, QueryError> {
    let (_waiting, stop) = stop::pair();
    let work = move || {
        let work = || {
            // It may have waited for a thread.
            interrupted()?;
            query()
        };
        match stop.run(|| (work(), stop::is_asked())) {
            // It may have ended early, and nobody is to see that.
            (_, true) => Err(QueryError::Interrupted),
            (answer, false) => answer,
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(QueryError::Interrupted))
}

/// Ends work that nobody waits for.
pub(crate) fn interrupted() -> Result<(), QueryError> {
    if stop::is_asked() { Err(QueryError::Interrupted) } else { Ok(()) }
}

/// What an answer holds while its client does something else.
struct Kept<C: Cursor> {
    /// None while it is worked with, and when all is taken: what it holds it holds until then.
    cursor: Option<C>,
    has_more: bool,
    ready: VecDeque<C::Message>,
    /// When the last message was given; none while the client waits for the next.
    untaken_since: Option<Instant>,
    waker: Option<Waker>,
    /// Why the answer ends here.
    ended: Option<QueryError>,
}

impl<C: Cursor> Kept<C> {
    fn end(&mut self, why: QueryError) {
        self.ended = Some(why);
        let (cursor, ready) = (self.cursor.take(), std::mem::take(&mut self.ready));
        drop_elsewhere((cursor, ready));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A cursor may hold millions of series.
fn drop_elsewhere<T: Send + 'static>(what: T) {
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(what))),
        Err(_) => drop(what),
    }
}

/// Ends an answer whose client has lost interest.
async fn watch<C: Cursor>(kept: Arc<Mutex<Kept<C>>>, patience: Patience) {
    let Patience { stall, taken, deadline, connection } = patience;
    loop {
        let next = {
            let mut kept = kept.lock();
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                kept.end(QueryError::DeadlineExceeded);
                break;
            }
            let untaken_since = kept.untaken_since.map(|since| taken.last().max(Some(since)));
            let stalled = untaken_since.flatten().map(|since| since + stall);
            if stalled.is_some_and(|stalled| stalled <= now) {
                kept.end(QueryError::NotTaken(stall));
                break;
            }
            let next = stalled.unwrap_or(now + stall);
            deadline.map_or(next, |deadline| deadline.min(next))
        };
        sleep_until(next).await;
    }
    // The client is told when it takes what it was given before.
    sleep_until(Instant::now() + stall).await;
    if let Some(connection) = connection {
        connection.cancel();
    }
}

type Filled<C> = Result<(C, bool, VecDeque<<C as Cursor>::Message>), QueryError>;

/// See [`pieces`].
struct Pieces<C: Cursor> {
    kept: Arc<Mutex<Kept<C>>>,
    /// Asked to stop when dropped.
    work: Option<Pin<Box<dyn Future<Output = Filled<C>> + Send>>>,
    watch: AbortHandle,
}

impl<C: Cursor> Stream for Pieces<C> {
    type Item = Result<C::Message, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut kept = this.kept.lock();
        kept.untaken_since = None;
        if let Some(why) = kept.ended.take() {
            this.work = None;
            this.watch.abort();
            return Poll::Ready(Some(Err(why)));
        }
        if let Some(message) = kept.ready.pop_front() {
            kept.untaken_since = Some(Instant::now());
            return Poll::Ready(Some(Ok(message)));
        }
        if this.work.is_none() {
            let Some(cursor) = kept.cursor.take() else { return Poll::Ready(None) };
            if !kept.has_more {
                drop_elsewhere(cursor);
                return Poll::Ready(None);
            }
            this.work = Some(Box::pin(fill(cursor)));
        }
        let Some(work) = &mut this.work else { return Poll::Ready(None) };
        let Poll::Ready(filled) = work.as_mut().poll(cx) else {
            kept.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        this.work = None;
        let (cursor, has_more, ready) = match filled {
            Ok(filled) => filled,
            Err(error) => return Poll::Ready(Some(Err(error))),
        };
        (kept.cursor, kept.has_more, kept.ready) = (Some(cursor), has_more, ready);
        let message = kept.ready.pop_front();
        match message.is_some() {
            true => kept.untaken_since = Some(Instant::now()),
            false => kept.cursor.take().map_or((), drop_elsewhere),
        }
        Poll::Ready(message.map(Ok))
    }
}

async fn fill<C: Cursor>(mut cursor: C) -> Filled<C> {
    let piece = blocking(move || {
        let mut ready = VecDeque::new();
        let has_more = cursor.fill(&mut ready)?;
        Ok((cursor, has_more, ready))
    });
    piece.await
}

impl<C: Cursor> Drop for Pieces<C> {
    fn drop(&mut self) {
        self.watch.abort();
        let mut kept = self.kept.lock();
        let (cursor, ready) = (kept.cursor.take(), std::mem::take(&mut kept.ready));
        if cursor.is_some() || !ready.is_empty() {
            drop_elsewhere((cursor, ready));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::StreamExt as _;

    use super::*;

    /// Gives 0 to 3, two at a time, then fails.
    struct Failing(u32);

    impl Cursor for Failing {
        type Message = u32;

        fn fill(&mut self, ready: &mut VecDeque<u32>) -> Result<bool, QueryError> {
            if self.0 == 4 {
                return Err(QueryError::Overloaded);
            }
            ready.extend([self.0, self.0 + 1]);
            self.0 += 2;
            Ok(true)
        }
    }

    #[tokio::test]
    async fn an_answer_ends_with_its_first_error() {
        let messages: Vec<_> =
            pieces(Failing(0), Patience::default()).map(Result::ok).collect().await;
        assert_eq!(messages, [Some(0), Some(1), Some(2), Some(3), None]);
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_is_asked_to_stop() {
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn(blocking(move || {
            begun.send(()).unwrap();
            while !stop::is_asked() {
                std::thread::yield_now();
            }
            ended.send(()).unwrap();
            Ok(())
        }));
        has_begun.await.unwrap();
        waiting.abort();
        has_ended.await.unwrap();
        assert!(waiting.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn a_panic_in_the_work_is_an_error_of_that_query_alone() {
        let answer = blocking(|| -> Result<(), QueryError> { panic!("a defect") }).await;
        assert!(matches!(answer, Err(QueryError::Interrupted)));
    }

    /// Never ends, and tells when it is dropped.
    struct Endless(mpsc::Sender<()>);

    impl Cursor for Endless {
        type Message = u32;

        fn fill(&mut self, ready: &mut VecDeque<u32>) -> Result<bool, QueryError> {
            ready.push_back(0);
            Ok(true)
        }
    }

    impl Drop for Endless {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }

    fn patience(deadline: Option<Duration>) -> (Patience, CancellationToken) {
        let connection = CancellationToken::new();
        let patience = Patience {
            stall: Duration::from_secs(30),
            taken: Taken::default(),
            deadline: deadline.map(|after| Instant::now() + after),
            connection: Some(connection.clone()),
        };
        (patience, connection)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_holds_nothing() {
        let (patience, connection) = patience(None);
        let (dropped, is_dropped) = mpsc::channel();
        let mut pieces = Box::pin(super::pieces(Endless(dropped), patience));
        for _ in 0..3 {
            assert!(matches!(pieces.next().await, Some(Ok(0))));
            // In time.
            tokio::time::sleep(Duration::from_secs(29)).await;
        }
        assert!(is_dropped.try_recv().is_err());
        tokio::time::sleep(Duration::from_secs(2)).await;
        tokio::task::spawn_blocking(move || is_dropped.recv()).await.unwrap().unwrap();
        assert!(!connection.is_cancelled());
        // Who comes back is told.
        assert!(matches!(pieces.next().await, Some(Err(QueryError::NotTaken(_)))));
        assert!(pieces.next().await.is_none());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!connection.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_come_back_loses_its_connection() {
        let (patience, connection) = patience(None);
        let (dropped, _is_dropped) = mpsc::channel();
        let mut pieces = Box::pin(super::pieces(Endless(dropped), patience));
        assert!(matches!(pieces.next().await, Some(Ok(0))));
        connection.cancelled().await;
        drop(pieces);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_at_its_clients_deadline() {
        let (patience, connection) = patience(Some(Duration::from_secs(5)));
        let (dropped, is_dropped) = mpsc::channel();
        let mut pieces = Box::pin(super::pieces(Endless(dropped), patience));
        assert!(matches!(pieces.next().await, Some(Ok(0))));
        tokio::time::sleep(Duration::from_secs(6)).await;
        tokio::task::spawn_blocking(move || is_dropped.recv()).await.unwrap().unwrap();
        assert!(matches!(pieces.next().await, Some(Err(QueryError::DeadlineExceeded))));
        assert!(!connection.is_cancelled());
    }

    /// Works in each piece until it is asked to stop.
    struct Busy;

    impl Cursor for Busy {
        type Message = u32;

        fn fill(&mut self, _: &mut VecDeque<u32>) -> Result<bool, QueryError> {
            while !stop::is_asked() {
                std::thread::yield_now();
            }
            Err(QueryError::Interrupted)
        }
    }

    #[tokio::test]
    async fn a_piece_that_is_being_made_stops_at_the_deadline() {
        let (patience, _) = patience(Some(Duration::from_millis(1)));
        let mut pieces = Box::pin(super::pieces(Busy, patience));
        // The work ends as well, or the runtime would not.
        let ended = pieces.next().await;
        assert!(matches!(ended, Some(Err(QueryError::DeadlineExceeded))), "{ended:?}");
    }
}
