//! Chunks to points. That of floats is written against Prometheus' format alone, so that a mistake
//! that our encoder and decoder share is seen; those of histograms are held against its bytes elsewhere.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ringest::model::histogram::{Float, Histogram, Integer, Span};
use ringest::tsdb::chunkenc::histogram::{Encoded, HistogramIterator, ResetHeader};
use serde_json::Value;

use crate::proto::double_bits;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Point {
    /// Bits of a float.
    Float(u64),
    /// All that a histogram is, as text.
    Histogram(String),
}

/// Points by time.
pub(crate) type Points = Vec<(i64, Point)>;

/// The points of a chunk in base64.
pub(crate) fn points(kind: &str, data: &str) -> Result<Points, String> {
    let bytes = BASE64_STANDARD.decode(data).map_err(|error| error.to_string())?;
    match kind {
        "XOR" => {
            let floats = decode(&bytes).ok_or_else(|| "chunk cut short".to_owned())?;
            Ok(floats.into_iter().map(|(t, bits)| (t, Point::Float(bits))).collect())
        }
        "HISTOGRAM" => histograms::<Integer>(&bytes),
        "FLOAT_HISTOGRAM" => histograms::<Float>(&bytes),
        other => Err(format!("a chunk of type {other}")),
    }
}

fn histograms<N: Encoded>(bytes: &[u8]) -> Result<Points, String> {
    let mut samples = HistogramIterator::<N>::new(bytes);
    let mut header = match samples.header() {
        ResetHeader::Unknown => "unknown",
        ResetHeader::NotReset => "no_reset",
        ResetHeader::Reset => "reset",
        ResetHeader::Gauge => "gauge",
    };
    let (mut points, mut sample) = (Points::new(), Histogram::default());
    while let Some(read) = samples.next_into(&mut sample) {
        let t = read.map_err(|error| error.to_string())?;
        let layout = &sample.layout;
        let spans = |spans: &[Span]| -> Vec<[i64; 2]> {
            spans.iter().map(|span| [span.offset.into(), span.length.into()]).collect()
        };
        let text = match sample.is_stale() {
            true => "stale".to_owned(),
            false => told(&[
                ("header", format!("{header:?}")),
                ("schema", layout.schema.to_string()),
                ("zero threshold", layout.zero_threshold.to_bits().to_string()),
                ("sum", sample.sum.to_bits().to_string()),
                ("count", format!("{:?}", sample.count)),
                ("zero count", format!("{:?}", sample.zero_count)),
                ("positive", format!("{:?} {:?}", spans(&layout.positive_spans), sample.positive)),
                ("negative", format!("{:?} {:?}", spans(&layout.negative_spans), sample.negative)),
                ("bounds", format!("{:?}", layout.custom_bounds)),
            ]),
        };
        points.push((t, Point::Histogram(text)));
        // It is told of the first sample.
        header = "";
    }
    Ok(points)
}

/// The same of a recorded point.
pub(crate) fn recorded_histogram(kind: &str, point: &Value) -> (i64, Point) {
    let t = point["t"].as_i64().expect("time");
    if point["stale"] == true {
        return (t, Point::Histogram("stale".to_owned()));
    }
    let double = |value: &Value| f64::from_bits(double_bits(value));
    let numbers = |name: &str| point[name].as_array().map_or(&[][..], Vec::as_slice);
    let is_float = kind == "FLOAT_HISTOGRAM";
    let count = |name: &str| match is_float {
        true => format!("{:?}", double(&point[name])),
        false => point[name].as_u64().expect("a count").to_string(),
    };
    let buckets = |side: &str| {
        let spans: Vec<[i64; 2]> = numbers(&format!("{side}_spans"))
            .iter()
            .map(|span| [0, 1].map(|i| span[i].as_i64().expect("a number of a span")))
            .collect();
        match is_float {
            true => {
                let counts: Vec<_> =
                    numbers(&format!("{side}_counts")).iter().map(double).collect();
                format!("{spans:?} {counts:?}")
            }
            false => {
                let deltas = numbers(&format!("{side}_deltas")).iter();
                let deltas: Vec<_> = deltas.map(|d| d.as_i64().expect("a delta")).collect();
                format!("{spans:?} {deltas:?}")
            }
        }
    };
    let text = told(&[
        ("header", format!("{:?}", point["header"].as_str().unwrap_or_default())),
        ("schema", point["schema"].to_string()),
        ("zero threshold", double_bits(&point["zero_threshold"]).to_string()),
        ("sum", double_bits(&point["sum"]).to_string()),
        ("count", count("count")),
        ("zero count", count("zero_count")),
        ("positive", buckets("positive")),
        ("negative", buckets("negative")),
        (
            "bounds",
            format!("{:?}", numbers("custom_values").iter().map(double).collect::<Vec<_>>()),
        ),
    ]);
    (t, Point::Histogram(text))
}

fn told(parts: &[(&str, String)]) -> String {
    parts.iter().map(|(name, value)| format!("{name} {value}; ")).collect()
}

fn decode(bytes: &[u8]) -> Option<Vec<(i64, u64)>> {
    let (count, bits) = bytes.split_first_chunk::<2>()?;
    let mut bits = Bits { bytes: bits, next: 0 };
    let mut points = Vec::new();
    let (mut time, mut delta, mut value) = (0i64, 0i64, 0u64);
    let (mut leading, mut trailing) = (0, 0);
    for i in 0..u16::from_be_bytes(*count) {
        match i {
            0 => {
                time = zigzag(bits.varint()?);
                value = bits.take(64)?;
                points.push((time, value));
                continue;
            }
            1 => delta = i64::try_from(bits.varint()?).ok()?,
            _ => delta = delta.wrapping_add(bits.delta_of_delta()?),
        }
        time = time.wrapping_add(delta);
        if bits.take(1)? == 1 {
            if bits.take(1)? == 1 {
                leading = bits.take(5)?;
                let significant = match bits.take(6)? {
                    0 => 64,
                    significant => significant,
                };
                trailing = 64u64.checked_sub(leading + significant)?;
            }
            value ^= bits.take(64 - leading - trailing)? << trailing;
        }
        points.push((time, value));
    }
    Some(points)
}

struct Bits<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u64) -> Option<u64> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.next / 8)?;
            value = value << 1 | u64::from(byte >> (7 - self.next % 8) & 1);
            self.next += 1;
        }
        Some(value)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(8)?;
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A prefix of ones chooses the width.
    fn delta_of_delta(&mut self) -> Option<i64> {
        for width in [0, 14, 17, 20] {
            if self.take(1)? == 0 {
                return self.narrow(width);
            }
        }
        self.take(64).map(|value| value as i64)
    }

    /// Of 2^n values of n bits those above 2^(n - 1) stand for negative ones.
    fn narrow(&mut self, width: u64) -> Option<i64> {
        let value = self.take(width)? as i64;
        let is_negative = width > 0 && value > 1 << (width - 1);
        Some(if is_negative { value - (1 << width) } else { value })
    }
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
