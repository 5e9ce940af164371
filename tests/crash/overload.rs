//! More than fits: the excess is told to come again, what is accepted is stored.

use std::io::Write as _;
use std::sync::Barrier;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::support::{
    Node, WriteRequest, connect, now, read_answer, wait_until, write_request_bytes,
};

const CONNECTIONS: usize = 64;
const SERIES: usize = 500;
/// Each connection stops once it was accepted this often.
const ACCEPTED_EACH: usize = 3;

fn request(connection: usize, t: i64) -> WriteRequest {
    let connection = connection.to_string();
    let mut request = WriteRequest::default();
    for series in 0..SERIES {
        let series = series.to_string();
        let labels =
            [("__name__", "load"), ("connection", &connection[..]), ("series", &series[..])];
        // A value that does not compress.
        let value = f64::from_bits((t as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2);
        request = request.with(&labels, &[(t, value)]);
    }
    request
}

#[test]
fn overload_is_refused_and_what_is_accepted_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    // A request is about 35 KB inflated.
    let args = [
        "--receive.request-bytes-max=100KB",
        "--receive.decoded-bytes-max=150KB",
        "--receive.inflight-bytes-max=250KB",
    ];
    let mut node = Node::start_ready(dir.path(), &args);
    let clock = AtomicI64::new(now());
    let refused = AtomicUsize::new(0);
    let accepted: Mutex<Vec<(usize, i64)>> = Mutex::default();
    let all_begun = Barrier::new(CONNECTIONS + 1);
    let go_on = Barrier::new(CONNECTIONS + 1);
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let (clock, refused, accepted) = (&clock, &refused, &accepted);
            let (all_begun, go_on, address) = (&all_begun, &go_on, &node.remote_write);
            scope.spawn(move || {
                let mut accepted_here = 0;
                for round in 0.. {
                    let t = clock.fetch_add(1, Ordering::Relaxed);
                    let bytes = write_request_bytes(b"a", &request(connection, t).compressed());
                    let (last, rest) = bytes.split_last().unwrap();
                    let mut stream = connect(address);
                    // A refusal may come, and the connection close, before all is sent.
                    let _ = stream.write_all(rest);
                    if round == 0 {
                        all_begun.wait();
                        go_on.wait();
                    }
                    let _ = stream.write_all(&[*last]);
                    let answer = read_answer(&mut stream).unwrap();
                    if answer.status == 200 {
                        accepted.lock().push((connection, t));
                        accepted_here += 1;
                    } else {
                        answer.assert_come_again();
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    if accepted_here == ACCEPTED_EACH {
                        break;
                    }
                }
            });
        }
        // Nothing is done before its last byte is here, so the budget is exceeded for certain.
        all_begun.wait();
        let refusals =
            "http_requests_total{code=\"503\",handler=\"receive\",method=\"post\",tenant=\"a\"}";
        wait_until("refused", || node.metric(refusals).is_some_and(|count| count > 0.0));
        go_on.wait();
    });
    node.assert_alive();
    let (refused, accepted) = (refused.into_inner(), accepted.into_inner());
    println!("{} accepted, {refused} refused", accepted.len());
    assert!(refused > 0, "no overload");
    assert_eq!(accepted.len(), CONNECTIONS * ACCEPTED_EACH);

    let peak = node.resident_bytes_peak();
    println!("peak {peak} bytes");
    // 32,000 series, some requests and the threads that serve them.
    assert!(peak < 100 << 20, "{peak}");
    let samples = "prometheus_tsdb_head_samples_appended_total{tenant=\"a\",type=\"float\"}";
    assert_eq!(node.metric(samples), Some((accepted.len() * SERIES) as f64));
    node.kill();
    let node = Node::start_ready(dir.path(), &args);
    assert_eq!(
        node.metric("prometheus_tsdb_head_series{tenant=\"a\"}"),
        Some((CONNECTIONS * SERIES) as f64)
    );
    let stored = node.read("a");
    for (connection, t) in accepted {
        for series in [0, SERIES / 2, SERIES - 1] {
            let name =
                format!("{{__name__=\"load\",connection=\"{connection}\",series=\"{series}\"}}");
            assert!(stored[&name].contains_key(&t), "{name} lacks {t}");
        }
    }
}

/// A body that declares much and sends little holds only what it sent, so that some slow senders
/// do not shut out the others.
#[test]
fn declared_bytes_are_not_held() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "--receive.request-bytes-max=1MB",
        "--receive.decoded-bytes-max=1MB",
        "--receive.inflight-bytes-max=2MB",
    ];
    let mut node = Node::start_ready(dir.path(), &args);
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = connect(&node.remote_write);
        let head = "POST /api/v1/receive HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx";
        stream.write_all(head.as_bytes()).unwrap();
        slow.push(stream);
    }
    let inflight =
        "http_inflight_requests{handler=\"receive\",method=\"POST\",tenant=\"default-tenant\"}";
    wait_until("all are being read", || node.metric(inflight) == Some(50.0));
    for number in 0..10 {
        assert_eq!(node.write("a", &request(number, now())).status, 200);
    }
    node.assert_alive();
}
