//! `thanos.WriteableStore/RemoteWrite`: from HTTP/2 frames to the bytes of a request, and back to a
//! status.
//!
//! Served below tonic, so that a message is collected, inflated and read in place: no generated
//! types, no copy but that of inflating. Memory is taken as bytes arrive, never because they were
//! announced, and counted against the node's in-flight budget.

use std::convert::Infallible;
use std::future::Future;
use std::mem::Discriminant;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::server::NamedService;

use crate::grpc::respond;
use crate::log::throttle::Throttle;
use crate::metrics::{Counter, Gauge, Registry};
use crate::model::ring_hash::RingHash;
use crate::model::router_path::{InstanceId, RouterPath};
use crate::wire::grpc::{
    ACCEPTED, ANSWER, ANSWER_SERIES, Encoding, GRPC_ACCEPT_ENCODING, GRPC_ENCODING,
};
use crate::wire::grpc::{HEAD_BYTES, Head, INSTANCE, MessageError, ROUTER_PATH, timeout_of};
use crate::wire::grpc::{MERGED_WRITE_PATH, REMOTE_WRITE_PATH, RING, TAKES_MERGED};
use crate::wire::peer_write::MergedWriteAnswer;
use crate::wire::snappy::{BufferPool, PooledBuffer};
use crate::write::admission::{Admission, InflightGuard, Overloaded, share};
use crate::write::error::WriteError;
use crate::write::heavy;
use crate::write::peer_writes::{PeerOrigin, PeerWriteError, PeerWrites, not_understood};
use crate::write::sink::WriteSink;

/// The methods, one of each service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    RemoteWrite,
    MergedWrite,
}

impl Method {
    fn path(self) -> &'static str {
        match self {
            Method::RemoteWrite => REMOTE_WRITE_PATH,
            Method::MergedWrite => MERGED_WRITE_PATH,
        }
    }
}

/// The longest message that Thanos sends and takes.
const MESSAGE_BYTES_MAX: u64 = (1 << 31) - 1;

/// A longer deadline is none.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a request counts for at least: its head, its task, its answer.
const REQUEST_BYTES_MIN: u64 = 4 * 1024;

/// A buffer grows from here, doubling up to the message's length.
const BUFFER_STEP_BYTES: usize = 64 * 1024;

