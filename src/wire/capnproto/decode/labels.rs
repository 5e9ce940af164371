//! Labels by the numbers of their symbols, as protobuf fields.
//!
//! Series of one message share most of their labels. A label that was written out once is copied
//! from then on, and so costs neither its symbols nor its lengths.

use capnp::{raw, struct_list};

use crate::model::labels::{TAG_FIELD_1, push_label};
use crate::wire::capnproto::decode::{RequestError, SeriesCaps};
use crate::wire::capnproto::write_request_capnp::{label, symbols};

pub(super) struct SymbolTable<'a> {
    data: &'a [u8],
    ends: capnp::primitive_list::Reader<'a, u32>,
}

impl<'a> SymbolTable<'a> {
    pub(super) fn new(symbols: symbols::Reader<'a>) -> capnp::Result<SymbolTable<'a>> {
        Ok(SymbolTable { data: symbols.get_data()?, ends: symbols.get_offsets()? })
    }

    #[inline]
    fn get(&self, number: u32) -> Result<&'a [u8], RequestError> {
        let count = self.ends.len();
        if number >= count {
            return Err(RequestError::NoSuchSymbol { number, count });
        }
        let start = number.checked_sub(1).map_or(0, |before| self.ends.get(before));
        let end = self.ends.get(number);
        let symbol = self.data.get(start as usize..end as usize);
        let len = self.data.len();
        symbol.ok_or(RequestError::SymbolOutside { number, start, end, len })
    }
}

/// Size of a label in a list.
const LABEL_BITS: u32 = 64;

/// Writes labels, and keeps how each was written until another takes its slot.
pub(super) struct LabelWriter<'a> {
    symbols: SymbolTable<'a>,
    /// By the last bits of the value's number. Their count is a power of two, or there are none.
    slots: Vec<Slot>,
}

/// A label as it was written out.
#[derive(Clone)]
struct Slot {
    /// The name's number, and in the upper half the value's.
    label: Option<u64>,
    /// The field, whose length is in its second byte. What is behind it means nothing.
    field: [u8; FIELD_BYTES_MAX],
}

/// Longer fields are not kept. Nearly all are shorter; a slot takes two cache lines.
const FIELD_BYTES_MAX: usize = 112;

/// As much of a field as is copied in any case: copies of fixed length are fastest.
const FIELD_BYTES_COPIED: usize = 64;

const SLOTS_MAX: usize = 2048;

/// Fewer slots for few series, and none where they would not be used again.
const SLOTS_PER_SERIES: usize = 4;
const SERIES_MIN: u32 = 4;

