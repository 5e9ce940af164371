//! Processes as a user starts them: what they print is kept for a failure's report, none outlives
//! its test, and one that dies unasked is noticed by whatever the test waits for.

use std::cell::RefCell;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};

/// How often a state is asked for that will be reached some time.
const POLL: Duration = Duration::from_millis(10);
/// Whatever takes longer is stuck. Generous: the machine may be busy with other tests.
pub(crate) const STUCK: Duration = Duration::from_secs(120);
/// How much of a log is printed when a test fails.
const LOG_BYTES_SHOWN: usize = 16 << 10;

/// When a process may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// When it is sent a signal: a server.
    WhenTold,
    /// When it is done, with success: a sender.
    WhenDone,
    /// As it likes; the test looks for itself.
    Anyhow,
}

/// A running process, killed when dropped.
pub(crate) struct Process(Arc<Inner>);

struct Inner {
    name: String,
    child: Mutex<Child>,
    pid: Pid,
    log: PathBuf,
    /// Where what this process prints begins.
    log_from: usize,
    ends: Ends,
    is_told: AtomicBool,
}

thread_local! {
    /// Those that this thread's test has started.
    static STARTED: RefCell<Vec<Weak<Inner>>> = const { RefCell::new(Vec::new()) };
}

impl Process {
    /// Starts `command`, which failures call `name`, with its output appended to the file `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path, ends: Ends) -> Process {
        let output =
            File::options().create(true).append(true).open(log).expect("log of the process");
        let log_from = output.metadata().expect("log of the process").len() as usize;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("log of the process"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            pid: Pid::from_child(&child),
            child: Mutex::new(child),
            log: log.to_owned(),
            log_from,
            ends,
            is_told: AtomicBool::new(false),
        });
        STARTED.with_borrow_mut(|started| {
            started.retain(|process| process.strong_count() > 0);
            started.push(Arc::downgrade(&inner));
        });
        Process(inner)
    }

    /// Exit code, or the negative number of the signal that ended the process, if it has ended.
    pub(crate) fn exited(&self) -> Option<i32> {
        self.0.exited()
    }

    /// Waits for the end; `None` if there is none.
    pub(crate) fn wait_exit(&self) -> Option<i32> {
        // Whatever it ends with is the caller's to judge.
        self.0.is_told.store(true, Ordering::Relaxed);
        wait_for(|| self.exited())
    }

    /// Sends it a signal, after which it may end.
    pub(crate) fn signal(&self, signal: Signal) {
        self.0.is_told.store(true, Ordering::Relaxed);
        // Fails if the process has ended already, which the caller sees by its exit code.
        let _ = rustix::process::kill_process(self.0.pid, signal);
    }

    /// What the process has printed.
    pub(crate) fn log(&self) -> String {
        self.0.log()
    }

    /// What the kernel says of it in `/proc/PID/status` under this name, in bytes.
    pub(crate) fn status_bytes(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.0.pid.as_raw_nonzero());
        let status = fs::read_to_string(path).expect("state of the process");
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let value = value.unwrap_or_else(|| panic!("no {name} in {status}"));
        let kib = value.trim().strip_suffix(" kB").expect("in kB");
        kib.parse::<u64>().expect("a number") << 10
    }
}

impl Inner {
    fn exited(&self) -> Option<i32> {
        self.child.lock().try_wait().expect("state of the process").map(code)
    }

    fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(log.get(self.log_from..).unwrap_or_default()).into_owned()
    }

    /// Panics if it has ended in a way that nobody asked for.
    fn assert_not_dead(&self) {
        if self.ends == Ends::Anyhow || self.is_told.load(Ordering::Relaxed) {
            return;
        }
        match self.exited() {
            None => {}
            Some(0) if self.ends == Ends::WhenDone => {}
            // Its log is printed at the test's end.
            Some(code) => panic!("{} has ended by itself with {code}: {}", self.name, self.log()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        // Both fail only if it has ended already.
        let _ = child.kill();
        let _ = child.wait();
        if thread::panicking() {
            let log = self.log();
            let from = log.ceil_char_boundary(log.len().saturating_sub(LOG_BYTES_SHOWN));
            println!("--- what {} said last:\n{}", self.name, &log[from..]);
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| -signal)).expect("exited or killed")
}

/// Asks until there is an answer; `None` if that takes too long. Panics as soon as a process that
/// this test has started is dead.
pub(crate) fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    while began.elapsed() < STUCK {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        let started = STARTED.with_borrow(Vec::clone);
        started.iter().filter_map(Weak::upgrade).for_each(|process| process.assert_not_dead());
        thread::sleep(POLL);
    }
    None
}

/// Waits for a condition.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    assert!(wait_for(|| holds().then_some(())).is_some(), "still not: {what}");
}
