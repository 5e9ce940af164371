//! Requests against the rules of both endpoints, and the fast path against the full one.

mod histograms;

use proptest::prelude::*;

use super::*;
use crate::model::fingerprint::Fingerprinter;
use crate::model::key_table::{KeyTable, Slot};
use crate::model::labels::{SeriesKey, TAG_FIELD_1, push_label};
use crate::model::varint::push_varint;
use crate::tsdb::head::batch::NEW_BIT;

const NOW: i64 = 1_700_000_000_000;

#[derive(Clone, Debug, Default)]
struct TestSeries {
    labels: Vec<(String, String)>,
    samples: Vec<(i64, f64)>,
    exemplars: u64,
    histograms: u64,
}

fn series(labels: &[(&str, &str)], samples: &[(i64, f64)]) -> TestSeries {
    let labels = labels.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    TestSeries { labels: labels.collect(), samples: samples.to_vec(), exemplars: 0, histograms: 0 }
}

fn push_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn encode(all: &[TestSeries]) -> Vec<u8> {
    let mut request = Vec::new();
    for series in all {
        let mut message = Vec::new();
        for (name, value) in &series.labels {
            push_label(&mut message, TAG_FIELD_1, name.as_bytes(), value.as_bytes());
        }
        for (t, v) in &series.samples {
            let mut sample = Vec::new();
            if v.to_bits() != 0 {
                sample.push(0x09);
                sample.extend_from_slice(&v.to_le_bytes());
            }
            sample.push(0x10);
            push_varint(&mut sample, *t as u64);
            push_bytes(&mut message, 0x12, &sample);
        }
        for _ in 0..series.exemplars {
            push_bytes(&mut message, 0x1a, &[0x10, 1]);
        }
        for _ in 0..series.histograms {
            // Integers: a count without buckets.
            push_bytes(&mut message, 0x22, &[0x08, 3]);
        }
        push_bytes(&mut request, 0x0a, &message);
    }
    request
}

/// A decoded sample: labels, time and value bits.
type Decoded = (String, i64, u64);

/// Series as a head knows them: their keys by slot.
struct Known {
    table: KeyTable,
    keys: Vec<SeriesKey>,
}

/// Decodes, and makes the new series, as a head would.
fn decode(
    request: &[u8],
    known: &mut Known,
    manners: Manners,
) -> Result<(Vec<Decoded>, WriteOutcome), NotDecoded> {
    let mut batch = Batch::default();
    let options = DecodeOptions { keeps_exemplars: false, ..DecodeOptions::new(manners) };
    let outcome = decode_request(request, &known.table.lookup(), options, &mut batch)?;
    let mut slots = Vec::new();
    let mut adder = known.table.adder();
    for new in &batch.new_series {
        let slot = adder.find_canonical(new.fingerprint).unwrap_or_else(|| {
            let slot = known.keys.len() as Slot;
            adder.add(new.fingerprint, slot);
            known.keys.push(SeriesKey::from_canonical(batch.key(new)));
            slot
        });
        slots.push(Some(slot));
    }
    for alias in &batch.aliases {
        let slot = Batch::slot_of(alias.series, &slots).unwrap();
        adder.add_alias(batch.raw(alias), slot, alias.rules);
    }
    let decoded = batch.samples.iter().map(|sample| {
        let slot = Batch::slot_of(sample.series, &slots).unwrap();
        (format!("{:?}", known.keys[slot as usize]), sample.t, sample.v)
    });
    Ok((decoded.collect(), outcome))
}

fn nothing() -> Known {
    Known { table: KeyTable::new(Fingerprinter::random()), keys: Vec::new() }
}

fn refused(outcome: &WriteOutcome) -> Vec<(Reason, u64)> {
    outcome.refusals.iter().map(|(reason, count, _)| (reason, count)).collect()
}

/// Labels, what Thanos refuses them for, and what Prometheus' receiver does.
type JudgedLabels<'a> = (&'a [(&'a str, &'a str)], Option<Reason>, Option<Reason>);

