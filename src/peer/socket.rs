//! Sockets to peers: none is silent for ever, and each tells the first thing that it hears.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::tls::words::rustls_error;

/// A connection on which nothing moves is asked for a sign of life after this, and again each
/// interval. It is the kernel that asks: gRPC servers of Go close connections that are pinged.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// What a peer has not acknowledged for so long ends the connection; no less than a slow network
/// may need to recover.
const USER_TIMEOUT_MIN: Duration = Duration::from_secs(15);

/// How long bytes may stay unacknowledged: as long as any call waits for its answer, and then the
/// connection has nobody any more.
pub fn user_timeout(forward_timeout: Duration) -> Duration {
    forward_timeout.max(USER_TIMEOUT_MIN)
}

/// Connects to an address. The socket ends by itself when the other end is gone.
pub(super) async fn connect(address: SocketAddr, user_timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Small frames must not wait for the answer to earlier ones.
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    let millis = u32::try_from(user_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(&stream, millis)?;
    Ok(stream)
}

/// Bytes of a first word that are kept: the head of a frame or of a record.
const WORD_BYTES: usize = 9;

/// The first that is heard from the other end, and what TLS says when it ends.
#[derive(Debug, Default)]
pub(super) struct FirstWord {
    bytes: OnceLock<Vec<u8>>,
    tls_error: OnceLock<rustls::Error>,
    heard: Notify,
}

impl FirstWord {
    /// Waits for it.
    pub(super) async fn heard(&self) -> &[u8] {
        loop {
            let mut heard = std::pin::pin!(self.heard.notified());
            // From here on it is not missed.
            heard.as_mut().enable();
            if let Some(bytes) = self.bytes.get() {
                return bytes;
            }
            heard.await;
        }
    }

    pub(super) fn tls_error(&self) -> Option<&rustls::Error> {
        self.tls_error.get()
    }
}

/// A stream that remembers the first word.
pub(super) struct Listening<S> {
    stream: S,
    word: Arc<FirstWord>,
    has_heard: bool,
}

impl<S> Listening<S> {
    pub(super) fn new(stream: S) -> (Listening<S>, Arc<FirstWord>) {
        let word = Arc::<FirstWord>::default();
        (Listening { stream, word: word.clone(), has_heard: false }, word)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Ok(())) if !self.has_heard && buf.filled().len() > before => {
                let word = &buf.filled()[before..];
                let word = word[..word.len().min(WORD_BYTES)].to_vec();
                // It is set once.
                let _ = self.word.bytes.set(word);
                self.word.heard.notify_waiters();
                self.has_heard = true;
            }
            Poll::Ready(Err(error)) => {
                if let Some(error) = rustls_error(error) {
                    let _ = self.word.tls_error.set(error.clone());
                }
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_does_not_wait_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let timeout = user_timeout(Duration::from_secs(5));
        let stream = connect(listener.local_addr().unwrap(), timeout).await.unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 15_000);
        assert!(stream.nodelay().unwrap());
        assert_eq!(user_timeout(Duration::from_secs(100)), Duration::from_secs(100));
    }

    #[tokio::test]
    async fn the_first_word_is_remembered_and_passed_on() {
        let (mut other, stream) = tokio::io::duplex(64);
        let (mut stream, word) = Listening::new(stream);
        other.write_all(b"HTTP/1.1 400 Bad Request").await.unwrap();
        drop(other);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"HTTP/1.1 400 Bad Request");
        assert_eq!(word.heard().await, b"HTTP/1.1 ");
    }
}
