//! Encoded messages for services that know of none: questions are inflated before the service sees
//! them, and answered in the encoding they came in, as grpc-go does. What they take meanwhile is
//! held, see [`bounded_body`](crate::grpc::bounded_body). Large ones are worked on off the threads
//! that serve the sockets, see [`heavy`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Request, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::grpc::bounded_body::{BoundedBody, Held};
use crate::grpc::framed::FramedAnswer;
use crate::grpc::incoming::ConnectionEnd;
use crate::grpc::respond;
use crate::store::budget::{HeldAnswer, ReadBudget};
use crate::store::error::QueryError;
use crate::store::pieces::Patience;
use crate::store::slices::{Sliced, Taken};
use crate::wire::grpc::{ACCEPTED, Encoding, GRPC_ACCEPT_ENCODING, GRPC_ENCODING};
use crate::wire::grpc::{HEAD_BYTES, Head, MessageError, timeout_of};
use crate::write::heavy;

/// A generated server of reads, whose messages may be encoded. Its questions are held against a
/// budget until they are answered, and its service is told how patient their clients are.
#[derive(Clone)]
pub struct Compressed<S> {
    service: S,
    /// Of a question, as it is sent and inflated.
    message_bytes_max: usize,
    budget: ReadBudget,
    /// How long a client may take nothing of its answer.
    stall: Duration,
}

impl<S> Compressed<S> {
    pub fn new(
        service: S,
        message_bytes_max: usize,
        budget: ReadBudget,
        stall: Duration,
    ) -> Compressed<S> {
        Compressed { service, message_bytes_max, budget, stall }
    }

    fn patience(&self, request: &Request<Body>) -> Patience {
        // A longer deadline is none, and no sum of times is out of range.
        let timeout = timeout_of(request.headers()).filter(|timeout| *timeout <= TIMEOUT_MAX);
        Patience {
            stall: self.stall,
            taken: Taken::default(),
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            connection: request.extensions().get::<ConnectionEnd>().map(|end| end.0.clone()),
        }
    }
}

/// A longer deadline is none.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl<S: NamedService> NamedService for Compressed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Compressed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let patience = self.patience(&request);
        let taken = patience.taken.clone();
        let [held, inflated, deflated] = [(); 3].map(|()| Held::new(&self.budget));
        let encoding = match Encoding::of(request.headers()) {
            Ok(encoding) => encoding,
            Err(error) => {
                let mut response = respond::message(&error).into_http();
                response.headers_mut().insert(GRPC_ACCEPT_ENCODING, ACCEPTED);
                return Box::pin(std::future::ready(Ok(response)));
            }
        };
        let max = self.message_bytes_max;
        let mut request = request.map(|body| BoundedBody::wrap(body, encoding, max, held.clone()));
        request.extensions_mut().insert(patience);
        if let Some(encoding) = encoding {
            request.headers_mut().remove(GRPC_ENCODING);
            let inflate = Step::Inflate { encoding, max: max as u64, held: inflated.clone() };
            request = request.map(|body| Recoded::wrap(body, inflate));
        }
        let response = self.service.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            // With its status in the head a response has no body, and must not be given one.
            if response.headers().contains_key(Status::GRPC_STATUS) {
                return Ok(response);
            }
            if let Some(framed) = response.extensions_mut().remove::<FramedAnswer>() {
                response = response.map(|_| framed.into_body());
            }
            if let Some(encoding) = encoding {
                response.headers_mut().insert(GRPC_ENCODING, encoding.name());
                response.headers_mut().remove(header::CONTENT_LENGTH);
                let deflate = Step::Deflate { encoding, held: deflated };
                response = response.map(|body| Recoded::wrap(body, deflate));
            }
            let answer = response.extensions_mut().remove::<HeldAnswer>();
            Ok(response.map(|body| Body::new(Sliced::new(body, taken, (held, inflated, answer)))))
        })
    }
}

/// What is done to each message.
#[derive(Clone)]
enum Step {
    /// To `max` bytes at most. What it gets to is held, too.
    Inflate { encoding: Encoding, max: u64, held: Held },
    /// What it gets to is held, likewise.
    Deflate { encoding: Encoding, held: Held },
}

/// Why a message is not passed on.
enum RecodeError {
    Message(MessageError),
    Budget(QueryError),
}

impl From<MessageError> for RecodeError {
    fn from(error: MessageError) -> RecodeError {
        RecodeError::Message(error)
    }
}

impl RecodeError {
    fn status(&self) -> Status {
        match self {
            RecodeError::Message(error) => respond::message(error),
            RecodeError::Budget(error) => respond::query(error),
        }
    }
}

/// A body whose messages are inflated or deflated as they pass, one at a time.
struct Recoded {
    inner: Body,
    step: Step,
    /// The message that has come in part, and what came behind it.
    partial: BytesMut,
    /// The message that is worked on.
    work: Option<Recoding>,
    ready: VecDeque<Bytes>,
}

