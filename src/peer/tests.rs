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

/// Names that list their addresses, as in `127-0-0-1.127-0-0-2`.
fn by_name(target: &Target) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
    let addresses = target.host.split('.').map(|address| {
        let ip: IpAddr = address.replace('-', ".").parse().unwrap();
        SocketAddr::new(ip, target.port)
    });
    Box::pin(std::future::ready(Ok(addresses.collect())))
}

/// A peer under a name of two addresses with one port, the first of which is not its own.
fn pool_of_two(port: u16) -> (Arc<PeerPool>, Arc<Peer>) {
    let mut options = PeerOptions::default();
    options.link.resolve = by_name;
    let pool = PeerPool::new(options, &Registry::new());
    let endpoint = format!("dns:///127-0-0-1.127-0-0-2:{port}");
    pool.update([&endpoint[..]]);
    let peer = pool.peer(&endpoint).unwrap();
    (pool, peer)
}

/// A listener and a server on the two addresses of such a name.
fn two_addresses(age_max: Option<Duration>) -> (TcpListener, Server) {
    // The port may be taken on the other address.
    let (listener, other) = std::iter::repeat_with(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = SocketAddr::from(([127, 0, 0, 2], listener.local_addr().unwrap().port()));
        let is_free = TcpListener::bind(other).is_ok();
        is_free.then_some((listener, other))
    })
    .flatten()
    .next()
    .unwrap();
    let server = match age_max {
        Some(age_max) => Server::start_aging(other, age_max),
        None => Server::start(other),
    };
    (listener, server)
}

/// Takes connections, says something, and closes them. Counts them.
fn accept_and_close(listener: TcpListener, said: &'static [u8]) -> Arc<AtomicU64> {
    let accepted = Arc::<AtomicU64>::default();
    let count = accepted.clone();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(said).await;
        }
    });
    accepted
}

/// A frame of settings without any: the first word of a server of HTTP/2.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

#[tokio::test]
async fn an_address_that_accepts_and_is_silent_is_no_outage() {
    let (silent, server) = two_addresses(None);
    let (_pool, peer) = pool_of_two(server.address.port());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert_eq!(server.sink.written.lock().len(), 1);
    drop(silent);
}

#[tokio::test]
async fn an_address_that_accepts_and_closes_is_no_outage() {
    for said in [&b""[..], b"HTTP/1.1 503 Service Unavailable\r\n\r\n", SETTINGS] {
        let (listener, server) = two_addresses(None);
        accept_and_close(listener, said);
        let (_pool, peer) = pool_of_two(server.address.port());
        peer.remote_write(&to("a"), PATIENCE).await.unwrap();
        assert_eq!(server.sink.written.lock().len(), 1, "{said:?}");
    }
}

fn connection_number(peer: &Peer) -> u64 {
    match peer.link.state() {
        Link::Up(connection) => connection.number,
        Link::Dialling => 0,
        Link::Down { reason, .. } => panic!("down: {reason}"),
    }
}

/// As with `--grpc-server-max-connection-age=1s`, and much less.
#[tokio::test]
async fn a_peer_that_asks_connections_to_leave_loses_no_call() {
    let (listener, server) = two_addresses(Some(Duration::from_millis(100)));
    let closed = accept_and_close(listener, SETTINGS);
    let (pool, peer) = pool_of_two(server.address.port());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    let closed_at_first = closed.load(Ordering::Relaxed);
    let first = connection_number(&peer);
    let write_on = |peer: Arc<Peer>| async move {
        let mut calls = 0;
        while connection_number(&peer) < first + 6 {
            peer.remote_write(&to("a"), PATIENCE).await.unwrap();
            calls += 1;
        }
        calls
    };
    let callers = [(); 4].map(|()| tokio::spawn(write_on(peer.clone())));
    let mut calls = 1;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    // A call may be made twice, and none is lost.
    assert!(server.sink.written.lock().len() >= calls, "of {calls}");
    assert_eq!(pool.snapshot()[0].last_error, None);
    // The address that worked is tried first.
    assert_eq!(closed.load(Ordering::Relaxed), closed_at_first);
}

