//! Values of attributes as texts. Lists are JSON as Go's encoder writes it, since that is what
//! becomes a label's value at Thanos, too.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::wire::otlp::caps::{DEPTH_MAX, VALUES_MAX};
use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field};

const VALUE: &str = "attribute value";

/// An `AnyValue`, its lists not read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum AnyValue<'r> {
    Empty,
    Text(&'r [u8]),
    Bool(bool),
    Int(i64),
    Double(f64),
    Array(&'r [u8]),
    List(&'r [u8]),
    Bytes(&'r [u8]),
}

impl<'r> AnyValue<'r> {
    pub(super) fn read(mut message: &'r [u8]) -> Result<AnyValue<'r>, DecodeError> {
        let mut any = AnyValue::Empty;
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, VALUE)?;
            message = rest;
            any = match (number, value) {
                (1, Value::Bytes(text)) => AnyValue::Text(text),
                (2, Value::Varint(value)) => AnyValue::Bool(value != 0),
                (3, Value::Varint(value)) => AnyValue::Int(value.cast_signed()),
                (4, Value::Fixed64(bits)) => AnyValue::Double(f64::from_bits(bits)),
                (5, Value::Bytes(array)) => AnyValue::Array(array),
                (6, Value::Bytes(list)) => AnyValue::List(list),
                (7, Value::Bytes(bytes)) => AnyValue::Bytes(bytes),
                (1..=7, _) => return Err(DecodeError::new(VALUE, WRONG_WIRE_TYPE)),
                _ => continue,
            };
        }
        Ok(any)
    }
}

/// Splits a `KeyValue`: its key and its value, not read. Neither need be there.
pub(super) fn read_key_value(mut message: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    const NAME: &str = "attribute";
    let (mut key, mut any) = (&[][..], &[][..]);
    while !message.is_empty() {
        let (number, value, rest) = read_field(message, NAME)?;
        message = rest;
        match (number, value) {
            (1, Value::Bytes(bytes)) => key = bytes,
            (2, Value::Bytes(bytes)) => any = bytes,
            (1 | 2, _) => return Err(DecodeError::new(NAME, WRONG_WIRE_TYPE)),
            _ => {}
        }
    }
    Ok((key, any))
}

/// Why a list has no text.
enum NoJson {
    Malformed(DecodeError),
    /// JSON has no such number, and then Go writes nothing at all.
    NotANumber,
}

impl From<DecodeError> for NoJson {
    fn from(error: DecodeError) -> NoJson {
        NoJson::Malformed(error)
    }
}

/// Appends the text of the value that `message` holds.
pub(super) fn push_text(out: &mut Vec<u8>, message: &[u8]) -> Result<(), DecodeError> {
    match AnyValue::read(message)? {
        AnyValue::Empty => {}
        AnyValue::Text(text) => out.extend_from_slice(text),
        AnyValue::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        AnyValue::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
        AnyValue::Double(value) if value.is_finite() => push_double(out, value),
        AnyValue::Double(value) => {
            out.extend_from_slice(b"json: unsupported value: ");
            out.extend_from_slice(go_float(value).as_bytes());
        }
        AnyValue::Bytes(bytes) => out.extend_from_slice(BASE64_STANDARD.encode(bytes).as_bytes()),
        list @ (AnyValue::Array(_) | AnyValue::List(_)) => {
            let start = out.len();
            let mut json = Json { out, values: 0 };
            match json.push(list, 0) {
                Ok(()) => {}
                Err(NoJson::NotANumber) => out.truncate(start),
                Err(NoJson::Malformed(error)) => return Err(error),
            }
        }
    }
    Ok(())
}

/// A number as Go's `FormatFloat(v, 'f', -1, 64)` writes it.
pub(super) fn go_float(value: f64) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".into() } else { "-Inf".into() }
    } else {
        value.to_string()
    }
}

/// As JavaScript writes numbers: with an exponent if they are very small or large.
fn push_double(out: &mut Vec<u8>, value: f64) {
    let size = value.abs();
    let mut text = String::new();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{value:e}");
        if let Some(at) = text.find('e').filter(|at| !text[at + 1..].starts_with('-')) {
            text.insert(at + 1, '+');
        }
    } else {
        text = value.to_string();
    }
    out.extend_from_slice(text.as_bytes());
}

