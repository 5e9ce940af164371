//! Sending and verifying against a small server in this process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::protobuf::{push_labels, push_series, push_varint, write_request};
use super::*;

type Labels = Vec<(String, String)>;

/// What the server holds, by tenant and labels.
#[derive(Default)]
struct Store {
    series: BTreeMap<(String, Labels), Vec<(i64, u64)>>,
    /// Statuses to answer before anything is stored; taken from the end.
    refusals: Vec<StatusCode>,
    requests: u32,
}

impl Store {
    /// The samples of some series that has at least one.
    fn some_series(&mut self) -> &mut Vec<(i64, u64)> {
        self.series.values_mut().nth(17).unwrap()
    }
}

struct FakeServer {
    address: SocketAddr,
    store: Arc<Mutex<Store>>,
    /// Serves until dropped.
    _runtime: tokio::runtime::Runtime,
}

impl FakeServer {
    fn start() -> FakeServer {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let store = Arc::new(Mutex::new(Store::default()));
        let router = Router::new()
            .route("/write", post(fake_write))
            .route("/read", post(fake_read))
            .with_state(store.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        FakeServer { address, store, _runtime: runtime }
    }

    fn options(&self, rounds: u32) -> SendOptions {
        SendOptions {
            write_url: format!("http://{}/write", self.address).parse().unwrap(),
            rate: None,
            rounds: Some(rounds),
            duration: None,
            timeout: Duration::from_secs(30),
            retry_for: Duration::from_secs(60),
        }
    }

    fn send(&self, workload: &Workload, options: &SendOptions) -> Total {
        send_noting(workload, options, None)
    }

    fn verify(&self, workload: &Workload, acknowledged: &Acknowledged) -> Verification {
        verify_together(&[self], workload, acknowledged)
    }

    /// A node that holds the same samples.
    fn replica(&self) -> FakeServer {
        let replica = FakeServer::start();
        replica.store.lock().unwrap().series = self.store.lock().unwrap().series.clone();
        replica
    }
}

fn verify_together(
    nodes: &[&FakeServer],
    workload: &Workload,
    acknowledged: &Acknowledged,
) -> Verification {
    let read_url = |node: &&FakeServer| format!("http://{}/read", node.address).parse().unwrap();
    let options = VerifyOptions {
        read_urls: nodes.iter().map(read_url).collect(),
        format: ReadFormat::Samples,
        concurrency: 2,
    };
    runtime().unwrap().block_on(verify(workload, acknowledged, &options)).unwrap()
}

fn send_noting(
    workload: &Workload,
    options: &SendOptions,
    acked_file: Option<&AckedFile>,
) -> Total {
    let setup = Setup {
        workload,
        options,
        acked_file,
        keep_acknowledged: true,
        progress: &Progress::default(),
        stop: CancellationToken::new(),
    };
    let lanes = workload.lanes();
    send(&setup, |connection| Ok(EncodedOnDemand::new(workload, &lanes, connection))).unwrap()
}

fn tenant(headers: &HeaderMap) -> String {
    headers.get("THANOS-TENANT").map_or("", |value| value.to_str().unwrap()).to_owned()
}

async fn fake_write(
    State(store): State<Arc<Mutex<Store>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut store = store.lock().unwrap();
    store.requests += 1;
    if let Some(status) = store.refusals.pop() {
        return (status, [("Retry-After", "0")], "not now\nsecond line").into_response();
    }
    let request = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
    for series in write_request(&request).unwrap() {
        let labels = series
            .labels
            .into_iter()
            .map(|(n, v)| (String::from_utf8(n).unwrap(), String::from_utf8(v).unwrap()))
            .collect();
        store.series.entry((tenant(&headers), labels)).or_default().extend(series.samples);
    }
    StatusCode::OK.into_response()
}

async fn fake_read(
    State(store): State<Arc<Mutex<Store>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = snap::raw::Decoder::new().decompress_vec(&body).unwrap();
    let store = store.lock().unwrap();
    let mut result = Vec::new();
    for ((of, labels), samples) in &store.series {
        let wanted = labels
            .iter()
            .any(|(name, value)| name == "instance" && matches_request(&request, value));
        if wanted && *of == tenant(&headers) {
            let mut with_external = labels.clone();
            with_external.push(("replica".to_owned(), "a".to_owned()));
            let mut encoded = Vec::new();
            push_labels(&mut encoded, &with_external);
            push_series(&mut result, &encoded, samples);
        }
    }
    let mut response = vec![0x0a];
    push_varint(&mut response, result.len() as u64);
    response.extend_from_slice(&result);
    snap::raw::Encoder::new().compress_vec(&response).unwrap().into_response()
}

/// Whether the request's matcher asks for this value. The time range is not looked at: an answer may
/// reach beyond it, as streamed chunks do.
fn matches_request(request: &[u8], value: &str) -> bool {
    let mut matcher = vec![0x1a, value.len() as u8];
    matcher.extend_from_slice(value.as_bytes());
    request.windows(matcher.len()).any(|window| window == matcher)
}

fn small() -> Workload {
    Workload {
        series_count: 500,
        series_per_request: 40,
        samples_per_series: 2,
        connections: 3,
        churn_percent: 30.0,
        stale_percent: 3.0,
        ..Workload::new(1_764_000_000_000)
    }
}

#[test]
fn everything_sent_is_found_again() {
    for order in [Order::Stable, Order::Shuffled] {
        for timestamps in [TimestampSource::Wall, TimestampSource::Synthetic] {
            for tenants in [vec![], vec!["a".to_owned(), "b".to_owned()]] {
                let workload = Workload { order, timestamps, tenants, ..small() };
                let server = FakeServer::start();
                let total = server.send(&workload, &server.options(7));
                assert_eq!(total.tally.acknowledged_samples, 7_000);
                let found = server.verify(&workload, total.acknowledged.as_ref().unwrap());
                assert!(found.is_clean(), "{workload:?}: {found:?}");
                assert_eq!((found.intact, found.unacknowledged_stored), (7_000, 0));
            }
        }
    }
}

#[test]
fn each_kind_of_damage_is_found_and_shown() {
    let workload = small();
    let server = FakeServer::start();
    let total = server.send(&workload, &server.options(3));
    let acknowledged = total.acknowledged.unwrap();
    let after = |damage: fn(&mut Store)| {
        let undamaged = server.store.lock().unwrap().series.clone();
        damage(&mut server.store.lock().unwrap());
        let found = server.verify(&workload, &acknowledged);
        server.store.lock().unwrap().series = undamaged;
        assert!(!found.is_clean());
        assert!(found.examples[0].contains("instance=\"10."), "{:?}", found.examples);
        (found.missing, found.different, found.duplicated, found.unexpected)
    };
    let lost = after(|store| {
        store.some_series().pop();
    });
    assert_eq!(lost, (1, 0, 0, 0));
    let flipped = after(|store| store.some_series()[0].1 ^= 1);
    assert_eq!(flipped, (0, 1, 0, 0));
    let doubled = after(|store| {
        let samples = store.some_series();
        samples.push(samples[0]);
    });
    assert_eq!(doubled, (0, 0, 1, 0));
    let moved = after(|store| store.some_series()[0].0 += 1);
    assert_eq!(moved, (1, 0, 0, 1));
    let foreign = after(|store| {
        let ((tenant, mut labels), samples) = store.series.pop_first().unwrap();
        labels[1].1.push('x');
        store.series.insert((tenant, labels), samples);
    });
    assert!(foreign.0 > 0 && foreign.0 == foreign.3, "{foreign:?}");
    assert!(server.verify(&workload, &acknowledged).is_clean(), "damage was undone");
}

#[test]
fn samples_spread_over_nodes_are_found_in_any_of_them() {
    let workload = small();
    let first = FakeServer::start();
    let total = first.send(&workload, &first.options(3));
    let acknowledged = total.acknowledged.unwrap();
    let (second, third) = (first.replica(), FakeServer::start());
    // The two overlap in the second third of each series, so that no series is whole in one.
    for samples in first.store.lock().unwrap().series.values_mut() {
        samples.truncate(samples.len() * 2 / 3);
    }
    for samples in second.store.lock().unwrap().series.values_mut() {
        samples.drain(..samples.len() / 3);
    }
    let found = verify_together(&[&first, &second, &third], &workload, &acknowledged);
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(found.intact, 3_000);
    let [once, twice] = [1, 2].map(|node_count| found.intact_by_node_count[&node_count]);
    assert_eq!(once + twice, 3_000);
    assert!(once > 0 && twice > 0, "{once} {twice}");
    assert!(!verify_together(&[&first, &third], &workload, &acknowledged).is_clean());
    assert!(!verify_together(&[&second, &third], &workload, &acknowledged).is_clean());
}

#[test]
fn damage_in_one_node_is_not_hidden_by_the_others() {
    let workload = small();
    let first = FakeServer::start();
    let total = first.send(&workload, &first.options(3));
    let acknowledged = total.acknowledged.unwrap();
    let second = first.replica();
    let after = |damage: fn(&mut Store)| {
        let undamaged = second.store.lock().unwrap().series.clone();
        damage(&mut second.store.lock().unwrap());
        let found = verify_together(&[&first, &second], &workload, &acknowledged);
        second.store.lock().unwrap().series = undamaged;
        found
    };
    let at_second = format!(" at {}", second.address);

    let flipped = after(|store| store.some_series()[0].1 ^= 1);
    assert_eq!((flipped.different, flipped.intact), (1, 2_999));
    assert!(flipped.examples[0].ends_with(&at_second), "{:?}", flipped.examples);

    let doubled = after(|store| {
        let samples = store.some_series();
        samples.push(samples[0]);
    });
    assert_eq!((doubled.duplicated, doubled.intact), (1, 3_000));
    assert!(doubled.examples[0].ends_with(&at_second), "{:?}", doubled.examples);

    let moved = after(|store| store.some_series()[0].0 += 1);
    assert_eq!((moved.unexpected, moved.missing), (1, 0));
    assert_eq!(moved.intact_by_node_count, [(1, 1), (2, 2_999)].into());

    let lost = after(|store| {
        store.some_series().pop();
    });
    assert!(lost.is_clean(), "the other node has it: {lost:?}");
    assert_eq!(lost.intact_by_node_count, [(1, 1), (2, 2_999)].into());
}

#[test]
fn retryable_answers_are_retried_and_others_are_not() {
    let workload = Workload { connections: 1, ..small() };
    let server = FakeServer::start();
    server.store.lock().unwrap().refusals = vec![
        StatusCode::CONFLICT,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::INTERNAL_SERVER_ERROR,
    ];
    let total = server.send(&workload, &server.options(1));
    // The first request meets all four and is lost to the conflict: 40 series of 2 samples.
    assert_eq!(total.tally.retries, 3);
    assert_eq!(total.tally.unacknowledged_samples, 80);
    assert_eq!(total.tally.acknowledged_samples, 920);
    assert_eq!(total.tally.statuses, [(200, 12), (409, 1), (429, 1), (500, 1), (503, 1)].into());
    assert_eq!(total.tally.complaints["409"], "not now");
    let found = server.verify(&workload, total.acknowledged.as_ref().unwrap());
    assert!(found.is_clean(), "{found:?}");
    assert_eq!(found.intact, 920);
}

#[test]
fn a_request_is_given_up_when_patience_ends() {
    let workload = Workload { series_count: 10, connections: 1, ..small() };
    let server = FakeServer::start();
    server.store.lock().unwrap().refusals = vec![StatusCode::SERVICE_UNAVAILABLE; 1_000];
    let options = SendOptions { retry_for: Duration::ZERO, ..server.options(1) };
    let total = server.send(&workload, &options);
    assert_eq!(total.tally.acknowledged_samples, 0);
    assert_eq!(total.tally.unacknowledged_samples, 20);
}

#[test]
fn a_request_stored_without_its_acknowledgement_is_no_fault() {
    let workload = Workload { connections: 1, ..small() };
    let server = FakeServer::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("acked");
    let file = AckedFile::create(&path, &workload).unwrap();
    send_noting(&workload, &server.options(2), Some(&file));

    // The sender dies after the server stored its last request, before it noted the answer.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let (read_workload, acknowledged) = acked::read(&path).unwrap();
    assert_eq!(read_workload, workload);
    let found = server.verify(&workload, &acknowledged);
    assert!(found.is_clean(), "{found:?}");
    // 13 requests a round; the last has 20 series of 2 samples.
    assert_eq!((found.intact, found.unacknowledged_stored), (1_960, 40));
}

#[test]
fn pregenerated_bodies_are_the_same_as_those_made_on_demand() {
    let workload = Workload { tenants: vec!["a".to_owned(), "b".to_owned()], ..small() };
    let lanes = workload.lanes();
    for connection in 0..3 {
        let mut pregenerated = Pregenerated::new(&workload, &lanes, connection, 3).unwrap();
        let mut on_demand = EncodedOnDemand::new(&workload, &lanes, connection);
        for round in 0..3 {
            let base = workload.synthetic_base(round);
            loop {
                let left = pregenerated.next(round, base).unwrap();
                let right = on_demand.next(round, base).unwrap();
                let (Some(left), Some(right)) = (&left, &right) else {
                    assert!(left.is_none() && right.is_none());
                    break;
                };
                assert_eq!((left.lane, left.request), (right.lane, right.request));
                assert_eq!(left.tenant, right.tenant);
                assert_eq!(left.body.bytes, right.body.bytes);
            }
        }
    }
}
