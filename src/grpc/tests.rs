use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1 as reflection_v1;

use super::*;
use crate::door::HeadLimits;
use crate::grpc::store::tests::matchers_of;
use crate::metrics::Registry;
use crate::store::budget::READ_BYTES_MAX_DEFAULT;
use crate::store::fake::{FakeSource, FakeTenant, Work, base64, recorded_data_set, suite};
use crate::wire::proto::thanos::info::{InfoRequest, InfoResponse};
use crate::wire::proto::thanos::tsdb_statistics_response::Result as Part;
use crate::wire::proto::thanos::{
    ExemplarsRequest, ExemplarsResponse, LabelMatcher, SeriesRequest, SeriesResponse,
    TsdbStatisticsEntry, TsdbStatisticsRequest, TsdbStatisticsResponse, exemplars_response,
};
use crate::write::admission::Admission;

struct TestServer {
    addr: SocketAddr,
    registry: Registry,
    door: Door,
    budget: ReadBudget,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

fn start(source: FakeSource, options: GrpcOptions) -> TestServer {
    start_with(source, options, STALL_TIMEOUT)
}

fn start_with(source: FakeSource, options: GrpcOptions, stall: Duration) -> TestServer {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let source: Arc<dyn TenantSource> = Arc::new(source);
    let ready = source.clone();
    let budget = ReadBudget::new(READ_BYTES_MAX_DEFAULT);
    let services = Services::of_reads(source, budget.clone(), stall, move || ready.is_ready());
    let registry = Registry::new();
    let metrics = GrpcMetrics::new(&registry, services.names());
    let shutdown = async move { stopped.await.unwrap_or_default() };
    let door = Door::with(None, HeadLimits::default(), &Admission::new(64 << 20), &registry);
    let serving = tokio::spawn(serve(listener, services, metrics, options, door.clone(), shutdown));
    TestServer { addr, registry, door, budget, stop, serving }
}

/// A call of raw frames: its code and the messages of its answer.
async fn call(
    addr: SocketAddr,
    method: &str,
    frames: Bytes,
    metadata: &[(&str, &str)],
) -> (Code, Vec<Bytes>) {
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let mut request = http::Request::post(format!("http://{addr}{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in metadata {
        request = request.header(*name, *value);
    }
    let response = client.request(request.body(Full::new(frames)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = parts.headers.get("grpc-status").or(trailers.get("grpc-status")).unwrap();
    let code = Code::from_bytes(status.as_bytes());
    let mut rest = body.to_bytes();
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let head = rest.split_to(5);
        messages.push(rest.split_to(u32::from_be_bytes(head[1..].try_into().unwrap()) as usize));
    }
    (code, messages)
}

fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

#[tokio::test]
async fn info_tells_of_every_tenant() {
    let server = start(recorded_data_set(), GrpcOptions::default());
    let (code, replies) =
        call(server.addr, "/thanos.info.Info/Info", frame(&InfoRequest {}), &[]).await;
    assert_eq!(code, Code::Ok);
    let info = InfoResponse::decode(replies[0].clone()).unwrap();
    let steps = suite("store-info");
    let step = steps.iter().find(|step| step["id"] == "info").unwrap();
    let expected = &step["expect"]["replies"][0];
    assert!(info.exemplars.is_some() && info.status.is_some());
    assert_eq!(info.component_type, expected["ComponentType"]);
    let store = info.store.unwrap();
    assert_eq!(store.min_time, expected["store"]["min_time"].as_i64().unwrap());
    assert_eq!(store.max_time, i64::MAX);
    assert!(store.supports_sharding && store.supports_without_replica_labels);
    let recorded = expected["store"]["tsdb_infos"].as_array().unwrap();
    assert_eq!(store.tsdb_infos.len(), recorded.len());
    for (tsdb, recorded) in store.tsdb_infos.iter().zip(recorded) {
        assert_eq!(tsdb.min_time, recorded["min_time"].as_i64().unwrap());
        assert_eq!(tsdb.max_time, recorded["max_time"].as_i64().unwrap());
        let labels = tsdb.labels.as_ref().unwrap();
        let recorded = recorded["labels"]["labels"].as_array().unwrap();
        assert_eq!(labels.labels.len(), recorded.len());
        for (label, recorded) in labels.labels.iter().zip(recorded) {
            assert_eq!(label.name, recorded["name"].as_str().unwrap());
            assert_eq!(label.value, recorded["value"].as_str().unwrap());
        }
    }
    let sets: Vec<_> = store.tsdb_infos.into_iter().filter_map(|tsdb| tsdb.labels).collect();
    assert_eq!(info.label_sets, sets);
}

/// Its deadline passes, or its client gives it up.
#[tokio::test]
async fn work_for_a_call_that_is_over_stops() {
    let (told, work) = std::sync::mpsc::channel();
    let tenant = Arc::new(FakeTenant::working("t", told));
    let server = start(FakeSource::of(vec![tenant]), GrpcOptions::default());
    let request = SeriesRequest {
        max_time: i64::MAX,
        matchers: vec![LabelMatcher { name: "a".into(), value: "b".into(), ..Default::default() }],
        ..Default::default()
    };
    let frames = frame(&request);
    let method = "/thanos.Store/Series";
    // Long enough for the work to begin on a machine that is busy.
    let (code, _) = call(server.addr, method, frames.clone(), &[("grpc-timeout", "2S")]).await;
    assert!(matches!(code, Code::DeadlineExceeded | Code::Cancelled), "{code:?}");
    // Tells what is told next, without a thread of the runtime.
    let work = Arc::new(std::sync::Mutex::new(work));
    let next = || {
        let work = work.clone();
        let next = tokio::task::spawn_blocking(move || work.lock().unwrap().recv().unwrap());
        async { next.await.unwrap() }
    };
    assert_eq!((next().await, next().await), (Work::Begun, Work::Stopped));

    let calling = tokio::spawn(call(server.addr, method, frames, &[]));
    assert_eq!(next().await, Work::Begun);
    calling.abort();
    assert_eq!(next().await, Work::Stopped);
}

#[tokio::test]
async fn a_node_that_is_opening_says_so() {
    let source = recorded_data_set().with_opening("z", &[("replica", "r0"), ("tenant_id", "z")]);
    let tenants = source.tenants.len() + 1;
    let server = start(source, GrpcOptions::default());
    // A querier asks nothing of a store whose labels do not match, nor of one that does not answer.
    let (code, replies) =
        call(server.addr, "/thanos.info.Info/Info", frame(&InfoRequest {}), &[]).await;
    assert_eq!(code, Code::Ok);
    let info = InfoResponse::decode(replies[0].clone()).unwrap();
    let last = info.label_sets.last().unwrap().labels.last().unwrap();
    assert_eq!(
        (info.label_sets.len(), &last.name[..], &last.value[..]),
        (tenants, &b"tenant_id"[..], &b"z"[..])
    );
    let store = info.store.unwrap();
    assert_eq!((store.min_time, store.tsdb_infos.len()), (i64::MIN, tenants));

    let statistics = |tenant: &'static str, partial_response_strategy| {
        let request = TsdbStatisticsRequest {
            tenant: tenant.into(),
            partial_response_strategy,
            ..Default::default()
        };
        call(server.addr, "/thanos.Status/TSDBStatistics", frame(&request), &[])
    };
    let exemplars = |partial_response_strategy| {
        let query = "m".into();
        let request = ExemplarsRequest { query, partial_response_strategy, ..Default::default() };
        call(server.addr, "/thanos.Exemplars/Exemplars", frame(&request), &[])
    };
    let warning = "tenant z cannot be read now: its log is being replayed";
    for tenant in ["", "z"] {
        let (code, replies) = statistics(tenant, 0).await;
        assert_eq!((code, replies.len()), (Code::Ok, 2));
        let first = TsdbStatisticsResponse::decode(replies[0].clone()).unwrap();
        assert_eq!(first.result, Some(Part::Warning(warning.to_owned())));
        assert_eq!(statistics(tenant, 1).await.0, Code::Aborted);
    }
    assert_eq!(statistics("a", 1).await.0, Code::Ok);
    let (code, replies) = exemplars(0).await;
    assert_eq!((code, replies.len()), (Code::Ok, 1));
    let only = ExemplarsResponse::decode(replies[0].clone()).unwrap();
    assert_eq!(only.result, Some(exemplars_response::Result::Warning(warning.to_owned())));
    assert_eq!(exemplars(1).await.0, Code::Aborted);

    let check = frame(&HealthCheckRequest::default());
    let (code, replies) = call(server.addr, "/grpc.health.v1.Health/Check", check, &[]).await;
    assert_eq!(code, Code::Ok);
    let health = HealthCheckResponse::decode(replies[0].clone()).unwrap();
    assert_eq!(health.status().as_str_name(), "NOT_SERVING");
}

/// Unknown services and methods, and messages that are none: the codes as recorded, and the server
/// lives on.
#[tokio::test]
async fn odd_calls_get_the_recorded_codes() {
    let server = start(recorded_data_set(), GrpcOptions::default());
    let mut compared = 0;
    for step in suite("store-info") {
        let method = step["method"].as_str().unwrap_or_default();
        let is_answered = !step["soft"].as_bool().unwrap_or_default();
        if !is_answered || (step["frames_b64"].is_null() && !method.contains("Health")) {
            continue;
        }
        let id = step["id"].as_str().unwrap();
        let frames = if step["frames_b64"].is_null() {
            let service = step["message"]["service"].as_str().unwrap_or_default();
            frame(&HealthCheckRequest { service: service.to_owned() })
        } else {
            base64(&step["frames_b64"])
        };
        let (code, _) = call(server.addr, method, frames, &[]).await;
        assert_eq!(code as i64, step["expect"]["code"].as_i64().unwrap(), "{id}");
        compared += 1;
    }
    assert!(compared > 15, "only {compared} steps");
    let (code, _) =
        call(server.addr, "/thanos.Store/Series", everything(), &[("grpc-encoding", "zstd")]).await;
    assert_eq!(code, Code::Unimplemented);
}

/// Whatever is asked, and whether its length is told or found out: as grpc-go answers.
#[tokio::test]
async fn questions_over_their_caps_are_refused_by_one_code() {
    use crate::wire::grpc::Encoding;
    let server = start(recorded_data_set(), GrpcOptions::default());
    let reads = [
        "/thanos.Store/Series",
        "/thanos.Store/LabelNames",
        "/thanos.Store/LabelValues",
        "/thanos.Exemplars/Exemplars",
        "/thanos.Status/TSDBStatistics",
        "/thanos.info.Info/Info",
    ];
    let names = [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ];
    // A field that is in no message.
    let unknown = |bytes: usize| {
        let mut message = BytesMut::new();
        message.put_slice(&[0xfa, 0x3e]);
        prost::encoding::encode_varint(bytes as u64, &mut message);
        message.put_bytes(b'x', bytes);
        message.freeze()
    };
    let framed = |flag: u8, message: &[u8], len: usize| {
        let mut frame = BytesMut::new();
        frame.put_u8(flag);
        frame.put_u32(len as u32);
        frame.put_slice(message);
        frame.freeze()
    };
    let reads = reads.map(|method| (method, READ_REQUEST_BYTES_MAX));
    for (method, max) in reads.into_iter().chain(names.map(|name| (name, NAME_REQUEST_BYTES_MAX))) {
        let told = framed(0, b"some", max + 1);
        let refused = call(server.addr, method, told, &[]).await;
        assert_eq!(refused, (Code::ResourceExhausted, vec![]), "{method}");
        for (name, encoding) in [("snappy", Encoding::Snappy), ("gzip", Encoding::Gzip)] {
            let deflated = encoding.deflate(&unknown(max));
            let found_out = framed(1, &deflated, deflated.len());
            let refused = call(server.addr, method, found_out, &[("grpc-encoding", name)]).await;
            assert_eq!(refused, (Code::ResourceExhausted, vec![]), "{method}, {name}");
        }
        if method.ends_with("/Watch") {
            // Its answer has no end.
            continue;
        }
        let fits = unknown(max - 8);
        let fits = framed(0, &fits, fits.len());
        let (code, _) = call(server.addr, method, fits, &[]).await;
        assert_ne!(code, Code::ResourceExhausted, "{method}");
    }
}

#[tokio::test]
async fn label_names_need_not_be_utf8() {
    let server = start(recorded_data_set(), GrpcOptions::default());
    let matchers = vec![
        LabelMatcher {
            r#type: 0,
            name: Bytes::from_static(b"\xff"),
            value: Bytes::from_static(b"x"),
        },
        LabelMatcher { r#type: 2, name: "__name__".into(), value: ".+".into() },
    ];
    let request = SeriesRequest { max_time: i64::MAX, matchers, ..Default::default() };
    let answer = call(server.addr, "/thanos.Store/Series", frame(&request), &[]).await;
    assert_eq!(answer, (Code::Ok, vec![]));
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let server = start(recorded_data_set(), GrpcOptions::default());
    use reflection_v1::server_reflection_request::MessageRequest;
    use reflection_v1::server_reflection_response::MessageResponse;
    let mut answers = Vec::new();
    for (method, request) in [
        ("v1", MessageRequest::ListServices(String::new())),
        ("v1alpha", MessageRequest::ListServices(String::new())),
        ("v1", MessageRequest::FileContainingSymbol("thanos.Store".into())),
    ] {
        let request = reflection_v1::ServerReflectionRequest {
            message_request: Some(request),
            ..Default::default()
        };
        let method = format!("/grpc.reflection.{method}.ServerReflection/ServerReflectionInfo");
        let (code, replies) = call(server.addr, &method, frame(&request), &[]).await;
        assert_eq!(code, Code::Ok);
        let reply = reflection_v1::ServerReflectionResponse::decode(replies[0].clone()).unwrap();
        assert_eq!(reply.original_request, Some(request));
        answers.push(reply.message_response.unwrap());
    }
    let MessageResponse::ListServicesResponse(list) = &answers[0] else {
        panic!("{:?}", answers[0]);
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "thanos.Exemplars",
        "thanos.Status",
        "thanos.Store",
        "thanos.info.Info",
    ];
    assert_eq!(names, expected);
    assert_eq!(answers[0], answers[1]);
    let MessageResponse::ErrorResponse(error) = &answers[2] else {
        panic!("{:?}", answers[2]);
    };
    assert_eq!(error.error_code, Code::NotFound as i32);
}

/// The shutdown signal ends what is idle at once and what hangs after the grace period.
#[tokio::test]
async fn a_drain_ends_even_if_a_client_hangs_on() {
    let options = GrpcOptions { grace_period: Duration::from_millis(50), ..Default::default() };
    let server = start(recorded_data_set(), options);
    let (code, replies) = call(server.addr, "/thanos.Store/Series", everything(), &[]).await;
    assert_eq!(code, Code::Ok);
    assert_eq!(replies.len(), 17);
    SeriesResponse::decode(replies[0].clone()).unwrap();

    // A health watch never ends by itself.
    let addr = server.addr;
    let watch = frame(&HealthCheckRequest::default());
    let client: Client<_, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = http::Request::post(format!("http://{addr}/grpc.health.v1.Health/Watch"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let response = client.request(request.body(Full::new(watch)).unwrap()).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();

    server.stop.send(()).unwrap();
    server.serving.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "still listening");
}

#[tokio::test]
async fn connections_that_were_made_before_a_drain_are_served() {
    let server = start(recorded_data_set(), GrpcOptions::default());
    // It is the kernel that makes the connection, while the server does not come to run.
    let stream = std::net::TcpStream::connect(server.addr).unwrap();
    server.stop.send(()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post("http://x/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(frame(&HealthCheckRequest::default())))
        .unwrap();
    let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    connection.await.unwrap().unwrap();
    server.serving.await.unwrap().unwrap();
    assert_eq!(server.door.connections_open(), 0.0);
}

fn everything() -> Bytes {
    let matchers = vec![LabelMatcher { r#type: 2, name: "__name__".into(), value: ".+".into() }];
    frame(&SeriesRequest { max_time: i64::MAX, matchers, ..Default::default() })
}

#[tokio::test]
async fn statistics_are_counted_as_recorded() {
    let server = start(recorded_data_set(), GrpcOptions::default());
    let mut compared = 0;
    for step in suite("store-info") {
        let (id, message) = (step["id"].as_str().unwrap(), &step["message"]);
        if step["method"] != "/thanos.Status/TSDBStatistics" || id == "status-empty" {
            continue;
        }
        let request = TsdbStatisticsRequest {
            tenant: message["tenant"].as_str().unwrap_or_default().to_owned().into(),
            limit: message["limit"].as_i64().unwrap_or_default() as i32,
            matchers: matchers_of(message),
            ..Default::default()
        };
        let method = "/thanos.Status/TSDBStatistics";
        let (code, replies) = call(server.addr, method, frame(&request), &[]).await;
        assert_eq!(code as i64, step["expect"]["code"].as_i64().unwrap(), "{id}");
        let expected = step["expect"]["replies"].as_array().unwrap();
        assert_eq!(replies.len(), expected.len(), "{id}");
        for (reply, expected) in replies.iter().zip(expected) {
            let reply = TsdbStatisticsResponse::decode(reply.clone()).unwrap();
            let Some(Part::Statistics(statistics)) = reply.result else { panic!("{reply:?}") };
            let no_tenants = Vec::new();
            let recorded = expected["statistics"]["statistics"].as_array().unwrap_or(&no_tenants);
            assert_eq!(statistics.statistics.len(), recorded.len(), "{id}");
            for recorded in recorded {
                let tenant = recorded["key"].as_str().unwrap();
                let entry = &statistics.statistics[tenant];
                assert_entry(entry, &recorded["value"], &format!("{id} {tenant}"));
                compared += 1;
            }
        }
    }
    assert!(compared > 15, "only {compared} entries");
}

/// Names that tie with the last of a list are blanked in the recording.
fn assert_entry(entry: &TsdbStatisticsEntry, recorded: &serde_json::Value, id: &str) {
    let head = entry.head_statistics.unwrap();
    let recorded_head = &recorded["head_statistics"];
    let int = |name: &str| recorded_head[name].as_i64().unwrap_or_default();
    assert_eq!(head.num_series as i64, int("num_series"), "{id}");
    assert_eq!(head.num_label_pairs, int("num_label_pairs"), "{id}");
    assert_eq!((head.min_time, head.max_time), (int("min_time"), int("max_time")), "{id}");
    for (name, list) in [
        ("series_count_by_metric_name", &entry.series_count_by_metric_name),
        ("label_value_count_by_label_name", &entry.label_value_count_by_label_name),
        ("memory_in_bytes_by_label_name", &entry.memory_in_bytes_by_label_name),
        ("series_count_by_label_value_pair", &entry.series_count_by_label_value_pair),
    ] {
        let recorded: Vec<_> = recorded[name].as_array().into_iter().flatten().collect();
        assert_eq!(list.len(), recorded.len(), "{id} {name}");
        for (counted, recorded) in list.iter().zip(recorded) {
            assert_eq!(counted.value, recorded["value"].as_u64().unwrap(), "{id} {name}");
            if recorded["name"] != "<any>" {
                assert_eq!(counted.name, recorded["name"].as_str().unwrap(), "{id} {name}");
            }
        }
    }
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let server = start(recorded_data_set(), GrpcOptions::default());
    let method = "/thanos.Store/Series";
    assert_eq!(call(server.addr, method, everything(), &[]).await.0, Code::Ok);
    let no_matchers = frame(&SeriesRequest::default());
    assert_eq!(call(server.addr, method, no_matchers, &[]).await.0, Code::InvalidArgument);
    let page = server.registry.expose();
    let of_series = "grpc_method=\"Series\",grpc_service=\"thanos.Store\"";
    for (name, code, value) in [
        ("started_total", "", 2),
        ("msg_received_total", "", 2),
        ("msg_sent_total", "", 17),
        ("handling_seconds_count", "", 2),
        ("handled_total", "grpc_code=\"OK\",", 1),
        ("handled_total", "grpc_code=\"InvalidArgument\",", 1),
        ("handled_total", "grpc_code=\"Canceled\",", 0),
    ] {
        let kind = "grpc_type=\"server_stream\"";
        let line = format!("grpc_server_{name}{{{code}{of_series},{kind}}} {value}\n");
        assert!(page.contains(&line), "no {line} in {page}");
    }
}

/// A question in an encoding is answered in it, an error without a body, and a plain question
/// plainly.
#[tokio::test]
async fn readers_may_ask_in_encodings() {
    use crate::wire::grpc::Encoding;
    let server = start(recorded_data_set(), GrpcOptions::default());
    let method = "/thanos.Store/Series";
    let plain = everything();
    let (_, expected) = call(server.addr, method, plain.clone(), &[]).await;
    for (name, encoding) in [("snappy", Encoding::Snappy), ("gzip", Encoding::Gzip)] {
        let deflated = encoding.deflate(&plain[5..]);
        let mut frames = BytesMut::new();
        frames.put_u8(1);
        frames.put_u32(deflated.len() as u32);
        frames.put_slice(&deflated);
        for frames in [frames.freeze(), plain.clone()] {
            let metadata = [("grpc-encoding", name)];
            let (code, replies) = call(server.addr, method, frames, &metadata).await;
            assert_eq!((code, replies.len()), (Code::Ok, expected.len()), "{name}");
            for (reply, expected) in replies.iter().zip(&expected) {
                let mut buffer = Vec::new();
                let admit = |_| Ok::<(), crate::wire::grpc::MessageError>(());
                let inflated = encoding.inflate(reply, 1 << 20, &mut buffer, admit).unwrap();
                assert_eq!(inflated, &expected[..], "{name}");
            }
        }
        let no_matchers = frame(&SeriesRequest::default());
        let refused = call(server.addr, method, no_matchers, &[("grpc-encoding", name)]).await;
        assert_eq!(refused, (Code::InvalidArgument, vec![]), "{name}");
        let cut = call(server.addr, method, plain.slice(..9), &[("grpc-encoding", name)]).await;
        assert_eq!(cut, (Code::Internal, vec![]), "{name}");
    }
}

#[test]
fn connections_of_the_same_time_do_not_end_at_the_same_time() {
    let ages: Vec<_> = ages(Some(Duration::from_secs(3600))).into_iter().flatten().collect();
    assert!(ages.is_sorted_by(|a, b| a < b) && ages.len() > 1, "{ages:?}");
    assert_eq!(ages.first(), Some(&Duration::from_secs(3240)));
    assert_eq!(ages.last(), Some(&Duration::from_secs(3960)));
    assert_eq!(super::ages(None), [None]);
}

#[tokio::test]
async fn heads_are_as_large_as_may_be_and_no_larger() {
    let server = start(recorded_data_set(), GrpcOptions::default());
    let check = frame(&HealthCheckRequest::default());
    let names: Vec<String> = (0..10_001).map(|i| format!("h{i:05}")).collect();
    let value = |bytes| "x".repeat(bytes);
    for (headers, bytes, code) in [
        (9_900, 50, Code::Ok),
        (5, 200_000, Code::Ok),
        (10_001, 1, Code::ResourceExhausted),
        (5, 210_000, Code::ResourceExhausted),
        (3, 700_000, Code::ResourceExhausted),
    ] {
        let value = value(bytes);
        let metadata: Vec<(&str, &str)> =
            names.iter().take(headers).map(|name| (&name[..], &value[..])).collect();
        let answer =
            call(server.addr, "/grpc.health.v1.Health/Check", check.clone(), &metadata).await;
        assert_eq!(answer.0, code, "{headers} headers of {bytes} bytes");
    }
    let refused = "ringest_request_heads_refused_total{listener=\"test\",reason=\"too_large\"} 3\n";
    assert!(server.registry.expose().contains(refused));
}

/// A call's frames with so many headers beside its own, which have one name or each another.
fn call_with_headers(count: usize, have_one_name: bool) -> Vec<u8> {
    let mut head = b"\x83\x86\x01\x01x\x04\x1c/grpc.health.v1.Health/Check".to_vec();
    head.extend_from_slice(b"\x0f\x10\x10application/grpc\x00\x02te\x08trailers");
    for i in 0..count {
        let name = if have_one_name { "h00000".to_owned() } else { format!("h{i:05}") };
        head.extend_from_slice(&[b"\x00\x06", name.as_bytes(), b"\x01v"].concat());
    }
    let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let pieces: Vec<_> = head.chunks(16_000).collect();
    for (i, piece) in pieces.iter().enumerate() {
        let (kind, end_stream) = if i == 0 { (1, 1) } else { (9, 0) };
        let end_headers = if i + 1 == pieces.len() { 4 } else { 0 };
        let length = (piece.len() as u32).to_be_bytes();
        frames.extend_from_slice(&length[1..]);
        frames.extend_from_slice(&[kind, end_stream | end_headers, 0, 0, 0, 1]);
        frames.extend_from_slice(piece);
    }
    frames
}

/// Heads that no map of headers holds are answered before any service sees them, and are refused
/// ones like the others.
#[tokio::test]
async fn heads_of_more_names_than_anyone_keeps_are_counted_once() {
    use tokio::io::AsyncWriteExt as _;

    let server = start(recorded_data_set(), GrpcOptions::default());
    let refused = |count: usize| {
        let line = format!(
            "ringest_request_heads_refused_total{{listener=\"test\",reason=\"too_large\"}} {count}\n"
        );
        server.registry.expose().contains(&line)
    };
    for (count, (headers, have_one_name)) in
        [(24_570, true), (24_600, false), (30_000, true)].into_iter().enumerate()
    {
        let mut stream = tokio::net::TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(&call_with_headers(headers, have_one_name)).await.unwrap();
        until_answered(&mut stream).await;
        assert!(refused(count + 1), "{headers} headers: {}", server.registry.expose());
    }
}

/// Reads frames up to the answer's head.
async fn until_answered(stream: &mut tokio::net::TcpStream) {
    use tokio::io::AsyncReadExt as _;

    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == 1 {
            return;
        }
    }
}

/// Time is that of the test: it goes on when nobody has anything else to do.
#[tokio::test(start_paused = true)]
async fn what_stalls_is_ended_whatever_it_is() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let server = start(recorded_data_set(), GrpcOptions::default());
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let head = [&settings[..], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x83]].concat();
    for half in [&b""[..], b"P", preface, &settings[..30], &head[..37], &head] {
        let mut stream = tokio::net::TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(half).await.unwrap();
        let mut answer = Vec::new();
        // Reset or closed, it has ended.
        let _ = stream.read_to_end(&mut answer).await;
    }
}

/// One series of some megabytes, which is more than a client takes that does not read.
fn long_series() -> FakeSource {
    let samples: Vec<_> = (0..400_000).map(|i| (i * 20, (i as f64).sin())).collect();
    let tenant =
        FakeTenant::new("a", &[("replica", "r0")]).with(&[("__name__", "x")], &samples, 120);
    FakeSource::of(vec![Arc::new(tenant)])
}

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn connect(addr: SocketAddr) -> (Sender, JoinHandle<hyper::Result<()>>) {
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    (sender, tokio::spawn(connection))
}

/// Asks for everything, and takes nothing of the answer but its head.
async fn ask(sender: &mut Sender, timeout: &str) -> hyper::body::Incoming {
    let request = http::Request::post("http://x/thanos.Store/Series")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(Full::new(everything()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert!(response.headers().get("grpc-status").is_none(), "{response:?}");
    response.into_body()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect(what);
}

#[tokio::test]
async fn readers_that_stop_reading_hold_nothing_for_long() {
    let stall = Duration::from_millis(500);
    let server = start_with(long_series(), GrpcOptions::default(), stall);
    let (mut sender, connection) = connect(server.addr).await;
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(ask(&mut sender, "1H").await);
    }
    until("nothing is held", || server.budget.held_bytes() == 0).await;
    // And the client that does not come back is let go of. The others are not.
    let (mut other, _connection) = connect(server.addr).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), connection).await;
    assert!(ended.is_ok(), "the connection goes on");
    let mut answer = ask(&mut other, "1H").await;
    let mut messages = 0;
    let trailers = loop {
        let frame = answer.frame().await.unwrap().unwrap();
        match frame.into_trailers() {
            Ok(trailers) => break trailers,
            Err(frame) => messages += frame.into_data().unwrap().len(),
        }
    };
    assert_eq!(trailers["grpc-status"], "0");
    assert!(messages > 3 << 20, "{messages} bytes");
}

#[tokio::test]
async fn what_a_caller_has_given_up_is_not_held() {
    let server = start(long_series(), GrpcOptions::default());
    let (mut sender, _connection) = connect(server.addr).await;
    // Its deadline passes.
    let mut late = ask(&mut sender, "300m").await;
    until("held for nobody", || server.budget.held_bytes() == 0).await;
    let code = loop {
        let frame = late.frame().await.unwrap().unwrap();
        if let Ok(trailers) = frame.into_trailers() {
            break trailers["grpc-status"].clone();
        }
    };
    assert_eq!(code, "4");
    // It goes.
    let gone = ask(&mut sender, "1H").await;
    assert!(server.budget.held_bytes() > 0);
    drop(gone);
    until("held for one that has gone", || server.budget.held_bytes() == 0).await;
}
