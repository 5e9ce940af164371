//! The command line of `ringest load`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use http::Uri;

use super::LoadError;
use super::protobuf::ReadFormat;
use super::sender::SendOptions;
use super::verify::VerifyOptions;
use super::workload::{Order, Shape, TimestampSource, Workload};
use crate::clock::{Clock, SystemClock};

/// Arguments of one run, in their final types.
pub(super) struct LoadFlags {
    pub workload: Workload,
    pub options: SendOptions,
    /// All bodies are made before the first is sent. Implies rounds and synthetic timestamps.
    pub pregenerate: bool,
    pub acked_file: Option<PathBuf>,
    pub verify: Option<VerifyOptions>,
    pub json: bool,
}

/// Arguments of `ringest load verify`.
pub(super) struct VerifyFlags {
    pub acked_file: PathBuf,
    pub options: VerifyOptions,
    pub json: bool,
}

/// The `load` subcommand; give its matches to [`run`](super::run).
pub fn command() -> Command {
    Command::new("load")
        .about("Send remote write to a server, measure it, and check that nothing was lost")
        .long_about(
            "Send remote write to a server, measure it, and check that nothing was lost.\n\n\
             Only a 2xx acknowledges a request. 5xx, 429 and connection errors are retried, as \
             Retry-After says; other answers are counted and not retried. Ctrl-C ends the run and \
             prints the summary.",
        )
        .subcommand_negates_reqs(true)
        .args_conflicts_with_subcommands(true)
        .next_help_heading("What is sent")
        .args([
            choice("shape", "realistic", &["realistic", "avalanche"])
                .help("Names and labels as in a Kubernetes cluster, or as Avalanche makes them"),
            number("series", "100000").help("Series alive at any time"),
            number("labels", "12").help("Labels per series, at least 4"),
            number("samples-per-series", "1").help("Samples of each series in one request"),
            number("series-per-request", "2000"),
            choice("order", "stable", &["stable", "shuffled"])
                .help("Whether each round has the series in the same order or in a new one"),
            percent("churn").help("Percent of the series replaced per minute of sample time"),
            percent("stale").help("Percent of the samples that are staleness markers"),
            choice("timestamps", "wall", &["wall", "synthetic"])
                .help("The clock when a round begins, or --start and --step however fast it goes"),
            Arg::new("start")
                .long("start")
                .value_name("MS")
                .value_parser(value_parser!(i64).range(0..=MILLISECONDS_MAX))
                .help(
                    "First synthetic timestamp, in milliseconds since 1970; default: --rounds \
                     rounds ago, or now without --rounds",
                ),
            duration("step", None).help(
                "Time between the samples of a series; default: 15s if synthetic, else 1ms between \
                 the samples of one request",
            ),
        ])
        .next_help_heading("How it is sent")
        .args([
            Arg::new("url")
                .long("url")
                .default_value("http://127.0.0.1:19291")
                .help("Server to write to, http only"),
            Arg::new("path")
                .long("path")
                .default_value("/api/v1/receive")
                .help("Path to write to; Prometheus' own receiver has /api/v1/write"),
            number("connections", "4").help("Connections; each owns a share of the series"),
            Arg::new("tenants")
                .long("tenants")
                .value_name("N")
                .default_value("0")
                .value_parser(value_parser!(u32).range(0..=100_000))
                .help("Tenants to spread the series over; 0 sends no tenant header"),
            Arg::new("tenant-prefix").long("tenant-prefix").default_value("load-"),
            Arg::new("tenant-header").long("tenant-header").default_value("THANOS-TENANT"),
            Arg::new("rate")
                .long("rate")
                .value_name("SAMPLES/S")
                .value_parser(value_parser!(u64).range(1..))
                .help(
                    "Samples per second over all connections, caught up after an outage; default: \
                     as fast as the server answers",
                ),
            Arg::new("rounds")
                .long("rounds")
                .value_name("N")
                .value_parser(value_parser!(u32).range(1..))
                .help("Times that each series is sent; default: until --duration or Ctrl-C"),
            duration("duration", None).help("Time after which the run ends"),
            duration("timeout", Some("30s")).help("How long one attempt may take"),
            duration("retry-for", Some("5m")).help("How long a request is retried"),
            Arg::new("pregenerate").long("pregenerate").action(ArgAction::SetTrue).help(
                "Make all bodies before the first is sent; needs --rounds and \
                 --timestamps=synthetic",
            ),
        ])
        .next_help_heading("What is checked and shown")
        .args([
            Arg::new("acked-file")
                .long("acked-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("New file that records what was acknowledged, for `load verify`"),
            Arg::new("verify").long("verify").action(ArgAction::SetTrue).help(
                "Read everything back when the run ends; fail if an acknowledged sample is missing \
                 or differs",
            ),
        ])
        .args(read_flags())
        .subcommand(
            Command::new("verify")
                .about("Check a server against the record of an earlier run")
                .arg(
                    Arg::new("acked-file")
                        .long("acked-file")
                        .value_name("FILE")
                        .required(true)
                        .value_parser(value_parser!(PathBuf))
                        .help("File written by `load --acked-file`"),
                )
                .args(read_flags()),
        )
}

/// The last millisecond of the year 9999.
const MILLISECONDS_MAX: i64 = 253_402_300_799_999;

fn read_flags() -> [Arg; 3] {
    [
        Arg::new("read-url")
            .long("read-url")
            .value_name("URL")
            .default_value("http://127.0.0.1:10902/api/v1/read")
            .action(ArgAction::Append)
            .help(
                "Remote read endpoint, http only; repeated for the nodes of a ring, of which any \
                 may hold a sample",
            ),
        choice("read-format", "samples", &["samples", "chunks"])
            .help("Read samples, or streamed XOR chunks"),
        Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON"),
    ]
}

fn choice(name: &'static str, default: &'static str, values: &'static [&'static str]) -> Arg {
    Arg::new(name).long(name).default_value(default).value_parser(values.to_vec())
}

