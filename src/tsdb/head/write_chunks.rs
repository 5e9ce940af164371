//! Full chunks from memory into files.

use crate::model::stop;
use crate::tsdb::error::WriteError;
use crate::tsdb::head::Head;
use crate::tsdb::head::chunk_list::WaitingId;
use crate::tsdb::head_chunks::FullChunk;

/// What was written to files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub chunks: usize,
    pub samples: u64,
}

/// Chunks copied, written and settled together, each step of some ten microseconds under the lock.
const CHUNKS_TOGETHER: usize = 256;

impl Head {
    /// All full chunks that wait now come before this; `None` if none is to be written.
    pub fn waiting_end(&self) -> Option<WaitingId> {
        self.states.read().waiting_end()
    }

    /// Writes the full chunks before `end` to files and lets go of them in memory; how many are
    /// added to `total`. Their samples are durable in the log: else memory is where they would be
    /// logged again from. One thread at a time may call it, and none that drops samples meanwhile.
    /// Blocks on the disk. On an error the rest stays in memory and may be written later.
    pub fn write_full_chunks(&self, end: WaitingId, total: &mut Written) -> Result<(), WriteError> {
        while !stop::is_asked() {
            let mut next = self.states.read().next_to_write(end, CHUNKS_TOGETHER);
            if next.is_empty() {
                break;
            }
            let chunks: Vec<_> = next.iter_mut().map(|(.., chunk)| std::mem::take(chunk)).collect();
            let (places, result) = self.files.append(&chunks);
            total.chunks += places.len();
            let counts = chunks[..places.len()].iter().map(FullChunk::sample_count);
            total.samples += counts.sum::<u64>();
            let written = next.iter().zip(places);
            let written = written.map(|((id, slot, _), place)| (*id, *slot, place));
            self.states.write().settle(written);
            result?;
        }
        Ok(())
    }

    /// Makes what was written to files durable.
    pub fn sync_full_chunks(&self) -> Result<(), WriteError> {
        self.files.sync()
    }
}
