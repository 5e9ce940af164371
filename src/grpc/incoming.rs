//! Connections to the gRPC listener, their TLS handshake done if there is to be TLS.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::door::Door;
use crate::door::accept::Accepted;
use crate::door::stream::{ClientStream, Http2Only};
use crate::tls::server::ServerTls;
use crate::tls::stream::MaybeTls;

/// Connections that are ready and not yet taken, which they are at once.
const READY_MAX: usize = 16;

/// Handshakes under way when the listener begins to drain get this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Where connections go, one after the other.
#[derive(Clone)]
struct Lanes {
    ready: Arc<[mpsc::Sender<io::Result<OpenConnection>>]>,
    next: Arc<AtomicUsize>,
}

impl Lanes {
    /// Nobody takes connections any more if serving has failed.
    async fn send(&self, stream: OpenConnection) {
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
    door: Door,
    draining: CancellationToken,
    lanes: usize,
) -> Vec<ReceiverStream<io::Result<OpenConnection>>> {
    let lanes = (0..lanes.max(1)).map(|_| mpsc::channel(READY_MAX));
    let (ready, incoming): (Vec<_>, Vec<_>) = lanes.unzip();
    let lanes = Lanes { ready: ready.into(), next: Arc::default() };
    tokio::spawn(accept(listener, tls, door, lanes, draining));
    incoming.into_iter().map(ReceiverStream::new).collect()
}

/// A connection, counted as open until it is dropped.
type OpenConnection = ClientStream<Http2Only>;

/// Ends a connection when cancelled. Each of its requests has it among its extensions.
#[derive(Clone)]
pub(crate) struct ConnectionEnd(pub(super) CancellationToken);

impl Connected for OpenConnection {
    type ConnectInfo = ConnectionEnd;

    fn connect_info(&self) -> ConnectionEnd {
        ConnectionEnd(self.watch().end().clone())
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    door: Door,
    lanes: Lanes,
    draining: CancellationToken,
) {
    let mut handshakes = JoinSet::new();
    let shake_hands = |handshakes: &mut JoinSet<()>, accepted: Accepted| {
        let (tls, lanes, heads) = (tls.clone(), lanes.clone(), door.heads().clone());
        handshakes.spawn(async move {
            let Accepted { stream, place, .. } = accepted;
            // Why a handshake failed has been counted.
            if let Ok(stream) = MaybeTls::accept(stream, tls.as_deref()).await {
                let watch = Http2Only::new(heads.clone());
                lanes.send(ClientStream::new(stream, watch, heads, place)).await;
            }
        });
    };
    loop {
        tokio::select! {
            accepted = door.accept(&listener) => shake_hands(&mut handshakes, accepted),
            Some(_) = handshakes.join_next() => {}
            () = lanes.closed() => return,
            () = draining.cancelled() => break,
        }
    }
    for accepted in door.accept_rest(listener) {
        shake_hands(&mut handshakes, accepted);
    }
    let all = async { while handshakes.join_next().await.is_some() {} };
    // Those that are not done by then are given up.
    let _ = timeout(DRAIN_TIMEOUT, all).await;
}
