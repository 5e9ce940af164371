//! Every setting of the receiver, already in its final type. Whatever is wrong with the settings
//! is found here, before a port or a file is opened.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use http::HeaderName;

use crate::config::command_line::{Value, Values};
use crate::config::flags::{FLAGS, Flag, Kind, Support};
use crate::config::grammar::LabelError;
use crate::config::tls::TlsFlagError;
use crate::error::io_cause;
use crate::hashring::RingError;
use crate::hashring::file::HashringsError;
use crate::log::{LogConfig, LogFormat, LogLevel};
use crate::model::tenant::{TenantId, TenantNameError};
use crate::peer::service_config::ServiceConfigError;
use crate::tls::server::ServerTlsOptions;
use crate::tsdb::options::DbOptions;
use crate::tsdb::wal::{Compression, SyncPolicy};
use crate::write::quorum::REPLICATION_FACTOR_MAX;

pub mod command_line;
pub mod flags;
pub mod grammar;
pub mod ring;
pub mod tls;
pub mod usage;

pub use ring::{Mode, RingConfig, RingSource};

/// What an operator asked for.
#[derive(Clone, Debug)]
pub struct Config {
    pub log: LogConfig,
    pub http: HttpConfig,
    pub grpc: GrpcConfig,
    /// Bytes that all reads, over gRPC and HTTP, may hold.
    pub query_inflight_bytes_max: usize,
    pub remote_write: RemoteWriteConfig,
    /// `--receive.capnproto-address`; none where there is to be no such port.
    pub capnproto_address: Option<ListenAddress>,
    pub tenancy: TenancyConfig,
    pub storage: StorageConfig,
    pub ring: RingConfig,
    /// What the operator should know about the settings; logged once, at start.
    pub notices: Vec<String>,
    /// What the operator should change, or know to be meant.
    pub warnings: Vec<String>,
}

/// Metrics, probes, remote read.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub address: ListenAddress,
    pub grace_period: Duration,
    /// The flag by which another listener asks its clients for certificates, which this one cannot:
    /// then what reads or names tenants is not served here.
    pub reads_closed_by: Option<&'static str>,
}

/// The StoreAPI and Info services.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    pub address: ListenAddress,
    pub grace_period: Duration,
    /// Older connections are closed, so that clients spread anew; `None` for never.
    pub connection_age_max: Option<Duration>,
    /// `None` for plain text.
    pub tls: Option<ServerTlsOptions>,
}

/// Remote write over HTTP, and what one request may cost.
#[derive(Clone, Debug)]
pub struct RemoteWriteConfig {
    pub address: ListenAddress,
    /// `None` for plain text.
    pub tls: Option<ServerTlsOptions>,
    /// Size of a body as sent, in bytes.
    pub request_bytes_max: u64,
    /// Size of a body when decompressed, in bytes.
    pub decoded_bytes_max: u64,
    /// Bytes of all requests being served, decompressed ones included.
    ///
    /// Invariant: room for one request of the greatest size.
    pub inflight_bytes_max: u64,
    /// Time that a client has to send a body.
    pub body_read_timeout: Duration,
    pub series_labels_max: usize,
    /// Bytes of names and values of a series' labels together.
    pub label_bytes_max: usize,
}

/// Who a write belongs to.
#[derive(Clone, Debug)]
pub struct TenancyConfig {
    /// Looked at before `THANOS-TENANT`, which always works.
    pub tenant_header: HeaderName,
    pub default_tenant: TenantId,
    pub tenant_label_name: String,
    pub replica_header: HeaderName,
    pub tenants_max: usize,
}

/// Where and how data is kept.
#[derive(Clone, Debug)]
pub struct StorageConfig {
    pub dir: PathBuf,
    /// External labels, name and value, in the order given.
    pub labels: Vec<(String, String)>,
    pub db: DbOptions,
}

