//! Stand-in peers: programs that a ring may meet and that are not this build.
//!
//! Each is a gRPC server that reads what its own schema has and skips the rest, as protobuf wants
//! it. What it answers OK and yet does not find among what it has stored is lost.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::oneshot;

use crate::support::ports;

/// The method by which nodes of a ring hand series to one another.
pub(crate) const REMOTE_WRITE: &str = "/thanos.WriteableStore/RemoteWrite";
/// The same for the series of several replicas, between nodes of ours.
pub(crate) const MERGED_WRITE: &str = "/ringest.WriteableStore/RemoteWrite";

/// Which program it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Thanos up to 0.42.4 as an ingestor: one tenant a request, in fields 1 and 2.
    ReleasedThanos,
    /// Ringest 0.1.0 as first released, which reads all forms there were: it says that it takes
    /// merged messages, knows of no answer per series, and so answers `AlreadyExists` when it has
    /// stored some of a message and refused the rest.
    OlderRingest,
    /// Reads all that it is sent, and never answers.
    Hung,
}

/// A tenant's series with a sample: name and value of each label, time.
pub(crate) type Stored = (String, Vec<(String, String)>, i64);

/// A peer. It goes away when dropped.
pub(crate) struct StandIn {
    /// `host:port` of gRPC, by which the ring's file names it.
    pub(crate) address: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    program: Program,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// As often as it was stored.
    stored: Vec<Stored>,
    /// Series that are refused: those with this label's value.
    refused: BTreeSet<String>,
    /// Those that a database was opened for.
    tenants: BTreeSet<String>,
    calls: Vec<Call>,
}

/// A call as it came.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    path: String,
    /// What its sender was told.
    pub(crate) code: i32,
}

impl Call {
    pub(crate) fn is_merged(&self) -> bool {
        self.path == MERGED_WRITE
    }
}

impl StandIn {
    pub(crate) fn start(program: Program) -> StandIn {
        let address = format!("127.0.0.1:{}", ports::free(1)[0]);
        let listener = TcpListener::bind(&address).expect("a free port");
        listener.set_nonblocking(true).expect("a listener");
        let shared = Arc::new(Shared { program, state: Mutex::default() });
        let (stop, stopped) = oneshot::channel();
        let served = shared.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, served) => {}
                    _ = stopped => {}
                }
            });
        });
        StandIn { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Makes it refuse series that have a label of this value, as one refuses what is out of order.
    pub(crate) fn refuse(&self, value: &str) {
        self.shared.state.lock().refused.insert(value.to_owned());
    }

    /// What it has stored, sorted, as often as it was stored.
    pub(crate) fn stored(&self) -> Vec<Stored> {
        let mut stored = self.shared.state.lock().stored.clone();
        stored.sort();
        stored
    }

    /// The tenants that it has opened a database for.
    pub(crate) fn tenants(&self) -> BTreeSet<String> {
        self.shared.state.lock().tenants.clone()
    }

    /// The calls that came, in order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.shared.state.lock().calls.clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // One that panicked has failed its test by what it did not store.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // An answer of several small frames must not wait for the first to be acknowledged.
        stream.set_nodelay(true).expect("a connection");
        let shared = shared.clone();
        let service = service_fn(move |request| answer(request, shared.clone()));
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

type Answer = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    // A call that its sender gives up is not answered either way.
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let encoding = head.headers.get("grpc-encoding").cloned();
    let (code, message) = match message_of(&body, encoding.as_ref()) {
        Some(message) => shared.take(&path, &message),
        None => (13, "no message".to_owned()),
    };
    shared.state.lock().calls.push(Call { path, code });
    if shared.program == Program::Hung {
        std::future::pending::<()>().await;
    }
    let says_merged = shared.program == Program::OlderRingest && code == 0;
    Ok(respond(code, &message, says_merged))
}

