//! `ringest load`: sends remote write as many senders would, and checks that nothing was lost.
//!
//! [`workload`] says which series there are and the value of every sample, [`body`] encodes the
//! requests, each [`sender`] owns one connection and a share of the series, [`acked`] records what
//! was acknowledged, and [`verify`] reads it back. Encoding and decoding ([`protobuf`], [`xor`])
//! are apart from the server's, so that a mistake there is not hidden by the same one here.

mod acked;
mod body;
mod flags;
pub mod process;
mod protobuf;
mod report;
mod sender;
#[cfg(test)]
mod tests;
mod verify;
mod workload;
mod xor;

use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use acked::{AckedFile, AckedFileError, Acknowledged};
pub use body::Body;
pub use flags::command;
pub use protobuf::{MalformedAnswer, ReadFormat};
pub use report::{Latencies, LatencySummary, Summary, Tally, grouped};
pub use sender::{
    BodySource, EncodedOnDemand, NextBody, Pregenerated, Progress, SendError, SendOptions,
};
pub use verify::{Verification, VerifyError, VerifyOptions, verify};
pub use workload::{Lane, Order, Shape, TimestampSource, Workload};

use crate::clock::SystemClock;
use flags::{LoadFlags, VerifyFlags};
use sender::Sender;

/// Runs `ringest load` with the arguments that [`command`] parsed.
///
/// Fails if nothing could be sent or read, if nothing was acknowledged, or if verification found
/// a sample missing, different, duplicated or unexpected.
pub fn run(matches: &clap::ArgMatches) -> ExitCode {
    let outcome = match matches.subcommand() {
        Some(("verify", matches)) => VerifyFlags::parse(matches).and_then(verify_file),
        _ => LoadFlags::parse(matches).and_then(send_and_verify),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ringest load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What stops `ringest load`; only ever shown.
type LoadError = Box<dyn std::error::Error>;

fn send_and_verify(flags: LoadFlags) -> Result<bool, LoadError> {
    let LoadFlags { workload, options, pregenerate, acked_file, verify: verify_options, json } =
        flags;
    let acked_file = acked_file.map(|path| AckedFile::create(&path, &workload)).transpose()?;
    let lanes = workload.lanes();
    let progress = Progress::default();
    let setup = Setup {
        workload: &workload,
        options: &options,
        acked_file: acked_file.as_ref(),
        keep_acknowledged: verify_options.is_some(),
        progress: &progress,
        stop: CancellationToken::new(),
    };
    let finished = CancellationToken::new();
    let total = std::thread::scope(|scope| {
        scope.spawn(|| watch(&setup, &finished));
        let total = send(&setup, |connection| match options.rounds {
            Some(rounds) if pregenerate => {
                let bodies = Pregenerated::new(&workload, &lanes, connection, rounds)?;
                Ok(Box::new(bodies) as Box<dyn BodySource + '_>)
            }
            _ => Ok(Box::new(EncodedOnDemand::new(&workload, &lanes, connection)) as _),
        });
        finished.cancel();
        total
    })?;
    let mut summary = Summary::new(&total.tally, total.elapsed, total.cpu);
    let verified = match (verify_options, &total.acknowledged) {
        (Some(options), Some(acknowledged)) => {
            Some(runtime()?.block_on(verify(&workload, acknowledged, &options)))
        }
        _ => None,
    };
    // What was sent is told even if nothing can be read.
    let (verification, failure) = match verified.transpose() {
        Ok(verification) => (verification, None),
        Err(error) => (None, Some(error)),
    };
    summary.verification = verification;
    print(&summary, json)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let lost_nothing = summary.verification.as_ref().is_none_or(Verification::is_clean);
    Ok(lost_nothing && summary.samples > 0)
}

fn verify_file(flags: VerifyFlags) -> Result<bool, LoadError> {
    let (workload, acknowledged) = acked::read(&flags.acked_file)?;
    let verification = runtime()?.block_on(verify(&workload, &acknowledged, &flags.options))?;
    let clean = verification.is_clean();
    print(&verification, flags.json)?;
    Ok(clean)
}

fn print<T: serde::Serialize + std::fmt::Display>(value: &T, json: bool) -> Result<(), LoadError> {
    let mut out = std::io::stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string(value)?)?,
        false => write!(out, "{value}")?,
    }
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// One run: what to send, how, and what to keep of it.
pub struct Setup<'a> {
    pub workload: &'a Workload,
    pub options: &'a SendOptions,
    pub acked_file: Option<&'a AckedFile>,
    /// Keep in memory what was acknowledged, to verify it afterwards.
    pub keep_acknowledged: bool,
    pub progress: &'a Progress,
    /// Ends the run after the requests in flight.
    pub stop: CancellationToken,
}

/// What all connections did together.
#[derive(Debug)]
pub struct Total {
    pub tally: Tally,
    pub acknowledged: Option<Acknowledged>,
    /// From the first request to the last answer; preparation is not in it.
    pub elapsed: Duration,
    /// What this process used meanwhile.
    pub cpu: Duration,
}

/// Sends a workload, each connection from a thread of its own. `source` prepares the bodies of a
/// connection; sending begins when all are prepared.
pub fn send<'a, S: BodySource>(
    setup: &Setup<'a>,
    source: impl Fn(u32) -> Result<S, SendError> + Sync,
) -> Result<Total, SendError> {
    let connections = setup.workload.connections;
    let barrier = Barrier::new(connections as usize + 1);
    let cpu = || process::cpu_time(std::process::id()).unwrap_or_default();
    let (results, elapsed, cpu) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|connection| {
                let (source, barrier) = (&source, &barrier);
                scope.spawn(move || {
                    let bodies = source(connection);
                    barrier.wait();
                    let sent = bodies.and_then(|bodies| send_connection(setup, bodies));
                    if sent.is_err() {
                        setup.stop.cancel();
                    }
                    sent
                })
            })
            .collect();
        barrier.wait();
        let (began, cpu_before) = (Instant::now(), cpu());
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        (results, began.elapsed(), cpu().saturating_sub(cpu_before))
    });
    let mut total = Total {
        tally: Tally::default(),
        acknowledged: setup.keep_acknowledged.then(|| Acknowledged::new(setup.workload)),
        elapsed,
        cpu,
    };
    for result in results {
        let sent = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        total.tally.merge(&sent.tally);
        if let (Some(all), Some(sent)) = (&mut total.acknowledged, sent.acknowledged) {
            all.merge(sent);
        }
    }
    Ok(total)
}

