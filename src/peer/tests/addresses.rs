//! Names of several addresses, and connections that are asked to leave.

use super::*;

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
