//! The connection to a peer, over HTTP/2 or Cap'n Proto's RPC, kept by a task of its own.
//!
//! The task dials at once, and again whenever the connection ends, resolving the name anew each
//! time, so that a peer is found under a new address. A call that finds no connection has it dial
//! once more and waits for that, so a peer is used as soon as it listens; only one whose dialling
//! takes long to fail is not waited for. Nothing is sent on an idle connection: grpc-go closes those
//! that are pinged.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use bytes::buf::Chain;
use http::uri::Scheme;
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use crate::peer::capnproto;
use crate::peer::tls::ClientTls;

/// Body of a call.
pub type CallBody = Full<Chain<Bytes, Bytes>>;

/// Between failed attempts: dialling costs a peer nothing, and one that is back is to be used soon.
/// No call makes the pause shorter than the shortest.
const DIAL_PAUSE_MIN: Duration = Duration::from_millis(50);
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(1);

/// An attempt that takes longer to fail is one that calls do not wait for.
const QUICK_FAILURE_MAX: Duration = Duration::from_millis(250);

/// Time for one address to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of a connection.
#[derive(Clone)]
pub enum Link {
    /// Being dialled, for the first time or after a connection that worked.
    Dialling,
    Up(Connection),
    /// The last attempt failed; others follow.
    Down {
        reason: Arc<str>,
        was_quick: bool,
    },
}

/// A connection that may be used by many calls at once.
#[derive(Clone)]
pub struct Connection {
    pub transport: Transport,
    /// Rises with each connection.
    pub number: u64,
}

/// What calls are made over.
#[derive(Clone)]
pub enum Transport {
    Grpc { sender: SendRequest<CallBody>, scheme: Scheme, merging: Arc<Merging> },
    CapnProto(capnproto::Client),
}

/// Whether a connection takes merged messages: once the peer has said so, unless something on the
/// way does not let them through. Another program under the same address has another connection.
#[derive(Default)]
pub struct Merging(AtomicU8);

impl Merging {
    const UNKNOWN: u8 = 0;
    const TAKEN: u8 = 1;
    const BARRED: u8 = 2;

    /// The peer has said that it takes them.
    pub fn allow(&self) {
        let (before, after) = (Merging::UNKNOWN, Merging::TAKEN);
        // What is barred stays so.
        let _ = self.0.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// One was answered as no write is.
    pub fn bar(&self) {
        self.0.store(Merging::BARRED, Ordering::Relaxed);
    }

    fn is_allowed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Merging::TAKEN
    }
}

/// How a peer is dialled.
#[derive(Clone)]
pub enum Dialler {
    /// `None` for plain text.
    Grpc(Option<Arc<ClientTls>>),
    /// Plain TCP.
    CapnProto,
}

/// Keeps a connection to one address until dropped.
pub struct LinkKeeper {
    link: watch::Receiver<Link>,
    leave: Arc<Leave>,
    /// Told when a call is in want of a connection.
    wanted: Arc<Notify>,
    task: JoinHandle<()>,
}

impl LinkKeeper {
    /// `address` is `host:port`. Must be called within a runtime.
    pub fn start(address: Arc<str>, dialler: Dialler) -> LinkKeeper {
        let (sender, link) = watch::channel(Link::Dialling);
        let (leave, wanted) = (Arc::new(Leave::default()), Arc::new(Notify::new()));
        let task = tokio::spawn(keep(address, dialler, sender, leave.clone(), wanted.clone()));
        LinkKeeper { link, leave, wanted, task }
    }

    /// The connection, waited for while it is being dialled, and another than `except`. An error
    /// tells why there is none.
    pub async fn connection(&self, except: Option<u64>) -> Result<Connection, Arc<str>> {
        let mut link = self.link.clone();
        let mut has_asked = false;
        loop {
            match &*link.borrow_and_update() {
                Link::Up(connection) if Some(connection.number) == except => {}
                Link::Up(connection) => return Ok(connection.clone()),
                Link::Down { was_quick: true, .. } if !has_asked => {
                    has_asked = true;
                    self.wanted.notify_one();
                }
                Link::Down { reason, .. } => return Err(reason.clone()),
                Link::Dialling => {}
            }
            if link.changed().await.is_err() {
                return Err("the peer has left the ring".into());
            }
        }
    }

