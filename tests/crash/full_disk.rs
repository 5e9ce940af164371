//! Disks that fill up: writes are told to come again, nothing acknowledged is lost, and all is well
//! by itself as soon as there is space.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::messages::WriteRequest;
use crate::support::node::Node;
use crate::support::now;
use crate::support::process::wait_until;

/// A file system of its own, small enough to be filled. Needs root, or the right to mount.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// `options` are those of tmpfs, such as `size=1m`.
    fn mount(options: &str) -> SmallDisk {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(
            mounted.status.success(),
            "a full disk is made with a small tmpfs, which this user may not mount (run the tests \
             as root, or with `unshare --map-root-user --mount`): {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        SmallDisk { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all the space that is left.
    fn fill(&self) {
        let ballast = self.path().join("ballast");
        let zeros = vec![0; 4096];
        let mut file = fs::OpenOptions::new().create(true).append(true).open(ballast).unwrap();
        while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a receiver may still be about to end.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// A request of one series with a value that does not compress.
fn numbered(tenant: &str, number: u64) -> WriteRequest {
    let mut request = WriteRequest::default();
    for series in 0..50u64 {
        let value = f64::from_bits((number * 50 + series).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 2);
        let name = format!("series_{series}");
        let labels = [("__name__", &name[..]), ("tenant", tenant)];
        request = request.with(&labels, &[(time_of(number), value)]);
    }
    request
}

/// Fixed within a test run, so that a number means the same samples when it is read back.
fn time_of(number: u64) -> i64 {
    static START: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    *START.get_or_init(|| now() - 600_000) + number as i64 * 10
}

/// Asserts that the tenant has the numbered requests, whole, and no others.
fn assert_stored(node: &Node, tenant: &str, numbers: &[u64]) {
    let stored = node.read(tenant);
    assert_eq!(stored.len(), 50);
    let times: Vec<i64> = numbers.iter().map(|number| time_of(*number)).collect();
    for (name, samples) in &stored {
        assert_eq!(samples.keys().copied().collect::<Vec<_>>(), times, "{name}");
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing_and_recovers_by_itself() {
    for sync in ["--tsdb.wal-sync=interval", "--tsdb.wal-sync=always"] {
        let disk = SmallDisk::mount("size=2m");
        let data = disk.path().join("data");
        let node = Node::start_ready(&data, &[sync]);
        let mut acknowledged = Vec::new();
        let mut number = 0;
        let mut write = |node: &Node, acknowledged: &mut Vec<u64>| {
            number += 1;
            let answer = node.write("a", &numbered("a", number));
            match answer.status {
                200 => acknowledged.push(number),
                _ => answer.assert_come_again(),
            }
            answer.status
        };

        // Twice, so that a recovery is followed by another fault.
        for _ in 0..2 {
            for _ in 0..20 {
                assert_eq!(write(&node, &mut acknowledged), 200);
            }
            disk.fill();
            // What is left of the last block may still take some.
            wait_until("full", || write(&node, &mut acknowledged) == 503);
            for _ in 0..20 {
                assert_eq!(write(&node, &mut acknowledged), 503);
            }
            node.assert_alive();
            assert_eq!(node.get("/-/healthy").status, 200);
            // What was acknowledged is served meanwhile.
            assert_stored(&node, "a", &acknowledged);

            disk.free();
            wait_until("space is noticed", || write(&node, &mut acknowledged) == 200);
            for _ in 0..20 {
                assert_eq!(write(&node, &mut acknowledged), 200);
            }
        }
        node.assert_alive();
        assert_stored(&node, "a", &acknowledged);
        node.kill();

        let node = Node::start_ready(&data, &[sync]);
        assert_stored(&node, "a", &acknowledged);
        assert_eq!(node.exposed("prometheus_tsdb_wal_corruptions_total{tenant=\"a\"}"), Some(0.0));
        assert!(node.lines_with(&["damage"]).is_empty());
    }
}

#[test]
fn killed_while_the_disk_is_full_nothing_is_lost() {
    let disk = SmallDisk::mount("size=2m");
    let data = disk.path().join("data");
    let node = Node::start_ready(&data, &[]);
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if number == 20 {
            disk.fill();
        }
        let answer = node.write("a", &numbered("a", number));
        if answer.status == 200 {
            acknowledged.push(number);
        } else {
            answer.assert_come_again();
            break;
        }
    }
    node.kill();

    // It starts on the full disk, too, and serves what there is.
    let node = Node::start_ready(&data, &[]);
    assert_stored(&node, "a", &acknowledged);
    node.write("a", &numbered("a", 5000)).assert_come_again();
    node.assert_alive();
    disk.free();
    wait_until("space is noticed", || node.write("a", &numbered("a", 5001)).status == 200);
    acknowledged.push(5001);
    assert_stored(&node, "a", &acknowledged);
}

#[test]
fn a_tenant_whose_making_met_a_full_disk_is_made_by_a_later_write() {
    // Of bytes, and of names: either can run out.
    for (options, out_of_names) in [("size=1m", false), ("size=1m,nr_inodes=32", true)] {
        let disk = SmallDisk::mount(options);
        let data = disk.path().join("data");
        let node = Node::start_ready(&data, &[]);
        assert_eq!(node.write("old", &numbered("old", 1)).status, 200);
        let ballast = disk.path().join("names");
        fs::create_dir(&ballast).unwrap();
        if out_of_names {
            for i in 0.. {
                if fs::File::create(ballast.join(i.to_string())).is_err() {
                    break;
                }
            }
        } else {
            disk.fill();
        }

        for number in 1..=5 {
            node.write("new", &numbered("new", number)).assert_come_again();
        }
        node.assert_alive();
        if out_of_names {
            assert_eq!(node.write("old", &numbered("old", 2)).status, 200, "others are not hit");
        }

        if out_of_names {
            fs::remove_dir_all(&ballast).unwrap();
        } else {
            disk.free();
        }
        wait_until("made", || node.write("new", &numbered("new", 6)).status == 200);
        node.kill();
        let node = Node::start_ready(&data, &[]);
        assert_stored(&node, "new", &[6]);
        assert_eq!(node.exposed("ringest_tenants_quarantined"), Some(0.0));
    }
}
