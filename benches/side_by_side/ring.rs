//! Nodes in a ring with three copies of each series: a router before nodes that store, and three
//! nodes that do both.
//!
//! The router's figures are its process' alone, so that the nodes behind it, which share the
//! machine, do not show in them. They show in another row: what storing a sample costs that comes
//! from the router, beside one that comes over HTTP.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringest::load::{Total, grouped};

use crate::scenario::{RingScenarios, Scenario};
use crate::server::{Addresses, Kind, Running, Server};
use crate::table::{Columns, Row, Subject};
use crate::{AnyError, Plan, milliseconds, samples_per_second};

const REPLICATION_FACTOR: u32 = 3;

/// A ring whose every node takes writes.
const RING_NODES: u32 = 3;

/// How series reach the nodes that store them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Forwarding {
    Plain,
    Snappy,
    Capnproto,
}

impl Forwarding {
    const ALL: [Forwarding; 3] = [Forwarding::Plain, Forwarding::Snappy, Forwarding::Capnproto];

    fn name(self) -> &'static str {
        match self {
            Forwarding::Plain => "none",
            Forwarding::Snappy => "snappy",
            Forwarding::Capnproto => "capnproto",
        }
    }

    fn flag(self) -> String {
        match self {
            Forwarding::Plain | Forwarding::Snappy => {
                format!("--receive.grpc-compression={}", self.name())
            }
            Forwarding::Capnproto => format!("--receive.replication-protocol={}", self.name()),
        }
    }
}

/// What a router did.
struct Routed {
    total: Total,
    router_cpu: Duration,
    /// Of the nodes that store, together, for as many samples and copies.
    storing_cpu: Duration,
    direct: Direct,
    resident: u64,
    peak_resident: u64,
    /// The most that was seen on the way to peers; `None` where it is not told.
    forwarding_bytes: Option<u64>,
}

/// CPU time of nodes that store the same copies, sent to them over HTTP.
#[derive(Clone, Copy)]
struct Direct {
    /// In the requests that the router takes, as long as a message to a node of three that holds
    /// all replicas.
    large_requests: Duration,
    /// In requests as long as a message that holds one replica.
    small_requests: Duration,
}

const ROUTER_ROWS: [Row<Routed>; 9] = [
    ("router alone, samples/CPU s", |r| Some(per_second(r.samples(), r.router_cpu)), 0),
    ("request p50, ms", |r| Some(milliseconds(&r.total, 0.5)), 2),
    ("request p99, ms", |r| Some(milliseconds(&r.total, 0.99)), 2),
    ("router resident, MB", |r| Some(r.resident as f64 / 1e6), 1),
    ("router resident at most, MB", |r| Some(r.peak_resident as f64 / 1e6), 1),
    ("under way to peers, at most, MB", |r| Some(r.forwarding_bytes? as f64 / 1e6), 2),
    ("storing a forwarded sample, ns CPU", |r| Some(nanoseconds(r.storing_cpu, r.copies())), 0),
    ("over HTTP in requests of 2,000, ns", |r| Some(r.direct_nanoseconds().0), 0),
    ("over HTTP in requests of one replica, ns", |r| Some(r.direct_nanoseconds().1), 0),
];

impl Routed {
    fn samples(&self) -> u64 {
        self.total.tally.acknowledged_samples
    }

    /// A sample in large requests, and in small ones.
    fn direct_nanoseconds(&self) -> (f64, f64) {
        let per_sample = |time| nanoseconds(time, self.copies());
        (per_sample(self.direct.large_requests), per_sample(self.direct.small_requests))
    }

    fn copies(&self) -> u64 {
        self.samples() * u64::from(REPLICATION_FACTOR)
    }
}

/// What a ring of nodes that route and store did.
struct Stored {
    total: Total,
    /// Of all nodes together.
    cpu: Duration,
    /// Of the node that took most.
    peak_resident: u64,
}

const RING_ROWS: [Row<Stored>; 5] = [
    ("all nodes together, samples/CPU s", |s| Some(per_second(s.samples(), s.cpu)), 0),
    ("samples/s", |s| Some(samples_per_second(&s.total)), 0),
    ("request p50, ms", |s| Some(milliseconds(&s.total, 0.5)), 2),
    ("request p99, ms", |s| Some(milliseconds(&s.total, 0.99)), 2),
    ("a node resident at most, MB", |s| Some(s.peak_resident as f64 / 1e6), 1),
];

impl Stored {
    fn samples(&self) -> u64 {
        self.total.tally.acknowledged_samples
    }
}

