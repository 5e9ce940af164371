use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use http::HeaderValue;
use http::header::RETRY_AFTER;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::http::{ConnectionLimits, serve};
use crate::model::tenant::TenantId;
use crate::wire::remote_write_v1::RequestFields;
use crate::write::WrittenCounts;
use crate::write::error::Reason;

/// Remembers what it is given, and refuses a sample of the request "refuse".
#[derive(Default)]
struct Recorder(Mutex<Vec<(String, Vec<u8>)>>);

impl WriteSink for Recorder {
    async fn write(
        &self,
        tenant: &TenantId,
        request: Bytes,
        _replica: u64,
        _sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        self.0.lock().push((tenant.as_str().to_owned(), request.to_vec()));
        let written = WrittenCounts { samples: 1, ..Default::default() };
        let mut outcome =
            WriteOutcome { series: 1, samples_stored: 1, written, ..Default::default() };
        match &request[..] {
            b"refuse" => outcome.refusals.add(Reason::OutOfBounds, 1, || "{a=\"b\"}".into()),
            b"broken" => {
                let error = RequestFields::new(&request).find_map(Result::err).unwrap();
                return Err(Invalid::Decode(error).into());
            }
            _ => {}
        }
        Ok(outcome)
    }
}

struct Node {
    sink: Arc<Recorder>,
    service: Arc<WriteService<Recorder>>,
    registry: Registry,
}

const LIMITS: RequestLimits = RequestLimits {
    request_bytes_max: 1000,
    decoded_bytes_max: 5000,
    inflight_bytes_max: 20_000,
    body_read_timeout: Duration::from_millis(20),
};

fn node(accepting: Probe) -> Node {
    node_with(accepting, LIMITS)
}

fn node_with(accepting: Probe, limits: RequestLimits) -> Node {
    let tenants = TenantRules::new(
        HeaderName::from_static("thanos-tenant"),
        TenantId::parse(b"nobody").unwrap(),
    );
    let options = RemoteWriteOptions::new(tenants, "THANOS-REPLICA", limits).unwrap();
    let (sink, registry) = (Arc::new(Recorder::default()), Registry::new());
    let service = {
        let admission = Admission::new(limits.inflight_bytes_max).at_door(&registry, "http");
        WriteService::new(sink.clone(), accepting, options, admission, &registry)
    };
    Node { sink, service: Arc::new(service), registry }
}

/// Path, headers and body of a request; status and text of its answer.
async fn ask(
    node: &Node,
    path: &str,
    headers: &[(&'static str, &'static str)],
    body: impl Into<Body>,
) -> (u16, String) {
    let mut request = Request::post(path).body(body.into()).unwrap();
    for (name, value) in headers {
        let name = HeaderName::from_static(name);
        request.headers_mut().append(name, HeaderValue::from_static(value));
    }
    let response = remote_write_router(node.service.clone()).oneshot(request).await.unwrap();
    let status = response.status();
    assert_eq!(response.headers().contains_key(RETRY_AFTER), status.as_u16() == 503);
    let text = to_bytes(response.into_body(), 1 << 16).await.unwrap();
    (status.as_u16(), String::from_utf8(text.to_vec()).unwrap())
}

fn block(request: &[u8]) -> Vec<u8> {
    snappy::deflate(request).unwrap()
}

/// A body without a declared length.
fn chunked(chunks: Vec<Vec<u8>>) -> Body {
    let chunks = chunks.into_iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from(chunk)));
    Body::from_stream(futures::stream::iter(chunks))
}

