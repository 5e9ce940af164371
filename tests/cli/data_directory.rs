//! A data directory that cannot be used: the node does not start, or is not ready.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::{fs, io};

use rustix::process::{Signal, geteuid};

use crate::program::{get, run, words};
use crate::support::node::{Node, on_any_ports};
use crate::support::process::wait_for;

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

fn flags(data: &Path) -> Vec<String> {
    let data = format!("--tsdb.path={}", data.display());
    [vec!["receive".to_owned(), "--label=replica=\"a\"".to_owned(), data], on_any_ports().to_vec()]
        .concat()
}

/// Runs the program to its end as somebody who is not allowed everything.
fn run_unprivileged(dir: &Path, data: &Path) -> Output {
    // The build's directories may be closed to others.
    let program = dir.join("ringest");
    fs::copy(env!("CARGO_BIN_EXE_ringest"), &program).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(program);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.args(flags(data)).stdin(Stdio::null());
    // A process that another test starts at this moment may have the copy open for writing still.
    let output = wait_for(|| match command.output() {
        Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => None,
        output => Some(output.unwrap()),
    });
    output.unwrap()
}

fn assert_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(words.iter().all(|word| last.contains(word)), "{said}");
}

#[test]
fn another_users_directory_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o555)).unwrap();
    let output = run_unprivileged(dir.path(), &data);
    assert_refused(&output, &[&format!("--tsdb.path={}", data.display()), "permission denied"]);
    // Below it, too: there it would be made.
    let output = run_unprivileged(dir.path(), &data.join("data"));
    assert_refused(&output, &["permission denied"]);
}

#[test]
fn another_users_tenants_in_a_directory_of_ours_are_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for tenant in ["default-tenant", "a"] {
        fs::create_dir_all(data.join(tenant)).unwrap();
        fs::set_permissions(data.join(tenant), fs::Permissions::from_mode(0o555)).unwrap();
    }
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    let output = run_unprivileged(dir.path(), &data);
    assert_refused(&output, &["none of the tenants' directories can be used", "ermission denied"]);
}

#[test]
fn what_stands_in_the_way_is_told_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir_all(data.join(".ringest-probe")).unwrap();
    let flags = flags(&data);
    let output = run(&words(&flags.iter().map(String::as_str).collect::<Vec<_>>()));
    assert_refused(&output, &["--tsdb.path=", "is a directory"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
}

#[test]
fn a_node_whose_data_directory_goes_away_is_not_ready_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let (data, away) = (dir.path().join("data"), dir.path().join("away"));
    let receiver = Node::launch_with(&[&format!("--tsdb.path={}", data.display())]);
    let http = receiver.address("http/server");
    receiver.line_with(&["status=ready"]);
    let becomes = |status| wait_for(|| (get(&http, "/-/ready").0 == status).then_some(()));
    becomes(200).unwrap();
    fs::rename(&data, &away).unwrap();
    becomes(503).unwrap();
    receiver.line_with(&["level=error", "the data directory cannot be used"]);
    receiver.line_with(&["status=not-ready", "reason=\"the data directory cannot be used\""]);
    assert_eq!(get(&http, "/-/healthy").0, 200);
    let page = get(&http, "/metrics").1;
    assert!(page.contains("\nringest_data_directory_usable 0\n"), "{page}");
    fs::rename(&away, &data).unwrap();
    becomes(200).unwrap();
    receiver.signal(Signal::TERM);
    assert_eq!(receiver.wait_exit(), Some(0), "{}", receiver.log());
    assert!(!data.join(".ringest-probe").exists());
}

#[test]
fn what_is_there_and_not_served_is_told_once_a_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let block = |path: &str, maxt: u32| {
        let block = data.join(path);
        fs::create_dir_all(&block).unwrap();
        let meta = format!(r#"{{"version": 1, "minTime": 7, "maxTime": {maxt}}}"#);
        fs::write(block.join("meta.json"), meta).unwrap();
    };
    block("a/01M85ZRFJPEBJ4BHYM21MP7HFW", 20);
    block("a/01M85ZRFJPEBJ4BHYM21MP7HFX", 30);
    block("01M85ZRFJPEBJ4BHYM21MP7HFY", 20);
    fs::create_dir_all(data.join("b/wbl")).unwrap();
    fs::write(data.join("b/wbl/00000000"), "samples").unwrap();
    let receiver = Node::launch_with(&[&format!("--tsdb.path={}", data.display())]);
    receiver.line_with(&["status=ready"]);
    for parts in [
        ["tenant=a", "01M85ZRFJPEBJ4BHYM21MP7HFW", "not served"],
        ["tenant=a", "01M85ZRFJPEBJ4BHYM21MP7HFX", "not served"],
        ["count=1", "01M85ZRFJPEBJ4BHYM21MP7HFY", "not served"],
        ["tenant=b", "bytes=7", "not served"],
    ] {
        assert_eq!(receiver.lines_with(&parts).len(), 1, "{parts:?}: {}", receiver.log());
    }
    let http = receiver.address("http/server");
    let page = get(&http, "/metrics").1;
    for line in ["{tenant=\"\"} 1", "{tenant=\"a\"} 2"] {
        assert!(page.contains(&format!("\nringest_blocks_not_served{line}\n")), "{page}");
    }
}
