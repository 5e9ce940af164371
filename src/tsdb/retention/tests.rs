use super::*;
use crate::tsdb::cut::tests::{HOUR, Life, in_temp, sample_count};
use crate::tsdb::head::tests::dump;

/// `tests/data/tsdb/retention.json`
#[test]
fn prometheus_deletes_the_same() {
    let file = include_str!("../../../tests/data/tsdb/retention.json");
    let file: serde_json::Value = serde_json::from_str(file).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let number = |value: &serde_json::Value| value.as_i64().unwrap();
        let blocks: Vec<_> = case["blocks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|block| {
                let max_time = number(&block["max_time"]);
                Judged { max_time, effective_end: max_time, bytes: number(&block["size"]) as u64 }
            })
            .collect();
        let limit = |value: &serde_json::Value| Some(number(value)).filter(|limit| *limit > 0);
        let retention = Retention {
            age_max: limit(&case["retention_ms"]),
            bytes_max: limit(&case["max_bytes"]).map(|bytes| bytes as u64),
        };
        let Expired { by_age, by_size } =
            retention.judge(&blocks, number(&case["head_size"]) as u64);
        let mut deleted = [by_age, by_size].concat();
        deleted.sort_unstable();
        let recorded: Vec<usize> = serde_json::from_value(case["deleted"].clone()).unwrap();
        assert_eq!(deleted, recorded, "{case}");
    }
}

#[test]
fn a_block_of_the_future_makes_no_other_old() {
    let block = |max_time, effective_end| Judged { max_time, effective_end, bytes: 1 };
    let retention = Retention { age_max: Some(10), bytes_max: None };
    let blocks = [block(80, 80), block(100, 100), block(1 << 40, 105)];
    assert_eq!(retention.judge(&blocks, 0), Expired { by_age: vec![0], by_size: vec![] });
}

/// Six blocks of two hours, and the head behind them.
fn twelve_hours(life: &mut Life) {
    life.write(0..3, 12 * 60);
    assert_eq!(life.db().cut_due().unwrap(), 5);
}

#[test]
fn what_expires_goes_for_good_and_its_time_stays_shut() {
    in_temp(|mut life| {
        life.options.retention = Retention { age_max: Some(5 * HOUR), bytes_max: None };
        life.open();
        twelve_hours(&mut life);
        let querier = life.db().querier(i64::MIN, i64::MAX);
        let all = sample_count(&dump(life.db()));
        assert_eq!(life.db().drop_expired(|_| false).unwrap(), 0, "none of them may go");
        assert_eq!(sample_count(&dump(life.db())), all);
        assert_eq!(life.db().drop_expired(|_| true).unwrap(), 2);
        let left = dump(life.db());
        assert!(sample_count(&left) < all);
        // Who reads already reads on.
        let selected = querier.select(&[]).unwrap();
        let mut chunks = Vec::new();
        selected.iter().for_each(|series| querier.chunks(series, &mut chunks).unwrap());
        let samples =
            chunks.iter().map(|chunk| u16::from_be_bytes([chunk.bytes[0], chunk.bytes[1]]));
        assert_eq!(samples.map(usize::from).sum::<usize>(), all);
        drop((querier, selected));
        life.open();
        assert_eq!(dump(life.db()), left);
        assert_eq!(life.db().drop_expired(|_| true).unwrap(), 0);
    });
}

#[test]
fn the_floor_outlives_the_blocks() {
    in_temp(|mut life| {
        life.options.retention = Retention { age_max: None, bytes_max: Some(1) };
        life.open();
        twelve_hours(&mut life);
        let floor = life.db().head.floor();
        let head = life.db().head_time_range();
        assert_eq!(life.db().drop_expired(|_| true).unwrap(), 5);
        life.open();
        assert_eq!(life.blocks(), []);
        assert_eq!((life.db().head.floor(), life.db().head_time_range()), (floor, head));
    });
}

#[test]
fn all_that_the_head_has_on_the_disk_counts() {
    in_temp(|mut life| {
        twelve_hours(&mut life);
        let dir = life.db().dir.clone();
        let of_log = life.db().head_bytes();
        assert!(of_log > 0);
        let files = [
            ("wal/checkpoint.00000000/00000000", 4000),
            ("wbl/00000000", 1000),
            ("wbl/checkpoint.00000001/00000000", 200),
            ("chunks_head/000099", 30),
            ("another/000001", 5),
        ];
        for (path, bytes) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![1; bytes]).unwrap();
        }
        assert_eq!(life.db().head_bytes(), of_log + 5230);
    });
}
