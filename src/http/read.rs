//! Prometheus' remote read, `POST /api/v1/read`: what one tenant stored, read back.
//!
//! ```text
//! request   snappy block of ReadRequest
//! SAMPLES   snappy block of ReadResponse
//! STREAMED_XOR_CHUNKS, one frame after another, not compressed:
//!           uvarint length | CRC-32C of the message, 4 bytes, big endian | ChunkedReadResponse
//! ```
//!
//! Series come sorted, with the labels they were written with (no external labels), and cut to the
//! asked range: a chunk that reaches over a border is encoded anew with the samples inside.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Request, StatusCode};
use prost::Message;

use crate::error::Stage;
use crate::http::tenant::TenantRules;
use crate::http::{gone, question};
use crate::model::labels::TAG_FIELD_1;
use crate::model::matcher::Matcher;
use crate::model::pairs::SeriesLabels;
use crate::model::varint::push_varint;
use crate::store::budget::{ReadBudget, ReadBudgetGuard};
use crate::store::error::QueryError;
use crate::store::matchers::{self, WireMatcher};
use crate::store::pieces::{Cursor, Patience, Whole, blocking, interrupted, pieces};
use crate::store::slices::Sliced;
use crate::store::sort::sort_by;
use crate::store::source::{ReadTenant, SeriesReader, TenantSource};
use crate::store::tsdb_store::shared_texts;
use crate::tsdb::chunk_set::{ChunkSet, ChunkView};
use crate::tsdb::chunkenc::samples::{Encoded, SampleIterator, Value, encode_if};
use crate::tsdb::querier::SelectedSeries;
use crate::wire::histogram::HistogramMessage;
use crate::wire::proto::prometheus::read_request::ResponseType;
use crate::wire::proto::prometheus::{
    Chunk, ChunkedReadResponse, ChunkedSeries, Label, LabelMatcher, Query, ReadRequest, Sample,
    TimeSeries,
};
use crate::wire::shape::{Field, Kind, Shape};
use crate::wire::snappy;

/// The path of the endpoint.
pub const PATH: &str = "/api/v1/read";

const STREAMED_CONTENT_TYPE: HeaderValue = HeaderValue::from_static(
    "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse",
);

/// Largest request, compressed and inflated: it holds matchers, and Prometheus' are short.
const REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Queries of one request; Prometheus sends one.
const QUERIES_MAX: usize = 100;

/// Elements of one kind in a request, over all its queries.
const ELEMENTS_MAX: usize = 10_000;

/// Largest SAMPLES answer before compression: it is made in memory as a whole. Larger ones have to
/// be asked for in pieces, or streamed.
const SAMPLES_BYTES_MAX: usize = 128 * 1024 * 1024;

/// A SAMPLES answer is charged to the budget in steps of this.
const SAMPLES_BYTES_STEP: usize = 1024 * 1024;

/// Largest message of a streamed answer; Prometheus' default, too.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of frames made at a time; a frame may exceed it.
const FILL_BYTES: usize = 256 * 1024;

/// Bytes of chunks read at a time, and their series at most; one series may exceed it.
const READ_BYTES: usize = 128 * 1024;
const SERIES_AT_ONCE: usize = 512;

/// What of a streamed answer is made and on its way, at most, and a series' part in it: charged at
/// once, as it stays with the transport while a client does not read.
const UNDER_WAY_BYTES: usize = 2 * FRAME_BYTES_MAX;
const SERIES_BYTES: usize = 1024;

/// What the endpoint needs.
pub struct RemoteRead {
    pub source: Arc<dyn TenantSource>,
    pub budget: ReadBudget,
    pub tenants: TenantRules,
    /// From a request's head to its body's last byte.
    pub body_timeout: Duration,
    /// How long a reader may take nothing of its answer.
    pub stall: Duration,
}

/// The endpoint as a router of its own.
pub fn router(read: RemoteRead) -> Router {
    Router::new().route(PATH, post(answer)).with_state(Arc::new(read))
}

async fn answer(
    State(read): State<Arc<RemoteRead>>,
    request: Request<Body>,
) -> Result<Response, Infallible> {
    Ok(read.answer(request).await.unwrap_or_else(|error| refuse(&error)))
}

