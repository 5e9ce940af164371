//! `ringest ring`: where series are, what a change of the ring would move, and how its members are.

#![cfg_attr(not(test), expect(clippy::disallowed_methods, reason = "a tool of its own"))]

mod diff;
mod series;
mod status;

use std::fmt;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::Serialize;

use crate::hashring::file::{self, HashringsError};
use crate::hashring::{
    Algorithm, Hashring, HashringMetrics, PlacementError, RingDefaults, SeriesHasher,
};
use crate::metrics::Registry;
use crate::ring_tool::series::{Series, SeriesError};
use crate::write::quorum::REPLICATION_FACTOR_MAX;

/// The tenant of series that name none.
const TENANT_DEFAULT: &str = "default-tenant";

/// Why the tool gives up. Errors of single series are part of its output instead.
#[derive(Debug, thiserror::Error)]
enum ToolError {
    #[error("{path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}")]
    Refused { path: PathBuf, error: HashringsError },
    #[error("{path}: the hashrings have flaws (--strict)")]
    Flawed { path: PathBuf },
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
}

/// The `ring` command and its flags.
pub fn command() -> Command {
    let locate = Command::new("locate")
        .about("Tell which endpoints hold series")
        .long_about(
            "Tell which endpoints hold series, replica 0 first.\n\nSeries are given as arguments, \
             as in up{job=\"a\"}, whose labels are sorted as senders do, or as JSON on standard \
             input, one a line: {\"tenant\":\"t\",\"labels\":[[\"__name__\",\"up\"]]}, whose labels \
             are hashed in the order given.",
        )
        .arg(
            Arg::new("receive.hashrings-file")
                .long("receive.hashrings-file")
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
        .args(ring_args())
        .arg(Arg::new("series").value_name("SERIES").num_args(0..));
    let diff = Command::new("diff")
        .about("Tell what moves when one hashrings file replaces another")
        .arg(Arg::new("old").value_name("OLD").required(true).value_parser(value_parser!(PathBuf)))
        .arg(Arg::new("new").value_name("NEW").required(true).value_parser(value_parser!(PathBuf)))
        .args(ring_args())
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .help("Try this many made-up series of the tenant")
                .default_value("10000")
                .value_parser(value_parser!(u64).range(1..=100_000_000)),
        )
        .arg(
            Arg::new("series-file")
                .long("series-file")
                .value_name("FILE")
                .help("Try these series instead, one a line as for locate; - is standard input")
                .conflicts_with("count")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(Arg::new("json").long("json").help("Print JSON").action(ArgAction::SetTrue));
    Command::new("ring")
        .about("Look into hashrings")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(locate)
        .subcommand(diff)
        .subcommand(status::command())
}

fn ring_args() -> [Arg; 4] {
    [
        Arg::new("receive.hashrings-algorithm")
            .long("receive.hashrings-algorithm")
            .help("For hashrings that name none")
            .default_value("hashmod")
            .value_parser(["hashmod", "ketama"]),
        Arg::new("receive.replication-factor")
            .long("receive.replication-factor")
            .value_name("N")
            .default_value("1")
            .value_parser(value_parser!(u64).range(1..=REPLICATION_FACTOR_MAX as u64)),
        Arg::new("tenant")
            .long("tenant")
            .help("Tenant of series that name none")
            .default_value(TENANT_DEFAULT),
        Arg::new("strict")
            .long("strict")
            .help("Fail if the hashrings have flaws that are otherwise only told")
            .action(ArgAction::SetTrue),
    ]
}

/// Runs what the command line asks for.
pub fn run(matches: &ArgMatches) -> ExitCode {
    let result = match matches.subcommand() {
        Some(("locate", matches)) => locate(matches).map(|()| ExitCode::SUCCESS),
        Some(("diff", matches)) => diff(matches).map(|()| ExitCode::SUCCESS),
        Some(("status", matches)) => status::run(matches),
        // clap asks for one of them.
        _ => Ok(ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        // Whoever read the output has seen enough.
        Err(ToolError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn locate(matches: &ArgMatches) -> Result<(), ToolError> {
    let path = path(matches, "receive.hashrings-file");
    let hashring = read_hashring(path, matches)?;
    let mut locator = Locator::new(&hashring);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let tenant = text(matches, "tenant");
    if let Some(arguments) = matches.get_many::<String>("series") {
        for argument in arguments {
            let series = Series::parse_text(argument, tenant);
            writeln!(out, "{}", locator.answer(series))?;
        }
    } else {
        locate_lines(io::stdin().lock(), &mut out, tenant, &mut locator)?;
    }
    out.flush()?;
    Ok(())
}

/// One answer for each line, in order.
fn locate_lines(
    mut lines: impl BufRead,
    out: &mut impl Write,
    tenant: &str,
    locator: &mut Locator<'_>,
) -> Result<(), io::Error> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let series = Series::parse_line(line.trim_ascii(), tenant);
        writeln!(out, "{}", locator.answer(series))?;
    }
}

fn diff(matches: &ArgMatches) -> Result<(), ToolError> {
    let old = read_hashring(path(matches, "old"), matches)?;
    let new = read_hashring(path(matches, "new"), matches)?;
    let tenant = text(matches, "tenant");
    let mut diff = diff::Diff::new(&old, &new);
    match matches.get_one::<PathBuf>("series-file") {
        Some(file) => {
            let read_error = |error| ToolError::Read { path: file.clone(), error };
            let lines: Box<dyn BufRead> = if file.as_os_str() == "-" {
                Box::new(io::stdin().lock())
            } else {
                Box::new(io::BufReader::new(std::fs::File::open(file).map_err(read_error)?))
            };
            for line in lines.split(b'\n') {
                let line = line.map_err(read_error)?;
                let line = line.trim_ascii();
                if !line.is_empty() {
                    diff.add(Series::parse_line(line, tenant));
                }
            }
        }
        None => {
            let count = matches.get_one::<u64>("count").copied().unwrap_or_default();
            (0..count).for_each(|i| diff.add(Ok(Series::made_up(tenant, i))));
        }
    }
    let report = diff.report();
    let mut out = io::BufWriter::new(io::stdout().lock());
    if matches.get_flag("json") {
        writeln!(out, "{}", to_json(&report))?;
    } else {
        write!(out, "{report}")?;
    }
    out.flush()?;
    Ok(())
}

/// Reads the file as the receiver would and tells on standard error what is odd about it.
fn read_hashring(path: &Path, matches: &ArgMatches) -> Result<Hashring, ToolError> {
    let content =
        std::fs::read(path).map_err(|error| ToolError::Read { path: path.to_owned(), error })?;
    let rings = file::parse(&content)
        .map_err(|error| ToolError::Refused { path: path.to_owned(), error })?;
    let algorithm = match text(matches, "receive.hashrings-algorithm") {
        "ketama" => Algorithm::Ketama,
        _ => Algorithm::Hashmod,
    };
    let factor = matches.get_one::<u64>("receive.replication-factor").copied().unwrap_or(1);
    let defaults = RingDefaults { algorithm, replication_factor: factor as usize };
    let metrics = HashringMetrics::new(&Registry::new());
    let hashring = Hashring::build(rings, defaults, None, &metrics);
    for warning in hashring.warnings() {
        eprintln!("error: {}: {warning}", path.display());
    }
    if matches.get_flag("strict") && !hashring.warnings().is_empty() {
        return Err(ToolError::Flawed { path: path.to_owned() });
    }
    Ok(hashring)
}

fn path<'a>(matches: &'a ArgMatches, name: &str) -> &'a Path {
    // The flags that are asked for are required.
    matches.get_one::<PathBuf>(name).map_or(Path::new(""), PathBuf::as_path)
}

fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map_or("", String::as_str)
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}

