//! Full chunks in `chunks_head`: Prometheus takes ours, we take those of Prometheus, and damage in them
//! costs neither of us a sample.

use std::fs;
use std::path::Path;

use crate::directories::{NO_TARGETS, WORKLOAD, copy_dir, judge_with_promtool, load_to};
use crate::programs::{Prometheus, start_node};
use crate::support::node::{DEFAULT_TENANT, Node};
use crate::support::process::wait_until;
use crate::support::remote_read::{Content, everything, sample_count};
use crate::support::same::assert_same;

/// Gives its complaints.
fn assert_prometheus_serves(dir: &Path, content: &Content, context: &str) -> Vec<String> {
    let copy = dir.with_extension("copy");
    copy_dir(dir, &copy);
    let prometheus = Prometheus::start(&copy, NO_TARGETS, &[]);
    assert_same(context, &everything(prometheus.address()), content);
    let complaints = prometheus.complaints();
    prometheus.stop();
    fs::remove_dir_all(&copy).unwrap();
    complaints
}

#[test]
fn full_chunks_are_found_by_all_whatever_happens_to_them() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[]);
    load_to(&ringest.remote_write, &WORKLOAD);
    let content = everything(&ringest.http);
    assert_eq!(sample_count(&content), 300 * 250);
    // All but one of each series.
    let full_chunks = ringest.metric("prometheus_tsdb_head_chunks") - 300.0;
    assert!(full_chunks > 300.0, "{full_chunks}");
    wait_until("the full chunks are in a file", || {
        ringest.metric("prometheus_tsdb_mmap_chunks_total") == full_chunks
    });
    assert_same("what we serve from files", &everything(&ringest.http), &content);
    ringest.kill();

    let dir = ringest.data.join(DEFAULT_TENANT);
    let copy = root.path().join("for-promtool");
    copy_dir(&dir, &copy);
    judge_with_promtool(&copy, &content, &[]);
    let complaints = assert_prometheus_serves(&dir, &content, "what Prometheus serves of ours");
    assert_eq!(complaints, [""; 0]);

    // One byte of the first file, in its middle.
    let path = dir.join("chunks_head/000001");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    ringest.start();
    assert_same("what we serve of a damaged file", &everything(&ringest.http), &content);
    ringest.kill();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    // It deletes the file, and says so.
    let complaints = assert_prometheus_serves(&dir, &content, "what Prometheus serves of damage");
    assert!(!complaints.is_empty());

    // One without its header, with which Prometheus would not start.
    bytes[middle] ^= 0x10;
    bytes[0] ^= 1;
    fs::write(&path, &bytes).unwrap();
    ringest.start();
    assert_same("what we serve of no header", &everything(&ringest.http), &content);
    ringest.kill();
    assert_eq!(fs::read(dir.join("chunks_head/000001.damaged")).unwrap(), bytes);
    // The chunk that was damaged is there again, behind later ones, and so Prometheus reads the log.
    let complaints = assert_prometheus_serves(&dir, &content, "what Prometheus serves then");
    assert!(complaints.iter().all(|line| line.contains("out of sequence")), "{complaints:?}");

    // The log has all of it.
    fs::remove_dir_all(dir.join("chunks_head")).unwrap();
    ringest.start();
    assert_same("what we serve of the log alone", &everything(&ringest.http), &content);
    ringest.kill();
}

/// What the log lost to files is there for Prometheus as well, which writes on; and so do we.
#[test]
fn a_log_without_what_head_chunks_have_is_whole_for_prometheus() {
    let root = tempfile::tempdir().unwrap();
    let args = [
        "--tsdb.wal-truncate-by-head-chunks",
        "--no-tsdb.flush-on-shutdown",
        "--no-tsdb.wal-compression",
    ];
    let mut ringest = start_node(root.path(), &args);
    // More than a sixteenth of a segment, and just behind full chunks.
    let workload = ["--series=3200", "--series-per-request=1000", "--rounds=260"];
    let workload = [&workload[..], &WORKLOAD[2..]].concat();
    load_to(&ringest.remote_write, &workload);
    let log_bytes = |node: &Node| node.metric("prometheus_tsdb_wal_storage_size_bytes");
    wait_until("the log is cut", || {
        ringest.metric("prometheus_tsdb_checkpoint_creations_total") >= 1.0
            && log_bytes(&ringest) < 5e6
    });
    let content = everything(&ringest.http);
    assert_eq!(sample_count(&content), 3200 * 260);
    ringest.kill();
    let dir = ringest.data.join(DEFAULT_TENANT);
    let complaints = assert_prometheus_serves(&dir, &content, "what Prometheus serves");
    assert_eq!(complaints, [""; 0]);
    // A Prometheus has the directory for a while.
    let prometheus = Prometheus::start(&dir, NO_TARGETS, &[]);
    prometheus.stop();
    ringest.start();
    assert_same("what we serve after Prometheus", &everything(&ringest.http), &content);
    ringest.stop();
}
