//! Chunks against those that Prometheus TSDB v0.309.1 made of the same samples.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// How the recorded cases write the numbers of a kind.
trait Recorded: Encoded {
    const KIND: &'static str;
    fn count(value: &Value) -> Self::Count;
    fn bucket(value: &Value) -> Self::Bucket;
    /// Numbers as bits: NaNs are to be the same ones.
    fn bits(buckets: &[Self::Bucket]) -> Vec<u64>;
}

impl Recorded for Integer {
    const KIND: &'static str = "h";

    fn count(value: &Value) -> u64 {
        value.as_u64().unwrap()
    }

    fn bucket(value: &Value) -> i64 {
        value.as_i64().unwrap()
    }

    fn bits(buckets: &[i64]) -> Vec<u64> {
        buckets.iter().map(|bucket| *bucket as u64).collect()
    }
}

impl Recorded for Float {
    const KIND: &'static str = "fh";

    fn count(value: &Value) -> f64 {
        float(value)
    }

    fn bucket(value: &Value) -> f64 {
        float(value)
    }

    fn bits(buckets: &[f64]) -> Vec<u64> {
        buckets.iter().map(|bucket| bucket.to_bits()).collect()
    }
}

fn float(value: &Value) -> f64 {
    f64::from_bits(u64::from_str_radix(value.as_str().unwrap(), 16).unwrap())
}

fn list<T>(value: &Value, item: impl FnMut(&Value) -> T) -> Vec<T> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(item).collect()
}

fn sample<N: Recorded>(value: &Value) -> (i64, Histogram<N>) {
    assert_eq!(value[1], N::KIND);
    let fields = &value[2];
    let spans = |name: &str| {
        list(&fields[name], |span| Span {
            offset: span[0].as_i64().unwrap() as i32,
            length: span[1].as_u64().unwrap() as u32,
        })
    };
    let histogram = Histogram {
        reset_hint: match fields["hint"].as_u64() {
            Some(1) => ResetHint::Reset,
            Some(2) => ResetHint::NotReset,
            Some(3) => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        },
        layout: Layout {
            schema: fields["schema"].as_i64().unwrap() as i32,
            zero_threshold: float(&fields["zt"]),
            positive_spans: spans("ps"),
            negative_spans: spans("ns"),
            custom_bounds: list(&fields["cv"], float),
        },
        count: N::count(&fields["count"]),
        zero_count: N::count(&fields["zc"]),
        sum: float(&fields["sum"]),
        positive: list(&fields["pb"], N::bucket),
        negative: list(&fields["nb"], N::bucket),
    };
    (value[0].as_i64().unwrap(), histogram)
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    text.chunks(2).map(byte).collect()
}

/// All that a sample is, to be compared and shown.
fn parts<N: Recorded>((t, h): &(i64, Histogram<N>)) -> String {
    let Histogram { reset_hint, layout, count, zero_count, sum, positive, negative } = h;
    let (sum, positive, negative) = (sum.to_bits(), N::bits(positive), N::bits(negative));
    format!(
        "{t} {reset_hint:?} {layout:?} {count:?} {zero_count:?} {sum:x} {positive:?} {negative:?}"
    )
}

fn read<N: Encoded>(chunk: &[u8]) -> (Vec<(i64, Histogram<N>)>, bool) {
    let (mut samples, mut failed) = (Vec::new(), false);
    let (mut iterator, mut into) = (HistogramIterator::new(chunk), Histogram::default());
    while let Some(next) = iterator.next_into(&mut into) {
        match next {
            Ok(t) => samples.push((t, into.clone())),
            Err(_) => failed = true,
        }
    }
    (samples, failed)
}

fn cases(text: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(text).unwrap();
    file["cases"].as_array().unwrap().clone()
}

fn is_written_and_read_as_recorded<N: Recorded>(text: &str) {
    for case in cases(text) {
        let name = case["name"].as_str().unwrap();
        let mut finished: Vec<OpenHistogramChunk<N>> = Vec::new();
        let mut open: Option<OpenHistogramChunk<N>> = None;
        let mut events = Vec::new();
        for value in case["in"].as_array().unwrap() {
            let (t, histogram) = sample::<N>(value);
            let Some(chunk) = &mut open else {
                open = Some(OpenHistogramChunk::begin(t, &histogram, None));
                events.push("append");
                continue;
            };
            match chunk.append(t, &histogram) {
                Taken::Appended => events.push("append"),
                Taken::Recoded => events.push("recode"),
                Taken::Begun(next) => {
                    events.push("new");
                    finished.extend(open.replace(*next));
                }
            }
        }
        finished.extend(open);
        assert_eq!(Value::from(events), case["events"], "{name}");
        let chunks = case["chunks"].as_array().unwrap();
        assert_eq!(finished.len(), chunks.len(), "{name}");
        for (chunk, recorded) in finished.iter().zip(chunks) {
            assert_eq!(chunk.header() as u64, recorded["header"], "{name}");
            assert_eq!(chunk.count(), recorded["samples"].as_u64().unwrap() as u16, "{name}");
            assert_eq!(chunk.bytes(), hex(&recorded["bytes"]), "{name}");
            let (samples, failed) = read::<N>(chunk.bytes());
            assert!(!failed, "{name}");
            // Long ones are recorded as bytes alone.
            let read: Vec<_> = samples.iter().map(parts).collect();
            if let Some(expected) = recorded["read"].as_array() {
                let expected: Vec<_> = expected.iter().map(|s| parts(&sample::<N>(s))).collect();
                assert_eq!(read, expected, "{name}");
            }
            assert_eq!(read.len(), usize::from(chunk.count()), "{name}");
        }
    }
}

