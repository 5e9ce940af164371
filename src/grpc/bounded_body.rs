//! A reader's question while it arrives: it is held against the budget of reads, and must be there
//! in time. Else clients that send halves of questions could take any memory, for any time.
//!
//! What it takes once decoded is held from the start, as far as its length allows it to be much.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use crate::grpc::codec::decoded_bytes_most;
use crate::grpc::respond;
use crate::store::budget::{ReadBudget, ReadBudgetGuard};
use crate::store::error::QueryError;

/// From a call's head to the last byte of its question.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// As much of a question is not held: those of health and Info are answered whatever other reads
/// hold, or a busy node would be taken for a dead one.
const FREE_BYTES: usize = 4 * 1024;

/// What a question is held by until its answer ends, since parts of it may be kept so long.
#[derive(Clone)]
pub(super) struct Held(Arc<Mutex<ReadBudgetGuard>>);

impl Held {
    pub(super) fn new(budget: &ReadBudget) -> Held {
        Held(Arc::new(Mutex::new(budget.begin())))
    }

    /// Holds `bytes` of a question in all, and what these may be decoded to.
    pub(super) fn hold(&self, bytes: usize) -> Result<(), QueryError> {
        let bytes = bytes.saturating_add(decoded_bytes_most(bytes));
        self.0.lock().hold_in_all(bytes.saturating_sub(FREE_BYTES))
    }
}

/// The body of a question, which is bounded in bytes and in time.
pub(super) struct BoundedBody {
    inner: Body,
    bytes: usize,
    held: Held,
    timeout: Pin<Box<Sleep>>,
}

impl BoundedBody {
    pub(super) fn wrap(inner: Body, held: Held) -> Body {
        let timeout = Box::pin(tokio::time::sleep(READ_TIMEOUT));
        Body::new(BoundedBody { inner, bytes: 0, held, timeout })
    }
}

impl HttpBody for BoundedBody {
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
            if let Err(error) = this.held.hold(this.bytes) {
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
        // Long ones hold what they may be decoded to as well.
        let decoded = decoded_bytes_most(usize::MAX);
        let budget = ReadBudget::new(decoded + (2 << 20));
        let question = |len| BoundedBody::wrap(half_sent([len]), Held::new(&budget));
        let mut first = question(1 << 20);
        assert_eq!(read_frame(&mut first).await, Ok(1 << 20));
        assert_eq!(read_frame(&mut question(1 << 20)).await, Err(Code::ResourceExhausted));
        assert_eq!(read_frame(&mut question(4 << 10)).await, Ok(4 << 10));
        drop(first);
        let mut large = question(2 << 20);
        assert_eq!(read_frame(&mut large).await, Ok(2 << 20));
        // Nothing is left, and those of health and Info pass.
        assert_eq!(read_frame(&mut question(50)).await, Ok(50));
        assert_eq!(read_frame(&mut question(5 << 10)).await, Err(Code::ResourceExhausted));
    }

    #[tokio::test]
    async fn many_short_frames_hold_no_more_than_their_bytes() {
        let bytes = 6 << 10;
        let budget = ReadBudget::new(bytes + decoded_bytes_most(bytes));
        let frames = half_sent(std::iter::repeat_n(1, bytes));
        let mut question = BoundedBody::wrap(frames, Held::new(&budget));
        for _ in 0..bytes {
            assert_eq!(read_frame(&mut question).await, Ok(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_question_is_not_waited_for() {
        let budget = ReadBudget::new(64 << 10);
        let mut question = BoundedBody::wrap(half_sent([10]), Held::new(&budget));
        assert_eq!(read_frame(&mut question).await, Ok(10));
        assert_eq!(read_frame(&mut question).await, Err(Code::DeadlineExceeded));
    }
}
