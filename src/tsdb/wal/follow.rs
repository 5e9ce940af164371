//! Reading a log behind its writer.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::reader::{Found, SegmentReader};
use super::repair::{LogRecord, RecordSource};
use super::{LogPosition, segment_path};
use crate::disk::Disk;

/// Where in the log a reader is that follows the writer.
pub struct Follower {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    at: LogPosition,
}

impl Follower {
    /// Begins at a place where a record does, or will.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, at: LogPosition) -> Follower {
        Follower { disk, dir, at }
    }

    pub fn position(&self) -> LogPosition {
        self.at
    }

    /// Gives the records up to `end`, which is the end of one that is written. Those of an append
    /// that failed lie behind every such place, and are cut off before anything else is written
    /// there.
    pub fn read_to(
        &mut self,
        end: LogPosition,
        mut on_record: impl FnMut(LogRecord<'_>),
    ) -> io::Result<()> {
        while self.at < end {
            let LogPosition { segment, offset } = self.at;
            let path = segment_path(&self.dir, segment);
            let is_last = segment == end.segment;
            // A segment that was ended has a last page of its own.
            let to = if is_last { end.offset } else { u64::MAX };
            let mut reader = SegmentReader::open_part(&*self.disk, &path, offset..to)?;
            while let Some(found) = reader.read_next()? {
                match found {
                    Found::Record(found) => {
                        let end = LogPosition { segment, offset: found.end };
                        let source = RecordSource::Segment(end);
                        on_record(LogRecord { record: found.record, bytes: found.bytes, source });
                        self.at = end;
                    }
                    Found::Damage(damage) => {
                        let what = format!("{damage:?} in {}", path.display());
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                }
            }
            self.at = match is_last {
                true => end,
                false => LogPosition { segment: segment.next(), offset: 0 },
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::faulty::FaultyDisk;
    use crate::metrics::Registry;
    use crate::tsdb::wal::{Compression, SyncPolicy, Wal, WalMetrics, WalOptions};

    #[test]
    fn a_follower_gets_each_record_once_whenever_it_looks() {
        let (disk, dir) = (FaultyDisk::new(), Path::new("/wal"));
        let options = WalOptions {
            segment_bytes: 32 << 10,
            compression: Compression::None,
            sync: SyncPolicy::Interval,
        };
        let metrics = WalMetrics::new(&Registry::new(), "t");
        let disk = Arc::new(disk);
        let mut wal = Wal::open(disk.clone(), dir, options, metrics).unwrap();
        let mut follower = Follower::new(disk.clone(), dir.to_owned(), wal.end());
        let mut found = Vec::new();
        let mut expected = Vec::new();
        for i in 0..300_u32 {
            // Some of several pages, and some appends that fail halfway.
            let len = if i % 50 == 7 { 70_000 } else { 10 + i as usize * 7 };
            let record: Vec<u8> = [99].into_iter().chain(vec![i as u8; len]).collect();
            if i % 13 == 5 {
                disk.fail_operation(0, io::ErrorKind::StorageFull, len / 2);
                assert!(wal.append(&[&record]).is_err());
            } else {
                let _ = wal.append(&[&record]).unwrap();
                expected.push(record);
            }
            if i % 3 == 0 {
                follower.read_to(wal.end(), |one| found.push(one.bytes.to_vec())).unwrap();
                assert!(found == expected, "{i}");
                assert_eq!(follower.position(), wal.end());
            }
        }
        assert!(wal.end().segment.0 > 5);
        follower.read_to(wal.end(), |one| found.push(one.bytes.to_vec())).unwrap();
        assert!(found == expected);
    }

    #[test]
    fn a_follower_does_not_step_over_damage() {
        let (disk, dir) = (Arc::new(FaultyDisk::new()), Path::new("/wal"));
        let options = WalOptions {
            segment_bytes: 32 << 10,
            compression: Compression::None,
            sync: SyncPolicy::Interval,
        };
        let metrics = WalMetrics::new(&Registry::new(), "t");
        let mut wal = Wal::open(disk.clone(), dir, options, metrics).unwrap();
        let _ = wal.append(&[&[99, 1, 2, 3]]).unwrap();
        let path = segment_path(dir, wal.end().segment);
        disk.open_write(&path).unwrap().write_all_at(&[7], 8).unwrap();
        let mut follower = Follower::new(disk, dir.to_owned(), LogPosition::default());
        let read = follower.read_to(wal.end(), |_| panic!("there is none"));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
