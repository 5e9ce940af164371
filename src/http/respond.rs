//! The table from what became of a write to the answer its sender gets. Nothing else picks a
//! status.
//!
//! | outcome | `/api/v1/receive` | `/api/v1/write` |
//! |---|---|---|
//! | all stored | 200 | 204 |
//! | some refused, the rest stored | 409 | 400 |
//! | no write request, bad tenant | 400 | 400 |
//! | over a size cap | 413 | 413 |
//! | media type or encoding not known | 415 | 415 |
//! | replica number above the factor | 400 | 400 |
//! | tenant or node not ready, overload, disk | 503, `Retry-After` | 503, `Retry-After` |
//! | no ring, no place in it, no quorum | 503, `Retry-After` | 503, `Retry-After` |
//! | head over a cap | 431 | 431 |
//!
//! OTLP is answered as `/api/v1/receive` on Thanos' path, `/api/v1/otlp`. On
//! `/api/v1/otlp/v1/metrics` what is refused while the rest is stored is told in a 200, as its
//! protocol wants it.
//!
//! Overload is never 429: Prometheus drops a batch on 429 by default.

use std::fmt::Write as _;

use axum::body::Body;
use axum::response::Response;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::door::heads::HeadError;
use crate::error::Stage;
use crate::model::varint::push_varint;
use crate::wire::otlp::Untranslated;
use crate::write::error::{Class, Refusals, WriteError};
use crate::write::{Manners, WriteOutcome, WrittenCounts};

/// What Go's `http.Error` sends, and so Thanos.
pub const TEXT_PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const ALLOW_POST: HeaderValue = HeaderValue::from_static("OPTIONS, POST");

/// Of remote write 2.0.
const SAMPLES_WRITTEN: HeaderName =
    HeaderName::from_static("x-prometheus-remote-write-samples-written");
const HISTOGRAMS_WRITTEN: HeaderName =
    HeaderName::from_static("x-prometheus-remote-write-histograms-written");
const EXEMPLARS_WRITTEN: HeaderName =
    HeaderName::from_static("x-prometheus-remote-write-exemplars-written");

/// A tenant that opens replays a log, which takes seconds.
const TENANT_RETRY_SECONDS: u16 = 2;
/// The shortest that the header can say. Overload passes as soon as requests finish.
const NODE_RETRY_SECONDS: u16 = 1;

/// A request that failed as a whole, in terms of HTTP: what the write path says, and what only
/// HTTP knows.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{stage}: {detail}")]
    UnsupportedMediaType { stage: Stage, detail: String },
}

