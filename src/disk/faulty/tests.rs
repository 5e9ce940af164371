use super::*;

fn disk_with_file() -> (FaultyDisk, Arc<dyn DiskFile>) {
    let disk = FaultyDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    let file = disk.create(Path::new("/d/f")).unwrap();
    (disk, file)
}

fn bytes_of(disk: &FaultyDisk) -> Option<Vec<u8>> {
    super::super::read_file(disk, Path::new("/d/f"), 1 << 20).ok()
}

#[test]
fn a_power_cut_leaves_what_was_synced_under_synced_names() {
    let (disk, file) = disk_with_file();
    file.write_all_at(b"one", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(bytes_of(&disk.after_power_cut()), None);
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_all_at(b"two", 3).unwrap();
    assert_eq!(bytes_of(&disk.after_power_cut()).unwrap(), b"one");
    assert_eq!(bytes_of(&disk.after_kill()).unwrap(), b"onetwo");
}

#[test]
fn a_renamed_directory_keeps_what_is_durable_in_it_and_no_more() {
    let disk = FaultyDisk::new();
    let (old, new) = (Path::new("/d/old"), Path::new("/d/new"));
    disk.create_dir_all(&old.join("inner")).unwrap();
    let write = |name: &str| {
        let file = disk.create(&old.join(name)).unwrap();
        file.write_all_at(name.as_bytes(), 0).unwrap();
        file.sync().unwrap();
    };
    write("a");
    write("inner/b");
    disk.sync_dir(&old.join("inner")).unwrap();
    disk.sync_dir(old).unwrap();
    write("c");
    disk.rename(old, new).unwrap();
    // The new name is not on the medium yet, and neither was the old one.
    assert!(disk.after_power_cut().list(new).is_err());
    for disk in [disk.clone(), disk.after_kill()] {
        disk.sync_dir(Path::new("/d")).unwrap();
        let after = disk.after_power_cut();
        let names: Vec<_> = after.list(new).unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["a", "inner"]);
        assert_eq!(after.open(&new.join("inner/b")).unwrap().len().unwrap(), 7);
        assert!(after.list(old).is_err());
    }
}

#[test]
fn a_kill_makes_nothing_durable_and_takes_nothing_from_the_kernel() {
    let (disk, file) = disk_with_file();
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_all_at(b"one", 0).unwrap();
    let _lock = disk.lock(Path::new("/d/lock")).unwrap();
    let killed = disk.after_kill();
    // The locks of the dead are free.
    drop(killed.lock(Path::new("/d/lock")).unwrap());
    assert_eq!(bytes_of(&killed).unwrap(), b"one");
    assert_eq!(bytes_of(&killed.after_power_cut()).unwrap(), b"");
    killed.open_write(Path::new("/d/f")).unwrap().sync().unwrap();
    assert_eq!(bytes_of(&killed.after_power_cut()).unwrap(), b"one");
    // Each goes its own way.
    assert_eq!(bytes_of(&disk.after_power_cut()).unwrap(), b"");
}

#[test]
fn a_sync_behind_a_failed_one_proves_nothing() {
    for (how, seen) in
        [(FailedSync::KeepsBytes, &b"one"[..]), (FailedSync::DropsBytes, &[0, 0, 0][..])]
    {
        let (disk, file) = disk_with_file();
        disk.sync_dir(Path::new("/d")).unwrap();
        file.write_all_at(b"one", 0).unwrap();
        disk.fail_syncs(1, how);
        file.sync().unwrap_err();
        file.sync().unwrap();
        assert_eq!(bytes_of(&disk).unwrap(), seen);
        assert_eq!(bytes_of(&disk.after_power_cut()).unwrap(), [0, 0, 0]);
    }
}

#[test]
fn a_stalled_write_waits_for_its_release() {
    let (disk, file) = disk_with_file();
    disk.create_dir_all(Path::new("/e")).unwrap();
    let other = disk.create(Path::new("/e/f")).unwrap();
    disk.stall(Path::new("/d"));
    let writing = std::thread::spawn(move || file.write_all_at(b"one", 0));
    disk.wait_stalled(1);
    other.write_all_at(b"two", 0).unwrap();
    assert_eq!(bytes_of(&disk).unwrap(), b"");
    disk.release(Path::new("/d"));
    writing.join().unwrap().unwrap();
    assert_eq!(bytes_of(&disk).unwrap(), b"one");
}

#[test]
fn faults_hit_the_operation_they_were_set_for() {
    let (disk, file) = disk_with_file();
    disk.fail_operation(1, io::ErrorKind::Other, 2);
    file.write_all_at(b"ab", 0).unwrap();
    file.write_all_at(b"cdef", 2).unwrap_err();
    assert_eq!(bytes_of(&disk).unwrap(), b"abcd");
    disk.limit_bytes(Some(6));
    let err = file.write_all_at(b"efgh", 4).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::StorageFull);
    assert_eq!(bytes_of(&disk).unwrap(), b"abcdef");
    disk.fail_all_operations(0);
    file.sync().unwrap_err();
    disk.create(Path::new("/d/g")).err().unwrap();
}

/// Nor does it take anything from it: a process that was killed may have left a name to the kernel, and
/// the next one syncs other directories first.
#[test]
fn a_sync_of_one_directory_says_nothing_of_another() {
    let disk = FaultyDisk::new();
    let (old, new) = (Path::new("/d/t/old"), Path::new("/d/t/new"));
    disk.create_dir_all(&old.join("inner")).unwrap();
    disk.create_dir_all(Path::new("/d/t/other")).unwrap();
    let write = |path: &Path| {
        let file = disk.create(path).unwrap();
        file.write_all_at(b"bytes", 0).unwrap();
        file.sync().unwrap();
    };
    write(&old.join("inner/a"));
    write(&old.join("b"));
    for dir in ["/d/t/old/inner", "/d/t/old", "/d/t", "/d"] {
        disk.sync_dir(Path::new(dir)).unwrap();
    }
    disk.rename(old, new).unwrap();
    let disk = disk.after_kill();
    for other in ["/d/t/other", "/d/t/new"] {
        disk.sync_dir(Path::new(other)).unwrap();
        let after = disk.after_power_cut();
        assert!(after.open(&old.join("inner/a")).is_ok() && after.open(&old.join("b")).is_ok());
        assert!(after.list(new).is_err());
    }
    disk.sync_dir(Path::new("/d/t")).unwrap();
    let after = disk.after_power_cut();
    assert!(after.open(&new.join("inner/a")).is_ok() && after.open(&new.join("b")).is_ok());
    assert!(after.list(old).is_err());
    // What was removed stays until then, too.
    disk.remove_dir_all(new).unwrap();
    disk.sync_dir(Path::new("/d/t/other")).unwrap();
    assert!(disk.after_power_cut().open(&new.join("inner/a")).is_ok());
    disk.sync_dir(Path::new("/d/t")).unwrap();
    assert!(disk.after_power_cut().list(new).is_err());
}
