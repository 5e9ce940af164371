//! Recorded placements of Thanos, one test per file of `tests/data/ring`.

use serde_json::Value;

use super::glob::Glob;
use super::go_rand::GoRand;
use super::*;

fn recorded(name: &str) -> Value {
    let path = format!("{}/tests/data/ring/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("recorded data");
    serde_json::from_str(&text).expect("recorded data is JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} is a list in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is a text in {value}"))
}

fn number<T: std::str::FromStr>(value: &Value) -> T {
    let Ok(number) = value.as_str().expect("a decimal text").parse() else {
        panic!("{value} is a number")
    };
    number
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn endpoint(value: &Value) -> Endpoint {
    match value {
        Value::String(address) => Endpoint::at(address),
        object => {
            let az = object["az"].as_str().unwrap_or_default().to_owned();
            Endpoint { az, ..Endpoint::at(text(object, "address")) }
        }
    }
}

fn ring_options(value: &Value) -> RingOptions {
    RingOptions {
        name: value["hashring"].as_str().unwrap_or_default().to_owned(),
        tenants: value["tenants"]
            .as_array()
            .map(|tenants| tenants.iter().filter_map(|t| Some(t.as_str()?.to_owned())).collect())
            .unwrap_or_default(),
        tenant_matcher: TenantMatcher::parse(
            value["tenant_matcher_type"].as_str().unwrap_or_default(),
        ),
        endpoints: value["endpoints"]
            .as_array()
            .map(|endpoints| endpoints.iter().map(endpoint).collect())
            .unwrap_or_default(),
        algorithm: AlgorithmChoice::parse(value["algorithm"].as_str().unwrap_or_default()),
        external_labels: BTreeMap::new(),
        sharding: ShardingOptions::default(),
    }
}

fn sharding_options(value: &Value) -> ShardingOptions {
    let entry = |value: &Value| ShardingOverride {
        shard_size: value["shard_size"].as_i64().unwrap(),
        tenants: texts(&value["tenants"]).into_iter().map(str::to_owned).collect(),
        tenant_matcher: TenantMatcher::parse(
            value["tenant_matcher_type"].as_str().unwrap_or_default(),
        ),
    };
    ShardingOptions {
        shard_size: value["shard_size"].as_i64().unwrap(),
        cache_size: 0,
        zone_awareness_disabled: value["zone_awareness_disabled"].as_bool().unwrap(),
        overrides: value["overrides"]
            .as_array()
            .map(|overrides| overrides.iter().map(entry).collect())
            .unwrap_or_default(),
    }
}

fn build(rings: Vec<RingOptions>, algorithm: Algorithm, replication_factor: usize) -> Hashring {
    let metrics = HashringMetrics::new(&Registry::new());
    Hashring::build(rings, RingDefaults { algorithm, replication_factor }, None, &metrics)
}

/// A hashring of one ring, as the recorded one says.
fn build_recorded(ring: &Value, algorithm: Algorithm) -> Hashring {
    build(vec![ring_options(ring)], algorithm, ring["rf"].as_u64().unwrap() as usize)
}

fn hash_of(series: &Value) -> u64 {
    let labels: Vec<_> = list(series, "labels").iter().map(texts).collect();
    let labels = labels.iter().map(|label| (label[0].as_bytes(), label[1].as_bytes()));
    SeriesHasher::for_tenant(text(series, "tenant").as_bytes()).hash(labels)
}

fn placed(hashring: &Hashring, ring: &Ring, hash: u64) -> Vec<String> {
    ring.replicas_of(hash).iter().map(|index| hashring.endpoint(*index).address.clone()).collect()
}

fn kind(error: &RingError) -> &'static str {
    match error {
        RingError::NoEndpoints => "insufficient_nodes",
        RingError::FewerEndpointsThanReplicationFactor { .. } => "fewer_endpoints_than_rf",
        RingError::ZonesWithHashmod { .. } => "zones_with_hashmod",
        RingError::ShardingWithHashmod => "sharding_with_hashmod",
        RingError::ShardLargerThanRing { .. } => "shard_larger_than_ring",
        RingError::ShardLargerThanZone { .. } => "shard_larger_than_zone",
        RingError::ZoneTooSmall { .. } => "zone_too_small",
        RingError::TooManyEndpoints { .. } => "too_many_endpoints",
    }
}

