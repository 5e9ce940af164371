//! A native histogram sample in both of its forms: Prometheus' message and Thanos' struct, which
//! has no place for custom bucket bounds.

use crate::model::varint::{push_varint, read_varint};
use crate::wire::capnproto::encode::Segment;
use crate::wire::capnproto::rpc::{list_pointer, structs_pointer, structs_tag};
use crate::wire::capnproto::write_request_capnp::{bucket_span, histogram};
use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field};

/// Size of the struct, in words.
pub(super) const DATA_WORDS: u16 = 7;
pub(super) const POINTERS: u16 = 6;

const MESSAGE: &str = "histogram";

/// An integer or a float count, by its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Int(u64),
    Float(u64),
}

impl Default for Count {
    fn default() -> Count {
        Count::Int(0)
    }
}

/// Floats are kept by their bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    count: Count,
    sum: u64,
    schema: i32,
    zero_threshold: u64,
    zero_count: Count,
    negative: Buckets,
    positive: Buckets,
    reset_hint: u16,
    timestamp: i64,
    /// The message has fields that the struct has no place for.
    has_more: bool,
}

/// Buckets have the bounds that the message lists.
const CUSTOM_BUCKETS_SCHEMA: i32 = -53;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Buckets {
    /// Offset and length.
    spans: Vec<(i32, u32)>,
    deltas: Vec<i64>,
    counts: Vec<u64>,
}

impl Histogram {
    pub(super) fn from_protobuf(mut message: &[u8]) -> Result<Histogram, DecodeError> {
        let mut histogram = Histogram::default();
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
                (14, Value::Varint(hint)) => histogram.reset_hint = hint as u16,
                (15, Value::Varint(time)) => histogram.timestamp = time as i64,
                (1..=7 | 14 | 15, _) => return Err(DecodeError::new(MESSAGE, WRONG_WIRE_TYPE)),
                _ => histogram.has_more = true,
            }
        }
        Ok(histogram)
    }

    /// Whether the struct holds all of it. Custom bounds would be lost, and the peer not notice.
    pub(super) fn fits_capnproto(&self) -> bool {
        !self.has_more && self.schema != CUSTOM_BUCKETS_SCHEMA
    }

    /// Words of the struct and all that it points to.
    pub(super) fn capnproto_words(&self) -> usize {
        usize::from(DATA_WORDS + POINTERS)
            + self.negative.capnproto_words()
            + self.positive.capnproto_words()
    }

    pub(super) fn from_capnproto(source: histogram::Reader<'_>) -> capnp::Result<Histogram> {
        Ok(Histogram {
            count: match source.get_count().which() {
                Ok(histogram::count::CountFloat(count)) => Count::Float(count.to_bits()),
                Ok(histogram::count::CountInt(count)) => Count::Int(count),
                Err(_) => Count::default(),
            },
            sum: source.get_sum().to_bits(),
            schema: source.get_schema(),
            zero_threshold: source.get_zero_threshold().to_bits(),
            zero_count: match source.get_zero_count().which() {
                Ok(histogram::zero_count::ZeroCountFloat(count)) => Count::Float(count.to_bits()),
                Ok(histogram::zero_count::ZeroCountInt(count)) => Count::Int(count),
                Err(_) => Count::default(),
            },
            negative: Buckets {
                spans: spans(source.get_negative_spans()?),
                deltas: source.get_negative_deltas()?.iter().collect(),
                counts: source.get_negative_counts()?.iter().map(f64::to_bits).collect(),
            },
            positive: Buckets {
                spans: spans(source.get_positive_spans()?),
                deltas: source.get_positive_deltas()?.iter().collect(),
                counts: source.get_positive_counts()?.iter().map(f64::to_bits).collect(),
            },
            // A hint that is not known says as much as none.
            reset_hint: source.get_reset_hint().map_or(0, |hint| hint as u16),
            timestamp: source.get_timestamp(),
            has_more: false,
        })
    }

    /// Appends the message.
    pub(super) fn push_protobuf(&self, out: &mut Vec<u8>) {
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
    }

    /// Fills the struct at `at`, whose words are zero.
    pub(super) fn write_capnproto(&self, segment: &mut Segment, at: usize) {
        let (count, count_kind) = self.count.parts();
        let (zero_count, zero_kind) = self.zero_count.parts();
        let kinds = count_kind | zero_kind << 16 | u64::from(self.schema as u32) << 32;
        let data = [
            count,
            kinds,
            self.sum,
            self.zero_threshold,
            zero_count,
            u64::from(self.reset_hint),
            self.timestamp as u64,
        ];
        data.into_iter().enumerate().for_each(|(i, word)| segment.set(at + i, word));
        let pointers = at + usize::from(DATA_WORDS);
        self.negative.write_capnproto(segment, pointers);
        self.positive.write_capnproto(segment, pointers + 3);
    }
}

