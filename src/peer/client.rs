//! One forward call with its deadline.
//!
//! Over gRPC, it is made below any library: the message is ready as bytes, and all that is wanted of
//! the answer is its status.

use std::fmt;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tonic::{Code, Status};

use crate::model::ring_hash::RingHash;
use crate::peer::link::{CallBody, Connection, Origin, Transport};
use crate::peer::message::{Compression, Form, ForwardMessage};
use crate::peer::socket::Heard;
use crate::peer::told_ring::ToldRing;
use crate::wire::grpc::{ACCEPTED, ANSWER, ANSWER_SERIES, GRPC_ACCEPT_ENCODING, GRPC_ENCODING};
use crate::wire::grpc::{GRPC_TIMEOUT, HEAD_BYTES, Head, ROUTER_PATH};
use crate::wire::grpc::{
    MERGED_WRITE_PATH, REMOTE_WRITE_PATH, RING, TAKES_MERGED, TENANT_NOT_READY,
};
use crate::wire::peer_write::{ANSWER_BYTES_MAX, MergedWriteAnswer};
use crate::wire::refused::RefusedSeries;

const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("ringest/", env!("CARGO_PKG_VERSION")));

/// A peer is told a deadline that is later than ours by this much: a time-out of its own would be
/// an answer, and a peer that answers is not stuck.
const DEADLINE_SLACK: Duration = Duration::from_millis(500);

/// A peer's words are cut here.
const DETAIL_BYTES_MAX: usize = 512;

/// How a call that was sent ended without success.
#[derive(Debug)]
pub enum CallFailure {
    /// The peer's answer.
    Status(Code, String),
    /// These series of the message, by their places in it, were refused for good, and the others are
    /// stored.
    Refused(RefusedSeries, String),
    /// The peer's answer that it cannot store this tenant's series yet.
    TenantNotReady(String),
    /// The connection failed, perhaps after the peer had stored everything.
    Broken(String),
    /// The connection was closed before the peer saw the call, or over Cap'n Proto and after a
    /// goodbye before it answered: there is no telling, and none is needed, as a write may be made
    /// twice.
    NotSent,
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallFailure::Status(code, detail) => write!(f, "{code:?}: {detail}"),
            CallFailure::Refused(series, detail) => write!(f, "{} series: {detail}", series.len()),
            CallFailure::TenantNotReady(detail) | CallFailure::Broken(detail) => {
                f.write_str(detail)
            }
            CallFailure::NotSent => f.write_str("the connection was closed"),
        }
    }
}

/// Sends `message` to the peer and waits for its answer. `told` hears which rings the
/// peer has, `hear` all headers of its answer.
pub async fn call(
    connection: &mut Connection,
    message: &ForwardMessage,
    timeout: Duration,
    told: &ToldRing,
    hear: impl FnOnce(&HeaderMap),
) -> Result<(), CallFailure> {
    let form = message.form();
    let (sender, origin, merging, heard, compression) = match (&mut connection.transport, form) {
        (Transport::Grpc { sender, origin, merging, heard }, Form::Protobuf(compression)) => {
            (sender, origin, merging, heard, compression)
        }
        (Transport::CapnProto(client), Form::CapnProto { words }) => {
            return client.write(words, message.body(), message.series_count()).await;
        }
        // A pool has one protocol.
        _ => {
            debug_assert!(false, "a message of another protocol");
            return Err(CallFailure::Status(Code::Internal, "another protocol".to_owned()));
        }
    };
    let request = request(origin, message, compression, timeout)
        .map_err(|error| CallFailure::Broken(format!("{}: {error}", origin.authority)))?;
    let response = match sender.try_send_request(request).await {
        Ok(response) => response,
        // A request that is handed back was never sent.
        Err(mut error) => match error.take_message() {
            Some(_) => return Err(CallFailure::NotSent),
            None => return Err(broken(error.error(), heard)),
        },
    };
    hear(response.headers());
    let takes_merged = response.headers().contains_key(TAKES_MERGED);
    let ring = response.headers().get(RING).map(HeaderValue::as_bytes).and_then(RingHash::parse);
    let result = read_status(response, heard).await;
    // Something on the way may have failed the call instead of the peer.
    if ring.is_some() || result.is_ok() {
        told.hear(ring);
    }
    let result = result.and_then(|answer| match message.is_merged() {
        true => read_answer(&answer, message.series_count()),
        false => Ok(()),
    });
    match &result {
        Ok(()) | Err(CallFailure::Refused(..)) if takes_merged => merging.allow(),
        Err(CallFailure::Status(code, _)) if message.is_merged() && !is_of_write(*code) => {
            merging.bar();
        }
        _ => {}
    }
    result
}

/// Whether a write ends so that has reached its method. One that is too long may pass in parts.
fn is_of_write(code: Code) -> bool {
    match code {
        Code::Ok
        | Code::AlreadyExists
        | Code::InvalidArgument
        | Code::Unavailable
        | Code::Internal
        | Code::DeadlineExceeded
        | Code::Cancelled => true,
        Code::Unimplemented
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::NotFound
        | Code::ResourceExhausted
        | Code::Unknown
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::DataLoss => false,
    }
}