/// A message in one piece or two.
type Recode = [Bytes; 2];

type Recoding = Pin<Box<dyn Future<Output = Result<Recode, RecodeError>> + Send>>;

impl Recoded {
    fn wrap(inner: Body, step: Step) -> Body {
        let (partial, ready) = (BytesMut::new(), VecDeque::new());
        Body::new(Recoded { inner, step, partial, work: None, ready })
    }

    /// Takes the next message out of `partial`, if it is whole.
    fn next_message(&mut self) -> Result<Option<(Head, Bytes)>, MessageError> {
        let Some(head) = self.partial.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let head = match self.step {
            Step::Inflate { encoding, .. } => Head::parse(*head, Some(encoding))?,
            Step::Deflate { .. } => Head::parse(*head, None)?,
        };
        if self.partial.len() - HEAD_BYTES < head.len as usize {
            return Ok(None);
        }
        self.partial.advance(HEAD_BYTES);
        Ok(Some((head, self.partial.split_to(head.len as usize).freeze())))
    }

    fn take(&mut self, data: Bytes) {
        match self.partial.is_empty() {
            // The usual message comes in one frame, and is not copied.
            true => self.partial = data.into(),
            false => self.partial.extend_from_slice(&data),
        }
    }
}

impl Step {
    async fn recode(self, head: Head, message: Bytes) -> Result<Recode, RecodeError> {
        match self {
            Step::Inflate { encoding, max, held } if head.is_encoded => {
                let most = encoding.inflated_bytes_most(&message, max);
                let inflate = move || inflate(encoding, &message, max, &held);
                heavy::message_off_thread(most, inflate).await
            }
            Step::Deflate { encoding, held } if !message.is_empty() => {
                // It is hardly longer afterwards.
                held.hold_answer(message.len()).map_err(RecodeError::Budget)?;
                let deflate = move || deflate(encoding, &message);
                heavy::message_off_thread(head.len as usize, deflate).await
            }
            _ => Ok([Bytes::copy_from_slice(&head.to_bytes()), message]),
        }
    }
}

fn inflate(
    encoding: Encoding,
    message: &[u8],
    max: u64,
    held: &Held,
) -> Result<Recode, RecodeError> {
    let mut buffer = Vec::new();
    // No more than `max`.
    let admit = |bytes| held.hold(bytes as usize).map_err(RecodeError::Budget);
    let len = encoding.inflate(message, max, &mut buffer, admit)?.len();
    buffer.truncate(len);
    let head = Head { is_encoded: false, len: len_of(len)? };
    Ok([Bytes::copy_from_slice(&head.to_bytes()), buffer.into()])
}

fn deflate(encoding: Encoding, message: &[u8]) -> Result<Recode, RecodeError> {
    let mut buffer = encoding.deflate_behind(vec![0; HEAD_BYTES], message);
    let len = len_of(buffer.len().saturating_sub(HEAD_BYTES))?;
    if let Some(head) = buffer.first_chunk_mut() {
        *head = Head { is_encoded: true, len }.to_bytes();
    }
    Ok([buffer.into(), Bytes::new()])
}

fn len_of(message: usize) -> Result<u32, MessageError> {
    let (len, max) = (message as u64, u64::from(u32::MAX));
    u32::try_from(message).map_err(|_| MessageError::TooLarge { len, max })
}

