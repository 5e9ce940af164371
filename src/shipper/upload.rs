//! One block to the bucket: chunks, index, and last the manifest with Thanos' section.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use sha2::{Digest as _, Sha256};

use crate::disk::{Disk, DiskFile};
use crate::error::io_cause;
use crate::model::Timestamp;
use crate::objstore::{Bucket, BucketError, Content};
use crate::tsdb::block::chunks::CHUNKS_DIR;
use crate::tsdb::block::meta::{BlockFile, BlockMeta, FileHash, META_FILE};
use crate::tsdb::block::ulid::Ulid;
use crate::tsdb::index::INDEX_FILE;

/// Which component made a block.
const SOURCE: &str = "receive";
const HASH: &str = "SHA256";
const PIECE_BYTES: usize = 1 << 20;

/// Why a block did not get to the bucket.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("{}: {}", path.display(), io_cause(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("reading the block: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    /// Blocks without any would be taken for each other's.
    #[error("empty external labels are not allowed for Thanos block.")]
    NoLabels,
    #[error("the external label {name:?} is not valid UTF-8")]
    LabelNotUtf8 { name: String },
    #[error("{0}")]
    Bucket(#[source] BucketError),
}

/// A file of a block, open.
struct OpenFile {
    /// Relative to the block.
    name: String,
    file: Arc<dyn DiskFile>,
    len: u64,
    hash: Option<FileHash>,
}

/// What is uploaded of a block.
pub(super) struct BlockFiles {
    chunks: Vec<OpenFile>,
    index: OpenFile,
}

/// Opens the files of the block in `dir`, and hashes them if asked to. Blocks on the disk.
pub(super) fn open(
    disk: &dyn Disk,
    dir: &Path,
    is_hashed: bool,
) -> Result<BlockFiles, UploadError> {
    let chunks_dir = dir.join(CHUNKS_DIR);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| UploadError::Read { path, source }
    };
    let mut chunks = Vec::new();
    for entry in disk.list(&chunks_dir).map_err(failed(&chunks_dir))? {
        // Names of segments are digits; others are strangers' and do not get far.
        let Some(name) = entry.name.to_str().filter(|_| !entry.is_dir) else { continue };
        let (path, name) = (chunks_dir.join(name), format!("{CHUNKS_DIR}/{name}"));
        chunks.push(open_file(disk, &path, name, is_hashed).map_err(failed(&path))?);
    }
    let path = dir.join(INDEX_FILE);
    let index = open_file(disk, &path, INDEX_FILE.to_owned(), is_hashed).map_err(failed(&path))?;
    Ok(BlockFiles { chunks, index })
}

fn open_file(disk: &dyn Disk, path: &Path, name: String, is_hashed: bool) -> io::Result<OpenFile> {
    let file = disk.open(path)?;
    let len = file.len()?;
    let hash = if is_hashed { Some(hash(&*file)?) } else { None };
    Ok(OpenFile { name, file, len, hash })
}

fn hash(file: &dyn DiskFile) -> io::Result<FileHash> {
    let mut digest = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut piece, at)? {
            0 => break,
            read => {
                digest.update(&piece[..read]);
                at += read as u64;
            }
        }
    }
    let value = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(FileHash { func: HASH.to_owned(), value })
}

/// The manifest for the bucket.
pub(super) fn manifest(
    local: &BlockMeta,
    labels: &[(Vec<u8>, Vec<u8>)],
    files: &BlockFiles,
    now: Timestamp,
) -> Result<BlockMeta, UploadError> {
    // What stands there of Thanos' already is kept, as Thanos keeps it.
    let mut thanos = local.thanos.clone().unwrap_or_default();
    for (name, value) in labels {
        let name = String::from_utf8_lossy(name).into_owned();
        let Ok(value) = String::from_utf8(value.clone()) else {
            return Err(UploadError::LabelNotUtf8 { name });
        };
        thanos.labels.insert(name, value);
    }
    if thanos.labels.is_empty() {
        return Err(UploadError::NoLabels);
    }
    thanos.source = SOURCE.to_owned();
    let segment = |file: &OpenFile| Some(file.name.split_once('/')?.1.to_owned());
    thanos.segment_files = files.chunks.iter().filter_map(segment).collect();
    thanos.files = files.list();
    thanos.upload_time = rfc3339(now);
    Ok(BlockMeta { thanos: Some(thanos), ..local.clone() })
}

impl BlockFiles {
    /// By path, the manifest without its size.
    fn list(&self) -> Vec<BlockFile> {
        let files = self.chunks.iter().chain([&self.index]).map(|file| BlockFile {
            rel_path: file.name.clone(),
            size_bytes: i64::try_from(file.len).unwrap_or(i64::MAX),
            hash: file.hash.clone(),
        });
        let manifest = BlockFile { rel_path: META_FILE.to_owned(), ..BlockFile::default() };
        let mut files: Vec<_> = files.chain([manifest]).collect();
        files.sort_by(|a, b| a.rel_path.cmp(&b.rel_path));
        files
    }
}

/// Uploads files and manifest of a block, in the order in which it becomes whole.
pub(super) async fn upload(
    bucket: &dyn Bucket,
    ulid: Ulid,
    files: &BlockFiles,
    manifest: &BlockMeta,
    files_at_once: usize,
) -> Result<(), UploadError> {
    let chunks: Vec<_> =
        files.chunks.iter().map(|file| upload_file(bucket, ulid, file).boxed()).collect();
    let mut chunks = stream::iter(chunks).buffer_unordered(files_at_once.max(1));
    while let Some(uploaded) = chunks.next().await {
        uploaded?;
    }
    upload_file(bucket, ulid, &files.index).await?;
    let content = Content::Bytes(Bytes::from(manifest.to_bytes()));
    bucket.upload(&object(ulid, META_FILE), content).await.map_err(UploadError::Bucket)
}

async fn upload_file(bucket: &dyn Bucket, ulid: Ulid, file: &OpenFile) -> Result<(), UploadError> {
    let object = object(ulid, &file.name);
    let content = Content::File { file: file.file.clone(), len: file.len };
    bucket.upload(&object, content).await.map_err(UploadError::Bucket)?;
    tracing::debug!(dst = object, bucket = bucket.name(), "uploaded file");
    Ok(())
}

/// The name in the bucket of a block's file.
pub(super) fn object(ulid: Ulid, file: &str) -> String {
    format!("{ulid}/{file}")
}

/// As Go writes a time: with as many digits of a second as it takes.
fn rfc3339(time: Timestamp) -> String {
    let since = Duration::from_millis(u64::try_from(time).unwrap_or(0));
    let text = humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string();
    let text = text.trim_end_matches('Z');
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    match fraction.trim_end_matches('0') {
        "" => format!("{seconds}Z"),
        fraction => format!("{seconds}.{fraction}Z"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_by_go() {
        for (time, text) in [
            (1_795_494_820_310, "2026-11-24T04:33:40.31Z"),
            (1_795_494_820_001, "2026-11-24T04:33:40.001Z"),
            (1_795_494_820_000, "2026-11-24T04:33:40Z"),
            (1_700_000_000_000, "2023-11-14T22:13:20Z"),
            (0, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(time), text);
        }
    }
}
