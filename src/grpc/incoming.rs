//! Connections to the gRPC listener, their TLS handshake done if there is to be TLS.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::http::{accept_rest, pause_after};
use crate::tls::server::ServerTls;
use crate::tls::stream::MaybeTls;

/// Connections that are ready and not yet taken, which they are at once.
const READY_MAX: usize = 16;

/// Handshakes under way when the listener begins to drain get this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Where connections go, one after the other.
#[derive(Clone)]
struct Lanes {
    ready: Arc<[mpsc::Sender<io::Result<MaybeTls>>]>,
    next: Arc<AtomicUsize>,
}

impl Lanes {
    /// Nobody takes connections any more if serving has failed.
    async fn send(&self, stream: MaybeTls) {
        let lane = self.next.fetch_add(1, Ordering::Relaxed) % self.ready.len();
        let _ = self.ready[lane].send(Ok(stream)).await;
    }

    /// All of them end together.
    async fn closed(&self) {
        self.ready[0].closed().await;
    }
}

/// Deals connections out to as many receivers as asked for, at least one. Ends soon after
/// `draining`, or else with its receivers; handshakes under way then are given up.
pub(super) fn incoming(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    draining: CancellationToken,
    lanes: usize,
) -> Vec<ReceiverStream<io::Result<MaybeTls>>> {
    let lanes = (0..lanes.max(1)).map(|_| mpsc::channel(READY_MAX));
    let (ready, incoming): (Vec<_>, Vec<_>) = lanes.unzip();
    let lanes = Lanes { ready: ready.into(), next: Arc::default() };
    tokio::spawn(accept(listener, tls, lanes, draining));
    incoming.into_iter().map(ReceiverStream::new).collect()
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    lanes: Lanes,
    draining: CancellationToken,
) {
    let mut handshakes = JoinSet::new();
    let shake_hands = |handshakes: &mut JoinSet<()>, stream: TcpStream| {
        // It only helps: a socket without works.
        let _ = stream.set_nodelay(true);
        let (tls, lanes) = (tls.clone(), lanes.clone());
        handshakes.spawn(async move {
            // Why a handshake failed has been counted.
            if let Ok(stream) = MaybeTls::accept(stream, tls.as_deref()).await {
                lanes.send(stream).await;
            }
        });
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
            () = lanes.closed() => return,
            () = draining.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => shake_hands(&mut handshakes, stream),
            Err(error) => pause_after(&error).await,
        }
    }
    for (stream, _) in accept_rest(listener) {
        shake_hands(&mut handshakes, stream);
    }
    let all = async { while handshakes.join_next().await.is_some() {} };
    // Those that are not done by then are given up.
    let _ = timeout(DRAIN_TIMEOUT, all).await;
}

impl Connected for MaybeTls {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp().connect_info()
    }
}
