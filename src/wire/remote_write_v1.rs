//! Remote write 1.0, read in place: `prometheus.WriteRequest` and the messages in it.
//!
//! ```text
//! WriteRequest  1 timeseries*   3 metadata*
//! TimeSeries    1 labels*       2 samples*   3 exemplars*   4 histograms*
//! Label         1 name          2 value
//! Sample        1 value (fixed64, absent when 0)   2 timestamp (varint, absent when 0)
//! ```
//!
//! Unknown fields are skipped and a repeated scalar keeps its last value, as Go's decoder does.

use crate::model::varint::{read_varint, split_len_prefixed};

/// Bytes that are no write request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct DecodeError {
    pub field: &'static str,
    pub what: &'static str,
}

impl DecodeError {
    pub(super) const fn new(field: &'static str, what: &'static str) -> DecodeError {
        DecodeError { field, what }
    }
}

const TRUNCATED: &str = "message is cut short";
pub(super) const WRONG_WIRE_TYPE: &str = "wrong wire type";

/// Protobuf wire types.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LEN: u8 = 2;
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;
const FIXED32: u8 = 5;

/// Groups nest no deeper than this in anything we skip.
const GROUP_DEPTH_MAX: u32 = 100;

/// A field of a message: its number, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// Of a wire type that no field we know has.
    Skipped,
}

/// Splits the first field off a message.
#[inline]
pub(super) fn read_field<'a>(
    message: &'a [u8],
    name: &'static str,
) -> Result<(u32, Value<'a>, &'a [u8]), DecodeError> {
    let truncated = DecodeError::new(name, TRUNCATED);
    let (tag, rest) = read_varint(message).ok_or(truncated)?;
    let illegal = DecodeError::new(name, "illegal field number");
    let tag = u32::try_from(tag).map_err(|_| illegal)?;
    let number = tag >> 3;
    if number == 0 {
        return Err(illegal);
    }
    let (value, rest) = match (tag & 7) as u8 {
        VARINT => {
            let (value, rest) = read_varint(rest).ok_or(truncated)?;
            (Value::Varint(value), rest)
        }
        FIXED64 => {
            let (bytes, rest) = rest.split_first_chunk::<8>().ok_or(truncated)?;
            (Value::Fixed64(u64::from_le_bytes(*bytes)), rest)
        }
        LEN => {
            let (bytes, rest) = split_len_prefixed(rest).ok_or(truncated)?;
            (Value::Bytes(bytes), rest)
        }
        FIXED32 => (Value::Skipped, rest.get(4..).ok_or(truncated)?),
        START_GROUP => (Value::Skipped, skip_group(rest, name)?),
        END_GROUP => return Err(DecodeError::new(name, "group ends that did not start")),
        _ => return Err(DecodeError::new(name, "illegal wire type")),
    };
    Ok((number, value, rest))
}

#[cold]
fn skip_group<'a>(mut rest: &'a [u8], name: &'static str) -> Result<&'a [u8], DecodeError> {
    let truncated = DecodeError::new(name, TRUNCATED);
    let mut depth = 1;
    while depth > 0 {
        let (tag, after) = read_varint(rest).ok_or(truncated)?;
        rest = match (tag & 7) as u8 {
            VARINT => read_varint(after).ok_or(truncated)?.1,
            FIXED64 => after.get(8..).ok_or(truncated)?,
            LEN => split_len_prefixed(after).ok_or(truncated)?.1,
            FIXED32 => after.get(4..).ok_or(truncated)?,
            START_GROUP if depth < GROUP_DEPTH_MAX => {
                depth += 1;
                after
            }
            END_GROUP => {
                depth -= 1;
                after
            }
            _ => return Err(DecodeError::new(name, "illegal wire type")),
        };
    }
    Ok(rest)
}

/// A field of a write request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestField<'a> {
    /// A `TimeSeries`, not decoded.
    TimeSeries(&'a [u8]),
    /// A `MetricMetadata`, not decoded.
    Metadata(&'a [u8]),
}

/// The fields of a write request, in order.
pub struct RequestFields<'a> {
    rest: &'a [u8],
    has_metadata: bool,
}