impl<'a> LabelWriter<'a> {
    /// For so many series: tenants may be many, and share their few series.
    pub(super) fn new(symbols: SymbolTable<'a>, series_count: u32) -> LabelWriter<'a> {
        let labels = (symbols.ends.len() as usize).min(SLOTS_PER_SERIES * series_count as usize);
        let count = match series_count {
            0..SERIES_MIN => 0,
            _ => labels.min(SLOTS_MAX).next_power_of_two(),
        };
        let empty = Slot { label: None, field: [0; FIELD_BYTES_MAX] };
        LabelWriter { symbols, slots: vec![empty; count] }
    }

    /// Writes labels until they are over a cap.
    pub(super) fn write(
        &mut self,
        labels: struct_list::Reader<'_, label::Owned>,
        caps: SeriesCaps,
        out: &mut Vec<u8>,
    ) -> Result<(), RequestError> {
        let start = out.len();
        // One word each, as long as the schema does not grow.
        let is_usual = raw::get_list_step_size_in_bits(labels) == LABEL_BITS;
        if is_usual && labels.len() as usize <= caps.labels_max {
            let labels = raw::get_list_bytes(labels).as_chunks().0;
            if self.write_usual(labels, caps.bytes_max, out)? {
                return Ok(());
            }
            out.truncate(start);
        }
        write_labels(&self.symbols, labels, caps, out)
    }

    /// Writes labels; false if they may be over a cap.
    fn write_usual(
        &mut self,
        labels: &[[u8; 8]],
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, RequestError> {
        let start = out.len();
        for label in labels {
            let label = u64::from_le_bytes(*label);
            match self.slots.get(self.slot_of(label)) {
                Some(slot) if slot.label == Some(label) => slot.push(out),
                _ => {
                    // Those that are kept are short, so that this bounds them all.
                    if out.len() - start > bytes_max || !self.write_new(label, bytes_max, out)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(out.len() - start <= bytes_max)
    }

    fn slot_of(&self, label: u64) -> usize {
        (label >> 32) as usize & self.slots.len().wrapping_sub(1)
    }

    /// Writes a label that is in no slot, and puts it into one; false if it is over the cap.
    // Rare, and in the way of the usual.
    #[inline(never)]
    fn write_new(
        &mut self,
        label: u64,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, RequestError> {
        let (name, value) =
            (self.symbols.get(label as u32)?, self.symbols.get((label >> 32) as u32)?);
        if name.len() + value.len() > bytes_max {
            return Ok(false);
        }
        let start = out.len();
        push_label(out, TAG_FIELD_1, name, value);
        let field = out.get(start..).unwrap_or_default();
        let at = self.slot_of(label);
        if let Some(slot) = self.slots.get_mut(at)
            && let Some(kept) = slot.field.get_mut(..field.len())
        {
            kept.copy_from_slice(field);
            slot.label = Some(label);
        }
        Ok(true)
    }
}

impl Slot {
    /// Appends the field.
    #[inline]
    fn push(&self, out: &mut Vec<u8>) {
        let len = 2 + usize::from(self.field[1]);
        let end = out.len() + len;
        let (first, second) = self.field.split_at(FIELD_BYTES_COPIED);
        out.extend_from_slice(first);
        if len > FIELD_BYTES_COPIED {
            out.extend_from_slice(second);
        }
        out.truncate(end);
    }
}

/// Writes labels until they are over a cap.
fn write_labels(
    symbols: &SymbolTable<'_>,
    labels: struct_list::Reader<'_, label::Owned>,
    caps: SeriesCaps,
    out: &mut Vec<u8>,
) -> Result<(), RequestError> {
    let mut bytes = 0;
    for label in labels.iter().take(caps.labels_max.saturating_add(1)) {
        let (name, value) = (symbols.get(label.get_name())?, symbols.get(label.get_value())?);
        bytes += name.len() + value.len();
        if bytes > caps.bytes_max {
            // As much as makes it one byte too many.
            let left = caps.bytes_max + 1 - (bytes - name.len() - value.len());
            let name = name.get(..left).unwrap_or(name);
            let value = value.get(..left - name.len()).unwrap_or(value);
            push_label(out, TAG_FIELD_1, name, value);
            return Ok(());
        }
        push_label(out, TAG_FIELD_1, name, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::capnproto::decode::{Position, next_piece, push_message, tenant_at};
    use crate::wire::capnproto::encode::SeriesTable;
    use crate::wire::capnproto::frame::Message;
    use crate::wire::capnproto::rpc;

    /// Series without samples.
    fn request(series: &[Vec<(String, String)>]) -> Vec<u8> {
        let mut request = Vec::new();
        for labels in series {
            let mut message = Vec::new();
            for (name, value) in labels {
                push_label(&mut message, TAG_FIELD_1, name.as_bytes(), value.as_bytes());
            }
            push_message(&mut request, TAG_FIELD_1, &message);
        }
        request
    }

    fn call(request: &[u8]) -> Message {
        let table = SeriesTable::new([request]).unwrap();
        let numbers: Vec<u32> = (0..table.len() as u32).collect();
        let encoded = table.encode("t", &numbers).unwrap();
        let packed = [rpc::call_head(1, 0, encoded.words), encoded.packed].concat();
        rpc::tests::unpacked(&packed)
    }

    /// Every label read from its symbols.
    fn written_one_by_one(message: &Message, caps: SeriesCaps) -> Vec<u8> {
        let reader = message.reader();
        let request = rpc::write_request_of(&reader).unwrap();
        let symbols = SymbolTable::new(request.get_symbols().unwrap()).unwrap();
        let (_, list) = tenant_at(request, 0).unwrap().unwrap();
        let mut out = Vec::new();
        for series in list {
            let mut labels = Vec::new();
            write_labels(&symbols, series.get_labels().unwrap(), caps, &mut labels).unwrap();
            push_message(&mut out, TAG_FIELD_1, &labels);
        }
        out
    }

    fn label() -> impl Strategy<Value = (String, String)> {
        let value = prop_oneof![
            8 => (0u32..40).prop_map(|value| value.to_string()),
            1 => (40usize..130).prop_map(|len| "v".repeat(len)),
            1 => (16_000usize..17_000).prop_map(|len| "w".repeat(len)),
        ];
        ((0u32..6).prop_map(|name| format!("name_{name}")), value)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn kept_labels_are_those_of_the_symbols(
            series in prop::collection::vec(prop::collection::vec(label(), 0..9), 1..30),
            labels_max in 0usize..10,
            bytes_max in prop_oneof![0usize..200, Just(17_000), Just(1 << 20)],
        ) {
            let message = call(&request(&series));
            let caps = SeriesCaps { labels_max, bytes_max };
            let mut out = Vec::new();
            next_piece(&message, &mut Position::default(), caps, 1 << 30, &mut out).unwrap();
            prop_assert_eq!(out, written_one_by_one(&message, caps));
        }

        #[test]
        fn symbols_that_are_not_there_are_told(
            name in any::<u32>(),
            value in any::<u32>(),
            series_count in prop_oneof![Just(1u32), Just(100)],
        ) {
            let message = call(&request(&[vec![("a".to_owned(), "b".to_owned())]]));
            let reader = message.reader();
            let request = rpc::write_request_of(&reader).unwrap();
            let symbols = SymbolTable::new(request.get_symbols().unwrap()).unwrap();
            let mut writer = LabelWriter::new(symbols, series_count);
            for (name, value) in [(name, value), (u32::MAX, u32::MAX), (0, 2), (2, 0), (0, 1)] {
                let label = [name.to_le_bytes(), value.to_le_bytes()].concat();
                let label = [label.try_into().unwrap()];
                let written = writer.write_usual(&label, 100, &mut Vec::new());
                prop_assert_eq!(written.is_ok(), name < 2 && value < 2);
            }
        }
    }
}
