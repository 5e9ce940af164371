//! Full chunks from memory into files.

use crate::model::stop;
use crate::tsdb::error::WriteError;
use crate::tsdb::head::Head;

/// Chunks copied, written and settled together, each step of some ten microseconds under the lock.
const CHUNKS_TOGETHER: usize = 256;

impl Head {
    /// Writes the full chunks to files and lets go of them in memory; how many that were. One thread at
    /// a time may call it, and none that drops samples meanwhile. Blocks on the disk. On an error the
    /// rest stays in memory and may be written later.
    pub fn write_full_chunks(&self) -> Result<usize, WriteError> {
        let mut count = 0;
        while !stop::is_asked() {
            let mut next = self.states.read().next_to_write(CHUNKS_TOGETHER);
            if next.is_empty() {
                break;
            }
            let chunks: Vec<_> = next.iter_mut().map(|(.., chunk)| std::mem::take(chunk)).collect();
            let places = self.files.append(&chunks)?;
            let written = next.iter().zip(places);
            let written = written.map(|((id, slot, _), place)| (*id, *slot, place));
            self.states.write().settle(written);
            count += chunks.len();
        }
        Ok(count)
    }
}
