//! Compressing records, one at a time.

use crate::tsdb::wal::{Compression, WalError};

/// Prometheus' "default" level.
const ZSTD_LEVEL: i32 = 3;

/// Compresses records, reusing its memory.
pub(super) struct Packer {
    packed: Vec<u8>,
    snappy: snap::raw::Encoder,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Default for Packer {
    fn default() -> Packer {
        Packer { packed: Vec::new(), snappy: snap::raw::Encoder::new(), zstd: None }
    }
}

impl Packer {
    /// The record as it is to be stored, and how that is compressed: not at all if it would not be
    /// shorter.
    pub(super) fn pack<'p>(
        &'p mut self,
        compression: Compression,
        record: &'p [u8],
    ) -> Result<(Compression, &'p [u8]), WalError> {
        match compression {
            Compression::None => return Ok((Compression::None, record)),
            Compression::Snappy => self.pack_snappy(record)?,
            Compression::Zstd => self.pack_zstd(record)?,
        }
        Ok(match self.packed.len() < record.len() {
            true => (compression, &self.packed),
            false => (Compression::None, record),
        })
    }

    /// Keeps at most so many bytes of its memory.
    pub(super) fn give_back(&mut self, bytes_kept: usize) {
        self.packed.clear();
        self.packed.shrink_to(bytes_kept);
    }

    fn pack_snappy(&mut self, record: &[u8]) -> Result<(), WalError> {
        let room = snap::raw::max_compress_len(record.len());
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        // An error says that the record is longer than 4 GiB, which was refused before.
        let written = self.snappy.compress(record, &mut self.packed);
        self.packed.truncate(written.map_err(|err| WalError::io(err.into()))?);
        Ok(())
    }

    fn pack_zstd(&mut self, record: &[u8]) -> Result<(), WalError> {
        let compressor = match &mut self.zstd {
            Some(compressor) => compressor,
            none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL).map_err(WalError::io)?),
        };
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(record.len()));
        compressor.compress_to_buffer(record, &mut self.packed).map_err(WalError::io)?;
        Ok(())
    }
}
