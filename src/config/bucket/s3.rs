//! S3, and what speaks as it does.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::config::bucket::{ValueError, count, http, refused, text};
use crate::objstore::options::{BucketLookup, S3Credentials, S3Encryption, S3Options, Secret};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Values {
    bucket: Option<String>,
    endpoint: Option<String>,
    region: Option<String>,
    disable_dualstack: Option<bool>,
    aws_sdk_auth: Option<bool>,
    access_key: Option<String>,
    insecure: Option<bool>,
    signature_version2: Option<bool>,
    secret_key: Option<String>,
    session_token: Option<String>,
    put_user_metadata: Option<BTreeMap<String, String>>,
    http_config: Option<http::Values>,
    trace: Option<TraceValues>,
    list_objects_version: Option<String>,
    bucket_lookup_type: Option<String>,
    send_content_md5: Option<bool>,
    disable_multipart: Option<bool>,
    part_size: Option<u64>,
    sse_config: Option<EncryptionValues>,
    sts_endpoint: Option<String>,
    max_retries: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TraceValues {
    enable: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EncryptionValues {
    #[serde(rename = "type")]
    kind: Option<String>,
    kms_key_id: Option<String>,
    kms_encryption_context: Option<BTreeMap<String, String>>,
    encryption_key: Option<String>,
}

const STORAGE_CLASS: &str = "x-amz-storage-class";
const PART_BYTES: u64 = 64 << 20;
/// What Thanos' client takes where it is to choose.
const PART_BYTES_CHOSEN: u64 = 16 << 20;
/// What S3 takes for a part that is not the last.
const PART_BYTES_MIN: u64 = 5 << 20;
const PART_BYTES_MAX: u64 = 5 << 30;

pub(super) fn options(values: Values, idle: &mut Vec<String>) -> Result<S3Options, ValueError> {
    let http = http::options(values.http_config, idle)?;
    let lookup = lookup(values.bucket_lookup_type)?;
    let endpoint = endpoint(values.endpoint)?;
    let sdk_auth = values.aws_sdk_auth.unwrap_or(false);
    let keys = (text(values.access_key), text(values.secret_key));
    let credentials = match keys {
        (Some(_), _) if sdk_auth => {
            return Err(refused(
                "aws_sdk_auth and access_key are mutually exclusive configurations",
            ));
        }
        (Some(access_key), Some(secret_key)) => {
            if text(values.sts_endpoint).is_some() {
                idle.push("sts_endpoint: nobody is asked where there is an access_key".to_owned());
            }
            let session_token = Secret(values.session_token.unwrap_or_default());
            S3Credentials::Keys { access_key, secret_key: Secret(secret_key), session_token }
        }
        (None, None) => {
            if text(values.session_token).is_some() {
                idle.push("session_token: it belongs to an access_key".to_owned());
            }
            S3Credentials::Chain { sts_endpoint: text(values.sts_endpoint) }
        }
        (None, Some(_)) => return Err(half_of_keys("access_key", "secret_key")),
        (Some(_), None) => return Err(half_of_keys("secret_key", "access_key")),
    };
    if values.signature_version2.unwrap_or(false) {
        let why = "requests are signed by version 4 only";
        return Err(ValueError::NotHere { key: "signature_version2", why });
    }
    if values.disable_multipart.unwrap_or(false) {
        let why = "a file would have to be in memory as a whole";
        return Err(ValueError::NotHere { key: "disable_multipart", why });
    }
    let encryption = encryption(values.sse_config)?;
    match text(values.list_objects_version).as_deref() {
        None => {}
        Some("v1" | "v2") => {
            idle.push("list_objects_version: a receiver lists no objects".to_owned());
        }
        Some(other) => {
            return Err(refused(format!(
                "Initialize s3 client list objects version: Unsupported version {other:?} was \
                 provided. Supported values are v1, v2"
            )));
        }
    }
    let (user_metadata, storage_class) = metadata(values.put_user_metadata)?;
    Ok(S3Options {
        bucket: values.bucket.unwrap_or_default(),
        endpoint,
        region: values.region.unwrap_or_default(),
        dualstack: !values.disable_dualstack.unwrap_or(false),
        credentials,
        insecure: values.insecure.unwrap_or(false),
        user_metadata,
        storage_class,
        lookup,
        send_content_md5: values.send_content_md5.unwrap_or(true),
        part_bytes: match values.part_size.unwrap_or(PART_BYTES) {
            0 => PART_BYTES_CHOSEN,
            bytes => bytes.clamp(PART_BYTES_MIN, PART_BYTES_MAX),
        },
        encryption,
        retries_max: count(values.max_retries),
        trace: values.trace.and_then(|trace| trace.enable).unwrap_or(false),
        http,
    })
}

fn half_of_keys(missing: &str, given: &str) -> ValueError {
    refused(format!(
        "no s3 {missing} specified while {given} is present in config file; either both should be \
         present in config or envvars/IAM should be used."
    ))
}

/// host or host:port, as Thanos wants it.
fn endpoint(value: Option<String>) -> Result<String, ValueError> {
    let endpoint = text(value).ok_or_else(|| refused("no s3 endpoint in config file"))?;
    let is_authority = endpoint
        .parse::<::http::uri::Authority>()
        .is_ok_and(|authority| !authority.host().is_empty() && !endpoint.contains('@'));
    match is_authority {
        true => Ok(endpoint),
        false => Err(refused(
            "initialize s3 client: Endpoint url cannot have a scheme or a path: host or host:port",
        )),
    }
}

fn lookup(value: Option<String>) -> Result<BucketLookup, ValueError> {
    Ok(match text(value).as_deref() {
        None | Some("auto") => BucketLookup::Auto,
        Some("virtual-hosted") => BucketLookup::VirtualHosted,
        Some("path") => BucketLookup::Path,
        Some(other) => {
            return Err(refused(format!("unsupported bucket lookup type: {other}")));
        }
    })
}

fn encryption(values: Option<EncryptionValues>) -> Result<Option<S3Encryption>, ValueError> {
    let values = values.unwrap_or_default();
    let kind = text(values.kind);
    let context = values.kms_encryption_context.unwrap_or_default();
    Ok(Some(match kind.as_deref() {
        None => return Ok(None),
        Some("SSE-S3") => S3Encryption::S3,
        Some("SSE-KMS") if !context.is_empty() => {
            let key = "sse_config.kms_encryption_context";
            return Err(ValueError::NotHere { key, why: "it is not sent" });
        }
        Some("SSE-KMS") => {
            let missing = "kms_key_id must be set if sse_config.type is set to 'SSE-KMS'";
            let key_id = text(values.kms_key_id).ok_or_else(|| refused(missing))?;
            S3Encryption::Kms { key_id }
        }
        Some("SSE-C") => {
            let missing = "encryption_key must be set if sse_config.type is set to 'SSE-C'";
            let key_file = text(values.encryption_key).ok_or_else(|| refused(missing))?;
            S3Encryption::Customer { key_file: PathBuf::from(key_file) }
        }
        Some(other) => {
            return Err(refused(format!(
                "Initialize s3 client SSE Config: Unsupported type {other:?} was provided. \
                 Supported types are SSE-S3, SSE-KMS, SSE-C"
            )));
        }
    }))
}

/// Names, in small letters, and the storage class.
type Metadata = (BTreeMap<String, String>, Option<String>);

fn metadata(values: Option<BTreeMap<String, String>>) -> Result<Metadata, ValueError> {
    let mut metadata = BTreeMap::new();
    let mut storage_class = None;
    for (key, value) in values.unwrap_or_default() {
        let lower = key.to_lowercase();
        if lower == STORAGE_CLASS {
            storage_class = Some(value);
        } else if let Some(name) = lower.strip_prefix("x-amz-meta-") {
            metadata.insert(name.to_owned(), value);
        } else if lower.starts_with("x-amz-") {
            return Err(refused(format!(
                "put_user_metadata: {key} is not supported by this version"
            )));
        } else {
            metadata.insert(lower, value);
        }
    }
    Ok((metadata, storage_class))
}
