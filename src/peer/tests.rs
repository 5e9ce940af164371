use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::AtomicU64;

use futures::future::BoxFuture;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::*;
use crate::grpc::metrics::GrpcMetrics;
use crate::grpc::remote_write::{RemoteWriteOptions, RemoteWriteServer};
use crate::grpc::{GrpcOptions, Services};
use crate::metrics::Registry;
use crate::model::ring_hash::RingHash;
use crate::model::router_path::InstanceId;
use crate::model::target::Target;
use crate::model::tenant::TenantId;
use crate::multi_tsdb::TenantError;
use crate::peer::breaker::State;
use crate::peer::health::UNANSWERED_MAX;
use crate::peer::link::{Link, QUICK_FAILURE_MAX};
use crate::peer::message::{Compression, Envelope};
use crate::write::WriteOutcome;
use crate::write::admission::Admission;
use crate::write::error::{Reason, Unavailable, WriteError};
use crate::write::peer_writes::PeerWrites;
use crate::write::sink::{Sender, WriteSink};

mod addresses;
mod messages;
mod outages;

/// Long enough for anything that is to succeed.
const PATIENCE: Duration = Duration::from_secs(30);
/// For calls that are to time out, whatever else happens within it.
const SHORT: Duration = Duration::from_millis(100);
/// Between attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Answers by the tenant's name, and keeps what it was given.
#[derive(Default)]
struct Sink {
    written: Mutex<Vec<(String, Vec<u8>, u64)>>,
    calls: AtomicU64,
    /// Lets calls for tenant "hangs" go on.
    go_on: Notify,
}

impl WriteSink for Sink {
    async fn write(
        &self,
        tenant: &TenantId,
        message: bytes::Bytes,
        replica: u64,
        _sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        let mut outcome = WriteOutcome::default();
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        match tenant.as_str() {
            "fails-first" if call == 1 => return Err(Unavailable::NotAccepting.into()),
            "conflict" => outcome.refusals.add(Reason::OutOfOrder, 1, String::new),
            "down" => return Err(Unavailable::NotAccepting.into()),
            "opening" => {
                let (tenant, cause) = (tenant.clone(), TenantError::Opening.into());
                return Err(WriteError::TenantNotReady { tenant, cause });
            }
            "hangs" => self.go_on.notified().await,
            _ => {}
        }
        self.written.lock().push((tenant.to_string(), message.to_vec(), replica));
        Ok(outcome)
    }
}