/// Settings that cannot work. Every message names the flag.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "--{flag} is not supported by this version, which takes it with its default only: {reason}"
    )]
    NotSupported { flag: &'static str, reason: String },
    #[error("both --{0} and --{0}-file flags set.")]
    BothOfPair(&'static str),
    #[error("--{flag}-file: loading file: {}: {}", io_cause(source), path.display())]
    ContentFile { flag: &'static str, path: PathBuf, source: io::Error },
    #[error("--{flag}: found reference to unset environment variable {variable:?}")]
    UnsetVariable { flag: &'static str, variable: String },
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
    #[error("--tsdb.min-block-duration: must be at least 30s")]
    BlockDuration,
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
    #[error(
        "--receive.inflight-bytes-max must leave room for one request: it must be at least \
         --receive.request-bytes-max and --receive.decoded-bytes-max together, {0} bytes"
    )]
    InflightBytes(u64),
}

/// Shorter ranges have blocks by the thousand; Thanos ends with a panic on them.
const BLOCK_DURATION_MIN: Duration = Duration::from_secs(30);

/// The header that counts whatever the flag says.
const THANOS_TENANT: HeaderName = HeaderName::from_static("thanos-tenant");

impl Config {
    /// Judges the values. `hostname` becomes the external label when there is none.
    pub fn from_values(values: &Values, hostname: &str) -> Result<Config, ConfigError> {
        let mut notices = Vec::new();
        for flag in FLAGS {
            refuse_unsupported(flag, values)?;
            notices.extend(notice(flag, values));
        }
        for flag in flags::CONTENT_PAIRS {
            refuse_content(flag, values)?;
        }
        let ratio = values.float("auto-gomemlimit.ratio");
        if !(ratio > 0.0 && ratio <= 1.0) {
            return Err(ConfigError::MemoryLimitRatio);
        }
        refuse_features(values, &mut notices)?;
        let mut warnings = Vec::new();
        Ok(Config {
            log: LogConfig::from_values(values),
            http: HttpConfig {
                address: ListenAddress::from_values(values, "http-address")?,
                grace_period: duration(values, "http-grace-period"),
                reads_closed_by: reads_closed_by(values, &mut warnings),
            },
            grpc: GrpcConfig {
                address: ListenAddress::from_values(values, "grpc-address")?,
                grace_period: duration(values, "grpc-grace-period"),
                connection_age_max: Some(duration(values, "grpc-server-max-connection-age"))
                    .filter(|age| !age.is_zero()),
                tls: tls::GRPC_SERVER.options(values, &mut notices)?,
            },
            query_inflight_bytes_max: positive_size(values, "query.inflight-bytes-max")?,
            remote_write: RemoteWriteConfig::from_values(values, &mut notices)?,
            capnproto_address: capnproto_address(values, &mut warnings)?,
            tenancy: TenancyConfig::from_values(values)?,
            storage: StorageConfig::from_values(values, hostname, &mut notices)?,
            ring: RingConfig::from_values(values, &mut notices)?,
            notices,
            warnings,
        })
    }
}

/// Flags by which a listener asks its clients for certificates.
const CLIENT_CERTIFICATES: [&str; 2] =
    ["grpc-server-tls-client-ca", "remote-write.server-tls-client-ca"];

/// Thanos serves no data on its HTTP port, so a swap must not open any to those who have no
/// certificate for the other ports.
fn reads_closed_by(values: &Values, warnings: &mut Vec<String>) -> Option<&'static str> {
    let asks = |flag: &&&str| !values.text(flag).is_empty();
    let flag = *CLIENT_CERTIFICATES.iter().find(asks)?;
    if values.switch("http.open-reads") {
        warnings.push(format!(
            "--http.open-reads: whoever reaches --http-address reads every tenant's data without a \
             certificate, which --{flag} asks for elsewhere"
        ));
        return None;
    }
    warnings.push(format!(
        "remote read and the pages of the rings answer 403 on --http-address, where no certificate \
         can be asked for as --{flag} does elsewhere; --http.open-reads serves them to everybody"
    ));
    Some(flag)
}

