//! Ringest beside the servers it competes with: the same bodies, over loopback, one after another.
//!
//! ```text
//! cargo bench --bench side_by_side -- --thanos=PATH --prometheus=PATH --victoria-metrics=PATH
//! ```
//!
//! `prometheus` and `victoria-metrics` are taken from `PATH` when they are there; the options (or
//! `SIDE_BY_SIDE_THANOS` and so on) add others. Every server starts empty, in a directory of its
//! own, with its log on. CPU is the server's alone, so the sender's share of the machine is not in
//! it. Any answer other than 2xx fails the run.
//!
//! `--case=node` is one node that stores, and meets four workloads in this order:
//!
//! - new: each series for the first time,
//! - known: the same series again, in the same order,
//! - shuffled: the same series in another order in every round,
//! - churn: 5 % of the series replaced per minute of sample time.
//!
//! After *known*, resident memory and log are measured, the server is killed and started again.
//!
//! `--case=life` is one node whose head is filled, with as many samples of each series as
//! `--life-rounds` says. When it has come to rest, memory and log are measured, it is killed and
//! started again, and at last told to stop, which makes blocks of the head where servers do that.
//! Ringest is measured with a log that is short as well.
//!
//! `--case=company` is one node that takes known series at a steady pace: alone; while a reader asks for
//! everything, again and again; while another tenant sends many new series in one request; while a
//! block is cut. The head is filled before, and blocks are so short that one is cut soon.
//!
//! `--case=router` is a router before nodes that store, three copies of each series, one column per
//! way of forwarding; `--case=ring` is three nodes that route and store. Both are measured with
//! known series, and only for servers that make rings. Without `--case` all are measured.
//!
//! `--ringest=PATH` measures another Ringest beside this one, such as the release before; `--behind`
//! has the routers stand before nodes of another kind, the first that is given.
//!
//! `--smoke` (or `--test`, or a start by `cargo test --benches`) runs all of this once, small, with
//! Ringest only unless `--only` names others.

#[path = "side_by_side/company.rs"]
mod company;
#[path = "side_by_side/life.rs"]
mod life;
#[path = "side_by_side/node.rs"]
mod node;
#[path = "../tests/support/ports.rs"]
mod ports;
#[path = "side_by_side/ring.rs"]
mod ring;
#[path = "side_by_side/scenario.rs"]
mod scenario;
#[path = "side_by_side/server.rs"]
mod server;
#[path = "side_by_side/table.rs"]
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use ringest::load::Total;

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
    let servers = server::servers(matches, plan.smoke);
    if plan.has_case("node") {
        node::run(&servers, &plan)?;
    }
    if plan.has_case("life") {
        life::run(&servers, &plan)?;
    }
    if plan.has_case("company") {
        company::run(&servers, &plan)?;
    }
    if plan.has_case("router") || plan.has_case("ring") {
        let scenarios = ring::make_scenarios(&plan)?;
        if plan.has_case("router") {
            let behind = matches.get_one::<String>("behind").map(String::as_str);
            ring::run_router(&servers, behind, &plan, &scenarios)?;
        }
        if plan.has_case("ring") {
            ring::run_ring(&servers, &plan, &scenarios)?;
        }
    }
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
    let names = |name: &'static str, values: &'static [&'static str], help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("NAME")
            .action(ArgAction::Append)
            .value_parser(values.to_vec())
            .help(help)
    };
    clap::Command::new("side_by_side").args([
        names("case", &["node", "life", "company", "router", "ring"], "Measure only this"),
        number("series", "1000000", "Series of one node, of 12 labels, 2,000 a request"),
        number("ring-series", "200000", "Series of a router and of a ring"),
        number("life-series", "100000", "Series of a full head"),
        number("life-rounds", "240", "Samples of each of these, 15 s apart"),
        number("company-rate", "100000", "Samples a second of a node with other things to do"),
        number("company-seconds", "20", "How long it is looked at in each company"),
        number("company-range", "120", "Seconds of a block, so that one is cut soon"),
        number("company-new-series", "400000", "Series that another tenant sends at once"),
        number("known-rounds", "10", "Samples of each known series"),
        number("connections", "4", "Connections of the sender"),
        number("nodes", "3", "Nodes behind the router, at least 3")
            .value_parser(value_parser!(u32).range(3..)),
        peer("ringest", "Another Ringest, an older one say"),
        peer("prometheus", "Another Prometheus"),
        peer("thanos", "A Thanos, run as `thanos receive`"),
        peer("victoria-metrics", "Another VictoriaMetrics"),
        names("behind", &["thanos"], "Have the routers of Ringest before nodes of this kind")
            .action(ArgAction::Set),
        names(
            "only",
            &["ringest", "prometheus", "thanos", "victoria-metrics"],
            "Measure only servers of this kind",
        ),
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
    /// None given means all.
    cases: Vec<String>,
    series_count: u32,
    life_series: u32,
    life_rounds: u32,
    company_rate: u32,
    company_seconds: u32,
    company_range: u32,
    company_new_series: u32,
    ring_series: u32,
    known_rounds: u32,
    connections: u32,
    nodes: u32,
    smoke: bool,
}

impl Plan {
    fn parse(matches: &ArgMatches) -> Plan {
        let number = |name| matches.get_one::<u32>(name).copied().unwrap_or(1);
        let plan = Plan {
            cases: matches.get_many("case").into_iter().flatten().cloned().collect(),
            series_count: number("series"),
            life_series: number("life-series"),
            life_rounds: number("life-rounds"),
            company_rate: number("company-rate"),
            company_seconds: number("company-seconds"),
            company_range: number("company-range"),
            company_new_series: number("company-new-series"),
            ring_series: number("ring-series"),
            known_rounds: number("known-rounds"),
            connections: number("connections"),
            nodes: number("nodes"),
            // Cargo passes `--bench` from `cargo bench`, and nothing from `cargo test --benches`.
            smoke: matches.get_flag("smoke") || !matches.get_flag("bench"),
        };
        match plan.smoke {
            true => Plan {
                series_count: 4_000,
                life_series: 1_000,
                life_rounds: 130,
                company_rate: 20_000,
                company_seconds: 1,
                company_range: 30,
                company_new_series: 2_000,
                ring_series: 4_000,
                known_rounds: 2,
                ..plan
            },
            false => plan,
        }
    }

    fn has_case(&self, name: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|case| case == name)
    }
}

/// The clock behind CPU times ticks in 10 ms.
fn at_least_a_tick(cpu: Duration) -> Duration {
    cpu.max(Duration::from_millis(10))
}

fn samples_per_second(total: &Total) -> f64 {
    total.tally.acknowledged_samples as f64 / total.elapsed.as_secs_f64()
}

fn milliseconds(total: &Total, quantile: f64) -> f64 {
    total.tally.latencies.quantile(quantile).as_secs_f64() * 1e3
}