#[tokio::test]
async fn idle_connections_that_are_asked_to_leave_are_no_outage() {
    let server = Server::start_aging(any_port(), 2 * QUICK_FAILURE_MAX);
    let (pool, _registry, peer) = pool_of(server.address, PeerOptions::default());
    // None of them has answered anything.
    let is_fourth = |link: &Link| match link {
        Link::Up(connection) => connection.number == 4,
        Link::Dialling => false,
        Link::Down { reason, .. } => panic!("down: {reason}"),
    };
    peer.link.wait_until(is_fourth).await;
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

#[tokio::test]
async fn endpoints_may_say_how_they_are_looked_up() {
    let server = Server::start(any_port());
    for scheme in ["dns:///", "dns:", "dns://192.0.2.1/", "passthrough:///", "passthrough:"] {
        let endpoint = format!("{scheme}{}", server.address);
        let pool = PeerPool::new(PeerOptions::default(), &Registry::new());
        pool.update([&endpoint[..]]);
        let peer = pool.peer(&endpoint).unwrap();
        let written = peer.remote_write(&to("a"), PATIENCE).await;
        written.unwrap_or_else(|error| panic!("{endpoint}: {error}"));
    }
    let pool = PeerPool::new(PeerOptions::default(), &Registry::new());
    pool.update(["dns://127.0.0.1:1"]);
    let error = pool.peer("dns://127.0.0.1:1").unwrap().remote_write(&to("a"), PATIENCE).await;
    assert!(error.unwrap_err().to_string().contains("endpoint: missing address"));
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

#[tokio::test]
async fn series_arrive_as_they_are() {
    let server = Server::start(any_port());
    let (_pool, registry, peer) = pool_of(server.address, PeerOptions::default());
    for compression in [Compression::None, Compression::Snappy] {
        for bytes in [1, 70_000, 5 << 20] {
            let series = series(bytes);
            let message = message_of(2, "a", &series, compression);
            peer.remote_write(&message, PATIENCE).await.unwrap();
            let (tenant, written, replica) = server.sink.written.lock().pop().unwrap();
            assert_eq!((&tenant[..], replica), ("a", 2));
            let head = b"\x18\x02\x12\x01a";
            assert!(written == [&head[..], &series].concat(), "{compression:?} {bytes}");
        }
    }
    let page = registry.expose();
    let of_method = "grpc_method=\"RemoteWrite\",grpc_service=\"thanos.WriteableStore\",\
                     grpc_type=\"unary\"";
    for line in [
        "thanos_receive_forward_requests_total{result=\"success\"} 6\n".to_owned(),
        "thanos_receive_forward_requests_total{result=\"error\"} 0\n".to_owned(),
        format!("grpc_client_handled_total{{grpc_code=\"OK\",{of_method}}} 6\n"),
        format!("grpc_client_started_total{{{of_method}}} 6\n"),
        format!("grpc_client_msg_received_total{{{of_method}}} 6\n"),
        format!("thanos_receive_forward_delay_seconds_count{{worker=\"{}\"}} 6\n", server.address),
    ] {
        assert!(page.contains(&line), "{line}{page}");
    }
}

fn merged(replica: u64) -> ForwardMessage {
    {
        let envelope = Envelope { tenant: "a", replica, is_merged: true, series_count: 10 };
        ForwardMessage::share(envelope, series(10).into()).unwrap()
    }
}

#[tokio::test]
async fn a_peer_says_whether_it_takes_merged_messages() {
    let port = Port::hold();
    let server = Server::start(port.address);
    let (_pool, _registry, peer) = pool_of(server.address, PeerOptions::default());
    assert!(!peer.takes_merged());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(peer.takes_merged());
    peer.remote_write(&merged(3), PATIENCE).await.unwrap();
    assert_eq!(server.sink.written.lock().len(), 2);
    let refused = peer.remote_write(&merged(4), PATIENCE).await;
    assert!(matches!(refused, Err(ForwardError::BadReplica { .. })), "{refused:?}");
    assert!(peer.takes_merged());

    // Another takes its place that does not know them, as Thanos does not: it misplaces nothing.
    server.stop().await;
    let server = Server::start_with(port.address, false, false);
    let refused = loop {
        match peer.remote_write(&merged(3), PATIENCE).await {
            Err(ForwardError::Unreachable { .. }) => tokio::time::sleep(PAUSE).await,
            refused => break refused.unwrap_err(),
        }
    };
    assert!(matches!(refused, ForwardError::Failed { code: Code::Unimplemented, .. }), "{refused}");
    assert!(!peer.takes_merged() && server.sink.written.lock().is_empty());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(!peer.takes_merged());
}

#[tokio::test]
async fn a_peer_says_which_rings_it_has() {
    let port = Port::hold();
    let server = Server::start(port.address);
    let (pool, _registry, peer) = pool_of(server.address, PeerOptions::default());
    assert_eq!(pool.snapshot()[0].ring, None);
    for tenant in ["a", "opening"] {
        // In failures, too.
        let _ = peer.remote_write(&to(tenant), PATIENCE).await;
        let peer = &pool.snapshot()[0];
        assert!(peer.is_connected);
        assert_eq!(peer.ring.map(|word| word.hash), Some(own_ring()), "{tenant}");
    }
    // It makes room for a Thanos, which says nothing.
    server.stop().await;
    let server = Server::start_with(port.address, false, false);
    succeed(&peer).await;
    assert_eq!(pool.snapshot()[0].ring, None);
    server.stop().await;
}

#[tokio::test]
async fn merged_messages_that_do_not_get_through_are_tried_once() {
    let server = Server::start_with(any_port(), true, false);
    let (_pool, _registry, peer) = pool_of(server.address, PeerOptions::default());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(peer.takes_merged());
    peer.remote_write(&merged(1), PATIENCE).await.unwrap_err();
    assert!(!peer.takes_merged());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(!peer.takes_merged(), "though it says again that it takes them");
}

#[tokio::test]
async fn messages_that_have_a_limit_are_not_made_longer() {
    let server = Server::start(any_port());
    let method = MethodConfig { request_bytes_max: Some(1 << 20), ..MethodConfig::default() };
    let options = PeerOptions { method, ..PeerOptions::default() };
    let (_pool, _registry, peer) = pool_of(server.address, options);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert!(!peer.takes_merged());
}

#[tokio::test]
async fn every_status_has_its_meaning() {
    let server = Server::start(any_port());
    let (pool, registry, peer) = pool_of(server.address, PeerOptions::default());
    let write = async |tenant| peer.remote_write(&to(tenant), PATIENCE).await.unwrap_err();
    assert!(matches!(write("conflict").await, ForwardError::Conflict { .. }));
    assert!(matches!(write("..").await, ForwardError::BadReplica { .. }));
    // It is left alone, longer each time, and nobody else is.
    let mut failed = 0;
    loop {
        match write("opening").await {
            ForwardError::TenantNotReady { .. } => failed += 1,
            ForwardError::BackedOff { .. } => break,
            other => panic!("{other}"),
        }
    }
    assert!(failed > 0);
    assert_eq!(pool.snapshot()[0].tenants_shut, 1);
    let replica = message_of(4, "a", &series(1), Compression::None);
    let refused = peer.remote_write(&replica, PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::BadReplica { .. }), "{refused}");
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);

    let down = loop {
        let down = write("down").await;
        assert!(
            matches!(&down, ForwardError::Unavailable { detail, .. } if detail.contains("not accepting"))
        );
        failed += 1;
        // Unless the back-off is over by now, which grows.
        if let Err(refused) = peer.remote_write(&to("a"), PATIENCE).await {
            assert!(matches!(refused, ForwardError::BackedOff { .. }), "{refused}");
            break down;
        }
    };
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    // The back-off may be over by now.
    assert!(matches!(snapshot.state, PeerState::Shut | PeerState::Probation));
    assert_eq!(snapshot.last_error, Some(down));
    let page = registry.expose();
    // Neither the conflict nor what was not sent is among them, but two bad requests.
    let errors =
        format!("thanos_receive_forward_requests_total{{result=\"error\"}} {}\n", failed + 2);
    assert!(page.contains(&errors), "{errors}{page}");
    let not_sent = format!("{{worker=\"{}\",reason=\"backed off\"}} 2\n", server.address);
    assert!(page.contains(&format!("ringest_peer_forwards_not_sent_total{not_sent}")), "{page}");
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
async fn a_peer_is_used_as_soon_as_it_listens_and_again_after_a_restart() {
    let port = Port::hold();
    let address = port.address;
    let (pool, registry, peer) = pool_of(address, PeerOptions::default());
    let refused = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::Unreachable { .. }), "{refused}");
    assert!(matches!(pool.snapshot()[0].state, PeerState::Unreachable(_)));
    let unavailable = format!("ringest_peer_available{{worker=\"{address}\"}} 0\n");
    assert!(registry.expose().contains(&unavailable));
    // Failed attempts to connect do not add up to a long back-off: the first call to a peer that
    // listens has it dialled.
    for _ in 0..6 {
        let refused = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
        assert!(matches!(refused, ForwardError::Unreachable { .. }), "{refused}");
    }
    let server = Server::start(address);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    server.stop().await;
    let server = Server::start(address);
    succeed(&peer).await;
    assert_eq!(server.sink.written.lock().len(), 1);
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

