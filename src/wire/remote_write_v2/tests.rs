use proptest::prelude::*;

use super::*;
use crate::model::labels::push_label;
use crate::model::varint::push_varint;
use crate::wire::remote_write_v1::{RequestField, RequestFields, split_tail_sample};

type Labels = Vec<(Vec<u8>, Vec<u8>)>;

/// A series as a sender means it. Labels are as they are sent.
#[derive(Clone, Debug, Default)]
struct Meant {
    labels: Labels,
    /// Time, bits of the value, and start.
    samples: Vec<(i64, u64, i64)>,
    exemplars: Vec<(Labels, i64, u64)>,
    /// Messages without a start timestamp, and the start.
    histograms: Vec<(Vec<u8>, i64)>,
    metadata: Option<(u8, Vec<u8>, Vec<u8>)>,
}

fn push_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn push_number(out: &mut Vec<u8>, number: u32, value: u64) {
    if value != 0 {
        push_varint(out, u64::from(number << 3));
        push_varint(out, value);
    }
}

fn push_float(out: &mut Vec<u8>, number: u8, bits: u64) {
    if bits != 0 {
        out.push(number << 3 | 1);
        out.extend_from_slice(&bits.to_le_bytes());
    }
}

/// Writes series as version 2.0 does, and as version 1.0.
#[derive(Default)]
struct Sender {
    symbols: Vec<Vec<u8>>,
    are_refs_packed: bool,
    series: Vec<Vec<u8>>,
    plain: Vec<u8>,
}

impl Sender {
    fn new(are_refs_packed: bool) -> Sender {
        Sender { symbols: vec![Vec::new()], are_refs_packed, ..Sender::default() }
    }

    fn symbol(&mut self, text: &[u8]) -> u64 {
        let found = self.symbols.iter().position(|symbol| symbol == text);
        let at = found.unwrap_or_else(|| {
            self.symbols.push(text.to_vec());
            self.symbols.len() - 1
        });
        at as u64
    }

    fn push_refs(&mut self, out: &mut Vec<u8>, labels: &[(Vec<u8>, Vec<u8>)]) {
        let mut refs = Vec::new();
        for (name, value) in labels {
            refs.extend([self.symbol(name), self.symbol(value)]);
        }
        if self.are_refs_packed {
            let mut packed = Vec::new();
            refs.iter().for_each(|reference| push_varint(&mut packed, *reference));
            if !packed.is_empty() {
                push_bytes(out, 1, &packed);
            }
        } else {
            for reference in refs {
                out.push(1 << 3);
                push_varint(out, reference);
            }
        }
    }

    fn push(&mut self, meant: &Meant) {
        let (mut series, mut plain) = (Vec::new(), Vec::new());
        self.push_refs(&mut series, &meant.labels);
        for (name, value) in &meant.labels {
            push_label(&mut plain, 0x0a, name, value);
        }
        for (t, v, start) in &meant.samples {
            let mut sample = Vec::new();
            push_float(&mut sample, 1, *v);
            push_number(&mut sample, 2, *t as u64);
            push_bytes(&mut plain, 2, &sample);
            push_number(&mut sample, 3, *start as u64);
            push_bytes(&mut series, 2, &sample);
        }
        for (message, start) in &meant.histograms {
            push_bytes(&mut plain, 4, message);
            let mut message = message.clone();
            push_number(&mut message, 17, *start as u64);
            push_bytes(&mut series, 3, &message);
        }
        for (labels, t, v) in &meant.exemplars {
            let (mut exemplar, mut message) = (Vec::new(), Vec::new());
            self.push_refs(&mut exemplar, labels);
            labels.iter().for_each(|(name, value)| push_label(&mut message, 0x0a, name, value));
            for out in [&mut exemplar, &mut message] {
                push_float(out, 2, *v);
                push_number(out, 3, *t as u64);
            }
            push_bytes(&mut series, 4, &exemplar);
            push_bytes(&mut plain, 3, &message);
        }
        if let Some((kind, help, unit)) = &meant.metadata {
            let mut metadata = Vec::new();
            push_number(&mut metadata, 1, u64::from(*kind));
            let (help, unit) = (self.symbol(help), self.symbol(unit));
            push_number(&mut metadata, 3, help);
            push_number(&mut metadata, 4, unit);
            push_bytes(&mut series, 5, &metadata);
        }
        self.series.push(series);
        push_bytes(&mut self.plain, 1, &plain);
    }

