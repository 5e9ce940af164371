//! OTLP's JSON into its protobuf, as it is read: no tree is built of it. Integers come as numbers
//! or as texts, names in camel case or with underscores, enums by number or by name, identifiers in
//! hexadecimal digits; `null` is as good as nothing.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::model::varint::{push_varint, zigzag};
use crate::wire::otlp::schema::{Field, Kind, Message, REQUEST, TEMPORALITIES};
use crate::wire::request_builder::TooLong;

/// Why a text is not taken: it is no JSON of a request, or the caller said so.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("JSON: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error(transparent)]
    TooLong(TooLong),
}

/// A message's length has so many bytes, whatever it is: it is written when the message is.
const LEN_BYTES: usize = 5;

/// What is admitted first.
const STEP_BYTES: usize = 64 << 10;

/// Writes the request that is `json` to the start of `out`, at most `max` bytes, and says how many
/// those are. Before `out` holds so many, `admit` is asked, which ends the work with its error.
pub fn to_protobuf<E: From<JsonError>>(
    json: &[u8],
    out: &mut Vec<u8>,
    max: u64,
    admit: impl FnMut(u64) -> Result<(), E>,
) -> Result<usize, E> {
    out.clear();
    let max = usize::try_from(max.min(u64::from(u32::MAX))).unwrap_or(usize::MAX);
    let mut writer = Writer { out, admitted: 0, max, admit, failure: None };
    let mut json = serde_json::Deserializer::from_slice(json);
    let read = json.deserialize_any(MessageVisitor { message: &REQUEST, writer: &mut writer });
    let read = read.and_then(|()| json.end());
    match (writer.failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(JsonError::Malformed(error).into()),
        (None, Ok(())) => Ok(out.len()),
    }
}

struct Writer<'o, A, E> {
    out: &'o mut Vec<u8>,
    admitted: usize,
    max: usize,
    admit: A,
    /// Why the work ended, if it was not the JSON.
    failure: Option<E>,
}