impl HttpBody for Recoded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Some(work) = &mut this.work {
                let recoded = ready!(work.as_mut().poll(cx));
                this.work = None;
                match recoded {
                    Ok(pieces) => {
                        this.ready.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
                    }
                    Err(error) => return Poll::Ready(Some(Err(error.status()))),
                }
                continue;
            }
            match this.next_message() {
                Ok(Some((head, message))) => {
                    this.work = Some(Box::pin(this.step.clone().recode(head, message)));
                    continue;
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(respond::message(&error)))),
            }
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None if this.partial.is_empty() => return Poll::Ready(None),
                None => {
                    this.partial.clear();
                    let error = respond::message(&MessageError::CutShort);
                    return Poll::Ready(Some(Err(error)));
                }
            };
            match frame.into_data() {
                Ok(data) => this.take(data),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let has_none = self.ready.is_empty() && self.work.is_none() && self.partial.is_empty();
        has_none && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use tonic::Code;

    use super::*;

    fn message(encoding: Encoding, bytes: &[u8]) -> Bytes {
        let deflated = encoding.deflate(bytes);
        let head = Head { is_encoded: true, len: deflated.len() as u32 }.to_bytes();
        [&head[..], &deflated].concat().into()
    }

    fn inflating(encoding: Encoding, message: Bytes, budget: &ReadBudget) -> Body {
        let body = Body::new(Full::new(message).map_err(|never| match never {}));
        let (max, held) = (16 << 20, Held::new(budget));
        Recoded::wrap(body, Step::Inflate { encoding, max, held })
    }

    fn plain(bytes: &[u8]) -> Body {
        let head = Head { is_encoded: false, len: bytes.len() as u32 }.to_bytes();
        Body::new(Full::new([&head[..], bytes].concat().into()).map_err(|never| match never {}))
    }

    fn deflating(encoding: Encoding, body: Body, budget: &ReadBudget) -> Body {
        Recoded::wrap(body, Step::Deflate { encoding, held: Held::new(budget) })
    }

    async fn read(body: Body) -> Result<Bytes, Status> {
        body.collect().await.map(|body| body.to_bytes())
    }

    #[tokio::test]
    async fn what_a_question_inflates_to_is_held() {
        let budget = ReadBudget::new(3 << 20);
        for encoding in [Encoding::Snappy, Encoding::Gzip] {
            for (len, expected) in
                [(60 << 10, Ok(60 << 10)), (4 << 20, Err(Code::ResourceExhausted))]
            {
                let deflated = message(encoding, &vec![b'a'; len]);
                assert!(deflated.len() < 1 << 20);
                let inflated = read(inflating(encoding, deflated, &budget)).await;
                let inflated = inflated.map(|inflated| inflated.len() - HEAD_BYTES);
                assert_eq!(inflated.map_err(|status| status.code()), expected, "{encoding:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_an_answer_is_deflated_to_is_held() {
        let budget = ReadBudget::new(3 << 20);
        for encoding in [Encoding::Snappy, Encoding::Gzip] {
            let mut answer = deflating(encoding, plain(&vec![b'a'; 2 << 20]), &budget);
            answer.frame().await.unwrap().unwrap();
            assert!(budget.held_bytes() > 1 << 20, "{}", budget.held_bytes());
            let another = deflating(encoding, plain(&vec![b'a'; 2 << 20]), &budget);
            assert_eq!(read(another).await.unwrap_err().code(), Code::ResourceExhausted);
            drop(answer);
            assert_eq!(budget.held_bytes(), 0);
            // Small ones pass on a node without room.
            let mut all = budget.begin();
            all.hold(3 << 20).unwrap();
            read(deflating(encoding, plain(&[b'a'; 1000]), &budget)).await.unwrap();
        }
    }

    /// Also such as come in one frame, or in several.
    #[tokio::test]
    async fn messages_of_all_sizes_keep_their_order() {
        let budget = ReadBudget::new(64 << 20);
        for encoding in [Encoding::Snappy, Encoding::Gzip] {
            let sizes = [0, 1, 100, heavy::LARGE_MESSAGE_BYTES + 1, 5, 1 << 20, 0];
            let plain: Vec<u8> = sizes
                .into_iter()
                .flat_map(|len: usize| {
                    let head = Head { is_encoded: false, len: len as u32 }.to_bytes();
                    [&head[..], &vec![len as u8; len]].concat()
                })
                .collect();
            for frame_bytes in [77_777, plain.len()] {
                let frames: Vec<_> =
                    plain.chunks(frame_bytes).map(Bytes::copy_from_slice).collect();
                let frames =
                    futures::stream::iter(frames).map(|bytes| Ok::<_, Status>(Frame::data(bytes)));
                let body = Body::new(StreamBody::new(frames));
                let deflated = read(deflating(encoding, body, &budget)).await.unwrap();
                assert!(deflated.len() < plain.len() / 8);
                let inflated = read(inflating(encoding, deflated, &budget)).await.unwrap();
                assert!(inflated == plain, "{encoding:?} in frames of {frame_bytes}");
            }
        }
    }

    /// A thread that serves sockets is not there for them.
    #[tokio::test]
    async fn large_messages_wait_for_a_place_and_small_ones_do_not() {
        let budget = ReadBudget::new(64 << 20);
        let (small, large) = (vec![b'a'; 60 << 10], vec![b'a'; 1 << 20]);
        let (inflate, deflate) = (
            |bytes: &[u8]| {
                let message = message(Encoding::Snappy, bytes);
                read(inflating(Encoding::Snappy, message, &budget))
            },
            |bytes: &[u8]| read(deflating(Encoding::Snappy, plain(bytes), &budget)),
        );
        let places = heavy::take_all_places_of_reads().await;
        let mut waiting = [Box::pin(inflate(&large)) as Reading, Box::pin(deflate(&large))];
        for reading in &mut waiting {
            assert!(futures::poll!(reading).is_pending());
        }
        assert_eq!(inflate(&small).await.unwrap().len(), HEAD_BYTES + small.len());
        assert!(deflate(&small).await.unwrap().len() < small.len());
        drop(places);
        for reading in waiting {
            reading.await.unwrap();
        }
    }

    type Reading = Pin<Box<dyn Future<Output = Result<Bytes, Status>>>>;
}
