//! Bodies that lie, explode or are noise: an answer each, and bounded memory.

use std::io::Write as _;

use crate::support::http::{Request, ask, connect, read_answer};
use crate::support::messages::{
    VERSION_2, WriteRequest, compressed, field, push_field, push_varint, write_request,
};
use crate::support::node::Node;
use crate::support::now;
use crate::support::random::{Random, seed};
use crate::support::same::assert_same;

const MIB: u64 = 1 << 20;

/// `len` zeros as a snappy block: a literal byte, then copies of 64 bytes at offset 1.
fn zeros_block(len: u64) -> Vec<u8> {
    let mut block = Vec::new();
    push_varint(&mut block, len);
    block.extend_from_slice(&[0, 0]);
    let mut left = len - 1;
    while left > 0 {
        let copied = left.min(64);
        block.extend_from_slice(&[(copied as u8 - 1) << 2 | 2, 1, 0]);
        left -= copied;
    }
    block
}

#[test]
fn a_declared_length_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    let valid = WriteRequest::of(&[("__name__", "up")], now(), 1.0);
    assert_eq!(node.write("a", &valid).status, 200);
    let before = node.resident_bytes_peak();
    for declared in [1 << 31, (1 << 32) - 1, 1 << 28] {
        let mut body = Vec::new();
        push_varint(&mut body, declared);
        body.extend_from_slice(&[0, b'x']);
        assert_eq!(body.len(), 7);
        let (address, body) = (&node.remote_write, &body);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    let answer = ask(address, &write_request(b"a", body));
                    assert!(matches!(answer.status, 400 | 413), "{answer:?}");
                });
            }
        });
    }
    node.assert_alive();
    let growth = node.resident_bytes_peak() - before;
    assert!(growth < 4 * MIB, "{growth} bytes for twelve bodies of 7");
    assert_eq!(node.write("a", &valid).status, 200);
}

#[test]
fn bombs_are_refused_by_what_they_inflate_to() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--receive.decoded-bytes-max=32MB", "--receive.inflight-bytes-max=100MB"];
    let node = Node::start_ready(dir.path(), &args);
    // Over the cap, by their declaration.
    for len in [33 * MIB, 512 * MIB] {
        let answer = node.post(b"a", &zeros_block(len));
        assert_eq!(answer.status, 413, "{}", answer.text());
    }
    // Within the cap, many at once: the budget holds.
    let bomb = zeros_block(31 * MIB);
    let (address, request) = (&node.remote_write, &write_request(b"a", &bomb));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(move || {
                let answer = ask(address, request);
                assert!(matches!(answer.status, 400 | 503), "{answer:?}");
            });
        }
    });
    node.assert_alive();
    let peak = node.resident_bytes_peak();
    assert!(peak < 220 * MIB, "{peak} bytes under a budget of 100 MB");
}

/// A request of 2.0 of `series` series, each of which names a symbol of a MiB so often.
fn symbol_bomb(series: usize, refs: usize) -> Vec<u8> {
    let mut request = field(4, b"");
    push_field(&mut request, 4, &vec![b'x'; MIB as usize]);
    let message = field(1, &vec![1; refs]);
    (0..series).for_each(|_| push_field(&mut request, 5, &message));
    compressed(&request)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bombs_of_other_forms_are_refused_by_what_they_stand_for() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--receive.decoded-bytes-max=32MB", "--receive.inflight-bytes-max=100MB"];
    let node = Node::start_ready(dir.path(), &args);
    let post = |path: &str, content_type: &str, encoding: &str, body: &[u8]| {
        let request = Request::new("POST", path).header("Content-Type", content_type);
        ask(&node.remote_write, &request.header("Content-Encoding", encoding).body(body))
    };
    let spaces = vec![b' '; 40 * MIB as usize];
    let deep = "[".repeat(100_000);
    let deep = format!("{{\"resourceMetrics\": {deep}");
    let attributes = vec!["{}"; 500_000].join(",");
    let attributes = format!(
        "{{\"resourceMetrics\": [{{\"scopeMetrics\": [{{\"metrics\": [{{\"name\": \"g\", \"gauge\": \
         {{\"dataPoints\": [{{\"attributes\": [{attributes}]}}]}}}}]}}]}}]}}"
    );
    let json = "application/json";
    let cases = [
        ("/api/v1/receive", VERSION_2, "snappy", symbol_bomb(1, 80), 413),
        ("/api/v1/write", VERSION_2, "snappy", symbol_bomb(100_000, 2), 413),
        ("/api/v1/otlp", json, "gzip", gzip(&spaces), 413),
        ("/api/v1/otlp", json, "zstd", zstd::stream::encode_all(&spaces[..], 3).unwrap(), 413),
        ("/api/v1/otlp", json, "snappy", zeros_block(40 * MIB), 413),
        ("/api/v1/otlp", json, "", deep.into_bytes(), 400),
        ("/api/v1/otlp", json, "gzip", gzip(attributes.as_bytes()), 400),
    ];
    drop((spaces, attributes));
    for (path, content_type, encoding, body, status) in &cases {
        let answer = post(path, content_type, encoding, body);
        assert_eq!(answer.status, *status, "{path} {encoding}: {}", answer.text());
    }
    // Within the cap, many at once: the budget holds.
    let symbols = symbol_bomb(15, 2);
    std::thread::scope(|scope| {
        for i in 0..16 {
            let (symbols, cases, post) = (&symbols, &cases, &post);
            scope.spawn(move || {
                let answer = match i % 2 {
                    0 => post("/api/v1/receive", VERSION_2, "snappy", symbols),
                    _ => post("/api/v1/otlp", json, "gzip", &cases[6].3),
                };
                assert!(matches!(answer.status, 400 | 409 | 503), "{answer:?}");
            });
        }
    });
    node.assert_alive();
    let peak = node.resident_bytes_peak();
    assert!(peak < 300 * MIB, "{peak} bytes under a budget of 100 MB");
}

