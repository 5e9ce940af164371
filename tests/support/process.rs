//! Processes as a user starts them: what they print is kept for a failure's report, and none
//! outlives its test.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How often a state is asked for that a process will reach some time.
const POLL: Duration = Duration::from_millis(10);
/// After this a process has hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running process, killed when dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Process {
        let output =
            File::options().create(true).append(true).open(log).expect("log of the process");
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("log of the process"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{:?} does not start: {error}", command.get_program()));
        Process { child, log: log.to_owned() }
    }

    /// Exit code, or the negative number of the signal that ended the process, if it has ended.
    pub(crate) fn exited(&mut self) -> Option<i32> {
        self.child.try_wait().expect("state of the process").map(code)
    }

    /// Waits for the end; `None` if there is none.
    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        wait_for(|| self.exited())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // Fails if the process has ended already, which the caller sees by its exit code.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }

    /// What the process and those before it have written to the same file.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl AsRef<Child> for Process {
    fn as_ref(&self) -> &Child {
        &self.child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| -signal)).expect("exited or killed")
}

/// Asks until there is an answer; `None` if that takes too long.
pub(crate) fn wait_for<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        thread::sleep(POLL);
    }
    None
}