fn capnproto_address(
    values: &Values,
    warnings: &mut Vec<String>,
) -> Result<Option<ListenAddress>, ConfigError> {
    const FLAG: &str = "receive.capnproto-address";
    let address = ListenAddress::from_values(values, FLAG)?;
    if !values.switch("receive.capnproto") {
        return Ok(None);
    }
    if !values.text("grpc-server-tls-client-ca").is_empty() {
        warnings.push(format!(
            "--{FLAG}={address}: that port takes writes of any tenant without a certificate, which \
             --grpc-server-tls-client-ca asks for on the gRPC port; --no-receive.capnproto closes it"
        ));
    }
    Ok(Some(address))
}

impl LogConfig {
    /// Cannot fail, so that everything else can be logged.
    pub fn from_values(values: &Values) -> LogConfig {
        let level = match values.text("log.level").as_str() {
            "error" => LogLevel::Error,
            "warn" => LogLevel::Warn,
            "debug" => LogLevel::Debug,
            _ => LogLevel::Info,
        };
        let format = match values.text("log.format").as_str() {
            "json" => LogFormat::Json,
            "journald" => LogFormat::Journald,
            _ => LogFormat::Logfmt,
        };
        let debug_name = Some(values.text("debug.name")).filter(|name| !name.is_empty());
        LogConfig { level, format, debug_name }
    }
}

impl RemoteWriteConfig {
    fn from_values(
        values: &Values,
        notices: &mut Vec<String>,
    ) -> Result<RemoteWriteConfig, ConfigError> {
        let request_bytes_max = positive_int(values, "receive.request-bytes-max")?;
        let decoded_bytes_max = positive_int(values, "receive.decoded-bytes-max")?;
        let inflight_bytes_max = positive_int(values, "receive.inflight-bytes-max")?;
        let largest = request_bytes_max.saturating_add(decoded_bytes_max);
        if inflight_bytes_max < largest {
            return Err(ConfigError::InflightBytes(largest));
        }
        let body_read_timeout = positive_int(values, "receive.body-read-timeout")?;
        Ok(RemoteWriteConfig {
            address: ListenAddress::from_values(values, "remote-write.address")?,
            tls: tls::REMOTE_WRITE_SERVER.options(values, notices)?,
            request_bytes_max,
            decoded_bytes_max,
            inflight_bytes_max,
            body_read_timeout: Duration::from_nanos(body_read_timeout),
            series_labels_max: positive_count(values, "receive.series-labels-max")?,
            label_bytes_max: positive_size(values, "receive.label-bytes-max")?,
        })
    }
}

impl TenancyConfig {
    fn from_values(values: &Values) -> Result<TenancyConfig, ConfigError> {
        let tenant_label_name = values.text("receive.tenant-label-name");
        if tenant_label_name.is_empty() {
            return Err(ConfigError::TenantLabelName);
        }
        Ok(TenancyConfig {
            tenant_header: match values.text("receive.tenant-header").as_str() {
                "" => THANOS_TENANT,
                _ => header_name(values, "receive.tenant-header")?,
            },
            default_tenant: TenantId::parse(values.text("receive.default-tenant-id").as_bytes())?,
            tenant_label_name,
            replica_header: header_name(values, "receive.replica-header")?,
            tenants_max: positive_count(values, "receive.tenants-max")?,
        })
    }
}

