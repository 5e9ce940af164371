use proptest::prelude::*;

use super::*;
use crate::wire::otlp::json::{JsonError, to_protobuf};
use crate::wire::otlp::points::Buckets;
use crate::wire::remote_write_v1::{RequestField, RequestFields, SeriesField, SeriesFields};

const CAP: u64 = 1 << 20;

type Failed = Box<JsonError>;

fn protobuf(json: &str) -> Vec<u8> {
    let mut out = Vec::new();
    to_protobuf(json.as_bytes(), &mut out, CAP, |_| Ok::<_, Failed>(())).unwrap();
    out
}

fn translated(request: &[u8], settings: &Settings) -> Result<(Vec<u8>, Untranslated), OtlpError> {
    let mut out = Vec::new();
    let made = translate(request, settings, &mut out, CAP, |_| Ok::<_, OtlpError>(()))?;
    Ok((out[..made.len].to_vec(), made.untranslated))
}

/// The series of a request, each as text: labels, samples, histograms, exemplars.
fn shown(request: &[u8]) -> Vec<String> {
    let one = |field: Result<RequestField<'_>, DecodeError>| {
        let RequestField::TimeSeries(series) = field.unwrap() else { panic!("no metadata") };
        let (mut labels, mut rest) = (Vec::new(), String::new());
        let mut fields = SeriesFields::new(series);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        while let Some(field) = fields.next_field().unwrap() {
            match field {
                SeriesField::Label { name, value } => {
                    labels.push(format!("{}={}", text(name), text(value)));
                }
                SeriesField::Sample { v: STALE_NAN_BITS, t } => rest += &format!(" stale@{t}"),
                SeriesField::Sample { t, v } => rest += &format!(" {}@{t}", f64::from_bits(v)),
                SeriesField::Exemplar(message) => rest += &exemplar(message),
                SeriesField::Histogram(message) => {
                    let (t, histogram) = HistogramMessage::read(message).unwrap().into_model();
                    rest += &format!(" {histogram:?}@{t}");
                }
            }
        }
        assert!(labels.is_sorted(), "{labels:?}");
        format!("{{{}}}{rest}", labels.join(","))
    };
    RequestFields::new(request).map(one).collect()
}

fn exemplar(mut message: &[u8]) -> String {
    let (mut labels, mut value, mut time) = (String::new(), 0.0, 0);
    while !message.is_empty() {
        let (number, field, rest) = read_field(message, "test").unwrap();
        message = rest;
        match (number, field) {
            (1, Value::Bytes(label)) => {
                let series = [&[0x0a, label.len() as u8][..], label].concat();
                let mut fields = SeriesFields::new(&series);
                let Ok(Some(SeriesField::Label { name, value })) = fields.next_field() else {
                    panic!("a label")
                };
                let text = [name, b"=", value, b";"].concat();
                labels += &String::from_utf8(text).unwrap();
            }
            (2, Value::Fixed64(bits)) => value = f64::from_bits(bits),
            (3, Value::Varint(t)) => time = t,
            other => panic!("{other:?}"),
        }
    }
    format!(" #{labels}{value}@{time}")
}

fn settings() -> Settings {
    Settings::new(true, [])
}

/// A request of one metric, of a resource with a name and an attribute.
fn of_metric(metric: &str) -> String {
    let attribute = |key: &str, value: &str| {
        format!("{{\"key\": {key:?}, \"value\": {{\"stringValue\": {value:?}}}}}")
    };
    let attributes = [attribute("service.name", "shop"), attribute("host.name", "h")].join(",");
    format!(
        "{{\"resourceMetrics\": [{{\"resource\": {{\"attributes\": [{attributes}]}}, \
         \"scopeMetrics\": [{{\"metrics\": [{metric}]}}]}}]}}"
    )
}

fn series_of(metric: &str) -> Vec<String> {
    let (request, untranslated) = translated(&protobuf(&of_metric(metric)), &settings()).unwrap();
    assert_eq!(untranslated.count, 0, "{untranslated:?}");
    shown(&request)
}

const TARGET: &str = "{__name__=target_info,host_name=h,job=shop} 1@1700000000000";
const T: &str = "\"timeUnixNano\": \"1700000000000000000\"";

