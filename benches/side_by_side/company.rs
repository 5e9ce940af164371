//! One node that takes known series at a steady pace, while it has something else to do as well.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prost::Message as _;
use ringest::load::{Latencies, grouped};
use ringest::wire::proto::prometheus::{LabelMatcher, Query, ReadRequest};

use crate::scenario::{CompanyScenario, PacedSender};
use crate::server::{Addresses, Kind, Running, Server};
use crate::table::{Columns, Row, Subject};
use crate::{AnyError, Plan};

/// One column of the table.
#[derive(Default)]
struct Measured {
    alone: Option<Latencies>,
    /// `None` for a server without remote read.
    reader: Option<(Latencies, u32)>,
    /// `None` for a server without tenants.
    other_tenant: Option<OtherTenant>,
    /// `None` where no block came in time, and for a server with another clock for it.
    cut: Option<Cut>,
}

struct OtherTenant {
    latencies: Latencies,
    healthy: Latencies,
    took: Duration,
}

struct Cut {
    latencies: Latencies,
    took: Duration,
}

const ROWS: [Row<Measured>; 10] = [
    ("alone, p50, ms", |m| Some(milliseconds(m.alone.as_ref()?, 0.5)), 2),
    ("alone, p99, ms", |m| Some(milliseconds(m.alone.as_ref()?, 0.99)), 2),
    ("beside a reader of all, p99, ms", |m| Some(milliseconds(&m.reader.as_ref()?.0, 0.99)), 2),
    ("readings of all meanwhile", |m| Some(m.reader.as_ref()?.1.into()), 0),
    (
        "beside another tenant's new series, p99, ms",
        |m| Some(milliseconds(&m.other_tenant.as_ref()?.latencies, 0.99)),
        2,
    ),
    (
        "/-/healthy meanwhile, p99, ms",
        |m| Some(milliseconds(&m.other_tenant.as_ref()?.healthy, 0.99)),
        2,
    ),
    ("that request, s", |m| Some(m.other_tenant.as_ref()?.took.as_secs_f64()), 2),
    ("while a block is cut, p99, ms", |m| Some(milliseconds(&m.cut.as_ref()?.latencies, 0.99)), 2),
    (
        "while a block is cut, at most, ms",
        |m| Some(milliseconds(&m.cut.as_ref()?.latencies, 1.0)),
        2,
    ),
    ("until the block is there, s", |m| Some(m.cut.as_ref()?.took.as_secs_f64()), 2),
];

fn milliseconds(latencies: &Latencies, quantile: f64) -> f64 {
    latencies.quantile(quantile).as_secs_f64() * 1e3
}

pub(crate) fn run(servers: &[Server], plan: &Plan) -> Result<(), AnyError> {
    let mut columns = Columns::new();
    for server in servers.iter().filter(|server| server.kind != Kind::VictoriaMetrics) {
        columns.measure_in_parts(Subject::of(server), |measured| measure(server, plan, measured));
    }
    let title = format!(
        "a node with other things to do: {} series of 12 labels, 2,000 a request, {} samples a second",
        grouped(plan.life_series.into()),
        grouped(plan.company_rate.into()),
    );
    columns.print(&title, &ROWS)
}

/// Leaves in `measured` what there is until something fails.
fn measure(server: &Server, plan: &Plan, measured: &mut Measured) -> Result<(), AnyError> {
    let directory = tempfile::Builder::new().prefix("side_by_side").tempdir()?;
    let addresses = Addresses::free();
    let flag = |which| format!("--tsdb.{which}-block-duration={}s", plan.company_range);
    let flags = ["min", "max"].map(flag);
    let scenario = CompanyScenario::begin(plan)?;
    let mut running = match server.kind {
        Kind::Ringest | Kind::Thanos => {
            Running::start_node(server, directory.path(), &addresses, &flags)?
        }
        _ => Running::start(server, directory.path())?,
    };
    running.wait_for_write(&scenario.probe)?;
    let mut sender = scenario.fill(&running.write_url)?;
    let span = Duration::from_secs(plan.company_seconds.into());
    measured.alone = Some(sender.send_while(&mut for_a_time(span))?);
    if matches!(server.kind, Kind::Ringest | Kind::Prometheus) {
        measured.reader = Some(beside_reader(&running, span, &mut sender)?);
    }
    if matches!(server.kind, Kind::Ringest | Kind::Thanos) {
        measured.other_tenant = Some(beside_new_series(&running, &scenario, &mut sender)?);
        // It is at least half a minute to the first block.
        let ranges = if plan.smoke { 0 } else { 3 };
        let patience = Duration::from_secs(ranges * u64::from(plan.company_range));
        let data = directory.path().join("data/default-tenant");
        measured.cut = beside_cut(&data, patience, &mut sender)?;
    }
    Ok(())
}

