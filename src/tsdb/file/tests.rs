use std::io;

use super::*;
use crate::disk::faulty::FaultyDisk;
use crate::tsdb::error::WriteError;

const DIR: &str = "/d";

fn disk_with(bytes: &[u8]) -> (FaultyDisk, PathBuf) {
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let path = Path::new(DIR).join("f");
    disk.create(&path).unwrap().write_all_at(bytes, 0).unwrap();
    (disk, path)
}

fn offset_of(err: &ReadError) -> u64 {
    match err {
        ReadError::Corrupt(corruption) => corruption.offset,
        other => panic!("{other}"),
    }
}

#[test]
fn ranges_are_read_with_and_without_a_cache() {
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i * 7 + i / 256) as u8).collect();
    let (disk, path) = disk_with(&bytes);
    let cache = PageCache::new(3 * pages::PAGE_BYTES);
    let plain = RangeReader::open(&disk, &path).unwrap();
    let cached = RangeReader::open(&disk, &path).unwrap().with_cache(cache.clone());
    let mut read = Vec::new();
    for (offset, len) in
        [(0, 0), (0, 1), (0, 70_000), (16_383, 2), (16_384, 16_384), (99_999, 1), (100_000, 0)]
    {
        let expected = &bytes[offset as usize..(offset + len) as usize];
        plain.read(offset, len, &mut read, "a range").unwrap();
        assert_eq!(read, expected);
        for _ in 0..2 {
            cached.read_cached(offset, len, &mut read, "a range").unwrap();
            assert_eq!(read, expected);
        }
        assert!(cache.bytes() as u64 <= 3 * pages::PAGE_BYTES);
    }
    for (offset, len) in [(0, 100_001), (100_000, 1), (100_001, 0), (5, u64::MAX), (u64::MAX, 1)] {
        let err = plain.read(offset, len, &mut read, "a range").unwrap_err();
        assert_eq!(offset_of(&err), offset.min(100_000));
        cached.read_cached(offset, len, &mut read, "a range").unwrap_err();
    }
}

#[test]
fn a_file_that_was_cut_since_is_an_error() {
    let (disk, path) = disk_with(b"0123456789");
    let file = RangeReader::open(&disk, &path).unwrap();
    disk.open_write(&path).unwrap().truncate(4).unwrap();
    let mut read = Vec::new();
    file.read(0, 4, &mut read, "a range").unwrap();
    assert_eq!(offset_of(&file.read(2, 4, &mut read, "a range").unwrap_err()), 4);
}

/// A section of these contents, three bytes into a file.
fn section(contents: &[u8]) -> Vec<u8> {
    let len = (contents.len() as u32).to_be_bytes();
    [&b"abc"[..], &len, contents, &crc32c::crc32c(contents).to_be_bytes()].concat()
}

#[test]
fn a_section_is_read_in_bites_and_believed_by_its_checksum() {
    // Texts that lie across the borders of bites, and one longer than a bite.
    let mut contents = Vec::new();
    let texts: Vec<Vec<u8>> =
        (0..2000).map(|i| vec![i as u8; if i == 1000 { 200_000 } else { i % 100 }]).collect();
    for text in &texts {
        crate::model::varint::push_varint(&mut contents, text.len() as u64);
        contents.extend_from_slice(text);
    }
    contents.extend(7_u32.to_be_bytes());
    let bytes = section(&contents);
    let (disk, path) = disk_with(&bytes);
    let file = RangeReader::open(&disk, &path).unwrap();
    let mut read = Section::open(&file, 3, "a section").unwrap();
    assert_eq!((read.offset(), read.remaining()), (7, contents.len() as u64));
    for text in &texts {
        assert_eq!(read.text().unwrap(), text);
    }
    assert_eq!(read.be32().unwrap(), 7);
    assert_eq!((read.offset(), read.remaining()), (7 + contents.len() as u64, 0));
    assert_eq!(offset_of(&read.take(1).unwrap_err()), 7 + contents.len() as u64);
    read.check().unwrap();

    // Any damage is found, whether what is damaged was read or not.
    for at in [7, 100_000, bytes.len() - 9, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let (disk, path) = disk_with(&damaged);
        let file = RangeReader::open(&disk, &path).unwrap();
        let err = Section::open(&file, 3, "a section").unwrap().check().unwrap_err();
        assert_eq!(offset_of(&err), 7);
    }
    for len in 3..bytes.len().min(40) {
        let (disk, path) = disk_with(&bytes[..len]);
        let file = RangeReader::open(&disk, &path).unwrap();
        assert_eq!(offset_of(&Section::open(&file, 3, "a section").err().unwrap()), 3);
    }
}

#[test]
fn lengths_that_lie_take_no_memory() {
    let contents = [0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2];
    let (disk, path) = disk_with(&section(&contents));
    let file = RangeReader::open(&disk, &path).unwrap();
    let mut read = Section::open(&file, 3, "a section").unwrap();
    assert_eq!(offset_of(&read.text().unwrap_err()), 12);
    let mut read = Section::open(&file, 3, "a section").unwrap();
    assert_eq!(offset_of(&read.take(usize::MAX).unwrap_err()), 7);
}

#[test]
fn what_is_written_in_bites_is_one_file_and_on_the_medium() {
    let (disk, _) = disk_with(b"");
    let path = Path::new(DIR).join("g");
    let mut writer = FileWriter::create(&disk, &path).unwrap();
    let mut expected = Vec::new();
    // Some more than two rounds of sync.
    for i in 0..20_000_u32 {
        let line = [i as u8; 901];
        writer.write(&line).unwrap();
        expected.extend_from_slice(&line);
    }
    writer.pad(4096).unwrap();
    expected.resize(expected.len().next_multiple_of(4096), 0);
    assert_eq!(writer.position(), expected.len() as u64);
    for at in [0, 5_000_000, expected.len() - 4] {
        writer.patch(at as u64, b"here").unwrap();
        expected[at..at + 4].copy_from_slice(b"here");
    }
    let mut read = Vec::new();
    let reader = writer.reader().unwrap();
    reader.read(0, reader.len(), &mut read, "all").unwrap();
    assert_eq!(read, expected);
    writer.write(b"end").unwrap();
    expected.extend_from_slice(b"end");
    disk.sync_dir(Path::new(DIR)).unwrap();
    let before = disk.after_power_cut().open(&path).unwrap().len().unwrap();
    assert!(before >= 16 << 20, "{before}");
    assert_eq!(writer.finish().unwrap(), expected.len() as u64);
    let after = disk.after_power_cut();
    let file = RangeReader::open(&after, &path).unwrap();
    file.read(0, file.len(), &mut read, "all").unwrap();
    assert_eq!(read, expected);
}

#[test]
fn a_writer_replaces_nothing_and_tells_what_failed() {
    let (disk, path) = disk_with(b"old");
    let err = FileWriter::create(&disk, &path).err().unwrap();
    assert!(
        matches!(err, WriteError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    );
    let mut writer = FileWriter::create(&disk, &Path::new(DIR).join("g")).unwrap();
    writer.write(b"more").unwrap();
    disk.limit_bytes(Some(5));
    let err = writer.finish().unwrap_err();
    assert!(
        matches!(err, WriteError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    );
}
