use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::hashring::{
    Algorithm, Endpoint, Hashring, HashringMetrics, RingDefaults, RingOptions, ShardingOptions,
};
use crate::metrics::Registry;
use crate::wire::snappy::framed::{self, push_stream_head};
use crate::write::admission::Admission;
use crate::write::error::Reason;

const TENANT: &str = "team";
const NOW: u64 = 1_700_000_000_000;

fn hashring(endpoint_count: usize, replication_factor: usize, algorithm: Algorithm) -> Hashring {
    let endpoints = (0..endpoint_count).map(|i| Endpoint::at(&format!("node-{i}:10901")));
    let options = RingOptions { endpoints: endpoints.collect(), ..RingOptions::default() };
    let defaults = RingDefaults { algorithm, replication_factor };
    Hashring::build(vec![options], defaults, None, &HashringMetrics::new(&Registry::new()))
}

fn push_field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A series message with one sample.
fn series(labels: &[(&str, &str)]) -> Vec<u8> {
    let mut message = Vec::new();
    for (name, value) in labels {
        push_label(&mut message, TAG_FIELD_1, name.as_bytes(), value.as_bytes());
    }
    let mut sample = vec![0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x10];
    push_varint(&mut sample, NOW);
    push_field(&mut message, 0x12, &sample);
    message
}

fn request(all: &[Vec<u8>]) -> Bytes {
    let mut request = Vec::new();
    for series in all {
        push_field(&mut request, 0x0a, series);
    }
    request.into()
}

fn unplaced(request: Bytes, manners: Manners) -> Unplaced<'static> {
    let inflight = Admission::new(u64::MAX).admit(0).unwrap();
    let caps = LabelCaps::default();
    Unplaced { request, is_of_peer: false, tenant: TENANT, manners, caps, inflight }
}

fn place(hashring: &Hashring, request: Bytes, manners: Manners, replicas: Replicas) -> Placed {
    let ring = hashring.ring_of(TENANT).unwrap();
    distribute(unplaced(request, manners), &ring, hashring.endpoints().len(), replicas).unwrap()
}

/// Labels of each series that a batch carries, read back from its bytes.
fn labels_of(placed: &Placed, batch: &Batch) -> Vec<Vec<(String, String)>> {
    let mut all = Vec::new();
    for field in placed.series().fields(&batch.groups) {
        let mut fields = RequestFields::of_peer(field);
        let Some(RequestField::TimeSeries(body)) = fields.next_field().unwrap() else {
            panic!("no series")
        };
        assert_eq!(fields.next_field(), Ok(None), "one field and nothing else");
        let mut labels = Vec::new();
        let mut samples = 0;
        let mut fields = SeriesFields::new(body);
        while let Some(field) = fields.next_field().unwrap() {
            match field {
                SeriesField::Label { name, value } => labels.push((
                    String::from_utf8(name.to_vec()).unwrap(),
                    String::from_utf8(value.to_vec()).unwrap(),
                )),
                SeriesField::Sample { t, v } => {
                    assert_eq!((t as u64, v), (NOW, 1f64.to_bits()));
                    samples += 1;
                }
                _ => {}
            }
        }
        assert_eq!(samples, 1);
        all.push(labels);
    }
    all
}

fn numbered(i: usize) -> Vec<u8> {
    series(&[("__name__", "up"), ("instance", &format!("host-{i}"))])
}

#[test]
fn series_of_a_tenant_with_a_shard_are_grouped_as_those_of_a_ring() {
    for (nodes, shard_size) in [(30, 3), (30, 20), (3, 3)] {
        let endpoints = (0..nodes).map(|i| Endpoint::at(&format!("node-{i}:10901"))).collect();
        let sharding = ShardingOptions { shard_size, cache_size: 1, ..ShardingOptions::default() };
        let options = RingOptions { endpoints, sharding, ..RingOptions::default() };
        let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 3 };
        let metrics = HashringMetrics::new(&Registry::new());
        let hashring = Hashring::build(vec![options], defaults, None, &metrics);
        let ring = hashring.ring_of(TENANT).unwrap();
        let all: Vec<_> = (0..1000).map(numbered).collect();
        let placed = place(&hashring, request(&all), Manners::Thanos, Replicas::All(3));
        if shard_size == 3 {
            assert_eq!(placed.series().group_count(), 6, "the orders of three");
        }
        let mut hasher = SeriesHasher::for_tenant(TENANT.as_bytes());
        let mut copies = 0;
        for batch in &placed.batches {
            for labels in labels_of(&placed, batch) {
                let pairs = labels.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
                let replica = usize::from(batch.replica);
                assert_eq!(ring.replicas_of(hasher.hash(pairs))[replica], batch.endpoint);
                copies += 1;
            }
        }
        assert_eq!(copies, 3000);
    }
}

