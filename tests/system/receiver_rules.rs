//! The rules of remote write 2.0 for receivers, case by case as Prometheus' compliance suite has them
//! (github.com/prometheus/compliance, `remotewrite/receiver`), on the endpoint that has its manners.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::programs::start_node;
use crate::support::http::{self, Request};
use crate::support::messages::{
    SymbolicRequest, SymbolicSeries, VERSION_2, WriteRequest, compressed, push_field, push_varint,
};
use crate::support::node::Node;
use crate::support::remote_read;

const PATH: &str = "/api/v1/write";

/// What a request is to be told: its status, and what was written at most, or just so if it succeeds.
#[derive(Clone, Copy)]
struct Told {
    succeeds: bool,
    samples: u64,
    histograms: u64,
    exemplars: u64,
}

const fn all(samples: u64, histograms: u64, exemplars: u64) -> Told {
    Told { succeeds: true, samples, histograms, exemplars }
}

/// The most that may be written of a request that is refused in part or as a whole.
const fn refused(samples: u64, histograms: u64, exemplars: u64) -> Told {
    Told { succeeds: false, samples, histograms, exemplars }
}

struct Case {
    name: String,
    series: Vec<SymbolicSeries>,
    told: Told,
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn texts(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn named(name: &str) -> SymbolicSeries {
    of(&[("__name__", name)])
}

/// Labels stand in no order, as the suite sends them.
fn of(labels: &[(&str, &str)]) -> SymbolicSeries {
    let mut labels = texts(labels);
    labels.reverse();
    SymbolicSeries { labels, ..SymbolicSeries::default() }
}

impl SymbolicSeries {
    fn sample(mut self, t: i64, v: f64) -> SymbolicSeries {
        self.samples.push((t, v, 0));
        self
    }

    fn exemplar(mut self, labels: &[(&str, &str)], t: i64, v: f64) -> SymbolicSeries {
        self.exemplars.push((texts(labels), t, v));
        self
    }

    fn metadata(mut self, kind: u8, help: &str, unit: &str) -> SymbolicSeries {
        self.metadata = Some((kind, help.into(), unit.into()));
        self
    }

    fn histogram(mut self, histogram: Vec<u8>) -> SymbolicSeries {
        self.histograms.push(histogram);
        self
    }
}

/// Which buckets a histogram has.
#[derive(Clone, Copy, Default)]
struct Buckets {
    positive: bool,
    negative: bool,
    zero: bool,
    custom: bool,
    /// The count is another than that of the buckets.
    bad_count: bool,
}

fn push_spans(message: &mut Vec<u8>, first: u8, spans: &[(i64, u64)], deltas: &[i64]) {
    let zigzag = |value: i64| (value << 1 ^ value >> 63) as u64;
    for (offset, length) in spans {
        let mut span = vec![1 << 3];
        push_varint(&mut span, zigzag(*offset));
        span.push(2 << 3);
        push_varint(&mut span, *length);
        push_field(message, first, &span);
    }
    let mut packed = Vec::new();
    deltas.iter().for_each(|delta| push_varint(&mut packed, zigzag(*delta)));
    push_field(message, first + 1, &packed);
}

fn histogram(t: i64, sum: f64, buckets: Buckets) -> Vec<u8> {
    let Buckets { positive, negative, zero, custom, bad_count } = buckets;
    let mut count = 23 * u64::from(positive) + 3 * u64::from(negative) + u64::from(zero);
    if custom {
        count = 30;
    }
    if bad_count {
        count = 99;
    }
    let mut message = Vec::new();
    message.push(1 << 3);
    push_varint(&mut message, count);
    message.push(3 << 3 | 1);
    message.extend_from_slice(&sum.to_le_bytes());
    if custom {
        message.push(4 << 3);
        push_varint(&mut message, 105);
        push_spans(&mut message, 11, &[(0, 6)], &[2, 1, 2, 3, -1, -2]);
    } else if positive {
        push_spans(&mut message, 11, &[(0, 3), (2, 2)], &[1, 2, 1, 3, 1]);
    }
    if zero {
        message.extend_from_slice(&[6 << 3, 1]);
    }
    if negative {
        push_spans(&mut message, 8, &[(0, 2)], &[1, 1]);
    }
    message.push(15 << 3);
    push_varint(&mut message, t as u64);
    if custom {
        let bounds = [0.1, 0.5, 1.0, 2.5, 5.0, 10.0f64];
        let packed: Vec<u8> = bounds.iter().flat_map(|bound| bound.to_le_bytes()).collect();
        message.extend_from_slice(&[0x82, 0x01, packed.len() as u8]);
        message.extend_from_slice(&packed);
    }
    message
}

const UP: &[(&str, &str)] =
    &[("__name__", "up"), ("instance", "localhost:9090"), ("job", "testjob")];
const TRACE: &[(&str, &str)] = &[("trace_id", "abc123def456")];
const EVERY_KIND: Buckets =
    Buckets { positive: true, negative: true, zero: true, custom: false, bad_count: false };

fn special_values() -> [f64; 5] {
    let stale = f64::from_bits(remote_read::STALE);
    [1.0, stale, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
}

fn of_samples(t: i64) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |name: &str, v: f64, series: Vec<SymbolicSeries>, told| {
        cases.push(Case { name: format!("{name}, {v}"), series, told });
    };
    for (i, v) in special_values().into_iter().enumerate() {
        let t = t + i as i64;
        let job = |job: &'static str| of(&[("instance", job), ("job", "testjob")]).sample(t, v);
        let up = |instance: &str| {
            let labels = [("__name__", "up"), ("instance", instance), ("job", "testjob")];
            of(&labels).sample(t, v)
        };
        case("simple", v, vec![named("up").sample(t, v)], all(1, 0, 0));
        case("several labels", v, vec![of(UP).sample(t, v)], all(1, 0, 0));
        let lines = of(&[("__name__", "up"), ("instance", "x"), ("job", "test\njob\n")]);
        case("newlines", v, vec![lines.sample(t, v)], all(1, 0, 0));
        let dots = of(&[("__name__", "resource.cpu.usage"), ("job.name", "testjob")]);
        case("dots", v, vec![dots.sample(t, v)], all(1, 0, 0));
        let spaces = of(&[("__name__", "resource cpu usage"), ("job name", "testjob")]);
        case("spaces", v, vec![spaces.sample(t, v)], all(1, 0, 0));
        case("no name", v, vec![job("a")], refused(0, 0, 0));
        case("no labels", v, vec![of(&[]).sample(t, v)], refused(0, 0, 0));
        let four = ["localhost:1", "localhost:2", "localhost:3", "localhost:4"];
        case("four", v, four.map(up).to_vec(), all(4, 0, 0));
        case("four without a name", v, four.map(job).to_vec(), refused(0, 0, 0));
        let one_of_four = vec![job("b"), up("b:1"), up("b:2"), up("b:3")];
        case("one of four without a name", v, one_of_four, refused(3, 0, 0));
    }
    let mut created = of(&[("__name__", "http_requests_total"), ("job", "api")]);
    created.samples.push((t, 100.0, t - 3_600_000));
    case("with a start", 100.0, vec![created], all(1, 0, 0));
    cases
}

fn of_exemplars(t: i64) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, labels) in [
        ("trace", TRACE),
        ("span", &[("span_id", "span123"), ("trace_id", "xyz789")]),
        ("no trace", &[("user_id", "user123")]),
        ("several", &[("endpoint", "/login"), ("trace_id", "trace456"), ("user", "admin")]),
        ("none", &[]),
        ("special", &[("trace_id", "trace-with-dashes_and_underscores.123")]),
        ("unicode", &[("trace_id", "unicode_trace_测试")]),
    ] as [(&str, &[(&str, &str)]); 7]
    {
        let series = of(&[("__name__", "requests"), ("region", "🌍")]).sample(t, 1.0);
        let series = vec![series.exemplar(labels, t, 1.0)];
        cases.push(Case { name: format!("exemplar: {name}"), series, told: all(1, 0, 1) });
    }
    let mut case =
        |name: &str, series, told| cases.push(Case { name: name.to_owned(), series, told });
    let three = ["GET", "POST", "PUT"].map(|method| {
        let series = of(&[("__name__", "duration"), ("method", method)]).sample(t, 0.1);
        series.exemplar(TRACE, t, 0.1)
    });
    case("three exemplars", three.to_vec(), all(3, 0, 3));
    let ages = [t - 3_500_000, t - 60_000, t];
    let latency = ages.map(|t| named("latency").sample(t, 0.1).exemplar(TRACE, t, 0.1));
    case("exemplars by age", latency.to_vec(), all(3, 0, 3));
    let nameless = of(&[("job", "test")]).sample(t, 1.0).exemplar(TRACE, t, 1.0);
    case("an exemplar of a series without a name", vec![nameless], refused(1, 0, 1));
    let empty = of(&[("__name__", "")]).sample(t, 1.0).exemplar(TRACE, t, 1.0);
    case("an exemplar of a series with an empty name", vec![empty], refused(1, 0, 1));
    let special = [0.0, -123.456, 1e10, 1e-10, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for (i, v) in special.into_iter().enumerate() {
        let t = t + 1 + i as i64;
        let series = vec![named("special").sample(t, v).exemplar(TRACE, t, v)];
        case("an exemplar's value", series, all(1, 0, 1));
    }
    case("an exemplar and no sample", vec![named("orphan").exemplar(TRACE, t, 42.0)], all(0, 0, 1));
    cases
}

fn of_metadata(t: i64) -> Vec<Case> {
    let mut cases = Vec::new();
    // Unspecified to state set.
    for kind in 0..8 {
        let series =
            named("described").sample(t, 1.0).metadata(kind, "a \"help\"\ntext", "bytes/sec");
        let name = format!("metadata of type {kind}");
        cases.push(Case { name, series: vec![series], told: all(1, 0, 0) });
    }
    let mut case =
        |name: &str, series, told| cases.push(Case { name: name.to_owned(), series, told });
    let bare = named("described").sample(t, 1.0).metadata(1, "", "");
    case("metadata without texts", vec![bare], all(1, 0, 0));
    let three = ["cpu_usage", "memory_usage", "disk_usage"]
        .map(|name| named(name).sample(t, 85.5).metadata(2, "usage", "percent"));
    case("three with metadata", three.to_vec(), all(3, 0, 0));
    let nameless = of(&[("job", "test")]).sample(t, 1.0).metadata(1, "help", "unit");
    case("metadata of a series without a name", vec![nameless], refused(1, 0, 0));
    let empty = of(&[("__name__", "")]).sample(t, 1.0).metadata(2, "help", "unit");
    case("metadata of a series with an empty name", vec![empty], refused(1, 0, 0));
    case(
        "metadata and no sample",
        vec![named("orphan").metadata(1, "help", "count")],
        all(0, 0, 0),
    );
    let with_all = named("everything").sample(t, 1.0).exemplar(TRACE, t, 1.0);
    case("metadata and an exemplar", vec![with_all.metadata(1, "h", "u")], all(1, 0, 1));
    let many = (0..50).map(|i| {
        let name = format!("counter_metric_{i}");
        named(&name).sample(t, f64::from(i)).exemplar(TRACE, t, 1.0).metadata(1, &name, "count")
    });
    case("fifty of everything", many.collect(), all(50, 0, 50));
    cases
}

fn of_histograms(t: i64) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case =
        |name: &str, series, told| cases.push(Case { name: name.to_owned(), series, told });
    let none = Buckets::default();
    for (i, (name, buckets)) in [
        ("every kind of bucket", EVERY_KIND),
        ("custom buckets", Buckets { custom: true, ..none }),
        ("positive", Buckets { positive: true, zero: true, ..none }),
        ("negative", Buckets { negative: true, ..none }),
        ("zero", Buckets { zero: true, ..none }),
        ("no bucket", none),
    ]
    .into_iter()
    .enumerate()
    {
        let t = t + i as i64;
        let series = vec![named("histogram").histogram(histogram(t, 1.0, buckets))];
        case(name, series, all(0, 1, 0));
    }
    let bad = Buckets { positive: true, bad_count: true, ..none };
    case("a bad count", vec![named("bad").histogram(histogram(t, 1.0, bad))], refused(0, 1, 0));
    let two = ["hist1", "hist2"].map(|name| named(name).histogram(histogram(t, 1.0, EVERY_KIND)));
    case("two histograms", two.to_vec(), all(0, 2, 0));
    let with_all = named("everything_hist").histogram(histogram(t, 1.0, EVERY_KIND));
    let with_all = with_all.exemplar(TRACE, t, 1.0).metadata(3, "help", "seconds");
    case("a histogram with everything", vec![with_all], all(0, 1, 1));
    cases
}

