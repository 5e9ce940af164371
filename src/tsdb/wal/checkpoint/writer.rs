//! Writing the segments of a checkpoint.

use std::path::{Path, PathBuf};

use super::CheckpointError;
use crate::disk::Disk;
use crate::tsdb::error::WriteError;
use crate::tsdb::file::FileWriter;
use crate::tsdb::wal::pack::Packer;
use crate::tsdb::wal::segment::{FrameCounts, Framer, SegmentIndex, flags_of};
use crate::tsdb::wal::{Compression, WalOptions, segment_path};

/// Buffers larger than this are given back behind a record.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;

/// Appends records to segments in a directory of their own, in the format of the log. A file is on the
/// medium before anything is written to the next one.
pub(super) struct CheckpointWriter<'d> {
    disk: &'d dyn Disk,
    dir: PathBuf,
    options: WalOptions,
    segment: SegmentIndex,
    file: FileWriter,
    framer: Framer,
    framed: Vec<u8>,
    packer: Packer,
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
        let segment = SegmentIndex(0);
        Ok(CheckpointWriter {
            disk,
            dir: dir.to_owned(),
            options,
            segment,
            file: FileWriter::create(disk, &segment_path(dir, segment))?,
            framer: Framer::new(options.segment_bytes, 0),
            framed: Vec::new(),
            packer: Packer::default(),
            bytes: 0,
        })
    }

    /// Compresses a record as the log does, and appends it.
    pub(super) fn push(&mut self, record: &[u8]) -> Result<(), CheckpointError> {
        let mut packer = std::mem::take(&mut self.packer);
        let packed = packer.pack(self.options.compression, record).map_err(CheckpointError::Pack);
        let pushed = packed.and_then(|(compression, bytes)| self.push_stored(bytes, compression));
        packer.give_back(BUFFER_BYTES_KEPT);
        self.packer = packer;
        pushed
    }

    /// Appends a record as it is stored elsewhere.
    pub(super) fn push_stored(
        &mut self,
        stored: &[u8],
        compression: Compression,
    ) -> Result<(), CheckpointError> {
        if !self.framer.fits(stored.len()) && self.framer.offset() > 0 {
            self.begin_next()?;
        }
        let flags = flags_of(compression);
        self.framed.clear();
        self.framer.push_record(&mut self.framed, stored, flags, &mut FrameCounts::default());
        self.file.write(&self.framed)?;
        self.framed.clear();
        self.framed.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }

    /// Brings the rest to the medium; the bytes of all files.
    pub(super) fn finish(mut self) -> Result<u64, WriteError> {
        self.pad()?;
        Ok(self.bytes + self.file.finish()?)
    }

    fn begin_next(&mut self) -> Result<(), WriteError> {
        self.pad()?;
        self.segment = self.segment.next();
        let next = FileWriter::create(self.disk, &segment_path(&self.dir, self.segment))?;
        self.bytes += std::mem::replace(&mut self.file, next).finish()?;
        self.framer = Framer::new(self.options.segment_bytes, 0);
        Ok(())
    }

    fn pad(&mut self) -> Result<(), WriteError> {
        self.framed.clear();
        self.framer.push_padding(&mut self.framed);
        self.file.write(&self.framed)
    }
}