fn number(name: &'static str, default: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("N")
        .default_value(default)
        .value_parser(value_parser!(u32).range(1..=100_000_000))
}

fn percent(name: &'static str) -> Arg {
    Arg::new(name).long(name).value_name("PERCENT").default_value("0").value_parser(parse_percent)
}

fn duration(name: &'static str, default: Option<&'static str>) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("DURATION")
        .value_parser(parse_duration)
        .default_value(default)
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("not a number from 0 to 100".to_owned()),
    }
}

/// A whole number and a unit, as in `15s`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("not a whole number followed by ms, s, m or h".to_owned()),
    };
    let number: u32 = number.parse().map_err(|_| "not a whole number below 2^32".to_owned())?;
    Ok(Duration::from_millis(u64::from(number) * milliseconds))
}

impl LoadFlags {
    pub(super) fn parse(matches: &ArgMatches) -> Result<LoadFlags, LoadError> {
        let rounds = matches.get_one::<u32>("rounds").copied();
        let workload = parse_workload(matches, rounds)?;
        let options = parse_send_options(matches, rounds)?;
        let pregenerate = matches.get_flag("pregenerate");
        if pregenerate && (rounds.is_none() || workload.timestamps != TimestampSource::Synthetic) {
            return Err("--pregenerate needs --rounds and --timestamps=synthetic".into());
        }
        let verify = matches
            .get_flag("verify")
            .then(|| parse_verify_options(matches, workload.connections))
            .transpose()?;
        Ok(LoadFlags {
            workload,
            options,
            pregenerate,
            acked_file: matches.get_one("acked-file").cloned(),
            verify,
            json: matches.get_flag("json"),
        })
    }
}

impl VerifyFlags {
    pub(super) fn parse(matches: &ArgMatches) -> Result<VerifyFlags, LoadError> {
        Ok(VerifyFlags {
            acked_file: get(matches, "acked-file"),
            options: parse_verify_options(matches, 4)?,
            json: matches.get_flag("json"),
        })
    }
}

fn parse_workload(matches: &ArgMatches, rounds: Option<u32>) -> Result<Workload, LoadError> {
    let now = SystemClock.now();
    let timestamps = match text(matches, "timestamps") {
        "synthetic" => TimestampSource::Synthetic,
        _ => TimestampSource::Wall,
    };
    let default_step = match timestamps {
        TimestampSource::Synthetic => Duration::from_secs(15),
        TimestampSource::Wall => Duration::from_millis(1),
    };
    let step = matches.get_one::<Duration>("step").copied().unwrap_or(default_step);
    let prefix = text(matches, "tenant-prefix");
    let mut workload = Workload {
        shape: match text(matches, "shape") {
            "avalanche" => Shape::Avalanche,
            _ => Shape::Realistic,
        },
        series_count: get(matches, "series"),
        labels_per_series: get(matches, "labels"),
        samples_per_series: get(matches, "samples-per-series"),
        series_per_request: get(matches, "series-per-request"),
        connections: get(matches, "connections"),
        tenants: (0..get::<u32>(matches, "tenants")).map(|n| format!("{prefix}{n}")).collect(),
        tenant_header: get(matches, "tenant-header"),
        order: match text(matches, "order") {
            "shuffled" => Order::Shuffled,
            _ => Order::Stable,
        },
        churn_percent: get(matches, "churn"),
        stale_percent: get(matches, "stale"),
        timestamps,
        start: now,
        step: i64::try_from(step.as_millis())?,
    };
    workload.start = match matches.get_one::<i64>("start") {
        Some(start) => *start,
        None => {
            let rounds = match timestamps {
                TimestampSource::Synthetic => rounds.unwrap_or(0),
                TimestampSource::Wall => 0,
            };
            let span = workload.round_span().saturating_mul(i64::from(rounds));
            now.saturating_sub(span).max(0)
        }
    };
    workload.check()?;
    Ok(workload)
}

