//! Questions of readers that come by halves or decode to a hundred times their size: memory stays
//! within the budget of reads, at every door.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::grpc::call;
use crate::support::http::{Request, connect};
use crate::support::messages::{WriteRequest, push_field, push_varint};
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::wait_until;

const MIB: u64 = 1 << 20;

/// What a node takes beside what it holds: buffers of connections and of the allocator.
const SLACK: u64 = 24 * MIB;

fn question(body: Vec<u8>) -> Request {
    Request::new("POST", "/api/v1/read").body(body)
}

#[test]
fn half_sent_questions_are_held_against_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &["--query.inflight-bytes-max=16MB"]);
    let before = node.resident_bytes();
    let declared = vec![0; 8 << 20];
    let whole = question(declared).bytes();
    let half = &whole[..whole.len() - 1];
    let address = &node.http;
    let streams: Vec<TcpStream> = std::thread::scope(|scope| {
        let send = || {
            let mut stream = connect(address);
            // One that is refused may be closed before all of it is sent.
            let _ = stream.write_all(half);
            stream
        };
        let senders: Vec<_> = (0..40).map(|_| scope.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    let held = || node.exposed("ringest_query_inflight_bytes").unwrap();
    assert!(held() <= 16.0 * MIB as f64, "{} bytes are held", held());
    // A buffer that grew leaves its smaller ones to the allocator, which keeps them for a while.
    let growth = node.resident_bytes().saturating_sub(before);
    assert!(growth < 4 * 16 * MIB + SLACK, "{growth} bytes for 40 halves of 8 MiB");
    // Those that found no room were told so.
    let refused = "ringest_overload_refused_requests_total{budget=\"read\",door=\"http\"}";
    assert!(node.exposed(refused).unwrap() >= 38.0, "{:?}", node.exposed(refused));
    drop(streams);
    wait_until("nothing is held", || held() == 0.0);
    node.assert_alive();
}

/// Fields of two bytes each, as many as there is room for.
fn empty_fields(number: u8, bytes: usize) -> Vec<u8> {
    [number << 3 | 2, 0].repeat(bytes / 2)
}

#[test]
fn a_small_body_that_decodes_large_is_refused_before_it_is_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    const BYTES: usize = 8 << 20;
    let inside = |fields: Vec<u8>| {
        let mut message = Vec::new();
        push_field(&mut message, 1, &fields);
        message
    };
    let mut hints = Vec::new();
    push_field(&mut hints, 4, &empty_fields(5, BYTES - 20));
    let mut packed = vec![2 << 3 | 2];
    push_varint(&mut packed, BYTES as u64 - 10);
    packed.resize(BYTES - 5, 0);
    let cases = [
        ("queries", empty_fields(1, BYTES)),
        ("matchers", inside(empty_fields(3, BYTES - 10))),
        ("grouping labels", inside(hints)),
        ("response types", packed),
        ("fields", empty_fields(9, BYTES)),
    ];
    let peak = node.resident_bytes_peak();
    for (what, message) in cases {
        let body = snap::raw::Encoder::new().compress_vec(&message).unwrap();
        assert!(body.len() < 512 << 10, "{what}: {} bytes", body.len());
        let answer = node.ask(&node.http, &question(body));
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert!(answer.text().contains(&format!(" {what}")), "{what}: {}", answer.text());
        let growth = node.resident_bytes_peak() - peak;
        assert!(growth < BYTES as u64 + SLACK, "{growth} bytes for {what}");
    }
    node.assert_alive();
}

const OK: i32 = 0;
const INVALID_ARGUMENT: i32 = 3;
const INTERNAL: i32 = 13;

#[test]
fn a_small_message_that_decodes_large_is_refused_before_it_is_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    const BYTES: usize = 4 << 20;
    // Below the cap of a message, with what stands around it.
    let nested = |path: &[u8], field: u8| {
        let fields = empty_fields(field, BYTES - 100);
        path.iter().rev().fold(fields, |inner, number| {
            let mut message = Vec::new();
            push_field(&mut message, *number, &inner);
            message
        })
    };
    let list = |field| nested(&[], field);
    let cases = [
        ("/thanos.Store/Series", list(3), INVALID_ARGUMENT),
        ("/thanos.Store/Series", list(14), INVALID_ARGUMENT),
        ("/thanos.Store/Series", nested(&[13], 4), INVALID_ARGUMENT),
        ("/thanos.Store/Series", nested(&[12], 6), INVALID_ARGUMENT),
        ("/thanos.Store/Series", nested(&[12, 4], 3), INVALID_ARGUMENT),
        ("/thanos.Store/LabelNames", list(6), INVALID_ARGUMENT),
        ("/thanos.Store/LabelNames", list(7), INVALID_ARGUMENT),
        ("/thanos.Store/LabelValues", list(7), INVALID_ARGUMENT),
        ("/thanos.Store/LabelValues", list(8), INVALID_ARGUMENT),
        ("/thanos.Status/TSDBStatistics", list(4), INVALID_ARGUMENT),
        ("/thanos.Exemplars/Exemplars", list(9), INVALID_ARGUMENT),
        ("/thanos.info.Info/Info", list(9), INVALID_ARGUMENT),
        // Writes of peers are read in place.
        ("/thanos.WriteableStore/RemoteWrite", list(1), INVALID_ARGUMENT),
        ("/thanos.WriteableStore/RemoteWrite", list(4), OK),
        ("/thanos.WriteableStore/RemoteWrite", list(9), INTERNAL),
        ("/ringest.WriteableStore/RemoteWrite", list(9), INTERNAL),
    ];
    let peak = node.resident_bytes_peak();
    for (method, message, expected) in cases {
        let called = call(&node.grpc, method, &[], &message);
        assert_eq!(called.code, expected, "{method}: {called:?}");
        let growth = node.resident_bytes_peak() - peak;
        assert!(growth < 3 * BYTES as u64 + SLACK, "{growth} bytes for {method}");
    }
    node.assert_alive();
}

