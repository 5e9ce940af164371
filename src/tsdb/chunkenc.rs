//! Chunk encodings, as in Prometheus' `tsdb/chunkenc`.

pub mod bits;
pub mod xor;

/// Prometheus' number for an encoding, as stored in blocks and head-chunk files.
pub const ENCODING_XOR: u8 = 1;

/// A chunk whose bytes are not what their encoding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk is damaged: {0}")]
pub struct ChunkError(pub &'static str);
