//! What was sent and what the server acknowledged, in memory and in a file that outlives a crash.
//!
//! The file is append-only: one line of JSON, the [`Workload`], then records of 24 bytes, integers
//! little-endian:
//!
//! ```text
//! kind u16 (1 sent, 2 acknowledged) · lane u32 · request u32 · round u32 · base i64 · check u16
//! ```
//!
//! where `check` is the low half of the CRC-32C over the 22 bytes before it. A record is written whole
//! in one call; a torn one can only be the last, and is dropped.
//! A sent record stands before the request leaves and an acknowledged one after its 2xx came, so
//! whatever the server can hold is in the file, even when the sender itself was killed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::workload::Workload;
use crate::model::Timestamp;

const RECORD_BYTES: usize = 24;

/// Why the record of acknowledgements cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum AckedFileError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a record of acknowledgements: {reason}", path.display())]
    Header { path: PathBuf, reason: String },
    #[error("{}: damaged record at byte {offset}", path.display())]
    Damaged { path: PathBuf, offset: usize },
}

/// One request of one round: sent, or answered with a 2xx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub acknowledged: bool,
    /// Index into [`Workload::lanes`].
    pub lane: u32,
    /// The request's place in the round of its lane.
    pub request: u32,
    pub round: u32,
    /// Timestamp of the round's first sample.
    pub base: Timestamp,
}

impl Record {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let kind: u16 = if self.acknowledged { 2 } else { 1 };
        bytes[0..2].copy_from_slice(&kind.to_le_bytes());
        bytes[2..6].copy_from_slice(&self.lane.to_le_bytes());
        bytes[6..10].copy_from_slice(&self.request.to_le_bytes());
        bytes[10..14].copy_from_slice(&self.round.to_le_bytes());
        bytes[14..22].copy_from_slice(&self.base.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..22]) as u16;
        bytes[22..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if the checksum or the kind is wrong.
    fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
        let (body, crc) = bytes.split_first_chunk::<22>()?;
        if crc != (crc32c::crc32c(body) as u16).to_le_bytes() {
            return None;
        }
        let (kind, rest) = body.split_first_chunk::<2>()?;
        let (lane, rest) = rest.split_first_chunk::<4>()?;
        let (request, rest) = rest.split_first_chunk::<4>()?;
        let (round, rest) = rest.split_first_chunk::<4>()?;
        let (base, _) = rest.split_first_chunk::<8>()?;
        Some(Record {
            acknowledged: match u16::from_le_bytes(*kind) {
                1 => false,
                2 => true,
                _ => return None,
            },
            lane: u32::from_le_bytes(*lane),
            request: u32::from_le_bytes(*request),
            round: u32::from_le_bytes(*round),
            base: i64::from_le_bytes(*base),
        })
    }
}

/// The file, open for appending.
#[derive(Debug)]
pub struct AckedFile {
    path: PathBuf,
    file: File,
}

impl AckedFile {
    /// Makes the file; one that exists already is left alone and refused.
    #[expect(clippy::disallowed_methods, reason = "of the load tool")]
    pub fn create(path: &Path, workload: &Workload) -> Result<AckedFile, AckedFileError> {
        let failed = |source| AckedFileError::Io { path: path.to_owned(), source };
        let mut file =
            OpenOptions::new().append(true).create_new(true).open(path).map_err(failed)?;
        let mut header = serde_json::to_vec(workload).map_err(|e| failed(e.into()))?;
        header.push(b'\n');
        file.write_all(&header).map_err(failed)?;
        Ok(AckedFile { path: path.to_owned(), file })
    }

    /// Appends one record; it survives the death of this process, not of the machine.
    pub fn append(&self, record: Record) -> Result<(), AckedFileError> {
        (&self.file)
            .write_all(&record.encode())
            .map_err(|source| AckedFileError::Io { path: self.path.clone(), source })
    }
}

/// Reads a file back: the workload, and all that is known of its rounds.
#[expect(clippy::disallowed_methods, reason = "of the load tool")]
pub(super) fn read(path: &Path) -> Result<(Workload, Acknowledged), AckedFileError> {
    let bytes = std::fs::read(path)
        .map_err(|source| AckedFileError::Io { path: path.to_owned(), source })?;
    let header_error = |reason: String| AckedFileError::Header { path: path.to_owned(), reason };
    let end = bytes
        .iter()
        .position(|&byte| byte == b'\n')
        .ok_or_else(|| header_error("no header line".to_owned()))?;
    let (header, records) = bytes.split_at(end + 1);
    let workload: Workload =
        serde_json::from_slice(header).map_err(|e| header_error(e.to_string()))?;
    workload.check().map_err(header_error)?;

    let mut acknowledged = Acknowledged::new(&workload);
    let (whole, _torn) = records.as_chunks::<RECORD_BYTES>();
    for (i, bytes) in whole.iter().enumerate() {
        let known = Record::decode(bytes).is_some_and(|record| acknowledged.note(record));
        if !known {
            let offset = header.len() + i * RECORD_BYTES;
            return Err(AckedFileError::Damaged { path: path.to_owned(), offset });
        }
    }
    Ok((workload, acknowledged))
}