#[test]
fn matchers_are_held_by_what_they_are_compiled_to() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &["--query.inflight-bytes-max=64MB"]);
    let query = |patterns: &[Vec<u8>]| {
        let mut query = Vec::new();
        for pattern in patterns {
            let mut matcher = vec![8, 2];
            push_field(&mut matcher, 2, b"a");
            push_field(&mut matcher, 3, pattern);
            push_field(&mut query, 3, &matcher);
        }
        let mut request = Vec::new();
        push_field(&mut request, 1, &query);
        snap::raw::Encoder::new().compress_vec(&request).unwrap()
    };
    // Programs of megabytes by nine bytes each, and a text that would be a table of 600 MB.
    let classes = vec![br"\pL{100}".to_vec(); 500];
    let text: Vec<u8> = (0..600_000u64).map(|i| b'a' + (i * i % 23) as u8).collect();
    let text = [b".*", &text[..], b".*"].concat();
    let peak = node.resident_bytes_peak();
    for (what, patterns, statuses) in
        [("classes", classes, [503, 503]), ("a text", vec![text], [200, 503])]
    {
        let answer = node.ask(&node.http, &question(query(&patterns)));
        assert!(statuses.contains(&answer.status), "{what}: {}", answer.text());
        let growth = node.resident_bytes_peak() - peak;
        assert!(growth < 64 * MIB + 4 * SLACK, "{growth} bytes for {what}");
    }
    node.assert_alive();
}

#[test]
fn a_small_write_that_decodes_large_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    let valid = WriteRequest::of(&[("__name__", "up")], now(), 1.0);
    assert_eq!(node.write("a", &valid).status, 200);
    const BYTES: usize = 8 << 20;
    let inside = |inner: Vec<u8>| {
        let mut message = Vec::new();
        push_field(&mut message, 1, &inner);
        message
    };
    let peak = node.resident_bytes_peak();
    for (what, status, message) in [
        ("series", 400, empty_fields(1, BYTES)),
        ("labels", 409, inside(empty_fields(1, BYTES - 10))),
        ("samples", 400, inside(empty_fields(2, BYTES - 10))),
        ("exemplars", 409, inside(empty_fields(3, BYTES - 10))),
        ("metadata", 200, empty_fields(3, BYTES)),
        ("unknown fields", 400, empty_fields(9, BYTES)),
    ] {
        let body = snap::raw::Encoder::new().compress_vec(&message).unwrap();
        let answer = node.post(b"a", &body);
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        // A sample of nine bytes, the least that one has in earnest, takes three times as many.
        let growth = node.resident_bytes_peak() - peak;
        assert!(growth < 7 * BYTES as u64 + SLACK, "{growth} bytes for {what}");
    }
    node.assert_alive();
}

#[test]
fn unknown_paths_take_nothing_of_a_body() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    let before = node.resident_bytes();
    let body = vec![0; 8 << 20];
    let streams: Vec<TcpStream> = [&node.http, &node.remote_write]
        .into_iter()
        .flat_map(|address| ["/", "/metrics", "/api/v1/ring/take"].map(|path| (address, path)))
        .flat_map(|(address, path)| {
            let whole = Request::new("POST", path).body(&body[..]).bytes();
            (0..5).map(move |_| {
                let mut stream = connect(address);
                let _ = stream.write_all(&whole[..whole.len() - 1]);
                stream
            })
        })
        .collect();
    // Each is answered, though its body never ends.
    for mut stream in streams {
        let mut answer = [0; 9];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 ");
    }
    let growth = node.resident_bytes().saturating_sub(before);
    assert!(growth < SLACK, "{growth} bytes for 30 halves of 8 MiB");
    node.assert_alive();
}
