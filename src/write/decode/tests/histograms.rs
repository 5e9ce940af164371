//! Native histograms in requests: what is one is in the batch, what is none is told, and neither takes
//! memory that was not asked for.

use super::*;
use crate::model::histogram::{
    AnyHistogram, CUSTOM_BUCKETS_SCHEMA, FloatHistogram, Histogram, IntegerHistogram, Layout, Span,
};
use crate::tsdb::chunkenc::samples::ValueRef;
use crate::tsdb::head::batch::SampleKind;

fn spans(spans: &[(i32, u32)]) -> Vec<Span> {
    spans.iter().map(|&(offset, length)| Span { offset, length }).collect()
}

fn integer() -> IntegerHistogram {
    Histogram {
        layout: Layout { positive_spans: spans(&[(-1, 2)]), ..Layout::default() },
        count: 5,
        positive: vec![2, 1],
        ..Histogram::default()
    }
}

fn custom() -> FloatHistogram {
    Histogram {
        layout: Layout {
            schema: CUSTOM_BUCKETS_SCHEMA,
            positive_spans: spans(&[(0, 3)]),
            custom_bounds: vec![1.0, 2.5],
            ..Layout::default()
        },
        count: 6.0,
        positive: vec![1.0, 2.0, 3.0],
        ..Histogram::default()
    }
}

fn message(t: i64, histogram: &AnyHistogram) -> Vec<u8> {
    let mut message = Vec::new();
    HistogramMessage::of_model(t, histogram).push_protobuf(&mut message);
    message
}

/// A series of these labels with these fields behind.
fn with_fields(labels: &[(&str, &str)], fields: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut series = Vec::new();
    for (name, value) in labels {
        push_label(&mut series, TAG_FIELD_1, name.as_bytes(), value.as_bytes());
    }
    fields.iter().for_each(|(tag, field)| push_bytes(&mut series, *tag, field));
    let mut request = Vec::new();
    push_bytes(&mut request, TAG_FIELD_1, &series);
    request
}

fn of_histograms(labels: &[(&str, &str)], histograms: &[AnyHistogram]) -> Vec<u8> {
    let field = |(i, histogram)| (0x22, message(NOW + i, histogram));
    with_fields(labels, &(0..).zip(histograms).map(field).collect::<Vec<_>>())
}

fn decoded(request: &[u8], batch: &mut Batch) -> Result<WriteOutcome, NotDecoded> {
    let options = DecodeOptions::new(Manners::Thanos);
    decode_request(request, &nothing().table.lookup(), options, batch)
}

#[test]
fn what_contradicts_itself_is_told_and_the_rest_is_taken() {
    let of = |change: fn(&mut IntegerHistogram)| {
        let mut histogram = integer();
        change(&mut histogram);
        AnyHistogram::Integer(histogram)
    };
    let of_custom = |change: fn(&mut FloatHistogram)| {
        let mut histogram = custom();
        change(&mut histogram);
        AnyHistogram::Float(histogram)
    };
    let cases = [
        // Spans that lead back to where they began.
        (of(|h| h.layout.positive_spans = spans(&[(0, 1), (-1, 1)])), "negative offset -1"),
        (of(|h| h.layout.positive_spans = spans(&[(0, u32::MAX); 9])), "but there are 2"),
        (of(|h| h.count = 6), "the count is 6"),
        (of(|h| h.positive = vec![2, -3]), "has -1 observations"),
        (of(|h| h.layout.schema = -5), "schema -5"),
        (of(|h| h.positive.push(1)), "name 2 buckets"),
        (
            of(|h| {
                h.layout.positive_spans = spans(&[(0, 1_000_000)]);
                h.positive = vec![0; 1_000_000];
                h.count = 0;
            }),
            "more than 10000 buckets",
        ),
        (of_custom(|h| h.layout.custom_bounds = vec![2.5, 1.0]), "is not above"),
        (of_custom(|h| h.layout.custom_bounds = vec![1.0, f64::INFINITY]), "+Inf"),
        (of_custom(|h| h.layout.custom_bounds = vec![0.0; 10_001]), "more than 10000"),
        (of_custom(|h| h.layout.custom_bounds.clear()), "0 bounds"),
        (of_custom(|h| h.zero_count = 1.0), "a zero bucket"),
    ];
    for (bad, expected) in cases {
        let (good, other) = (AnyHistogram::Integer(integer()), AnyHistogram::Float(custom()));
        let all = [good.clone(), bad, other.clone()];
        let mut batch = Batch::default();
        let mut request = of_histograms(&[("__name__", "h")], &all);
        request.extend(encode(&[series(&[("__name__", "f")], &[(NOW, 1.5)])]));
        let outcome = decoded(&request, &mut batch).unwrap();
        let [(reason, 1, example)] = outcome.refusals.iter().collect::<Vec<_>>()[..] else {
            panic!("{expected}: {}", outcome.refusals)
        };
        assert_eq!(reason, Reason::InvalidHistogram);
        assert!(example.contains("__name__=\"h\"") && example.contains(expected), "{example}");
        assert_eq!(outcome.refused_series.iter().collect::<Vec<_>>(), [(0, reason.code())]);
        let times: Vec<_> = batch.samples.iter().map(|sample| (sample.t, sample.kind)).collect();
        let [float, histogram] = [SampleKind::Float, SampleKind::Histogram];
        assert_eq!(times, [(NOW, histogram), (NOW + 2, histogram), (NOW, float)]);
        for (sample, sent) in batch.samples.iter().zip([good, other]) {
            let ValueRef::Histogram(read) = batch.value(sample) else { panic!("a float") };
            assert_eq!(*read, sent);
        }
    }
}

