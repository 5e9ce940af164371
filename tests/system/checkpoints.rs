//! A directory whose log has a checkpoint: Prometheus and promtool find in it what was kept.

use std::path::Path;
use std::sync::Arc;

use ringest::disk::SystemDisk;
use ringest::metrics::Registry;
use ringest::tsdb::wal::repair::open_log;
use ringest::tsdb::wal::{Compression, Retained, Share, SyncPolicy, Wal, WalMetrics, WalOptions};

use crate::directories::{NO_TARGETS, WORKLOAD, copy_dir, judge_with_promtool, load_to};
use crate::programs::{Prometheus, start_node};
use crate::support::node::DEFAULT_TENANT;
use crate::support::remote_read::{Content, everything, sample_count};
use crate::support::same::assert_same;

/// Puts a checkpoint in the place of the whole log in `dir`.
fn truncate_log(dir: &Path, compression: Compression, mint: i64) {
    let metrics = WalMetrics::new(&Registry::new(), "t");
    open_log(&SystemDisk, dir, &metrics, |_| {}).unwrap();
    let options = WalOptions { segment_bytes: 128 << 10, compression, sync: SyncPolicy::Interval };
    let wal = Wal::open(Arc::new(SystemDisk), dir, options, metrics).unwrap();
    let retained = Retained { mint, is_elsewhere: None, keeps: &|_| true };
    let log = wal.sync_handle();
    let last = Share::All.last_of(log.closed_segments().unwrap().unwrap()).unwrap();
    let report = log.checkpoint(last, &retained).unwrap();
    assert!(report.samples.kept > 1000 && report.samples.dropped > 1000, "{report:?}");
    assert!(report.segments_removed > 0 && report.damage_count == 0, "{report:?}");
    wal.close().unwrap();
}

fn since(content: &Content, mint: i64) -> Content {
    let since = |samples: &Vec<(i64, u64)>| {
        samples.iter().filter(|(t, _)| *t >= mint).copied().collect::<Vec<_>>()
    };
    let series = content.iter().map(|(labels, samples)| (labels.clone(), since(samples)));
    series.filter(|(_, samples)| !samples.is_empty()).collect()
}

fn is_found_by_all(flag: &str, compression: Compression) {
    let root = tempfile::tempdir().unwrap();
    let mut ringest = start_node(root.path(), &[flag]);
    load_to(&ringest.remote_write, &WORKLOAD);
    let mut content = everything(&ringest.http);
    // One that is stopped cuts its head into blocks.
    ringest.kill();
    let dir = ringest.data.join(DEFAULT_TENANT);
    // Twice: of the log, then of the checkpoint and what came since.
    for _ in 0..2 {
        let times = || content.values().flatten().map(|(t, _)| *t);
        let mint = (times().min().unwrap() + times().max().unwrap()) / 2;
        content = since(&content, mint);
        truncate_log(&dir.join("wal"), compression, mint);
        let copy = root.path().join("for-promtool");
        copy_dir(&dir, &copy);
        judge_with_promtool(&copy, &content, &[]);
        let prometheus = Prometheus::start(&copy, NO_TARGETS, &[]);
        assert_eq!(prometheus.complaints(), [""; 0]);
        assert_same("what Prometheus serves", &everything(prometheus.address()), &content);
        prometheus.stop();
        std::fs::remove_dir_all(&copy).unwrap();
        ringest.start();
        assert_same("what we serve", &everything(&ringest.http), &content);
        load_to(&ringest.remote_write, &["--series=400", "--rounds=5"]);
        let before = sample_count(&content);
        content = everything(&ringest.http);
        assert_eq!(sample_count(&content), before + 400 * 5);
        ringest.kill();
    }
}

#[test]
fn a_checkpoint_of_a_compressed_log_is_found_by_all() {
    is_found_by_all("--tsdb.wal-compression", Compression::Snappy);
}

#[test]
fn a_checkpoint_of_a_plain_log_is_found_by_all() {
    is_found_by_all("--no-tsdb.wal-compression", Compression::None);
}