fn failure_of_first(hashring: &Hashring) -> Option<RingError> {
    match hashring.rings().next().expect("one ring").state {
        RingState::NotBuilt(error) => Some(error),
        RingState::InForce | RingState::LastGood(_) => None,
    }
}

#[test]
fn series_hashes_are_those_of_thanos() {
    use base64::Engine as _;
    let recorded = recorded("series_hash");
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    // One hasher for all, to see that nothing of one series stays for the next.
    let mut hasher = SeriesHasher::for_tenant(b"");
    for case in list(&recorded, "cases") {
        let bytes = |text: &str| match case["encoding"].as_str() {
            Some("base64") => base64(text),
            _ => text.as_bytes().to_vec(),
        };
        let labels: Vec<(Vec<u8>, Vec<u8>)> = list(case, "labels")
            .iter()
            .map(|label| (bytes(label[0].as_str().unwrap()), bytes(label[1].as_str().unwrap())))
            .collect();
        hasher.set_tenant(&bytes(text(case, "tenant")));
        let hash = hasher.hash(labels.iter().map(|(name, value)| (&name[..], &value[..])));
        assert_eq!(hash, number::<u64>(&case["hash"]), "{case}");
    }
    for case in list(&recorded, "split_tenant").iter().filter(|case| case["error"].is_null()) {
        let labels: Vec<_> = list(case, "labels_after").iter().map(texts).collect();
        hasher.set_tenant(text(case, "tenant").as_bytes());
        let hash = hasher.hash(labels.iter().map(|l| (l[0].as_bytes(), l[1].as_bytes())));
        assert_eq!(hash, number::<u64>(&case["hash"]), "{case}");
    }
    for case in list(&recorded, "xxhash64") {
        let hash = xxhash_rust::xxh64::xxh64(&base64(text(case, "base64")), 0);
        assert_eq!(hash, number::<u64>(&case["hash"]), "{case}");
    }
}

/// Checks `placements` of all `series` in `rings`.
fn check_rings(recorded: &Value, algorithm: Algorithm) {
    let series: Vec<u64> = list(recorded, "series").iter().map(hash_of).collect();
    for (series, hash) in list(recorded, "series").iter().zip(&series) {
        assert_eq!(*hash, number::<u64>(&series["hash"]), "{series}");
    }
    for recorded in list(recorded, "rings") {
        let name = text(recorded, "name");
        let hashring = build_recorded(recorded, algorithm);
        let ring = hashring.ring_of("any tenant").expect(name);
        let placements = list(recorded, "placements");
        assert_eq!(placements.len(), series.len());
        for (hash, expected) in series.iter().zip(placements) {
            assert_eq!(placed(&hashring, &ring, *hash), texts(expected), "{name}, {hash}");
        }
    }
}

#[test]
fn hashmod_places_like_thanos() {
    let recorded = recorded("hashmod");
    check_rings(&recorded, Algorithm::Hashmod);
    for ring in list(&recorded, "rings") {
        let mut options = ring_options(ring);
        let sorted = texts(&ring["sorted"]);
        // The endpoints in ring order are where hashes 0, 1, … go.
        let hashring = build(vec![options.clone()], Algorithm::Hashmod, 1);
        let ring_in_force = hashring.ring_of("").unwrap();
        for (hash, expected) in sorted.iter().enumerate() {
            assert_eq!(placed(&hashring, &ring_in_force, hash as u64), [*expected]);
        }
        // The first replica number that is refused is the number of endpoints.
        let beyond = ring["beyond"]["n"].as_u64().unwrap() as usize;
        options.endpoints.reverse();
        let hashring = build(vec![options], Algorithm::Hashmod, beyond + 1);
        let ring_in_force = hashring.ring_of("").unwrap();
        assert_eq!(ring_in_force.require_replicas(beyond), Ok(()));
        let error = PlacementError::InsufficientNodes { have: beyond, want: beyond + 1 };
        assert_eq!(ring_in_force.require_replicas(beyond + 1), Err(error));
        assert!(matches!(
            hashring.warnings(),
            [.., RingWarning { kind: RingWarningKind::InsufficientNodes { .. }, .. }]
        ));
    }
    for refusal in list(&recorded, "refusals") {
        let hashring = build_recorded(refusal, Algorithm::Hashmod);
        match text(refusal, "error") {
            "insufficient_nodes" if !list(refusal, "endpoints").is_empty() => {
                let replicas = refusal["rf"].as_u64().unwrap() as usize;
                assert!(hashring.ring_of("").unwrap().require_replicas(replicas).is_err());
            }
            expected => {
                assert_eq!(kind(&failure_of_first(&hashring).expect(expected)), expected);
            }
        }
    }
}

