//! A `meta.json` of arbitrary bytes: it is read or refused, and one that was read is the same once it
//! was written and read again.
//!
//! Input: the file.

use ringest::tsdb::block::meta::BlockMeta;

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let Ok(mut meta) = BlockMeta::from_bytes(input) else { return };
    // Of these any JSON is handed on; a number in it may lose a digit by being read.
    if let Some(thanos) = &mut meta.thanos {
        thanos.extensions = None;
        thanos.rewrites.clear();
    }
    let written = meta.to_bytes();
    let again = BlockMeta::from_bytes(&written).expect("what we wrote");
    assert_eq!(again, meta);
    assert_eq!(again.to_bytes(), written);
}

/// What `thanos receive` uploaded.
const RECORDED: &[u8] = include_bytes!(
    "../../tests/data/tsdb/blocks/thanos-receive-sha256/bucket/01M85X9ECNEYNRJR9PQ5Q106VD/meta.json"
);

/// Inputs to begin with: a manifest of Prometheus, one of Thanos with all that can be in it, the least
/// there can be, and a recorded one.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let of_prometheus = r#"{"ulid": "01M85ZRPFB75AE7F24VG6924HQ", "minTime": -1, "maxTime": 7,
        "stats": {"numSamples": 3, "numSeries": 2, "numTombstones": 1}, "version": 1,
        "compaction": {"level": 1, "sources": ["01M85ZRPFB75AE7F24VG6924HQ"], "parents":
        [{"ulid": "00000000000000000000000000", "minTime": 0, "maxTime": 0}], "deletable": true,
        "failed": false, "hints": ["from-out-of-order"]}}"#;
    let of_thanos = r#"{"maxTime": 1, "thanos": {"version": 1, "labels": {"a": "\u003c\n"},
        "downsample": {"resolution": 300000}, "source": "receive", "segment_files": ["000001"],
        "files": [{"rel_path": "index", "size_bytes": 5, "hash": {"hashFunc": "SHA256",
        "value": "00"}}], "rewrites": [{}], "index_stats": {"series_max_size": 1},
        "extensions": {"x": 1.5}, "upload_time": "2026-01-01T00:00:00Z"}}"#;
    let texts = [of_prometheus, of_thanos, r#"{"maxTime": 1}"#].map(str::as_bytes);
    texts.into_iter().chain([RECORDED]).map(<[u8]>::to_vec).collect()
}
