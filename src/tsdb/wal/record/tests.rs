//! Every record type against its recorded bytes, both ways where we write it.

use serde_json::{Value, json};

use super::*;
use crate::model::histogram::{Float, Histogram, Integer};

fn data(path: &str) -> Value {
    let path = format!("{}/tests/data/tsdb/{path}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn unhex(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn bits_hex(bits: u64) -> Value {
    format!("{bits:016x}").into()
}

fn labels_json<'a>(labels: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Value {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    labels.map(|(name, value)| json!([text(name), text(value)])).collect()
}

/// A record in the recorded form: the name of its items, and the items.
fn record_json(record: &Record<'_>) -> (&'static str, Value) {
    match record.clone() {
        Record::Series(series) => {
            ("series", series.map(|(r, labels)| json!([r.0, labels_json(labels)])).collect())
        }
        Record::Samples(samples) => (
            "samples",
            samples.map(|s| json!([s.series_ref.0, s.t, bits_hex(s.value_bits)])).collect(),
        ),
        Record::Tombstones(tombstones) => {
            ("tombstones", tombstones.map(|t| json!([t.series_ref.0, t.mint, t.maxt])).collect())
        }
        Record::Exemplars(exemplars) => {
            let item = |e: RecordExemplar<'_>| {
                json!([e.series_ref.0, e.t, bits_hex(e.value_bits), labels_json(e.labels)])
            };
            ("exemplars", exemplars.map(item).collect())
        }
        Record::MmapMarkers(markers) => {
            let item = |m: MmapMarker| {
                json!([m.series_ref.0, m.chunk_ref, m.chunk_ref >> 32, m.chunk_ref & 0xffff_ffff])
            };
            ("markers", markers.map(item).collect())
        }
        Record::Metadata(metadata) => {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let item = |m: RecordMetadata<'_>| {
                json!([m.series_ref.0, m.metric_type, text(m.unit), text(m.help)])
            };
            ("metadata", metadata.map(item).collect())
        }
        Record::Histograms(histograms) => {
            ("histograms", histograms.map(|h| histogram_json(&h, false)).collect())
        }
        Record::FloatHistograms(histograms) => {
            ("float_histograms", histograms.map(|h| histogram_json(&h, true)).collect())
        }
        Record::Unknown(_) => ("unknown", Value::Null),
    }
}

fn histogram_json(sample: &HistogramSample<'_>, is_float: bool) -> Value {
    let histogram = &sample.histogram;
    let count = |count: u64| if is_float { bits_hex(count) } else { json!(count) };
    let bucket = |bits: u64| if is_float { bits_hex(bits) } else { json!(bits as i64) };
    let mut fields = json!({
        "count": count(histogram.count),
        "hint": histogram.reset_hint,
        "schema": histogram.schema,
        "sum": bits_hex(histogram.sum_bits),
        "zc": count(histogram.zero_count),
        "zt": bits_hex(histogram.zero_threshold_bits),
    });
    let lists = [
        ("ps", histogram.positive_spans().map(|span| json!(span)).collect::<Vec<_>>()),
        ("ns", histogram.negative_spans().map(|span| json!(span)).collect()),
        ("pb", histogram.positive_buckets().map(bucket).collect()),
        ("nb", histogram.negative_buckets().map(bucket).collect()),
        ("cv", histogram.custom_values().map(bits_hex).collect()),
    ];
    for (name, list) in lists {
        if !list.is_empty() {
            fields[name] = list.into();
        }
    }
    json!([sample.series_ref.0, sample.t, fields])
}

/// The record's bytes as we write them, of the types that we do.
fn encode(record: Record<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match record {
        Record::Series(series) => {
            begin_series(&mut out);
            series.for_each(|(series_ref, labels)| push_series(&mut out, series_ref, labels));
        }
        Record::Samples(samples) => {
            encode_samples(&mut out, samples.map(|s| (s.series_ref, s.t, s.value_bits)));
        }
        Record::Tombstones(tombstones) => encode_tombstones(&mut out, tombstones),
        Record::Exemplars(exemplars) => {
            let items = exemplars.map(|e| (e.series_ref, e.t, e.value_bits, e.labels));
            encode_exemplars(&mut out, items);
        }
        Record::Metadata(metadata) => encode_metadata(&mut out, metadata),
        // Those with start times are not written.
        Record::Histograms(h) | Record::FloatHistograms(h)
            if !matches!(h.numbering, Numbering::Base { .. }) =>
        {
            return None;
        }
        Record::Histograms(histograms) => return Some(encoded_whole::<Integer>(histograms)),
        Record::FloatHistograms(histograms) => return Some(encoded_whole::<Float>(histograms)),
        _ => return None,
    }
    Some(out)
}