#[test]
fn a_histogram_of_a_series_that_is_refused_is_not_in_the_batch() {
    let histogram = AnyHistogram::Integer(integer());
    let mut request = of_histograms(&[], std::slice::from_ref(&histogram));
    request.extend(of_histograms(&[("a", "1"), ("a", "2")], std::slice::from_ref(&histogram)));
    request.extend(of_histograms(&[("__name__", "h")], std::slice::from_ref(&histogram)));
    let mut batch = Batch::default();
    let outcome = decoded(&request, &mut batch).unwrap();
    assert_eq!(
        refused(&outcome),
        [(Reason::EmptyLabels, 1), (Reason::DuplicateLabel, 1)],
        "{}",
        outcome.refusals
    );
    assert_eq!((batch.samples.len(), batch.samples[0].v), (1, 0));
    assert!(matches!(batch.value(&batch.samples[0]), ValueRef::Histogram(h) if *h == histogram));
}

/// Labels behind a histogram: the bytes before it name another series, which is known.
#[test]
fn labels_behind_histograms_belong_to_the_series() {
    let histogram = message(NOW, &AnyHistogram::Integer(integer()));
    let mut label = Vec::new();
    push_label(&mut label, TAG_FIELD_1, b"job", b"a");
    let mut known = nothing();
    let before = encode(&[series(&[("__name__", "h")], &[(NOW - 1, 1.0)])]);
    decode(&before, &mut known, Manners::Thanos).unwrap();
    let fields = [(0x22, histogram.clone()), (TAG_FIELD_1, label[2..].to_vec()), (0x22, histogram)];
    let request = with_fields(&[("__name__", "h")], &fields);
    for _ in 0..2 {
        let (decoded, _) = decode(&request, &mut known, Manners::Thanos).unwrap();
        let name = "{__name__=\"h\", job=\"a\"}".to_owned();
        assert_eq!(decoded, [(name.clone(), NOW, 0), (name, NOW, 1)]);
    }
}

#[test]
fn a_message_that_is_cut_short_is_an_error() {
    let whole = message(NOW, &AnyHistogram::Float(custom()));
    for len in 1..whole.len() {
        let request = with_fields(&[("__name__", "h")], &[(0x22, whole[..len].to_vec())]);
        // A prefix may be a message; then it is judged.
        match decoded(&request, &mut Batch::default()) {
            Ok(outcome) => assert!(outcome.refusals.total() <= 1),
            Err(NotDecoded::Malformed(error)) => {
                assert!(matches!(error.field, "histogram" | "bucket span"), "{len} bytes: {error}")
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a request takes is asked for first, whatever few bytes stand for it.
#[test]
fn memory_is_asked_for_before_histograms_take_it() {
    let many = with_fields(&[("__name__", "h")], &vec![(0x22, Vec::new()); 4000]);
    let long = AnyHistogram::Integer(Histogram {
        layout: Layout { positive_spans: spans(&[(0, 10_000)]), ..Layout::default() },
        positive: vec![0; 10_000],
        ..Histogram::default()
    });
    let long = of_histograms(&[("__name__", "h")], &vec![long; 100]);
    for request in [many, long] {
        for budget in [0, 100_000, 300_000, 1_000_000, 64 << 20] {
            let admission = Admission::new(budget);
            let mut held = admission.hold(0);
            let mut batch = Batch::default();
            let decoded = decode_fields(
                RequestFields::new(&request),
                request.len(),
                &nothing().table.lookup(),
                DecodeOptions::new(Manners::Thanos),
                &mut batch,
                &mut held,
            );
            match decoded {
                Ok(_) => assert!(batch.samples.len() >= 100),
                Err(NotDecoded::Overloaded(_)) => assert!(budget < 64 << 20, "{budget}"),
                Err(error) => panic!("{error}"),
            }
            let taken = batch.allocated_bytes() as u64;
            let most = budget.max(SMALL_BATCH_BYTES as u64);
            assert!(taken <= most, "{taken} bytes of {budget}");
        }
    }
}
