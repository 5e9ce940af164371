//! Recorded files of head chunks, whole and damaged, and what is given beside them.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::disk::SystemDisk;
use crate::metrics::Registry;
use crate::tsdb::head_chunks::{FILE_BYTES, HeadChunkFiles};

/// As an opening of the database finds it.
fn highest_in_all(dir: &Path) -> io::Result<u64> {
    let disk = Arc::new(SystemDisk);
    let files = HeadChunkFiles::new(disk, dir, FILE_BYTES, &Registry::new(), "t");
    let head_chunks = files.open(i64::MIN, &mut |_| {})?;
    Ok(highest_in_others(&SystemDisk, dir)?.max(head_chunks.highest_ref))
}

pub(crate) fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb")
}

pub(crate) fn data(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data_dir().join(path)).unwrap()).unwrap()
}

pub(crate) fn unhex(hex: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Where each chunk of the recorded files begins, and its ref: `[offset, ref, …]`.
fn chunks(files: &Value) -> Vec<(String, usize, u64)> {
    let files = files.as_object().unwrap().iter();
    let of_file = |(file, chunks): (&String, &Value)| {
        let number = |chunk: &Value, i: usize| chunk[i].as_u64().unwrap();
        let chunks = chunks.as_array().unwrap().iter();
        let file = file.clone();
        chunks.map(|c| (file.clone(), number(c, 0) as usize, number(c, 1))).collect::<Vec<_>>()
    };
    files.flat_map(of_file).collect()
}

#[test]
fn recorded_head_chunks_are_found_and_their_refs() {
    let written = data("head_chunks/mapper.json")["written"].clone();
    let highest = written.as_array().unwrap().iter().map(|chunk| chunk[0].as_u64().unwrap()).max();
    let found = highest_in_all(&data_dir().join("head_chunks/mapper")).unwrap();
    assert_eq!(Some(found), highest);
    let mapped = data("head_chunks/mapped.json");
    let highest = chunks(&mapped["chunks_head"]).into_iter().map(|(_, _, series_ref)| series_ref);
    let found = highest_in_all(&data_dir().join("head_chunks/mapped")).unwrap();
    assert_eq!(Some(found), highest.max());
}

/// The refs of whole chunks are found behind any damage.
#[test]
fn each_chunk_is_found_whatever_stands_before_it() {
    let cases = data("head_chunks/damaged.json");
    let all = chunks(&cases["bases"]["wal-lost"]["chunks_head"]);
    let dir = data_dir().join("head_chunks/wal-lost/chunks_head");
    for name in ["000001", "000002", "000003"] {
        let whole = std::fs::read(dir.join(name)).unwrap();
        let of_file: Vec<_> = all.iter().filter(|(file, ..)| file == name).collect();
        assert!(of_file.len() > 2);
        for (_, offset, series_ref) in &of_file {
            let temporary = tempfile::tempdir().unwrap();
            std::fs::create_dir(temporary.path().join("chunks_head")).unwrap();
            for noise in [0, 0xa5] {
                let mut bytes = whole.clone();
                bytes[..*offset].fill(noise);
                std::fs::write(temporary.path().join("chunks_head/000001"), &bytes).unwrap();
                let behind = of_file.iter().filter(|(_, at, _)| at >= offset);
                let highest = behind.map(|(_, _, series_ref)| *series_ref).max().unwrap();
                let found = highest_in_all(temporary.path()).unwrap();
                assert_eq!(found, highest, "{name} from {offset}, whose ref is {series_ref}");
            }
        }
    }
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

pub(crate) fn edit(dir: &Path, edit: &Value) {
    let path = dir.join(edit["file"].as_str().unwrap());
    let read = || std::fs::read(&path).unwrap();
    let (offset, size) = (edit["off"].as_u64().unwrap_or(0) as usize, edit["size"].as_u64());
    let size = size.unwrap_or(0) as usize;
    let hex = unhex(edit["hex"].as_str().unwrap_or_default());
    let changed = match edit["op"].as_str().unwrap() {
        "set" => {
            let mut bytes = read();
            bytes[offset..offset + hex.len()].copy_from_slice(&hex);
            bytes
        }
        "xor" => {
            let mut bytes = read();
            bytes[offset..].iter_mut().zip(&hex).for_each(|(byte, mask)| *byte ^= mask);
            bytes
        }
        "zero" => {
            let mut bytes = read();
            bytes[offset..offset + size].fill(0);
            bytes
        }
        "truncate" => read()[..size].to_vec(),
        "append" => [read(), hex].concat(),
        "write" => hex,
        "delete" if path.is_dir() => return std::fs::remove_dir_all(&path).unwrap(),
        "delete" => return std::fs::remove_file(&path).unwrap(),
        "rename" => return std::fs::rename(&path, dir.join(edit["to"].as_str().unwrap())).unwrap(),
        other => panic!("{other}"),
    };
    std::fs::write(&path, changed).unwrap();
}

/// At most the damaged chunk's ref is not found, and never one that is none.
#[test]
fn recorded_damage_is_stepped_over() {
    let cases = data("head_chunks/damaged.json");
    let mapped = data("head_chunks/mapped.json");
    for case in cases["cases"].as_array().unwrap() {
        let (name, base) = (case["name"].as_str().unwrap(), case["base"].as_str().unwrap());
        let temporary = tempfile::tempdir().unwrap();
        copy_dir(&data_dir().join("head_chunks").join(base), temporary.path());
        let edits = case["edits"].as_array().unwrap();
        edits.iter().for_each(|one| edit(temporary.path(), one));
        let found = highest_in_all(temporary.path()).unwrap();
        let all = match base {
            "mapped" => chunks(&mapped["chunks_head"]),
            _ => chunks(&cases["bases"][base]["chunks_head"]),
        };
        let highest = all.iter().map(|(_, _, series_ref)| *series_ref).max().unwrap();
        match name.split_once(": ").unwrap().1 {
            "unknown series" => assert_eq!(found, 1 << 30, "{name}"),
            "directory missing" => assert_eq!(found, 0, "{name}"),
            _ if edits.iter().any(|edit| edit["op"] == "truncate" || edit["op"] == "delete") => {
                assert!(found <= highest, "{name}: {found}");
            }
            // Several chunks have the highest ref, and one at most is damaged.
            _ => assert_eq!(found, highest, "{name}"),
        }
    }
}

#[test]
fn the_out_of_order_log_and_the_state_of_others_count() {
    let temporary = tempfile::tempdir().unwrap();
    let wbl = data_dir().join("wbl/compacted/wbl");
    copy_dir(&wbl, &temporary.path().join("wbl"));
    let of_log = highest_in_all(temporary.path()).unwrap();
    let records = data("wbl/compacted.json")["wbl_records"].to_string();
    assert!(of_log > 0 && records.contains(&of_log.to_string()), "{of_log}");
    let wal = temporary.path().join("wal");
    std::fs::create_dir(&wal).unwrap();
    let state = wal.join(SERIES_STATE);
    for (content, expected) in [
        (r#"{"last_series_id": 4711, "last_wal_segment": 3, "clean_shutdown": true}"#, 4711),
        (r#"{"last_series_id": 18446744073709551615}"#, of_log),
        ("{", of_log),
        ("", of_log),
    ] {
        std::fs::write(&state, content).unwrap();
        assert_eq!(highest_in_all(temporary.path()).unwrap(), expected);
    }
    forget_series_state(&SystemDisk, temporary.path()).unwrap();
    forget_series_state(&SystemDisk, temporary.path()).unwrap();
    assert!(!state.exists());
}
