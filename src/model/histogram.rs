//! Native histograms: the one type of a sample that is a histogram, on the wire, in the log and in
//! chunks. (Prometheus `model/histogram`)
//!
//! Buckets are named by spans: `offset` buckets are left out, then `length` follow. The index of an
//! exponential bucket says its bounds by the schema; that of a custom one is a place among bounds
//! that the histogram has itself. An integer histogram has each bucket as the difference to the one
//! before, a float histogram as it is.

mod check;
#[cfg(test)]
pub(crate) mod recorded;

pub use check::HistogramFault;

use crate::model::STALE_NAN_BITS;

/// The schema of histograms with bounds of their own.
pub const CUSTOM_BUCKETS_SCHEMA: i32 = -53;
/// Schemas whose bucket bounds are powers of 2^(2^-schema).
pub const EXPONENTIAL_SCHEMAS: std::ops::RangeInclusive<i32> = -4..=8;

/// Buckets that follow one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Buckets left out since the end of the span before; of the first span, the index of its first
    /// bucket.
    pub offset: i32,
    pub length: u32,
}

/// What a sender knows of counter resets; by Prometheus' numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetHint {
    #[default]
    Unknown,
    /// The counts begin anew with this sample.
    Reset,
    NotReset,
    /// Counts go up and down, and are never reset.
    Gauge,
}

/// The numbers of a histogram: [`Integer`] or [`Float`].
pub trait Numbers: Copy + PartialEq + std::fmt::Debug {
    /// How many observations there are.
    type Count: Copy + Default + PartialOrd + std::fmt::Debug;
    /// What is kept of a bucket, and how many observations one has.
    type Bucket: Copy + Default + PartialOrd + std::fmt::Debug;
    /// Whether the count is the sum of the buckets'. That of floats may be off by rounding.
    const COUNTS_ADD_UP: bool;

    /// Observations of a bucket, behind one that has `before`.
    fn absolute(before: Self::Bucket, bucket: Self::Bucket) -> Self::Bucket;
    /// Observations of a bucket as a count.
    fn as_count(bucket: Self::Bucket) -> Self::Count;
    fn sum(a: Self::Count, b: Self::Count) -> Self::Count;
    /// What is kept of a bucket of `absolute` observations, behind one that has `before`.
    fn kept(before: Self::Bucket, absolute: Self::Bucket) -> Self::Bucket;
    /// By which two are compared: what is not a number is the same as itself.
    fn count_bits(count: Self::Count) -> u64;
    fn bucket_bits(bucket: Self::Bucket) -> u64;
}

/// Counts are integers, buckets the differences to the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integer {}

/// Counts and buckets are floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {}

impl Numbers for Integer {
    type Count = u64;
    type Bucket = i64;
    const COUNTS_ADD_UP: bool = true;

    fn absolute(before: i64, bucket: i64) -> i64 {
        before.wrapping_add(bucket)
    }

    fn as_count(bucket: i64) -> u64 {
        bucket as u64
    }

    fn sum(a: u64, b: u64) -> u64 {
        a.wrapping_add(b)
    }

    fn kept(before: i64, absolute: i64) -> i64 {
        absolute.wrapping_sub(before)
    }

    fn count_bits(count: u64) -> u64 {
        count
    }

    fn bucket_bits(bucket: i64) -> u64 {
        bucket as u64
    }
}

impl Numbers for Float {
    type Count = f64;
    type Bucket = f64;
    const COUNTS_ADD_UP: bool = false;

    fn absolute(_: f64, bucket: f64) -> f64 {
        bucket
    }

    fn as_count(bucket: f64) -> f64 {
        bucket
    }

    fn sum(a: f64, b: f64) -> f64 {
        a + b
    }

    fn kept(_: f64, absolute: f64) -> f64 {
        absolute
    }

    fn count_bits(count: f64) -> u64 {
        count.to_bits()
    }

    fn bucket_bits(bucket: f64) -> u64 {
        bucket.to_bits()
    }
}

/// Which buckets a histogram has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    pub schema: i32,
    /// Observations up to this, either way from zero, are in the zero bucket.
    pub zero_threshold: f64,
    pub positive_spans: Vec<Span>,
    pub negative_spans: Vec<Span>,
    /// Upper bounds of custom buckets, rising; that of the last, +Inf, is not among them.
    pub custom_bounds: Vec<f64>,
}

impl Layout {
    pub fn is_custom(&self) -> bool {
        self.schema == CUSTOM_BUCKETS_SCHEMA
    }

    /// Whether custom bounds are the same, where there are any.
    pub fn has_custom_bounds_of(&self, other: &Layout) -> bool {
        !self.is_custom() || self.custom_bounds == other.custom_bounds
    }
}

/// A sample that is a histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram<N: Numbers> {
    pub reset_hint: ResetHint,
    pub layout: Layout,
    pub count: N::Count,
    pub zero_count: N::Count,
    pub sum: f64,
    /// As many as the spans name.
    pub positive: Vec<N::Bucket>,
    pub negative: Vec<N::Bucket>,
}

pub type IntegerHistogram = Histogram<Integer>;
pub type FloatHistogram = Histogram<Float>;

impl<N: Numbers> Default for Histogram<N> {
    fn default() -> Histogram<N> {
        Histogram {
            reset_hint: ResetHint::Unknown,
            layout: Layout::default(),
            count: N::Count::default(),
            zero_count: N::Count::default(),
            sum: 0.0,
            positive: Vec::new(),
            negative: Vec::new(),
        }
    }
}

