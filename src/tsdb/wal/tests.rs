//! Framing byte for byte, appends under faults, syncing.

use std::path::Path;

use serde_json::Value;

use super::reader::{Found, SegmentReader};
use super::*;
use crate::disk::faulty::{FailedSync, FaultyDisk};
use crate::disk::{SystemDisk, read_file};
use crate::metrics::Registry;

const DIR: &str = "/wal";

fn metrics() -> WalMetrics {
    WalMetrics::new(&Registry::new(), "t")
}

fn options(segment_bytes: u64, compression: Compression, sync: SyncPolicy) -> WalOptions {
    WalOptions { segment_bytes, compression, sync }
}

fn open(disk: &FaultyDisk, options: WalOptions) -> Wal {
    Wal::open(Arc::new(disk.clone()), Path::new(DIR), options, metrics()).unwrap()
}

/// A samples record of one sample, so that it decodes.
fn sample(i: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    record::encode_samples(&mut bytes, [(crate::model::HeadSeriesRef(i), 1, i)]);
    bytes
}

/// Times as many samples as bytes of `noise`, hard to compress.
fn noise_record(noise: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let item = |(i, byte): (usize, &u8)| {
        let bits = u64::from(*byte).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32);
        (crate::model::HeadSeriesRef(i as u64), i64::from(*byte), bits)
    };
    record::encode_samples(&mut bytes, noise.iter().enumerate().map(item));
    bytes
}

/// All records in a log, and its damage.
fn read_all(disk: &dyn Disk, dir: &Path) -> (Vec<Vec<u8>>, Vec<reader::Damage>) {
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    for (segment, _) in repair::LogDir::list(disk, dir).unwrap().segments {
        let mut reader = SegmentReader::open(disk, &segment_path(dir, segment)).unwrap();
        while let Some(found) = reader.next().unwrap() {
            match found {
                Found::Record(record) => records.push(record.bytes.to_vec()),
                Found::Damage(found) => damage.push(found),
            }
        }
    }
    (records, damage)
}

fn payload(kind: &str, k: u64, len: usize) -> Vec<u8> {
    match kind {
        "ramp" => {
            let byte = |i: u64| (k * 31 + i * 7 + (i / 251) * 13) as u8;
            (0..len as u64).map(byte).collect()
        }
        "noise" => {
            let mut x = (k.wrapping_mul(2_654_435_761).wrapping_add(12_345)) as u32;
            let mut byte = || {
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                x as u8
            };
            (0..len).map(|_| byte()).collect()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn framing_is_prometheus_byte_for_byte_and_reads_back() {
    let data = format!("{}/tests/data/tsdb/wal/framing", env!("CARGO_MANIFEST_DIR"));
    let cases = std::fs::read(format!("{data}.json")).unwrap();
    let cases: Value = serde_json::from_slice(&cases).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let recorded_dir = Path::new(&data).join(name);
        let records: Vec<Vec<u8>> = case["records"]
            .as_array()
            .unwrap()
            .iter()
            .zip(1..)
            .map(|(record, k)| {
                let len = record[0].as_u64().unwrap() as usize;
                payload(case["payload"].as_str().unwrap(), k, len)
            })
            .collect();

        // Arbitrary bytes decode as records of unknown type, or are reported as undecodable.
        let raw_records = read_raw(&recorded_dir);
        assert_eq!(raw_records, records, "{name}");

        let compression = match case["compression"].as_str().unwrap() {
            "none" => Compression::None,
            "snappy" => Compression::Snappy,
            _ => Compression::Zstd,
        };
        let disk = FaultyDisk::new();
        let segment_bytes = case["segment_size"].as_u64().unwrap();
        let mut wal = open(&disk, options(segment_bytes, compression, SyncPolicy::Segment));
        for record in &records {
            let _ = wal.append(&[record]).unwrap();
        }
        if case["closed"].as_bool().unwrap() {
            wal.close().unwrap();
        }
        for file in case["files"].as_array().unwrap() {
            let file = file[0].as_str().unwrap();
            let ours = read_file(&disk, &Path::new(DIR).join(file), 1 << 30).unwrap();
            let theirs = std::fs::read(recorded_dir.join(file)).unwrap();
            if compression == Compression::None {
                assert!(ours == theirs, "{name} {file}");
            }
        }
    }
}

/// Records of a directory whether they decode or not, by the fragments alone.
fn read_raw(dir: &Path) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for (segment, _) in repair::LogDir::list(&SystemDisk, dir).unwrap().segments {
        let mut reader = SegmentReader::open(&SystemDisk, &segment_path(dir, segment)).unwrap();
        reader.for_each_payload(|bytes| records.push(bytes.to_vec())).unwrap();
    }
    records
}
