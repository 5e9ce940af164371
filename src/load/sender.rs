//! One connection: makes its requests, sends them in order, retries, and notes what was answered.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Setup;
use super::acked::{AckedFileError, Acknowledged, Record};
use super::body::{Body, BodyEncoder};
use super::report::Tally;
use super::workload::{Lane, TimestampSource, Workload};
use crate::clock::Clock;
use crate::model::Timestamp;

/// How requests are sent, as opposed to what is in them.
#[derive(Clone, Debug)]
pub struct SendOptions {
    pub write_url: Uri,
    /// Samples per second over all connections; `None` sends as fast as the server answers.
    pub rate: Option<f64>,
    /// Rounds to send; `None` goes on until stopped.
    pub rounds: Option<u32>,
    /// Time after which no further request is sent.
    pub duration: Option<Duration>,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How long a request is retried before it is given up.
    pub retry_for: Duration,
}

/// What ends a sender early.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    AckedFile(#[from] AckedFileError),
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    #[error("a request cannot be compressed: {0}")]
    Snappy(#[from] snap::Error),
    #[error("request to {url}: {source}")]
    Request { url: Uri, source: http::Error },
}

/// How far a run is, for those who watch it.
#[derive(Debug, Default)]
pub struct Progress {
    pub samples: AtomicU64,
    pub requests: AtomicU64,
    /// Why an attempt failed that is made again, the last one that nobody was told of.
    retried: Mutex<Option<String>>,
}

impl Progress {
    /// Why requests are being sent again; none if none was since the last call.
    pub fn take_retried(&self) -> Option<String> {
        self.retried.lock().take()
    }
}

/// What a connection did.
pub(super) struct Sent {
    pub tally: Tally,
    /// Kept only if asked for.
    pub acknowledged: Option<Acknowledged>,
}

const RETRY_DELAY_FIRST: Duration = Duration::from_millis(50);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
/// A server may ask for more patience than this, but a load test has none; nor may it ask for none
/// at all and be flooded.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Answers are a line or two; more is not read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// One connection and the lanes it owns.
pub(super) struct Sender<'a> {
    setup: &'a Setup<'a>,
    clock: &'a dyn Clock,
    client: HttpClient,
    sent: Sent,
}

/// An HTTP/1.1 client that keeps its connection.
pub(super) type HttpClient = Client<HttpConnector, Full<Bytes>>;

pub(super) fn http_client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector)
}

enum Outcome {
    Acknowledged,
    /// The server refused it for good, or patience ended.
    NotAcknowledged,
}

