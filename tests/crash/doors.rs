//! What anybody can do at any listener before it is known who they are: say nothing, say half of
//! something, say much.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use crate::support::http::{connect, read_answer};
use crate::support::messages::{WriteRequest, write_request};
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::{STUCK, wait_until};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2 on stream 1, or on none.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = u8::from(kind != SETTINGS);
    let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, stream];
    bytes.extend_from_slice(payload);
    bytes
}

/// A header that is not to be remembered, in the encoding of HTTP/2.
fn push_header(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        assert!(text.len() < 127);
        block.push(text.len() as u8);
        block.extend_from_slice(text.as_bytes());
    }
}

/// The head of a call, whole.
fn call_head(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        push_header(&mut block, name, value);
    }
    block
}

/// Bytes up to the beginning of a call.
fn begun() -> Vec<u8> {
    // A mebibyte may come on each stream, and on all: /metrics is longer than the usual 64 KiB.
    let settings = frame(SETTINGS, 0, &[0, 4, 0, 16, 0, 0]);
    let window_update = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 16, 0, 0];
    [PREFACE, &settings, &window_update].concat()
}

/// A flood of silent connections on each port but that of the probes.
#[test]
fn floods_of_silent_connections_shut_neither_probes_nor_storage() {
    crate::raise_file_limit();
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::anywhere(dir.path(), &["--tsdb.wal-sync=always"]).with_files_max(512);
    node.start();
    let max = |listener| {
        node.exposed(&format!("ringest_connections_max{{listener=\"{listener}\"}}")).unwrap()
    };
    // 384 for connections: 24 for each listener alone, 288 for any.
    assert_eq!([max("grpc"), max("remote_write")], [312.0, 312.0]);

    let mut sender = connect(&node.remote_write);
    let mut write = |tenant: &str| {
        let written = WriteRequest::of(&[("__name__", "up")], now(), 1.0).compressed();
        let request = write_request(tenant.as_bytes(), &written).kept_alive();
        sender.write_all(&request.bytes()).unwrap();
        let answer = read_answer(&mut sender).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    write("first");
    let mut flood = Vec::new();
    for address in [&node.grpc, &node.capnproto] {
        for _ in 0..600 {
            flood.push(connect(address));
        }
    }
    let waited = |listener| {
        node.exposed(&format!("ringest_connections_waited_total{{listener=\"{listener}\"}}"))
    };
    wait_until("the flood is held back", || {
        waited("grpc") > Some(0.0) && waited("capnproto") > Some(0.0)
    });
    // Young tenants, whose directories and logs are made and synced now.
    for tenant in 0..20 {
        write(&format!("t{tenant}"));
        assert_eq!(node.get("/-/healthy").status, 200);
        assert_eq!(node.get("/-/ready").status, 200);
    }
    // Those that are taken are ended after a while, so the others come to their turn, and a peer of
    // ours to its own.
    let mut last = connect(&node.grpc);
    last.write_all(&[&begun()[..], &frame(HEADERS, 5, &call_head("/x.Y/Z"))].concat()).unwrap();
    let seen = until(&mut last, |kind, flags| kind == HEADERS && flags & END_STREAM != 0);
    assert!(seen, "the call has no answer");
    let lines = node.lines_with(&["no more connections are taken"]).len();
    // Of three listeners and two reasons, once in ten seconds each.
    assert!((1..=24).contains(&lines), "{lines} lines");
    node.assert_alive();
}

/// Reads frames until one is as asked for; false at the connection's end.
fn until(stream: &mut TcpStream, is_wanted: impl Fn(u8, u8) -> bool) -> bool {
    loop {
        let mut header = [0; 9];
        if stream.read_exact(&mut header).is_err() {
            return false;
        }
        let [a, b, c, kind, flags, ..] = header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if stream.read_exact(&mut vec![0; length]).is_err() {
            return false;
        }
        if is_wanted(kind, flags) {
            return true;
        }
    }
}

const HEADS: usize = 1000;
/// Of the budget; a node takes some memory besides, and so do a thousand connections.
const BUDGET_BYTES: u64 = 16 << 20;
const CONNECTION_BYTES: u64 = 96 << 10;

fn with_small_budget(dir: &std::path::Path) -> Node {
    crate::raise_file_limit();
    let args = [
        "--receive.request-bytes-max=1MB",
        "--receive.decoded-bytes-max=4MB",
        "--receive.inflight-bytes-max=16MB",
    ];
    Node::start_ready(dir, &args)
}

/// Sends each of these heads without its end, and says what the node's memory came to.
fn assert_heads_stay_under_the_budget(node: &mut Node, address: &str, unfinished: &[u8]) {
    let before = node.resident_bytes();
    let mut held = Vec::new();
    for _ in 0..HEADS {
        let mut stream = connect(address);
        // Those for which there is no room are refused while they are still sending.
        let _ = stream.write_all(unfinished);
        held.push(stream);
    }
    let more = node.resident_bytes_peak().saturating_sub(before);
    println!("{HEADS} unfinished heads of {} bytes: {more} bytes", unfinished.len());
    let most = BUDGET_BYTES + HEADS as u64 * CONNECTION_BYTES;
    assert!(more < most, "{more} bytes more, {most} are allowed");
    drop(held);
    let write = WriteRequest::of(&[("a", "b")], now(), 1.0);
    wait_until("there is room again", || node.write("a", &write).status == 200);
    node.assert_alive();
}

fn heads_refused(node: &Node, listener: &str, reason: &str) -> f64 {
    let name = "ringest_request_heads_refused_total";
    node.exposed(&format!("{name}{{listener=\"{listener}\",reason=\"{reason}\"}}")).unwrap()
}

#[test]
fn a_thousand_unfinished_heads_stay_under_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = with_small_budget(dir.path());
    let mut head = b"POST /api/v1/receive HTTP/1.1\r\nHost: x\r\n".to_vec();
    while head.len() < (1 << 20) - 200 {
        head.extend_from_slice(format!("h{}: {}\r\n", head.len(), "x".repeat(150)).as_bytes());
    }
    let address = node.remote_write.clone();
    assert_heads_stay_under_the_budget(&mut node, &address, &head);
    assert!(heads_refused(&node, "remote_write", "overload") > 0.0);
    assert!(!node.lines_with(&["request refused", "listener=remote_write"]).is_empty());
}

