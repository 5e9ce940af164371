//! What was deleted of a block since it was made.
//!
//! ```text
//! magic 0x0130BA30 | version 1 | ( series uvarint, mint varint, maxt varint )* | CRC-32C
//! ```
//!
//! The checksum is that of the middle part alone. A series is named by its place in the index divided
//! by 16; both times are included. (Prometheus `tsdb/docs/format/tombstones.md`)

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::disk::{Disk, read_file, replace_file};
use crate::model::bytes::{Cursor, Malformed, push_zigzag};
use crate::model::varint::push_varint;
use crate::model::{TimeRange, Timestamp};
use crate::tsdb::error::{Corruption, ReadError, WriteError};

/// The file's name in the block's directory.
pub const TOMBSTONES_FILE: &str = "tombstones";

const MAGIC: u32 = 0x0130_ba30;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;
const CRC_BYTES: usize = 4;
/// Ten million deletions.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Spans of time that are deleted, by series.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tombstones {
    /// Each list sorted, without overlaps or neighbours.
    of_series: BTreeMap<u64, Vec<TimeRange>>,
}

impl Tombstones {
    /// Spans may come in any order, and overlap. One that ends before it begins is none.
    pub fn from_spans(mut spans: Vec<(u64, TimeRange)>) -> Tombstones {
        spans.retain(|(_, span)| span.mint <= span.maxt);
        spans.sort_unstable_by_key(|(series, span)| (*series, span.mint));
        let mut of_series: BTreeMap<u64, Vec<TimeRange>> = BTreeMap::new();
        for (series, span) in spans {
            let merged = of_series.entry(series).or_default();
            match merged.last_mut() {
                Some(last) if span.mint <= last.maxt.saturating_add(1) => {
                    last.maxt = last.maxt.max(span.maxt);
                }
                _ => merged.push(span),
            }
        }
        Tombstones { of_series }
    }

    pub fn is_empty(&self) -> bool {
        self.of_series.is_empty()
    }

    /// How many spans there are, over all series.
    pub fn count(&self) -> usize {
        self.of_series.values().map(Vec::len).sum()
    }

    /// What is deleted of a series: sorted, without overlaps.
    pub fn of(&self, series: u64) -> &[TimeRange] {
        self.of_series.get(&series).map_or(&[], Vec::as_slice)
    }

    /// Of all series, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (u64, TimeRange)> {
        let spans = |(series, spans): (&u64, &'_ Vec<TimeRange>)| {
            let series = *series;
            spans.clone().into_iter().map(move |span| (series, span))
        };
        self.of_series.iter().flat_map(spans)
    }

    /// Reads the file in a block's directory. A block without one has no tombstones.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Tombstones, ReadError> {
        let path = dir.join(TOMBSTONES_FILE);
        let bytes = match read_file(disk, &path, FILE_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Tombstones::default()),
            Err(err) => return Err(ReadError::io(&path)(err)),
        };
        Tombstones::decode(&bytes).map_err(|Malformed { at, what }| {
            Corruption { file: path, offset: at as u64, what }.into()
        })
    }

    /// Writes the file into a block's directory, in place of the one that is there; the old or the new
    /// one is there after a crash.
    pub fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), WriteError> {
        let path = dir.join(TOMBSTONES_FILE);
        replace_file(disk, &path, &self.encode()).map_err(WriteError::io(&path))
    }

    /// From the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Tombstones, Malformed> {
        let malformed = |at, what| Err(Malformed { at, what });
        let Some((checked, crc)) = bytes.split_last_chunk::<CRC_BYTES>() else {
            return malformed(0, "the header is not there");
        };
        let Some((header, spans)) = checked.split_first_chunk::<HEADER_BYTES>() else {
            return malformed(0, "the header is not there");
        };
        if header[..4] != MAGIC.to_be_bytes() {
            return malformed(0, "these are no tombstones");
        }
        if header[4] != VERSION {
            return malformed(4, "tombstones of this version are not read");
        }
        if *crc != crc32c::crc32c(spans).to_be_bytes() {
            return malformed(HEADER_BYTES, "the tombstones do not match their checksum");
        }
        let spans = decode_spans(spans);
        let spans = spans.map_err(|err| Malformed { at: err.at + HEADER_BYTES, ..err })?;
        Ok(Tombstones::from_spans(spans))
    }

    /// The file's bytes. Prometheus writes series in no particular order; here they are sorted.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_be_bytes());
        bytes.push(VERSION);
        for (series, span) in self.iter() {
            push_varint(&mut bytes, series);
            push_zigzag(&mut bytes, span.mint);
            push_zigzag(&mut bytes, span.maxt);
        }
        let crc = crc32c::crc32c(&bytes[HEADER_BYTES..]);
        bytes.extend(crc.to_be_bytes());
        bytes
    }
}

