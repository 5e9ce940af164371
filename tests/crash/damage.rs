//! Damage on disk costs what is damaged.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::messages::WriteRequest;
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::wait_until;

const SERIES: usize = 20;

fn request(start: i64, number: i64) -> WriteRequest {
    let mut request = WriteRequest::default();
    for series in 0..SERIES {
        let name = format!("series_{series}");
        let labels = [("__name__", &name[..]), ("job", "damage")];
        request = request.with(&labels, &[(start + number * 1000, number as f64)]);
    }
    request
}

fn assert_numbers(node: &Node, tenant: &str, start: i64, numbers: &[i64]) {
    let stored = node.read(tenant);
    assert_eq!(stored.len(), SERIES);
    let times: Vec<i64> = numbers.iter().map(|number| start + number * 1000).collect();
    for (name, samples) in &stored {
        assert_eq!(samples.keys().copied().collect::<Vec<_>>(), times, "{name}");
    }
}

fn segments(data: &Path, tenant: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(data.join(tenant).join("wal")).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_str().unwrap().parse::<u64>().is_ok());
    paths.sort();
    paths
}

/// Offset and length of each record's payload in the first page of a segment: type, length (u16)
/// and checksum (u32), big-endian, stand before it.
fn records(segment: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at + 7 <= segment.len().min(32 * 1024) && segment[at] != 0 {
        let len = usize::from(u16::from_be_bytes([segment[at + 1], segment[at + 2]]));
        found.push((at + 7, len));
        at += 7 + len;
    }
    found
}

#[test]
fn one_damaged_byte_costs_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let start = now() - 600_000;
    // Three runs, so three segments with content.
    for run in 0..3 {
        let node = Node::start_ready(dir.path(), &[]);
        for number in 0..10 {
            assert_eq!(node.write("hit", &request(start, run * 10 + number)).status, 200);
            assert_eq!(node.write("well", &request(start, run * 10 + number)).status, 200);
        }
        node.kill();
    }
    let paths = segments(dir.path(), "hit");
    let middle = &paths[1];
    let before: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let mut damaged = before[1].clone();
    let records = records(&damaged);
    assert_eq!(records.len(), 10, "one record a request, the series being known");
    let (offset, len) = records[4];
    damaged[offset + len / 2] ^= 1;
    fs::write(middle, &damaged).unwrap();

    let node = Node::start_ready(dir.path(), &[]);
    let left: Vec<i64> = (0..30).filter(|number| *number != 14).collect();
    assert_numbers(&node, "hit", start, &left);
    let all: Vec<i64> = (0..30).collect();
    assert_numbers(&node, "well", start, &all);
    for (path, before) in [(&paths[0], &before[0]), (&paths[2], &before[2])] {
        assert_eq!(&fs::read(path).unwrap(), before, "{}", path.display());
    }
    let kept = middle.with_extension("damaged");
    assert_eq!(fs::read(&kept).unwrap(), damaged, "the original is kept");
    let counter = |tenant: &str| {
        node.exposed(&format!("prometheus_tsdb_wal_corruptions_total{{tenant=\"{tenant}\"}}"))
    };
    assert_eq!((counter("hit"), counter("well")), (Some(1.0), Some(0.0)));
    let name = middle.file_name().unwrap().to_str().unwrap();
    assert!(!node.lines_with(&["level=error", "tenant=hit", name]).is_empty());
    assert_eq!(node.exposed("ringest_tenants_quarantined"), Some(0.0));
    assert_eq!(node.write("hit", &request(start, 30)).status, 200);
    node.kill();

    // The log is whole again.
    let node = Node::start_ready(dir.path(), &[]);
    let left: Vec<i64> = (0..31).filter(|number| *number != 14).collect();
    assert_numbers(&node, "hit", start, &left);
    let corruptions = "prometheus_tsdb_wal_corruptions_total{tenant=\"hit\"}";
    assert_eq!(node.exposed(corruptions), Some(0.0));
}

/// The last record's length reaches over the end of the file, as of one that was being written when
/// the process died. But its checksum is right.
#[test]
fn a_damaged_length_in_the_last_record_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let start = now() - 600_000;
    let node = Node::start_ready(dir.path(), &[]);
    for number in 0..3 {
        assert_eq!(node.write("hit", &request(start, number)).status, 200);
    }
    node.kill();
    let path = segments(dir.path(), "hit").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let (offset, _) = *records(&bytes).last().unwrap();
    bytes[offset - 6] ^= 0x40;
    fs::write(&path, &bytes).unwrap();

    let node = Node::start_ready(dir.path(), &[]);
    assert_numbers(&node, "hit", start, &[0, 1, 2]);
    let corruptions = "prometheus_tsdb_wal_corruptions_total{tenant=\"hit\"}";
    assert_eq!(node.exposed(corruptions), Some(1.0));
    assert!(!node.lines_with(&["level=error", "tenant=hit", "00000000", "Mended"]).is_empty());
    assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bytes, "the original is kept");
}