struct Server {
    address: SocketAddr,
    sink: Arc<Sink>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Server {
    fn start(address: SocketAddr) -> Server {
        Server::start_with(address, true, true)
    }

    /// One that says that it takes merged messages, or not, and does, or not.
    fn start_with(address: SocketAddr, takes_merged: bool, serves_merged: bool) -> Server {
        let options =
            GrpcOptions { grace_period: Duration::from_millis(10), ..GrpcOptions::default() };
        Server::start_as(address, takes_merged, serves_merged, options)
    }

    /// One that asks connections to leave at an age.
    fn start_aging(address: SocketAddr, age_max: Duration) -> Server {
        let options = GrpcOptions { connection_age_max: Some(age_max), ..GrpcOptions::default() };
        Server::start_as(address, true, true, options)
    }

    fn start_as(
        address: SocketAddr,
        takes_merged: bool,
        serves_merged: bool,
        grpc: GrpcOptions,
    ) -> Server {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let sink = Arc::new(Sink::default());
        let options = RemoteWriteOptions {
            instance: InstanceId::random().unwrap(),
            admission: Admission::new(64 << 20),
            body_read_timeout: PATIENCE,
            takes_merged,
            ring_hash: Box::new(move || takes_merged.then(own_ring)),
            tasks: TaskTracker::new(),
        };
        // A ring with three copies of each series.
        let writes = PeerWrites::new(sink.clone(), Some(3));
        let server = RemoteWriteServer::new(writes, options, &Registry::new());
        let merged = server.merged().filter(|_| serves_merged);
        let services = merged.into_iter().fold(Services::default().with(server), Services::with);
        let metrics = GrpcMetrics::new(&Registry::new(), services.names());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move { stopped.await.unwrap_or_default() };
        let serving = tokio::spawn(crate::grpc::serve(
            listener,
            services,
            metrics,
            grpc,
            crate::door::Door::open_wide(),
            shutdown,
        ));
        Server { address, sink, stop, serving }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap().unwrap();
    }
}

/// Of the rings that a server of ours has.
fn own_ring() -> RingHash {
    RingHash::parse(b"0123456789ab").unwrap()
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A port on which nobody listens, or whoever does for a while: nobody else gets it.
struct Port {
    address: SocketAddr,
    _held: TcpSocket,
}

impl Port {
    fn hold() -> Port {
        let held = TcpSocket::new_v4().unwrap();
        // So that a listener can share it, until when it does not listen itself.
        held.set_reuseaddr(true).unwrap();
        held.bind(any_port()).unwrap();
        Port { address: held.local_addr().unwrap(), _held: held }
    }
}

/// Lets so much time pass at once. The clock goes on after that as usual.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Waits for what others bring about.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

fn pool_of(address: SocketAddr, options: PeerOptions) -> (Arc<PeerPool>, Registry, Arc<Peer>) {
    let registry = Registry::new();
    let pool = PeerPool::new(options, &registry);
    let address = address.to_string();
    pool.update([&address[..]]);
    let peer = pool.peer(&address).unwrap();
    (pool, registry, peer)
}

/// A series of `bytes` bytes, with its tag.
fn series(bytes: usize) -> Vec<u8> {
    let mut series = vec![0x0a];
    crate::model::varint::push_varint(&mut series, bytes as u64);
    series.resize(series.len() + bytes, b's');
    series
}

fn message_of(replica: u64, tenant: &str, series: &[u8], with: Compression) -> ForwardMessage {
    let envelope = Envelope { tenant, replica, is_merged: false, series_count: 1 };
    ForwardMessage::gather(envelope, [series].into_iter(), with).unwrap()
}

fn to(tenant: &str) -> ForwardMessage {
    message_of(1, tenant, &series(10), Compression::Snappy)
}

/// Calls until one succeeds; refusals and failures meanwhile are part of the plan.
async fn succeed(peer: &Peer) {
    let begun = Instant::now();
    while let Err(error) = peer.remote_write(&to("a"), PATIENCE).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test]
async fn a_service_config_bounds_calls_and_repeats_them() {
    let server = Server::start(any_port());
    let json = r#"{"methodConfig":[{"name":[{}],"maxRequestMessageBytes":1000,"retryPolicy":{
        "maxAttempts":3,"initialBackoff":"0.001s","maxBackoff":"0.001s","backoffMultiplier":1,
        "retryableStatusCodes":["UNAVAILABLE"]}}]}"#;
    let (method, _) = service_config::parse(json).unwrap();
    let (pool, _, peer) = pool_of(server.address, PeerOptions { method, ..PeerOptions::default() });
    let calls = || server.sink.calls.load(Ordering::Relaxed);
    peer.remote_write(&to("fails-first"), PATIENCE).await.unwrap();
    assert_eq!(calls(), 2);
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
    let large = message_of(1, "a", &series(2000), Compression::None);
    let error = peer.remote_write(&large, PATIENCE).await.unwrap_err();
    let code = Code::ResourceExhausted;
    assert!(matches!(&error, ForwardError::Failed { code: c, .. } if *c == code), "{error}");
    peer.remote_write(&to("conflict"), PATIENCE).await.unwrap_err();
    assert_eq!(calls(), 3, "what is not sent is not repeated, nor is what is refused for good");
    let down = peer.remote_write(&to("down"), PATIENCE).await.unwrap_err();
    assert!(matches!(down, ForwardError::Unavailable { .. }), "{down}");
    assert_eq!(calls(), 6);
    assert!(matches!(pool.snapshot()[0].state, PeerState::Shut | PeerState::Probation));

    let method = MethodConfig { timeout: Some(SHORT), ..MethodConfig::default() };
    let (_pool, _, peer) =
        pool_of(server.address, PeerOptions { method, ..PeerOptions::default() });
    succeed(&peer).await;
    let error = peer.remote_write(&to("hangs"), PATIENCE).await.unwrap_err();
    assert!(matches!(error, ForwardError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn the_second_peer_can_be_made_slow() {
    let servers = [Server::start(any_port()), Server::start(any_port())];
    let [first, second] = servers.each_ref().map(|server| server.address.to_string());
    for max in [Duration::from_secs(3600), Duration::from_millis(1)] {
        let options = PeerOptions { artificial_delay_max: max, ..PeerOptions::default() };
        let pool = PeerPool::new(options, &Registry::new());
        pool.update([&first[..]]);
        pool.update([&first[..], &second]);
        let [first, second] = [&first, &second].map(|address| pool.peer(address).unwrap());
        first.remote_write(&to("a"), PATIENCE).await.unwrap();
        let slow = second.remote_write(&to("a"), SHORT).await.unwrap_err();
        assert!(matches!(slow, ForwardError::TimedOut { .. }), "{slow}");
        assert_eq!(servers[1].sink.calls.load(Ordering::Relaxed), 0);
        assert_eq!(second.snapshot().state, PeerState::Open, "not its own fault");
        if max < PATIENCE {
            second.remote_write(&to("a"), PATIENCE).await.unwrap();
        }
    }
}

#[tokio::test]
async fn bytes_under_way_are_bounded_and_given_back() {
    let server = Server::start(any_port());
    let options = PeerOptions { inflight_bytes_max: 100, ..PeerOptions::default() };
    let (pool, registry, peer) = pool_of(server.address, options);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    let large = message_of(1, "hangs", &series(1000), Compression::None);
    let mut hanging = Box::pin(peer.remote_write(&large, PATIENCE));
    assert!(futures::poll!(&mut hanging).is_pending());
    let full = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
    let inflight = large.body_bytes() as u64 + 12 * 1024;
    let address: Arc<str> = server.address.to_string().into();
    let bound = Bound::Bytes { inflight, max: 100 };
    assert_eq!(full, ForwardError::Full { peer: address, bound });
    assert_eq!(pool.snapshot()[0].inflight_requests, 1);
    let page = registry.expose();
    for (name, value) in [("available", 1), ("inflight_requests", 1), ("inflight_bytes", inflight)]
    {
        let line = format!("ringest_peer_{name}{{worker=\"{}\"}} {value}\n", server.address);
        assert!(page.contains(&line), "{line}{page}");
    }
    // Given up by us, it counts for nothing.
    drop(hanging);
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    assert_eq!((snapshot.inflight_requests, snapshot.inflight_bytes), (0, 0));
    assert_eq!((&snapshot.state, &snapshot.last_error), (&PeerState::Open, &None));
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_ring_that_changes_leaves_those_alone_that_stay() {
    let (first, second) = (Server::start(any_port()), Server::start(any_port()));
    let (stays, leaves) = (first.address.to_string(), second.address.to_string());
    let registry = Registry::new();
    let pool = PeerPool::new(PeerOptions::default(), &registry);
    pool.update([&stays[..], &leaves, &stays]);
    let before = pool.peer(&stays).unwrap();
    let leaving = pool.peer(&leaves).unwrap();
    leaving.remote_write(&to("a"), PATIENCE).await.unwrap();
    // A call under way to a peer that leaves may finish.
    let hangs = to("hangs");
    let mut hanging = Box::pin(leaving.remote_write(&hangs, PATIENCE));
    assert!(futures::poll!(&mut hanging).is_pending());
    pool.update([&stays[..]]);
    assert!(Arc::ptr_eq(&before, &pool.peer(&stays).unwrap()));
    assert!(pool.peer(&leaves).is_none());
    assert_eq!(pool.snapshot().len(), 1);
    second.sink.go_on.notify_one();
    hanging.await.unwrap();
    assert!(!registry.expose().contains(&format!("worker=\"{leaves}\"")));
}