#[tokio::test]
async fn a_request_reaches_the_sink_inflated_and_with_its_tenant() {
    let node = node(Probe::new(|| true));
    let tenant = [("thanos-tenant", " team ")];
    assert_eq!(ask(&node, RECEIVE_PATH, &tenant, block(b"one")).await, (200, String::new()));
    assert_eq!(ask(&node, WRITE_PATH, &[], block(b"two")).await, (204, String::new()));
    let body = block(&[7; 3000]);
    let split = chunked(body.chunks(5).map(<[u8]>::to_vec).collect());
    assert_eq!(ask(&node, RECEIVE_PATH, &tenant, split).await.0, 200);
    let expected =
        [("team", b"one".to_vec()), ("nobody", b"two".to_vec()), ("team", vec![7; 3000])];
    let expected = expected.map(|(tenant, request)| (tenant.to_owned(), request));
    assert_eq!(*node.sink.0.lock(), expected);
    assert_eq!(node.service.admission.inflight_bytes(), 0, "everything was given back");
}

#[tokio::test]
async fn large_requests_are_inflated_elsewhere_and_hold_their_bytes() {
    let bytes_max = 4 << 20;
    let limits = RequestLimits {
        request_bytes_max: bytes_max,
        decoded_bytes_max: bytes_max,
        inflight_bytes_max: bytes_max,
        ..LIMITS
    };
    let node = node_with(Probe::new(|| true), limits);
    let places = heavy::take_all_places().await;
    let large = block(&vec![7; heavy::LARGE_BYTES + 1]);
    let mut waiting = std::pin::pin!(ask(&node, RECEIVE_PATH, &[], large));
    assert!(futures::poll!(&mut waiting).is_pending());
    let usual = block(&vec![7; heavy::LARGE_BYTES]);
    assert_eq!(ask(&node, RECEIVE_PATH, &[], usual).await.0, 200);
    assert!(futures::poll!(&mut waiting).is_pending());
    assert!(node.service.admission.inflight_bytes() > heavy::LARGE_BYTES as u64);
    drop(places);
    assert_eq!(waiting.await.0, 200);
    assert_eq!(node.sink.0.lock().len(), 2);
    assert_eq!(node.service.admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn each_stage_refuses_before_the_next_one_looks() {
    let node = node(Probe::new(|| true));
    let bad_replica = ("thanos-replica", "x");
    let bad_tenant = ("thanos-tenant", "a/b");
    let version_2 = ("x-prometheus-remote-write-version", "2.0.0");
    let type_2 = ("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request");
    let large = || block(&[0; 5001]);
    // Each request has the fault of its stage and those of all later stages.
    type Headers = Vec<(&'static str, &'static str)>;
    let cases: Vec<(&str, Headers, Body, u16)> = vec![
        ("tenant", vec![bad_tenant, version_2, bad_replica], vec![0xff; 1001].into(), 400),
        ("size", vec![version_2, bad_replica], vec![0xff; 1001].into(), 413),
        ("read", vec![version_2, bad_replica], chunked(vec![vec![0xff; 600]; 2]), 413),
        ("snappy", vec![version_2, bad_replica], vec![0xff; 9].into(), 400),
        ("snappy", vec![version_2, bad_replica], large().into(), 413),
        ("version", vec![version_2, bad_replica], block(b"broken").into(), 400),
        ("replica header", vec![type_2, bad_replica], block(b"broken").into(), 400),
        ("decode protobuf", vec![type_2], block(b"broken").into(), 400),
        ("replica header", vec![bad_replica], block(b"broken").into(), 400),
        ("decode protobuf", vec![], block(b"broken").into(), 400),
        ("append", vec![], block(b"refuse").into(), 409),
    ];
    for (stage, headers, body, expected) in cases {
        let (status, text) = ask(&node, RECEIVE_PATH, &headers, body).await;
        assert_eq!(status, expected, "{stage}: {text}");
        assert!(text.starts_with(&format!("{stage}: ")), "{stage}: {text}");
        assert!(text.contains("tenant") && text.ends_with('\n'), "{stage}: {text}");
    }
    let stored: Vec<_> = node.sink.0.lock().iter().map(|(_, request)| request.clone()).collect();
    assert_eq!(stored, [b"broken", b"refuse"]);
}

#[tokio::test]
async fn a_node_that_does_not_accept_says_so_first() {
    let node = node(Probe::new(|| false));
    let (status, _) = ask(&node, RECEIVE_PATH, &[("thanos-tenant", "a/b")], Body::empty()).await;
    assert_eq!(status, 503);
    assert!(node.sink.0.lock().is_empty());
}

#[tokio::test]
async fn what_does_not_fit_beside_others_is_refused_at_once() {
    let node = node(Probe::new(|| true));
    let others = node.service.admission.admit(19_500).unwrap();
    let (status, text) = ask(&node, RECEIVE_PATH, &[], block(b"one")).await;
    assert_eq!(status, 503);
    assert!(text.contains("overload"), "{text}");
    drop(others);
    // A head fits, its body does not inflate into what is left.
    let others = node.service.admission.admit(14_000).unwrap();
    assert_eq!(ask(&node, RECEIVE_PATH, &[], block(&[0; 4000])).await.0, 503);
    drop(others);
    let refused = "ringest_overload_refused_requests_total{budget=\"write\",door=\"http\"} 2\n";
    assert!(node.registry.expose().contains(refused));
    assert_eq!(ask(&node, RECEIVE_PATH, &[], block(&[0; 4000])).await.0, 200);
    assert_eq!(node.service.admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up() {
    let node = node(Probe::new(|| true));
    let stalled = futures::stream::pending::<Result<Bytes, std::io::Error>>();
    assert_eq!(ask(&node, RECEIVE_PATH, &[], Body::from_stream(stalled)).await.0, 503);
    assert_eq!(node.service.admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn a_half_sent_body_is_answered_and_its_connection_closed() {
    let node = node(Probe::new(|| true));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = remote_write_router(node.service.clone());
    let shutdown = CancellationToken::new();
    let limits = ConnectionLimits::default();
    let door = crate::door::Door::open_wide();
    let served = serve(listener, None, router, limits, door, shutdown.clone(), Duration::MAX);
    let served = tokio::spawn(served);
    let half = b"POST /api/v1/receive HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nhalf";
    let mut stalled = Vec::new();
    for _ in 0..500 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(half).await.unwrap();
        stalled.push(stream);
    }
    for mut stream in stalled {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
    assert_eq!(node.service.admission.inflight_bytes(), 0);
    shutdown.cancel();
    assert_eq!(served.await.unwrap().connections_cut, 0);
}

#[tokio::test]
async fn media_types_matter_to_prometheus_manners_only() {
    let node = node(Probe::new(|| true));
    let message_1 = "application/x-protobuf; proto=prometheus.WriteRequest";
    let message_2 = "application/x-protobuf;proto=io.prometheus.write.v2.Request";
    let cases = [
        ("content-type", "application/x-protobuf", 200, 204),
        ("content-type", message_1, 200, 204),
        ("content-type", message_2, 400, 400),
        ("content-type", "application/x-protobuf;proto=other.Message", 200, 415),
        ("content-type", "text/plain", 200, 415),
        ("content-encoding", "snappy", 200, 204),
        ("content-encoding", "gzip", 200, 415),
        ("x-unrelated", "x", 200, 204),
    ];
    for (name, value, receive, write) in cases {
        let got = ask(&node, RECEIVE_PATH, &[(name, value)], block(b"one")).await.0;
        assert_eq!(got, receive, "{name}: {value}");
        let got = ask(&node, WRITE_PATH, &[(name, value)], block(b"one")).await.0;
        assert_eq!(got, write, "{name}: {value}");
    }
}

#[tokio::test]
async fn a_replica_number_is_digits_in_64_bits() {
    let node = node(Probe::new(|| true));
    let good = ["0", "1", "00001", " 1 ", "18446744073709551615", ""];
    let bad = ["abc", "-1", "+1", "1.0", "0x1", "18446744073709551616", "1,2", "1_0"];
    for (values, status) in [(&good[..], 200), (&bad[..], 400)] {
        for value in values {
            for body in [b"".as_slice(), b"one"] {
                let headers = [("thanos-replica", *value)];
                let got = ask(&node, RECEIVE_PATH, &headers, block(body)).await.0;
                assert_eq!(got, status, "{value:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_empty_request_is_success_without_a_tenant_being_made() {
    let node = node(Probe::new(|| true));
    assert_eq!(ask(&node, RECEIVE_PATH, &[], vec![0]).await.0, 200);
    assert!(node.sink.0.lock().is_empty());
}

#[tokio::test]
async fn methods_and_paths_are_answered_as_by_thanos() {
    let node = node(Probe::new(|| true));
    for (method, path, status, header) in [
        ("GET", RECEIVE_PATH, 405, Some(("allow", "OPTIONS, POST"))),
        ("FOO", RECEIVE_PATH, 405, Some(("allow", "OPTIONS, POST"))),
        ("HEAD", WRITE_PATH, 405, Some(("allow", "OPTIONS, POST"))),
        ("OPTIONS", RECEIVE_PATH, 200, Some(("allow", "OPTIONS, POST"))),
        ("POST", "/api/v1/receive/", 307, Some(("location", RECEIVE_PATH))),
        ("POST", "/api/v1/%72eceive", 400, None),
        ("GET", "/metrics", 404, None),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = remote_write_router(node.service.clone()).oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        if let Some((name, value)) = header {
            assert_eq!(response.headers()[name], value, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn requests_are_measured_under_tenants_that_exist() {
    let node = node(Probe::new(|| true));
    ask(&node, RECEIVE_PATH, &[("thanos-tenant", "a")], block(b"one")).await;
    ask(&node, RECEIVE_PATH, &[("thanos-tenant", "a")], block(b"refuse")).await;
    ask(&node, RECEIVE_PATH, &[("thanos-tenant", "a/b")], block(b"one")).await;
    let page = node.registry.expose();
    for line in [
        "http_requests_total{code=\"200\",handler=\"receive\",method=\"post\",tenant=\"a\"} 1",
        "http_requests_total{code=\"409\",handler=\"receive\",method=\"post\",tenant=\"a\"} 1",
        "http_requests_total{code=\"400\",handler=\"receive\",method=\"post\",tenant=\"/invalid\"} 1",
    ] {
        assert!(page.lines().any(|other| other == line), "{line}\n{page}");
    }
}

const TYPE_2: (&str, &str) =
    ("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request");

/// `__name__` and `up` as symbols, and one series of them with one sample.
const UP_2: &[u8] =
    b"\x22\x00\x22\x08__name__\x22\x02up\x2a\x0f\x0a\x02\x01\x02\x12\x09\x09\0\0\0\0\0\0\xf0\x3f";
/// The same in version 1.0.
const UP_1: &[u8] = b"\x0a\x1b\x0a\x0e\x0a\x08__name__\x12\x02up\x12\x09\x09\0\0\0\0\0\0\xf0\x3f";

/// Samples, histograms and exemplars that an answer says were written, if it does.
async fn written(
    node: &Node,
    path: &str,
    content_type: &str,
    body: Vec<u8>,
) -> (u16, Option<[u64; 3]>) {
    let request = Request::post(path).header("content-type", content_type);
    let request = request.body(Body::from(body)).unwrap();
    let response = remote_write_router(node.service.clone()).oneshot(request).await.unwrap();
    let count = |kind: &str| {
        let name = format!("x-prometheus-remote-write-{kind}-written");
        let value = response.headers().get(name)?;
        Some(value.to_str().unwrap().parse().unwrap())
    };
    let counts = ["samples", "histograms", "exemplars"].map(count);
    let counts = counts.iter().all(Option::is_some).then(|| counts.map(Option::unwrap));
    (response.status().as_u16(), counts)
}

#[tokio::test]
async fn a_request_of_2_0_reaches_the_sink_as_one_of_1_0() {
    let node = node(Probe::new(|| true));
    for content_type in [
        TYPE_2.1,
        "application/x-protobuf; proto=io.prometheus.write.v2.Request",
        "APPLICATION/X-Protobuf ;PROTO= \"IO.prometheus.write.v2.Request\" ; charset=utf-8",
    ] {
        for (path, status) in [(RECEIVE_PATH, 200), (WRITE_PATH, 204)] {
            let answer = written(&node, path, content_type, block(UP_2)).await;
            assert_eq!(answer, (status, Some([1, 0, 0])), "{content_type}");
        }
    }
    assert!(node.sink.0.lock().iter().all(|(_, request)| request == UP_1));
    assert_eq!(node.sink.0.lock().len(), 6);
    assert_eq!(node.service.admission.inflight_bytes(), 0, "everything was given back");
}

#[tokio::test]
async fn a_sender_of_2_0_is_told_in_every_answer_what_was_written() {
    let node = node(Probe::new(|| true));
    let symbols_only = &UP_2[..16];
    // Ten references of a byte to 1000 bytes.
    let mut bomb = b"\x22\x00\x22\xe8\x07".to_vec();
    bomb.extend_from_slice(&[b'x'; 1000]);
    bomb.extend_from_slice(b"\x2a\x0c\x0a\x0a\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01");
    let cases = [
        (block(UP_2), 200, [1, 0, 0]),
        (block(b""), 200, [0; 3]),
        (block(symbols_only), 200, [0; 3]),
        (block(UP_1), 400, [0; 3]),
        (block(b"broken"), 400, [0; 3]),
        (block(&bomb), 413, [0; 3]),
        (vec![0xff; 9], 400, [0; 3]),
        (vec![0xff; 1001], 413, [0; 3]),
    ];
    for (body, status, counts) in cases {
        let answer = written(&node, RECEIVE_PATH, TYPE_2.1, body).await;
        assert_eq!(answer, (status, Some(counts)));
    }
    assert_eq!(
        written(&node, RECEIVE_PATH, "application/x-protobuf", block(UP_1)).await,
        (200, None)
    );
    assert_eq!(node.service.admission.inflight_bytes(), 0, "everything was given back");
}

#[tokio::test]
async fn a_small_request_that_stands_for_a_large_one_is_made_elsewhere() {
    let bytes_max = 32 << 20;
    let limits = RequestLimits {
        request_bytes_max: bytes_max,
        decoded_bytes_max: bytes_max,
        inflight_bytes_max: 2 * bytes_max,
        ..LIMITS
    };
    let node = node_with(Probe::new(|| true), limits);
    let mut request = b"\x22\x00\x22\xc0\x84\x3d".to_vec();
    request.extend_from_slice(&[b'x'; 1_000_000]);
    request.extend_from_slice(b"\x2a\x0c\x0a\x0a\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01");
    let places = heavy::take_all_places().await;
    let body = block(&request);
    let mut waiting = std::pin::pin!(ask(&node, RECEIVE_PATH, &[TYPE_2], body));
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(places);
    assert_eq!(waiting.await.0, 200);
    let len = node.sink.0.lock()[0].1.len();
    assert!((10_000_000..10_000_100).contains(&len), "{len}");
    assert_eq!(node.service.admission.inflight_bytes(), 0);
}

/// Finds nothing in any request.
struct FindsNothing;

impl WriteSink for FindsNothing {
    async fn write(
        &self,
        _tenant: &TenantId,
        _request: Bytes,
        _replica: u64,
        _sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        Ok(WriteOutcome::default())
    }
}

#[tokio::test]
async fn a_body_of_which_nothing_is_understood_is_refused() {
    let tenants = TenantRules::new(
        HeaderName::from_static("thanos-tenant"),
        TenantId::parse(b"nobody").unwrap(),
    );
    let options = RemoteWriteOptions::new(tenants, "THANOS-REPLICA", LIMITS).unwrap();
    let (registry, admission) = (Registry::new(), Admission::new(LIMITS.inflight_bytes_max));
    let accepting = Probe::new(|| true);
    let sink = Arc::new(FindsNothing);
    let service = WriteService::new(sink, accepting, options, admission, &registry);
    let router = remote_write_router(Arc::new(service));
    for path in [RECEIVE_PATH, WRITE_PATH] {
        let request = Request::post(path).body(Body::from(block(UP_2))).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 400);
    }
}

/// One gauge with a sample, of a resource that is named.
const GAUGE: &str = "{\"resourceMetrics\": [{\"scopeMetrics\": [{\"metrics\": [{\"name\": \"g\", \
    \"gauge\": {\"dataPoints\": [{\"timeUnixNano\": \"5000000\", \"asInt\": \"1\"}]}}]}]}]}";
/// The same with another metric, whose points are differences.
const WITH_DELTA: &str = "{\"resourceMetrics\": [{\"scopeMetrics\": [{\"metrics\": [{\"name\": \"g\", \
    \"gauge\": {\"dataPoints\": [{\"timeUnixNano\": \"5000000\", \"asInt\": \"1\"}]}}, \
    {\"name\": \"d\", \"sum\": {\"aggregationTemporality\": 1, \"dataPoints\": [{}, {}]}}]}]}]}";
/// `{__name__="g"}` with that sample, in version 1.0.
const GAUGE_1: &[u8] =
    b"\x0a\x1c\x0a\x0d\x0a\x08__name__\x12\x01g\x12\x0b\x09\0\0\0\0\0\0\xf0\x3f\x10\x05";

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn otlp_reaches_the_sink_as_a_request_of_1_0() {
    let node = node(Probe::new(|| true));
    let gzip = crate::wire::grpc::Encoding::Gzip.deflate(GAUGE.as_bytes());
    let zstd = zstd::stream::encode_all(GAUGE.as_bytes(), 1).unwrap();
    let bodies = [
        ("", GAUGE.as_bytes().to_vec()),
        ("identity", GAUGE.as_bytes().to_vec()),
        ("GZIP", gzip),
        ("zstd", zstd),
        ("Snappy", block(GAUGE.as_bytes())),
    ];
    for (encoding, body) in bodies {
        let headers = [JSON, ("content-encoding", encoding), ("thanos-tenant", "team")];
        let answer = ask(&node, OTLP_PATH, &headers, body.clone()).await;
        assert_eq!(answer, (200, String::new()), "{encoding}");
        let answer = ask(&node, OTLP_METRICS_PATH, &headers, body).await;
        assert_eq!(answer, (200, "{}".to_owned()), "{encoding}");
    }
    let expected = vec![("team".to_owned(), GAUGE_1.to_vec()); 10];
    assert_eq!(*node.sink.0.lock(), expected);
    assert_eq!(node.service.admission.inflight_bytes(), 0, "everything was given back");
    let line =
        "http_requests_total{code=\"200\",handler=\"otlp\",method=\"post\",tenant=\"team\"} 10";
    assert!(node.registry.expose().lines().any(|other| other == line), "{line}");
}

#[tokio::test]
async fn what_otlp_cannot_be_stored_as_is_told_in_the_manner_of_its_path() {
    let node = node(Probe::new(|| true));
    let (status, text) = ask(&node, OTLP_PATH, &[JSON], WITH_DELTA).await;
    assert_eq!(status, 400, "{text}");
    assert!(text.starts_with("translate: invalid temporality for metric \"d\""), "{text}");
    assert!(node.sink.0.lock().is_empty(), "all of it is refused");
    let (status, text) = ask(&node, OTLP_METRICS_PATH, &[JSON], WITH_DELTA).await;
    assert_eq!(status, 200, "{text}");
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["partialSuccess"]["rejectedDataPoints"], "2");
    assert!(text.contains("temporality"), "{text}");
    assert_eq!(node.sink.0.lock().len(), 1, "the rest is stored");
    // In protobuf: rejected points, and a message.
    let protobuf = [("content-type", "application/x-protobuf")];
    let delta = b"\x0a\x0e\x12\x0c\x12\x0a\x0a\x01d\x3a\x05\x0a\x00\x10\x01\x10".to_vec();
    let (status, _) = ask(&node, OTLP_METRICS_PATH, &protobuf, delta).await;
    assert_eq!(status, 400, "cut short");
    let delta = b"\x0a\x0d\x12\x0b\x12\x09\x0a\x01d\x3a\x04\x0a\x00\x10\x01".to_vec();
    let (status, text) = ask(&node, OTLP_METRICS_PATH, &protobuf, delta).await;
    assert_eq!(status, 200);
    assert!(text.starts_with("\n") && text[2..].starts_with("\u{8}\u{1}\u{12}"), "{text:?}");
    assert!(text.contains("temporality"), "{text}");
    // Nothing at all.
    let (status, text) = ask(&node, OTLP_METRICS_PATH, &[JSON], "{}").await;
    assert_eq!((status, text.as_str()), (200, "{}"));
}

#[tokio::test]
async fn otlp_that_is_none_is_refused_by_its_stage() {
    let node = node(Probe::new(|| true));
    let limits = RequestLimits {
        request_bytes_max: 100_000,
        decoded_bytes_max: 5000,
        inflight_bytes_max: 200_000,
        ..LIMITS
    };
    let small = node_with(Probe::new(|| true), limits);
    let bomb = crate::wire::grpc::Encoding::Gzip.deflate(&[b' '; 6000]);
    let gzip = ("content-encoding", "gzip");
    type Headers = Vec<(&'static str, &'static str)>;
    let cases: Vec<(&str, &Node, Headers, Vec<u8>, u16)> = vec![
        ("media type", &node, vec![], GAUGE.into(), 415),
        ("media type", &node, vec![("content-type", "text/plain")], GAUGE.into(), 415),
        ("media type", &node, vec![JSON, ("content-encoding", "br")], GAUGE.into(), 400),
        ("size", &node, vec![JSON], vec![b' '; 1001], 413),
        ("inflate", &node, vec![JSON, gzip], GAUGE.into(), 400),
        ("inflate", &small, vec![JSON, gzip], bomb, 413),
        ("decode", &node, vec![JSON], b"{".to_vec(), 400),
        ("replica header", &node, vec![JSON, ("thanos-replica", "x")], GAUGE.into(), 400),
        ("tenant", &node, vec![JSON, ("thanos-tenant", "a/b")], GAUGE.into(), 400),
    ];
    for (stage, node, headers, body, expected) in cases {
        for path in [OTLP_PATH, OTLP_METRICS_PATH] {
            let (status, text) = ask(node, path, &headers, body.clone()).await;
            assert_eq!(status, expected, "{stage}: {text}");
            assert!(text.starts_with(&format!("{stage}: ")), "{stage}: {text}");
        }
    }
    assert!(node.sink.0.lock().is_empty() && small.sink.0.lock().is_empty());
    assert_eq!(small.service.admission.inflight_bytes(), 0, "everything was given back");
}

#[tokio::test]
async fn a_large_export_is_made_elsewhere() {
    let bytes_max = 32 << 20;
    let limits = RequestLimits {
        request_bytes_max: bytes_max,
        decoded_bytes_max: bytes_max,
        inflight_bytes_max: 8 * bytes_max,
        ..LIMITS
    };
    let node = node_with(Probe::new(|| true), limits);
    // A body of a few bytes that inflates to many.
    let spaces = [GAUGE.as_bytes(), &vec![b' '; 2 * heavy::LARGE_BYTES]].concat();
    let body = crate::wire::grpc::Encoding::Gzip.deflate(&spaces);
    assert!(body.len() < 10_000, "{}", body.len());
    let places = heavy::take_all_places().await;
    let headers = [JSON, ("content-encoding", "gzip")];
    let mut waiting = std::pin::pin!(ask(&node, OTLP_PATH, &headers, body));
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(places);
    assert_eq!(waiting.await.0, 200);
    assert_eq!(node.sink.0.lock()[0].1, GAUGE_1);
    assert_eq!(node.service.admission.inflight_bytes(), 0);
}