/// Checks number, first and last sections of a ketama ring.
fn check_sections(recorded: &Value) {
    let hashring = build_recorded(recorded, Algorithm::Ketama);
    let ring = hashring.ring_of("").unwrap();
    let expected = &recorded["sections"];
    let whole = ring.whole().unwrap();
    assert_eq!(whole.section_count() as u64, expected["count"].as_u64().unwrap());
    let hashes = ring.section_hashes();
    let (first, last) = (list(expected, "first"), list(expected, "last"));
    let from_end = hashes.len() - last.len();
    for (i, section) in first.iter().enumerate().chain((from_end..).zip(last)) {
        assert_eq!(hashes[i], number::<u64>(&section[0]), "section {i} of {recorded}");
        let owner = whole.replicas(ring::SectionIndex(i as u32))[0];
        assert_eq!(hashring.endpoint(owner).address, section[1].as_str().unwrap());
    }
}

#[test]
fn ketama_places_like_thanos() {
    let recorded = recorded("ketama");
    check_rings(&recorded, Algorithm::Ketama);
    list(&recorded, "rings").iter().for_each(check_sections);
    for ring in list(&recorded, "ring_ends") {
        let hashring = build_recorded(ring, Algorithm::Ketama);
        let in_force = hashring.ring_of("").unwrap();
        for (series, expected) in list(ring, "series").iter().zip(list(ring, "placements")) {
            assert_eq!(placed(&hashring, &in_force, hash_of(series)), texts(expected), "{series}");
        }
    }
    for refusal in list(&recorded, "refusals") {
        let hashring = build_recorded(refusal, Algorithm::Ketama);
        let error = failure_of_first(&hashring).expect("refused");
        assert_eq!(kind(&error), text(refusal, "error"));
        assert!(matches!(hashring.ring_of("t"), Err(PlacementError::NotBuilt { .. })));
        assert!(hashring.endpoints().is_empty(), "a ring that is not built has no endpoints");
    }
}

#[test]
fn ketama_spreads_over_zones_like_thanos() {
    let recorded = recorded("ketama_az");
    check_rings(&recorded, Algorithm::Ketama);
    list(&recorded, "rings").iter().for_each(check_sections);
    for ring in list(&recorded, "construction_ends") {
        let failure = failure_of_first(&build_recorded(ring, Algorithm::Ketama));
        match (ring["ends"].as_bool().unwrap(), failure) {
            (true, None) => {}
            (false, Some(RingError::ZoneTooSmall { zone, .. })) => {
                assert!(["", "az-2", "az-3"].contains(&zone.as_str()), "{zone} in {ring}");
            }
            (_, failure) => panic!("{ring}: {failure:?}"),
        }
    }
}

#[test]
fn random_numbers_are_those_of_go() {
    let recorded = recorded("go_rand");
    for sequence in list(&recorded, "sequences") {
        let mut rand = GoRand::from_seed(number(&sequence["seed"]));
        for _ in 0..sequence["skip"].as_u64().unwrap() {
            rand.next_u64();
        }
        for draw in list(sequence, "draws") {
            assert_eq!(rand.next_u64(), number::<u64>(draw), "{sequence}");
        }
    }
    for case in list(&recorded, "seeds") {
        let seed = shuffle::seed(text(case, "tenant"), text(case, "az"));
        assert_eq!(seed, number::<i64>(&case["seed"]), "{case}");
    }
}

