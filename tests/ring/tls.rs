//! Rings whose members speak TLS with each other.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::load::Load;
use crate::node::{Node, Ring, ketama, new_node, write_request};
use crate::support::certificates::Authority;
use crate::support::http::{self, Request};

/// The name in all certificates, which is also the host of all endpoints.
const HOST: &str = "127.0.0.1";

/// Series that are written one by one, enough for each of two nodes to have some.
const SERIES: usize = 40;

/// Flags with `DIR` and the name of a certificate in the place of their own.
fn flags(templates: &[&str], dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("UTF-8");
    templates.iter().map(|flag| flag.replace("DIR", dir).replace("HOST", HOST)).collect()
}

const SERVER: [&str; 2] =
    ["--grpc-server-tls-cert=DIR/HOST.crt", "--grpc-server-tls-key=DIR/HOST.key"];
const SERVER_CLIENT_CA: &str = "--grpc-server-tls-client-ca=DIR/ca";
/// The tests look at the nodes' pages, which are closed where certificates are asked for.
const OPEN_PAGES: &str = "--http.open-reads";
const CLIENT: [&str; 2] =
    ["--remote-write.client-tls-secure", "--remote-write.client-tls-ca=DIR/ca"];
const CLIENT_IDENTITY: [&str; 2] =
    ["--remote-write.client-tls-cert=DIR/HOST.crt", "--remote-write.client-tls-key=DIR/HOST.key"];

fn with_args(node: Node, args: &[String]) -> Node {
    args.iter().fold(node, |node, arg| node.with_arg(arg))
}

/// A directory with the certificate of an authority, and one that it has signed.
fn certificates(dir: &Path) -> Authority {
    let authority = Authority::new();
    authority.write(&dir.join("ca"));
    authority.issue(dir, HOST);
    authority
}

/// The certificate that a server shows to a client with that of the directory.
fn shown(address: &str, dir: &Path) -> CertificateDer<'static> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca")).unwrap()).unwrap();
    let chain = CertificateDer::from_pem_file(dir.join(format!("{HOST}.crt"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join(format!("{HOST}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![chain], key)
        .unwrap();
    let name = ServerName::try_from(HOST).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    client.complete_io(&mut stream).unwrap();
    client.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn a_ring_that_speaks_tls_answers_all_writes() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let args = flags(&[&SERVER[..], &CLIENT].concat(), dir.path());
    let ring = Ring::start_with(3, 3, |node| with_args(node, &args));
    let mut load = Load::start(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    load.stop().verify(&ring.nodes, 3);
}

#[test]
fn a_ring_with_certificates_of_clients_renews_them_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let authority = certificates(dir.path());
    let every = ["--grpc-server-max-connection-age=1500ms"];
    let args =
        [&SERVER[..], &[SERVER_CLIENT_CA, OPEN_PAGES], &CLIENT, &CLIENT_IDENTITY, &every].concat();
    let args = flags(&args, dir.path());
    let ring = Ring::start_with(3, 3, |node| with_args(node, &args));
    let mut load = Load::start(ring.root.path(), "load", &ring.nodes[0]);
    load.wait_stretch();
    let before = shown(&ring.nodes[1].grpc, dir.path());
    // Between its two files a pair does not match, which costs no connection.
    authority.issue(dir.path(), HOST);
    let after = shown(&ring.nodes[1].grpc, dir.path());
    assert_ne!(before, after);
    for node in &ring.nodes {
        node.wait_until("is called over connections of the new certificate", |node| {
            let log = node.log();
            let renewed = |flags: &str| {
                let words = [flags, "files of TLS have changed"];
                log.lines().any(|line| words.iter().all(|word| line.contains(word)))
            };
            renewed("flags=grpc-server-tls") && renewed("flags=remote-write.client-tls")
        });
        assert_eq!(node.metric("ringest_tls_files_unusable"), 0.0);
    }
    load.wait_stretch();
    load.stop().verify(&ring.nodes, 3);
}

#[test]
fn a_peer_of_another_authority_costs_its_own_series_and_says_why() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("hashrings.json");
    let mut ingestors = ["known", "stranger"].map(|name| {
        let dir = root.path().join(format!("{name}-tls"));
        std::fs::create_dir(&dir).unwrap();
        certificates(&dir);
        with_args(new_node(root.path(), name), &flags(&SERVER, &dir))
    });
    std::fs::write(&file, ketama(&ingestors)).unwrap();
    ingestors.iter_mut().for_each(Node::start);
    let client = flags(&CLIENT, &root.path().join("known-tls"));
    let router = new_node(root.path(), "router").with_ring(&file, 1);
    let mut router = with_args(router, &client);
    router.start();
    router.wait_member(&ingestors[0].grpc, "open");
    router.wait_member(&ingestors[1].grpc, "unreachable");
    let mut statuses = Vec::new();
    for i in 0..SERIES {
        let answer = router.send(&write_request(i, 0));
        if answer.status != 200 {
            let body = String::from_utf8_lossy(&answer.body);
            let words = "tls: its certificate is not signed by an authority of";
            assert!(body.contains(words), "{body}");
        }
        statuses.push(answer.status);
    }
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [200, 503]);
    router.stop();
}

#[test]
fn who_shows_no_certificate_or_speaks_plain_text_is_refused() {
    let root = tempfile::tempdir().unwrap();
    certificates(root.path());
    let file = root.path().join("hashrings.json");
    let args = flags(&[&SERVER[..], &[SERVER_CLIENT_CA]].concat(), root.path());
    let mut ingestor = with_args(new_node(root.path(), "ingestor"), &args);
    std::fs::write(&file, ketama([&ingestor])).unwrap();
    ingestor.start();

    for (name, args, why) in
        [("anonymous", &CLIENT[..], "wants a certificate"), ("plain", &[], "wants TLS")]
    {
        let args = flags(args, root.path());
        let router = new_node(root.path(), name).with_ring(&file, 1);
        let mut router = with_args(router, &args);
        router.start();
        router.wait_until("says why", |router| {
            let log = router.log();
            let words = ["peer cannot be reached", why];
            log.lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
        assert_eq!(router.send(&write_request(0, 0)).status, 503);
        router.stop();
    }
    let plain = http::exchange(&ingestor.grpc, &Request::new("GET", "/"));
    assert!(plain.is_none(), "{plain:?}");
    assert_eq!(ingestor.metric("prometheus_tsdb_head_series"), 0.0);

    // Half a handshake holds nobody.
    let mut stalled = TcpStream::connect(&ingestor.grpc).unwrap();
    stalled.write_all(&[0x16, 3, 1]).unwrap();
    let identity = [&CLIENT[..], &CLIENT_IDENTITY].concat();
    let args = flags(&identity, root.path());
    let router = new_node(root.path(), "known").with_ring(&file, 1);
    let mut router = with_args(router, &args);
    router.start();
    router.wait_others();
    assert_eq!(router.send(&write_request(0, 0)).status, 200);
    router.stop();
    ingestor.stop();
}