/// The answer to a write. `tenant` is its name, or what was sent as such.
pub fn to_write(
    result: &Result<WriteOutcome, RequestError>,
    tenant: &str,
    manners: Manners,
) -> Response {
    match result {
        Ok(outcome) if outcome.refusals.is_empty() => {
            let status = match manners {
                Manners::Thanos => StatusCode::OK,
                Manners::Prometheus => StatusCode::NO_CONTENT,
            };
            empty(status)
        }
        Ok(outcome) => {
            let status = match manners {
                Manners::Thanos => StatusCode::CONFLICT,
                Manners::Prometheus => StatusCode::BAD_REQUEST,
            };
            text(status, &refusal_text(&outcome.refusals, tenant))
        }
        Err(error) => {
            let (status, retry_seconds) = status_of(error);
            let mut response = text(status, &format!("{error} (tenant {tenant:?})"));
            if let Some(seconds) = retry_seconds {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
    }
}

/// The answer to OTLP on the path that its own senders append: with what could not be stored in the
/// success, as its protocol has it, in the form that the request had.
pub fn to_export(
    result: &Result<WriteOutcome, RequestError>,
    untranslated: &Untranslated,
    tenant: &str,
    is_json: bool,
) -> Response {
    let Ok(outcome) = result else { return to_write(result, tenant, Manners::Thanos) };
    let rejected = outcome.refusals.total() + untranslated.points;
    let mut message = untranslated.to_string();
    if !outcome.refusals.is_empty() {
        let separator = if message.is_empty() { "" } else { "; " };
        message = format!("{message}{separator}{}", refusal_text(&outcome.refusals, tenant));
    }
    let is_partial = rejected > 0 || !message.is_empty();
    match is_json {
        true => {
            let partly = json!({"partialSuccess": {
                "rejectedDataPoints": rejected.to_string(),
                "errorMessage": message,
            }});
            let body = if is_partial { partly.to_string() } else { "{}".to_owned() };
            with_headers(StatusCode::OK, [(CONTENT_TYPE, JSON)], body)
        }
        false => {
            let body = if is_partial { partial_success(rejected, &message) } else { Vec::new() };
            with_headers(StatusCode::OK, [(CONTENT_TYPE, PROTOBUF)], body)
        }
    }
}

/// `ExportMetricsServiceResponse { 1 partial success { 1 rejected data points   2 error message }
/// }`
fn partial_success(rejected: u64, message: &str) -> Vec<u8> {
    let mut partly = vec![1 << 3];
    push_varint(&mut partly, rejected);
    partly.push(2 << 3 | 2);
    push_varint(&mut partly, message.len() as u64);
    partly.extend_from_slice(message.as_bytes());
    let mut response = vec![1 << 3 | 2];
    push_varint(&mut response, partly.len() as u64);
    response.extend_from_slice(&partly);
    response
}

/// Tells a sender of remote write 2.0 what was written, which it wants to hear in every answer.
pub fn tell_written(result: &Result<WriteOutcome, RequestError>, response: &mut Response) {
    let written = match result {
        Ok(outcome) => outcome.written,
        Err(RequestError::Write(WriteError::NoQuorum { written, .. })) => *written,
        Err(_) => WrittenCounts::default(),
    };
    let headers = response.headers_mut();
    headers.insert(SAMPLES_WRITTEN, HeaderValue::from(written.samples));
    headers.insert(HISTOGRAMS_WRITTEN, HeaderValue::from(written.histograms));
    headers.insert(EXEMPLARS_WRITTEN, HeaderValue::from(written.exemplars));
}

/// Status and, where a retry helps, seconds to wait for it.
fn status_of(error: &RequestError) -> (StatusCode, Option<u16>) {
    match error {
        RequestError::UnsupportedMediaType { .. } => (StatusCode::UNSUPPORTED_MEDIA_TYPE, None),
        RequestError::Write(error) => match error.class() {
            Class::Malformed | Class::Misnamed => (StatusCode::BAD_REQUEST, None),
            Class::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, None),
            Class::TenantNotReady => (StatusCode::SERVICE_UNAVAILABLE, Some(TENANT_RETRY_SECONDS)),
            Class::Unavailable | Class::Misplaced => {
                (StatusCode::SERVICE_UNAVAILABLE, Some(NODE_RETRY_SECONDS))
            }
        },
    }
}

/// Names the stage and the tenant, then each reason with its count and one series.
fn refusal_text(refusals: &Refusals, tenant: &str) -> String {
    let mut text = String::with_capacity(256);
    // Writing to a String cannot fail.
    let _ = match refusals.total() {
        // Only other nodes refused some, and they tell no numbers.
        0 => write!(text, "append: some refused for tenant {tenant:?}: {refusals}"),
        total => write!(
            text,
            "append: {total} refused for tenant {tenant:?}, the rest is stored: {refusals}"
        ),
    };
    text
}

/// To a request whose head is too much.
pub(super) fn head_refused(error: &HeadError) -> Response {
    match error {
        HeadError::TooLarge { .. } | HeadError::TooMany { .. } | HeadError::Unread { .. } => {
            text(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &error.to_string())
        }
        HeadError::Overloaded(_) => {
            let mut response = text(StatusCode::SERVICE_UNAVAILABLE, &error.to_string());
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(NODE_RETRY_SECONDS));
            response
        }
    }
}

