use proptest::prelude::*;

use super::*;
use crate::hashring::{Algorithm, Endpoint, Hashring, HashringMetrics, RingDefaults, RingOptions};
use crate::metrics::Registry;
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
    Unplaced { request, is_of_peer: false, tenant: TENANT, manners, caps: LabelCaps::default() }
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
                    let section = ring.section_of(hasher.hash(pairs));
                    let replica = usize::from(batch.replica);
                    assert_eq!(ring.replicas(section)[replica], batch.endpoint);
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
