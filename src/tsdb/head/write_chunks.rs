//! Full chunks from memory into files.

use crate::model::stop;
use crate::tsdb::error::WriteError;
use crate::tsdb::head::Head;
use crate::tsdb::head::chunk_list::WaitingId;

/// Chunks copied, written and settled together, each step of some ten microseconds under the lock.
const CHUNKS_TOGETHER: usize = 256;

impl Head {
    /// All full chunks that wait now come before this; `None` if none is to be written.
    pub fn waiting_end(&self) -> Option<WaitingId> {
        self.states.read().waiting_end()
    }

    /// Writes the full chunks before `end` to files and lets go of them in memory; how many that were.
    /// Their samples are durable in the log: else memory is where they would be logged again from. One
    /// thread at a time may call it, and none that drops samples meanwhile. Blocks on the disk. On an
    /// error the rest stays in memory and may be written later.
    pub fn write_full_chunks(&self, end: WaitingId) -> Result<usize, WriteError> {
        let mut count = 0;
        while !stop::is_asked() {
            let mut next = self.states.read().next_to_write(end, CHUNKS_TOGETHER);
            if next.is_empty() {
                break;
            }
            let chunks: Vec<_> = next.iter_mut().map(|(.., chunk)| std::mem::take(chunk)).collect();
            let (places, result) = self.files.append(&chunks);
            count += places.len();
            let written = next.iter().zip(places);
            let written = written.map(|((id, slot, _), place)| (*id, *slot, place));
            self.states.write().settle(written);
            result?;
        }
        Ok(count)
    }

    /// Makes what was written to files durable.
    pub fn sync_full_chunks(&self) -> Result<(), WriteError> {
        self.files.sync()
    }
}