/// To one whose head there is no room to read.
pub(super) const HEAD_OVERLOAD: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    retry-after: 1\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 34\r\n\r\noverload: no room for the request\n";

pub(super) fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found")
}

/// To another method than POST on a path that takes only POST.
pub(super) fn method_not_allowed() -> Response {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(ALLOW, ALLOW_POST);
    response
}

/// To OPTIONS on a path that takes only POST.
pub(super) fn options() -> Response {
    let mut response = empty(StatusCode::OK);
    response.headers_mut().insert(ALLOW, ALLOW_POST);
    response
}

pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A body with these headers.
pub(super) fn with_headers<const N: usize>(
    status: StatusCode,
    headers: [(HeaderName, HeaderValue); N],
    body: impl Into<Body>,
) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().extend(headers);
    response
}

/// An error's text with a newline, as `http.Error` of Go sends it.
pub(super) fn text(status: StatusCode, message: &str) -> Response {
    let headers = [(CONTENT_TYPE, TEXT_PLAIN), (X_CONTENT_TYPE_OPTIONS, NOSNIFF)];
    with_headers(status, headers, format!("{message}\n"))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;
    use crate::hashring::PlacementError;
    use crate::model::tenant::{TenantId, TenantNameError};
    use crate::multi_tsdb::TenantError;
    use crate::write::error::{Invalid, Reason, TooLarge, Unavailable, no_quorum};

    fn refused() -> Result<WriteOutcome, RequestError> {
        let mut outcome = WriteOutcome::default();
        outcome.refusals.add(Reason::OutOfOrder, 2, || "{a=\"1\"}".into());
        Ok(outcome)
    }

    fn cases() -> Vec<(Result<WriteOutcome, RequestError>, u16, u16)> {
        let failed = |error: WriteError| Err(RequestError::Write(error));
        let tenant = TenantId::parse(b"t").unwrap();
        vec![
            (Ok(WriteOutcome::default()), 200, 204),
            (refused(), 409, 400),
            (failed(Invalid::NoContentType.into()), 400, 400),
            (failed(WriteError::TenantName(TenantNameError::Empty)), 400, 400),
            (failed(TooLarge::Declared { bytes: 2, max: 1 }.into()), 413, 413),
            (
                failed(WriteError::TenantNotReady { tenant, cause: TenantError::Opening.into() }),
                503,
                503,
            ),
            (failed(Unavailable::NotAccepting.into()), 503, 503),
            (failed(WriteError::BadReplica { replica: 4, factor: 3 }), 400, 400),
            (failed(WriteError::NoHashring), 503, 503),
            (failed(WriteError::Placement(PlacementError::NoHashring)), 503, 503),
            (failed(no_quorum(1, 1)), 503, 503),
            (
                Err(RequestError::UnsupportedMediaType {
                    stage: Stage::Version,
                    detail: "x".into(),
                }),
                415,
                415,
            ),
        ]
    }

    #[test]
    fn each_outcome_has_its_status_for_both_manners() {
        for (result, thanos, prometheus) in cases() {
            for (manners, status) in [(Manners::Thanos, thanos), (Manners::Prometheus, prometheus)]
            {
                let response = to_write(&result, "t", manners);
                assert_eq!(response.status().as_u16(), status, "{result:?}");
                let headers = response.headers();
                assert_eq!(headers.contains_key(RETRY_AFTER), status == 503, "{result:?}");
                assert_eq!(headers.contains_key(CONTENT_TYPE), status >= 400, "{result:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_refusal_names_stage_tenant_reason_and_series() {
        let response = to_write(&refused(), "team", Manners::Thanos);
        assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        assert_eq!(
            body,
            "append: 2 refused for tenant \"team\", the rest is stored: \
             out of order sample 2 ({a=\"1\"})\n"
        );
    }
}
