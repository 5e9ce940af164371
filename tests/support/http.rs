//! A client that can send what no HTTP library sends: false lengths, odd methods, half requests.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

pub(crate) struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Option<Vec<u8>>,
    pub version: String,
    pub chunked: bool,
    /// Declared instead of the true length.
    pub content_length: Option<i64>,
    pub half_close: bool,
    pub timeout: Duration,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Request {
        Request {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: None,
            version: "1.1".to_owned(),
            chunked: false,
            content_length: None,
            half_close: false,
            timeout: Duration::from_secs(15),
        }
    }

    fn bytes(&self, address: &str) -> Vec<u8> {
        let mut bytes =
            format!("{} {} HTTP/{}\r\nHost: {address}\r\n", self.method, self.path, self.version)
                .into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"Connection: close\r\n");
        let body = self.body.as_deref().unwrap_or_default();
        if self.chunked {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(1000) {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            return bytes;
        }
        let takes_body = matches!(self.method.as_str(), "POST" | "PUT" | "PATCH");
        if self.content_length.is_some() || self.body.is_some() || takes_body {
            let len = self.content_length.unwrap_or(body.len() as i64);
            bytes.extend_from_slice(format!("Content-Length: {len}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        bytes
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Sends a request on a connection of its own; `None` if no answer came.
pub(crate) fn exchange(address: &str, request: &Request) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(request.timeout)).expect("read timeout");
    if request.half_close {
        let _ = stream.write_all(&request.bytes(address));
        let _ = stream.shutdown(Shutdown::Write);
        return receive(&mut stream, request);
    }
    exchange_over(&mut stream, address, request)
}

/// Sends a request on a connection of its own, and does something halfway through its body.
#[allow(dead_code, reason = "not every suite needs it")]
pub(crate) fn exchange_in_halves(
    address: &str,
    request: &Request,
    halfway: impl FnOnce(),
) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(request.timeout)).expect("read timeout");
    let bytes = request.bytes(address);
    let body = request.body.as_ref().map_or(0, Vec::len);
    let (first, rest) = bytes.split_at(bytes.len() - body / 2);
    stream.write_all(first).ok()?;
    halfway();
    let _ = stream.write_all(rest);
    receive(&mut stream, request)
}

/// Sends a request on a connection that is there, which nothing else is sent on.
pub(crate) fn exchange_over(
    stream: &mut (impl Read + Write),
    address: &str,
    request: &Request,
) -> Option<Answer> {
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(&request.bytes(address));
    let _ = stream.flush();
    receive(stream, request)
}

fn receive(stream: &mut impl Read, request: &Request) -> Option<Answer> {
    let mut received = Vec::new();
    let _ = stream.read_to_end(&mut received);
    parse(&received, request.method == "HEAD")
}

fn parse(mut received: &[u8], headless: bool) -> Option<Answer> {
    loop {
        let end = received.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&received[..end]).into_owned();
        let rest = &received[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        if status == 100 {
            received = rest;
            continue;
        }
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        if headless {
            return Some(answer);
        }
        answer.body = if answer.header("transfer-encoding") == Some("chunked") {
            join_chunks(rest)?
        } else {
            let len = answer.header("content-length").and_then(|len| len.parse().ok());
            rest.get(..len.unwrap_or(rest.len()))?.to_vec()
        };
        return Some(answer);
    }
}

fn join_chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        if len == 0 {
            return Some(body);
        }
        rest = &rest[end + 2..];
        body.extend_from_slice(rest.get(..len)?);
        rest = rest.get(len + 2..)?;
    }
}
