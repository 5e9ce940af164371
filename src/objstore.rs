//! Buckets: where blocks are kept for good.
//!
//! A [`Bucket`] knows names and bytes and nothing of blocks. It is one of Thanos' kinds, made from
//! [`options`] without a request to anybody; `Counted` adds Thanos' metrics to any.

pub mod counted;
pub mod filesystem;
pub mod http;
pub mod options;
pub mod store;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::disk::{Disk, DiskFile};
use crate::error::io_cause;
use crate::metrics::Registry;
use crate::objstore::filesystem::FileSystemBucket;
use crate::objstore::options::{BucketOptions, Provider};
use crate::objstore::store::StoreBucket;
use crate::tls::TlsError;

/// What an object is made from.
#[derive(Clone)]
pub enum Content {
    /// As it is, of few kilobytes.
    Bytes(Bytes),
    /// A file that does not change, of this length. It is read in pieces.
    File { file: Arc<dyn DiskFile>, len: u64 },
}

impl Content {
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Objects by name. Every call ends: it has a deadline by what it has to do.
#[async_trait]
pub trait Bucket: Send + Sync + 'static {
    /// As the metrics have it.
    fn name(&self) -> &str;

    /// Whether there is an object of this name. That it cannot be found out is an error.
    async fn exists(&self, object: &str) -> Result<bool, BucketError>;

    /// Makes an object, in the place of one that is there. After an error there may be the old one,
    /// the new one or, with some providers, none.
    async fn upload(&self, object: &str, content: Content) -> Result<(), BucketError>;
}

/// Why a bucket did not do what it was to do. A retry may succeed.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error("{object}: no answer within {after:?}")]
    Timeout { object: String, after: Duration },
    #[error("{object}")]
    Store { object: String, source: object_store::Error },
    #[error("{object}: {}", io_cause(source))]
    Io { object: String, source: io::Error },
    /// What is to be uploaded.
    #[error("reading what is to be {object}: {}", io_cause(source))]
    Read { object: String, source: io::Error },
    /// It ended before its length.
    #[error("what is to be {object} has become shorter")]
    Shorter { object: String },
}

/// Why a bucket cannot be made from its options.
#[derive(Debug, thiserror::Error)]
pub enum OpenBucketError {
    #[error("prefix: {0}")]
    Prefix(object_store::path::Error),
    #[error("{key}: {}: {}", path.display(), io_cause(source))]
    File { key: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Value(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

/// Makes a bucket; reads the files that its options name, and asks nobody.
pub fn open(
    options: &BucketOptions,
    disk: &Arc<dyn Disk>,
    registry: &Registry,
) -> Result<Arc<dyn Bucket>, OpenBucketError> {
    let prefix = options.prefix.as_str();
    Ok(match &options.provider {
        Provider::FileSystem(root) => {
            Arc::new(FileSystemBucket::new(disk.clone(), root.clone(), prefix))
        }
        Provider::S3(s3) => Arc::new(StoreBucket::s3(s3, prefix, registry)?),
        Provider::Gcs(gcs) => Arc::new(StoreBucket::gcs(gcs, prefix, registry)?),
        Provider::Azure(azure) => Arc::new(StoreBucket::azure(azure, prefix, registry)?),
    })
}
