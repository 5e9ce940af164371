use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::metrics::Registry;
use crate::peer::message::{Compression, ForwardMessage, TenantBatch};
use crate::peer::{ForwardError, PeerOptions, PeerPool};

/// The name in the peer's certificate.
const NAME: &str = "peer.example";

/// An authority, a peer that it vouches for, and files for a client that it vouches for.
struct World {
    dir: tempfile::TempDir,
    peer: SocketAddr,
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn options(&self) -> ClientTlsOptions {
        ClientTlsOptions {
            identity: Some(Identity { cert: self.path("crt"), key: self.path("key") }),
            ca: Some(self.path("ca")),
            server_name: Some(NAME.to_owned()),
            ..ClientTlsOptions::default()
        }
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A peer that answers every call of a client that it trusts with success.
async fn world() -> World {
    let authority = authority();
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &authority).unwrap(), key)
    };
    let dir = tempfile::tempdir().unwrap();
    let (client, key) = issue("client.example");
    fs::write(dir.path().join("ca"), authority.pem()).unwrap();
    fs::write(dir.path().join("crt"), client.pem()).unwrap();
    fs::write(dir.path().join("key"), key.serialize_pem()).unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let (certificate, key) = issue(NAME);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config))));
    World { dir, peer }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let accepting = acceptor.accept(stream);
        tokio::spawn(async move {
            let Ok(stream) = accepting.await else { return };
            let service = hyper::service::service_fn(async |_| {
                let response = http::Response::builder().header("grpc-status", "0");
                Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
            });
            // Ends with the connection.
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn write(peer: SocketAddr, options: ClientTlsOptions) -> Result<(), ForwardError> {
    let tls = Arc::new(ClientTls::load(options).unwrap());
    let options = PeerOptions { tls: Some(tls), ..PeerOptions::default() };
    let pool = PeerPool::new(options, &Registry::new());
    let address = peer.to_string();
    pool.update([&address[..]]);
    let batch = TenantBatch { tenant: "a", series: [&b"\x0a\x00"[..]].into_iter() };
    let message = ForwardMessage::gather(1, &[batch], Compression::None).unwrap();
    pool.peer(&address).unwrap().remote_write(&message, Duration::from_secs(30)).await
}

fn detail(result: Result<(), ForwardError>) -> String {
    match result {
        Err(
            ForwardError::Unreachable { detail, .. } | ForwardError::Unavailable { detail, .. },
        ) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let world = world().await;
    write(world.peer, world.options()).await.unwrap();
    let old = ClientTlsOptions { version_min: TlsVersion::V1_2, ..world.options() };
    write(world.peer, old).await.unwrap();
}

#[tokio::test]
async fn a_peer_with_another_name_or_authority_is_not_written_to() {
    let world = world().await;
    let named = ClientTlsOptions { server_name: None, ..world.options() };
    let error = detail(write(world.peer, named).await);
    assert!(error.contains("certificate"), "{error}");

    fs::write(world.path("other"), authority().pem()).unwrap();
    let other = ClientTlsOptions { ca: Some(world.path("other")), ..world.options() };
    let error = detail(write(world.peer, other.clone()).await);
    assert!(error.contains("certificate"), "{error}");

    let any = ClientTlsOptions { skip_verify: true, server_name: None, ..other };
    write(world.peer, any).await.unwrap();
}

#[tokio::test]
async fn a_peer_refuses_whom_it_does_not_know() {
    let world = world().await;
    let nobody = ClientTlsOptions { identity: None, ..world.options() };
    detail(write(world.peer, nobody).await);
}

#[tokio::test]
async fn a_certificate_that_breaks_is_not_used() {
    let world = world().await;
    let tls = ClientTls::load(world.options()).unwrap();
    fs::write(world.path("crt"), "nothing").unwrap();
    assert!(Arc::ptr_eq(&tls.config(), &tls.config()), "made anew from a broken file");
    for (file, options) in [
        ("crt", world.options()),
        ("none", ClientTlsOptions { ca: Some(world.path("none")), ..world.options() }),
    ] {
        let error = ClientTls::load(options).unwrap_err().to_string();
        assert!(error.contains(&*world.path(file).to_string_lossy()), "{error}");
    }
}

#[test]
fn the_host_is_taken_from_the_address() {
    for (address, host) in [("a.b:1", "a.b"), ("1.2.3.4:1", "1.2.3.4"), ("[::1]:1", "::1")] {
        assert_eq!(host_of(address), host);
        parse_name(host).unwrap();
    }
}
