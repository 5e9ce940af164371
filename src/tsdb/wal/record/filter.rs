//! A record without some of its items.
//!
//! What stays is copied as it lies: labels, histograms and fields of metadata that this version does
//! not know keep their bytes. Only refs and times of samples are written anew, which are differences
//! to samples that may be gone.

use super::cursor::Cursor;
use super::{
    ExemplarsIter, HistogramView, HistogramsIter, MetadataIter, Numbering, Record, RecordLabels,
    RecordTombstone, START_NONE, START_SAME, SampleHead, SamplesIter, SeriesIter, TombstonesIter,
    zigzag,
};
use crate::model::varint::push_varint;
use crate::model::{HeadSeriesRef, Timestamp};

/// How a start time is given that is neither absent nor that of the sample before.
const START_EXPLICIT: u8 = 2;

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    Series(HeadSeriesRef),
    /// A float or a histogram.
    Sample(HeadSeriesRef, Timestamp),
    Exemplar(Timestamp),
    Tombstone(RecordTombstone),
    Metadata(HeadSeriesRef),
}

/// How many items of a record stay, and how many do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    pub kept: u64,
    pub dropped: u64,
}

/// Appends to `out` the record in `bytes` without the items that `keeps` denies. If all stay or none
/// does, nothing is appended: the record is as it was, or gone. A record of markers or of unknown type
/// counts as one item that stays.
///
/// The bytes are those that [`Record::parse`] took; of others, items end where they cannot be read.
pub fn filter(bytes: &[u8], mut keeps: impl FnMut(Item) -> bool, out: &mut Vec<u8>) -> Filtered {
    let keeps_sample = |series_ref, t| keeps(Item::Sample(series_ref, t));
    // What is no record stays as well: it is not ours to judge.
    let Ok(record) = Record::of_parsed(bytes) else { return Filtered { kept: 1, dropped: 0 } };
    match record {
        Record::Series(series) => {
            let left = |series: &SeriesIter<'_>| series.cursor.len();
            filter_whole(bytes, series, left, |(one, _)| keeps(Item::Series(one)), out)
        }
        Record::Tombstones(tombstones) => {
            let left = |tombstones: &TombstonesIter<'_>| tombstones.cursor.len();
            filter_whole(bytes, tombstones, left, |one| keeps(Item::Tombstone(one)), out)
        }
        Record::Metadata(metadata) => {
            let left = |metadata: &MetadataIter<'_>| metadata.cursor.len();
            filter_whole(bytes, metadata, left, |one| keeps(Item::Metadata(one.series_ref)), out)
        }
        Record::Samples(SamplesIter { cursor, numbering }) => {
            let skip = |cursor: &mut Cursor<'_>| cursor.be64().map(drop);
            filter_relative(bytes, (cursor, numbering), skip, keeps_sample, out)
        }
        Record::Histograms(histograms) | Record::FloatHistograms(histograms) => {
            let HistogramsIter { cursor, numbering, is_float } = histograms;
            let skip =
                |cursor: &mut Cursor<'_>| HistogramView::read(cursor, is_float).ok().map(drop);
            filter_relative(bytes, (cursor, numbering), skip, keeps_sample, out)
        }
        Record::Exemplars(ExemplarsIter { cursor, numbering }) => {
            let skip = |cursor: &mut Cursor<'_>| {
                cursor.be64()?;
                RecordLabels::read(cursor).ok().map(drop)
            };
            filter_relative(bytes, (cursor, numbering), skip, |_, t| keeps(Item::Exemplar(t)), out)
        }
        Record::MmapMarkers(_) | Record::Unknown(_) => Filtered { kept: 1, dropped: 0 },
    }
}

/// Of items that say the same wherever they stand. `left` tells how many bytes are behind the last one.
fn filter_whole<I: Iterator>(
    bytes: &[u8],
    mut items: I,
    left: impl Fn(&I) -> usize,
    mut keeps: impl FnMut(I::Item) -> bool,
    out: &mut Vec<u8>,
) -> Filtered {
    let mut filtered = Filtered::default();
    let start = out.len();
    loop {
        let at = bytes.len() - left(&items);
        let Some(item) = items.next() else { break };
        let keeps = keeps(item);
        if !keeps && filtered.dropped == 0 {
            out.extend_from_slice(&bytes[..at]);
        } else if keeps && filtered.dropped > 0 {
            out.extend_from_slice(&bytes[at..bytes.len() - left(&items)]);
        }
        filtered.count(keeps);
    }
    filtered.settle(start, out)
}