fn for_a_time(span: Duration) -> impl FnMut() -> bool {
    let began = Instant::now();
    move || began.elapsed() < span
}

/// One reader asks for everything, again as soon as it has it.
fn beside_reader(
    running: &Running,
    span: Duration,
    sender: &mut PacedSender,
) -> Result<(Latencies, u32), AnyError> {
    let question = everything()?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut readings = 0;
            while !done.load(Ordering::Relaxed) {
                running.remote_read(&question)?;
                readings += 1;
            }
            io::Result::Ok(readings)
        });
        let latencies = sender.send_while(&mut for_a_time(span));
        done.store(true, Ordering::Relaxed);
        let readings = reader.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        Ok((latencies?, readings))
    })
}

/// A question of remote read for all series of all times, as chunks.
fn everything() -> Result<Vec<u8>, AnyError> {
    let matcher = LabelMatcher { r#type: 2, name: "__name__".into(), value: ".+".into() };
    let query = Query {
        start_timestamp_ms: 0,
        end_timestamp_ms: i64::MAX,
        matchers: vec![matcher],
        ..Query::default()
    };
    let question = ReadRequest { queries: vec![query], accepted_response_types: vec![1] };
    Ok(snap::raw::Encoder::new().compress_vec(&question.encode_to_vec())?)
}

/// Another tenant sends many new series in one request, and somebody asks whether the node lives.
fn beside_new_series(
    running: &Running,
    scenario: &CompanyScenario,
    sender: &mut PacedSender,
) -> Result<OtherTenant, AnyError> {
    const BETWEEN_QUESTIONS: Duration = Duration::from_millis(2);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let healthy = scope.spawn(|| {
            let mut latencies = Latencies::default();
            while !done.load(Ordering::Relaxed) {
                let asked = Instant::now();
                running.get("/-/healthy")?;
                latencies.record(asked.elapsed());
                std::thread::sleep(BETWEEN_QUESTIONS);
            }
            io::Result::Ok(latencies)
        });
        let request = scope.spawn(|| {
            let began = Instant::now();
            let sent = scenario.send_new_series(&running.write_url).map_err(|err| err.to_string());
            done.store(true, Ordering::Relaxed);
            sent.map(|()| began.elapsed())
        });
        let latencies = sender.send_while(&mut || !done.load(Ordering::Relaxed));
        let took = request.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        let healthy = healthy.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        Ok(OtherTenant { latencies: latencies?, healthy, took })
    })
}

/// Goes on until a block was made; what was sent before it was begun does not count.
fn beside_cut(
    data: &Path,
    patience: Duration,
    sender: &mut PacedSender,
) -> Result<Option<Cut>, AnyError> {
    /// The head and the log lose what the block has.
    const AFTER_IT: Duration = Duration::from_secs(3);
    let before = blocks(data);
    let waiting = Instant::now();
    sender.send_while(&mut || !is_cutting(data, &before) && waiting.elapsed() < patience)?;
    if !is_cutting(data, &before) {
        return Ok(None);
    }
    let began = Instant::now();
    let mut there = None;
    let latencies = sender.send_while(&mut || {
        if there.is_none() && blocks(data).len() > before.len() {
            there = Some(began.elapsed());
        }
        let over = there.is_some_and(|there| began.elapsed() > there + AFTER_IT);
        !over && began.elapsed() < patience
    })?;
    Ok(there.map(|took| Cut { latencies, took }))
}

/// Those that are whole.
fn blocks(data: &Path) -> BTreeSet<PathBuf> {
    let whole = |path: &PathBuf| path.extension().is_none() && path.join("meta.json").is_file();
    entries(data).filter(whole).collect()
}

fn is_cutting(data: &Path, before: &BTreeSet<PathBuf>) -> bool {
    let begun = |path: PathBuf| path.extension().is_some_and(|ending| ending == "tmp-for-creation");
    entries(data).any(begun) || blocks(data).len() > before.len()
}

/// None where the directory, or an entry, is just going.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}