/// Bytes of a request that has something of everything.
fn rich_request(random: &mut Random) -> Vec<u8> {
    let t = now();
    let mut request = WriteRequest::default();
    for series in 0..4 + random.below(30) {
        let name = format!("metric_{series}");
        let labels = [("__name__", &name[..]), ("job", "fuzz"), ("z", "ü")];
        let samples: Vec<(i64, f64)> = (0..random.below(4) as i64).map(|i| (t + i, 1.0)).collect();
        request = request.with(&labels, &samples);
    }
    // An exemplar and, now and then, histograms; metadata; a field nobody knows.
    let mut bytes = request.0;
    let label = [&[0x0a, 13, 0x0a, 8][..], b"__name__", &[0x12, 1, b'b']].concat();
    bytes.extend([&[0x0a, 17][..], &label, &[0x1a, 0]].concat());
    if random.below(3) == 0 {
        // One that contradicts itself, and one of two buckets.
        bytes.extend([&[0x0a, 19][..], &label, &[0x22, 2, 0x08, 1]].concat());
        let mut histogram = vec![0x08, 3, 0x5a, 2, 0x10, 2, 0x62, 2, 2, 2, 0x78];
        push_varint(&mut histogram, t as u64);
        let field = [&[0x22, histogram.len() as u8][..], &histogram].concat();
        bytes.extend([&[0x0a, (label.len() + field.len()) as u8][..], &label, &field].concat());
    }
    bytes.extend_from_slice(&[0x1a, 4, 0x08, 1, 0x12, 0, 0x3a, 1, b'?']);
    bytes
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const INTERESTING: [&[u8]; 8] = [
        &[0x80; 11],
        &[0xff; 9],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0x0a, 0x00],
        &[0x12, 0x00],
        &[0x0b],
        &[0x0c],
        &[0xc3, 0x28],
    ];
    for _ in 0..1 + random.below(8) {
        let at = random.below(bytes.len().max(1));
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let insert = INTERESTING[random.below(INTERESTING.len())];
                bytes.splice(at.min(bytes.len())..at.min(bytes.len()), insert.iter().copied());
            }
            4 => {
                let end = (at + random.below(20)).min(bytes.len());
                let piece = bytes[at.min(end)..end].to_vec();
                bytes.extend(piece);
            }
            _ => {
                let end = (at + 1 + random.below(10)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
        }
    }
}

#[test]
fn noise_gets_an_answer_that_is_not_our_fault() {
    const BODIES: usize = 1500;
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    let mut random = Random(seed());
    let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
    // On kept connections, as senders have them: only an answer keeps one open.
    let mut stream = connect(&node.remote_write);
    for number in 0..BODIES {
        let mut bytes = rich_request(&mut random);
        if random.below(4) > 0 {
            mutate(&mut bytes, &mut random);
        }
        let mut body = snap::raw::Encoder::new().compress_vec(&bytes).unwrap();
        if random.below(4) == 0 {
            mutate(&mut body, &mut random);
        }
        let path = ["/api/v1/receive", "/api/v1/write"][random.below(2)];
        let tenant = format!("t{}", random.below(3));
        let request = Request::new("POST", path).header("THANOS-TENANT", tenant).body(body);
        stream.write_all(&request.kept_alive().bytes()).unwrap();
        let answer = read_answer(&mut stream).unwrap_or_else(|error| {
            panic!("body {number}: {error}, {:?}: {bytes:02x?}", node.lines_with(&["panicked"]))
        });
        let allowed = [200, 204, 400, 409, 413];
        assert!(allowed.contains(&answer.status), "body {number}, {bytes:02x?}: {answer:?}");
        *statuses.entry(answer.status).or_default() += 1;
        if answer.closes() {
            stream = connect(&node.remote_write);
        }
    }
    println!("{statuses:?}");
    for status in [200, 204, 400, 409] {
        assert!(statuses.contains_key(&status), "no {status}: the bodies reach too little");
    }
    node.assert_alive();
    // Whatever was taken can be read, and the log of it replayed.
    let stored: Vec<_> = (0..3).map(|i| node.read(&format!("t{i}"))).collect();
    node.kill();
    let node = Node::start_ready(dir.path(), &[]);
    for (i, stored) in stored.iter().enumerate() {
        let tenant = format!("t{i}");
        assert_same(&tenant, &node.read(&tenant), stored);
    }
    node.assert_alive();
}

#[test]
fn noise_instead_of_http_ends_a_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    let mut random = Random(seed());
    for _ in 0..200 {
        let mut bytes = write_request(b"a", b"x").bytes();
        bytes.truncate(bytes.len() - random.below(40));
        mutate(&mut bytes, &mut random);
        let mut stream = connect(&node.remote_write);
        // It may be closed on us at any byte.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        if let Ok(answer) = read_answer(&mut stream) {
            assert!(answer.status < 500 || answer.status == 501, "{bytes:?}: {answer:?}");
        }
    }
    node.assert_alive();
    let valid = WriteRequest::of(&[("__name__", "up")], now(), 1.0);
    assert_eq!(node.write("a", &valid).status, 200);
}
