//! What is known of a stretch of the log without reading it.
//!
//! Every few MiB it is noted how new the samples in them are and how many series records there are, so
//! that a start can know them by looking at the log's end alone. A stretch in which there is anything
//! that such a start could not go by (tombstones, records of unknown types, a series record without its
//! copy) is not noted.

use super::entry::{Head, LogFile, TAG_STRETCH};
use crate::model::Timestamp;
use crate::tsdb::refs;
use crate::tsdb::wal::record::{self, Record};

/// Bytes of an entry's body.
const BODY_BYTES: u32 = 40;

/// A stretch of a file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tsdb::wal) struct Stretch {
    pub(in crate::tsdb::wal) start: u64,
    pub(in crate::tsdb::wal) end: u64,
    /// Where its last record begins.
    pub(in crate::tsdb::wal) last_start: u64,
    /// CRC-32C of that one as it is stored: by this the log is known again.
    pub(in crate::tsdb::wal) last_checksum: u32,
    /// Series records that begin in it. The file has a copy of each.
    pub(in crate::tsdb::wal) series_records: u32,
    /// Time of its newest sample; [`Timestamp::MIN`] if there is none.
    pub(in crate::tsdb::wal) newest: Timestamp,
    /// No record in it has a higher ref.
    pub(in crate::tsdb::wal) highest_ref: u64,
}

impl Stretch {
    pub(super) fn push(&self, file: LogFile, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(BODY_BYTES as usize);
        body.extend_from_slice(&self.end.to_be_bytes());
        body.extend_from_slice(&self.last_start.to_be_bytes());
        body.extend_from_slice(&self.newest.to_be_bytes());
        body.extend_from_slice(&self.highest_ref.to_be_bytes());
        body.extend_from_slice(&self.last_checksum.to_be_bytes());
        body.extend_from_slice(&self.series_records.to_be_bytes());
        let checksum = crc32c::crc32c(&body);
        let head = Head::note(TAG_STRETCH, file, self.start);
        let head = Head {
            body_bytes: BODY_BYTES,
            record_checksum: checksum,
            body_checksum: checksum,
            ..head
        };
        head.push(out);
        out.extend_from_slice(&body);
    }

    /// The stretch that begins at `start`, if that is what the body says.
    pub(super) fn parse(start: u64, body: &[u8]) -> Option<Stretch> {
        let be64 = |at: usize| {
            let bytes = body.get(at..).and_then(|bytes| bytes.first_chunk::<8>());
            bytes.map(|bytes| u64::from_be_bytes(*bytes))
        };
        let be32 = |at: usize| {
            let bytes = body.get(at..).and_then(|bytes| bytes.first_chunk::<4>());
            bytes.map(|bytes| u32::from_be_bytes(*bytes))
        };
        let stretch = Stretch {
            start,
            end: be64(0)?,
            last_start: be64(8)?,
            newest: be64(16)?.cast_signed(),
            highest_ref: be64(24)?,
            last_checksum: be32(32)?,
            series_records: be32(36)?,
        };
        let is_sound =
            body.len() == BODY_BYTES as usize && (start..stretch.end).contains(&stretch.last_start);
        is_sound.then_some(stretch)
    }
}

/// What the records of a stretch come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gist {
    /// As [`Stretch::newest`].
    pub newest: Timestamp,
    /// As [`Stretch::highest_ref`].
    pub highest_ref: u64,
}

impl Gist {
    pub(in crate::tsdb::wal) const NONE: Gist = Gist { newest: Timestamp::MIN, highest_ref: 0 };

    /// Of one record; `None` if a start cannot go by it.
    pub(in crate::tsdb::wal) fn of(record: Record<'_>) -> Option<Gist> {
        let highest_ref = refs::highest_in(record.clone());
        let newest = match record {
            Record::Series(_) | Record::Exemplars(_) | Record::Metadata(_) => None,
            Record::Samples(samples) => samples.map(|sample| sample.t).max(),
            Record::Histograms(histograms) | Record::FloatHistograms(histograms) => {
                histograms.map(|histogram| histogram.t).max()
            }
            Record::Tombstones(_) | Record::MmapMarkers(_) | Record::Unknown(_) => return None,
        };
        Some(Gist { newest: newest.unwrap_or(Timestamp::MIN), highest_ref })
    }

    pub(in crate::tsdb::wal) fn and(self, other: Gist) -> Gist {
        Gist {
            newest: self.newest.max(other.newest),
            highest_ref: self.highest_ref.max(other.highest_ref),
        }
    }
}

/// A stretch that is being written or read.
#[derive(Clone, Copy, Debug)]
pub(in crate::tsdb::wal) struct Growing {
    start: u64,
    end: u64,
    /// Start and checksum of the last record.
    last: Option<(u64, u32)>,
    series_records: u32,
    /// `None` once there was something of which it is not known.
    gist: Option<Gist>,
}

