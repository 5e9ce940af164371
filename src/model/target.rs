//! An endpoint as grpc-go reads it.
//!
//! | endpoint | what it says |
//! |---|---|
//! | `host:port` | all addresses of the host, from the system's resolver |
//! | `dns:///host:port`, `dns:host:port`, `dns:/host:port` | the same |
//! | `dns://server/host:port` | all its addresses, from that DNS server (port 53 if none is said) |
//! | `passthrough:///host:port`, `passthrough:host:port` | the same, but there is no port without saying it |
//!
//! Without a port it is 443, and a host that is an address is never looked up. A host is a name,
//! `1.2.3.4` or `[::1]`; nothing is this machine. What begins with another word and a colon is
//! `host:port`.

use std::net::IpAddr;

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name, or an address without brackets.
    pub host: String,
    pub port: u16,
    /// Who is asked for its addresses, as host and port; the system's resolver if nobody is named.
    pub dns_server: Option<(String, u16)>,
    /// What requests call it.
    pub authority: String,
}

/// An endpoint that says no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    #[error("missing address")]
    Missing,
    #[error("missing port in address")]
    NoPort,
    #[error("missing port after port-separator colon")]
    EndsWithColon,
    #[error("too many colons in address: an IPv6 address stands in brackets")]
    TooManyColons,
    #[error("unexpected bracket in address")]
    Bracket,
    #[error("{0:?} is no port")]
    Port(String),
}

/// A port that DNS servers listen on.
const DNS_PORT: u16 = 53;

impl Target {
    /// `port` is that of an endpoint that names none.
    pub fn parse(endpoint: &str, port: u16) -> Result<Target, TargetError> {
        let url = Url::parse(endpoint);
        let place = url.as_ref().map_or(endpoint, |url| url.place);
        let port = match url {
            Some(Url { scheme: Scheme::Passthrough, .. }) => None,
            Some(Url { scheme: Scheme::Dns, .. }) | None => Some(port),
        };
        let (host, port) = split(place, port)?;
        let server = url.map_or("", |url| url.server);
        let dns_server = match server.is_empty() || host.parse::<IpAddr>().is_ok() {
            true => None,
            false => Some(split(server, Some(DNS_PORT))?),
        };
        let authority = match place {
            // grpc-go's would be no authority.
            _ if place.contains(':') && is_address(place) => format!("[{place}]"),
            _ if place.starts_with(':') => format!("localhost{place}"),
            _ => place.to_owned(),
        };
        Ok(Target { host, port, dns_server, authority })
    }
}

/// The endpoint with another port, or with the only one.
pub fn with_port(endpoint: &str, port: u16) -> String {
    let place = Url::parse(endpoint).map_or(endpoint, |url| url.place);
    // A query is dropped; what stands before the place is not.
    let before = &endpoint[..place.as_ptr().addr() - endpoint.as_ptr().addr()];
    let bracketed = place.starts_with('[').then(|| place.find(']')).flatten();
    let host = match bracketed {
        Some(end) => &place[..=end],
        None => place.split(':').next().unwrap_or_default(),
    };
    format!("{before}{host}:{port}")
}

/// A scheme that says how a host is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Dns,
    Passthrough,
}

/// `scheme:place` or `scheme://server/place`.
#[derive(Clone, Copy, Debug)]
struct Url<'a> {
    scheme: Scheme,
    server: &'a str,
    place: &'a str,
}

impl<'a> Url<'a> {
    /// None for what has no scheme that is known.
    fn parse(text: &'a str) -> Option<Url<'a>> {
        let (scheme, rest) = text.split_once(':')?;
        let scheme = match scheme {
            _ if scheme.eq_ignore_ascii_case("dns") => Scheme::Dns,
            _ if scheme.eq_ignore_ascii_case("passthrough") => Scheme::Passthrough,
            _ => return None,
        };
        // A query and a fragment are no part of a place.
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (server, place) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
            None => ("", rest.strip_prefix('/').unwrap_or(rest)),
        };
        let server = if scheme == Scheme::Dns { server } else { "" };
        Some(Url { scheme, server, place })
    }
}

/// Host and port of a place.
fn split(place: &str, default: Option<u16>) -> Result<(String, u16), TargetError> {
    if place.is_empty() {
        return Err(TargetError::Missing);
    }
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or(TargetError::Bracket)?;
            match behind.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if behind.is_empty() => (host, None),
                None => return Err(TargetError::Bracket),
            }
        }
        None if is_address(place) => (place, None),
        None => match place.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(TargetError::TooManyColons),
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        None => default.ok_or(TargetError::NoPort)?,
        Some("") => return Err(TargetError::EndsWithColon),
        Some(port) => port.parse().map_err(|_| TargetError::Port(port.to_owned()))?,
    };
    let host = if host.is_empty() { "localhost" } else { host };
    Ok((host.to_owned(), port))
}

