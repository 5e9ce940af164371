use proptest::prelude::*;

use super::*;
use crate::model::labels::{TAG_FIELD_1, push_label};
use crate::model::varint::push_varint;
use crate::wire::capnproto::decode::{Position, RequestError, SeriesCaps, next_piece};
use crate::wire::capnproto::frame::Message;
use crate::wire::capnproto::rpc::{self, write_request_of};
use crate::wire::capnproto::write_request_capnp::{histogram, write_request};

const CAPS: SeriesCaps = SeriesCaps { labels_max: 1000, bytes_max: 64 << 10 };

/// A call to write these series.
fn call(encoded: &EncodedWrite) -> Message {
    let packed = [rpc::call_head(1, 0, encoded.words), encoded.packed.clone()].concat();
    rpc::tests::unpacked(&packed)
}

fn encode(tenant: &str, fields: &[Vec<u8>], numbers: &[u32]) -> Message {
    let table = SeriesTable::new(fields.iter().map(Vec::as_slice)).unwrap();
    call(&table.encode(tenant, numbers).unwrap())
}

/// The field of a series.
fn field(message: &[u8]) -> Vec<u8> {
    let mut field = vec![TAG_FIELD_1];
    push_varint(&mut field, message.len() as u64);
    field.extend_from_slice(message);
    field
}

fn labels(labels: &[(&str, &str)]) -> Vec<u8> {
    let mut message = Vec::new();
    for (name, value) in labels {
        push_label(&mut message, TAG_FIELD_1, name.as_bytes(), value.as_bytes());
    }
    message
}

/// 2.0 at 1,700,000,000,000 ms, as senders encode it.
const SAMPLE: &[u8] = b"\x12\x10\x09\0\0\0\0\0\0\0\x40\x10\x80\xd0\x95\xff\xbc\x31";

/// Tenants and their series.
type Pieces = Vec<(Vec<u8>, Vec<u8>)>;

/// Everything in a request, read piece by piece.
fn decode(message: &Message, piece_bytes: usize) -> Result<Pieces, RequestError> {
    let mut position = Position::default();
    let mut pieces = Vec::new();
    loop {
        let mut out = Vec::new();
        match next_piece(message, &mut position, CAPS, piece_bytes, &mut out)? {
            Some(piece) => pieces.push((piece.tenant, out)),
            None => return Ok(pieces),
        }
    }
}

#[test]
fn the_capnp_crate_reads_what_is_written() {
    let fields = [
        field(&[&labels(&[("__name__", "up"), ("job", "a")])[..], SAMPLE, SAMPLE].concat()),
        field(&labels(&[("not", "asked for")])),
        field(&[&labels(&[("__name__", "up"), ("job", "")])[..], b"\x12\0"].concat()),
        field(b""),
    ];
    let message = encode("tenant-8", &fields, &[0, 2, 3]);
    let reader = message.reader();
    let request = write_request_of(&reader).unwrap();
    let symbols = request.get_symbols().unwrap();
    assert_eq!(symbols.get_data().unwrap(), b"__name__upjoba");
    let ends: Vec<u32> = symbols.get_offsets().unwrap().iter().collect();
    assert_eq!(ends, [8, 10, 13, 14, 14]);
    assert!(!request.has_data());
    assert_eq!(request.get_tenant().unwrap(), "tenant-8");
    let series = request.get_time_series().unwrap();
    let read: Vec<_> = series
        .iter()
        .map(|series| {
            let labels = series.get_labels().unwrap().iter();
            let labels: Vec<_> = labels.map(|l| (l.get_name(), l.get_value())).collect();
            let samples = series.get_samples().unwrap().iter();
            let samples: Vec<_> = samples.map(|s| (s.get_timestamp(), s.get_value())).collect();
            (labels, samples)
        })
        .collect();
    let sample = (1_700_000_000_000, 2.0);
    let expected = [
        (vec![(0, 1), (2, 3)], vec![sample, sample]),
        (vec![(0, 1), (2, 4)], vec![(0, 0.0)]),
        (vec![], vec![]),
    ];
    assert_eq!(read, expected);
}

