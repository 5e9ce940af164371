//! Write requests from outside: no bytes panic, and a request means the same whether its series are
//! known or not.
//!
//! Input: one byte for the endpoint's manners, then the inflated body.

use ringest::model::fingerprint::Fingerprinter;
use ringest::model::key_table::{KeyTable, Slot};
use ringest::tsdb::head::batch::Batch;
use ringest::write::Manners;
use ringest::write::decode::{DecodeOptions, decode_request};

/// Samples as (key, time, value as text), and what was refused; `None` for a broken request.
type Meaning = Option<(Vec<(Vec<u8>, i64, String)>, Vec<(&'static str, u64)>)>;

/// Series as a head knows them: their keys by slot.
struct Known {
    table: KeyTable,
    keys: Vec<Vec<u8>>,
}

impl Known {
    fn new(fingerprinter: Fingerprinter) -> Known {
        Known { table: KeyTable::new(fingerprinter), keys: Vec::new() }
    }
}

/// Decodes, and makes the new series as a head would.
fn decode(request: &[u8], known: &mut Known, manners: Manners) -> Meaning {
    let mut batch = Batch::default();
    let lookup = known.table.lookup();
    let outcome = decode_request(request, &lookup, DecodeOptions::new(manners), &mut batch).ok()?;
    let mut slots = Vec::new();
    let mut adder = known.table.adder();
    for new in &batch.new_series {
        let slot = adder.find_canonical(new.fingerprint).unwrap_or_else(|| {
            let slot = known.keys.len() as Slot;
            adder.add(new.fingerprint, slot);
            known.keys.push(batch.key(new).to_vec());
            slot
        });
        slots.push(Some(slot));
    }
    for alias in &batch.aliases {
        let slot = Batch::slot_of(alias.series, &slots).expect("a new series has a slot");
        adder.add_alias(batch.raw(alias), slot, alias.rules);
    }
    let samples = batch.samples.iter().map(|sample| {
        let slot = Batch::slot_of(sample.series, &slots).expect("a sample has a series");
        (known.keys[slot as usize].clone(), sample.t, format!("{:?}", batch.value(sample)))
    });
    let refused = outcome.refusals.iter().map(|(reason, count, _)| (reason.as_str(), count));
    Some((samples.collect(), refused.collect()))
}

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let Some((manners, request)) = input.split_first() else { return };
    let manners = match manners & 1 {
        0 => Manners::Thanos,
        _ => Manners::Prometheus,
    };
    let fingerprinter = Fingerprinter::random();
    let mut known = Known::new(fingerprinter.clone());
    let first = decode(request, &mut known, manners);
    let again = decode(request, &mut known, manners);
    assert_eq!(first, again, "known and unknown");
    // Twice in one body: later windows and another order of look-ups.
    if first.is_some() {
        let twice = [request, request].concat();
        let warm = decode(&twice, &mut known, manners);
        let cold = decode(&twice, &mut Known::new(fingerprinter), manners);
        assert_eq!(warm, cold, "known and unknown, twice");
    }
}

/// Inputs to begin with: one and two series, labels in order and not; histograms, one of which is none.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let field = |number: u8, body: &[u8]| [&[number << 3 | 2, body.len() as u8][..], body].concat();
    let label = |name: &[u8], value: &[u8]| field(1, &[field(1, name), field(2, value)].concat());
    let sample = field(2, b"\x09\0\0\0\0\0\0\xf0\x3f\x10\x80\x08");
    let up = field(1, &[label(b"__name__", b"up"), label(b"job", b"a"), sample.clone()].concat());
    let mixed = field(1, &[label(b"z", b"1"), label(b"a", b""), sample.clone(), sample].concat());
    // Two buckets of one observation each, and a count beside them.
    let buckets =
        |count: u8| [&[0x08, count, 0x5a, 2, 0x10, 2, 0x62, 2, 2, 0, 0x78, 9][..]].concat();
    let floats = b"\x11\0\0\0\0\0\0\xf0\x3f\x5a\x02\x10\x01\x6a\x08\0\0\0\0\0\0\xf0\x3f\x78\x09";
    let histograms = [field(4, &buckets(2)), field(4, &buckets(3)), field(4, floats)].concat();
    let histograms = field(1, &[label(b"__name__", b"h"), histograms].concat());
    let input = |manners: u8, request: &[u8]| [&[manners][..], request].concat();
    vec![
        input(0, &up),
        input(1, &up),
        input(0, &[up, mixed.clone()].concat()),
        input(1, &mixed),
        input(0, &histograms),
    ]
}
