//! A receiver that was killed takes writes while it reads its log.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use ringest::clock::SystemClock;
use ringest::disk::SystemDisk;
use ringest::metrics::Registry;
use ringest::model::labels::KeyBuilder;
use ringest::tsdb::Db;
use ringest::tsdb::env::Env;
use ringest::tsdb::head::batch::Batch;
use ringest::tsdb::options::DbOptions;
use ringest::tsdb::wal::Compression;

use crate::directories::{NO_TARGETS, copy_dir};
use crate::programs::Prometheus;
use crate::support::http;
use crate::support::messages::{WriteRequest, write_request};
use crate::support::node::{DEFAULT_TENANT, Node};
use crate::support::remote_read::{self, Content, sample_count};
use crate::support::same::assert_same;

/// Two thirds of a segment: more than twice of what a start looks at.
const SERIES: usize = 1_000;
const ROUNDS: i64 = 7_500;
/// Of these series more is written, and they are read back.
const WATCHED: usize = 10;

fn name(series: usize) -> String {
    let kind = if series < WATCHED { "watched" } else { "other" };
    format!("{kind}_{series}")
}

/// As a process leaves a tenant's directory that was killed; the samples of the watched series. The
/// last are at `end`.
fn write_log(dir: &Path, end: i64) -> Content {
    let options = DbOptions { wal_compression: Compression::None, ..DbOptions::default() };
    let lock = Db::lock(&SystemDisk, dir, &options).unwrap();
    let env = Env::new(Arc::new(SystemDisk), Arc::new(SystemClock), Registry::new());
    let db = Db::open(dir, lock, options, &env, "t").unwrap().db;
    let mut batch = Batch::default();
    let mut content = Content::new();
    for round in 1..=ROUNDS {
        let known = db.lookup(&mut batch);
        let t = end - (ROUNDS - round) * 900;
        for series in 0..SERIES {
            let mut key = KeyBuilder::default();
            key.push(b"__name__", name(series).as_bytes());
            let fingerprint = known.fingerprint(key.as_bytes());
            let number = known
                .find_canonical(fingerprint)
                .unwrap_or_else(|| batch.push_new_series(fingerprint, key.as_bytes()));
            // Values of all their bits, or the log would be short.
            let v = (round as f64).sqrt() + series as f64;
            batch.push(number, t, v.to_bits());
            if series < WATCHED {
                let labels = vec![("__name__".to_owned(), name(series))];
                content.entry(labels).or_default().push((t, v.to_bits()));
            }
        }
        assert_eq!(db.append(&batch).unwrap().stored, SERIES as u64);
        batch.clear();
    }
    content
}

/// Writes a sample of each watched series, which is taken.
fn write(node: &Node, content: &mut Content, t: i64, v: f64) {
    let mut request = WriteRequest::default();
    for series in 0..WATCHED {
        request = request.with(&[("__name__", &name(series))], &[(t, v)]);
        let labels = vec![("__name__".to_owned(), name(series))];
        content.entry(labels).or_default().push((t, v.to_bits()));
    }
    let request = write_request(DEFAULT_TENANT.as_bytes(), &request.compressed());
    assert_eq!(node.ask(&node.remote_write, &request).status, 200);
}

fn is_loading(node: &Node) -> bool {
    node.metric("ringest_tenants_opening") > 0.0
}

#[test]
fn writes_are_taken_while_the_log_is_read_that_a_kill_left() {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = Node::new(root.path(), "data");
    let dir = ringest.data.join(DEFAULT_TENANT);
    let now = std::time::SystemTime::now();
    let end = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64 - 60_000;
    let mut content = write_log(&dir, end);
    ringest.start();
    for i in 1..=10 {
        write(&ringest, &mut content, end + i * 100, i as f64);
    }
    assert!(is_loading(&ringest), "the log was read before: {}", ringest.log());
    let request = remote_read::request(Some(DEFAULT_TENANT), "watched.*", 0..=i64::MAX / 2);
    assert_eq!(ringest.ask(&ringest.http, &request).status, 503, "who reads is told so");
    assert!(is_loading(&ringest), "the log was read meanwhile: {}", ringest.log());
    ringest.kill();

    ringest.start();
    for i in 11..=20 {
        write(&ringest, &mut content, end + i * 100, i as f64);
    }
    // One that is stored already, somewhere: only the log tells.
    let old = end - (ROUNDS - 100) * 900;
    let again = WriteRequest::of(&[("__name__", &name(0))], old, 10.0);
    let again = write_request(DEFAULT_TENANT.as_bytes(), &again.compressed());
    let address = ringest.remote_write.clone();
    let waits = thread::spawn(move || http::exchange(&address, &again).map(|answer| answer.status));
    assert!(is_loading(&ringest), "the log was read before: {}", ringest.log());
    ringest.wait_until("has read the log", |node| !is_loading(node));
    assert_eq!(waits.join().unwrap(), Some(200));
    write(&ringest, &mut content, end + 2_500, 1.0);
    let read = |address: &str| remote_read::read(address, None, "watched.*");
    assert_same("what is read back", &read(&ringest.http), &content);
    assert_eq!(sample_count(&content), WATCHED * (ROUNDS as usize + 21));
    ringest.kill();

    let copy = root.path().join("for-prometheus");
    copy_dir(&dir, &copy);
    let prometheus = Prometheus::start(&copy, NO_TARGETS, &[]);
    assert_same("what Prometheus reads", &read(prometheus.address()), &content);
    assert_eq!(prometheus.complaints(), [""; 0]);
    ringest.start();
    ringest.wait_until("has read the log", |node| !is_loading(node));
    assert_same("what is there after another kill", &read(&ringest.http), &content);
}
