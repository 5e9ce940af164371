//! A client that can send what no HTTP library sends: false lengths, odd methods, half requests.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::process::STUCK;

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
    /// Whether the connection is to stay open behind the answer.
    pub keeps_alive: bool,
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
            keeps_alive: false,
            timeout: STUCK,
        }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Request {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Gives it a body.
    pub(crate) fn body(self, body: impl Into<Vec<u8>>) -> Request {
        Request { body: Some(body.into()), ..self }
    }

    /// Declares so many bytes, whatever the body has.
    pub(crate) fn declaring(self, bytes: usize) -> Request {
        Request { content_length: Some(bytes as i64), ..self }
    }

    /// Keeps the connection.
    pub(crate) fn kept_alive(self) -> Request {
        Request { keeps_alive: true, ..self }
    }

    /// All that is sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes =
            format!("{} {} HTTP/{}\r\nHost: x\r\n", self.method, self.path, self.version)
                .into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        if !self.keeps_alive {
            bytes.extend_from_slice(b"Connection: close\r\n");
        }
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

    /// Whether it is the last one on its connection.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Expects that it asks the sender to come again: 503 and whole seconds, at least one.
    #[track_caller]
    pub(crate) fn assert_come_again(&self) {
        assert_eq!(self.status, 503, "{}", self.text());
        let retry_after = self.header("retry-after").expect("Retry-After");
        assert!(retry_after.parse::<u64>().is_ok_and(|seconds| seconds > 0), "{retry_after}");
    }
}

/// A connection on which nothing is waited for without end.
pub(crate) fn connect(address: &str) -> TcpStream {
    connect_for(address, STUCK).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// The same where nobody may be listening.
pub(crate) fn try_connect(address: &str) -> Option<TcpStream> {
    connect_for(address, STUCK).ok()
}

fn connect_for(address: &str, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(STUCK))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request on a connection of its own, and reads the answer, which must come.
#[track_caller]
pub(crate) fn ask(address: &str, request: &Request) -> Answer {
    let answer = exchange(address, request);
    answer.unwrap_or_else(|| panic!("no answer to {} {}", request.method, request.path))
}

/// Sends a request on a connection of its own; `None` if no answer came.
pub(crate) fn exchange(address: &str, request: &Request) -> Option<Answer> {
    let mut stream = connect_for(address, request.timeout).ok()?;
    if request.half_close {
        let _ = stream.write_all(&request.bytes());
        let _ = stream.shutdown(Shutdown::Write);
        return receive(&mut stream, request);
    }
    exchange_over(&mut stream, request)
}

/// Sends a request on a connection of its own, and does something halfway through its body.
pub(crate) fn exchange_in_halves(
    address: &str,
    request: &Request,
    halfway: impl FnOnce(),
) -> Option<Answer> {
    let mut stream = connect_for(address, request.timeout).ok()?;
    let bytes = request.bytes();
    let body = request.body.as_ref().map_or(0, Vec::len);
    let (first, rest) = bytes.split_at(bytes.len() - body / 2);
    stream.write_all(first).ok()?;
    halfway();
    let _ = stream.write_all(rest);
    receive(&mut stream, request)
}

/// Sends a request on a connection that is there, on which nothing else is under way.
pub(crate) fn exchange_over(stream: &mut (impl Read + Write), request: &Request) -> Option<Answer> {
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(&request.bytes());
    let _ = stream.flush();
    receive(stream, request)
}

fn receive(stream: &mut impl Read, request: &Request) -> Option<Answer> {
    read(stream, request.method == "HEAD").ok()
}

/// Reads one answer with a declared or chunked length, or up to the connection's end. Whoever
/// closes in the midst of one gets [`ErrorKind::InvalidData`].
pub(crate) fn read_answer(stream: &mut impl Read) -> io::Result<Answer> {
    read(stream, false)
}

fn read(stream: &mut impl Read, has_no_body: bool) -> io::Result<Answer> {
    let mut reader = BufReader::new(stream);
    if reader.fill_buf()?.is_empty() {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed without an answer"));
    }
    let answer = read_begun(&mut reader, has_no_body);
    answer.map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => io::Error::new(ErrorKind::InvalidData, "cut short"),
        _ => error,
    })
}

fn read_begun(reader: &mut impl BufRead, has_no_body: bool) -> io::Result<Answer> {
    let invalid = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
    let status_line = line(reader)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
    let status = status.ok_or_else(|| invalid(&status_line))?;
    let mut answer = Answer { status, headers: Vec::new(), body: Vec::new() };
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(&line))?;
        answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if status == 100 {
        return read_begun(reader, has_no_body);
    }
    if has_no_body || status == 204 {
        return Ok(answer);
    }
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = read_chunks(reader)?;
    } else if let Some(len) = answer.header("content-length") {
        answer.body = vec![0; len.parse().map_err(|_| invalid(len))?];
        reader.read_exact(&mut answer.body)?;
    } else {
        reader.read_to_end(&mut answer.body)?;
    }
    Ok(answer)
}

fn read_chunks(reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let len = usize::from_str_radix(&line(reader)?, 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; len + 2];
        reader.read_exact(&mut chunk)?;
        if len == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&chunk[..len]);
    }
}

/// A line without its end.
fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\r\n") {
        Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}
