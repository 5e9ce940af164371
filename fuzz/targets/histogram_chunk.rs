//! Chunks of histograms: no bytes panic the reader, and what is read of them can be written and comes
//! back.
//!
//! Input: a chunk, read as one of integers and as one of floats.

use ringest::model::histogram::{Float, Histogram, Integer};
use ringest::tsdb::chunkenc::histogram::{Encoded, HistogramIterator, OpenHistogramChunk, Taken};

/// Samples a chunk can name: its count has two bytes.
const COUNT_MAX: usize = 1 << 16;
/// Samples that are written again; each may make the chunk be written anew.
const WRITTEN_MAX: usize = 64;

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    reads_and_writes::<Integer>(input);
    reads_and_writes::<Float>(input);
}

fn reads_and_writes<N: Encoded>(input: &[u8]) {
    let mut samples = HistogramIterator::<N>::new(input);
    let mut sample = Histogram::default();
    let (mut chunks, mut written) = (Vec::<OpenHistogramChunk<N>>::new(), 0);
    let mut read = 0;
    while let Some(Ok(t)) = samples.next_into(&mut sample) {
        read += 1;
        if written == WRITTEN_MAX {
            continue;
        }
        written += 1;
        let begun = match chunks.last_mut() {
            None => OpenHistogramChunk::begin(t, &sample, None),
            Some(open) => match open.append(t, &sample) {
                Taken::Begun(begun) => *begun,
                Taken::Appended | Taken::Recoded => continue,
            },
        };
        chunks.push(begun);
    }
    assert!(read <= COUNT_MAX);
    let counts = chunks.iter().map(|chunk| count::<N>(chunk.bytes()));
    assert_eq!(counts.sum::<usize>(), written, "what is written is read");
}

/// Samples of a chunk that we wrote.
fn count<N: Encoded>(chunk: &[u8]) -> usize {
    let mut samples = HistogramIterator::<N>::new(chunk);
    let mut sample = Histogram::default();
    let mut count = 0;
    while let Some(next) = samples.next_into(&mut sample) {
        next.expect("our own chunk");
        count += 1;
    }
    count
}

/// Inputs to begin with: no sample; one without observations, of either kind.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    fn one<N: Encoded>() -> Vec<u8> {
        let sample = Histogram::default();
        let mut chunk = OpenHistogramChunk::<N>::begin(1_700_006_400_000, &sample, None);
        chunk.append(1_700_006_415_000, &sample);
        chunk.bytes().to_vec()
    }
    vec![vec![0, 0, 0], one::<Integer>(), one::<Float>()]
}
