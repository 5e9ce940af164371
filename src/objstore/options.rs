//! What a bucket is made from, as Thanos' file for object storage says it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where objects are kept.
#[derive(Clone, Debug)]
pub struct BucketOptions {
    pub provider: Provider,
    /// What all objects' names begin with, without `/` at its ends; may be empty.
    pub prefix: String,
}

/// Whose bucket it is, and how it is spoken to.
#[derive(Clone, Debug)]
pub enum Provider {
    /// A directory, absolute. It is made by the first upload.
    FileSystem(PathBuf),
    S3(S3Options),
    Gcs(GcsOptions),
    Azure(AzureOptions),
}

/// What is shown to nobody.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "<secret>" })
    }
}

/// How requests travel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// After this time an idle connection is closed; `None` for never.
    pub idle_timeout: Option<Duration>,
    /// From the end of a request to the head of its answer; `None` for no limit.
    pub response_header_timeout: Option<Duration>,
    pub tls_handshake_timeout: Option<Duration>,
    /// Idle connections that are kept.
    pub idle_connections_max: usize,
    /// Connections to one host at a time; `None` for no limit.
    pub connections_max: Option<usize>,
    pub tls: BucketTlsOptions,
}

impl Default for HttpOptions {
    /// Thanos' values.
    fn default() -> HttpOptions {
        HttpOptions {
            idle_timeout: Some(Duration::from_secs(90)),
            response_header_timeout: Some(Duration::from_secs(120)),
            tls_handshake_timeout: Some(Duration::from_secs(10)),
            idle_connections_max: 100,
            connections_max: None,
            tls: BucketTlsOptions::default(),
        }
    }
}

/// TLS towards a bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketTlsOptions {
    /// Who is trusted; those whom the system trusts, if none is given.
    pub ca: Option<PathBuf>,
    /// Certificate and key that are shown.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the certificate of the other end must have, instead of the host's.
    pub server_name: Option<String>,
    /// Any certificate will do.
    pub skip_verify: bool,
}

#[derive(Clone, Debug)]
pub struct S3Options {
    pub bucket: String,
    /// host or host:port
    pub endpoint: String,
    /// Empty if the endpoint or the bucket is to be asked.
    pub region: String,
    pub dualstack: bool,
    pub credentials: S3Credentials,
    /// Plain HTTP.
    pub insecure: bool,
    /// Sent with every object, as `x-amz-meta-…` or the header of that name.
    pub user_metadata: BTreeMap<String, String>,
    pub storage_class: Option<String>,
    pub lookup: BucketLookup,
    pub send_content_md5: bool,
    /// Larger files are sent in parts of so many bytes.
    pub part_bytes: u64,
    pub encryption: Option<S3Encryption>,
    /// `None` for the client's own number.
    pub retries_max: Option<usize>,
    /// Every request is told at debug level.
    pub trace: bool,
    pub http: HttpOptions,
}

#[derive(Clone, Debug)]
pub enum S3Credentials {
    Keys {
        access_key: String,
        secret_key: Secret,
        session_token: Secret,
    },
    /// Environment, shared file, then what the machine or the cluster gives; `sts_endpoint` is
    /// where that is asked for, if it is given.
    Chain {
        sts_endpoint: Option<String>,
    },
}

/// Where a bucket's name stands in a URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BucketLookup {
    /// In the host's name with those providers that are known for it.
    #[default]
    Auto,
    VirtualHosted,
    Path,
}

#[derive(Clone, Debug)]
pub enum S3Encryption {
    S3,
    Kms {
        key_id: String,
    },
    /// The file with the key, 32 bytes.
    Customer {
        key_file: PathBuf,
    },
}

#[derive(Clone, Debug)]
pub struct GcsOptions {
    pub bucket: String,
    /// A key in JSON; empty for the default credentials.
    pub service_account: Secret,
    /// Larger files are sent in parts of so many bytes.
    pub part_bytes: u64,
    /// `None` for the client's own number.
    pub retries_max: Option<usize>,
    /// Of one request; `None` for no limit.
    pub request_timeout: Option<Duration>,
    pub http: HttpOptions,
}

#[derive(Clone, Debug)]
pub struct AzureOptions {
    pub account: String,
    pub container: String,
    /// The URL of the account.
    pub url: String,
    pub credentials: AzureCredentials,
    /// A container that is not there is made by the first upload.
    pub create_container: bool,
    /// `None` for the client's own number.
    pub retries_max: Option<usize>,
    /// Of one attempt; `None` for no limit.
    pub try_timeout: Option<Duration>,
    /// Before the first retry, and before any; `None` for the client's own.
    pub retry_delay: Option<Duration>,
    pub retry_delay_max: Option<Duration>,
    pub http: HttpOptions,
}

#[derive(Clone, Debug)]
pub enum AzureCredentials {
    Key(Secret),
    /// A shared access signature, a query string.
    Signature(Secret),
    Client {
        tenant_id: String,
        client_id: String,
        client_secret: Secret,
    },
    /// The identity that the machine has, this one if several.
    ManagedIdentity {
        client_id: String,
    },
    /// Environment, workload identity, managed identity.
    Chain,
}
