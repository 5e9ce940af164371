use std::sync::Arc;

use http::{HeaderName, Method};
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::*;
use crate::model::histogram::{AnyHistogram, Histogram, Layout, Span};
use crate::model::tenant::TenantId;
use crate::model::varint::split_len_prefixed;
use crate::store::budget::READ_BYTES_MAX_DEFAULT;
use crate::store::fake::{FakeSource, FakeTenant, Labels};
use crate::tsdb::chunkenc::samples::encode;
use crate::tsdb::chunkenc::xor::XorIterator;
use crate::tsdb::querier::ChunkData;
use crate::wire::proto::prometheus::ReadResponse;

const UP: Labels<'_> = &[("__name__", "up"), ("job", "b")];
const UP_TOO: Labels<'_> = &[("__name__", "up"), ("instance", "x"), ("job", "a")];

/// Two series of one tenant: 300 samples, a second apart, in chunks of 120.
fn source() -> FakeSource {
    let samples: Vec<_> = (0..300).map(|i| (i * 1000, i as f64 / 4.0)).collect();
    let tenant = FakeTenant::new("t", &[("replica", "r0"), ("tenant_id", "t")])
        .with(UP, &samples, 120)
        .with(UP_TOO, &samples, 120);
    let default = FakeTenant::new("default-tenant", &[("tenant_id", "default-tenant")]).with(
        &[("__name__", "up")],
        &[(0, f64::from_bits(crate::model::STALE_NAN_BITS))],
        120,
    );
    FakeSource::of(vec![Arc::new(default), Arc::new(tenant)])
}

fn tenants(default: &str) -> TenantRules {
    let default = TenantId::parse(default.as_bytes()).unwrap();
    TenantRules::new(HeaderName::from_static("x-scope"), default)
}

fn endpoint(source: FakeSource) -> Router {
    router(RemoteRead {
        source: Arc::new(source),
        budget: ReadBudget::new(READ_BYTES_MAX_DEFAULT),
        tenants: tenants("default-tenant"),
        body_timeout: Duration::from_secs(30),
        stall: Duration::from_secs(30),
    })
}

async fn post_bytes(
    source: FakeSource,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> (Response<()>, Bytes) {
    let mut request = Request::builder().method(Method::POST).uri(PATH);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = endpoint(source).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (Response::from_parts(parts, ()), body.collect().await.unwrap().to_bytes())
}

fn compressed(request: &ReadRequest) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(&request.encode_to_vec()).unwrap()
}

fn query(mint: i64, maxt: i64) -> Query {
    let matcher = LabelMatcher { r#type: 0, name: "__name__".into(), value: "up".into() };
    Query { start_timestamp_ms: mint, end_timestamp_ms: maxt, matchers: vec![matcher], hints: None }
}

fn labels(labels: &[Label]) -> Vec<(&str, &str)> {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    labels.iter().map(|label| (text(&label.name), text(&label.value))).collect()
}

fn times(mint: i64, maxt: i64) -> Vec<i64> {
    (0..300).map(|i| i * 1000).filter(|t| (mint..=maxt).contains(t)).collect()
}

async fn read_samples(tenant: &str, queries: Vec<Query>) -> ReadResponse {
    let body = compressed(&ReadRequest { queries, accepted_response_types: vec![] });
    let (response, body) = post_bytes(source(), &[("thanos-tenant", tenant)], body).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/x-protobuf");
    assert_eq!(response.headers()[CONTENT_ENCODING], "snappy");
    let body = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
    ReadResponse::decode(&body[..]).unwrap()
}

#[tokio::test]
async fn samples_are_cut_to_the_range_and_series_are_sorted() {
    let (mint, maxt) = (119_000, 240_500);
    let response = read_samples("t", vec![query(mint, maxt), query(500, 900)]).await;
    assert_eq!(response.results.len(), 2);
    let series = &response.results[0].timeseries;
    assert_eq!(series.len(), 2);
    // As stored: no external labels.
    assert_eq!(labels(&series[0].labels), UP_TOO);
    assert_eq!(labels(&series[1].labels), UP);
    for series in series {
        let read: Vec<_> = series.samples.iter().map(|sample| sample.timestamp).collect();
        assert_eq!(read, times(mint, maxt));
        assert!(series.samples.iter().all(|s| s.value == s.timestamp as f64 / 4000.0));
    }
    assert!(response.results[1].timeseries.is_empty(), "no sample lies in the second range");
}

#[tokio::test]
async fn a_staleness_marker_keeps_its_bits() {
    let response = read_samples("", vec![query(0, 0)]).await;
    let value = response.results[0].timeseries[0].samples[0].value;
    assert_eq!(value.to_bits(), crate::model::STALE_NAN_BITS);
}

/// Frames of a streamed answer, checked.
fn frames(mut body: &[u8]) -> Vec<ChunkedReadResponse> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        let (len, rest) = crate::model::varint::read_varint(body).unwrap();
        let (checksum, rest) = rest.split_at(4);
        let (message, rest) = rest.split_at(len as usize);
        assert!(message.len() <= FRAME_BYTES_MAX, "a frame of {} bytes", message.len());
        assert_eq!(checksum, crc32c::crc32c(message).to_be_bytes());
        frames.push(ChunkedReadResponse::decode(message).unwrap());
        body = rest;
    }
    frames
}