#[test]
fn series_come_back_as_they_were_sent() {
    let exemplar = b"\x1a\x1a\x0a\x08\x0a\x03foo\x12\x01b\x11\0\0\0\0\0\0\x59\x40\
                     \x18\x80\xd0\x95\xff\xbc\x31";
    let fields = [
        field(&[&labels(&[("__name__", "up"), ("job", "a")])[..], SAMPLE].concat()),
        field(&[&labels(&[("__name__", "up")])[..], SAMPLE, exemplar].concat()),
        field(&labels(&[("__name__", "down")])),
    ];
    for piece_bytes in [1, 60, 1 << 20] {
        let pieces = decode(&encode("t", &fields, &[0, 1, 2]), piece_bytes).unwrap();
        assert!(pieces.iter().all(|(tenant, _)| tenant == b"t"));
        let all: Vec<u8> = pieces.iter().flat_map(|(_, series)| series.clone()).collect();
        assert_eq!(all, fields.concat());
        assert_eq!(pieces.len() == 1, piece_bytes > 100, "{piece_bytes}");
    }
    assert!(decode(&encode("t", &fields, &[]), 1).unwrap().is_empty());
}

/// Both kinds of histogram, all fields set, in the order in which they are written.
fn histograms() -> [Vec<u8>; 2] {
    let sum = [&b"\x19"[..], &3.5f64.to_le_bytes()].concat();
    let threshold = [&b"\x29"[..], &1e-128f64.to_le_bytes()].concat();
    let float = |tag: u8, value: f64| [&[tag][..], &value.to_le_bytes()].concat();
    let counts: Vec<u8> = [1.0f64, 2.5].iter().flat_map(|count| count.to_le_bytes()).collect();
    let spans = |tag: u8| [&[tag, 4, 0x08, 0x03, 0x10, 0x02, tag, 2, 0x10, 0x01][..]].concat();
    let deltas = |tag: u8| [tag, 3, 0x02, 0x01, 0x04].to_vec();
    let counts = |tag: u8| [&[tag, 16][..], &counts].concat();
    let end = b"\x70\x03\x78\x80\xd0\x95\xff\xbc\x31";
    let integer = [
        &b"\x08\x07"[..],
        &sum,
        b"\x20\x05",
        &threshold,
        b"\x30\x02",
        &spans(0x42),
        &deltas(0x4a),
        &spans(0x5a),
        &deltas(0x62),
        end,
    ]
    .concat();
    let float = [
        &float(0x11, 7.5)[..],
        &sum,
        b"\x20\x05",
        &threshold,
        &float(0x39, 2.5),
        &spans(0x42),
        &counts(0x52),
        &spans(0x5a),
        &counts(0x6a),
        end,
    ]
    .concat();
    [integer, float]
}

#[test]
fn histograms_have_all_their_fields() {
    let mut series = labels(&[("__name__", "h")]);
    for histogram in histograms() {
        series.extend_from_slice(&[0x22, histogram.len() as u8]);
        series.extend_from_slice(&histogram);
    }
    let fields = [field(&series)];
    let message = encode("t", &fields, &[0]);
    assert_eq!(decode(&message, 1).unwrap(), [(b"t".to_vec(), fields.concat())]);

    let reader = message.reader();
    let request: write_request::Reader<'_> = write_request_of(&reader).unwrap();
    let series = request.get_time_series().unwrap().get(0);
    let read = series.get_histograms().unwrap();
    assert_eq!(read.len(), 2);
    let integer = read.get(0);
    assert!(matches!(integer.get_count().which(), Ok(histogram::count::CountInt(7))));
    assert!(matches!(integer.get_zero_count().which(), Ok(histogram::zero_count::ZeroCountInt(2))));
    assert_eq!((integer.get_sum(), integer.get_schema()), (3.5, -3));
    assert_eq!(integer.get_zero_threshold(), 1e-128);
    assert_eq!(integer.get_reset_hint(), Ok(histogram::ResetHint::Gauge));
    assert_eq!(integer.get_timestamp(), 1_700_000_000_000);
    let spans: Vec<_> = integer.get_negative_spans().unwrap().iter().collect();
    assert_eq!((spans[0].get_offset(), spans[0].get_length()), (-2, 2));
    assert_eq!((spans[1].get_offset(), spans[1].get_length()), (0, 1));
    let deltas: Vec<_> = integer.get_positive_deltas().unwrap().iter().collect();
    assert_eq!(deltas, [1, -1, 2]);
    let counts: Vec<_> = read.get(1).get_positive_counts().unwrap().iter().collect();
    assert_eq!(counts, [1.0, 2.5]);
    let kinds = read.get(1).get_count().which();
    assert!(matches!(kinds, Ok(histogram::count::CountFloat(count)) if count == 7.5));
}

