//! TLS towards peers: `--remote-write.client-tls-*`.
//!
//! Everything is read and checked at start. The certificate that this node shows is read again for
//! each connection, so that a renewed one is used without a restart; if it cannot be read, the last
//! good one is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What the flags say.
#[derive(Clone, Debug, Default)]
pub struct ClientTlsOptions {
    /// `-cert` and `-key`: what this node shows.
    pub identity: Option<Identity>,
    /// `-ca`: who may sign a peer's certificate; without it, whom the system trusts.
    pub ca: Option<PathBuf>,
    /// `-skip-verify`: any certificate will do.
    pub skip_verify: bool,
    /// `--remote-write.client-server-name`: the name in peers' certificates; without it, the host
    /// in their address.
    pub server_name: Option<String>,
    /// `-min-version`
    pub version_min: TlsVersion,
}

/// Files of a certificate chain and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Versions below 1.2 are not spoken; who allows them gets 1.2 at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    V1_2,
    #[default]
    V1_3,
}

/// Settings that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {source}", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{}: no certificate in it", .0.display())]
    NoCertificate(PathBuf),
    #[error("{}: {source}", path.display())]
    Certificate { path: PathBuf, source: rustls::Error },
    #[error("server name {0:?}: {1}")]
    ServerName(String, InvalidDnsNameError),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// Makes connections to peers private.
pub struct ClientTls {
    options: ClientTlsOptions,
    server_name: Option<ServerName<'static>>,
    trust: Trust,
    /// The last that could be made.
    config: ArcSwap<ClientConfig>,
}

/// Whose certificates are taken.
#[derive(Clone)]
enum Trust {
    Roots(Arc<RootCertStore>),
    Anybody,
}

impl ClientTls {
    /// Reads the files.
    pub fn load(options: ClientTlsOptions) -> Result<ClientTls, TlsError> {
        let trust = match (&options.ca, options.skip_verify) {
            (_, true) => Trust::Anybody,
            (Some(ca), false) => Trust::Roots(Arc::new(read_roots(ca)?)),
            (None, false) => Trust::Roots(Arc::new(system_roots())),
        };
        let name = options.server_name.as_ref();
        let server_name = name.map(|name| parse_name(name)).transpose()?;
        let config = build(&options, &trust)?;
        Ok(ClientTls { options, server_name, trust, config: ArcSwap::from_pointee(config) })
    }

    /// Shakes hands with the peer at `address`, which is `host:port`.
    pub async fn connect(
        &self,
        address: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => {
                let name = parse_name(host_of(address));
                name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?
            }
        };
        TlsConnector::from(self.config()).connect(name, stream).await
    }

    /// With the certificate as it is now.
    fn config(&self) -> Arc<ClientConfig> {
        if self.options.identity.is_some() {
            match build(&self.options, &self.trust) {
                Ok(config) => self.config.store(Arc::new(config)),
                Err(error) => tracing::warn!(err = %error, "keeping the last client certificate"),
            }
        }
        self.config.load_full()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}

fn build(options: &ClientTlsOptions, trust: &Trust) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: &[_] = match options.version_min {
        TlsVersion::V1_2 => rustls::ALL_VERSIONS,
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
    let builder = match trust {
        Trust::Roots(roots) => builder.with_root_certificates(roots.clone()),
        Trust::Anybody => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
    };
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(Identity { cert, key }) => {
            let chain = read_certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|source| TlsError::Pem { path: key.clone(), source })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|source| TlsError::Certificate { path: cert.clone(), source })?
        }
    };
    // gRPC servers of Go hang up on clients that do not ask for it.
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem_error = |source| TlsError::Pem { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(path).map_err(pem_error)?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(pem_error)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(path.to_owned()));
    }
    Ok(certificates)
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|source| TlsError::Certificate { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(err = %error, "a certificate that the system trusts cannot be read");
    }
    let mut roots = RootCertStore::empty();
    // Systems have some that are too old to be understood.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!("the system trusts no certificate, so no peer can be verified");
    }
    roots
}

fn parse_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned())
        .map_err(|error| TlsError::ServerName(name.to_owned(), error))
}

fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Takes any certificate, but its holder must hold the key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