impl StorageConfig {
    fn from_values(
        values: &Values,
        hostname: &str,
        notices: &mut Vec<String>,
    ) -> Result<StorageConfig, ConfigError> {
        let dir = PathBuf::from(values.text("tsdb.path"));
        if dir.as_os_str().is_empty() {
            return Err(ConfigError::NoDataDirectory);
        }
        let mut labels = Vec::new();
        for label in values.texts("label") {
            labels.push(grammar::label(&label)?);
        }
        if labels.is_empty() {
            labels.push(("replica".to_owned(), hostname.to_owned()));
            notices.push(format!(
                "no --label was given, so the external label is replica={hostname:?}"
            ));
        }
        let block_range = duration(values, "tsdb.min-block-duration");
        if block_range < BLOCK_DURATION_MIN {
            return Err(ConfigError::BlockDuration);
        }
        let db = DbOptions {
            block_range: i64::try_from(block_range.as_millis()).unwrap_or(i64::MAX),
            wal_compression: match values.switch("tsdb.wal-compression") {
                true => Compression::Snappy,
                false => Compression::None,
            },
            wal_sync: match values.text("tsdb.wal-sync").as_str() {
                "always" => SyncPolicy::Always,
                "segment" => SyncPolicy::Segment,
                _ => SyncPolicy::Interval,
            },
            no_lockfile: values.switch("tsdb.no-lockfile"),
            too_far_in_future: duration(values, "tsdb.too-far-in-future.time-window"),
            series_max: positive_count(values, "tsdb.head-series-max")?,
            ..DbOptions::default()
        };
        Ok(StorageConfig { dir, labels, db })
    }
}

/// Refuses a value that would ask for what this version does not do.
fn refuse_unsupported(flag: &'static Flag, values: &Values) -> Result<(), ConfigError> {
    let is_pair = flags::CONTENT_PAIRS.contains(&flag.name.trim_end_matches("-file"));
    if flag.support != Support::NotYet || is_pair || !values.is_given(flag) {
        return Ok(());
    }
    if flag.name == "receive.lazy-retrieval-max-buffered-responses" && values.int(flag.name) <= 0 {
        return Err(ConfigError::BufferedResponses);
    }
    let asks_for_nothing = if flag.repeatable {
        values.texts(flag.name).iter().all(String::is_empty)
    } else {
        let value = values.value(flag);
        // Where the default 0 means off, so does anything below it.
        // So is a retention of 0, which keeps everything: no data is deleted by this version.
        let has_off = flag.default == "0" || flag.name == "tsdb.retention";
        let is_off = has_off && matches!(value, Value::Int(number) if number <= 0);
        is_off || value == flag.default_value()
    };
    if asks_for_nothing {
        return Ok(());
    }
    let reason = match flag.kind {
        Kind::Switch if flag.default == "true" => "it cannot be switched off".to_owned(),
        Kind::Switch => "it cannot be switched on".to_owned(),
        _ if flag.default.is_empty() => "it cannot be set".to_owned(),
        _ => format!("it can only be {}", flag.default),
    };
    Err(ConfigError::NotSupported { flag: flag.name, reason })
}

/// What the log says about a flag that was given and changes nothing.
fn notice(flag: &'static Flag, values: &Values) -> Option<String> {
    let name = flag.name;
    match flag.support {
        _ if !values.is_given(flag) => None,
        Support::Implemented | Support::NotYet => None,
        Support::Awaited(instead) => {
            Some(format!("--{name} is accepted but does nothing yet: {instead}"))
        }
        Support::NoMeaning(why) => {
            Some(format!("--{name} is accepted but does nothing here: {why}"))
        }
    }
}

/// Loads the configuration that is given inline or as a file, and refuses any but an empty one.
fn refuse_content(flag: &'static str, values: &Values) -> Result<(), ConfigError> {
    if load_content(flag, values)?.is_empty() {
        return Ok(());
    }
    let reason = "the configuration is not empty".to_owned();
    Err(ConfigError::NotSupported { flag, reason })
}

/// Configuration given as `--FLAG` or `--FLAG-file`, its `$(VARIABLE)`s expanded; empty when
/// neither was given.
fn load_content(flag: &'static str, values: &Values) -> Result<String, ConfigError> {
    let inline = values.text(flag);
    let path = PathBuf::from(values.text(&format!("{flag}-file")));
    let content = match (inline.is_empty(), path.as_os_str().is_empty()) {
        (false, false) => return Err(ConfigError::BothOfPair(flag)),
        (_, true) => inline,
        (true, false) => std::fs::read_to_string(&path)
            .map_err(|source| ConfigError::ContentFile { flag, path, source })?,
    };
    grammar::expand_variables(&content, |name| std::env::var(name).ok())
        .map_err(|variable| ConfigError::UnsetVariable { flag, variable })
}