type Sample<N> = (HeadSeriesRef, Timestamp, Histogram<N>);

fn in_model<N: Logged>(histograms: HistogramsIter<'_>) -> Vec<Sample<N>> {
    let read = |sample: HistogramSample<'_>| {
        let mut histogram = Histogram::default();
        sample.histogram.read_into(&mut histogram);
        (sample.series_ref, sample.t, histogram)
    };
    histograms.map(read).collect()
}

/// Records of exponential and of custom buckets.
fn encoded<N: Logged>(samples: &[Sample<N>]) -> (Vec<u8>, Vec<u8>) {
    let (mut exponential, mut custom) = (Vec::new(), Vec::new());
    let samples = samples.iter().map(|(series_ref, t, h)| (*series_ref, *t, h));
    encode_histograms(&mut exponential, &mut custom, samples);
    (exponential, custom)
}

fn encoded_whole<N: Logged>(histograms: HistogramsIter<'_>) -> Vec<u8> {
    let (exponential, custom) = encoded(&in_model::<N>(histograms));
    assert!(exponential.is_empty() != custom.is_empty(), "a record has histograms of one sort");
    [exponential, custom].concat()
}

/// The batch that two records were made of.
fn batch<N: Logged>(exponential: &[u8], custom: &[u8], order: &Value) -> Vec<Sample<N>> {
    let samples = |bytes: &[u8]| match Record::parse(bytes) {
        Ok(Record::Histograms(histograms) | Record::FloatHistograms(histograms)) => {
            in_model::<N>(histograms)
        }
        other => panic!("{other:?}"),
    };
    let (mut exponential, mut custom) =
        (samples(exponential).into_iter(), samples(custom).into_iter());
    let next = |sample: &Value| match sample[2]["schema"].as_i64() {
        Some(-53) => custom.next().unwrap(),
        _ => exponential.next().unwrap(),
    };
    order.as_array().unwrap().iter().map(next).collect()
}

#[test]
fn a_batch_of_both_sorts_of_histograms_makes_the_recorded_records() {
    fn is_as_recorded<N: Logged>(case: &Value, exponential: &str, custom: &str) {
        let recorded = (unhex(&case[exponential]), unhex(&case[custom]));
        let batch = batch::<N>(&recorded.0, &recorded.1, &case["in"]);
        assert_eq!(encoded(&batch), recorded);
    }
    for case in data("records.json")["mixed"].as_array().unwrap() {
        is_as_recorded::<Integer>(case, "histogram_record", "custom_record");
        is_as_recorded::<Float>(case, "float_record", "float_custom_record");
    }
}

#[test]
fn recorded_records_decode_and_encode_as_recorded() {
    let mut encoded = 0;
    for case in data("records.json")["cases"].as_array().unwrap() {
        let bytes = unhex(&case["bytes"]);
        let record = Record::parse(&bytes).unwrap_or_else(|err| panic!("{}: {err}", case["name"]));
        let (key, items) = record_json(&record);
        assert_eq!(items, case[key], "{}", case["name"]);
        if let Some(ours) = encode(record) {
            assert_eq!(ours, bytes, "{}", case["name"]);
            encoded += 1;
        }
    }
    assert!(encoded > 30);
}

#[test]
fn unusual_records_are_taken_and_refused_as_recorded() {
    for case in data("records.json")["unusual"].as_array().unwrap() {
        let bytes = unhex(&case["bytes"]);
        let parsed = Record::parse(&bytes);
        assert_eq!(parsed.is_err(), !case["error"].is_null(), "{}", case["name"]);
        let Ok(record) = parsed else { continue };
        // Schemas that Prometheus drops or reduces are given as they are.
        let (key, items) = record_json(&record);
        if !key.ends_with("histograms") && key != "unknown" && case["type"] != "unknown" {
            assert_eq!(items, case[key], "{}", case["name"]);
        }
    }
}

