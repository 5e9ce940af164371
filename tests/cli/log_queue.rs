//! A log that nobody reads: it holds up nothing, and what was queued comes out when somebody does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, PipeReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::program::get;
use crate::support::http::ask;
use crate::support::messages::{WriteRequest, write_request};
use crate::support::node::on_any_ports;
use crate::support::process::wait_for;

/// Refused writes, each a line.
const REFUSED: usize = 50;

/// A receiver whose log goes into a pipe.
struct Receiver {
    child: Child,
    log: BufReader<PipeReader>,
    /// Keeps the pipe open, to fill it.
    pipe: io::PipeWriter,
}

impl Receiver {
    fn start(data: &Path) -> Receiver {
        let (reader, pipe) = io::pipe().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ringest"))
            .args(["receive", "--label=replica=\"a\"", "--log.level=debug"])
            .args(on_any_ports())
            .arg(format!("--tsdb.path={}", data.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(pipe.try_clone().unwrap())
            .spawn()
            .unwrap();
        Receiver { child, log: BufReader::new(reader), pipe }
    }

    /// The next line with this part.
    fn line_with(&mut self, part: &str) -> String {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            // Blocks if there is none; the harness then shows which test hangs.
            self.log.read_line(&mut line).unwrap();
        }
        line
    }

    /// Where each service listens, told in no certain order.
    fn addresses(&mut self) -> BTreeMap<String, String> {
        let mut addresses = BTreeMap::new();
        while addresses.len() < 4 {
            let line = self.line_with("address=");
            let (head, address) = line.trim_end().rsplit_once(" address=").unwrap();
            let (_, service) = head.rsplit_once("service=").unwrap();
            addresses.insert(service.to_owned(), address.to_owned());
        }
        addresses
    }

    /// Leaves no room in the pipe. It is opened anew, since the receiver shares what is said of the
    /// handle that we have.
    fn fill_pipe(&self) {
        let path = format!("/proc/self/fd/{}", self.pipe.as_raw_fd());
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut pipe = File::options().write(true).custom_flags(nonblocking).open(path).unwrap();
        let line = b"filling\n";
        while pipe.write(&line.repeat(512)).is_ok() || pipe.write(line).is_ok() {}
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status of a write of one sample.
fn write(address: &str, timestamp: i64, value: f64) -> u16 {
    let body = WriteRequest::of(&[("__name__", "m")], timestamp, value).compressed();
    ask(address, &write_request(b"a", &body)).status
}

#[test]
fn a_log_that_nobody_reads_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::start(dir.path());
    let addresses = receiver.addresses();
    let (http, remote_write) = (&addresses["http/server"], &addresses["remote-write/server"]);
    wait_for(|| (get(http, "/-/ready").0 == 200).then_some(())).unwrap();

    receiver.fill_pipe();
    let now = 1_700_000_000_000;
    assert_eq!(write(remote_write, now, 1.0), 200);
    for _ in 0..REFUSED {
        assert_eq!(write(remote_write, now, 2.0), 409);
    }
    assert_eq!(get(http, "/-/healthy").0, 200);
    assert_eq!(write(remote_write, now + 1, 1.0), 200);
    assert!(get(http, "/metrics").1.contains("\nringest_log_lines_dropped_total 0\n"));

    // Every line is there for who reads again.
    for _ in 0..REFUSED {
        receiver.line_with("write partly refused");
    }
    receiver.fill_pipe();
    receiver.signal(Signal::TERM);
    let status = wait_for(|| receiver.child.try_wait().unwrap());
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

#[test]
fn the_last_lines_come_out_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("f")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ringest"))
        .args(["receive", "--label=replica=\"a\""])
        .args(on_any_ports())
        .arg(format!("--tsdb.path={}", dir.path().join("f").display()))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.ends_with(": not a directory\"\n"), "{said}");
}
