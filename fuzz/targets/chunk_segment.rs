//! A segment of chunks of arbitrary bytes: wherever a chunk is looked for, it is found or refused, and
//! one that is found can be written and is found again.
//!
//! Input: the file. It is read as it is, and once more with the checksum of what looks like its first
//! chunk set right.

use std::path::Path;

use ringest::disk::Disk;
use ringest::disk::faulty::FaultyDisk;
use ringest::tsdb::block::chunks::{
    ChunkReader, ChunkWriter, EncodedChunk, RawChunk, SEGMENT_BYTES, segment_name,
};
use ringest::tsdb::index::BlockChunkRef;

const DIR: &str = "/chunks";
const HEADER: [u8; 8] = [0x85, 0xbd, 0x40, 0xdd, 1, 0, 0, 0];

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    read_and_write(input);
    let mut mended = input.to_vec();
    if mend(&mut mended).is_some() {
        read_and_write(&mended);
    }
}

fn disk() -> FaultyDisk {
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new(DIR)).expect("a disk in memory");
    disk
}

fn read_and_write(bytes: &[u8]) {
    let before = disk();
    let file = before.create(&Path::new(DIR).join(segment_name(0))).expect("a disk in memory");
    file.write_all_at(bytes, 0).expect("a disk in memory");
    let reader = ChunkReader::open(&before, Path::new(DIR)).expect("the disk is whole");
    let mut found = Vec::new();
    for offset in 0..bytes.len() as u32 + 2 {
        let mut chunk = RawChunk::default();
        if reader.read(BlockChunkRef::new(0, offset), &mut chunk).is_ok() {
            found.push(chunk);
        }
    }
    assert!(reader.damaged().next().is_none() || found.is_empty());

    let after = disk();
    let mut writer = ChunkWriter::new(&after, Path::new(DIR), SEGMENT_BYTES);
    let encoded = |chunk: &'_ RawChunk| (chunk.encoding, chunk.bytes.clone());
    let mut metas = Vec::new();
    for (encoding, bytes) in found.iter().map(encoded) {
        let chunk = EncodedChunk { mint: 0, maxt: 0, encoding, bytes: &bytes };
        writer.write(&[chunk], &mut metas).expect("a disk in memory");
    }
    writer.finish().expect("a disk in memory");
    let reader = ChunkReader::open(&after, Path::new(DIR)).expect("the disk is whole");
    for (meta, expected) in metas.iter().zip(&found) {
        let mut chunk = RawChunk::default();
        reader.read(meta.chunk, &mut chunk).expect("what we wrote");
        assert_eq!(chunk, *expected);
    }
}

fn mend(bytes: &mut [u8]) -> Option<()> {
    let start = HEADER.len();
    let len = usize::from(*bytes.get(start)?);
    let checked = bytes.get(start + 1..start + 2 + len)?;
    let crc = crc32c::crc32c(checked).to_be_bytes();
    bytes.get_mut(start + 2 + len..start + 6 + len)?.copy_from_slice(&crc);
    bytes[..start].copy_from_slice(&HEADER);
    Some(())
}

/// A segment of Prometheus, of three chunks.
const RECORDED: &[u8] = include_bytes!(
    "../../tests/data/tsdb/blocks/overlapping/01M85ZRPBJ4FPYP461QAJ0EW9J/chunks/000001"
);

/// Inputs to begin with: no chunk, three, and three of Prometheus.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut bytes = HEADER.to_vec();
    let empty = bytes.clone();
    for (encoding, chunk) in [(1, &[0, 1, 2, 3][..]), (2, &[0; 100]), (7, &[])] {
        let checked = [&[encoding], chunk].concat();
        bytes.push(chunk.len() as u8);
        bytes.extend(&checked);
        bytes.extend(crc32c::crc32c(&checked).to_be_bytes());
    }
    vec![empty, bytes, RECORDED.to_vec()]
}