async fn read_chunks(source: FakeSource, queries: Vec<Query>) -> Vec<ChunkedReadResponse> {
    let body = compressed(&ReadRequest { queries, accepted_response_types: vec![1, 0] });
    let (response, body) =
        post_bytes(source, &[("x-scope", "t"), ("thanos-tenant", "x")], body).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[CONTENT_TYPE], STREAMED_CONTENT_TYPE);
    assert!(!response.headers().contains_key(CONTENT_ENCODING));
    frames(&body)
}

/// For every place of the borders relative to samples and chunks.
#[tokio::test]
async fn streamed_chunks_are_cut_to_the_range() {
    for (mint, maxt) in [
        (0, 299_000),
        (i64::MIN, i64::MAX),
        (1, 298_999),
        (119_000, 120_000),
        (119_001, 120_000),
        (119_500, 119_600),
        (130_000, 130_000),
        (240_000, 500_000),
        (5000, 1000),
    ] {
        let frames = read_chunks(source(), vec![query(mint, maxt), query(7000, 7000)]).await;
        let expected = times(mint, maxt);
        let (first, second): (Vec<_>, Vec<_>) =
            frames.iter().partition(|frame| frame.query_index == 0);
        let mut names = Vec::new();
        for frame in first {
            let [series] = &frame.chunked_series[..] else { panic!("one series a frame") };
            names.push(labels(&series.labels));
            let mut read = Vec::new();
            for chunk in &series.chunks {
                assert_eq!(chunk.r#type, 1);
                let samples: Vec<_> = XorIterator::new(&chunk.data).map(Result::unwrap).collect();
                assert_eq!(samples.first().unwrap().0, chunk.min_time_ms);
                assert_eq!(samples.last().unwrap().0, chunk.max_time_ms);
                for (t, bits) in samples {
                    assert_eq!(f64::from_bits(bits), t as f64 / 4000.0);
                    read.push(t);
                }
            }
            assert_eq!(read, expected, "{mint} to {maxt}");
        }
        let both = if expected.is_empty() { vec![] } else { vec![UP_TOO.to_vec(), UP.to_vec()] };
        assert_eq!(names, both, "{mint} to {maxt}");
        assert_eq!(second.len(), 2);
    }
}

/// Histograms of both kinds, a second apart, and chunks of them.
fn histograms() -> (Vec<(i64, AnyHistogram)>, Vec<ChunkData>) {
    let sample = |i: i64| {
        let layout = Layout {
            positive_spans: vec![Span { offset: 2, length: 2 }],
            zero_threshold: 0.5,
            ..Layout::default()
        };
        let count = i as u64 * 3;
        let histogram = match i < 40 {
            true => AnyHistogram::Integer(Histogram {
                layout,
                count,
                sum: i as f64,
                positive: vec![i, i],
                ..Histogram::default()
            }),
            false => AnyHistogram::Float(Histogram {
                layout,
                count: count as f64,
                sum: i as f64,
                positive: vec![i as f64, 2.0 * i as f64],
                ..Histogram::default()
            }),
        };
        (i * 1000, histogram)
    };
    let samples: Vec<_> = (0..80).map(sample).collect();
    let values = samples.iter().map(|(t, h)| (*t, Value::Histogram(Box::new(h.clone()))));
    let chunks = encode(values).into_iter().map(|Encoded { mint, maxt, encoding, bytes }| {
        ChunkData { mint, maxt, encoding, bytes: bytes[..].into() }
    });
    (samples, chunks.collect())
}

/// In both kinds of an answer, for borders inside chunks, between them and beyond.
#[tokio::test]
async fn histograms_are_read_as_they_were_written() {
    let (samples, chunks) = histograms();
    for (mint, maxt) in [(0, 79_000), (i64::MIN, i64::MAX), (5500, 61_000), (39_000, 40_000)] {
        let source = || {
            let tenant = FakeTenant::new("t", &[]).with_chunks(UP, chunks.clone());
            FakeSource::of(vec![Arc::new(tenant)])
        };
        let mut expected = samples.clone();
        expected.retain(|(t, _)| (mint..=maxt).contains(t));
        let assert_same = |read: Vec<(i64, AnyHistogram)>| {
            assert_eq!(read.len(), expected.len(), "{mint} to {maxt}");
            for ((t, read), (expected_t, expected)) in read.iter().zip(&expected) {
                assert!(t == expected_t && read.tells_the_same(expected), "{mint} to {maxt}: {t}");
            }
        };

        let request =
            ReadRequest { queries: vec![query(mint, maxt)], accepted_response_types: vec![] };
        let (response, body) =
            post_bytes(source(), &[("x-scope", "t")], compressed(&request)).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
        let body = ReadResponse::decode(&body[..]).unwrap();
        let [series] = &body.results[0].timeseries[..] else { panic!("one series") };
        assert!(series.samples.is_empty());
        let read = |message: &Bytes| HistogramMessage::read(message).unwrap().into_model();
        assert_same(series.histograms.iter().map(read).collect());

        let frames = read_chunks(source(), vec![query(mint, maxt)]).await;
        let chunks = frames.iter().flat_map(|frame| &frame.chunked_series[0].chunks);
        let mut read = Vec::new();
        for chunk in chunks {
            for sample in SampleIterator::new(chunk.r#type as u8, &chunk.data) {
                let (t, Value::Histogram(histogram)) = sample.unwrap() else { panic!("a float") };
                assert!((chunk.min_time_ms..=chunk.max_time_ms).contains(&t));
                read.push((t, *histogram));
            }
        }
        assert_same(read);
    }
}

#[tokio::test]
async fn a_long_series_is_streamed_in_frames() {
    let samples: Vec<_> = (0..150_000).map(|i| (i, (i as f64).sin())).collect();
    let tenant = FakeTenant::new("t", &[]).with(UP, &samples, 120);
    let source = FakeSource::of(vec![Arc::new(tenant)]);
    let frames = read_chunks(source, vec![query(1, 149_998)]).await;
    assert!(frames.len() > 1);
    let chunks = frames.iter().flat_map(|frame| &frame.chunked_series[0].chunks);
    let count: usize = chunks.map(|chunk| XorIterator::new(&chunk.data).count()).sum();
    assert_eq!(count, 149_998);
}

#[tokio::test]
async fn bad_requests_are_400_with_the_stage() {
    let regex = LabelMatcher { r#type: 2, name: "a".into(), value: "(".into() };
    let regex = Query { matchers: vec![regex], ..query(0, 1) };
    let unknown_type = ReadRequest { queries: vec![], accepted_response_types: vec![7] };
    let bad_regex = ReadRequest { queries: vec![regex], accepted_response_types: vec![] };
    let many = ReadRequest { queries: vec![query(0, 1); 101], accepted_response_types: vec![] };
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("t", compressed(&many), "more than 100 queries"),
        ("t", b"\xff\xff\xff\xff\xff\xff".to_vec(), "snappy"),
        ("t", vec![0xff, 0xff, 0xff, 0xff, 0x07, 0], "snappy"),
        ("t", snap::raw::Encoder::new().compress_vec(&vec![0; 9 << 20]).unwrap(), "over the cap"),
        ("t", snap::raw::Encoder::new().compress_vec(b"\x0a\xff").unwrap(), "protobuf"),
        ("t", compressed(&unknown_type), "accepted response types"),
        ("t", compressed(&bad_regex), "regular expression"),
        ("../t", compressed(&ReadRequest::default()), "tenant"),
    ];
    for (tenant, body, said) in cases {
        let (response, body) = post_bytes(source(), &[("thanos-tenant", tenant)], body).await;
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
        assert!(body.contains(said) && body.ends_with('\n'), "{body:?} doesn't say {said}");
    }
}

/// Seven bytes that declare 8 MiB take no memory and no budget: they are wrong, however little room
/// there is.
#[tokio::test]
async fn what_a_body_declares_and_cannot_reach_is_not_held() {
    let router = router(RemoteRead {
        source: Arc::new(source()),
        budget: ReadBudget::new(1 << 20),
        tenants: tenants("t"),
        body_timeout: Duration::from_secs(30),
        stall: Duration::from_secs(30),
    });
    let body = vec![0x80, 0x80, 0x80, 0x04, 0, 0, 0];
    let request = Request::post(PATH).body(Body::from(body)).unwrap();
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_tenant_that_is_opening_is_503_and_an_unknown_one_is_empty() {
    let body = compressed(&ReadRequest { queries: vec![query(0, 1)], ..Default::default() });
    let opening = FakeSource::default().with_opening("t", &[]);
    let (response, body) = post_bytes(opening, &[("thanos-tenant", "t")], body).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[RETRY_AFTER], "1");
    assert_eq!(body, "tenant t: its log is being replayed\n");
    let response = read_samples("nobody", vec![query(0, 1)]).await;
    assert_eq!(response.results.len(), 1);
    assert!(response.results[0].timeseries.is_empty());
}

#[tokio::test]
async fn a_tenant_whose_block_fails_is_503_and_told() {
    let body = compressed(&ReadRequest { queries: vec![query(0, 1)], ..Default::default() });
    let failing = FakeSource::of(vec![Arc::new(FakeTenant::failing("t", &[]))]);
    let (response, body) = post_bytes(failing, &[("thanos-tenant", "t")], body).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, "/block/index, byte 7: a series\n");
}