impl RemoteRead {
    /// The stages of one request, in order.
    async fn answer(&self, request: Request<Body>) -> Result<Response, QueryError> {
        let (parts, body) = request.into_parts();
        let tenant =
            self.tenants.id(&parts.headers).map_err(|error| invalid(Stage::Tenant, error))?;
        let mut held = self.budget.begin();
        let body = question::collect(body, REQUEST_BYTES_MAX, self.body_timeout, &mut held).await?;
        let tenant = self.source.tenant(&tenant)?;
        let patience = Patience { stall: self.stall, ..Patience::default() };
        let taken = patience.taken.clone();
        let budget = self.budget.clone();
        let answer = blocking(move || {
            let request = decode(body, &mut held)?;
            let response_type = negotiate(&request.accepted_response_types)?;
            let mut programs = budget.begin();
            let queries = parse_queries(&request.queries, &mut programs)?;
            // What is kept of the request is what was made of it.
            drop((request, held));
            match response_type {
                ResponseType::Samples => {
                    samples(tenant.as_deref(), &queries, &budget).map(Answer::Samples)
                }
                ResponseType::StreamedXorChunks => {
                    ChunkCursor::open(tenant, queries, programs, budget).map(Answer::Streamed)
                }
            }
        });
        let answer = tokio::select! {
            answer = answer => answer?,
            () = gone::client_gone(&parts.extensions) => return Err(QueryError::Interrupted),
        };
        let response = match answer {
            Answer::Samples(whole) => samples_response(whole, patience),
            Answer::Streamed(cursor) => streamed_response(cursor, patience),
        };
        Ok(response.map(|body| Body::new(Sliced::new(body, taken, ()))))
    }
}

fn invalid(stage: Stage, error: impl std::fmt::Display) -> QueryError {
    QueryError::Invalid { stage, detail: error.to_string() }
}

/// What an answer is made of.
enum Answer {
    Samples(Whole<ReadBudgetGuard>),
    Streamed(ChunkCursor),
}

/// Holds what the request takes at each step before it takes it.
fn decode(body: Vec<u8>, held: &mut ReadBudgetGuard) -> Result<ReadRequest, QueryError> {
    // What the body could not reach is not held for it, however much it declares.
    let len = snappy::inflated_len(&body, REQUEST_BYTES_MAX as u64)
        .map_err(|error| invalid(Stage::Snappy, error))?;
    held.hold(len)?;
    let mut inflated = Vec::new();
    snappy::inflate(&body, len, &mut inflated).map_err(|error| invalid(Stage::Snappy, error))?;
    let inflated = Bytes::from(inflated);
    drop(body);
    held.hold(REQUEST.judge(&inflated).map_err(|error| invalid(Stage::Protobuf, error))?)?;
    ReadRequest::decode(inflated).map_err(|error| invalid(Stage::Protobuf, error))
}

/// What a request may have more than one of. Each query has a cap of matchers besides.
static REQUEST: Shape = Shape(&[
    Field {
        number: 1,
        name: "queries",
        kind: Kind::Messages { max: QUERIES_MAX, bytes: size_of::<Query>(), shape: &QUERY },
    },
    Field { number: 2, name: "response types", kind: Kind::Numbers { max: QUERIES_MAX } },
]);

static QUERY: Shape = Shape(&[
    Field {
        number: 3,
        name: "matchers",
        kind: Kind::Messages {
            max: ELEMENTS_MAX,
            bytes: size_of::<LabelMatcher>(),
            shape: &Shape(&[]),
        },
    },
    Field { number: 4, name: "hints", kind: Kind::Message(&HINTS) },
]);

static HINTS: Shape =
    Shape(&[Field { number: 5, name: "grouping labels", kind: Kind::Texts { max: ELEMENTS_MAX } }]);

/// The first type that we know; samples if the client names none.
fn negotiate(accepted: &[i32]) -> Result<ResponseType, QueryError> {
    if accepted.is_empty() {
        return Ok(ResponseType::Samples);
    }
    accepted.iter().find_map(|number| ResponseType::try_from(*number).ok()).ok_or_else(|| {
        let detail = format!("none of {accepted:?} is supported");
        QueryError::Invalid { stage: Stage::ResponseTypes, detail }
    })
}

fn parse_queries(
    queries: &[Query],
    held: &mut ReadBudgetGuard,
) -> Result<Vec<ParsedQuery>, QueryError> {
    queries.iter().map(|query| ParsedQuery::parse(query, held)).collect()
}

