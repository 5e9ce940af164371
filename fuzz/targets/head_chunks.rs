//! A file of head chunks of arbitrary bytes: whatever it holds is taken or left, what is taken can be
//! read, and what an opening leaves is opened again as it is.
//!
//! Input: the file.

use std::path::Path;
use std::sync::Arc;

use ringest::disk::Disk;
use ringest::disk::faulty::FaultyDisk;
use ringest::metrics::Registry;
use ringest::tsdb::head_chunks::scan::{MappedChunk, ScanReport};
use ringest::tsdb::head_chunks::{FILE_BYTES, FullChunk, HEAD_CHUNKS_DIR, HeadChunkFiles};

const DIR: &str = "/db";

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let disk = FaultyDisk::new();
    let dir = Path::new(DIR).join(HEAD_CHUNKS_DIR);
    disk.create_dir_all(&dir).expect("a disk in memory");
    let file = disk.create(&dir.join("000001")).expect("a disk in memory");
    file.write_all_at(input, 0).expect("a disk in memory");
    let (chunks, first) = open(&disk);
    let (again, second) = open(&disk);
    assert_eq!(chunks, again);
    assert!(second.damaged <= first.damaged);
    assert_eq!(ScanReport { damaged: 0, ..second }, ScanReport { damaged: 0, ..first });
}

fn open(disk: &FaultyDisk) -> (Vec<FullChunk>, ScanReport) {
    let disk = Arc::new(disk.clone());
    let files = HeadChunkFiles::new(disk, Path::new(DIR), FILE_BYTES, &Registry::new(), "t");
    let mut chunks = Vec::new();
    let mut take = |chunk: MappedChunk| {
        let MappedChunk { series_ref, mint, maxt, encoding, place } = chunk;
        let mut bytes = Vec::new();
        files.chunk(mint, maxt, place).read(&mut bytes).expect("a chunk that was found");
        chunks.push(FullChunk { series_ref, mint, maxt, encoding, bytes });
    };
    let report = files.open(i64::MIN, &mut take).expect("a disk in memory");
    (chunks, report)
}

/// Files of Prometheus.
const RECORDED: [&[u8]; 3] = [
    include_bytes!("../../tests/data/tsdb/head_chunks/mapper/chunks_head/000001"),
    include_bytes!("../../tests/data/tsdb/head_chunks/mapper/chunks_head/000003"),
    include_bytes!("../../tests/data/tsdb/head_chunks/wal-lost/chunks_head/000002"),
];

/// Inputs to begin with: nothing, a file without chunks, and some with.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new(), vec![0x01, 0x30, 0xbc, 0x91, 1, 0, 0, 0]];
    seeds.extend(RECORDED.map(<[u8]>::to_vec));
    seeds
}
