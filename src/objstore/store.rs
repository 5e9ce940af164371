//! S3, GCS and AZURE, by [`object_store`].
//!
//! A file that is larger than a part goes up part by part. Parts are read when their turn comes, and
//! what is in memory of all of them is bounded; every request has a deadline by its length. What a
//! crash leaves of an upload in parts is no object; providers remove it by a lifecycle rule.

mod azure;
mod gcs;
mod s3;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Attributes, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions,
    PutPayload, RetryConfig,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::disk::DiskFile;
use crate::metrics::Registry;
use crate::objstore::options::{AzureOptions, GcsOptions, S3Options};
use crate::objstore::store::azure::AzureStore;
use crate::objstore::store::s3::S3Store;
use crate::objstore::{Bucket, BucketError, Content, OpenBucketError};

/// Of one request with its retries, beside what its bytes take.
const CALL_MAX: Duration = Duration::from_secs(4 * 60);
/// No retry begins later than this after the first attempt.
const RETRIES_MAX: Duration = Duration::from_secs(90);
/// What is slower is taken for something that hangs.
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;
/// Memory for parts, of all files together; one part always fits.
const PARTS_BYTES_MAX: u64 = 128 << 20;
/// A part is handed over in such pieces, by which it is seen how it goes.
const PIECE_BYTES: usize = 256 << 10;
/// What memory is counted in.
const PERMIT_BYTES: u64 = 1 << 10;

/// A bucket of a provider.
pub struct StoreBucket {
    name: String,
    prefix: String,
    store: Store,
    part_bytes: u64,
    /// Told with every object.
    attributes: Attributes,
    /// Memory for parts.
    memory: Arc<Semaphore>,
}

enum Store {
    S3(Box<S3Store>),
    Gcs(Arc<dyn ObjectStore>),
    Azure(Box<AzureStore>),
}

impl StoreBucket {
    pub fn s3(
        options: &S3Options,
        prefix: &str,
        registry: &Registry,
    ) -> Result<StoreBucket, OpenBucketError> {
        let store = Store::S3(Box::new(S3Store::new(options, registry)?));
        let attributes = s3::attributes(options);
        StoreBucket::new(&options.bucket, prefix, store, options.part_bytes, attributes)
    }

    pub fn gcs(
        options: &GcsOptions,
        prefix: &str,
        registry: &Registry,
    ) -> Result<StoreBucket, OpenBucketError> {
        let store = Store::Gcs(gcs::store(options, registry)?);
        let attributes = Attributes::new();
        StoreBucket::new(&options.bucket, prefix, store, options.part_bytes, attributes)
    }

    pub fn azure(
        options: &AzureOptions,
        prefix: &str,
        registry: &Registry,
    ) -> Result<StoreBucket, OpenBucketError> {
        let store = Store::Azure(Box::new(AzureStore::new(options, registry)?));
        let attributes = Attributes::new();
        StoreBucket::new(&options.container, prefix, store, azure::PART_BYTES, attributes)
    }

    fn new(
        name: &str,
        prefix: &str,
        store: Store,
        part_bytes: u64,
        attributes: Attributes,
    ) -> Result<StoreBucket, OpenBucketError> {
        Path::parse(prefix).map_err(OpenBucketError::Prefix)?;
        let permits = PARTS_BYTES_MAX.max(part_bytes).div_ceil(PERMIT_BYTES);
        let permits = usize::try_from(permits).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Ok(StoreBucket {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            store,
            part_bytes,
            attributes,
            memory: Arc::new(Semaphore::new(permits)),
        })
    }

    /// Asks for whatever has to be known first, within the deadline of a call.
    async fn store(&self, object: &str) -> Result<Arc<dyn ObjectStore>, BucketError> {
        match &self.store {
            Store::S3(s3) => within(object, CALL_MAX, s3.store()).await,
            Store::Gcs(store) => Ok(store.clone()),
            Store::Azure(azure) => Ok(azure.store()),
        }
    }

    fn path(&self, object: &str) -> Result<Path, BucketError> {
        let name = match self.prefix.as_str() {
            "" => object.to_owned(),
            prefix => format!("{prefix}/{object}"),
        };
        Path::parse(&name).map_err(|source| {
            let source = object_store::Error::InvalidPath { source };
            BucketError::Store { object: object.to_owned(), source }
        })
    }

    async fn put(&self, object: &str, content: &Content) -> Result<(), BucketError> {
        let (path, store) = (self.path(object)?, self.store(object).await?);
        let len = content.len();
        if len <= self.part_bytes {
            let part = self.part(object, content, 0, len).await?;
            let options = PutOptions { attributes: self.attributes.clone(), ..Default::default() };
            let putting = store.put_opts(&path, part.payload, options);
            within(object, deadline(len), putting).await?;
            return Ok(());
        }
        let attributes = self.attributes.clone();
        let options = PutMultipartOptions { attributes, ..Default::default() };
        let mut upload = within(object, CALL_MAX, store.put_multipart_opts(&path, options)).await?;
        let sent = self.put_parts(object, content, &mut *upload).await;
        if sent.is_err() {
            // What is left of it costs room until somebody removes it.
            let aborting = within(object, CALL_MAX, upload.abort());
            if let Err(err) = aborting.await {
                tracing::debug!(object, %err, "parts of an upload that failed could not be removed");
            }
        }
        sent
    }

