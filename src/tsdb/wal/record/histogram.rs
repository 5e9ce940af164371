//! Native histograms in records.
//!
//! ```text
//! histogram: reset hint byte, schema varint, zero threshold be64, zero count, count, sum be64,
//!            positive spans, negative spans, positive buckets, negative buckets,
//!            custom values if the schema is -53
//! spans:     count uvarint, ( offset varint, length uvarint )*
//! ```
//!
//! Counts are uvarints and buckets varints in an integer histogram, be64 floats in a float one.

use super::cursor::Cursor;
use super::{
    CUSTOM_FLOAT_HISTOGRAMS, CUSTOM_HISTOGRAMS, FLOAT_HISTOGRAMS, HISTOGRAMS, Numbering, Steps,
};
use crate::model::histogram::{
    CUSTOM_BUCKETS_SCHEMA, Float, Histogram, Integer, Numbers, ResetHint, Span,
};
use crate::model::varint::{push_varint, zigzag};
use crate::model::{HeadSeriesRef, Timestamp};

/// A histogram sample whose parts are walked where they lie.
#[derive(Clone, Debug)]
pub struct HistogramSample<'a> {
    pub series_ref: HeadSeriesRef,
    pub t: Timestamp,
    pub start: Option<Timestamp>,
    pub histogram: HistogramView<'a>,
}

/// Floats are given as their bits. Of an integer histogram the counts are integers, and the
/// buckets differences, each to the one before.
#[derive(Clone, Debug)]
pub struct HistogramView<'a> {
    /// 0 unknown, 1 reset, 2 not reset, 3 gauge.
    pub reset_hint: u8,
    /// May be one that this version does not know.
    pub schema: i32,
    pub zero_threshold_bits: u64,
    pub zero_count: u64,
    pub count: u64,
    pub sum_bits: u64,
    is_float: bool,
    positive_spans: Run<'a>,
    negative_spans: Run<'a>,
    positive_buckets: Run<'a>,
    negative_buckets: Run<'a>,
    custom_values: Run<'a>,
}

/// A counted run of numbers, checked to be whole.
#[derive(Clone, Debug)]
struct Run<'a> {
    cursor: Cursor<'a>,
}

/// How the numbers of one kind of histogram are logged.
pub trait Logged: Numbers {
    /// Types of the records of exponential and of custom buckets.
    const RECORD_TYPES: (u8, u8);
    fn push_count(out: &mut Vec<u8>, count: Self::Count);
    fn push_bucket(out: &mut Vec<u8>, bucket: Self::Bucket);
    /// From what a [`HistogramView`] has.
    fn count_of(bits: u64) -> Self::Count;
    fn bucket_of(bits: u64) -> Self::Bucket;
}

impl Logged for Integer {
    const RECORD_TYPES: (u8, u8) = (HISTOGRAMS, CUSTOM_HISTOGRAMS);

    fn push_count(out: &mut Vec<u8>, count: u64) {
        push_varint(out, count);
    }

    fn push_bucket(out: &mut Vec<u8>, bucket: i64) {
        push_varint(out, zigzag(bucket));
    }

    fn count_of(bits: u64) -> u64 {
        bits
    }

    fn bucket_of(bits: u64) -> i64 {
        bits as i64
    }
}

impl Logged for Float {
    const RECORD_TYPES: (u8, u8) = (FLOAT_HISTOGRAMS, CUSTOM_FLOAT_HISTOGRAMS);

    fn push_count(out: &mut Vec<u8>, count: f64) {
        push_float(out, count);
    }

    fn push_bucket(out: &mut Vec<u8>, bucket: f64) {
        push_float(out, bucket);
    }

    fn count_of(bits: u64) -> f64 {
        f64::from_bits(bits)
    }

    fn bucket_of(bits: u64) -> f64 {
        f64::from_bits(bits)
    }
}

