//! Reading a block as a whole, as the index leads to it, before anything is deleted that it has.

use std::path::Path;

use super::Block;
use super::chunks::RawChunk;
use super::meta::META_FILE;
use crate::model::stop;
use crate::tsdb::chunkenc::sample_count;
use crate::tsdb::error::{Corruption, ReadError};
use crate::tsdb::index::BlockSeriesRef;

/// Series and lists of postings read between two looks at whether the work is to stop.
const READ_PER_LOOK: usize = 64;

/// What a reading of a block came to that met no damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verified {
    /// All of it is there.
    Whole,
    /// The work was asked to stop.
    Interrupted,
}

impl Block {
    /// Reads all postings, all series and the chunks that they name, by their checksums, and counts
    /// what the manifest counts. So what was cut off at the end of a file is missed, too, which no
    /// checksum tells. What is in the chunks is not decoded.
    pub fn verify(&self) -> Result<Verified, ReadError> {
        if self.verify_postings()? == Verified::Interrupted {
            return Ok(Verified::Interrupted);
        }
        let mut reader = self.index.series();
        let mut raw = RawChunk::default();
        let (mut series_count, mut chunk_count, mut samples) = (0, 0, 0);
        for (read, series) in self.index.all_postings()?.into_iter().enumerate() {
            if read.is_multiple_of(READ_PER_LOOK) && stop::is_asked() {
                return Ok(Verified::Interrupted);
            }
            reader.read(BlockSeriesRef(series))?;
            series_count += 1;
            for chunk in reader.chunks() {
                self.chunks.read(chunk.chunk, &mut raw)?;
                chunk_count += 1;
                samples += u64::from(sample_count(raw.encoding, &raw.bytes));
            }
        }
        let stats = &self.meta.stats;
        for (what, counted, found) in [
            ("the manifest counts other series than there are", stats.num_series, series_count),
            ("the manifest counts other chunks than there are", stats.num_chunks, chunk_count),
            ("the manifest counts other samples than there are", stats.num_samples, samples),
        ] {
            // Zero is left out of it, as is what its writer does not count.
            if counted != 0 && counted != found {
                return Err(corrupt(&self.dir, what));
            }
        }
        Ok(Verified::Whole)
    }

    fn verify_postings(&self) -> Result<Verified, ReadError> {
        for name in self.index.label_names() {
            let mut values = self.index.values(name);
            let mut read = 0_usize;
            while let Some((_, place)) = values.next()? {
                if read.is_multiple_of(READ_PER_LOOK) && stop::is_asked() {
                    return Ok(Verified::Interrupted);
                }
                self.index.postings_at(place)?;
                read += 1;
            }
        }
        Ok(Verified::Whole)
    }
}

fn corrupt(dir: &Path, what: &'static str) -> ReadError {
    Corruption { file: dir.join(META_FILE), offset: 0, what }.into()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::disk::SystemDisk;
    use crate::tsdb::block::chunks::CHUNKS_DIR;
    use crate::tsdb::block::meta::BlockMeta;
    use crate::tsdb::block::tests::recorded_blocks;
    use crate::tsdb::file::PageCache;
    use crate::tsdb::index::INDEX_FILE;

    fn open(dir: &Path) -> Result<Block, ReadError> {
        Block::open(&SystemDisk, dir, PageCache::new(0))
    }

    #[test]
    fn recorded_blocks_are_whole() {
        for dir in recorded_blocks() {
            assert_eq!(open(&dir).unwrap().verify().unwrap(), Verified::Whole, "{}", dir.display());
        }
    }

    #[test]
    fn whatever_is_cut_off_or_damaged_is_missed() {
        let has_one_segment =
            |block: &PathBuf| std::fs::read_dir(block.join(CHUNKS_DIR)).unwrap().count() == 1;
        let recorded = recorded_blocks().into_iter().find(has_one_segment).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join(recorded.file_name().unwrap());
        std::fs::create_dir_all(dir.join(CHUNKS_DIR)).unwrap();
        let segment = format!("{CHUNKS_DIR}/000001");
        let files = [META_FILE, INDEX_FILE, &segment];
        for file in files {
            std::fs::copy(recorded.join(file), dir.join(file)).unwrap();
        }
        assert_eq!(open(&dir).unwrap().verify().unwrap(), Verified::Whole);
        let is_found = |what: &str| {
            let verified = open(&dir).and_then(|block| block.verify());
            assert!(matches!(verified, Err(ReadError::Corrupt(_))), "{what}: {verified:?}");
        };
        for file in [INDEX_FILE, &segment] {
            let whole = std::fs::read(dir.join(file)).unwrap();
            // The last bytes of a segment's header and of padding are nobody's.
            for at in (16..whole.len()).step_by(7) {
                std::fs::write(dir.join(file), &whole[..at]).unwrap();
                is_found(&format!("{file} of {at} bytes"));
                if file == segment {
                    let mut damaged = whole.clone();
                    damaged[at] ^= 1;
                    std::fs::write(dir.join(file), &damaged).unwrap();
                    is_found(&format!("{file}, byte {at}"));
                }
            }
            std::fs::write(dir.join(file), &whole).unwrap();
        }
        let mut meta = BlockMeta::read(&SystemDisk, &dir).unwrap();
        meta.stats.num_samples += 1;
        meta.write(&SystemDisk, &dir).unwrap();
        is_found("another count");
    }

    #[test]
    fn a_reading_that_nobody_waits_for_ends() {
        let block = open(&recorded_blocks()[0]).unwrap();
        let (asker, stop) = stop::pair();
        drop(asker);
        assert_eq!(stop.run(|| block.verify()).unwrap(), Verified::Interrupted);
    }
}