#[test]
fn numbers_are_series_with_one_sample() {
    let gauge = format!(
        "{{\"name\": \"queue.length\", \"unit\": \"1\", \"gauge\": {{\"dataPoints\": [\
         {{{T}, \"asInt\": \"7\", \"attributes\": [{{\"key\": \"q\", \"value\": {{\"intValue\": 3}}}}]}}, \
         {{{T}, \"asDouble\": 0.5, \"flags\": 1, \"exemplars\": [{{\"asInt\": 1}}]}}]}}}}"
    );
    assert_eq!(
        series_of(&gauge),
        [
            "{__name__=queue_length_ratio,job=shop,q=3} 7@1700000000000",
            "{__name__=queue_length_ratio,job=shop} stale@1700000000000",
            TARGET,
        ]
    );
    let sum = format!(
        "{{\"name\": \"reqs\", \"sum\": {{\"aggregationTemporality\": 2, \"isMonotonic\": true, \
         \"dataPoints\": [{{{T}, \"asInt\": 5, \"exemplars\": [{{{T}, \"asDouble\": 0.5, \
         \"traceId\": \"000102030405060708090a0b0c0d0e0f\", \"spanId\": \"0000000000000000\", \
         \"filteredAttributes\": [{{\"key\": \"k.x\", \"value\": {{\"boolValue\": true}}}}]}}]}}]}}}}"
    );
    assert_eq!(
        series_of(&sum),
        [
            "{__name__=reqs_total,job=shop} 5@1700000000000 \
             #trace_id=000102030405060708090a0b0c0d0e0f;k.x=true;0.5@1700000000000",
            TARGET,
        ]
    );
}

#[test]
fn histograms_are_series_of_sum_count_and_buckets() {
    let histogram = format!(
        "{{\"name\": \"lat\", \"unit\": \"s\", \"histogram\": {{\"aggregationTemporality\": \
         \"AGGREGATION_TEMPORALITY_CUMULATIVE\", \"dataPoints\": [{{{T}, \"count\": 6, \"sum\": 12.5, \
         \"bucketCounts\": [1, 2, 3, 0], \"explicitBounds\": [0.1, 1, 10], \"exemplars\": [\
         {{\"asDouble\": 20}}, {{\"asDouble\": 1}}, {{\"asInt\": 0}}]}}]}}}}"
    );
    assert_eq!(
        series_of(&histogram),
        [
            "{__name__=lat_seconds_sum,job=shop} 12.5@1700000000000",
            "{__name__=lat_seconds_count,job=shop} 6@1700000000000",
            "{__name__=lat_seconds_bucket,job=shop,le=0.1} 1@1700000000000 #0@0",
            "{__name__=lat_seconds_bucket,job=shop,le=1} 3@1700000000000 #1@0",
            "{__name__=lat_seconds_bucket,job=shop,le=10} 6@1700000000000",
            "{__name__=lat_seconds_bucket,job=shop,le=+Inf} 6@1700000000000 #20@0",
            TARGET,
        ]
    );
}

#[test]
fn summaries_are_series_of_sum_count_and_quantiles() {
    let summary = format!(
        "{{\"name\": \"rpc\", \"summary\": {{\"dataPoints\": [{{{T}, \"count\": 10, \"sum\": 55.5, \
         \"quantileValues\": [{{\"quantile\": 0.5, \"value\": 4}}, {{\"quantile\": 1, \"value\": 11}}]}}]}}}}"
    );
    assert_eq!(
        series_of(&summary),
        [
            "{__name__=rpc_sum,job=shop} 55.5@1700000000000",
            "{__name__=rpc_count,job=shop} 10@1700000000000",
            "{__name__=rpc,job=shop,quantile=0.5} 4@1700000000000",
            "{__name__=rpc,job=shop,quantile=1} 11@1700000000000",
            TARGET,
        ]
    );
}

/// Spans and counts of dense buckets.
fn spans(offset: i32, counts: &[u64], down: i32) -> (Vec<(i32, u32)>, Vec<i64>) {
    let made = to_spans(&Buckets { offset, counts: counts.to_vec() }, down);
    let mut count = 0;
    let counts = made.deltas.iter().map(|delta| {
        count += delta;
        count
    });
    let counts = counts.collect();
    (made.spans.iter().map(|span| (span.offset, span.length)).collect(), counts)
}

#[test]
fn dense_buckets_become_spans() {
    assert_eq!(spans(0, &[], 0), (vec![], vec![]));
    assert_eq!(spans(0, &[1, 2], 0), (vec![(1, 2)], vec![1, 2]));
    assert_eq!(spans(1, &[1, 0, 2], 0), (vec![(2, 3)], vec![1, 0, 2]));
    assert_eq!(spans(-3, &[1, 0, 0, 0, 0, 4], 0), (vec![(-2, 1), (4, 1)], vec![1, 4]));
    assert_eq!(spans(0, &[1, 0, 0], 0), (vec![(1, 3)], vec![1, 0, 0]));
    // Several become one.
    assert_eq!(spans(100, &[1; 40], 12), (vec![(1, 1)], vec![40]));
    assert_eq!(spans(0, &[0, 0, 1, 1], 1), (vec![(1, 2)], vec![0, 2]));
    assert_eq!(spans(-1, &[1, 2, 4], 1), (vec![(0, 2)], vec![1, 6]));
    assert_eq!(spans(i32::MAX, &[1, 1], i32::MAX).1, [1, 1]);
}