#[test]
fn integer_chunks_are_what_prometheus_writes() {
    is_written_and_read_as_recorded::<Integer>(include_str!(
        "../../../../tests/data/chunks/histogram.json"
    ));
}

#[test]
fn float_chunks_are_what_prometheus_writes() {
    is_written_and_read_as_recorded::<Float>(include_str!(
        "../../../../tests/data/chunks/float_histogram.json"
    ));
}

fn continues<N: Recorded>(case: &Value) {
    let (before, first) = (sample::<N>(&case["prev"]), sample::<N>(&case["next"]));
    let before = OpenHistogramChunk::begin(before.0, &before.1, None);
    let chunk = OpenHistogramChunk::begin(first.0, &first.1, Some(&before));
    assert_eq!(chunk.bytes(), hex(&case["bytes"]), "{}", case["name"]);
}

#[test]
fn a_chunk_behind_a_full_one_says_whether_counts_fell() {
    for case in cases(include_str!("../../../../tests/data/chunks/continued.json")) {
        match case["next"][1].as_str() {
            Some("h") => continues::<Integer>(&case),
            _ => continues::<Float>(&case),
        }
    }
}

fn gives_no_more_than_recorded<N: Recorded>(case: &Value) {
    let name = case["name"].as_str().unwrap();
    let (samples, failed) = read::<N>(&hex(&case["bytes"]));
    let samples: Vec<_> = samples.iter().map(parts).collect();
    let theirs: Vec<_> = list(&case["samples"], |value| parts(&sample::<N>(value)));
    if !failed {
        assert_eq!(samples, theirs, "{name}");
        assert!(case["error"].is_null(), "{name}");
    }
    assert!(theirs.starts_with(&samples), "{name}");
}

/// Prometheus' reader makes up bits behind the end of a chunk; ours gives an error there.
#[test]
fn damaged_chunks_give_no_sample_that_prometheus_does_not_give() {
    for case in cases(include_str!("../../../../tests/data/chunks/damaged.json")) {
        match case["encoding"].as_u64() {
            Some(2) => gives_no_more_than_recorded::<Integer>(&case),
            Some(3) => gives_no_more_than_recorded::<Float>(&case),
            _ => {}
        }
    }
}

#[test]
fn no_count_of_a_chunk_is_believed() {
    // A span of 2^32 - 1 buckets, and nothing behind it.
    let mut bits = BitWriter::after(&[0, 1, 0]);
    let span = Span { offset: 0, length: u32::MAX };
    push_layout(&mut bits, &Layout { positive_spans: vec![span], ..Layout::default() });
    bits.push(0, 100);
    let (samples, failed) = read::<Integer>(bits.bytes());
    assert!(samples.is_empty() && failed);
}

/// Histograms whose buckets lie anywhere, and how much each has more than the one before.
fn growing() -> impl Strategy<Value = Vec<Vec<(i8, u8)>>> {
    prop::collection::vec(prop::collection::vec((any::<i8>(), 0u8..4), 0..12), 1..40)
}

/// One histogram that has the observations of `counts`, by index.
fn of_counts(counts: &std::collections::BTreeMap<i64, i64>) -> Histogram<Integer> {
    let mut histogram = Histogram::default();
    let (mut end, mut before) = (0, 0);
    for (&index, &count) in counts {
        let spans = &mut histogram.layout.positive_spans;
        match spans.last_mut().filter(|_| index == end) {
            Some(span) => span.length += 1,
            None => spans.push(Span { offset: (index - end) as i32, length: 1 }),
        }
        histogram.positive.push(count - before);
        (end, before) = (index + 1, count);
    }
    histogram.count = counts.values().sum::<i64>() as u64;
    histogram
}

fn counts_of(histogram: &Histogram<Integer>) -> std::collections::BTreeMap<i64, i64> {
    let kept = histogram.positive.iter().copied();
    let all = layouts::buckets::<Integer>(&histogram.layout.positive_spans, kept);
    all.filter(|(_, count)| *count != 0).collect()
}

proptest! {
    /// Whatever buckets come and go, each sample is read with the observations that it had.
    #[test]
    fn observations_come_back(steps in growing(), is_gauge in any::<bool>()) {
        let mut counts = std::collections::BTreeMap::new();
        let mut chunks: Vec<OpenHistogramChunk<Integer>> = Vec::new();
        let mut expected = Vec::new();
        for (t, step) in steps.iter().enumerate() {
            if is_gauge {
                counts.clear();
            }
            for (index, more) in step {
                *counts.entry(i64::from(*index)).or_insert(0) += i64::from(*more);
            }
            let mut histogram = of_counts(&counts);
            if is_gauge {
                histogram.reset_hint = ResetHint::Gauge;
            }
            expected.push(counts_of(&histogram));
            let begun = match chunks.last_mut() {
                None => OpenHistogramChunk::begin(t as i64, &histogram, None),
                Some(open) => match open.append(t as i64, &histogram) {
                    Taken::Begun(next) => *next,
                    _ => continue,
                },
            };
            chunks.push(begun);
        }
        // Nothing falls, so no chunk but the first is begun.
        prop_assert_eq!(chunks.len(), 1);
        let (samples, failed) = read::<Integer>(chunks[0].bytes());
        prop_assert!(!failed);
        let found: Vec<_> = samples.iter().map(|(_, histogram)| counts_of(histogram)).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read::<Integer>(&bytes);
        read::<Float>(&bytes);
    }
}
