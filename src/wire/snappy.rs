//! Snappy's block format for request bodies: lengths are judged before memory is taken, and blocks
//! are inflated into buffers that are used again.
//!
//! ```text
//! <inflated length, varint> ( <literal> | <copy> )*
//! ```
//!
//! The declared length is the sender's word. Two checks keep it from becoming memory: the caller's
//! cap, and what the block could inflate to at the very most ([`INFLATION_MAX`]). So seven bytes
//! that declare 1 GiB are refused as corrupt without asking what the cap is.

pub mod framed;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::metrics::{Registry, budgets};
use crate::model::varint;

/// The best that a block can do: a copy with a two-byte offset makes 64 bytes of 3.
const INFLATION_MAX: (u64, u64) = (64, 3);

/// Why a block cannot be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnappyError {
    #[error("corrupt snappy block")]
    Corrupt,
    #[error("block of {len} inflated bytes is over the cap of {max}")]
    TooLarge { len: u64, max: u64 },
}

/// The block's inflated length in bytes, which it can reach and which is at most `max`.
pub fn inflated_len(block: &[u8], max: u64) -> Result<usize, SnappyError> {
    let (len, rest) = varint::read_varint(block).ok_or(SnappyError::Corrupt)?;
    let (made, of) = INFLATION_MAX;
    // A slice is shorter than 2^63 bytes, but not than 2^63 / 64 for the type.
    if len > (rest.len() as u64).saturating_mul(made) / of {
        return Err(SnappyError::Corrupt);
    }
    if len > max {
        return Err(SnappyError::TooLarge { len, max });
    }
    usize::try_from(len).map_err(|_| SnappyError::Corrupt)
}

/// Inflates `block` into the first bytes of `buffer` and returns those. `len` comes from
/// [`inflated_len`] of the same block.
pub fn inflate<'a>(
    block: &[u8],
    len: usize,
    buffer: &'a mut Vec<u8>,
) -> Result<&'a [u8], SnappyError> {
    // The buffer keeps its length from use to use, so only growth is filled with zeros.
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let out = buffer.get_mut(..len).ok_or(SnappyError::Corrupt)?;
    let inflated =
        snap::raw::Decoder::new().decompress(block, out).map_err(|_| SnappyError::Corrupt)?;
    out.get(..inflated).ok_or(SnappyError::Corrupt)
}

/// Deflates into a block of its own.
pub fn deflate(bytes: &[u8]) -> Result<Vec<u8>, SnappyError> {
    let too_large = SnappyError::TooLarge { len: bytes.len() as u64, max: u64::from(u32::MAX) };
    snap::raw::Encoder::new().compress_vec(bytes).map_err(|_| too_large)
}

/// Buffers that are used again, so that a request takes no fresh memory. What is kept is bounded in
/// count and in bytes; what is in use is the business of
/// [`Admission`](crate::write::admission::Admission).
#[derive(Clone)]
pub struct BufferPool(Arc<Shelf>);

struct Shelf {
    buffers_max: usize,
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    /// Invariant: the sum of the buffers' capacities.
    bytes: usize,
}

/// A buffer from a pool, put back on drop. Its content is whatever its last user left.
pub struct PooledBuffer {
    bytes: Vec<u8>,
    shelf: Arc<Shelf>,
}

impl BufferPool {
    /// Keeps at most `buffers_max` idle buffers and at most `bytes_max` bytes in them.
    pub fn new(buffers_max: usize, bytes_max: usize) -> BufferPool {
        BufferPool(Arc::new(Shelf { buffers_max, bytes_max, kept: Mutex::default() }))
    }

    /// Shows on the page what is kept.
    pub fn shown(self, registry: &Registry, name: &'static str) -> BufferPool {
        let shelf = self.0.clone();
        budgets::show_pool(registry, name, shelf.bytes_max, move || shelf.kept.lock().bytes);
        self
    }

    /// The buffer used last, which is the likeliest to be in the caches, or an empty one.
    pub fn take(&self) -> PooledBuffer {
        let mut kept = self.0.kept.lock();
        let bytes = kept.buffers.pop().unwrap_or_default();
        kept.bytes -= bytes.capacity();
        drop(kept);
        PooledBuffer { bytes, shelf: self.0.clone() }
    }
}

