//! Records: what a log entry says, before compression and framing.
//!
//! The first byte is the type, the rest depends on it (Prometheus `tsdb/record`, 0.309 and 3.14).
//! `be64` is big endian, `uvarint` and `varint` (zigzag) are Go's, `str` is a uvarint length and
//! bytes, `labels` a uvarint count and as many pairs of `str`:
//!
//! ```text
//!  1 series        ( ref be64, labels )*
//!  2 samples       base ref be64, base time be64, ( ref varint, time varint, value be64 )*
//!                  both relative to the base, which the first sample repeats as 0 0
//!  3 tombstones    ( ref be64, mint varint, maxt varint )*
//!  4 exemplars     as 2, each followed by labels
//!  5 mmap markers  ( ref be64, head chunk ref be64 )*              only in the out-of-order log
//!  6 metadata      ( ref uvarint, type byte, fields uvarint, ( name str, value str )* )*
//!  7, 9 histograms          base as 2, ( ref varint, time varint, histogram )*
//!  8, 10 float histograms   9 and 10 hold custom buckets
//! 11 samples with start times: the first is  ref varint, time varint, start varint, value be64
//!                  later ones ( ref varint to the one before, time varint to the first's,
//!                  start: 0 none | 1 as the one before | 2 and a varint to the first's, value )*
//! 12, 13 histograms and float histograms with start times: head as 11
//! ```
//!
//! [`Record::parse`] walks a record once to its end, so that what it returns can be iterated
//! without errors. Nothing is allocated: labels and buckets are walked where they lie, and every
//! count is bounded by the bytes that must follow it.

mod cursor;
pub mod filter;
mod histogram;

use crate::model::varint::{push_varint, zigzag};
use crate::model::{HeadSeriesRef, Timestamp};

use cursor::Cursor;
pub use histogram::{HistogramSample, HistogramView, HistogramsIter, Logged, encode_histograms};

const SERIES: u8 = 1;
const SAMPLES: u8 = 2;
const TOMBSTONES: u8 = 3;
const EXEMPLARS: u8 = 4;
const MMAP_MARKERS: u8 = 5;
const METADATA: u8 = 6;
const HISTOGRAMS: u8 = 7;
const FLOAT_HISTOGRAMS: u8 = 8;
const CUSTOM_HISTOGRAMS: u8 = 9;
const CUSTOM_FLOAT_HISTOGRAMS: u8 = 10;
const SAMPLES_WITH_START: u8 = 11;
const HISTOGRAMS_WITH_START: u8 = 12;
const FLOAT_HISTOGRAMS_WITH_START: u8 = 13;

/// How a start time is given.
const START_NONE: u8 = 0;
const START_SAME: u8 = 1;

const METADATA_UNIT: &[u8] = b"UNIT";
const METADATA_HELP: &[u8] = b"HELP";

/// A record whose bytes end early or say something impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad {what} in a record of type {record_type}")]
pub struct RecordError {
    pub record_type: u8,
    /// What was being read.
    pub what: &'static str,
}