fn decode_spans(bytes: &[u8]) -> Result<Vec<(u64, TimeRange)>, Malformed> {
    let mut cursor = Cursor::new(bytes);
    let mut spans = Vec::new();
    while !cursor.is_empty() {
        let series = cursor.uvarint("a series")?;
        let mut time = || -> Result<Timestamp, Malformed> { cursor.varint("a time") };
        spans.push((series, TimeRange { mint: time()?, maxt: time()? }));
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::SystemDisk;
    use crate::tsdb::block::tests::{recorded, recorded_blocks};

    fn spans(tombstones: &Tombstones) -> Vec<(u64, Timestamp, Timestamp)> {
        tombstones.iter().map(|(series, span)| (series, span.mint, span.maxt)).collect()
    }

    fn of(spans: &[(u64, Timestamp, Timestamp)]) -> Tombstones {
        let spans = spans.iter().map(|&(series, mint, maxt)| (series, TimeRange { mint, maxt }));
        Tombstones::from_spans(spans.collect())
    }

    #[test]
    fn recorded_tombstones_are_read_and_written() {
        for block in recorded_blocks() {
            let tombstones = Tombstones::read(&SystemDisk, &block).unwrap();
            let Ok(bytes) = std::fs::read(block.join(TOMBSTONES_FILE)) else {
                assert!(tombstones.is_empty());
                continue;
            };
            assert_eq!(tombstones.encode().len(), bytes.len(), "{}", block.display());
            if tombstones.of_series.len() < 2 {
                assert_eq!(tombstones.encode(), bytes, "{}", block.display());
            }
        }
        let case = recorded("tombstones.json");
        let dir = crate::tsdb::block::tests::data_dir().join(case["dir"].as_str().unwrap());
        let read = Tombstones::read(&SystemDisk, &dir).unwrap();
        let expected: Vec<(u64, i64, i64)> =
            serde_json::from_value(case["tombstones"].clone()).unwrap();
        assert_eq!(spans(&read), expected);
        assert_eq!(read.count(), 6);
        assert_eq!(read.of(3).len(), 2);
        assert_eq!(read.of(4), []);
    }

    #[test]
    fn spans_are_merged_as_prometheus_merges_them() {
        let (min, max) = (i64::MIN, i64::MAX);
        // The last of each would not merge with its neighbour if it began one later.
        let merged = of(&[(1, 5, 9), (1, 1, 2), (1, 3, 3), (1, 8, 20), (1, 22, 23), (2, 9, 1)]);
        assert_eq!(spans(&merged), [(1, 1, 3), (1, 5, 20), (1, 22, 23)]);
        assert_eq!(spans(&of(&[(7, max, max), (7, min, max - 1)])), [(7, min, max)]);
        assert_eq!(spans(&of(&[(7, min, max), (7, 0, 0)])), [(7, min, max)]);
    }

    #[test]
    fn many_full_spans_take_no_time_to_speak_of() {
        let spans = (0..160_000).map(|i| (3, TimeRange { mint: -i, maxt: i64::MAX })).collect();
        assert_eq!(Tombstones::from_spans(spans).count(), 1);
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let whole = of(&[(3, 5, 9), (700, -1, 2)]).encode();
        for len in 0..9 {
            let expected = Malformed { at: 0, what: "the header is not there" };
            assert_eq!(Tombstones::decode(&whole[..len]).unwrap_err(), expected);
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            let expected = if at < 4 { 0 } else { at.min(5) };
            assert_eq!(
                Tombstones::decode(&damaged).unwrap_err().at,
                if at == 4 { 4 } else { expected }
            );
        }
        // A checksum that is right, and a number that is not.
        let mut forged = whole[..HEADER_BYTES].to_vec();
        forged.extend([1, 2, 0x80]);
        forged.extend(crc32c::crc32c(&[1, 2, 0x80]).to_be_bytes());
        let expected = Malformed { at: 7, what: "a time" };
        assert_eq!(Tombstones::decode(&forged).unwrap_err(), expected);
    }

    proptest! {
        #[test]
        fn they_are_what_a_set_of_times_is(
            spans in prop::collection::vec((0u64..3, -20i64..20, -2i64..8), 0..12),
        ) {
            let spans: Vec<_> = spans.into_iter().map(|(s, t, len)| (s, t, t + len)).collect();
            let tombstones = of(&spans);
            for series in 0..3 {
                for t in -25..30 {
                    let is_deleted = spans.iter().any(|s| s.0 == series && s.1 <= t && t <= s.2);
                    let found = tombstones.of(series);
                    prop_assert_eq!(found.iter().any(|span| span.overlaps(t, t)), is_deleted);
                }
                let apart = |pair: &[TimeRange]| pair[0].maxt + 1 < pair[1].mint;
                prop_assert!(tombstones.of(series).windows(2).all(apart));
            }
            prop_assert_eq!(Tombstones::decode(&tombstones.encode()), Ok(tombstones));
        }
    }
}
