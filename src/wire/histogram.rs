//! A native histogram as senders write it, `prometheus.Histogram`: the same message in both versions of
//! remote write.
//!
//! ```text
//!  1 count (integer)       2 count (float)        3 sum            4 schema (zigzag)
//!  5 zero threshold        6 zero count (integer) 7 zero count (float)
//!  8 negative spans*       9 their deltas*       10 their counts*
//! 11 positive spans*      12 their deltas*       13 their counts*
//! 14 reset hint           15 timestamp           16 custom bounds*
//!
//! span:  1 offset (zigzag)   2 length
//! ```
//!
//! Deltas are of an integer histogram, counts of one of floats; the count says which it is.

#![cfg_attr(
    not(test),
    expect(clippy::cast_possible_truncation, reason = "Go's decoder cuts them off, too")
)]

use crate::model::Timestamp;
use crate::model::histogram::{
    AnyHistogram, CUSTOM_BUCKETS_SCHEMA, FloatHistogram, Histogram, IntegerHistogram, Layout,
    Numbers, ResetHint, Span,
};
use crate::model::varint::{push_varint, read_varint, unzigzag, zigzag};
use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field};

const MESSAGE: &str = "histogram";

/// An integer or a float count, by its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Int(u64),
    Float(u64),
}

impl Default for Count {
    fn default() -> Count {
        Count::Int(0)
    }
}

/// The fields of the message. Floats are kept by their bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramMessage {
    pub(super) count: Count,
    pub(super) sum: u64,
    pub(super) schema: i32,
    pub(super) zero_threshold: u64,
    pub(super) zero_count: Count,
    pub(super) negative: Buckets,
    pub(super) positive: Buckets,
    pub(super) reset_hint: u16,
    pub(super) timestamp: Timestamp,
    pub(super) custom_bounds: Vec<u64>,
    /// There are fields that nobody here knows.
    pub(super) has_more: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Buckets {
    pub(super) spans: Vec<Span>,
    pub(super) deltas: Vec<i64>,
    pub(super) counts: Vec<u64>,
}

impl HistogramMessage {
    pub fn read(mut message: &[u8]) -> Result<HistogramMessage, DecodeError> {
        let mut histogram = HistogramMessage::default();
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, MESSAGE)?;
            message = rest;
            match (number, value) {
                (1, Value::Varint(count)) => histogram.count = Count::Int(count),
                (2, Value::Fixed64(count)) => histogram.count = Count::Float(count),
                (3, Value::Fixed64(sum)) => histogram.sum = sum,
                (4, Value::Varint(schema)) => histogram.schema = unzigzag(schema) as i32,
                (5, Value::Fixed64(threshold)) => histogram.zero_threshold = threshold,
                (6, Value::Varint(count)) => histogram.zero_count = Count::Int(count),
                (7, Value::Fixed64(count)) => histogram.zero_count = Count::Float(count),
                (8..=10, value) => histogram.negative.read(number - 8, value)?,
                (11..=13, value) => histogram.positive.read(number - 11, value)?,
                (14, Value::Varint(hint)) => {
                    // One that is too large is none that anybody knows.
                    histogram.reset_hint = u16::try_from(hint).unwrap_or(u16::MAX);
                }
                (15, Value::Varint(time)) => histogram.timestamp = time as i64,
                (16, value) => read_floats(&mut histogram.custom_bounds, value)?,
                (1..=7 | 14 | 15, _) => return Err(DecodeError::new(MESSAGE, WRONG_WIRE_TYPE)),
                _ => histogram.has_more = true,
            }
        }
        Ok(histogram)
    }

    /// Whether custom bounds, and what nobody here knows, may be left out.
    pub(super) fn has_only_buckets_of_a_schema(&self) -> bool {
        !self.has_more && self.schema != CUSTOM_BUCKETS_SCHEMA && self.custom_bounds.is_empty()
    }

    /// Appends the message.
    pub fn push_protobuf(&self, out: &mut Vec<u8>) {
        match self.count {
            Count::Int(count) => push_varint_field(out, 1, count),
            Count::Float(count) => push_fixed_field(out, 2, count),
        }
        push_fixed_field(out, 3, self.sum);
        push_varint_field(out, 4, zigzag(i64::from(self.schema)));
        push_fixed_field(out, 5, self.zero_threshold);
        match self.zero_count {
            Count::Int(count) => push_varint_field(out, 6, count),
            Count::Float(count) => push_fixed_field(out, 7, count),
        }
        self.negative.push_protobuf(out, 8);
        self.positive.push_protobuf(out, 11);
        push_varint_field(out, 14, u64::from(self.reset_hint));
        push_varint_field(out, 15, self.timestamp as u64);
        push_floats(out, 16, &self.custom_bounds);
    }

    /// The message of a sample.
    pub fn of_model(timestamp: Timestamp, sample: &AnyHistogram) -> HistogramMessage {
        match sample {
            AnyHistogram::Integer(histogram) => HistogramMessage {
                count: Count::Int(histogram.count),
                zero_count: Count::Int(histogram.zero_count),
                positive: Buckets {
                    deltas: histogram.positive.clone(),
                    ..Buckets::of_spans(&histogram.layout.positive_spans)
                },
                negative: Buckets {
                    deltas: histogram.negative.clone(),
                    ..Buckets::of_spans(&histogram.layout.negative_spans)
                },
                ..HistogramMessage::of_rest(timestamp, histogram)
            },
            AnyHistogram::Float(histogram) => HistogramMessage {
                count: Count::Float(histogram.count.to_bits()),
                zero_count: Count::Float(histogram.zero_count.to_bits()),
                positive: Buckets {
                    counts: bits(&histogram.positive),
                    ..Buckets::of_spans(&histogram.layout.positive_spans)
                },
                negative: Buckets {
                    counts: bits(&histogram.negative),
                    ..Buckets::of_spans(&histogram.layout.negative_spans)
                },
                ..HistogramMessage::of_rest(timestamp, histogram)
            },
        }
    }

    /// What is alike in both kinds.
    fn of_rest<N: Numbers>(timestamp: Timestamp, histogram: &Histogram<N>) -> HistogramMessage {
        let layout = &histogram.layout;
        HistogramMessage {
            sum: histogram.sum.to_bits(),
            schema: layout.schema,
            zero_threshold: layout.zero_threshold.to_bits(),
            reset_hint: histogram.reset_hint as u16,
            timestamp,
            custom_bounds: bits(&layout.custom_bounds),
            ..HistogramMessage::default()
        }
    }

    /// The sample, and its time. Numbers of the other kind than the count's are left out, as
    /// Prometheus does it.
    pub fn into_model(self) -> (Timestamp, AnyHistogram) {
        let HistogramMessage { count, zero_count, sum, negative, positive, timestamp, .. } = self;
        // A hint that is not known says as much as none.
        let reset_hint = match self.reset_hint {
            1 => ResetHint::Reset,
            2 => ResetHint::NotReset,
            3 => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        };
        let layout = Layout {
            schema: self.schema,
            zero_threshold: f64::from_bits(self.zero_threshold),
            positive_spans: positive.spans,
            negative_spans: negative.spans,
            custom_bounds: floats(self.custom_bounds),
        };
        let sum = f64::from_bits(sum);
        let sample = match count {
            Count::Int(count) => AnyHistogram::Integer(IntegerHistogram {
                reset_hint,
                layout,
                count,
                zero_count: if let Count::Int(zero_count) = zero_count { zero_count } else { 0 },
                sum,
                positive: positive.deltas,
                negative: negative.deltas,
            }),
            Count::Float(count) => AnyHistogram::Float(FloatHistogram {
                reset_hint,
                layout,
                count: f64::from_bits(count),
                zero_count: match zero_count {
                    Count::Float(zero_count) => f64::from_bits(zero_count),
                    Count::Int(_) => 0.0,
                },
                sum,
                positive: floats(positive.counts),
                negative: floats(negative.counts),
            }),
        };
        (timestamp, sample)
    }
}