/// Thanos knows one feature and overlooks the names of others.
fn refuse_features(values: &Values, notices: &mut Vec<String>) -> Result<(), ConfigError> {
    for feature in values.texts("enable-feature") {
        if feature == "metric-names-filter" {
            let reason = format!("the feature {feature} does not exist yet");
            return Err(ConfigError::NotSupported { flag: "enable-feature", reason });
        }
        if !feature.is_empty() {
            notices.push(format!("--enable-feature: no feature is called {feature:?}"));
        }
    }
    Ok(())
}

/// A span of time; a negative one is as good as none.
fn duration(values: &Values, flag: &'static str) -> Duration {
    Duration::from_nanos(u64::try_from(values.int(flag)).unwrap_or(0))
}

fn positive_int(values: &Values, flag: &'static str) -> Result<u64, ConfigError> {
    u64::try_from(values.int(flag)).ok().filter(|value| *value > 0).ok_or(ConfigError::Zero(flag))
}

fn positive_size(values: &Values, flag: &'static str) -> Result<usize, ConfigError> {
    Ok(usize::try_from(positive_int(values, flag)?).unwrap_or(usize::MAX))
}

fn positive_count(values: &Values, flag: &'static str) -> Result<usize, ConfigError> {
    match usize::try_from(values.uint(flag)).unwrap_or(usize::MAX) {
        0 => Err(ConfigError::Zero(flag)),
        count => Ok(count),
    }
}

fn header_name(values: &Values, flag: &'static str) -> Result<HeaderName, ConfigError> {
    let value = values.text(flag);
    HeaderName::from_bytes(value.as_bytes()).map_err(|_| ConfigError::HeaderName { flag, value })
}

/// Where to listen, as written: `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// Empty for all interfaces.
    host: String,
    /// 0 for any free port.
    port: u16,
}

/// Why a text is no address to listen on. The words are those of Go's `net`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("address {0}: missing port in address")]
    MissingPort(String),
    #[error("address {0}: invalid port")]
    InvalidPort(String),
    /// Names of services, which Go looks up, are not looked up.
    #[error("address {0}: unknown port")]
    UnknownPort(String),
    #[error("address {0}: too many colons in address")]
    TooManyColons(String),
}

impl ListenAddress {
    fn from_values(values: &Values, flag: &'static str) -> Result<ListenAddress, ConfigError> {
        ListenAddress::parse(&values.text(flag))
            .map_err(|source| ConfigError::Address { flag, source })
    }

    pub fn parse(text: &str) -> Result<ListenAddress, AddressError> {
        if text.is_empty() {
            return Ok(ListenAddress { host: String::new(), port: 0 });
        }
        let missing_port = || AddressError::MissingPort(text.to_owned());
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(missing_port)?;
                (host, rest.strip_prefix(':').ok_or_else(missing_port)?)
            }
            None => text.rsplit_once(':').ok_or_else(missing_port)?,
        };
        if host.contains(':') && !text.starts_with('[') {
            return Err(AddressError::TooManyColons(text.to_owned()));
        }
        let port = match port {
            // Go takes an absent number for 0.
            "" => 0,
            _ if !port.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(AddressError::UnknownPort(text.to_owned()));
            }
            _ => port.parse().map_err(|_| AddressError::InvalidPort(text.to_owned()))?,
        };
        Ok(ListenAddress { host: host.to_owned(), port })
    }

    /// Addresses to try in this order; the first that can be bound serves.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        if self.host.is_empty() {
            // The first takes IPv4 as well, where IPv6 is there at all.
            let any = ["[::]", "0.0.0.0"].map(|host| format!("{host}:{}", self.port));
            return Ok(any.iter().filter_map(|address| address.parse().ok()).collect());
        }
        let mut addresses: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        // Of a name with both, Go takes the IPv4 address.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        Ok(addresses)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests;
