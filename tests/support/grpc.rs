//! Calls as programs of other versions make them.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Called {
    /// Its gRPC status.
    pub(crate) code: i32,
    pub(crate) message: String,
    pub(crate) headers: HeaderMap,
}

/// Makes one call, on a connection of its own.
pub(crate) fn call(address: &str, path: &str, headers: &[(&str, &str)], message: &[u8]) -> Called {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("HTTP/2");
        tokio::spawn(connection);
        let mut request = Request::post(format!("http://{address}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let len = u32::try_from(message.len()).expect("below 4 GiB");
        let framed = [&[0][..], &len.to_be_bytes(), message].concat();
        let data = Ok::<_, Infallible>(Frame::data(Bytes::from(framed)));
        let body = StreamBody::new(stream::iter([data]));
        let request = request.body(body).expect("a valid request");
        let (head, body) = sender.send_request(request).await.expect("an answer").into_parts();
        let collected = body.collect().await.expect("the whole answer");
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let text = |name| {
            let value = trailers.get(name).or_else(|| head.headers.get(name));
            value.map(|value| value.to_str().expect("a plain header").to_owned())
        };
        Called {
            code: text("grpc-status").expect("a status").parse().expect("a number"),
            message: text("grpc-message").unwrap_or_default(),
            headers: head.headers.clone(),
        }
    })
}
