//! Full chunks in `chunks_head`: Prometheus takes ours, we take those of Prometheus, and damage in them
//! costs neither of us a sample.

use std::fs;
use std::path::Path;

use crate::directories::{NO_TARGETS, WORKLOAD, copy_dir, judge_with_promtool, load_to};
use crate::programs::{Prometheus, start_node};
use crate::support::http::{self, Request};
use crate::support::node::DEFAULT_TENANT;
use crate::support::process::wait_until;
use crate::support::remote_read::{Content, everything, sample_count};
use crate::support::same::assert_same;

/// Full chunks of the workload: 120 samples each, of 250.
const CHUNKS: f64 = 300.0 * 2.0;

fn assert_prometheus_serves(dir: &Path, content: &Content, context: &str) {
    let copy = dir.with_extension("copy");
    copy_dir(dir, &copy);
    let prometheus = Prometheus::start(&copy, NO_TARGETS, &[]);
    assert_eq!(prometheus.complaints(), [""; 0], "{context}");
    assert_same(context, &everything(prometheus.address()), content);
    let page = http::ask(prometheus.address(), &Request::new("GET", "/metrics")).text();
    assert!(page.contains("\nprometheus_tsdb_mmap_chunk_corruptions_total 0\n"), "{context}");
    prometheus.stop();
    fs::remove_dir_all(&copy).unwrap();
}

#[test]
fn full_chunks_are_found_by_all_whatever_happens_to_them() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[]);
    load_to(&ringest.remote_write, &WORKLOAD);
    let content = everything(&ringest.http);
    assert_eq!(sample_count(&content), 300 * 250);
    wait_until("the full chunks are in a file", || {
        ringest.metric("prometheus_tsdb_mmap_chunks_total") == CHUNKS
    });
    assert_same("what we serve from files", &everything(&ringest.http), &content);
    ringest.kill();

    let dir = ringest.data.join(DEFAULT_TENANT);
    let copy = root.path().join("for-promtool");
    copy_dir(&dir, &copy);
    judge_with_promtool(&copy, &content, &[]);
    assert_prometheus_serves(&dir, &content, "what Prometheus serves of ours");

    // One byte of the first file, in its middle.
    let path = dir.join("chunks_head/000001");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, &bytes).unwrap();
    ringest.start();
    assert_same("what we serve of a damaged file", &everything(&ringest.http), &content);
    ringest.kill();
    assert_eq!(fs::read(dir.join("chunks_head/000001.damaged")).unwrap(), bytes);
    assert_prometheus_serves(&dir, &content, "what Prometheus serves of a file written anew");

    // The log has all of it.
    fs::remove_dir_all(dir.join("chunks_head")).unwrap();
    ringest.start();
    assert_same("what we serve of the log alone", &everything(&ringest.http), &content);
    ringest.kill();
}
