//! OTLP metrics from outside: no bytes panic, no more memory is taken than was admitted, and what comes
//! out is a request of remote write 1.0 whatever was in the buffer. JSON means what its protobuf means.
//!
//! Input: one byte for the form (protobuf, JSON), then the inflated body.

use ringest::wire::otlp::json::{JsonError, to_protobuf};
use ringest::wire::otlp::{OtlpError, Settings, translate};
use ringest::wire::remote_write_v1::{RequestField, RequestFields, SeriesFields};

const MAX: u64 = 1 << 20;

fn translated(request: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let settings = Settings::new(true, ["host.name".to_owned()]);
    let mut admitted = 0;
    let before = out.len();
    let made = translate::<OtlpError>(request, &settings, out, MAX, |bytes| {
        admitted = bytes;
        Ok(())
    });
    assert!(out.len() as u64 <= admitted.max(before as u64));
    Some(made.ok()?.len)
}

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let Some((form, body)) = input.split_first() else { return };
    let mut protobuf = Vec::new();
    let request = match form & 1 {
        0 => body,
        _ => {
            let mut admitted = 0;
            let read = to_protobuf::<JsonError>(body, &mut protobuf, MAX, |bytes| {
                admitted = bytes;
                Ok(())
            });
            assert!(protobuf.len() as u64 <= admitted);
            let Ok(len) = read else { return };
            &protobuf[..len]
        }
    };
    let mut out = Vec::new();
    let Some(len) = translated(request, &mut out) else { return };
    let mut used = vec![0xee; 100_000];
    assert_eq!(translated(request, &mut used), Some(len), "whatever was in the buffer");
    assert_eq!(out[..len], used[..len]);
    for field in RequestFields::new(&out[..len]) {
        let Ok(RequestField::TimeSeries(series)) = field else { panic!("{field:?}") };
        let mut fields = SeriesFields::new(series);
        while fields.next_field().expect("a series of 1.0").is_some() {}
    }
}

/// Inputs to begin with: every kind of metric in JSON, and what that is in protobuf.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let attributes = r#""attributes": [
        {"key": "a.b", "value": {"stringValue": "x"}}, {"key": "a_b", "value": {"intValue": "2"}},
        {"key": "l", "value": {"arrayValue": {"values": [{"doubleValue": 1.5}, {"boolValue": true}]}}},
        {"key": "m", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"bytesValue": "AP8="}}]}}}]"#;
    let exemplars = r#""exemplars": [{"timeUnixNano": "7", "asDouble": 0.5,
        "traceId": "000102030405060708090a0b0c0d0e0f", "filteredAttributes": [{"key": "k"}]}]"#;
    let metrics = [
        format!(r#""gauge": {{"dataPoints": [{{"timeUnixNano": "5000000", "asInt": "1", {attributes}}}]}}"#),
        format!(
            r#""sum": {{"aggregationTemporality": 2, "isMonotonic": true,
            "dataPoints": [{{"asDouble": "NaN", "flags": 1, {exemplars}}}]}}"#
        ),
        format!(
            r#""histogram": {{"aggregationTemporality": "AGGREGATION_TEMPORALITY_CUMULATIVE",
            "dataPoints": [{{"count": 3, "sum": 1, "bucketCounts": [1, "2"], "explicitBounds": [0.5],
            {exemplars}}}]}}"#
        ),
        r#""exponentialHistogram": {"aggregationTemporality": 2, "dataPoints": [{"scale": 9, "count": 3,
            "zeroCount": 1, "positive": {"offset": -3, "bucketCounts": [1, 0, 0, 0, 0, 1]}}]}"#
            .to_owned(),
        r#""summary": {"dataPoints": [{"quantileValues": [{"quantile": 0.5, "value": 2}]}]}"#.to_owned(),
        r#""sum": {"aggregationTemporality": 1, "dataPoints": [{}]}"#.to_owned(),
    ];
    let resource = r#"{"attributes": [{"key": "service.name", "value": {"stringValue": "s"}},
        {"key": "host.name", "value": {"stringValue": "h"}}]}"#;
    let mut seeds = Vec::new();
    for metric in metrics {
        let json = format!(
            r#"{{"resourceMetrics": [{{"resource": {resource},
            "scopeMetrics": [{{"metrics": [{{"name": "m.n", "unit": "By/s", {metric}}}]}}]}}]}}"#
        );
        let mut protobuf = Vec::new();
        let made = to_protobuf::<JsonError>(json.as_bytes(), &mut protobuf, MAX, |_| Ok(()));
        made.expect("JSON of a request");
        seeds.push([&[0][..], &protobuf].concat());
        seeds.push([&[1][..], json.as_bytes()].concat());
    }
    seeds
}
