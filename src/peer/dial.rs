//! From a name to a connection over which a peer has spoken.
//!
//! Every step has a deadline, and a connection counts for nothing until the other end has said its
//! first word in the protocol: what hangs accepts connections all the same, as its kernel does that.
//! A name may have several addresses, of both kinds in turn; one over which nothing is said at once
//! does not hold up the next, and the first to speak is taken.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::uri::{Authority, Scheme};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use crate::error::io_cause;
use crate::model::target::{Target, TargetError};
use crate::peer::capnproto;
use crate::peer::link::{LinkOptions, Origin, Transport};
use crate::peer::socket::{self, Heard, Listening};
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

impl Dialler {
    /// The port of an endpoint that names none.
    fn port(&self) -> u16 {
        match self {
            // grpc-go's.
            Dialler::Grpc(_) => 443,
            Dialler::CapnProto => 19391,
        }
    }
}

/// What dialling has brought about.
pub(super) struct Dialled {
    pub(super) transport: Transport,
    pub(super) ended: Ended,
    /// What is heard on the connection.
    pub(super) heard: Arc<Heard>,
    pub(super) address: SocketAddr,
}

/// Ends with a connection, and says why.
pub(super) type Ended = Pin<Box<dyn Future<Output = String> + Send>>;

/// Why an address could not be reached.
#[derive(Debug)]
pub(super) enum DialError {
    /// The endpoint says no place.
    Target(TargetError),
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
    /// The endpoint is no name that HTTP/2 takes.
    Authority(String),
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
            DialError::Target(_)
            | DialError::Resolve(_)
            | DialError::NoAddress
            | DialError::Tls(_)
            | DialError::Handshake(_)
            | DialError::WantsTls
            | DialError::NoHttp2
            | DialError::Authority(_)
            | DialError::HungUp(_) => false,
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DialError::Target(error) => write!(f, "endpoint: {error}"),
            DialError::Resolve(error) => write!(f, "resolve: {}", io_cause(error)),
            DialError::NoAddress => f.write_str("resolve: the name has no address"),
            DialError::Connect(error) => write!(f, "connect: {}", io_cause(error)),
            DialError::Tls(words) => write!(f, "tls: {words}"),
            DialError::Handshake(error) => write!(f, "handshake: {error}"),
            DialError::Bootstrap(error) => write!(f, "bootstrap: {}", io_cause(error)),
            DialError::Silent => f.write_str("the peer accepts connections and says nothing"),
            DialError::WantsTls => f.write_str("the peer wants TLS"),
            DialError::NoHttp2 => f.write_str("the peer does not speak HTTP/2, as gRPC does"),
            DialError::Authority(words) => write!(f, "endpoint: {words}"),
            DialError::HungUp(words) => f.write_str(words),
        }
    }
}

/// Dials the peer that an endpoint names, at the address that `prefer` puts first.
pub(super) async fn dial(
    endpoint: &str,
    dialler: &Dialler,
    options: LinkOptions,
    prefer: impl FnOnce(&mut Vec<SocketAddr>),
) -> Result<Dialled, DialError> {
    let target = &Target::parse(endpoint, dialler.port()).map_err(DialError::Target)?;
    let found = in_time((options.resolve)(target)).await.map_err(DialError::Resolve)?;
    let mut candidates = in_turn(found);
    prefer(&mut candidates);
    let attempt = |address| attempt(target, address, dialler, options.user_timeout);
    first_to_speak(candidates, attempt).await
}