/// Which requests of which rounds were sent and acknowledged, per lane.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    lanes: Vec<LaneRounds>,
}

#[derive(Clone, Debug, Default)]
struct LaneRounds {
    request_count: u32,
    rounds: BTreeMap<u32, Round>,
}

/// What is known of one round of one lane.
#[derive(Clone, Debug)]
pub struct Round {
    /// Timestamp of its first sample.
    pub base: Timestamp,
    sent: Bits,
    acknowledged: Bits,
}

impl Round {
    /// Whether the server may hold the request: it was sent at least once.
    pub fn was_sent(&self, request: u32) -> bool {
        self.sent.contains(request)
    }

    /// Whether the server must hold the request: it answered 2xx.
    pub fn was_acknowledged(&self, request: u32) -> bool {
        self.acknowledged.contains(request)
    }
}

impl Acknowledged {
    pub fn new(workload: &Workload) -> Acknowledged {
        let lanes = workload
            .lanes()
            .iter()
            .map(|lane| LaneRounds { request_count: lane.request_count, rounds: BTreeMap::new() })
            .collect();
        Acknowledged { lanes }
    }

    /// Takes a record in; `false` if the workload has no such lane, request or base.
    pub fn note(&mut self, record: Record) -> bool {
        let Some(lane) = self.lanes.get_mut(record.lane as usize) else { return false };
        if record.request >= lane.request_count {
            return false;
        }
        let request_count = lane.request_count;
        let round = lane.rounds.entry(record.round).or_insert_with(|| Round {
            base: record.base,
            sent: Bits::new(request_count),
            acknowledged: Bits::new(request_count),
        });
        if round.base != record.base {
            return false;
        }
        let bits = if record.acknowledged { &mut round.acknowledged } else { &mut round.sent };
        bits.insert(record.request);
        true
    }

    /// Adds what another connection noted of its own lanes.
    pub fn merge(&mut self, other: Acknowledged) {
        for (lane, other) in self.lanes.iter_mut().zip(other.lanes) {
            lane.rounds.extend(other.rounds);
        }
    }

    /// The rounds of a lane, in order.
    pub fn rounds(&self, lane: usize) -> impl Iterator<Item = (u32, &Round)> {
        self.lanes
            .get(lane)
            .into_iter()
            .flat_map(|lane| lane.rounds.iter().map(|(&number, round)| (number, round)))
    }
}

#[derive(Clone, Debug)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(len: u32) -> Bits {
        Bits(vec![0; len.div_ceil(64) as usize].into())
    }

    fn insert(&mut self, index: u32) {
        if let Some(word) = self.0.get_mut(index as usize / 64) {
            *word |= 1 << (index % 64);
        }
    }

    fn contains(&self, index: u32) -> bool {
        self.0.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Workload {
        Workload { series_count: 1_000, series_per_request: 100, ..Workload::new(5) }
    }

    fn record(acknowledged: bool, request: u32, round: u32) -> Record {
        Record { acknowledged, lane: 1, request, round, base: 5 + i64::from(round) }
    }

    #[test]
    fn a_torn_tail_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acked");
        let file = AckedFile::create(&path, &workload()).unwrap();
        let header_bytes = std::fs::metadata(&path).unwrap().len() as usize;
        file.append(record(false, 0, 0)).unwrap();
        file.append(record(true, 0, 0)).unwrap();
        file.append(record(false, 2, 0)).unwrap();
        file.append(record(true, 2, 0)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), header_bytes + 4 * RECORD_BYTES);

        for cut in 1..=RECORD_BYTES {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (read_workload, acknowledged) = read(&path).unwrap();
            assert_eq!(read_workload, workload());
            let rounds: Vec<_> = acknowledged.rounds(1).collect();
            assert_eq!(rounds.len(), 1);
            let round = rounds[0].1;
            assert!(round.was_acknowledged(0) && round.was_sent(2), "{cut}");
            assert!(!round.was_acknowledged(2) && !round.was_sent(1), "{cut}");
        }
    }

    #[test]
    fn damage_is_reported_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acked");
        let file = AckedFile::create(&path, &workload()).unwrap();
        let header_bytes = std::fs::metadata(&path).unwrap().len() as usize;
        file.append(record(false, 0, 0)).unwrap();
        file.append(record(true, 0, 0)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[header_bytes + RECORD_BYTES + 3] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        let error = read(&path).unwrap_err();
        let at = header_bytes + RECORD_BYTES;
        assert!(matches!(error, AckedFileError::Damaged { offset, .. } if offset == at), "{error}");
    }

    #[test]
    fn records_outside_the_workload_are_refused() {
        let mut acknowledged = Acknowledged::new(&workload());
        assert!(acknowledged.note(record(true, 2, 0)));
        assert!(!acknowledged.note(record(true, 3, 0)), "request");
        assert!(!acknowledged.note(Record { lane: 4, ..record(true, 0, 0) }), "lane");
        assert!(!acknowledged.note(Record { base: 6, ..record(true, 1, 0) }), "base");
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acked");
        AckedFile::create(&path, &workload()).unwrap();
        assert!(matches!(AckedFile::create(&path, &workload()), Err(AckedFileError::Io { .. })));
    }
}
