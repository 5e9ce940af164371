//! Remote read of raw samples, the same from a receiver and from a Prometheus.

use std::collections::BTreeMap;

use prost::Message;

use crate::http::{self, Request};

/// Time and bits of the value.
pub(crate) type Samples = Vec<(i64, u64)>;
/// Samples by label set.
pub(crate) type Content = BTreeMap<Vec<(String, String)>, Samples>;

/// The bits of Prometheus' staleness marker, a NaN.
pub(crate) const STALE: u64 = 0x7ff0_0000_0000_0002;

/// The last millisecond of the year 2200.
const END: i64 = 7_258_118_399_999;

#[derive(Clone, PartialEq, Message)]
struct ReadRequest {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<Query>,
}

#[derive(Clone, PartialEq, Message)]
struct Query {
    #[prost(int64, tag = "1")]
    mint: i64,
    #[prost(int64, tag = "2")]
    maxt: i64,
    #[prost(message, repeated, tag = "3")]
    matchers: Vec<Matcher>,
}

#[derive(Clone, PartialEq, Message)]
struct Matcher {
    /// 2 for a regular expression that must match.
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ReadResponse {
    #[prost(message, repeated, tag = "1")]
    results: Vec<QueryResult>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryResult {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    time: i64,
}

/// Everything that `address` has of a tenant, in metrics whose name matches `names`.
pub(crate) fn read(address: &str, tenant: Option<&str>, names: &str) -> Content {
    let name = Matcher { kind: 2, name: "__name__".into(), value: names.into() };
    let query = Query { mint: 0, maxt: END, matchers: vec![name] };
    let message = ReadRequest { queries: vec![query] }.encode_to_vec();
    let body = snap::raw::Encoder::new().compress_vec(&message).expect("snappy");
    let mut headers = vec![
        ("Content-Type".to_owned(), b"application/x-protobuf".to_vec()),
        ("Content-Encoding".to_owned(), b"snappy".to_vec()),
        ("X-Prometheus-Remote-Read-Version".to_owned(), b"0.1.0".to_vec()),
    ];
    if let Some(tenant) = tenant {
        headers.push(("THANOS-TENANT".to_owned(), tenant.as_bytes().to_vec()));
    }
    let request = Request { headers, body: Some(body), ..Request::new("POST", "/api/v1/read") };
    let answer = http::exchange(address, &request).expect("an answer to a remote read");
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status, 200, "remote read of {address}: {text}");
    let message = snap::raw::Decoder::new().decompress_vec(&answer.body).expect("snappy");
    let response = ReadResponse::decode(&message[..]).expect("a remote read response");
    let [result] = &response.results[..] else { panic!("one result for one query") };
    result.series.iter().map(of_series).collect()
}

/// Everything of the default tenant.
pub(crate) fn everything(address: &str) -> Content {
    read(address, None, ".+")
}

fn of_series(series: &Series) -> (Vec<(String, String)>, Samples) {
    let labels = series.labels.iter().map(|label| (label.name.clone(), label.value.clone()));
    let samples = series.samples.iter().map(|sample| (sample.time, sample.value.to_bits()));
    (labels.collect(), samples.collect())
}

pub(crate) fn sample_count(content: &Content) -> usize {
    content.values().map(Vec::len).sum()
}
