//! Remote read of raw samples, the same from a receiver and from a Prometheus.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use prost::Message;
use ringest::tsdb::chunkenc::samples::{SampleIterator, Value};
use ringest::wire::histogram::HistogramMessage;

use crate::support::histograms::digest;
use crate::support::http::{self, Answer, Request};
use crate::support::messages::compressed;

/// Time and bits of the value, or the [digest] of a histogram.
pub(crate) type Samples = Vec<(i64, u64)>;
/// Samples by label set.
pub(crate) type Content = BTreeMap<Vec<(String, String)>, Samples>;
/// The bits of values by time, by series, named as in `{a="1",b="2"}`.
pub(crate) type Stored = BTreeMap<String, BTreeMap<i64, u64>>;

/// The bits of Prometheus' staleness marker, a NaN.
pub(crate) const STALE: u64 = 0x7ff0_0000_0000_0002;

/// The last millisecond of the year 2200.
const END: i64 = 7_258_118_399_999;

#[derive(Clone, PartialEq, Message)]
struct ReadRequest {
    #[prost(message, repeated, tag = "1")]
    queries: Vec<Query>,
    /// 1 for chunks that are streamed.
    #[prost(int32, repeated, tag = "2")]
    accepted: Vec<i32>,
}

/// A message of a streamed answer.
#[derive(Clone, PartialEq, Message)]
struct ChunkedReadResponse {
    #[prost(message, repeated, tag = "1")]
    series: Vec<ChunkedSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct ChunkedSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    chunks: Vec<Chunk>,
}

#[derive(Clone, PartialEq, Message)]
struct Chunk {
    #[prost(int32, tag = "3")]
    encoding: i32,
    #[prost(bytes = "vec", tag = "4")]
    data: Vec<u8>,
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
    #[prost(bytes = "vec", repeated, tag = "4")]
    histograms: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    time: i64,
}

/// Asks for everything between two times in metrics whose name matches `names`.
pub(crate) fn request(tenant: Option<&str>, names: &str, times: RangeInclusive<i64>) -> Request {
    request_of(tenant, names, times, Vec::new())
}

fn request_of(
    tenant: Option<&str>,
    names: &str,
    times: RangeInclusive<i64>,
    accepted: Vec<i32>,
) -> Request {
    let name = Matcher { kind: 2, name: "__name__".into(), value: names.into() };
    let query = Query { mint: *times.start(), maxt: *times.end(), matchers: vec![name] };
    let message = ReadRequest { queries: vec![query], accepted }.encode_to_vec();
    let request = Request::new("POST", "/api/v1/read")
        .header("Content-Type", "application/x-protobuf")
        .header("Content-Encoding", "snappy")
        .header("X-Prometheus-Remote-Read-Version", "0.1.0")
        .body(compressed(&message));
    match tenant {
        Some(tenant) => request.header("THANOS-TENANT", tenant),
        None => request,
    }
}

/// What such an answer holds.
pub(crate) fn content(answer: &Answer) -> Content {
    let message = snap::raw::Decoder::new().decompress_vec(&answer.body).expect("snappy");
    let response = ReadResponse::decode(&message[..]).expect("a remote read response");
    let [result] = &response.results[..] else { panic!("one result for one query") };
    let mut content = Content::new();
    for series in &result.series {
        let labels = series.labels.iter().map(|label| (text(&label.name), text(&label.value)));
        let samples = series.samples.iter().map(|sample| (sample.time, sample.value.to_bits()));
        let histograms = series.histograms.iter().map(|message| {
            let message = HistogramMessage::read(message).expect("a histogram");
            let (t, histogram) = message.into_model();
            (t, digest(&histogram))
        });
        let mut samples: Samples = samples.chain(histograms).collect();
        samples.sort_unstable();
        assert!(content.insert(labels.collect(), samples).is_none(), "each series once");
    }
    content
}

/// The same by names of series.
pub(crate) fn by_name(content: Content) -> Stored {
    let named = |(labels, samples): (Vec<_>, Samples)| {
        let by_time: BTreeMap<i64, u64> = samples.iter().copied().collect();
        assert_eq!(by_time.len(), samples.len(), "a sample for each time");
        (name_of(labels.into_iter()), by_time)
    };
    content.into_iter().map(named).collect()
}

/// Bytes that are no text are told apart.
fn text(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// `{a="1",b="2"}`
pub(crate) fn name_of(labels: impl Iterator<Item = (String, String)>) -> String {
    let pairs: Vec<String> = labels.map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{{{}}}", pairs.join(","))
}

/// Everything that `address` has of a tenant, in metrics whose name matches `names`.
pub(crate) fn read(address: &str, tenant: Option<&str>, names: &str) -> Content {
    let answer = http::ask(address, &request(tenant, names, 0..=END));
    assert_eq!(answer.status, 200, "remote read of {address}: {}", answer.text());
    content(&answer)
}

/// The same of the default tenant, by chunks that are streamed.
pub(crate) fn read_chunks(address: &str, names: &str) -> Content {
    let answer = http::ask(address, &request_of(None, names, 0..=END, vec![1]));
    assert_eq!(answer.status, 200, "remote read of {address}: {}", answer.text());
    let mut content = Content::new();
    let mut rest = &answer.body[..];
    while !rest.is_empty() {
        // A length, and a checksum of four bytes.
        let len = prost::decode_length_delimiter(&mut rest).expect("a length");
        let (message, behind) = rest[4..].split_at(len);
        rest = behind;
        let message = ChunkedReadResponse::decode(message).expect("a message of the answer");
        for series in message.series {
            let labels = series.labels.iter().map(|label| (text(&label.name), text(&label.value)));
            let samples = content.entry(labels.collect()).or_default();
            for chunk in &series.chunks {
                let encoding = u8::try_from(chunk.encoding).expect("an encoding");
                for sample in SampleIterator::new(encoding, &chunk.data) {
                    let (t, value) = sample.expect("a sample");
                    let number = match value {
                        Value::Float(bits) => bits,
                        Value::Histogram(histogram) => digest(&histogram),
                    };
                    samples.push((t, number));
                }
            }
        }
    }
    content
}

/// Everything of the default tenant.
pub(crate) fn everything(address: &str) -> Content {
    read(address, None, ".+")
}

pub(crate) fn sample_count(content: &Content) -> usize {
    content.values().map(Samples::len).sum()
}
