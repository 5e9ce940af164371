//! Directories without damage: legal logs of every kind, also rare ones.

use ringest::tsdb::head::append::Refusal;
use serde_json::Value;

use crate::database::{Copy, Labels, Stored, all_stored, append, stored, try_append};
use crate::recorded;

/// Opens a copy of `dir`, and goes on with it.
fn assert_opens_to(dir: &str, expected: Stored) {
    let copy = Copy::of(dir);
    let files = copy.files();
    let opened = copy.open();
    assert_eq!((opened.log.damage_count, &opened.log.cut), (0, &None), "{dir}");
    let found = stored(&opened.db);
    for labels in expected.keys().chain(found.keys()) {
        assert_eq!(found.get(labels), expected.get(labels), "{dir}: {labels:?}");
    }
    drop(opened);
    copy.assert_serves_on(dir, expected);
    assert!(copy.files().is_superset(&files), "{dir}: files are gone");
}

#[test]
fn logs_of_all_record_types_and_compressions() {
    let types = recorded::load("wal/types.json");
    for dir in types["dirs"].as_object().unwrap().keys() {
        assert_opens_to(&format!("wal/{dir}"), recorded::stored(&types["series"], i64::MIN));
    }
}

#[test]
fn what_a_log_has_of_all_kinds_is_in_the_blocks_that_are_cut_of_it() {
    let types = recorded::load("wal/types.json");
    for dir in types["dirs"].as_object().unwrap().keys() {
        let copy = Copy::of(&format!("wal/{dir}"));
        let opened = copy.open();
        let all = all_stored(&opened.db);
        assert_eq!(opened.replay.histograms_unusable, 0, "{dir}");
        assert!(opened.db.flush().unwrap() > 0, "{dir}");
        assert_eq!(opened.db.head_time_range(), None, "{dir}");
        assert!(all_stored(&opened.db) == all, "{dir}: other samples in blocks");
        opened.db.close().unwrap();
        drop(opened);
        assert!(all_stored(&copy.open().db) == all, "{dir}: other samples");
    }
}

#[test]
fn a_log_before_and_after_its_checkpoint() {
    let checkpoint = recorded::load("wal/checkpoint.json");
    let block_end = checkpoint["checkpoint_mint"].as_i64().unwrap();
    for dir in checkpoint["dirs"].as_object().unwrap().keys() {
        let series = &checkpoint["series"];
        assert_opens_to(&format!("wal/{dir}/before"), recorded::stored(series, i64::MIN));
        assert_opens_to(&format!("wal/{dir}/after"), recorded::stored(series, block_end));
        // With its blocks the directory holds what it held before.
        let copy = Copy::of(&format!("wal/{dir}/after"));
        assert!(all_stored(&copy.open().db) == recorded::stored(series, i64::MIN), "{dir}");
    }
}

/// The snapshot repeats what the log holds.
#[test]
fn a_directory_with_a_memory_snapshot() {
    let snapshot = recorded::load("wal/snapshot.json");
    assert_opens_to("wal/snapshot", recorded::stored(&snapshot["series"], i64::MIN));
}

/// What lies before the end of the blocks is not the head's.
#[test]
fn directories_of_a_newer_prometheus() {
    let directories = recorded::load("newer/directories.json");
    let all = directories["dirs"].as_array().unwrap();
    let series = all.iter().find_map(|dir| dir.get("series")).unwrap();
    for dir in all {
        let dir = dir["dir"].as_str().unwrap();
        assert_opens_to(dir, recorded::stored(series, 1_700_013_600_000));
    }
}

/// Blocks of out-of-order samples reach into the head's time; its in-order samples stay its own.
/// These stand on whole minutes. What came out of order is not read yet.
#[test]
fn a_head_beside_blocks_of_out_of_order_samples() {
    let compacted = recorded::load("wbl/compacted.json");
    let mut expected = recorded::stored(&compacted["series"], i64::MIN);
    for samples in expected.values_mut() {
        samples.retain(|t, _| t % 60_000 == 0);
    }
    expected.retain(|_, samples| !samples.is_empty());
    assert!(expected.values().map(|samples| samples.len()).sum::<usize>() > 200);
    assert_opens_to("wbl/compacted", expected);
}

/// A removed series is made anew when it is written again, and stays.
#[test]
fn a_series_that_was_deleted_is_written_again() {
    let copy = Copy::of("wal/crafted/tombstone-then-samples");
    let deleted: Labels = vec![("__name__".into(), "gold_b".into())];
    // Older than some of what was deleted.
    let t = 1_700_006_500_000;
    let mut expected = stored(&copy.open().db);
    assert!(!expected.contains_key(&deleted));
    append(&copy.open().db, std::slice::from_ref(&deleted), t);
    expected.insert(deleted, [(t, t as u64)].into());
    copy.assert_serves_on("deleted and written again", expected);
}

/// The largest ref that Prometheus can query is given to one series more, and then no other.
#[test]
fn a_log_that_leaves_one_ref() {
    let copy = Copy::of("wal/crafted/large-ref-jump");
    let series = ["a", "b"].map(|name| vec![("__name__".to_owned(), name.to_owned())]);
    let t = 1_700_006_500_000;
    let opened = copy.open();
    let mut expected = stored(&opened.db);
    let report = try_append(&opened.db, &series, t);
    let refused = report.refused[Refusal::TooManySeries as usize].as_ref();
    assert_eq!((report.stored, refused.map(|(count, _)| *count)), (1, Some(1)));
    expected.insert(series[0].clone(), [(t, t as u64)].into());
    assert!(stored(&opened.db) == expected);
    drop(opened);
    assert!(stored(&copy.open().db) == expected);
}

/// What ours finds where Prometheus loses samples that the log holds.
fn better(name: &str, case: &Value) -> Option<Stored> {
    // Refs whose samples all belong to the series announced first, and that series.
    let (refs, labels): (&[u64], _) = match name {
        // Prometheus throws away what came before the second series record.
        "duplicate-refs" => (&[1, 7], &case["series"][0]["labels"]),
        // Prometheus cannot query the series any more.
        "ref-reused" => (&[1], &case["records"][0]["series"][0][1]),
        _ => return None,
    };
    let records = case["records"].as_array().unwrap().iter();
    let samples = records.filter_map(|record| record["samples"].as_array()).flatten();
    let samples = samples.filter(|sample| refs.contains(&sample[0].as_u64().unwrap()));
    let samples = samples.map(recorded::sample).collect();
    let mut expected = recorded::stored(&case["series"], i64::MIN);
    expected.insert(recorded::labels(labels), samples);
    Some(expected)
}

#[test]
fn logs_that_are_rare() {
    let cases = std::fs::read_dir(crate::database::data_dir().join("wal/crafted")).unwrap();
    let names = cases.filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_suffix(".json").map(str::to_owned)
    });
    let mut count = 0;
    for name in names {
        let case = recorded::load(&format!("wal/crafted/{name}.json"));
        // The block's samples are not read yet.
        let mint = if name == "below-block" { 1_700_013_600_000 } else { i64::MIN };
        let expected = better(&name, &case);
        let expected = expected.unwrap_or_else(|| recorded::stored(&case["series"], mint));
        assert_opens_to(&format!("wal/crafted/{name}"), expected);
        count += 1;
    }
    assert_eq!(count, 11);
}
