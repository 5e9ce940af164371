//! A reader's question while it arrives: it is no longer than it may be, held against the budget of
//! reads, and must be there in time. Else clients that send halves of questions could take any
//! memory, for any time.
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
use crate::wire::grpc::{Encoding, HEAD_BYTES, Head, MessageError};

/// From a call's head to the last byte of its question.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// As much of a question is not held: those of health and Info are answered whatever other reads
/// hold, or a busy node would be taken for a dead one.
const FREE_BYTES: usize = 4 * 1024;

/// What a question is held by until its answer ends, since parts of it may be kept so long; and what
/// an answer takes on its way out.
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

    /// Holds `bytes` of an answer in all.
    pub(super) fn hold_answer(&self, bytes: usize) -> Result<(), QueryError> {
        self.0.lock().hold_in_all(bytes.saturating_sub(FREE_BYTES))
    }
}

/// The body of a question, which is bounded in bytes and in time.
pub(super) struct BoundedBody {
    inner: Body,
    heads: Heads,
    bytes: usize,
    held: Held,
    timeout: Pin<Box<Sleep>>,
}

impl BoundedBody {
    /// `encoding` is that of the call, `message_bytes_max` the cap of each message as it is sent.
    pub(super) fn wrap(
        inner: Body,
        encoding: Option<Encoding>,
        message_bytes_max: usize,
        held: Held,
    ) -> Body {
        let timeout = Box::pin(tokio::time::sleep(READ_TIMEOUT));
        let heads = Heads { encoding, message_bytes_max, head: [0; HEAD_BYTES], come: 0, left: 0 };
        Body::new(BoundedBody { inner, heads, bytes: 0, held, timeout })
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Status> {
        self.heads.pass(data).map_err(|error| respond::message(&error))?;
        self.bytes = self.bytes.saturating_add(data.len());
        self.held.hold(self.bytes).map_err(|error| respond::query(&error))
    }
}

/// The heads of messages, judged as they pass.
struct Heads {
    encoding: Option<Encoding>,
    message_bytes_max: usize,
    /// The next head, of which so many bytes have come.
    head: [u8; HEAD_BYTES],
    come: usize,
    /// What has not come of the message at hand.
    left: usize,
}

impl Heads {
    fn pass(&mut self, mut data: &[u8]) -> Result<(), MessageError> {
        loop {
            let (_, rest) = data.split_at(self.left.min(data.len()));
            self.left -= data.len() - rest.len();
            let (head, rest) = rest.split_at(rest.len().min(HEAD_BYTES - self.come));
            if head.is_empty() {
                return Ok(());
            }
            self.head[self.come..][..head.len()].copy_from_slice(head);
            self.come += head.len();
            data = rest;
            if self.come == HEAD_BYTES {
                self.left = self.judge(self.head)?;
                self.come = 0;
            }
        }
    }

    /// The length of the message behind a head.
    fn judge(&self, head: [u8; HEAD_BYTES]) -> Result<usize, MessageError> {
        let len = Head::parse(head, self.encoding)?.len as usize;
        if len > self.message_bytes_max {
            let max = self.message_bytes_max as u64;
            return Err(MessageError::TooLarge { len: len as u64, max });
        }
        Ok(len)
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
            let data = data.clone();
            if let Err(status) = this.take(&data) {
                return Poll::Ready(Some(Err(status)));
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

    const MESSAGE_BYTES_MAX: usize = 4 << 20;

    /// A body of these frames that never ends: of empty messages, if it is of more than a head.
    fn half_sent(frames: impl IntoIterator<Item = usize, IntoIter: Send + 'static>) -> Body {
        let frames = frames.into_iter().map(|len| vec![0; len]);
        body_of(frames.collect::<Vec<_>>(), stream::pending())
    }

    fn body_of(
        frames: impl IntoIterator<Item = Vec<u8>, IntoIter: Send + 'static>,
        then: impl futures::Stream<Item = Result<Frame<Bytes>, Status>> + Send + 'static,
    ) -> Body {
        let frames = stream::iter(frames).map(|bytes| Ok(Frame::data(bytes.into())));
        Body::new(StreamBody::new(frames.chain(then)))
    }

    fn bounded(body: Body, budget: &ReadBudget) -> Body {
        BoundedBody::wrap(body, None, MESSAGE_BYTES_MAX, Held::new(budget))
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
        let question = |len| bounded(half_sent([len]), &budget);
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
        let mut question = bounded(frames, &budget);
        for _ in 0..bytes {
            assert_eq!(read_frame(&mut question).await, Ok(1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_question_is_not_waited_for() {
        let budget = ReadBudget::new(64 << 10);
        let mut question = bounded(half_sent([10]), &budget);
        assert_eq!(read_frame(&mut question).await, Ok(10));
        assert_eq!(read_frame(&mut question).await, Err(Code::DeadlineExceeded));
    }

    /// Whatever frames a head comes in, and before its message does.
    #[tokio::test]
    async fn a_message_over_its_cap_is_refused_by_its_head() {
        let message = |len: u32, come: usize| {
            let head = Head { is_encoded: false, len }.to_bytes();
            [&head[..], &vec![7; come]].concat()
        };
        let max = MESSAGE_BYTES_MAX as u32;
        let bytes = [message(3, 3), message(0, 0), message(300, 300), message(max + 1, 1)].concat();
        for frame_bytes in [1, 2, 3, 5, 7, 8, 11, 308, bytes.len()] {
            let frames: Vec<_> = bytes.chunks(frame_bytes).map(<[u8]>::to_vec).collect();
            let budget = ReadBudget::new(1 << 20);
            let mut question = bounded(body_of(frames, stream::empty()), &budget);
            let mut passed = 0;
            let refused = loop {
                match read_frame(&mut question).await {
                    Ok(bytes) => passed += bytes,
                    Err(code) => break code,
                }
            };
            assert_eq!(refused, Code::ResourceExhausted, "frames of {frame_bytes}");
            assert!(passed + frame_bytes >= bytes.len() - 1, "frames of {frame_bytes}: {passed}");
        }
        let budget = ReadBudget::new(64 << 20);
        let largest = message(max, MESSAGE_BYTES_MAX);
        let mut question = bounded(body_of([largest], stream::empty()), &budget);
        assert_eq!(read_frame(&mut question).await, Ok(HEAD_BYTES + MESSAGE_BYTES_MAX));
        let mut question = bounded(body_of([vec![2; 5]], stream::empty()), &budget);
        assert_eq!(read_frame(&mut question).await, Err(Code::Internal), "a flag of no meaning");
    }
}