#[test]
fn every_series_is_where_its_hash_says_once_per_replica() {
    for algorithm in [Algorithm::Hashmod, Algorithm::Ketama] {
        for factor in 1..=5 {
            let hashring = hashring(7, factor, algorithm);
            let ring = hashring.ring_of(TENANT).unwrap();
            let all: Vec<_> = (0..200).map(numbered).collect();
            let replicas = Replicas::All(factor as u8);
            let placed = place(&hashring, request(&all), Manners::Thanos, replicas);
            assert_eq!(placed.series_count(), 200);
            let mut copies = 0;
            let mut hasher = SeriesHasher::for_tenant(TENANT.as_bytes());
            for batch in &placed.batches {
                for labels in labels_of(&placed, batch) {
                    let pairs = labels.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
                    let replica = usize::from(batch.replica);
                    assert_eq!(ring.replicas_of(hasher.hash(pairs))[replica], batch.endpoint);
                    copies += 1;
                }
            }
            assert_eq!(copies, 200 * factor);
            let (outcome, batches) = (&placed.outcome, &placed.batches);
            assert_eq!((outcome.series, outcome.samples_stored), (200, 200));
            let mut keys: Vec<_> = batches.iter().map(|b| (b.endpoint, b.replica)).collect();
            keys.dedup();
            assert_eq!(keys.len(), batches.len(), "one batch per endpoint and replica");
        }
    }
}

#[test]
fn one_replica_alone_is_placed_as_the_others_would_be() {
    let hashring = hashring(5, 3, Algorithm::Ketama);
    let all: Vec<_> = (0..50).map(numbered).collect();
    let whole = place(&hashring, request(&all), Manners::Thanos, Replicas::All(3));
    for replica in 0..3 {
        let one = place(&hashring, request(&all), Manners::Thanos, Replicas::One(replica));
        let expected = whole.batches.iter().filter(|batch| batch.replica == replica);
        assert_eq!(one.batches, expected.cloned().collect::<Vec<_>>());
    }
}

#[test]
fn series_that_the_rules_refuse_have_no_place() {
    let hashring = hashring(3, 3, Algorithm::Ketama);
    let all = [
        series(&[("__name__", "up")]),
        series(&[("b", "1"), ("a", "2")]),
        series(&[]),
        series(&[("a", "1"), ("a", "2")]),
        series(&[("a", "")]),
        numbered(1),
    ];
    let placed = place(&hashring, request(&all), Manners::Thanos, Replicas::All(3));
    assert_eq!(placed.series_count(), 2);
    let refused: Vec<_> = placed.outcome.refusals.iter().map(|(r, count, _)| (r, count)).collect();
    let expected = [
        (Reason::EmptyLabels, 1),
        (Reason::EmptyLabel, 1),
        (Reason::DuplicateLabel, 1),
        (Reason::OutOfOrderLabels, 1),
    ];
    assert_eq!(refused, expected);
    assert_eq!((placed.outcome.series, placed.outcome.samples_stored), (6, 2));
}