impl PooledBuffer {
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    pub fn as_mut_vec(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut kept = self.shelf.kept.lock();
        let fits = kept.bytes.saturating_add(bytes.capacity()) <= self.shelf.bytes_max;
        if fits && kept.buffers.len() < self.shelf.buffers_max {
            kept.bytes += bytes.capacity();
            kept.buffers.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: u64 = 1 << 20;

    fn round(block: &[u8]) -> Result<Vec<u8>, SnappyError> {
        let len = inflated_len(block, CAP)?;
        inflate(block, len, &mut Vec::new()).map(<[u8]>::to_vec)
    }

    #[test]
    fn blocks_round_trip_through_a_used_buffer() {
        let mut buffer = vec![7; 40];
        for bytes in [&b""[..], b"a", &[1; 5000], b"abcabcabcabcabcabcabcabcabc"] {
            let block = deflate(bytes).unwrap();
            let len = inflated_len(&block, CAP).unwrap();
            assert_eq!(inflate(&block, len, &mut buffer).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_no_block_is_corrupt() {
        let whole = deflate(b"some bytes some bytes some bytes").unwrap();
        assert_eq!(round(&[]), Err(SnappyError::Corrupt));
        assert_eq!(round(&[0, 0]), Err(SnappyError::Corrupt));
        assert_eq!(round(&[0xff; 12]), Err(SnappyError::Corrupt));
        assert_eq!(round(&[8, 0, b'a', 0x0d, 9]), Err(SnappyError::Corrupt));
        for cut in 0..whole.len() {
            assert_eq!(round(&whole[..cut]), Err(SnappyError::Corrupt), "cut at {cut}");
        }
        let longer = [&whole[..], b"x"].concat();
        assert_eq!(round(&longer), Err(SnappyError::Corrupt));
        for declared in [31, 33] {
            let mut wrong = whole.clone();
            wrong[0] = declared;
            assert_eq!(round(&wrong), Err(SnappyError::Corrupt));
        }
    }

    #[test]
    fn a_length_that_the_block_cannot_reach_takes_no_memory() {
        for declared in [1u64 << 30, u64::from(u32::MAX), 1 << 32, 1 << 63] {
            let mut block = Vec::new();
            varint::push_varint(&mut block, declared);
            block.extend_from_slice(&[0, b'a']);
            assert_eq!(inflated_len(&block, u64::MAX), Err(SnappyError::Corrupt));
        }
    }

    #[test]
    fn a_length_over_the_cap_is_named() {
        let block = deflate(&[0; 5000]).unwrap();
        assert_eq!(inflated_len(&block, 4999), Err(SnappyError::TooLarge { len: 5000, max: 4999 }));
        assert_eq!(inflated_len(&block, 5000), Ok(5000));
    }

    #[test]
    fn the_densest_block_is_not_taken_for_corrupt() {
        // 1,000,001 equal bytes: as close to 64 bytes from 3 as an encoder gets.
        let block = deflate(&vec![0; 1_000_001]).unwrap();
        assert_eq!(inflated_len(&block, CAP), Ok(1_000_001));
    }

    #[test]
    fn a_pool_keeps_no_more_than_it_may() {
        let pool = BufferPool::new(2, 1000);
        let fill = |bytes: usize| {
            let mut buffer = pool.take();
            buffer.as_mut_vec().reserve_exact(bytes);
            buffer
        };
        let (a, b, c) = (fill(100), fill(200), fill(300));
        drop((a, b, c));
        let kept = |pool: &BufferPool| {
            let kept = pool.0.kept.lock();
            (kept.buffers.len(), kept.bytes)
        };
        assert_eq!(kept(&pool), (2, 300), "the third is one too many");
        assert_eq!(pool.take().as_mut_vec().capacity(), 200, "last in, first out");
        let big = fill(2000);
        drop(big);
        assert_eq!(kept(&pool), (1, 100), "too large to keep");
    }
}
