//! OTLP metrics over HTTP: the stages of one export, in order.

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;

use crate::error::Stage;
use crate::http::metrics::TenantEntry;
use crate::http::remote_write::WriteService;
use crate::http::remote_write::body::REQUEST_BYTES_MIN;
use crate::http::remote_write::negotiation::replica;
use crate::http::respond::RequestError;
use crate::model::tenant::TenantNameError;
use crate::wire::inflate::{ContentEncoding, StreamError};
use crate::wire::otlp::json::{JsonError, to_protobuf};
use crate::wire::otlp::{OtlpError, Settings, Translated, Untranslated, translate};
use crate::wire::snappy::{BufferPool, PooledBuffer};
use crate::write::admission::{InflightGuard, Overloaded, share};
use crate::write::error::{Invalid, TooLarge, Unavailable, WriteError};
use crate::write::sink::{Sender, WriteSink};
use crate::write::{Manners, WriteOutcome, heavy};

/// What is inflated, and made of it, on a thread that serves sockets: of a small body, unless it turns
/// out to stand for more. Then it is begun anew elsewhere. To inflate and translate so much takes less
/// than a millisecond.
const HERE_MAX: u64 = 128 << 10;

/// A compressed body is tried there if it is so much shorter: most are an eighth of what they stand
/// for.
const COMPRESSED_SHARE: usize = 8;

/// Which path an export came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtlpPath {
    /// Thanos' own: what cannot be a series refuses all of the request.
    Thanos,
    /// That which exporters append: what cannot be a series is told, and the rest is stored.
    Exporters,
}

/// What is made of exports.
#[derive(Clone, Debug)]
pub struct OtlpOptions {
    pub settings: Settings,
    /// `--receive.otlp-decoded-bytes-max`
    pub decoded_bytes_max: u64,
}

impl Default for OtlpOptions {
    fn default() -> OtlpOptions {
        OtlpOptions { settings: Settings::new(true, []), decoded_bytes_max: 32 << 20 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Protobuf,
    Json,
}

/// Whether an answer is to be in JSON, as the request is.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    matches!(Format::of(headers), Ok(Format::Json))
}

impl Format {
    /// Parameters do not matter, nor does the letter case.
    fn of(headers: &HeaderMap) -> Result<Format, RequestError> {
        let value = headers.get(CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(value);
        let media = text.split(';').next().unwrap_or_default().trim();
        if media.eq_ignore_ascii_case("application/x-protobuf") {
            return Ok(Format::Protobuf);
        }
        if media.eq_ignore_ascii_case("application/json") {
            return Ok(Format::Json);
        }
        let detail = format!(
            "content type {text:?}, only application/x-protobuf and application/json are taken"
        );
        Err(RequestError::UnsupportedMediaType { stage: Stage::MediaType, detail })
    }
}

fn encoding(headers: &HeaderMap) -> Result<ContentEncoding, WriteError> {
    let name = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes()).unwrap_or_default();
    let unknown = || Invalid::ContentEncoding(String::from_utf8_lossy(name).into_owned()).into();
    ContentEncoding::parse(name).ok_or_else(unknown)
}

impl<S: WriteSink> WriteService<S> {
    /// One export from head to outcome, in the order of the stages of a write. What cannot be
    /// series is told in `untranslated`.
    pub(super) async fn export(
        &self,
        tenant: Result<&TenantEntry, TenantNameError>,
        head: &Parts,
        body: Body,
        path: OtlpPath,
        untranslated: &mut Untranslated,
    ) -> Result<WriteOutcome, RequestError> {
        let limits = &self.options.limits;

        // Readiness, tenant, gate and size, as for a write.
        if !self.accepting.holds() {
            return Err(WriteError::from(Unavailable::NotAccepting).into());
        }
        let tenant = tenant.map_err(WriteError::TenantName)?;
        let (declared, mut inflight) = self.admit(&body)?;

        // Media type and encoding.
        let format = Format::of(&head.headers)?;
        let encoding = encoding(&head.headers)?;

        // Read.
        let mut block = self.bodies.take();
        limits.read(body, declared, block.as_mut_vec(), &mut inflight).await?;
        let block_bytes = block.as_mut_vec().len() as u64;

        // Inflate, read and translate.
        let options = &self.options.otlp;
        let export = Export {
            block,
            encoding,
            format,
            settings: options.settings.clone(),
            inflated_bytes_max: limits
                .inflated_bytes_max(block_bytes)
                .min(options.decoded_bytes_max),
            made_bytes_max: limits.inflated_bytes_max(block_bytes),
            inflight,
        };
        let made = export.make(&self.inflated).await?;
        *untranslated = made.untranslated;
        if path == OtlpPath::Thanos && untranslated.count > 0 {
            return Err(WriteError::from(Invalid::Untranslated(untranslated.to_string())).into());
        }

        // Replica header.
        let replica = replica(&head.headers, &self.options.replica_header)?;

        // Nothing, or nothing that could be a series.
        if made.request.is_empty() {
            return Ok(WriteOutcome::default());
        }

        // Decode and store.
        let sender = Sender::Client(Manners::Thanos);
        Ok(self.sink.write(&tenant.id, made.request, replica, sender).await?)
    }
}

/// An export as it came.
struct Export {
    block: PooledBuffer,
    encoding: ContentEncoding,
    format: Format,
    settings: Settings,
    inflated_bytes_max: u64,
    /// Of the request that is made of it, and of JSON in protobuf.
    made_bytes_max: u64,
    inflight: InflightGuard,
}

/// What it came to.
struct Made {
    request: Bytes,
    untranslated: Untranslated,
}

/// Why nothing comes of an export.
enum NotMade {
    Write(WriteError),
    Overloaded(Overloaded),
    /// It is longer than what is made here.
    Longer,
}

impl Export {
    async fn make(mut self, buffers: &BufferPool) -> Result<Made, WriteError> {
        let (mut inflated, mut parsed, mut out) = (buffers.take(), buffers.take(), buffers.take());
        let small = match self.encoding {
            ContentEncoding::Identity => heavy::LARGE_MESSAGE_BYTES,
            _ => heavy::LARGE_MESSAGE_BYTES / COMPRESSED_SHARE,
        };
        if self.block.as_slice().len() <= small {
            let here = self.make_into(&mut inflated, &mut parsed, &mut out, HERE_MAX);
            if !matches!(here, Err(NotMade::Longer)) {
                return self.finish(out, here);
            }
        }
        let work = move || {
            let made = self.make_into(&mut inflated, &mut parsed, &mut out, u64::MAX);
            self.finish(out, made)
        };
        heavy::off_thread(usize::MAX, work).await
    }