/// Idle buffers kept, as for HTTP.
const POOLED_BUFFERS_MAX: usize = 64;
const POOLED_BYTES_MAX: usize = 64 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("overload: {0}")]
    Overloaded(#[from] Overloaded),
    /// The connection failed, or the peer gave up.
    #[error("request body: {0}")]
    Body(String),
    #[error("request body did not arrive within {0:?}")]
    Slow(Duration),
    #[error(transparent)]
    Write(#[from] PeerWriteError),
    /// Storing it ended with a panic, or with the process.
    #[error("the write was interrupted")]
    Interrupted,
}

impl CallError {
    /// The answer that names the series that were refused, all others being stored. None if it was
    /// not so, or they are too many.
    fn refused_series(&self) -> Option<Vec<u8>> {
        let CallError::Write(PeerWriteError::Refused { refusals, series, .. }) = self else {
            return None;
        };
        if series.is_empty() {
            return None;
        }
        MergedWriteAnswer { refused: series.clone(), detail: refusals.to_string() }.encode()
    }
}

/// What the service is made from.
pub struct RemoteWriteOptions {
    /// The budget that writes over HTTP are counted against, too.
    pub admission: Arc<Admission>,
    /// From a call's head to its message's last byte.
    pub body_read_timeout: Duration,
    /// Whether all that a peer has placed here is stored here, whichever replicas of its series.
    /// Then [`MergedWriteServer`] is served, too.
    pub takes_merged: bool,
    /// The rings in force, of which every answer tells; None on a node that has none.
    pub ring_hash: Box<dyn Fn() -> Option<RingHash> + Send + Sync>,
    /// What this process is called, which every answer tells.
    pub instance: InstanceId,
    /// Writes under way, those included whose callers have gone.
    pub tasks: TaskTracker,
}

/// The service.
pub struct RemoteWriteServer<S>(Arc<Inner<S>>);

/// The same for merged messages: three replicas that go to one node are one call instead of three.
/// Its name is not Thanos', whose nodes would place the series by the one number that it has.
pub struct MergedWriteServer<S>(Arc<Inner<S>>);

struct Inner<S> {
    writes: Arc<PeerWrites<S>>,
    options: RemoteWriteOptions,
    /// `thanos_receive_pending_write_requests`: calls under way.
    pending: Gauge,
    /// [`RemoteWriteOptions::instance`]
    instance: HeaderValue,
    not_understood: Counter,
    messages: BufferPool,
    inflated: BufferPool,
    told: Throttle<Told>,
}

/// Kinds of failures of this node that the log tells, each once in a while.
#[derive(PartialEq, Eq, Hash)]
enum Told {
    Overload,
    Write(Discriminant<WriteError>),
    NotUnderstood,
}

impl<S: WriteSink> RemoteWriteServer<S> {
    pub fn new(
        writes: PeerWrites<S>,
        options: RemoteWriteOptions,
        registry: &Registry,
    ) -> RemoteWriteServer<S> {
        let pool =
            |name| BufferPool::new(POOLED_BUFFERS_MAX, POOLED_BYTES_MAX).shown(registry, name);
        // Its digits are a legal value.
        let instance = HeaderValue::try_from(options.instance.to_string());
        RemoteWriteServer(Arc::new(Inner {
            writes: Arc::new(writes),
            instance: instance.unwrap_or(HeaderValue::from_static("")),
            options,
            pending: registry.gauge(
                "thanos_receive_pending_write_requests",
                "The number of pending write requests.",
            ),
            not_understood: not_understood(registry),
            messages: pool("grpc_messages"),
            inflated: pool("grpc_inflated"),
            told: Throttle::default(),
        }))
    }

    /// The service for merged messages, if they may come.
    pub fn merged(&self) -> Option<MergedWriteServer<S>> {
        self.0.options.takes_merged.then(|| MergedWriteServer(self.0.clone()))
    }
}

impl<S: WriteSink> Inner<S> {
    async fn call(&self, request: Request<Body>, method: Method) -> Response<Body> {
        if request.uri().path() != method.path() || request.method() != http::Method::POST {
            return tonic::Status::unimplemented("unknown method").into_http();
        }
        let _pending = Pending::count(&self.pending);
        let (head, body) = request.into_parts();
        let encoding = Encoding::of(&head.headers);
        let result = match encoding.clone() {
            Ok(encoding) => self.write(method, body, encoding, origin_of(&head.headers)).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = &result {
            self.log_failure(error);
        }
        let reads_series = method == Method::MergedWrite
            && head.headers.get(ANSWER).is_some_and(|answer| *answer == ANSWER_SERIES);
        let mut response = self.respond(result, encoding.ok().flatten(), reads_series);
        let ring = (self.options.ring_hash)();
        let ring = ring.and_then(|hash| HeaderValue::try_from(hash.to_string()).ok());
        let headers = response.headers_mut();
        headers.extend(ring.map(|hash| (RING, hash)));
        headers.insert(INSTANCE, self.instance.clone());
        response
    }

    fn respond(
        &self,
        result: Result<(), CallError>,
        encoding: Option<Encoding>,
        reads_series: bool,
    ) -> Response<Body> {
        let success = |message| success(message, encoding, self.options.takes_merged);
        match result {
            Ok(()) => success(Vec::new()),
            Err(error) => {
                if let Some(message) = error.refused_series().filter(|_| reads_series) {
                    return success(message);
                }
                let mut response = respond::write(&error).into_http();
                if let CallError::Message(MessageError::UnknownEncoding(_)) = error {
                    response.headers_mut().insert(GRPC_ACCEPT_ENCODING, ACCEPTED);
                }
                response
            }
        }
    }

    /// What a peer sent wrongly is told to those who debug, here as there.
    fn log_failure(&self, error: &CallError) {
        let kind = match error {
            CallError::Overloaded(_) => Some(Told::Overload),
            CallError::Write(PeerWriteError::Write(cause)) if cause.is_ours() => {
                Some(Told::Write(std::mem::discriminant(cause)))
            }
            CallError::Write(PeerWriteError::NotUnderstood { .. }) => {
                self.not_understood.inc();
                Some(Told::NotUnderstood)
            }
            _ => None,
        };
        match kind.and_then(|kind| self.told.pass(kind)) {
            Some(suppressed) => tracing::warn!(err = %error, suppressed, "write of a peer failed"),
            None => tracing::debug!(err = %error, "write of a peer failed"),
        }
    }

    async fn write(
        &self,
        method: Method,
        body: Body,
        encoding: Option<Encoding>,
        origin: PeerOrigin,
    ) -> Result<(), CallError> {
        let admission = &self.options.admission;
        let mut inflight = admission.admit(REQUEST_BYTES_MIN)?;

        // Read. What comes behind the message is ignored, as it is by Thanos.
        let timeout = self.options.body_read_timeout;
        let read = self.read_message(body, encoding, &mut inflight);
        let (head, message) =
            tokio::time::timeout(timeout, read).await.map_err(|_| CallError::Slow(timeout))??;
        let end = HEAD_BYTES + head.len as usize;
        // Inflate.
        let Some(encoding) = encoding.filter(|_| head.is_encoded) else {
            return self.store(method, share(message, HEAD_BYTES..end, inflight), origin).await;
        };
        let deflated = message.as_ref().get(HEAD_BYTES..end).ok_or(MessageError::CutShort)?;
        let max = self.message_bytes_max();
        let bytes_most = encoding.inflated_bytes_most(deflated, max);
        let mut inflated = self.inflated.take();
        let inflate = move || {
            let deflated = message.as_ref().get(HEAD_BYTES..end).unwrap_or_default();
            let held = inflight.bytes();
            let admit = |bytes| Ok::<(), CallError>(inflight.resize(held.saturating_add(bytes))?);
            let request = encoding.inflate(deflated, max, inflated.as_mut_vec(), admit)?.len();
            drop(message);
            // Shrinking always succeeds.
            inflight.resize(REQUEST_BYTES_MIN + request as u64)?;
            // What is held goes along: the work is finished even if the peer gives up.
            Ok::<_, CallError>((inflated, request, inflight))
        };
        let (inflated, request_bytes, inflight) = heavy::off_thread(bytes_most, inflate).await?;

        // Decode and store.
        self.store(method, share(inflated, 0..request_bytes, inflight), origin).await
    }

    /// Stores a message in a task of its own: a Thanos router cancels what is still under way when
    /// its verdict is fixed, and good series would be a copy short for ever.
    async fn store(
        &self,
        method: Method,
        message: Bytes,
        origin: PeerOrigin,
    ) -> Result<(), CallError> {
        let writes = self.writes.clone();
        let stored = self.options.tasks.spawn(async move {
            match method {
                Method::RemoteWrite => writes.write(message, &origin).await,
                Method::MergedWrite => writes.write_merged(message, &origin).await,
            }
        });
        Ok(stored.await.map_err(|_| CallError::Interrupted)??)
    }

    /// Reads the whole call, and returns its first message, whose head is in the first bytes.
    async fn read_message(
        &self,
        mut body: Body,
        encoding: Option<Encoding>,
        inflight: &mut InflightGuard,
    ) -> Result<(Head, Message), CallError> {
        let mut whole = None;
        let mut pooled = self.messages.take();
        let buffer = pooled.as_mut_vec();
        buffer.clear();
        let mut head = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|status| CallError::Body(status.message().to_owned()))?;
            let Ok(mut chunk) = frame.into_data() else { continue };
            if whole.is_some() {
                continue;
            }
            if head.is_none() {
                if buffer.is_empty()
                    && let Some(bytes) = chunk.first_chunk::<HEAD_BYTES>()
                {
                    let parsed = self.parse_head(*bytes, encoding)?;
                    if chunk.len() - HEAD_BYTES >= parsed.len as usize {
                        inflight.resize(REQUEST_BYTES_MIN + chunk.len() as u64)?;
                        whole = Some((parsed, Message::Frame(chunk)));
                        continue;
                    }
                }
                let missing = HEAD_BYTES.saturating_sub(buffer.len());
                buffer.extend_from_slice(&chunk.split_to(missing.min(chunk.len())));
                let Some(bytes) = buffer.first_chunk::<HEAD_BYTES>() else { continue };
                head = Some(self.parse_head(*bytes, encoding)?);
            }
            let Some(Head { len, .. }) = head else { continue };
            let end = HEAD_BYTES + len as usize;
            chunk.truncate(end.saturating_sub(buffer.len()));
            reserve(buffer, chunk.len(), end);
            inflight.resize(REQUEST_BYTES_MIN + (buffer.len() + chunk.len()) as u64)?;
            buffer.extend_from_slice(&chunk);
        }
        if let Some(whole) = whole {
            return Ok(whole);
        }
        let head = head.filter(|head| buffer.len() == HEAD_BYTES + head.len as usize);
        Ok((head.ok_or(MessageError::CutShort)?, Message::Collected(pooled)))
    }

    fn parse_head(
        &self,
        bytes: [u8; HEAD_BYTES],
        encoding: Option<Encoding>,
    ) -> Result<Head, CallError> {
        let head = Head::parse(bytes, encoding)?;
        let (len, max) = (u64::from(head.len), self.message_bytes_max());
        if len > max {
            return Err(MessageError::TooLarge { len, max }.into());
        }
        // The whole message must fit now, but is held only as it arrives.
        self.options.admission.check(len)?;
        Ok(head)
    }

    /// A message must fit the budget, or its sender would be told to come again for ever.
    fn message_bytes_max(&self) -> u64 {
        let room = self.options.admission.bytes_max().saturating_sub(REQUEST_BYTES_MIN);
        MESSAGE_BYTES_MAX.min(room)
    }
}