/// Of items that begin with series and time, given as `numbering` says, from `cursor` on. `skip` moves
/// behind what follows these.
fn filter_relative<'a>(
    bytes: &[u8],
    (mut cursor, mut numbering): (Cursor<'a>, Numbering),
    mut skip: impl FnMut(&mut Cursor<'a>) -> Option<()>,
    mut keeps: impl FnMut(HeadSeriesRef, Timestamp) -> bool,
    out: &mut Vec<u8>,
) -> Filtered {
    let mut filtered = Filtered::default();
    let start = out.len();
    // What the next item that stays is given by.
    let mut renumbering = Renumbering::of_new(numbering);
    while !cursor.is_empty() {
        let (at, numbering_before) = (bytes.len() - cursor.len(), numbering);
        let Ok(head) = numbering.next_head(&mut cursor) else { break };
        let body = cursor.clone();
        let Some(()) = skip(&mut cursor) else { break };
        let keeps = keeps(head.series_ref, head.t);
        if !keeps && filtered.dropped == 0 {
            // What stands before it is given as it was.
            if filtered.kept > 0 {
                out.extend_from_slice(&bytes[..at]);
                renumbering = Renumbering::Going(numbering_before);
            } else {
                out.extend(bytes.first());
            }
        } else if keeps && filtered.dropped > 0 {
            renumbering.push_head(out, head);
            out.extend_from_slice(body.until(&cursor));
        }
        filtered.count(keeps);
    }
    filtered.settle(start, out)
}

impl Filtered {
    fn count(&mut self, is_kept: bool) {
        let counter = if is_kept { &mut self.kept } else { &mut self.dropped };
        *counter += 1;
    }

    /// Of a record that is gone nothing is left, not even its type.
    fn settle(self, start: usize, out: &mut Vec<u8>) -> Filtered {
        if self.kept == 0 {
            out.truncate(start);
        }
        self
    }
}

/// How the next sample of a record that is being written gives its series and time.
#[derive(Clone, Copy)]
enum Renumbering {
    /// It is the first, and the base of all others.
    Based,
    Going(Numbering),
}

impl Renumbering {
    /// Of a record that begins, of the same type as one that is numbered so.
    fn of_new(numbering: Numbering) -> Renumbering {
        match numbering {
            Numbering::Base { .. } => Renumbering::Based,
            started => Renumbering::Going(started),
        }
    }

    fn push_head(&mut self, out: &mut Vec<u8>, head: SampleHead) {
        let SampleHead { series_ref: HeadSeriesRef(series_ref), t, start } = head;
        let start = start.unwrap_or_default();
        let numbering = match *self {
            Renumbering::Going(numbering) => numbering,
            Renumbering::Based => {
                out.extend_from_slice(&series_ref.to_be_bytes());
                out.extend_from_slice(&t.to_be_bytes());
                Numbering::Base { series_ref, t }
            }
        };
        let distance = |from: u64| zigzag(series_ref.wrapping_sub(from) as i64);
        *self = Renumbering::Going(match numbering {
            Numbering::Base { series_ref: base, t: base_t } => {
                push_varint(out, distance(base));
                push_varint(out, zigzag(t.wrapping_sub(base_t)));
                numbering
            }
            Numbering::Unstarted => {
                push_varint(out, distance(0));
                push_varint(out, zigzag(t));
                push_varint(out, zigzag(start));
                let (first_t, first_start) = (t, start);
                Numbering::Started { first_t, first_start, last_ref: series_ref, last_start: start }
            }
            Numbering::Started { first_t, first_start, last_ref, last_start } => {
                push_varint(out, distance(last_ref));
                push_varint(out, zigzag(t.wrapping_sub(first_t)));
                match start {
                    0 => out.push(START_NONE),
                    start if start == last_start => out.push(START_SAME),
                    start => {
                        out.push(START_EXPLICIT);
                        push_varint(out, zigzag(start.wrapping_sub(first_start)));
                    }
                }
                Numbering::Started { first_t, first_start, last_ref: series_ref, last_start: start }
            }
        });
    }
}
