//! Sockets to peers: none is silent for ever, and each tells what it hears: the first word, whether a
//! call was answered, and a farewell.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::socket::{Patience, set_options};
use crate::tls::words::rustls_error;
use crate::wire::http2::{self, Part};

/// A peer that is gone is noticed sooner than a client.
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
    let patience = Patience {
        keepalive_idle: KEEPALIVE_IDLE,
        keepalive_interval: KEEPALIVE_INTERVAL,
        user_timeout,
    };
    set_options(&stream, patience)?;
    Ok(stream)
}

/// Bytes of a first word that are kept: the head of a frame or of a record.
const WORD_BYTES: usize = 9;

/// What has been heard of the other end.
#[derive(Debug, Default)]
pub struct Heard {
    /// The first bytes.
    word: OnceLock<Vec<u8>>,
    /// What TLS said when it ended.
    tls_error: OnceLock<rustls::Error>,
    /// A call was answered, with whatever.
    has_answered: AtomicBool,
    /// It takes no more calls on this connection.
    has_said_goodbye: AtomicBool,
    news: Notify,
}

impl Heard {
    /// Waits for the first bytes.
    pub(super) async fn first_word(&self) -> &[u8] {
        self.wait_for(|heard| heard.word.get()).await
    }

    pub(super) fn tls_error(&self) -> Option<&rustls::Error> {
        self.tls_error.get()
    }

    pub(super) fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed)
    }

    pub(super) fn set_answered(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_said_goodbye(&self) -> bool {
        self.has_said_goodbye.load(Ordering::Relaxed)
    }

    /// Waits for it.
    pub(super) async fn goodbye(&self) {
        self.wait_for(|heard| heard.has_said_goodbye().then_some(())).await;
    }

    async fn wait_for<'a, T>(&'a self, look: impl Fn(&'a Heard) -> Option<T>) -> T {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            // From here on none is missed.
            news.as_mut().enable();
            if let Some(found) = look(self) {
                return found;
            }
            news.await;
        }
    }

    fn set_word(&self, bytes: &[u8]) {
        // It is set once.
        let _ = self.word.set(bytes[..bytes.len().min(WORD_BYTES)].to_vec());
        self.news.notify_waiters();
    }

    fn take_frame(&self, kind: u8) {
        match kind {
            http2::HEADERS => self.set_answered(),
            http2::GOAWAY => {
                self.has_said_goodbye.store(true, Ordering::Relaxed);
                self.news.notify_waiters();
            }
            _ => {}
        }
    }
}

/// A stream that tells what is heard on it, which is to be HTTP/2.
pub(super) struct Listening<S> {
    stream: S,
    heard: Arc<Heard>,
    has_word: bool,
    frames: http2::Frames,
}

impl<S> Listening<S> {
    pub(super) fn new(stream: S) -> (Listening<S>, Arc<Heard>) {
        let heard = Arc::<Heard>::default();
        let frames = http2::Frames::default();
        (Listening { stream, heard: heard.clone(), has_word: false, frames }, heard)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Listening { stream, heard, has_word, frames } = &mut *self;
        let polled = Pin::new(stream).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Ok(())) if buf.filled().len() > before => {
                let bytes = &buf.filled()[before..];
                if !*has_word {
                    heard.set_word(bytes);
                    *has_word = true;
                }
                frames.pass(bytes, |frame, part| {
                    if part == Part::Head {
                        heard.take_frame(frame.kind);
                    }
                });
            }
            Poll::Ready(Err(error)) => {
                if let Some(error) = rustls_error(error) {
                    let _ = heard.tls_error.set(error.clone());
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
    use rustix::net::sockopt;
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
        let (mut stream, heard) = Listening::new(stream);
        other.write_all(b"HTTP/1.1 400 Bad Request").await.unwrap();
        drop(other);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"HTTP/1.1 400 Bad Request");
        assert_eq!(heard.first_word().await, b"HTTP/1.1 ");
    }

    #[tokio::test]
    async fn answers_and_a_farewell_are_heard_however_they_are_cut() {
        // Settings, a farewell's kind within data, an answer, a farewell.
        let mut frames = vec![0, 0, 6, 4, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7];
        let answered_at = frames.len() + http2::HEAD_BYTES;
        frames.extend([0, 0, 1, 1, 4, 0, 0, 0, 1, 7]);
        let goodbye_at = frames.len() + http2::HEAD_BYTES;
        frames.extend([0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        for step in 1..=frames.len() {
            let (mut other, stream) = tokio::io::duplex(1);
            let (mut stream, heard) = Listening::new(stream);
            let mut read = 0;
            for part in frames.chunks(step) {
                for byte in part {
                    other.write_all(&[*byte]).await.unwrap();
                    assert_eq!(stream.read_u8().await.unwrap(), *byte);
                }
                read += part.len();
                assert_eq!(heard.has_answered(), read >= answered_at, "{read} by {step}");
                assert_eq!(heard.has_said_goodbye(), read >= goodbye_at, "{read} by {step}");
            }
            heard.goodbye().await;
        }
        let mut whole = http2::Frames::default();
        let mut kinds = Vec::new();
        whole.pass(&frames, |frame, part| kinds.extend((part == Part::Head).then_some(frame.kind)));
        assert_eq!(kinds, [4, http2::HEADERS, http2::GOAWAY]);
        assert!(!whole.is_within());
    }
}