/// A record known to decode to its end.
#[derive(Clone, Debug)]
pub enum Record<'a> {
    Series(SeriesIter<'a>),
    Samples(SamplesIter<'a>),
    Tombstones(TombstonesIter<'a>),
    Exemplars(ExemplarsIter<'a>),
    MmapMarkers(MmapMarkersIter<'a>),
    Metadata(MetadataIter<'a>),
    /// Integer histograms, custom buckets included.
    Histograms(HistogramsIter<'a>),
    /// Float histograms, custom buckets included.
    FloatHistograms(HistogramsIter<'a>),
    /// A type of another version, to be skipped; an empty record counts as type 0.
    Unknown(u8),
}

/// Whether an encoded record is one of series.
pub fn is_series(record: &[u8]) -> bool {
    record.first() == Some(&SERIES)
}

impl<'a> Record<'a> {
    /// Walks the whole record, so that its items can be iterated without errors.
    pub fn parse(bytes: &'a [u8]) -> Result<Record<'a>, RecordError> {
        let record = Record::of_parsed(bytes)?;
        let walked = match record.clone() {
            Record::Series(series) => walk(series),
            Record::Samples(samples) => walk(samples),
            Record::Tombstones(tombstones) => walk(tombstones),
            Record::Exemplars(exemplars) => walk(exemplars),
            Record::MmapMarkers(markers) => walk(markers),
            Record::Metadata(metadata) => walk(metadata),
            Record::Histograms(histograms) | Record::FloatHistograms(histograms) => {
                walk(histograms)
            }
            Record::Unknown(_) => Ok(()),
        };
        let record_type = bytes.first().copied().unwrap_or_default();
        walked.map(|()| record).map_err(|what| RecordError { record_type, what })
    }

    /// A record whose bytes [`Record::parse`] took before, without walking it again: for handing
    /// bytes to another thread. Of other bytes the items end where they cannot be read.
    pub fn of_parsed(bytes: &'a [u8]) -> Result<Record<'a>, RecordError> {
        let Some((&record_type, body)) = bytes.split_first() else {
            return Ok(Record::Unknown(0));
        };
        Record::of_body(record_type, Cursor::new(body))
            .map_err(|what| RecordError { record_type, what })
    }

    fn of_body(record_type: u8, mut cursor: Cursor<'a>) -> Result<Record<'a>, &'static str> {
        Ok(match record_type {
            SERIES => Record::Series(SeriesIter { cursor }),
            SAMPLES => {
                let numbering = Numbering::read_base(&mut cursor)?;
                Record::Samples(SamplesIter { cursor, numbering })
            }
            SAMPLES_WITH_START => {
                Record::Samples(SamplesIter { cursor, numbering: Numbering::Unstarted })
            }
            TOMBSTONES => Record::Tombstones(TombstonesIter { cursor }),
            EXEMPLARS => {
                let numbering = Numbering::read_base(&mut cursor)?;
                Record::Exemplars(ExemplarsIter { cursor, numbering })
            }
            MMAP_MARKERS => Record::MmapMarkers(MmapMarkersIter { cursor }),
            METADATA => Record::Metadata(MetadataIter { cursor }),
            HISTOGRAMS | CUSTOM_HISTOGRAMS => {
                let numbering = Numbering::read_base(&mut cursor)?;
                Record::Histograms(HistogramsIter::new(cursor, numbering, false))
            }
            FLOAT_HISTOGRAMS | CUSTOM_FLOAT_HISTOGRAMS => {
                let numbering = Numbering::read_base(&mut cursor)?;
                Record::FloatHistograms(HistogramsIter::new(cursor, numbering, true))
            }
            HISTOGRAMS_WITH_START => {
                Record::Histograms(HistogramsIter::new(cursor, Numbering::Unstarted, false))
            }
            FLOAT_HISTOGRAMS_WITH_START => {
                Record::FloatHistograms(HistogramsIter::new(cursor, Numbering::Unstarted, true))
            }
            unknown => Record::Unknown(unknown),
        })
    }
}

/// Reads one item after another; the error says what could not be read.
trait Steps {
    type Item;
    fn step(&mut self) -> Result<Option<Self::Item>, &'static str>;
}

fn walk(mut steps: impl Steps) -> Result<(), &'static str> {
    while steps.step()?.is_some() {}
    Ok(())
}

/// How the samples of a record give their series and times.
#[derive(Clone, Copy, Debug)]
enum Numbering {
    /// As differences to a base.
    Base { series_ref: u64, t: i64 },
    /// With start times, before the first sample.
    Unstarted,
    /// With start times, behind the first sample.
    Started { first_t: i64, first_start: i64, last_ref: u64, last_start: i64 },
}

/// Series, time and start time of a sample.
#[derive(Clone, Copy, Debug)]
struct SampleHead {
    series_ref: HeadSeriesRef,
    t: Timestamp,
    start: Option<Timestamp>,
}

impl Numbering {
    fn read_base(cursor: &mut Cursor<'_>) -> Result<Numbering, &'static str> {
        if cursor.is_empty() {
            return Ok(Numbering::Base { series_ref: 0, t: 0 });
        }
        let series_ref = cursor.be64().ok_or("base ref")?;
        let t = cursor.be64().ok_or("base time")? as i64;
        Ok(Numbering::Base { series_ref, t })
    }

    #[inline]
    fn next_head(&mut self, cursor: &mut Cursor<'_>) -> Result<SampleHead, &'static str> {
        let ref_delta = cursor.varint().ok_or("ref")?;
        let t_delta = cursor.varint().ok_or("time")?;
        if let Numbering::Base { series_ref, t } = *self {
            let series_ref = HeadSeriesRef(series_ref.wrapping_add_signed(ref_delta));
            return Ok(SampleHead { series_ref, t: t.wrapping_add(t_delta), start: None });
        }
        self.next_head_with_start(ref_delta, t_delta, cursor)
    }

    fn next_head_with_start(
        &mut self,
        ref_delta: i64,
        t_delta: i64,
        cursor: &mut Cursor<'_>,
    ) -> Result<SampleHead, &'static str> {
        let Numbering::Started { first_t, first_start, last_ref, last_start } = *self else {
            let start = cursor.varint().ok_or("start time")?;
            *self = Numbering::Started {
                first_t: t_delta,
                first_start: start,
                last_ref: ref_delta as u64,
                last_start: start,
            };
            let series_ref = HeadSeriesRef(ref_delta as u64);
            return Ok(SampleHead { series_ref, t: t_delta, start: (start != 0).then_some(start) });
        };
        let series_ref = last_ref.wrapping_add_signed(ref_delta);
        let start = match cursor.byte().ok_or("start time")? {
            START_NONE => 0,
            START_SAME => last_start,
            _ => first_start.wrapping_add(cursor.varint().ok_or("start time")?),
        };
        *self =
            Numbering::Started { first_t, first_start, last_ref: series_ref, last_start: start };
        Ok(SampleHead {
            series_ref: HeadSeriesRef(series_ref),
            t: first_t.wrapping_add(t_delta),
            start: (start != 0).then_some(start),
        })
    }
}

/// Names and values of a series or exemplar, in the order in which they were written.
#[derive(Clone, Debug)]
pub struct RecordLabels<'a> {
    cursor: Cursor<'a>,
    left: u64,
}

impl<'a> RecordLabels<'a> {
    /// Splits labels off `cursor`.
    fn read(cursor: &mut Cursor<'a>) -> Result<RecordLabels<'a>, &'static str> {
        let left = cursor.uvarint().ok_or("label count")?;
        let labels = RecordLabels { cursor: cursor.clone(), left };
        for _ in 0..left {
            cursor.len_prefixed().ok_or("label name")?;
            cursor.len_prefixed().ok_or("label value")?;
        }
        Ok(labels)
    }
}

impl<'a> Iterator for RecordLabels<'a> {
    type Item = (&'a [u8], &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some((self.cursor.len_prefixed()?, self.cursor.len_prefixed()?))
    }
}

/// Series made, each with the ref that later records know it by.
#[derive(Clone, Debug)]
pub struct SeriesIter<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Steps for SeriesIter<'a> {
    type Item = (HeadSeriesRef, RecordLabels<'a>);

    fn step(&mut self) -> Result<Option<Self::Item>, &'static str> {
        if self.cursor.is_empty() {
            return Ok(None);
        }
        let series_ref = HeadSeriesRef(self.cursor.be64().ok_or("series ref")?);
        Ok(Some((series_ref, RecordLabels::read(&mut self.cursor)?)))
    }
}

/// A float sample; the value as its bits, since NaNs carry meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSample {
    pub series_ref: HeadSeriesRef,
    pub t: Timestamp,
    pub value_bits: u64,
    /// When the counter began, if the log says so.
    pub start: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct SamplesIter<'a> {
    cursor: Cursor<'a>,
    numbering: Numbering,
}

impl SamplesIter<'_> {
    /// At most as many samples as follow: each takes ten bytes or more.
    pub fn count_max(&self) -> usize {
        self.cursor.len() / 10
    }
}

impl Steps for SamplesIter<'_> {
    type Item = RecordSample;

    #[inline]
    fn step(&mut self) -> Result<Option<RecordSample>, &'static str> {
        if self.cursor.is_empty() {
            return Ok(None);
        }
        let SampleHead { series_ref, t, start } = self.numbering.next_head(&mut self.cursor)?;
        let value_bits = self.cursor.be64().ok_or("value")?;
        Ok(Some(RecordSample { series_ref, t, value_bits, start }))
    }
}

/// Samples of `series_ref` deleted from `mint` to `maxt`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordTombstone {
    pub series_ref: HeadSeriesRef,
    pub mint: Timestamp,
    pub maxt: Timestamp,
}

#[derive(Clone, Debug)]
pub struct TombstonesIter<'a> {
    cursor: Cursor<'a>,
}

impl Steps for TombstonesIter<'_> {
    type Item = RecordTombstone;

    fn step(&mut self) -> Result<Option<RecordTombstone>, &'static str> {
        if self.cursor.is_empty() {
            return Ok(None);
        }
        Ok(Some(RecordTombstone {
            series_ref: HeadSeriesRef(self.cursor.be64().ok_or("tombstone's ref")?),
            mint: self.cursor.varint().ok_or("tombstone's start")?,
            maxt: self.cursor.varint().ok_or("tombstone's end")?,
        }))
    }
}

