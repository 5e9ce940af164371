//! Files that the log need not vouch for: nothing is written to them any more, they are durable,
//! and were read once after that.
//!
//! Where Prometheus finds damage it deletes that file and all later ones; where a chunk is behind a
//! later one of its series, all of them. So a file is only sealed if it is fit in these eyes, if all
//! before it are sealed, and if there is no gap in their numbers; and nothing is sealed while a chunk
//! is out of sequence in any of them.

use std::io;
use std::path::Path;

use super::scan::{Damage, walk_with};
use super::{ChunkPlace, HeadChunkFile, HeadChunkFiles, Writer};
use crate::disk::{DiskFile, lacks_descriptors};
use crate::model::stop;
use crate::tsdb::error::{ReadError, WriteError};
use crate::tsdb::wal::{SegmentIndex, unsynced};

/// What is known about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seal {
    /// It may be written to.
    Open,
    /// It was there when the database was opened, whole as far as the kernel tells.
    Found,
    /// A part of it is no chunk.
    Unfit,
    /// A chunk is behind a later one of its series.
    OutOfSequence,
    Durable,
    Sealed,
}

impl Seal {
    /// The file is durable.
    pub(super) fn end_writing(&mut self) {
        if *self == Seal::Open {
            *self = Seal::Durable;
        }
    }
}

/// Files that a failed sync leaves in doubt: the kernel calls pages clean that it could not write,
/// and a later sync would succeed and prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Doubt {
    /// Files from this number on are not sealed,
    from: u64,
    /// until there is none left up to this one.
    to: u64,
}

/// Which files are sealed, by their places.
#[derive(Default)]
pub struct SealedFiles(Vec<bool>);

impl SealedFiles {
    pub fn holds(&self, place: ChunkPlace) -> bool {
        self.0.get(place.file()).copied().unwrap_or(false)
    }
}

/// Why files cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl HeadChunkFiles {
    /// Seals what has been written so far. The next chunk begins a new file. It says nothing of
    /// files that are [removed](Self::remove_dead) afterwards. `failures` counts failed syncs of
    /// the file system, each of which may have been one of these files.
    pub fn seal(&self, failures: &dyn Fn() -> u64) -> Result<SealedFiles, SealError> {
        let mut writer = self.writer.lock();
        let now = failures();
        if now != std::mem::replace(&mut writer.failures_seen, now) {
            self.doubt_unsealed(&mut writer);
        }
        self.finish_current(&mut writer)?;
        let end = writer.stays_from.min(writer.doubt.map_or(u64::MAX, |doubt| doubt.from));
        let files = self.by_number();
        let places = files.iter().map(|(_, place)| place + 1).max().unwrap_or(0);
        let mut sealed = SealedFiles(vec![false; places]);
        if files.iter().any(|(file, _)| *file.seal.lock() == Seal::OutOfSequence) {
            return Ok(sealed);
        }
        let first = files.first().map_or(0, |(file, _)| file.number);
        for (number, (file, place)) in (first..end).zip(files) {
            if stop::is_asked()
                || file.number != number
                || !self.seal_file(&mut writer, &file, failures)?
            {
                break;
            }
            sealed.0[place] = true;
        }
        Ok(sealed)
    }

    /// Whether the file is sealed now.
    fn seal_file(
        &self,
        writer: &mut Writer,
        file: &HeadChunkFile,
        failures: &dyn Fn() -> u64,
    ) -> Result<bool, SealError> {
        let seal = *file.seal.lock();
        match seal {
            Seal::Sealed => return Ok(true),
            Seal::Open | Seal::Unfit | Seal::OutOfSequence => return Ok(false),
            Seal::Durable => {}
            Seal::Found => self.sync_found(writer, file)?,
        }
        let damage =
            walk_with(&*self.disk, &file.path, |_, _, _| {}).map_err(ReadError::io(&file.path))?;
        if damage != Damage::None {
            self.metrics.corruptions.inc();
            tracing::error!(file = %file.path.display(), "head chunks were damaged since they were written");
        }
        if failures() != writer.failures_seen {
            self.doubt(writer, file.number);
            return Ok(false);
        }
        let now = if damage == Damage::None { Seal::Sealed } else { Seal::Unfit };
        *file.seal.lock() = now;
        Ok(now == Seal::Sealed)
    }

    /// Makes a file of an earlier process durable, and the names that lead to it.
    fn sync_found(&self, writer: &mut Writer, file: &HeadChunkFile) -> Result<(), WriteError> {
        let open = self.disk.open_write(&file.path).map_err(WriteError::io(&file.path))?;
        self.sync_file(writer, file.number, &file.path, &*open)
    }

    /// Syncs a file and the names that lead to it. It is in doubt if that fails.
    pub(super) fn sync_file(
        &self,
        writer: &mut Writer,
        number: u64,
        path: &Path,
        file: &dyn DiskFile,
    ) -> Result<(), WriteError> {
        let synced = file.sync().map_err(WriteError::io(path)).and_then(|()| self.sync_dirs());
        synced.inspect_err(|err| {
            let was_tried =
                !matches!(err, WriteError::Io { source, .. } if lacks_descriptors(source));
            if was_tried {
                self.doubt(writer, number);
            }
        })
    }

    /// The chunk at `place` stands behind later ones of its series.
    pub fn note_out_of_sequence(&self, place: ChunkPlace) {
        *self.file_at(place).seal.lock() = Seal::OutOfSequence;
    }

    /// What was written and is not sealed may not be on the medium, whatever a sync says from now
    /// on.
    fn doubt_unsealed(&self, writer: &mut Writer) {
        let files = self.by_number();
        let unsealed = files.iter().find(|(file, _)| *file.seal.lock() != Seal::Sealed);
        if let (Some((first, _)), Some((last, _))) = (unsealed, files.last()) {
            self.doubt(writer, first.number);
            self.doubt(writer, last.number);
        }
    }

    /// A process before this one could not sync its log, and these files neither, perhaps.
    pub fn doubt_found(&self) {
        self.doubt_unsealed(&mut self.writer.lock());
    }

    /// Notes that a file, or the name of one, could not be synced.
    pub(super) fn doubt(&self, writer: &mut Writer, number: u64) {
        let before = writer.doubt.unwrap_or(Doubt { from: number, to: number });
        let doubt = Doubt { from: before.from.min(number), to: before.to.max(number) };
        if writer.doubt.replace(doubt).is_none_or(|before| before.from != doubt.from) {
            // For a process after this one.
            let marked = unsynced::mark(&*self.disk, &self.dir, SegmentIndex(doubt.from));
            if let Err(err) = marked {
                let dir = self.dir.display();
                tracing::error!(%dir, %err, "a failed sync could not be marked among head chunks");
            }
        }
    }

    /// Heeds the mark that a process before this one left.
    pub(super) fn heed_mark(&self, last: u64) -> io::Result<()> {
        let marked = unsynced::marked_from(&*self.disk, &self.dir)?;
        self.writer.lock().doubt =
            marked.map(|SegmentIndex(from)| Doubt { from, to: last.max(from) });
        Ok(())
    }

    /// Forgets about files in doubt that are gone.
    pub(super) fn end_doubt(&self, writer: &mut Writer) {
        let Some(doubt) = writer.doubt else { return };
        let is_there = self.files.read().iter().flatten().any(|file| file.number <= doubt.to);
        if is_there {
            return;
        }
        match unsynced::unmark(&*self.disk, &self.dir) {
            Ok(()) => writer.doubt = None,
            Err(err) => {
                tracing::warn!(dir = %self.dir.display(), %err, "a mark among head chunks stays")
            }
        }
    }
}
