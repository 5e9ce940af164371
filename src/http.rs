//! The HTTP listeners: HTTP/1.1 and HTTP/2, with TLS or without, on a socket that is bound already.
//!
//! What a sender may make us hold is bounded here and in [`remote_write`]:
//!
//! - a head that does not arrive whole within [`ConnectionLimits::header_read_timeout`] closes its
//!   connection, a body that does not within [`remote_write::RequestLimits::body_read_timeout`]
//!   ends its request;
//! - an idle connection costs its read buffer and a task, some 20 KB; one whose head was larger is
//!   closed with its answer;
//! - a body's bytes are counted against the node's budget as they arrive.

pub mod closed;
mod connection;
mod gone;
mod metrics;
mod path;
mod question;
pub mod read;
pub mod remote_write;
pub mod respond;
pub mod ring;
pub mod status;
mod target;
pub mod tenant;
mod unread;

use std::error::Error;
use std::future::{Future as _, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::door::accept::Accepted;
use crate::door::heads::{H2_BYTES_MAX, Heads};
use crate::door::stream::ClientStream;
use crate::door::{Door, HeadLimits};
use crate::tls::server::ServerTls;
use crate::tls::stream::MaybeTls;
use gone::ClientGone;
use target::EscapedTargets;

pub use remote_write::remote_write_router;
pub use status::status_router;

/// What hyper reads ahead at least.
const H1_BUFFER_BYTES_MIN: usize = 16 * 1024;

/// Streams that one HTTP/2 connection may have open, as Go's server allows.
pub const STREAMS_MAX: u32 = 250;

/// What HTTP/2 buffers per connection for a body that is not read yet.
const H2_WINDOW_BYTES: u32 = 256 * 1024;

/// A client of HTTP/2 that is silent is asked for a sign of life, as over gRPC.
const H2_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const H2_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Answers whether something holds at the moment, for example whether the node is ready.
#[derive(Clone)]
pub struct Probe {
    holds: Arc<dyn Fn() -> bool + Send + Sync>,
    why_not: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

impl Probe {
    pub fn new(holds: impl Fn() -> bool + Send + Sync + 'static) -> Probe {
        Probe { holds: Arc::new(holds), why_not: Arc::new(|| None) }
    }

    /// One that says why it does not hold.
    pub fn saying(self, why_not: impl Fn() -> Option<String> + Send + Sync + 'static) -> Probe {
        Probe { why_not: Arc::new(why_not), ..self }
    }

    pub fn holds(&self) -> bool {
        (self.holds)()
    }

    /// Why it does not hold, if there is more to say of that.
    pub fn why_not(&self) -> Option<String> {
        (self.why_not)()
    }
}

/// How long a connection may keep us waiting.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// From the first byte of a request's head to its last.
    pub header_read_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
    /// Between requests, once the listener drains.
    pub drain_idle_timeout: Duration,
}

impl Default for ConnectionLimits {
    /// Senders send a head in one packet, so ten seconds are ample. Prometheus keeps an idle
    /// connection for five minutes; the server waits longer, so that it is never the one to close
    /// a connection that a request is just being sent on. A drain has to: senders under load send
    /// again within a second, and are told by the answer that it was the last.
    fn default() -> ConnectionLimits {
        ConnectionLimits {
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10 * 60),
            drain_idle_timeout: Duration::from_secs(1),
        }
    }
}

/// How a listener ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still busy when the grace period was over.
    pub connections_cut: usize,
}