    fn request(&self, are_symbols_first: bool) -> Vec<u8> {
        let (mut symbols, mut series) = (Vec::new(), Vec::new());
        self.symbols.iter().for_each(|symbol| push_bytes(&mut symbols, 4, symbol));
        self.series.iter().for_each(|message| push_bytes(&mut series, 5, message));
        match are_symbols_first {
            true => [symbols, series].concat(),
            false => [series, symbols].concat(),
        }
    }
}

const CAP: u64 = 1 << 20;

fn resolved(request: &[u8]) -> Result<(Vec<u8>, u64), ResolveError> {
    let mut out = Vec::new();
    let resolved = resolve(request, &mut out, CAP, |_| Ok::<_, ResolveError>(()))?;
    Ok((out[..resolved.len].to_vec(), resolved.metadata))
}

fn label(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.into(), value.into())
}

fn up() -> Meant {
    let labels = vec![label("__name__", "up"), label("job", "a")];
    Meant { labels, samples: vec![(1_700_000_000_000, 1f64.to_bits(), 0)], ..Meant::default() }
}

fn texts() -> impl Strategy<Value = Vec<u8>> {
    let short = proptest::collection::vec(any::<u8>(), 0..6);
    let long = proptest::collection::vec(any::<u8>(), 20..200);
    // Labels that come again, in series whose length takes one byte and in others.
    let words = ["", "a", "b", "__name__", &"n".repeat(40), &"v".repeat(90)];
    let again = proptest::sample::select(words.map(|word| word.as_bytes().to_vec()).to_vec());
    prop_oneof![12 => again, 4 => short, 1 => long]
}

fn labels(max: usize) -> impl Strategy<Value = Labels> {
    proptest::collection::vec((texts(), texts()), 0..max)
}

fn times() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), 1i64 << 35..1 << 42, any::<i64>()]
}

fn series() -> impl Strategy<Value = Meant> {
    let samples = proptest::collection::vec((times(), any::<u64>(), times()), 0..4);
    let exemplars = proptest::collection::vec((labels(3), times(), any::<u64>()), 0..3);
    let histogram = (times(), any::<u64>()).prop_map(|(t, sum)| {
        let mut message = Vec::new();
        push_float(&mut message, 3, sum);
        push_number(&mut message, 15, t as u64);
        message
    });
    let histograms = proptest::collection::vec((histogram, times()), 0..3);
    let metadata = proptest::option::of((1u8..8, texts(), texts()));
    (labels(20), samples, exemplars, histograms, metadata).prop_map(
        |(labels, samples, exemplars, histograms, metadata)| Meant {
            labels,
            samples,
            exemplars,
            histograms,
            metadata,
        },
    )
}

/// The series of a request of 1.0 as they are, in an order of fields that does not matter.
fn fields(request: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let series = RequestFields::new(request).map(|field| match field.unwrap() {
        RequestField::TimeSeries(series) => {
            let (mut rest, mut fields) = (series, Vec::new());
            while !rest.is_empty() {
                let (_, _, after) = read_field(rest, "test").unwrap();
                fields.push(rest[..rest.len() - after.len()].to_vec());
                rest = after;
            }
            // Labels stay first and in their order.
            fields.sort_by_key(|field| field[0]);
            fields
        }
        RequestField::Metadata(_) => panic!("none is written"),
    });
    series.collect()
}

