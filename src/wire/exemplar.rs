//! An exemplar as senders write it, `prometheus.Exemplar`:
//!
//! ```text
//! 1 labels*    2 value    3 timestamp
//! ```

use crate::model::Timestamp;
use crate::model::labels::{TAG_FIELD_1, push_label};
use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field, read_label};

const MESSAGE: &str = "exemplar";

/// Characters that names and values of an exemplar's labels may have together, as OpenMetrics and
/// Prometheus have it. Bytes that are not UTF-8 count as one each.
pub const LABEL_CHARS_MAX: usize = 128;

/// An exemplar without its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExemplarMessage {
    pub t: Timestamp,
    /// Bits of the value.
    pub v: u64,
    /// The labels have more than [`LABEL_CHARS_MAX`] characters, and are read in part.
    pub is_too_long: bool,
}

impl ExemplarMessage {
    /// Reads an exemplar, and its labels into `labels`, in place of what is there: as those of a
    /// [key](crate::model::labels), but in the order sent. Labels without a value are none.
    pub fn read(mut message: &[u8], labels: &mut Vec<u8>) -> Result<ExemplarMessage, DecodeError> {
        labels.clear();
        let (mut t, mut v, mut chars) = (0, 0, 0);
        while !message.is_empty() {
            let (number, value, rest) = read_field(message, MESSAGE)?;
            message = rest;
            match (number, value) {
                (1, Value::Bytes(label)) => {
                    let (name, value) = read_label(label)?;
                    chars += char_count(name) + char_count(value);
                    if chars <= LABEL_CHARS_MAX && !value.is_empty() {
                        push_label(labels, TAG_FIELD_1, name, value);
                    }
                }
                (2, Value::Fixed64(bits)) => v = bits,
                (3, Value::Varint(time)) => t = time as i64,
                (1..=3, _) => return Err(DecodeError::new(MESSAGE, WRONG_WIRE_TYPE)),
                _ => {}
            }
        }
        Ok(ExemplarMessage { t, v, is_too_long: chars > LABEL_CHARS_MAX })
    }
}

/// Characters of a text, as Go counts them: bytes that are not UTF-8 are one each.
pub(super) fn char_count(text: &[u8]) -> usize {
    match text.is_ascii() {
        true => text.len(),
        false => text
            .utf8_chunks()
            .map(|chunk| chunk.valid().chars().count() + chunk.invalid().len())
            .sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::labels::LabelIter;
    use crate::model::varint::push_varint;

    fn message(labels: &[(&[u8], &[u8])], t: i64, v: f64) -> Vec<u8> {
        let mut out = Vec::new();
        labels.iter().for_each(|(name, value)| push_label(&mut out, TAG_FIELD_1, name, value));
        out.push(2 << 3 | 1);
        out.extend_from_slice(&v.to_le_bytes());
        out.push(3 << 3);
        push_varint(&mut out, t as u64);
        out
    }

    #[test]
    fn labels_stay_in_the_order_sent() {
        let sent: [(&[u8], &[u8]); 4] = [(b"z", b"1"), (b"a", b""), (b"", b"2"), (b"a", b"\xff")];
        let mut labels = b"what was there".to_vec();
        let read = ExemplarMessage::read(&message(&sent, -5, 0.5), &mut labels).unwrap();
        let expected = ExemplarMessage { t: -5, v: 0.5_f64.to_bits(), is_too_long: false };
        assert_eq!(read, expected);
        let kept: Vec<_> = LabelIter::of_canonical(&labels).collect();
        assert_eq!(kept, [sent[0], sent[2], sent[3]]);
    }

    #[test]
    fn characters_of_labels_are_counted_as_go_counts_them() {
        let is_too_long = |name: &[u8], value: &[u8]| {
            let message = message(&[(name, value)], 1, 1.0);
            ExemplarMessage::read(&message, &mut Vec::new()).unwrap().is_too_long
        };
        let texts: [&[u8]; 4] = [b"x", "é".as_bytes(), "\u{1f600}".as_bytes(), b"\xff"];
        for text in texts {
            assert!(!is_too_long(b"trace_id", &text.repeat(120)), "{text:?}");
            assert!(is_too_long(b"trace_id", &text.repeat(121)), "{text:?}");
        }
        // The first two bytes of three are two characters to Go.
        assert!(is_too_long(b"", &b"\xe2\x82".repeat(65)));
        assert!(!is_too_long(b"", &b"\xe2\x82".repeat(64)));
    }

    #[test]
    fn many_labels_take_no_more_than_those_that_may_be() {
        let label: (&[u8], &[u8]) = (b"a", b"1");
        let mut labels = Vec::new();
        let read =
            ExemplarMessage::read(&message(&vec![label; 100_000], 1, 1.0), &mut labels).unwrap();
        assert!(read.is_too_long);
        assert!(labels.len() <= 64 * 8);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let whole = message(&[(b"a", b"b")], 1, 1.0);
        for end in 1..whole.len() {
            // Between two fields it is a shorter message.
            let _ = ExemplarMessage::read(&whole[..end], &mut Vec::new());
        }
        let wrong: [&[u8]; 4] = [&[0x08, 1], &[0x10, 1], &[0x1a, 0], &[0x0a, 9]];
        for wrong in wrong {
            assert!(ExemplarMessage::read(wrong, &mut Vec::new()).is_err(), "{wrong:?}");
        }
    }
}
