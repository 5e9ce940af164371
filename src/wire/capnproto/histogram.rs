//! A native histogram sample as Thanos' struct, which has no place for custom bucket bounds.

use crate::model::histogram::Span;
use crate::wire::capnproto::encode::Segment;
use crate::wire::capnproto::rpc::{list_pointer, structs_pointer, structs_tag};
use crate::wire::capnproto::write_request_capnp::{bucket_span, histogram};
use crate::wire::histogram::{Buckets, Count, HistogramMessage};

/// Size of the struct, in words.
pub(super) const DATA_WORDS: u16 = 7;
pub(super) const POINTERS: u16 = 6;

impl HistogramMessage {
    /// Whether the struct holds all of it. Custom bounds would be lost, and the peer not notice.
    pub(super) fn fits_capnproto(&self) -> bool {
        self.has_only_buckets_of_a_schema()
    }

    /// Words of the struct and all that it points to.
    pub(super) fn capnproto_words(&self) -> usize {
        usize::from(DATA_WORDS + POINTERS)
            + self.negative.capnproto_words()
            + self.positive.capnproto_words()
    }

    pub(super) fn from_capnproto(source: histogram::Reader<'_>) -> capnp::Result<HistogramMessage> {
        Ok(HistogramMessage {
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
            ..HistogramMessage::default()
        })
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
            for Span { offset, length } in &self.spans {
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

fn spans(spans: capnp::struct_list::Reader<'_, bucket_span::Owned>) -> Vec<Span> {
    let of = |span: bucket_span::Reader<'_>| Span {
        offset: span.get_offset(),
        length: span.get_length(),
    };
    spans.iter().map(of).collect()
}
