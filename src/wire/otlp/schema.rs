//! The messages of OTLP metrics as JSON names them: fields that are not here are skipped, as those
//! of scopes are, of which nothing is kept.

/// A message.
#[derive(Debug)]
pub(super) struct Message(pub(super) &'static [Field]);

#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    /// In lower camel case.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) is_repeated: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Text,
    /// Bytes in Base64.
    Bytes,
    /// So many bytes, or none, in hexadecimal digits.
    Id(usize),
    Bool,
    /// `int64` and `uint64`, `uint32`, as varints.
    Int,
    Uint,
    /// `sint32`
    Zigzag,
    /// `sfixed64` and `fixed64`
    FixedInt,
    FixedUint,
    Double,
    Temporality,
    Message(&'static Message),
}

pub(super) const TEMPORALITIES: [(&str, u64); 3] = [
    ("AGGREGATION_TEMPORALITY_UNSPECIFIED", 0),
    ("AGGREGATION_TEMPORALITY_DELTA", 1),
    ("AGGREGATION_TEMPORALITY_CUMULATIVE", 2),
];

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, is_repeated: false }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, is_repeated: true }
}

const fn message(number: u32, name: &'static str, message: &'static Message) -> Field {
    one(number, name, Kind::Message(message))
}

const fn messages(number: u32, name: &'static str, message: &'static Message) -> Field {
    many(number, name, Kind::Message(message))
}

impl Field {
    /// Whether `key` is its name, in camel case or with underscores.
    pub(super) fn is_called(&self, key: &str) -> bool {
        let mut key = key.bytes();
        for byte in self.name.bytes() {
            let found = key.next();
            let is_same = match (byte, found) {
                (_, Some(found)) if found == byte => true,
                (b'A'..=b'Z', Some(b'_')) => key.next() == Some(byte.to_ascii_lowercase()),
                _ => false,
            };
            if !is_same {
                return false;
            }
        }
        key.next().is_none()
    }
}

pub(super) static REQUEST: Message = Message(&[messages(1, "resourceMetrics", &RESOURCE_METRICS)]);

static RESOURCE_METRICS: Message =
    Message(&[message(1, "resource", &RESOURCE), messages(2, "scopeMetrics", &SCOPE_METRICS)]);

static RESOURCE: Message = Message(&[messages(1, "attributes", &KEY_VALUE)]);

static SCOPE_METRICS: Message = Message(&[messages(2, "metrics", &METRIC)]);

static METRIC: Message = Message(&[
    one(1, "name", Kind::Text),
    one(3, "unit", Kind::Text),
    message(5, "gauge", &NUMBERS),
    message(7, "sum", &NUMBERS),
    message(9, "histogram", &HISTOGRAM),
    message(10, "exponentialHistogram", &EXPONENTIAL_HISTOGRAM),
    message(11, "summary", &SUMMARY),
]);

/// Gauges have no more than points.
static NUMBERS: Message = Message(&[
    messages(1, "dataPoints", &NUMBER_POINT),
    one(2, "aggregationTemporality", Kind::Temporality),
    one(3, "isMonotonic", Kind::Bool),
]);

static HISTOGRAM: Message = Message(&[
    messages(1, "dataPoints", &HISTOGRAM_POINT),
    one(2, "aggregationTemporality", Kind::Temporality),
]);

static EXPONENTIAL_HISTOGRAM: Message = Message(&[
    messages(1, "dataPoints", &EXPONENTIAL_POINT),
    one(2, "aggregationTemporality", Kind::Temporality),
]);

static SUMMARY: Message = Message(&[messages(1, "dataPoints", &SUMMARY_POINT)]);

static NUMBER_POINT: Message = Message(&[
    one(3, "timeUnixNano", Kind::FixedUint),
    one(4, "asDouble", Kind::Double),
    messages(5, "exemplars", &EXEMPLAR),
    one(6, "asInt", Kind::FixedInt),
    messages(7, "attributes", &KEY_VALUE),
    one(8, "flags", Kind::Uint),
]);

static HISTOGRAM_POINT: Message = Message(&[
    one(3, "timeUnixNano", Kind::FixedUint),
    one(4, "count", Kind::FixedUint),
    one(5, "sum", Kind::Double),
    many(6, "bucketCounts", Kind::FixedUint),
    many(7, "explicitBounds", Kind::Double),
    messages(8, "exemplars", &EXEMPLAR),
    messages(9, "attributes", &KEY_VALUE),
    one(10, "flags", Kind::Uint),
]);

static EXPONENTIAL_POINT: Message = Message(&[
    messages(1, "attributes", &KEY_VALUE),
    one(3, "timeUnixNano", Kind::FixedUint),
    one(4, "count", Kind::FixedUint),
    one(5, "sum", Kind::Double),
    one(6, "scale", Kind::Zigzag),
    one(7, "zeroCount", Kind::FixedUint),
    message(8, "positive", &BUCKETS),
    message(9, "negative", &BUCKETS),
    one(10, "flags", Kind::Uint),
    messages(11, "exemplars", &EXEMPLAR),
    one(14, "zeroThreshold", Kind::Double),
]);

static BUCKETS: Message =
    Message(&[one(1, "offset", Kind::Zigzag), many(2, "bucketCounts", Kind::Uint)]);

static SUMMARY_POINT: Message = Message(&[
    one(3, "timeUnixNano", Kind::FixedUint),
    one(4, "count", Kind::FixedUint),
    one(5, "sum", Kind::Double),
    messages(6, "quantileValues", &QUANTILE),
    messages(7, "attributes", &KEY_VALUE),
    one(8, "flags", Kind::Uint),
]);

static QUANTILE: Message =
    Message(&[one(1, "quantile", Kind::Double), one(2, "value", Kind::Double)]);

static EXEMPLAR: Message = Message(&[
    one(2, "timeUnixNano", Kind::FixedUint),
    one(3, "asDouble", Kind::Double),
    one(4, "spanId", Kind::Id(8)),
    one(5, "traceId", Kind::Id(16)),
    one(6, "asInt", Kind::FixedInt),
    messages(7, "filteredAttributes", &KEY_VALUE),
]);

static KEY_VALUE: Message = Message(&[one(1, "key", Kind::Text), message(2, "value", &ANY_VALUE)]);

static ANY_VALUE: Message = Message(&[
    one(1, "stringValue", Kind::Text),
    one(2, "boolValue", Kind::Bool),
    one(3, "intValue", Kind::Int),
    one(4, "doubleValue", Kind::Double),
    message(5, "arrayValue", &ARRAY),
    message(6, "kvlistValue", &LIST),
    one(7, "bytesValue", Kind::Bytes),
]);

static ARRAY: Message = Message(&[messages(1, "values", &ANY_VALUE)]);

static LIST: Message = Message(&[messages(1, "values", &KEY_VALUE)]);
