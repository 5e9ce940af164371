//! Histograms as recorded files have them, and what one tells as a number.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use crate::model::STALE_NAN_BITS;

use super::{AnyHistogram, Histogram, Layout, Numbers, ResetHint, Span, observed};

/// The histogram of a sample `[time, kind, fields]`; `None` of a float.
pub(crate) fn histogram(sample: &Value) -> Option<AnyHistogram> {
    let fields = &sample[2];
    match sample[1].as_str().unwrap() {
        "h" => {
            let count = |value: &Value| value.as_u64().unwrap();
            let bucket = |value: &Value| value.as_i64().unwrap();
            Some(AnyHistogram::Integer(of_fields(fields, count, bucket)))
        }
        "fh" => Some(AnyHistogram::Float(of_fields(fields, float, float))),
        _ => None,
    }
}

fn float(value: &Value) -> f64 {
    f64::from_bits(u64::from_str_radix(value.as_str().unwrap(), 16).unwrap())
}

fn of_fields<N: Numbers>(
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
        reset_hint: match fields["hint"].as_u64() {
            Some(1) => ResetHint::Reset,
            Some(2) => ResetHint::NotReset,
            Some(3) => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        },
        layout: Layout {
            schema: fields["schema"].as_i64().unwrap() as i32,
            zero_threshold: float(&fields["zt"]),
            positive_spans: list(&fields["ps"], span),
            negative_spans: list(&fields["ns"], span),
            custom_bounds: list(&fields["cv"], float),
        },
        count: count(&fields["count"]),
        zero_count: count(&fields["zc"]),
        sum: float(&fields["sum"]),
        positive: list(&fields["pb"], &bucket),
        negative: list(&fields["nb"], &bucket),
    }
}

/// A number of what a histogram tells, whatever empty buckets it names. That of a staleness marker is
/// that of floats: a Prometheus that starts again may have made it one.
pub(crate) fn digest(histogram: &AnyHistogram) -> u64 {
    fn told<N: Numbers>(histogram: &Histogram<N>) -> String {
        let Histogram { layout, count, zero_count, sum, positive, negative, .. } = histogram;
        let Layout { schema, zero_threshold, custom_bounds, .. } = layout;
        let positive: Vec<_> = observed::<N>(&layout.positive_spans, positive).collect();
        let negative: Vec<_> = observed::<N>(&layout.negative_spans, negative).collect();
        let sum = sum.to_bits();
        format!(
            "{schema} {zero_threshold:?} {custom_bounds:?} {count:?} {zero_count:?} {sum:x} \
             {positive:?} {negative:?}"
        )
    }
    let text = match histogram {
        _ if histogram.is_stale() => return STALE_NAN_BITS,
        AnyHistogram::Integer(histogram) => format!("h {}", told(histogram)),
        AnyHistogram::Float(histogram) => format!("fh {}", told(histogram)),
    };
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
