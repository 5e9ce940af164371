//! Whether the client of a request has gone while it is answered.
//!
//! Over HTTP/1.1 nobody reads from a socket whose request is being answered, and so nobody sees its
//! end. Who works long for a request asks to be told; then the end is looked for, without taking
//! anything of what may come before it. As in Go, a client that closes its sending side counts as
//! gone. Over HTTP/2 the library drops what is done for a stream that was given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::Extensions;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Of one connection; its requests have it among their extensions.
#[derive(Clone, Default)]
pub(super) struct ClientGone(Arc<State>);

#[derive(Default)]
struct State {
    is_asked_for: AtomicBool,
    gone: CancellationToken,
}

impl ClientGone {
    /// Whether anybody wants to know.
    pub(super) fn is_asked_for(&self) -> bool {
        self.0.is_asked_for.load(Ordering::Relaxed)
    }

    /// Looks for the end of what a client sends. Wakes its task when there may be one.
    pub(super) fn look(&self, stream: &TcpStream, cx: &mut Context<'_>) {
        let mut byte = [0];
        match stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            Poll::Ready(Ok(0) | Err(_)) => self.0.gone.cancel(),
            // What has come is for the next request, if there is to be one.
            Poll::Ready(Ok(_)) | Poll::Pending => {}
        }
    }
}

/// Waits until the client has gone, if that can be seen.
pub(super) async fn client_gone(extensions: &Extensions) {
    match extensions.get::<ClientGone>() {
        Some(ClientGone(state)) => {
            state.is_asked_for.store(true, Ordering::Relaxed);
            state.gone.cancelled().await;
        }
        None => std::future::pending().await,
    }
}