/// Why a series has no place.
#[derive(Debug, thiserror::Error)]
enum LocateError {
    #[error(transparent)]
    Series(#[from] SeriesError),
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

/// Where a series is.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Place<'a> {
    hashring: &'a str,
    /// Addresses, replica 0 first.
    endpoints: Vec<&'a str>,
}

/// Asks a hashring for series after series.
struct Locator<'a> {
    hashring: &'a Hashring,
    hasher: SeriesHasher,
}

impl<'a> Locator<'a> {
    fn new(hashring: &'a Hashring) -> Locator<'a> {
        Locator { hashring, hasher: SeriesHasher::for_tenant(b"") }
    }

    fn locate(&mut self, series: &Series) -> Result<Place<'a>, PlacementError> {
        let ring = self.hashring.ring_of(&series.tenant)?;
        ring.require_replicas(self.hashring.defaults().replication_factor)?;
        self.hasher.set_tenant(series.tenant.as_bytes());
        let labels = series.labels.iter();
        let hash =
            self.hasher.hash(labels.map(|(name, value)| (name.as_bytes(), value.as_bytes())));
        let address = |index| self.hashring.endpoint(index).address.as_str();
        Ok(Place {
            hashring: self.hashring.name_of_ring(&series.tenant)?,
            endpoints: ring.replicas_of(hash).into_iter().map(address).collect(),
        })
    }

