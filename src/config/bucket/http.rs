//! `http_config`: how requests travel.

use std::path::PathBuf;

use serde::Deserialize;

use crate::config::bucket::{Span, ValueError, refused, text};
use crate::objstore::options::{BucketTlsOptions, HttpOptions};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Values {
    pub(super) idle_conn_timeout: Option<Span>,
    response_header_timeout: Option<Span>,
    insecure_skip_verify: Option<bool>,
    tls_handshake_timeout: Option<Span>,
    expect_continue_timeout: Option<Span>,
    max_idle_conns: Option<i64>,
    max_idle_conns_per_host: Option<i64>,
    max_conns_per_host: Option<i64>,
    tls_config: Option<TlsValues>,
    disable_compression: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TlsValues {
    ca_file: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    server_name: Option<String>,
    insecure_skip_verify: Option<bool>,
}

/// Go keeps two idle connections to a host unless it is told otherwise.
const IDLE_OF_GO: usize = 2;

pub(super) fn options(
    values: Option<Values>,
    idle: &mut Vec<String>,
) -> Result<HttpOptions, ValueError> {
    let values = values.unwrap_or_default();
    let default = HttpOptions::default();
    if values.expect_continue_timeout.is_some() {
        idle.push(
            "http_config.expect_continue_timeout: no request waits to be continued".to_owned(),
        );
    }
    if values.disable_compression.is_some() {
        idle.push("http_config.disable_compression: it has no effect in Thanos either".to_owned());
    }
    let count = |value: Option<i64>, default: usize| match value {
        Some(count) => usize::try_from(count).unwrap_or(0),
        None => default,
    };
    // Zero is no limit of all, and Go's own limit for a host.
    let of_all = match count(values.max_idle_conns, default.idle_connections_max) {
        0 => usize::MAX,
        count => count,
    };
    let of_host = match count(values.max_idle_conns_per_host, default.idle_connections_max) {
        0 => IDLE_OF_GO,
        count => count,
    };
    Ok(HttpOptions {
        idle_timeout: values.idle_conn_timeout.map_or(default.idle_timeout, Span::or_none),
        response_header_timeout: values
            .response_header_timeout
            .map_or(default.response_header_timeout, Span::or_none),
        tls_handshake_timeout: values
            .tls_handshake_timeout
            .map_or(default.tls_handshake_timeout, Span::or_none),
        // A bucket is one host.
        idle_connections_max: of_all.min(of_host),
        connections_max: Some(count(values.max_conns_per_host, 0)).filter(|count| *count > 0),
        tls: tls(values.tls_config, values.insecure_skip_verify, idle)?,
    })
}

fn tls(
    values: Option<TlsValues>,
    skip_verify: Option<bool>,
    idle: &mut Vec<String>,
) -> Result<BucketTlsOptions, ValueError> {
    let values = values.unwrap_or_default();
    if values.insecure_skip_verify.is_some() {
        let why = "that of http_config counts, as in Thanos";
        idle.push(format!("http_config.tls_config.insecure_skip_verify: {why}"));
    }
    let path = |value| text(value).map(PathBuf::from);
    let identity = match (path(values.cert_file), path(values.key_file)) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert, key)),
        (Some(_), None) => {
            return Err(refused("client cert file specified without client key file"));
        }
        (None, Some(_)) => {
            return Err(refused("client key file specified without client cert file"));
        }
    };
    Ok(BucketTlsOptions {
        ca: path(values.ca_file),
        identity,
        server_name: text(values.server_name),
        skip_verify: skip_verify.unwrap_or(false),
    })
}
