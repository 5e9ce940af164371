use std::net::SocketAddr;
use std::path::Path;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use super::*;
use crate::tls::certificates::{Authority, put};

const FLAGS: &str = "grpc-server-tls";
const NAME: &str = "server.example";

/// An authority that everybody trusts, and the files of a server.
struct World {
    authority: Authority,
    dir: tempfile::TempDir,
    registry: Registry,
}

impl World {
    fn new() -> World {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.write(&dir.path().join("ca"));
        authority.issue(dir.path(), NAME);
        World { authority, dir, registry: Registry::new() }
    }

    fn file(&self, name: &str) -> TlsFile {
        TlsFile { flag: "a-flag", path: self.dir.path().join(name) }
    }

    fn identity(&self, name: &str) -> Identity {
        let file = |ending: &str| self.file(&format!("{name}.{ending}"));
        Identity { cert: file("crt"), key: file("key") }
    }

    fn options(&self) -> ServerTlsOptions {
        ServerTlsOptions {
            identity: self.identity(NAME),
            client_ca: None,
            version_min: TlsVersion::V1_3,
            cipher_suites: None,
            curves: None,
        }
    }

    fn load(&self, options: ServerTlsOptions) -> ServerTls {
        ServerTls::load(FLAGS, options, &[b"h2", b"http/1.1"], &self.registry).unwrap()
    }

    /// A client that trusts the authority at the path, and shows a certificate if it has one.
    fn client(&self, ca: &Path, identity: Option<&str>) -> ClientConfig {
        let ca = TlsFile { flag: "a-flag", path: ca.to_owned() };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Authorities::read(&ca).unwrap().root_store());
        match identity {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let identity = self.identity(name).read(&provider()).unwrap();
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
        }
    }

    fn plain_client(&self) -> ClientConfig {
        self.client(&self.file("ca").path, None)
    }

    fn unusable(&self) -> bool {
        let page = self.registry.expose();
        let line = |value: u8| format!("ringest_tls_files_unusable{{flags=\"{FLAGS}\"}} {value}\n");
        assert!(page.contains(&line(0)) != page.contains(&line(1)), "{page}");
        page.contains(&line(1))
    }
}

/// What a client saw that came through.
struct Seen {
    certificate: CertificateDer<'static>,
    version: ProtocolVersion,
    protocol: Option<Vec<u8>>,
    suite: Option<SupportedCipherSuite>,
}

/// One connection. The server's byte tells the client that its certificate was taken, too.
async fn connect(server: &ServerTls, client: ClientConfig) -> io::Result<Seen> {
    let (listener, address) = listen().await;
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(mut stream) = server.accept(stream).await {
            stream.write_all(b"x").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    };
    let name = ServerName::try_from(NAME).unwrap();
    let connect = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
        stream.read_u8().await?;
        let (_, connection) = stream.get_ref();
        Ok(Seen {
            certificate: connection.peer_certificates().unwrap()[0].clone().into_owned(),
            version: connection.protocol_version().unwrap(),
            protocol: connection.alpn_protocol().map(<[u8]>::to_vec),
            suite: connection.negotiated_cipher_suite(),
        })
    };
    tokio::join!(serve, connect).1
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn text<T>(result: Result<T, impl ToString>) -> String {
    result.map(|_| ()).map_err(|error| error.to_string()).unwrap_err()
}

#[tokio::test]
async fn a_client_and_a_server_agree() {
    let world = World::new();
    let server = world.load(world.options());
    let mut client = world.plain_client();
    let seen = connect(&server, client.clone()).await.unwrap();
    assert_eq!((seen.version, seen.protocol), (ProtocolVersion::TLSv1_3, None));

    client.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let seen = connect(&server, client.clone()).await.unwrap();
    assert_eq!(seen.protocol.as_deref(), Some(&b"h2"[..]), "the server's preference");
    client.alpn_protocols = vec![b"spdy".to_vec()];
    assert!(text(connect(&server, client).await).contains("NoApplicationProtocol"));
}

fn speaking(world: &World, version: &'static SupportedProtocolVersion) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(Authorities::read(&world.file("ca")).unwrap().root_store())
        .with_no_client_auth()
}

#[tokio::test]
async fn versions_and_cipher_suites_are_those_chosen() {
    let world = World::new();
    let server = world.load(world.options());
    let old = || speaking(&world, &rustls::version::TLS12);
    assert!(text(connect(&server, old()).await).contains("ProtocolVersion"));

    let options = ServerTlsOptions { version_min: TlsVersion::V1_2, ..world.options() };
    let server = world.load(options.clone());
    let seen = connect(&server, old()).await.unwrap();
    assert_eq!(seen.version, ProtocolVersion::TLSv1_2);

    // Keys that are made without a wish are of P-256.
    let name = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let chosen = |name| Some(vec![cipher_suite(name).unwrap()]);
    let server = world.load(ServerTlsOptions { cipher_suites: chosen(name), ..options.clone() });
    let seen = connect(&server, old()).await.unwrap();
    assert_eq!(seen.suite, Some(cipher_suite(name).unwrap()));
    let name = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    let server = world.load(ServerTlsOptions { cipher_suites: chosen(name), ..options.clone() });
    assert!(text(connect(&server, old()).await).contains("HandshakeFailure"));
    // Those of 1.3 cannot be chosen.
    let seen = connect(&server, world.plain_client()).await.unwrap();
    assert_eq!(seen.version, ProtocolVersion::TLSv1_3);

    let curves = Some(vec![curve("CurveP384").unwrap()]);
    let server = world.load(ServerTlsOptions { curves, ..options });
    connect(&server, world.plain_client()).await.unwrap();
    let mut offered = provider();
    offered.kx_groups = vec![curve("X25519").unwrap()];
    let client = ClientConfig::builder_with_provider(Arc::new(offered))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(Authorities::read(&world.file("ca")).unwrap().root_store())
        .with_no_client_auth();
    assert!(text(connect(&server, client).await).contains("HandshakeFailure"));
}

