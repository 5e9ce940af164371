//! What the JSON files say about directories.

use ringest::model::histogram::{AnyHistogram, Histogram, Layout, Numbers, ResetHint, Span};
use serde_json::Value;

use crate::database::{Labels, Stored, data_dir};
use crate::histograms::digest;

pub(crate) fn load(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data_dir().join(path)).unwrap()).unwrap()
}

/// The recorded samples that are not older than `mint`.
pub(crate) fn stored(series: &Value, mint: i64) -> Stored {
    let mut all = Stored::new();
    for series in series.as_array().unwrap() {
        let samples = series["samples"].as_array().unwrap().iter().map(sample);
        let samples = samples.filter(|(t, _)| *t >= mint);
        all.entry(labels(&series["labels"])).or_default().extend(samples);
    }
    all.retain(|_, samples| !samples.is_empty());
    all
}

/// Sorted and without empty values: what the labels mean, however they were written.
pub(crate) fn labels(pairs: &Value) -> Labels {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = pairs.as_array().unwrap().iter().map(|pair| (text(&pair[0]), text(&pair[1])));
    let mut labels: Labels = pairs.filter(|(_, value)| !value.is_empty()).collect();
    labels.sort_by(|a, b| a.0.cmp(&b.0));
    labels
}

/// Time and bits, or the [digest] of a histogram. Samples with start times have one more column in
/// front.
pub(crate) fn sample(sample: &Value) -> (i64, u64) {
    let columns = sample.as_array().unwrap();
    let kind = columns.iter().position(|column| column.is_string()).unwrap();
    let t = columns[kind - 1].as_i64().unwrap();
    let value = match columns[kind].as_str().unwrap() {
        "h" => {
            let count = |value: &Value| value.as_u64().unwrap();
            let bucket = |value: &Value| value.as_i64().unwrap();
            digest(&AnyHistogram::Integer(histogram(&columns[kind + 1], count, bucket)))
        }
        "fh" => digest(&AnyHistogram::Float(histogram(&columns[kind + 1], bits, bits))),
        text => u64::from_str_radix(text, 16).unwrap(),
    };
    (t, value)
}

fn bits(value: &Value) -> f64 {
    f64::from_bits(u64::from_str_radix(value.as_str().unwrap(), 16).unwrap())
}

fn histogram<N: Numbers>(
    fields: &Value,
    count: impl Fn(&Value) -> N::Count,
    bucket: impl Fn(&Value) -> N::Bucket,
) -> Histogram<N> {
    fn list<T>(value: &Value, item: impl Fn(&Value) -> T) -> Vec<T> {
        value.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(item).collect()
    }
    let span = |span: &Value| Span {
        offset: span[0].as_i64().unwrap() as i32,
        length: span[1].as_u64().unwrap() as u32,
    };
    Histogram {
        reset_hint: ResetHint::Unknown,
        layout: Layout {
            schema: fields["schema"].as_i64().unwrap() as i32,
            zero_threshold: bits(&fields["zt"]),
            positive_spans: list(&fields["ps"], span),
            negative_spans: list(&fields["ns"], span),
            custom_bounds: list(&fields["cv"], bits),
        },
        count: count(&fields["count"]),
        zero_count: count(&fields["zc"]),
        sum: bits(&fields["sum"]),
        positive: list(&fields["pb"], &bucket),
        negative: list(&fields["nb"], &bucket),
    }
}