proptest! {
    #[test]
    fn spans_hold_what_the_dense_buckets_did(
        offset in -50i32..50,
        counts in proptest::collection::vec(prop_oneof![Just(0u64), 1u64..9], 1..40),
        down in 0i32..4,
    ) {
        let mut expected = std::collections::BTreeMap::new();
        for (i, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            *expected.entry(((offset + i as i32) >> down) + 1).or_insert(0) += *count as i64;
        }
        let (spans, made) = spans(offset, &counts, down);
        let mut made = made.into_iter();
        let (mut at, mut found) = (0, std::collections::BTreeMap::new());
        for (offset, length) in spans {
            at += offset;
            for _ in 0..length {
                let count = made.next().unwrap();
                if count > 0 {
                    found.insert(at, count);
                }
                at += 1;
            }
        }
        prop_assert_eq!(made.next(), None);
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn any_bytes_are_translated_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = translated(&bytes, &settings());
        let _ = to_protobuf(&bytes, &mut Vec::new(), CAP, |_| Ok::<_, Failed>(()));
    }
}

#[test]
fn exponential_histograms_are_native() {
    let exponential = |more: &str| {
        format!(
            "{{\"name\": \"sizes\", \"exponentialHistogram\": {{\"aggregationTemporality\": 2, \
             \"dataPoints\": [{{{T}, \"count\": 4, \"sum\": 5, \"zeroCount\": 1, \
             \"positive\": {{\"offset\": 0, \"bucketCounts\": [\"1\", 2]}}, {more}}}]}}}}"
        )
    };
    let series = series_of(&exponential("\"scale\": 1"));
    assert!(series[0].starts_with("{__name__=sizes,job=shop} Integer("), "{series:?}");
    for part in ["schema: 1,", "zero_threshold: 1e-128", "count: 4,", "positive: [1, 1]"] {
        assert!(series[0].contains(part), "{part}: {series:?}");
    }
    let series = series_of(&exponential("\"scale\": 9, \"zeroThreshold\": 0.25"));
    for part in ["schema: 8,", "zero_threshold: 0.25", "positive: [3]"] {
        assert!(series[0].contains(part), "{part}: {series:?}");
    }
    let request = protobuf(&of_metric(&exponential("\"scale\": -5")));
    let (_, untranslated) = translated(&request, &settings()).unwrap();
    assert_eq!((untranslated.points, untranslated.count), (1, 1));
    assert!(untranslated.reasons[0].to_string().contains("a scale of -5"), "{untranslated:?}");
}

#[test]
fn what_cannot_be_a_series_is_left_out_and_told() {
    let metrics = format!(
        "{{\"name\": \"ok\", \"gauge\": {{\"dataPoints\": [{{{T}, \"asInt\": 1}}, \
         {{{T}, \"asInt\": 1, \"attributes\": [{{\"key\": \"$\"}}]}}]}}}}, \
         {{\"name\": \"delta\", \"sum\": {{\"aggregationTemporality\": 1, \"dataPoints\": [{{}}, {{}}]}}}}, \
         {{\"name\": \"empty\", \"gauge\": {{}}}}, {{\"name\": \"nothing\"}}"
    );
    let (request, untranslated) = translated(&protobuf(&of_metric(&metrics)), &settings()).unwrap();
    assert_eq!(shown(&request), ["{__name__=ok,job=shop} 1@1700000000000", TARGET]);
    assert_eq!((untranslated.points, untranslated.count), (3, 4));
    let reasons: Vec<_> = untranslated.reasons.iter().map(ToString::to_string).collect();
    assert_eq!(
        reasons,
        [
            "invalid label name: \"$\"",
            "invalid temporality for metric \"delta\": only cumulative ones can be stored",
            "empty data points: \"empty\" is dropped",
            "empty data points: \"nothing\" is dropped",
        ]
    );
}

#[test]
fn a_resource_tells_of_itself_once_for_each_newer_time() {
    let at = |second: u64| {
        let gauge = format!(
            "{{\"name\": \"g\", \"gauge\": {{\"dataPoints\": [{{\"timeUnixNano\": {second}000000000, \
             \"asInt\": 1}}]}}}}"
        );
        protobuf(&of_metric(&gauge))
    };
    // Requests in a row are one.
    let request = [at(2), at(1), at(2), at(3)].concat();
    let (made, _) = translated(&request, &settings()).unwrap();
    let targets: Vec<_> =
        shown(&made).into_iter().filter(|series| series.contains("target_info")).collect();
    assert_eq!(targets.len(), 2, "{targets:?}");
    assert!(targets[0].ends_with("@2000") && targets[1].ends_with("@3000"), "{targets:?}");
    let (made, _) = translated(&request, &Settings::new(false, [])).unwrap();
    assert!(shown(&made).iter().all(|series| !series.contains("target_info")));
}