#[test]
fn labels_are_judged_by_the_endpoints_rules() {
    let long = "x".repeat(70_000);
    let cases: &[JudgedLabels] = &[
        (&[("__name__", "up"), ("job", "a")], None, None),
        (&[], Some(Reason::EmptyLabels), Some(Reason::EmptyLabels)),
        (&[("job", "a"), ("__name__", "up")], Some(Reason::OutOfOrderLabels), None),
        (&[("__name__", "up"), ("a", "")], Some(Reason::EmptyLabel), None),
        (&[("", "up"), ("__name__", "x")], Some(Reason::EmptyLabel), Some(Reason::InvalidLabels)),
        (
            &[("__name__", "up"), ("a", "1"), ("a", "1")],
            Some(Reason::DuplicateLabel),
            Some(Reason::DuplicateLabel),
        ),
        (&[("job", "a")], None, Some(Reason::InvalidLabels)),
        (&[("__name__", &long)], Some(Reason::TooManyLabels), Some(Reason::TooManyLabels)),
    ];
    for (labels, thanos, prometheus) in cases {
        let request = encode(&[series(labels, &[(NOW, 1.0)])]);
        for (manners, reason) in [(Manners::Thanos, thanos), (Manners::Prometheus, prometheus)] {
            let (decoded, outcome) = decode(&request, &mut nothing(), manners).unwrap();
            let expected: Vec<_> = reason.iter().map(|reason| (*reason, 1)).collect();
            assert_eq!(refused(&outcome), expected, "{labels:?} {manners:?}");
            assert_eq!(decoded.len(), usize::from(reason.is_none()));
        }
    }
}

#[test]
fn an_order_accepted_under_one_rule_is_still_refused_under_the_other() {
    let request = encode(&[series(&[("job", "a"), ("__name__", "up")], &[(NOW, 1.0)])]);
    let mut known = nothing();
    for _ in 0..2 {
        let (decoded, _) = decode(&request, &mut known, Manners::Prometheus).unwrap();
        assert_eq!(decoded[0].0, "{__name__=\"up\", job=\"a\"}");
        let (decoded, outcome) = decode(&request, &mut known, Manners::Thanos).unwrap();
        assert!(decoded.is_empty());
        assert_eq!(refused(&outcome), [(Reason::OutOfOrderLabels, 1)]);
    }
    assert_eq!(known.keys.len(), 1);
}

#[test]
fn what_is_not_stored_is_counted() {
    let mut histogram = series(&[("__name__", "h")], &[]);
    histogram.histograms = 2;
    let mut exemplar = series(&[("__name__", "e")], &[(NOW, 1.0)]);
    exemplar.exemplars = 3;
    let mut request = encode(&[histogram, exemplar]);
    push_bytes(&mut request, 0x1a, &[0x08, 1]);
    let mut known = nothing();
    for _ in 0..2 {
        let (decoded, outcome) = decode(&request, &mut known, Manners::Thanos).unwrap();
        assert_eq!(decoded.len(), 1);
        assert_eq!(refused(&outcome), [(Reason::InvalidHistogram, 2)]);
        assert_eq!((outcome.series, outcome.exemplars_dropped, outcome.metadata), (2, 3, 1));
    }
    assert_eq!(known.keys.len(), 1, "a series without a sample is not made");
}

#[test]
fn labels_behind_samples_belong_to_the_series() {
    let mut message = Vec::new();
    push_label(&mut message, TAG_FIELD_1, b"__name__", b"up");
    push_bytes(&mut message, 0x12, &[0x10, 1]);
    push_label(&mut message, TAG_FIELD_1, b"job", b"a");
    let mut request = encode(&[series(&[("__name__", "up")], &[(NOW, 1.0)])]);
    push_bytes(&mut request, TAG_FIELD_1, &message);
    let mut known = nothing();
    for _ in 0..2 {
        let (decoded, _) = decode(&request, &mut known, Manners::Thanos).unwrap();
        assert_eq!(decoded[1], ("{__name__=\"up\", job=\"a\"}".into(), 1, 0));
    }
    assert_eq!(known.keys.len(), 2);
}

#[test]
fn damaged_requests_are_errors_that_name_the_field() {
    let whole = encode(&[series(&[("__name__", "up")], &[(NOW, 1.0)])]);
    let err = decode(&whole[..whole.len() - 1], &mut nothing(), Manners::Thanos).unwrap_err();
    assert!(err.to_string().starts_with("timeseries: "), "{err}");
    let mut bad_sample = Vec::new();
    push_label(&mut bad_sample, TAG_FIELD_1, b"__name__", b"up");
    push_bytes(&mut bad_sample, 0x12, &[0x08, 1]);
    let mut request = Vec::new();
    push_bytes(&mut request, TAG_FIELD_1, &bad_sample);
    let err = decode(&request, &mut nothing(), Manners::Thanos).unwrap_err();
    assert_eq!(err.to_string(), "sample: wrong wire type");
}

