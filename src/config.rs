//! Every setting of the receiver, already in its final type. Whatever is wrong with the settings
//! is found here, all of it at once, before a port or a file is opened.
//!
//! [`command_line`] understands the words by the table in [`flags`]; each part of the configuration
//! then takes its values, in a file of its own.

use crate::config::command_line::Values;
use crate::config::settings::Settings;
use crate::log::LogConfig;

mod bucket;
pub mod command_line;
mod doors;
mod error;
pub mod flags;
pub mod grammar;
mod listen;
mod listeners;
mod log;
mod remote_write;
mod ring;
mod settings;
mod shipping;
mod storage;
mod support;
mod tenancy;
mod tls;
pub mod usage;

pub use bucket::BucketConfigError;
pub use doors::DoorConfig;
pub use error::{ConfigError, Faults};
pub use listen::{AddressError, ListenAddress};
pub use listeners::{GrpcConfig, HttpConfig};
pub use remote_write::RemoteWriteConfig;
pub use ring::{Mode, RingConfig, RingSource};
pub use settings::{Notice, NoticeKind};
pub use shipping::ShippingConfig;
pub use storage::StorageConfig;
pub use tenancy::TenancyConfig;
pub use tls::TlsFlagError;

/// What an operator asked for.
#[derive(Clone, Debug)]
pub struct Config {
    pub log: LogConfig,
    pub http: HttpConfig,
    pub grpc: GrpcConfig,
    /// Bytes that all reads, over gRPC and HTTP, may hold.
    pub query_inflight_bytes_max: usize,
    pub remote_write: RemoteWriteConfig,
    pub doors: DoorConfig,
    /// `--receive.capnproto-address`; none where there is to be no such port.
    pub capnproto_address: Option<ListenAddress>,
    pub tenancy: TenancyConfig,
    pub storage: StorageConfig,
    /// None where blocks stay where they are.
    pub shipping: Option<ShippingConfig>,
    pub ring: RingConfig,
    /// What the operator should know about the settings; logged once, at start.
    pub notices: Vec<Notice>,
}

impl Config {
    /// Judges the values. `hostname` becomes the external label when there is none.
    pub fn from_values(values: &Values, hostname: &str) -> Result<Config, Faults> {
        let mut settings = Settings::new(values);
        let config = Config::of(&mut settings, hostname);
        let Settings { errors, notices, .. } = settings;
        match config {
            Some(config) if errors.is_empty() => Ok(Config { notices, ..config }),
            _ => Err(Faults { errors, notices }),
        }
    }

    fn of(settings: &mut Settings<'_>, hostname: &str) -> Option<Config> {
        support::judge(settings);
        let http = HttpConfig::of(settings);
        let grpc = GrpcConfig::of(settings);
        let query_inflight_bytes_max = settings.positive_size("query.inflight-bytes-max");
        let remote_write = RemoteWriteConfig::of(settings);
        let doors = DoorConfig::of(settings);
        let capnproto_address = listeners::capnproto_address(settings);
        let tenancy = TenancyConfig::of(settings);
        let storage = StorageConfig::of(settings, hostname);
        let ring = RingConfig::of(settings);
        let shipping = ShippingConfig::of(settings, ring.as_ref().map(RingConfig::mode));
        Some(Config {
            log: LogConfig::from_values(settings.values),
            http: http?,
            grpc: grpc?,
            query_inflight_bytes_max: query_inflight_bytes_max?,
            remote_write: remote_write?,
            doors: doors?,
            capnproto_address: capnproto_address?,
            tenancy: tenancy?,
            storage: storage?,
            shipping: shipping?,
            ring: ring?,
            notices: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests;
