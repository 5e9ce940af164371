use futures::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use proptest::prelude::*;
use tonic::Code;
use tower::Service as _;

use super::*;
use crate::model::tenant::TenantId;
use crate::write::WriteOutcome;
use crate::write::error::WriteError;
use crate::write::sink::Sender;

/// Keeps the tenants and messages that it was given, after a moment.
#[derive(Default)]
struct Sink(Mutex<Vec<(String, Vec<u8>)>>);

impl WriteSink for Sink {
    async fn write(
        &self,
        tenant: &TenantId,
        message: bytes::Bytes,
        _replica: u64,
        _sender: Sender<'_>,
    ) -> Result<WriteOutcome, WriteError> {
        tokio::task::yield_now().await;
        self.0.lock().push((tenant.to_string(), message.to_vec()));
        Ok(WriteOutcome::default())
    }
}

struct Fixture {
    sink: Arc<Sink>,
    admission: Arc<Admission>,
    tasks: TaskTracker,
    server: RemoteWriteServer<Sink>,
}

fn fixture(inflight_bytes_max: u64) -> Fixture {
    fixture_with_timeout(inflight_bytes_max, Duration::from_secs(30))
}

fn fixture_with_timeout(inflight_bytes_max: u64, body_read_timeout: Duration) -> Fixture {
    let sink = Arc::new(Sink::default());
    let admission = Admission::new(inflight_bytes_max);
    let tasks = TaskTracker::new();
    let options = RemoteWriteOptions {
        instance: InstanceId::random().unwrap(),
        admission: admission.clone(),
        body_read_timeout,
        takes_merged: true,
        ring_hash: Box::new(|| RingHash::parse(b"0123456789ab")),
        tasks: tasks.clone(),
    };
    let server =
        RemoteWriteServer::new(PeerWrites::new(sink.clone(), None), options, &Registry::new());
    Fixture { sink, admission, tasks, server }
}

#[tokio::test]
async fn what_was_read_is_stored_though_the_caller_has_gone() {
    let fixture = fixture(1 << 20);
    let message = [&[0, 0, 0, 0, 6][..], b"\x12\x01a\x0a\x01s"].concat();
    {
        let mut call = std::pin::pin!(fixture.call("", Body::new(Full::new(message.into()))));
        assert!(futures::poll!(&mut call).is_pending());
    }
    fixture.tasks.close();
    fixture.tasks.wait().await;
    assert_eq!(fixture.sink.0.lock().len(), 1);
}

impl Fixture {
    async fn call(&self, encoding: &str, body: Body) -> Response<Body> {
        let mut request = Request::post(Method::RemoteWrite.path());
        if !encoding.is_empty() {
            request = request.header(GRPC_ENCODING, encoding);
        }
        self.server.clone().call(request.body(body).unwrap()).await.unwrap()
    }

    /// The code of a call whose body comes in parts of `size` bytes.
    async fn code_of(&self, encoding: &str, body: &[u8], size: usize) -> Code {
        let parts: Vec<_> = body.chunks(size).map(Bytes::copy_from_slice).collect();
        let frames = parts.into_iter().map(|part| Ok::<_, tonic::Status>(Frame::data(part)));
        let body = Body::new(StreamBody::new(stream::iter(frames)));
        code(self.call(encoding, body).await).await
    }
}

