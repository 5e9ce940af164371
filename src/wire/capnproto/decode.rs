//! A peer's Cap'n Proto request as the protobuf messages that everything else here reads.
//!
//! Symbols make a message short that would be long without them, even without end: the same text
//! may be named by every label. So a request is turned over piece by piece, each of bounded length,
//! and the labels of a series only as far as shows that they are over the caps.
//!
//! Series of one message share most of their labels. A label that was written out once is copied
//! from then on, and so costs neither its symbols nor its lengths.

use capnp::{raw, struct_list};

use crate::model::labels::{TAG_FIELD_1, push_label};
use crate::wire::capnproto::frame::Message;
use crate::wire::capnproto::histogram::Histogram;
use crate::wire::capnproto::rpc;
use crate::wire::capnproto::write_request_capnp::{
    exemplar, label, symbols, time_series, time_series_tenant_tuple, write_request,
};
use crate::wire::reader::{push_varint, varint_len};

/// Why a request cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("Cap'n Proto: {0}")]
    Message(#[from] capnp::Error),
    #[error("symbol {number} of {count} is asked for")]
    NoSuchSymbol { number: u32, count: u32 },
    #[error("symbol {number} is bytes {start} to {end} of {len}")]
    SymbolOutside { number: u32, start: u32, end: u32, len: usize },
}

/// How far a series' labels are written out.
#[derive(Clone, Copy, Debug)]
pub struct SeriesCaps {
    pub labels_max: usize,
    pub bytes_max: usize,
}

/// Where in a request to go on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Position {
    tenant: u32,
    series: u32,
}

/// The tenant whose series were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Not checked.
    pub tenant: Vec<u8>,
}

/// Appends series from `position` on to `out`, each as field 1 of a `prometheus.WriteRequest`:
/// those of one tenant, and no more once there are `piece_bytes`. `None` at the request's end.
pub fn next_piece(
    message: &Message,
    position: &mut Position,
    caps: SeriesCaps,
    piece_bytes: usize,
    out: &mut Vec<u8>,
) -> Result<Option<Piece>, RequestError> {
    let reader = message.reader();
    let request = rpc::write_request_of(&reader)?;
    loop {
        let Some((tenant, list)) = tenant_at(request, position.tenant)? else { return Ok(None) };
        if position.series >= list.len() {
            *position = Position { tenant: position.tenant + 1, series: 0 };
            continue;
        }
        let symbols = SymbolTable::new(request.get_symbols()?)?;
        let labels = LabelWriter::new(symbols, list.len() - position.series);
        let mut writer = SeriesWriter { labels, caps, nested: Vec::new() };
        while out.len() < piece_bytes && position.series < list.len() {
            writer.write(list.get(position.series), out)?;
            position.series += 1;
        }
        return Ok(Some(Piece { tenant: tenant.to_vec() }));
    }
}

type SeriesList<'a> = struct_list::Reader<'a, time_series::Owned>;

/// A tenant's name and series. The older form counts if it is there, as in Thanos.
fn tenant_at(
    request: write_request::Reader<'_>,
    index: u32,
) -> capnp::Result<Option<(&[u8], SeriesList<'_>)>> {
    if request.has_time_series() {
        return match index {
            0 => Ok(Some((request.get_tenant()?.as_bytes(), request.get_time_series()?))),
            _ => Ok(None),
        };
    }
    let tenants: struct_list::Reader<'_, time_series_tenant_tuple::Owned> = request.get_data()?;
    let Some(tuple) = tenants.try_get(index) else { return Ok(None) };
    Ok(Some((tuple.get_tenant()?.as_bytes(), tuple.get_time_series()?)))
}

struct SymbolTable<'a> {
    data: &'a [u8],
    ends: capnp::primitive_list::Reader<'a, u32>,
}

