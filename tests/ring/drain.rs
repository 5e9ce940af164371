//! Nodes that are told to stop while senders have connections open to them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;

use crate::node::{Node, Ring, new_node, write_request};
use crate::support::http::{Answer, Request, connect, read_answer, try_connect};
use crate::support::messages::compressed;
use crate::support::process::wait_for;

/// A write of a sender that keeps its connections.
fn kept_alive(message: &[u8]) -> Request {
    Request::new("POST", "/api/v1/receive").body(compressed(message)).kept_alive()
}

/// The next answer; `None` if the connection ended before a byte of it came.
fn answer(stream: &mut TcpStream) -> Option<Answer> {
    match read_answer(stream) {
        Ok(answer) => Some(answer),
        Err(error) if error.kind() == ErrorKind::InvalidData => panic!("no whole answer: {error}"),
        Err(_) => None,
    }
}

#[test]
fn a_stopping_node_takes_what_open_connections_still_send() {
    let root = tempfile::tempdir().unwrap();
    // What it took is counted in its head afterwards.
    let mut node = new_node(root.path(), "node").with_arg("--no-tsdb.flush-on-shutdown");
    node.start();
    let mut half_sent = Vec::new();
    // Cut within the head, and within the body.
    for (i, cut) in [(0, 30), (1, 90)] {
        let request = kept_alive(&write_request(i, 0)).bytes();
        let head = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        assert!((30..90).contains(&head), "{head}");
        let mut stream = connect(&node.remote_write);
        stream.write_all(&request[..cut]).unwrap();
        half_sent.push((stream, request[cut..].to_vec()));
    }
    let mut probe = connect(&node.http);
    let ready = format!("GET /-/ready HTTP/1.1\r\nHost: {}\r\n", node.http);
    probe.write_all(ready.as_bytes()).unwrap();

    node.signal(Signal::TERM);
    for address in [&node.remote_write, &node.http, &node.grpc] {
        let closes = wait_for(|| TcpStream::connect(address).is_err().then_some(()));
        assert!(closes.is_some(), "{address} is open");
    }
    probe.write_all(b"\r\n").unwrap();
    let unready = answer(&mut probe).expect("an answer");
    assert_eq!(unready.status, 503, "{unready:?}");
    for (mut stream, rest) in half_sent {
        stream.write_all(&rest).unwrap();
        let answer = answer(&mut stream).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.closes(), "{answer:?}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it is closed");
    }
    node.wait_end();
    node.start();
    assert_eq!(node.metric("prometheus_tsdb_head_series"), 2.0);
}

#[test]
fn a_rolling_restart_answers_no_sender_with_a_failure() {
    const SENDERS: usize = 12;
    // Over gRPC the peers of a node are restarted in `outages`.
    let mut ring = Ring::start_with(3, 3, Node::with_capnproto);
    let addresses: Vec<String> = ring.nodes.iter().map(|node| node.remote_write.clone()).collect();
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());

    // Like senders behind a service: who loses a connection before a byte of the answer has come
    // sends again by another, to the next node.
    let send = |sender: usize| {
        let mut node = sender;
        let mut connection = None;
        for t in 0.. {
            let message = write_request(sender, t);
            let answer = loop {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let address = &addresses[node % addresses.len()];
                let Some(stream) = connection.take().or_else(|| try_connect(address)) else {
                    node += 1;
                    continue;
                };
                let stream = connection.insert(stream);
                let written = stream.write_all(&kept_alive(&message).bytes());
                match written.ok().and_then(|()| answer(stream)) {
                    Some(answer) => break answer,
                    None => {
                        connection = None;
                        node += 1;
                    }
                }
            };
            if answer.closes() {
                connection = None;
                node += 1;
            }
            sent.fetch_add(1, Ordering::Relaxed);
            if answer.status != 200 {
                failures.lock().unwrap().push(answer);
            }
        }
    };
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            scope.spawn(move || send(sender));
        }
        let stopped = StopOnDrop(&stop);
        let wait_stretch = || {
            let from = sent.load(Ordering::Relaxed);
            let goes_on = wait_for(|| (sent.load(Ordering::Relaxed) > from + 500).then_some(()));
            assert!(goes_on.is_some(), "the senders are stuck");
        };
        wait_stretch();
        for i in 0..3 {
            ring.nodes[i].stop();
            wait_stretch();
            ring.nodes[i].start();
            let restarted = ring.nodes[i].grpc.clone();
            for other in (0..3).filter(|other| *other != i) {
                ring.nodes[other].wait_member(&restarted, "open");
            }
            ring.nodes[i].wait_others();
            wait_stretch();
        }
        drop(stopped);
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {sent:?}: {}", failures.len(), failures[0].text());
}

/// Ends the senders also when the test fails, which would wait for them for ever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