#[test]
fn labels_that_had_to_be_sorted_go_on_sorted() {
    let hashring = hashring(5, 1, Algorithm::Ketama);
    let sorted = series(&[("__name__", "up"), ("a", "1"), ("b", "2")]);
    let mixed = series(&[("b", "2"), ("c", ""), ("__name__", "up"), ("a", "1")]);
    let usual = place(&hashring, request(&[sorted]), Manners::Prometheus, Replicas::All(1));
    let all = [numbered(3), mixed];
    let placed = place(&hashring, request(&all), Manners::Prometheus, Replicas::All(1));
    let home = placed.batches.iter().find(|batch| batch.groups.contains(&1)).unwrap();
    assert_eq!(home.endpoint, usual.batches[0].endpoint);
    let labels = labels_of(&placed, home).pop().unwrap();
    let names: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(names, ["__name__=up", "a=1", "b=2"]);
}

#[test]
fn nothing_but_series_travels_on() {
    let hashring = hashring(1, 1, Algorithm::Hashmod);
    let message = numbered(1);
    // What a tenant's name is in a peer's message; a length of two bytes where one would do; a
    // field that nobody knows; metadata.
    let mut bytes = b"\x12\x05other".to_vec();
    bytes.push(0x0a);
    bytes.extend([message.len() as u8 | 0x80, 0]);
    bytes.extend_from_slice(&message);
    bytes.extend_from_slice(b"\x7a\x01x\x1a\x00");
    push_field(&mut bytes, 0x0a, &message);
    let placed = place(&hashring, bytes.into(), Manners::Thanos, Replicas::All(1));
    let [batch] = &placed.batches[..] else { panic!("one batch") };
    let mut expected = Vec::new();
    push_field(&mut expected, 0x0a, &message);
    let fields: Vec<_> = placed.series().fields(&batch.groups).collect();
    assert_eq!(fields, [&expected[..]; 2]);
    assert_eq!(placed.outcome.metadata, 1);
}