async fn code(response: Response<Body>) -> Code {
    let (head, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let status = head.headers.get("grpc-status").or(trailers.get("grpc-status"));
    Code::from_bytes(status.expect("a status").as_bytes())
}

/// One series of `pad` bytes for tenant a.
fn request(pad: usize) -> Vec<u8> {
    let mut series = vec![b's'; pad];
    series.splice(0..0, [0x7a, 0x80 | (pad % 128) as u8, (pad / 128) as u8]);
    let len = series.len();
    let mut request = vec![0x0a, 0x80 | (len % 128) as u8, (len / 128) as u8];
    request.append(&mut series);
    request.extend_from_slice(b"\x12\x01a");
    request
}

#[tokio::test]
async fn large_messages_are_inflated_elsewhere_and_hold_their_bytes() {
    let fixture = fixture(8 << 20);
    let padded = |bytes: usize| {
        let mut message = b"\x12\x01a\x0a\x01s".to_vec();
        // A field that nobody knows.
        crate::model::varint::push_varint(&mut message, 15 << 3 | 2);
        crate::model::varint::push_varint(&mut message, bytes as u64);
        message.resize(message.len() + bytes, 0);
        message
    };
    for encoding in [Encoding::Snappy, Encoding::Gzip] {
        let name = encoding.name();
        let call = |message: Vec<u8>| {
            let body = Body::new(Full::new(framed(1, &encoding.deflate(&message)).into()));
            fixture.call(name.to_str().unwrap(), body)
        };
        let places = heavy::take_all_places().await;
        let mut waiting = std::pin::pin!(call(padded(2 * heavy::LARGE_BYTES)));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert_eq!(code(call(padded(100)).await).await, Code::Ok);
        assert_eq!(fixture.sink.0.lock().len(), 1);
        assert!(fixture.admission.inflight_bytes() > 0);
        drop(places);
        assert_eq!(code(waiting.await).await, Code::Ok);
        assert_eq!(std::mem::take(&mut *fixture.sink.0.lock()).len(), 2);
        assert_eq!(fixture.admission.inflight_bytes(), 0);
    }
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let len = (message.len() as u32).to_be_bytes();
    [&[flag], &len[..], message].concat()
}

#[tokio::test]
async fn every_answer_tells_of_the_rings_in_force() {
    let fixture = fixture(1 << 20);
    for (encoding, expected) in [("", Code::Ok), ("lz4", Code::Unimplemented)] {
        let body = Body::new(Full::new(framed(0, &request(100)).into()));
        let response = fixture.call(encoding, body).await;
        assert_eq!(response.headers()["ringest-ring"], "0123456789ab");
        assert_eq!(code(response).await, expected);
    }
}

#[tokio::test]
async fn a_message_is_read_however_it_is_cut_and_encoded() {
    let plain = request(10_000);
    let encoded = |encoding: Encoding| framed(1, &encoding.deflate(&plain));
    for (encoding, body) in [
        ("", framed(0, &plain)),
        ("identity", framed(0, &plain)),
        ("snappy", framed(0, &plain)),
        ("snappy", encoded(Encoding::Snappy)),
        ("gzip", encoded(Encoding::Gzip)),
    ] {
        for size in [1, 4, 5, 6, 1000, usize::MAX] {
            let fixture = fixture(1 << 20);
            let code = fixture.code_of(encoding, &body, size).await;
            assert_eq!(code, Code::Ok, "{encoding:?} in parts of {size}");
            let expected = vec![("a".to_owned(), plain.clone())];
            assert_eq!(*fixture.sink.0.lock(), expected, "{encoding:?} in parts of {size}");
            assert_eq!(fixture.admission.inflight_bytes(), 0);
        }
    }
}

#[tokio::test]
async fn a_message_cut_anywhere_is_an_error_and_stores_nothing() {
    let fixture = fixture(1 << 20);
    for body in [framed(0, &request(20)), framed(1, &Encoding::Snappy.deflate(&request(200)))] {
        for cut in 0..body.len() {
            let code = fixture.code_of("snappy", &body[..cut], 7).await;
            assert_eq!(code, Code::Internal, "cut at {cut}");
        }
    }
    assert!(fixture.sink.0.lock().is_empty());
    assert_eq!(fixture.admission.inflight_bytes(), 0);
}

/// A head that announces 2 GiB takes nothing; what does not fit the budget at all is told apart
/// from what does not fit now.
#[tokio::test]
async fn memory_is_taken_for_bytes_that_came_and_within_the_budget() {
    let fixture = fixture(100_000);
    let announced = framed(0, b"").into_iter().take(1).chain([0x7f, 0xff, 0xff, 0xff, 1]);
    let body: Vec<u8> = announced.collect();
    assert_eq!(fixture.code_of("", &body, 100).await, Code::ResourceExhausted);
    let inflating = framed(1, &Encoding::Snappy.deflate(&vec![0; 1 << 20]));
    assert_eq!(fixture.code_of("snappy", &inflating, 100).await, Code::ResourceExhausted);
    let inflating = framed(1, &Encoding::Gzip.deflate(&vec![0; 1 << 20]));
    let code = fixture.code_of("gzip", &inflating, 100).await;
    assert!(matches!(code, Code::ResourceExhausted | Code::Unavailable), "{code:?}");

    let body = framed(0, &request(10_000));
    let others = fixture.admission.admit(85_000).unwrap();
    assert_eq!(fixture.code_of("", &body, 100).await, Code::Ok);
    let more = fixture.admission.admit(4_000).unwrap();
    assert_eq!(fixture.code_of("", &body, 100).await, Code::Unavailable);
    drop((others, more));
    assert_eq!(fixture.code_of("", &body, 100).await, Code::Ok);
    assert_eq!(fixture.admission.inflight_bytes(), 0);
}

/// The peer sends half a message and then nothing.
#[tokio::test]
async fn a_call_that_hangs_is_ended() {
    let fixture = fixture_with_timeout(1 << 20, Duration::from_millis(10));
    let half =
        Ok::<_, tonic::Status>(Frame::data(Bytes::from(framed(0, &request(50))).slice(..20)));
    let frames = stream::iter([half]).chain(stream::pending());
    let response = fixture.call("", Body::new(StreamBody::new(frames))).await;
    assert_eq!(code(response).await, Code::Unavailable);
    assert_eq!(fixture.admission.inflight_bytes(), 0);
}

#[tokio::test]
async fn answers_to_encoded_calls_say_so_and_end_in_trailers() {
    let fixture = fixture(1 << 20);
    let body = || Body::new(Full::new(Bytes::from(framed(0, &request(1)))));
    let response = fixture.call("snappy", body()).await;
    assert_eq!(response.headers()[GRPC_ENCODING], "snappy");
    assert!(!response.headers().contains_key("grpc-status"));
    let body_of_answer = response.into_body().collect().await.unwrap();
    assert_eq!(body_of_answer.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body_of_answer.to_bytes(), [0; 5][..]);
    let response = fixture.call("", body()).await;
    assert!(!response.headers().contains_key(GRPC_ENCODING));

    // An error has its status in the head, and no body at all.
    let response = fixture.call("lz4", body()).await;
    assert_eq!(response.headers()["grpc-status"], "12");
    assert_eq!(response.headers()[GRPC_ACCEPT_ENCODING], "snappy,gzip");
    assert!(http_body::Body::is_end_stream(response.body()));
}

#[tokio::test]
async fn a_node_that_only_routes_takes_no_merged_messages() {
    let sink = Arc::new(Sink::default());
    let options = RemoteWriteOptions {
        instance: InstanceId::random().unwrap(),
        admission: Admission::new(1 << 20),
        body_read_timeout: Duration::from_secs(30),
        takes_merged: false,
        ring_hash: Box::new(|| None),
        tasks: TaskTracker::new(),
    };
    let server =
        RemoteWriteServer::new(PeerWrites::new(sink.clone(), None), options, &Registry::new());
    assert!(server.merged().is_none());
}

#[tokio::test]
async fn merged_messages_have_a_name_of_their_own() {
    let fixture = fixture(1 << 20);
    let body = |message: &[u8]| Body::new(Full::new(framed(0, message).into()));
    let response = fixture.call("", body(&request(1))).await;
    assert_eq!(response.headers()[TAKES_MERGED], "true");
    let mut server = fixture.server.merged().unwrap();
    let merged = b"\x18\x03\x12\x01b\x0a\x01s";
    for (method, expected) in
        [(Method::MergedWrite, Code::Ok), (Method::RemoteWrite, Code::Unimplemented)]
    {
        let call = Request::post(method.path()).body(body(merged)).unwrap();
        assert_eq!(code(server.call(call).await.unwrap()).await, expected);
    }
    let stored = fixture.sink.0.lock();
    assert_eq!(stored[1..], [("b".to_owned(), b"\x0a\x01s".to_vec())]);
}

proptest! {
    #[test]
    fn any_bytes_get_a_status(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        encoding in prop_oneof![Just(""), Just("snappy"), Just("gzip"), Just("x")],
        size in 1usize..50,
        with_head in any::<bool>(),
    ) {
        let body = if with_head { framed(bytes.first().map_or(0, |b| b & 1), &bytes) } else { bytes };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let fixture = fixture(100_000);
        runtime.block_on(fixture.code_of(encoding, &body, size));
        prop_assert_eq!(fixture.admission.inflight_bytes(), 0);
    }
}