/// Appends histograms as records: those of exponential buckets to one, those of custom buckets to the
/// other. For none of them nothing is appended.
pub fn encode_histograms<'h, N: Logged + 'h>(
    exponential: &mut Vec<u8>,
    custom: &mut Vec<u8>,
    samples: impl IntoIterator<Item = (HeadSeriesRef, Timestamp, &'h Histogram<N>)>,
) {
    // As Prometheus does it, the first sample is the base of a record that does not have it, too.
    let (mut first, mut first_custom) = (None, None);
    let (mut has_exponential, start) = (false, exponential.len());
    for (series_ref, t, histogram) in samples {
        let first = *first.get_or_insert_with(|| {
            begin(exponential, N::RECORD_TYPES.0, series_ref, t);
            (series_ref, t)
        });
        let (out, base) = match histogram.layout.is_custom() {
            true => {
                let base = *first_custom.get_or_insert_with(|| {
                    begin(custom, N::RECORD_TYPES.1, series_ref, t);
                    (series_ref, t)
                });
                (&mut *custom, base)
            }
            false => {
                has_exponential = true;
                (&mut *exponential, first)
            }
        };
        push_varint(out, zigzag(series_ref.0.wrapping_sub(base.0.0) as i64));
        push_varint(out, zigzag(t.wrapping_sub(base.1)));
        push_histogram(out, histogram);
    }
    if !has_exponential {
        exponential.truncate(start);
    }
}

fn begin(out: &mut Vec<u8>, record_type: u8, series_ref: HeadSeriesRef, t: Timestamp) {
    out.push(record_type);
    out.extend_from_slice(&series_ref.0.to_be_bytes());
    out.extend_from_slice(&t.to_be_bytes());
}

fn push_histogram<N: Logged>(out: &mut Vec<u8>, histogram: &Histogram<N>) {
    let layout = &histogram.layout;
    out.push(histogram.reset_hint as u8);
    push_varint(out, zigzag(layout.schema.into()));
    push_float(out, layout.zero_threshold);
    N::push_count(out, histogram.zero_count);
    N::push_count(out, histogram.count);
    push_float(out, histogram.sum);
    for spans in [&layout.positive_spans, &layout.negative_spans] {
        push_varint(out, spans.len() as u64);
        for Span { offset, length } in spans {
            push_varint(out, zigzag((*offset).into()));
            push_varint(out, (*length).into());
        }
    }
    for buckets in [&histogram.positive, &histogram.negative] {
        push_varint(out, buckets.len() as u64);
        buckets.iter().for_each(|bucket| N::push_bucket(out, *bucket));
    }
    if layout.is_custom() {
        push_varint(out, layout.custom_bounds.len() as u64);
        layout.custom_bounds.iter().for_each(|bound| push_float(out, *bound));
    }
}

fn push_float(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_bits().to_be_bytes());
}

impl<'a> HistogramView<'a> {
    /// Puts it into `histogram`, in place of what is there. The caller upholds that it is of this kind.
    pub fn read_into<N: Logged>(&self, histogram: &mut Histogram<N>) {
        let fill_spans = |spans: &mut Vec<Span>, run: &Run<'a>| {
            spans.clear();
            let of = |(offset, length)| Span { offset, length };
            spans.extend(run.clone().spans().map(of));
        };
        let layout = &mut histogram.layout;
        layout.schema = self.schema;
        layout.zero_threshold = f64::from_bits(self.zero_threshold_bits);
        fill_spans(&mut layout.positive_spans, &self.positive_spans);
        fill_spans(&mut layout.negative_spans, &self.negative_spans);
        layout.custom_bounds.clear();
        layout.custom_bounds.extend(self.custom_values().map(f64::from_bits));
        histogram.reset_hint = match self.reset_hint {
            1 => ResetHint::Reset,
            2 => ResetHint::NotReset,
            3 => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        };
        histogram.count = N::count_of(self.count);
        histogram.zero_count = N::count_of(self.zero_count);
        histogram.sum = f64::from_bits(self.sum_bits);
        histogram.positive.clear();
        histogram.positive.extend(self.positive_buckets().map(N::bucket_of));
        histogram.negative.clear();
        histogram.negative.extend(self.negative_buckets().map(N::bucket_of));
    }

    /// Offset and length of each span of used buckets.
    pub fn positive_spans(&self) -> impl Iterator<Item = (i32, u32)> + use<'a> {
        self.positive_spans.clone().spans()
    }

    pub fn negative_spans(&self) -> impl Iterator<Item = (i32, u32)> + use<'a> {
        self.negative_spans.clone().spans()
    }

    /// Of an integer histogram `i64`s as bits, of a float one the floats' bits.
    pub fn positive_buckets(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.positive_buckets.clone().buckets(self.is_float)
    }

    pub fn negative_buckets(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.negative_buckets.clone().buckets(self.is_float)
    }

    /// Upper bounds of custom buckets, as floats' bits.
    pub fn custom_values(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.custom_values.clone().buckets(true)
    }

    #[expect(clippy::cast_possible_truncation, reason = "Prometheus cuts it off, too")]
    pub(super) fn read(
        cursor: &mut Cursor<'a>,
        is_float: bool,
    ) -> Result<HistogramView<'a>, &'static str> {
        let count_of = |cursor: &mut Cursor<'a>| match is_float {
            true => cursor.be64(),
            false => cursor.uvarint(),
        };
        let reset_hint = cursor.byte().ok_or("counter reset hint")?;
        let schema = cursor.varint().ok_or("schema")? as i32;
        Ok(HistogramView {
            reset_hint,
            schema,
            zero_threshold_bits: cursor.be64().ok_or("zero threshold")?,
            zero_count: count_of(cursor).ok_or("zero count")?,
            count: count_of(cursor).ok_or("count")?,
            sum_bits: cursor.be64().ok_or("sum")?,
            is_float,
            positive_spans: Run::read(cursor, skip_span).ok_or("spans")?,
            negative_spans: Run::read(cursor, skip_span).ok_or("spans")?,
            positive_buckets: Run::read(cursor, skip_bucket(is_float)).ok_or("buckets")?,
            negative_buckets: Run::read(cursor, skip_bucket(is_float)).ok_or("buckets")?,
            custom_values: match schema {
                CUSTOM_BUCKETS_SCHEMA => {
                    Run::read(cursor, skip_bucket(true)).ok_or("custom values")?
                }
                _ => Run { cursor: Cursor::new(&[]) },
            },
        })
    }
}

