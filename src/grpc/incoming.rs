//! Connections to the gRPC listener, their TLS handshake done if there is to be TLS.

use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::http::pause_after;
use crate::tls::server::ServerTls;
use crate::tls::stream::MaybeTls;

/// Connections that are ready and not yet taken, which they are at once.
const READY_MAX: usize = 16;

/// Ends with its last receiver; handshakes under way then are given up.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
) -> ReceiverStream<io::Result<MaybeTls>> {
    let (ready, incoming) = mpsc::channel(READY_MAX);
    tokio::spawn(accept(listener, tls, ready));
    ReceiverStream::new(incoming)
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    ready: mpsc::Sender<io::Result<MaybeTls>>,
) {
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
            () = ready.closed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        // It only helps: a socket without works.
        let _ = stream.set_nodelay(true);
        let (tls, ready) = (tls.clone(), ready.clone());
        handshakes.spawn(async move {
            // Why a handshake failed has been counted.
            if let Ok(stream) = MaybeTls::accept(stream, tls.as_deref()).await {
                // Nobody takes connections any more while draining.
                let _ = ready.send(Ok(stream)).await;
            }
        });
    }
}

impl Connected for MaybeTls {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp().connect_info()
    }
}
