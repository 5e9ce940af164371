//! Chunk encodings, as in Prometheus' `tsdb/chunkenc`.

pub mod bits;
pub mod histogram;
pub mod samples;
pub mod varbit;
pub mod xor;

/// Prometheus' numbers for encodings, as stored in blocks and head-chunk files.
pub const ENCODING_XOR: u8 = 1;
pub const ENCODING_HISTOGRAM: u8 = 2;
pub const ENCODING_FLOAT_HISTOGRAM: u8 = 3;
/// Those of Prometheus 3.14, which has them where it is told to.
pub const ENCODING_XOR2: u8 = 4;
pub const ENCODING_HISTOGRAM_ST: u8 = 5;
pub const ENCODING_FLOAT_HISTOGRAM_ST: u8 = 6;

/// Whether a chunk of this encoding holds floats. Of others it holds histograms.
pub fn is_float(encoding: u8) -> bool {
    matches!(encoding, ENCODING_XOR | ENCODING_XOR2)
}

/// Whether chunks of this encoding can be read. Of others it is not to look as if they were not there.
pub fn is_known(encoding: u8) -> bool {
    (ENCODING_XOR..=ENCODING_FLOAT_HISTOGRAM).contains(&encoding)
}

/// How many samples a chunk says it has: in two bytes at its beginning, of which some encodings use
/// the highest two bits otherwise.
pub fn sample_count(encoding: u8, chunk: &[u8]) -> u16 {
    let count = chunk.first_chunk().map_or(0, |count| u16::from_be_bytes(*count));
    match encoding {
        ENCODING_HISTOGRAM_ST | ENCODING_FLOAT_HISTOGRAM_ST => count & 0x3fff,
        _ => count,
    }
}

/// A chunk whose bytes are not what their encoding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk is damaged: {0}")]
pub struct ChunkError(pub &'static str);