impl<'a> Run<'a> {
    /// Splits a count and as many numbers off `cursor`. The loop ends with the bytes, since each
    /// `skip` takes at least one.
    fn read(
        cursor: &mut Cursor<'a>,
        skip: impl Fn(&mut Cursor<'a>) -> Option<()>,
    ) -> Option<Run<'a>> {
        let count = cursor.uvarint()?;
        let start = cursor.clone();
        for _ in 0..count {
            skip(cursor)?;
        }
        Some(Run { cursor: Cursor::new(start.until(cursor)) })
    }

    #[expect(clippy::cast_possible_truncation, reason = "Prometheus cuts them off, too")]
    fn spans(mut self) -> impl Iterator<Item = (i32, u32)> + use<'a> {
        std::iter::from_fn(move || {
            Some((self.cursor.varint()? as i32, self.cursor.uvarint()? as u32))
        })
    }

    fn buckets(mut self, is_float: bool) -> impl Iterator<Item = u64> + use<'a> {
        std::iter::from_fn(move || match is_float {
            true => self.cursor.be64(),
            false => self.cursor.varint().map(|delta| delta as u64),
        })
    }
}

fn skip_span(cursor: &mut Cursor<'_>) -> Option<()> {
    cursor.varint()?;
    cursor.uvarint().map(drop)
}

fn skip_bucket<'a>(is_float: bool) -> impl Fn(&mut Cursor<'a>) -> Option<()> {
    move |cursor| match is_float {
        true => cursor.be64().map(drop),
        false => cursor.varint().map(drop),
    }
}

#[derive(Clone, Debug)]
pub struct HistogramsIter<'a> {
    pub(super) cursor: Cursor<'a>,
    pub(super) numbering: Numbering,
    pub(super) is_float: bool,
}

impl<'a> HistogramsIter<'a> {
    pub(super) fn new(
        cursor: Cursor<'a>,
        numbering: Numbering,
        is_float: bool,
    ) -> HistogramsIter<'a> {
        HistogramsIter { cursor, numbering, is_float }
    }
}

impl<'a> Steps for HistogramsIter<'a> {
    type Item = HistogramSample<'a>;

    fn step(&mut self) -> Result<Option<HistogramSample<'a>>, &'static str> {
        if self.cursor.is_empty() {
            return Ok(None);
        }
        let head = self.numbering.next_head(&mut self.cursor)?;
        let histogram = HistogramView::read(&mut self.cursor, self.is_float)?;
        Ok(Some(HistogramSample {
            series_ref: head.series_ref,
            t: head.t,
            start: head.start,
            histogram,
        }))
    }
}
