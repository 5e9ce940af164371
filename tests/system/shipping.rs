//! Blocks of a running node on their way to a bucket.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::messages::WriteRequest;
use crate::support::node::{DEFAULT_TENANT, Node};
use crate::support::process::wait_until;

/// What `thanos receive` had in its directory before it uploaded its blocks, and then in its bucket.
fn recorded(what: &str) -> PathBuf {
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tsdb/blocks/thanos-receive-sha256");
    Path::new(base).join(what)
}

/// Files below a directory, by their path in it; none if it is not there.
fn files_in(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(of) = dirs.pop() {
        let Ok(entries) = fs::read_dir(of) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// A data directory with the recorded tenants, as after a change from Thanos to us.
fn data_in(root: &Path) -> PathBuf {
    let data = root.join("data");
    for (name, bytes) in files_in(&recorded("data")) {
        let path = data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    data
}

const FLAGS: [&str; 3] = ["--label=replica=\"r1\"", "--label=zone=\"z\"", "--hash-func=SHA256"];

fn node(data: &Path, bucket: &str) -> Node {
    let bucket = format!("--objstore.config={bucket}");
    let mut node = Node::anywhere(data, &[]);
    // Its own label would be one more.
    node.args.retain(|arg| !arg.starts_with("--label"));
    for arg in FLAGS.into_iter().chain([bucket.as_str()]) {
        node = node.with_arg(arg);
    }
    node.start();
    node
}

#[test]
fn blocks_get_to_the_bucket_once_as_by_thanos() {
    let root = tempfile::tempdir().unwrap();
    let (data, bucket) = (data_in(root.path()), root.path().join("bucket"));
    let directory = bucket.display();
    let config = format!("{{type: FILESYSTEM, config: {{directory: {directory:?}}}, prefix: a/b}}");
    let theirs = files_in(&recorded("bucket"));
    let first = node(&data, &config);
    let is_there = || files_in(&bucket.join("a/b")).len() == theirs.len();
    wait_until("all blocks are in the bucket", is_there);
    let uploads = |node: &Node, tenant: &str| {
        node.exposed(&format!("thanos_shipper_uploads_total{{tenant=\"{tenant}\"}}"))
    };
    first.wait_until("uploads are counted", |node| {
        uploads(node, "team-a") == Some(2.0) && uploads(node, DEFAULT_TENANT) == Some(1.0)
    });
    let of_bucket = format!("{{bucket=\"fs: {directory}\"}}");
    let last =
        first.exposed(&format!("thanos_objstore_bucket_last_successful_upload_time{of_bucket}"));
    assert!(last.is_some_and(|time| time > 1.6e9), "{last:?}");
    first.kill();

    let ours = files_in(&bucket.join("a/b"));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (name, bytes) in &ours {
        if !name.ends_with("meta.json") {
            assert!(*bytes == theirs[name], "{name}");
            continue;
        }
        let lines = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            let lines = text.lines().filter(|line| !line.contains("\"upload_time\""));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(lines(bytes), lines(&theirs[name]), "{name}");
    }

    // The next one finds the record, and another one by the bucket what there is.
    fs::remove_file(data.join("team-a/thanos.shipper.json")).unwrap();
    let second = node(&data, &config);
    let syncs = |node: &Node, tenant: &str| {
        node.exposed(&format!("thanos_shipper_dir_syncs_total{{tenant=\"{tenant}\"}}"))
    };
    second.wait_until("both tenants were looked through", |node| {
        syncs(node, "team-a") >= Some(1.0) && syncs(node, DEFAULT_TENANT) >= Some(1.0)
    });
    assert_eq!(
        (uploads(&second, "team-a"), uploads(&second, DEFAULT_TENANT)),
        (Some(0.0), Some(0.0))
    );
    second.stop();
    assert!(files_in(&bucket.join("a/b")) == ours);
    let record = fs::read_to_string(data.join("team-a/thanos.shipper.json")).unwrap();
    assert_eq!(record.matches("01M85X9E").count(), 2, "{record}");
}

#[test]
fn a_bucket_that_is_not_there_keeps_nobody_from_anything() {
    let root = tempfile::tempdir().unwrap();
    let data = data_in(root.path());
    let config = "{type: S3, config: {bucket: b, endpoint: 127.0.0.1:1, region: r, insecure: true, \
                  access_key: a, secret_key: hush, max_retries: 1}}";
    let node = node(&data, config);
    let answer =
        node.write("team-a", &WriteRequest::of(&[("__name__", "a")], 1_800_000_000_000, 1.0));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let failures = "thanos_shipper_dir_sync_failures_total{tenant=\"team-a\"}";
    node.wait_until("the failure is counted", |node| node.exposed(failures) >= Some(1.0));
    let line = node.line_with(&["level=error", "periodic upload failed", "tenant=team-a"]);
    assert!(line.contains("check exists"), "{line}");
    assert!(!node.log().contains("hush"));
    node.stop();
    // Nothing was recorded, so nothing may be deleted.
    let record = fs::read_to_string(data.join("team-a/thanos.shipper.json")).unwrap();
    assert_eq!(record, "{\n\t\"version\": 1,\n\t\"uploaded\": null\n}\n");
}
