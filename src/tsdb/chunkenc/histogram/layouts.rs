//! Layouts of histograms: how a chunk says its own, and how two are made one.
//!
//! ```text
//! zero threshold 8 bits: 0 none | e = 1 ..= 254 for 2^(e-244) | 255 + 64 bits
//! schema signed varbit | positive spans | negative spans | custom bounds, if the schema says so
//!
//! spans:   count unsigned varbit | (length unsigned varbit | offset signed varbit)*
//! bounds:  count unsigned varbit | (thousandths + 1 unsigned varbit  or  0 + 64 bits)*
//! ```

use crate::model::histogram::{Layout, Numbers, Span, bucket_indices};
use crate::tsdb::chunkenc::bits::{BitReader, BitWriter};
use crate::tsdb::chunkenc::varbit::{push_signed, push_unsigned, read_signed, read_unsigned};

pub(super) fn push_layout(bits: &mut BitWriter, layout: &Layout) {
    push_zero_threshold(bits, layout.zero_threshold);
    push_signed(bits, layout.schema.into());
    for spans in [&layout.positive_spans, &layout.negative_spans] {
        push_unsigned(bits, spans.len() as u64);
        for span in spans {
            push_unsigned(bits, span.length.into());
            push_signed(bits, span.offset.into());
        }
    }
    if layout.is_custom() {
        push_unsigned(bits, layout.custom_bounds.len() as u64);
        layout.custom_bounds.iter().for_each(|bound| push_bound(bits, *bound));
    }
}

/// `None` where the stream ends before.
pub(super) fn read_layout(bits: &mut BitReader<'_>) -> Option<Layout> {
    let zero_threshold = read_zero_threshold(bits)?;
    let schema = read_signed(bits)? as i32;
    let (positive_spans, negative_spans) = (read_spans(bits)?, read_spans(bits)?);
    let mut layout = Layout {
        schema,
        zero_threshold,
        positive_spans,
        negative_spans,
        custom_bounds: Vec::new(),
    };
    if layout.is_custom() {
        for _ in 0..read_unsigned(bits)? {
            layout.custom_bounds.push(read_bound(bits)?);
        }
    }
    Some(layout)
}

fn read_spans(bits: &mut BitReader<'_>) -> Option<Vec<Span>> {
    // Each takes bits of its own, so that no count is believed.
    let mut spans = Vec::new();
    for _ in 0..read_unsigned(bits)? {
        let length = read_unsigned(bits)? as u32;
        spans.push(Span { offset: read_signed(bits)? as i32, length });
    }
    Some(spans)
}

/// Exponents of a power of two that is one byte, and what is added to them there.
const EXPONENTS: std::ops::RangeInclusive<i32> = -243..=10;
const EXPONENT_SHIFT: i32 = 244;
const RAW_THRESHOLD: u64 = 255;

fn push_zero_threshold(bits: &mut BitWriter, threshold: f64) {
    let raw = threshold.to_bits();
    let exponent = (raw >> 52) as i32 - 1023;
    let is_power_of_two = threshold > 0.0 && raw & ((1 << 52) - 1) == 0;
    if threshold == 0.0 {
        bits.push(0, 8);
    } else if is_power_of_two && EXPONENTS.contains(&exponent) {
        bits.push((exponent + EXPONENT_SHIFT) as u128, 8);
    } else {
        bits.push(RAW_THRESHOLD.into(), 8);
        bits.push(raw.into(), 64);
    }
}

fn read_zero_threshold(bits: &mut BitReader<'_>) -> Option<f64> {
    let raw = match bits.read_bits(8)? {
        0 => 0,
        RAW_THRESHOLD => bits.read_bits(64)?,
        exponent => ((exponent as i32 - EXPONENT_SHIFT + 1023) as u64) << 52,
    };
    Some(f64::from_bits(raw))
}

/// The largest number of thousandths that is written as such: four bytes hold it.
const THOUSANDTHS_MAX: f64 = 33_554_430.0;

fn push_bound(bits: &mut BitWriter, bound: f64) {
    let thousandths = bound * 1000.0;
    let is_whole = thousandths.round() / 1000.0 == bound;
    if (0.0..=THOUSANDTHS_MAX).contains(&thousandths) && is_whole {
        push_unsigned(bits, thousandths.round() as u64 + 1);
    } else {
        bits.push(0, 1);
        bits.push(bound.to_bits().into(), 64);
    }
}

fn read_bound(bits: &mut BitReader<'_>) -> Option<f64> {
    Some(match read_unsigned(bits)? {
        0 => f64::from_bits(bits.read_bits(64)?),
        thousandths => (thousandths - 1) as f64 / 1000.0,
    })
}