#[test]
fn names_that_mean_nothing_are_answered_with_those_that_do() {
    let known = text(cipher_suite("TLS_RSA_WITH_RC4_128_SHA"));
    assert_eq!(known.split(", ").count(), 9, "{known}");
    assert!(known.split(", ").all(|name| cipher_suite(name).is_ok()), "{known}");
    let known = text(curve("CurveP521"));
    assert!(known.split(", ").all(|name| curve(name).is_ok()), "{known}");
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_the_next_client() {
    let world = World::new();
    let server = world.load(world.options());
    let shown = || async { connect(&server, world.plain_client()).await.unwrap().certificate };
    let first = shown().await;
    assert_eq!(shown().await, first);
    world.authority.issue(world.dir.path(), NAME);
    let second = shown().await;
    assert_ne!(second, first);
    assert!(!world.unusable());

    // Half of a renewal, and no certificate at all.
    let other = tempfile::tempdir().unwrap();
    let (crt, key) = world.authority.issue(other.path(), NAME);
    let Identity { cert: own_crt, key: own_key } = world.identity(NAME);
    std::fs::rename(crt, &own_crt.path).unwrap();
    assert_eq!(shown().await, second, "the last good one");
    assert!(world.unusable());
    std::fs::remove_file(&own_crt.path).unwrap();
    assert_eq!(shown().await, second, "the last good one");
    let (crt, _) = world.authority.issue(other.path(), NAME);
    std::fs::rename(crt, &own_crt.path).unwrap();
    std::fs::rename(key, &own_key.path).unwrap();
    let third = shown().await;
    assert!(third != second && !world.unusable());
}

#[tokio::test]
async fn with_an_authority_of_clients_each_needs_a_certificate_of_it() {
    let world = World::new();
    let client_ca = world.file("client-ca");
    let clients = Authority::new();
    clients.write(&client_ca.path);
    clients.issue(world.dir.path(), "client.example");
    world.authority.issue(world.dir.path(), "stranger.example");
    let options = ServerTlsOptions { client_ca: Some(client_ca.clone()), ..world.options() };
    let server = world.load(options.clone());
    let client = |name| world.client(&world.file("ca").path, name);

    connect(&server, client(Some("client.example"))).await.unwrap();
    assert!(text(connect(&server, client(None)).await).contains("CertificateRequired"));
    assert!(text(connect(&server, client(Some("stranger.example"))).await).contains("UnknownCA"));

    // What cannot be parsed leaves the authority in force that there was.
    put(&client_ca.path, "nothing");
    connect(&server, client(Some("client.example"))).await.unwrap();
    assert!(world.unusable());
    world.authority.write(&client_ca.path);
    connect(&server, client(Some("stranger.example"))).await.unwrap();
    assert!(text(connect(&server, client(Some("client.example"))).await).contains("UnknownCA"));
    assert!(!world.unusable());
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_flag() {
    let world = World::new();
    put(&world.file("bad").path, "nothing");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    put(&world.file("garbage").path, garbage);
    let of = |cert: &str, key: &str, client_ca: Option<&str>| {
        let identity = Identity { cert: world.file(cert), key: world.file(key) };
        let client_ca = client_ca.map(|name| world.file(name));
        let options = ServerTlsOptions { identity, client_ca, ..world.options() };
        text(ServerTls::load(FLAGS, options, &[], &world.registry))
    };
    let (crt, key) = (&*format!("{NAME}.crt"), &*format!("{NAME}.key"));
    let other = Authority::new();
    other.issue(world.dir.path(), "other.example");
    for (error, file, cause) in [
        (of("none", key, None), "none", "no such file or directory"),
        (of("bad", key, None), "bad", "failed to find any PEM data of a certificate"),
        (of("garbage", key, None), "garbage", "BadEncoding"),
        (of(crt, crt, None), crt, "failed to find any PEM data of a private key"),
        (of(crt, "other.example.key", None), crt, "KeyMismatch"),
        (of(crt, key, Some("none")), "none", "no such file or directory"),
        (of(crt, key, Some("bad")), "bad", "failed to find any PEM data of a certificate"),
        (of(crt, key, Some("garbage")), "garbage", "none of its certificates is understood"),
    ] {
        let named = format!("--a-flag: {}: ", world.file(file).path.display());
        assert!(error.starts_with(&named) && error.contains(cause), "{cause}: {error}");
    }
}

#[tokio::test]
async fn plain_text_is_closed() {
    let world = World::new();
    let server = world.load(world.options());
    let (listener, address) = listen().await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    server.accept(stream).await.unwrap_err();
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    assert!(said.len() < 32, "no more than an alert: {said:?}");
    let failed = format!("ringest_tls_handshakes_failed_total{{flags=\"{FLAGS}\"}} 1\n");
    assert!(world.registry.expose().contains(&failed));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_takes_no_place_and_is_let_go() {
    let world = World::new();
    let server = world.load(world.options());
    let (listener, address) = listen().await;
    let _silent = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut accepting = std::pin::pin!(server.accept(stream));
    assert!(futures::poll!(accepting.as_mut()).is_pending());
    assert_eq!(server.places.available_permits(), HANDSHAKES_MAX);
    // The clock, which stands still as long as anything goes on, jumps to the deadline.
    assert_eq!(accepting.await.unwrap_err().kind(), io::ErrorKind::TimedOut);

    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&[0x16, 3, 1]).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert_eq!(server.accept(stream).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert_eq!(server.places.available_permits(), HANDSHAKES_MAX);
}
