//! Answers whose messages are made as they go over the wire, many in a piece, so that none is a
//! message of its own on the way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use tonic::Status;
use tonic::body::Body;

use crate::grpc::respond;
use crate::store::error::QueryError;

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, QueryError>> + Send>>;

/// The messages of an answer, with their heads. Put into the extensions of a response, whose own
/// stream is empty, for whoever sends its body.
#[derive(Clone)]
pub struct FramedAnswer(Arc<Mutex<Option<Pieces>>>);

impl FramedAnswer {
    /// Each piece is of whole messages. An error ends the answer.
    pub fn new(
        pieces: impl Stream<Item = Result<Bytes, QueryError>> + Send + 'static,
    ) -> FramedAnswer {
        FramedAnswer(Arc::new(Mutex::new(Some(Box::pin(pieces)))))
    }

    /// The body of the answer; the first time it is asked for.
    pub fn into_body(self) -> Body {
        Body::new(FramedBody { rest: self.0.lock().take() })
    }
}

struct FramedBody {
    /// None once the status was sent.
    rest: Option<Pieces>,
}

impl HttpBody for FramedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let status = match ready!(rest.as_mut().poll_next(cx)) {
            Some(Ok(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
            Some(Err(error)) => respond::query(&error),
            None => Status::ok(""),
        };
        self.rest = None;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none()
    }
}
