//! Addresses to listen on.

use std::net::{SocketAddr, ToSocketAddrs};
use std::{fmt, io};

use crate::config::error::ConfigError;
use crate::config::settings::Settings;

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
    pub(super) fn of(settings: &mut Settings<'_>, flag: &'static str) -> Option<ListenAddress> {
        let address = ListenAddress::parse(&settings.values.text(flag));
        settings.check(address.map_err(|source| ConfigError::Address { flag, source }))
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
