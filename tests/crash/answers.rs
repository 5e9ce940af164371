//! What a refused sender is told: the stage, the tenant, and by reason a count and one series.

use std::io::Write as _;

use crate::support::http::{Request, connect, read_answer};
use crate::support::messages::{WriteRequest, push_field, write_request};
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::wait_until;

#[test]
fn a_series_with_a_million_labels_is_refused_and_the_rest_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    let names: Vec<String> = (0..1_000_000).map(|i| format!("label_{i:07}")).collect();
    let mut labels = vec![("__name__", "storm")];
    labels.extend(names.iter().map(|name| (name.as_str(), "x")));
    let body = WriteRequest::of(&[("__name__", "before")], now(), 1.0)
        .with(&labels, &[(now(), 1.0)])
        .with(&[("__name__", "behind")], &[(now(), 1.0)]);
    assert_eq!(
        node.write("a", &WriteRequest::of(&[("__name__", "first")], now(), 1.0)).status,
        200
    );
    for _ in 0..3 {
        let answer = node.write("a", &body);
        assert_eq!(answer.status, 409);
        let text = answer.text();
        assert!(
            text.starts_with("append: 1 refused for tenant \"a\", the rest is stored"),
            "{text}"
        );
        assert!(text.contains("labels over the cap 1 ({__name__=\"storm\", "), "{text}");
        assert!(text.len() < 2048, "{} bytes", text.len());
    }
    node.assert_alive();
    let names: Vec<String> = node.read("a").into_keys().collect();
    assert_eq!(names, ["before", "behind", "first"].map(|name| format!("{{__name__={name:?}}}")));
}

/// As many labels as a body can hold, two bytes each: they must not cost sixteen times as much.
#[test]
fn labels_that_are_refused_are_not_collected() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    let mut series = Vec::new();
    push_field(&mut series, 1, &[0x0a, 1, b'a', 0x12, 1, b'b']);
    for _ in 0..15_000_000 {
        series.extend_from_slice(&[0x0a, 0]);
    }
    let mut body = WriteRequest::default();
    push_field(&mut body.0, 1, &series);
    let answer = node.write("a", &body);
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.text().contains("labels over the cap 1 "), "{}", answer.text());
    node.assert_alive();
    let peak = node.resident_bytes_peak();
    assert!(peak < 200 << 20, "{peak} bytes for a body of 30 MB");
}

#[test]
fn every_refusal_says_which_stage_tenant_reason_and_series() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let args = ["--receive.request-bytes-max=64KB", "--receive.decoded-bytes-max=128KB"];
    let node = Node::start_ready(data, &args);
    let t = now();
    assert_eq!(node.write("team", &WriteRequest::of(&[("__name__", "up")], t, 1.0)).status, 200);

    let up = |t: i64, v: f64| WriteRequest::of(&[("__name__", "up"), ("job", "j")], t, v);
    assert_eq!(node.write("team", &up(t, 1.0)).status, 200);
    let far_back = 10 * 60 * 60 * 1000;
    let refusals: Vec<(WriteRequest, &str)> = vec![
        (up(t, 2.0), "duplicate sample for timestamp 1 ({__name__=\"up\", job=\"j\"})"),
        (up(t - 1000, 2.0), "out of order sample 1 ({__name__=\"up\", job=\"j\"})"),
        (up(t - far_back, 2.0), "out of bounds 1 ({__name__=\"up\", job=\"j\"})"),
        (WriteRequest::of(&[], t, 1.0), "series without labels 1 ({})"),
        (WriteRequest::of(&[("a", "")], t, 1.0), "empty label name or value 1 ({a=\"\"})"),
        (WriteRequest::of(&[("a", "1"), ("a", "1")], t, 1.0), "duplicate label name 1 ({a=\"1\","),
        (WriteRequest::of(&[("b", "1"), ("a", "1")], t, 1.0), "labels out of order 1 ({b=\"1\","),
    ];
    let mut all = WriteRequest::default();
    for (refused, reason) in &refusals {
        let answer = node.write("team", refused);
        let text = answer.text();
        assert_eq!(answer.status, 409, "{text}");
        assert!(text.starts_with("append: 1 refused for tenant \"team\""), "{text}");
        assert!(text.contains(reason), "{reason}: {text}");
        all.0.extend_from_slice(&refused.0);
    }
    // All at once, with something valid between.
    all = all.with(&[("__name__", "valid")], &[(t, 1.0)]);
    let text = node.write("team", &all).text();
    assert!(
        text.starts_with("append: 7 refused for tenant \"team\", the rest is stored"),
        "{text}"
    );
    for (_, reason) in &refusals {
        assert!(text.contains(reason), "{reason}: {text}");
    }
    assert!(node.read("team").contains_key("{__name__=\"valid\"}"));

    let post = |headers: &[(&str, &[u8])], body: &[u8]| {
        let request = write_request(b"team", body);
        let request = headers.iter().fold(request, |all, (name, value)| all.header(name, value));
        node.ask(&node.remote_write, &request)
    };
    let valid = up(t, 1.0).compressed();
    let bomb = snap::raw::Encoder::new().compress_vec(&vec![0; 200 << 10]).unwrap();
    let not_protobuf = snap::raw::Encoder::new().compress_vec(b"\x0a\x05x").unwrap();
    let of_type = |content_type| {
        let version: (_, &[u8]) = ("X-Prometheus-Remote-Write-Version", b"2.0.0");
        [version, ("Content-Type", content_type)]
    };
    let version_2 = of_type(b"application/x-protobuf;proto=io.prometheus.write.v2.Request");
    let unknown = of_type(b"application/x-protobuf;proto=io.prometheus.write.v3.Request");
    for (answer, status, stage) in [
        (post(&[], b"\xff\xff\xff"), 400, "snappy: "),
        (post(&[], &not_protobuf), 400, "decode protobuf: timeseries: "),
        (post(&[("THANOS-REPLICA", b"x")], &valid), 400, "replica header: "),
        (post(&[], &vec![0; 70 << 10]), 413, "size: "),
        (post(&[], &bomb), 413, "snappy: "),
        (post(&version_2, &valid), 400, "decode protobuf: remote write 2.0 request: "),
        (post(&unknown, &valid), 415, "version: "),
    ] {
        let text = answer.text();
        assert_eq!(answer.status, status, "{text}");
        assert!(text.starts_with(stage), "{stage}: {text}");
        assert!(text.contains("tenant \"team\""), "{text}");
    }
    let answer = node.post(b"a/b", &valid);
    assert_eq!(answer.status, 400);
    assert!(answer.text().starts_with("tenant: "), "{}", answer.text());
    assert!(answer.text().contains("\"a/b\""), "{}", answer.text());
}

