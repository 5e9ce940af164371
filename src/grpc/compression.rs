//! Encoded messages for services that know of none: questions are inflated before the service sees
//! them, and answered in the encoding they came in, as grpc-go does. What they take meanwhile is
//! held, see [`bounded_body`](crate::grpc::bounded_body).

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
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
use crate::grpc::incoming::ConnectionEnd;
use crate::grpc::{READ_REQUEST_BYTES_MAX, respond};
use crate::store::budget::{HeldAnswer, ReadBudget};
use crate::store::error::QueryError;
use crate::store::pieces::Patience;
use crate::store::slices::{Sliced, Taken};
use crate::wire::grpc::{ACCEPTED, Encoding, GRPC_ACCEPT_ENCODING, GRPC_ENCODING};
use crate::wire::grpc::{HEAD_BYTES, Head, MessageError, timeout_of};

/// A generated server of reads, whose messages may be encoded. Its questions are held against a
/// budget until they are answered, and its service is told how patient their clients are.
#[derive(Clone)]
pub struct Compressed<S> {
    service: S,
    budget: ReadBudget,
    /// How long a client may take nothing of its answer.
    stall: Duration,
}

impl<S> Compressed<S> {
    pub fn new(service: S, budget: ReadBudget, stall: Duration) -> Compressed<S> {
        Compressed { service, budget, stall }
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
        let (held, inflated) = (Held::new(&self.budget), Held::new(&self.budget));
        let mut request = request.map(|body| BoundedBody::wrap(body, held.clone()));
        request.extensions_mut().insert(patience);
        let encoding = match Encoding::of(request.headers()) {
            Ok(encoding) => encoding,
            Err(error) => {
                let mut response = respond::message(&error).into_http();
                response.headers_mut().insert(GRPC_ACCEPT_ENCODING, ACCEPTED);
                return Box::pin(std::future::ready(Ok(response)));
            }
        };
        if let Some(encoding) = encoding {
            request.headers_mut().remove(GRPC_ENCODING);
            let inflate = Step::Inflate(encoding, inflated.clone());
            request = request.map(|body| Recoded::wrap(body, inflate));
        }
        let response = self.service.call(request);
        Box::pin(async move {
            let mut response = response.await?;
            // With its status in the head a response has no body, and must not be given one.
            if response.headers().contains_key(Status::GRPC_STATUS) {
                return Ok(response);
            }
            if let Some(encoding) = encoding {
                response.headers_mut().insert(GRPC_ENCODING, encoding.name());
                response.headers_mut().remove(header::CONTENT_LENGTH);
                response = response.map(|body| Recoded::wrap(body, Step::Deflate(encoding)));
            }
            let answer = response.extensions_mut().remove::<HeldAnswer>();
            Ok(response.map(|body| Body::new(Sliced::new(body, taken, (held, inflated, answer)))))
        })
    }
}

/// What is done to each message.
enum Step {
    /// What it gets to is held, too.
    Inflate(Encoding, Held),
    Deflate(Encoding),
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

/// A body whose messages are inflated or deflated as they pass.
struct Recoded {
    inner: Body,
    step: Step,
    /// The message that has come in part.
    partial: BytesMut,
}

impl Recoded {
    fn wrap(inner: Body, step: Step) -> Body {
        Body::new(Recoded { inner, step, partial: BytesMut::new() })
    }

    /// Takes the messages that are whole out of `partial`.
    fn take_messages(&mut self) -> Result<Bytes, RecodeError> {
        let mut out = BytesMut::new();
        while let Some(head) = self.partial.first_chunk::<HEAD_BYTES>() {
            let head = match self.step {
                Step::Inflate(encoding, ..) => Head::parse(*head, Some(encoding))?,
                Step::Deflate(_) => Head::parse(*head, None)?,
            };
            if let Step::Inflate(..) = self.step
                && head.len as usize > READ_REQUEST_BYTES_MAX
            {
                let max = READ_REQUEST_BYTES_MAX as u64;
                return Err(MessageError::TooLarge { len: u64::from(head.len), max }.into());
            }
            if self.partial.len() - HEAD_BYTES < head.len as usize {
                break;
            }
            self.partial.advance(HEAD_BYTES);
            let message = self.partial.split_to(head.len as usize);
            self.step.recode(head, &message, &mut out)?;
        }
        Ok(out.freeze())
    }
}

impl Step {
    fn recode(
        &mut self,
        head: Head,
        message: &[u8],
        out: &mut BytesMut,
    ) -> Result<(), RecodeError> {
        let mut buffer = Vec::new();
        let (is_encoded, message) = match self {
            Step::Inflate(encoding, held) if head.is_encoded => {
                let max = READ_REQUEST_BYTES_MAX as u64;
                // No more than `max`.
                let admit = |bytes| held.hold(bytes as usize).map_err(RecodeError::Budget);
                (false, encoding.inflate(message, max, &mut buffer, admit)?)
            }
            Step::Deflate(encoding) if !message.is_empty() => {
                buffer = encoding.deflate(message);
                (true, &buffer[..])
            }
            _ => (false, message),
        };
        let len = u32::try_from(message.len()).map_err(|_| MessageError::TooLarge {
            len: message.len() as u64,
            max: u64::from(u32::MAX),
        })?;
        out.extend_from_slice(&Head { is_encoded, len }.to_bytes());
        out.extend_from_slice(message);
        Ok(())
    }
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
            let frame = match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
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
                Ok(data) => {
                    this.partial.extend_from_slice(&data);
                    match this.take_messages() {
                        Ok(messages) if messages.is_empty() => {}
                        Ok(messages) => return Poll::Ready(Some(Ok(Frame::data(messages)))),
                        Err(error) => return Poll::Ready(Some(Err(error.status()))),
                    }
                }
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.partial.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn what_a_question_inflates_to_is_held() {
        let budget = ReadBudget::new(3 << 20);
        for encoding in [Encoding::Snappy, Encoding::Gzip] {
            for (len, expected) in
                [(60 << 10, Ok(60 << 10)), (4 << 20, Err(Code::ResourceExhausted))]
            {
                let deflated = encoding.deflate(&vec![b'a'; len]);
                assert!(deflated.len() < 1 << 20);
                let head = Head { is_encoded: true, len: deflated.len() as u32 }.to_bytes();
                let body = Body::new(
                    Full::new(Bytes::from([&head[..], &deflated].concat()))
                        .map_err(|never| match never {}),
                );
                let inflate = Step::Inflate(encoding, Held::new(&budget));
                let frame = Recoded::wrap(body, inflate).frame().await.unwrap();
                let inflated = frame.map(|frame| frame.into_data().unwrap().len() - HEAD_BYTES);
                assert_eq!(inflated.map_err(|status| status.code()), expected, "{encoding:?}");
            }
        }
    }
}
