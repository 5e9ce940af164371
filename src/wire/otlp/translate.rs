//! Metrics to series, in one pass over the request: what a point becomes is written at once, as a
//! series for each number. Points of one series follow one another as they stand in the request.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use crate::model::STALE_NAN_BITS;
use crate::wire::exemplar::{LABEL_CHARS_MAX, char_count};
use crate::wire::histogram::{Count, HistogramMessage};
use crate::wire::otlp::caps::{TEXT_BYTES_MAX, VALUES_MAX};
use crate::wire::otlp::labels::{
    Attribute, Labels, NAME, NoLabels, ResourceLabels, is_identifying,
};
use crate::wire::otlp::names::{Suffix, metric_name};
use crate::wire::otlp::points::{Kind, Point, read_time, to_ms};
use crate::wire::otlp::spans::to_spans;
use crate::wire::otlp::value::{go_float, push_text, read_key_value};
use crate::wire::otlp::{OtlpError, Untranslatable};
use crate::wire::remote_write_v1::{DecodeError, Value, WRONG_WIRE_TYPE, read_field};
use crate::wire::request_builder::{RequestBuilder, Stop, Text};

const REQUEST: &str = "OTLP request";
const RESOURCE: &str = "resource metrics";
const METRIC: &str = "metric";
const EXEMPLAR: &str = "exemplar";

const CUMULATIVE: u64 = 2;

/// Of histograms that do not say theirs.
const ZERO_THRESHOLD: f64 = 1e-128;

/// Scales of Prometheus' native histograms.
const SCALE_MIN: i32 = -4;
const SCALE_MAX: i32 = 8;

/// Texts of what could not be translated that are kept.
const REASONS_MAX: usize = 4;

/// What series are made of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `--receive.otlp-enable-target-info`
    pub target_info: bool,
    /// `--receive.otlp-promote-resource-attributes`, sorted.
    pub(super) promoted: Vec<String>,
}

/// What a request came to.
#[derive(Debug)]
pub struct Translated {
    /// Bytes of the request of remote write 1.0.
    pub len: usize,
    pub untranslated: Untranslated,
}

/// Points that no series can be made of.
#[derive(Debug, Default)]
pub struct Untranslated {
    pub points: u64,
    /// Reasons: of points and of metrics without any.
    pub count: u64,
    /// The first of them.
    pub reasons: Vec<Untranslatable>,
}

impl fmt::Display for Untranslated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, reason) in self.reasons.iter().enumerate() {
            write!(f, "{}{reason}", if i > 0 { "; " } else { "" })?;
        }
        match self.count.saturating_sub(self.reasons.len() as u64) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Settings {
    pub fn new(target_info: bool, promoted: impl IntoIterator<Item = String>) -> Settings {
        let mut promoted: Vec<String> = promoted.into_iter().collect();
        promoted.sort();
        promoted.dedup();
        Settings { target_info, promoted }
    }
}

/// Writes `request`, inflated, to the start of `out` as a request of remote write 1.0, of at most
/// `max` bytes. Before `out` holds so many, `admit` is asked, which ends the work with its error.
pub fn translate<E: From<OtlpError>>(
    request: &[u8],
    settings: &Settings,
    out: &mut Vec<u8>,
    max: u64,
    mut admit: impl FnMut(u64) -> Result<(), E>,
) -> Result<Translated, E> {
    let builder = RequestBuilder::new(out, max, |bytes| admit(bytes).map_err(Stop::Told));
    let mut translator = Translator {
        settings,
        builder,
        point: Point::default(),
        labels: Labels::default(),
        text: Vec::new(),
        targets: HashMap::new(),
        hasher: RandomState::new(),
        untranslated: Untranslated::default(),
    };
    match translator.take_all(request) {
        Ok(()) => {
            let Translator { builder, untranslated, .. } = translator;
            Ok(Translated { len: builder.finish(), untranslated })
        }
        Err(Stop::Told(error)) => Err(error),
        Err(Stop::Found(error)) => Err(error.into()),
    }
}

