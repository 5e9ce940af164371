//! More than fits: the excess is told to come again, what is accepted is stored.

use std::io::Write as _;
use std::sync::Barrier;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::support::http::{connect, read_answer};
use crate::support::messages::{WriteRequest, write_request};
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::wait_until;

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
    let node = Node::start_ready(dir.path(), &args);
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
                    let bytes = write_request(b"a", &request(connection, t).compressed()).bytes();
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
        let refusals = "http_requests_total{code=\"503\",handler=\"receive\",method=\"post\",tenant=\"/unknown\"}";
        wait_until("refused", || node.exposed(refusals).is_some_and(|count| count > 0.0));
        go_on.wait();
    });
    node.assert_alive();
    let (refused, accepted) = (refused.into_inner(), accepted.into_inner());
    // Some while they come in, and some as batches that have to wait for the log.
    let counted = ["http", "append"].map(|door| {
        let family = "ringest_overload_refused_requests_total";
        let counted = node.exposed(&format!("{family}{{budget=\"write\",door=\"{door}\"}}"));
        counted.unwrap_or_else(|| panic!("{door} is not counted"))
    });
    println!("refused at the door and at the log: {counted:?}");
    assert_eq!(counted.iter().sum::<f64>(), refused as f64);
    println!("{} accepted, {refused} refused", accepted.len());
    assert!(refused > 0, "no overload");
    assert_eq!(accepted.len(), CONNECTIONS * ACCEPTED_EACH);

    let peak = node.resident_bytes_peak();
    println!("peak {peak} bytes");
    // 32,000 series, some requests and the threads that serve them.
    assert!(peak < 100 << 20, "{peak}");
    let samples = "prometheus_tsdb_head_samples_appended_total{tenant=\"a\",type=\"float\"}";
    assert_eq!(node.exposed(samples), Some((accepted.len() * SERIES) as f64));
    node.kill();
    let node = Node::start_ready(dir.path(), &args);
    assert_eq!(
        node.exposed("prometheus_tsdb_head_series{tenant=\"a\"}"),
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

/// What a person looks for whose node refuses something: what is used, how much there is, and what
/// was refused.
#[test]
fn every_budget_is_on_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let node =
        Node::start_ready(dir.path(), &["--receive.tenants-max=2", "--tsdb.head-series-max=1"]);
    let series = |name: &str| WriteRequest::default().with(&[("__name__", name)], &[(now(), 1.0)]);
    // The default tenant is the other one.
    assert_eq!(node.write("a", &series("first")).status, 200);
    assert_eq!(node.write("a", &series("second")).status, 409);
    node.write("b", &series("first")).assert_come_again();
    let refused_series =
        "ringest_head_samples_refused_total{tenant=\"a\",reason=\"too_many_series\"}";
    for (name, value) in [
        ("ringest_tenants", 2.0),
        ("ringest_tenants_max", 2.0),
        ("ringest_tenants_refused_total", 1.0),
        ("ringest_head_series_max", 1.0),
        (refused_series, 1.0),
        ("ringest_inflight_bytes", 0.0),
        ("ringest_inflight_bytes_max", f64::from(640 << 20)),
        ("ringest_query_inflight_bytes", 0.0),
        ("ringest_large_work_under_way{of=\"write\"}", 0.0),
        ("ringest_large_work_waiting{of=\"read\"}", 0.0),
        ("ringest_connections{listener=\"grpc\"}", 0.0),
        ("ringest_connections{listener=\"capnproto\"}", 0.0),
        ("ringest_capnproto_calls_under_way", 0.0),
        ("ringest_connection_calls_max{listener=\"capnproto\"}", 1000.0),
    ] {
        assert_eq!(node.exposed(name), Some(value), "{name}");
    }
    // This question's own.
    assert!(node.exposed("ringest_connections{listener=\"http\"}") >= Some(1.0));
    for pool in ["http_bodies", "http_inflated", "grpc_messages", "capnproto_words"] {
        let used = node.exposed(&format!("ringest_buffer_pool_bytes{{pool=\"{pool}\"}}"));
        let limit = node.exposed(&format!("ringest_buffer_pool_bytes_max{{pool=\"{pool}\"}}"));
        assert!(used.is_some() && used <= limit, "{pool}: {used:?} of {limit:?}");
    }
    for (budget, door) in [("write", "http"), ("write", "grpc"), ("read", "grpc")] {
        let name = "ringest_overload_refused_requests_total";
        let refused = node.exposed(&format!("{name}{{budget=\"{budget}\",door=\"{door}\"}}"));
        assert_eq!(refused, Some(0.0), "{budget} {door}");
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
    let node = Node::start_ready(dir.path(), &args);
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = connect(&node.remote_write);
        let request = write_request(b"a", b"x").declaring(1_000_000);
        stream.write_all(&request.bytes()).unwrap();
        slow.push(stream);
    }
    let inflight =
        "http_inflight_requests{handler=\"receive\",method=\"POST\",tenant=\"/unknown\"}";
    wait_until("all are being read", || node.exposed(inflight) == Some(50.0));
    for number in 0..10 {
        assert_eq!(node.write("a", &request(number, now())).status, 200);
    }
    node.assert_alive();
}