/// An address of either kind, perhaps with a zone.
fn is_address(text: &str) -> bool {
    text.split('%').next().is_some_and(|address| address.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(endpoint: &str) -> Result<Target, TargetError> {
        Target::parse(endpoint, 443)
    }

    /// As grpc-go 1.82 reads them.
    #[test]
    fn endpoints_are_read_as_grpc_go_reads_them() {
        for (endpoint, host, port, authority) in [
            ("a.b:1", "a.b", 1, "a.b:1"),
            ("a.b", "a.b", 443, "a.b"),
            ("1.2.3.4:1", "1.2.3.4", 1, "1.2.3.4:1"),
            ("1.2.3.4", "1.2.3.4", 443, "1.2.3.4"),
            ("[::1]:1", "::1", 1, "[::1]:1"),
            ("[::1]", "::1", 443, "[::1]"),
            ("::1", "::1", 443, "[::1]"),
            (":10901", "localhost", 10901, "localhost:10901"),
            ("dns:///a.b:1", "a.b", 1, "a.b:1"),
            ("DNS:///a.b:1", "a.b", 1, "a.b:1"),
            ("dns:a.b:1", "a.b", 1, "a.b:1"),
            ("dns:/a.b:1", "a.b", 1, "a.b:1"),
            ("dns:///a.b", "a.b", 443, "a.b"),
            ("dns:///1.2.3.4:1", "1.2.3.4", 1, "1.2.3.4:1"),
            ("dns:///[::1]:1", "::1", 1, "[::1]:1"),
            ("dns://8.8.8.8/1.2.3.4:1", "1.2.3.4", 1, "1.2.3.4:1"),
            ("dns:///a.b:1?x=y", "a.b", 1, "a.b:1"),
            ("dns:10901", "10901", 443, "10901"),
            ("passthrough:///a.b:1", "a.b", 1, "a.b:1"),
            ("passthrough:a.b:1", "a.b", 1, "a.b:1"),
            ("passthrough://ignored/a.b:1", "a.b", 1, "a.b:1"),
            ("passthrough:///[::1]:1", "::1", 1, "[::1]:1"),
        ] {
            let (host, authority) = (host.to_owned(), authority.to_owned());
            let expected = Target { host, port, dns_server: None, authority };
            assert_eq!(parsed(endpoint), Ok(expected), "{endpoint}");
        }
        for (endpoint, server, port) in [
            ("dns://10.0.0.10/a.b:1", "10.0.0.10", 53),
            ("dns://10.0.0.10:5353/a.b:1", "10.0.0.10", 5353),
            ("dns://[::1]/a.b:1", "::1", 53),
            ("dns://ns.local/a.b:1", "ns.local", 53),
        ] {
            let Target { host, dns_server, .. } = parsed(endpoint).unwrap();
            let expected = Some((server.to_owned(), port));
            assert_eq!((&host[..], dns_server), ("a.b", expected), "{endpoint}");
        }
    }

    #[test]
    fn what_is_no_place_is_told() {
        for (endpoint, error) in [
            ("", TargetError::Missing),
            ("dns:///", TargetError::Missing),
            ("dns://a.b:1", TargetError::Missing),
            ("a.b:", TargetError::EndsWithColon),
            ("passthrough:///a.b", TargetError::NoPort),
            ("http://a.b:1", TargetError::TooManyColons),
            ("a:b:1", TargetError::TooManyColons),
            ("[::1", TargetError::Bracket),
            ("[::1]1", TargetError::Bracket),
            ("a.b:http", TargetError::Port("http".to_owned())),
            ("a.b:65536", TargetError::Port("65536".to_owned())),
        ] {
            assert_eq!(parsed(endpoint), Err(error), "{endpoint}");
        }
    }

    #[test]
    fn another_port_leaves_the_rest_as_it_is() {
        for (endpoint, expected) in [
            ("a.b:1", "a.b:7"),
            ("a.b", "a.b:7"),
            ("[::1]:1", "[::1]:7"),
            ("[::1]", "[::1]:7"),
            ("dns:///a.b:1", "dns:///a.b:7"),
            ("dns:a.b:1", "dns:a.b:7"),
            ("dns://10.0.0.10:53/[::1]:1", "dns://10.0.0.10:53/[::1]:7"),
            ("passthrough:///a.b:1", "passthrough:///a.b:7"),
            ("a:b:1", "a:7"),
            ("", ":7"),
        ] {
            assert_eq!(with_port(endpoint, 7), expected, "{endpoint}");
        }
    }
}
