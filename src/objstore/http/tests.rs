//! TLS towards a bucket, and proxies on the way.

use std::net::SocketAddr;
use std::path::Path;

use http::Response;
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::error::chain;
use crate::objstore::options::BucketTlsOptions;
use crate::tls::certificates::Authority;
use crate::tls::server::{ServerTls, ServerTlsOptions};
use crate::tls::{Identity, TlsFile, TlsVersion};

const NAME: &str = "bucket.example";
const CLIENT: &str = "client.example";

fn file(dir: &Path, name: &str) -> TlsFile {
    TlsFile { flag: "a-flag", path: dir.join(name) }
}

/// Answers every request with 200, to clients with a certificate of the authority only if told so.
async fn serve(dir: &Path, asks_clients: bool) -> SocketAddr {
    let identity = Identity {
        cert: file(dir, &format!("{NAME}.crt")),
        key: file(dir, &format!("{NAME}.key")),
    };
    let options = ServerTlsOptions {
        identity,
        client_ca: asks_clients.then(|| file(dir, "ca")),
        version_min: TlsVersion::V1_2,
        cipher_suites: None,
        curves: None,
    };
    let tls = ServerTls::load("a-bucket", options, &[b"http/1.1"], &Registry::new()).unwrap();
    let tls = Arc::new(tls);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let answer = service_fn(async |_| {
                    Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
                });
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    address
}

async fn ask(transport: &Transport, uri: &str) -> Result<u16, String> {
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.uri_mut() = uri.parse().unwrap();
    let answer = transport.call(request).await.map_err(|err| chain(&err))?;
    Ok(answer.status().as_u16())
}

#[tokio::test]
async fn each_setting_of_tls_has_its_effect() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    authority.write(&dir.join("ca"));
    authority.issue(dir, NAME);
    authority.issue(dir, CLIENT);
    let (open, closed) = (serve(dir, false).await, serve(dir, true).await);
    let trusting = BucketTlsOptions {
        ca: Some(dir.join("ca")),
        server_name: Some(NAME.to_owned()),
        ..BucketTlsOptions::default()
    };
    let known = Some((dir.join(format!("{CLIENT}.crt")), dir.join(format!("{CLIENT}.key"))));
    let anybody = BucketTlsOptions { skip_verify: true, ..BucketTlsOptions::default() };
    for (what, tls, server, is_good) in [
        ("its authority and name", trusting.clone(), open, true),
        ("whom the system trusts", BucketTlsOptions { ca: None, ..trusting.clone() }, open, false),
        (
            "the address for a name",
            BucketTlsOptions { server_name: None, ..trusting.clone() },
            open,
            false,
        ),
        (
            "another name",
            BucketTlsOptions { server_name: Some("x.y".into()), ..trusting.clone() },
            open,
            false,
        ),
        ("anybody", anybody, open, true),
        ("nothing to show", trusting.clone(), closed, false),
        (
            "a certificate to show",
            BucketTlsOptions { identity: known, ..trusting.clone() },
            closed,
            true,
        ),
    ] {
        let options = HttpOptions { tls, ..HttpOptions::default() };
        let transport = Transport::new(&options, Extras::default(), &Registry::new()).unwrap();
        let answer = ask(&transport, &format!("https://{server}/x")).await;
        assert_eq!(answer.is_ok(), is_good, "{what}: {answer:?}");
    }
    // Files that cannot be used are known at once.
    for tls in [
        BucketTlsOptions { ca: Some(dir.join("nothing")), ..trusting.clone() },
        BucketTlsOptions { identity: Some((dir.join("ca"), dir.join("ca"))), ..trusting.clone() },
        BucketTlsOptions { server_name: Some("no name".into()), ..trusting },
    ] {
        let options = HttpOptions { tls, ..HttpOptions::default() };
        assert!(Transport::new(&options, Extras::default(), &Registry::new()).is_err());
    }
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = HttpOptions {
        tls_handshake_timeout: Some(Duration::from_millis(50)),
        tls: BucketTlsOptions { skip_verify: true, ..BucketTlsOptions::default() },
        ..HttpOptions::default()
    };
    let transport = Transport::new(&options, Extras::default(), &Registry::new()).unwrap();
    let error = ask(&transport, &format!("https://{address}/x")).await.unwrap_err();
    assert!(error.contains("deadline has elapsed"), "{error}");
}

/// A proxy that answers everything, with what it was asked.
async fn proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, heads) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let noted = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 8 << 10];
            let len = stream.read(&mut head).await.unwrap_or(0);
            noted.lock().push(String::from_utf8_lossy(&head[..len]).into_owned());
            let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer).await;
        }
    });
    (address, heads)
}

#[tokio::test]
async fn requests_go_by_way_of_a_proxy_unless_to_this_machine() {
    let (address, heads) = proxy().await;
    let proxies = || {
        let all = format!("http://user:pass@{address}");
        Matcher::builder().all(all).no("direct.invalid").build()
    };
    let options = HttpOptions {
        tls: BucketTlsOptions { skip_verify: true, ..BucketTlsOptions::default() },
        ..HttpOptions::default()
    };
    let extras = Extras::default();
    let transport = Transport::by_way_of(proxies(), &options, extras, &Registry::new()).unwrap();
    assert_eq!(ask(&transport, "http://bucket.invalid/x?y=1").await, Ok(204));
    // The proxy of this test says yes and hangs up.
    assert!(ask(&transport, "https://bucket.invalid/x").await.is_err());
    let seen = heads.lock().clone();
    let plain = seen[0].to_lowercase();
    assert!(plain.starts_with("get http://bucket.invalid/x?y=1 http/1.1\r\n"), "{plain}");
    assert!(plain.contains("proxy-authorization: basic "), "{plain}");
    let tunnel = seen[1].to_lowercase();
    assert!(tunnel.starts_with("connect bucket.invalid:443 http/1.1\r\n"), "{tunnel}");
    assert!(tunnel.contains("proxy-authorization: basic "), "{tunnel}");
    assert!(ask(&transport, "http://direct.invalid/x").await.is_err());
    for here in ["127.0.0.1", "localhost", "[::1]", "127.9.9.9"] {
        let uri = format!("http://{here}:1/x").parse().unwrap();
        assert!(proxy_to(&proxies(), &uri).is_none(), "{here}");
    }
    assert_eq!(heads.lock().len(), 2);
}
