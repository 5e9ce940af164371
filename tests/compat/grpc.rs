//! gRPC calls over bare HTTP/2, so that broken frames can be sent and raw ones looked at.

use std::convert::Infallible;
use std::time::Duration;

use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use protox::prost_reflect::MessageDescriptor;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::proto;
use crate::suite::Step;

type RequestBody =
    StreamBody<stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 1>>>;

/// What came back from a call.
#[derive(Debug, Default)]
pub(crate) struct Called {
    /// `None` if the call ended without a status.
    pub code: Option<i64>,
    pub message: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub replies: Vec<Value>,
}

/// The call of a `grpc` step.
pub(crate) fn call_step(address: &str, step: &Step) -> Result<Called, String> {
    let path = step.text("method").expect("method");
    let method = proto::method(path);
    let frames = match step.bytes("frames_b64") {
        Some(frames) => frames,
        None => {
            let method = method.as_ref().ok_or_else(|| format!("no schema for {path}"))?;
            frame(&proto::encode(&method.input(), &step.0["message"]))
        }
    };
    let metadata: Vec<(&str, &str)> = step
        .list("metadata")
        .iter()
        .map(|pair| (pair[0].as_str().expect("name"), pair[1].as_str().expect("text")))
        .collect();
    let timeout = Duration::from_secs_f64(step.number("timeout_s").unwrap_or(15.0));
    let output = method.map(|method| method.output());
    call(address, path, &metadata, frames, timeout, output.as_ref())
}

/// Everything that Series answers to these matchers.
pub(crate) fn series(address: &str, step: &Step) -> Result<Called, String> {
    let path = "/thanos.Store/Series";
    let method = proto::method(path).expect("own schema");
    let message = json!({
        "min_time": step.0["min_time"],
        "max_time": step.0["max_time"],
        "matchers": step.0["matchers"],
    });
    let frames = frame(&proto::encode(&method.input(), &message));
    let timeout = Duration::from_secs(15);
    call(address, path, &[], frames, timeout, Some(&method.output()))
}

fn call(
    address: &str,
    path: &str,
    metadata: &[(&str, &str)],
    frames: Vec<u8>,
    timeout: Duration,
    output: Option<&MessageDescriptor>,
) -> Result<Called, String> {
    let mut request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in metadata {
        request = request.header(*name, *value);
    }
    // A data frame even for nothing: Thanos waits for ever when the head ends the stream.
    let data = Ok::<_, Infallible>(Frame::data(Bytes::from(frames)));
    let body = StreamBody::new(stream::iter([data]));
    let request = request.body(body).expect("a valid request");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let exchange = async { tokio::time::timeout(timeout, exchange(address, request)).await };
    let (mut called, data) = runtime.block_on(exchange).map_err(|_| "no answer in time")??;
    if let Some(output) = output {
        called.replies = replies(&called, &data, output)?;
    }
    Ok(called)
}

async fn exchange(
    address: &str,
    request: http::Request<RequestBody>,
) -> Result<(Called, Vec<u8>), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let (head, mut body) = response.into_parts();
    let mut called = Called::default();
    take_status(&mut called, &head.headers);
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        called.headers.push((name.as_str().to_owned(), value));
    }
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        // A stream that is reset ends without a status, which the comparison will say.
        let Ok(frame) = frame else { break };
        match frame.into_data() {
            Ok(chunk) => data.extend_from_slice(&chunk),
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    take_status(&mut called, &trailers);
                }
            }
        }
    }
    Ok((called, data))
}

fn take_status(called: &mut Called, headers: &http::HeaderMap) {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    if let Some(code) = text("grpc-status").and_then(|code| code.parse().ok()) {
        called.code = Some(code);
        called.message = text("grpc-message").unwrap_or_default().to_owned();
    }
}

fn frame(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).expect("below 4 GiB");
    [&[0][..], &len.to_be_bytes(), message].concat()
}

fn replies(called: &Called, data: &[u8], output: &MessageDescriptor) -> Result<Vec<Value>, String> {
    let encoding = called.headers.iter().find(|(name, _)| name == "grpc-encoding");
    messages(encoding.map_or("identity", |(_, encoding)| encoding), data, output)
}

/// The messages in a stream's data.
pub(crate) fn messages(
    encoding: &str,
    mut data: &[u8],
    output: &MessageDescriptor,
) -> Result<Vec<Value>, String> {
    let mut replies = Vec::new();
    while let Some((head, rest)) = data.split_first_chunk::<5>() {
        let [compressed, len @ ..] = *head;
        let len = u32::from_be_bytes(len) as usize;
        let (message, rest) = rest.split_at_checked(len).ok_or("a frame is cut short")?;
        data = rest;
        let message = match (compressed, encoding) {
            (0, _) => message.to_vec(),
            (1, "snappy") => unframe_snappy(message)?,
            (flag, encoding) => return Err(format!("frame flag {flag} with {encoding}")),
        };
        replies.push(proto::decode(output, &message)?);
    }
    if data.is_empty() { Ok(replies) } else { Err("a frame's head is cut short".into()) }
}

fn unframe_snappy(message: &[u8]) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    let mut decoder = snap::read::FrameDecoder::new(message);
    std::io::Read::read_to_end(&mut decoder, &mut plain).map_err(|error| error.to_string())?;
    Ok(plain)
}
