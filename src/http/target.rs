//! Request targets as Go takes them.
//!
//! Go's server takes any character in a target but control ones and spaces. Ours, by the library
//! that reads heads, refuses quotes and angle brackets, as in `?query={job="x"}` of a client that
//! does not escape. So these are escaped on their way there; what a target means is not changed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::door::stream::{ClientStream, Watch};
use crate::http::connection::Progress;
use crate::http::gone::ClientGone;

/// A connection whose targets are escaped.
pub(super) struct EscapedTargets<S> {
    stream: S,
    progress: Progress,
    gone: ClientGone,
    line: RequestLine,
    /// What was read and did not fit, grown by escapes.
    left: Vec<u8>,
}

/// How far the first line of a head is.
#[derive(Default)]
struct RequestLine {
    /// The head that was seen last.
    head: Option<u32>,
    place: Place,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Method,
    Target,
    /// Whatever follows.
    Behind,
}

impl RequestLine {
    /// Escapes what is to be escaped in bytes of a head. None if nothing is.
    fn escape(&mut self, head: u32, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.head != Some(head) {
            *self = RequestLine { head: Some(head), place: Place::Method };
        }
        if self.place == Place::Behind {
            return None;
        }
        let mut escaped = Vec::new();
        let mut copied = 0;
        for (i, &byte) in bytes.iter().enumerate() {
            match (self.place, byte) {
                (_, b'\n') | (Place::Target, b' ') => {
                    self.place = Place::Behind;
                    break;
                }
                (Place::Method, b' ') => self.place = Place::Target,
                (Place::Target, b'"' | b'<' | b'>' | b'`' | b'#' | 0x80..) => {
                    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                    escaped.extend_from_slice(&bytes[copied..i]);
                    let digit = |four_bits: u8| DIGITS[usize::from(four_bits & 15)];
                    escaped.extend_from_slice(&[b'%', digit(byte >> 4), digit(byte)]);
                    copied = i + 1;
                }
                _ => {}
            }
        }
        if copied == 0 {
            return None;
        }
        escaped.extend_from_slice(&bytes[copied..]);
        Some(escaped)
    }
}

impl<S> EscapedTargets<S> {
    /// `gone` is told when the client has gone while it is answered.
    pub(super) fn new(stream: S, progress: Progress, gone: ClientGone) -> EscapedTargets<S> {
        let (line, left) = (RequestLine::default(), Vec::new());
        EscapedTargets { stream, progress, gone, line, left }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for EscapedTargets<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let Some(head) = this.progress.head() else { return Poll::Ready(Ok(())) };
            let read = &buf.filled()[before..];
            let Some(escaped) = this.line.escape(head, read) else { return Poll::Ready(Ok(())) };
            buf.set_filled(before);
            this.left = escaped;
        }
        let fits = this.left.len().min(buf.remaining());
        buf.put_slice(&this.left[..fits]);
        this.left.drain(..fits);
        Poll::Ready(Ok(()))
    }
}

impl<W: Watch> AsyncWrite for EscapedTargets<ClientStream<W>> {
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

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Comes by whenever the connection is looked after.
        if this.gone.is_asked_for() && this.progress.is_answering() {
            this.gone.look(this.stream.tcp(), cx);
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head as it is passed on when it comes in parts of so many bytes.
    fn escaped(head: &[u8], part: usize) -> Vec<u8> {
        let mut line = RequestLine::default();
        let parts = head.chunks(part);
        parts.flat_map(|part| line.escape(1, part).unwrap_or_else(|| part.to_vec())).collect()
    }

    #[test]
    fn targets_are_escaped_wherever_they_are_cut() {
        let cases: [(&[u8], &[u8]); 6] = [
            (
                b"GET /m?q={a=\"<b>\"} HTTP/1.1\r\nX: \"<>`\r\n\r\n",
                b"GET /m?q={a=%22%3Cb%3E%22} HTTP/1.1\r\nX: \"<>`\r\n\r\n",
            ),
            (b"GET /a#`\xff HTTP/1.1\r\n", b"GET /a%23%60%FF HTTP/1.1\r\n"),
            (b"GET /a?b=c%22 HTTP/1.1\r\n\r\n", b"GET /a?b=c%22 HTTP/1.1\r\n\r\n"),
            // A space ends a target, and what is no request stays none.
            (b"GET /a b\" HTTP/1.1\r\n", b"GET /a b\" HTTP/1.1\r\n"),
            (b"\"<>\r\n\"", b"\"<>\r\n\""),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\""),
        ];
        for (head, expected) in cases {
            for part in 1..=head.len() {
                let passed = escaped(head, part);
                assert_eq!(passed.escape_ascii().to_string(), expected.escape_ascii().to_string());
            }
        }
    }

    #[test]
    fn each_head_begins_anew() {
        let mut line = RequestLine::default();
        assert!(line.escape(1, b"GET / HTTP/1.1\r\n\"").is_none());
        assert!(line.escape(1, b"\"").is_none());
        assert_eq!(line.escape(2, b"GET \"").unwrap(), b"GET %22");
    }
}