    /// Nothing grows beyond `here_max`.
    fn make_into(
        &mut self,
        inflated: &mut PooledBuffer,
        parsed: &mut PooledBuffer,
        out: &mut PooledBuffer,
        here_max: u64,
    ) -> Result<Translated, NotMade> {
        let (inflight, block) = (&mut self.inflight, self.block.as_slice());
        let mut held = REQUEST_BYTES_MIN + block.len() as u64;
        let longer = |error: NotMade, max: u64| match error {
            NotMade::Write(WriteError::TooLarge(_)) if max > here_max => NotMade::Longer,
            other => other,
        };
        let max = self.inflated_bytes_max;
        let hold =
            |bytes: u64| inflight.resize(held.saturating_add(bytes)).map_err(NotMade::Overloaded);
        let len = self
            .encoding
            .inflate(block, max.min(here_max), inflated.as_mut_vec(), hold)
            .map_err(|error| longer(error, max))?;
        held += len as u64;

        let max = self.made_bytes_max;
        let mut request = inflated.as_slice().get(..len).unwrap_or_default();
        if self.format == Format::Json {
            let hold = |bytes: u64| {
                inflight.resize(held.saturating_add(bytes)).map_err(NotMade::Overloaded)
            };
            let len = to_protobuf(request, parsed.as_mut_vec(), max.min(here_max), hold)
                .map_err(|error| longer(error, max))?;
            held += len as u64;
            request = parsed.as_slice().get(..len).unwrap_or_default();
        }

        // What is known of resources on the way takes no more than they do.
        held += request.len() as u64;
        let hold =
            |bytes: u64| inflight.resize(held.saturating_add(bytes)).map_err(NotMade::Overloaded);
        translate(request, &self.settings, out.as_mut_vec(), max.min(here_max), hold)
            .map_err(|error| longer(error, max))
    }

    fn finish(
        mut self,
        out: PooledBuffer,
        made: Result<Translated, NotMade>,
    ) -> Result<Made, WriteError> {
        match made {
            Ok(Translated { len, untranslated }) => {
                // What it was made from is let go.
                self.inflight.resize_in_any_case(REQUEST_BYTES_MIN + len as u64);
                Ok(Made { request: share(out, 0..len, self.inflight), untranslated })
            }
            Err(NotMade::Write(error)) => Err(error),
            Err(NotMade::Overloaded(over)) => Err(WriteError::no_room(self.inflight.bytes(), over)),
            // Beyond the largest length there is none.
            Err(NotMade::Longer) => {
                let (bytes, max) = (u64::MAX, self.made_bytes_max);
                Err(TooLarge::Decoded { bytes, max }.into())
            }
        }
    }
}

impl From<StreamError> for NotMade {
    fn from(error: StreamError) -> NotMade {
        NotMade::Write(match error {
            StreamError::Corrupt => Invalid::Inflate(error).into(),
            StreamError::TooLarge { .. } => TooLarge::Unpacked(error).into(),
        })
    }
}

impl From<JsonError> for NotMade {
    fn from(error: JsonError) -> NotMade {
        NotMade::Write(match error {
            JsonError::Malformed(_) => Invalid::Json(error).into(),
            JsonError::TooLong(error) => TooLarge::Resolved(error).into(),
        })
    }
}

impl From<OtlpError> for NotMade {
    fn from(error: OtlpError) -> NotMade {
        NotMade::Write(match error {
            OtlpError::Malformed(error) => Invalid::Decode(error).into(),
            OtlpError::TooLong(error) => TooLarge::Resolved(error).into(),
        })
    }
}
