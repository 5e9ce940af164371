//! Long answers in pieces, each made on the blocking pool when the client asks for more.
//!
//! The pool's threads are few: none is held while a client doesn't read.

use std::collections::VecDeque;

use futures::{Stream, stream};

use crate::model::stop;
use crate::store::error::QueryError;

/// An answer that is made as it is taken.
pub trait Cursor: Send + 'static {
    type Message: Send + 'static;

    /// Appends the next messages to `ready`. False once all were given; while true, at least one
    /// was appended.
    fn fill(&mut self, ready: &mut VecDeque<Self::Message>) -> Result<bool, QueryError>;
}

/// The messages of an answer. Ends after the first error.
pub fn pieces<C: Cursor>(
    cursor: C,
) -> impl Stream<Item = Result<C::Message, QueryError>> + Send + 'static {
    stream::unfold((Some(cursor), VecDeque::new()), |(cursor, mut ready)| async move {
        if let Some(message) = ready.pop_front() {
            return Some((Ok(message), (cursor, ready)));
        }
        let mut cursor = cursor?;
        let piece = blocking(move || {
            let mut ready = VecDeque::new();
            let more = cursor.fill(&mut ready)?;
            Ok((more.then_some(cursor), ready))
        });
        match piece.await {
            Ok((cursor, mut ready)) => {
                let message = ready.pop_front()?;
                Some((Ok(message), (cursor, ready)))
            }
            Err(error) => Some((Err(error), (None, VecDeque::new()))),
        }
    })
}

/// Runs `query` on the blocking pool: it is CPU work of unbounded length, and may read files. When
/// this is dropped, as the client has gone or its deadline has passed, the work is asked to stop.
pub async fn blocking<T: Send + 'static>(
    query: impl FnOnce() -> Result<T, QueryError> + Send + 'static,
) -> Result<T, QueryError> {
    let (_waiting, stop) = stop::pair();
    let work = move || match stop.run(|| (query(), stop::is_asked())) {
        // It may have ended early, and nobody is to see that.
        (_, true) => Err(QueryError::Interrupted),
        (answer, false) => answer,
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(QueryError::Interrupted))
}

#[cfg(test)]
mod tests {
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
        let messages: Vec<_> = pieces(Failing(0)).map(Result::ok).collect().await;
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
}