/// Two writes, of which the series record of the first is damaged.
fn damage_series_record(data: &Path, start: i64) {
    let node = Node::start_ready(data, &[]);
    let other = WriteRequest::of(&[("__name__", "other")], start, 1.0);
    assert_eq!(node.write("hit", &other).status, 200);
    assert_eq!(node.write("hit", &request(start, 1)).status, 200);
    assert_eq!(node.write("hit", &request(start, 2)).status, 200);
    node.kill();
    let path = segments(data, "hit").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let records = records(&bytes);
    assert_eq!(records.len(), 5, "two series records, three of samples");
    let (offset, len) = records[2];
    bytes[offset + len / 2] ^= 0x40;
    fs::write(&path, &bytes).unwrap();
}

#[test]
fn a_damaged_series_record_costs_nothing_while_there_is_a_second_copy() {
    let dir = tempfile::tempdir().unwrap();
    let start = now() - 600_000;
    damage_series_record(dir.path(), start);
    // It is put back into the log, so that the second start finds no damage.
    for restored in [1.0, 0.0] {
        let node = Node::start_ready(dir.path(), &[]);
        let stored = node.read("hit");
        assert_eq!(stored.len(), SERIES + 1);
        for (name, samples) in stored.iter().filter(|(name, _)| name.contains("series_")) {
            let times: Vec<i64> = samples.keys().copied().collect();
            assert_eq!(times, [start + 1000, start + 2000], "{name}");
        }
        let counter = |name: &str| node.metric(&format!("{name}{{tenant=\"hit\"}}"));
        assert_eq!(counter("ringest_wal_names_restored_total"), restored);
        assert_eq!(counter("prometheus_tsdb_wal_corruptions_total"), restored);
        node.kill();
    }
}

#[test]
fn a_damaged_series_record_without_a_copy_costs_what_it_named_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let start = now() - 600_000;
    damage_series_record(dir.path(), start);
    fs::remove_file(dir.path().join("hit/ringest.names")).unwrap();

    let node = Node::start_ready(dir.path(), &[]);
    assert_eq!(node.read("hit").into_keys().collect::<Vec<_>>(), ["{__name__=\"other\"}"]);
    // Whoever writes the series again gets new refs: samples of old ones are not taken for theirs.
    assert_eq!(node.write("hit", &request(start, 3)).status, 200);
    node.kill();
    let node = Node::start_ready(dir.path(), &[]);
    let stored = node.read("hit");
    assert_eq!(stored.len(), SERIES + 1);
    for (name, samples) in stored.iter().filter(|(name, _)| name.contains("series_")) {
        assert_eq!(samples.keys().copied().collect::<Vec<_>>(), [start + 3000], "{name}");
    }
}

#[test]
fn a_tenant_that_cannot_be_opened_is_quarantined_until_it_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let start = now() - 600_000;
    let node = Node::start_ready(dir.path(), &[]);
    for tenant in ["hit", "well"] {
        assert_eq!(node.write(tenant, &request(start, 1)).status, 200);
    }
    node.kill();
    let (wal, away) = (dir.path().join("hit/wal"), dir.path().join("hit/away"));
    fs::rename(&wal, &away).unwrap();
    fs::write(&wal, "this is no directory").unwrap();

    // Retried under every sync policy.
    let node = Node::start_ready(dir.path(), &["--tsdb.wal-sync=segment"]);
    assert_eq!(node.exposed("ringest_tenants_quarantined"), Some(1.0));
    let answer = node.write("hit", &request(start, 2));
    answer.assert_come_again();
    assert!(answer.text().contains("\"hit\"") && answer.text().contains("quarantined"));
    node.read_answer("hit").assert_come_again();
    assert_numbers(&node, "well", start, &[1]);
    assert_eq!(node.write("well", &request(start, 2)).status, 200);
    assert_eq!(node.get("/-/ready").status, 200);
    node.assert_alive();
    assert_eq!(fs::read(&wal).unwrap(), b"this is no directory", "nothing is removed");

    let retries = || node.exposed("ringest_tenant_open_retries_total").unwrap();
    wait_until("retried in vain", || retries() >= 1.0);
    assert_eq!(
        node.lines_with(&["tenant=hit", "level=error", "quarantined"]).len(),
        1,
        "said once"
    );

    fs::remove_file(&wal).unwrap();
    fs::rename(&away, &wal).unwrap();
    wait_until("served again", || node.write("hit", &request(start, 3)).status == 200);
    assert_eq!(node.exposed("ringest_tenants_quarantined"), Some(0.0));
    assert_numbers(&node, "hit", start, &[1, 3]);
}

#[test]
fn directories_that_are_no_tenants_hinder_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let start = now() - 600_000;
    let lost = dir.path().join("lost+found");
    fs::create_dir(&lost).unwrap();
    fs::set_permissions(&lost, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(dir.path().join("file"), "a file where a tenant could be").unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    assert_eq!(node.write("well", &request(start, 1)).status, 200);
    node.write("file", &request(start, 1)).assert_come_again();
    node.assert_alive();
    assert_eq!(fs::read_dir(&lost).unwrap().count(), 0);
    assert_eq!(node.exposed("ringest_tenants_quarantined"), Some(0.0));
}