    /// Tells why no connection can be had now. Waits only for an attempt that a call brings about,
    /// and only as long as one is likely to take that fails.
    pub async fn check_reachable(&self) -> Result<(), Arc<str>> {
        match self.state() {
            Link::Dialling | Link::Up(_) => Ok(()),
            Link::Down { .. } => {
                let attempt = self.connection(None);
                let attempt = tokio::time::timeout(DIAL_PAUSE_MIN + QUICK_FAILURE_MAX, attempt);
                attempt.await.map_or(Ok(()), |connected| connected.map(drop))
            }
        }
    }

    /// Whether the connection at this moment is one that takes merged messages.
    pub fn takes_merged(&self) -> bool {
        match &*self.link.borrow() {
            Link::Up(connection) => match &connection.transport {
                Transport::Grpc { merging, .. } => merging.is_allowed(),
                Transport::CapnProto(client) => client.takes_merged(),
            },
            Link::Dialling | Link::Down { .. } => false,
        }
    }

    /// The state at this moment.
    pub fn state(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Leaves the connection with this number, which no longer answers, for a new one. Calls under
    /// way on it may still finish.
    pub fn leave(&self, number: u64) {
        // A late call on a connection that was left long ago must not hide a newer wish.
        self.leave.number.fetch_max(number, Ordering::Relaxed);
        self.leave.told.notify_one();
    }
}

/// Which connection is to be left.
#[derive(Default)]
struct Leave {
    number: AtomicU64,
    told: Notify,
}

impl Leave {
    async fn wait_for(&self, number: u64) {
        loop {
            self.told.notified().await;
            // It may be a connection that has been left already.
            if self.number.load(Ordering::Relaxed) >= number {
                return;
            }
        }
    }
}

impl Drop for LinkKeeper {
    fn drop(&mut self) {
        // The connection ends when its last call has.
        self.task.abort();
    }
}

async fn keep(
    address: Arc<str>,
    dialler: Dialler,
    link: watch::Sender<Link>,
    leave: Arc<Leave>,
    wanted: Arc<Notify>,
) {
    let mut number = 0;
    let mut pause = DIAL_PAUSE_MIN;
    let mut outage = Outage::default();
    loop {
        let begun = Instant::now();
        let reason: Arc<str> = match dial(&address, &dialler).await {
            Ok((transport, ended)) => {
                number += 1;
                let begun = Instant::now();
                link.send_replace(Link::Up(Connection { transport, number }));
                let why = tokio::select! {
                    why = ended => why,
                    () = leave.wait_for(number) => String::new(),
                    // One that is closed at once is no news.
                    never = outage.end_if_it_lasts(&address) => match never {},
                };
                if begun.elapsed() >= DIAL_PAUSE_MAX {
                    pause = DIAL_PAUSE_MIN;
                    link.send_replace(Link::Dialling);
                    continue;
                }
                format!("connection closed at once{why}").into()
            }
            Err(error) => error.to_string().into(),
        };
        outage.go_on(&address, &reason);
        let was_quick = begun.elapsed() <= QUICK_FAILURE_MAX;
        link.send_replace(Link::Down { reason, was_quick });
        let ended = Instant::now();
        let asked = async {
            wanted.notified().await;
            tokio::time::sleep_until(ended + DIAL_PAUSE_MIN).await;
        };
        // Either way.
        let _ = tokio::time::timeout(pause.mul_f64(0.5 + 0.5 * super::jitter()), asked).await;
        pause = (pause * 2).min(DIAL_PAUSE_MAX);
    }
}

/// A time without connection, told once if it lasts: a peer that restarts is no news.
#[derive(Default)]
struct Outage {
    since: Option<Instant>,
    is_told: bool,
}

impl Outage {
    const TOLD_AFTER: Duration = Duration::from_secs(1);

