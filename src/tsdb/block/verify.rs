//! Reading a block as a whole, as the index leads to it, before anything is deleted that it has.

use std::collections::BTreeSet;
use std::path::Path;

use super::Block;
use super::chunks::RawChunk;
use super::meta::META_FILE;
use crate::model::stop;
use crate::tsdb::chunkenc::sample_count;
use crate::tsdb::error::{Corruption, ReadError};
use crate::tsdb::index::BlockSeriesRef;

/// Pages of the index kept while a block is read as a whole, in another cache than that of queries.
pub const WHOLE_CACHE_BYTES: u64 = 1 << 20;

/// Series and lists of postings read between two looks at whether the work is to stop.
const READ_PER_LOOK: usize = 64;

/// What a reading of a block came to that met no damage.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verified {
    /// All of it is there. Its chunks have these encodings, by Prometheus' numbers.
    Whole { encodings: BTreeSet<u8> },
    /// The work was asked to stop.
    Interrupted,
}

impl Block {
    /// Reads all postings, all series and the chunks that they name, by their checksums, and counts
    /// what the manifest counts. So what was cut off at the end of a file is missed, too, which no
    /// checksum tells. What is in the chunks is not decoded.
    pub fn verify(&self) -> Result<Verified, ReadError> {
        if !self.has_read_postings()? {
            return Ok(Verified::Interrupted);
        }
        let mut reader = self.index.series();
        let mut raw = RawChunk::default();
        let mut encodings = BTreeSet::new();
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
                encodings.insert(raw.encoding);
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
        Ok(Verified::Whole { encodings })
    }

    /// Whether all could be read before the work was asked to stop.
    fn has_read_postings(&self) -> Result<bool, ReadError> {
        for name in self.index.label_names() {
            let mut values = self.index.values(name);
            let mut read = 0_usize;
            while let Some((_, place)) = values.next()? {
                if read.is_multiple_of(READ_PER_LOOK) && stop::is_asked() {
                    return Ok(false);
                }
                self.index.postings_at(place)?;
                read += 1;
            }
        }
        Ok(true)
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

    /// Which encodings the chunks of a whole block have.
    fn encodings_of(dir: &Path) -> BTreeSet<u8> {
        match open(dir).unwrap().verify().unwrap() {
            Verified::Whole { encodings } => encodings,
            Verified::Interrupted => panic!("{}: nobody asked it to stop", dir.display()),
        }
    }

    #[test]
    fn recorded_blocks_are_whole_and_have_the_encodings_of_their_time() {
        let all: BTreeSet<u8> =
            recorded_blocks().iter().flat_map(|dir| encodings_of(dir)).collect();
        // From the fourth on they are Prometheus 3.14's.
        assert_eq!(all, BTreeSet::from([1, 2, 3, 4, 5, 6]));
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
        assert!(!encodings_of(&dir).is_empty());
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
