//! The HTTP listeners: HTTP/1.1 and HTTP/2, with TLS or without, on a socket that is bound already.
//!
//! What a sender may make us hold is bounded here and in [`remote_write`]:
//!
//! - a head that does not arrive whole within [`ConnectionLimits::header_read_timeout`] closes its
//!   connection, a body that does not within [`remote_write::RequestLimits::body_read_timeout`]
//!   ends its request;
//! - an idle connection costs its read buffer and a task, [`HEAD_BYTES_MAX`] at most and some
//!   kilobytes;
//! - a body's bytes are counted against the node's budget as they arrive.

pub mod closed;
mod connection;
mod metrics;
mod path;
mod question;
pub mod read;
pub mod remote_write;
pub mod respond;
pub mod ring;
pub mod status;
pub mod tenant;
mod unread;

use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Gauge;
use crate::tls::server::ServerTls;
use crate::tls::stream::MaybeTls;
use connection::WatchedStream;

pub use remote_write::remote_write_router;
pub use status::status_router;

/// The largest request head, and the most that hyper reads ahead per HTTP/1.1 connection. Heads
/// of senders are under 1 KiB; a tenant name may add 255 bytes. It is kept small since a connection
/// keeps what it once read ahead: an idle one costs 3 KB before its first request, 18 KB after
/// small bodies and 30 KB after large ones (62 KB with twice this; a body of 100 KB then takes four
/// reads instead of seven).
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Streams that one HTTP/2 connection may have open, as Go's server allows.
pub const STREAMS_MAX: u32 = 250;

/// What HTTP/2 buffers per connection for a body that is not read yet.
const H2_WINDOW_BYTES: u32 = 256 * 1024;

/// Finds peers that vanished without a word, also on HTTP/2 connections, which have no idle limit:
/// probes from a minute of silence on. The kernel gives up after nine of them.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// More connections do not wait to be accepted, by the habit of the library that listens.
const BACKLOG_MAX: usize = 1024;

/// How long to wait after the process ran out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers whether something holds at the moment, for example whether the node is ready.
#[derive(Clone)]
pub struct Probe(Arc<dyn Fn() -> bool + Send + Sync>);

impl Probe {
    pub fn new(holds: impl Fn() -> bool + Send + Sync + 'static) -> Probe {
        Probe(Arc::new(holds))
    }

    pub fn holds(&self) -> bool {
        (self.0)()
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

/// Serves `router` until `shutdown`, and counts the connections that are `open`. Then the port is closed, while connections that are open may
/// finish for `grace`; what is left is cut. Over HTTP/1.1 a connection is closed with its next
/// answer, or when none is asked for in a while; over HTTP/2 the client is told to open no more
/// streams. A request that comes in the meantime is served like any other.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    router: Router,
    limits: ConnectionLimits,
    open: Gauge,
    shutdown: CancellationToken,
    grace: Duration,
) -> Drained {
    let builder = Arc::new(connection_builder());
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let serve = |stream| {
        let served = serve_connection(
            stream,
            tls.clone(),
            builder.clone(),
            router.clone(),
            limits,
            shutdown.clone(),
            cut.clone(),
        );
        let is_open = open.count();
        connections.spawn(async move {
            served.await;
            drop(is_open);
        });
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => serve(stream),
            Err(error) => pause_after(&error).await,
        }
    }
    accept_rest(listener).into_iter().for_each(|(stream, _)| serve(stream));
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_ok() {
        return Drained { connections_cut: 0 };
    }
    let connections_cut = connections.len();
    cut.cancel();
    connections.wait().await;
    Drained { connections_cut }
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Senders like `up` shut their sending side after the body and still want the answer.
        .half_close(true)
        .max_buf_size(HEAD_BYTES_MAX)
        // On by default, and would close connections that idle; see `connection`.
        .header_read_timeout(None)
        .timer(TokioTimer::new());
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .initial_stream_window_size(H2_WINDOW_BYTES)
        .initial_connection_window_size(H2_WINDOW_BYTES)
        .timer(TokioTimer::new());
    builder
}

/// Errors that concern one connection that is gone already are passed over; the others (no file
/// descriptors, no memory) would come again at once.
pub(crate) async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::warn!(err = %error, "cannot accept a connection");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Closes the port, and returns the connections that the kernel has made on it meanwhile: it would
/// reset them, and their clients may have sent a request already.
pub(crate) fn accept_rest(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let mut rest = Vec::new();
    let Ok(listener) = listener.into_std() else { return rest };
    while rest.len() < BACKLOG_MAX
        && let Ok((stream, peer)) = listener.accept()
    {
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        rest.extend(stream.map(|stream| (stream, peer)));
    }
    rest
}

async fn serve_connection(
    stream: TcpStream,
    tls: Option<Arc<ServerTls>>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    router: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
    cut: CancellationToken,
) {
    // All of it only helps: a socket without works.
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(&stream, true);
    let _ = sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL);
    let stream = tokio::select! {
        accepted = MaybeTls::accept(stream, tls.as_deref()) => match accepted {
            Ok(stream) => stream,
            Err(_) => return,
        },
        () = some_time_after(&shutdown, limits.drain_idle_timeout) => return,
    };
    let (stream, service, progress) = WatchedStream::new(stream, limits, router);
    let connection = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // How a connection ended is its peer's business; requests were measured one by one.
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => progress.drain(),
    }
    // Hyper's own way to end an HTTP/1.1 connection closes one whose next request is on its way.
    let mut is_told = false;
    let drained = poll_fn(|cx| {
        loop {
            if connection.as_mut().poll(cx).is_ready() {
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

/// Ends so long after the token was cancelled.
async fn some_time_after(cancelled: &CancellationToken, time: Duration) {
    cancelled.cancelled().await;
    tokio::time::sleep(time).await;
}

#[cfg(test)]
mod tests;