impl<'a> Sender<'a> {
    pub(super) fn new(setup: &'a Setup<'a>, clock: &'a dyn Clock) -> Sender<'a> {
        let acknowledged = setup.keep_acknowledged.then(|| Acknowledged::new(setup.workload));
        let sent = Sent { tally: Tally::default(), acknowledged };
        Sender { setup, clock, client: http_client(), sent }
    }

    /// Sends rounds until they are done or `stop` is cancelled.
    pub(super) async fn run(mut self, bodies: &mut dyn BodySource) -> Result<Sent, SendError> {
        let mut pace = Pace::new(self.setup.options.rate, self.setup.workload.connections);
        let mut base = None;
        for round in 0..self.setup.options.rounds.unwrap_or(u32::MAX) {
            let this = self.base(round, base);
            base = Some(this);
            while let Some(next) = bodies.next(round, this)? {
                pace.wait(next.body.sample_count, &self.setup.stop).await;
                if self.setup.stop.is_cancelled() {
                    return Ok(self.sent);
                }
                self.send(next, round, this).await?;
            }
        }
        Ok(self.sent)
    }

    /// Timestamp of a round's first sample. The wall clock's rounds end now, and never go back.
    fn base(&self, round: u32, previous: Option<Timestamp>) -> Timestamp {
        match self.setup.workload.timestamps {
            TimestampSource::Synthetic => self.setup.workload.synthetic_base(round),
            TimestampSource::Wall => {
                let behind = self.setup.workload.round_span() - self.setup.workload.step;
                let now = self.clock.now().saturating_sub(behind);
                let earliest = match previous {
                    // A single sample a round needs no more than the next millisecond.
                    Some(previous) => previous.saturating_add(behind + 1),
                    None => 0,
                };
                now.max(earliest)
            }
        }
    }

    async fn send(
        &mut self,
        next: NextBody<'_>,
        round: u32,
        base: Timestamp,
    ) -> Result<(), SendError> {
        let record =
            Record { acknowledged: false, lane: next.lane, request: next.request, round, base };
        self.note(record)?;
        match self.send_until_answered(&next.body, next.tenant).await? {
            Outcome::Acknowledged => {
                self.note(Record { acknowledged: true, ..record })?;
                let samples = u64::from(next.body.sample_count);
                self.sent.tally.acknowledged_requests += 1;
                self.sent.tally.acknowledged_samples += samples;
                self.sent.tally.acknowledged_bytes += next.body.bytes.len() as u64;
                self.setup.progress.samples.fetch_add(samples, Ordering::Relaxed);
            }
            Outcome::NotAcknowledged => {
                self.sent.tally.unacknowledged_samples += u64::from(next.body.sample_count);
            }
        }
        self.setup.progress.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn note(&mut self, record: Record) -> Result<(), SendError> {
        if let Some(file) = self.setup.acked_file {
            file.append(record)?;
        }
        if let Some(acknowledged) = &mut self.sent.acknowledged {
            acknowledged.note(record);
        }
        Ok(())
    }

    /// Retries what a retry may heal: 5xx, 429, and errors of the connection.
    async fn send_until_answered(
        &mut self,
        body: &Body,
        tenant: Option<&str>,
    ) -> Result<Outcome, SendError> {
        let give_up = Instant::now() + self.setup.options.retry_for;
        let mut delay = RETRY_DELAY_FIRST;
        loop {
            let request = self.request(body, tenant)?;
            let began = Instant::now();
            let answer =
                tokio::time::timeout(self.setup.options.timeout, self.attempt(request)).await;
            self.sent.tally.latencies.record(began.elapsed());
            let (retry_after, failure) = match answer {
                Ok(Ok(answer)) => {
                    self.sent.tally.count_status(answer.status, &answer.text);
                    if answer.status.is_success() {
                        return Ok(Outcome::Acknowledged);
                    }
                    if !is_retryable(answer.status) {
                        return Ok(Outcome::NotAcknowledged);
                    }
                    let line = answer.text.lines().next().unwrap_or_default();
                    (answer.retry_after, format!("{}: {line}", answer.status))
                }
                Ok(Err(error)) => (None, self.no_answer(error.to_string())),
                Err(_elapsed) => (None, self.no_answer("no answer within the timeout".to_owned())),
            };
            *self.setup.progress.retried.lock() = Some(failure);
            let wait =
                retry_after.map_or(delay, |after| after.clamp(RETRY_DELAY_FIRST, RETRY_AFTER_MAX));
            delay = (delay * 2).min(RETRY_DELAY_MAX);
            if Instant::now() + wait > give_up {
                return Ok(Outcome::NotAcknowledged);
            }
            tokio::select! {
                () = self.setup.stop.cancelled() => return Ok(Outcome::NotAcknowledged),
                () = tokio::time::sleep(wait) => self.sent.tally.retries += 1,
            }
        }
    }

    /// Counts an attempt without an answer.
    fn no_answer(&mut self, reason: String) -> String {
        self.sent.tally.count_transport_error(&reason);
        reason
    }

    fn request(
        &self,
        body: &Body,
        tenant: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, SendError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.setup.options.write_url.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::CONTENT_ENCODING, "snappy")
            .header("X-Prometheus-Remote-Write-Version", "0.1.0");
        if let Some(tenant) = tenant {
            request = request.header(self.setup.workload.tenant_header.as_str(), tenant);
        }
        request.body(Full::new(body.bytes.clone())).map_err(|source| SendError::Request {
            url: self.setup.options.write_url.clone(),
            source,
        })
    }

    async fn attempt(&self, request: Request<Full<Bytes>>) -> Result<Answer, AttemptError> {
        let response = self.client.request(request).await?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let text = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(AttemptError::Body)?
            .to_bytes();
        Ok(Answer { status, retry_after, text: String::from_utf8_lossy(&text).into_owned() })
    }
}

struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    text: String,
}

#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("{}", root_cause(.0))]
    Send(#[from] hyper_util::client::legacy::Error),
    #[error("answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// The innermost message: "connection refused" says more than "client error (Connect)".
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn is_retryable(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// The requests of a connection, round by round.
pub trait BodySource {
    /// The next request of the round; `None` ends the round.
    fn next(&mut self, round: u32, base: Timestamp) -> Result<Option<NextBody<'_>>, SendError>;
}

/// A body and where it belongs.
pub struct NextBody<'a> {
    pub lane: u32,
    pub request: u32,
    pub tenant: Option<&'a str>,
    pub body: Body,
}

impl<S: BodySource + ?Sized> BodySource for Box<S> {
    fn next(&mut self, round: u32, base: Timestamp) -> Result<Option<NextBody<'_>>, SendError> {
        (**self).next(round, base)
    }
}

