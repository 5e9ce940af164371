//! Connections that stall, and very many of them.

use std::io::{ErrorKind, Read, Write as _};
use std::net::TcpStream;

use crate::support::http::{Request, connect, read_answer};
use crate::support::messages::{WriteRequest, write_request};
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::wait_until;

const HALF_SENT: usize = 500;
const IDLE_WANTED: u64 = 10_000;
const IDLE_MIN: u64 = 2_000;

fn valid() -> WriteRequest {
    WriteRequest::of(&[("__name__", "up")], now(), 1.0)
}

/// Whether the other end has closed, whatever it said before.
fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

#[test]
fn half_sent_requests_are_closed_and_others_served_meanwhile() {
    crate::raise_file_limit();
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &["--receive.body-read-timeout=2s"]);
    let body = valid().compressed();
    let mut half_sent = Vec::new();
    for i in 0..HALF_SENT {
        let mut stream = connect(&node.remote_write);
        // Some stop within their body, some within their head, some say nothing.
        match i % 5 {
            0 => stream.write_all(b"POST /api/v1/receive HTTP/1.1\r\nHost: x\r\nTHANOS-").unwrap(),
            _ => {
                let request = write_request(b"a", &body).declaring(body.len() + 1000);
                stream.write_all(&request.kept_alive().bytes()).unwrap();
            }
        }
        stream.set_nonblocking(true).unwrap();
        half_sent.push(stream);
    }
    assert_eq!(node.write("a", &valid()).status, 200);
    // In the head's and the body's own time; the others go on being served.
    wait_until("all closed", || {
        assert_eq!(node.write("a", &valid()).status, 200);
        half_sent.retain_mut(|stream| !is_closed(stream));
        half_sent.is_empty()
    });
    node.assert_alive();
    let inflight =
        "http_inflight_requests{handler=\"receive\",method=\"POST\",tenant=\"/unknown\"}";
    wait_until("nothing is left of them", || node.exposed(inflight) == Some(0.0));
}

#[test]
fn a_body_that_stalls_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &["--receive.body-read-timeout=1s"]);
    let mut stream = connect(&node.remote_write);
    let request = Request::new("POST", "/api/v1/receive").body(*b"x").declaring(1000);
    stream.write_all(&request.kept_alive().bytes()).unwrap();
    let answer = read_answer(&mut stream).unwrap();
    answer.assert_come_again();
    assert!(answer.text().starts_with("unavailable: request body did not arrive"), "{answer:?}");
    assert!(is_closed(&mut stream));
}

#[test]
fn thousands_of_idle_connections_cost_little() {
    let files = crate::raise_file_limit();
    // This process and the receiver have the same limit each, and other files besides.
    let count = IDLE_WANTED.min(files.saturating_sub(500));
    assert!(count >= IDLE_MIN, "{files} open files allow too few connections to tell anything");
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    assert_eq!(node.write("a", &valid()).status, 200);
    let before = node.resident_bytes();
    let mut idle = Vec::new();
    for i in 0..count {
        let mut stream = connect(&node.remote_write);
        // Half of them have been of use before.
        if i % 2 == 0 {
            write_over(&mut stream);
        }
        idle.push(stream);
    }
    wait_until("served among them", || node.write("a", &valid()).status == 200);
    let each = node.resident_bytes().saturating_sub(before) / count;
    println!("{count} connections, {each} bytes each");
    assert!(each < 40_000, "{each} bytes a connection");
    // Those of use before are of use still. For how long they may idle is judged where time is the
    // test's: in the tests of `http`.
    idle.iter_mut().step_by(100).for_each(write_over);
    node.assert_alive();
}

/// Writes over a connection that is to stay.
fn write_over(stream: &mut TcpStream) {
    let request = write_request(b"a", &valid().compressed()).kept_alive();
    stream.write_all(&request.bytes()).unwrap();
    let answer = read_answer(stream).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}