fn respond(code: i32, message: &str, says_merged: bool) -> Answer {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    trailers.insert("grpc-message", HeaderValue::from_str(message).expect("a plain message"));
    // An empty message, if the call succeeds.
    let body = Bytes::from_static(if code == 0 { &[0; 5] } else { &[] });
    let body = Full::new(body).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(body.boxed());
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    if says_merged {
        headers.insert("ringest-takes-merged", HeaderValue::from_static("true"));
    }
    response
}

/// The first message of a call.
fn message_of(body: &[u8], encoding: Option<&HeaderValue>) -> Option<Vec<u8>> {
    let ([flag, len @ ..], rest) = body.split_first_chunk::<5>()?;
    let message = rest.get(..u32::from_be_bytes(*len) as usize)?;
    if *flag == 0 {
        return Some(message.to_vec());
    }
    assert_eq!(encoding.expect("an encoding"), "snappy");
    let mut plain = Vec::new();
    snap::read::FrameDecoder::new(message).read_to_end(&mut plain).ok()?;
    Some(plain)
}

impl Shared {
    /// Stores what it understands, and tells what it answers.
    fn take(&self, path: &str, message: &[u8]) -> (i32, String) {
        let read = match (self.program, path) {
            (Program::ReleasedThanos, REMOTE_WRITE) => {
                ReleasedRequest::decode(message).map(|request| vec![request.into()])
            }
            (Program::OlderRingest, REMOTE_WRITE) => PresentRequest::decode(message).map(Vec::from),
            // A merged message begins with its replica.
            (Program::OlderRingest, MERGED_WRITE) if message.first() == Some(&(3 << 3)) => {
                ReleasedRequest::decode(message).map(|request| vec![request.into()])
            }
            (Program::Hung, _) => return (0, String::new()),
            (_, path) => return (12, format!("unknown method {path}")),
        };
        let Ok(tenants) = read else { return (13, "not a WriteRequest".to_owned()) };
        let mut state = self.state.lock();
        let mut refused = 0;
        for TenantSeries { timeseries, tenant } in tenants {
            state.tenants.insert(tenant.clone());
            for series in timeseries {
                let label = |label: Label| (label.name, label.value);
                let labels: Vec<_> = series.labels.into_iter().map(label).collect();
                if labels.iter().any(|(_, value)| state.refused.contains(value)) {
                    refused += 1;
                    continue;
                }
                for sample in series.samples {
                    state.stored.push((tenant.clone(), labels.clone(), sample.timestamp));
                }
            }
        }
        match refused {
            0 => (0, String::new()),
            refused => (6, format!("out of order sample: {refused} series")),
        }
    }
}

/// `thanos.WriteRequest` as releases up to 0.42.4 have it.
#[derive(Clone, PartialEq, prost::Message)]
struct ReleasedRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
    #[prost(string, tag = "2")]
    tenant: String,
    #[prost(int64, tag = "3")]
    replica: i64,
}

/// The same in 0.43-dev.
#[derive(Clone, PartialEq, prost::Message)]
struct PresentRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
    #[prost(string, tag = "2")]
    tenant: String,
    #[prost(int64, tag = "3")]
    replica: i64,
    #[prost(message, repeated, tag = "4")]
    timeseries_tenant_data: Vec<TenantSeries>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TenantSeries {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
    #[prost(string, tag = "2")]
    tenant: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

impl From<ReleasedRequest> for TenantSeries {
    fn from(request: ReleasedRequest) -> TenantSeries {
        TenantSeries { timeseries: request.timeseries, tenant: request.tenant }
    }
}

impl From<PresentRequest> for Vec<TenantSeries> {
    fn from(request: PresentRequest) -> Vec<TenantSeries> {
        let PresentRequest { timeseries, tenant, timeseries_tenant_data, .. } = request;
        match timeseries_tenant_data.is_empty() {
            true => vec![TenantSeries { timeseries, tenant }],
            false => timeseries_tenant_data,
        }
    }
}
