//! S3 against a server that is not ours, which checks signatures, and what passes over the wire.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;

use super::*;
use crate::disk::{Disk as _, SystemDisk};
use crate::objstore::options::{S3Credentials, Secret};

/// What was asked of a server.
#[derive(Default)]
struct Asked {
    /// Method, path with its question, and the headers.
    requests: Vec<(String, http::HeaderMap)>,
}

/// Serves S3 from a directory, and fails the `failing`th request of an upload.
async fn serve(root: &Path, failing: Option<usize>) -> (SocketAddr, Arc<Mutex<Asked>>) {
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(SimpleAuth::from_single("key", "secret"));
    let (service, asked) = (builder.build(), Arc::new(Mutex::new(Asked::default())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (noted, count) = (asked.clone(), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else { return };
            let (service, noted, count) = (service.clone(), noted.clone(), count.clone());
            let answer = service_fn(move |request: Request<Incoming>| {
                let what = format!("{} {}", request.method(), request.uri());
                noted.lock().requests.push((what, request.headers().clone()));
                let is_upload = matches!(request.method().as_str(), "PUT" | "POST");
                let number = if is_upload { count.fetch_add(1, Ordering::Relaxed) } else { 0 };
                let fails = is_upload && failing == Some(number);
                let service = service.clone();
                async move {
                    if fails {
                        let mut denied = Response::new(s3s::Body::empty());
                        *denied.status_mut() = StatusCode::FORBIDDEN;
                        return Ok(denied);
                    }
                    service.call(request.map(s3s::Body::from)).await
                }
            });
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(socket), answer).await;
            });
        }
    });
    (address, asked)
}

fn s3_at(address: SocketAddr) -> S3Options {
    S3Options { retries_max: Some(1), ..s3::tests::options(&address.to_string()) }
}

fn open(options: &S3Options, prefix: &str) -> StoreBucket {
    StoreBucket::s3(options, prefix, &Registry::new()).unwrap()
}

fn file(dir: &Path, len: usize) -> (Content, Vec<u8>) {
    let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    let path = dir.join("file");
    fs::write(&path, &bytes).unwrap();
    let file = SystemDisk.open(&path).unwrap();
    (Content::File { file, len: len as u64 }, bytes)
}