#[derive(Clone, Debug)]
pub struct RecordExemplar<'a> {
    pub series_ref: HeadSeriesRef,
    pub t: Timestamp,
    pub value_bits: u64,
    pub labels: RecordLabels<'a>,
}

#[derive(Clone, Debug)]
pub struct ExemplarsIter<'a> {
    cursor: Cursor<'a>,
    numbering: Numbering,
}

impl<'a> Steps for ExemplarsIter<'a> {
    type Item = RecordExemplar<'a>;

    fn step(&mut self) -> Result<Option<RecordExemplar<'a>>, &'static str> {
        if self.cursor.is_empty() {
            return Ok(None);
        }
        let SampleHead { series_ref, t, .. } = self.numbering.next_head(&mut self.cursor)?;
        let value_bits = self.cursor.be64().ok_or("value")?;
        let labels = RecordLabels::read(&mut self.cursor)?;
        Ok(Some(RecordExemplar { series_ref, t, value_bits, labels }))
    }
}

/// A series' chunks up to `chunk_ref` are in the head chunk files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmapMarker {
    pub series_ref: HeadSeriesRef,
    pub chunk_ref: u64,
}

#[derive(Clone, Debug)]
pub struct MmapMarkersIter<'a> {
    cursor: Cursor<'a>,
}

