//! TLS of a listener: `--grpc-server-tls-*` and `--remote-write.server-tls-*`.
//!
//! A handshake has a deadline, and only so many are under way at a time. A client that connects and
//! says nothing is none of them: until its first byte it costs its socket, as on a plain port.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::sign::SingleCertAndKey;
use rustls::{ServerConfig, SupportedCipherSuite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::metrics::{Counter, Registry};
use crate::tls::verify::Verifier;
use crate::tls::words::Other;
use crate::tls::{Authorities, FromFiles, Identity, TlsError, TlsFile, TlsVersion, provider};

/// From the connection to the end of its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes under way on one listener, some 20 KB each. Others wait within their deadline.
const HANDSHAKES_MAX: usize = 512;

/// What the flags say.
#[derive(Clone, Debug)]
pub struct ServerTlsOptions {
    /// `-cert` and `-key`: what this node shows.
    pub identity: Identity,
    /// `-client-ca`: who must have signed a client's certificate; without it, none is asked for.
    pub client_ca: Option<TlsFile>,
    /// `-min-version`
    pub version_min: TlsVersion,
    /// `-ciphers`: those below TLS 1.3, whose own cannot be chosen, as in Go. None for all.
    pub cipher_suites: Option<Vec<SupportedCipherSuite>>,
    /// `-curves`; none for those that are usual.
    pub curves: Option<Vec<&'static dyn SupportedKxGroup>>,
}

/// Makes the connections to a listener private.
pub struct ServerTls {
    options: ServerTlsOptions,
    protocols: &'static [&'static [u8]],
    config: FromFiles<ServerConfig>,
    places: Arc<Semaphore>,
    failed: Counter,
}

impl ServerTls {
    /// Reads the files. `flags` is what the names of the flags begin with; `protocols` are those of
    /// ALPN, the preferred first.
    pub fn load(
        flags: &'static str,
        options: ServerTlsOptions,
        protocols: &'static [&'static [u8]],
        registry: &Registry,
    ) -> Result<ServerTls, TlsError> {
        let identity = options.identity.clone();
        let mut files = vec![identity.cert, identity.key];
        files.extend(options.client_ca.clone());
        let config = FromFiles::new(flags, files, registry, || build(&options, protocols))?;
        let failed = registry.counter_vec(
            "ringest_tls_handshakes_failed_total",
            "Connections that ended before their TLS handshake did.",
            &["flags"],
        );
        let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        show_handshakes(registry, flags, places.clone());
        Ok(ServerTls { options, protocols, config, places, failed: failed.with(&[flags]) })
    }

    /// Shakes hands with a client, with the certificate as it is now.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let client = stream.peer_addr();
        let accepted = timeout(HANDSHAKE_TIMEOUT, self.shake_hands(stream)).await;
        let accepted = accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = &accepted {
            self.failed.inc();
            let client = client.map(|client| client.to_string()).unwrap_or_default();
            let error = Other::CLIENT.failed(error);
            tracing::debug!(client, err = error, "TLS handshake failed");
        }
        accepted
    }

    async fn shake_hands(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        stream.peek(&mut [0]).await?;
        let _place = self.places.acquire().await.map_err(io::Error::other)?;
        let config = self.config.current(|| build(&self.options, self.protocols));
        TlsAcceptor::from(config).accept(stream).await
    }
}

fn show_handshakes(registry: &Registry, flags: &str, places: Arc<Semaphore>) {
    let gauge = |name, help| registry.gauge_vec(name, help, &["flags"]).with(&[flags]);
    let limit = gauge(
        "ringest_tls_handshakes_under_way_max",
        "TLS handshakes that may be under way; other clients wait.",
    );
    limit.set(HANDSHAKES_MAX as f64);
    let used = gauge("ringest_tls_handshakes_under_way", "TLS handshakes under way.");
    registry.on_collect(move || {
        used.set(HANDSHAKES_MAX.saturating_sub(places.available_permits()) as f64);
    });
}

fn build(options: &ServerTlsOptions, protocols: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(offered(options));
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(options.version_min.and_above())?;
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let trusted = Authorities::read(file)?.with_usable_keys(file)?;
            let verifier = Verifier::new(trusted, &provider);
            builder.with_client_cert_verifier(Arc::new(verifier))
        }
    };
    let identity = options.identity.read(&provider)?;
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn offered(options: &ServerTlsOptions) -> CryptoProvider {
    let mut offered = provider();
    if let Some(chosen) = &options.cipher_suites {
        offered.cipher_suites.retain(|suite| suite.tls13().is_some() || chosen.contains(suite));
    }
    if let Some(curves) = &options.curves {
        offered.kx_groups = curves.clone();
    }
    offered
}

/// Cipher suites by their names in Go, which knows four more, all weak.
fn cipher_suites() -> [(&'static str, SupportedCipherSuite); 9] {
    use aws_lc_rs::cipher_suite::*;
    [
        ("TLS_AES_128_GCM_SHA256", TLS13_AES_128_GCM_SHA256),
        ("TLS_AES_256_GCM_SHA384", TLS13_AES_256_GCM_SHA384),
        ("TLS_CHACHA20_POLY1305_SHA256", TLS13_CHACHA20_POLY1305_SHA256),
        ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        (
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
        ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
        (
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
    ]
}

/// Key exchanges by their names in Go, which knows CurveP521 and SecP384r1MLKEM1024 as well.
fn curves() -> [(&'static str, &'static dyn SupportedKxGroup); 5] {
    use aws_lc_rs::kx_group::*;
    [
        ("CurveP256", SECP256R1),
        ("CurveP384", SECP384R1),
        ("SecP256r1MLKEM768", SECP256R1MLKEM768),
        ("X25519", X25519),
        ("X25519MLKEM768", X25519MLKEM768),
    ]
}

/// The cipher suite of this name; an error lists those there are.
pub fn cipher_suite(name: &str) -> Result<SupportedCipherSuite, String> {
    by_name(&cipher_suites(), name)
}

/// The key exchange of this name; an error lists those there are.
pub fn curve(name: &str) -> Result<&'static dyn SupportedKxGroup, String> {
    by_name(&curves(), name)
}

fn by_name<T: Copy>(known: &[(&str, T)], name: &str) -> Result<T, String> {
    match known.iter().find(|(other, _)| *other == name) {
        Some((_, found)) => Ok(*found),
        None => {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            Err(names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