/// What clients may agree on in a TLS handshake, as with Go's server.
pub const TLS_PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Serves `router` to those who come in by `door` until `shutdown`. Then the port is closed, while
/// connections that are open may finish for `grace`; what is left is cut. Over HTTP/1.1 a connection
/// is closed with its next answer, or when none is asked for in a while; over HTTP/2 the client is
/// told to open no more streams. A request that comes in the meantime is served like any other.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    router: Router,
    limits: ConnectionLimits,
    door: Door,
    shutdown: CancellationToken,
    grace: Duration,
) -> Drained {
    let builder = Arc::new(connection_builder(door.heads().limits));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let serve = |accepted| {
        let connection = NewConnection {
            accepted,
            tls: tls.clone(),
            builder: builder.clone(),
            router: router.clone(),
            limits,
            heads: door.heads().clone(),
        };
        connections.spawn(connection.serve(shutdown.clone(), cut.clone()));
    };
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = door.accept(&listener) => serve(accepted),
        }
    }
    door.accept_rest(listener).into_iter().for_each(serve);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_ok() {
        return Drained { connections_cut: 0 };
    }
    let connections_cut = connections.len();
    cut.cancel();
    connections.wait().await;
    Drained { connections_cut }
}

fn connection_builder(heads: HeadLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Senders like `up` shut their sending side after the body and still want the answer.
        .half_close(true)
        // What is read ahead of a body is less; see `connection`.
        .max_buf_size(heads.bytes_max.max(H1_BUFFER_BYTES_MIN))
        .max_headers(heads.headers_max)
        // On by default, and would close connections that idle; see `connection`.
        .header_read_timeout(None)
        .timer(TokioTimer::new());
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        // So that those over the cap get an answer of ours.
        .max_header_list_size(H2_BYTES_MAX as u32)
        .initial_stream_window_size(H2_WINDOW_BYTES)
        .initial_connection_window_size(H2_WINDOW_BYTES)
        .keep_alive_interval(H2_KEEPALIVE_INTERVAL)
        .keep_alive_timeout(H2_KEEPALIVE_TIMEOUT)
        .timer(TokioTimer::new());
    builder
}

/// A connection that was taken, and what serves it.
struct NewConnection {
    accepted: Accepted,
    tls: Option<Arc<ServerTls>>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    router: Router,
    limits: ConnectionLimits,
    heads: Arc<Heads>,
}

impl NewConnection {
    async fn serve(self, shutdown: CancellationToken, cut: CancellationToken) {
        let NewConnection { accepted, tls, builder, router, limits, heads } = self;
        let Accepted { stream, peer, place } = accepted;
        let stream = tokio::select! {
            accepted = MaybeTls::accept(stream, tls.as_deref()) => match accepted {
                Ok(stream) => stream,
                Err(_) => return,
            },
            () = some_time_after(&shutdown, limits.drain_idle_timeout) => return,
        };
        let gone = ClientGone::default();
        let (watch, service, progress) =
            connection::watch(limits, router, heads.clone(), gone.clone());
        let stream = ClientStream::new(stream, watch, heads.clone(), place);
        let stream = EscapedTargets::new(stream, progress.clone(), gone);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        // How a connection ended is its peer's business; requests were measured one by one. But one
        // whose head was too large was never seen.
        let ended = |result: Result<(), Box<dyn Error + Send + Sync>>| {
            let error =
                result.as_ref().err().and_then(|error| error.downcast_ref::<hyper::Error>());
            if error.is_some_and(hyper::Error::is_parse_too_large) {
                heads.note(&heads.unread(), Some(peer));
            }
        };
        tokio::select! {
            result = connection.as_mut() => return ended(result),
            () = shutdown.cancelled() => progress.drain(),
        }
        // Hyper's own way to end an HTTP/1.1 connection closes one whose next request is on its way.
        let mut is_told = false;
        let drained = poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                    ended(result);
                    return Poll::Ready(());
                }
                if is_told || !progress.is_multiplexed() {
                    return Poll::Pending;
                }
                connection.as_mut().graceful_shutdown();
                is_told = true;
            }
        });
        tokio::select! {
            () = drained => {}
            () = cut.cancelled() => {}
        }
    }
}

/// Ends so long after the token was cancelled.
async fn some_time_after(cancelled: &CancellationToken, time: Duration) {
    cancelled.cancelled().await;
    tokio::time::sleep(time).await;
}

#[cfg(test)]
mod tests;
