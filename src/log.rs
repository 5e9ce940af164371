//! Log lines as Thanos writes them, so that what operators have built on its log keeps working:
//! one line per event on standard error, as logfmt or JSON, or an entry in the journal.
//!
//! ```text
//! ts=2026-01-02T03:04:05.678901234Z caller=app.rs:12 level=info component=receive msg="..." k=v
//! ```
//!
//! An event's message is `msg`, its other fields follow in the order given. Whatever belongs to the
//! receiver has the component `receive`; a part of it has a second one, from the module that logs
//! or from a field `component`.
//!
//! Whoever logs makes the line and leaves it to [`queue`]: no thread of ours waits for the reader of
//! the log.

mod journald;
mod options;
mod queue;
pub mod throttle;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value as Json;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use journald::Journal;
pub use options::{LogConfig, LogFormat, LogLevel};
use queue::{LineQueue, Sink};

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("journald log format requested but systemd journal is not available")]
    NoJournal,
    #[error("a logger is installed already")]
    Installed,
    #[error("starting its thread: {0}")]
    Thread(#[source] io::Error),
}

/// The lines of this process.
static QUEUE: OnceLock<Arc<LineQueue>> = OnceLock::new();

/// How long the end of the process waits for lines to be taken.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// How often a standard error is tried that somebody has made non-blocking and that is full.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Writes what is queued when it is dropped.
pub struct LogGuard(Arc<LineQueue>);

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.0.flush(FLUSH_PATIENCE);
    }
}

/// Lines that nobody took in time.
pub fn dropped_lines() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped())
}

/// Makes every event and every panic of this process a log line, until the guard is dropped.
pub fn init(config: &LogConfig) -> Result<LogGuard, LogError> {
    let queue = Arc::new(LineQueue::start(sink(config.format)?).map_err(LogError::Thread)?);
    let lines = LogLines::new(config, queue.clone());
    let _ = QUEUE.set(queue.clone());
    let subscriber = tracing_subscriber::registry().with(lines);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Installed)?;
    std::panic::set_hook(Box::new(|panic| {
        // Empty unless RUST_BACKTRACE asks for it.
        let stack = Backtrace::capture();
        let stack = Some(stack).filter(|stack| stack.status() == BacktraceStatus::Captured);
        let stack = stack.map(|stack| stack.to_string()).unwrap_or_default();
        tracing::error!(panic = %panic, stack, "panic");
    }));
    Ok(LogGuard(queue))
}

/// Where lines of this format go.
fn sink(format: LogFormat) -> Result<Sink, LogError> {
    if format == LogFormat::Journald {
        let journal = Journal::connect(journald::SOCKET).ok_or(LogError::NoJournal)?;
        return Ok(Box::new(move |entry| journal.send(entry)));
    }
    // Apart from the library's handle, whose lock would be held while nobody reads.
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(LogError::Thread)?;
    let stderr = File::from(stderr);
    Ok(Box::new(move |line| write_whole(&stderr, line)))
}

#[expect(clippy::disallowed_methods, reason = "the log's own thread waits")]
fn write_whole(mut file: &File, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match file.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_INTERVAL),
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// The component of everything in the receiver.
const RECEIVE: &str = "receive";

/// Second components by module, the most specific first.
const COMPONENTS: [(&str, &str); 8] = [
    ("ringest::http::remote_write", "receive-handler"),
    ("ringest::http::respond", "receive-handler"),
    ("ringest::http::tenant", "receive-handler"),
    ("ringest::write::admission", "receive-limiter"),
    ("ringest::write", "receive-writer"),
    ("ringest::multi_tsdb", "multi-tsdb"),
    ("ringest::tsdb", "multi-tsdb"),
    ("ringest::store", "proxy"),
];

/// No part of the receiver: what starts it (the program's root module), and the load generator.
fn is_outside_receiver(module: &str) -> bool {
    module == "ringest" || is_inside(module, "ringest::load")
}

struct LogLines {
    level: Level,
    debug_name: Option<String>,
    format: LogFormat,
    queue: Arc<LineQueue>,
}

impl LogLines {
    fn new(config: &LogConfig, queue: Arc<LineQueue>) -> LogLines {
        let level = match config.level {
            LogLevel::Error => Level::ERROR,
            LogLevel::Warn => Level::WARN,
            LogLevel::Info => Level::INFO,
            LogLevel::Debug => Level::DEBUG,
        };
        LogLines { level, debug_name: config.debug_name.clone(), format: config.format, queue }
    }

