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
use super::{Numbering, Steps};
use crate::model::{HeadSeriesRef, Timestamp};

/// The schema of histograms whose bucket bounds are given one by one.
const CUSTOM_BUCKETS_SCHEMA: i32 = -53;

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
    positive_spans: Numbers<'a>,
    negative_spans: Numbers<'a>,
    positive_buckets: Numbers<'a>,
    negative_buckets: Numbers<'a>,
    custom_values: Numbers<'a>,
}

/// A counted run of numbers, checked to be whole.
#[derive(Clone, Debug)]
struct Numbers<'a> {
    cursor: Cursor<'a>,
}

impl<'a> HistogramView<'a> {
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
            positive_spans: Numbers::read(cursor, skip_span).ok_or("spans")?,
            negative_spans: Numbers::read(cursor, skip_span).ok_or("spans")?,
            positive_buckets: Numbers::read(cursor, skip_bucket(is_float)).ok_or("buckets")?,
            negative_buckets: Numbers::read(cursor, skip_bucket(is_float)).ok_or("buckets")?,
            custom_values: match schema {
                CUSTOM_BUCKETS_SCHEMA => {
                    Numbers::read(cursor, skip_bucket(true)).ok_or("custom values")?
                }
                _ => Numbers { cursor: Cursor::new(&[]) },
            },
        })
    }
}

impl<'a> Numbers<'a> {
    /// Splits a count and as many numbers off `cursor`. The loop ends with the bytes, since each
    /// `skip` takes at least one.
    fn read(
        cursor: &mut Cursor<'a>,
        skip: impl Fn(&mut Cursor<'a>) -> Option<()>,
    ) -> Option<Numbers<'a>> {
        let count = cursor.uvarint()?;
        let start = cursor.clone();
        for _ in 0..count {
            skip(cursor)?;
        }
        Some(Numbers { cursor: Cursor::new(start.until(cursor)) })
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
