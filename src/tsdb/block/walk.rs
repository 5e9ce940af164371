//! All chunks of a block, one after another, without its index.

use std::collections::BTreeSet;
use std::path::Path;

use crate::disk::Disk;
use crate::tsdb::block::chunks::{CHUNKS_DIR, HEADER, LEN_BYTES_MAX};
use crate::tsdb::error::{Corruption, ReadError};
use crate::tsdb::window::{WINDOW_BYTES, Window};

/// What is taken of a chunk at once.
const PIECE_BYTES: usize = 64 << 10;
const CRC_BYTES: usize = 4;
const _: () = assert!(PIECE_BYTES <= WINDOW_BYTES);

/// Reads the segments of the block in `dir` from their beginnings to their ends, and returns which
/// encodings its chunks have, by Prometheus' numbers. Damage anywhere is an error.
pub fn encodings(disk: &dyn Disk, dir: &Path) -> Result<BTreeSet<u8>, ReadError> {
    let dir = dir.join(CHUNKS_DIR);
    let mut found = BTreeSet::new();
    for entry in disk.list(&dir).map_err(ReadError::io(&dir))? {
        let path = dir.join(&entry.name);
        if !entry.is_dir {
            walk(disk, &path, &mut found)?;
        }
    }
    Ok(found)
}

fn walk(disk: &dyn Disk, path: &Path, found: &mut BTreeSet<u8>) -> Result<(), ReadError> {
    let window = Window::open(disk, path).map_err(ReadError::io(path))?;
    let mut segment = Segment { window, path, at: 0 };
    let header = segment.take(HEADER.len())?;
    if header != HEADER {
        return Err(segment.corrupt("it is no segment of chunks"));
    }
    while segment.has_more() {
        let len = segment.take_len()?;
        let encoding = segment.take(1)?[0];
        let mut crc = crc32c::crc32c(&[encoding]);
        let mut left = len;
        while left > 0 {
            let piece = left.min(PIECE_BYTES);
            crc = crc32c::crc32c_append(crc, segment.take(piece)?);
            left -= piece;
        }
        if segment.take(CRC_BYTES)? != crc.to_be_bytes() {
            return Err(segment.corrupt("the chunk does not match its checksum"));
        }
        found.insert(encoding);
    }
    Ok(())
}

/// A segment that is read from its beginning to its end.
struct Segment<'p> {
    window: Window,
    path: &'p Path,
    at: u64,
}

impl Segment<'_> {
    fn has_more(&self) -> bool {
        self.at < self.window.len
    }

    /// A chunk's length: an unsigned varint of 32 bits.
    fn take_len(&mut self) -> Result<usize, ReadError> {
        let mut len: u64 = 0;
        for shift in 0..LEN_BYTES_MAX {
            let byte = self.take(1)?[0];
            len |= u64::from(byte & 0x7f) << (7 * shift);
            if byte < 0x80 {
                return usize::try_from(len).map_err(|_| self.corrupt("the chunk has no length"));
            }
        }
        Err(self.corrupt("the chunk has no length"))
    }

    /// The next bytes, at most [`PIECE_BYTES`].
    fn take(&mut self, len: usize) -> Result<&[u8], ReadError> {
        let at = self.at;
        let bytes = self.window.read(at, len).map_err(ReadError::io(self.path))?;
        if bytes.len() < len {
            return Err(corrupt(self.path, at, "the chunk is cut short"));
        }
        self.at += len as u64;
        Ok(bytes)
    }

    fn corrupt(&self, what: &'static str) -> ReadError {
        corrupt(self.path, self.at, what)
    }
}

fn corrupt(path: &Path, offset: u64, what: &'static str) -> ReadError {
    ReadError::Corrupt(Corruption { file: path.to_owned(), offset, what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SystemDisk;
    use crate::tsdb::block::tests::recorded_blocks;

    #[test]
    fn chunks_of_recorded_blocks_have_the_encodings_of_their_time() {
        let mut all = BTreeSet::new();
        for block in recorded_blocks() {
            all.extend(encodings(&SystemDisk, &block).unwrap());
        }
        // From the fourth on they are Prometheus 3.14's.
        assert_eq!(all, BTreeSet::from([1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn damage_is_found_at_any_byte() {
        let block = recorded_blocks().into_iter().next().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let chunks = dir.path().join(CHUNKS_DIR);
        std::fs::create_dir(&chunks).unwrap();
        let whole = std::fs::read(block.join(CHUNKS_DIR).join("000001")).unwrap();
        let path = chunks.join("000001");
        std::fs::write(&path, &whole).unwrap();
        let found = encodings(&SystemDisk, dir.path()).unwrap();
        assert!(!found.is_empty());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let error = encodings(&SystemDisk, dir.path());
            assert!(matches!(error, Err(ReadError::Corrupt(_))), "byte {at}: {error:?}");
        }
        for len in 9..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            // Cut between two chunks it is a shorter segment, which only the index knows.
            match encodings(&SystemDisk, dir.path()) {
                Ok(shorter) => assert!(shorter.is_subset(&found), "{len} bytes"),
                Err(error) => assert!(matches!(error, ReadError::Corrupt(_)), "{len} bytes"),
            }
        }
    }
}
