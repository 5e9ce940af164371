//! A peer's Cap'n Proto request as the protobuf messages that everything else here reads.
//!
//! Symbols make a message short that would be long without them, even without end: the same text
//! may be named by every label. So a request is turned over piece by piece, each of bounded length,
//! and the labels of a series only as far as shows that they are over the caps.

mod labels;

use capnp::traits::IntoInternalStructReader;
use capnp::{raw, struct_list};

use crate::model::labels::TAG_FIELD_1;
use crate::model::varint::{push_varint, varint_len};
use crate::wire::capnproto::decode::labels::{LabelWriter, SymbolTable};
use crate::wire::capnproto::frame::Message;
use crate::wire::capnproto::rpc;
use crate::wire::capnproto::write_request_capnp::{
    exemplar, time_series, time_series_tenant_tuple, write_request,
};
use crate::wire::histogram::HistogramMessage;

/// Why a request cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("Cap'n Proto: {0}")]
    Message(#[from] capnp::Error),
    #[error("symbol {number} of {count} is asked for")]
    NoSuchSymbol { number: u32, count: u32 },
    #[error("symbol {number} is bytes {start} to {end} of {len}")]
    SymbolOutside { number: u32, start: u32, end: u32, len: usize },
    /// Most likely the sender is of a later version, and its series are where nobody looks for them
    /// here.
    #[error(
        "there are no series in it that this version can read, but fields that it does not know"
    )]
    NotUnderstood,
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
    /// There were some before.
    has_series: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whose series they are. Not checked.
    pub tenant: Vec<u8>,
    pub series_count: u32,
    /// Places of the series that had histograms with custom buckets, whose bounds the schema has no
    /// place for. These are not written: they would be stored as others than they were.
    pub without_bounds: Vec<u32>,
}

/// Appends series from `position` on to `out`, each as field 1 of a `prometheus.WriteRequest`:
/// those of one tenant, and no more once there are `piece_bytes`. `None` at the request's end; but a
/// request without any series must not have anything else, or what we cannot read would be lost.
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
        let Some((tenant, list)) = tenant_at(request, position.tenant)? else {
            return match position.has_series || is_understood(request)? {
                true => Ok(None),
                false => Err(RequestError::NotUnderstood),
            };
        };
        if position.series >= list.len() {
            *position = Position { tenant: position.tenant + 1, series: 0, ..*position };
            continue;
        }
        position.has_series = true;
        let symbols = SymbolTable::new(request.get_symbols()?)?;
        let labels = LabelWriter::new(symbols, list.len() - position.series);
        let mut writer = SeriesWriter { labels, caps, nested: Vec::new() };
        let first = position.series;
        let mut without_bounds = Vec::new();
        while out.len() < piece_bytes && position.series < list.len() {
            if !writer.write(list.get(position.series), out)? {
                without_bounds.push(position.series - first);
            }
            position.series += 1;
        }
        let (tenant, series_count) = (tenant.to_vec(), position.series - first);
        return Ok(Some(Piece { tenant, series_count, without_bounds }));
    }
}

type SeriesList<'a> = struct_list::Reader<'a, time_series::Owned>;
type TenantList<'a> = struct_list::Reader<'a, time_series_tenant_tuple::Owned>;

/// A tenant's name and series. The older form counts if there are series in it, as in Thanos.
fn tenant_at(
    request: write_request::Reader<'_>,
    index: u32,
) -> capnp::Result<Option<(&[u8], SeriesList<'_>)>> {
    let series = request.get_time_series()?;
    if !series.is_empty() {
        let tenant = request.get_tenant()?.as_bytes();
        return Ok((index == 0).then_some((tenant, series)));
    }
    let tenants: TenantList<'_> = request.get_data()?;
    let Some(tuple) = tenants.try_get(index) else { return Ok(None) };
    Ok(Some((tuple.get_tenant()?.as_bytes(), tuple.get_time_series()?)))
}

/// Whether a request without series holds nothing that the schema does not have. Structs of a later
/// schema are longer; what counts is that something stands there.
#[cold]
fn is_understood(request: write_request::Reader<'_>) -> capnp::Result<bool> {
    const REQUEST_POINTERS: u32 = 4;
    const TUPLE_POINTERS: u32 = 3;
    let tenants: TenantList<'_> = request.get_data()?;
    Ok(!has_more(request, REQUEST_POINTERS)
        && !tenants.iter().any(|tuple| has_more(tuple, TUPLE_POINTERS)))
}

/// Whether a struct without data in our schema has any, or a pointer behind the first so many.
fn has_more<'a>(of: impl IntoInternalStructReader<'a> + Copy, pointers: u32) -> bool {
    let more = raw::get_struct_pointer_section(of);
    raw::get_struct_data_section(of).iter().any(|byte| *byte != 0)
        || (pointers..more.len()).any(|at| !more.get(at).is_null())
}

/// Writes one series after the other.
struct SeriesWriter<'a> {
    labels: LabelWriter<'a>,
    caps: SeriesCaps,
    /// A message in the series at hand; reused.
    nested: Vec<u8>,
}

impl SeriesWriter<'_> {
    /// False if histograms are left out whose bounds were lost.
    fn write(
        &mut self,
        series: time_series::Reader<'_>,
        out: &mut Vec<u8>,
    ) -> Result<bool, RequestError> {
        let mut has_all = true;
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
                let histogram = HistogramMessage::from_capnproto(histogram)?;
                if !histogram.fits_capnproto() {
                    has_all = false;
                    continue;
                }
                self.nested.clear();
                histogram.push_protobuf(&mut self.nested);
                push_message(out, HISTOGRAM_TAG, &self.nested);
            }
        }
        close_message(out, body);
        Ok(has_all)
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

/// Size of a sample in a list.
const SAMPLE_BITS: u32 = 128;

const SAMPLE_TAG: u8 = 2 << 3 | 2;
const EXEMPLAR_TAG: u8 = 3 << 3 | 2;
const HISTOGRAM_TAG: u8 = 4 << 3 | 2;

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
