//! Many tenants at once, and names that are none.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use crate::support::http::{Request, ask};
use crate::support::messages::{WriteRequest, write_request};
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::wait_until;

const TENANTS: usize = 200;

fn first_write() -> WriteRequest {
    let mut request = WriteRequest::default();
    for series in 0..10 {
        let name = format!("series_{series}");
        let labels = [("__name__", &name[..]), ("instance", "localhost:9090"), ("job", "burst")];
        request = request.with(&labels, &[(now(), series as f64)]);
    }
    request
}

#[test]
fn a_burst_of_new_tenants_succeeds_and_costs_little() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_ready(dir.path(), &[]);
    // What the first request makes once for all is no tenant's.
    assert_eq!(node.write("warm-up", &first_write()).status, 200);
    let before = node.resident_bytes();
    let body = first_write().compressed();
    let address = &node.remote_write;
    std::thread::scope(|scope| {
        for i in 0..TENANTS {
            let tenant = format!("tenant-{i}");
            let request = write_request(tenant.as_bytes(), &body);
            scope.spawn(move || assert_eq!(ask(address, &request).status, 200, "{tenant}"));
        }
    });
    node.assert_alive();
    let each = || node.resident_bytes().saturating_sub(before) / TENANTS as u64;
    println!("{} bytes a tenant", each());
    // The threads that made them, and the allocator's pages, go back after a while.
    wait_until("under 100 KB a tenant", || each() < 100_000);

    for i in 0..TENANTS {
        assert_eq!(node.read(&format!("tenant-{i}")).len(), 10);
    }
    node.kill();
    let node = Node::start_ready(dir.path(), &[]);
    assert_eq!(node.read("tenant-7").len(), 10);
    assert_eq!(node.exposed("ringest_tenants_quarantined"), Some(0.0));
}

/// Every path below a directory.
fn tree(dir: &Path) -> BTreeSet<Vec<u8>> {
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            paths.extend(tree(&path));
        }
        paths.insert(path.into_os_string().into_vec());
    }
    paths
}

#[test]
fn hostile_names_are_refused_and_touch_no_path() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("a/b/data");
    let node = Node::start_ready(&data, &[]);
    let before = tree(dir.path());
    let long = "x".repeat(256);
    let mut names: Vec<&[u8]> = vec![
        b".",
        b"..",
        b"/",
        b"//",
        b"./",
        b"../x",
        b"a/b",
        b"/tmp/x",
        b"..\\..\\x/",
        b"a/../../x",
        b"lost+found",
        b"wal",
        b"wbl",
        b"chunks_head",
        b"lock",
        long.as_bytes(),
        b"\xff",
        b"caf\xe9",
        b"a\x80b",
        b"\xed\xa0\x80",
    ];
    let control: Vec<Vec<u8>> = (0..0x20u8)
        .chain([0x7f])
        .filter(|byte| !b"\t\r\n".contains(byte))
        .map(|byte| vec![b'a', byte, b'b'])
        .collect();
    names.extend(control.iter().map(Vec::as_slice));
    let body = first_write().compressed();
    for name in names {
        let answer = node.post(name, &body);
        assert_eq!(answer.status, 400, "{name:?}: {}", answer.text());
        for path in ["/api/v1/write", "/api/v1/read"] {
            let address = if path.ends_with("read") { &node.http } else { &node.remote_write };
            let request = Request::new("POST", path).header("THANOS-TENANT", name).body(&body[..]);
            assert_eq!(node.ask(address, &request).status, 400, "{path} {name:?}");
        }
    }
    node.assert_alive();
    assert_eq!(tree(dir.path()), before);

    // Strange and legal: inside the data directory, under just that name.
    let longest = "y".repeat(255);
    for name in ["...", ".hidden", "a b", "wals", "ü", "-rf", "%2e%2e", &longest] {
        assert_eq!(node.write(name, &first_write()).status, 200, "{name}");
        assert!(data.join(name).join("wal").is_dir(), "{name}");
    }
    let outside = |path: &&Vec<u8>| {
        let inside = data.as_os_str().as_encoded_bytes();
        !path.starts_with(inside) && !before.contains(*path)
    };
    assert_eq!(tree(dir.path()).iter().find(outside), None);
}

/// A write without a tenant makes Thanos open a database in the data directory itself. What lies in
/// that one's directories is left as it is, and the tenants beside it are served.
#[test]
fn a_database_in_the_data_directory_itself_is_no_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let node = Node::start_ready(&data, &[]);
    assert_eq!(node.write("a", &first_write()).status, 200);
    node.kill();
    let block = "01HZXW5J8M6C1V7Q2R3S4T5V6W";
    for (directory, file) in [
        ("wal", "00000000"),
        ("wbl", "00000000"),
        ("chunks_head", "000001"),
        ("lock", "not-ours"),
        (block, "meta.json"),
    ] {
        fs::create_dir(data.join(directory)).unwrap();
        fs::write(data.join(directory).join(file), "not ours").unwrap();
    }
    fs::write(data.join("not-a-directory"), "").unwrap();
    let others = |path: &Vec<u8>| !path.starts_with(data.join("a").as_os_str().as_encoded_bytes());
    let others = || tree(dir.path()).into_iter().filter(others).collect::<Vec<_>>();
    let before = others();

    let node = Node::start_ready(&data, &[]);
    assert_eq!(node.read("a").len(), 10);
    // Nobody's lock was taken there, no log begun.
    let of_default = data.join("default-tenant");
    let of_default = of_default.as_os_str().as_encoded_bytes();
    let changed: Vec<_> = others().into_iter().filter(|path| !before.contains(path)).collect();
    let is_default = |path: &&Vec<u8>| path.starts_with(of_default);
    assert_eq!(changed.iter().find(|path| !is_default(path)), None);
    let page = node.get("/metrics").text();
    for name in ["wal", "wbl", "chunks_head", "lock", block] {
        assert!(!page.contains(&format!("tenant=\"{name}\"")), "{name} is a tenant");
    }
}
