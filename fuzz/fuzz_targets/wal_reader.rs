//! A log of arbitrary bytes: opening it neither panics nor fails, and leaves a log that opens to the
//! same records without damage.
//!
//! Input: the segments' bytes, one after another, each behind its length in two bytes.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
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

fuzz_target!(|input: &[u8]| {
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
});