/// A query whose matchers are compiled. Without matchers it selects nothing, as in Prometheus.
struct ParsedQuery {
    mint: i64,
    /// Included.
    maxt: i64,
    matchers: Vec<Matcher>,
}

impl ParsedQuery {
    fn parse(query: &Query, held: &mut ReadBudgetGuard) -> Result<ParsedQuery, QueryError> {
        Ok(ParsedQuery {
            mint: query.start_timestamp_ms,
            maxt: query.end_timestamp_ms,
            matchers: matchers::parse(&query.matchers, held)?,
        })
    }

    /// The matching series, sorted by labels.
    fn select(
        &self,
        reader: &dyn SeriesReader,
        held: &mut ReadBudgetGuard,
    ) -> Result<Vec<SelectedSeries>, QueryError> {
        if self.matchers.is_empty() {
            return Ok(Vec::new());
        }
        let mut series = reader.select(&self.matchers)?;
        interrupted()?;
        held.hold(series.iter().map(SelectedSeries::bytes).sum())?;
        sort_by(&mut series, |a, b| a.labels.cmp(&b.labels));
        interrupted()?;
        Ok(series)
    }

    fn contains(&self, t: i64) -> bool {
        self.mint <= t && t <= self.maxt
    }
}

/// A ReadResponse, compressed.
fn samples(
    tenant: Option<&dyn ReadTenant>,
    queries: &[ParsedQuery],
    budget: &ReadBudget,
) -> Result<Whole<ReadBudgetGuard>, QueryError> {
    let mut response = Vec::new();
    let mut held = budget.begin();
    let mut charged = 0;
    let mut charge = |bytes: usize| {
        if bytes > SAMPLES_BYTES_MAX {
            return Err(QueryError::TooLarge { limit: SAMPLES_BYTES_MAX });
        }
        while charged < bytes {
            held.hold(SAMPLES_BYTES_STEP)?;
            charged += SAMPLES_BYTES_STEP;
        }
        Ok(())
    };
    let mut selection = budget.begin();
    let mut chunks = ChunkSet::default();
    for query in queries {
        let mut result = Vec::new();
        if let Some(tenant) = tenant {
            let reader = tenant.reader(query.mint, query.maxt);
            let selected = query.select(&*reader, &mut selection)?;
            let mut rest = &selected[..];
            while !rest.is_empty() {
                load(&*reader, rest, &mut chunks)?;
                let (loaded, others) = rest.split_at(chunks.series_count());
                rest = others;
                for (i, series) in loaded.iter().enumerate() {
                    let before = response.len() + result.len();
                    let (samples, histograms) =
                        samples_of(query, chunks.of(i), |bytes| charge(before + bytes))?;
                    if !(samples.is_empty() && histograms.is_empty()) {
                        let labels = label_messages(&series.labels);
                        let series = TimeSeries { labels, samples, histograms };
                        push_field_1(&mut result, &series);
                        charge(response.len() + result.len())?;
                    }
                }
            }
        }
        response.push(TAG_FIELD_1);
        push_varint(&mut response, result.len() as u64);
        response.extend_from_slice(&result);
    }
    drop(selection);
    held.hold(snap::raw::max_compress_len(response.len()))?;
    let compressed = snap::raw::Encoder::new().compress_vec(&response);
    let mut compressed = compressed.map_err(|error| invalid(Stage::Snappy, error))?;
    drop(response);
    compressed.shrink_to_fit();
    held.shrink_to(compressed.len());
    Ok(Whole::new(compressed.into(), held))
}

/// Puts the chunks of as many of the series, from the first one on, into `chunks` as are read at a
/// time.
fn load(
    reader: &dyn SeriesReader,
    series: &[SelectedSeries],
    chunks: &mut ChunkSet,
) -> Result<(), QueryError> {
    chunks.clear();
    reader.gather(&mut series.iter().take(SERIES_AT_ONCE), READ_BYTES, chunks)?;
    chunks.load()?;
    // What was loaded may not be complete.
    interrupted()
}