impl<A, E> Writer<'_, A, E>
where
    A: FnMut(u64) -> Result<(), E>,
    E: From<JsonError>,
{
    fn push<D: Error>(&mut self, bytes: &[u8]) -> Result<(), D> {
        let needed = self.out.len() + bytes.len();
        if needed > self.admitted {
            self.grow(needed).map_err(|failure| {
                self.failure = Some(failure);
                D::custom("stopped")
            })?;
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn grow(&mut self, needed: usize) -> Result<(), E> {
        if needed > self.max {
            return Err(JsonError::TooLong(TooLong { max: self.max as u64 }).into());
        }
        let admitted = self.admitted.saturating_mul(2).max(STEP_BYTES).max(needed).min(self.max);
        if self.out.capacity() < admitted {
            // While it is copied it is there twice.
            (self.admit)(admitted.saturating_add(self.admitted) as u64)?;
            self.out.reserve_exact(admitted.saturating_sub(self.out.len()));
        }
        (self.admit)(admitted as u64)?;
        self.admitted = admitted;
        Ok(())
    }

    fn push_number<D: Error>(&mut self, number: u32, value: u64) -> Result<(), D> {
        let mut field = Vec::with_capacity(12);
        push_varint(&mut field, u64::from(number) << 3);
        push_varint(&mut field, value);
        self.push(&field)
    }

    fn push_fixed<D: Error>(&mut self, number: u32, bits: u64) -> Result<(), D> {
        let mut field = Vec::with_capacity(10);
        push_varint(&mut field, u64::from(number) << 3 | 1);
        field.extend_from_slice(&bits.to_le_bytes());
        self.push(&field)
    }

    fn push_bytes<D: Error>(&mut self, number: u32, bytes: &[u8]) -> Result<(), D> {
        let mut head = Vec::with_capacity(12);
        push_varint(&mut head, u64::from(number) << 3 | 2);
        push_varint(&mut head, bytes.len() as u64);
        self.push(&head)?;
        self.push(bytes)
    }

    /// Begins a message; it is ended with what this returns.
    fn open<D: Error>(&mut self, number: u32) -> Result<usize, D> {
        let mut head = Vec::with_capacity(LEN_BYTES + 2);
        push_varint(&mut head, u64::from(number) << 3 | 2);
        head.extend_from_slice(&[0; LEN_BYTES]);
        self.push(&head)?;
        Ok(self.out.len())
    }

    fn close(&mut self, start: usize) {
        // It is below 2^32, and so five times seven bits hold it.
        let mut len = self.out.len() - start;
        let place = self.out.get_mut(start - LEN_BYTES..start).unwrap_or_default();
        for (i, byte) in place.iter_mut().enumerate() {
            let more = if i + 1 < LEN_BYTES { 0x80 } else { 0 };
            *byte = u8::try_from(len & 0x7f).unwrap_or_default() | more;
            len >>= 7;
        }
    }
}

struct MessageVisitor<'w, 'o, A, E> {
    message: &'static Message,
    writer: &'w mut Writer<'o, A, E>,
}

impl<'de, A, E> Visitor<'de> for MessageVisitor<'_, '_, A, E>
where
    A: FnMut(u64) -> Result<(), E>,
    E: From<JsonError>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<D: Error>(self) -> Result<(), D> {
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(field) = map.next_key_seed(Key(self.message))? {
            match field {
                Some(field) => {
                    let writer = &mut *self.writer;
                    map.next_value_seed(FieldSeed { field, is_element: false, writer })?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The field that a key names, if it is one of the message's.
struct Key(&'static Message);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<D: Error>(self, key: &str) -> Result<Self::Value, D> {
        Ok(self.0.0.iter().find(|field| field.is_called(key)))
    }
}

/// A field's value, or one of its elements.
struct FieldSeed<'w, 'o, A, E> {
    field: &'static Field,
    is_element: bool,
    writer: &'w mut Writer<'o, A, E>,
}

impl<'de, A, E> DeserializeSeed<'de> for FieldSeed<'_, '_, A, E>
where
    A: FnMut(u64) -> Result<(), E>,
    E: From<JsonError>,
{
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<A, E> FieldSeed<'_, '_, A, E>
where
    A: FnMut(u64) -> Result<(), E>,
    E: From<JsonError>,
{
    fn put_int<D: Error>(self, value: i64) -> Result<(), D> {
        let number = self.field.number;
        let bits = value.cast_unsigned();
        match self.field.kind {
            Kind::Int => self.writer.push_number(number, bits),
            Kind::Zigzag => match i32::try_from(value) {
                Ok(_) => self.writer.push_number(number, zigzag(value)),
                Err(_) => Err(D::custom(format!("{value} is out of range"))),
            },
            Kind::FixedInt => self.writer.push_fixed(number, bits),
            Kind::Double => self.put_double(value as f64),
            Kind::Uint | Kind::FixedUint | Kind::Temporality if value >= 0 => self.put_uint(bits),
            _ => Err(D::custom(format!("unexpected {value} for {}", self.field.name))),
        }
    }

    fn put_uint<D: Error>(self, value: u64) -> Result<(), D> {
        let number = self.field.number;
        match self.field.kind {
            Kind::Uint | Kind::Temporality => self.writer.push_number(number, value),
            Kind::FixedUint => self.writer.push_fixed(number, value),
            Kind::Double => self.put_double(value as f64),
            _ => match i64::try_from(value) {
                Ok(value) => self.put_int(value),
                Err(_) => Err(D::custom(format!("{value} is out of range"))),
            },
        }
    }

    fn put_double<D: Error>(self, value: f64) -> Result<(), D> {
        match self.field.kind {
            Kind::Double => self.writer.push_fixed(self.field.number, value.to_bits()),
            _ => Err(D::custom(format!("unexpected {value} for {}", self.field.name))),
        }
    }

    fn put_text<D: Error>(self, text: &str) -> Result<(), D> {
        let name = self.field.name;
        let refused = |what: &str| D::custom(format!("{text:?} is no {what} for {name}"));
        let number = self.field.number;
        match self.field.kind {
            Kind::Text => self.writer.push_bytes(number, text.as_bytes()),
            Kind::Bytes => {
                let bytes = BASE64_STANDARD.decode(text).map_err(|_| refused("Base64"))?;
                self.writer.push_bytes(number, &bytes)
            }
            Kind::Id(len) => {
                let id = from_hex(text).filter(|id| id.is_empty() || id.len() == len);
                self.writer.push_bytes(number, &id.ok_or_else(|| refused("identifier"))?)
            }
            Kind::Temporality => {
                let known = TEMPORALITIES.iter().find(|(name, _)| *name == text);
                // Another one is as good as none.
                self.put_uint(known.map_or(0, |(_, number)| *number))
            }
            Kind::Int | Kind::Zigzag | Kind::FixedInt => {
                self.put_int(text.parse().map_err(|_| refused("integer"))?)
            }
            Kind::Uint | Kind::FixedUint => {
                self.put_uint(text.parse().map_err(|_| refused("integer"))?)
            }
            Kind::Double => match text {
                "NaN" => self.put_double(f64::NAN),
                "Infinity" => self.put_double(f64::INFINITY),
                "-Infinity" => self.put_double(f64::NEG_INFINITY),
                _ => self.put_double(text.parse().map_err(|_| refused("number"))?),
            },
            Kind::Bool | Kind::Message(_) => Err(refused("value")),
        }
    }
}

impl<'de, A, E> Visitor<'de> for FieldSeed<'_, '_, A, E>
where
    A: FnMut(u64) -> Result<(), E>,
    E: From<JsonError>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = if self.field.is_repeated && !self.is_element { "a list of " } else { "" };
        write!(f, "{list}{}", self.field.name)
    }

    fn visit_unit<D: Error>(self) -> Result<(), D> {
        Ok(())
    }

    fn visit_bool<D: Error>(self, value: bool) -> Result<(), D> {
        match self.field.kind {
            Kind::Bool => self.writer.push_number(self.field.number, u64::from(value)),
            _ => Err(D::custom(format!("unexpected {value} for {}", self.field.name))),
        }
    }

    fn visit_i64<D: Error>(self, value: i64) -> Result<(), D> {
        self.put_int(value)
    }

    fn visit_u64<D: Error>(self, value: u64) -> Result<(), D> {
        self.put_uint(value)
    }

    fn visit_f64<D: Error>(self, value: f64) -> Result<(), D> {
        self.put_double(value)
    }

    fn visit_str<D: Error>(self, text: &str) -> Result<(), D> {
        self.put_text(text)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<(), S::Error> {
        if !self.field.is_repeated || self.is_element {
            return Err(S::Error::custom(format!("unexpected list for {}", self.field.name)));
        }
        let FieldSeed { field, writer, .. } = self;
        while list.next_element_seed(FieldSeed { field, is_element: true, writer })?.is_some() {}
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<(), M::Error> {
        let Kind::Message(message) = self.field.kind else {
            return Err(M::Error::custom(format!("unexpected object for {}", self.field.name)));
        };
        let start = self.writer.open(self.field.number)?;
        MessageVisitor { message, writer: &mut *self.writer }.visit_map(map)?;
        self.writer.close(start);
        Ok(())
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        let digit = char::from(byte).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    bytes.collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty())
}