    /// The line of output for a series, or for what should have been one.
    fn answer(&mut self, series: Result<Series, SeriesError>) -> String {
        let place = series
            .map_err(LocateError::from)
            .and_then(|series| self.locate(&series).map_err(LocateError::from));
        match place {
            Ok(place) => to_json(&place),
            Err(error) => to_json(&Failure { error: DisplayError(&error) }),
        }
    }
}

#[derive(Serialize)]
struct Failure<'a> {
    error: DisplayError<'a>,
}

/// An error as its message.
struct DisplayError<'a>(&'a dyn fmt::Display);

impl Serialize for DisplayError<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hashring::{Endpoint, RingOptions};

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
        let line = ["ring", "locate", "--receive.hashrings-file=f", "up{job=\"a\"}"];
        let matches = command().try_get_matches_from(line).unwrap();
        let (name, matches) = matches.subcommand().unwrap();
        assert_eq!(name, "locate");
        assert_eq!(path(matches, "receive.hashrings-file"), Path::new("f"));
        for bad in ["--receive.replication-factor=0", "--receive.hashrings-algorithm=x"] {
            assert!(command().try_get_matches_from(["ring", "diff", "a", "b", bad]).is_err());
        }
    }

    #[test]
    fn each_line_in_has_its_line_out() {
        let ring = RingOptions {
            name: "h".into(),
            tenants: vec!["t".into()],
            endpoints: ["a:1", "b:1", "c:1"].map(Endpoint::at).into(),
            ..RingOptions::default()
        };
        let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 3 };
        let metrics = HashringMetrics::new(&Registry::new());
        let hashring = Hashring::build(vec![ring], defaults, None, &metrics);
        let input = "{\"tenant\":\"t\",\"labels\":[[\"__name__\",\"up\"]]}\n\
                     {\"tenant\":\"u\",\"labels\":[]}\n\
                     \n\
                     {\"tenant\":\"t\",\"labels\":7}\n\
                     up";
        let mut out = Vec::new();
        let mut locator = Locator::new(&hashring);
        locate_lines(input.as_bytes(), &mut out, "t", &mut locator).unwrap();
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0]["hashring"], "h");
        assert_eq!(lines[0]["endpoints"].as_array().unwrap().len(), 3);
        assert_eq!(lines[1]["error"], "no matching hashring to handle tenant");
        assert!(lines[2]["error"].is_string() && lines[3]["error"].is_string());
        assert_eq!(lines[4], lines[0], "text and JSON give the same series");
    }
}