impl Steps for MmapMarkersIter<'_> {
    type Item = MmapMarker;

    fn step(&mut self) -> Result<Option<MmapMarker>, &'static str> {
        if self.cursor.is_empty() {
            return Ok(None);
        }
        Ok(Some(MmapMarker {
            series_ref: HeadSeriesRef(self.cursor.be64().ok_or("marker's series ref")?),
            chunk_ref: self.cursor.be64().ok_or("marker's chunk ref")?,
        }))
    }
}

/// Metadata of a series, as its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMetadata<'a> {
    pub series_ref: HeadSeriesRef,
    /// Prometheus' number of the metric type: 1 counter, 2 gauge, …
    pub metric_type: u8,
    pub unit: &'a [u8],
    pub help: &'a [u8],
}

#[derive(Clone, Debug)]
pub struct MetadataIter<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Steps for MetadataIter<'a> {
    type Item = RecordMetadata<'a>;

    fn step(&mut self) -> Result<Option<RecordMetadata<'a>>, &'static str> {
        if self.cursor.is_empty() {
            return Ok(None);
        }
        let series_ref = HeadSeriesRef(self.cursor.uvarint().ok_or("metadata's ref")?);
        let metric_type = self.cursor.byte().ok_or("metric type")?;
        let field_count = self.cursor.uvarint().ok_or("metadata field count")?;
        let mut metadata = RecordMetadata { series_ref, metric_type, unit: b"", help: b"" };
        for _ in 0..field_count {
            let name = self.cursor.len_prefixed().ok_or("metadata field name")?;
            let value = self.cursor.len_prefixed().ok_or("metadata field value")?;
            match name {
                METADATA_UNIT => metadata.unit = value,
                METADATA_HELP => metadata.help = value,
                _ => {}
            }
        }
        Ok(Some(metadata))
    }
}

/// The items of a checked record: no step fails, so none is lost here.
macro_rules! iterate {
    ($($iter:ident => $item:ty),* $(,)?) => {$(
        impl<'a> Iterator for $iter<'a> {
            type Item = $item;

            #[inline]
            fn next(&mut self) -> Option<$item> {
                self.step().ok().flatten()
            }
        }
    )*};
}

iterate! {
    SeriesIter => (HeadSeriesRef, RecordLabels<'a>),
    SamplesIter => RecordSample,
    TombstonesIter => RecordTombstone,
    ExemplarsIter => RecordExemplar<'a>,
    MmapMarkersIter => MmapMarker,
    MetadataIter => RecordMetadata<'a>,
    HistogramsIter => HistogramSample<'a>,
}

/// Starts a series record in `out`; [`push_series`] fills it.
pub fn begin_series(out: &mut Vec<u8>) {
    out.push(SERIES);
}

/// Appends a series to a begun series record.
pub fn push_series<'l>(
    out: &mut Vec<u8>,
    series_ref: HeadSeriesRef,
    labels: impl Iterator<Item = (&'l [u8], &'l [u8])> + Clone,
) {
    out.extend_from_slice(&series_ref.0.to_be_bytes());
    push_labels(out, labels);
}

