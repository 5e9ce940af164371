//! Google Cloud Storage.

use serde::Deserialize;

use crate::config::bucket::{Span, ValueError, count, http, refused, text};
use crate::objstore::options::{GcsOptions, HttpOptions, Secret};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Values {
    bucket: Option<String>,
    service_account: Option<String>,
    use_grpc: Option<bool>,
    grpc_conn_pool_size: Option<i64>,
    http_config: Option<http::Values>,
    chunk_size_bytes: Option<i64>,
    max_retries: Option<i64>,
}

/// What Thanos' client takes where nothing is said.
const PART_BYTES: u64 = 16 << 20;
/// What is taken for a part that is not the last.
const PART_BYTES_MIN: u64 = 5 << 20;

pub(super) fn options(values: Values, idle: &mut Vec<String>) -> Result<GcsOptions, ValueError> {
    let missing = "missing Google Cloud Storage bucket name for stored blocks";
    let bucket = text(values.bucket).ok_or_else(|| refused(missing))?;
    if values.use_grpc.unwrap_or(false) {
        return Err(ValueError::NotHere { key: "use_grpc", why: "requests travel over HTTP" });
    }
    if values.grpc_conn_pool_size.is_some() {
        idle.push("grpc_conn_pool_size: requests travel over HTTP".to_owned());
    }
    let service_account = values.service_account.unwrap_or_default();
    if !service_account.trim().is_empty() {
        judge_key(&service_account)?;
    }
    // It is the time that a request may take as well.
    let request_timeout = values.http_config.as_ref().and_then(|http| http.idle_conn_timeout);
    let default = HttpOptions::default().idle_timeout;
    Ok(GcsOptions {
        bucket,
        service_account: Secret(service_account.trim().to_owned()),
        part_bytes: match u64::try_from(values.chunk_size_bytes.unwrap_or(0)).unwrap_or(0) {
            0 => PART_BYTES,
            bytes => bytes.max(PART_BYTES_MIN),
        },
        // It counts the first attempt, too.
        retries_max: count(values.max_retries).map(|attempts| attempts - 1),
        request_timeout: request_timeout.map_or(default, Span::or_none),
        http: http::options(values.http_config, idle)?,
    })
}

/// Of the kinds of keys there are, one can be used.
fn judge_key(key: &str) -> Result<(), ValueError> {
    #[derive(Deserialize)]
    struct Key {
        #[serde(rename = "type", default)]
        kind: String,
    }
    // Where it is broken is told, what it holds is not.
    let key: Key = serde_json::from_str(key).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        refused(format!(
            "failed to create credentials from JSON: service_account: line {line}, column {column}"
        ))
    })?;
    match key.kind.as_str() {
        "service_account" => Ok(()),
        _ => Err(ValueError::NotHere {
            key: "service_account",
            why: "only keys of type service_account are",
        }),
    }
}