#[test]
fn a_request_that_is_none_is_refused_whole() {
    let hashring = hashring(1, 1, Algorithm::Hashmod);
    let ring = hashring.ring_of(TENANT).unwrap();
    for bytes in [&b"\x0a\x05x"[..], b"\x0a\x02\x12\x05", b"\x08\x01", b"\x0a\x03\x1a\x01\xff"] {
        let unplaced = unplaced(Bytes::from_static(bytes), Manners::Thanos);
        let result = distribute(unplaced, &ring, 1, Replicas::All(1));
        assert!(matches!(result, Err(DistributeError::Decode(_))), "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_placed_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let hashring = hashring(3, 2, Algorithm::Ketama);
        let ring = hashring.ring_of(TENANT).unwrap();
        let mut damaged = request(&[numbered(1), numbered(2)]).to_vec();
        for (index, byte) in noise {
            let index = index.index(damaged.len());
            damaged[index] = byte;
        }
        for bytes in [bytes, damaged] {
            for manners in [Manners::Thanos, Manners::Prometheus] {
                let unplaced = unplaced(bytes.clone().into(), manners);
                let Ok(placed) = distribute(unplaced, &ring, 3, Replicas::All(2)) else { continue };
                for batch in &placed.batches {
                    prop_assert!(placed.series().fields(&batch.groups).count() >= batch.groups.len());
                }
            }
        }
    }
}

/// What [`distribute`] would give if it read every series in full.
fn distribute_by_full_reads(
    unplaced: Unplaced<'_>,
    ring: &Ring,
    endpoint_count: usize,
    replicas: Replicas,
) -> Result<Placed, DistributeError> {
    let request = unplaced.request.clone();
    let mut distributor = Distributor::new(unplaced, &request, ring)?;
    let mut fields = RequestFields::new(&request);
    while let Some(field) = fields.next_field()? {
        match field {
            RequestField::TimeSeries(body) => {
                distributor.outcome.series += 1;
                distributor.take_unusual(body, request.len() - fields.rest().len())?;
            }
            RequestField::Metadata(metadata) => {
                check_message(metadata, "metadata")?;
                distributor.outcome.metadata += 1;
            }
        }
    }
    Ok(distributor.finish(request.clone(), endpoint_count, replicas))
}

/// How a label is encoded.
#[derive(Clone, Copy, Debug)]
enum Style {
    Usual,
    /// With a length that takes more bytes than it must.
    LongLength,
    ValueFirst,
    /// With a field that nobody knows.
    UnknownField,
    NoValue,
    /// A message that ends within the value.
    CutShort,
}

fn push_long_varint(out: &mut Vec<u8>, value: usize) {
    out.extend([value as u8 & 0x7f | 0x80, (value >> 7) as u8 | 0x80, (value >> 14) as u8]);
}

fn push_styled(out: &mut Vec<u8>, name: &str, value: &[u8], style: Style) {
    let mut label = Vec::new();
    match style {
        Style::Usual => return push_label(out, TAG_FIELD_1, name.as_bytes(), value),
        Style::LongLength => {
            label.push(0x0a);
            push_long_varint(&mut label, name.len());
            label.extend_from_slice(name.as_bytes());
            push_field(&mut label, 0x12, value);
            out.push(TAG_FIELD_1);
            push_long_varint(out, label.len());
            return out.extend_from_slice(&label);
        }
        Style::ValueFirst => {
            push_field(&mut label, 0x12, value);
            push_field(&mut label, 0x0a, name.as_bytes());
        }
        Style::UnknownField => {
            push_field(&mut label, 0x0a, name.as_bytes());
            push_field(&mut label, 0x12, value);
            label.extend([0x38, 1]);
        }
        Style::NoValue => push_field(&mut label, 0x0a, name.as_bytes()),
        Style::CutShort => {
            push_field(&mut label, 0x0a, name.as_bytes());
            label.extend([0x12, 9, b'x']);
        }
    }
    push_field(out, TAG_FIELD_1, &label);
}

fn any_style() -> impl Strategy<Value = Style> {
    prop_oneof![
        200 => Just(Style::Usual),
        20 => Just(Style::LongLength),
        5 => Just(Style::ValueFirst),
        5 => Just(Style::UnknownField),
        5 => Just(Style::NoValue),
        1 => Just(Style::CutShort),
    ]
}

/// A series: most are as senders write them, each part may be otherwise.
fn any_series() -> impl Strategy<Value = Vec<u8>> {
    let names = ["__name__", "a", "ab", "abcdefgh", "abcdefgh\0", "abcdefghi", "job", "é", ""];
    let values = prop_oneof![
        20 => "[a-z]{1,40}".prop_map(String::into_bytes),
        2 => "[a-z]{100,300}".prop_map(String::into_bytes),
        1 => "[a-zé\u{0}]{0,3}".prop_map(String::into_bytes),
        1 => Just(b"\xff".to_vec()),
    ];
    let label = (prop::sample::select(names.to_vec()), values, any_style());
    let behind = prop_oneof![
        20 => Just(Vec::new()),
        1 => Just(vec![0x12, 0]),
        1 => Just(vec![0x12, 2, 0x10, 5]),
        1 => Just(vec![0x1a, 0, 0x22, 0]),
        1 => Just(b"\x0a\x06\x0a\x01z\x12\x01z".to_vec()),
        1 => Just(vec![0x7a, 1, b'x']),
    ];
    let has_sample = prop::bool::weighted(0.9);
    let order = prop::bool::weighted(0.8);
    (prop::collection::vec(label, 0..8), has_sample, behind, order).prop_map(
        |(mut labels, has_sample, behind, in_order)| {
            if in_order {
                labels.sort_by(|a, b| a.0.cmp(b.0));
                labels.dedup_by(|a, b| a.0 == b.0);
            }
            let mut message = Vec::new();
            for (name, value, style) in &labels {
                push_styled(&mut message, name, value, *style);
            }
            if has_sample {
                let sample = series(&[]);
                message.extend_from_slice(&sample);
            }
            message.extend_from_slice(&behind);
            message
        },
    )
}

/// Where each series goes: endpoint, replica, bytes.
fn copies(placed: &Placed) -> Vec<(EndpointIndex, u8, &[u8])> {
    let mut copies = Vec::new();
    for batch in &placed.batches {
        let fields = placed.series().fields(&batch.groups);
        copies.extend(fields.map(|field| (batch.endpoint, batch.replica, field)));
    }
    copies.sort_unstable();
    copies
}

proptest! {
    /// Odd encodings, repeats, refusals, small caps, different rings one after another.
    #[test]
    fn one_pass_places_as_a_full_read_does(
        pool in prop::collection::vec(any_series(), 1..12),
        picks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..150),
        rings in prop::collection::vec((3usize..12, 1usize..=3, any::<bool>()), 1..3),
        tight in any::<bool>(),
        damage in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut bytes = Vec::new();
        for (pick, is_usual) in picks {
            let message = pick.get(&pool);
            bytes.push(0x0a);
            match is_usual || message.len() >= 1 << 21 {
                true => push_varint(&mut bytes, message.len() as u64),
                false => push_long_varint(&mut bytes, message.len()),
            }
            bytes.extend_from_slice(message);
        }
        if let Some(index) = damage
            && !bytes.is_empty()
        {
            let index = index.index(bytes.len());
            bytes[index] ^= 0x15;
        }
        let request = Bytes::from(bytes);
        let caps = match tight {
            true => LabelCaps { labels_max: 4, bytes_max: 120 },
            false => LabelCaps::default(),
        };
        for (endpoint_count, factor, is_ketama) in rings {
            let algorithm = if is_ketama { Algorithm::Ketama } else { Algorithm::Hashmod };
            let hashring = hashring(endpoint_count, factor, algorithm);
            let ring = hashring.ring_of(TENANT).unwrap();
            let replicas = Replicas::All(factor as u8);
            for manners in [Manners::Thanos, Manners::Prometheus] {
                let unplaced = || Unplaced { caps, ..unplaced(request.clone(), manners) };
                let expected =
                    distribute_by_full_reads(unplaced(), &ring, endpoint_count, replicas);
                let placed = distribute(unplaced(), &ring, endpoint_count, replicas);
                let (expected, placed) = match (expected, placed) {
                    (Ok(expected), Ok(placed)) => (expected, placed),
                    (Err(expected), placed) => {
                        prop_assert_eq!(placed.err(), Some(expected));
                        continue;
                    }
                    (Ok(_), Err(error)) => panic!("{error}"),
                };
                prop_assert_eq!(copies(&placed), copies(&expected));
                prop_assert_eq!(&placed.batches, &expected.batches);
                prop_assert_eq!(
                    format!("{:?}", placed.outcome), format!("{:?}", expected.outcome)
                );
            }
        }
    }
}

