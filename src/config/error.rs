//! What is wrong with settings.

use std::path::PathBuf;
use std::{fmt, io};

use crate::config::bucket::BucketConfigError;
use crate::config::grammar::LabelError;
use crate::config::listen::AddressError;
use crate::config::settings::Notice;
use crate::config::tls::TlsFlagError;
use crate::door::heads::HEADERS_LIMIT;
use crate::error::io_cause;
use crate::hashring::RingError;
use crate::hashring::file::HashringsError;
use crate::model::tenant::TenantNameError;
use crate::peer::service_config::ServiceConfigError;
use crate::write::quorum::REPLICATION_FACTOR_MAX;

/// All that is wrong with a command line, and what else there is to say of it.
#[derive(Debug)]
pub struct Faults {
    /// At least one.
    pub errors: Vec<ConfigError>,
    pub notices: Vec<Notice>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Settings that cannot work. Every message names the flag.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "--{flag} is not supported by this version, which takes it with its default only: {reason}"
    )]
    NotSupported { flag: &'static str, reason: String },
    #[error("both --{0} and --{0}-file flags set.")]
    BothOfPair(&'static str),
    #[error("--{flag}: loading file: {}: {}", io_cause(source), path.display())]
    ContentFile { flag: &'static str, path: PathBuf, source: io::Error },
    #[error("--{flag}: found reference to unset environment variable {variable:?}")]
    UnsetVariable { flag: &'static str, variable: String },
    #[error("--{flag}: {source}")]
    Bucket { flag: &'static str, source: BucketConfigError },
    #[error("--{flag}: {source}")]
    Address { flag: &'static str, source: AddressError },
    #[error("--label: {0}")]
    Label(#[from] LabelError),
    #[error(
        "--receive.tenant-label-name: unsupported format for tenant label name: it must not be empty"
    )]
    TenantLabelName,
    #[error("--receive.default-tenant-id: {0}")]
    DefaultTenant(#[from] TenantNameError),
    #[error("--{flag}: {value:?} is no name of an HTTP header")]
    HeaderName { flag: &'static str, value: String },
    #[error("--tsdb.path: no such file or directory: the path is empty")]
    NoDataDirectory,
    #[error("--{0}: must be at least 30s")]
    BlockDuration(&'static str),
    #[error(
        "failed to configure Go runtime memory limits: --auto-gomemlimit.ratio must be above 0 and \
         at most 1"
    )]
    MemoryLimitRatio,
    #[error("--receive.lazy-retrieval-max-buffered-responses must be > 0")]
    BufferedResponses,
    #[error("--{0} must be above 0")]
    Zero(&'static str),
    #[error(transparent)]
    Tls(#[from] TlsFlagError),
    #[error("--receive.grpc-service-config: {0}")]
    ServiceConfig(#[from] ServiceConfigError),
    #[error("--receive.hashrings: failed to validate hashring configuration content: {0}")]
    Hashrings(#[from] HashringsError),
    /// Nothing could ever mend it, as it could in a file.
    #[error("--receive.hashrings: hashring {hashring:?}: {error}")]
    Ring { hashring: String, error: RingError },
    #[error(
        "--receive.hashrings: null is a ring of this node, so --receive.local-endpoint is needed"
    )]
    OneNode,
    #[error("--receive.replication-factor must be at most {max}", max = REPLICATION_FACTOR_MAX)]
    ReplicationFactor,
    #[error("--receive.head-headers-max must be at most {HEADERS_LIMIT}")]
    Headers,
    #[error("--receive.head-bytes-max must be at least 16KB and at most 16MB")]
    HeadBytes,
    #[error(
        "--receive.inflight-bytes-max must leave room for one request: it must be at least \
         --receive.request-bytes-max and --receive.decoded-bytes-max together, {0} bytes"
    )]
    InflightBytes(u64),
}
