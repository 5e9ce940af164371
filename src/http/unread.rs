//! Bodies of requests that are answered before they were read.
//!
//! A sender that is still sending when its connection is closed may never see the answer, so what is
//! left of a body is read on before the answer goes out, up to a bound, as Go's server does. Then
//! the connection can be used again. If more is left, the answer says that the connection is closed
//! behind it, and [`closing`](crate::door::closing) sees to the rest.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http::header::EXPECT;
use http::request::Parts;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Incoming};
use parking_lot::Mutex;

/// So much of a body is passed over before an answer, as in Go.
const BYTES_MAX: u64 = 256 * 1024;

/// And no longer than this, since the sender waits for its answer.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Where the body of a connection's present request is.
#[derive(Clone, Default)]
pub(super) struct RequestBody(Arc<Mutex<Place>>);

#[derive(Default)]
enum Place {
    /// It was read to its end, or there is none.
    #[default]
    Read,
    /// Whoever serves the request has it.
    Out,
    /// It was given up unread.
    Left(Incoming),
    /// As before, and its sender waits to be asked for it.
    NotAskedFor,
}

impl RequestBody {
    /// Lends the body to whoever serves the request.
    pub(super) fn lend(&self, head: &Parts, body: Incoming) -> Body {
        if body.is_end_stream() {
            *self.0.lock() = Place::Read;
            return Body::empty();
        }
        *self.0.lock() = Place::Out;
        let expects = head.headers.get(EXPECT);
        let waits = expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(CONTINUE));
        Body::new(LentBody { body: Some(body), waits, home: self.clone() })
    }

    /// Passes over what is left of the body, now that there is an answer. False if it is not at its
    /// end: then no other request can follow it.
    pub(super) async fn pass_over(&self) -> bool {
        let place = std::mem::take(&mut *self.0.lock());
        match place {
            Place::Read => true,
            Place::Out | Place::NotAskedFor => false,
            Place::Left(body) if body.size_hint().lower() >= BYTES_MAX => false,
            Place::Left(body) => {
                tokio::time::timeout(TIMEOUT, read_on(body)).await.unwrap_or(false)
            }
        }
    }
}

const CONTINUE: &[u8] = b"100-continue";

/// Whether the body's end comes within the bound.
async fn read_on(mut body: Incoming) -> bool {
    let mut left = BYTES_MAX;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
        let Some(less) = left.checked_sub(bytes) else { return false };
        left = less;
    }
    true
}

/// A body that goes back when it is given up.
struct LentBody {
    /// None once its end was read.
    body: Option<Incoming>,
    /// Its sender waits to be asked for it, which the first look at it does.
    waits: bool,
    home: RequestBody,
}

impl HttpBody for LentBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None) = polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for LentBody {
    fn drop(&mut self) {
        let place = match self.body.take() {
            None => Place::Read,
            Some(body) if body.is_end_stream() => Place::Read,
            Some(_) if self.waits => Place::NotAskedFor,
            Some(body) => Place::Left(body),
        };
        *self.home.0.lock() = place;
    }
}