fn origin_of(headers: &HeaderMap) -> PeerOrigin {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    PeerOrigin {
        path: text(&ROUTER_PATH).map(RouterPath::parse).unwrap_or_default(),
        // An hour's deadline is as good as a year's, and no sum of times is out of range.
        deadline: timeout_of(headers).map(|after| Instant::now() + after.min(TIMEOUT_MAX)),
        is_of_ours: text(&header::USER_AGENT).is_some_and(|agent| agent.starts_with("ringest/")),
    }
}

/// A message with its head in the first bytes.
enum Message {
    /// The frame that brought all of it.
    Frame(Bytes),
    /// From several frames.
    Collected(PooledBuffer),
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        match self {
            Message::Frame(bytes) => bytes,
            Message::Collected(buffer) => buffer.as_slice(),
        }
    }
}

/// A call under way, until dropped.
struct Pending<'a>(&'a Gauge);

impl Pending<'_> {
    fn count(pending: &Gauge) -> Pending<'_> {
        pending.add(1.0);
        Pending(pending)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

/// Doubles the buffer, but not beyond `end`.
fn reserve(buffer: &mut Vec<u8>, more: usize, end: usize) {
    if buffer.capacity() - buffer.len() < more {
        let doubled = buffer.len().max(BUFFER_STEP_BYTES);
        buffer.reserve_exact(doubled.min(end.saturating_sub(buffer.len())).max(more));
    }
}

