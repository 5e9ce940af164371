//! Writing the segments of a checkpoint.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::CheckpointError;
use crate::disk::Disk;
use crate::error::chain;
use crate::tsdb::error::WriteError;
use crate::tsdb::file::FileWriter;
use crate::tsdb::wal::names::NamesOfCheckpoint;
use crate::tsdb::wal::pack::Packer;
use crate::tsdb::wal::segment::{FrameCounts, Framer, SegmentIndex, flags_of};
use crate::tsdb::wal::{Compression, WalOptions, segment_path};

/// Buffers larger than this are given back behind a record.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// Appends records to a checkpoint, compressed as the log's are.
pub(super) struct CheckpointWriter<'d> {
    compression: Compression,
    packer: Packer,
    segments: Segments<'d>,
    /// Where its series records are written a second time; none, or none that could be written.
    names: Option<NamesOfCheckpoint<'d>>,
}

/// Segments in a directory of their own, in the format of the log. A file is on the medium before
/// anything is written to the next one.
struct Segments<'d> {
    disk: &'d dyn Disk,
    dir: PathBuf,
    segment_bytes: u64,
    segment: SegmentIndex,
    file: FileWriter,
    framer: Framer,
    framed: Vec<u8>,
    /// Of the files before this one.
    bytes: u64,
}

impl<'d> CheckpointWriter<'d> {
    /// `dir` must be empty.
    pub(super) fn create(
        disk: &'d dyn Disk,
        dir: &Path,
        options: WalOptions,
    ) -> Result<CheckpointWriter<'d>, WriteError> {
        let WalOptions { compression, segment_bytes, .. } = options;
        let segment = SegmentIndex(0);
        let segments = Segments {
            disk,
            dir: dir.to_owned(),
            segment_bytes,
            segment,
            file: FileWriter::create(disk, &segment_path(dir, segment))?,
            framer: Framer::new(segment_bytes, 0),
            framed: Vec::new(),
            bytes: 0,
        };
        Ok(CheckpointWriter { compression, packer: Packer::default(), segments, names: None })
    }

    /// Writes series records a second time.
    pub(super) fn with_names(self, names: Option<NamesOfCheckpoint<'d>>) -> CheckpointWriter<'d> {
        CheckpointWriter { names, ..self }
    }

    /// Compresses a record and appends it.
    pub(super) fn push(&mut self, record: &[u8]) -> Result<(), CheckpointError> {
        let packed = self.packer.pack(self.compression, record).map_err(CheckpointError::Pack);
        let (compression, stored) = packed?;
        let place = self.segments.push(stored, compression)?;
        note(&mut self.names, place, record, (stored, compression));
        self.packer.give_back(BUFFER_BYTES_KEPT);
        Ok(())
    }

    /// Appends a record as it is stored elsewhere.
    pub(super) fn push_stored(
        &mut self,
        record: &[u8],
        stored: &[u8],
        compression: Compression,
    ) -> Result<(), WriteError> {
        let place = self.segments.push(stored, compression)?;
        note(&mut self.names, place, record, (stored, compression));
        Ok(())
    }

    /// Brings the rest to the medium; the bytes of all files, and the second copy of names.
    pub(super) fn finish(self) -> Result<(u64, Option<NamesOfCheckpoint<'d>>), WriteError> {
        Ok((self.segments.finish()?, self.names))
    }
}

/// Notes a record beside the log. A failure ends that, and nothing else.
fn note(
    names: &mut Option<NamesOfCheckpoint<'_>>,
    place: (SegmentIndex, Range<u64>),
    record: &[u8],
    stored: (&[u8], Compression),
) {
    let pushed = names.as_mut().map(|names| names.push(place, record, stored));
    if let Some(Err(err)) = pushed {
        tracing::warn!(err = chain(&err), "a second copy of series names cannot be written");
        *names = None;
    }
}

impl Segments<'_> {
    /// The place of the record.
    fn push(
        &mut self,
        stored: &[u8],
        compression: Compression,
    ) -> Result<(SegmentIndex, Range<u64>), WriteError> {
        if !self.framer.fits(stored.len()) && self.framer.offset() > 0 {
            self.begin_next()?;
        }
        let (flags, counts) = (flags_of(compression), &mut FrameCounts::default());
        let start = self.framer.offset();
        self.framed.clear();
        self.framer.push_record(&mut self.framed, stored, flags, counts);
        let place = (self.segment, start..self.framer.offset());
        self.file.write(&self.framed)?;
        self.framed.clear();
        self.framed.shrink_to(BUFFER_BYTES_KEPT);
        Ok(place)
    }

    fn finish(mut self) -> Result<u64, WriteError> {
        self.pad()?;
        Ok(self.bytes + self.file.finish()?)
    }

    fn begin_next(&mut self) -> Result<(), WriteError> {
        self.pad()?;
        self.segment = self.segment.next();
        let next = FileWriter::create(self.disk, &segment_path(&self.dir, self.segment))?;
        self.bytes += std::mem::replace(&mut self.file, next).finish()?;
        self.framer = Framer::new(self.segment_bytes, 0);
        Ok(())
    }

    fn pad(&mut self) -> Result<(), WriteError> {
        self.framed.clear();
        self.framer.push_padding(&mut self.framed);
        self.file.write(&self.framed)
    }
}
