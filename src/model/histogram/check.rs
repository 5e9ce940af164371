//! What a histogram must be to be stored. (Prometheus `model/histogram`, `Validate`)

use std::fmt::Debug;

use crate::model::histogram::{EXPONENTIAL_SCHEMAS, Histogram, Numbers, Span, bucket_count};

/// Why a histogram is none. Numbers are counted from one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistogramFault {
    #[error("schema {0} is neither -4 to 8 nor -53")]
    Schema(i32),
    #[error("{side} span {number} has the negative offset {offset}")]
    NegativeOffset { side: &'static str, number: usize, offset: i32 },
    #[error("{side} spans name {named} buckets, but there are {buckets}")]
    BucketsOfSpans { side: &'static str, named: u64, buckets: usize },
    #[error("{side} bucket {number} has {count} observations")]
    NegativeBucket { side: &'static str, number: usize, count: String },
    #[error("the zero bucket has {0} observations")]
    NegativeZeroCount(String),
    #[error("the count is {0}")]
    NegativeCount(String),
    #[error("the count is {count}, but buckets have {buckets} observations")]
    Count { count: String, buckets: String },
    #[error("exponential buckets have bounds of their own")]
    BoundsOfExponential,
    #[error("custom bound {0} is not a number")]
    BoundNaN(usize),
    #[error("custom bound {0} is not above the one before")]
    BoundsNotRising(usize),
    #[error("the last custom bound is +Inf")]
    InfiniteBound,
    #[error("spans reach over {named} custom buckets, but {bounds} bounds make {bounds} and one")]
    TooFewBounds { named: u64, bounds: usize },
    #[error("custom buckets have {0}")]
    NotOfCustom(&'static str),
    #[error("more than {max} buckets, spans or custom bounds")]
    TooLong { max: usize },
}

const POSITIVE: &str = "positive";
const NEGATIVE: &str = "negative";

impl<N: Numbers> Histogram<N> {
    /// Fails with the first thing that is wrong.
    pub fn check(&self) -> Result<(), HistogramFault> {
        let layout = &self.layout;
        if layout.is_custom() {
            self.check_custom()?;
        } else if EXPONENTIAL_SCHEMAS.contains(&layout.schema) {
            check_spans(POSITIVE, &layout.positive_spans, self.positive.len())?;
            check_spans(NEGATIVE, &layout.negative_spans, self.negative.len())?;
            if !layout.custom_bounds.is_empty() {
                return Err(HistogramFault::BoundsOfExponential);
            }
        } else {
            return Err(HistogramFault::Schema(layout.schema));
        }
        let nothing = N::Count::default();
        let negative = observations::<N>(NEGATIVE, &self.negative)?;
        if self.zero_count < nothing {
            return Err(HistogramFault::NegativeZeroCount(text(self.zero_count)));
        }
        if self.count < nothing {
            return Err(HistogramFault::NegativeCount(text(self.count)));
        }
        let positive = observations::<N>(POSITIVE, &self.positive)?;
        let buckets = N::sum(N::sum(negative, positive), self.zero_count);
        // What is not a number is counted, and in no bucket.
        let adds_up = match self.sum.is_nan() {
            true => buckets <= self.count,
            false => buckets == self.count,
        };
        match adds_up || !N::COUNTS_ADD_UP {
            true => Ok(()),
            false => Err(HistogramFault::Count { count: text(self.count), buckets: text(buckets) }),
        }
    }

    fn check_custom(&self) -> Result<(), HistogramFault> {
        let layout = &self.layout;
        let bounds = &layout.custom_bounds;
        if let Some(at) = bounds.iter().position(|bound| bound.is_nan()) {
            return Err(HistogramFault::BoundNaN(at + 1));
        }
        if let Some(at) = bounds.windows(2).position(|pair| pair[1] <= pair[0]) {
            return Err(HistogramFault::BoundsNotRising(at + 2));
        }
        if bounds.last() == Some(&f64::INFINITY) {
            return Err(HistogramFault::InfiniteBound);
        }
        let spans = &layout.positive_spans;
        if let Some(first) = spans.first().filter(|span| span.offset < 0) {
            let offset = first.offset;
            return Err(HistogramFault::NegativeOffset { side: POSITIVE, number: 1, offset });
        }
        check_spans(POSITIVE, spans, self.positive.len())?;
        let left_out = spans.iter().map(|span| u64::from(span.offset.unsigned_abs()));
        let named = bucket_count(spans) + left_out.sum::<u64>();
        if named > bounds.len() as u64 + 1 {
            return Err(HistogramFault::TooFewBounds { named, bounds: bounds.len() });
        }
        let others = [
            (self.zero_count != N::Count::default(), "a zero bucket"),
            (layout.zero_threshold != 0.0, "a zero threshold"),
            (!layout.negative_spans.is_empty(), "negative spans"),
            (!self.negative.is_empty(), "negative buckets"),
        ];
        match others.into_iter().find(|(has_it, _)| *has_it) {
            Some((_, what)) => Err(HistogramFault::NotOfCustom(what)),
            None => Ok(()),
        }
    }
}

fn check_spans(side: &'static str, spans: &[Span], buckets: usize) -> Result<(), HistogramFault> {
    let mut later = spans.iter().enumerate().skip(1);
    if let Some((at, span)) = later.find(|(_, span)| span.offset < 0) {
        let offset = span.offset;
        return Err(HistogramFault::NegativeOffset { side, number: at + 1, offset });
    }
    match bucket_count(spans) {
        named if named != buckets as u64 => {
            Err(HistogramFault::BucketsOfSpans { side, named, buckets })
        }
        _ => Ok(()),
    }
}

/// How many all buckets have.
fn observations<N: Numbers>(
    side: &'static str,
    kept: &[N::Bucket],
) -> Result<N::Count, HistogramFault> {
    let (mut absolute, mut sum) = (N::Bucket::default(), N::Count::default());
    for (at, bucket) in kept.iter().enumerate() {
        absolute = N::absolute(absolute, *bucket);
        if absolute < N::Bucket::default() {
            let count = text(absolute);
            return Err(HistogramFault::NegativeBucket { side, number: at + 1, count });
        }
        sum = N::sum(sum, N::as_count(absolute));
    }
    Ok(sum)
}

fn text(number: impl Debug) -> String {
    format!("{number:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::histogram::{FloatHistogram, IntegerHistogram, Layout};

    fn spans(spans: &[(i32, u32)]) -> Vec<Span> {
        spans.iter().map(|&(offset, length)| Span { offset, length }).collect()
    }

    fn exponential() -> IntegerHistogram {
        IntegerHistogram {
            layout: Layout {
                schema: 1,
                positive_spans: spans(&[(-2, 1), (3, 2)]),
                negative_spans: spans(&[(0, 1)]),
                ..Layout::default()
            },
            count: 1 + 3 + 2 + 4 + 5,
            zero_count: 5,
            positive: vec![1, 2, -1],
            negative: vec![4],
            ..IntegerHistogram::default()
        }
    }

    fn custom() -> FloatHistogram {
        FloatHistogram {
            layout: Layout {
                schema: -53,
                positive_spans: spans(&[(1, 1), (0, 1)]),
                custom_bounds: vec![-1.5, 2.0],
                ..Layout::default()
            },
            positive: vec![1.0, 2.5],
            ..FloatHistogram::default()
        }
    }

    #[test]
    fn what_is_consistent_is_taken() {
        assert_eq!(exponential().check(), Ok(()));
        assert_eq!(custom().check(), Ok(()));
        let with_nan = IntegerHistogram { sum: f64::NAN, count: 20, ..exponential() };
        assert_eq!(with_nan.check(), Ok(()));
        assert_eq!(IntegerHistogram::default().check(), Ok(()));
    }

    #[test]
    fn every_contradiction_is_named() {
        let integer = |change: fn(&mut IntegerHistogram)| {
            let mut histogram = exponential();
            change(&mut histogram);
            histogram.check().unwrap_err().to_string()
        };
        let float = |change: fn(&mut FloatHistogram)| {
            let mut histogram = custom();
            change(&mut histogram);
            histogram.check().unwrap_err().to_string()
        };
        assert_eq!(integer(|h| h.layout.schema = 9), "schema 9 is neither -4 to 8 nor -53");
        assert_eq!(
            integer(|h| h.layout.positive_spans[1].offset = -1),
            "positive span 2 has the negative offset -1"
        );
        assert_eq!(
            integer(|h| h.negative.push(1)),
            "negative spans name 1 buckets, but there are 2"
        );
        assert_eq!(integer(|h| h.positive[2] = -4), "positive bucket 3 has -1 observations");
        assert_eq!(integer(|h| h.count = 14), "the count is 14, but buckets have 15 observations");
        assert_eq!(
            integer(|h| (h.count, h.sum) = (14, f64::NAN)),
            "the count is 14, but buckets have 15 observations"
        );
        assert_eq!(
            integer(|h| h.layout.custom_bounds = vec![1.0]),
            "exponential buckets have bounds of their own"
        );
        assert_eq!(float(|h| h.count = -1.0), "the count is -1.0");
        assert_eq!(float(|h| h.zero_count = -0.5), "custom buckets have a zero bucket");
        assert_eq!(
            float(|h| (h.layout = Layout::default(), h.positive.clear(), h.zero_count = -0.5).2),
            "the zero bucket has -0.5 observations"
        );
        assert_eq!(
            float(|h| h.layout.custom_bounds[1] = f64::NAN),
            "custom bound 2 is not a number"
        );
        assert_eq!(
            float(|h| h.layout.custom_bounds[1] = -1.5),
            "custom bound 2 is not above the one before"
        );
        assert_eq!(
            float(|h| h.layout.custom_bounds[1] = f64::INFINITY),
            "the last custom bound is +Inf"
        );
        assert_eq!(
            float(|h| h.layout.positive_spans[0].offset = 2),
            "spans reach over 4 custom buckets, but 2 bounds make 2 and one"
        );
        assert_eq!(
            float(|h| h.layout.positive_spans[0].offset = -1),
            "positive span 1 has the negative offset -1"
        );
        assert_eq!(
            float(|h| h.layout.zero_threshold = 0.1),
            "custom buckets have a zero threshold"
        );
    }

    /// A length that no list could have is compared, never believed.
    #[test]
    fn spans_of_no_end_are_refused() {
        let mut histogram = exponential();
        histogram.layout.positive_spans = spans(&[(0, u32::MAX); 100]);
        assert!(matches!(histogram.check(), Err(HistogramFault::BucketsOfSpans { .. })));
    }
}
