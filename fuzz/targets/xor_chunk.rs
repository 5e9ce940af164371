//! XOR chunks: no bytes panic the iterator, and what is encoded comes back bit for bit.
//!
//! Input: read once as a chunk, and once as samples of sixteen bytes, step in time and value.

use std::path::Path;
use std::sync::Arc;

use ringest::disk::faulty::FaultyDisk;
use ringest::metrics::Registry;
use ringest::model::HeadSeriesRef;
use ringest::tsdb::chunkenc::xor::XorIterator;
use ringest::tsdb::head::series::SeriesState;
use ringest::tsdb::head::states::States;
use ringest::tsdb::head_chunks::{FILE_BYTES, HeadChunkFiles};

/// Samples a chunk can name: its count has two bytes.
const COUNT_MAX: usize = 1 << 16;

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    assert!(XorIterator::new(input).count() <= COUNT_MAX);

    let disk = Arc::new(FaultyDisk::new());
    let files = HeadChunkFiles::new(disk, Path::new("/db"), FILE_BYTES, &Registry::new(), "t");
    let mut states = States::new(Arc::new(files));
    states.push(SeriesState::new(HeadSeriesRef(1)));
    let mut samples = Vec::new();
    let mut t = i64::MIN / 4;
    for bytes in input.chunks_exact(16) {
        let (step, v) = bytes.split_at(8);
        let step = u64::from_le_bytes(step.try_into().expect("eight bytes"));
        // Every width of step, and times that rise.
        let step = step >> (step & 63);
        let Some(next) = t.checked_add_unsigned(step).filter(|next| *next > t) else { continue };
        if next > i64::MAX / 4 {
            break;
        }
        t = next;
        let v = u64::from_le_bytes(v.try_into().expect("eight bytes"));
        states.append(0, t, v, 7_200_000);
        samples.push((t, v));
    }
    let mut found = Vec::new();
    states.chunks_in(0, i64::MIN, i64::MAX, |chunk| {
        let chunk = chunk.load().expect("a chunk in memory");
        found.extend(XorIterator::new(&chunk.bytes).map(|sample| sample.expect("our own chunk")));
    });
    assert_eq!(found, samples);
}

/// Inputs to begin with: no sample, two, and forty of rising times.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let samples = |count: u64| {
        let sample =
            |n: u64| [((n * 15_000) << 6).to_le_bytes(), (n as f64).to_bits().to_le_bytes()];
        (0..count).flat_map(sample).flatten().collect::<Vec<u8>>()
    };
    vec![vec![0, 0], samples(2), samples(40)]
}