impl Buckets {
    fn of_spans(spans: &[Span]) -> Buckets {
        Buckets { spans: spans.to_vec(), ..Buckets::default() }
    }

    /// Takes the field of spans (0), deltas (1) or counts (2).
    fn read(&mut self, field: u32, value: Value<'_>) -> Result<(), DecodeError> {
        match (field, value) {
            (0, Value::Bytes(span)) => self.spans.push(read_span(span)?),
            (1, Value::Varint(delta)) => self.deltas.push(unzigzag(delta)),
            (1, Value::Bytes(mut packed)) => {
                // Each ends with a byte below 128.
                self.deltas.reserve(packed.iter().filter(|byte| **byte < 0x80).count());
                while !packed.is_empty() {
                    let cut = DecodeError::new(MESSAGE, "deltas are cut short");
                    let (delta, rest) = read_varint(packed).ok_or(cut)?;
                    self.deltas.push(unzigzag(delta));
                    packed = rest;
                }
            }
            (2, value) => read_floats(&mut self.counts, value)?,
            _ => return Err(DecodeError::new(MESSAGE, WRONG_WIRE_TYPE)),
        }
        Ok(())
    }

    /// Appends the fields, the first of which has the number `first`.
    fn push_protobuf(&self, out: &mut Vec<u8>, first: u8) {
        let mut message = Vec::new();
        for Span { offset, length } in &self.spans {
            message.clear();
            push_varint_field(&mut message, 1, zigzag(i64::from(*offset)));
            push_varint_field(&mut message, 2, u64::from(*length));
            push_bytes_field(out, first, &message);
        }
        if !self.deltas.is_empty() {
            message.clear();
            self.deltas.iter().for_each(|delta| push_varint(&mut message, zigzag(*delta)));
            push_bytes_field(out, first + 1, &message);
        }
        push_floats(out, first + 2, &self.counts);
    }
}

fn read_floats(floats: &mut Vec<u64>, value: Value<'_>) -> Result<(), DecodeError> {
    match value {
        Value::Fixed64(float) => floats.push(float),
        Value::Bytes(packed) => {
            let (packed, rest) = packed.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(DecodeError::new(MESSAGE, "floats are cut short"));
            }
            floats.extend(packed.iter().map(|float| u64::from_le_bytes(*float)));
        }
        _ => return Err(DecodeError::new(MESSAGE, WRONG_WIRE_TYPE)),
    }
    Ok(())
}