/// Floats of the chunks that lie in the query's range, and messages of the histograms.
fn samples_of<'c>(
    query: &ParsedQuery,
    chunks: impl Iterator<Item = ChunkView<'c>>,
    mut charge: impl FnMut(usize) -> Result<(), QueryError>,
) -> Result<(Vec<Sample>, Vec<Bytes>), QueryError> {
    let (mut samples, mut histograms, mut histogram_bytes) = (Vec::new(), Vec::new(), 0);
    for chunk in chunks {
        for sample in SampleIterator::new(chunk.encoding, chunk.bytes) {
            let (timestamp, value) = sample?;
            if !query.contains(timestamp) {
                continue;
            }
            match value {
                Value::Float(bits) => {
                    samples.push(Sample { value: f64::from_bits(bits), timestamp });
                }
                Value::Histogram(histogram) => {
                    let mut message = Vec::new();
                    HistogramMessage::of_model(timestamp, &histogram).push_protobuf(&mut message);
                    histogram_bytes += size_of::<Bytes>() + message.len();
                    histograms.push(message.into());
                }
            }
        }
        let sample_bytes = samples.len().saturating_mul(size_of::<Sample>());
        charge(sample_bytes.saturating_add(histogram_bytes))?;
    }
    Ok((samples, histograms))
}

/// Appends a message as field 1 of the message that `out` is.
fn push_field_1(out: &mut Vec<u8>, message: &impl Message) {
    out.push(TAG_FIELD_1);
    push_varint(out, message.encoded_len() as u64);
    message.encode_raw(out);
}

/// Labels as stored, all sharing one copy of their texts.
fn label_messages(labels: &SeriesLabels) -> Vec<Label> {
    shared_texts(labels.iter()).map(|(name, value)| Label { name, value }).collect()
}

/// The rest of a streamed answer.
struct ChunkCursor {
    tenant: Option<Arc<dyn ReadTenant>>,
    queries: std::iter::Enumerate<std::vec::IntoIter<ParsedQuery>>,
    current: Option<CurrentQuery>,
    budget: ReadBudget,
    /// By the matchers of all queries.
    _programs: ReadBudgetGuard,
}

struct CurrentQuery {
    index: i64,
    query: ParsedQuery,
    reader: Box<dyn SeriesReader>,
    series: std::vec::IntoIter<SelectedSeries>,
    _held: ReadBudgetGuard,
}

impl ChunkCursor {
    fn open(
        tenant: Option<Arc<dyn ReadTenant>>,
        queries: Vec<ParsedQuery>,
        programs: ReadBudgetGuard,
        budget: ReadBudget,
    ) -> Result<ChunkCursor, QueryError> {
        let queries = queries.into_iter().enumerate();
        let mut cursor =
            ChunkCursor { tenant, queries, current: None, budget, _programs: programs };
        // The first selection is made before the answer's status is chosen.
        cursor.next_query()?;
        Ok(cursor)
    }

    /// False if there is none.
    fn next_query(&mut self) -> Result<bool, QueryError> {
        let (Some(tenant), Some((index, query))) = (&self.tenant, self.queries.next()) else {
            self.current = None;
            return Ok(false);
        };
        // What the query before held is given back first.
        self.current = None;
        let mut held = self.budget.begin();
        let reader = tenant.reader(query.mint, query.maxt);
        let series = query.select(&*reader, &mut held)?.into_iter();
        held.hold(series.len().saturating_mul(SERIES_BYTES).min(UNDER_WAY_BYTES))?;
        self.current =
            Some(CurrentQuery { index: index as i64, query, reader, series, _held: held });
        Ok(true)
    }
}

impl Cursor for ChunkCursor {
    type Message = Bytes;

    fn fill(&mut self, ready: &mut VecDeque<Bytes>) -> Result<bool, QueryError> {
        let mut filled = 0;
        let mut chunks = ChunkSet::default();
        while filled < FILL_BYTES {
            interrupted()?;
            let Some(current) = &mut self.current else { return Ok(false) };
            if current.series.len() == 0 {
                self.next_query()?;
                continue;
            }
            load(&*current.reader, current.series.as_slice(), &mut chunks)?;
            for i in 0..chunks.series_count() {
                let Some(series) = current.series.next() else { break };
                filled += push_frames(current, &series.labels, chunks.of(i), ready)?;
            }
        }
        Ok(true)
    }
}

