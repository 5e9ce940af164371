//! Points of metrics, read into memory that is used again. Lists are cut at their caps, which the
//! point then tells.

use crate::model::varint::{read_varint, unzigzag};
use crate::wire::otlp::caps::{BUCKETS_MAX, EXEMPLARS_MAX, VALUES_MAX};
use crate::wire::otlp::labels::Attribute;
use crate::wire::otlp::value::read_key_value;
use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field};

const POINT: &str = "data point";

/// Of a point's flags: there is no value, the series has ended.
const NO_RECORDED_VALUE: u64 = 1;

/// What a metric's points are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Histogram,
    Exponential,
    Summary,
}

/// A point of any kind.
#[derive(Debug, Default)]
pub(super) struct Point<'r> {
    pub(super) attributes: Vec<Attribute<'r>>,
    /// In nanoseconds.
    pub(super) time: u64,
    pub(super) has_no_value: bool,
    /// Of a number.
    pub(super) value: f64,
    pub(super) count: u64,
    pub(super) sum: Option<f64>,
    /// Of a histogram: upper bounds, and counts between them.
    pub(super) bounds: Vec<f64>,
    pub(super) counts: Vec<u64>,
    pub(super) exemplars: Vec<&'r [u8]>,
    /// Of an exponential histogram.
    pub(super) scale: i32,
    pub(super) zero_count: u64,
    pub(super) zero_threshold: f64,
    pub(super) positive: Buckets,
    pub(super) negative: Buckets,
    /// Of a summary, with their values.
    pub(super) quantiles: Vec<(f64, f64)>,
    /// A list that was cut, and its cap.
    pub(super) too_many: Option<(&'static str, usize)>,
}

#[derive(Debug, Default)]
pub(super) struct Buckets {
    pub(super) offset: i32,
    pub(super) counts: Vec<u64>,
}

