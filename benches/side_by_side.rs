//! Ringest beside the servers it competes with: the same bodies, over loopback, one after another.
//!
//! ```text
//! cargo bench --bench side_by_side -- --thanos=PATH --prometheus=PATH --victoria-metrics=PATH
//! ```
//!
//! `prometheus` and `victoria-metrics` are taken from `PATH` when they are there; the options (or
//! `SIDE_BY_SIDE_THANOS` and so on) add others. Every server starts empty, in a directory of its
//! own, with its log on, and meets four workloads in this order:
//!
//! - new: each series for the first time,
//! - known: the same series again, in the same order,
//! - shuffled: the same series in another order in every round,
//! - churn: 5 % of the series replaced per minute of sample time.
//!
//! After *known*, resident memory and log are measured, the server is killed and started again.
//! CPU is the server's alone, so the sender's share of the machine is not in it. `--smoke` (or
//! `--test`, or a start by `cargo test --benches`) runs all of this once, small, with Ringest only
//! unless `--only` names others.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use ringest::clock::{Clock, SystemClock};
use ringest::load::{
    BodySource, EncodedOnDemand, Order, Pregenerated, Progress, SendError, SendOptions, Setup,
    Shape, Total, Workload, grouped, process, send,
};
use tokio_util::sync::CancellationToken;

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(&options().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side_by_side: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &ArgMatches) -> Result<(), AnyError> {
    let plan = Plan::parse(matches);
    let servers = servers(matches, plan.smoke);
    eprintln!("making bodies for {} series", grouped(plan.series_count.into()));
    let scenarios = Scenarios::make(&plan)?;
    let mut results = Vec::new();
    for server in &servers {
        eprintln!("measuring {}", server.name);
        let measured = measure(server, &plan, &scenarios)
            .map_err(|error| format!("{}: {error}", server.name))?;
        results.push((server.name.clone(), measured));
    }
    print_table(&plan, &results);
    Ok(())
}

fn options() -> clap::Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .default_value(default)
            .value_parser(value_parser!(u32).range(1..))
            .help(help)
    };
    let peer = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("PATH")
            .action(ArgAction::Append)
            .value_parser(value_parser!(PathBuf))
            .help(help)
    };
    clap::Command::new("side_by_side").args([
        number("series", "1000000", "Series of 12 labels, 2,000 a request"),
        number("known-rounds", "10", "Samples of each known series"),
        number("connections", "4", "Connections of the sender"),
        peer("prometheus", "Another Prometheus"),
        peer("thanos", "A Thanos, run as `thanos receive`"),
        peer("victoria-metrics", "Another VictoriaMetrics"),
        Arg::new("only")
            .long("only")
            .value_name("KIND")
            .action(ArgAction::Append)
            .value_parser(["ringest", "prometheus", "thanos", "victoria-metrics"])
            .help("Measure only servers of this kind"),
        Arg::new("smoke")
            .long("smoke")
            .alias("test")
            .action(ArgAction::SetTrue)
            .help("A run of a few seconds, Ringest only, that shows that all of this works"),
        Arg::new("bench").long("bench").action(ArgAction::SetTrue).hide(true),
    ])
}

/// How much is measured.
struct Plan {
    series_count: u32,
    known_rounds: u32,
    connections: u32,
    smoke: bool,
}

impl Plan {
    fn parse(matches: &ArgMatches) -> Plan {
        let number = |name| matches.get_one::<u32>(name).copied().unwrap_or(1);
        let plan = Plan {
            series_count: number("series"),
            known_rounds: number("known-rounds"),
            connections: number("connections"),
            // Cargo passes `--bench` from `cargo bench`, and nothing from `cargo test --benches`.
            smoke: matches.get_flag("smoke") || !matches.get_flag("bench"),
        };
        match plan.smoke {
            true => Plan { series_count: 4_000, known_rounds: 2, ..plan },
            false => plan,
        }
    }
}

/// A workload and its bodies, one source per connection.
struct Scenario {
    workload: Workload,
    rounds: u32,
    bodies: Vec<Pregenerated>,
}

