//! Names in certificates: whether one is for a peer, and whether those above it permit it.

use std::net::IpAddr;

use rustls::pki_types::ServerName;
use x509_parser::extensions::{GeneralName, GeneralSubtree};

use crate::tls::verify::Refused;
use crate::tls::verify::certificate::Certificate;

/// Whether a certificate is for a name. What stands in its subject is no name.
pub(super) fn check(certificate: &Certificate<'_>, name: &ServerName<'_>) -> Result<(), Refused> {
    let names = certificate.names().unwrap_or_default();
    let is_for = match name {
        ServerName::DnsName(host) => names.iter().any(|name| match name {
            GeneralName::DNSName(pattern) => matches(pattern, host.as_ref()),
            _ => false,
        }),
        ServerName::IpAddress(address) => {
            let address = IpAddr::from(*address).to_canonical();
            names.iter().any(|name| match name {
                GeneralName::IPAddress(bytes) => ip(bytes) == Some(address),
                _ => false,
            })
        }
        _ => false,
    };
    if is_for { Ok(()) } else { Err(Refused::Name) }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let address: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(address.to_canonical())
}

/// Whether a host is what a name of a certificate says. A label `*` that is the first of several
/// stands for any label.
fn matches(pattern: &str, host: &str) -> bool {
    let whole = host.strip_suffix('.').unwrap_or(host);
    if !is_host(whole, false) || !is_host(pattern, true) {
        let is_nothing = |name: &str| name.is_empty() || name == ".";
        return !is_nothing(pattern) && !is_nothing(host) && pattern.eq_ignore_ascii_case(host);
    }
    match (pattern.split_once('.'), whole.split_once('.')) {
        (Some(("*", pattern)), Some((_, rest))) => pattern.eq_ignore_ascii_case(rest),
        _ => pattern.eq_ignore_ascii_case(whole),
    }
}

/// A name that may be that of a host; in a pattern, the first of its labels may be `*`.
fn is_host(name: &str, is_pattern: bool) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name != "*"
        && name
            .split('.')
            .enumerate()
            .all(|(i, label)| (is_pattern && i == 0 && label == "*") || is_label(label))
}

/// Whether the names of each certificate of a chain, from the leaf up, are permitted by all above it.
pub(super) fn are_permitted(chain: &[&Certificate<'_>]) -> Result<(), Refused> {
    for (i, certificate) in chain.iter().enumerate() {
        let Some(names) = certificate.names() else { continue };
        let above = chain.get(i + 1..).unwrap_or_default().iter();
        for constraints in above.filter_map(|above| above.name_constraints()) {
            let permitted = constraints.permitted_subtrees.as_deref().unwrap_or_default();
            let excluded = constraints.excluded_subtrees.as_deref().unwrap_or_default();
            if !names.iter().all(|name| is_permitted(name, permitted, excluded)) {
                return Err(Refused::NameNotPermitted);
            }
        }
    }
    Ok(())
}

/// A name that has been read.
enum Read<'n> {
    Host(&'n str),
    Uri(&'n str),
    Mail { local: &'n str, domain: &'n str },
    Ip(&'n [u8]),
}

fn is_permitted(
    name: &GeneralName<'_>,
    permitted: &[GeneralSubtree<'_>],
    excluded: &[GeneralSubtree<'_>],
) -> bool {
    let read = match name {
        GeneralName::DNSName(host) if is_domain(host) => Read::Host(host),
        GeneralName::IPAddress(bytes) => Read::Ip(bytes),
        GeneralName::URI(uri) => match host_of_uri(uri) {
            Some(host) => Read::Uri(host),
            None => return false,
        },
        GeneralName::RFC822Name(mail) => match mail.rsplit_once('@') {
            Some((local, domain)) if !local.is_empty() && is_domain(domain) => {
                Read::Mail { local, domain }
            }
            _ => return false,
        },
        // It cannot be compared.
        GeneralName::DNSName(_) => return false,
        // No constraint is for it.
        _ => return true,
    };
    let mut of_kind = permitted.iter().filter_map(|tree| holds(&read, &tree.base, true)).peekable();
    let is_permitted = of_kind.peek().is_none() || of_kind.any(|holds| holds);
    let is_excluded = excluded.iter().any(|tree| holds(&read, &tree.base, false) == Some(true));
    is_permitted && !is_excluded
}

/// Whether a constraint holds a name; None if it is for names of another kind.
fn holds(name: &Read<'_>, constraint: &GeneralName<'_>, is_permitted: bool) -> Option<bool> {
    match (name, constraint) {
        (Read::Host(host), GeneralName::DNSName(domain)) => {
            Some(is_within(host, domain) || (!is_permitted && may_stand_for(host, domain)))
        }
        (Read::Uri(host), GeneralName::URI(domain)) => Some(is_within(host, domain)),
        (Read::Mail { local, domain }, GeneralName::RFC822Name(constraint)) => {
            Some(match constraint.rsplit_once('@') {
                Some((of, at)) => *local == of && domain.eq_ignore_ascii_case(at),
                None => is_within(domain, constraint),
            })
        }
        (Read::Ip(address), GeneralName::IPAddress(net)) => {
            let (net, mask) = net.split_at(net.len() / 2);
            let is_in = |((a, b), mask): ((&u8, &u8), &u8)| a & mask == b & mask;
            let same_kind = net.len() == address.len() && mask.len() == address.len();
            Some(same_kind && address.iter().zip(net).zip(mask).all(is_in))
        }
        _ => None,
    }
}

/// Whether a name is the domain or ends with it at a dot. One that begins with a dot is not itself
/// meant.
fn is_within(name: &str, domain: &str) -> bool {
    let Some(at) = name.len().checked_sub(domain.len()) else { return false };
    let (before, end) = name.as_bytes().split_at(at);
    end.eq_ignore_ascii_case(domain.as_bytes())
        && (domain.is_empty()
            || before.is_empty()
            || domain.starts_with('.')
            || before.ends_with(b"."))
}

/// Whether a name with a `*` stands for the excluded domain itself, among others.
fn may_stand_for(name: &str, domain: &str) -> bool {
    match (name.split_once('.'), domain.split_once('.')) {
        (Some((label, rest)), Some((_, of_domain))) if label.starts_with('*') => {
            rest.eq_ignore_ascii_case(of_domain)
        }
        _ => false,
    }
}

fn is_domain(name: &str) -> bool {
    name.split('.').all(|label| {
        (1..=63).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

/// The host that a URI names, if it names one that is no address.
fn host_of_uri(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    let host = place.split_once(':').map_or(place, |(host, _)| host);
    let is_name = is_domain(host) && !host.starts_with('[') && host.parse::<IpAddr>().is_err();
    is_name.then_some(host)
}