impl<'a> RequestFields<'a> {
    pub fn new(request: &'a [u8]) -> RequestFields<'a> {
        RequestFields { rest: request, has_metadata: true }
    }

    /// The series of a message of Thanos' that has them in field 1, as a write request does, but
    /// no metadata: its other fields are skipped.
    pub fn of_peer(message: &'a [u8]) -> RequestFields<'a> {
        RequestFields { rest: message, has_metadata: false }
    }

    /// Bytes not yet read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next field that we know; `None` at the end of the request.
    #[inline]
    pub fn next_field(&mut self) -> Result<Option<RequestField<'a>>, DecodeError> {
        const TIME_SERIES_TAG: u8 = 1 << 3 | LEN;
        let [TIME_SERIES_TAG, after_tag @ ..] = self.rest else { return self.next_other_field() };
        let truncated = DecodeError::new("timeseries", TRUNCATED);
        let (series, rest) = split_len_prefixed(after_tag).ok_or(truncated)?;
        self.rest = rest;
        Ok(Some(RequestField::TimeSeries(series)))
    }

    /// As [`RequestFields::next_field`], of a field that is no series or begins unusually.
    fn next_other_field(&mut self) -> Result<Option<RequestField<'a>>, DecodeError> {
        while !self.rest.is_empty() {
            let (number, value, rest) = read_field(self.rest, "write request")?;
            self.rest = rest;
            match (number, value) {
                (1, Value::Bytes(series)) => return Ok(Some(RequestField::TimeSeries(series))),
                (1, _) => return Err(DecodeError::new("write request", WRONG_WIRE_TYPE)),
                (3, _) if !self.has_metadata => {}
                (3, Value::Bytes(metadata)) => return Ok(Some(RequestField::Metadata(metadata))),
                (3, _) => return Err(DecodeError::new("write request", WRONG_WIRE_TYPE)),
                _ => {}
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for RequestFields<'a> {
    type Item = Result<RequestField<'a>, DecodeError>;

    /// As [`RequestFields::next_field`]. Nothing comes after an error.
    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let field = self.next_field();
        if field.is_err() {
            self.rest = &[];
        }
        field.transpose()
    }
}

/// A time series message whose end is one float sample of the usual shape: the bytes before it, and
/// the sample as (time, bits of the value). The bytes before it mean something only if they equal
/// bytes that were parsed before.
///
/// The shapes are `12 10 09 <value> 10 <time>` and, with value 0 left out, `12 07 10 <time>`, the
/// time being a varint of six bytes: any time from 1971 to 2109.
#[inline]
pub fn split_tail_sample(series: &[u8]) -> Option<(&[u8], i64, u64)> {
    if let Some((before, tail)) = series.split_last_chunk::<18>()
        && let [0x12, 0x10, 0x09, value @ .., 0x10, _, _, _, _, _, _] = tail
        && let Some(t) = six_byte_varint(series)
    {
        let value: &[u8; 8] = value;
        return Some((before, t, u64::from_le_bytes(*value)));
    }
    let (before, [0x12, 0x07, 0x10, ..]) = series.split_last_chunk::<9>()? else { return None };
    Some((before, six_byte_varint(series)?, 0))
}

/// The value of a varint that takes exactly the last six bytes.
#[inline]
fn six_byte_varint(bytes: &[u8]) -> Option<i64> {
    let word = u64::from_le_bytes(*bytes.last_chunk()?) >> 16;
    if word & 0x8080_8080_8080 != 0x0080_8080_8080 {
        return None;
    }
    // Seven bits of each byte: first two bytes move together, then all three pairs of them.
    let pairs = word & 0x007f_007f_007f | (word & 0x7f00_7f00_7f00) >> 1;
    let pair = |i: u32| (pairs >> (16 * i) & 0x3fff) << (14 * i);
    let value = pair(0) | pair(1) | pair(2);
    Some(value as i64)
}

/// A field of a time series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SeriesField<'a> {
    Label {
        name: &'a [u8],
        value: &'a [u8],
    },
    /// Time and bits of the value.
    Sample {
        t: i64,
        v: u64,
    },
    Exemplar(&'a [u8]),
    Histogram(&'a [u8]),
}

/// The fields of a time series, in order.
pub struct SeriesFields<'a> {
    rest: &'a [u8],
}

impl<'a> SeriesFields<'a> {
    pub fn new(series: &'a [u8]) -> SeriesFields<'a> {
        SeriesFields { rest: series }
    }

    /// Bytes not yet read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next field that we know; `None` at the end of the message.
    pub fn next_field(&mut self) -> Result<Option<SeriesField<'a>>, DecodeError> {
        while !self.rest.is_empty() {
            let (number, value, rest) = read_field(self.rest, "timeseries")?;
            self.rest = rest;
            return Ok(Some(match (number, value) {
                (1, Value::Bytes(label)) => {
                    let (name, value) = read_label(label)?;
                    SeriesField::Label { name, value }
                }
                (2, Value::Bytes(sample)) => {
                    let (t, v) = read_sample(sample)?;
                    SeriesField::Sample { t, v }
                }
                (3, Value::Bytes(exemplar)) => SeriesField::Exemplar(exemplar),
                (4, Value::Bytes(histogram)) => SeriesField::Histogram(histogram),
                (1..=4, _) => return Err(DecodeError::new("timeseries", WRONG_WIRE_TYPE)),
                _ => continue,
            }));
        }
        Ok(None)
    }
}

/// Name and value of a label.
pub(super) fn read_label(mut message: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let (mut name, mut value) = (&[][..], &[][..]);
    while !message.is_empty() {
        let (number, field, rest) = read_field(message, "label")?;
        message = rest;
        match (number, field) {
            (1, Value::Bytes(bytes)) => name = bytes,
            (2, Value::Bytes(bytes)) => value = bytes,
            (1 | 2, _) => return Err(DecodeError::new("label", WRONG_WIRE_TYPE)),
            _ => {}
        }
    }
    Ok((name, value))
}

/// Time and bits of the value of a sample.
pub(super) fn read_sample(mut message: &[u8]) -> Result<(i64, u64), DecodeError> {
    let (mut t, mut v) = (0, 0);
    while !message.is_empty() {
        let (number, field, rest) = read_field(message, "sample")?;
        message = rest;
        match (number, field) {
            (1, Value::Fixed64(bits)) => v = bits,
            (2, Value::Varint(time)) => t = time as i64,
            (1 | 2, _) => return Err(DecodeError::new("sample", WRONG_WIRE_TYPE)),
            _ => {}
        }
    }
    Ok((t, v))
}

/// Checks that bytes which are counted and not kept are a message at all.
pub fn check_message(mut message: &[u8], name: &'static str) -> Result<(), DecodeError> {
    while !message.is_empty() {
        message = read_field(message, name)?.2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::labels::push_label;
    use crate::model::varint::push_varint;
    use proptest::prelude::*;

    fn series(sample: &[u8]) -> Vec<u8> {
        let mut series = Vec::new();
        push_label(&mut series, 0x0a, b"__name__", b"up");
        series.extend_from_slice(sample);
        series
    }

    fn sample(t: i64, v: f64) -> Vec<u8> {
        let mut body = Vec::new();
        if v.to_bits() != 0 {
            body.push(0x09);
            body.extend_from_slice(&v.to_le_bytes());
        }
        body.push(0x10);
        push_varint(&mut body, t as u64);
        let mut field = vec![0x12, body.len() as u8];
        field.extend_from_slice(&body);
        field
    }

    #[test]
    fn the_usual_tails_are_split_off() {
        let now = 1_700_000_000_123;
        for v in [0.0, 1.5, -0.0, f64::NAN] {
            let message = series(&sample(now, v));
            let (before, t, bits) = split_tail_sample(&message).unwrap();
            assert_eq!((before, t, bits), (&series(&[])[..], now, v.to_bits()));
        }
        assert_eq!(split_tail_sample(&series(&sample(1000, 1.5))), None, "a short time");
        assert_eq!(split_tail_sample(&series(&[])), None);
        assert_eq!(split_tail_sample(&[]), None);
    }

    #[test]
    fn a_series_is_read_field_by_field() {
        let mut message = series(&sample(1000, 1.5));
        message.extend([0x1a, 0, 0x22, 0, 0x28, 7, 0x33, 0x34]);
        let mut fields = SeriesFields::new(&message);
        let mut read = Vec::new();
        while let Some(field) = fields.next_field().unwrap() {
            read.push(field);
        }
        assert_eq!(
            read,
            [
                SeriesField::Label { name: b"__name__", value: b"up" },
                SeriesField::Sample { t: 1000, v: 1.5f64.to_bits() },
                SeriesField::Exemplar(&[]),
                SeriesField::Histogram(&[]),
            ]
        );
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for (bytes, what) in [
            (&[0x0a, 5, 1][..], TRUNCATED),
            (&[0x08, 1], WRONG_WIRE_TYPE),
            (&[0x00], "illegal field number"),
            (&[0x0f], "illegal wire type"),
            (&[0x0c], "group ends that did not start"),
            (&[0x80; 11], TRUNCATED),
            (&[0x33; 200], "illegal wire type"),
        ] {
            let error = SeriesFields::new(bytes).next_field().unwrap_err();
            assert_eq!(error.what, what, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut request = RequestFields::new(&bytes);
            while let Ok(Some(field)) = request.next_field() {
                let (RequestField::TimeSeries(inner) | RequestField::Metadata(inner)) = field;
                let mut fields = SeriesFields::new(inner);
                while let Ok(Some(_)) = fields.next_field() {}
                split_tail_sample(inner);
            }
        }

        #[test]
        fn a_split_tail_is_what_a_full_read_finds(t in 1i64 << 35..1 << 42, v in any::<u64>()) {
            let message = series(&sample(t, f64::from_bits(v)));
            let (before, split_t, split_v) = split_tail_sample(&message).unwrap();
            let mut fields = SeriesFields::new(&message[before.len()..]);
            let whole = fields.next_field().unwrap().unwrap();
            prop_assert_eq!(whole, SeriesField::Sample { t: split_t, v: split_v });
        }
    }
}
