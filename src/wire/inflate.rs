//! Bodies and messages that do not say how long they get: they inflate step by step, into memory
//! that was admitted before, and never beyond a cap.

use std::io::{BufReader, Read};

use flate2::read::MultiGzDecoder;

use crate::wire::snappy::{self, SnappyError, framed};

/// A step, unless more is there already: then it is doubled.
pub const STEP_BYTES: usize = 256 << 10;

/// Windows of zstd are no larger than 2^23 bytes, which is what its levels but the highest take.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a framed snappy stream begins.
const SNAPPY_STREAM_HEAD: &[u8] = b"\xff\x06\x00\x00sNaPpY";

/// Why nothing comes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("corrupt input")]
    Corrupt,
    #[error("{len} bytes and more are over the cap of {max}")]
    TooLarge { len: u64, max: u64 },
}

/// What a body is compressed with, as its `Content-Encoding` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentEncoding {
    Identity,
    Gzip,
    Zstd,
    /// A block or a framed stream: both are sent under this name.
    Snappy,
}

impl ContentEncoding {
    /// In any letter case; nothing at all is identity.
    pub fn parse(name: &[u8]) -> Option<ContentEncoding> {
        let known = [
            ("", ContentEncoding::Identity),
            ("identity", ContentEncoding::Identity),
            ("gzip", ContentEncoding::Gzip),
            ("zstd", ContentEncoding::Zstd),
            ("snappy", ContentEncoding::Snappy),
        ];
        let name = name.trim_ascii();
        known
            .into_iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
            .map(|(_, encoding)| encoding)
    }

    /// Inflates `body` into the first bytes of `buffer`, at most `max`, and says how many those
    /// are. Before `buffer` is made to hold `bytes`, `admit(bytes)` is asked, which ends the work
    /// with its error.
    pub fn inflate<E: From<StreamError>>(
        self,
        body: &[u8],
        max: u64,
        buffer: &mut Vec<u8>,
        mut admit: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<usize, E> {
        let bytes = match self {
            ContentEncoding::Identity => from_stream(body, max, buffer, admit, E::from)?,
            ContentEncoding::Gzip => {
                from_stream(MultiGzDecoder::new(body), max, buffer, admit, E::from)?
            }
            ContentEncoding::Zstd => {
                // Beside what comes out the decoder holds a window.
                let window = 1u64 << ZSTD_WINDOW_LOG_MAX;
                let corrupt = |_| E::from(StreamError::Corrupt);
                let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::new(body))
                    .map_err(corrupt)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(corrupt)?;
                let admit = |bytes: u64| admit(bytes.saturating_add(window));
                from_stream(decoder, max, buffer, admit, E::from)?
            }
            ContentEncoding::Snappy if body.starts_with(SNAPPY_STREAM_HEAD) => {
                let len = framed::inflated_len(body, max).map_err(StreamError::from)?;
                admit(len as u64)?;
                framed::inflate(body, len, buffer).map_err(StreamError::from)?
            }
            ContentEncoding::Snappy => {
                let len = snappy::inflated_len(body, max).map_err(StreamError::from)?;
                admit(len as u64)?;
                snappy::inflate(body, len, buffer).map_err(StreamError::from)?
            }
        };
        Ok(bytes.len())
    }
}

impl From<SnappyError> for StreamError {
    fn from(error: SnappyError) -> StreamError {
        match error {
            SnappyError::Corrupt => StreamError::Corrupt,
            SnappyError::TooLarge { len, max } => StreamError::TooLarge { len, max },
        }
    }
}

