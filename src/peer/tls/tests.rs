mod table;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    date_time_ymd,
};
use tokio::net::TcpListener;

use super::*;
use crate::peer::message::{Compression, Envelope, ForwardMessage};
use crate::peer::{ForwardError, PeerOptions, PeerPool};
use crate::tls::certificates::{Authority, put};
use crate::tls::server::{ServerTls, ServerTlsOptions};

/// The name in the peer's certificate.
const NAME: &str = "peer.example";
/// The name in that of this node.
const CLIENT: &str = "client.example";

/// An authority, a peer that it vouches for, and files for a client that it vouches for.
struct World {
    authority: Authority,
    dir: tempfile::TempDir,
    peer: SocketAddr,
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> TlsFile {
        TlsFile { flag: "a-flag", path: self.path(name) }
    }

    fn options(&self) -> ClientTlsOptions {
        let identity = identity(self.dir.path(), CLIENT);
        ClientTlsOptions {
            identity: Some(identity),
            ca: Some(self.file("ca")),
            server_name: Some(NAME.to_owned()),
            ..ClientTlsOptions::default()
        }
    }
}

fn identity(dir: &Path, name: &str) -> Identity {
    let file =
        |ending: &str| TlsFile { flag: "a-flag", path: dir.join(format!("{name}.{ending}")) };
    Identity { cert: file("crt"), key: file("key") }
}

/// A peer that answers every call of a client that it trusts with success.
async fn world() -> World {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.write(&dir.path().join("ca"));
    authority.issue(dir.path(), NAME);
    authority.issue(dir.path(), CLIENT);
    let ca = TlsFile { flag: "a-flag", path: dir.path().join("ca") };
    let peer = serve_peer(identity(dir.path(), NAME), Some(ca)).await;
    World { authority, dir, peer }
}

async fn serve_peer(identity: Identity, client_ca: Option<TlsFile>) -> SocketAddr {
    let version_min = TlsVersion::V1_2;
    let options =
        ServerTlsOptions { identity, client_ca, version_min, cipher_suites: None, curves: None };
    let tls = ServerTls::load("a-peer", options, &[b"h2"], &Registry::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, Arc::new(tls)));
    address
}

async fn serve(listener: TcpListener, tls: Arc<ServerTls>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let tls = tls.clone();
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            answer_all(TokioIo::new(stream)).await;
        });
    }
}

