//! Certificates of all kinds, in each role: what Go answers, and what we do.

use std::collections::BTreeMap;

use rustls::pki_types::pem::PemObject as _;
use rustls::sign::SingleCertAndKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::*;

#[derive(serde::Deserialize)]
struct Table {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    case: String,
    /// The name that is asked for.
    host: String,
    /// In PEM, as the others.
    trusts: Vec<String>,
    chain: Vec<String>,
    key: String,
    /// What Go says, by role and version: `ok`, or why not.
    go: BTreeMap<String, String>,
}

/// Where ours is another answer than Go's.
const OURS: &[(&str, &str, bool)] = &[
    // Nothing is asked of our own chain but its key, nor where nothing is verified.
    ("the same extension twice", "load", true),
    ("the same extension twice", "peer, skip-verify", true),
    ("a critical subject key identifier", "load", true),
    ("a critical subject key identifier", "peer, skip-verify", true),
    ("a negative serial number", "load", true),
    ("a negative serial number", "peer, skip-verify", true),
    // The library does not have these keys.
    ("a key: P-224", "", false),
    ("an authority's key: P-224", "peer, 1", false),
    ("an authority's key: P-224", "client", false),
    ("a key: RSA of 1024 bits", "", false),
    ("an authority's key: RSA of 1024 bits", "peer, 1", false),
    ("an authority's key: RSA of 1024 bits", "client", false),
];

fn recorded() -> Table {
    serde_json::from_str(include_str!("../../../../tests/data/tls/certificates.json")).unwrap()
}

impl Case {
    fn expected(&self, role: &str) -> bool {
        let ours = OURS.iter().find(|(case, of, _)| *case == self.case && role.starts_with(of));
        ours.map_or(self.go[role] == "ok", |(.., is_ok)| *is_ok)
    }

    /// Puts its files into a directory: `ca`, `leaf.crt`, `leaf.key`.
    fn write(&self, dir: &Path) {
        for (name, content) in [
            ("ca", self.trusts.concat()),
            ("leaf.crt", self.chain.concat()),
            ("leaf.key", self.key.clone()),
        ] {
            put(&dir.join(name), &content);
        }
    }
}

/// What both ends find.
async fn shake_hands<C, S>(
    client: impl Future<Output = Result<C, String>>,
    server: impl Future<Output = Result<S, String>>,
) -> (Result<(), String>, Result<(), String>)
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // In TLS 1.3 the client is done before the server has seen its certificate.
    let client = async {
        let mut stream = client.await?;
        stream.read_u8().await.map(drop).map_err(|error| error.to_string())
    };
    let server = async {
        let mut stream = server.await?;
        stream.write_all(b"x").await.map_err(|error| error.to_string())?;
        stream.shutdown().await.map_err(|error| error.to_string())
    };
    tokio::join!(client, server)
}

const VERSIONS: [(&str, &SupportedProtocolVersion); 2] =
    [("1.2", &rustls::version::TLS12), ("1.3", &rustls::version::TLS13)];

/// A peer that shows the case's certificate to our client.
async fn as_peer(
    case: &Case,
    dir: &Path,
    shown: &CertifiedKey,
    version: &'static SupportedProtocolVersion,
    skip_verify: bool,
) -> Result<(), String> {
    let options = ClientTlsOptions {
        ca: Some(TlsFile { flag: "a-flag", path: dir.join("ca") }),
        server_name: Some(case.host.clone()),
        version_min: TlsVersion::V1_2,
        skip_verify,
        ..ClientTlsOptions::default()
    };
    let ours = ClientTls::load(options, &Registry::new()).map_err(|error| error.to_string())?;
    let theirs = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown.clone())));
    let (client, server) = connected().await;
    let server = TlsAcceptor::from(Arc::new(theirs)).accept(server);
    let server = async { server.await.map_err(|error| error.to_string()) };
    shake_hands(ours.connect(&case.host, client), server).await.0
}