/// Returns the bytes of the frames.
fn push_frames<'c>(
    current: &CurrentQuery,
    labels: &SeriesLabels,
    chunks: impl Iterator<Item = ChunkView<'c>>,
    ready: &mut VecDeque<Bytes>,
) -> Result<usize, QueryError> {
    let labels = label_messages(labels);
    let label_bytes: usize = labels.iter().map(|label| field_bytes(label.encoded_len())).sum();
    let mut pushed = 0;
    let mut frame = Vec::new();
    let mut frame_bytes = FRAME_BYTES_FIXED + label_bytes;
    let mut flush = |chunks: &mut Vec<Chunk>| {
        let series = ChunkedSeries { labels: labels.clone(), chunks: std::mem::take(chunks) };
        let message =
            ChunkedReadResponse { chunked_series: vec![series], query_index: current.index };
        let bytes = frame_of(&message.encode_to_vec());
        pushed += bytes.len();
        ready.push_back(bytes);
    };
    for chunk in chunks {
        let Some(chunk) = cut(&current.query, &chunk)? else { continue };
        let bytes = field_bytes(chunk.encoded_len());
        if !frame.is_empty() && frame_bytes + bytes > FRAME_BYTES_MAX {
            flush(&mut frame);
            frame_bytes = FRAME_BYTES_FIXED + label_bytes;
        }
        frame_bytes += bytes;
        frame.push(chunk);
    }
    if !frame.is_empty() {
        flush(&mut frame);
    }
    Ok(pushed)
}

/// What a message holds beside labels and chunks, at most: two tags, a length, the query's index.
const FRAME_BYTES_FIXED: usize = 1 + 5 + 1 + 10;

/// Bytes of a nested message with its tag and length, which is below 2^28.
fn field_bytes(body: usize) -> usize {
    1 + 4 + body
}

fn frame_of(message: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(message.len() + 5 + 4);
    push_varint(&mut frame, message.len() as u64);
    frame.extend_from_slice(&crc32c::crc32c(message).to_be_bytes());
    frame.extend_from_slice(message);
    frame.into()
}

/// The chunk with its samples in the query's range; `None` if there are none.
fn cut(query: &ParsedQuery, chunk: &ChunkView<'_>) -> Result<Option<Chunk>, QueryError> {
    let encoding = i32::from(chunk.encoding);
    let is_inside = query.contains(chunk.mint) && query.contains(chunk.maxt);
    if is_inside {
        return Ok(Some(Chunk {
            min_time_ms: chunk.mint,
            max_time_ms: chunk.maxt,
            r#type: encoding,
            data: Bytes::copy_from_slice(chunk.bytes),
        }));
    }
    let (inside, read) = encode_if(chunk.encoding, chunk.bytes, |t| query.contains(t));
    read?;
    Ok(inside.map(|inside| {
        let Encoded { mint, maxt, bytes, .. } = inside.finish();
        Chunk {
            min_time_ms: mint,
            max_time_ms: maxt,
            r#type: encoding,
            data: Bytes::copy_from_slice(&bytes),
        }
    }))
}

fn samples_response(whole: Whole<ReadBudgetGuard>, patience: Patience) -> Response {
    let len = whole.rest().len();
    let mut response = Response::new(Body::from_stream(pieces(whole, patience)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
    response
}

/// An error ends the answer short of its end mark, so the client knows that it is not whole.
fn streamed_response(cursor: ChunkCursor, patience: Patience) -> Response {
    let frames = pieces(cursor, patience)
        .inspect_err(|error| tracing::warn!(err = %error, "remote read answer cut short"));
    let mut response = Response::new(Body::from_stream(frames));
    response.headers_mut().insert(CONTENT_TYPE, STREAMED_CONTENT_TYPE);
    response
}

/// A query error as Prometheus and Thanos put errors: plain text, one line.
fn refuse(error: &QueryError) -> Response {
    let mut response = Response::new(Body::from(format!("{error}\n")));
    *response.status_mut() = match error {
        // That a body is slow is not its sender's fault for certain.
        QueryError::Unavailable { .. }
        | QueryError::Unreadable(_)
        | QueryError::Overloaded
        | QueryError::Slow(_) => StatusCode::SERVICE_UNAVAILABLE,
        QueryError::Damaged(_) | QueryError::Interrupted => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    };
    let is_retryable = response.status() == StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if is_retryable {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

impl WireMatcher for LabelMatcher {
    fn parts(&self) -> (i32, &[u8], &[u8]) {
        (self.r#type, &self.name, &self.value)
    }
}

#[cfg(test)]
mod tests;