#[tokio::test]
async fn objects_get_to_a_server_that_checks_signatures() {
    let (root, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(root.path().join("bkt")).unwrap();
    let (address, asked) = serve(root.path(), None).await;
    let bucket = open(&s3_at(address), "a/b");
    assert!(!bucket.exists("x/meta.json").await.unwrap());
    bucket.upload("x/meta.json", Content::Bytes(Bytes::from_static(b"{}"))).await.unwrap();
    assert!(bucket.exists("x/meta.json").await.unwrap());
    assert_eq!(fs::read(root.path().join("bkt/a/b/x/meta.json")).unwrap(), b"{}");
    // In one piece, at the edge, and in three parts.
    for len in [0, 1, 5 << 20, (5 << 20) + 1, 11 << 20] {
        let (content, bytes) = file(here.path(), len);
        bucket.upload("x/chunks/000001", content).await.unwrap();
        let stored = fs::read(root.path().join("bkt/a/b/x/chunks/000001")).unwrap();
        assert!(stored == bytes, "{len}");
    }
    let asked = asked.lock();
    let uploads = asked.requests.iter().filter(|(what, _)| what.starts_with("PUT "));
    let parts = uploads.clone().filter(|(what, _)| what.contains("partNumber=")).count();
    assert_eq!((uploads.clone().count(), parts), (4 + 2 + 3, 2 + 3));
    let digest = BASE64_STANDARD.encode(Md5::digest(b"{}"));
    let (_, headers) = uploads.clone().find(|(what, _)| what.contains("meta.json")).unwrap();
    assert_eq!(headers["content-md5"], digest);
    assert!(headers["user-agent"].to_str().unwrap().starts_with("ringest/"));
    assert!(uploads.into_iter().all(|(what, headers)| {
        headers.contains_key("content-md5") || headers["content-length"] == "0" || what.is_empty()
    }));
}

#[tokio::test]
async fn the_memory_of_all_uploads_together_is_bounded() {
    let (root, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(root.path().join("bkt")).unwrap();
    let (address, _) = serve(root.path(), None).await;
    let bucket = Arc::new(open(&s3_at(address), ""));
    let (content, _) = file(here.path(), 11 << 20);
    let all = bucket.memory.available_permits();
    assert_eq!(all as u64 * PERMIT_BYTES, PARTS_BYTES_MAX);
    // With room for one part only they take turns.
    let held = bucket.memory.clone().acquire_many_owned(all as u32 - (5 << 10)).await.unwrap();
    let upload = |i: usize| {
        let (bucket, content) = (bucket.clone(), content.clone());
        async move { bucket.upload(&format!("x{i}"), content).await }
    };
    let uploads: Vec<_> = (0..4).map(|i| tokio::spawn(upload(i))).collect();
    for upload in uploads {
        upload.await.unwrap().unwrap();
    }
    drop(held);
    assert_eq!(bucket.memory.available_permits(), all);
}

#[tokio::test]
async fn an_upload_that_fails_at_any_request_leaves_no_object_and_succeeds_again() {
    let here = tempfile::tempdir().unwrap();
    // Begin, three parts, end.
    for failing in 0..5 {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bkt")).unwrap();
        let (address, asked) = serve(root.path(), Some(failing)).await;
        let bucket = open(&s3_at(address), "");
        let (content, bytes) = file(here.path(), 11 << 20);
        let first = bucket.upload("x/index", content.clone()).await;
        assert!(first.is_err(), "{failing}");
        assert!(!bucket.exists("x/index").await.unwrap(), "{failing}");
        let aborts = |(what, _): &&(String, http::HeaderMap)| what.starts_with("DELETE ");
        let aborted = asked.lock().requests.iter().filter(aborts).count();
        assert_eq!(aborted, usize::from(failing > 0), "{failing}");
        bucket.upload("x/index", content).await.unwrap();
        assert!(fs::read(root.path().join("bkt/x/index")).unwrap() == bytes, "{failing}");
    }
}

#[tokio::test]
async fn who_shows_wrong_keys_is_told_so_and_nothing_counts_as_absent() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("bkt")).unwrap();
    let (address, _) = serve(root.path(), None).await;
    let credentials = S3Credentials::Keys {
        access_key: "key".to_owned(),
        secret_key: Secret("wrong".to_owned()),
        session_token: Secret::default(),
    };
    let bucket = open(&S3Options { credentials, ..s3_at(address) }, "");
    let error = bucket.exists("x").await.unwrap_err();
    assert!(matches!(error, BucketError::Store { .. }), "{error:?}");
    assert!(bucket.upload("x", Content::Bytes(Bytes::from_static(b"a"))).await.is_err());
    // Nobody is there.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bucket = open(&S3Options { region: "r".to_owned(), ..s3_at(gone) }, "");
    assert!(bucket.exists("x").await.is_err());
}

/// Answers every request in the same way, if at all.
async fn answer_all(answer: Option<&'static str>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let noted = heads.clone();
    tokio::spawn(async move {
        let mut sockets = Vec::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = vec![0; 16 << 10];
            let len = socket.read(&mut head).await.unwrap_or(0);
            noted.lock().push(String::from_utf8_lossy(&head[..len]).into_owned());
            if let Some(answer) = answer {
                let _ = socket.write_all(answer.as_bytes()).await;
            }
            sockets.push(socket);
        }
    });
    (address, heads)
}