#[test]
fn what_a_point_may_hold_is_bounded() {
    let refused = |point: &str| {
        let metric = format!("{{\"name\": \"g\", \"gauge\": {{\"dataPoints\": [{point}]}}}}");
        let request = {
            let mut out = Vec::new();
            let json = of_metric(&metric);
            let all = |_| Ok::<_, Failed>(());
            to_protobuf(json.as_bytes(), &mut out, u64::MAX, all).unwrap();
            out
        };
        let (_, untranslated) = translated(&request, &settings()).unwrap();
        untranslated.reasons.first().map(ToString::to_string).unwrap_or_default()
    };
    let attributes = vec!["{}"; 10_001].join(",");
    let reason = refused(&format!("{{\"attributes\": [{attributes}]}}"));
    assert_eq!(reason, "metric \"g\": more than 10000 attributes in a point");
    let exemplars = vec!["{}"; 1_001].join(",");
    let reason = refused(&format!("{{\"exemplars\": [{exemplars}]}}"));
    assert_eq!(reason, "metric \"g\": more than 1000 exemplars in a point");
    let text = "x".repeat(1 << 20);
    let reason = refused(&format!(
        "{{\"attributes\": [{{\"key\": \"k\", \"value\": {{\"stringValue\": \"{text}\"}}}}]}}"
    ));
    assert_eq!(reason, "metric \"g\": more than 1048576 bytes of attributes in a point");
}

#[test]
fn a_resource_that_goes_to_many_points_is_refused_by_its_length() {
    let points = vec![format!("{{{T}, \"asInt\": 1}}"); 2000].join(",");
    let metric = format!("{{\"name\": \"g\", \"gauge\": {{\"dataPoints\": [{points}]}}}}");
    let json = of_metric(&metric).replace("\"shop\"", &format!("{:?}", "s".repeat(10_000)));
    let refused = translated(&protobuf(&json), &settings());
    assert_eq!(
        refused.err(),
        Some(OtlpError::TooLong(crate::wire::request_builder::TooLong { max: CAP }))
    );
}

#[test]
fn json_is_read_as_it_may_be_written() {
    let metric = |point: &str| {
        of_metric(&format!("{{\"name\": \"g\", \"gauge\": {{\"dataPoints\": [{point}]}}}}"))
    };
    let same = protobuf(&metric("{\"timeUnixNano\": \"5000000\", \"asInt\": \"7\"}"));
    for point in [
        "{\"time_unix_nano\": 5000000, \"as_int\": 7}",
        "{\"timeUnixNano\": 5000000, \"asInt\": 7, \"unknown\": {\"a\": [1, {\"b\": null}]}}",
        "{\"timeUnixNano\": 5000000, \"asDouble\": null, \"asInt\": 7, \"attributes\": null}",
    ] {
        assert_eq!(protobuf(&metric(point)), same, "{point}");
    }
    for (value, expected) in [("\"NaN\"", "NaN"), ("\"-Infinity\"", "-inf"), ("2", "2")] {
        let request = protobuf(&metric(&format!("{{\"asDouble\": {value}}}")));
        let (made, _) = translated(&request, &settings()).unwrap();
        assert!(shown(&made)[0].ends_with(&format!(" {expected}@0")), "{:?}", shown(&made));
    }
    for empty in ["null", "{}", "{\"resourceMetrics\": null}", "{\"resourceMetrics\": [{}]}"] {
        let (made, untranslated) = translated(&protobuf(empty), &settings()).unwrap();
        assert!(made.is_empty() && untranslated.count == 0, "{empty}");
    }
    for broken in [
        "",
        "{",
        "[]",
        "{} {}",
        "{\"resourceMetrics\": {}}x",
        "{\"resourceMetrics\": [7]}",
        &metric("{\"asInt\": \"seven\"}"),
        &metric("{\"asInt\": 1.5}"),
        &metric("{\"timeUnixNano\": -1}"),
        &metric("{\"exemplars\": [{\"traceId\": \"zz\"}]}"),
        &metric("{\"exemplars\": [{\"traceId\": \"00\"}]}"),
        &"[".repeat(10_000),
    ] {
        let read = to_protobuf(broken.as_bytes(), &mut Vec::new(), CAP, |_| Ok::<_, Failed>(()));
        assert!(read.is_err(), "{broken}");
    }
}