/// Over HTTP/2 a header that was sent before is named by one byte, and takes as much as any.
#[test]
fn a_thousand_unfinished_heads_of_calls_stay_under_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = with_small_budget(dir.path());
    let address = node.grpc.clone();
    let mut block = call_head("/thanos.Store/Series");
    // Remembered, and named twenty thousand times.
    block.extend_from_slice(&[0x40, 1, b'a', 1, b'b']);
    block.resize(20_000, 0x80 | 62);
    let short = [&begun()[..], &frame(HEADERS, 0, &block)].concat();
    assert_heads_stay_under_the_budget(&mut node, &address, &short);

    let mut long = [&begun()[..], &frame(HEADERS, 0, &call_head("/thanos.Store/Series"))].concat();
    let mut block = Vec::new();
    while block.len() < 1 << 19 {
        let name = format!("h{}", block.len());
        push_header(&mut block, &name, &"x".repeat(100));
    }
    long.extend_from_slice(&frame(CONTINUATION, 0, &block));
    long.extend_from_slice(&frame(CONTINUATION, 0, &block));
    assert_heads_stay_under_the_budget(&mut node, &address, &long);
    assert!(heads_refused(&node, "grpc", "overload") > 0.0);
}

#[test]
fn a_mebibyte_of_short_lines_is_refused_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    let mut head = b"POST /api/v1/receive HTTP/1.1\r\nHost: x\r\n".to_vec();
    while head.len() < 1 << 20 {
        head.extend_from_slice(b"a:b\r\n");
    }
    head.extend_from_slice(b"\r\n");
    for address in [&node.remote_write, &node.http] {
        let mut stream = connect(address);
        stream.write_all(&head).unwrap();
        assert_eq!(read_answer(&mut stream).unwrap().status, 431);
    }
    // A connection is over a moment after its client has the answer.
    for listener in ["remote_write", "http"] {
        wait_until("counted", || heads_refused(&node, listener, "too_large") == 1.0);
    }
    assert!(!node.lines_with(&["request refused", "listener=http"]).is_empty());
    node.assert_alive();
}

/// How something that was begun has to end.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// The connection is closed, whatever is said before.
    Closed,
    /// The call is answered or reset, and the connection stays.
    CallEnded,
}

