//! The ports, bound before anything else is started.

use std::io;

use tokio::net::TcpListener;

use crate::config::{Config, ListenAddress};
use crate::error::io_cause;

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: listen on {address}: {}", io_cause(source))]
pub struct BindError {
    flag: &'static str,
    address: ListenAddress,
    source: io::Error,
}

/// One listener per address flag; none where the port is to be closed.
pub(super) struct Listeners {
    pub http: TcpListener,
    pub grpc: TcpListener,
    pub remote_write: TcpListener,
    pub capnproto: Option<TcpListener>,
}

impl Listeners {
    pub(super) async fn bind(config: &Config) -> Result<Listeners, BindError> {
        Ok(Listeners {
            // As in Thanos, whose messages about two taken ports tell of this one.
            capnproto: match &config.capnproto_address {
                Some(address) => Some(bind("receive.capnproto-address", address).await?),
                None => None,
            },
            http: bind("http-address", &config.http.address).await?,
            grpc: bind("grpc-address", &config.grpc.address).await?,
            remote_write: bind("remote-write.address", &config.remote_write.address).await?,
        })
    }
}

async fn bind(flag: &'static str, address: &ListenAddress) -> Result<TcpListener, BindError> {
    first_free(address).await.map_err(|source| BindError { flag, address: address.clone(), source })
}

async fn first_free(address: &ListenAddress) -> io::Result<TcpListener> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in address.resolve()? {
        match TcpListener::bind(candidate).await {
            Ok(listener) => return Ok(listener),
            // Another address of the same name would hide that somebody has the port.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_reported_with_its_flag() {
        let any = ListenAddress::parse("127.0.0.1:0").unwrap();
        let first = bind("http-address", &any).await.unwrap();
        let taken = first.local_addr().unwrap().to_string();
        let error = bind("http-address", &ListenAddress::parse(&taken).unwrap()).await.unwrap_err();
        let expected = format!("--http-address: listen on {taken}: address already in use");
        assert_eq!(error.to_string(), expected);
    }

    #[tokio::test]
    async fn no_host_means_all_interfaces() {
        let listener = bind("http-address", &ListenAddress::parse("").unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(address.ip().is_unspecified() && address.port() != 0, "{address}");
    }
}