impl Scenario {
    fn make(workload: Workload, rounds: u32) -> Result<Scenario, AnyError> {
        let lanes = workload.lanes();
        let bodies: Result<Vec<_>, SendError> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workload.connections)
                .map(|connection| {
                    let (workload, lanes) = (&workload, &lanes);
                    scope.spawn(move || Pregenerated::new(workload, lanes, connection, rounds))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
                .collect()
        });
        Ok(Scenario { bodies: bodies?, workload, rounds })
    }

    /// Sends everything; a sample that is not acknowledged fails the measurement.
    fn send(&self, write_url: &http::Uri) -> Result<Total, AnyError> {
        let options = SendOptions {
            write_url: write_url.clone(),
            rate: None,
            rounds: Some(self.rounds),
            duration: None,
            timeout: Duration::from_secs(60),
            retry_for: Duration::from_secs(60),
        };
        let setup = Setup {
            workload: &self.workload,
            options: &options,
            acked_file: None,
            keep_acknowledged: false,
            progress: &Progress::default(),
            stop: CancellationToken::new(),
        };
        let total = send(&setup, |connection| Ok(self.bodies[connection as usize].clone()))?;
        match total.tally.unacknowledged_samples {
            0 => Ok(total),
            refused => {
                Err(format!("{refused} samples refused: {:?}", total.tally.complaints).into())
            }
        }
    }
}

/// The workloads, each beginning in time where the one before it ended.
struct Scenarios {
    new: Scenario,
    known: Scenario,
    shuffled: Scenario,
    churn: Scenario,
    /// A request of one series, to see whether the server takes writes.
    probe: Vec<u8>,
}

const SHUFFLED_ROUNDS: u32 = 3;
/// Two minutes of sample time, so a tenth of the series is replaced.
const CHURN_ROUNDS: u32 = 8;
const CHURN_PERCENT: f64 = 5.0;