/// Half of everything that can be said to any listener. Whoever adds a listener, a path or a method
/// adds it here.
#[test]
fn whatever_is_half_sent_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, ca) = (crate::support::certificates::Authority::new(), dir.path().join("ca"));
    authority.write(&ca);
    let (cert, key) = authority.issue(dir.path(), "localhost");
    let data = dir.path().join("data");
    let tls = Node::start_ready(
        &dir.path().join("tls"),
        &[
            &format!("--remote-write.server-tls-cert={}", cert.display()),
            &format!("--remote-write.server-tls-key={}", key.display()),
            &format!("--grpc-server-tls-cert={}", cert.display()),
            &format!("--grpc-server-tls-key={}", key.display()),
            &format!("--grpc-server-tls-client-ca={}", ca.display()),
        ],
    );
    let node = Node::start_ready(&data, &["--receive.body-read-timeout=1s"]);

    let mut begun_with: Vec<(String, &str, Vec<u8>, Ends)> = Vec::new();
    let mut add = |what: &str, address, bytes: &[u8], ends| {
        begun_with.push((what.to_owned(), address, bytes.to_owned(), ends));
    };
    for (name, node) in [("plain", &node), ("tls", &tls)] {
        for (listener, address) in [
            ("http", &node.http),
            ("grpc", &node.grpc),
            ("remote write", &node.remote_write),
            ("capnproto", &node.capnproto),
        ] {
            add(&format!("{name} {listener} silence"), address, b"", Ends::Closed);
        }
    }
    // A record of TLS that announces a hello of 512 bytes.
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 100]].concat();
    for address in [&tls.grpc, &tls.remote_write] {
        for half in [1, 5, 50] {
            add(&format!("{half} bytes of a hello"), address, &hello[..half], Ends::Closed);
        }
    }
    for (address, paths) in [
        (&node.remote_write, &["/api/v1/receive", "/api/v1/write", "/x"][..]),
        (
            &node.http,
            &[
                "/-/healthy",
                "/-/ready",
                "/metrics",
                "/api/v1/read",
                "/api/v1/ring",
                "/api/v1/ring/take",
                "/x",
            ][..],
        ),
    ] {
        for path in paths {
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n");
            add(&format!("{path} head"), address, head.as_bytes(), Ends::Closed);
            let body = format!("{head}Content-Length: 100000\r\n\r\nhalf");
            add(&format!("{path} body"), address, body.as_bytes(), Ends::Closed);
            let chunk = format!("{head}Transfer-Encoding: chunked\r\n\r\n1000\r\nhalf");
            add(&format!("{path} chunk"), address, chunk.as_bytes(), Ends::Closed);
            let mut block = vec![0x83, 0x86];
            push_header(&mut block, ":path", path);
            push_header(&mut block, ":authority", "x");
            let head = [&begun()[..], &frame(HEADERS, 0, &block)].concat();
            add(&format!("{path} head of HTTP/2"), address, &head, Ends::Closed);
            let body =
                [&begun()[..], &frame(HEADERS, END_HEADERS, &block), &frame(0, 0, &[0; 100])[..50]];
            add(&format!("{path} body of HTTP/2"), address, &body.concat(), Ends::CallEnded);
        }
    }
    for address in [&node.grpc, &node.remote_write, &node.http] {
        for half in [10, PREFACE.len(), PREFACE.len() + 5] {
            add(&format!("{half} bytes of a preface"), address, &begun()[..half], Ends::Closed);
        }
    }
    for path in [
        "/thanos.Store/Series",
        "/thanos.Store/LabelNames",
        "/thanos.Store/LabelValues",
        "/thanos.WriteableStore/RemoteWrite",
        "/ringest.WriteableStore/RemoteWrite",
        "/thanos.Exemplars/Exemplars",
        "/thanos.Status/TSDBStatistics",
        "/thanos.info.Info/Info",
        "/grpc.health.v1.Health/Check",
        "/x.Y/Z",
    ] {
        let block = call_head(path);
        let head = [&begun()[..], &frame(HEADERS, 0, &block)].concat();
        add(&format!("{path} head"), &node.grpc, &head, Ends::Closed);
        // A message of 1000 bytes begins.
        let half = frame(0, 0, &[0, 0, 0, 3, 232, 1, 2, 3]);
        let body = [&begun()[..], &frame(HEADERS, END_HEADERS, &block), &half].concat();
        add(&format!("{path} message"), &node.grpc, &body, Ends::CallEnded);
    }
    // A message of Cap'n Proto of one segment, whose table and words do not all come.
    for half in [1, 4, 20] {
        let message = [&[0, 0, 0, 0, 100, 0, 0, 0][..], &[0x11; 100]].concat();
        add(&format!("{half} bytes of a message"), &node.capnproto, &message[..half], Ends::Closed);
    }

    let waiting: Vec<_> = begun_with
        .into_iter()
        .map(|(what, address, bytes, ends)| {
            let mut stream = connect(address);
            stream.write_all(&bytes).unwrap();
            (what, stream, ends)
        })
        .collect();
    println!("{} begun", waiting.len());
    for (what, mut stream, ends) in waiting {
        // Reset or closed, it has ended; what has not fails by the socket's time-out.
        match ends {
            Ends::Closed => {
                let ended = stream.read_to_end(&mut Vec::new());
                let timed_out = ended.is_err_and(|error| error.kind() == WOULD_BLOCK);
                assert!(!timed_out, "{what}: still open after {STUCK:?}");
            }
            Ends::CallEnded => {
                let is_end = |kind, flags| match kind {
                    HEADERS => flags & END_STREAM != 0,
                    0 => flags & END_STREAM != 0,
                    _ => kind == RESET,
                };
                assert!(until(&mut stream, is_end), "{what}: the call goes on");
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
    node.assert_alive();
    drop(tls);
}

const WOULD_BLOCK: std::io::ErrorKind = std::io::ErrorKind::WouldBlock;
