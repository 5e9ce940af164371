//! One node that stores what it is sent.

use std::time::Duration;

use ringest::load::{Total, grouped};

use crate::scenario::{NodeScenarios, Scenario};
use crate::server::{Running, Server};
use crate::table::{Columns, Row, Subject};
use crate::{AnyError, Plan, milliseconds, samples_per_second};

struct Taken {
    samples_per_cpu_second: f64,
    total: Total,
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

const ROWS: [Row<Measured>; 11] = [
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

pub(crate) fn run(servers: &[Server], plan: &Plan) -> Result<(), AnyError> {
    eprintln!("making bodies for {} series", grouped(plan.series_count.into()));
    let scenarios = NodeScenarios::make(plan.series_count, plan.known_rounds, plan.connections)?;
    let mut columns = Columns::new();
    for server in servers {
        columns.measure(Subject::of(server), || measure(server, plan, &scenarios));
    }
    let title = format!(
        "one node: {} series of 12 labels, 2,000 a request, {} connections, {} samples a series",
        grouped(plan.series_count.into()),
        plan.connections,
        1 + plan.known_rounds,
    );
    columns.print(&title, &ROWS)
}

fn measure(server: &Server, plan: &Plan, scenarios: &NodeScenarios) -> Result<Measured, AnyError> {
    let directory = tempfile::Builder::new().prefix("side_by_side").tempdir()?;
    let mut running = Running::start(server, directory.path())?;
    running.wait_for_write(&scenarios.probe)?;
    let new = take(&running, &scenarios.new)?;
    let known = take(&running, &scenarios.known)?;
    let resident = running.resident_bytes()?;
    let samples = scenarios.new.samples() + scenarios.known.samples();
    let log_bytes = server.log_bytes(directory.path())?;
    let log_per_sample = log_bytes.map(|bytes| bytes as f64 / samples as f64);
    drop(running);
    let mut running = Running::start(server, directory.path())?;
    let restart = running.wait_for_write(&scenarios.probe)?;
    let shuffled = take(&running, &scenarios.shuffled)?;
    let churn = take(&running, &scenarios.churn)?;
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

/// Sends a scenario and takes the server's CPU time meanwhile.
fn take(running: &Running, scenario: &Scenario) -> Result<Taken, AnyError> {
    let before = running.cpu()?;
    let total = scenario.send(std::slice::from_ref(&running.write_url))?;
    let cpu = crate::at_least_a_tick(running.cpu()? - before);
    Ok(Taken { samples_per_cpu_second: scenario.samples() as f64 / cpu.as_secs_f64(), total })
}
