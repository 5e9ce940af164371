//! A peer's Cap'n Proto request as the protobuf messages that everything else here reads.
//!
//! Symbols make a message short that would be long without them, even without end: the same text
//! may be named by every label. So a request is turned over piece by piece, each of bounded length,
//! and the labels of a series only as far as shows that they are over the caps.

use capnp::struct_list;

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
        let mut writer = SeriesWriter { symbols, caps, message: Vec::new(), nested: Vec::new() };
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
    symbols: SymbolTable<'a>,
    caps: SeriesCaps,
    /// The series at hand, and a message in it; reused.
    message: Vec<u8>,
    nested: Vec<u8>,
}

impl SeriesWriter<'_> {
    fn write(
        &mut self,
        series: time_series::Reader<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), RequestError> {
        self.message.clear();
        write_labels(&self.symbols, series.get_labels()?, self.caps, &mut self.message)?;
        for sample in series.get_samples()?.iter() {
            push_sample(&mut self.message, sample.get_timestamp(), sample.get_value().to_bits());
        }
        if series.has_exemplars() {
            for exemplar in series.get_exemplars()?.iter() {
                self.write_exemplar(exemplar)?;
            }
        }
        if series.has_histograms() {
            for histogram in series.get_histograms()?.iter() {
                self.nested.clear();
                Histogram::from_capnproto(histogram)?.push_protobuf(&mut self.nested);
                push_message(&mut self.message, HISTOGRAM_TAG, &self.nested);
            }
        }
        push_message(out, TAG_FIELD_1, &self.message);
        Ok(())
    }

    #[cold]
    fn write_exemplar(&mut self, exemplar: exemplar::Reader<'_>) -> Result<(), RequestError> {
        self.nested.clear();
        write_labels(&self.symbols, exemplar.get_labels()?, self.caps, &mut self.nested)?;
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
        push_message(&mut self.message, EXEMPLAR_TAG, &self.nested);
        Ok(())
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

fn push_message(out: &mut Vec<u8>, tag: u8, message: &[u8]) {
    out.push(tag);
    push_varint(out, message.len() as u64);
    out.extend_from_slice(message);
}