/// A request whose parts are given by the capnp crate's builder.
fn built(fill: impl FnOnce(write_request::Builder<'_>)) -> Message {
    use capnp_rpc::rpc_capnp::message;
    let mut builder = capnp::message::Builder::new_default();
    let mut call = builder.init_root::<message::Builder<'_>>().init_call();
    call.reborrow().get_target().unwrap().set_imported_cap(0);
    let params = call.init_params().get_content();
    type Params<'a> =
        crate::wire::capnproto::write_request_capnp::writer::write_params::Builder<'a>;
    fill(params.init_as::<Params<'_>>().init_wr());
    let mut packed = Vec::new();
    capnp::serialize_packed::write_message(&mut packed, &builder).unwrap();
    rpc::tests::unpacked(&packed)
}

#[test]
fn the_older_form_counts_where_it_is_there() {
    let message = built(|mut request| {
        let mut symbols = request.reborrow().init_symbols();
        symbols.set_data(b"ab");
        symbols.set_offsets(&[1, 2]).unwrap();
        request.set_tenant("old");
        let label = request.reborrow().init_time_series(1).get(0).init_labels(1).get(0);
        { label }.set_value(1);
        request.init_data(1).get(0).set_tenant("new");
    });
    let expected = (b"old".to_vec(), field(&labels(&[("a", "b")])));
    assert_eq!(decode(&message, 1).unwrap(), [expected]);
}

/// A call whose request is a struct with these words of data and these pointers, and what they
/// point to.
fn call_of(data: &[u64], pointers: &[u64], rest: &[u64]) -> Message {
    let mut words = vec![0; rpc::CALL_HEAD_WORDS];
    let head = rpc::tests::unpacked(&[rpc::call_head(1, 0, 0), vec![0; 2]].concat());
    for (to, from) in words.iter_mut().zip(head.into_words()) {
        let bytes = capnp::Word::words_to_bytes(std::slice::from_ref(&from)).try_into().unwrap();
        *to = u64::from_le_bytes(bytes);
    }
    words[rpc::CALL_HEAD_WORDS - 1] = struct_pointer(0, data.len() as u16, pointers.len() as u16);
    words.extend([data, pointers, rest].concat());
    let mut packed = Vec::new();
    pack(&[&[(words.len() as u64) << 32], &words[..]].concat(), &mut packed);
    rpc::tests::unpacked(&packed)
}

#[test]
fn a_request_of_a_later_schema_is_not_taken_for_an_empty_one() {
    let something = list_pointer(0, BYTES, 0);
    let empty = |data: &[u64], pointers: &[u64]| decode(&call_of(data, pointers, &[]), 1);
    let is_refused =
        |decoded: Result<Pieces, _>| matches!(decoded, Err(RequestError::NotUnderstood));
    // Longer structs in which nothing stands are those of an empty request.
    for (data, pointers) in [(0, 0), (0, 3), (0, 4), (2, 9)] {
        assert_eq!(empty(&vec![0; data], &vec![0; pointers]).unwrap(), []);
    }
    assert!(is_refused(empty(&[0, 1 << 63], &[0; 4])));
    assert!(is_refused(empty(&[], &[0, 0, 0, 0, something])));
    assert!(is_refused(empty(&[], &[0, 0, 0, 0, 0, 0, something])));
    // A tenant's name alone has no series either way.
    assert_eq!(empty(&[], &[0, 0, something]).unwrap(), []);

    // A tenant whose series are elsewhere.
    let tuple = |pointers: [u64; 5]| {
        let data = [0, 0, 0, structs_pointer(0, 5)];
        decode(&call_of(&[], &data, &[&[structs_tag(1, 0, 5)], &pointers[..]].concat()), 1)
    };
    assert_eq!(tuple([0; 5]).unwrap(), []);
    assert!(is_refused(tuple([0, 0, 0, something, 0])));

    // What is unknown beside series is skipped.
    let pointers = [0, structs_pointer(3, 4), 0, 0, something];
    let series = [structs_tag(1, 0, 4), 0, 0, 0, 0];
    let decoded = decode(&call_of(&[7], &pointers, &series), 1).unwrap();
    assert_eq!(decoded, [(Vec::new(), field(b""))]);
    // Series that do not fill the older form are read from the newer one.
    let pointers = [0, structs_pointer(2, 0), 0, structs_pointer(1, 3)];
    let tuple = [structs_tag(0, 0, 4), structs_tag(1, 0, 3), 0, structs_pointer(1, 4), 0];
    let decoded = decode(&call_of(&[], &pointers, &[&tuple[..], &series].concat()), 1).unwrap();
    assert_eq!(decoded, [(Vec::new(), field(b""))]);
}

#[test]
fn symbols_that_are_not_there_are_an_error() {
    let with_symbols = |data: &[u8], offsets: &[u32]| {
        decode(
            &built(|mut request| {
                let mut symbols = request.reborrow().init_symbols();
                symbols.set_data(data);
                symbols.set_offsets(offsets).unwrap();
                let series = request.init_data(1).get(0).init_time_series(1).get(0);
                { series.init_labels(1).get(0) }.set_value(1);
            }),
            1,
        )
    };
    assert!(with_symbols(b"ab", &[1, 2]).is_ok());
    let missing = with_symbols(b"ab", &[1]);
    assert!(matches!(missing, Err(RequestError::NoSuchSymbol { number: 1, count: 1 })));
    for offsets in [[1, 3], [2, 1], [u32::MAX, 1], [1, u32::MAX]] {
        let outside = with_symbols(b"ab", &offsets);
        assert!(matches!(outside, Err(RequestError::SymbolOutside { .. })), "{offsets:?}");
    }
    assert!(with_symbols(b"", &[]).is_err());
}

#[test]
fn a_storm_of_labels_is_written_as_far_as_shows_it() {
    // One symbol of 60 KiB and a thousand labels that name it.
    let value = "v".repeat(60 << 10);
    let message = built(|mut request| {
        let mut symbols = request.reborrow().init_symbols();
        symbols.set_data(value.as_bytes());
        symbols.set_offsets(&[value.len() as u32]).unwrap();
        let series = request.init_data(1).get(0).init_time_series(1).get(0);
        series.init_labels(1000);
    });
    let pieces = decode(&message, 1 << 20).unwrap();
    let written = pieces[0].1.len();
    assert!((CAPS.bytes_max + 1..CAPS.bytes_max + 100).contains(&written), "{written}");
}

#[test]
fn what_no_peer_takes_is_not_sent() {
    let label = "v".repeat(MESSAGE_BYTES_MAX - 1000);
    let fields = [field(&labels(&[("a", &label)]))];
    let table = SeriesTable::new(fields.iter().map(Vec::as_slice)).unwrap();
    assert!(table.encode("t", &[0]).is_ok());
    let label = "v".repeat(MESSAGE_BYTES_MAX - 100);
    let fields = [field(&labels(&[("a", &label)]))];
    let table = SeriesTable::new(fields.iter().map(Vec::as_slice)).unwrap();
    let bytes = table.encode("t", &[0]).unwrap_err().bytes;
    assert!(bytes > MESSAGE_BYTES_MAX, "{bytes}");
}

/// A histogram message of this schema.
fn histogram_of(schema: i8, rest: &[u8]) -> Vec<u8> {
    let zigzag = (schema << 1 ^ schema >> 7) as u8;
    let message = [&[0x20, zigzag], rest].concat();
    [&[0x22, message.len() as u8], &message[..]].concat()
}

#[test]
fn what_the_schema_has_no_place_for_goes_another_way() {
    let bounds = b"\x82\x01\x08\0\0\0\0\0\0\xf0\x3f";
    let series = [
        field(&[&labels(&[("a", "1")])[..], SAMPLE].concat()),
        field(&[&labels(&[("a", "2")])[..], &histogram_of(-53, bounds)].concat()),
        field(&[&labels(&[("a", "3")])[..], &histogram_of(3, b"")].concat()),
        field(&[&labels(&[("a", "4")])[..], &histogram_of(-53, b"")].concat()),
        field(&[&labels(&[("a", "5")])[..], SAMPLE, &histogram_of(3, bounds), SAMPLE].concat()),
        // No histogram: its schema is text.
        field(&[&labels(&[("a", "6")])[..], b"\x22\x03\x22\x01a"].concat()),
    ];
    let table = SeriesTable::new(series.iter().map(Vec::as_slice)).unwrap();
    let split = |numbers: &[u32]| table.split(numbers, PART_BYTES_MAX);
    // By their places among those asked for, not by their numbers.
    let expected = vec![Part::CapnProto(vec![1, 3]), Part::Other(vec![0, 2, 4])];
    assert_eq!(split(&[4, 2, 3, 0, 1]), Some(expected));
    assert_eq!(split(&[1, 3]), Some(vec![Part::Other(vec![0, 1])]));
    assert_eq!(split(&[5, 0]), Some(vec![Part::CapnProto(vec![1]), Part::Other(vec![0])]));
    let message = call(&table.encode("t", &[0, 2]).unwrap());
    assert_eq!(decode(&message, 1 << 20).unwrap()[0].1, [&series[0][..], &series[2]].concat());
    let all = SeriesTable::new([&series[0][..], &series[2]]).unwrap();
    assert_eq!(all.split(&[0, 1], PART_BYTES_MAX), None);
}

prop_compose! {
    fn any_series()(
        pairs in proptest::collection::vec((0..9u8, 0..9u8), 0..6),
        times in proptest::collection::vec(any::<i64>(), 0..3),
        value in any::<f64>(),
    ) -> Vec<u8> {
        let text = |n: u8| "x".repeat(usize::from(n)) + &n.to_string()[..usize::from(n > 3)];
        let mut message = Vec::new();
        for (name, value) in pairs {
            push_label(&mut message, TAG_FIELD_1, text(name).as_bytes(), text(value).as_bytes());
        }
        for t in times.into_iter().filter(|t| *t != 0) {
            let mut sample = Vec::new();
            if value.to_bits() != 0 {
                sample.push(0x09);
                sample.extend_from_slice(&value.to_le_bytes());
            }
            sample.push(0x10);
            push_varint(&mut sample, t as u64);
            message.extend_from_slice(&[0x12, sample.len() as u8]);
            message.extend_from_slice(&sample);
        }
        field(&message)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_series_come_back(
        fields in proptest::collection::vec(any_series(), 1..12),
        tenant in "[a-z]{0,20}",
        piece_bytes in 1usize..200,
    ) {
        let numbers: Vec<u32> = (0..fields.len() as u32).rev().step_by(2).collect();
        let message = encode(&tenant, &fields, &numbers);
        let pieces = decode(&message, piece_bytes).unwrap();
        prop_assert!(pieces.iter().all(|(name, _)| name == tenant.as_bytes()));
        let all: Vec<u8> = pieces.into_iter().flat_map(|(_, series)| series).collect();
        let expected: Vec<_> = numbers.iter().map(|n| fields[*n as usize].clone()).collect();
        prop_assert_eq!(all, expected.concat());
    }

    #[test]
    fn parts_are_short_and_have_all_series_in_their_order(
        fields in proptest::collection::vec(any_series(), 1..40),
        histograms in proptest::collection::vec(0..40usize, 0..3),
        bytes_max in 700usize..4000,
    ) {
        let mut fields = fields;
        for at in histograms.into_iter().filter(|at| *at < 10) {
            let histogram = histogram_of(3, b"\x5a\x02\x10\x02\x62\x02\x02\x02");
            let exemplar = b"\x1a\x0c\x0a\x08\x0a\x03foo\x12\x01b\x18\x02";
            let message = [&labels(&[("at", &at.to_string())])[..], &histogram, exemplar].concat();
            fields.push(field(&message));
        }
        let table = SeriesTable::new(fields.iter().map(Vec::as_slice)).unwrap();
        let numbers: Vec<u32> = (0..fields.len() as u32).rev().collect();
        let numbers_of =
            |places: &[u32]| places.iter().map(|at| numbers[*at as usize]).collect::<Vec<_>>();
        let bytes_of = |numbers: &[u32]| {
            let encoded = table.encode("t", numbers).unwrap();
            (encoded.words as usize + rpc::CALL_HEAD_WORDS + 1) * 8
        };
        let Some(parts) = table.split(&numbers, bytes_max) else {
            prop_assert!(bytes_of(&numbers) <= bytes_max);
            return Ok(());
        };
        let mut places = Vec::new();
        for part in &parts {
            match part {
                Part::CapnProto(part) => {
                    prop_assert!(bytes_of(&numbers_of(part)) <= bytes_max);
                    prop_assert!(part.is_sorted());
                    places.extend_from_slice(part);
                }
                Part::Other(part) => {
                    for place in part {
                        // Alone, but for what is taken for the rest of a message at most.
                        prop_assert!(bytes_of(&numbers_of(&[*place])) + 512 > bytes_max);
                    }
                    places.extend_from_slice(part);
                }
            }
        }
        places.sort();
        prop_assert!(places.into_iter().eq(0..numbers.len() as u32));
    }

    /// Any words behind a call's head, and a good request with words changed.
    #[test]
    fn hostile_words_are_an_answer(
        words in proptest::collection::vec(any::<u64>(), 4..60),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 1..6),
        fields in proptest::collection::vec(any_series(), 1..5),
    ) {
        let mut packed = Vec::new();
        pack(&words, &mut packed);
        let random = call(&EncodedWrite { words: words.len() as u32, packed });
        let _ = rpc::read(&random);
        let _ = decode(&random, 100);

        let table = SeriesTable::new(fields.iter().map(Vec::as_slice)).unwrap();
        let numbers: Vec<u32> = (0..fields.len() as u32).collect();
        let mut good = call(&table.encode("t", &numbers).unwrap()).into_words();
        for (index, change) in changes {
            let word = index.get_mut(&mut good);
            let small = change % 7;
            // A whole word, or a small step that leaves it a pointer.
            let bytes = capnp::Word::words_to_bytes_mut(std::slice::from_mut(word));
            let old = u64::from_le_bytes(bytes.try_into().unwrap());
            let new = if small < 3 { change } else { old.wrapping_add(small << (change % 61)) };
            bytes.copy_from_slice(&new.to_le_bytes());
        }
        let good: Vec<u64> = good
            .iter()
            .map(|word| {
                let bytes = capnp::Word::words_to_bytes(std::slice::from_ref(word));
                u64::from_le_bytes(bytes.try_into().unwrap())
            })
            .collect();
        let mut packed = Vec::new();
        pack(&[&[(good.len() as u64) << 32], &good[..]].concat(), &mut packed);
        let changed = rpc::tests::unpacked(&packed);
        let _ = rpc::read(&changed);
        let _ = rpc::written(&changed);
        let _ = rpc::bootstrapped(&changed);
        if let Ok(pieces) = decode(&changed, 100) {
            // Symbols may be named again and again, but a series ends at the caps.
            let bytes: usize = pieces.iter().map(|(_, series)| series.len()).sum();
            prop_assert!(bytes < 64 << 20, "{}", bytes);
        }
    }
}