#[test]
fn shuffle_shards_are_those_of_thanos() {
    let recorded = recorded("shuffle_sharding");
    let common: Vec<_> = list(&recorded, "labels").iter().map(texts).collect();
    for case in list(&recorded, "rings") {
        let name = text(case, "name");
        let mut options = ring_options(case);
        options.sharding = sharding_options(&case["shuffle_sharding_config"]);
        let factor = case["rf"].as_u64().unwrap() as usize;
        let hashring = build(vec![options], Algorithm::Hashmod, factor);
        if let Some(expected) = case["refused"].as_str() {
            assert_eq!(kind(&failure_of_first(&hashring).expect(name)), expected, "{name}");
            continue;
        }
        for expected in list(case, "tenants") {
            check_shard(&hashring, expected, &common, name);
        }
    }
    for case in list(&recorded, "first_write_ends") {
        let mut options = ring_options(case);
        options.sharding = sharding_options(&case["shuffle_sharding_config"]);
        let factor = case["rf"].as_u64().unwrap() as usize;
        let hashring = build(vec![options], Algorithm::Ketama, factor);
        for (tenant, ends) in case["tenants"].as_object().unwrap() {
            match (ends.as_bool().unwrap(), hashring.ring_of(tenant)) {
                (true, Ok(_)) => {}
                (false, Err(PlacementError::Subring { error, .. })) => {
                    assert_eq!(kind(&error), "zone_too_small");
                }
                (_, other) => panic!("{tenant}: {other:?}"),
            }
        }
    }
}

