use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::model::labels::{KeyBuilder, SeriesKey};
use crate::model::matcher::MatchOp;
use crate::model::pairs::SeriesLabels;

type Labels = BTreeMap<Vec<u8>, Vec<u8>>;

fn key(labels: &Labels) -> SeriesKey {
    let mut builder = KeyBuilder::default();
    for (name, value) in labels {
        builder.push(name, value);
    }
    SeriesKey::from_canonical(builder.as_bytes())
}

fn add(postings: &MemPostings, slot: u32, key: &SeriesKey) {
    postings.add([(slot, key.labels())], |_, _| {});
}

/// Adds series, and looks at what is told of them.
fn add_batch(postings: &MemPostings, series: &[(u32, SeriesKey)]) {
    let mut told = Vec::new();
    postings.add(series.iter().map(|(slot, key)| (*slot, key.labels())), |_, pairs| {
        told.push(SeriesLabels::new(postings.pairs().clone(), pairs));
    });
    assert_eq!(told.len(), series.len());
    for (told, (_, key)) in told.iter().zip(series) {
        assert!(told.iter().eq(key.labels()), "{told:?} for {key:?}");
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
}

fn matcher(op: MatchOp, name: &[u8], value: &[u8]) -> Matcher {
    Matcher::new(op, name, value).unwrap()
}

/// Every series by itself, against every matcher.
fn naive_select(series: &BTreeMap<u32, Labels>, matchers: &[Matcher]) -> Vec<u32> {
    let matches = |labels: &Labels, matcher: &Matcher| {
        (matcher.op == MatchOp::Equal && matcher.name.is_empty() && matcher.value.is_empty())
            || matcher.matches(labels.get(&matcher.name).map_or(b"", |value| value))
    };
    series
        .iter()
        .filter(|(_, labels)| matchers.iter().all(|matcher| matches(labels, matcher)))
        .map(|(&slot, _)| slot)
        .collect()
}

#[test]
fn selects_what_a_walk_over_all_series_selects() {
    let seed = std::env::var("RINGEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| getrandom::u64().unwrap());
    println!("RINGEST_SEED={seed}");
    let seed = [seed.to_le_bytes(); 4].concat();
    let name = select(vec![&b"a"[..], b"b", b"c", b"", b"\xff"]);
    let value = select(vec![&b"x"[..], b"y", b"xy", b"\n", b"\xfe\xff"]);
    let own = |bytes: &[u8]| bytes.to_vec();
    let one = prop::collection::btree_map(name.clone().prop_map(own), value.prop_map(own), 0..5);
    let slots = prop::collection::btree_map(0..5000u32, one, 0..60);
    let op = select(&[MatchOp::Equal, MatchOp::NotEqual, MatchOp::Regex, MatchOp::NotRegex]);
    let wanted = select(&[
        "",
        "x",
        "z",
        "x|y",
        "x|",
        ".*",
        ".+",
        "x.*",
        "x.+",
        "[^x]*",
        ".*y",
        "(?i)X",
        "\u{fffd}+",
        ".",
        "()",
        "[^\\x00-\\x{10FFFF}]",
    ]);
    let matchers = prop::collection::vec((op, name, wanted), 0..4);
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 300, failure_persistence: None, ..Config::default() },
        TestRng::from_seed(RngAlgorithm::ChaCha, &seed),
    );
    runner
        .run(&(slots, matchers, any::<proptest::sample::Index>()), |(series, matchers, turn)| {
            // Slots rise, then some lower ones come.
            let mut order: Vec<u32> = series.keys().copied().collect();
            if !order.is_empty() {
                let middle = turn.index(order.len());
                order.rotate_left(middle);
            }
            let postings = MemPostings::new();
            let batch: Vec<_> = order.iter().map(|slot| (*slot, key(&series[slot]))).collect();
            let (first, second) = batch.split_at(batch.len() / 2);
            add_batch(&postings, first);
            for (slot, key) in second {
                add(&postings, *slot, key);
            }

            let matchers: Vec<Matcher> = matchers
                .iter()
                .map(|(op, name, value)| matcher(*op, name, value.as_bytes()))
                .collect();
            prop_assert_eq!(postings.select(&matchers), naive_select(&series, &matchers));
            prop_assert_eq!(postings.all(), series.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(postings.series_count(), series.len());

            let mut values = BTreeMap::<&[u8], Vec<Vec<u8>>>::new();
            for (name, value) in series.values().flatten() {
                values.entry(name).or_default().push(value.clone());
            }
            values.values_mut().for_each(|values| {
                values.sort();
                values.dedup();
            });
            prop_assert_eq!(
                postings.label_names(),
                values.keys().map(|name| name.to_vec()).collect::<Vec<_>>()
            );
            for (name, values) in &values {
                prop_assert_eq!(&postings.label_values(name), values);
            }
            prop_assert_eq!(postings.value_counts().len(), values.len());
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_walk_crosses_slices() {
    let postings = MemPostings::new();
    let count = 3 * SLICE_ITEMS as u32 + 7;
    for slot in 0..count {
        add(&postings, slot, &key(&labels(&[("pod", &format!("p-{slot}")), ("job", "a")])));
    }
    let every_tenth = postings.select(&[matcher(MatchOp::Regex, b"pod", b"p-[0-9]*0")]);
    assert_eq!(every_tenth, (0..count).step_by(10).collect::<Vec<_>>());
    let the_rest = postings.select(&[matcher(MatchOp::NotRegex, b"pod", b"p-[0-9]*0")]);
    assert_eq!(the_rest.len() + every_tenth.len(), count as usize);
    assert_eq!(postings.label_values(b"pod").len(), count as usize);
    assert_eq!(postings.select(&[matcher(MatchOp::Equal, b"pod", b"")]), [0u32; 0]);
    assert_eq!(postings.label_values(b"none"), Vec::<Vec<u8>>::new());
}

#[test]
fn a_walk_ends_when_nobody_waits_for_it() {
    let postings = MemPostings::new();
    for slot in 0..100 {
        add(&postings, slot, &key(&labels(&[("pod", &format!("p-{slot}"))])));
    }
    let every = || postings.select(&[matcher(MatchOp::Regex, b"pod", b"p-[0-9]+")]);
    let (waiting, stop) = stop::pair();
    stop.run(|| {
        assert_eq!(every().len(), 100);
        drop(waiting);
        assert_eq!(every(), [0u32; 0]);
    });
}

/// A series is seen whole: in each result, the matchers hold for every slot, and every series that
/// was there before the selection began is there.
#[test]
fn readers_see_whole_series_while_others_are_added() {
    let of_slot = |slot: u32| {
        let parity = if slot.is_multiple_of(2) { "even" } else { "odd" };
        let own = format!("v{slot}");
        let mut labels = labels(&[("job", "a"), ("parity", parity), ("own", &own)]);
        if slot.is_multiple_of(3) {
            labels.insert(b"third".to_vec(), b"yes".to_vec());
        }
        labels
    };
    let postings = MemPostings::new();
    let done = AtomicBool::new(false);
    let count = 5_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for slot in 0..count {
                add(&postings, slot, &key(&of_slot(slot)));
            }
            done.store(true, Ordering::Release);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let cases = [
                    (vec![matcher(MatchOp::NotEqual, b"parity", b"odd")], 2, 0),
                    (vec![matcher(MatchOp::NotEqual, b"third", b"")], 3, 0),
                    (
                        vec![
                            matcher(MatchOp::Equal, b"job", b"a"),
                            matcher(MatchOp::NotRegex, b"own", b"v[0-9]*[13579]"),
                        ],
                        2,
                        0,
                    ),
                    (
                        vec![
                            matcher(MatchOp::Regex, b"own", b".+"),
                            matcher(MatchOp::Equal, b"third", b"yes"),
                        ],
                        3,
                        0,
                    ),
                ];
                let mut last_round = false;
                loop {
                    for (matchers, step, remainder) in &cases {
                        let before = postings.series_count() as u32;
                        let selected = postings.select(matchers);
                        assert!(selected.is_sorted_by(|a, b| a < b));
                        assert!(selected.iter().all(|slot| slot % step == *remainder));
                        let old = selected.iter().filter(|slot| **slot < before).count() as u32;
                        assert_eq!(old, before.div_ceil(*step));
                    }
                    if last_round {
                        break;
                    }
                    last_round = done.load(Ordering::Acquire);
                }
            });
        }
    });
}