struct Json<'o> {
    out: &'o mut Vec<u8>,
    /// Of all lists.
    values: usize,
}

impl Json<'_> {
    fn push(&mut self, value: AnyValue<'_>, depth: usize) -> Result<(), NoJson> {
        match value {
            AnyValue::Empty => self.out.extend_from_slice(b"null"),
            AnyValue::Text(text) => self.push_string(text),
            AnyValue::Bool(value) => {
                self.out.extend_from_slice(if value { b"true" } else { b"false" });
            }
            AnyValue::Int(value) => self.out.extend_from_slice(value.to_string().as_bytes()),
            AnyValue::Double(value) if value.is_finite() => push_double(self.out, value),
            AnyValue::Double(_) => return Err(NoJson::NotANumber),
            AnyValue::Bytes(bytes) => self.push_string(BASE64_STANDARD.encode(bytes).as_bytes()),
            AnyValue::Array(array) => self.push_array(array, depth)?,
            AnyValue::List(list) => self.push_object(list, depth)?,
        }
        Ok(())
    }

    fn push_array(&mut self, array: &[u8], depth: usize) -> Result<(), NoJson> {
        self.out.push(b'[');
        let mut is_first = true;
        for value in elements(array) {
            let value = self.count(value?, depth)?;
            if !is_first {
                self.out.push(b',');
            }
            is_first = false;
            self.push(AnyValue::read(value)?, depth + 1)?;
        }
        self.out.push(b']');
        Ok(())
    }

    /// Keys are sorted; of equal ones the last counts.
    fn push_object(&mut self, list: &[u8], depth: usize) -> Result<(), NoJson> {
        let mut pairs = Vec::new();
        for pair in elements(list) {
            pairs.push(read_key_value(self.count(pair?, depth)?)?);
        }
        pairs.sort_by_key(|(key, _)| *key);
        self.out.push(b'{');
        let mut is_first = true;
        for of_key in pairs.chunk_by(|a, b| a.0 == b.0) {
            let Some((key, value)) = of_key.last() else { continue };
            if !is_first {
                self.out.push(b',');
            }
            is_first = false;
            self.push_string(key);
            self.out.push(b':');
            self.push(AnyValue::read(value)?, depth + 1)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    fn count<'v>(&mut self, value: &'v [u8], depth: usize) -> Result<&'v [u8], DecodeError> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(DecodeError::new(VALUE, "more than 10000 values in lists"));
        }
        if depth >= DEPTH_MAX {
            return Err(DecodeError::new(VALUE, "lists are nested more than 32 deep"));
        }
        Ok(value)
    }

    /// As Go escapes strings, for HTML as well.
    fn push_string(&mut self, text: &[u8]) {
        self.out.push(b'"');
        for part in text.utf8_chunks() {
            for char in part.valid().chars() {
                let short = match char {
                    '"' => Some("\\\""),
                    '\\' => Some("\\\\"),
                    '\n' => Some("\\n"),
                    '\r' => Some("\\r"),
                    '\t' => Some("\\t"),
                    '\u{8}' => Some("\\b"),
                    '\u{c}' => Some("\\f"),
                    _ => None,
                };
                if let Some(short) = short {
                    self.out.extend_from_slice(short.as_bytes());
                } else if matches!(char, '\0'..' ' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}') {
                    let escaped = format!("\\u{:04x}", u32::from(char));
                    self.out.extend_from_slice(escaped.as_bytes());
                } else {
                    let mut buffer = [0; 4];
                    self.out.extend_from_slice(char.encode_utf8(&mut buffer).as_bytes());
                }
            }
            if !part.invalid().is_empty() {
                part.invalid().iter().for_each(|_| self.out.extend_from_slice(b"\\ufffd"));
            }
        }
        self.out.push(b'"');
    }
}

