//! Native histograms as numbers, to be compared with what somebody else tells of the same.

use std::hash::{DefaultHasher, Hash, Hasher};

use ringest::model::STALE_NAN_BITS;
use ringest::model::histogram::{AnyHistogram, Histogram, Layout, Numbers, Span, bucket_indices};

/// A number of what a histogram tells, whatever empty buckets it names. That of a staleness marker is
/// that of floats: a Prometheus that starts again may have made it one.
pub(crate) fn digest(histogram: &AnyHistogram) -> u64 {
    fn told<N: Numbers>(histogram: &Histogram<N>) -> String {
        let observed = |spans: &[Span], kept: &[N::Bucket]| {
            let mut before = N::Bucket::default();
            let absolute = kept.iter().map(|bucket| {
                before = N::absolute(before, *bucket);
                before
            });
            let buckets = bucket_indices(spans).zip(absolute);
            buckets.filter(|(_, count)| *count != N::Bucket::default()).collect::<Vec<_>>()
        };
        let Histogram { layout, count, zero_count, sum, positive, negative, .. } = histogram;
        let Layout { schema, zero_threshold, custom_bounds, .. } = layout;
        let positive = observed(&layout.positive_spans, positive);
        let negative = observed(&layout.negative_spans, negative);
        let sum = sum.to_bits();
        format!(
            "{schema} {zero_threshold:?} {custom_bounds:?} {count:?} {zero_count:?} {sum:x} \
             {positive:?} {negative:?}"
        )
    }
    let text = match histogram {
        _ if histogram.is_stale() => return STALE_NAN_BITS,
        AnyHistogram::Integer(histogram) => format!("h {}", told(histogram)),
        AnyHistogram::Float(histogram) => format!("fh {}", told(histogram)),
    };
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