#[tokio::test]
async fn a_peer_that_answers_nothing_is_backed_off_and_found_again() {
    let server = Server::start(any_port());
    let (pool, _, peer) = pool_of(server.address, PeerOptions::default());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    let refused = loop {
        let timed_out = peer.remote_write(&to("hangs"), SHORT).await.unwrap_err();
        if matches!(timed_out, ForwardError::BackedOff { .. }) {
            continue;
        }
        assert!(matches!(timed_out, ForwardError::TimedOut { .. }), "{timed_out}");
        // Unless the back-off is over by now, which grows.
        if let Err(refused) = peer.remote_write(&to("hangs"), SHORT).await
            && matches!(refused, ForwardError::BackedOff { .. })
        {
            break refused;
        }
    };
    assert!(refused.to_string().contains(&server.address.to_string()), "{refused}");
    assert!(matches!(pool.snapshot()[0].state, PeerState::Shut | PeerState::Probation));
    succeed(&peer).await;
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
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
async fn a_tenant_that_hangs_is_backed_off_alone() {
    let server = Server::start(any_port());
    let (pool, _, peer) = pool_of(server.address, PeerOptions::default());
    let hanging = peer.clone();
    let hanging = tokio::spawn(async move { hanging.remote_write(&to("hangs"), PATIENCE).await });
    until("under way", || server.sink.calls.load(Ordering::Relaxed) == 1).await;
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    pass(PATIENCE).await;
    let hanging = hanging.await.unwrap();
    assert!(matches!(hanging, Err(ForwardError::TimedOut { .. })), "{hanging:?}");
    assert_eq!(pool.snapshot()[0].tenants_shut, 1);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
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

/// What our code has logged in this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn keep() -> (Lines, tracing::subscriber::DefaultGuard) {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        let guard = tracing::subscriber::set_default(subscriber);
        (lines, guard)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Message<'a>(&'a Lines);
        impl tracing::field::Visit for Message<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0.0.lock().push(format!("{value:?}"));
                }
            }
        }
        let metadata = event.metadata();
        if metadata.target().starts_with("ringest") && *metadata.level() <= tracing::Level::INFO {
            event.record(&mut Message(self));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_hangs_is_told_of_before_any_call_times_out() {
    let (lines, _guard) = Lines::keep();
    let server = Server::start(any_port());
    let (pool, registry, peer) = pool_of(server.address, PeerOptions::default());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    let available = |value: u8| {
        let line = format!("ringest_peer_available{{worker=\"{}\"}} {value}\n", server.address);
        let page = registry.expose();
        assert!(page.contains(&line), "{line}{page}");
    };
    let hanging = |peer: Arc<Peer>| async move { peer.remote_write(&to("hangs"), PATIENCE).await };
    let calls = [(); 3].map(|()| tokio::spawn(hanging(peer.clone())));
    tokio::time::sleep(UNANSWERED_MAX / 2).await;
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
    available(1);
    assert_eq!(lines.take(), [""; 0]);

    tokio::time::sleep(UNANSWERED_MAX).await;
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    assert_eq!(snapshot.state, PeerState::Silent);
    assert!(snapshot.unanswered_for >= Some(UNANSWERED_MAX), "{snapshot:?}");
    assert!(snapshot.state_for >= UNANSWERED_MAX && snapshot.unavailable_for.is_some());
    available(0);
    assert_eq!(lines.take(), ["peer does not answer"], "one line for all calls");
    tokio::time::sleep(3 * UNANSWERED_MAX).await;
    assert_eq!(lines.take(), [""; 0]);

    server.sink.go_on.notify_waiters();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    assert_eq!((&snapshot.state, snapshot.unanswered_for), (&PeerState::Open, None));
    available(1);
    assert_eq!(lines.take(), ["peer answers again"]);
}

/// One whose kernel accepts connections, and nobody else is there.
#[tokio::test(start_paused = true)]
async fn a_peer_that_accepts_and_says_nothing_is_not_reached_and_holds_no_call() {
    let (lines, _guard) = Lines::keep();
    let listener = TcpListener::bind(any_port()).unwrap();
    let (pool, _, peer) = pool_of(listener.local_addr().unwrap(), PeerOptions::default());
    let begun = Instant::now();
    let refused = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::Unreachable { .. }), "{refused}");
    assert!(begun.elapsed() < PATIENCE, "its deadline need not pass");
    assert!(matches!(pool.snapshot()[0].state, PeerState::Unreachable(_)));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let [snapshot] = &pool.snapshot()[..] else { panic!("one peer") };
    assert!(matches!(snapshot.state, PeerState::Unreachable(_)), "{snapshot:?}");
    assert!(snapshot.state_for >= Duration::from_secs(58), "{snapshot:?}");
    assert_eq!(snapshot.inflight_requests, 0);
    assert_eq!(lines.take(), ["peer cannot be reached"]);
}

