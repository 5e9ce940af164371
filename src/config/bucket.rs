//! Thanos' file for object storage: `--objstore.config` and `--objstore.config-file`.
//!
//! Every key of S3, GCS, AZURE and FILESYSTEM has its effect, or is refused by its name; what has no
//! effect in `thanos receive` either is told. Values are shown in no message: they may be secret.

mod azure;
mod filesystem;
mod gcs;
mod http;
mod s3;

use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Error as YamlError;

use crate::config::grammar;
use crate::objstore::options::{BucketOptions, Provider};

/// Why content does not say where objects are to be kept.
#[derive(Debug, thiserror::Error)]
pub enum BucketConfigError {
    #[error("parsing config YAML file: {0}")]
    Yaml(BadYaml),
    #[error("bucket with type {0} is not supported")]
    Provider(String),
    /// Of Thanos, and not of ours.
    #[error(
        "bucket with type {0} is not supported by this version: S3, GCS, AZURE or FILESYSTEM is"
    )]
    ProviderNotHere(&'static str),
    #[error("create {provider} client: {source}")]
    Values { provider: &'static str, source: ValueError },
}

/// What is wrong with the values of one provider.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    #[error("{0}")]
    Yaml(#[from] BadYaml),
    #[error("{0}")]
    Refused(String),
    #[error("{key} is not supported by this version: {why}")]
    NotHere { key: &'static str, why: &'static str },
}

fn refused(text: impl Into<String>) -> ValueError {
    ValueError::Refused(text.into())
}

/// Where YAML is not what it should be, without what stands there.
#[derive(Debug)]
pub struct BadYaml {
    line: u64,
    what: String,
}

impl fmt::Display for BadYaml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "yaml: line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for BadYaml {}

impl From<YamlError> for BadYaml {
    fn from(error: YamlError) -> BadYaml {
        let line = error.location().map_or(1, |location| location.line());
        let what = match error.without_snippet() {
            YamlError::SerdeUnknownField { field, .. } => {
                format!("unmarshal errors: no field is called {field}")
            }
            YamlError::DuplicateMappingKey { .. } => {
                "unmarshal errors: a key stands twice".to_owned()
            }
            YamlError::InvalidScalar { ty, .. } => {
                format!("unmarshal errors: the value is no {ty}")
            }
            YamlError::SerdeInvalidType { .. }
            | YamlError::SerdeInvalidValue { .. }
            | YamlError::NullIntoString { .. }
            | YamlError::Unexpected { .. }
            | YamlError::Message { .. } => {
                "unmarshal errors: the value is not of the kind that its key takes".to_owned()
            }
            _ => "it cannot be read".to_owned(),
        };
        BadYaml { line, what }
    }
}

/// The whole, of which any part may be missing or null.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, bound = "C: Deserialize<'de>")]
struct Content<C> {
    #[serde(rename = "type", default)]
    provider: Option<String>,
    #[serde(default)]
    config: Option<C>,
    #[serde(default)]
    prefix: Option<String>,
}

/// The bucket, and keys that were given without effect, each with the reason.
#[derive(Debug)]
pub(super) struct ParsedBucket {
    pub(super) options: BucketOptions,
    pub(super) idle: Vec<String>,
}

/// Providers that only Thanos has.
const NOT_HERE: [&str; 6] = ["SWIFT", "COS", "ALIYUNOSS", "BOS", "OCI", "OBS"];

/// Reads content that is not empty, `$(VARIABLE)`s expanded.
pub(super) fn parse(content: &str) -> Result<ParsedBucket, BucketConfigError> {
    // A file of blanks is an empty mapping.
    let content = if content.trim().is_empty() { "{}" } else { content };
    let top: Content<IgnoredAny> = read(content).map_err(BucketConfigError::Yaml)?;
    let name = top.provider.unwrap_or_default();
    let of = |provider| move |source| BucketConfigError::Values { provider, source };
    let mut idle = Vec::new();
    let provider = match name.to_uppercase().as_str() {
        "FILESYSTEM" => filesystem::parse(values(content)?).map_err(of("FILESYSTEM"))?,
        "S3" => {
            let values = strict_values(content).map_err(of("S3"))?;
            Provider::S3(s3::options(values, &mut idle).map_err(of("S3"))?)
        }
        "GCS" => {
            let values = strict_values(content).map_err(of("GCS"))?;
            Provider::Gcs(gcs::options(values, &mut idle).map_err(of("GCS"))?)
        }
        "AZURE" => {
            let values = strict_values(content).map_err(of("AZURE"))?;
            Provider::Azure(azure::options(values, &mut idle).map_err(of("AZURE"))?)
        }
        other => {
            return Err(match NOT_HERE.iter().find(|name| **name == other) {
                Some(name) => BucketConfigError::ProviderNotHere(name),
                None => BucketConfigError::Provider(name),
            });
        }
    };
    let prefix = top.prefix.unwrap_or_default().trim_matches('/').to_owned();
    Ok(ParsedBucket { options: BucketOptions { provider, prefix }, idle })
}

fn read<C: DeserializeOwned>(content: &str) -> Result<Content<C>, BadYaml> {
    Ok(serde_saphyr::from_str(content)?)
}

fn values<C: DeserializeOwned + Default>(content: &str) -> Result<C, BucketConfigError> {
    Ok(read(content).map_err(BucketConfigError::Yaml)?.config.unwrap_or_default())
}

fn strict_values<C: DeserializeOwned + Default>(content: &str) -> Result<C, ValueError> {
    Ok(read(content)?.config.unwrap_or_default())
}

/// A span of time as Prometheus writes it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span(Duration);

impl Span {
    /// Zero is none.
    fn or_none(self) -> Option<Duration> {
        Some(self.0).filter(|span| !span.is_zero())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        let nanos = grammar::duration_model(&text).map_err(|_| D::Error::custom("no duration"))?;
        Ok(Span(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))))
    }
}

/// A text, if one was given that is not empty.
fn text(value: Option<String>) -> Option<String> {
    value.filter(|text| !text.is_empty())
}

/// A number of attempts, zero and less for the client's own.
fn count(value: Option<i64>) -> Option<usize> {
    value.and_then(|count| usize::try_from(count).ok()).filter(|count| *count > 0)
}

#[cfg(test)]
mod tests;
