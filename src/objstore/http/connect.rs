//! A connection to a host, by way of a proxy if the environment says so.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower::{Service, ServiceExt as _};

use crate::objstore::http::tls::BucketTls;

/// As in Thanos.
const CONNECT_MAX: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(30);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Arc<BucketTls>,
    handshake_timeout: Option<Duration>,
    proxies: Arc<Matcher>,
}

impl Connector {
    pub(super) fn new(
        tls: Arc<BucketTls>,
        handshake_timeout: Option<Duration>,
        proxies: Arc<Matcher>,
    ) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_MAX));
        tcp.set_keepalive(Some(KEEPALIVE));
        Connector { tcp, tls, handshake_timeout, proxies }
    }

    async fn connect(self, uri: Uri) -> Result<Stream, BoxError> {
        let is_private = uri.scheme_str() == Some("https");
        let tcp = match proxy_to(&self.proxies, &uri) {
            None => self.tcp.oneshot(uri.clone()).await?,
            Some(proxy) if is_private => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp);
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                // The proxy may never answer.
                tokio::time::timeout(CONNECT_MAX, tunnel.oneshot(uri.clone())).await??
            }
            Some(proxy) => {
                let tcp = self.tcp.oneshot(proxy.uri().clone()).await?;
                return Ok(Stream::Plain { tcp, is_proxy: true });
            }
        };
        if !is_private {
            return Ok(Stream::Plain { tcp, is_proxy: false });
        }
        let shaking = self.tls.connect(uri.host().unwrap_or_default(), tcp.into_inner());
        let tls = match self.handshake_timeout {
            None => shaking.await?,
            Some(after) => tokio::time::timeout(after, shaking).await??,
        };
        Ok(Stream::Tls(TokioIo::new(Box::new(tls))))
    }
}

/// The proxy on the way to a host. As in Go there is none to this machine.
pub(super) fn proxy_to(proxies: &Matcher, uri: &Uri) -> Option<Intercept> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if is_here { None } else { proxies.intercept(uri) }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// An open connection.
pub(super) enum Stream {
    Plain {
        tcp: TokioIo<TcpStream>,
        /// Whether the other end passes requests on, and needs their whole URL.
        is_proxy: bool,
    },
    Tls(TokioIo<Box<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Plain { is_proxy, .. } => Connected::new().proxy(*is_proxy),
            Stream::Tls(_) => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain { tcp, .. } => Pin::new(tcp).poll_read(context, into),
            Stream::Tls(tls) => Pin::new(tls).poll_read(context, into),
        }
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain { tcp, .. } => Pin::new(tcp).poll_write(context, bytes),
            Stream::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain { tcp, .. } => Pin::new(tcp).poll_flush(context),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain { tcp, .. } => Pin::new(tcp).poll_shutdown(context),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}
