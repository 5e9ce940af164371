//! Labels as the bytes they travel in.
//!
//! A series is identified by its *canonical key*: its labels sorted by name, without empty values,
//! in the encoding that senders normally use, that is the label fields of a remote-write
//! `TimeSeries` with minimal varints and nothing else:
//!
//! ```text
//! 0x0a <len> ( 0x0a <len> name  0x12 <len> value )     once per label
//! ```
//!
//! One allocation serves as identity, text and wire form.

use std::fmt;

use triomphe::ThinArc;

use crate::model::varint;

/// Field 1 of `TimeSeries`, and field 1 (name) of `Label`, both length-delimited.
pub const TAG_FIELD_1: u8 = 0x0a;
/// Field 2 (value) of `Label`, length-delimited.
pub const TAG_FIELD_2: u8 = 0x12;

/// The label that carries the metric's name.
pub const METRIC_NAME: &[u8] = b"__name__";

/// A canonical key, shared and one pointer wide.
///
/// Invariant: the bytes were built by [`KeyBuilder`], so [`SeriesKey::labels`] cannot fail.
#[derive(Clone)]
pub struct SeriesKey(ThinArc<(), u8>);

impl SeriesKey {
    /// The caller upholds that `canonical` is a canonical key.
    pub fn from_canonical(canonical: &[u8]) -> SeriesKey {
        SeriesKey(ThinArc::from_header_and_slice((), canonical))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// Name and value of each label, in order of names.
    pub fn labels(&self) -> LabelIter<'_> {
        LabelIter::of_canonical(self.as_bytes())
    }
}

impl PartialEq for SeriesKey {
    fn eq(&self, other: &SeriesKey) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for SeriesKey {}

impl fmt::Debug for SeriesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", DisplayLabels(self.as_bytes()))
    }
}

/// Walks the labels of a canonical key.
#[derive(Clone)]
pub struct LabelIter<'a> {
    rest: &'a [u8],
}

impl<'a> LabelIter<'a> {
    /// `key` must be a canonical key; the walk ends early on anything else.
    pub fn of_canonical(key: &'a [u8]) -> LabelIter<'a> {
        LabelIter { rest: key }
    }
}

impl<'a> Iterator for LabelIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (name, value, rest) = split_label(self.rest)?;
        self.rest = rest;
        Some((name, value))
    }
}

/// Splits a label in the encoding that senders normally use off the front of a series: its name,
/// its value, and what follows.
#[inline]
pub fn split_label(series: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // Lengths of one byte, as nearly all are.
    if let [TAG_FIELD_1, len, TAG_FIELD_1, name_len @ ..0x80, rest @ ..] = series
        && let Some((name, rest)) = rest.split_at_checked(usize::from(*name_len))
        && let [TAG_FIELD_2, value_len @ ..0x80, rest @ ..] = rest
        && let Some((value, rest)) = rest.split_at_checked(usize::from(*value_len))
        && *len < 0x80
        && usize::from(*len) == 4 + name.len() + value.len()
    {
        return Some((name, value, rest));
    }
    split_long_label(series)
}

fn split_long_label(series: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (label, rest) = varint::split_len_prefixed(series.strip_prefix(&[TAG_FIELD_1])?)?;
    let (name, value) = varint::split_len_prefixed(label.strip_prefix(&[TAG_FIELD_1])?)?;
    let (value, end) = varint::split_len_prefixed(value.strip_prefix(&[TAG_FIELD_2])?)?;
    end.is_empty().then_some((name, value, rest))
}

/// Builds canonical keys, reusing its memory.
#[derive(Default)]
pub struct KeyBuilder {
    bytes: Vec<u8>,
}

impl KeyBuilder {
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Adds a label. The caller adds them in order of names, and none with an empty value.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        push_label(&mut self.bytes, TAG_FIELD_1, name, value);
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that [`push_label`] appends for a field below 16.
#[inline]
pub fn label_len(name: &[u8], value: &[u8]) -> usize {
    let body = label_body_len(name, value);
    1 + varint::varint_len(body as u64) + body
}

#[inline]
fn label_body_len(name: &[u8], value: &[u8]) -> usize {
    let len = |text: &[u8]| varint::varint_len(text.len() as u64) + text.len();
    2 + len(name) + len(value)
}

/// Appends one label as a length-delimited field `tag` that holds a `Label` message.
pub fn push_label(out: &mut Vec<u8>, tag: u8, name: &[u8], value: &[u8]) {
    let body = label_body_len(name, value);
    out.push(tag);
    varint::push_varint(out, body as u64);
    out.push(TAG_FIELD_1);
    varint::push_varint(out, name.len() as u64);
    out.extend_from_slice(name);
    out.push(TAG_FIELD_2);
    varint::push_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Shows a canonical key as Prometheus does: `{a="b", c="d"}`, for messages and logs. Bytes that
/// are not UTF-8 are shown as the replacement character.
pub struct DisplayLabels<'a>(pub &'a [u8]);

impl fmt::Display for DisplayLabels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_labels(f, LabelIter::of_canonical(self.0))
    }
}

/// Writes labels as `{a="b", c="d"}`, quoted as Go's `%q` for the common cases.
pub fn fmt_labels<'a>(
    f: &mut impl fmt::Write,
    labels: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> fmt::Result {
    f.write_char('{')?;
    for (i, (name, value)) in labels.enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{}={:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))?;
    }
    f.write_char('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_its_labels() {
        let mut builder = KeyBuilder::default();
        let long = vec![b'x'; 300];
        builder.push(METRIC_NAME, b"up");
        builder.push(b"job", &long);
        let key = SeriesKey::from_canonical(builder.as_bytes());
        let labels: Vec<_> = key.labels().collect();
        assert_eq!(labels, [(METRIC_NAME, &b"up"[..]), (&b"job"[..], &long[..])]);
        assert!(format!("{key:?}").starts_with("{__name__=\"up\", job=\"xxx"));
    }
}