pub(crate) fn make_scenarios(plan: &Plan) -> Result<RingScenarios, AnyError> {
    eprintln!("making bodies for {} series", grouped(plan.ring_series.into()));
    RingScenarios::make(plan.ring_series, plan.known_rounds, plan.connections, plan.nodes)
}

pub(crate) fn run_router(
    servers: &[Server],
    behind: Option<&str>,
    plan: &Plan,
    scenarios: &RingScenarios,
) -> Result<(), AnyError> {
    let find = |kind: &str| servers.iter().find(|server| server.kind.name() == kind);
    let behind = match behind {
        Some(kind) => Some(find(kind).ok_or_else(|| format!("no {kind} is given"))?),
        None => None,
    };
    let mut columns = Columns::new();
    let is_measured = |server: &&Server| match behind {
        Some(_) => server.kind == Kind::Ringest,
        None => server.kind.has_rings(),
    };
    for server in servers.iter().filter(is_measured) {
        let node = behind.unwrap_or(server);
        let over_http = |requests| {
            measure_direct(node, scenarios, requests)
                .map_err(|error| format!("{} over HTTP: {error}", node.name))
        };
        let direct = Direct {
            large_requests: over_http(&scenarios.known)?,
            small_requests: over_http(&scenarios.known_in_small_requests)?,
        };
        for forwarding in Forwarding::ALL {
            let name = format!("{} {} as a router", server.name, forwarding.name());
            let subject = Subject { name, way: forwarding.name(), ..Subject::of(server) };
            columns.measure(subject, || {
                measure_router(server, node, forwarding, plan, scenarios, direct)
            });
        }
    }
    let of = behind.map(|node| format!(" of {}", node.name)).unwrap_or_default();
    let known = title_of(plan, "known series");
    let title = format!("a router before {} nodes{of}, {known}", plan.nodes);
    columns.print(&title, &ROUTER_ROWS)
}

pub(crate) fn run_ring(
    servers: &[Server],
    plan: &Plan,
    scenarios: &RingScenarios,
) -> Result<(), AnyError> {
    let mut columns = Columns::new();
    for server in servers.iter().filter(|server| server.kind.has_rings()) {
        let name = format!("a ring of {}", server.name);
        columns
            .measure(Subject { name, ..Subject::of(server) }, || measure_ring(server, scenarios));
    }
    let title = format!("a ring of {RING_NODES} with snappy, {}", title_of(plan, "known series"));
    columns.print(&title, &RING_ROWS)
}

fn title_of(plan: &Plan, what: &str) -> String {
    format!(
        "ketama, replication factor {REPLICATION_FACTOR}, {what}: {} of 12 labels, 2,000 a \
         request, {} connections, {} samples a series",
        grouped(plan.ring_series.into()),
        plan.connections,
        plan.known_rounds,
    )
}

/// CPU time of the nodes that store the copies, each sent all known series over HTTP. All at once,
/// as a router has them, since they share the machine's caches.
fn measure_direct(
    server: &Server,
    scenarios: &RingScenarios,
    known: &Scenario,
) -> Result<Duration, AnyError> {
    let directory = tempfile::Builder::new().prefix("side_by_side").tempdir()?;
    let mut nodes = Vec::new();
    for copy in 0..REPLICATION_FACTOR {
        let addresses = Addresses::free();
        let mut node = start(server, directory.path(), &copy.to_string(), &addresses, &[])?;
        node.wait_for_write(&scenarios.probe)?;
        scenarios.new.send(std::slice::from_ref(&node.write_url))?;
        nodes.push(node);
    }
    let before = cpu_of(&nodes)?;
    std::thread::scope(|scope| {
        let send = |node: &Running| {
            let sent = known.send(std::slice::from_ref(&node.write_url));
            sent.map_err(|error| error.to_string())
        };
        let sending: Vec<_> = nodes.iter().map(|node| scope.spawn(move || send(node))).collect();
        sending.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(drop)
        })
    })?;
    Ok(crate::at_least_a_tick(cpu_of(&nodes)? - before))
}