/// Answers every call with success until the connection ends.
async fn answer_all<S>(stream: TokioIo<S>)
where
    TokioIo<S>: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let service = hyper::service::service_fn(async |_| {
        let response = http::Response::builder().header("grpc-status", "0");
        Ok::<_, Infallible>(response.body(Empty::<Bytes>::new()).unwrap())
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(stream, service);
    let _ = connection.await;
}

async fn write(peer: SocketAddr, options: ClientTlsOptions) -> Result<(), ForwardError> {
    let tls = Arc::new(ClientTls::load(options, &Registry::new()).unwrap());
    let options = PeerOptions { tls: Some(tls), ..PeerOptions::default() };
    write_over(&PeerPool::new(options, &Registry::new()), peer).await
}

async fn write_over(pool: &PeerPool, peer: SocketAddr) -> Result<(), ForwardError> {
    let address = peer.to_string();
    pool.update([&address[..]]);
    let envelope = Envelope { tenant: "a", replica: 1, is_merged: false, series_count: 1 };
    let fields = [&b"\x0a\x00"[..]].into_iter();
    let message = ForwardMessage::gather(envelope, fields, Compression::None).unwrap();
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
    let words = "tls: its certificate is for peer.example and not for 127.0.0.1";
    assert_eq!(error, words);

    Authority::new().write(&world.path("other"));
    let other = ClientTlsOptions { ca: Some(world.file("other")), ..world.options() };
    let error = detail(write(world.peer, other.clone()).await);
    let words = format!(
        "tls: its certificate is not signed by an authority of --a-flag: {}, but by \"CN=",
        world.path("other").display()
    );
    assert!(error.starts_with(&words), "{error}");

    let any = ClientTlsOptions { skip_verify: true, server_name: None, ..other };
    write(world.peer, any).await.unwrap();
}

/// As [`Authority::issue`], but the certificate is its own authority, as `openssl req -x509` makes
/// it.
fn issue_own(dir: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    put(&dir.join(format!("{name}.key")), &key.serialize_pem());
    put(&dir.join(format!("{name}.crt")), &certificate.pem());
}

/// A peer and a client whose certificates are their own authorities, and trust each other's.
async fn write_with_own(
    of_peer: fn(&mut CertificateParams),
    of_client: fn(&mut CertificateParams),
    named: &str,
) -> Result<(), ForwardError> {
    let dir = tempfile::tempdir().unwrap();
    let trusted = |name: &str| Some(identity(dir.path(), name).cert);
    issue_own(dir.path(), NAME, of_peer);
    issue_own(dir.path(), CLIENT, of_client);
    let peer = serve_peer(identity(dir.path(), NAME), trusted(CLIENT)).await;
    let options = ClientTlsOptions {
        identity: Some(identity(dir.path(), CLIENT)),
        ca: trusted(NAME),
        server_name: Some(named.to_owned()),
        ..ClientTlsOptions::default()
    };
    let v1_2 = ClientTlsOptions { version_min: TlsVersion::V1_2, ..options.clone() };
    write(peer, v1_2).await?;
    write(peer, options).await
}

#[tokio::test]
async fn certificates_may_be_their_own_authorities() {
    let for_all = |_: &mut CertificateParams| {};
    let for_clients = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let for_servers = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let for_any = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    };
    let of_old = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 1, 1);
    let of_later = |params: &mut CertificateParams| params.not_before = date_time_ymd(2100, 1, 1);
    write_with_own(for_all, for_all, NAME).await.unwrap();
    write_with_own(for_servers, for_clients, NAME).await.unwrap();
    write_with_own(for_any, for_any, NAME).await.unwrap();
    let refused =
        async |of_peer, of_client, named| detail(write_with_own(of_peer, of_client, named).await);
    for (of_peer, named, words) in [
        (for_all as fn(&mut _), CLIENT, "is for peer.example and not for client.example"),
        (for_clients, NAME, "is not for what the peer is"),
        (of_old, NAME, "has ended at Jan  1 00:00:00 2020"),
        (of_later, NAME, "does not begin before Jan  1 00:00:00 2100"),
    ] {
        let error = refused(of_peer, for_all, named).await;
        let words = format!("tls: its certificate {words}");
        assert!(error.starts_with(&words), "{error}");
    }
    // The peer hangs up on such a client, perhaps before it has said why.
    for of_client in [for_servers as fn(&mut _), of_old, of_later] {
        refused(for_all, of_client, NAME).await;
    }
}

#[tokio::test]
async fn a_certificate_that_looks_like_a_trusted_one_is_not_it() {
    let dir = tempfile::tempdir().unwrap();
    let with_equal_ids = |params: &mut CertificateParams| {
        params.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 20]);
    };
    issue_own(dir.path(), NAME, with_equal_ids);
    std::fs::rename(dir.path().join("peer.example.crt"), dir.path().join("trusted")).unwrap();
    issue_own(dir.path(), NAME, with_equal_ids);
    let peer = serve_peer(identity(dir.path(), NAME), None).await;
    let of = |ca: &str| ClientTlsOptions {
        ca: Some(TlsFile { flag: "a-flag", path: dir.path().join(ca) }),
        server_name: Some(NAME.to_owned()),
        ..ClientTlsOptions::default()
    };
    let error = detail(write(peer, of("trusted")).await);
    assert!(error.contains("its certificate"), "{error}");
    write(peer, of("peer.example.crt")).await.unwrap();
}

