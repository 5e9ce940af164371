//! Clients that speak TLS: the files of a suite are its authority and their certificates.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::support::http::{self, Answer, Request};

/// No certificate.
const NOBODY: &str = "plain";

/// Sends a request as the client of this name.
pub(crate) fn exchange(
    address: &str,
    request: &Request,
    dir: &Path,
    client: &str,
) -> Option<Answer> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(request.timeout)).expect("read timeout");
    let client = connection(config(dir, client));
    http::exchange_over(&mut StreamOwned::new(client, stream), request)
}

/// What a server makes of an offer of protocols.
pub(crate) fn agreed(address: &str, dir: &Path, offer: &[Value]) -> Value {
    let mut config = config(dir, NOBODY);
    let protocols = offer.iter().map(|protocol| protocol.as_str().expect("protocol"));
    config.alpn_protocols = protocols.map(|protocol| protocol.as_bytes().to_vec()).collect();
    let mut client = connection(config);
    let mut stream = TcpStream::connect(address).expect("a connection");
    client.complete_io(&mut stream).expect("a handshake");
    let agreed = client.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol));
    let version = client.protocol_version().and_then(|version| version.as_str());
    json!({"agreed": agreed, "version": version.map(|version| version.replace("_", "."))})
}

fn config(dir: &Path, client: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(dir.join("ca.crt")).expect("authority");
    roots.add(ca).expect("authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    if client == NOBODY {
        return builder.with_no_client_auth();
    }
    let file = |ending: &str| dir.join(format!("{client}.{ending}"));
    let chain = vec![CertificateDer::from_pem_file(file("crt")).expect("certificate")];
    let key = PrivateKeyDer::from_pem_file(file("key")).expect("key");
    builder.with_client_auth_cert(chain, key).expect("certificate and key")
}

fn connection(config: ClientConfig) -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("name");
    ClientConnection::new(Arc::new(config), name).expect("client")
}