/// Buckets that are missing before another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Insert {
    /// The place of that one.
    place: usize,
    count: usize,
}

/// What makes two lists of buckets one.
#[derive(Debug, Default)]
pub(super) struct Union {
    /// Empty buckets that the first list lacks.
    pub(super) into_first: Vec<Insert>,
    pub(super) into_second: Vec<Insert>,
    /// Spans of all buckets, as few as possible.
    pub(super) spans: Vec<Span>,
}

/// The buckets of some spans, one by one, and which others are missing between them.
struct Side<I: Iterator> {
    buckets: I,
    /// Index and observations of the bucket at `place`.
    bucket: Option<I::Item>,
    place: usize,
    inserts: Vec<Insert>,
}

impl<I: Iterator> Side<I> {
    fn new(mut buckets: I) -> Side<I> {
        let bucket = buckets.next();
        Side { buckets, bucket, place: 0, inserts: Vec::new() }
    }

    /// Goes beyond a bucket that it has, or that it lacks.
    fn pass(&mut self, has_it: bool) {
        if has_it {
            self.bucket = self.buckets.next();
            self.place += 1;
            return;
        }
        match self.inserts.last_mut().filter(|insert| insert.place == self.place) {
            Some(insert) => insert.count += 1,
            None => self.inserts.push(Insert { place: self.place, count: 1 }),
        }
    }
}

/// Buckets of some spans: index and observations.
pub(super) fn buckets<'b, N: Numbers + 'b>(
    spans: &'b [Span],
    kept: impl Iterator<Item = N::Bucket> + 'b,
) -> impl Iterator<Item = (i64, N::Bucket)> + 'b {
    let absolute = kept.scan(N::Bucket::default(), |before, bucket| {
        *before = N::absolute(*before, bucket);
        Some(*before)
    });
    bucket_indices(spans).zip(absolute)
}

/// Makes one of two lists. `None` if counts only rise and a bucket has fewer observations in the
/// second one.
pub(super) fn union<B: Copy + Default + PartialOrd>(
    first: impl Iterator<Item = (i64, B)>,
    second: impl Iterator<Item = (i64, B)>,
    only_rises: bool,
) -> Option<Union> {
    let (mut first, mut second) = (Side::new(first), Side::new(second));
    let (mut spans, mut end) = (Vec::new(), 0);
    loop {
        let indices = (first.bucket.map(|(i, _)| i), second.bucket.map(|(j, _)| j));
        let (index, is_in_first, is_in_second) = match indices {
            (None, None) => break,
            (Some(i), Some(j)) => (i.min(j), i <= j, j <= i),
            (Some(i), None) => (i, true, false),
            (None, Some(j)) => (j, false, true),
        };
        let has_fallen = match (first.bucket, second.bucket.filter(|_| is_in_second)) {
            (Some((_, count)), Some((_, later))) => is_in_first && count > later,
            (Some((_, count)), None) => count != B::default(),
            (None, _) => false,
        };
        if only_rises && has_fallen {
            return None;
        }
        first.pass(is_in_first);
        second.pass(is_in_second);
        add_bucket(&mut spans, &mut end, index);
    }
    Some(Union { into_first: first.inserts, into_second: second.inserts, spans })
}

fn add_bucket(spans: &mut Vec<Span>, end: &mut i64, index: i64) {
    match spans.last_mut().filter(|_| index == *end) {
        Some(span) => span.length += 1,
        None => spans.push(Span { offset: index.wrapping_sub(*end) as i32, length: 1 }),
    }
    *end = index.wrapping_add(1);
}

/// The buckets with empty ones put in.
pub(super) fn insert<N: Numbers>(kept: &[N::Bucket], inserts: &[Insert]) -> Vec<N::Bucket> {
    let empty = N::Bucket::default();
    let mut wider = Vec::with_capacity(kept.len() + inserts.iter().map(|i| i.count).sum::<usize>());
    let (mut before, mut absolute) = (empty, empty);
    let mut inserts = inserts.iter().peekable();
    for place in 0..=kept.len() {
        if let Some(insert) = inserts.next_if(|insert| insert.place == place) {
            wider.push(N::kept(before, empty));
            wider.extend((1..insert.count).map(|_| N::kept(empty, empty)));
            before = empty;
        }
        if let Some(bucket) = kept.get(place) {
            absolute = N::absolute(absolute, *bucket);
            wider.push(N::kept(before, absolute));
            before = absolute;
        }
    }
    wider
}
