//! A long answer on its way out, in slices: so is known how far its client has come.
//!
//! A transport asks for the next frame of a body when it can send some of it. Frames of a megabyte
//! would tell as much of a slow client as of one that has stopped, so they are given in slices.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A client that takes one in [`STALL_TIMEOUT`](super::pieces::STALL_TIMEOUT) is slow, not stuck.
const SLICE_BYTES: usize = 64 * 1024;

/// When a client has taken something of its answer last.
#[derive(Clone, Debug, Default)]
pub struct Taken(Arc<Mutex<Option<Instant>>>);

impl Taken {
    pub fn last(&self) -> Option<Instant> {
        *self.0.lock()
    }

    fn note(&self) {
        *self.0.lock() = Some(Instant::now());
    }
}

/// A body that is given in slices. What `held` is goes with it.
pub struct Sliced<B, H> {
    inner: B,
    /// Of the frame at hand.
    rest: Bytes,
    taken: Taken,
    _held: H,
}

impl<B, H> Sliced<B, H> {
    pub fn new(inner: B, taken: Taken, held: H) -> Sliced<B, H> {
        Sliced { inner, rest: Bytes::new(), taken, _held: held }
    }
}

impl<B: Body<Data = Bytes> + Unpin, H: Unpin> Body for Sliced<B, H> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        this.taken.note();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let slice = this.rest.split_to(this.rest.len().min(SLICE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        let rest = self.rest.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(rest));
        if let Some(upper) = inner.upper().and_then(|upper| upper.checked_add(rest)) {
            hint.set_upper(upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    #[tokio::test]
    async fn a_frame_is_given_in_slices() {
        let bytes: Bytes = (0..5 * SLICE_BYTES / 2).map(|i| i as u8).collect();
        let taken = Taken::default();
        let mut body = Sliced::new(Full::new(bytes.clone()), taken.clone(), ());
        let mut given = Vec::new();
        while let Some(frame) = body.frame().await {
            let slice = frame.unwrap().into_data().unwrap();
            assert!(slice.len() <= SLICE_BYTES);
            given.extend_from_slice(&slice);
            assert_eq!(body.size_hint().exact(), Some((bytes.len() - given.len()) as u64));
            assert!(taken.last().is_some());
        }
        assert!(given == bytes && body.is_end_stream());
    }
}