/// Prints what the index takes; the bound is that of the module's documentation.
#[test]
fn a_series_of_twelve_labels_takes_what_is_said() {
    let postings = MemPostings::new();
    let count = 100_000u32;
    for slot in 0..count {
        let pairs: Labels = (0..12)
            .map(|label| {
                let value = match label {
                    0 => slot,
                    1..=3 => slot / 100,
                    4..=7 => slot % 500,
                    _ => slot / 20_000,
                };
                (format!("label_{label:02}").into_bytes(), format!("value-{value}").into_bytes())
            })
            .collect();
        add(&postings, slot, &key(&pairs));
    }
    let index = postings.index.read();
    let mut lists = index.all.as_ref().unwrap().heap_bytes();
    let mut entries = 0_usize;
    let mut texts = 0;
    for values in index.names.values() {
        // Hash, text and list of an entry, its place in the hash table, its number and what that
        // stands for.
        let Values { lists: of_values, pairs } = values;
        entries += of_values.capacity() * (8 + 8 + 16 + 9) + pairs.capacity() * (4 + 24);
        // Count and length lie before a text.
        texts += of_values.keys().map(|value| 16 + bytes(value).len()).sum::<usize>();
        lists += of_values.values().map(PostingsList::heap_bytes).sum::<usize>();
    }
    let per_series = |bytes: usize| bytes as f64 / f64::from(count);
    println!(
        "bytes a series: lists {:.1}, entries {:.1}, texts {:.1}",
        per_series(lists),
        per_series(entries),
        per_series(texts)
    );
    assert!(per_series(lists) < 24.0);
    assert!(per_series(lists + entries + texts) < 150.0);
}
