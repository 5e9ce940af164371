//! What a request's headers say of its body: encoding, version of the protocol, replica.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};

use crate::error::Stage;
use crate::http::respond::RequestError;
use crate::write::error::{Invalid, WriteError};

const VERSION_HEADER: HeaderName = HeaderName::from_static("x-prometheus-remote-write-version");
const VERSION_2: &[u8] = b"2.0.0";
const PROTOBUF: &str = "application/x-protobuf";
const MESSAGE_1: &str = "prometheus.WriteRequest";
const MESSAGE_2: &str = "io.prometheus.write.v2.Request";

/// In which version of the protocol a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// Whether the sender speaks 2.0, and so is to be told what was written.
pub(super) fn speaks_version_2(headers: &HeaderMap) -> bool {
    matches!(MediaType::of(headers), MediaType::Version2)
}

/// What Prometheus' receiver looks at: absent headers mean remote write 1.0 with snappy.
pub(super) fn check_media_type(headers: &HeaderMap) -> Result<Version, RequestError> {
    const STAGE: Stage = Stage::MediaType;
    let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes().trim_ascii());
    if let Some(encoding) = encoding
        && !encoding.is_empty()
        && !encoding.eq_ignore_ascii_case(b"snappy")
    {
        let encoding = String::from_utf8_lossy(encoding);
        let detail = format!("content encoding {encoding:?}, only snappy is taken");
        return Err(RequestError::UnsupportedMediaType { stage: STAGE, detail });
    }
    match MediaType::of(headers) {
        MediaType::Absent | MediaType::Version1 => Ok(Version::V1),
        MediaType::Version2 => Ok(Version::V2),
        other => Err(other.unsupported(STAGE)),
    }
}

/// What Thanos looks at: without a version header of exactly 2.0.0 it is 1.0, whatever the type.
/// Ours takes a 2.0 type at its word all the same, rather than find no series in such a body.
pub(super) fn check_version(headers: &HeaderMap) -> Result<Version, RequestError> {
    const STAGE: Stage = Stage::Version;
    let says_2 = headers.get(VERSION_HEADER).is_some_and(|version| version == VERSION_2);
    match MediaType::of(headers) {
        MediaType::Version1 => Ok(Version::V1),
        MediaType::Version2 => Ok(Version::V2),
        MediaType::Absent if says_2 => Err(WriteError::from(Invalid::NoContentType).into()),
        other @ MediaType::Other(_) if says_2 => Err(other.unsupported(STAGE)),
        MediaType::Absent | MediaType::Other(_) => Ok(Version::V1),
    }
}

/// A content type, as far as remote write tells them apart.
enum MediaType {
    Absent,
    Version1,
    Version2,
    Other(String),
}

impl MediaType {
    fn of(headers: &HeaderMap) -> MediaType {
        let Some(value) = headers.get(CONTENT_TYPE).filter(|value| !value.is_empty()) else {
            return MediaType::Absent;
        };
        let text = String::from_utf8_lossy(value.as_bytes());
        let mut parts = text.split(';').map(str::trim);
        if !parts.next().is_some_and(|media| media.eq_ignore_ascii_case(PROTOBUF)) {
            return MediaType::Other(text.into_owned());
        }
        let proto = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("proto"))
            .map(|(_, message)| message.trim().trim_matches('"').trim());
        match proto {
            None => MediaType::Version1,
            Some(message) if message.eq_ignore_ascii_case(MESSAGE_1) => MediaType::Version1,
            Some(message) if message.eq_ignore_ascii_case(MESSAGE_2) => MediaType::Version2,
            Some(_) => MediaType::Other(text.into_owned()),
        }
    }

    fn unsupported(self, stage: Stage) -> RequestError {
        let detail = match self {
            MediaType::Other(text) => {
                format!(
                    "content type {text:?}, only {PROTOBUF} is taken, of {MESSAGE_1} or {MESSAGE_2}"
                )
            }
            MediaType::Absent | MediaType::Version1 | MediaType::Version2 => {
                format!("send {PROTOBUF}")
            }
        };
        RequestError::UnsupportedMediaType { stage, detail }
    }
}

/// A replica number must be one even where it is then ignored, as it is on a node without a ring.
/// Digits only, in 64 bits; an empty header counts as absent.
pub(super) fn replica(headers: &HeaderMap, header: &HeaderName) -> Result<u64, WriteError> {
    let Some(value) = headers.get(header) else { return Ok(0) };
    let digits = value.as_bytes().trim_ascii();
    let all_digits = digits.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<u64>().ok());
    if digits.is_empty() {
        return Ok(0);
    }
    if let Some(number) = number.filter(|_| all_digits) {
        return Ok(number);
    }
    Err(Invalid::ReplicaNumber(String::from_utf8_lossy(digits).into_owned()).into())
}