#[tokio::test]
async fn a_peer_refuses_whom_it_does_not_know() {
    let world = world().await;
    let nobody = ClientTlsOptions { identity: None, ..world.options() };
    let error = detail(write(world.peer, nobody).await);
    // The peer's own words may be lost when it hangs up.
    assert!(error.contains("wants a certificate and is shown none"), "{error}");

    let strangers = Authority::new();
    strangers.write(&world.path("strangers"));
    strangers.issue(world.dir.path(), "stranger.example");
    let stranger = identity(world.dir.path(), "stranger.example");
    let stranger = ClientTlsOptions { identity: Some(stranger), ..world.options() };
    let error = detail(write(world.peer, stranger).await);
    assert!(
        ["does not trust the authority of our certificate", "does not accept our certificate"]
            .iter()
            .any(|words| error.contains(words)),
        "{error}"
    );
}

#[tokio::test]
async fn plain_text_and_tls_do_not_understand_each_other_and_say_so() {
    let world = world().await;
    let error = detail(write_over(&plain_pool(), world.peer).await);
    let words = ["the peer wants TLS", "hung up without a word, as one does that wants TLS"];
    assert!(words.iter().any(|words| error.contains(words)), "{error}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer_all(TokioIo::new(stream)));
        }
    });
    let error = detail(write(peer, world.options()).await);
    assert_eq!(error, "tls: the peer speaks plain text");
    write_over(&plain_pool(), peer).await.unwrap();
}

fn plain_pool() -> Arc<PeerPool> {
    PeerPool::new(PeerOptions::default(), &Registry::new())
}

#[tokio::test]
async fn a_certificate_that_breaks_is_not_used_and_a_renewed_one_is() {
    let world = world().await;
    let tls = ClientTls::load(world.options(), &Registry::new()).unwrap();
    let first = tls.client();
    put(&world.path("client.example.crt"), "nothing");
    put(&world.path("ca"), "nothing");
    assert!(Arc::ptr_eq(&tls.client(), &first), "made anew from broken files");
    world.authority.write(&world.path("ca"));
    world.authority.issue(world.dir.path(), CLIENT);
    let second = tls.client();
    assert!(!Arc::ptr_eq(&second, &first));
    assert!(Arc::ptr_eq(&tls.client(), &second), "nothing has changed");
}

#[test]
fn an_authority_is_read_even_if_nobody_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str| {
        let ca = Some(TlsFile { flag: "a-flag", path: dir.path().join(name) });
        let options = ClientTlsOptions { ca, skip_verify: true, ..ClientTlsOptions::default() };
        ClientTls::load(options, &Registry::new()).map(|_| ()).map_err(|error| error.to_string())
    };
    put(&dir.path().join("bad"), "nothing");
    Authority::new().write(&dir.path().join("good"));
    assert_eq!(load("good"), Ok(()));
    for (name, cause) in [("none", "no such file or directory"), ("bad", "any PEM data")] {
        let error = load(name).unwrap_err();
        let named = format!("--a-flag: {}: ", dir.path().join(name).display());
        assert!(error.starts_with(&named) && error.contains(cause), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_that_comes_later_is_missed_only_where_it_is_asked_for() {
    let world = world().await;
    let later = identity(world.dir.path(), "later.example");
    let options = ClientTlsOptions { identity: Some(later), ..world.options() };
    let error = detail(write(world.peer, options.clone()).await);
    assert!(error.contains("later.example.crt: no such file or directory"), "{error}");
    let undemanding = serve_peer(identity(world.dir.path(), NAME), None).await;
    write(undemanding, options.clone()).await.unwrap();

    let tls = ClientTls::load(options, &Registry::new()).unwrap();
    assert!(tls.client().nothing_to_show.is_some());
    world.authority.issue(world.dir.path(), "later.example");
    assert!(tls.client().nothing_to_show.is_none());
}

#[test]
fn names_and_addresses_may_be_in_certificates() {
    for host in ["a.b", "1.2.3.4", "::1"] {
        parse_name(host).unwrap();
    }
}
