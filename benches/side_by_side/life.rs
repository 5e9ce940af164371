//! One node with a full head: what it holds, how it starts again, what a cut of it takes.

use std::path::Path;
use std::time::{Duration, Instant};

use ringest::load::{Total, grouped};

use crate::scenario::LifeScenario;
use crate::server::{Addresses, Kind, Running, Server, Stopped};
use crate::table::{Columns, Row, Subject};
use crate::{AnyError, Plan, at_least_a_tick};

/// One column of the table.
struct Measured {
    samples_per_cpu_second: f64,
    total: Total,
    series: f64,
    samples: f64,
    resident: u64,
    most_resident: u64,
    /// `None` for a server without a log.
    log_bytes: Option<u64>,
    first_write: Duration,
    all_read: Duration,
    restart_cpu: Duration,
    most_resident_in_restart: u64,
    /// `None` for a server whose head stays in the log at a stop.
    cut: Option<Stopped>,
}

impl Measured {
    fn against_before(&self, bytes: u64) -> f64 {
        bytes as f64 / self.resident as f64
    }
}

const ROWS: [Row<Measured>; 12] = [
    ("samples/CPU s, full chunks written", |m| Some(m.samples_per_cpu_second), 0),
    ("request p99, ms", |m| Some(crate::milliseconds(&m.total, 0.99)), 2),
    ("resident bytes/series", |m| Some(m.resident as f64 / m.series), 0),
    ("resident bytes/series, at most", |m| Some(m.most_resident as f64 / m.series), 0),
    ("log bytes/sample", |m| Some(m.log_bytes? as f64 / m.samples), 2),
    ("first write after kill -9, s", |m| Some(m.first_write.as_secs_f64()), 2),
    ("all of the log is read, s", |m| Some(m.all_read.as_secs_f64()), 2),
    ("restart, CPU s", |m| Some(m.restart_cpu.as_secs_f64()), 2),
    ("restart, memory at most ÷ before", |m| Some(m.against_before(m.most_resident_in_restart)), 2),
    ("stop and cut all, s", |m| Some(m.cut.as_ref()?.took.as_secs_f64()), 2),
    ("stop and cut all, CPU s", |m| Some(m.cut.as_ref()?.cpu.as_secs_f64()), 2),
    (
        "stop and cut all, memory at most ÷ before",
        |m| {
            let cut = m.cut.as_ref()?;
            Some(cut.most_resident as f64 / cut.resident_before as f64)
        },
        2,
    ),
];

/// Flags of ours: each set is a column.
const OURS: [(&str, &[&str]); 2] =
    [("", &[]), (", short log", &["--tsdb.wal-truncate-by-head-chunks"])];

pub(crate) fn run(servers: &[Server], plan: &Plan) -> Result<(), AnyError> {
    let scenario = LifeScenario::new(plan.life_series, plan.life_rounds, plan.connections)?;
    let mut columns = Columns::new();
    for server in servers {
        let variants = if server.kind == Kind::Ringest { &OURS[..] } else { &OURS[..1] };
        for (suffix, flags) in variants {
            let name = format!("{}{suffix}", server.name);
            let subject = Subject { name, ..Subject::of(server) };
            columns.measure(subject, || measure(server, flags, plan, &scenario));
        }
    }
    let title = format!(
        "a full head: {} series of 12 labels, 2,000 a request, {} connections, {} samples a series",
        grouped(plan.life_series.into()),
        plan.connections,
        plan.life_rounds,
    );
    columns.print(&title, &ROWS)
}

fn measure(
    server: &Server,
    flags: &[&str],
    plan: &Plan,
    scenario: &LifeScenario,
) -> Result<Measured, AnyError> {
    let directory = tempfile::Builder::new().prefix("side_by_side").tempdir()?;
    let start = || start(server, flags, directory.path());
    let mut running = start()?;
    running.wait_for_write(&scenario.probe)?;
    let before = running.cpu()?;
    let total = scenario.send(&running.write_url)?;
    settle(&running)?;
    let cpu = at_least_a_tick(running.cpu()? - before);
    let (resident, most_resident) = (running.resident_bytes()?, running.peak_resident_bytes()?);
    let log_bytes = server.log_bytes(directory.path())?;
    drop(running);

    let mut running = start()?;
    let first_write = running.wait_for_write(&scenario.late_probe)?;
    let all_read = match server.kind {
        // That this is stored already, only the log tells.
        Kind::Ringest => first_write + running.wait_for_write(&scenario.probe)?,
        // Others take nothing before.
        _ => first_write,
    };
    let (restart_cpu, most_resident_in_restart) = (running.cpu()?, running.peak_resident_bytes()?);
    settle(&running)?;
    let cuts_at_stop = matches!(server.kind, Kind::Ringest | Kind::Thanos);
    let cut = cuts_at_stop.then(|| running.stop()).transpose()?;
    Ok(Measured {
        samples_per_cpu_second: scenario.samples() as f64 / cpu.as_secs_f64(),
        total,
        series: plan.life_series.into(),
        samples: scenario.samples() as f64,
        resident,
        most_resident,
        log_bytes,
        first_write,
        all_read,
        restart_cpu,
        most_resident_in_restart,
        cut,
    })
}

fn start(server: &Server, flags: &[&str], directory: &Path) -> Result<Running, AnyError> {
    match server.kind {
        Kind::Ringest => {
            // However long a cut takes.
            let flags = flags.iter().chain(&["--tsdb.flush-timeout=1h"]);
            let flags: Vec<_> = flags.map(|flag| (*flag).to_owned()).collect();
            Running::start_node(server, directory, &Addresses::free(), &flags)
        }
        _ => Running::start(server, directory),
    }
}

/// Waits until the server does nothing by itself any more: until what is full is in files.
fn settle(running: &Running) -> Result<(), AnyError> {
    const PATIENCE: Duration = Duration::from_secs(300);
    /// Ours looks every 5 seconds for what is to be written.
    const LOOK: Duration = Duration::from_secs(11);
    const IDLE: Duration = Duration::from_millis(200);
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let before = running.cpu()?;
        std::thread::sleep(LOOK);
        if running.cpu()? - before < IDLE {
            return Ok(());
        }
    }
    Err("it does not come to rest".into())
}