    fn encode(&self, line: &Line<'_>) -> Vec<u8> {
        match self.format {
            LogFormat::Logfmt => line.logfmt().into_bytes(),
            LogFormat::Json => line.json().into_bytes(),
            LogFormat::Journald => journald::entry(line),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "lines tell the machine's time")]
    fn line<'a>(&'a self, event: &Event<'_>) -> Line<'a> {
        let metadata = event.metadata();
        let mut line = Line {
            time: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
            caller: caller(metadata),
            name: self.debug_name.as_deref(),
            level: level_name(*metadata.level()),
            component: None,
            message: String::new(),
            fields: Vec::new(),
        };
        event.record(&mut line);
        let module = metadata.module_path().unwrap_or_default();
        if line.component.is_none() {
            line.component = component_of(module).map(str::to_owned);
        }
        if !is_outside_receiver(module) {
            line.fields.insert(0, ("component", Json::from(RECEIVE)));
        }
        line
    }
}

impl<S: Subscriber> Layer<S> for LogLines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        // What libraries warn of is a fault of the other end of some connection, told in their own
        // terms: of no use to an operator. What matters of it is told by our code.
        let is_ours = is_inside(metadata.target(), "ringest");
        let of_libraries = if self.level >= Level::DEBUG { Level::WARN } else { Level::ERROR };
        *metadata.level() <= if is_ours { self.level } else { of_libraries }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.queue.push(self.encode(&self.line(event)));
    }
}

/// One event, ready to be written.
struct Line<'a> {
    time: String,
    caller: String,
    name: Option<&'a str>,
    level: &'static str,
    /// The innermost component.
    component: Option<String>,
    message: String,
    /// In the order given; the component of the receiver stands first.
    fields: Vec<(&'static str, Json)>,
}

impl Line<'_> {
    /// Keys and values in order, a repeated `component` included.
    fn pairs(&self) -> impl Iterator<Item = (&str, Json)> {
        let outer = self.fields.iter().filter(|(key, _)| *key == "component");
        let rest = self.fields.iter().filter(|(key, _)| *key != "component");
        let head = [
            Some(("ts", Json::from(self.time.as_str()))),
            Some(("caller", Json::from(self.caller.as_str()))),
            self.name.map(|name| ("name", Json::from(name))),
            Some(("level", Json::from(self.level))),
        ];
        let inner = self.component.as_deref().map(|component| ("component", Json::from(component)));
        let message = Some(self.message.as_str()).filter(|message| !message.is_empty());
        head.into_iter()
            .flatten()
            .chain(outer.map(|(key, value)| (*key, value.clone())))
            .chain(inner)
            .chain(message.map(|message| ("msg", Json::from(message))))
            .chain(rest.map(|(key, value)| (*key, value.clone())))
    }

    fn logfmt(&self) -> String {
        let mut text = String::with_capacity(256);
        for (key, value) in self.pairs() {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(key);
            text.push('=');
            match value {
                Json::String(value) => push_logfmt_value(&mut text, &value),
                // Writing to a String cannot fail.
                other => drop(write!(text, "{other}")),
            }
        }
        text.push('\n');
        text
    }

    /// Keys are sorted; of a repeated key the last value stays.
    fn json(&self) -> String {
        let object: BTreeMap<&str, Json> = self.pairs().collect();
        let mut text = serde_json::to_string(&object).unwrap_or_default();
        text.push('\n');
        text
    }

    fn push(&mut self, field: &Field, value: Json) {
        match (field.name(), value) {
            ("message", Json::String(message)) => self.message = message,
            ("component", Json::String(component)) => self.component = Some(component),
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, Json::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Json::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Json::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Json::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Json::from(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.push(field, Json::from(value.to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, Json::from(format!("{value:?}")));
    }
}

/// `file.rs:12`
fn caller(metadata: &Metadata<'_>) -> String {
    let file = metadata.file().unwrap_or_default();
    let file = file.rsplit('/').next().unwrap_or_default();
    format!("{file}:{}", metadata.line().unwrap_or_default())
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

fn component_of(module: &str) -> Option<&'static str> {
    let (_, component) = COMPONENTS.iter().find(|(prefix, _)| is_inside(module, prefix))?;
    Some(component)
}

/// Whether `module` is `outer` or below it.
fn is_inside(module: &str, outer: &str) -> bool {
    match module.strip_prefix(outer) {
        Some(rest) => rest.is_empty() || rest.starts_with("::"),
        None => false,
    }
}

/// Quotes a value if a reader of logfmt could misread it.
fn push_logfmt_value(text: &mut String, value: &str) {
    let misread = |c: char| c <= ' ' || c == '=' || c == '"' || c == '\u{7f}' || c == '\u{fffd}';
    if !value.contains(misread) {
        text.push_str(value);
        return;
    }
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c < ' ' || c == '\u{7f}' => drop(write!(text, "\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests;
