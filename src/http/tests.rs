use axum::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::metrics::Registry;
use crate::write::admission::Admission;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

struct Server {
    address: std::net::SocketAddr,
    door: Door,
    registry: Registry,
    admission: Arc<Admission>,
    shutdown: CancellationToken,
    served: JoinHandle<Drained>,
}

async fn start(router: Router, header_read_timeout: Duration, grace: Duration) -> Server {
    let limits = ConnectionLimits { header_read_timeout, ..ConnectionLimits::default() };
    start_with(limits, router, grace).await
}

async fn start_with(limits: ConnectionLimits, router: Router, grace: Duration) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let (registry, admission) = (Registry::new(), Admission::new(8 << 20));
    let door = Door::with(None, HeadLimits::default(), &admission, &registry);
    let served = serve(listener, None, router, limits, door.clone(), shutdown.clone(), grace);
    Server { address, door, registry, admission, shutdown, served: tokio::spawn(served) }
}

fn hello() -> Router {
    Router::new().fallback(|| async { "hello" })
}

async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        let mut chunk = [0; 512];
        let n = stream.read(&mut chunk).await.unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(answer).unwrap()
}

/// Reads until the peer closes, in whatever way it does that.
async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test]
async fn half_sent_heads_are_closed_and_idle_connections_are_not() {
    let server = start(hello(), Duration::from_millis(20), Duration::ZERO).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(GET).await.unwrap();
    read_answer(&mut idle).await;
    let fresh = TcpStream::connect(server.address).await.unwrap();

    // "P" could be the start of HTTP/2's preface, so the protocol is not even known.
    for half in [&b"P"[..], b"POST /api", b"POST / HTTP/1.1\r\nHost: x\r\n"] {
        let mut stalled = TcpStream::connect(server.address).await.unwrap();
        stalled.write_all(half).await.unwrap();
        until_closed(&mut stalled).await;
    }

    // By now more than the header timeout has passed for these two.
    for mut waiting in [idle, fresh] {
        waiting.write_all(GET).await.unwrap();
        assert!(read_answer(&mut waiting).await.starts_with("HTTP/1.1 200"));
        // And the head after an answer is timed again.
        waiting.write_all(&GET[..9]).await.unwrap();
        until_closed(&mut waiting).await;
    }
}

