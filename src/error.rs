//! Words for errors that are told in several places.

use std::{fmt, io};

/// The operating system's words for an error, as Go prints them: lowercase, without the number.
pub fn io_cause(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// An error with its causes, as a log line tells it.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Where on its way a request failed, as its answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    Tenant,
    MediaType,
    /// The length that is declared.
    Size,
    /// The body of a write as it arrives.
    Read,
    /// That of a question.
    Body,
    Snappy,
    /// A body in any other encoding.
    Inflate,
    Json,
    /// OTLP to series.
    Translate,
    Version,
    ReplicaHeader,
    /// A write's bytes.
    Decode,
    /// A question's.
    Protobuf,
    ResponseTypes,
    /// Finding the nodes that series belong to.
    Place,
    Log,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Tenant => "tenant",
            Stage::MediaType => "media type",
            Stage::Size => "size",
            Stage::Read => "read",
            Stage::Body => "body",
            Stage::Snappy => "snappy",
            Stage::Inflate => "inflate",
            Stage::Json => "decode",
            Stage::Translate => "translate",
            Stage::Version => "version",
            Stage::ReplicaHeader => "replica header",
            Stage::Decode => "decode protobuf",
            Stage::Protobuf => "protobuf",
            Stage::ResponseTypes => "accepted response types",
            Stage::Place => "place",
            Stage::Log => "log",
        })
    }
}
