//! Ends under load, wanted and not: what was acknowledged is there afterwards.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::directories::{NO_TARGETS, copy_dir};
use crate::http::{self, Request};
use crate::process::{Process, wait_for};
use crate::programs::{Prometheus, Ringest};
use crate::remote_read::{self, everything, sample_count};

/// A sender that goes on until it is stopped, and its record of what was acknowledged.
struct Load {
    process: Process,
    acked_file: PathBuf,
}

/// Size of the record that a stretch of load fills: 40 requests, sent and acknowledged.
const STRETCH_BYTES: u64 = 40 * 2 * 24;

impl Load {
    fn start(root: &Path, ringest: &Ringest) -> Load {
        let acked_file = root.join("acked");
        let mut command = ringest.load(&[
            "--series=2000",
            "--series-per-request=200",
            "--connections=2",
            "--tenants=3",
            "--rate=20000",
            "--stale=5",
            "--churn=50",
        ]);
        command.arg("--acked-file").arg(&acked_file);
        let process = Process::start(&mut command, &root.join("load.log"));
        Load { process, acked_file }
    }

    fn recorded(&self) -> u64 {
        fs::metadata(&self.acked_file).map_or(0, |metadata| metadata.len())
    }

    /// Waits until a stretch of requests has been acknowledged.
    fn wait_stretch(&mut self) {
        let began = self.recorded();
        let went_on = wait_for(|| {
            assert_eq!(self.process.exited(), None, "{}", self.process.log());
            (self.recorded() > began + STRETCH_BYTES).then_some(())
        });
        assert!(went_on.is_some(), "the load is stuck: {}", self.process.log());
    }

    fn stop(mut self) -> PathBuf {
        self.process.signal(Signal::INT);
        assert_eq!(self.process.wait_exit(), Some(0), "{}", self.process.log());
        self.acked_file
    }
}

fn survives_kills(sync: &str) {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = Ringest::start(root.path(), &[sync]);
    let mut load = Load::start(root.path(), &ringest);
    for _ in 0..4 {
        load.wait_stretch();
        ringest.kill();
        ringest.start_again();
    }
    load.wait_stretch();
    let acked_file = load.stop();
    ringest.verify(&acked_file);
    ringest.kill();
    ringest.start_again();
    ringest.verify(&acked_file);
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_with_sync_by_interval() {
    survives_kills("--tsdb.wal-sync=interval");
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_with_sync_always() {
    survives_kills("--tsdb.wal-sync=always");
}

#[test]
fn a_directory_killed_under_load_holds_the_same_to_prometheus() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = Ringest::start(root.path(), &[]);
    let mut load = Load::start(root.path(), &ringest);
    load.wait_stretch();
    ringest.kill();
    load.stop();
    let copy = root.path().join("for-prometheus");
    copy_dir(&ringest.tenant_dir("load-0"), &copy);
    ringest.start_again();
    let ours = remote_read::read(ringest.http(), Some("load-0"), ".+");
    assert!(sample_count(&ours) > 0);
    let prometheus = Prometheus::start(&copy, NO_TARGETS, &[]);
    assert!(everything(prometheus.address()) == ours, "Prometheus serves something else");
}

#[test]
fn nothing_acknowledged_is_lost_by_a_stop_under_load() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = Ringest::start(root.path(), &[]);
    let mut load = Load::start(root.path(), &ringest);
    load.wait_stretch();
    ringest.stop();
    ringest.start_again();
    load.wait_stretch();
    let acked_file = load.stop();
    ringest.verify(&acked_file);
    ringest.stop();
    ringest.start_again();
    ringest.verify(&acked_file);
}

/// A remote write 1.0 body with one series `up` of one sample: 1 at time 1,000,000.
const UP: &[u8] = b"\x0a\x1f\x0a\x0e\x0a\x08__name__\x12\x02up\x12\x0d\
                    \x09\x00\x00\x00\x00\x00\x00\xf0\x3f\x10\xc0\x84\x3d";

#[test]
fn a_stop_waits_for_the_request_under_way_and_is_not_ready_meanwhile() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = Ringest::start(root.path(), &[]);
    let body = snap::raw::Encoder::new().compress_vec(UP).unwrap();
    let (half, rest) = body.split_at(body.len() / 2);
    let mut sender = TcpStream::connect(ringest.write()).unwrap();
    let length = body.len();
    // The answer to `Expect` shows that the request is under way.
    write!(
        sender,
        "POST /api/v1/receive HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\
         Expect: 100-continue\r\n\r\n"
    )
    .unwrap();
    let mut proceed = [0; 25];
    sender.read_exact(&mut proceed).unwrap();
    assert_eq!(&proceed, b"HTTP/1.1 100 Continue\r\n\r\n");
    sender.write_all(half).unwrap();

    ringest.process().signal(Signal::TERM);
    let address = ringest.http().to_owned();
    let is_ready = || {
        let answer = http::exchange(&address, &Request::new("GET", "/-/ready"));
        answer.is_some_and(|answer| answer.status == 200)
    };
    let drains = wait_for(|| (!is_ready()).then_some(()));
    assert!(drains.is_some(), "it stays ready: {}", ringest.process().log());
    assert_eq!(ringest.process().exited(), None, "{}", ringest.process().log());
    assert!(!is_ready());

    sender.write_all(rest).unwrap();
    let mut answer = String::new();
    sender.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    ringest.ended();

    ringest.start_again();
    let stored = everything(ringest.http());
    let up = vec![("__name__".to_owned(), "up".to_owned())];
    assert_eq!(stored, [(up, vec![(1_000_000, 1f64.to_bits())])].into());
}
