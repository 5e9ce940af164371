//! The program: words to a command, a command to an exit code.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use ringest::app;
use ringest::config::Config;
use ringest::config::command_line::{self, Invocation, UsageError, Values};
use ringest::config::usage::{self, Extent};
use ringest::log::LogConfig;
use ringest::{load, log, ring_tool};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == "ring") {
        return ring_tool::run(
            &ring_tool::command().bin_name("ringest ring").get_matches_from(words),
        );
    }
    if words.first().is_some_and(|word| word == "load") {
        return load::run(&load::command().bin_name("ringest load").get_matches_from(words));
    }
    match command_line::parse(words) {
        Ok(Invocation::Receive(values)) => receive(&values),
        Ok(Invocation::Print(text)) => {
            // A reader that has seen enough, such as `head`, is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error),
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
    let uname = rustix::system::uname();
    let hostname = uname.nodename().to_string_lossy();
    let result = match Config::from_values(values, &hostname) {
        Ok(config) => app::run(config).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match result {
        Ok(()) => {
            tracing::info!("exiting");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(err = error);
            ExitCode::FAILURE
        }
    }
}

fn refuse(error: &UsageError) -> ExitCode {
    if error.wants_usage() {
        eprintln!("{}", usage::receive(Extent::WithoutHidden));
    }
    eprintln!("ringest: error: {error}");
    error.exit_code()
}