fn request(
    origin: &Origin,
    message: &ForwardMessage,
    compression: Compression,
    timeout: Duration,
) -> Result<Request<CallBody>, http::Error> {
    let uri = Uri::builder()
        .scheme(origin.scheme.clone())
        .authority(origin.authority.clone())
        .path_and_query(if message.is_merged() { MERGED_WRITE_PATH } else { REMOTE_WRITE_PATH })
        .build()?;
    let mut request = Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .header(GRPC_ACCEPT_ENCODING, ACCEPTED)
        .header(GRPC_TIMEOUT, timeout_header(timeout.saturating_add(DEADLINE_SLACK)));
    if compression == Compression::Snappy {
        request = request.header(GRPC_ENCODING, "snappy");
    }
    if let Some(path) = message.path() {
        request = request.header(ROUTER_PATH, path);
    }
    if message.is_merged() {
        request = request.header(ANSWER, ANSWER_SERIES);
    }
    request.body(Full::new(message.body()))
}

/// At most eight digits and a unit.
fn timeout_header(timeout: Duration) -> String {
    const DIGITS_MAX: u128 = 99_999_999;
    match timeout.as_millis() {
        // Zero would be no deadline to some.
        0 => "1m".to_owned(),
        millis if millis <= DIGITS_MAX => format!("{millis}m"),
        millis => format!("{}S", (millis / 1000).min(DIGITS_MAX)),
    }
}

/// The answer's bytes, if the call has succeeded.
async fn read_status(response: Response<Incoming>, heard: &Heard) -> Result<Vec<u8>, CallFailure> {
    let (head, mut body) = response.into_parts();
    // Without a body the status is in the head.
    if let Some(status) = status_of(&head.headers) {
        return status.map(|()| Vec::new());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error, heard))?;
        match frame.into_data() {
            Ok(data) => {
                if bytes.len() + data.len() > HEAD_BYTES + ANSWER_BYTES_MAX {
                    return Err(CallFailure::Status(Code::Internal, "answer is too long".into()));
                }
                bytes.extend_from_slice(&data);
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                if let Some(status) = status_of(&trailers) {
                    return status.map(|()| bytes);
                }
            }
        }
    }
    Err(without_status(head.status))
}

/// What a merged write of so many series was answered with. Answers are not encoded.
fn read_answer(bytes: &[u8], series_count: u32) -> Result<(), CallFailure> {
    let internal = |detail: String| CallFailure::Status(Code::Internal, detail);
    let Some((head, message)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        // Without a message, or with one that is cut short.
        return if bytes.is_empty() { Ok(()) } else { Err(internal("answer is cut short".into())) };
    };
    let head = Head::parse(*head, None).map_err(|error| internal(error.to_string()))?;
    if head.len as usize != message.len() {
        return Err(internal("answer is not one message".into()));
    }
    let answer = MergedWriteAnswer::parse(message, series_count);
    let MergedWriteAnswer { refused, detail } =
        answer.map_err(|error| internal(error.to_string()))?;
    match refused.is_empty() {
        true => Ok(()),
        false => Err(CallFailure::Refused(refused, cut(&detail))),
    }
}

fn status_of(headers: &HeaderMap) -> Option<Result<(), CallFailure>> {
    let status = Status::from_header_map(headers)?;
    Some(match status.code() {
        Code::Ok => Ok(()),
        Code::Internal if headers.contains_key(TENANT_NOT_READY) => {
            Err(CallFailure::TenantNotReady(cut(status.message())))
        }
        code => Err(CallFailure::Status(code, cut(status.message()))),
    })
}

/// An answer of something that does not speak gRPC, most likely a proxy in between, read as gRPC's
/// `http-grpc-status-mapping` says.
fn without_status(status: StatusCode) -> CallFailure {
    let code = match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        _ => Code::Unknown,
    };
    CallFailure::Status(code, format!("HTTP status {} and no gRPC status", status.as_u16()))
}

/// A stream that was refused, or came after the peer said goodbye, was not looked at. One that came
/// before and whose connection broke then may have been, which does no harm: a write may be made
/// twice.
fn broken(error: &hyper::Error, heard: &Heard) -> CallFailure {
    use std::error::Error as _;
    let cause = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    let remote = cause.filter(|error| error.is_remote());
    match remote.map(|error| (error.is_go_away(), error.reason())) {
        Some((false, Some(h2::Reason::REFUSED_STREAM)))
        | Some((true, Some(h2::Reason::NO_ERROR))) => CallFailure::NotSent,
        _ if heard.has_said_goodbye() => CallFailure::NotSent,
        _ => {
            // Also what TLS has to say, an alert of the peer, say.
            let detail = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            CallFailure::Broken(cut(&detail))
        }
    }
}

fn cut(detail: &str) -> String {
    detail[..detail.floor_char_boundary(DETAIL_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_have_eight_digits_at_most() {
        for (timeout, header) in [
            (Duration::ZERO, "1m"),
            (Duration::from_secs(5), "5000m"),
            (Duration::from_millis(99_999_999), "99999999m"),
            (Duration::from_millis(100_000_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(timeout_header(timeout), header);
        }
    }

    #[test]
    fn a_proxy_that_has_no_peer_is_unavailable() {
        let code = |status| match without_status(status) {
            CallFailure::Status(code, _) => code,
            other => panic!("{other}"),
        };
        assert_eq!(code(StatusCode::BAD_GATEWAY), Code::Unavailable);
        assert_eq!(code(StatusCode::OK), Code::Unknown);
        assert_eq!(code(StatusCode::NOT_FOUND), Code::Unimplemented);
    }
}