impl<'a> SymbolTable<'a> {
    fn new(symbols: symbols::Reader<'a>) -> capnp::Result<SymbolTable<'a>> {
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

/// Writes one series after the other.
struct SeriesWriter<'a> {
    labels: LabelWriter<'a>,
    caps: SeriesCaps,
    /// A message in the series at hand; reused.
    nested: Vec<u8>,
}

impl SeriesWriter<'_> {
    fn write(
        &mut self,
        series: time_series::Reader<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), RequestError> {
        let body = open_message(out);
        self.labels.write(series.get_labels()?, self.caps, out)?;
        let samples = series.get_samples()?;
        // Two words each, as long as the schema does not grow.
        if raw::get_list_step_size_in_bits(samples) == SAMPLE_BITS {
            for sample in raw::get_list_bytes(samples).as_chunks().0 {
                let sample = u128::from_le_bytes(*sample);
                push_sample(out, sample as i64, (sample >> 64) as u64);
            }
        } else {
            for sample in samples {
                push_sample(out, sample.get_timestamp(), sample.get_value().to_bits());
            }
        }
        if series.has_exemplars() {
            for exemplar in series.get_exemplars()?.iter() {
                self.write_exemplar(exemplar, out)?;
            }
        }
        if series.has_histograms() {
            for histogram in series.get_histograms()?.iter() {
                self.nested.clear();
                Histogram::from_capnproto(histogram)?.push_protobuf(&mut self.nested);
                push_message(out, HISTOGRAM_TAG, &self.nested);
            }
        }
        close_message(out, body);
        Ok(())
    }

    #[cold]
    fn write_exemplar(
        &mut self,
        exemplar: exemplar::Reader<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), RequestError> {
        self.nested.clear();
        self.labels.write(exemplar.get_labels()?, self.caps, &mut self.nested)?;
        let value = exemplar.get_value().to_bits();
        if value != 0 {
            self.nested.push(2 << 3 | 1);
            self.nested.extend_from_slice(&value.to_le_bytes());
        }
        let timestamp = exemplar.get_timestamp();
        if timestamp != 0 {
            self.nested.push(3 << 3);
            push_varint(&mut self.nested, timestamp as u64);
        }
        push_message(out, EXEMPLAR_TAG, &self.nested);
        Ok(())
    }
}

/// Size of a label and of a sample in a list.
const LABEL_BITS: u32 = 64;
const SAMPLE_BITS: u32 = 128;

/// Writes labels, and keeps how each was written until another takes its slot.
struct LabelWriter<'a> {
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
    fn new(symbols: SymbolTable<'a>, series_count: u32) -> LabelWriter<'a> {
        let labels = (symbols.ends.len() as usize).min(SLOTS_PER_SERIES * series_count as usize);
        let count = match series_count {
            0..SERIES_MIN => 0,
            _ => labels.min(SLOTS_MAX).next_power_of_two(),
        };
        let empty = Slot { label: None, field: [0; FIELD_BYTES_MAX] };
        LabelWriter { symbols, slots: vec![empty; count] }
    }

    /// Writes labels until they are over a cap.
    fn write(
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

const SAMPLE_TAG: u8 = 2 << 3 | 2;
const EXEMPLAR_TAG: u8 = 3 << 3 | 2;
const HISTOGRAM_TAG: u8 = 4 << 3 | 2;

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

/// A sample as senders encode it, zeros left out.
#[inline]
fn push_sample(out: &mut Vec<u8>, t: i64, v: u64) {
    if let Some(time) = six_byte_varint_of(t) {
        let mut field = [0; 18];
        field[11] = 2 << 3;
        field[12..].copy_from_slice(&time);
        if v == 0 {
            field[9..11].copy_from_slice(&[SAMPLE_TAG, 7]);
            out.extend_from_slice(&field[9..]);
        } else {
            field[..3].copy_from_slice(&[SAMPLE_TAG, 16, 1 << 3 | 1]);
            field[3..11].copy_from_slice(&v.to_le_bytes());
            out.extend_from_slice(&field);
        }
        return;
    }
    let value_bytes = if v == 0 { 0 } else { 9 };
    let time_bytes = if t == 0 { 0 } else { 1 + varint_len(t as u64) };
    out.push(SAMPLE_TAG);
    out.push((value_bytes + time_bytes) as u8);
    if v != 0 {
        out.push(1 << 3 | 1);
        out.extend_from_slice(&v.to_le_bytes());
    }
    if t != 0 {
        out.push(2 << 3);
        push_varint(out, t as u64);
    }
}

/// The varint of a time from 1971 to 2109; of no other.
#[inline]
fn six_byte_varint_of(t: i64) -> Option<[u8; 6]> {
    if !(1 << 35..1 << 42).contains(&t) {
        return None;
    }
    Some(std::array::from_fn(|i| {
        let more = if i < 5 { 0x80 } else { 0 };
        (t >> (7 * i)) as u8 & 0x7f | more
    }))
}

/// Bytes of a series' length in nearly all cases: 128 to 16,383.
const USUAL_LEN_BYTES: usize = 2;

/// Begins a series with room for the usual length; returns where its body begins.
fn open_message(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[TAG_FIELD_1, 0, 0]);
    out.len()
}

/// Puts the length before the body that goes from `body` to the end.
fn close_message(out: &mut Vec<u8>, body: usize) {
    let len = out.len() - body;
    if varint_len(len as u64) == USUAL_LEN_BYTES
        && let Some(room) = out.get_mut(body - USUAL_LEN_BYTES..body)
    {
        room.copy_from_slice(&[len as u8 | 0x80, (len >> 7) as u8]);
        return;
    }
    let mut varint = Vec::new();
    push_varint(&mut varint, len as u64);
    out.splice(body - USUAL_LEN_BYTES..body, varint);
}

fn push_message(out: &mut Vec<u8>, tag: u8, message: &[u8]) {
    out.push(tag);
    push_varint(out, message.len() as u64);
    out.extend_from_slice(message);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::capnproto::encode::SeriesTable;

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
