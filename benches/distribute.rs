//! What a router does to a request before it is sent: places for every series, then one message per
//! endpoint and replica, in CPU time per series. `cargo bench --bench distribute`

mod common;

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use common::{REQUEST_SERIES, label_fields, requests, series_count};
use ringest::hashring::{
    Algorithm, Endpoint, Hashring, HashringMetrics, RingDefaults, RingOptions,
};
use ringest::metrics::Registry;
use ringest::peer::message::{Compression, Envelope, ForwardMessage};
use ringest::write::Manners;
use ringest::write::admission::Admission;
use ringest::write::distribute::{Batch, DeflatedGroups, Placed, Replicas, Unplaced, distribute};
use ringest::write::label_rules::LabelCaps;
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const START: i64 = 1_700_000_000_000;
const TENANT: &str = "default-tenant";

fn main() {
    // Nothing is remembered of a series, so a tenth of the write path's are as many as all.
    let count = (series_count() / 10).max(2 * REQUEST_SERIES);
    let labels: Vec<Vec<u8>> = (0..count).map(label_fields).collect();
    let requests: Vec<Bytes> = requests(&labels, START).into_iter().map(Bytes::from).collect();
    println!("{count} series of 12 labels, {REQUEST_SERIES} a request");
    for (nodes, factor) in [(3, 1), (3, 3), (10, 3), (100, 3)] {
        let hashring = ketama(nodes, factor);
        let mut placing = Duration::ZERO;
        let (mut plain, mut snappy, mut deflated_once) =
            <(Duration, Duration, Duration)>::default();
        for request in &requests {
            let mut placed = None;
            placing += time(|| placed = Some(place(&hashring, request, factor as u8)));
            let Some(placed) = placed else { continue };
            plain += time(|| gather(&placed, Compression::None));
            snappy += time(|| gather(&placed, Compression::Snappy));
            deflated_once += time(|| gather_deflated(&placed));
        }
        let per_series = |time: Duration| time.as_nanos() as f64 / count as f64;
        println!(
            "{nodes:>4} nodes, factor {factor}: {:>6.1} ns to place, {:>6.1} ns to gather all \
             copies, {:>7.1} ns with snappy, {:>7.1} ns deflated once",
            per_series(placing),
            per_series(plain),
            per_series(snappy),
            per_series(deflated_once)
        );
    }
}

fn ketama(nodes: usize, replication_factor: usize) -> Hashring {
    let endpoints = (0..nodes).map(|i| Endpoint::at(&format!("receive-{i}.receive.svc:10901")));
    let options = RingOptions { endpoints: endpoints.collect(), ..RingOptions::default() };
    let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor };
    Hashring::build(vec![options], defaults, None, &HashringMetrics::new(&Registry::new()))
}

fn place(hashring: &Hashring, request: &Bytes, factor: u8) -> Placed {
    let unplaced = Unplaced {
        request: request.clone(),
        is_of_peer: false,
        tenant: TENANT,
        manners: Manners::Thanos,
        caps: LabelCaps::default(),
        inflight: Admission::new(u64::MAX).admit(0).expect("no bound"),
    };
    let ring = hashring.ring_of(TENANT).expect("one ring takes all tenants");
    let placed = distribute(unplaced, &ring, hashring.endpoints().len(), Replicas::All(factor));
    let placed = placed.expect("a good request");
    assert_eq!(placed.series_count(), REQUEST_SERIES);
    placed
}

fn envelope(batch: &Batch) -> Envelope<'static> {
    let replica = u64::from(batch.replica) + 1;
    Envelope { tenant: TENANT, replica, is_merged: false, series_count: 0 }
}

fn gather(placed: &Placed, compression: Compression) {
    for batch in &placed.batches {
        let series = placed.series().fields(&batch.groups);
        let message = ForwardMessage::gather(envelope(batch), series, compression);
        black_box(message.expect("a short message"));
    }
}

/// As a router does with snappy: series are deflated once where the ring is small enough.
fn gather_deflated(placed: &Placed) {
    let Some(deflated) = DeflatedGroups::of(placed.series()) else {
        return gather(placed, Compression::Snappy);
    };
    for batch in &placed.batches {
        let groups = &batch.groups;
        let (bytes, chunks) = (deflated.plain_bytes(groups), deflated.chunks(groups));
        let message = ForwardMessage::gather_deflated(envelope(batch), bytes, chunks);
        black_box(message.expect("a short message"));
    }
}

/// CPU time of this thread: other load on the machine hardly shows.
fn time(work: impl FnOnce()) -> Duration {
    let started = cpu_time();
    work();
    cpu_time() - started
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