impl<'r> Point<'r> {
    /// Takes a point from its message.
    pub(super) fn read(&mut self, kind: Kind, mut message: &'r [u8]) -> Result<(), DecodeError> {
        self.clear();
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, POINT)?;
            message = rest;
            let is_known = match kind {
                Kind::Number => self.take_of_number(number, value)?,
                Kind::Histogram => self.take_of_histogram(number, value)?,
                Kind::Exponential => self.take_of_exponential(number, value)?,
                Kind::Summary => self.take_of_summary(number, value)?,
            };
            if !is_known {
                return Err(DecodeError::new(POINT, WRONG_WIRE_TYPE));
            }
        }
        Ok(())
    }

    /// In milliseconds.
    pub(super) fn time_ms(&self) -> i64 {
        to_ms(self.time)
    }

    fn clear(&mut self) {
        let Point { attributes, bounds, counts, exemplars, positive, negative, quantiles, .. } =
            self;
        attributes.clear();
        bounds.clear();
        counts.clear();
        exemplars.clear();
        quantiles.clear();
        for buckets in [positive, negative] {
            buckets.counts.clear();
            buckets.offset = 0;
        }
        (self.time, self.has_no_value, self.value) = (0, false, 0.0);
        (self.count, self.sum, self.scale, self.zero_count) = (0, None, 0, 0);
        (self.zero_threshold, self.too_many) = (0.0, None);
    }

    /// Takes a field, if it is of a type that it can have.
    fn take_of_number(&mut self, number: u32, value: Value<'r>) -> Result<bool, DecodeError> {
        match (number, value) {
            (3, Value::Fixed64(time)) => self.time = time,
            (4, Value::Fixed64(bits)) => self.value = f64::from_bits(bits),
            (5, Value::Bytes(exemplar)) => self.push_exemplar(exemplar),
            // A whole number beyond 2^53 loses its last digits, as it does for Prometheus.
            (6, Value::Fixed64(int)) => self.value = int.cast_signed() as f64,
            (7, Value::Bytes(attribute)) => self.push_attribute(attribute)?,
            (8, Value::Varint(flags)) => self.has_no_value = flags & NO_RECORDED_VALUE != 0,
            (3..=8, _) => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    fn take_of_histogram(&mut self, number: u32, value: Value<'r>) -> Result<bool, DecodeError> {
        match (number, value) {
            (3, Value::Fixed64(time)) => self.time = time,
            (4, Value::Fixed64(count)) => self.count = count,
            (5, Value::Fixed64(bits)) => self.sum = Some(f64::from_bits(bits)),
            (6, value) => {
                return Ok(self.take_fixed(value, |point, count| {
                    push(&mut point.counts, count, BUCKETS_MAX)
                }));
            }
            (7, value) => {
                return Ok(self.take_fixed(value, |point, bits| {
                    push(&mut point.bounds, f64::from_bits(bits), BUCKETS_MAX)
                }));
            }
            (8, Value::Bytes(exemplar)) => self.push_exemplar(exemplar),
            (9, Value::Bytes(attribute)) => self.push_attribute(attribute)?,
            (10, Value::Varint(flags)) => self.has_no_value = flags & NO_RECORDED_VALUE != 0,
            (3..=10, _) => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    fn take_of_exponential(&mut self, number: u32, value: Value<'r>) -> Result<bool, DecodeError> {
        match (number, value) {
            (1, Value::Bytes(attribute)) => self.push_attribute(attribute)?,
            (3, Value::Fixed64(time)) => self.time = time,
            (4, Value::Fixed64(count)) => self.count = count,
            (5, Value::Fixed64(bits)) => self.sum = Some(f64::from_bits(bits)),
            (6, Value::Varint(scale)) => self.scale = to_i32(scale),
            (7, Value::Fixed64(count)) => self.zero_count = count,
            (8, Value::Bytes(buckets)) => {
                let is_cut = !self.positive.read(buckets)?;
                self.note(is_cut, "buckets", BUCKETS_MAX);
            }
            (9, Value::Bytes(buckets)) => {
                let is_cut = !self.negative.read(buckets)?;
                self.note(is_cut, "buckets", BUCKETS_MAX);
            }
            (10, Value::Varint(flags)) => self.has_no_value = flags & NO_RECORDED_VALUE != 0,
            (11, Value::Bytes(exemplar)) => self.push_exemplar(exemplar),
            (14, Value::Fixed64(bits)) => self.zero_threshold = f64::from_bits(bits),
            (1 | 3..=11 | 14, _) => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    fn take_of_summary(&mut self, number: u32, value: Value<'r>) -> Result<bool, DecodeError> {
        match (number, value) {
            (3, Value::Fixed64(time)) => self.time = time,
            (4, Value::Fixed64(count)) => self.count = count,
            (5, Value::Fixed64(bits)) => self.sum = Some(f64::from_bits(bits)),
            (6, Value::Bytes(quantile)) => {
                let quantile = read_quantile(quantile)?;
                let is_cut = !push(&mut self.quantiles, quantile, BUCKETS_MAX);
                self.note(is_cut, "quantiles", BUCKETS_MAX);
            }
            (7, Value::Bytes(attribute)) => self.push_attribute(attribute)?,
            (8, Value::Varint(flags)) => self.has_no_value = flags & NO_RECORDED_VALUE != 0,
            (3..=8, _) => return Ok(false),
            _ => {}
        }
        Ok(true)
    }

    fn push_attribute(&mut self, attribute: &'r [u8]) -> Result<(), DecodeError> {
        let attribute = read_key_value(attribute)?;
        let is_cut = !push(&mut self.attributes, attribute, VALUES_MAX);
        self.note(is_cut, "attributes", VALUES_MAX);
        Ok(())
    }

    fn push_exemplar(&mut self, exemplar: &'r [u8]) {
        let is_cut = !push(&mut self.exemplars, exemplar, EXEMPLARS_MAX);
        self.note(is_cut, "exemplars", EXEMPLARS_MAX);
    }

    /// Takes numbers of 64 bits, packed or not.
    fn take_fixed(
        &mut self,
        value: Value<'_>,
        mut take: impl FnMut(&mut Point<'r>, u64) -> bool,
    ) -> bool {
        let mut is_whole = true;
        match value {
            Value::Fixed64(bits) => is_whole &= take(self, bits),
            Value::Bytes(packed) => {
                let (words, rest) = packed.as_chunks::<8>();
                if !rest.is_empty() {
                    return false;
                }
                for word in words {
                    is_whole &= take(self, u64::from_le_bytes(*word));
                }
            }
            _ => return false,
        }
        self.note(!is_whole, "buckets", BUCKETS_MAX);
        true
    }

    fn note(&mut self, is_cut: bool, what: &'static str, max: usize) {
        if is_cut {
            self.too_many = self.too_many.or(Some((what, max)));
        }
    }
}

impl Buckets {
    /// False if they were cut.
    fn read(&mut self, mut message: &[u8]) -> Result<bool, DecodeError> {
        const NAME: &str = "buckets";
        let mut is_whole = true;
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, NAME)?;
            message = rest;
            match (number, value) {
                (1, Value::Varint(offset)) => self.offset = to_i32(offset),
                (2, Value::Varint(count)) => is_whole &= push(&mut self.counts, count, BUCKETS_MAX),
                (2, Value::Bytes(mut packed)) => {
                    while !packed.is_empty() {
                        let cut = DecodeError::new(NAME, "cut short");
                        let (count, rest) = read_varint(packed).ok_or(cut)?;
                        packed = rest;
                        is_whole &= push(&mut self.counts, count, BUCKETS_MAX);
                    }
                }
                (1 | 2, _) => return Err(DecodeError::new(NAME, WRONG_WIRE_TYPE)),
                _ => {}
            }
        }
        Ok(is_whole)
    }
}

/// The time of a point of any kind, which has the same number in all of them.
pub(super) fn read_time(mut message: &[u8]) -> Result<u64, DecodeError> {
    let mut time = 0;
    while !message.is_empty() {
        let (number, value, rest) = read_field(message, POINT)?;
        message = rest;
        if let (3, Value::Fixed64(value)) = (number, value) {
            time = value;
        }
    }
    Ok(time)
}

pub(super) fn to_ms(nanoseconds: u64) -> i64 {
    nanoseconds.cast_signed() / 1_000_000
}

#[expect(clippy::cast_possible_truncation, reason = "Go's decoder cuts it off, too")]
fn to_i32(zigzag: u64) -> i32 {
    unzigzag(zigzag) as i32
}

fn read_quantile(mut message: &[u8]) -> Result<(f64, f64), DecodeError> {
    const NAME: &str = "quantile";
    let (mut quantile, mut at) = (0.0, 0.0);
    while !message.is_empty() {
        let (number, value, rest) = read_field(message, NAME)?;
        message = rest;
        match (number, value) {
            (1, Value::Fixed64(bits)) => quantile = f64::from_bits(bits),
            (2, Value::Fixed64(bits)) => at = f64::from_bits(bits),
            (1 | 2, _) => return Err(DecodeError::new(NAME, WRONG_WIRE_TYPE)),
            _ => {}
        }
    }
    Ok((quantile, at))
}

/// Appends to a list unless it is full.
fn push<T>(list: &mut Vec<T>, element: T, max: usize) -> bool {
    let has_room = list.len() < max;
    if has_room {
        list.push(element);
    }
    has_room
}
