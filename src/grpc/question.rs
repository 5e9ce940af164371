//! A reader's question while it arrives: it is held against the budget of reads, and must be there
//! in time. Else clients that send halves of questions could take any memory, for any time.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use crate::grpc::respond;
use crate::store::budget::{ReadBudget, ReadBudgetGuard};
use crate::store::error::QueryError;

/// From a call's head to the last byte of its question.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// As much of a question is not held: those of health and Info are answered whatever other reads
/// hold, or a busy node would be taken for a dead one.
const FREE_BYTES: usize = 4 * 1024;

/// Holds `bytes` of a question in all.
pub(super) fn hold(held: &mut ReadBudgetGuard, bytes: usize) -> Result<(), QueryError> {
    held.hold_in_all(bytes.saturating_sub(FREE_BYTES))
}

/// The body of a question.
pub(super) struct Question {
    inner: Body,
    bytes: usize,
    /// Until the service has read the question and drops its body.
    held: ReadBudgetGuard,
    timeout: Pin<Box<Sleep>>,
}

impl Question {
    pub(super) fn wrap(inner: Body, budget: &ReadBudget) -> Body {
        let timeout = Box::pin(tokio::time::sleep(READ_TIMEOUT));
        Body::new(Question { inner, bytes: 0, held: budget.begin(), timeout })
    }
}

impl HttpBody for Question {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            ready!(this.timeout.as_mut().poll(cx));
            let text = format!("request did not arrive within {READ_TIMEOUT:?}");
            return Poll::Ready(Some(Err(Status::deadline_exceeded(text))));
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.bytes = this.bytes.saturating_add(data.len());
            if let Err(error) = hold(&mut this.held, this.bytes) {
                return Poll::Ready(Some(Err(respond::query(&error))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};
    use tonic::Code;

    use super::*;

    /// A body of these frames that never ends.
    fn half_sent(frames: impl IntoIterator<Item = usize, IntoIter: Send + 'static>) -> Body {
        let frames =
            stream::iter(frames).map(|len| Ok::<_, Status>(Frame::data(vec![0; len].into())));
        Body::new(StreamBody::new(frames.chain(stream::pending())))
    }

    async fn read_frame(body: &mut Body) -> Result<usize, Code> {
        let frame = body.frame().await.unwrap().map_err(|status| status.code())?;
        Ok(frame.into_data().unwrap().len())
    }

    #[tokio::test]
    async fn what_has_come_is_held_until_the_body_is_dropped() {
        let budget = ReadBudget::new(64 << 10);
        let question = |len| Question::wrap(half_sent([len]), &budget);
        let mut first = question(40 << 10);
        assert_eq!(read_frame(&mut first).await, Ok(40 << 10));
        assert_eq!(read_frame(&mut question(40 << 10)).await, Err(Code::ResourceExhausted));
        assert_eq!(read_frame(&mut question(24 << 10)).await, Ok(24 << 10));
        drop(first);
        let mut large = question(68 << 10);
        assert_eq!(read_frame(&mut large).await, Ok(68 << 10));
        // Nothing is left, and a short one passes.
        assert_eq!(read_frame(&mut question(4 << 10)).await, Ok(4 << 10));
        assert_eq!(read_frame(&mut question(5 << 10)).await, Err(Code::ResourceExhausted));
    }

    #[tokio::test]
    async fn many_short_frames_hold_no_more_than_their_bytes() {
        let budget = ReadBudget::new(2 << 10);
        let mut question = Question::wrap(half_sent(std::iter::repeat_n(1, 6 << 10)), &budget);
        for _ in 0..6 << 10 {
            assert_eq!(read_frame(&mut question).await, Ok(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_question_is_not_waited_for() {
        let budget = ReadBudget::new(64 << 10);
        let mut question = Question::wrap(half_sent([10]), &budget);
        assert_eq!(read_frame(&mut question).await, Ok(10));
        assert_eq!(read_frame(&mut question).await, Err(Code::DeadlineExceeded));
    }
}