fn measure_router(
    server: &Server,
    node: &Server,
    forwarding: Forwarding,
    plan: &Plan,
    scenarios: &RingScenarios,
    direct: Direct,
) -> Result<Routed, AnyError> {
    let directory = tempfile::Builder::new().prefix("side_by_side").tempdir()?;
    let (mut nodes, mut ring) = (Vec::new(), Vec::new());
    for i in 0..plan.nodes {
        let addresses = Addresses::free();
        nodes.push(start(node, directory.path(), &i.to_string(), &addresses, &[])?);
        ring.push(addresses);
    }
    let flags = ring_flags(&ring, forwarding);
    let addresses = Addresses::free();
    let mut router = start(server, directory.path(), "router", &addresses, &flags)?;
    for node in nodes.iter_mut().chain([&mut router]) {
        node.wait_for_write(&scenarios.probe)?;
    }
    let url = std::slice::from_ref(&router.write_url);
    scenarios.new.send(url)?;
    wait_until_idle(&nodes)?;
    let (router_before, nodes_before) = (router.cpu()?, cpu_of(&nodes)?);
    let (total, forwarding_bytes) =
        watched(|| router.forwarding_bytes(), || scenarios.known.send(url));
    wait_until_idle(&nodes)?;
    Ok(Routed {
        total: total?,
        router_cpu: crate::at_least_a_tick(router.cpu()? - router_before),
        storing_cpu: crate::at_least_a_tick(cpu_of(&nodes)? - nodes_before),
        direct,
        resident: router.resident_bytes()?,
        peak_resident: router.peak_resident_bytes()?,
        forwarding_bytes,
    })
}

fn measure_ring(server: &Server, scenarios: &RingScenarios) -> Result<Stored, AnyError> {
    let directory = tempfile::Builder::new().prefix("side_by_side").tempdir()?;
    let ring: Vec<_> = (0..RING_NODES).map(|_| Addresses::free()).collect();
    let mut nodes = Vec::new();
    for (i, addresses) in ring.iter().enumerate() {
        let mut flags = ring_flags(&ring, Forwarding::Snappy);
        flags.push(format!("--receive.local-endpoint={}", addresses.endpoint()));
        nodes.push(start(server, directory.path(), &i.to_string(), addresses, &flags)?);
    }
    for node in &mut nodes {
        node.wait_for_write(&scenarios.probe)?;
    }
    let urls: Vec<_> = nodes.iter().map(|node| node.write_url.clone()).collect();
    scenarios.new.send(&urls)?;
    wait_until_idle(&nodes)?;
    let before = cpu_of(&nodes)?;
    let total = scenarios.known.send(&urls)?;
    wait_until_idle(&nodes)?;
    let peaks: Result<Vec<_>, _> = nodes.iter().map(Running::peak_resident_bytes).collect();
    Ok(Stored {
        total,
        cpu: crate::at_least_a_tick(cpu_of(&nodes)? - before),
        peak_resident: peaks?.into_iter().max().unwrap_or_default(),
    })
}

fn start(
    server: &Server,
    directory: &Path,
    name: &str,
    addresses: &Addresses,
    flags: &[String],
) -> Result<Running, AnyError> {
    let directory = directory.join(name);
    std::fs::create_dir(&directory)?;
    Running::start_node(server, &directory, addresses, flags)
}

fn ring_flags(ring: &[Addresses], forwarding: Forwarding) -> Vec<String> {
    let endpoints: Vec<_> = ring.iter().map(Addresses::to_json).collect();
    let hashrings = serde_json::json!([{ "endpoints": endpoints }]);
    vec![
        format!("--receive.hashrings={hashrings}"),
        "--receive.hashrings-algorithm=ketama".to_owned(),
        format!("--receive.replication-factor={REPLICATION_FACTOR}"),
        forwarding.flag(),
    ]
}

/// Does `work` and asks for a number meanwhile, so rarely that it costs nothing to speak of. Returns
/// the largest.
fn watched<T>(ask: impl Fn() -> Option<u64> + Sync, work: impl FnOnce() -> T) -> (T, Option<u64>) {
    const PAUSE: Duration = Duration::from_millis(100);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut largest = None;
            while !done.load(Ordering::Relaxed) {
                largest = largest.max(ask());
                std::thread::sleep(PAUSE);
            }
            largest
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Waits for the copies that were not needed for the last answers.
fn wait_until_idle(nodes: &[Running]) -> Result<(), AnyError> {
    const PAUSE: Duration = Duration::from_millis(200);
    const PATIENCE: u32 = 300;
    let mut before = cpu_of(nodes)?;
    for _ in 0..PATIENCE {
        std::thread::sleep(PAUSE);
        let after = cpu_of(nodes)?;
        if after - before < PAUSE / 10 {
            return Ok(());
        }
        before = after;
    }
    Err("the nodes do not come to rest".into())
}

fn cpu_of(nodes: &[Running]) -> Result<Duration, AnyError> {
    nodes.iter().map(Running::cpu).sum()
}

fn per_second(samples: u64, time: Duration) -> f64 {
    samples as f64 / time.as_secs_f64()
}

fn nanoseconds(time: Duration, samples: u64) -> f64 {
    time.as_nanos() as f64 / samples as f64
}