/// Samples, histograms and exemplars that an answer says were written.
fn written(answer: &http::Answer) -> [u64; 3] {
    ["samples", "histograms", "exemplars"].map(|kind| {
        let name = format!("x-prometheus-remote-write-{kind}-written");
        let value = answer.header(&name).unwrap_or_else(|| panic!("no {name} in {answer:?}"));
        value.parse().expect("a number")
    })
}

fn send(node: &Node, request: &Request) -> http::Answer {
    http::ask(&node.remote_write, request)
}

#[test]
fn each_case_is_told_what_its_rules_want() {
    let root = tempfile::tempdir().unwrap();
    let node = start_node(root.path(), &[]);
    let t = now();
    let groups = [of_samples(t), of_exemplars(t), of_metadata(t), of_histograms(t)];
    for Case { name, series, told } in groups.into_iter().flatten() {
        let request = series.iter().fold(SymbolicRequest::default(), SymbolicRequest::with);
        let answer = send(&node, &request.posted_to(PATH));
        let [samples, histograms, exemplars] = written(&answer);
        let text = answer.text();
        if told.succeeds {
            assert_eq!(answer.status, 204, "{name}: {text}");
            let wanted = [told.samples, told.histograms, told.exemplars];
            assert_eq!([samples, histograms, exemplars], wanted, "{name}");
        } else {
            assert_eq!(answer.status, 400, "{name}: {text}");
            assert!(samples <= told.samples && exemplars <= told.exemplars, "{name}: {text}");
            assert!(histograms <= told.histograms, "{name}: {text}");
        }
    }
    // What is in order is stored though others of its request are not.
    let content = remote_read::read(&node.http, None, "up");
    for instance in ["b:1", "b:2", "b:3"] {
        let has = |labels: &[(String, String)]| labels.iter().any(|(_, value)| value == instance);
        let (_, samples) = content.iter().find(|(labels, _)| has(labels)).expect(instance);
        assert_eq!(samples.len(), special_values().len(), "{instance}");
    }
}

