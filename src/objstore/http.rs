//! How requests to a bucket travel: connections with deadlines and bounds, TLS as everywhere here,
//! proxies from the environment.
//!
//! [`object_store`] makes and signs requests and knows their answers; this sends them. Deadlines are
//! those of Thanos' file, and one of ours: a request of which nothing is taken for a minute fails.

mod connect;
mod tls;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures::FutureExt as _;
use http::header::{HeaderName, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Method, Request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use md5::{Digest as _, Md5};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::metrics::Registry;
use crate::objstore::OpenBucketError;
use crate::objstore::http::connect::{Connector, proxy_to};
use crate::objstore::http::tls::BucketTls;
use crate::objstore::options::HttpOptions;

/// A request of which nothing is taken for so long has failed.
const STALL_MAX: Duration = Duration::from_secs(60);

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

/// What one provider adds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    /// `Content-MD5` on what is uploaded.
    pub content_md5: bool,
    /// Of a request up to the head of its answer.
    pub request_timeout: Option<Duration>,
    /// Every request is told at debug level.
    pub trace: bool,
}

/// Sends requests.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

struct Inner {
    client: Client<Connector, Watched>,
    proxies: Arc<Matcher>,
    header_timeout: Option<Duration>,
    connections_max: Option<usize>,
    /// By host, where they are bounded.
    places: Mutex<HashMap<String, Arc<Semaphore>>>,
    extras: Extras,
}

impl Transport {
    /// Reads the files that the options name.
    pub fn new(
        options: &HttpOptions,
        extras: Extras,
        registry: &Registry,
    ) -> Result<Transport, OpenBucketError> {
        Transport::by_way_of(Matcher::from_env(), options, extras, registry)
    }

    fn by_way_of(
        proxies: Matcher,
        options: &HttpOptions,
        extras: Extras,
        registry: &Registry,
    ) -> Result<Transport, OpenBucketError> {
        let proxies = Arc::new(proxies);
        let tls = Arc::new(BucketTls::load(&options.tls, registry)?);
        let connector = Connector::new(tls, options.tls_handshake_timeout, proxies.clone());
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(options.idle_timeout)
            .pool_max_idle_per_host(options.idle_connections_max)
            .build(connector);
        Ok(Transport(Arc::new(Inner {
            client,
            proxies,
            header_timeout: options.response_header_timeout,
            connections_max: options.connections_max,
            places: Mutex::default(),
            extras,
        })))
    }

    /// A connection's place at the host, until its answer is read.
    async fn place(&self, request: &HttpRequest) -> Option<OwnedSemaphorePermit> {
        let max = self.0.connections_max?;
        let host = request.uri().authority().map_or("", |authority| authority.as_str()).to_owned();
        let new = || Arc::new(Semaphore::new(max));
        let places = self.0.places.lock().entry(host).or_insert_with(new).clone();
        // It is never closed.
        places.acquire_owned().await.ok()
    }

    fn prepare(&self, request: HttpRequest) -> (Request<Watched>, watch::Receiver<u64>) {
        let (mut parts, body) = request.into_parts();
        let agent = concat!("ringest/", env!("CARGO_PKG_VERSION"));
        parts.headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if self.0.extras.content_md5 && parts.method == Method::PUT && body.content_length() > 0 {
            // It is not among the headers that have to be signed.
            parts.headers.insert(CONTENT_MD5, content_md5(&body));
        }
        if parts.uri.scheme_str() == Some("http")
            && let Some(proxy) = proxy_to(&self.0.proxies, &parts.uri)
            && let Some(auth) = proxy.basic_auth()
        {
            parts.headers.insert(PROXY_AUTHORIZATION, auth.clone());
        }
        let (taken, progress) = watch::channel(0);
        (Request::from_parts(parts, Watched { body, taken }), progress)
    }

    async fn send(&self, request: HttpRequest) -> Result<http::Response<Incoming>, HttpError> {
        let (request, mut progress) = self.prepare(request);
        let mut answering = std::pin::pin!(self.0.client.request(request));
        loop {
            tokio::select! {
                biased;
                answer = &mut answering => return answer.map_err(http_error),
                moved = tokio::time::timeout(STALL_MAX, progress.changed()) => match moved {
                    Ok(Ok(())) => {}
                    // All of it is taken.
                    Ok(Err(_)) => break,
                    Err(_) => return Err(timed_out("the request is not taken")),
                },
            }
        }
        match self.0.header_timeout {
            None => answering.await,
            Some(after) => match tokio::time::timeout(after, answering).await {
                Ok(answer) => answer,
                Err(_) => return Err(timed_out("the request is not answered")),
            },
        }
        .map_err(http_error)
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let place = self.place(&request).await;
        let told = self.0.extras.trace.then(|| (request.method().clone(), request.uri().clone()));
        let sending = self.send(request);
        let answer = match self.0.extras.request_timeout {
            None => sending.await,
            Some(after) => match tokio::time::timeout(after, sending).await {
                Ok(answer) => answer,
                Err(_) => Err(timed_out("the request takes too long")),
            },
        };
        if let Some((method, uri)) = told {
            let status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
            tracing::debug!(%method, path = uri.path(), status, "request to the bucket");
        }
        let (parts, body) = answer?.into_parts();
        let body = Answered { body, _place: place };
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

impl HttpConnector for Transport {
    /// All of a bucket's clients share its connections.
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

/// A request's body, of which it is seen how it goes: each piece that is taken is told, and by the
/// drop that it was the last.
struct Watched {
    body: HttpRequestBody,
    taken: watch::Sender<u64>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        self.taken.send_modify(|taken| *taken += 1);
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, which holds its connection's place.
struct Answered {
    body: Incoming,
    _place: Option<OwnedSemaphorePermit>,
}

impl Body for Answered {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map_err(|err| HttpError::new(HttpErrorKind::Interrupted, err))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The bytes are in memory, so nothing is waited for.
fn content_md5(body: &HttpRequestBody) -> HeaderValue {
    let mut digest = Md5::new();
    let mut body = body.clone();
    while let Some(Some(Ok(frame))) = body.frame().now_or_never() {
        if let Some(bytes) = frame.data_ref() {
            digest.update(bytes);
        }
    }
    let text = BASE64_STANDARD.encode(digest.finalize());
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TimedOut(&'static str);

fn timed_out(what: &'static str) -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, TimedOut(what))
}

/// The kind decides whether it is tried again.
fn http_error(error: ClientError) -> HttpError {
    let of_hyper = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<hyper::Error>());
    let kind = match of_hyper {
        _ if error.is_connect() => HttpErrorKind::Connect,
        Some(e) if e.is_timeout() => HttpErrorKind::Timeout,
        Some(e) if e.is_incomplete_message() || e.is_closed() || e.is_canceled() => {
            HttpErrorKind::Request
        }
        Some(e) if e.is_parse() => HttpErrorKind::Decode,
        _ => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, error)
}

#[cfg(test)]
mod tests;
