//! Messages in gRPC streams and their encodings: snappy (framed) and gzip, those that Thanos' nodes
//! speak.
//!
//! ```text
//! message = flag (1 byte; 1: encoded)  length (4 bytes, big endian)  so many bytes
//! ```

use std::cell::RefCell;
use std::io::Write as _;
use std::time::Duration;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::wire::inflate::{self, StreamError};
use crate::wire::snappy::SnappyError;
use crate::wire::snappy::framed::{self, Deflater};

pub const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// What is put there: the encodings that are understood.
pub const ACCEPTED: HeaderValue = HeaderValue::from_static("snappy,gzip");

/// The method by which nodes of a ring hand series to one another.
pub const REMOTE_WRITE_PATH: &str = "/thanos.WriteableStore/RemoteWrite";

/// The same for merged messages. Thanos has no such method, and so refuses what it would misplace.
pub const MERGED_WRITE_PATH: &str = "/ringest.WriteableStore/RemoteWrite";

/// Set where a peer's write succeeds: the node has a method for merged messages, too.
pub const TAKES_MERGED: HeaderName = HeaderName::from_static("ringest-takes-merged");

/// Set in every answer to a peer's write by a node that has rings: the hash of those in force, as
/// [`crate::model::ring_hash::RingHash`] is written.
pub const RING: HeaderName = HeaderName::from_static("ringest-ring");
/// Set where a peer's write fails because its tenant is not ready, which says nothing about others.
/// To Thanos it is one of all errors.
pub const TENANT_NOT_READY: &str = "ringest-tenant-not-ready";

/// Set by a caller that wants to know which series were refused rather than that some were: see
/// [`MergedWriteAnswer`](crate::wire::peer_write::MergedWriteAnswer).
pub const ANSWER: HeaderName = HeaderName::from_static("ringest-answer");
pub const ANSWER_SERIES: HeaderValue = HeaderValue::from_static("series");

/// The routers that a write has passed, see [`crate::model::router_path`].
pub const ROUTER_PATH: HeaderName = HeaderName::from_static("ringest-path");

/// Set in every answer to a peer's write: which process it is.
pub const INSTANCE: HeaderName = HeaderName::from_static("ringest-instance");

/// A call's deadline.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Flag and length before each message.
pub const HEAD_BYTES: usize = 5;

/// The best that deflate can do: 258 bytes of two bits.
const GZIP_INFLATION_MAX: usize = 1032;

/// How the messages of a call with flag 1 are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Snappy,
    Gzip,
}

/// Why a message cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("grpc: Decompressor is not installed for grpc-encoding {0:?}")]
    UnknownEncoding(String),
    #[error("grpc: received unexpected payload format {0}")]
    UnknownFlag(u8),
    #[error("grpc: compressed flag set with identity or empty encoding")]
    NoEncoding,
    #[error("grpc: failed to read decompressed data: {0}")]
    Corrupt(&'static str),
    /// The call ended within a message, or without any.
    #[error("grpc: message is cut short")]
    CutShort,
    #[error("grpc: received message larger than max ({len} vs. {max})")]
    TooLarge { len: u64, max: u64 },
}

/// The time that a call's headers allow it: at most eight digits and a unit.
pub fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// A message's head, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub is_encoded: bool,
    pub len: u32,
}

impl Head {
    /// `encoding` is that of the call.
    pub fn parse(head: [u8; HEAD_BYTES], encoding: Option<Encoding>) -> Result<Head, MessageError> {
        let [flag, len @ ..] = head;
        let is_encoded = match flag {
            0 => false,
            1 if encoding.is_none() => return Err(MessageError::NoEncoding),
            1 => true,
            _ => return Err(MessageError::UnknownFlag(flag)),
        };
        Ok(Head { is_encoded, len: u32::from_be_bytes(len) })
    }

    pub fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let [a, b, c, d] = self.len.to_be_bytes();
        [u8::from(self.is_encoded), a, b, c, d]
    }
}

impl Encoding {
    /// The encoding that a call's headers announce, if any.
    pub fn of(headers: &HeaderMap) -> Result<Option<Encoding>, MessageError> {
        match headers.get(GRPC_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"" | b"identity") => Ok(None),
            Some(b"snappy") => Ok(Some(Encoding::Snappy)),
            Some(b"gzip") => Ok(Some(Encoding::Gzip)),
            Some(other) => {
                let name = String::from_utf8_lossy(other).into_owned();
                Err(MessageError::UnknownEncoding(name))
            }
        }
    }

    pub fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Encoding::Snappy => "snappy",
            Encoding::Gzip => "gzip",
        })
    }

    /// Inflates a message into the first bytes of `buffer` and returns those. Before `buffer` is
    /// made to hold `bytes`, `admit(bytes)` is asked, which ends the work with its error.
    pub fn inflate<'a, E: From<MessageError>>(
        self,
        message: &[u8],
        max: u64,
        buffer: &'a mut Vec<u8>,
        admit: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<&'a [u8], E> {
        match self {
            Encoding::Snappy => inflate_snappy(message, max, buffer, admit),
            Encoding::Gzip => inflate_gzip(message, max, buffer, admit),
        }
    }

    /// What a message may inflate to at the very most, `max` being the cap: how much work it may be.
    pub fn inflated_bytes_most(self, message: &[u8], max: u64) -> usize {
        let most = match self {
            Encoding::Snappy => framed::inflated_len(message, max).unwrap_or_default(),
            Encoding::Gzip => message.len().saturating_mul(GZIP_INFLATION_MAX),
        };
        most.min(usize::try_from(max).unwrap_or(usize::MAX))
    }

    /// Deflates a message.
    pub fn deflate(self, message: &[u8]) -> Vec<u8> {
        self.deflate_behind(Vec::new(), message)
    }

    /// Deflates a message behind what is in `out`.
    pub fn deflate_behind(self, mut out: Vec<u8>, message: &[u8]) -> Vec<u8> {
        match self {
            Encoding::Snappy => {
                out.reserve(message.len() / 2);
                deflate_snappy([message], &mut out);
                out
            }
            Encoding::Gzip => {
                let mut encoder = GzEncoder::new(out, Compression::fast());
                // A vector takes whatever is written to it.
                let _ = encoder.write_all(message);
                encoder.finish().unwrap_or_default()
            }
        }
    }
}