#[test]
fn an_answer_without_series_is_one_empty_result_a_query() {
    let budget = ReadBudget::new(READ_BYTES_MAX_DEFAULT);
    let queries = [query(0, 1), query(0, 1)]
        .map(|query| ParsedQuery::parse(&query, &mut budget.begin()).unwrap());
    let body = samples(None, &queries, &budget).unwrap();
    let body = snap::raw::Decoder::new().decompress_vec(body.rest()).unwrap();
    let (first, rest) = split_len_prefixed(&body[1..]).unwrap();
    assert_eq!((first.len(), rest.len()), (0, 2));
}

/// Readers that stop reading hold the budget for as long as one may, however they ask.
#[tokio::test]
async fn readers_that_stop_reading_hold_nothing_for_long() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let samples: Vec<_> = (0..20_000).map(|i| (i, (i as f64).sin())).collect();
    let tenant = FakeTenant::new("t", &[]).with(UP, &samples, 120);
    let source = FakeSource::of(vec![Arc::new(tenant)]);
    let budget = ReadBudget::new(READ_BYTES_MAX_DEFAULT);
    let router = router(RemoteRead {
        source: Arc::new(source),
        budget: budget.clone(),
        tenants: tenants("t"),
        body_timeout: Duration::from_secs(30),
        stall: Duration::from_millis(500),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    for accepted_response_types in [vec![], vec![1]] {
        let queries = vec![query(0, i64::MAX); 40];
        let body = compressed(&ReadRequest { queries, accepted_response_types });
        let head =
            format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        let request = [head.as_bytes(), &body].concat();
        let mut stalled = Vec::new();
        for _ in 0..5 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            stream.write_all(&request).await.unwrap();
            let mut status = [0; 15];
            stream.read_exact(&mut status).await.unwrap();
            assert_eq!(&status, b"HTTP/1.1 200 OK");
            stalled.push(stream);
        }
        assert!(budget.held_bytes() > 0);
        let freed = async {
            while budget.held_bytes() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), freed).await.expect("it is held on");
    }
}