#[test]
fn what_senders_usually_write_takes_one_pass() {
    let long = "x".repeat(200);
    let labels = [("__name__", "up"), ("instance", "host:9090"), ("path", &long), ("zone", "b")];
    let request = request(&[series(&labels), numbered(2)]);
    let ring = hashring(3, 1, Algorithm::Ketama).ring_of(TENANT).unwrap();
    for manners in [Manners::Thanos, Manners::Prometheus] {
        let unplaced = unplaced(request.clone(), manners);
        let mut distributor = Distributor::new(unplaced, &request, &ring).unwrap();
        let mut fields = RequestFields::new(&request);
        let mut hasher = SeriesHasher::for_tenant(TENANT.as_bytes());
        let Ok(Some(RequestField::TimeSeries(body))) = fields.next_field() else { panic!() };
        let end = request.len() - fields.rest().len();
        let read = distributor.read_in_one_pass(body, end);
        // Prometheus wants UTF-8, which is seen at once only where lengths take a byte each.
        let expected = (manners == Manners::Thanos).then(|| OrderedLabels {
            hash: hasher.hash(labels.map(|(name, value)| (name.as_bytes(), value.as_bytes()))),
            bytes: body.len() - 18,
        });
        assert_eq!(read, expected);
        let Ok(Some(RequestField::TimeSeries(body))) = fields.next_field() else { panic!() };
        let read = distributor.read_in_one_pass(body, request.len());
        assert!(read.is_some(), "at the request's end, too");
    }
}

