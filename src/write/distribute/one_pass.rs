//! The labels of a series as nearly every sender writes them: walked, judged and hashed in one pass.
//!
//! Only labels that can go on as they are get through: names in strict order, nothing empty, within
//! the caps. Whatever else there is, and why it is refused, is for the full read to say. What this
//! pass accepts the full read accepts, with the same hash.
//!
//! Series are not remembered between requests. What they would be known by is either their bytes,
//! which for a million series is more memory than a router has, or a fingerprint that nobody can
//! forge; and HighwayHash or SipHash-1-3 to 128 bits (91 and 97 ns for 359 bytes) together with a
//! look-up among a million (80 ns) take as long as this pass does (165 ns, where walk, judgement and
//! hash one after another took 300).

use crate::hashring::SeriesHasher;
use crate::model::labels::{METRIC_NAME, TAG_FIELD_1, TAG_FIELD_2};
use crate::write::Manners;
use crate::write::label_rules::LabelCaps;

/// Labels that are in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OrderedLabels {
    /// What places the series.
    pub(super) hash: u64,
    /// Length of the label fields at the message's start. Others may follow behind other fields.
    pub(super) bytes: usize,
}

/// All of `__name__`, as [`first_word`] gives it.
const METRIC_NAME_WORD: u64 = match METRIC_NAME.first_chunk() {
    Some(bytes) => u64::from_be_bytes(*bytes),
    None => panic!("the name is eight bytes long"),
};

/// Reads the label fields at the start of a series of `len` bytes. `ahead` begins with the series
/// and goes on with whatever follows in the request.
#[inline]
pub(super) fn read_ordered_labels(
    ahead: &[u8],
    len: usize,
    hasher: &mut SeriesHasher,
    manners: Manners,
    caps: LabelCaps,
) -> Option<OrderedLabels> {
    let behind = ahead.len().checked_sub(len)?;
    let mut text = hasher.begin();
    let (mut label_count, mut text_bytes) = (0, 0);
    let mut last_name: &[u8] = &[];
    let mut last_word = 0;
    let mut has_metric_name = false;
    let mut rest = ahead;
    while rest.len() > behind && rest[0] == TAG_FIELD_1 {
        let label = Label::read(rest)?;
        rest = label.value.get(label.value_len..)?;
        if label.name_len == 0 || label.value_len == 0 || rest.len() < behind {
            return None;
        }
        let name = label.name.get(..label.name_len)?;
        // Most names differ in their first eight bytes.
        let word = first_word(label.name, label.name_len)?;
        if word <= last_word && (word < last_word || name <= last_name) {
            return None;
        }
        has_metric_name |= word == METRIC_NAME_WORD && label.name_len == METRIC_NAME.len();
        (last_name, last_word) = (name, word);
        label_count += 1;
        text_bytes += label.name_len + label.value_len;
        text.push(label.name, label.name_len);
        text.push(label.value, label.value_len);
    }
    let bytes = ahead.len() - rest.len();
    let is_within_caps = label_count <= caps.labels_max && text_bytes <= caps.bytes_max;
    let is_accepted = match manners {
        Manners::Thanos => true,
        // All that is ASCII is UTF-8.
        Manners::Prometheus => has_metric_name && ahead[..bytes].is_ascii(),
    };
    (label_count > 0 && is_within_caps && is_accepted)
        .then(|| OrderedLabels { hash: text.finish(), bytes })
}

/// A label in the usual order: name, then value, and nothing else. Name and value go on with what
/// follows them in the request.
struct Label<'r> {
    name: &'r [u8],
    name_len: usize,
    value: &'r [u8],
    value_len: usize,
}

impl<'r> Label<'r> {
    /// Reads the label that `field` begins with, its tag included.
    #[inline(always)]
    fn read(field: &'r [u8]) -> Option<Label<'r>> {
        let (label_len, label) = read_len(field.get(1..)?)?;
        let (name_len, name) = read_len(label.strip_prefix(&[TAG_FIELD_1])?)?;
        let (value_len, value) = read_len(name.get(name_len..)?.strip_prefix(&[TAG_FIELD_2])?)?;
        let is_all = label.len() - value.len() + value_len == label_len;
        is_all.then_some(Label { name, name_len, value, value_len })
    }
}

/// Reads a length of one or two bytes.
#[inline(always)]
fn read_len(bytes: &[u8]) -> Option<(usize, &[u8])> {
    const MORE: u8 = 0x80;
    let (&low, rest) = bytes.split_first()?;
    if low < MORE {
        return Some((usize::from(low), rest));
    }
    let (&high, rest) = rest.split_first()?;
    (high < MORE).then_some((usize::from(low & !MORE) | usize::from(high) << 7, rest))
}

/// The first eight bytes of a name as a number that is ordered as they are, a shorter name being
/// filled up with zeros.
#[inline(always)]
fn first_word(name: &[u8], len: usize) -> Option<u64> {
    let bytes = name.first_chunk()?;
    let filled = u64::MAX.checked_shr(8 * len.min(8) as u32).unwrap_or(0);
    Some(u64::from_be_bytes(*bytes) & !filled)
}