    async fn put_parts(
        &self,
        object: &str,
        content: &Content,
        upload: &mut dyn MultipartUpload,
    ) -> Result<(), BucketError> {
        let len = content.len();
        let mut at = 0;
        while at < len {
            let part_len = self.part_bytes.min(len - at);
            let Part { payload, _memory } = self.part(object, content, at, part_len).await?;
            within(object, deadline(part_len), upload.put_part(payload)).await?;
            at += part_len;
        }
        within(object, CALL_MAX, upload.complete()).await?;
        Ok(())
    }

    /// Reads a part into memory, when there is room for it.
    async fn part(
        &self,
        object: &str,
        content: &Content,
        at: u64,
        len: u64,
    ) -> Result<Part, BucketError> {
        let permits = u32::try_from(len.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        // It is never closed, and each holder has a deadline.
        let memory = self.memory.clone().acquire_many_owned(permits).await.ok();
        let payload = match content {
            Content::Bytes(bytes) => {
                let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                let to = from.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
                PutPayload::from(bytes.slice(from..to.min(bytes.len())))
            }
            Content::File { file, .. } => {
                let file = file.clone();
                let reading = tokio::task::spawn_blocking(move || read_pieces(&*file, at, len));
                let read = match tokio::time::timeout(deadline(len), reading).await {
                    Ok(read) => read.unwrap_or_else(|panicked| Err(io::Error::other(panicked))),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
                let object = || object.to_owned();
                let pieces = read.map_err(|source| match source.kind() {
                    io::ErrorKind::UnexpectedEof => BucketError::Shorter { object: object() },
                    _ => BucketError::Read { object: object(), source },
                })?;
                PutPayload::from_iter(pieces)
            }
        };
        Ok(Part { payload, _memory: memory })
    }
}

struct Part {
    payload: PutPayload,
    _memory: Option<OwnedSemaphorePermit>,
}

#[async_trait]
impl Bucket for StoreBucket {
    fn name(&self) -> &str {
        &self.name
    }

    async fn exists(&self, object: &str) -> Result<bool, BucketError> {
        let (path, store) = (self.path(object)?, self.store(object).await?);
        match within(object, CALL_MAX, store.head(&path)).await {
            Ok(_) => Ok(true),
            Err(err) if is_not_found(&err) => Ok(false),
            Err(err) => Err(err),
        }
    }

    async fn upload(&self, object: &str, content: Content) -> Result<(), BucketError> {
        let put = self.put(object, &content).await;
        match (&self.store, &put) {
            (Store::Azure(azure), Err(err)) if is_not_found(err) && azure.creates_container() => {
                within(object, CALL_MAX, azure.create_container()).await?;
                self.put(object, &content).await
            }
            _ => put,
        }
    }
}

fn is_not_found(err: &BucketError) -> bool {
    matches!(err, BucketError::Store { source: object_store::Error::NotFound { .. }, .. })
}

fn deadline(len: u64) -> Duration {
    CALL_MAX + Duration::from_secs(len / BYTES_PER_SECOND_MIN)
}

async fn within<T>(
    object: &str,
    after: Duration,
    call: impl Future<Output = object_store::Result<T>>,
) -> Result<T, BucketError> {
    match tokio::time::timeout(after, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(source)) => Err(BucketError::Store { object: object.to_owned(), source }),
        Err(_) => Err(BucketError::Timeout { object: object.to_owned(), after }),
    }
}

/// Blocks on the disk.
fn read_pieces(file: &dyn DiskFile, from: u64, len: u64) -> io::Result<Vec<Bytes>> {
    let mut pieces = Vec::new();
    let end = from + len;
    let mut at = from;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let mut piece = vec![0; wanted];
        let mut filled = 0;
        while filled < wanted {
            match file.read_at(&mut piece[filled..], at + filled as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        pieces.push(Bytes::from(piece));
        at += wanted as u64;
    }
    Ok(pieces)
}

/// How often a request that may be repeated is.
fn retries(max: Option<usize>) -> RetryConfig {
    let default = RetryConfig::default();
    RetryConfig {
        max_retries: max.unwrap_or(default.max_retries),
        retry_timeout: RETRIES_MAX,
        ..default
    }
}

/// An error of ours where one of the library is asked for.
fn generic(
    store: &'static str,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> object_store::Error {
    object_store::Error::Generic { store, source: error.into() }
}

#[cfg(test)]
mod tests;