/// Lets so much time pass at once. The clock goes on after that as usual.
async fn pass(time: Duration) {
    // What was begun is waited for from now on, not from the end of that time.
    tokio::task::yield_now().await;
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_connection_may_idle_for_minutes_between_its_requests() {
    let server = start_with(ConnectionLimits::default(), hello(), Duration::ZERO).await;
    let mut used = TcpStream::connect(server.address).await.unwrap();
    used.write_all(GET).await.unwrap();
    read_answer(&mut used).await;
    // Past the ten seconds that a head of ours has, and the thirty that one has by default in the
    // library below.
    for _ in 0..5 {
        pass(Duration::from_secs(60)).await;
        used.write_all(GET).await.unwrap();
        assert!(read_answer(&mut used).await.starts_with("HTTP/1.1 200"));
    }
    // It is so that time passes for connections.
    pass(ConnectionLimits::default().idle_timeout + Duration::from_secs(1)).await;
    assert!(until_closed(&mut used).await.is_empty());
}

#[tokio::test]
async fn a_connection_in_use_never_counts_as_idle() {
    let idle_timeout = Duration::from_secs(60);
    let limits = ConnectionLimits { idle_timeout, ..ConnectionLimits::default() };
    let server = start_with(limits, hello(), Duration::ZERO).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // Longer than that together.
    for _ in 0..6 {
        stream.write_all(GET).await.unwrap();
        read_answer(&mut stream).await;
        pass(idle_timeout / 3).await;
    }
    pass(idle_timeout).await;
    assert!(until_closed(&mut stream).await.is_empty());
}

/// A request with so many headers of so many bytes.
fn with_headers(count: usize, bytes: usize) -> String {
    let headers: String =
        (0..count).map(|i| format!("h{i:05}: {}\r\n", "x".repeat(bytes))).collect();
    format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
}

#[tokio::test]
async fn heads_are_as_large_as_may_be_and_no_larger() {
    let server = start_with(patient(), hello(), Duration::ZERO).await;
    for (count, bytes, status, closes) in [
        (50, 150, "200", false),
        // More than others take, in bytes and in number.
        (200, 10, "200", true),
        (9_999, 50, "200", true),
        (5, 200_000, "200", true),
        (10_000, 1, "431", true),
        (5, 210_000, "431", true),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(with_headers(count, bytes).as_bytes()).await.unwrap();
        let answer = match (status, closes) {
            ("200", false) => read_answer(&mut stream).await,
            _ => String::from_utf8(until_closed(&mut stream).await).unwrap(),
        };
        let what = format!("{count} headers of {bytes} bytes: {answer}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}");
        assert_eq!(answer.contains("connection: close"), closes, "{what}");
    }
    let refused = "ringest_request_heads_refused_total{listener=\"test\",reason=\"too_large\"} 2\n";
    // A connection is over a moment after its client has the answer.
    while !server.registry.expose().contains(refused) {
        tokio::task::yield_now().await;
    }
    assert_eq!(server.admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn heads_of_http_2_are_as_large_as_may_be_and_no_larger() {
    let server = start_with(patient(), hello(), Duration::ZERO).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for (count, bytes, status) in
        [(9_999, 50, 200), (10_001, 1, 431), (5, 200_000, 200), (5, 210_000, 431)]
    {
        let uri = format!("http://{}/", server.address);
        let mut request = http::Request::get(uri).body(axum::body::Body::empty()).unwrap();
        for i in 0..count {
            let name = http::HeaderName::try_from(format!("h{i:05}")).unwrap();
            request.headers_mut().insert(name, "x".repeat(bytes).parse().unwrap());
        }
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{count} headers of {bytes} bytes");
    }
    let refused = "ringest_request_heads_refused_total{listener=\"test\",reason=\"too_large\"} 2\n";
    assert!(server.registry.expose().contains(refused));
    assert_eq!(server.admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn a_head_that_comes_is_counted_and_refused_when_there_is_no_room() {
    let server = start_with(patient(), hello(), Duration::ZERO).await;
    let unfinished = with_headers(800, 1000);
    let unfinished = &unfinished[..unfinished.len() - 2];
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(unfinished.as_bytes()).await.unwrap();
        held.push(stream);
    }
    while server.admission.inflight_bytes() < 8 << 20 {
        tokio::task::yield_now().await;
    }
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    refused.write_all(unfinished.as_bytes()).await.unwrap();
    let answer = String::from_utf8(until_closed(&mut refused).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    let refused = "ringest_request_heads_refused_total{listener=\"test\",reason=\"overload\"} 1\n";
    assert!(server.registry.expose().contains(refused));
    // Usual requests are served meanwhile.
    let mut usual = TcpStream::connect(server.address).await.unwrap();
    usual.write_all(GET).await.unwrap();
    read_answer(&mut usual).await;
    for mut stream in held {
        stream.write_all(b"\r\n").await.unwrap();
        assert!(until_closed(&mut stream).await.starts_with(b"HTTP/1.1 200"));
    }
    while server.admission.inflight_bytes() > 0 {
        tokio::task::yield_now().await;
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
    bytes.extend_from_slice(payload);
    bytes
}

/// Time is that of the test: it goes on when nobody has anything else to do.
#[tokio::test(start_paused = true)]
async fn what_stalls_is_ended_whatever_it_is() {
    let server = start_with(ConnectionLimits::default(), hello(), Duration::ZERO).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [&preface[..], &frame(4, 0, &[])].concat();
    // ":method GET", ":scheme http", ":path /"
    let head = frame(1, 0, &[0x82, 0x86, 0x84]);
    let with_stream = [&settings[..], &frame(1, 5, &[0x82, 0x86, 0x84])].concat();
    for half in [
        b"".to_vec(),
        b"P".to_vec(),
        b"GET / HTTP/1.1\r\nHost".to_vec(),
        preface[..20].to_vec(),
        preface.to_vec(),
        settings.clone(),
        [&settings[..], &head].concat(),
        [&settings[..], &head, &frame(9, 0, &[0x82])[..5]].concat(),
        [&with_stream[..], &frame(6, 0, &[0; 8])[..12]].concat(),
        [&with_stream[..], &head].concat(),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&half).await.unwrap();
        until_closed(&mut stream).await;
    }
}

#[tokio::test]
async fn http_2_is_spoken_without_tls() {
    let server = start(hello(), Duration::from_secs(60), Duration::ZERO).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://{}/", server.address);
    let request = http::Request::get(uri).body(axum::body::Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    assert_eq!(response.status(), http::StatusCode::OK);
}

/// A router whose answers wait for the second token, having cancelled the first.
fn held(arrived: CancellationToken, release: CancellationToken) -> Router {
    Router::new().fallback(move || async move {
        arrived.cancel();
        release.cancelled().await;
        "hello"
    })
}

#[tokio::test]
async fn a_drain_lets_requests_finish_and_closes_the_port() {
    let (arrived, release) = (CancellationToken::new(), CancellationToken::new());
    let router = held(arrived.clone(), release.clone());
    let server = start(router, Duration::from_secs(60), Duration::from_secs(60)).await;
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    busy.write_all(GET).await.unwrap();
    arrived.cancelled().await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();

    server.shutdown.cancel();
    until_closed(&mut idle).await;
    assert!(TcpStream::connect(server.address).await.is_err());
    release.cancel();
    assert!(read_answer(&mut busy).await.starts_with("HTTP/1.1 200"));
    assert_eq!(server.served.await.unwrap(), Drained { connections_cut: 0 });
}

#[tokio::test]
async fn what_outlasts_the_grace_period_is_cut_and_counted() {
    let (arrived, release) = (CancellationToken::new(), CancellationToken::new());
    let router = held(arrived.clone(), release);
    let server = start(router, Duration::from_secs(60), Duration::ZERO).await;
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    busy.write_all(GET).await.unwrap();
    arrived.cancelled().await;
    server.shutdown.cancel();
    assert!(until_closed(&mut busy).await.is_empty());
    assert_eq!(server.served.await.unwrap(), Drained { connections_cut: 1 });
}

/// Limits under which nothing is closed for being slow.
fn patient() -> ConnectionLimits {
    let minute = Duration::from_secs(60);
    ConnectionLimits {
        header_read_timeout: minute,
        idle_timeout: minute,
        drain_idle_timeout: minute,
    }
}

#[tokio::test]
async fn a_drain_closes_connections_with_their_next_answer() {
    let server = start_with(patient(), hello(), Duration::from_secs(60)).await;
    let fresh = TcpStream::connect(server.address).await.unwrap();
    let mut used = TcpStream::connect(server.address).await.unwrap();
    used.write_all(GET).await.unwrap();
    let answer = read_answer(&mut used).await;
    assert!(!answer.contains("connection: close"), "{answer}");
    assert_eq!(server.door.connections_open(), 2.0);
    let (first, rest) = GET.split_at(20);
    let mut half_sent = TcpStream::connect(server.address).await.unwrap();
    half_sent.write_all(first).await.unwrap();
    let mut half_sent_again = TcpStream::connect(server.address).await.unwrap();
    half_sent_again.write_all(&[GET, first].concat()).await.unwrap();
    read_answer(&mut half_sent_again).await;

    server.shutdown.cancel();
    while TcpStream::connect(server.address).await.is_ok() {}
    let connections = [(fresh, GET), (used, GET), (half_sent, rest), (half_sent_again, rest)];
    for (mut stream, request) in connections {
        stream.write_all(request).await.unwrap();
        let answer = String::from_utf8(until_closed(&mut stream).await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    let door = server.door.clone();
    assert_eq!(server.served.await.unwrap(), Drained { connections_cut: 0 });
    assert_eq!(door.connections_open(), 0.0);
}

#[tokio::test]
async fn a_drain_serves_streams_of_http_2_and_ends() {
    let (arrived, release) = (CancellationToken::new(), CancellationToken::new());
    let router = held(arrived.clone(), release.clone());
    let server = start_with(patient(), router, Duration::from_secs(60)).await;
    let connect = async || {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        (sender, tokio::spawn(connection))
    };
    let uri = format!("http://{}/", server.address);
    let request = || http::Request::get(&uri).body(axum::body::Body::empty()).unwrap();
    let (mut sender, connection) = connect().await;
    let (mut late_sender, late_connection) = connect().await;
    let answer = sender.send_request(request());
    let stops = async {
        arrived.cancelled().await;
        server.shutdown.cancel();
        // Only now does this turn out to be HTTP/2.
        let late = late_sender.send_request(request());
        release.cancel();
        late.await
    };
    for answer in <[_; 2]>::from(tokio::join!(answer, stops)) {
        assert_eq!(answer.unwrap().status(), http::StatusCode::OK);
    }
    for connection in [connection, late_connection] {
        connection.await.unwrap().unwrap();
    }
    assert_eq!(server.served.await.unwrap(), Drained { connections_cut: 0 });
}

#[tokio::test]
async fn connections_that_were_made_before_a_drain_are_served() {
    let server = start_with(patient(), hello(), Duration::from_secs(60)).await;
    // It is the kernel that makes the connection, while the server does not come to run.
    let stream = std::net::TcpStream::connect(server.address).unwrap();
    server.shutdown.cancel();
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    stream.write_all(GET).await.unwrap();
    assert!(until_closed(&mut stream).await.starts_with(b"HTTP/1.1 200"));
    assert_eq!(server.served.await.unwrap(), Drained { connections_cut: 0 });
}

/// Refuses everything with an answer that says so, whatever the body.
fn refusing() -> Router {
    Router::new().fallback(|| async { (http::StatusCode::BAD_REQUEST, "no") })
}

/// A request whose body is declared or comes in chunks.
fn post(body: usize, chunked: bool) -> Vec<u8> {
    let mut bytes = b"POST / HTTP/1.1\r\nHost: x\r\n".to_vec();
    if !chunked {
        bytes.extend_from_slice(format!("Content-Length: {body}\r\n\r\n").as_bytes());
        bytes.resize(bytes.len() + body, b'x');
        return bytes;
    }
    bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    for begin in (0..body).step_by(10_000) {
        let chunk = (body - begin).min(10_000);
        bytes.extend_from_slice(format!("{chunk:x}\r\n").as_bytes());
        bytes.resize(bytes.len() + chunk, b'x');
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Sends all of it before it reads anything; the answer with what follows it.
async fn send_then_read<S: AsyncReadExt + AsyncWriteExt + Unpin>(
    stream: &mut S,
    request: &[u8],
) -> String {
    stream.write_all(request).await.expect("nothing is broken while it sends");
    let mut answer = Vec::new();
    while !answer.ends_with(b"no") {
        let read = stream.read_buf(&mut answer).await.expect("the answer is not lost");
        assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap()
}

const OFTEN: usize = 30;

#[tokio::test]
async fn senders_that_send_first_get_the_answer_to_a_body_that_was_not_read() {
    let server = start_with(patient(), refusing(), Duration::ZERO).await;
    // What Go's server passes over leaves the connection in use.
    for (body, chunked, closes) in [
        (0, false, false),
        (100 << 10, false, false),
        (100 << 10, true, false),
        (1 << 20, false, true),
        (1 << 20, true, true),
        (4 << 20, false, true),
    ] {
        let request = post(body, chunked);
        for _ in 0..OFTEN {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let answer = send_then_read(&mut stream, &request).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
            assert_eq!(answer.contains("connection: close"), closes, "{body} {chunked}: {answer}");
            if closes {
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed, not reset");
            } else {
                send_then_read(&mut stream, &request).await;
            }
        }
    }
    assert!(server.door.connections_open() <= OFTEN as f64, "connections end");
}

#[tokio::test]
async fn answers_arrive_through_tls_as_well() {
    use crate::tls::certificates::Authority;
    use crate::tls::server::ServerTlsOptions;
    use crate::tls::{Authorities, Identity, TlsFile, TlsVersion, provider};

    const NAME: &str = "server.example";
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.write(&dir.path().join("ca"));
    let (cert, key) = authority.issue(dir.path(), NAME);
    let file = |path| TlsFile { flag: "a-flag", path };
    let options = ServerTlsOptions {
        identity: Identity { cert: file(cert), key: file(key) },
        client_ca: None,
        version_min: TlsVersion::V1_3,
        cipher_suites: None,
        curves: None,
    };
    let registry = crate::metrics::Registry::new();
    let tls = ServerTls::load("a-flag", options, TLS_PROTOCOLS, &registry).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (door, tls) = (Door::open_wide(), Some(Arc::new(tls)));
    let until = CancellationToken::new();
    let served = serve(listener, tls, refusing(), patient(), door, until.clone(), Duration::ZERO);
    let _served = tokio::spawn(served);

    let roots = Authorities::read(&file(dir.path().join("ca"))).unwrap().root_store();
    let client = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let request = post(1 << 20, false);
    for _ in 0..OFTEN {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        let answer = send_then_read(&mut stream, &request).await;
        assert!(answer.contains("connection: close"), "{answer}");
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed by the word of TLS");
    }
}

#[tokio::test]
async fn a_body_that_was_not_asked_for_is_not_waited_for() {
    let server = start_with(patient(), refusing(), Duration::ZERO).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    let answer = send_then_read(&mut stream, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(until_closed(&mut stream).await.is_empty());
}

#[tokio::test]
async fn a_body_that_stalls_does_not_hold_its_answer_back() {
    let server = start_with(patient(), refusing(), Duration::ZERO).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = post(1000, false);
    let answer = send_then_read(&mut stream, &request[..request.len() - 1]).await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(until_closed(&mut stream).await.is_empty());
}

#[tokio::test]
async fn a_head_that_is_refused_gets_its_answer() {
    let server = start_with(patient(), hello(), Duration::ZERO).await;
    let lines = "a:b\r\n".repeat(1 << 20);
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}");
    for _ in 0..OFTEN {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_of_a_stopping_node_arrives() {
    let (arrived, release) = (CancellationToken::new(), CancellationToken::new());
    let router = held(arrived.clone(), release.clone());
    let server = start_with(patient(), router, Duration::from_secs(60)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = post(4 << 20, false);
    let sent = stream.write_all(&request);
    let stop = async {
        arrived.cancelled().await;
        server.shutdown.cancel();
        release.cancel();
    };
    tokio::join!(sent, stop).0.unwrap();
    let answer = read_answer(&mut stream).await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "closed, not reset");
    assert_eq!(server.served.await.unwrap(), Drained { connections_cut: 0 });
}

#[tokio::test]
async fn streams_of_http_2_get_the_answer_to_a_body_that_was_not_read() {
    let server = start_with(patient(), refusing(), Duration::ZERO).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://{}/", server.address);
    for _ in 0..OFTEN {
        let body = http_body_util::Full::new(Bytes::from(vec![0; 2 << 20]));
        let request = http::Request::post(&uri).body(body).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), http::StatusCode::BAD_REQUEST);
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        assert_eq!(body.to_bytes(), "no");
    }
}

#[tokio::test]
async fn targets_are_taken_as_go_takes_them() {
    let echo = |request: axum::extract::Request| async move {
        format!("{}|{}|hello", request.uri().path(), request.uri().query().unwrap_or_default())
    };
    let router = Router::new().fallback(echo);
    let server = start(router, Duration::from_secs(60), Duration::ZERO).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for (target, seen) in [
        ("/m?q={job=\"x\"}", "/m|q={job=%22x%22}|"),
        ("/a<b>`?<>|^`{}[]\\", "/a%3Cb%3E%60|%3C%3E|^%60{}[]\\|"),
        ("/?%zz=\u{e4}", "/|%zz=%C3%A4|"),
    ] {
        // A body that looks like a target stays what it is, and the next head is looked at again.
        let request =
            format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nGET /\"<>\n");
        let (first, second) = request.split_at(request.len() / 2);
        stream.write_all(first.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(second.as_bytes()).await.unwrap();
        let answer = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{target}: {answer}");
        assert!(answer.contains(seen), "{target}: {answer}");
    }
    // A space ends it, as in Go.
    stream.write_all(b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(until_closed(&mut stream).await.starts_with(b"HTTP/1.1 400"));
}

#[tokio::test]
async fn work_is_told_when_its_client_has_gone() {
    let (events, mut happened) = tokio::sync::mpsc::unbounded_channel();
    let work = move |request: axum::extract::Request| {
        let events = events.clone();
        async move {
            events.send("begun").unwrap();
            gone::client_gone(request.extensions()).await;
            events.send("gone").unwrap();
        }
    };
    let server = start(Router::new().fallback(work), Duration::from_secs(60), Duration::ZERO).await;
    for body in ["", "1234"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let length = body.len();
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(happened.recv().await, Some("begun"));
        assert!(happened.try_recv().is_err());
        drop(stream);
        assert_eq!(happened.recv().await, Some("gone"));
    }
}
