//! A log of arbitrary bytes: opening it neither panics nor fails, and leaves a log that opens to the
//! same records without damage.
//!
//! Input: the segments' bytes, one after another, each behind its length in two bytes.

use std::path::Path;

use ringest::disk::Disk;
use ringest::disk::faulty::FaultyDisk;
use ringest::metrics::Registry;
use ringest::tsdb::wal::WalMetrics;
use ringest::tsdb::wal::repair::{LogContents, open_log};

const DIR: &str = "/wal";

/// More of them would only make a run slow.
const SEGMENTS_MAX: usize = 6;

fn open(disk: &FaultyDisk) -> (Vec<Vec<u8>>, LogContents) {
    let metrics = WalMetrics::new(&Registry::new(), "t");
    let mut records = Vec::new();
    let contents = open_log(disk, Path::new(DIR), &metrics, |found| {
        records.push(found.bytes.to_vec());
    });
    (records, contents.expect("the disk is whole"))
}

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new(DIR)).expect("a disk in memory");
    let mut rest = input;
    for number in 0..SEGMENTS_MAX {
        let Some((len, after)) = rest.split_first_chunk::<2>() else { break };
        let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
        let (segment, after) = after.split_at(len);
        let path = Path::new(DIR).join(format!("{number:08}"));
        let file = disk.create(&path).expect("a disk in memory");
        file.write_all_at(segment, 0).expect("a disk in memory");
        rest = after;
    }
    let (records, _) = open(&disk);
    let (again, contents) = open(&disk);
    assert_eq!(records, again, "another log at the second opening");
    assert_eq!((contents.damage_count, contents.cut), (0, None));
}

/// Inputs to begin with: a log of two records, and one that is cut short.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let record = |bytes: &[u8]| {
        // Full, its length, the checksum of its bytes: as in Prometheus' log.
        let mut record = vec![1];
        record.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        record.extend_from_slice(&crc32c::crc32c(bytes).to_be_bytes());
        record.extend_from_slice(bytes);
        record
    };
    // A series of one label, and a sample of it.
    let series = record(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, b'a', 1, b'b']);
    let sample =
        record(&[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let segment = [series, sample].concat();
    let input = |segment: &[u8]| {
        let len = segment.len() as u16;
        [&len.to_le_bytes(), segment].concat()
    };
    let cut = &segment[..segment.len() - 3];
    vec![input(&segment), input(cut), [input(&segment), input(cut)].concat()]
}