/// Reads all that `decoder` gives into the first bytes of `buffer` and returns those. Before
/// `buffer` is made to hold `bytes`, `admit(bytes)` is asked. `failed` makes an error of what ended
/// the work.
pub(super) fn from_stream<E>(
    mut decoder: impl Read,
    max: u64,
    buffer: &mut Vec<u8>,
    mut admit: impl FnMut(u64) -> Result<(), E>,
    failed: impl Fn(StreamError) -> E,
) -> Result<&[u8], E> {
    let mut len = 0;
    loop {
        if len == buffer.len() {
            let longer = len.saturating_add(len.max(STEP_BYTES));
            // One byte more than the cap, so that a message that fills it is seen to end there.
            let longer = longer.min(usize::try_from(max.saturating_add(1)).unwrap_or(usize::MAX));
            admit(longer as u64)?;
            buffer.resize(longer, 0);
        }
        let read = decoder
            .read(buffer.get_mut(len..).unwrap_or_default())
            .map_err(|_| failed(StreamError::Corrupt))?;
        if read == 0 {
            break;
        }
        len += read;
        if len as u64 > max {
            return Err(failed(StreamError::TooLarge { len: len as u64, max }));
        }
    }
    Ok(buffer.get(..len).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::grpc::{Encoding, deflate_snappy};

    const ALL: [ContentEncoding; 4] = [
        ContentEncoding::Identity,
        ContentEncoding::Gzip,
        ContentEncoding::Zstd,
        ContentEncoding::Snappy,
    ];

    fn deflated(encoding: ContentEncoding, bytes: &[u8]) -> Vec<u8> {
        match encoding {
            ContentEncoding::Identity => bytes.to_vec(),
            ContentEncoding::Gzip => Encoding::Gzip.deflate(bytes),
            ContentEncoding::Zstd => zstd::stream::encode_all(bytes, 3).unwrap(),
            ContentEncoding::Snappy => snappy::deflate(bytes).unwrap(),
        }
    }

    fn inflate(encoding: ContentEncoding, body: &[u8], max: u64) -> Result<Vec<u8>, StreamError> {
        // Whatever is in the buffer.
        let mut buffer = vec![7; 1000];
        let len = encoding.inflate(body, max, &mut buffer, |_| Ok::<_, StreamError>(()))?;
        Ok(buffer[..len].to_vec())
    }

    #[test]
    fn bodies_inflate_up_to_the_cap() {
        let framed = |bytes: &[u8]| {
            let mut stream = Vec::new();
            deflate_snappy([bytes], &mut stream);
            stream
        };
        for len in [0, 1, 1000, STEP_BYTES, STEP_BYTES + 1, 3 * STEP_BYTES] {
            let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
            let max = len as u64;
            let bodies = ALL.map(|encoding| (encoding, deflated(encoding, &bytes)));
            // One without a chunk is without a head, too.
            let streams = (len > 0).then(|| (ContentEncoding::Snappy, framed(&bytes)));
            for (encoding, body) in bodies.into_iter().chain(streams) {
                assert!(inflate(encoding, &body, max).unwrap() == bytes, "{encoding:?} {len}");
                if len > 0 {
                    let refused = inflate(encoding, &body, max - 1);
                    assert!(matches!(refused, Err(StreamError::TooLarge { .. })), "{encoding:?}");
                }
            }
        }
    }

    #[test]
    fn bombs_take_what_was_admitted() {
        #[derive(Debug, PartialEq)]
        struct Full;
        impl From<StreamError> for Full {
            fn from(error: StreamError) -> Full {
                panic!("{error}")
            }
        }
        for encoding in ALL {
            let bomb = deflated(encoding, &vec![0; 50 << 20]);
            let (mut buffer, budget) = (Vec::new(), 20 << 20);
            let admit = |bytes| if bytes <= budget { Ok(()) } else { Err(Full) };
            assert_eq!(encoding.inflate(&bomb, u64::MAX, &mut buffer, admit), Err(Full));
            assert!(buffer.capacity() as u64 <= budget, "{encoding:?}");
        }
    }

    #[test]
    fn what_is_not_encoded_so_is_corrupt() {
        for encoding in [ContentEncoding::Gzip, ContentEncoding::Zstd, ContentEncoding::Snappy] {
            let whole = deflated(encoding, b"some bytes some bytes some bytes");
            for body in [b"some bytes", &whole[..whole.len() - 3]] {
                assert_eq!(
                    inflate(encoding, body, 1000),
                    Err(StreamError::Corrupt),
                    "{encoding:?}"
                );
            }
        }
    }

    #[test]
    fn names_are_taken_in_any_case() {
        for (name, expected) in [
            ("", Some(ContentEncoding::Identity)),
            (" GZIP ", Some(ContentEncoding::Gzip)),
            ("Zstd", Some(ContentEncoding::Zstd)),
            ("snappy", Some(ContentEncoding::Snappy)),
            ("identity", Some(ContentEncoding::Identity)),
            ("deflate", None),
            ("gzip, gzip", None),
        ] {
            assert_eq!(ContentEncoding::parse(name.as_bytes()), expected, "{name}");
        }
    }
}