fn send_connection(
    setup: &Setup<'_>,
    mut bodies: impl BodySource,
) -> Result<sender::Sent, SendError> {
    runtime().map_err(SendError::Runtime)?.block_on(async {
        if let Some(duration) = setup.options.duration {
            let stop = setup.stop.clone();
            tokio::spawn(async move {
                tokio::time::sleep(duration).await;
                stop.cancel();
            });
        }
        Sender::new(setup, &SystemClock).run(&mut bodies).await
    })
}

/// How often it is told that requests are sent again.
const RETRIES_TOLD_INTERVAL: Duration = Duration::from_secs(5);

/// Draws the progress bar, tells what is in the way, and stops the run at the first interrupt.
fn watch(setup: &Setup<'_>, finished: &CancellationToken) {
    // Without a runtime there is neither bar nor interrupt, and `send` reports why.
    let Ok(runtime) = runtime() else { return };
    let bar = progress_bar(setup);
    runtime.block_on(async {
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        // One for the whole run: made anew for each tick, it would miss an interrupt that comes
        // together with a tick.
        let mut interrupt = pin!(tokio::signal::ctrl_c());
        let mut told: Option<Instant> = None;
        loop {
            tokio::select! {
                () = finished.cancelled() => break,
                _ = &mut interrupt, if !setup.stop.is_cancelled() => setup.stop.cancel(),
                _ = tick.tick() => bar.set_position(setup.progress.samples.load(Ordering::Relaxed)),
            }
            if told.is_none_or(|told| told.elapsed() >= RETRIES_TOLD_INTERVAL)
                && let Some(failure) = setup.progress.take_retried()
            {
                told = Some(Instant::now());
                bar.suspend(|| eprintln!("ringest load: trying again: {failure}"));
            }
        }
    });
    bar.finish_and_clear();
}

fn progress_bar(setup: &Setup<'_>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let per_round =
        u64::from(setup.workload.series_count) * u64::from(setup.workload.samples_per_series);
    let (bar, template) = match setup.options.rounds {
        Some(rounds) => (
            ProgressBar::new(per_round * u64::from(rounds)),
            "{elapsed_precise} {wide_bar} {human_pos}/{human_len} samples, {rate}, {eta} left",
        ),
        None => {
            (ProgressBar::no_length(), "{elapsed_precise} {spinner} {human_pos} samples, {rate}")
        }
    };
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{}/s", grouped(state.per_sec() as u64));
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.with_key("rate", rate)),
        Err(_) => bar,
    }
}