proptest! {
    #[test]
    fn what_comes_out_is_what_1_0_would_have_sent(
        all in proptest::collection::vec(series(), 0..20),
        are_refs_packed in any::<bool>(),
        are_symbols_first in any::<bool>(),
    ) {
        let mut sender = Sender::new(are_refs_packed);
        all.iter().for_each(|meant| sender.push(meant));
        let (plain, metadata) = resolved(&sender.request(are_symbols_first)).unwrap();
        prop_assert_eq!(fields(&plain), fields(&sender.plain));
        let meant = all.iter().filter(|series| series.metadata.is_some()).count();
        prop_assert_eq!(metadata, meant as u64);
    }

    #[test]
    fn any_bytes_are_resolved_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = resolved(&bytes);
    }
}

#[test]
fn a_usual_series_is_the_bytes_of_1_0() {
    let mut sender = Sender::new(true);
    let mut with_start = up();
    with_start.samples[0].2 = 1_699_999_999_000;
    let long = Meant { labels: vec![label("__name__", &"n".repeat(20_000))], ..up() };
    for meant in [&up(), &with_start, &long, &Meant::default()] {
        sender.push(meant);
    }
    let (plain, _) = resolved(&sender.request(true)).unwrap();
    assert_eq!(plain, sender.plain);
    // And so what lies at its end is found without a full read.
    for field in RequestFields::new(&plain).take(3) {
        let RequestField::TimeSeries(series) = field.unwrap() else { panic!("a series") };
        assert!(split_tail_sample(series).is_some());
    }
}

#[test]
fn a_label_is_found_again_where_it_was_moved_from() {
    // The first series is short enough for a length of one byte, the second is not, and so on: each
    // is moved, and labels were remembered in it and in its exemplars.
    let mut sender = Sender::new(true);
    for i in 0..20 {
        let mut labels = up().labels;
        labels.push(label("of", &format!("{}", i / 2)));
        labels
            .push(label("long", &"x".repeat(if i % 2 == 0 { 1 } else { 200 + 20_000 * (i % 3) })));
        let exemplar =
            (vec![label("of", &format!("{}", i / 2)), label("e", &"y".repeat(150))], 7, 8);
        let exemplars = if i % 4 < 2 { vec![exemplar] } else { vec![] };
        sender.push(&Meant { labels, exemplars, ..up() });
    }
    let (plain, _) = resolved(&sender.request(true)).unwrap();
    assert_eq!(fields(&plain), fields(&sender.plain));
}