/// A sender that sends all of its request before it reads, which Python's clients do, must see the
/// answer, not a broken pipe: it would send the same again and again.
#[test]
fn answers_arrive_though_the_body_was_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "--receive.request-bytes-max=1MB",
        "--receive.decoded-bytes-max=1MB",
        "--receive.inflight-bytes-max=2MB",
        "--receive.body-read-timeout=10m",
    ];
    let node = Node::start_ready(dir.path(), &args);
    let gzip = Some(("Content-Encoding", "gzip"));
    for (status, address, tenant, bytes, path, header) in [
        (400, &node.remote_write, "a/b", 1 << 20, "/api/v1/receive", None),
        (404, &node.remote_write, "a", 1 << 20, "/nowhere", None),
        (415, &node.remote_write, "a", 100 << 10, "/api/v1/write", gzip),
        (415, &node.remote_write, "a", 900 << 10, "/api/v1/write", gzip),
        (413, &node.remote_write, "a", 2 << 20, "/api/v1/receive", None),
        (413, &node.remote_write, "a", 2 << 20, "/api/v1/write", None),
        (404, &node.http, "a", 1 << 20, "/nowhere", None),
        (400, &node.http, "a/b", 1 << 20, "/api/v1/read", None),
        (400, &node.http, "a", 9 << 20, "/api/v1/read", None),
    ] {
        assert_answers_arrive(address, status, tenant, bytes, path, header);
    }

    // Nearly all of the budget is held by bodies that do not come to their ends. What they declare
    // fits, or the second would be refused at its head whenever the first has arrived before it.
    let held: Vec<_> = [(1 << 20) - 1, 900 << 10]
        .map(|bytes| {
            let mut stream = connect(&node.remote_write);
            let head = write_head("a", bytes + 1, "/api/v1/receive", None);
            stream.write_all(&head.bytes()).unwrap();
            stream.write_all(&vec![0; bytes]).unwrap();
            stream
        })
        .into();
    wait_until("the budget is held", || {
        node.exposed("ringest_inflight_bytes").unwrap() >= 1900.0 * 1024.0
    });
    for bytes in [200 << 10, 1 << 20] {
        assert_answers_arrive(&node.remote_write, 503, "a", bytes, "/api/v1/receive", None);
    }
    drop(held);
    node.assert_alive();
}

fn assert_answers_arrive(
    address: &str,
    status: u16,
    tenant: &str,
    bytes: usize,
    path: &str,
    header: Option<(&str, &str)>,
) {
    let body = vec![0xff; bytes];
    for i in 0..30 {
        let mut stream = connect(address);
        let what = format!("{status} {path} {bytes}, the {i}th");
        stream.write_all(&write_head(tenant, bytes, path, header).bytes()).unwrap();
        if let Err(error) = stream.write_all(&body) {
            panic!("{what}: {error}");
        }
        let answer = read_answer(&mut stream).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert!(answer.closes() || bytes < 256 << 10, "{what}: {answer:?}");
        if status == 503 {
            answer.assert_come_again();
        }
    }
}

/// The head of a write whose connection is to stay.
fn write_head(tenant: &str, bytes: usize, path: &str, header: Option<(&str, &str)>) -> Request {
    let request = Request::new("POST", path).header("THANOS-TENANT", tenant);
    let request = request.declaring(bytes).kept_alive();
    header.into_iter().fold(request, |request, (name, value)| request.header(name, value))
}
