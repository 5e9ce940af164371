//! The program: words to a command, a command to an exit code.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use ringest::app::check::Report;
use ringest::config::Config;
use ringest::config::command_line::{self, Check, Invocation, Refused, UsageError, Values};
use ringest::log::LogConfig;
use ringest::{app, load, log, ring_tool};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match tool(&words) {
        Some(Tool::Ring(words)) => {
            return ring_tool::run(
                &ring_tool::command().bin_name("ringest ring").get_matches_from(words),
            );
        }
        Some(Tool::Load(words)) => {
            return load::run(&load::command().bin_name("ringest load").get_matches_from(words));
        }
        None => {}
    }
    match command_line::parse(words) {
        Ok(Invocation::Receive(values)) => match values.check() {
            Some(how) => check(how, &[], &values, ExitCode::FAILURE),
            None => receive(&values),
        },
        Ok(Invocation::Print(text)) => {
            // A reader that has seen enough, such as `head`, is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(refused) => refuse(&refused),
    }
}

/// A command beside the receiver, with its words.
enum Tool {
    Ring(Vec<OsString>),
    Load(Vec<OsString>),
}

/// `help COMMAND` is `COMMAND --help`.
fn tool(words: &[OsString]) -> Option<Tool> {
    let (name, words) = match words {
        [help, name] if help == "help" => (name, vec![name.clone(), "--help".into()]),
        [name, ..] => (name, words.to_vec()),
        [] => return None,
    };
    match name.to_str()? {
        "ring" => Some(Tool::Ring(words)),
        "load" => Some(Tool::Load(words)),
        _ => None,
    }
}

/// Runs the receiver until it is told to stop.
fn receive(values: &Values) -> ExitCode {
    // Dropped last, when everything is said.
    let _log = match log::init(&LogConfig::from_values(values)) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("failed to create logger: {error}");
            return ExitCode::FAILURE;
        }
    };
    let errors = match Config::from_values(values, &hostname()) {
        Ok(config) => app::run(config).err().map(|error| error.to_string()).into_iter().collect(),
        Err(faults) => faults.errors.iter().map(|error| error.to_string()).collect::<Vec<_>>(),
    };
    if errors.is_empty() {
        tracing::info!("exiting");
        return ExitCode::SUCCESS;
    }
    for error in errors {
        tracing::error!(err = error);
    }
    ExitCode::FAILURE
}

/// Tells what a start would find, and ends as it would, with `failure` or well.
fn check(how: Check, refused: &[UsageError], values: &Values, failure: ExitCode) -> ExitCode {
    let report = Report::of(refused, &Config::from_values(values, &hostname()));
    let mut stdout = std::io::stdout().lock();
    for line in report.lines() {
        let _ = writeln!(stdout, "{line}");
    }
    if report.has_errors(how) { failure } else { ExitCode::SUCCESS }
}

/// Tells all that is wrong with a line, the settings that were understood included.
fn refuse(refused: &Refused) -> ExitCode {
    let Refused { errors, values } = refused;
    if let Some(values) = values
        && let Some(how) = values.check()
    {
        return check(how, errors, values, refused.exit_code());
    }
    for error in errors {
        eprintln!("ringest: error: {error}");
    }
    let faults = values.as_ref().and_then(|values| Config::from_values(values, &hostname()).err());
    for error in faults.iter().flat_map(|faults| &faults.errors) {
        eprintln!("ringest: error: {error}");
    }
    let of_command = if values.is_some() { "receive " } else { "" };
    eprintln!("ringest: `ringest {of_command}--help` lists what there is");
    refused.exit_code()
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
