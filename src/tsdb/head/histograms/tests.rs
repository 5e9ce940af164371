//! Bounds that only what is absurd comes to. Where chunks are cut otherwise is held against
//! Prometheus in `head::tests`.

use super::*;
use crate::model::histogram::{Layout, Span};
use crate::tsdb::chunkenc::samples::{SampleIterator, Value};

const RANGE: i64 = 7_200_000;

/// Of `length` buckets from `offset` on, each with as many observations.
fn histogram(offset: i32, length: u32, each: i64) -> Histogram<Integer> {
    let mut positive = vec![0; length as usize];
    if let Some(first) = positive.first_mut() {
        *first = each;
    }
    Histogram {
        layout: Layout { positive_spans: vec![Span { offset, length }], ..Layout::default() },
        count: length as u64 * each as u64,
        positive,
        ..Histogram::default()
    }
}

/// What becomes of samples a second apart: full chunks, and the open one.
fn chunks_of(samples: &[AnyHistogram]) -> Vec<Encoded> {
    let mut next_at = range_end(0, RANGE);
    let mut tail = Tail::begin(0, &samples[0]);
    let mut chunks = Vec::new();
    for (i, sample) in (1..).zip(&samples[1..]) {
        if let Appended::Began(full) = tail.append(i * 1000, sample, &mut next_at, RANGE) {
            chunks.extend(full);
        }
        let (_, open) = tail.open_chunk().unwrap();
        assert!(open.len() <= CHUNK_BYTES_MAX, "{} bytes", open.len());
        if let TailChunk::Integer(chunk) = &tail.chunk {
            assert!(chunk.bucket_count() <= 2 * BUCKETS_MAX, "{} buckets", chunk.bucket_count());
        }
        assert!(tail.last().tells_the_same(sample));
    }
    chunks.extend(tail.finish());
    chunks
}

fn assert_kept(samples: &[AnyHistogram], chunks: &[Encoded]) {
    let stored = chunks.iter().flat_map(|chunk| SampleIterator::new(chunk.encoding, &chunk.bytes));
    let stored: Vec<_> = stored.map(Result::unwrap).collect();
    assert_eq!(stored.len(), samples.len());
    for (i, ((t, value), sample)) in stored.iter().zip(samples).enumerate() {
        let Value::Histogram(stored) = value else { panic!("a float") };
        assert!(*t == i as i64 * 1000 && stored.tells_the_same(sample), "sample {i}");
    }
}

/// As many buckets as there may be, and others in each sample: none has any observations, so that a
/// chunk could take them all.
#[test]
fn buckets_of_a_chunk_do_not_grow_without_end() {
    let length = BUCKETS_MAX as u32;
    let samples: Vec<_> =
        (0..12).map(|i| AnyHistogram::Integer(histogram(i * length as i32, length, 0))).collect();
    let chunks = chunks_of(&samples);
    assert!(chunks.len() > 4, "{} chunks", chunks.len());
    assert_kept(&samples, &chunks);
}

/// Floats that differ in every bit make a chunk of ten samples longer than any is to be.
#[test]
fn a_chunk_stays_within_what_a_file_takes() {
    let mut random = 7u64;
    let mut bucket = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        f64::from_bits(random >> 2 | 1 << 60)
    };
    let mut sample = || {
        let positive: Vec<f64> = (0..BUCKETS_MAX).map(|_| bucket()).collect();
        let spans = vec![Span { offset: 0, length: BUCKETS_MAX as u32 }];
        AnyHistogram::Float(Histogram {
            reset_hint: crate::model::histogram::ResetHint::Gauge,
            layout: Layout { positive_spans: spans, ..Layout::default() },
            count: 1.0,
            positive,
            ..Histogram::default()
        })
    };
    let samples: Vec<_> = (0..15).map(|_| sample()).collect();
    let chunks = chunks_of(&samples);
    assert!(chunks.len() > 1);
    assert_kept(&samples, &chunks);
}

/// A short chunk of very many samples, each of which would be written anew.
#[test]
fn many_samples_are_not_made_wide_at_once() {
    let narrow = || AnyHistogram::Integer(histogram(0, 1, 0));
    let mut samples: Vec<_> = (0..3000).map(|_| narrow()).collect();
    samples.push(AnyHistogram::Integer(histogram(0, BUCKETS_MAX as u32, 0)));
    let chunks = chunks_of(&samples);
    assert_kept(&samples, &chunks);
}