impl<N: Numbers> Histogram<N> {
    /// A staleness marker.
    pub fn stale() -> Histogram<N> {
        Histogram { sum: f64::from_bits(STALE_NAN_BITS), ..Histogram::default() }
    }

    /// A staleness marker, of which nothing else counts.
    pub fn is_stale(&self) -> bool {
        is_stale(self.sum)
    }

    /// What it takes beside itself.
    pub fn heap_bytes(&self) -> usize {
        let Layout { positive_spans, negative_spans, custom_bounds, .. } = &self.layout;
        (positive_spans.capacity() + negative_spans.capacity()) * size_of::<Span>()
            + custom_bounds.capacity() * size_of::<f64>()
            + (self.positive.capacity() + self.negative.capacity()) * size_of::<N::Bucket>()
    }

    /// Buckets of both sides.
    pub fn bucket_count(&self) -> usize {
        self.positive.len() + self.negative.len()
    }

    /// Whether the spans name just the buckets that there are.
    pub fn has_buckets_of_spans(&self) -> bool {
        let names =
            |spans: &[Span], buckets: &[N::Bucket]| bucket_count(spans) == buckets.len() as u64;
        names(&self.layout.positive_spans, &self.positive)
            && names(&self.layout.negative_spans, &self.negative)
    }

    /// Whether it is too long to be stored: of buckets, spans or bounds there are more than
    /// [`BUCKETS_MAX`].
    pub fn is_too_long(&self) -> bool {
        let Layout { positive_spans, negative_spans, custom_bounds, .. } = &self.layout;
        let spans = positive_spans.len() + negative_spans.len();
        [self.bucket_count(), spans, custom_bounds.len()].into_iter().any(|len| len > BUCKETS_MAX)
    }

    /// Whether both tell of the same observations. A bucket without any may be left out, and what is
    /// known of resets counts for nothing: a chunk keeps neither as it came.
    pub fn tells_the_same(&self, other: &Histogram<N>) -> bool {
        if self.is_stale() || other.is_stale() {
            return self.is_stale() && other.is_stale();
        }
        let numbers = |one: &Histogram<N>| {
            let counts = [N::count_bits(one.count), N::count_bits(one.zero_count)];
            let floats = [one.sum, one.layout.zero_threshold].map(f64::to_bits);
            (one.layout.schema, counts, floats)
        };
        let (ours, theirs) = (&self.layout, &other.layout);
        numbers(self) == numbers(other)
            && ours.has_custom_bounds_of(theirs)
            && observed::<N>(&ours.positive_spans, &self.positive)
                .eq(observed::<N>(&theirs.positive_spans, &other.positive))
            && observed::<N>(&ours.negative_spans, &self.negative)
                .eq(observed::<N>(&theirs.negative_spans, &other.negative))
    }
}

/// Buckets that a histogram may have, and spans, and bounds of its own. Senders have some hundred at
/// most; a chunk of ten samples of so many is as long as a file of head chunks takes it.
pub const BUCKETS_MAX: usize = 10_000;

/// Index and observations of the buckets that have any, these as bits.
fn observed<N: Numbers>(spans: &[Span], kept: &[N::Bucket]) -> impl Iterator<Item = (i64, u64)> {
    let absolute = kept.iter().scan(N::Bucket::default(), |before, bucket| {
        *before = N::absolute(*before, *bucket);
        Some(N::bucket_bits(*before))
    });
    bucket_indices(spans).zip(absolute).filter(|(_, bits)| *bits != 0)
}

pub fn is_stale(sum: f64) -> bool {
    sum.to_bits() == STALE_NAN_BITS
}

/// A sample that is a histogram of either kind.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyHistogram {
    Integer(IntegerHistogram),
    Float(FloatHistogram),
}

impl AnyHistogram {
    pub fn is_stale(&self) -> bool {
        match self {
            AnyHistogram::Integer(histogram) => histogram.is_stale(),
            AnyHistogram::Float(histogram) => histogram.is_stale(),
        }
    }

    /// See [`Histogram::heap_bytes`].
    pub fn heap_bytes(&self) -> usize {
        match self {
            AnyHistogram::Integer(histogram) => histogram.heap_bytes(),
            AnyHistogram::Float(histogram) => histogram.heap_bytes(),
        }
    }

    /// See [`Histogram::tells_the_same`]; those of different kinds never do.
    pub fn tells_the_same(&self, other: &AnyHistogram) -> bool {
        match (self, other) {
            (AnyHistogram::Integer(one), AnyHistogram::Integer(other)) => one.tells_the_same(other),
            (AnyHistogram::Float(one), AnyHistogram::Float(other)) => one.tells_the_same(other),
            _ => false,
        }
    }

    /// See [`Histogram::check`]. Fails also if it [is too long](Histogram::is_too_long).
    pub fn check(&self) -> Result<(), HistogramFault> {
        let is_too_long = match self {
            AnyHistogram::Integer(histogram) => histogram.is_too_long(),
            AnyHistogram::Float(histogram) => histogram.is_too_long(),
        };
        match self {
            _ if is_too_long => Err(HistogramFault::TooLong { max: BUCKETS_MAX }),
            AnyHistogram::Integer(histogram) => histogram.check(),
            AnyHistogram::Float(histogram) => histogram.check(),
        }
    }
}

/// Buckets that spans name.
pub fn bucket_count(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.length)).sum()
}

/// The indices of the buckets that spans name, in their order.
pub fn bucket_indices(spans: &[Span]) -> impl Iterator<Item = i64> {
    let mut end = 0i64;
    spans.iter().flat_map(move |span| {
        let start = end.wrapping_add(span.offset.into());
        end = start.wrapping_add(span.length.into());
        start..end
    })
}
