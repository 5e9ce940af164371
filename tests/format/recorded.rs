//! What the JSON files say about directories.

use serde_json::Value;

use crate::database::{Floats, Labels, data_dir};

pub(crate) fn load(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data_dir().join(path)).unwrap()).unwrap()
}

/// The recorded float samples that are not older than `mint`.
pub(crate) fn floats(series: &Value, mint: i64) -> Floats {
    let mut all = Floats::new();
    for series in series.as_array().unwrap() {
        let samples = series["samples"].as_array().unwrap().iter().filter_map(float);
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

/// `None` for a histogram. Samples with start times have one more column in front.
pub(crate) fn float(sample: &Value) -> Option<(i64, u64)> {
    let columns = sample.as_array().unwrap();
    let kind = columns.iter().position(|column| column.is_string()).unwrap();
    let bits = columns[kind].as_str().unwrap();
    if bits == "h" || bits == "fh" {
        return None;
    }
    Some((columns[kind - 1].as_i64().unwrap(), u64::from_str_radix(bits, 16).unwrap()))
}