#[test]
fn records_with_start_times_decode_as_recorded() {
    for case in data("records_newer.json")["records"].as_array().unwrap() {
        let bytes = unhex(&case["bytes"]);
        let record = Record::parse(&bytes).unwrap_or_else(|err| panic!("{}: {err}", case["name"]));
        let start = |start: Option<Timestamp>| start.unwrap_or(0);
        let items: Value = match record {
            Record::Samples(samples) => samples
                .map(|s| json!([s.series_ref.0, start(s.start), s.t, bits_hex(s.value_bits)]))
                .collect(),
            Record::Histograms(histograms) => histograms
                .map(|h| {
                    let item = histogram_json(&h, false);
                    json!([item[0], start(h.start), item[1], item[2]])
                })
                .collect(),
            Record::FloatHistograms(histograms) => histograms
                .map(|h| {
                    let item = histogram_json(&h, true);
                    json!([item[0], start(h.start), item[1], item[2]])
                })
                .collect(),
            other => panic!("{}: {other:?}", case["name"]),
        };
        assert_eq!(items, case["in"], "{}", case["name"]);
    }
}

/// Compares the records of a directory's segments with the recorded ones.
fn assert_holds(dir: &std::path::Path, records: &Value) {
    use crate::disk::SystemDisk;
    use crate::tsdb::wal::reader::{Found, SegmentReader};
    use crate::tsdb::wal::repair::LogDir;
    use crate::tsdb::wal::segment_path;

    let mut recorded = records.as_array().unwrap().iter();
    for (segment, _) in LogDir::list(&SystemDisk, dir).unwrap().segments {
        let mut reader = SegmentReader::open(&SystemDisk, &segment_path(dir, segment)).unwrap();
        while let Some(found) = reader.read_next().unwrap() {
            let Found::Record(found) = found else { panic!("{}: {found:?}", dir.display()) };
            let recorded = recorded.next().unwrap();
            assert_eq!(found.bytes.len() as u64, recorded["len"]);
            let (key, items) = record_json(&found.record);
            assert_eq!(items, recorded[key], "{} in {}", recorded["type"], dir.display());
            if let Some(end) = recorded["end"].as_u64() {
                assert_eq!(found.end, end);
            }
        }
    }
    assert_eq!(recorded.next(), None, "{}", dir.display());
}

#[test]
fn real_logs_and_checkpoints_hold_the_recorded_records() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tsdb/wal");
    let types = data("wal/types.json");
    for dir in types["dirs"].as_object().unwrap().keys() {
        assert_holds(&root.join(dir).join("wal"), &types["records"]);
    }
    let checkpoint = &data("wal/checkpoint.json")["dirs"]["checkpoint-snappy"];
    let dir = root.join("checkpoint-snappy/after/wal/checkpoint.00000002");
    assert_holds(&dir, &checkpoint["records"]);
    let mut crafted = 0;
    for entry in std::fs::read_dir(root.join("crafted")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let case: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            assert_holds(&path.with_extension("").join("wal"), &case["records"]);
            crafted += 1;
        }
    }
    assert!(crafted > 5);
}

