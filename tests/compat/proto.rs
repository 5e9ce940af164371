//! Messages between JSON and wire, by their descriptors, as suites write them: proto field names,
//! enums by name, bytes in base64, strings that are not UTF-8 as `{"b64"}`, and only the fields
//! that are on the wire. Our own, since libraries for this refuse strings that Thanos sends.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use protox::prost_reflect::{
    Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
};
use serde_json::{Map, Value, json};

use crate::suite;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compat/proto");
    let files =
        protox::compile(["thanos.proto", "info.proto", "write.proto", "exemplars.proto"], [dir])
            .expect("own schema");
    let mut pool = DescriptorPool::from_file_descriptor_set(files).expect("own schema");
    for published in [
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        pool.decode_file_descriptor_set(published).expect("published schema");
    }
    pool
});

/// The method of a path such as `/thanos.Store/Series`.
pub(crate) fn method(path: &str) -> Option<MethodDescriptor> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    POOL.get_service_by_name(service)?.methods().find(|known| known.name() == method)
}

pub(crate) fn encode(message: &MessageDescriptor, fields: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields.as_object().expect("a message is an object") {
        let field = message
            .get_field_by_name(name)
            .unwrap_or_else(|| panic!("{} has no field {name}", message.full_name()));
        match value {
            Value::Array(values) => {
                values.iter().for_each(|value| encode_field(&field, value, &mut bytes));
            }
            value => encode_field(&field, value, &mut bytes),
        }
    }
    bytes
}

fn encode_field(field: &FieldDescriptor, value: &Value, bytes: &mut Vec<u8>) {
    let mut tag = |wire_type: u32| push_varint(bytes, u64::from(field.number() << 3 | wire_type));
    let int = || {
        let signed = value.as_i64().map(|value| value as u64);
        signed.or(value.as_u64()).expect("an integer")
    };
    match field.kind() {
        Kind::Bool => {
            tag(0);
            push_varint(bytes, u64::from(value.as_bool().expect("a bool")));
        }
        Kind::Enum(kind) => {
            let number = match value.as_str() {
                Some(name) => i64::from(kind.get_value_by_name(name).expect("enum").number()),
                None => value.as_i64().expect("an enum's number"),
            };
            tag(0);
            push_varint(bytes, number as u64);
        }
        Kind::Int32 | Kind::Int64 | Kind::Uint32 | Kind::Uint64 => {
            tag(0);
            push_varint(bytes, int());
        }
        Kind::Sint32 | Kind::Sint64 => {
            let value = value.as_i64().expect("an integer");
            tag(0);
            push_varint(bytes, (value << 1 ^ value >> 63) as u64);
        }
        Kind::Double => {
            tag(1);
            bytes.extend_from_slice(&double_bits(value).to_le_bytes());
        }
        Kind::String => {
            tag(2);
            push_delimited(bytes, &suite::text_or_bytes(value));
        }
        Kind::Bytes => {
            tag(2);
            push_delimited(bytes, &suite::base64_bytes(value.as_str().expect("base64")));
        }
        Kind::Message(inner) => {
            tag(2);
            push_delimited(bytes, &encode(&inner, value));
        }
        other => panic!("{}: kind {other:?} is not encoded", field.full_name()),
    }
}

/// The bits of a number as suites write it.
pub(crate) fn double_bits(value: &Value) -> u64 {
    match value {
        Value::String(text) if text == "+Inf" => f64::INFINITY.to_bits(),
        Value::String(text) if text == "-Inf" => f64::NEG_INFINITY.to_bits(),
        Value::String(text) => {
            let bits = text.strip_prefix("nan:").expect("a double");
            u64::from_str_radix(bits, 16).expect("16 hexadecimal digits")
        }
        number => number.as_f64().expect("a double").to_bits(),
    }
}

/// What is on the wire, or what is wrong with it.
pub(crate) fn decode(message: &MessageDescriptor, mut bytes: &[u8]) -> Result<Value, String> {
    let mut fields = Map::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes)?;
        let number = u32::try_from(tag >> 3).map_err(|_| "field number out of range")?;
        let field = message
            .get_field(number)
            .ok_or_else(|| format!("{} has no field {number}", message.full_name()))?;
        let repeated = field.cardinality() == Cardinality::Repeated;
        let is_number = !matches!(field.kind(), Kind::String | Kind::Bytes | Kind::Message(_));
        let mut values = Vec::new();
        if repeated && is_number && tag & 7 == 2 {
            let mut packed = take_delimited(&mut bytes)?;
            while !packed.is_empty() {
                values.push(decode_value(&field, &mut packed)?);
            }
        } else {
            values.push(decode_value(&field, &mut bytes)?);
        }
        if repeated {
            let list = fields.entry(field.name()).or_insert_with(|| json!([]));
            list.as_array_mut().expect("repeated fields are lists").append(&mut values);
        } else {
            fields.insert(field.name().to_owned(), values.remove(0));
        }
    }
    Ok(Value::Object(fields))
}

fn decode_value(field: &FieldDescriptor, bytes: &mut &[u8]) -> Result<Value, String> {
    Ok(match field.kind() {
        Kind::Bool => json!(take_varint(bytes)? != 0),
        Kind::Enum(kind) => {
            let number = take_varint(bytes)? as i32;
            kind.get_value(number).map_or(json!(number), |value| json!(value.name()))
        }
        Kind::Int32 | Kind::Int64 => json!(take_varint(bytes)? as i64),
        Kind::Uint32 | Kind::Uint64 => json!(take_varint(bytes)?),
        Kind::Sint32 | Kind::Sint64 => {
            let value = take_varint(bytes)?;
            json!((value >> 1) as i64 ^ -((value & 1) as i64))
        }
        Kind::Double => {
            let (value, rest) = bytes.split_first_chunk().ok_or("double cut short")?;
            *bytes = rest;
            double(u64::from_le_bytes(*value))
        }
        Kind::String => text(take_delimited(bytes)?),
        Kind::Bytes => json!(BASE64_STANDARD.encode(take_delimited(bytes)?)),
        Kind::Message(inner) => decode(&inner, take_delimited(bytes)?)?,
        other => return Err(format!("{}: kind {other:?} is not decoded", field.full_name())),
    })
}

/// A double as suites write it.
fn double(bits: u64) -> Value {
    let value = f64::from_bits(bits);
    match value.classify() {
        std::num::FpCategory::Nan => json!(format!("nan:{bits:016x}")),
        std::num::FpCategory::Infinite => json!(if value > 0.0 { "+Inf" } else { "-Inf" }),
        _ => json!(value),
    }
}

/// A text, or bytes that are none, as suites write them.
fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "b64": BASE64_STANDARD.encode(bytes) }),
    }
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn push_delimited(bytes: &mut Vec<u8>, content: &[u8]) {
    push_varint(bytes, content.len() as u64);
    bytes.extend_from_slice(content);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or("varint cut short")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    Err("varint of more than ten bytes".into())
}

fn take_delimited<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], String> {
    let len = usize::try_from(take_varint(bytes)?).map_err(|error| error.to_string())?;
    let (content, rest) = bytes.split_at_checked(len).ok_or("field cut short")?;
    *bytes = rest;
    Ok(content)
}