impl Scenarios {
    fn make(plan: &Plan) -> Result<Scenarios, AnyError> {
        let rounds = 1 + plan.known_rounds + SHUFFLED_ROUNDS + CHURN_ROUNDS;
        let mut new = Workload::new(SystemClock.now());
        new.series_count = plan.series_count;
        new.connections = plan.connections;
        new.start -= new.round_span() * i64::from(rounds);
        new.check()?;
        let known = Workload { start: new.synthetic_base(1), ..new.clone() };
        let shuffled = Workload {
            start: known.synthetic_base(plan.known_rounds),
            order: Order::Shuffled,
            ..new.clone()
        };
        let churn = Workload {
            start: shuffled.synthetic_base(SHUFFLED_ROUNDS),
            churn_percent: CHURN_PERCENT,
            ..new.clone()
        };
        let probe =
            Workload { shape: Shape::Avalanche, series_count: 1, connections: 1, ..new.clone() };
        let lanes = probe.lanes();
        let mut probe_bodies = EncodedOnDemand::new(&probe, &lanes, 0);
        let probe_body = probe_bodies.next(0, probe.start)?.ok_or("the probe has no series")?;
        Ok(Scenarios {
            probe: probe_body.body.bytes.to_vec(),
            new: Scenario::make(new, 1)?,
            known: Scenario::make(known, plan.known_rounds)?,
            shuffled: Scenario::make(shuffled, SHUFFLED_ROUNDS)?,
            churn: Scenario::make(churn, CHURN_ROUNDS)?,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ringest,
    Prometheus,
    Thanos,
    VictoriaMetrics,
}

struct Server {
    kind: Kind,
    binary: PathBuf,
    /// Kind and version.
    name: String,
}

impl Server {
    fn new(kind: Kind, binary: PathBuf) -> Server {
        let version = match kind {
            Kind::Ringest => Some(env!("CARGO_PKG_VERSION").to_owned()),
            _ => version(&binary),
        };
        Server {
            name: format!("{} {}", kind_name(kind), version.unwrap_or_default()),
            kind,
            binary,
        }
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Ringest => "ringest",
        Kind::Prometheus => "prometheus",
        Kind::Thanos => "thanos",
        Kind::VictoriaMetrics => "victoria-metrics",
    }
}

/// The first word of `--version` that looks like one.
fn version(binary: &Path) -> Option<String> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let is_version = |word: &&str| {
        word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
    };
    let word = text.split([' ', '\n', ',']).find(is_version)?;
    Some(word.chars().take(12).collect())
}

fn servers(matches: &ArgMatches, smoke: bool) -> Vec<Server> {
    let mut servers =
        vec![Server::new(Kind::Ringest, PathBuf::from(env!("CARGO_BIN_EXE_ringest")))];
    for kind in [Kind::Prometheus, Kind::Thanos, Kind::VictoriaMetrics] {
        let name = kind_name(kind);
        let variable = format!("SIDE_BY_SIDE_{}", name.to_uppercase().replace('-', "_"));
        let in_path = std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .map(|directory| directory.join(name))
            .find(|path| path.is_file());
        let given = matches.get_many::<PathBuf>(name).into_iter().flatten().cloned();
        let binaries = in_path.into_iter().chain(std::env::var_os(variable).map(PathBuf::from));
        servers.extend(binaries.chain(given).map(|binary| Server::new(kind, binary)));
    }
    let only: Vec<&String> = matches.get_many("only").into_iter().flatten().collect();
    servers.retain(|server| match only.is_empty() {
        true => !smoke || server.kind == Kind::Ringest,
        false => only.iter().any(|name| *name == kind_name(server.kind)),
    });
    servers
}

/// A server that runs; it is killed when dropped.
struct Running {
    child: Child,
    write_url: http::Uri,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either may fail only because it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(server: &Server, directory: &Path) -> Result<Running, AnyError> {
        let data = directory.join("data");
        let data = data.display();
        let mut arguments;
        let write;
        match server.kind {
            Kind::Ringest | Kind::Thanos => {
                write = free_address()?;
                arguments = vec![
                    "receive".to_owned(),
                    format!("--tsdb.path={data}"),
                    "--label=replica=\"a\"".to_owned(),
                    format!("--remote-write.address={write}"),
                    format!("--http-address={}", free_address()?),
                    format!("--grpc-address={}", free_address()?),
                    format!("--receive.capnproto-address={}", free_address()?),
                ];
            }
            Kind::Prometheus => {
                let config = directory.join("prometheus.yml");
                fs::write(&config, "scrape_configs: []\n")?;
                write = free_address()?;
                arguments = vec![
                    format!("--config.file={}", config.display()),
                    format!("--storage.tsdb.path={data}"),
                    format!("--web.listen-address={write}"),
                    "--web.enable-remote-write-receiver".to_owned(),
                ];
            }
            Kind::VictoriaMetrics => {
                write = free_address()?;
                arguments =
                    vec![format!("-storageDataPath={data}"), format!("-httpListenAddr={write}")];
                // Series beyond its guess for small machines would evict each other.
                arguments.push("-memory.allowedPercent=60".to_owned());
            }
        }
        let path = match server.kind {
            Kind::Ringest | Kind::Thanos => "/api/v1/receive",
            Kind::Prometheus | Kind::VictoriaMetrics => "/api/v1/write",
        };
        let log = directory.join("log");
        let log_file = File::options().append(true).create(true).open(&log)?;
        let child = Command::new(&server.binary)
            .args(&arguments)
            .stdout(Stdio::from(log_file.try_clone()?))
            .stderr(Stdio::from(log_file))
            .spawn()?;
        Ok(Running { child, write_url: format!("http://{write}{path}").parse()?, log })
    }

    /// How long it takes until a write of the probe is acknowledged.
    fn wait_for_write(&mut self, probe: &[u8]) -> Result<Duration, AnyError> {
        const PATIENCE: Duration = Duration::from_secs(120);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if matches!(self.post(probe), Ok(200..=299)) {
                return Ok(began.elapsed());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("ended with {status}: {}", self.last_log_line()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("takes no write: {}", self.last_log_line()).into())
    }

    /// The status of one write over a connection of its own.
    fn post(&self, body: &[u8]) -> io::Result<u16> {
        let authority = self.write_url.authority().map_or("", |authority| authority.as_str());
        let mut stream = TcpStream::connect(authority)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {}\r\n\
             Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\n\
             Connection: close\r\n\r\n",
            self.write_url.path(),
            body.len(),
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut status_line = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut status_line)?;
        let status = std::str::from_utf8(&status_line[9..]).ok().and_then(|s| s.parse().ok());
        status.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn last_log_line(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or("no log").to_owned()
    }

    /// Sends a scenario and takes the server's CPU time meanwhile.
    fn take(&self, scenario: &Scenario) -> Result<Taken, AnyError> {
        let cpu = || process::cpu_time(self.child.id()).ok_or("the server is gone");
        let before = cpu()?;
        let total = scenario.send(&self.write_url)?;
        // The clock behind `cpu_time` ticks in 10 ms.
        let cpu = (cpu()? - before).max(Duration::from_millis(10));
        Ok(Taken {
            samples_per_cpu_second: total.tally.acknowledged_samples as f64 / cpu.as_secs_f64(),
            total,
        })
    }
}

struct Taken {
    samples_per_cpu_second: f64,
    total: Total,
}

fn free_address() -> io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// One column of the table.
struct Measured {
    new: Taken,
    known: Taken,
    shuffled: Taken,
    churn: Taken,
    resident_per_series: f64,
    /// `None` for a server without a log.
    log_per_sample: Option<f64>,
    restart: Duration,
}

fn measure(server: &Server, plan: &Plan, scenarios: &Scenarios) -> Result<Measured, AnyError> {
    let directory = tempfile::Builder::new().prefix("side_by_side").tempdir()?;
    let mut running = Running::start(server, directory.path())?;
    running.wait_for_write(&scenarios.probe)?;
    let new = running.take(&scenarios.new)?;
    let known = running.take(&scenarios.known)?;
    let resident = process::resident_bytes(running.child.id()).ok_or("the server is gone")?;
    let log_directory = match server.kind {
        Kind::Ringest | Kind::Thanos => Some("data/default-tenant/wal"),
        Kind::Prometheus => Some("data/wal"),
        Kind::VictoriaMetrics => None,
    };
    let samples = f64::from(plan.series_count) * f64::from(1 + plan.known_rounds);
    let log_per_sample = log_directory
        .map(|log| bytes_below(&directory.path().join(log)).map(|bytes| bytes as f64 / samples))
        .transpose()?;
    drop(running);
    let mut running = Running::start(server, directory.path())?;
    let restart = running.wait_for_write(&scenarios.probe)?;
    let shuffled = running.take(&scenarios.shuffled)?;
    let churn = running.take(&scenarios.churn)?;
    Ok(Measured {
        new,
        known,
        shuffled,
        churn,
        resident_per_series: resident as f64 / f64::from(plan.series_count),
        log_per_sample,
        restart,
    })
}

/// Bytes of all files below a directory.
fn bytes_below(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => bytes_below(&entry.path())?,
            false => metadata.len(),
        };
    }
    Ok(bytes)
}

type Figure = fn(&Measured) -> Option<f64>;

/// Rows of the table: name, figure, digits after the point.
const ROWS: [(&str, Figure, usize); 11] = [
    ("known series, samples/CPU s", |m| Some(m.known.samples_per_cpu_second), 0),
    ("new series, samples/CPU s", |m| Some(m.new.samples_per_cpu_second), 0),
    ("shuffled, samples/CPU s", |m| Some(m.shuffled.samples_per_cpu_second), 0),
    ("5 % churn/min, samples/CPU s", |m| Some(m.churn.samples_per_cpu_second), 0),
    ("known series, samples/s", |m| Some(samples_per_second(&m.known.total)), 0),
    ("request p50, ms", |m| Some(milliseconds(&m.known.total, 0.5)), 2),
    ("request p99, ms", |m| Some(milliseconds(&m.known.total, 0.99)), 2),
    ("request p99 with churn, ms", |m| Some(milliseconds(&m.churn.total, 0.99)), 2),
    ("resident bytes/series", |m| Some(m.resident_per_series), 0),
    ("log bytes/sample", |m| m.log_per_sample, 2),
    ("restart after kill -9, s", |m| Some(m.restart.as_secs_f64()), 2),
];

fn samples_per_second(total: &Total) -> f64 {
    total.tally.acknowledged_samples as f64 / total.elapsed.as_secs_f64()
}

fn milliseconds(total: &Total, quantile: f64) -> f64 {
    total.tally.latencies.quantile(quantile).as_secs_f64() * 1e3
}

/// The first column is ours when Ringest was measured; the others then carry ours ÷ theirs.
fn print_table(plan: &Plan, results: &[(String, Measured)]) {
    println!(
        "\n{} series of 12 labels, 2,000 a request, {} connections, {} samples a series; \
         in parentheses: ringest ÷ peer\n",
        grouped(plan.series_count.into()),
        plan.connections,
        1 + plan.known_rounds,
    );
    let name_width = ROWS.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    print!("{:name_width$}", "");
    for (name, _) in results {
        print!("  {name:>25}");
    }
    println!();
    let ours = results.first().filter(|(name, _)| name.starts_with("ringest")).map(|(_, m)| m);
    for (name, figure, digits) in ROWS {
        print!("{name:name_width$}");
        for (i, (_, measured)) in results.iter().enumerate() {
            let cell = match (figure(measured), ours.and_then(figure)) {
                (None, _) => "none".to_owned(),
                (Some(theirs), Some(ours)) if i > 0 => {
                    format!("{} ({:.2})", shown(theirs, digits), ours / theirs)
                }
                (Some(value), _) => shown(value, digits),
            };
            print!("  {cell:>25}");
        }
        println!();
    }
}

fn shown(value: f64, digits: usize) -> String {
    match digits {
        0 => grouped(value.round() as u64),
        _ => format!("{value:.digits$}"),
    }
}
