//! The end of a connection, made so that what was written last arrives.
//!
//! A socket that is closed while bytes lie unread in it is reset by the kernel. Its peer, which may
//! still be sending, then loses an answer that it has not read yet: it sees a broken pipe, takes a
//! final refusal for a passing fault, and sends the same again. So the sending side is closed first,
//! and what still comes is passed over until the peer closes its side as well, or falls silent.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::tls::stream::MaybeTls;

/// A peer that sends nothing for so long is taken to have stopped, as Go's server has it.
const SILENCE: Duration = Duration::from_millis(500);

/// Nobody is listened to for longer, however much still comes.
const LONGEST: Duration = Duration::from_secs(5);

/// How far the end of a connection is. Nothing is taken before it begins.
#[derive(Default)]
pub(crate) struct Closing {
    is_shut: bool,
    passing: Option<PassingOver>,
}

impl Closing {
    /// Closes the sending side, then passes over what comes. Ready once the socket can be dropped.
    pub(crate) fn poll(
        &mut self,
        stream: &mut MaybeTls,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let passing = self.passing.get_or_insert_with(PassingOver::begin);
        if !self.is_shut {
            match Pin::new(&mut *stream).poll_shutdown(cx) {
                Poll::Ready(Ok(())) => self.is_shut = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                // What TLS says last is not taken either.
                Poll::Pending => return passing.poll_silence(cx).map(|()| Ok(())),
            }
        }
        // Whatever it is, nobody decrypts it.
        passing.poll(stream.tcp_mut(), cx).map(Ok)
    }
}

/// Passes over what comes until the other end closes its side too or falls silent.
pub(crate) async fn pass_over(stream: &mut (impl AsyncRead + Unpin)) {
    let mut passing = PassingOver::begin();
    poll_fn(|cx| passing.poll(stream, cx)).await;
}

struct PassingOver {
    silence: Pin<Box<Sleep>>,
    ends: Instant,
}

impl PassingOver {
    fn begin() -> PassingOver {
        PassingOver { silence: Box::pin(sleep(SILENCE)), ends: Instant::now() + LONGEST }
    }

    fn poll(&mut self, stream: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [MaybeUninit::uninit(); 16 * 1024];
        loop {
            let mut buf = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    let silent_at = (Instant::now() + SILENCE).min(self.ends);
                    self.silence.as_mut().reset(silent_at);
                    if silent_at == self.ends && self.poll_silence(cx).is_ready() {
                        return Poll::Ready(());
                    }
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.poll_silence(cx),
            }
        }
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.silence.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    async fn close(stream: TcpStream) {
        let (mut closing, mut stream) = (Closing::default(), MaybeTls::Plain(stream));
        poll_fn(|cx| closing.poll(&mut stream, cx)).await.unwrap();
    }

    /// More than the kernel holds for a socket that nobody reads.
    const MANY: usize = 32 << 20;

    #[tokio::test]
    async fn who_sends_first_and_reads_then_gets_the_answer() {
        let (mut client, mut server) = pair().await;
        let served = tokio::spawn(async move {
            server.write_all(b"no").await.unwrap();
            close(server).await;
        });
        client.write_all(&vec![0; MANY]).await.unwrap();
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut client, &mut answer).await.unwrap();
        assert_eq!(answer, b"no");
        drop(client);
        served.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_neither_sends_nor_closes_is_not_waited_for() {
        let (other_end, mut stream) = tokio::io::duplex(64);
        let begun = Instant::now();
        pass_over(&mut stream).await;
        assert_eq!(begun.elapsed(), SILENCE);
        drop(other_end);
        pass_over(&mut stream).await;
        assert_eq!(begun.elapsed(), SILENCE, "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_stops_sending_is_not_waited_for_either() {
        let (mut other_end, mut stream) = tokio::io::duplex(64);
        let sending = tokio::spawn(async move {
            while other_end.write_all(b"x").await.is_ok() {
                sleep(SILENCE / 2).await;
            }
        });
        let begun = Instant::now();
        pass_over(&mut stream).await;
        assert_eq!(begun.elapsed(), LONGEST);
        drop(stream);
        sending.await.unwrap();
    }
}