fn check_shard(hashring: &Hashring, expected: &Value, common: &[Vec<&str>], name: &str) {
    let tenant = text(expected, "tenant");
    let sharded = match &hashring.rings[0].placement {
        Ok(Placement::PerTenant(sharded)) => Some(sharded),
        _ => None,
    };
    assert_eq!(sharded.is_some(), expected["sharded"].as_bool().unwrap(), "{name}");
    if let Some(sharded) = sharded {
        let size = expected["shard_size"].as_i64().unwrap();
        assert_eq!(sharded.shard_size(tenant), size, "{name}, {tenant}");
    }
    if let Some(expected_kind) = expected["error_kind"].as_str() {
        let Err(PlacementError::Subring { error, .. }) = hashring.ring_of(tenant) else {
            panic!("{name}, {tenant}: {expected_kind}")
        };
        // Thanos dies of a negative shard size. To ours it is a shard of no endpoints.
        let expected_kind = match expected_kind {
            "panic" => "fewer_endpoints_than_rf",
            kind => kind,
        };
        assert_eq!(kind(&error), expected_kind, "{name}, {tenant}");
        if let (RingError::ShardLargerThanZone { zone, .. }, Some(expected)) =
            (&error, expected["zone"].as_str())
        {
            assert_eq!(zone, expected, "{name}, {tenant}");
        }
        return;
    }
    let ring = hashring.ring_of(tenant).unwrap();
    if sharded.is_some() {
        let nodes = ring.endpoints().into_iter();
        let mut nodes: Vec<_> =
            nodes.map(|index| hashring.endpoint(index).address.as_str()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut expected_nodes = texts(&expected["nodes"]);
        expected_nodes.dedup();
        assert_eq!(nodes, expected_nodes, "{name}, {tenant}");
    }
    let mut hasher = SeriesHasher::for_tenant(tenant.as_bytes());
    for (no, expected) in list(expected, "placements").iter().enumerate() {
        let no = no.to_string();
        let labels = common.iter().map(|label| (label[0].as_bytes(), label[1].as_bytes()));
        let hash = hasher.hash(labels.chain([(&b"no"[..], no.as_bytes())]));
        assert_eq!(placed(hashring, &ring, hash), texts(expected), "{name}, {tenant}, {no}");
    }
}

#[test]
fn globs_match_like_filepath_match() {
    for case in list(&recorded("tenant_selection"), "globs") {
        let result = match Glob::parse(text(case, "pattern")) {
            Err(glob::MalformedPattern) => "malformed",
            Ok(glob) if glob.matches(text(case, "name")) => "match",
            Ok(_) => "no match",
        };
        assert_eq!(result, text(case, "result"), "{case}");
    }
}

#[test]
fn tenants_choose_rings_like_in_thanos() {
    for case in list(&recorded("tenant_selection"), "cases") {
        let rings = case["hashrings"].as_array().map(Vec::as_slice).unwrap_or_default();
        let options = rings.iter().enumerate().map(|(i, ring)| RingOptions {
            endpoints: vec![Endpoint::at(&format!("ring-{i}:1"))],
            ..ring_options(ring)
        });
        let hashring = build(options.collect(), Algorithm::Ketama, 1);
        for expected in list(case, "tenants") {
            let tenant = text(expected, "tenant");
            let chosen = hashring.position_of_ring(tenant);
            match text(expected, "outcome") {
                "taken" => {
                    let position = expected["takes"].as_u64().unwrap() as usize;
                    assert_eq!(chosen, Ok(position), "{tenant:?} in {case}");
                    let ring = hashring.ring_of(tenant).unwrap();
                    assert_eq!(placed(&hashring, &ring, 0), [format!("ring-{position}:1")]);
                }
                "no hashring" => {
                    assert_eq!(chosen, Err(PlacementError::NoHashring), "{tenant:?} in {case}");
                }
                "malformed pattern" => {
                    let is_malformed =
                        matches!(chosen, Err(PlacementError::MalformedPattern { .. }));
                    assert!(is_malformed, "{tenant:?} in {case}");
                }
                // A good pattern of the same list wins.
                "depends on map order" => {
                    assert_eq!(chosen.ok().map(|i| i as u64), expected["varies"][0].as_u64());
                }
                other => panic!("unknown outcome {other}"),
            }
        }
    }
}

#[test]
fn growing_rings_move_as_many_series_as_in_thanos() {
    for case in list(&recorded("stability"), "cases") {
        let algorithm = match text(case, "algorithm") {
            "ketama" => Algorithm::Ketama,
            _ => Algorithm::Hashmod,
        };
        let factor = case["rf"].as_u64().unwrap() as usize;
        let ring_of = |count: &Value| {
            let address = |i: u64| text(case, "address_template").replace("{i}", &i.to_string());
            let endpoints = (0..count.as_u64().unwrap()).map(|i| Endpoint::at(&address(i)));
            let options = RingOptions { endpoints: endpoints.collect(), ..Default::default() };
            build(vec![options], algorithm, factor)
        };
        let (before, after) = (ring_of(&case["from"]), ring_of(&case["to"]));
        let (ring_before, ring_after) = (before.ring_of("t").unwrap(), after.ring_of("t").unwrap());
        let new = case["from"].as_u64().unwrap() as usize..;
        let mut hasher = SeriesHasher::for_tenant(b"t");
        let mut share: BTreeMap<String, u64> = BTreeMap::new();
        let (mut moved, mut moved_to_new, mut left) = (0u64, 0u64, 0u64);
        for j in 0..case["series"].as_u64().unwrap() {
            let j = j.to_string();
            let hash = hasher.hash([(&b"__name__"[..], &b"m"[..]), (b"i", j.as_bytes())]);
            let old = placed(&before, &ring_before, hash);
            let now = placed(&after, &ring_after, hash);
            *share.entry(old[0].clone()).or_default() += 1;
            moved += u64::from(old[0] != now[0]);
            let is_new = after.endpoints().get(new.clone()).unwrap_or_default();
            let to_new = is_new.iter().any(|endpoint| endpoint.address == now[0]);
            moved_to_new += u64::from(to_new);
            left += old.iter().filter(|replica| !now.contains(replica)).count() as u64;
        }
        assert_eq!(moved, case["series_moved"].as_u64().unwrap(), "{case}");
        assert_eq!(moved_to_new, case["series_moved_to_new"].as_u64().unwrap(), "{case}");
        assert_eq!(left, case["replicas_left_their_set"].as_u64().unwrap(), "{case}");
        let share: Vec<_> = share.iter().map(|(node, count)| format!("{node} {count}")).collect();
        let mut expected = texts(&case["share_before"]);
        expected.sort_unstable();
        assert_eq!(share, expected, "{case}");
    }
}

/// Two rings, of which `broken` cannot be built with fewer than two endpoints.
fn two_rings(broken_endpoints: &[&str], other_endpoints: &[&str]) -> Vec<RingOptions> {
    let ring = |name: &str, tenant: &str, endpoints: &[&str]| RingOptions {
        name: name.to_owned(),
        tenants: vec![tenant.to_owned()],
        endpoints: endpoints.iter().map(|address| Endpoint::at(address)).collect(),
        ..RingOptions::default()
    };
    let rest = RingOptions { tenants: Vec::new(), ..ring("rest", "", &["r1:1", "r2:1"]) };
    vec![ring("broken", "a", broken_endpoints), ring("other", "b", other_endpoints), rest]
}

#[test]
fn a_ring_that_cannot_be_built_keeps_its_last_good_state_and_others_are_updated() {
    let metrics = HashringMetrics::new(&Registry::new());
    let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 2 };
    let build = |rings, previous| Hashring::build(rings, defaults, previous, &metrics);
    let nodes = |hashring: &Hashring, tenant| {
        let ring = hashring.ring_of(tenant).unwrap();
        let mut nodes = placed(hashring, &ring, 0);
        nodes.sort();
        nodes
    };
    let good = build(two_rings(&["a1:1", "a2:1"], &["b1:1", "b2:1"]), None);
    let next = build(two_rings(&["a3:1"], &["b3:1", "b4:1"]), Some(&good));
    assert_eq!(nodes(&next, "a"), ["a1:1", "a2:1"]);
    assert_eq!(nodes(&next, "b"), ["b3:1", "b4:1"]);
    assert!(!next.endpoints().contains(&Endpoint::at("a3:1")));
    let states: Vec<_> = next.rings().map(|ring| ring.state).collect();
    let [RingState::LastGood(error), RingState::InForce, RingState::InForce] = &states[..] else {
        panic!("{states:?}")
    };
    assert_eq!(
        *error,
        RingError::FewerEndpointsThanReplicationFactor { endpoints: 1, replication_factor: 2 }
    );
    // The last good state lasts over any number of bad files.
    let third = build(two_rings(&[], &["b3:1", "b4:1"]), Some(&next));
    assert_eq!(nodes(&third, "a"), ["a1:1", "a2:1"]);
    let healed = build(two_rings(&["a3:1", "a4:1"], &["b3:1", "b4:1"]), Some(&third));
    assert_eq!(nodes(&healed, "a"), ["a3:1", "a4:1"]);
    assert!(healed.warnings().is_empty());
}