fn push_floats(out: &mut Vec<u8>, number: u8, floats: &[u64]) {
    if !floats.is_empty() {
        let packed: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
        push_bytes_field(out, number, &packed);
    }
}

fn bits(floats: &[f64]) -> Vec<u64> {
    floats.iter().map(|float| float.to_bits()).collect()
}

fn floats(bits: Vec<u64>) -> Vec<f64> {
    bits.into_iter().map(f64::from_bits).collect()
}

fn read_span(mut message: &[u8]) -> Result<Span, DecodeError> {
    let mut span = Span::default();
    while !message.is_empty() {
        let (number, value, rest) = read_field(message, "bucket span")?;
        message = rest;
        match (number, value) {
            (1, Value::Varint(value)) => span.offset = unzigzag(value) as i32,
            (2, Value::Varint(value)) => span.length = value as u32,
            (1 | 2, _) => return Err(DecodeError::new("bucket span", WRONG_WIRE_TYPE)),
            _ => {}
        }
    }
    Ok(span)
}

fn push_varint_field(out: &mut Vec<u8>, number: u8, value: u64) {
    if value != 0 {
        out.push(number << 3);
        push_varint(out, value);
    }
}

/// A float that is zero by its bits is left out; -0.0 is not.
fn push_fixed_field(out: &mut Vec<u8>, number: u8, value: u64) {
    if value != 0 {
        out.push(number << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn push_bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    push_varint(out, u64::from(number) << 3 | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(message: &HistogramMessage) -> HistogramMessage {
        let mut bytes = Vec::new();
        message.push_protobuf(&mut bytes);
        HistogramMessage::read(&bytes).unwrap()
    }

    fn buckets(offset: i32, deltas: &[i64], counts: &[f64]) -> Buckets {
        let length = deltas.len().max(counts.len()) as u32;
        Buckets {
            spans: vec![Span { offset, length }],
            deltas: deltas.to_vec(),
            counts: counts.iter().map(|count| count.to_bits()).collect(),
        }
    }

    #[test]
    fn the_count_says_which_numbers_are_meant() {
        let message = HistogramMessage {
            count: Count::Int(9),
            zero_count: Count::Int(2),
            sum: 1.5f64.to_bits(),
            schema: -2,
            zero_threshold: 0.25f64.to_bits(),
            positive: buckets(-3, &[3, -1], &[8.0]),
            negative: buckets(1, &[2], &[]),
            reset_hint: 2,
            timestamp: -7,
            ..HistogramMessage::default()
        };
        assert_eq!(round(&message), message);
        let layout = Layout {
            schema: -2,
            zero_threshold: 0.25,
            positive_spans: vec![Span { offset: -3, length: 2 }],
            negative_spans: vec![Span { offset: 1, length: 1 }],
            custom_bounds: vec![],
        };
        let expected = IntegerHistogram {
            reset_hint: ResetHint::NotReset,
            layout: layout.clone(),
            count: 9,
            zero_count: 2,
            sum: 1.5,
            positive: vec![3, -1],
            negative: vec![2],
        };
        let expected = AnyHistogram::Integer(expected);
        assert_eq!(message.clone().into_model(), (-7, expected.clone()));
        assert_eq!(HistogramMessage::of_model(-7, &expected).into_model(), (-7, expected));

        let of_floats = HistogramMessage { count: Count::Float(4.5f64.to_bits()), ..message };
        let expected = FloatHistogram {
            reset_hint: ResetHint::NotReset,
            layout,
            count: 4.5,
            // That of integers says nothing of floats.
            zero_count: 0.0,
            sum: 1.5,
            positive: vec![8.0],
            negative: vec![],
        };
        let expected = AnyHistogram::Float(expected);
        assert_eq!(round(&of_floats).into_model(), (-7, expected.clone()));
        assert_eq!(HistogramMessage::of_model(-7, &expected).into_model(), (-7, expected));
    }

    #[test]
    fn custom_bounds_come_packed_or_one_by_one() {
        let bounds = [0.5f64, 2.0];
        let message = HistogramMessage {
            schema: CUSTOM_BUCKETS_SCHEMA,
            custom_bounds: bounds.iter().map(|bound| bound.to_bits()).collect(),
            ..HistogramMessage::default()
        };
        assert_eq!(round(&message), message);
        assert!(!message.has_only_buckets_of_a_schema());
        let mut one_by_one = vec![4 << 3, zigzag(CUSTOM_BUCKETS_SCHEMA.into()) as u8];
        for bound in bounds {
            // Field 16 takes two bytes.
            one_by_one.extend([0x81, 0x01]);
            one_by_one.extend(bound.to_le_bytes());
        }
        assert_eq!(HistogramMessage::read(&one_by_one), Ok(message));
        assert!(HistogramMessage::read(&[0x82, 0x01, 3, 0, 0, 0]).is_err());
    }
}
