//! Buckets of exponential histograms as those of native ones.

use crate::model::histogram::Span;
use crate::wire::histogram;
use crate::wire::otlp::points::Buckets;

/// Empty buckets that stand between two others rather than a span's end.
const GAP_MAX: i32 = 2;

/// Dense buckets as spans of Prometheus', where 2^`down` become one. Its buckets are counted by
/// their upper bounds, OTLP's by their lower ones: hence one more.
pub(super) fn to_spans(buckets: &Buckets, down: i32) -> histogram::Buckets {
    // A shift by more bits would leave the sign, too.
    let down = down.min(31);
    let index = |i: usize| {
        let i = i32::try_from(i).unwrap_or(i32::MAX);
        (buckets.offset.wrapping_add(i) >> down).wrapping_add(1)
    };
    let mut spans = SpanWriter::default();
    let Some((first, others)) = buckets.counts.split_first() else { return spans.made };
    let (mut at, mut count) = (index(0), *first);
    spans.begin(at);
    for (i, more) in others.iter().enumerate() {
        let next = index(i + 1);
        if next == at {
            count = count.wrapping_add(*more);
            continue;
        }
        // Empty ones are a gap.
        if count != 0 {
            spans.push(at, count);
        }
        (at, count) = (next, *more);
    }
    spans.push(at, count);
    spans.made
}

#[derive(Default)]
struct SpanWriter {
    made: histogram::Buckets,
    /// Behind the last bucket.
    end: i32,
    count: u64,
}

impl SpanWriter {
    fn begin(&mut self, at: i32) {
        self.made.spans.push(Span { offset: at, length: 0 });
        self.end = at;
    }

    /// Appends a bucket; a small gap before it is filled with empty ones.
    fn push(&mut self, at: i32, count: u64) {
        let gap = at.wrapping_sub(self.end);
        if gap > GAP_MAX {
            self.made.spans.push(Span { offset: gap, length: 0 });
        } else {
            (0..gap).for_each(|_| self.push_count(0));
        }
        self.push_count(count);
        self.end = at.wrapping_add(1);
    }

    fn push_count(&mut self, count: u64) {
        if let Some(span) = self.made.spans.last_mut() {
            span.length += 1;
        }
        self.made.deltas.push(count.wrapping_sub(self.count).cast_signed());
        self.count = count;
    }
}