#[test]
fn a_ring_that_did_not_change_goes_on_as_the_same() {
    let metrics = HashringMetrics::new(&Registry::new());
    let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 2 };
    let build = |rings, previous| Hashring::build(rings, defaults, previous, &metrics);
    let first = build(two_rings(&["a1:1", "a2:1"], &["b1:1", "b2:1"]), None);
    let ring_of = |hashring: &Hashring, tenant| hashring.ring_of(tenant).unwrap();
    let is_same =
        |other: &Hashring, tenant| Arc::ptr_eq(&ring_of(&first, tenant), &ring_of(other, tenant));
    let mut rings = two_rings(&["a1:1", "a2:1"], &["b1:1", "b3:1"]);
    rings[0].tenants.push("x".into());
    let second = build(rings, Some(&first));
    assert!(is_same(&second, "a") && !is_same(&second, "b"));
    assert_eq!(second.name_of_ring("x"), Ok("broken"));
    // The same options, but endpoints have moved in the snapshot.
    let mut rings = two_rings(&["a1:1", "a2:1"], &["b1:1", "b2:1"]);
    rings.swap(0, 1);
    let third = build(rings, Some(&first));
    assert!(!is_same(&third, "a"));
    let ring = ring_of(&third, "a");
    let mut nodes = placed(&third, &ring, 0);
    nodes.sort();
    assert_eq!(nodes, ["a1:1", "a2:1"]);
    // Another replication factor is another ring.
    let defaults = RingDefaults { replication_factor: 1, ..defaults };
    let rings = two_rings(&["a1:1", "a2:1"], &["b1:1", "b2:1"]);
    let fourth = Hashring::build(rings, defaults, Some(&first), &metrics);
    assert_eq!(ring_of(&fourth, "a").replica_count(), 1);
}

#[test]
fn a_hashmod_ring_without_endpoints_keeps_its_last_good_state() {
    let metrics = HashringMetrics::new(&Registry::new());
    let defaults = RingDefaults { algorithm: Algorithm::Hashmod, replication_factor: 1 };
    let build = |rings, previous| Hashring::build(rings, defaults, previous, &metrics);
    let good = build(two_rings(&["a1:1"], &["b1:1"]), None);
    let next = build(two_rings(&[], &["b1:1"]), Some(&good));
    assert_eq!(placed(&next, &next.ring_of("a").unwrap(), 0), ["a1:1"]);
    let fresh = build(two_rings(&[], &["b1:1"]), None);
    let error =
        PlacementError::NotBuilt { hashring: "broken".into(), error: RingError::NoEndpoints };
    assert_eq!(fresh.ring_of("a").unwrap_err(), error);
}

