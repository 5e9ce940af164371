//! TLS towards peers: `--remote-write.client-tls-*`.
//!
//! Who is trusted is known from the start. What this node shows is read again when its files have
//! changed, so that a renewed certificate is used without a restart. As in Thanos it may come later
//! than the node: until then peers that ask for it are not talked to.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::metrics::Registry;
use crate::tls::own_authority::OwnAuthorities;
use crate::tls::{Authorities, FromFiles, Identity, TlsError, TlsFile, TlsVersion, provider};

/// What the names of the flags begin with.
const FLAGS: &str = "remote-write.client-tls";

/// What the flags say.
#[derive(Clone, Debug, Default)]
pub struct ClientTlsOptions {
    /// `-cert` and `-key`: what this node shows.
    pub identity: Option<Identity>,
    /// `-ca`: who may sign a peer's certificate; without it, whom the system trusts.
    pub ca: Option<TlsFile>,
    /// `-skip-verify`: any certificate will do.
    pub skip_verify: bool,
    /// `--remote-write.client-server-name`: the name in peers' certificates; without it, the host
    /// in their address.
    pub server_name: Option<String>,
    /// `-min-version`
    pub version_min: TlsVersion,
}

/// Makes connections to peers private.
pub struct ClientTls {
    options: ClientTlsOptions,
    server_name: Option<ServerName<'static>>,
    /// None if a file says whom.
    trusted_by_system: Option<Authorities>,
    client: FromFiles<Client>,
}

/// How to connect.
struct Client {
    config: Arc<ClientConfig>,
    /// Why there is nothing to show.
    nothing_to_show: Option<String>,
}

impl ClientTls {
    /// Reads the files. Those of this node's own certificate may be missing.
    pub fn load(options: ClientTlsOptions, registry: &Registry) -> Result<ClientTls, TlsError> {
        let server_name = options.server_name.as_ref();
        let server_name = server_name.map(|name| parse_name(name)).transpose()?;
        let trusted_by_system = match (&options.ca, options.skip_verify) {
            (Some(_), _) | (None, true) => None,
            (None, false) => Some(trusted_by_system()),
        };
        let mut files = Vec::from_iter(options.ca.clone());
        if let Some(Identity { cert, key }) = &options.identity {
            files.extend([cert.clone(), key.clone()]);
        }
        let make = || build(&options, trusted_by_system.as_ref());
        let client = FromFiles::new(FLAGS, files.clone(), registry, make).or_else(|error| {
            // What is wrong with anything else is wrong here, too.
            let anonymous = ClientTlsOptions { identity: None, ..options.clone() };
            let client = build(&anonymous, trusted_by_system.as_ref())?;
            tracing::warn!(err = %error, "no certificate to show to peers until there is one");
            let client = Client { nothing_to_show: Some(error.to_string()), ..client };
            Ok::<_, TlsError>(FromFiles::without_files(FLAGS, files, registry, client, &error))
        })?;
        Ok(ClientTls { options, server_name, trusted_by_system, client })
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
        let client = self.client();
        let Some(reason) = &client.nothing_to_show else {
            return TlsConnector::from(client.config.clone()).connect(name, stream).await;
        };
        // A peer that asks for nothing can be talked to all the same.
        let asked = Arc::new(Asked::default());
        let mut config = ClientConfig::clone(&client.config);
        config.client_auth_cert_resolver = asked.clone();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        match asked.0.load(Ordering::Relaxed) {
            true => Err(io::Error::other(reason.clone())),
            false => Ok(stream),
        }
    }

    /// With the certificate as it is now.
    fn client(&self) -> Arc<Client> {
        self.client.current(|| build(&self.options, self.trusted_by_system.as_ref()))
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}

fn build(
    options: &ClientTlsOptions,
    trusted_by_system: Option<&Authorities>,
) -> Result<Client, TlsError> {
    let provider = Arc::new(provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(options.version_min.and_above())?;
    // Read even where anybody is trusted: a file that is not what it should be is a mistake.
    let authorities = match &options.ca {
        Some(file) => Authorities::read(file)?,
        None => trusted_by_system.cloned().unwrap_or_else(Authorities::nobody),
    };
    let verifier = match options.skip_verify {
        true => Some(Arc::new(AnyCertificate(provider.clone())) as Arc<dyn ServerCertVerifier>),
        false => verifier(&authorities, &provider),
    };
    let builder = match verifier {
        Some(verifier) => builder.dangerous().with_custom_certificate_verifier(verifier),
        None => builder.with_root_certificates(authorities.roots),
    };
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let identity = SingleCertAndKey::from(identity.read(&provider)?);
            builder.with_client_cert_resolver(Arc::new(identity))
        }
    };
    // gRPC servers of Go hang up on clients that do not ask for it.
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Client { config: Arc::new(config), nothing_to_show: None })
}

/// Shows nothing, and remembers whether it should have.
#[derive(Debug, Default)]
struct Asked(AtomicBool);

impl ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// None where nobody is trusted.
fn verifier(
    authorities: &Authorities,
    provider: &Arc<CryptoProvider>,
) -> Option<Arc<dyn ServerCertVerifier>> {
    let Authorities { roots, certificates } = authorities;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
    // It fails without roots, and there are no lists of revoked certificates to be understood.
    let verifier = verifier.build().ok()?;
    Some(Arc::new(OwnAuthorities::new(certificates.clone(), verifier)))
}

fn trusted_by_system() -> Authorities {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(err = %error, "a certificate that the system trusts cannot be read");
    }
    let (authorities, _) = Authorities::of(found.certs);
    if authorities.roots.is_empty() {
        tracing::warn!("the system trusts no certificate, so no peer can be verified");
    }
    authorities
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