/// The messages in field 1, as arrays and lists have them.
fn elements(mut message: &[u8]) -> impl Iterator<Item = Result<&[u8], DecodeError>> {
    std::iter::from_fn(move || {
        while !message.is_empty() {
            match read_field(message, VALUE) {
                Ok((1, Value::Bytes(element), rest)) => {
                    message = rest;
                    return Some(Ok(element));
                }
                Ok((1, ..)) => {
                    message = &[];
                    return Some(Err(DecodeError::new(VALUE, WRONG_WIRE_TYPE)));
                }
                Ok((_, _, rest)) => message = rest,
                Err(error) => {
                    message = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::varint::push_varint;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        push_varint(&mut field, bytes.len() as u64);
        field.extend_from_slice(bytes);
        field
    }

    fn text(value: &str) -> Vec<u8> {
        field(1, value.as_bytes())
    }

    fn double(value: f64) -> Vec<u8> {
        [&[4 << 3 | 1][..], &value.to_le_bytes()].concat()
    }

    fn int(value: i64) -> Vec<u8> {
        let mut field = vec![3 << 3];
        push_varint(&mut field, value as u64);
        field
    }

    fn array(values: &[Vec<u8>]) -> Vec<u8> {
        field(5, &values.iter().flat_map(|value| field(1, value)).collect::<Vec<_>>())
    }

    fn list(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let pair = |(key, value): &(&str, Vec<u8>)| {
            field(1, &[field(1, key.as_bytes()), field(2, value)].concat())
        };
        field(6, &pairs.iter().flat_map(pair).collect::<Vec<_>>())
    }

    fn shown(value: &[u8]) -> Result<String, DecodeError> {
        let mut out = Vec::new();
        push_text(&mut out, value)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn values_are_written_as_by_go() {
        for (value, expected) in [
            (Vec::new(), ""),
            (text("a\"<b"), "a\"<b"),
            (vec![2 << 3, 1], "true"),
            (int(-42), "-42"),
            (double(1.5), "1.5"),
            (double(1e21), "1e+21"),
            (double(1e20), "100000000000000000000"),
            (double(1e-7), "1e-7"),
            (double(-1.25e-9), "-1.25e-9"),
            (double(0.000001), "0.000001"),
            (double(-0.0), "-0"),
            (double(f64::NAN), "json: unsupported value: NaN"),
            (double(f64::INFINITY), "json: unsupported value: +Inf"),
            (field(7, b"\x00\xff"), "AP8="),
            (array(&[]), "[]"),
            (list(&[]), "{}"),
            (array(&[text("a"), int(1), Vec::new(), double(0.5)]), "[\"a\",1,null,0.5]"),
            (array(&[double(f64::NAN)]), ""),
            (
                array(&[text("<&>\u{1}\n\u{2028}ü")]),
                "[\"\\u003c\\u0026\\u003e\\u0001\\n\\u2028ü\"]",
            ),
            (list(&[("b", int(1)), ("a", text("x")), ("b", int(2))]), "{\"a\":\"x\",\"b\":2}"),
            (array(&[list(&[("k", array(&[field(7, b"ab")]))])]), "[{\"k\":[\"YWI=\"]}]"),
        ] {
            assert_eq!(shown(&value).unwrap(), expected, "{value:?}");
        }
        let mut out = Vec::new();
        push_text(&mut out, &array(&[field(1, b"a\xff\xfeb")])).unwrap();
        assert_eq!(out, b"[\"a\\ufffd\\ufffdb\"]");
        assert_eq!(go_float(0.0000001), "0.0000001");
        assert_eq!(go_float(1e21), "1000000000000000000000");
    }

    #[test]
    fn lists_end_somewhere() {
        let mut nested = text("x");
        for _ in 0..DEPTH_MAX {
            nested = array(&[nested]);
        }
        assert!(shown(&nested).is_ok());
        assert!(shown(&array(&[nested])).is_err());
        assert!(shown(&array(&vec![Vec::new(); VALUES_MAX])).is_ok());
        assert!(shown(&array(&vec![Vec::new(); VALUES_MAX + 1])).is_err());
        assert!(shown(b"\x2a\x02\x0a\x05").is_err());
        assert!(shown(b"\x08\x05").is_err());
    }
}