#[test]
fn a_request_has_no_more_samples_than_its_length_allows_in_earnest() {
    let storm = |samples: usize| {
        let mut message = Vec::new();
        push_label(&mut message, TAG_FIELD_1, b"__name__", b"storm");
        message.extend([0x12, 0].repeat(samples));
        let mut request = Vec::new();
        push_bytes(&mut request, 0x0a, &message);
        request
    };
    let mut batch = Batch::default();
    let decode = |request: &[u8], batch: &mut Batch| {
        let options = DecodeOptions::new(Manners::Thanos);
        decode_request(request, &nothing().table.lookup(), options, batch)
    };
    let error = decode(&storm(1_000_000), &mut batch).unwrap_err();
    assert_eq!(error, STORM.into());
    assert!(batch.samples.len() <= 2_000_100 / SAMPLE_BYTES_MIN);
    batch.clear();
    decode(&storm(SAMPLES_ALLOWED), &mut batch).unwrap();
    assert_eq!(batch.samples.len(), SAMPLES_ALLOWED);
    // The shortest samples that are real.
    batch.clear();
    let samples: Vec<(i64, f64)> = (0..100_000).map(|i| (NOW + i, 0.0)).collect();
    decode(&encode(&[series(&[("__name__", "zeros")], &samples)]), &mut batch).unwrap();
    assert_eq!(batch.samples.len(), samples.len());
}

/// An encoding that looks as the usual one and is longer is no canonical key.
#[test]
fn a_length_that_takes_more_bytes_than_it_must_is_an_alias() {
    let usual = series(&[("__name__", "up"), ("job", "x")], &[(NOW, 1.5)]);
    let mut label = vec![0x0a, 0x08];
    label.extend(b"__name__");
    label.extend([0x12, 0x82, 0x00]);
    label.extend(b"up");
    let mut message = Vec::new();
    push_bytes(&mut message, TAG_FIELD_1, &label);
    push_label(&mut message, TAG_FIELD_1, b"job", b"x");
    push_bytes(&mut message, 0x12, &encode(&[series(&[], &[(NOW, 1.5)])])[4..]);
    let mut longer = Vec::new();
    push_bytes(&mut longer, 0x0a, &message);
    for manners in [Manners::Thanos, Manners::Prometheus] {
        let mut known = nothing();
        // As the first of its series, known by both from then on; and again.
        for request in [&longer, &encode(std::slice::from_ref(&usual)), &longer, &longer] {
            let (decoded, _) = decode(request, &mut known, manners).unwrap();
            let labels = "{__name__=\"up\", job=\"x\"}".to_owned();
            assert_eq!(decoded, [(labels, NOW, 1.5f64.to_bits())]);
        }
        assert_eq!(known.keys.len(), 1);
    }
}

fn any_series() -> impl Strategy<Value = TestSeries> {
    let samples = prop::collection::vec((NOW..NOW + 50, any::<f64>()), 0..4);
    let sample = (NOW..NOW + 50, prop_oneof![Just(0.0), any::<f64>()]).prop_map(|s| vec![s]);
    let times = prop_oneof![4 => sample, 1 => samples];
    (0..40usize, times).prop_map(|(number, samples)| {
        let number = format!("{number}");
        series(&[("__name__", "m"), ("n", &number)], &samples)
    })
}