fn parse_send_options(matches: &ArgMatches, rounds: Option<u32>) -> Result<SendOptions, LoadError> {
    let base = text(matches, "url").trim_end_matches('/');
    Ok(SendOptions {
        write_url: parse_url(&format!("{base}{}", text(matches, "path")))?,
        rate: matches.get_one::<u64>("rate").map(|&rate| rate as f64),
        rounds,
        duration: matches.get_one("duration").copied(),
        timeout: get(matches, "timeout"),
        retry_for: get(matches, "retry-for"),
    })
}

fn parse_verify_options(
    matches: &ArgMatches,
    concurrency: u32,
) -> Result<VerifyOptions, LoadError> {
    Ok(VerifyOptions {
        read_urls: matches
            .get_many::<String>("read-url")
            .unwrap_or_default()
            .map(|url| parse_url(url))
            .collect::<Result<_, _>>()?,
        format: match text(matches, "read-format") {
            "chunks" => ReadFormat::StreamedXorChunks,
            _ => ReadFormat::Samples,
        },
        concurrency: concurrency as usize,
    })
}

fn parse_url(url: &str) -> Result<Uri, LoadError> {
    let parsed: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    match parsed.scheme_str() {
        Some("http") => Ok(parsed),
        _ => Err(format!("{url}: not an http:// address").into()),
    }
}

/// An argument that clap guarantees by a default or by being required.
fn get<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> T {
    matches.get_one::<T>(name).cloned().expect("argument has a default or is required")
}

fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<LoadFlags, LoadError> {
        LoadFlags::parse(&command().try_get_matches_from([&["load"], args].concat())?)
    }

    #[test]
    fn the_command_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn flags_reach_the_workload_and_the_options() {
        let flags = parse(&[
            "--shape=avalanche",
            "--series=500",
            "--labels=20",
            "--samples-per-series=3",
            "--series-per-request=100",
            "--order=shuffled",
            "--churn=5",
            "--stale=0.5",
            "--timestamps=synthetic",
            "--start=1000",
            "--step=2s",
            "--url=http://h:1/",
            "--path=/api/v1/write",
            "--connections=2",
            "--tenants=2",
            "--tenant-prefix=t",
            "--tenant-header=X-Scope-OrgID",
            "--rate=1000",
            "--rounds=7",
            "--duration=3m",
            "--timeout=1s",
            "--retry-for=500ms",
            "--pregenerate",
            "--acked-file=/f",
            "--verify",
            "--read-url=http://h:2/read",
            "--read-url=http://i:2/read",
            "--read-format=chunks",
            "--json",
        ])
        .unwrap();
        let expected = Workload {
            shape: Shape::Avalanche,
            series_count: 500,
            labels_per_series: 20,
            samples_per_series: 3,
            series_per_request: 100,
            connections: 2,
            tenants: vec!["t0".to_owned(), "t1".to_owned()],
            tenant_header: "X-Scope-OrgID".to_owned(),
            order: Order::Shuffled,
            churn_percent: 5.0,
            stale_percent: 0.5,
            timestamps: TimestampSource::Synthetic,
            start: 1_000,
            step: 2_000,
        };
        assert_eq!(flags.workload, expected);
        let options = flags.options;
        assert_eq!(options.write_url, "http://h:1/api/v1/write");
        assert_eq!((options.rate, options.rounds), (Some(1_000.0), Some(7)));
        assert_eq!(options.duration, Some(Duration::from_secs(180)));
        assert_eq!(options.timeout, Duration::from_secs(1));
        assert_eq!(options.retry_for, Duration::from_millis(500));
        assert!(flags.pregenerate && flags.json);
        let verify = flags.verify.unwrap();
        assert_eq!(verify.read_urls, ["http://h:2/read", "http://i:2/read"]);
        assert_eq!(verify.format, ReadFormat::StreamedXorChunks);
        assert_eq!(flags.acked_file, Some(PathBuf::from("/f")));
    }

    #[test]
    fn the_node_on_this_machine_is_read_by_default() {
        let verify = parse(&["--verify"]).unwrap().verify.unwrap();
        assert_eq!(verify.read_urls, ["http://127.0.0.1:10902/api/v1/read"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            &["--series=0"][..],
            &["--series=3", "--connections=4"],
            &["--step=0s"],
            &["--step=5"],
            &["--churn=101"],
            &["--pregenerate", "--rounds=1"],
            &["--url=https://h"],
            &["--verify", "--read-url=http://h", "--read-url=https://h"],
            &["--order=random"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