/// Appends a samples record: series, time and the value's bits of each. Nothing else is appended
/// for no samples but the type.
pub fn encode_samples(
    out: &mut Vec<u8>,
    samples: impl IntoIterator<Item = (HeadSeriesRef, Timestamp, u64)>,
) {
    out.push(SAMPLES);
    let mut samples = samples.into_iter();
    let Some((first_ref, first_t, first_bits)) = samples.next() else {
        return;
    };
    out.extend_from_slice(&first_ref.0.to_be_bytes());
    out.extend_from_slice(&first_t.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&first_bits.to_be_bytes());

    // Room is made for many samples at a time and cut back at the end, so that a sample costs one
    // comparison for it.
    let mut end = out.len();
    for (series_ref, t, value_bits) in samples {
        if out.len() - end < SAMPLE_BYTES_MAX {
            out.resize(end + SAMPLE_BYTES_MAX * SAMPLES_A_STRIDE, 0);
        }
        let (_, room) = out.split_at_mut(end);
        let ref_delta = series_ref.0.wrapping_sub(first_ref.0) as i64;
        let t_delta = t.wrapping_sub(first_t);
        let ref_bytes = put_varint(room, ref_delta);
        let head_bytes = ref_bytes + put_varint(&mut room[ref_bytes..], t_delta);
        room[head_bytes..head_bytes + 8].copy_from_slice(&value_bits.to_be_bytes());
        end += head_bytes + 8;
    }
    out.truncate(end);
}

/// Two varints of ten bytes and a value.
const SAMPLE_BYTES_MAX: usize = 10 + 10 + 8;
const SAMPLES_A_STRIDE: usize = 64;

/// Writes `value` zigzagged; the number of bytes.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
fn put_varint(room: &mut [u8], value: i64) -> usize {
    let mut rest = zigzag(value);
    let mut i = 0;
    while rest >= 0x80 {
        room[i] = rest as u8 | 0x80;
        rest >>= 7;
        i += 1;
    }
    room[i] = rest as u8;
    i + 1
}

/// Appends a tombstones record.
pub fn encode_tombstones(out: &mut Vec<u8>, tombstones: impl IntoIterator<Item = RecordTombstone>) {
    out.push(TOMBSTONES);
    for tombstone in tombstones {
        out.extend_from_slice(&tombstone.series_ref.0.to_be_bytes());
        push_varint(out, zigzag(tombstone.mint));
        push_varint(out, zigzag(tombstone.maxt));
    }
}

/// Appends an exemplars record: series, time, the value's bits and labels of each.
pub fn encode_exemplars<'l, L>(
    out: &mut Vec<u8>,
    exemplars: impl IntoIterator<Item = (HeadSeriesRef, Timestamp, u64, L)>,
) where
    L: Iterator<Item = (&'l [u8], &'l [u8])> + Clone,
{
    out.push(EXEMPLARS);
    let mut base = None;
    for (series_ref, t, value_bits, labels) in exemplars {
        let (base_ref, base_t) = *base.get_or_insert_with(|| {
            out.extend_from_slice(&series_ref.0.to_be_bytes());
            out.extend_from_slice(&t.to_be_bytes());
            (series_ref.0, t)
        });
        push_varint(out, zigzag(series_ref.0.wrapping_sub(base_ref) as i64));
        push_varint(out, zigzag(t.wrapping_sub(base_t)));
        out.extend_from_slice(&value_bits.to_be_bytes());
        push_labels(out, labels);
    }
}

/// Appends a metadata record.
pub fn encode_metadata<'m>(
    out: &mut Vec<u8>,
    metadata: impl IntoIterator<Item = RecordMetadata<'m>>,
) {
    out.push(METADATA);
    for RecordMetadata { series_ref, metric_type, unit, help } in metadata {
        push_varint(out, series_ref.0);
        out.push(metric_type);
        push_varint(out, 2);
        for bytes in [METADATA_UNIT, unit, METADATA_HELP, help] {
            push_len_prefixed(out, bytes);
        }
    }
}

fn push_labels<'l>(out: &mut Vec<u8>, labels: impl Iterator<Item = (&'l [u8], &'l [u8])> + Clone) {
    // Their count stands before them. That of usual ones is a byte, known once they are written.
    let start = out.len();
    let mut count: u8 = 0;
    out.push(count);
    for (name, value) in labels.clone() {
        count += 1;
        if count >= 0x80 {
            out.truncate(start);
            return push_many_labels(out, labels);
        }
        push_len_prefixed(out, name);
        push_len_prefixed(out, value);
    }
    out[start] = count;
}

#[cold]
fn push_many_labels<'l>(
    out: &mut Vec<u8>,
    labels: impl Iterator<Item = (&'l [u8], &'l [u8])> + Clone,
) {
    push_varint(out, labels.clone().count() as u64);
    for (name, value) in labels {
        push_len_prefixed(out, name);
        push_len_prefixed(out, value);
    }
}

fn push_len_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests;