/// A client that shows it to our server.
async fn as_client(
    server: &ServerTls,
    shown: &CertifiedKey,
    version: &'static SupportedProtocolVersion,
) -> Result<(), String> {
    let anybody = Arc::new(Verifier::of_anybody(&provider()));
    let theirs = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(anybody)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown.clone())));
    let (client, accepted) = connected().await;
    let name = ServerName::try_from(NAME).unwrap();
    let client = TlsConnector::from(Arc::new(theirs)).connect(name, client);
    let client = async { client.await.map_err(|error| error.to_string()) };
    let server = async { server.accept(accepted).await.map_err(|error| error.to_string()) };
    shake_hands(client, server).await.1
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

#[tokio::test]
async fn certificates_are_judged_as_go_judges_them() {
    let table = recorded();
    let own = tempfile::tempdir().unwrap();
    Authority::new().issue(own.path(), NAME);
    let mut differ = Vec::new();
    let mut checked = 0;
    for case in &table.cases {
        let dir = tempfile::tempdir().unwrap();
        case.write(dir.path());
        let mut judge = |role: String, found: Result<(), String>| {
            checked += 1;
            if found.is_ok() != case.expected(&role) {
                differ.push(format!("{}: {role}: {found:?}, Go: {}", case.case, case.go[&role]));
            }
        };
        let shown = identity(dir.path(), "leaf").read(&provider());
        judge("load".to_owned(), shown.as_ref().map(drop).map_err(ToString::to_string));
        let Ok(shown) = shown else { continue };
        let options = ServerTlsOptions {
            identity: identity(own.path(), NAME),
            client_ca: Some(TlsFile { flag: "a-flag", path: dir.path().join("ca") }),
            version_min: TlsVersion::V1_2,
            cipher_suites: None,
            curves: None,
        };
        let server = ServerTls::load("a-peer", options, &[], &Registry::new());
        for (version, protocol) in VERSIONS {
            for (role, skip) in [("peer", false), ("peer, skip-verify", true)] {
                let found = as_peer(case, dir.path(), &shown, protocol, skip).await;
                judge(format!("{role}, {version}"), found);
            }
            let found = match &server {
                Ok(server) => as_client(server, &shown, protocol).await,
                Err(error) => Err(error.to_string()),
            };
            judge(format!("client, {version}"), found);
        }
    }
    assert!(differ.is_empty(), "{} of {checked}:\n{}", differ.len(), differ.join("\n"));
    assert!(checked > 900, "{checked}");
}

/// Wherever a bit is turned in the certificate that is shown.
#[test]
fn a_certificate_that_is_changed_is_refused() {
    let der = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    for (n, case) in recorded().cases.iter().enumerate() {
        let (trusted, _) = Authorities::of(case.trusts.iter().map(der).collect());
        let verifier = Verifier::new(trusted, &provider());
        let chain: Vec<_> = case.chain.iter().map(der).collect();
        let name = ServerName::try_from(case.host.clone()).unwrap();
        let others = chain.get(1..).unwrap_or_default();
        // Another place in each, or it takes long.
        for at in (n % 23..chain[0].len()).step_by(23) {
            for bit in [0x01, 0x80] {
                let mut changed = chain[0].to_vec();
                changed[at] ^= bit;
                let changed = CertificateDer::from(changed);
                let now = UnixTime::now();
                let found = verifier.verify_server_cert(&changed, others, &name, &[], now);
                assert!(found.is_err(), "{}: {at}, {bit:#x}", case.case);
            }
        }
    }
}

#[test]
fn short_keys_are_refused_by_name() {
    let table = recorded();
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str| table.cases.iter().find(|case| case.case == name).unwrap();
    of("a key: RSA of 1024 bits").write(dir.path());
    let error = identity(dir.path(), "leaf").read(&provider()).unwrap_err().to_string();
    let named = format!("--a-flag: {}", dir.path().join("leaf.key").display());
    let words = "a key of RSA has 1024 bits, and at least 2048 are needed";
    assert_eq!(error, format!("{named}: {words}"));
    of("an authority's key: RSA of 1024 bits").write(dir.path());
    let ca = TlsFile { flag: "a-flag", path: dir.path().join("ca") };
    let options = ClientTlsOptions { ca: Some(ca), ..ClientTlsOptions::default() };
    let error = ClientTls::load(options, &Registry::new()).map(drop).unwrap_err().to_string();
    assert_eq!(error, format!("--a-flag: {}: {words}", dir.path().join("ca").display()));
}
