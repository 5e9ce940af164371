//! TLS towards peers: `--remote-write.client-tls-*`.
//!
//! Who is trusted is known from the start. What this node shows is read again when its files have
//! changed, so that a renewed certificate is used without a restart. As in Thanos it may come later
//! than the node: until then peers that ask for it are not talked to.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::metrics::Registry;
use crate::tls::verify::Verifier;
use crate::tls::words::Other;
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
    /// Who is trusted, in words that follow "an authority".
    trusted: String,
    /// None if a file says whom.
    trusted_by_system: Option<Authorities>,
    client: FromFiles<Client>,
}

/// How to connect.
struct Client {
    config: Arc<ClientConfig>,
    /// Who judges a peer's certificate.
    verifier: Arc<Verifier>,
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
            (None, false) => Some(Authorities::of_system()),
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
        let trusted = match &options.ca {
            Some(file) => format!(" of {file}"),
            None => " that the system trusts".to_owned(),
        };
        Ok(ClientTls { options, server_name, trusted, trusted_by_system, client })
    }

    /// The name that all peers have in their certificates, if they have one.
    pub fn server_name(&self) -> Option<&str> {
        self.options.server_name.as_deref()
    }

    /// Shakes hands with the peer on a host. What goes wrong is told in words.
    pub async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => parse_name(host).map_err(|error| error.to_string())?,
        };
        let client = self.client();
        let mut config = ClientConfig::clone(&client.config);
        let seen = Arc::new(Seen::by(client.verifier.clone()));
        config.dangerous().set_certificate_verifier(seen.clone());
        // A peer that asks for nothing can be talked to all the same.
        let asked = Arc::new(Asked::default());
        if client.nothing_to_show.is_some() {
            config.client_auth_cert_resolver = asked.clone();
        }
        let connecting = TlsConnector::from(Arc::new(config)).connect(name.clone(), stream);
        let stream = connecting.await.map_err(|error| {
            let certificate = seen.certificate.lock().take();
            let name = name.to_str();
            Other { certificate: certificate.as_ref(), name: &name, ..self.peer(&client) }
                .failed(&error)
        })?;
        match &client.nothing_to_show {
            Some(reason) if asked.0.load(Ordering::Relaxed) => Err(reason.clone()),
            _ => Ok(stream),
        }
    }

    /// Why a handshake has come to nothing that was done as far as we can tell: the peer has the
    /// last word in it, and may have said why.
    pub fn hung_up(&self, error: Option<&rustls::Error>) -> String {
        let client = self.client();
        let peer = self.peer(&client);
        match (error, peer.shows) {
            (Some(error), _) => format!("tls: {}", peer.refused(error)),
            (None, true) => "tls: the peer hung up after the handshake, as one does that does not \
                             accept our certificate"
                .to_owned(),
            (None, false) => "tls: the peer hung up after the handshake, as one does that wants a \
                              certificate and is shown none"
                .to_owned(),
        }
    }

    /// Words for a handshake that does not end.
    pub fn unanswered(&self) -> String {
        self.peer(&self.client()).failed(&io::ErrorKind::TimedOut.into())
    }

    fn peer<'a>(&'a self, client: &Client) -> Other<'a> {
        Other {
            noun: "the peer",
            certificate: None,
            name: "",
            trusted: &self.trusted,
            shows: self.options.identity.is_some() && client.nothing_to_show.is_none(),
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
        Some(file) if options.skip_verify => Authorities::read(file)?,
        Some(file) => Authorities::read(file)?.with_usable_keys(file)?,
        None => trusted_by_system.cloned().unwrap_or_else(Authorities::nobody),
    };
    let verifier = Arc::new(match options.skip_verify {
        true => Verifier::of_anybody(&provider),
        false => Verifier::new(authorities, &provider),
    });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier.clone());
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let identity = SingleCertAndKey::from(identity.read(&provider)?);
            builder.with_client_cert_resolver(Arc::new(identity))
        }
    };
    // gRPC servers of Go hang up on clients that do not ask for it.
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Client { config: Arc::new(config), verifier, nothing_to_show: None })
}

/// Keeps the certificate that a peer shows, so that it can be told what is wrong with it.
#[derive(Debug)]
struct Seen {
    verifier: Arc<Verifier>,
    certificate: Mutex<Option<CertificateDer<'static>>>,
}

impl Seen {
    fn by(verifier: Arc<Verifier>) -> Seen {
        Seen { verifier, certificate: Mutex::default() }
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = &self.verifier;
        verifier
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .inspect_err(|_| *self.certificate.lock() = Some(end_entity.clone().into_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(&*self.verifier, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(&*self.verifier, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(&*self.verifier)
    }
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

fn parse_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned())
        .map_err(|error| TlsError::ServerName(name.to_owned(), error))
}

#[cfg(test)]
mod tests;