proptest! {
    /// Whatever was known before, a request means the same.
    #[test]
    fn known_and_unknown_series_decode_alike(
        warm in prop::collection::vec(any_series(), 0..60),
        requests in prop::collection::vec(prop::collection::vec(any_series(), 0..60), 1..4),
    ) {
        let mut known = nothing();
        decode(&encode(&warm), &mut known, Manners::Thanos).unwrap();
        for request in requests {
            let expected: Vec<Decoded> = request
                .iter()
                .flat_map(|series| {
                    let name = format!("{{__name__=\"m\", n=\"{}\"}}", series.labels[1].1);
                    series.samples.iter().map(move |(t, v)| (name.clone(), *t, v.to_bits()))
                })
                .collect();
            let (decoded, _) = decode(&encode(&request), &mut known, Manners::Thanos).unwrap();
            prop_assert_eq!(decoded, expected);
        }
    }

    /// Runs of series in the order in which they were made, with others between, some unknown, some
    /// with another number of samples: whichever guesses are right, each sample is its own series'.
    #[test]
    fn series_in_kept_order_decode_as_in_any_other(
        runs in prop::collection::vec((0..500usize, 1..120usize, 0..4usize), 1..8),
    ) {
        let of = |number: usize, samples: &[(i64, f64)]| {
            series(&[("__name__", "m"), ("n", &format!("{number}"))], samples)
        };
        let warm: Vec<_> = (0..400).map(|number| of(number, &[(NOW, 0.0)])).collect();
        let mut known = nothing();
        decode(&encode(&warm), &mut known, Manners::Thanos).unwrap();
        let mut request = Vec::new();
        for (first, len, between) in runs {
            request.extend((first..first + len).map(|n| of(n, &[(NOW + 1, n as f64)])));
            let samples: Vec<_> = (0..between as i64).map(|i| (NOW + i, 0.5)).collect();
            request.push(of(first / 2, &samples));
        }
        let expected: Vec<Decoded> = request
            .iter()
            .flat_map(|series| {
                let name = format!("{{__name__=\"m\", n=\"{}\"}}", series.labels[1].1);
                series.samples.iter().map(move |(t, v)| (name.clone(), *t, v.to_bits()))
            })
            .collect();
        let (decoded, outcome) = decode(&encode(&request), &mut known, Manners::Thanos).unwrap();
        prop_assert_eq!(decoded, expected);
        prop_assert_eq!(outcome.series, request.len() as u64);
    }

    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut batch = Batch::default();
        let options = DecodeOptions::new(Manners::Prometheus);
        let _ = decode_request(&bytes, &nothing().table.lookup(), options, &mut batch);
        for sample in &batch.samples {
            let series = (sample.series & !NEW_BIT) as usize;
            prop_assert!(sample.series & NEW_BIT != 0 && series < batch.new_series.len());
        }
    }
}

#[test]
fn exemplars_go_with_their_series() {
    let exemplar = |trace: &str, t: u8| {
        let mut message = Vec::new();
        push_label(&mut message, TAG_FIELD_1, b"trace_id", trace.as_bytes());
        message.extend([3 << 3, t]);
        let mut field = Vec::new();
        push_bytes(&mut field, 3 << 3 | 2, &message);
        field
    };
    let message = |name: &str, samples: usize, exemplars: &[Vec<u8>]| {
        let mut message = Vec::new();
        push_label(&mut message, TAG_FIELD_1, b"__name__", name.as_bytes());
        message.extend([0x12, 2, 0x10, 1].repeat(samples));
        exemplars.iter().for_each(|exemplar| message.extend(exemplar));
        message
    };
    let long = exemplar(&"x".repeat(121), 1);
    let series = [
        message("a", 1, &[]),
        message("b", 2, &[exemplar("x", 7), exemplar("y", 8)]),
        message("unknown", 0, &[exemplar("x", 1)]),
        message("c", 1, &[long, exemplar("z", 9)]),
        message("", 1, &[exemplar("x", 1)]),
    ];
    let mut request = Vec::new();
    series.iter().for_each(|series| push_bytes(&mut request, TAG_FIELD_1, series));
    let known = nothing();
    let mut batch = Batch::default();
    let options = DecodeOptions::new(Manners::Thanos);
    let outcome = decode_request(&request, &known.table.lookup(), options, &mut batch).unwrap();
    let found: Vec<_> = batch
        .exemplars
        .iter()
        .map(|one| {
            let labels = crate::model::labels::DisplayLabels(batch.exemplar_labels(one));
            (one.place, one.series & !NEW_BIT, one.sample, one.t, labels.to_string())
        })
        .collect();
    let label = |trace: &str| format!("{{trace_id={trace:?}}}");
    let expected = [
        (1, 1, Some(2), 7, label("x")),
        (1, 1, Some(2), 8, label("y")),
        (3, 2, Some(3), 9, label("z")),
    ];
    assert_eq!(found, expected);
    assert_eq!(refused(&outcome), [(Reason::EmptyLabel, 1), (Reason::ExemplarTooLong, 1)]);
    assert_eq!((outcome.exemplars_dropped, outcome.written.exemplars), (0, 0));
}
