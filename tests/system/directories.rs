//! One directory, two programs: Prometheus and promtool open ours, we open theirs.

use std::fs;
use std::path::Path;

use crate::programs::{Prometheus, debian, start_node, succeed};
use crate::support::load::load_command;
use crate::support::node::DEFAULT_TENANT;
use crate::support::remote_read::{Content, STALE, everything, sample_count};
use crate::support::same::assert_same;

/// Scrapes nothing, so that what is in the directory stays as it is.
pub(crate) const NO_TARGETS: &str = "global: {}\n";

/// Samples of the last hour, in several chunks a series, with staleness markers in them.
pub(crate) const WORKLOAD: [&str; 6] = [
    "--series=300",
    "--rounds=250",
    "--timestamps=synthetic",
    "--step=10s",
    "--stale=5",
    "--connections=2",
];

enum End {
    Stop,
    Kill,
}

/// Fills a tenant's directory, ends the process, and lets Prometheus and promtool judge.
fn opens_in_prometheus(compression: &str, end: &End) {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[compression]);
    let read_url = format!("--read-url=http://{}/api/v1/read", ringest.http);
    load_to(&ringest.remote_write, &[&WORKLOAD[..], &[&read_url, "--verify"]].concat());
    let content = everything(&ringest.http);
    assert_eq!(sample_count(&content), 300 * 250);
    assert!(content.values().flatten().any(|(_, value)| *value == STALE));
    match end {
        End::Stop => ringest.stop(),
        End::Kill => ringest.kill(),
    }

    let dir = ringest.data.join(DEFAULT_TENANT);
    let copy = root.path().join("for-promtool");
    copy_dir(&dir, &copy);
    judge_with_promtool(&copy, &content, &[]);

    let copy = root.path().join("for-prometheus");
    copy_dir(&dir, &copy);
    let prometheus = Prometheus::start(&copy, NO_TARGETS, &["--web.enable-admin-api"]);
    assert_eq!(prometheus.complaints(), [""; 0]);
    assert_same("what Prometheus serves", &everything(prometheus.address()), &content);
    let snapshot = copy.join("snapshots").join(prometheus.snapshot());
    prometheus.stop();
    // `dump` opens the log, too, which a snapshot has none of.
    fs::create_dir(snapshot.join("wal")).unwrap();
    judge_with_promtool(&snapshot, &content, &["analyze"]);

    // A block that Prometheus has cut is served as it is.
    let other = tempfile::tempdir().unwrap();
    let data = other.path().join("data");
    fs::create_dir(&data).unwrap();
    copy_dir(&snapshot, &data.join(DEFAULT_TENANT));
    let node = start_node(other.path(), &[]);
    assert_same("what we serve of a block of Prometheus", &everything(&node.http), &content);
    node.stop();

    // None of that is in our way.
    ringest.start();
    assert_same("what we serve after a restart", &everything(&ringest.http), &content);
}

#[test]
fn a_stopped_compressed_directory_opens_in_prometheus() {
    opens_in_prometheus("--tsdb.wal-compression", &End::Stop);
}

#[test]
fn a_killed_compressed_directory_opens_in_prometheus() {
    opens_in_prometheus("--tsdb.wal-compression", &End::Kill);
}

#[test]
fn a_stopped_plain_directory_opens_in_prometheus() {
    opens_in_prometheus("--no-tsdb.wal-compression", &End::Stop);
}

#[test]
fn a_killed_plain_directory_opens_in_prometheus() {
    opens_in_prometheus("--no-tsdb.wal-compression", &End::Kill);
}

/// `promtool tsdb list` and `dump` over a directory, and what else is asked for, which needs a
/// block.
pub(crate) fn judge_with_promtool(dir: &Path, content: &Content, also: &[&str]) {
    let promtool =
        |command: &str| succeed(debian("promtool", "prometheus").args(["tsdb", command]).arg(dir));
    let list = promtool("list");
    assert!(list.starts_with("BLOCK ULID"), "{list}");
    let dump = promtool("dump");
    let dumped = dump.lines().filter(|line| line.starts_with('{')).count();
    assert_eq!(dumped, sample_count(content));
    for command in also {
        let series = format!("Series: {}\n", content.len());
        let analysis = promtool(command);
        assert!(analysis.contains(&series), "{series} is not in {analysis}");
        // Of each block: name, times, duration, samples. What was written over the end of a range is
        // in two.
        let samples = |block: &str| block.split_whitespace().nth(4)?.parse::<usize>().ok();
        let in_blocks: usize = list.lines().skip(1).filter_map(samples).sum();
        assert_eq!(in_blocks, sample_count(content), "{list}");
    }
}

/// Lets a Prometheus receive, ends it, and opens its directory as a tenant's; then the other way.
fn opens_prometheus_directory(flags: &[&str], end: &End) {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[]);
    let dir = ringest.data.join(DEFAULT_TENANT);
    ringest.stop();
    fs::remove_dir_all(&dir).unwrap();

    let flags = [flags, &["--web.enable-remote-write-receiver"]].concat();
    let prometheus = Prometheus::start(&dir, NO_TARGETS, &flags);
    load_to_prometheus(&prometheus, &WORKLOAD);
    let content = everything(prometheus.address());
    assert_eq!(sample_count(&content), 300 * 250);
    match end {
        End::Stop => prometheus.stop(),
        End::Kill => prometheus.kill(),
    }

    ringest.start();
    assert_same("what we serve of Prometheus", &everything(&ringest.http), &content);
    // Later samples of known series, and new series.
    load_to(&ringest.remote_write, &["--series=400", "--rounds=5"]);
    let content = everything(&ringest.http);
    assert_eq!(sample_count(&content), 300 * 250 + 400 * 5);
    ringest.kill();

    let prometheus = Prometheus::start(&dir, NO_TARGETS, &flags);
    assert_same("what Prometheus serves", &everything(prometheus.address()), &content);
    load_to_prometheus(&prometheus, &["--series=400", "--rounds=5"]);
    let content = everything(prometheus.address());
    assert_eq!(sample_count(&content), 300 * 250 + 400 * 10);
    prometheus.stop();

    ringest.start();
    assert_same("what we serve of Prometheus", &everything(&ringest.http), &content);
}

#[test]
fn a_stopped_prometheus_directory_opens_here_and_goes_back() {
    opens_prometheus_directory(&["--storage.tsdb.wal-compression"], &End::Stop);
}

#[test]
fn a_killed_prometheus_directory_opens_here_and_goes_back() {
    opens_prometheus_directory(&["--no-storage.tsdb.wal-compression"], &End::Kill);
}

fn load_to_prometheus(prometheus: &Prometheus, workload: &[&str]) {
    load_to(prometheus.address(), &[&["--path=/api/v1/write"], workload].concat());
}

pub(crate) fn load_to(address: &str, workload: &[&str]) {
    succeed(load_command().arg(format!("--url=http://{address}")).args(workload));
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