/// Makes bodies when they are asked for.
pub struct EncodedOnDemand<'a> {
    lanes: Vec<(u32, &'a Lane, BodyEncoder<'a>)>,
    lane: usize,
    request: u32,
}

impl<'a> EncodedOnDemand<'a> {
    /// The lanes of one connection, each with its index.
    pub fn new(workload: &'a Workload, lanes: &'a [Lane], connection: u32) -> EncodedOnDemand<'a> {
        let lanes = lanes
            .iter()
            .enumerate()
            .filter(|(_, lane)| lane.connection == connection)
            .map(|(index, lane)| (index as u32, lane, BodyEncoder::new(workload, lane)))
            .collect();
        EncodedOnDemand { lanes, lane: 0, request: 0 }
    }
}

impl BodySource for EncodedOnDemand<'_> {
    fn next(&mut self, round: u32, base: Timestamp) -> Result<Option<NextBody<'_>>, SendError> {
        let past_the_lane = self
            .lanes
            .get(self.lane)
            .is_some_and(|(_, lane, _)| self.request >= lane.request_count);
        if past_the_lane {
            self.lane += 1;
            self.request = 0;
        }
        let Some((index, lane, encoder)) = self.lanes.get_mut(self.lane) else {
            self.lane = 0;
            return Ok(None);
        };
        let request = self.request;
        self.request += 1;
        let body = encoder.encode(request, round, base)?;
        Ok(Some(NextBody { lane: *index, request, tenant: lane.tenant.as_deref(), body }))
    }
}

/// Bodies that were all made before the first was sent. A copy shares their bytes.
#[derive(Clone)]
pub struct Pregenerated {
    /// By lane.
    tenants: Arc<[Option<String>]>,
    bodies: std::vec::IntoIter<PregeneratedBody>,
}

#[derive(Clone)]
struct PregeneratedBody {
    round: u32,
    lane: u32,
    request: u32,
    body: Body,
}

impl Pregenerated {
    /// Makes the bodies of one connection for the first `rounds` synthetic rounds.
    pub fn new(
        workload: &Workload,
        lanes: &[Lane],
        connection: u32,
        rounds: u32,
    ) -> Result<Pregenerated, SendError> {
        let mut on_demand = EncodedOnDemand::new(workload, lanes, connection);
        let mut bodies = Vec::new();
        for round in 0..rounds {
            while let Some(next) = on_demand.next(round, workload.synthetic_base(round))? {
                let NextBody { lane, request, body, .. } = next;
                bodies.push(PregeneratedBody { round, lane, request, body });
            }
        }
        let tenants = lanes.iter().map(|lane| lane.tenant.clone()).collect();
        Ok(Pregenerated { tenants, bodies: bodies.into_iter() })
    }
}

impl BodySource for Pregenerated {
    fn next(&mut self, round: u32, _base: Timestamp) -> Result<Option<NextBody<'_>>, SendError> {
        if self.bodies.as_slice().first().is_none_or(|body| body.round != round) {
            return Ok(None);
        }
        let tenants = &self.tenants;
        Ok(self.bodies.next().map(|PregeneratedBody { lane, request, body, .. }| NextBody {
            lane,
            request,
            tenant: tenants.get(lane as usize).and_then(|tenant| tenant.as_deref()),
            body,
        }))
    }
}

/// Spreads a connection's requests evenly over time.
struct Pace {
    samples_per_second: Option<f64>,
    began: Instant,
    samples: u64,
}

impl Pace {
    fn new(rate: Option<f64>, connections: u32) -> Pace {
        let samples_per_second = rate.map(|rate| rate / f64::from(connections));
        Pace { samples_per_second, began: Instant::now(), samples: 0 }
    }

    /// Waits until the next request of `sample_count` samples is due.
    async fn wait(&mut self, sample_count: u32, stop: &CancellationToken) {
        let Some(rate) = self.samples_per_second else { return };
        let due = self.began + Duration::from_secs_f64(self.samples as f64 / rate);
        self.samples += u64::from(sample_count);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep_until(due) => {}
        }
    }
}