    fn go_on(&mut self, address: &str, reason: &str) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !self.is_told && since.elapsed() >= Outage::TOLD_AFTER {
            self.is_told = true;
            tracing::warn!(peer = address, err = reason, "peer cannot be reached");
        }
    }

    /// Ends the outage once a connection has lasted.
    async fn end_if_it_lasts(&mut self, address: &str) -> Infallible {
        tokio::time::sleep(DIAL_PAUSE_MAX).await;
        if std::mem::take(self).is_told {
            tracing::info!(peer = address, "peer is reached again");
        }
        std::future::pending().await
    }
}

/// Ends with a connection, and says why.
type Ended = Pin<Box<dyn Future<Output = String> + Send>>;

/// Why an address could not be reached.
#[derive(Debug)]
enum DialError {
    Resolve(io::Error),
    NoAddress,
    Connect(io::Error),
    Tls(io::Error),
    Handshake(hyper::Error),
    Bootstrap(io::Error),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::Resolve(error) => write!(f, "resolve: {error}"),
            DialError::NoAddress => write!(f, "resolve: the name has no address"),
            DialError::Connect(error) => write!(f, "connect: {error}"),
            DialError::Tls(error) => write!(f, "tls: {error}"),
            DialError::Handshake(error) => write!(f, "handshake: {error}"),
            DialError::Bootstrap(error) => write!(f, "bootstrap: {error}"),
        }
    }
}

/// Connects to the first address of the name that accepts. The second value ends with the
/// connection.
async fn dial(address: &str, dialler: &Dialler) -> Result<(Transport, Ended), DialError> {
    let candidates = tokio::net::lookup_host(address).await.map_err(DialError::Resolve)?;
    let mut failure = DialError::NoAddress;
    for candidate in candidates {
        match in_time(TcpStream::connect(candidate)).await {
            Ok(stream) => {
                // Small frames must not wait for the answer to earlier ones.
                stream.set_nodelay(true).map_err(DialError::Connect)?;
                let tls = match dialler {
                    Dialler::Grpc(Some(tls)) => tls,
                    Dialler::Grpc(None) => return handshake(stream, Scheme::HTTP).await,
                    Dialler::CapnProto => {
                        let connected = in_time(capnproto::Client::connect(stream)).await;
                        let (client, ended) = connected.map_err(DialError::Bootstrap)?;
                        let ended = async {
                            // It says nothing, and a panic is logged.
                            let _ = ended.await;
                            String::new()
                        };
                        return Ok((Transport::CapnProto(client), Box::pin(ended)));
                    }
                };
                let agreed = in_time(tls.connect(address, stream)).await;
                return handshake(agreed.map_err(DialError::Tls)?, Scheme::HTTPS).await;
            }
            Err(error) => failure = DialError::Connect(error),
        }
    }
    Err(failure)
}

/// What a connection ended with. A peer that does not like our certificate says so only here.
fn why(ended: &Result<hyper::Result<()>, JoinError>) -> String {
    use std::error::Error as _;
    let Ok(Err(error)) = ended else { return String::new() };
    error.source().map_or_else(|| format!(": {error}"), |cause| format!(": {cause}"))
}

/// A step of dialling.
async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = tokio::time::timeout(CONNECT_TIMEOUT, step).await;
    done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn handshake<S>(stream: S, scheme: Scheme) -> Result<(Transport, Ended), DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(DialError::Handshake)?;
    // Why it ended is told to the calls that were under way.
    let connection = tokio::spawn(connection);
    let ended = async { why(&connection.await) };
    let transport = Transport::Grpc { sender, scheme, merging: Arc::default() };
    Ok((transport, Box::pin(ended)))
}