/// A `thanos.WriteResponse`, which is empty, or a [`MergedWriteAnswer`]. One to an encoded request
/// says that it is encoded, too, as grpc-go's does, though the message never is.
fn success(message: Vec<u8>, encoding: Option<Encoding>, takes_merged: bool) -> Response<Body> {
    // Answers have a cap far below that.
    let head = Head { is_encoded: false, len: message.len() as u32 }.to_bytes();
    let message = Full::new(Bytes::from([&head[..], &message].concat()));
    let mut trailers = HeaderMap::new();
    trailers.insert(tonic::Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(encoding) = encoding {
        headers.insert(GRPC_ENCODING, encoding.name());
    }
    if takes_merged {
        headers.insert(TAKES_MERGED, HeaderValue::from_static("true"));
    }
    response
}

/// The two servers differ in name and method.
macro_rules! serve {
    ($server:ident, $name:literal, $method:expr) => {
        impl<S> Clone for $server<S> {
            fn clone(&self) -> $server<S> {
                $server(self.0.clone())
            }
        }

        impl<S> NamedService for $server<S> {
            const NAME: &'static str = $name;
        }

        impl<S: WriteSink> tower::Service<Request<Body>> for $server<S> {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: Request<Body>) -> Self::Future {
                let inner = self.0.clone();
                Box::pin(async move { Ok(inner.call(request, $method).await) })
            }
        }
    };
}

serve!(RemoteWriteServer, "thanos.WriteableStore", Method::RemoteWrite);
serve!(MergedWriteServer, "ringest.WriteableStore", Method::MergedWrite);

#[cfg(test)]
mod tests;