#[test]
fn tenants_of_a_ring_that_was_never_built_wait_and_fall_through_to_no_other() {
    let hashring = build(two_rings(&["a1:1"], &["b1:1", "b2:1"]), Algorithm::Ketama, 2);
    let Err(PlacementError::NotBuilt { hashring: name, .. }) = hashring.ring_of("a") else {
        panic!("not built")
    };
    assert_eq!(name, "broken");
    assert!(hashring.ring_of("b").is_ok());
    assert!(hashring.ring_of("c").is_ok());
}

#[test]
fn a_malformed_pattern_keeps_the_last_good_tenants() {
    let metrics = HashringMetrics::new(&Registry::new());
    let defaults = RingDefaults { algorithm: Algorithm::Ketama, replication_factor: 1 };
    let rings = |pattern: &str| {
        let mut rings = two_rings(&["a1:1"], &["b1:1"]);
        rings[0].tenants = vec![pattern.to_owned()];
        rings[0].tenant_matcher = TenantMatcher::Glob;
        rings
    };
    let good = Hashring::build(rings("team-*"), defaults, None, &metrics);
    let next = Hashring::build(rings("[team"), defaults, Some(&good), &metrics);
    assert_eq!(next.name_of_ring("team-a"), Ok("broken"));
    assert_eq!(next.name_of_ring("x"), Ok("rest"));
    let kept = matches!(
        next.warnings(),
        [RingWarning { kind: RingWarningKind::MalformedPattern { kept: true, .. }, .. }]
    );
    assert!(kept, "{:?}", next.warnings());
}

#[test]
fn external_labels_belong_to_tenants_that_are_named_literally() {
    let mut rings = two_rings(&["a1:1"], &["b1:1"]);
    for ring in &mut rings {
        ring.external_labels.insert("ring".into(), ring.name.clone());
    }
    rings[1].tenants = vec!["b*".into(), "a".into()];
    rings[1].tenant_matcher = TenantMatcher::Glob;
    let hashring = build(rings, Algorithm::Ketama, 1);
    let label = |tenant| hashring.external_labels(tenant).map(|labels| labels["ring"].as_str());
    assert_eq!(label("a"), Some("broken"));
    assert_eq!(label("b*"), Some("other"));
    assert_eq!(label("b1"), None, "taken through a glob");
    assert_eq!(label("c"), None, "taken by the ring for the rest");
}

#[test]
fn flaws_that_thanos_survives_are_told() {
    let mut ring = two_rings(&["a:1", "b:1", "a:1"], &[]).remove(0);
    ring.algorithm = AlgorithmChoice::parse("rendezvous");
    ring.tenant_matcher = TenantMatcher::parse("regex");
    ring.sharding.overrides = vec![ShardingOverride::default()];
    let hashring = build(vec![ring], Algorithm::Ketama, 3);
    let warnings: Vec<_> = hashring.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(warnings[0].contains("rendezvous"));
    assert!(warnings[1].contains("regex"));
    assert!(warnings[2].contains("a:1"));
    assert!(warnings[3].contains("override 0 never applies"));
}

#[test]
fn two_sharded_rings_of_one_name_both_work() {
    let sharded = |endpoints: &[&str], tenant: &str| RingOptions {
        tenants: vec![tenant.into()],
        endpoints: endpoints.iter().map(|address| Endpoint::at(address)).collect(),
        sharding: ShardingOptions { shard_size: 1, ..Default::default() },
        ..RingOptions::default()
    };
    let rings = vec![sharded(&["a:1", "b:1"], "t"), sharded(&["c:1", "d:1"], "u")];
    let hashring = build(rings, Algorithm::Ketama, 1);
    assert_eq!(hashring.ring_of("t").unwrap().endpoints().len(), 1);
    assert_eq!(hashring.ring_of("u").unwrap().endpoints().len(), 1);
    assert_eq!(hashring.warnings()[0].kind, RingWarningKind::ShardedNameRepeated);
}

#[test]
fn a_ring_of_one_takes_every_tenant() {
    let hashring = Hashring::of_one(Endpoint::at("me:1"));
    let ring = hashring.ring_of("any").unwrap();
    assert_eq!(placed(&hashring, &ring, 77), ["me:1"]);
    assert!(ring.require_replicas(2).is_err());
}
