//! Tells connections that idle from connections that stall.
//!
//! Hyper's own header timeout runs while a kept-alive connection merely waits for its next
//! request, so a limit fit for half-sent heads would close every idle sender. Here the socket and
//! the service of one connection share its phase:
//!
//! ```text
//!           first byte             head complete
//!   Idle ──────────────► Head ──────────────────► Busy
//!     ▲                                             │
//!     └──────────────── response made ──────────────┘
//! ```
//!
//! Each return to `Idle` is a new wait, told from the one before by a count beside the phase.
//! Waiting for bytes is limited by the idle timeout in `Idle` and by the header timeout in `Head`.
//! In `Busy` the request's own limits rule. A connection that turned out to be HTTP/2 stays in
//! `Multiplexed`, where frames come at any time and hyper does the limiting.
//!
//! While the listener drains, an idle wait is short, and the next answer says that it is the last. So
//! does one whose request's body was not read.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Version};
use hyper::body::Incoming;
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::door::closing::Closing;
use crate::http::ConnectionLimits;
use crate::http::unread::RequestBody;
use crate::tls::stream::MaybeTls;

const IDLE: u32 = 0;
const HEAD: u32 = 1;
const BUSY: u32 = 2;
const MULTIPLEXED: u32 = 3;

/// Phase, whether the listener drains, and count, in one word.
#[derive(Default)]
struct Phase(AtomicU32);

const PHASE_BITS: u32 = 2;
const DRAINING: u32 = 1 << PHASE_BITS;
const COUNT_SHIFT: u32 = PHASE_BITS + 1;

const fn phase_of(word: u32) -> u32 {
    word & ((1 << PHASE_BITS) - 1)
}

const fn is_draining(word: u32) -> bool {
    word & DRAINING != 0
}

impl Phase {
    fn word(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends an idle wait; in the other phases a byte changes nothing.
    fn see_byte(&self) {
        let word = self.word();
        if phase_of(word) == IDLE {
            let head = word - IDLE + HEAD;
            // Fails if the service was called meanwhile.
            let _ = self.0.compare_exchange(word, head, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn begin(&self, phase: u32) {
        let word = self.word();
        self.0.store(word - phase_of(word) + phase, Ordering::Relaxed);
    }

    fn begin_idle(&self) {
        let word = self.word();
        let count = (word >> COUNT_SHIFT).wrapping_add(1);
        self.0.store(count << COUNT_SHIFT | word & DRAINING | IDLE, Ordering::Relaxed);
    }
}

/// How far a connection is, for those who end it.
pub(super) struct Progress(Arc<Phase>);

impl Progress {
    /// From now on each answer is the last. A wait that is under way begins anew.
    pub(super) fn drain(&self) {
        self.0.0.fetch_or(DRAINING, Ordering::Relaxed);
    }

    /// Whether it has turned out to be HTTP/2.
    pub(super) fn is_multiplexed(&self) -> bool {
        phase_of(self.0.word()) == MULTIPLEXED
    }
}

/// The socket of one connection.
pub(super) struct WatchedStream {
    stream: MaybeTls,
    closing: Closing,
    limits: ConnectionLimits,
    phase: Arc<Phase>,
    /// Runs towards the end of the wait that `armed_in` names by its word.
    timer: Pin<Box<Sleep>>,
    armed_in: Option<u32>,
}

/// The service of one connection.
pub(super) struct WatchedService {
    router: Router,
    phase: Arc<Phase>,
    /// Of the request that is served now. HTTP/2, where they are many, ends each stream by itself.
    body: RequestBody,
}

impl WatchedStream {
    pub(super) fn new(
        stream: MaybeTls,
        limits: ConnectionLimits,
        router: Router,
    ) -> (WatchedStream, WatchedService, Progress) {
        let phase = Arc::new(Phase::default());
        let timer = Box::pin(tokio::time::sleep(limits.idle_timeout));
        let body = RequestBody::default();
        let service = WatchedService { router, phase: phase.clone(), body };
        let progress = Progress(phase.clone());
        let closing = Closing::default();
        let stream = WatchedStream { stream, closing, limits, phase, timer, armed_in: None };
        (stream, service, progress)
    }

    /// How long the next byte may take; `None` when it is not for us to say.
    fn limit(&self, word: u32) -> Option<Duration> {
        match phase_of(word) {
            IDLE if is_draining(word) => Some(self.limits.drain_idle_timeout),
            IDLE => Some(self.limits.idle_timeout),
            HEAD => Some(self.limits.header_read_timeout),
            _ => None,
        }
    }

    /// Ready once the current wait has taken too long. The timer is set here, when there is a wait
    /// at all, since a head mostly comes in one piece.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let word = self.phase.word();
        let Some(limit) = self.limit(word) else {
            self.armed_in = None;
            return Poll::Pending;
        };
        if self.armed_in != Some(word) {
            self.timer.as_mut().reset(Instant::now() + limit);
            self.armed_in = Some(word);
        }
        self.timer.as_mut().poll(cx)
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled_before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if buf.filled().len() > filled_before {
                    self.phase.see_byte();
                }
                Poll::Ready(result)
            }
            Poll::Pending => self
                .poll_overdue(cx)
                .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "peer sends nothing"))),
        }
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let WatchedStream { stream, closing, .. } = &mut *self;
        closing.poll(stream, cx)
    }
}

impl Service<Request<Incoming>> for WatchedService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut router = self.router.clone();
        // A router is always ready, so there is no readiness to wait for.
        if request.version() == Version::HTTP_2 {
            self.phase.begin(MULTIPLEXED);
            return Box::pin(tower::Service::call(&mut router, request.map(Body::new)));
        }
        self.phase.begin(BUSY);
        let (head, body) = request.into_parts();
        let lent = self.body.lend(&head, body);
        let response = tower::Service::call(&mut router, Request::from_parts(head, lent));
        let (phase, body) = (self.phase.clone(), self.body.clone());
        Box::pin(async move {
            let mut response = response.await;
            let is_read = body.pass_over().await;
            if (!is_read || is_draining(phase.word()))
                && let Ok(response) = &mut response
            {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            phase.begin_idle();
            response
        })
    }
}