struct Translator<'r, 'b, A> {
    settings: &'b Settings,
    builder: RequestBuilder<'b, A>,
    /// What is at hand, used again.
    point: Point<'r>,
    labels: Labels,
    text: Vec<u8>,
    /// The newest time of each resource's own series, by a hash of its labels: of older ones
    /// nothing new is to be said.
    targets: HashMap<u64, i64>,
    hasher: RandomState,
    untranslated: Untranslated,
}

/// A metric, its points not read.
#[derive(Clone, Copy, Default)]
struct Metric<'r> {
    name: &'r [u8],
    unit: &'r [u8],
    data: Option<(Data, &'r [u8])>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    Gauge,
    Sum,
    Histogram,
    Exponential,
    Summary,
}

/// What stands beside a metric's points.
#[derive(Default)]
struct Nature {
    points: u64,
    temporality: u64,
    is_monotonic: bool,
}

/// Why a point is left out, or the work ends.
enum NoPoint<E> {
    Untranslatable(Untranslatable),
    Stop(Stop<OtlpError, E>),
}

impl<E> From<Stop<OtlpError, E>> for NoPoint<E> {
    fn from(stop: Stop<OtlpError, E>) -> NoPoint<E> {
        NoPoint::Stop(stop)
    }
}

impl<E> From<DecodeError> for NoPoint<E> {
    fn from(error: DecodeError) -> NoPoint<E> {
        NoPoint::Stop(error.into())
    }
}

impl Data {
    fn points(self) -> Kind {
        match self {
            Data::Gauge | Data::Sum => Kind::Number,
            Data::Histogram => Kind::Histogram,
            Data::Exponential => Kind::Exponential,
            Data::Summary => Kind::Summary,
        }
    }

    /// Whether points of it may be differences rather than sums.
    fn has_temporality(self) -> bool {
        matches!(self, Data::Sum | Data::Histogram | Data::Exponential)
    }
}