#[tokio::test]
async fn a_region_that_is_not_given_is_asked_for_once() {
    for (answer, region) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 61\r\nconnection: close\r\n\r\n\
             <LocationConstraint xmlns=\"x\">eu-north-1</LocationConstraint>",
            "eu-north-1",
        ),
        (
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 42\r\nconnection: close\r\n\r\n\
             <Error><Region>ap-east-1</Region></Error>\n",
            "ap-east-1",
        ),
        ("HTTP/1.1 501 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", "us-east-1"),
    ] {
        let (address, heads) = answer_all(Some(answer)).await;
        let bucket = open(&S3Options { retries_max: Some(1), ..s3_at(address) }, "");
        let _ = bucket.exists("x").await;
        let _ = bucket.exists("y").await;
        let heads = heads.lock().clone();
        let asks = heads.iter().filter(|head| head.starts_with("GET /bkt?location= ")).count();
        assert_eq!(asks, 1, "{heads:?}");
        let scope = format!("/{region}/s3/aws4_request");
        let looks: Vec<_> = heads.iter().filter(|head| head.starts_with("HEAD /bkt/")).collect();
        assert!(!looks.is_empty() && looks.iter().all(|head| head.contains(&scope)), "{heads:?}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let (address, heads) = answer_all(None).await;
    let mut options = S3Options { region: "r".to_owned(), ..s3_at(address) };
    options.http.response_header_timeout = Some(Duration::from_millis(50));
    let bucket = open(&options, "");
    let error = bucket.exists("x").await.unwrap_err();
    assert!(crate::error::chain(&error).contains("the request is not answered"), "{error:?}");
    assert!(!heads.lock().is_empty());
}

#[tokio::test]
async fn connections_to_one_host_are_bounded() {
    let (root, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(root.path().join("bkt")).unwrap();
    let (address, _) = serve(root.path(), None).await;
    let mut options = s3_at(address);
    options.http.connections_max = Some(1);
    let bucket = Arc::new(open(&options, ""));
    let (content, _) = file(here.path(), 1 << 20);
    let uploads: BTreeMap<usize, _> = (0..8)
        .map(|i| {
            let (bucket, content) = (bucket.clone(), content.clone());
            (i, tokio::spawn(async move { bucket.upload(&format!("x{i}"), content).await }))
        })
        .collect();
    for (_, upload) in uploads {
        upload.await.unwrap().unwrap();
    }
}

/// What Google's service has of objects and uploads in parts, as far as an upload asks for it.
#[derive(Default)]
struct FakeGcs {
    objects: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, Vec<u8>>,
}

impl FakeGcs {
    fn answer(&mut self, method: &str, uri: &http::Uri, body: Vec<u8>) -> Response<Full<Bytes>> {
        // An object's name is one element of the path.
        let path = uri.path().replace("%2F", "/").replace("%2E", ".");
        let query = uri.query().unwrap_or_default();
        let answer = Response::builder().header("etag", "\"e\"").header("x-goog-generation", "1");
        let answer = answer.header("last-modified", "Tue, 24 Nov 2026 04:33:40 GMT");
        let text = match method {
            "PUT" if query.contains("partNumber=") => {
                self.parts.insert(format!("{path}?{query}"), body);
                ""
            }
            "PUT" => {
                self.objects.insert(path, body);
                ""
            }
            "POST" if query.starts_with("uploads") => {
                "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            }
            "POST" => {
                let parts = std::mem::take(&mut self.parts);
                self.objects.insert(path, parts.into_values().flatten().collect());
                "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
            }
            _ => {
                let answer = match self.objects.get(&path) {
                    // No body is sent, but how long it would be is told.
                    Some(object) => answer.header("content-length", object.len()),
                    None => Response::builder().status(404),
                };
                return answer.body(Full::default()).unwrap();
            }
        };
        answer.body(Full::from(text)).unwrap()
    }
}

#[tokio::test]
async fn objects_get_to_google_in_one_or_several_parts() {
    let (fake, here) = (Arc::new(Mutex::new(FakeGcs::default())), tempfile::tempdir().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = fake.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let fake = served.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let fake = fake.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes().to_vec();
                    let answer = fake.lock().answer(parts.method.as_str(), &parts.uri, body);
                    Ok::<_, std::convert::Infallible>(answer)
                }
            });
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(socket), answer).await;
            });
        }
    });
    let key = format!(
        "{{\"type\": \"service_account\", \"private_key\": \"k\", \"private_key_id\": \"i\", \
         \"client_email\": \"e\", \"disable_oauth\": true, \"gcs_base_url\": \"http://{address}\"}}"
    );
    let options = GcsOptions {
        bucket: "bkt".to_owned(),
        service_account: Secret(key),
        part_bytes: 5 << 20,
        retries_max: Some(0),
        request_timeout: Some(Duration::from_secs(90)),
        http: crate::objstore::options::HttpOptions::default(),
    };
    let bucket = StoreBucket::gcs(&options, "p", &Registry::new()).unwrap();
    assert!(!bucket.exists("x/meta.json").await.unwrap());
    for len in [2, 11 << 20] {
        let (content, bytes) = file(here.path(), len);
        bucket.upload("x/meta.json", content).await.unwrap();
        assert!(fake.lock().objects["/bkt/p/x/meta.json"] == bytes, "{len}");
    }
    assert!(bucket.exists("x/meta.json").await.unwrap());
}