#[test]
fn series_that_share_replicas_share_a_group() {
    let ring = |endpoint_count| hashring(endpoint_count, 3, Algorithm::Ketama);
    let all: Vec<_> = (0..200).map(numbered).collect();
    let place =
        |hashring: &Hashring| place(hashring, request(&all), Manners::Thanos, Replicas::All(3));
    let few = place(&ring(3));
    assert_eq!(few.series().group_count(), 6);
    let whole: Vec<u32> = (0..6).collect();
    let fields: Vec<_> = few.series().fields(&whole).collect();
    assert_eq!((fields.len(), fields.iter().collect::<HashSet<_>>().len()), (200, 200));
    // A large ring has too many sets: each series is a group of its own.
    assert_eq!(place(&ring(10)).series().group_count(), 200);
}

#[test]
fn what_is_deflated_once_inflates_to_each_batch() {
    let long = "x".repeat(4 << 10);
    let all: Vec<_> = (0..200)
        .map(|i| series(&[("__name__", "up"), ("instance", &format!("host-{i}")), ("z", &long)]))
        .collect();
    let hashring = hashring(3, 3, Algorithm::Ketama);
    let placed = place(&hashring, request(&all), Manners::Thanos, Replicas::All(3));
    let deflated = DeflatedGroups::of(placed.series()).expect("six groups of 24 KiB and more");
    assert_eq!(placed.batches.len(), 9);
    for batch in &placed.batches {
        let mut stream = Vec::new();
        push_stream_head(&mut stream);
        deflated.chunks(&batch.groups).for_each(|chunks| stream.extend_from_slice(chunks));
        let len = framed::inflated_len(&stream, 1 << 30).unwrap();
        let mut buffer = Vec::new();
        let inflated = framed::inflate(&stream, len, &mut buffer).unwrap();
        let fields: Vec<_> = placed.series().fields(&batch.groups).collect();
        assert_eq!(inflated, fields.concat());
        assert_eq!(deflated.plain_bytes(&batch.groups), inflated.len());
    }
    let small: Vec<_> = (0..200).map(numbered).collect();
    let placed = place(&hashring, request(&small), Manners::Thanos, Replicas::All(3));
    assert!(DeflatedGroups::of(placed.series()).is_none());
}

#[test]
fn places_of_many_short_series_are_held_against_the_nodes_budget() {
    let hashring = hashring(3, 3, Algorithm::Ketama);
    let ring = hashring.ring_of(TENANT).unwrap();
    // A label of one byte, and no sample: the shortest series there is.
    let request = Bytes::from(b"\x0a\x08\x0a\x06\x0a\x01a\x12\x01b".repeat(10_000));
    // Alone, beside others, and where not even alone.
    for (budget, others, expected) in
        [(1 << 20, 0, "fits"), (1 << 20, 700_000, "later"), (400_000, 0, "never")]
    {
        let admission = Admission::new(budget);
        let others = admission.hold(others);
        let inflight = admission.admit(0).unwrap();
        let unplaced = Unplaced { inflight, ..unplaced(request.clone(), Manners::Thanos) };
        let placed = distribute(unplaced, &ring, 3, Replicas::All(3));
        let found = match &placed {
            Ok(_) => "fits",
            Err(DistributeError::Overloaded(_)) => "later",
            Err(DistributeError::OverBudget { .. }) => "never",
            Err(error) => panic!("{error}"),
        };
        assert_eq!(found, expected);
        let held = admission.inflight_bytes() - others.bytes();
        assert_eq!(held >= 10_000 * PLACE_BYTES as u64, placed.is_ok(), "{held} bytes");
        drop(placed);
        assert_eq!(admission.inflight_bytes(), others.bytes());
    }
}

#[test]
fn a_storm_of_empty_samples_is_refused_where_it_comes_in() {
    let hashring = hashring(3, 3, Algorithm::Ketama);
    let ring = hashring.ring_of(TENANT).unwrap();
    for (samples, is_storm) in [(4096, false), (4097, true)] {
        let body = [&b"\x0a\x06\x0a\x01a\x12\x01b"[..], &b"\x12\x00".repeat(samples)].concat();
        let mut request = Vec::new();
        push_field(&mut request, 0x0a, &body);
        let placed =
            distribute(unplaced(request.into(), Manners::Thanos), &ring, 3, Replicas::All(3));
        assert_eq!(placed.err(), is_storm.then_some(DistributeError::Decode(STORM)), "{samples}");
    }
}
