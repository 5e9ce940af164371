//! What a message would take once it is decoded, judged by walking over its bytes.
//!
//! A repeated field costs its sender two bytes an element, and us the element as it is in memory: a
//! hundred times as much. So elements are counted, against a cap of their field, before one is
//! made. Nothing is allocated by a message's leave.

use std::mem::size_of;

use bytes::Bytes;

use crate::wire::remote_write_v1::{DecodeError, Value, read_field};

/// Fields of a message and of those in it, known and unknown ones together: far more than a question
/// has in earnest, and walked over in less than a millisecond.
const FIELDS_MAX: usize = 100_000;

/// What a vector that grows by doubling takes at most for an element.
const GROWTH: usize = 2;

/// The fields of a message that may be there more than once. Others take no more than their bytes.
#[derive(Debug)]
pub struct Shape(pub &'static [Field]);

#[derive(Debug)]
pub struct Field {
    pub number: u32,
    /// What the error calls it.
    pub name: &'static str,
    pub kind: Kind,
}

/// Caps are for the whole message, wherever in it the elements are.
#[derive(Debug)]
pub enum Kind {
    /// A message that is there once; one that is sent again is merged into the first.
    Message(&'static Shape),
    /// Messages, each of so many bytes in memory.
    Messages { max: usize, bytes: usize, shape: &'static Shape },
    /// Strings or bytes.
    Texts { max: usize },
    /// Varints, packed or not.
    Numbers { max: usize },
}

/// Why a message is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    #[error("more than {max} {name}")]
    TooMany { name: &'static str, max: usize },
}

impl Shape {
    /// The bytes that the message takes once decoded, beside its own.
    pub fn judge(&'static self, message: &[u8]) -> Result<usize, ShapeError> {
        let mut judge = Judge::default();
        judge.walk(self, message)?;
        Ok(judge.bytes)
    }
}

#[derive(Default)]
struct Judge {
    fields: usize,
    /// Elements of the fields that were met.
    counts: Vec<(&'static Field, usize)>,
    bytes: usize,
}

impl Judge {
    /// Nests as deep as shapes do.
    fn walk(&mut self, shape: &'static Shape, message: &[u8]) -> Result<(), ShapeError> {
        let mut rest = message;
        while !rest.is_empty() {
            self.fields += 1;
            if self.fields > FIELDS_MAX {
                return Err(ShapeError::TooMany { name: "fields", max: FIELDS_MAX });
            }
            let (number, value, after) = read_field(rest, "message")?;
            rest = after;
            let Some(field) = shape.0.iter().find(|field| field.number == number) else { continue };
            match (&field.kind, value) {
                (Kind::Message(shape), Value::Bytes(inner)) => self.walk(shape, inner)?,
                (Kind::Messages { max, bytes, shape }, Value::Bytes(inner)) => {
                    self.count(field, 1, *max, *bytes)?;
                    self.walk(shape, inner)?;
                }
                (Kind::Texts { max }, Value::Bytes(_)) => {
                    self.count(field, 1, *max, size_of::<Bytes>())?;
                }
                // A number takes a byte at least.
                (Kind::Numbers { max }, Value::Bytes(packed)) => {
                    self.count(field, packed.len(), *max, size_of::<u64>())?;
                }
                (Kind::Numbers { max }, Value::Varint(_)) => {
                    self.count(field, 1, *max, size_of::<u64>())?;
                }
                // Of a wrong wire type: refused when it is decoded.
                _ => {}
            }
        }
        Ok(())
    }

    fn count(
        &mut self,
        field: &'static Field,
        more: usize,
        max: usize,
        bytes: usize,
    ) -> Result<(), ShapeError> {
        let known = self.counts.iter().position(|(known, _)| std::ptr::eq(*known, field));
        let at = known.unwrap_or_else(|| {
            self.counts.push((field, 0));
            self.counts.len() - 1
        });
        let Some((_, count)) = self.counts.get_mut(at) else { return Ok(()) };
        *count = count.saturating_add(more);
        if *count > max {
            return Err(ShapeError::TooMany { name: field.name, max });
        }
        self.bytes += more * bytes * GROWTH;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static INNER: Shape =
        Shape(&[Field { number: 3, name: "texts", kind: Kind::Texts { max: 3 } }]);
    static OUTER: Shape = Shape(&[
        Field {
            number: 1,
            name: "messages",
            kind: Kind::Messages { max: 4, bytes: 100, shape: &INNER },
        },
        Field { number: 2, name: "numbers", kind: Kind::Numbers { max: 5 } },
        Field { number: 4, name: "once", kind: Kind::Message(&INNER) },
    ]);

    #[test]
    fn elements_are_counted_before_they_are_made() {
        let text = GROWTH * size_of::<Bytes>();
        let too_many = |name, max| Err(ShapeError::TooMany { name, max });
        let cases = [
            (b"".to_vec(), Ok(0)),
            (b"\x0a\x00".repeat(4), Ok(4 * 200)),
            (b"\x0a\x00".repeat(5), too_many("messages", 4)),
            (b"\x0a\x02\x1a\x00".to_vec(), Ok(200 + text)),
            // Wherever they are.
            (b"\x0a\x02\x1a\x00".repeat(4), too_many("texts", 3)),
            (b"\x22\x02\x1a\x00".repeat(4), too_many("texts", 3)),
            (b"\x12\x03abc\x10\x07".to_vec(), Ok(GROWTH * 4 * size_of::<u64>())),
            (b"\x12\x06abcdef".to_vec(), too_many("numbers", 5)),
            // A field that is not known may be there any number of times.
            (b"\x2a\x00".repeat(1000), Ok(0)),
        ];
        for (message, expected) in cases {
            assert_eq!(OUTER.judge(&message), expected, "{message:?}");
        }
        let fields = b"\x2a\x00".repeat(FIELDS_MAX + 1);
        assert_eq!(OUTER.judge(&fields), too_many("fields", FIELDS_MAX));
        assert!(matches!(OUTER.judge(b"\x0a\x05\x00"), Err(ShapeError::Malformed(_))));
    }
}
