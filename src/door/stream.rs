//! The socket of one client, watched: whoever waits for a byte of it knows how long that may take,
//! and what a head that comes may hold.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BufMut as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::door::FIRST_BYTE_TIMEOUT;
use crate::door::accept::Place;
use crate::door::closing::Closing;
use crate::door::frames::Frames;
use crate::door::heads::{H2_BYTES_MAX, HeadCharge, HeadError, Heads};
use crate::tls::stream::MaybeTls;

/// The rest of a head, or of a frame that holds no data, has so long to come.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a protocol.
pub(crate) trait Watch: Unpin + Send {
    /// The most that is read at once.
    const READ_BYTES_MAX: usize;

    /// Bytes have come. Fails if there is no room for the head that they belong to.
    fn see(&mut self, bytes: &[u8]) -> Result<(), HeadError>;

    /// How long the next byte may take, and which wait that is: the same one goes on over several
    /// bytes. `None` when it is not for us to say.
    fn wait(&self) -> Option<(u64, Duration)>;

    /// What a client is told before its connection is ended for its head.
    fn refusal(&self) -> &'static [u8];

    /// Ready when the connection is to end, whatever it is in.
    fn poll_end(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// A client's connection.
pub(crate) struct ClientStream<W> {
    stream: MaybeTls,
    watch: W,
    heads: Arc<Heads>,
    /// Runs towards the end of the wait that `armed_in` names.
    timer: Pin<Box<Sleep>>,
    armed_in: Option<u64>,
    /// What is left to be said before the connection is ended.
    refusal: Option<Refusal>,
    closing: Closing,
    _place: Place,
}

struct Refusal {
    error: HeadError,
    left: &'static [u8],
}

impl<W: Watch> ClientStream<W> {
    pub(crate) fn watch(&self) -> &W {
        &self.watch
    }

    /// The connection below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        self.stream.tcp()
    }

    pub(crate) fn new(
        stream: MaybeTls,
        watch: W,
        heads: Arc<Heads>,
        place: Place,
    ) -> ClientStream<W> {
        ClientStream {
            stream,
            watch,
            heads,
            timer: Box::pin(sleep(FIRST_BYTE_TIMEOUT)),
            armed_in: None,
            refusal: None,
            closing: Closing::default(),
            _place: place,
        }
    }

    /// Ready once the present wait has taken too long. The timer is set here, when there is a wait
    /// at all, since a head mostly comes in one piece.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((wait, limit)) = self.watch.wait() else {
            self.armed_in = None;
            return Poll::Pending;
        };
        if self.armed_in != Some(wait) {
            self.timer.as_mut().reset(Instant::now() + limit);
            self.armed_in = Some(wait);
        }
        self.timer.as_mut().poll(cx)
    }

    /// Says the refusal and ends the connection.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some(refusal) = &mut self.refusal else { return Poll::Pending };
        while !refusal.left.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, refusal.left)) {
                Ok(written) if written > 0 => refusal.left = &refusal.left[written..],
                Ok(_) => return Poll::Ready(io::ErrorKind::WriteZero.into()),
                Err(error) => return Poll::Ready(error),
            }
        }
        let error = refusal.error;
        // That the client is gone already changes nothing.
        let _ = ready!(self.closing.poll(&mut self.stream, cx));
        Poll::Ready(io::Error::other(error))
    }
}

impl<W: Watch> AsyncRead for ClientStream<W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refusal.is_some() {
            return this.poll_refuse(cx).map(Err);
        }
        if this.watch.poll_end(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let mut limited = (&mut *buf).limit(W::READ_BYTES_MAX);
        match poll_read_buf(Pin::new(&mut this.stream), cx, &mut limited) {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(())),
            Poll::Ready(Ok(_)) => {
                let Err(error) = this.watch.see(&buf.filled()[before..]) else {
                    return Poll::Ready(Ok(()));
                };
                buf.set_filled(before);
                let client = this.stream.tcp().peer_addr().ok();
                this.heads.note(&error, client);
                this.refusal = Some(Refusal { error, left: this.watch.refusal() });
                this.poll_refuse(cx).map(Err)
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => this
                .poll_overdue(cx)
                .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "peer sends nothing"))),
        }
    }
}

impl<W: Watch> AsyncWrite for ClientStream<W> {
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

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ClientStream { stream, closing, .. } = self.get_mut();
        closing.poll(stream, cx)
    }
}

/// HTTP/2 as it comes: which wait a connection is in, and what its head may take.
#[derive(Default)]
pub(crate) struct Http2 {
    frames: Frames,
    charge: HeadCharge,
}

impl Http2 {
    /// Takes what has come. False if it cannot be HTTP/2.
    pub(crate) fn see(&mut self, bytes: &[u8], heads: &Heads) -> Result<bool, HeadError> {
        if !self.frames.see(bytes) {
            return Ok(false);
        }
        if let Some(headers) = self.frames.take_too_many() {
            heads.note(&HeadError::TooMany { headers, max: heads.limits.headers_max }, None);
        }
        match self.frames.head_bytes() {
            0 => drop(self.charge.take()),
            bytes if bytes > H2_BYTES_MAX => {
                return Err(HeadError::TooLarge { bytes, max: H2_BYTES_MAX });
            }
            _ => self.charge.hold(heads, self.frames.head_memory())?,
        }
        Ok(true)
    }

    /// Whether nothing else can have begun so.
    pub(crate) fn is_certain(&self) -> bool {
        self.frames.is_http2()
    }

    /// The wait for the rest of a frame or head, by its number.
    pub(crate) fn partial(&self) -> Option<u32> {
        self.frames.partial()
    }
}

/// A connection that can be nothing but HTTP/2, and that its own requests may end.
pub(crate) struct Http2Only {
    http2: Http2,
    heads: Arc<Heads>,
    end: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Http2Only {
    pub(crate) fn new(heads: Arc<Heads>) -> Http2Only {
        let end = CancellationToken::new();
        let ended = Box::pin(end.clone().cancelled_owned());
        Http2Only { http2: Http2::default(), heads, end, ended }
    }

    /// Ends the connection when cancelled.
    pub(crate) fn end(&self) -> &CancellationToken {
        &self.end
    }
}

impl Watch for Http2Only {
    const READ_BYTES_MAX: usize = usize::MAX;

    fn see(&mut self, bytes: &[u8]) -> Result<(), HeadError> {
        // What is something else is refused by those who read it.
        self.http2.see(bytes, &self.heads).map(drop)
    }

    /// Calls may be as far apart as clients like, but what begins them comes at once.
    fn wait(&self) -> Option<(u64, Duration)> {
        if !self.http2.frames.has_begun() {
            return Some((0, FIRST_BYTE_TIMEOUT));
        }
        self.http2.partial().map(|number| (1 + u64::from(number), HEAD_TIMEOUT))
    }

    fn refusal(&self) -> &'static [u8] {
        b""
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.ended.as_mut().poll(cx)
    }
}