#[test]
fn headers_and_bodies_that_are_none_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let node = start_node(root.path(), &[]);
    let t = now();
    let up = SymbolicRequest::default().with(&of(UP).sample(t, 1.0));
    // As the suite does it, whose bodies of these are broken, too.
    let mut broken = compressed(&up.bytes());
    broken[0] = b'0';
    let post = |content_type: &str, encoding: &str, body: &[u8]| {
        let request = Request::new("POST", PATH).header("Content-Type", content_type);
        let request = request.header("X-Prometheus-Remote-Write-Version", "2.0.0");
        send(&node, &request.header("Content-Encoding", encoding).body(body))
    };
    for content_type in ["application/json", "image/png"] {
        assert_eq!(post(content_type, "snappy", &broken).status, 415, "{content_type}");
    }
    for encoding in ["gzip", "deflate"] {
        assert_eq!(post(VERSION_2, encoding, &broken).status, 415, "{encoding}");
    }
    let answer = post(VERSION_2, "snappy", &broken);
    assert_eq!((answer.status, written(&answer)), (400, [0; 3]));

    // Senders of 1.0 are served on the same path, and told no counts.
    let plain = WriteRequest::of(UP, t, 1.0);
    let answer = post("application/x-protobuf", "snappy", &plain.compressed());
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), None);
    let mut broken = plain.compressed();
    broken[0] = 0xff;
    assert_eq!(post("application/x-protobuf", "snappy", &broken).status, 400);

    // A body of the other version than its type is never answered as if it were stored.
    for path in [PATH, "/api/v1/receive"] {
        let plain_as_2 = up.posted_to(path).body(plain.compressed());
        assert_eq!(send(&node, &plain_as_2).status, 400, "{path}");
        let request = Request::new("POST", path).header("Content-Type", "application/x-protobuf");
        let symbolic_as_1 = request.body(compressed(&up.bytes()));
        assert_eq!(send(&node, &symbolic_as_1).status, 400, "{path}");
    }
}
