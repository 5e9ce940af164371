//! Directories with recorded damage: every sample that Prometheus gets back is back, nothing is
//! made up, and no file that was whole is gone.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::database::{Copy, Stored, data_dir, stored};
use crate::recorded;

/// Where the block of the checkpointed set ends.
const BLOCK_END: i64 = 1_700_013_600_000;

fn unhex(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap_or_default();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// Changes bytes of a file.
fn change(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn edit(dir: &Path, edit: &Value) {
    let path = dir.join(edit["file"].as_str().unwrap());
    let offset = edit["off"].as_u64().unwrap_or(0) as usize;
    let size = edit["size"].as_u64().unwrap_or(0) as usize;
    let hex = unhex(&edit["hex"]);
    match edit["op"].as_str().unwrap() {
        "set" => change(&path, |bytes| bytes[offset..][..hex.len()].copy_from_slice(&hex)),
        "xor" => change(&path, |bytes| {
            bytes[offset..].iter_mut().zip(hex).for_each(|(byte, mask)| *byte ^= mask);
        }),
        "zero" => change(&path, |bytes| bytes[offset..][..size].fill(0)),
        "truncate" => change(&path, |bytes| bytes.resize(size, 0)),
        "append" => change(&path, |bytes| bytes.extend_from_slice(&hex)),
        "write" => {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, hex).unwrap();
        }
        "delete" if path.is_dir() => fs::remove_dir_all(path).unwrap(),
        "delete" => fs::remove_file(path).unwrap(),
        "mkdir" => fs::create_dir_all(path).unwrap(),
        "rename" => {
            let to = Path::new(edit["to"].as_str().unwrap()).file_name().unwrap();
            fs::rename(&path, path.parent().unwrap().join(to)).unwrap();
        }
        "copy" => {
            fs::copy(data_dir().join(edit["from"].as_str().unwrap()), path).unwrap();
        }
        other => panic!("unknown edit {other}"),
    }
}

/// The samples that Prometheus gets back; `kept` has 0, 1 or ranges of indexes a series.
fn kept(series: &Value, kept: &Value, mint: i64) -> Stored {
    let mut all = Stored::new();
    for (series, kept) in series.as_array().unwrap().iter().zip(kept.as_array().unwrap()) {
        let samples = series["samples"].as_array().unwrap();
        let index = |value: &Value| value.as_u64().unwrap() as usize;
        let ranges: Vec<(usize, usize)> = match kept {
            Value::Array(ranges) => ranges.iter().map(|r| (index(&r[0]), index(&r[1]))).collect(),
            all_or_none => vec![(0, samples.len() * index(all_or_none))],
        };
        let kept = ranges.into_iter().flat_map(|(from, to)| &samples[from..to]);
        let kept = kept.map(recorded::sample).filter(|(t, _)| *t >= mint);
        all.entry(recorded::labels(&series["labels"])).or_default().extend(kept);
    }
    all
}

fn assert_contains(all: &Stored, part: &Stored, what: &str) {
    for (labels, samples) in part {
        for (t, v) in samples {
            let found = all.get(labels).and_then(|samples| samples.get(t));
            assert_eq!(found, Some(v), "{what}: {labels:?} at {t}");
        }
    }
}

fn play(cases_path: &str, series: &Value, mint: i64) -> usize {
    let cases = recorded::load(cases_path);
    let recorded = recorded::stored(series, mint);
    let all_cases = cases["cases"].as_array().unwrap();
    for case in all_cases {
        let name = case["name"].as_str().unwrap();
        let base = &cases["bases"][case["base"].as_str().unwrap()];
        let copy = Copy::of(base["dir"].as_str().unwrap());
        let edits = case["edits"].as_array().unwrap();
        edits.iter().for_each(|one| edit(copy.dir.path(), one));
        let files = copy.files();

        let opened = copy.open();
        let found = stored(&opened.db);
        drop(opened);
        if case["open"]["error"].is_null() {
            assert_contains(&found, &kept(series, &case["open"]["kept"], mint), name);
        }
        assert_contains(&recorded, &found, &format!("{name}: made up"));
        if edits.is_empty() {
            assert!(found == recorded, "{name}");
        }
        copy.assert_serves_on(name, found);
        let left = copy.files();
        let is_edited =
            |file: &Path| edits.iter().any(|edit| file.starts_with(edit["file"].as_str().unwrap()));
        // Prometheus removes what is left of one that was not finished as well.
        let is_unfinished = |file: &Path| file.to_string_lossy().contains(".tmp/");
        for file in files.iter().filter(|file| !is_edited(file) && !is_unfinished(file)) {
            assert!(left.contains(file), "{name}: {} is gone", file.display());
        }
    }
    all_cases.len()
}

#[test]
fn a_damaged_log_costs_no_more_than_recorded() {
    let series = &recorded::load("wal/damaged.json")["series"];
    assert_eq!(play("wal/damaged.json", series, i64::MIN), 119);
}

#[test]
fn a_damaged_checkpoint_costs_no_more_than_recorded() {
    let series = &recorded::load("wal/checkpoint.json")["series"];
    assert_eq!(play("wal/damaged_checkpoint.json", series, BLOCK_END), 12);
}