/// Addresses of both kinds in turn, beginning with the first, each once: where one of the protocols
/// goes nowhere, the second attempt is with the other.
fn in_turn(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first_kind = found.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        found.iter().partition(|address| address.is_ipv4() == is_first_kind);
    let mut in_turn = Vec::with_capacity(found.len());
    for i in 0..first.len().max(second.len()) {
        for address in [first.get(i), second.get(i)].into_iter().flatten() {
            if !in_turn.contains(address) {
                in_turn.push(*address);
            }
        }
    }
    in_turn
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
    target: &Target,
    address: SocketAddr,
    dialler: &Dialler,
    user_timeout: Duration,
) -> Result<Dialled, DialError> {
    let stream = in_time(socket::connect(address, user_timeout)).await;
    let stream = stream.map_err(DialError::Connect)?;
    let (transport, ended, heard) = match dialler {
        Dialler::Grpc(None) => {
            let unexplained = || "the peer hung up without a word, as one does that wants TLS";
            let origin = origin(Scheme::HTTP, &target.authority)?;
            handshake(stream, origin, |_| unexplained().to_owned()).await?
        }
        Dialler::Grpc(Some(tls)) => {
            let host = &target.host;
            let agreed = match tokio::time::timeout(STEP_TIMEOUT, tls.connect(host, stream)).await {
                Ok(agreed) => agreed.map_err(DialError::Tls)?,
                Err(_) => return Err(DialError::Tls(tls.unanswered())),
            };
            // As grpc-go does: who goes by another name is called by it.
            let origin = origin(Scheme::HTTPS, tls.server_name().unwrap_or(&target.authority))?;
            handshake(agreed, origin, |heard| tls.hung_up(heard.tls_error())).await?
        }
        Dialler::CapnProto => {
            let heard = Arc::<Heard>::default();
            let connected = in_time(capnproto::Client::connect(stream, heard.clone())).await;
            let (client, ended) = connected.map_err(DialError::Bootstrap)?;
            let ended = async {
                // It says nothing, and a panic is logged.
                let _ = ended.await;
                String::new()
            };
            (Transport::CapnProto(client), Box::pin(ended) as Ended, heard)
        }
    };
    Ok(Dialled { transport, ended, heard, address })
}

fn origin(scheme: Scheme, authority: &str) -> Result<Origin, DialError> {
    let authority = Authority::try_from(authority);
    let authority = authority.map_err(|error| DialError::Authority(error.to_string()))?;
    Ok(Origin { scheme, authority })
}

/// Says hello in HTTP/2, and waits for the peer to do so. `hung_up` finds words for one that does
/// not.
async fn handshake<S>(
    stream: S,
    origin: Origin,
    hung_up: impl FnOnce(&Heard) -> String,
) -> Result<(Transport, Ended, Arc<Heard>), DialError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, heard) = Listening::new(stream);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .map_err(DialError::Handshake)?;
    // Why it ended is told to the calls that were under way. It ends when nobody can call any more,
    // and with this attempt if another address is faster.
    let mut connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let first = tokio::select! {
        biased;
        first = heard.first_word() => first,
        ended = &mut connection => {
            tracing::debug!(why = why(&ended), "connection to a peer ended before its first word");
            return Err(DialError::HungUp(hung_up(&heard)));
        }
        () = tokio::time::sleep(STEP_TIMEOUT) => return Err(DialError::Silent),
    };
    match first.first() {
        // The length of a frame of settings, which are a few.
        Some(0) => {}
        // The head of a TLS alert.
        Some(0x15) => return Err(DialError::WantsTls),
        _ => return Err(DialError::NoHttp2),
    }
    let connection = connection.detach();
    let ended = async { why(&connection.await) };
    let transport =
        Transport::Grpc { sender, origin, merging: Arc::default(), heard: heard.clone() };
    Ok((transport, Box::pin(ended), heard))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_kinds_are_tried_in_turn() {
        let of = |addresses: &[&str]| -> Vec<SocketAddr> {
            addresses.iter().map(|address| address.parse().unwrap()).collect()
        };
        let found = of(&["[::1]:1", "[::2]:1", "[::1]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1"]);
        let expected = of(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"]);
        assert_eq!(in_turn(found), expected);
        assert_eq!(in_turn(of(&["1.1.1.1:1"])), of(&["1.1.1.1:1"]));
        assert_eq!(in_turn(Vec::new()), []);
    }
}