impl<'r, A, E> Translator<'r, '_, A>
where
    A: FnMut(u64) -> Result<(), Stop<OtlpError, E>>,
{
    fn take_all(&mut self, mut request: &'r [u8]) -> Result<(), Stop<OtlpError, E>> {
        while !request.is_empty() {
            let (number, value, rest) = read_field(request, REQUEST)?;
            request = rest;
            match (number, value) {
                (1, Value::Bytes(resource)) => self.take_resource(resource)?,
                (1, _) => return Err(DecodeError::new(REQUEST, WRONG_WIRE_TYPE).into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn take_resource(&mut self, message: &'r [u8]) -> Result<(), Stop<OtlpError, E>> {
        let mut attributes = Vec::new();
        let mut is_cut = false;
        for field in fields(message, RESOURCE) {
            match field? {
                (1, Value::Bytes(resource)) => {
                    is_cut |= !read_resource(resource, &mut attributes)?;
                }
                (2, Value::Bytes(_)) => {}
                (1 | 2, _) => return Err(DecodeError::new(RESOURCE, WRONG_WIRE_TYPE).into()),
                _ => {}
            }
        }
        let labels = match is_cut {
            true => Err(too_many("resource", "attributes", VALUES_MAX)),
            false => match ResourceLabels::of(&attributes, self.settings) {
                Ok(labels) => Ok(labels),
                Err(NoLabels::Malformed(error)) => return Err(error.into()),
                Err(other) => Err(untranslatable("resource", other)),
            },
        };
        let mut newest = 0;
        for field in fields(message, RESOURCE) {
            let (2, Value::Bytes(scope)) = field? else { continue };
            for field in fields(scope, "scope metrics") {
                match field? {
                    (2, Value::Bytes(metric)) => {
                        self.take_metric(metric, labels.as_ref(), &mut newest)?;
                    }
                    (2, _) => return Err(DecodeError::new(METRIC, WRONG_WIRE_TYPE).into()),
                    _ => {}
                }
            }
        }
        match labels {
            Ok(labels) => self.write_target(&mut attributes, &labels.of_target(), newest),
            Err(_) => Ok(()),
        }
    }

    fn take_metric(
        &mut self,
        message: &'r [u8],
        resource: Result<&ResourceLabels, &Untranslatable>,
        newest: &mut u64,
    ) -> Result<(), Stop<OtlpError, E>> {
        let metric = Metric::read(message)?;
        let shown = || String::from_utf8_lossy(metric.name).into_owned();
        let Some((data, points)) = metric.data else {
            self.note(0, Untranslatable::NoPoints(shown()));
            return Ok(());
        };
        let nature = Nature::read(points)?;
        let reason = if nature.points == 0 {
            Some(Untranslatable::NoPoints(shown()))
        } else if data.has_temporality() && nature.temporality != CUMULATIVE {
            Some(Untranslatable::Temporality(shown()))
        } else {
            resource.err().cloned()
        };
        if let Some(reason) = reason {
            for field in fields(points, METRIC) {
                let (1, Value::Bytes(point)) = field? else { continue };
                *newest = read_time(point)?.max(*newest);
            }
            self.note(nature.points, reason);
            return Ok(());
        }
        let Ok(resource) = resource else { return Ok(()) };
        let suffix = match data {
            Data::Sum if nature.is_monotonic => Suffix::Total,
            Data::Gauge => Suffix::RatioIfUnitIsOne,
            _ => Suffix::None,
        };
        let name = metric_name(metric.name, metric.unit, suffix);
        for field in fields(points, METRIC) {
            let (1, Value::Bytes(point)) = field? else { continue };
            let start = self.builder.len();
            match self.take_point(data, point, &name, metric.name, resource, newest) {
                Ok(()) => {}
                Err(NoPoint::Untranslatable(reason)) => {
                    self.builder.truncate(start);
                    self.note(1, reason);
                }
                Err(NoPoint::Stop(stop)) => return Err(stop),
            }
        }
        Ok(())
    }

    fn note(&mut self, points: u64, reason: Untranslatable) {
        let untranslated = &mut self.untranslated;
        untranslated.points += points;
        untranslated.count += 1;
        if untranslated.reasons.len() < REASONS_MAX && !untranslated.reasons.contains(&reason) {
            untranslated.reasons.push(reason);
        }
    }

    fn take_point(
        &mut self,
        data: Data,
        message: &'r [u8],
        name: &str,
        metric: &[u8],
        resource: &ResourceLabels,
        newest: &mut u64,
    ) -> Result<(), NoPoint<E>> {
        self.point.read(data.points(), message)?;
        *newest = self.point.time.max(*newest);
        let shown = || String::from_utf8_lossy(metric).into_owned();
        if let Some((what, max)) = self.point.too_many {
            return Err(NoPoint::Untranslatable(too_many(&shown(), what, max)));
        }
        match self.labels.set(&mut self.point.attributes, resource) {
            Ok(()) => {}
            Err(NoLabels::Malformed(error)) => return Err(error.into()),
            Err(other) => return Err(NoPoint::Untranslatable(untranslatable(&shown(), other))),
        }
        match data {
            Data::Gauge => self.write_number(name, false)?,
            Data::Sum => self.write_number(name, true)?,
            Data::Histogram => self.write_histogram(name)?,
            Data::Exponential if self.point.scale < SCALE_MIN => {
                let (metric, scale) = (shown(), self.point.scale);
                return Err(NoPoint::Untranslatable(Untranslatable::Scale { metric, scale }));
            }
            Data::Exponential => self.write_exponential(name)?,
            Data::Summary => self.write_summary(name)?,
        }
        Ok(())
    }

    fn write_number(&mut self, name: &str, has_exemplars: bool) -> Result<(), Stop<OtlpError, E>> {
        let open = self.builder.open_series()?;
        self.labels.write(&mut self.builder, name, true, None)?;
        let value = self.value(self.point.value);
        self.builder.sample(self.point.time_ms(), value)?;
        // Of gauges Thanos takes none.
        for i in 0..if has_exemplars { self.point.exemplars.len() } else { 0 } {
            self.write_exemplar(i)?;
        }
        self.builder.close_series(open)?;
        Ok(())
    }

    /// A classic histogram, as series of its sum, its count and its buckets.
    fn write_histogram(&mut self, name: &str) -> Result<(), Stop<OtlpError, E>> {
        if let Some(sum) = self.point.sum {
            self.write_series(&format!("{name}_sum"), None, sum)?;
        }
        let count = self.point.count as f64;
        self.write_series(&format!("{name}_count"), None, count)?;
        let name = format!("{name}_bucket");
        let bucket_count = self.point.bounds.len().min(self.point.counts.len());
        self.point.bounds.truncate(bucket_count);
        let of_buckets = self.exemplars_by_bucket()?;
        let mut of_buckets = of_buckets.into_iter().peekable();
        let mut cumulative = 0u64;
        for i in 0..=bucket_count {
            let bound = self.point.bounds.get(i).copied();
            let (bound, below) = match (bound, self.point.counts.get(i)) {
                (Some(bound), Some(more)) => {
                    cumulative = cumulative.wrapping_add(*more);
                    (go_float(bound), cumulative as f64)
                }
                _ => ("+Inf".to_owned(), count),
            };
            let open = self.builder.open_series()?;
            let le = Some((&b"le"[..], bound.as_str()));
            self.labels.write(&mut self.builder, &name, false, le)?;
            let value = self.value(below);
            self.builder.sample(self.point.time_ms(), value)?;
            while let Some((_, exemplar)) = of_buckets.next_if(|(bucket, _)| *bucket == i) {
                self.write_exemplar(exemplar)?;
            }
            self.builder.close_series(open)?;
        }
        Ok(())
    }

    /// The bucket of each exemplar, by the lowest bound that it is below, and the exemplar's
    /// number; by bucket. The last one has no bound.
    fn exemplars_by_bucket(&self) -> Result<Vec<(usize, usize)>, DecodeError> {
        let bounds = &self.point.bounds;
        let mut by_bound: Vec<usize> = (0..bounds.len()).collect();
        let bound = |i: usize| bounds.get(i).copied().unwrap_or(f64::INFINITY);
        if !self.point.exemplars.is_empty() {
            by_bound.sort_by(|a, b| bound(*a).total_cmp(&bound(*b)));
        }
        let mut of_buckets = Vec::new();
        for (i, exemplar) in self.point.exemplars.iter().enumerate() {
            let value = Exemplar::read(exemplar)?.value.map_or(0.0, f64::from_bits);
            let lowest = by_bound.partition_point(|bucket| bound(*bucket) < value);
            of_buckets.push((by_bound.get(lowest).copied().unwrap_or(bounds.len()), i));
        }
        of_buckets.sort_unstable();
        Ok(of_buckets)
    }

    fn write_summary(&mut self, name: &str) -> Result<(), Stop<OtlpError, E>> {
        let sum = self.point.sum.unwrap_or_default();
        self.write_series(&format!("{name}_sum"), None, sum)?;
        let count = self.point.count as f64;
        self.write_series(&format!("{name}_count"), None, count)?;
        for i in 0..self.point.quantiles.len() {
            let Some((quantile, value)) = self.point.quantiles.get(i).copied() else { break };
            let quantile = go_float(quantile);
            self.write_series(name, Some((b"quantile", quantile.as_str())), value)?;
        }
        Ok(())
    }

    /// A series with one sample, of which labels of these names are not replaced.
    fn write_series(
        &mut self,
        name: &str,
        more: Option<(&[u8], &str)>,
        value: f64,
    ) -> Result<(), Stop<OtlpError, E>> {
        let open = self.builder.open_series()?;
        self.labels.write(&mut self.builder, name, false, more)?;
        let value = self.value(value);
        self.builder.sample(self.point.time_ms(), value)?;
        self.builder.close_series(open)?;
        Ok(())
    }

    /// The bits of a value of the point at hand.
    fn value(&self, value: f64) -> u64 {
        if self.point.has_no_value { STALE_NAN_BITS } else { value.to_bits() }
    }

    /// A native histogram.
    fn write_exponential(&mut self, name: &str) -> Result<(), Stop<OtlpError, E>> {
        let point = &self.point;
        let down = point.scale.saturating_sub(SCALE_MAX).max(0);
        let threshold = Some(point.zero_threshold).filter(|threshold| *threshold > 0.0);
        let (count, sum) = match point.has_no_value {
            true => (STALE_NAN_BITS, STALE_NAN_BITS),
            false => (point.count, point.sum.unwrap_or_default().to_bits()),
        };
        let histogram = HistogramMessage {
            count: Count::Int(count),
            sum,
            schema: point.scale.min(SCALE_MAX),
            zero_threshold: threshold.unwrap_or(ZERO_THRESHOLD).to_bits(),
            zero_count: Count::Int(point.zero_count),
            negative: to_spans(&point.negative, down),
            positive: to_spans(&point.positive, down),
            timestamp: point.time_ms(),
            ..HistogramMessage::default()
        };
        self.text.clear();
        histogram.push_protobuf(&mut self.text);
        let open = self.builder.open_series()?;
        self.labels.write(&mut self.builder, name, true, None)?;
        self.builder.histogram(std::iter::once(&self.text[..]))?;
        for i in 0..self.point.exemplars.len() {
            self.write_exemplar(i)?;
        }
        self.builder.close_series(open)?;
        Ok(())
    }

    /// Writes the exemplar of this number of the point at hand into the series that is open.
    fn write_exemplar(&mut self, i: usize) -> Result<(), Stop<OtlpError, E>> {
        let Some(message) = self.point.exemplars.get(i) else { return Ok(()) };
        let Exemplar { time, value, trace, span, attributes } = Exemplar::read(message)?;
        // Without a value it says nothing.
        let Some(value) = value else { return Ok(()) };
        let open = self.builder.open_exemplar()?;
        let mut chars = 0;
        for (name, id) in [("trace_id", trace), ("span_id", span)] {
            if id.iter().any(|byte| *byte != 0) {
                let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
                chars += name.len() + id.len();
                self.builder.label(name.as_bytes().into(), id.as_bytes().into())?;
            }
        }
        self.text.clear();
        let mut places = Vec::new();
        for attribute in &attributes {
            let (key, value) = read_key_value(attribute)?;
            let start = self.text.len();
            push_text(&mut self.text, value)?;
            let text = self.text.get(start..).unwrap_or_default();
            chars += char_count(key) + char_count(text);
            places.push((key, start, text.len()));
            if chars > LABEL_CHARS_MAX {
                break;
            }
        }
        if chars <= LABEL_CHARS_MAX {
            for (key, start, len) in places {
                let Some(value) = Text::within(&self.text, start, len) else { continue };
                self.builder.label(key.into(), value)?;
            }
        }
        self.builder.exemplar_value(to_ms(time), value)?;
        self.builder.close_exemplar(open)?;
        Ok(())
    }

    /// Writes the series about a resource itself, if there is anything to say: it has attributes
    /// beside those by which it is known, and is known by any.
    fn write_target(
        &mut self,
        attributes: &mut Vec<Attribute<'r>>,
        resource: &ResourceLabels,
        newest: u64,
    ) -> Result<(), Stop<OtlpError, E>> {
        attributes.retain(|(key, _)| !is_identifying(key));
        if !self.settings.target_info
            || newest == 0
            || attributes.is_empty()
            || !resource.identify()
        {
            return Ok(());
        }
        match self.labels.set(attributes, resource) {
            Ok(()) => {}
            Err(NoLabels::Malformed(error)) => return Err(error.into()),
            // Thanos leaves it out as well.
            Err(NoLabels::Name(_) | NoLabels::TooMuchText) => return Ok(()),
        }
        let labels: Vec<_> = self.labels.iter().filter(|(name, _)| *name != NAME).collect();
        let (hash, time) = (self.hasher.hash_one(labels), to_ms(newest));
        if self.targets.get(&hash).is_some_and(|known| *known >= time) {
            return Ok(());
        }
        self.targets.insert(hash, time);
        let open = self.builder.open_series()?;
        self.labels.write(&mut self.builder, "target_info", true, None)?;
        self.builder.sample(time, 1f64.to_bits())?;
        self.builder.close_series(open)?;
        Ok(())
    }
}

impl<'r> Metric<'r> {
    fn read(message: &'r [u8]) -> Result<Metric<'r>, DecodeError> {
        let mut metric = Metric::default();
        for field in fields(message, METRIC) {
            let (number, value) = field?;
            let data = match number {
                5 => Data::Gauge,
                7 => Data::Sum,
                9 => Data::Histogram,
                10 => Data::Exponential,
                11 => Data::Summary,
                1 | 3 => {
                    let Value::Bytes(text) = value else {
                        return Err(DecodeError::new(METRIC, WRONG_WIRE_TYPE));
                    };
                    *(if number == 1 { &mut metric.name } else { &mut metric.unit }) = text;
                    continue;
                }
                _ => continue,
            };
            let Value::Bytes(points) = value else {
                return Err(DecodeError::new(METRIC, WRONG_WIRE_TYPE));
            };
            metric.data = Some((data, points));
        }
        Ok(metric)
    }
}

impl Nature {
    fn read(message: &[u8]) -> Result<Nature, DecodeError> {
        let mut nature = Nature::default();
        for field in fields(message, METRIC) {
            match field? {
                (1, Value::Bytes(_)) => nature.points += 1,
                (2, Value::Varint(temporality)) => nature.temporality = temporality,
                (3, Value::Varint(is_monotonic)) => nature.is_monotonic = is_monotonic != 0,
                (1..=3, _) => return Err(DecodeError::new(METRIC, WRONG_WIRE_TYPE)),
                _ => {}
            }
        }
        Ok(nature)
    }
}

/// An exemplar, its attributes not read.
#[derive(Default)]
struct Exemplar<'r> {
    time: u64,
    /// Bits of it.
    value: Option<u64>,
    trace: &'r [u8],
    span: &'r [u8],
    attributes: Vec<&'r [u8]>,
}

impl<'r> Exemplar<'r> {
    fn read(message: &'r [u8]) -> Result<Exemplar<'r>, DecodeError> {
        let mut exemplar = Exemplar::default();
        for field in fields(message, EXEMPLAR) {
            match field? {
                (2, Value::Fixed64(time)) => exemplar.time = time,
                (3, Value::Fixed64(bits)) => exemplar.value = Some(bits),
                (4, Value::Bytes(id)) => exemplar.span = checked_id(id, 8)?,
                (5, Value::Bytes(id)) => exemplar.trace = checked_id(id, 16)?,
                (6, Value::Fixed64(int)) => {
                    exemplar.value = Some((int.cast_signed() as f64).to_bits());
                }
                // So many have more characters than may be.
                (7, Value::Bytes(_)) if exemplar.attributes.len() > LABEL_CHARS_MAX => {}
                (7, Value::Bytes(attribute)) => exemplar.attributes.push(attribute),
                (2..=7, _) => return Err(DecodeError::new(EXEMPLAR, WRONG_WIRE_TYPE)),
                _ => {}
            }
        }
        Ok(exemplar)
    }
}

fn checked_id(id: &[u8], len: usize) -> Result<&[u8], DecodeError> {
    match id.is_empty() || id.len() == len {
        true => Ok(id),
        false => Err(DecodeError::new(EXEMPLAR, "an identifier of another length")),
    }
}

/// Collects the attributes of a resource; false if there are too many.
fn read_resource<'r>(
    message: &'r [u8],
    attributes: &mut Vec<Attribute<'r>>,
) -> Result<bool, DecodeError> {
    let mut is_whole = true;
    for field in fields(message, "resource") {
        match field? {
            (1, Value::Bytes(attribute)) => {
                let attribute = read_key_value(attribute)?;
                is_whole &= attributes.len() < VALUES_MAX;
                if is_whole {
                    attributes.push(attribute);
                }
            }
            (1, _) => return Err(DecodeError::new("resource", WRONG_WIRE_TYPE)),
            _ => {}
        }
    }
    Ok(is_whole)
}

/// The fields of a message.
fn fields<'r>(
    mut message: &'r [u8],
    name: &'static str,
) -> impl Iterator<Item = Result<(u32, Value<'r>), DecodeError>> {
    std::iter::from_fn(move || {
        if message.is_empty() {
            return None;
        }
        let field = read_field(message, name);
        message = field.as_ref().map_or(&[][..], |(_, _, rest)| *rest);
        Some(field.map(|(number, value, _)| (number, value)))
    })
}

fn too_many(metric: &str, what: &'static str, max: usize) -> Untranslatable {
    Untranslatable::TooMany { metric: metric.to_owned(), what, max }
}

fn untranslatable(metric: &str, reason: NoLabels) -> Untranslatable {
    match reason {
        NoLabels::Name(key) => Untranslatable::LabelName(key),
        NoLabels::TooMuchText | NoLabels::Malformed(_) => {
            too_many(metric, "bytes of attributes", TEXT_BYTES_MAX)
        }
    }
}

#[cfg(test)]
mod tests;