/// Has the breaker shut for minutes, by calls over the connection in use.
fn shut_for_long(peer: &Peer) {
    let Link::Up(connection) = peer.link.state() else { panic!("no connection") };
    let mut breaker = peer.breaker.lock();
    let mut now = Instant::now();
    for _ in 0..12 {
        let call = breaker.admit(["a"], now).unwrap();
        breaker.see_used(connection.number);
        breaker.end(call, Ended::Unavailable, ["a"], now, 1.0);
        let State::Shut { until, .. } = breaker.state() else { panic!("not shut") };
        now = until;
    }
}

#[tokio::test]
async fn a_peer_that_is_back_does_not_serve_out_its_back_off() {
    let port = Port::hold();
    let server = Server::start(port.address);
    let options = PeerOptions { backoff_max: Duration::from_secs(3600), ..PeerOptions::default() };
    let (pool, _, peer) = pool_of(server.address, options);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    shut_for_long(&peer);
    let refused = peer.remote_write(&to("a"), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, ForwardError::BackedOff { .. }), "{refused}");
    server.stop().await;
    let server = Server::start(port.address);
    succeed(&peer).await;
    assert_eq!(server.sink.written.lock().len(), 1);
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_grows_old_is_replaced_and_ends_with_its_last_call() {
    let server = Server::start(any_port());
    let mut options = PeerOptions::default();
    options.link.age_max = Duration::from_secs(1);
    let (pool, _, peer) = pool_of(server.address, options);
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    let number = || match peer.link.state() {
        Link::Up(connection) => connection.number,
        Link::Dialling | Link::Down { .. } => panic!("no connection"),
    };
    let first = number();
    let hanging = peer.clone();
    let hanging = tokio::spawn(async move { hanging.remote_write(&to("hangs"), PATIENCE).await });
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        number();
    }
    assert!(number() > first + 1, "{} after {first}", number());
    assert_eq!(peer.link.returned(), first, "it was never away");
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    server.sink.go_on.notify_waiters();
    hanging.await.unwrap().unwrap();
    assert_eq!(pool.snapshot()[0].state, PeerState::Open);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_left_may_go_away_without_a_word() {
    let (lines, _guard) = Lines::keep();
    let server = Server::start(any_port());
    let (pool, _, peer) = pool_of(server.address, PeerOptions::default());
    peer.remote_write(&to("a"), PATIENCE).await.unwrap();
    pool.set_members([]);
    let address = server.address.to_string();
    server.stop().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(matches!(pool.snapshot()[0].state, PeerState::Unreachable(_)));
    assert_eq!(lines.take(), [""; 0]);
    pool.set_members([&address[..]]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(lines.take(), ["peer cannot be reached"]);
}
