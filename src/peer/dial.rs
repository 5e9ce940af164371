//! From a name to a connection over which a peer has spoken.
//!
//! Every step has a deadline, and a connection counts for nothing until the other end has said its
//! first word in the protocol: what hangs accepts connections all the same, as its kernel does that.
//! A name may have several addresses; one that does not answer at once does not hold up the next.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::uri::Scheme;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinError;

use crate::error::io_cause;
use crate::peer::capnproto;
use crate::peer::link::Transport;
use crate::peer::socket::{self, FirstWord, Listening};
use crate::peer::tls::ClientTls;

/// Time for each step of one attempt.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The next address is tried when this one has not answered for so long.
const STAGGER: Duration = Duration::from_millis(250);

/// How a peer is dialled.
#[derive(Clone)]
pub enum Dialler {
    /// `None` for plain text.
    Grpc(Option<Arc<ClientTls>>),
    /// Plain TCP.
    CapnProto,
}

/// What dialling has brought about.
pub(super) struct Dialled {
    pub(super) transport: Transport,
    pub(super) ended: Ended,
    pub(super) address: SocketAddr,
}

/// Ends with a connection, and says why.
pub(super) type Ended = Pin<Box<dyn Future<Output = String> + Send>>;

/// Why an address could not be reached.
#[derive(Debug)]
pub(super) enum DialError {
    Resolve(io::Error),
    NoAddress,
    Connect(io::Error),
    /// In words.
    Tls(String),
    Handshake(hyper::Error),
    Bootstrap(io::Error),
    /// The peer accepts connections and says nothing.
    Silent,
    WantsTls,
    NoHttp2,
    /// Instead of a first word.
    HungUp(String),
}

impl DialError {
    /// Whether all that is known is that there was no answer.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            DialError::Silent => true,
            DialError::Connect(error) | DialError::Bootstrap(error) => {
                error.kind() == io::ErrorKind::TimedOut
            }
            DialError::Resolve(_)
            | DialError::NoAddress
            | DialError::Tls(_)
            | DialError::Handshake(_)
            | DialError::WantsTls
            | DialError::NoHttp2
            | DialError::HungUp(_) => false,
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::Resolve(error) => write!(f, "resolve: {}", io_cause(error)),
            DialError::NoAddress => f.write_str("resolve: the name has no address"),
            DialError::Connect(error) => write!(f, "connect: {}", io_cause(error)),
            DialError::Tls(words) => write!(f, "tls: {words}"),
            DialError::Handshake(error) => write!(f, "handshake: {error}"),
            DialError::Bootstrap(error) => write!(f, "bootstrap: {}", io_cause(error)),
            DialError::Silent => f.write_str("the peer accepts connections and says nothing"),
            DialError::WantsTls => f.write_str("the peer wants TLS"),
            DialError::NoHttp2 => f.write_str("the peer does not speak HTTP/2, as gRPC does"),
            DialError::HungUp(words) => f.write_str(words),
        }
    }
}

/// Dials the peer at `name`, which is `host:port`, at the address that `prefer` puts first.
pub(super) async fn dial(
    name: &str,
    dialler: &Dialler,
    user_timeout: Duration,
    prefer: impl FnOnce(&mut Vec<SocketAddr>),
) -> Result<Dialled, DialError> {
    let candidates = in_time(tokio::net::lookup_host(name)).await.map_err(DialError::Resolve)?;
    let mut candidates: Vec<SocketAddr> = candidates.collect();
    prefer(&mut candidates);
    first_to_speak(candidates, |address| attempt(name, address, dialler, user_timeout)).await
}

/// Tries one address after the other, the next one when the last has failed or takes long.
async fn first_to_speak<T, F: Future<Output = Result<T, DialError>>>(
    candidates: Vec<SocketAddr>,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, DialError> {
    let mut failure = DialError::NoAddress;
    let mut attempts = FuturesUnordered::new();
    let mut candidates = candidates.into_iter();
    loop {
        attempts.extend(candidates.next().map(&attempt));
        let ended = match candidates.len() {
            0 => attempts.next().await,
            _ => match tokio::time::timeout(STAGGER, attempts.next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            },
        };
        match ended {
            Some(Ok(spoken)) => return Ok(spoken),
            Some(Err(error)) => failure = error,
            None => return Err(failure),
        }
    }
}

async fn attempt(
    name: &str,
    address: SocketAddr,
    dialler: &Dialler,
    user_timeout: Duration,
) -> Result<Dialled, DialError> {
    let stream = in_time(socket::connect(address, user_timeout)).await;
    let stream = stream.map_err(DialError::Connect)?;
    let (transport, ended) = match dialler {
        Dialler::Grpc(None) => {
            let unexplained = || "the peer hung up without a word, as one does that wants TLS";
            handshake(stream, Scheme::HTTP, |_| unexplained().to_owned()).await?
        }
        Dialler::Grpc(Some(tls)) => {
            let agreed = match tokio::time::timeout(STEP_TIMEOUT, tls.connect(name, stream)).await {
                Ok(agreed) => agreed.map_err(DialError::Tls)?,
                Err(_) => return Err(DialError::Tls(tls.unanswered())),
            };
            handshake(agreed, Scheme::HTTPS, |word| tls.hung_up(word.tls_error())).await?
        }
        Dialler::CapnProto => {
            let connected = in_time(capnproto::Client::connect(stream)).await;
            let (client, ended) = connected.map_err(DialError::Bootstrap)?;
            let ended = async {
                // It says nothing, and a panic is logged.
                let _ = ended.await;
                String::new()
            };
            (Transport::CapnProto(client), Box::pin(ended) as Ended)
        }
    };
    Ok(Dialled { transport, ended, address })
}

/// Says hello in HTTP/2, and waits for the peer to do so. `hung_up` finds words for one that does
/// not.
async fn handshake<S>(
    stream: S,
    scheme: Scheme,
    hung_up: impl FnOnce(&FirstWord) -> String,
) -> Result<(Transport, Ended), DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, word) = Listening::new(stream);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(DialError::Handshake)?;
    // Why it ended is told to the calls that were under way. It ends when nobody can call any more.
    let mut connection = tokio::spawn(connection);
    let first = tokio::select! {
        biased;
        first = word.heard() => first,
        ended = &mut connection => {
            tracing::debug!(why = why(&ended), "connection to a peer ended before its first word");
            return Err(DialError::HungUp(hung_up(&word)));
        }
        () = tokio::time::sleep(STEP_TIMEOUT) => {
            connection.abort();
            return Err(DialError::Silent);
        }
    };
    match first.first() {
        // The length of a frame of settings, which are a few.
        Some(0) => {}
        // The head of a TLS alert.
        Some(0x15) => return Err(DialError::WantsTls),
        _ => return Err(DialError::NoHttp2),
    }
    let ended = async { why(&connection.await) };
    let transport = Transport::Grpc { sender, scheme, merging: Arc::default() };
    Ok((transport, Box::pin(ended)))
}

/// What a connection ended with.
fn why(ended: &Result<hyper::Result<()>, JoinError>) -> String {
    use std::error::Error as _;
    let Ok(Err(error)) = ended else { return String::new() };
    error.source().map_or_else(|| format!(": {error}"), |cause| format!(": {cause}"))
}

/// A step of dialling.
async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = tokio::time::timeout(STEP_TIMEOUT, step).await;
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    done.unwrap_or_else(|_| Err(late()))
}
