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
//! Waiting for bytes is limited by the idle timeout in `Idle` and by the header timeout in `Head`.
//! In `Busy` the request's own limits rule. A connection that turned out to be HTTP/2 stays in
//! `Multiplexed`, where frames come at any time and hyper does the limiting.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::{Request, Version};
use hyper::body::Incoming;
use hyper::service::Service;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::http::ConnectionLimits;

const IDLE: u8 = 0;
const HEAD: u8 = 1;
const BUSY: u8 = 2;
const MULTIPLEXED: u8 = 3;

/// The socket of one connection.
pub(super) struct WatchedStream {
    stream: TcpStream,
    limits: ConnectionLimits,
    phase: Arc<AtomicU8>,
    /// Runs towards the end of the wait that `armed_in` names.
    timer: Pin<Box<Sleep>>,
    armed_in: Option<u8>,
}

/// The service of one connection.
pub(super) struct WatchedService {
    router: Router,
    phase: Arc<AtomicU8>,
}

impl WatchedStream {
    pub(super) fn new(
        stream: TcpStream,
        limits: ConnectionLimits,
        router: Router,
    ) -> (WatchedStream, WatchedService) {
        let phase = Arc::new(AtomicU8::new(IDLE));
        let timer = Box::pin(tokio::time::sleep(limits.idle_timeout));
        let service = WatchedService { router, phase: phase.clone() };
        (WatchedStream { stream, limits, phase, timer, armed_in: None }, service)
    }

    /// How long the next byte may take; `None` when it is not for us to say.
    fn limit(&self, phase: u8) -> Option<Duration> {
        match phase {
            IDLE => Some(self.limits.idle_timeout),
            HEAD => Some(self.limits.header_read_timeout),
            _ => None,
        }
    }

    /// Ready once the current wait has taken too long. The timer is set here, when there is a wait
    /// at all, since a head mostly comes in one piece.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let phase = self.phase.load(Ordering::Relaxed);
        let Some(limit) = self.limit(phase) else {
            self.armed_in = None;
            return Poll::Pending;
        };
        if self.armed_in != Some(phase) {
            self.timer.as_mut().reset(Instant::now() + limit);
            self.armed_in = Some(phase);
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
                    let changed = Ordering::Relaxed;
                    // Fails in the other phases, where a byte changes nothing.
                    let _ = self.phase.compare_exchange(IDLE, HEAD, changed, changed);
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
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Service<Request<Incoming>> for WatchedService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let multiplexed = request.version() == Version::HTTP_2;
        self.phase.store(if multiplexed { MULTIPLEXED } else { BUSY }, Ordering::Relaxed);
        // A router is always ready, so there is no readiness to wait for.
        let response = tower::Service::call(&mut self.router.clone(), request.map(Body::new));
        let phase = self.phase.clone();
        Box::pin(async move {
            let response = response.await;
            if !multiplexed {
                phase.store(IDLE, Ordering::Relaxed);
            }
            response
        })
    }
}