#[test]
fn what_the_table_does_not_hold_is_named() {
    let mut symbols = Vec::new();
    for symbol in [&b""[..], b"__name__", b"m"] {
        push_bytes(&mut symbols, 4, symbol);
    }
    let request = |series: &[u8]| {
        let mut request = symbols.clone();
        push_bytes(&mut request, 5, series);
        request
    };
    let refused = |request: &[u8]| match resolved(request) {
        Err(ResolveError::Malformed(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let no_symbol = "remote write 2.0 request: no such symbol";
    let no_value = "label references: a name without a value";
    let cut = "label references: cut short";
    for (series, expected) in [
        (&b"\x0a\x02\x01\x03"[..], no_symbol),
        (b"\x0a\x02\x07\x02", no_symbol),
        (b"\x0a\x06\x01\xff\xff\xff\xff\x0f", no_symbol),
        (b"\x0a\x0b\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", no_symbol),
        (b"\x0a\x03\x01\x02\x01", no_value),
        (b"\x08\x01", no_value),
        (b"\x0a\x01\x80", cut),
        (b"\x0a\x02\x01\x02\x22\x03\x0a\x01\x01", no_value),
        (b"\x0a\x02\x01\x02\x22\x04\x0a\x02\x01\x05", no_symbol),
        (b"\x0a\x02\x01\x02\x2a\x02\x18\x03", no_symbol),
        (b"\x0a\x02\x01\x02\x2a\x02\x20\x03", no_symbol),
        (b"\x10\x01", "timeseries: wrong wire type"),
        (b"\x0d\0\0\0\0", "label references: wrong wire type"),
        (b"\x1a\x04\x88\x01\x01\x88", "histogram: message is cut short"),
        (b"\x1a\x06\x88\x01\x01\x88\x01\x01", "histogram: two start timestamps"),
    ] {
        assert_eq!(refused(&request(series)), expected, "{series:?}");
    }
    for (body, expected) in [
        (&b"\x22\x01a"[..], "the first symbol is not empty"),
        (b"\x20\x01", "wrong wire type"),
        (b"\x28\x01", "wrong wire type"),
        (b"\x0a\x00", "neither symbols nor series, but other fields"),
        (b"\x22\x05a", "message is cut short"),
    ] {
        assert_eq!(refused(body), format!("remote write 2.0 request: {expected}"));
    }
    // A request without anything has nothing wrong with it.
    assert_eq!(resolved(b"").unwrap(), (Vec::new(), 0));
    assert_eq!(resolved(b"\x22\x00").unwrap(), (Vec::new(), 0));
    // No text needs no table.
    assert_eq!(resolved(b"\x2a\x06\x2a\x04\x18\x00\x20\x00").unwrap(), (b"\x0a\x00".to_vec(), 1));
}

/// A symbol of many bytes, which a series names again and again.
fn bomb(symbol_bytes: usize, refs: usize) -> Vec<u8> {
    let mut request = Vec::new();
    push_bytes(&mut request, 4, b"");
    push_bytes(&mut request, 4, &vec![b'x'; symbol_bytes]);
    let mut series = Vec::new();
    push_bytes(&mut series, 1, &vec![1; refs]);
    push_bytes(&mut request, 5, &series);
    request
}

#[test]
fn what_would_be_too_long_is_refused_before_it_takes_memory() {
    let mut out = Vec::new();
    let mut most = 0;
    let admit = |bytes| {
        most = bytes;
        Ok::<_, ResolveError>(())
    };
    let refused = resolve(&bomb(100_000, 1000), &mut out, CAP, admit);
    assert_eq!(refused, Err(TooLong { max: CAP }.into()));
    assert!(out.capacity() as u64 <= CAP + 200, "{}", out.capacity());
    // The table takes twenty bytes a symbol, and is made for as many as are usual.
    assert!(most <= CAP + 80_000, "{most}");
    // The cap is the last length that is taken.
    let (plain, _) = resolved(&bomb(10_000, 40)).unwrap();
    let len = plain.len() as u64;
    for (max, is_taken) in [(len, true), (len - 1, false), (1, false), (0, false)] {
        let taken = resolve(&bomb(10_000, 40), &mut Vec::new(), max, |_| Ok::<_, ResolveError>(()));
        assert_eq!(taken.is_ok(), is_taken, "{max}");
    }
}

#[test]
fn memory_is_taken_only_once_it_was_admitted() {
    #[derive(Debug, PartialEq)]
    struct Full;
    impl From<ResolveError> for Full {
        fn from(error: ResolveError) -> Full {
            panic!("{error}");
        }
    }
    for budget in [0, 100, 100_000, 1_000_000] {
        let mut out = Vec::new();
        let admit = |bytes| if bytes <= budget { Ok(()) } else { Err(Full) };
        assert_eq!(resolve(&bomb(10_000, 1000), &mut out, u64::MAX, admit), Err(Full));
        assert!(out.capacity() as u64 <= budget, "{} of {budget}", out.capacity());
    }
    // A table takes memory, too: eight bytes for a symbol of two.
    let symbols = [0x22, 0].repeat(1_000_000);
    let admit = |bytes| if bytes <= 100_000 { Ok(()) } else { Err(Full) };
    assert_eq!(resolve(&symbols, &mut Vec::new(), u64::MAX, admit), Err(Full));
}

#[test]
fn a_buffer_is_used_again() {
    let mut sender = Sender::new(true);
    sender.push(&up());
    let mut out = vec![0xee; 500_000];
    for _ in 0..2 {
        let admit = |_| Ok::<_, ResolveError>(());
        let resolved = resolve(&sender.request(true), &mut out, CAP, admit).unwrap();
        assert_eq!(out[..resolved.len], sender.plain);
        assert_eq!(out.len(), 500_000);
    }
}