/// Appends the framed snappy stream of `parts` to `out`.
pub fn deflate_snappy<'a>(parts: impl IntoIterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    DEFLATER.with_borrow_mut(|deflater| deflater.deflate(parts, out));
}

/// Appends the chunks of a framed snappy stream that `parts` amount to, see
/// [`Deflater::deflate_chunks`].
pub fn deflate_snappy_chunks<'a>(parts: impl IntoIterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    DEFLATER.with_borrow_mut(|deflater| deflater.deflate_chunks(parts, out));
}

thread_local! {
    static DEFLATER: RefCell<Deflater> = RefCell::default();
}

fn inflate_snappy<'a, E: From<MessageError>>(
    message: &[u8],
    max: u64,
    buffer: &'a mut Vec<u8>,
    mut admit: impl FnMut(u64) -> Result<(), E>,
) -> Result<&'a [u8], E> {
    let len = framed::inflated_len(message, max).map_err(MessageError::from)?;
    admit(len as u64)?;
    Ok(framed::inflate(message, len, buffer).map_err(MessageError::from)?)
}

fn inflate_gzip<'a, E: From<MessageError>>(
    message: &[u8],
    max: u64,
    buffer: &'a mut Vec<u8>,
    admit: impl FnMut(u64) -> Result<(), E>,
) -> Result<&'a [u8], E> {
    inflate::from_stream(
        MultiGzDecoder::new(message),
        max,
        buffer,
        admit,
        |failure| match failure {
            StreamError::Corrupt => MessageError::Corrupt("gzip: corrupt input").into(),
            StreamError::TooLarge { len, max } => MessageError::TooLarge { len, max }.into(),
        },
    )
}

impl From<SnappyError> for MessageError {
    fn from(error: SnappyError) -> MessageError {
        match error {
            SnappyError::Corrupt => MessageError::Corrupt("snappy: corrupt input"),
            SnappyError::TooLarge { len, max } => MessageError::TooLarge { len, max },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::inflate::STEP_BYTES;

    fn inflate(encoding: Encoding, message: &[u8], max: u64) -> Result<Vec<u8>, MessageError> {
        let mut buffer = Vec::new();
        encoding.inflate(message, max, &mut buffer, |_| Ok(())).map(<[u8]>::to_vec)
    }

    #[test]
    fn messages_round_trip_up_to_the_cap() {
        for encoding in [Encoding::Snappy, Encoding::Gzip] {
            for len in [0, 1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 3 * STEP_BYTES] {
                let message = vec![b'a'; len];
                let deflated = encoding.deflate(&message);
                let max = len as u64;
                assert!(
                    inflate(encoding, &deflated, max).unwrap() == message,
                    "{encoding:?} {len}"
                );
                assert!(encoding.inflated_bytes_most(&deflated, max) == len, "{encoding:?} {len}");
                if len > 0 {
                    let refused = inflate(encoding, &deflated, max - 1);
                    assert_eq!(refused, Err(MessageError::TooLarge { len: max, max: max - 1 }));
                }
            }
        }
    }

    #[test]
    fn no_more_memory_is_taken_than_admitted() {
        for encoding in [Encoding::Snappy, Encoding::Gzip] {
            let deflated = encoding.deflate(&vec![0; 10 << 20]);
            let mut buffer = Vec::new();
            let budget = 1 << 20;
            let admit = |bytes| match bytes <= budget {
                true => Ok(()),
                false => Err(MessageError::CutShort),
            };
            let refused = encoding.inflate(&deflated, u64::MAX, &mut buffer, admit).err();
            assert_eq!(refused, Some(MessageError::CutShort));
            assert!(buffer.capacity() as u64 <= budget, "{encoding:?}");
        }
    }

    #[test]
    fn what_is_not_encoded_so_is_corrupt() {
        for encoding in [Encoding::Snappy, Encoding::Gzip] {
            let deflated = encoding.deflate(b"some bytes some bytes");
            let cut = &deflated[..deflated.len() - 3];
            for bytes in [b"some bytes", cut] {
                let refused = inflate(encoding, bytes, 1000);
                assert!(matches!(refused, Err(MessageError::Corrupt(_))), "{encoding:?}");
            }
        }
    }
}
