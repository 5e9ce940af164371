//! Groups deflated once for all their replicas.
//!
//! Framed snappy is a stream of chunks that do not depend on each other, so the chunks of a group
//! are the same in each message that carries it.

use crate::wire::grpc::deflate_snappy_chunks;
use crate::write::distribute::PlacedSeries;

/// Smaller groups, on average, are not deflated on their own. Snappy finds repeats only within a
/// chunk, of 64 KiB at most: of a fleet's series, chunks of 30 KiB take a third more than whole
/// ones, those of 12 KiB nearly twice as much.
const GROUP_BYTES_MIN: usize = 24 << 10;

/// Chunks of framed snappy, group by group.
pub struct DeflatedGroups {
    chunks: Vec<u8>,
    groups: Vec<DeflatedGroup>,
}

struct DeflatedGroup {
    /// Where its chunks end.
    end: usize,
    /// Bytes of its fields.
    plain_bytes: usize,
}

impl DeflatedGroups {
    /// Deflates all groups. None if they are too small for that.
    pub fn of(series: &PlacedSeries) -> Option<DeflatedGroups> {
        let group_count = series.group_count();
        let bytes = series.total_bytes();
        if group_count == 0 || bytes / group_count < GROUP_BYTES_MIN {
            return None;
        }
        let mut chunks = Vec::with_capacity(bytes / 4);
        let groups = (0..group_count as u32).map(|group| {
            deflate_snappy_chunks(series.fields(&[group]), &mut chunks);
            DeflatedGroup { end: chunks.len(), plain_bytes: series.bytes(&[group]) }
        });
        let groups = groups.collect();
        Some(DeflatedGroups { chunks, groups })
    }

    /// Bytes of the fields of these groups.
    pub fn plain_bytes(&self, groups: &[u32]) -> usize {
        let bytes = |group: &u32| Some(self.groups.get(*group as usize)?.plain_bytes);
        groups.iter().filter_map(bytes).sum()
    }

    /// The chunks of these groups, a run for each.
    pub fn chunks(&self, groups: &[u32]) -> impl Iterator<Item = &[u8]> + Clone {
        groups.iter().filter_map(|group| {
            let group = *group as usize;
            let before = group.checked_sub(1).and_then(|before| self.groups.get(before));
            let start = before.map_or(0, |before| before.end);
            self.chunks.get(start..self.groups.get(group)?.end)
        })
    }
}