#[test]
fn a_cut_or_changed_record_never_panics() {
    for case in data("records.json")["cases"].as_array().unwrap() {
        let bytes = unhex(&case["bytes"]);
        for len in 0..bytes.len().min(300) {
            let _ = Record::parse(&bytes[..len]);
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[len] ^= 1 << bit;
                if let Ok(record) = Record::parse(&changed) {
                    // Walked to its end without looking at the texts, which may not be UTF-8 now.
                    match record {
                        Record::Series(series) => {
                            series.flat_map(|(_, labels)| labels).for_each(drop);
                        }
                        Record::Histograms(histograms) | Record::FloatHistograms(histograms) => {
                            let buckets = histograms.flat_map(|h| h.histogram.positive_buckets());
                            buckets.for_each(|bits| _ = bits);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

#[test]
fn counts_beyond_the_bytes_are_refused_before_anything_is_made_of_them() {
    // A series with 2^62 labels, and a histogram with as many spans.
    let mut series = vec![SERIES, 0, 0, 0, 0, 0, 0, 0, 1];
    push_varint(&mut series, 1 << 62);
    assert!(Record::parse(&series).is_err());
    let mut histogram = vec![HISTOGRAMS];
    histogram.extend_from_slice(&[0; 16 + 2 + 2 + 8 + 2 + 8]);
    push_varint(&mut histogram, 1 << 62);
    assert!(Record::parse(&histogram).is_err());
}

proptest::proptest! {
    #[test]
    fn samples_come_back_as_they_were(
        samples in proptest::collection::vec(proptest::prelude::any::<(u64, i64, u64)>(), 0..300),
    ) {
        let mut bytes = vec![7];
        encode_samples(&mut bytes, samples.iter().map(|&(r, t, v)| (HeadSeriesRef(r), t, v)));
        let Record::Samples(found) = Record::parse(&bytes[1..]).unwrap() else { panic!() };
        let found: Vec<_> = found.map(|s| (s.series_ref.0, s.t, s.value_bits)).collect();
        proptest::prop_assert_eq!(found, samples);
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        if let Ok(Record::Samples(samples)) = Record::parse(&bytes) {
            let count_max = samples.count_max();
            proptest::prop_assert!(samples.count() <= count_max);
        }
    }
}

/// Items as text, with start times.
fn items_of(bytes: &[u8]) -> Vec<String> {
    let text = |item: &dyn std::fmt::Debug| format!("{item:?}");
    match Record::parse(bytes).unwrap() {
        Record::Series(series) => {
            series.map(|(one, labels)| text(&(one, labels.collect::<Vec<_>>()))).collect()
        }
        Record::Samples(samples) => samples.map(|one| text(&one)).collect(),
        Record::Tombstones(tombstones) => tombstones.map(|one| text(&one)).collect(),
        Record::Exemplars(exemplars) => exemplars
            .map(|e| text(&(e.series_ref, e.t, e.value_bits, e.labels.collect::<Vec<_>>())))
            .collect(),
        Record::Metadata(metadata) => metadata.map(|one| text(&one)).collect(),
        Record::Histograms(histograms) | Record::FloatHistograms(histograms) => {
            histograms.map(|one| text(&one)).collect()
        }
        Record::MmapMarkers(_) | Record::Unknown(_) => vec![text(&bytes)],
    }
}

#[test]
fn a_filtered_record_has_the_items_that_stay() {
    let (records, newer) = (data("records.json"), data("records_newer.json"));
    let cases = records["cases"].as_array().unwrap().iter();
    let mut some_went = 0;
    for case in cases.chain(newer["records"].as_array().unwrap()) {
        let bytes = unhex(&case["bytes"]);
        let items = items_of(&bytes);
        // Each subset of the first five, twice; those behind in turn.
        for subset in 0..64u64 {
            let stays = |at: usize| match at {
                0..5 => subset >> at & 1 == 1,
                at => (at as u64).is_multiple_of(2 + subset / 32),
            };
            let (mut at, mut out) = (0, vec![7]);
            let filtered = filter::filter(
                &bytes,
                |_| {
                    at += 1;
                    stays(at - 1)
                },
                &mut out,
            );
            let name = format!("{}, {subset}", case["name"]);
            if matches!(Record::parse(&bytes), Ok(Record::MmapMarkers(_))) {
                assert_eq!((filtered.kept, filtered.dropped, &out[..]), (1, 0, &[7][..]), "{name}");
                continue;
            }
            let left: Vec<_> =
                (0..items.len()).filter(|at| stays(*at)).map(|at| items[at].clone()).collect();
            let count = left.len() as u64;
            assert_eq!((filtered.kept, filtered.dropped), (count, items.len() as u64 - count));
            if filtered.kept == 0 || filtered.dropped == 0 {
                assert_eq!(out, [7], "{name}");
                continue;
            }
            some_went += 1;
            assert_eq!((out[1], items_of(&out[1..])), (bytes[0], left), "{name}");
            // As whoever writes such a record would write it.
            let ours = encode(Record::parse(&out[1..]).unwrap());
            if let Some(ours) = ours.filter(|_| bytes[0] != SAMPLES_WITH_START) {
                assert_eq!(out[1..], ours, "{name}");
            }
        }
    }
    assert!(some_went > 1000, "{some_went}");
}

#[test]
fn a_series_may_have_more_labels_than_a_byte_counts() {
    for count in [0, 1, 127, 128, 129, 20_000] {
        let names: Vec<String> = (0..count).map(|i| format!("{i:05}")).collect();
        let labels = || names.iter().map(|name| (name.as_bytes(), &b"value"[..]));
        let mut record = Vec::new();
        begin_series(&mut record);
        push_series(&mut record, HeadSeriesRef(7), labels());
        push_series(&mut record, HeadSeriesRef(8), labels().take(1));
        let Ok(Record::Series(series)) = Record::parse(&record) else { panic!("{count} labels") };
        let read: Vec<_> = series.map(|(r, labels)| (r.0, labels.collect::<Vec<_>>())).collect();
        let first = labels().take(1).collect();
        assert_eq!(read, [(7, labels().collect::<Vec<_>>()), (8, first)], "{count} labels");
    }
}