impl Count {
    /// The bits, and which of the two they are.
    fn parts(self) -> (u64, u64) {
        match self {
            Count::Int(count) => (count, 0),
            Count::Float(count) => (count, 1),
        }
    }
}

impl Buckets {
    /// Takes the field of spans (0), deltas (1) or counts (2).
    fn read(&mut self, field: u32, value: Value<'_>) -> Result<(), DecodeError> {
        match (field, value) {
            (0, Value::Bytes(span)) => self.spans.push(read_span(span)?),
            (1, Value::Varint(delta)) => self.deltas.push(unzigzag(delta)),
            (1, Value::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    let cut = DecodeError::new(MESSAGE, "deltas are cut short");
                    let (delta, rest) = read_varint(packed).ok_or(cut)?;
                    self.deltas.push(unzigzag(delta));
                    packed = rest;
                }
            }
            (2, Value::Fixed64(count)) => self.counts.push(count),
            (2, Value::Bytes(packed)) => {
                let (counts, rest) = packed.as_chunks::<8>();
                if !rest.is_empty() {
                    return Err(DecodeError::new(MESSAGE, "counts are cut short"));
                }
                self.counts.extend(counts.iter().map(|count| u64::from_le_bytes(*count)));
            }
            _ => return Err(DecodeError::new(MESSAGE, WRONG_WIRE_TYPE)),
        }
        Ok(())
    }

    /// Appends the fields, the first of which has the number `first`.
    fn push_protobuf(&self, out: &mut Vec<u8>, first: u8) {
        let mut message = Vec::new();
        for (offset, length) in &self.spans {
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
        if !self.counts.is_empty() {
            message.clear();
            self.counts.iter().for_each(|count| message.extend_from_slice(&count.to_le_bytes()));
            push_bytes_field(out, first + 2, &message);
        }
    }

    fn capnproto_words(&self) -> usize {
        let spans = if self.spans.is_empty() { 0 } else { 1 + self.spans.len() };
        spans + self.deltas.len() + self.counts.len()
    }

    /// Appends the lists and points the three words from `pointers` on to them.
    fn write_capnproto(&self, segment: &mut Segment, pointers: usize) {
        const EIGHT_BYTES: u32 = 5;
        if !self.spans.is_empty() {
            let count = self.spans.len() as u32;
            segment.point(pointers, |offset| structs_pointer(offset, count));
            segment.push(structs_tag(count, 1, 0));
            for (offset, length) in &self.spans {
                segment.push(u64::from(*offset as u32) | u64::from(*length) << 32);
            }
        }
        if !self.deltas.is_empty() {
            let count = self.deltas.len() as u32;
            segment.point(pointers + 1, |offset| list_pointer(offset, EIGHT_BYTES, count));
            self.deltas.iter().for_each(|delta| segment.push(*delta as u64));
        }
        if !self.counts.is_empty() {
            let count = self.counts.len() as u32;
            segment.point(pointers + 2, |offset| list_pointer(offset, EIGHT_BYTES, count));
            self.counts.iter().for_each(|count| segment.push(*count));
        }
    }
}

fn read_span(mut message: &[u8]) -> Result<(i32, u32), DecodeError> {
    let (mut offset, mut length) = (0, 0);
    while !message.is_empty() {
        let (number, value, rest) = read_field(message, "bucket span")?;
        message = rest;
        match (number, value) {
            (1, Value::Varint(value)) => offset = unzigzag(value) as i32,
            (2, Value::Varint(value)) => length = value as u32,
            (1 | 2, _) => return Err(DecodeError::new("bucket span", WRONG_WIRE_TYPE)),
            _ => {}
        }
    }
    Ok((offset, length))
}

fn spans(spans: capnp::struct_list::Reader<'_, bucket_span::Owned>) -> Vec<(i32, u32)> {
    spans.iter().map(|span| (span.get_offset(), span.get_length())).collect()
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
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
    out.push(number << 3 | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