impl Growing {
    pub(in crate::tsdb::wal) fn from(start: u64) -> Growing {
        Growing { start, end: start, last: None, series_records: 0, gist: Some(Gist::NONE) }
    }

    pub(in crate::tsdb::wal) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// It goes on up to `end`. `last` is the last record there, if there is one.
    pub(in crate::tsdb::wal) fn grow(
        &mut self,
        end: u64,
        last: Option<(u64, u32)>,
        series_records: u32,
        gist: Option<Gist>,
    ) {
        self.end = end;
        self.last = last.or(self.last);
        self.series_records = self.series_records.saturating_add(series_records);
        self.gist = self.gist.zip(gist).map(|(before, gist)| before.and(gist));
    }

    /// The same by one record that was read.
    pub(super) fn grow_by(&mut self, (start, end): (u64, u64), record: &[u8], stored: &[u8]) {
        let gist = Record::of_parsed(record).ok().and_then(Gist::of);
        let series_records = u32::from(record::is_series(record));
        self.grow(end, Some((start, crc32c::crc32c(stored))), series_records, gist);
    }

    /// It is not known what is in it.
    pub(in crate::tsdb::wal) fn give_up(&mut self) {
        self.gist = None;
    }

    /// Appends an entry for what there is, unless nothing can be said of it, and begins the next
    /// stretch behind.
    pub(in crate::tsdb::wal) fn note(&mut self, file: LogFile, out: &mut Vec<u8>) {
        let Growing { start, end, last, series_records, gist } = *self;
        *self = Growing::from(end);
        let (Some((last_start, last_checksum)), Some(gist)) = (last, gist) else { return };
        let Gist { newest, highest_ref } = gist;
        let stretch =
            Stretch { start, end, last_start, last_checksum, series_records, newest, highest_ref };
        stretch.push(file, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HeadSeriesRef;
    use crate::tsdb::wal::names::entry::HEAD_BYTES;
    use crate::tsdb::wal::segment::SegmentIndex;

    #[test]
    fn a_stretch_is_read_as_it_was_noted_and_not_if_it_says_what_cannot_be() {
        let mut growing = Growing::from(700);
        let gist = |newest, highest_ref| Some(Gist { newest, highest_ref });
        growing.grow(900, Some((800, 7)), 2, gist(-5, 40));
        growing.grow(1000, None, 0, gist(-9, 41));
        let mut entry = Vec::new();
        growing.note(LogFile::segment(SegmentIndex(3)), &mut entry);
        let head = Head::parse(&entry).unwrap();
        let body = &entry[HEAD_BYTES..];
        assert_eq!((head.tag, head.offset, head.body_bytes), (TAG_STRETCH, 700, 40));
        assert_eq!(head.body_checksum, crc32c::crc32c(body));
        let expected = Stretch {
            start: 700,
            end: 1000,
            last_start: 800,
            last_checksum: 7,
            series_records: 2,
            newest: -5,
            highest_ref: 41,
        };
        assert_eq!(Stretch::parse(700, body), Some(expected));
        // The last record would be behind it, before it, or of another length.
        assert_eq!(Stretch::parse(801, body), None);
        let mut short = body.to_vec();
        short[..8].copy_from_slice(&800_u64.to_be_bytes());
        assert_eq!(Stretch::parse(700, &short), None);
        assert_eq!(Stretch::parse(700, &body[..39]), None);
        assert_eq!(Stretch::parse(700, &[body, &[0]].concat()), None);
    }

    #[test]
    fn a_stretch_of_which_something_is_not_known_is_not_noted() {
        let file = LogFile::segment(SegmentIndex(3));
        let mut entries = Vec::new();
        let mut growing = Growing::from(0);
        growing.note(file, &mut entries);
        assert!(entries.is_empty(), "there is nothing in it");
        growing.grow(10, Some((0, 1)), 0, None);
        growing.grow(20, Some((10, 1)), 0, Some(Gist::NONE));
        growing.note(file, &mut entries);
        assert!(entries.is_empty());
        assert_eq!(growing.bytes(), 0);
        growing.grow(30, Some((20, 1)), 0, Some(Gist::NONE));
        growing.note(file, &mut entries);
        assert_eq!(Head::parse(&entries).unwrap().offset, 20);
    }

    #[test]
    fn a_record_comes_to_its_newest_time_and_highest_ref() {
        let mut bytes = Vec::new();
        let samples = [(9, 30), (4, 70), (12, -1)];
        record::encode_samples(
            &mut bytes,
            samples.map(|(series_ref, t)| (HeadSeriesRef(series_ref), t, 0)),
        );
        let gist = Gist::of(Record::parse(&bytes).unwrap());
        assert_eq!(gist, Some(Gist { newest: 70, highest_ref: 12 }));
        let mut tombstone = vec![3];
        tombstone.extend(7_u64.to_be_bytes());
        tombstone.extend([0, 2]);
        assert_eq!(Gist::of(Record::parse(&tombstone).unwrap()), None);
        assert_eq!(Gist::of(Record::parse(&[99]).unwrap()), None);
    }
}
