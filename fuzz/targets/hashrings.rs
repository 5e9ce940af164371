//! Hashrings files: no text panics, a refusal says why, and rings that are built place
//! series on nodes that there are.
//!
//! Input: one byte for the algorithm and the copies, then the file.

use ringest::hashring::file::parse;
use ringest::hashring::{Algorithm, Hashring, HashringMetrics, RingDefaults, RingOptions};
use ringest::metrics::Registry;

/// Ketama has a thousand sections for each.
const ENDPOINTS_MAX: usize = 20;

/// Tries one input.
pub(crate) fn run(input: &[u8]) {
    let Some((manner, file)) = input.split_first() else { return };
    let rings = match parse(file) {
        Ok(rings) => rings,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(!rings.is_empty(), "a file without rings is refused");
    let endpoints: usize = rings.iter().map(|ring: &RingOptions| ring.endpoints.len()).sum();
    if endpoints > ENDPOINTS_MAX {
        return;
    }
    let algorithm = if manner & 1 == 0 { Algorithm::Hashmod } else { Algorithm::Ketama };
    let replication_factor = 1 + usize::from(manner >> 1 & 3);
    let defaults = RingDefaults { algorithm, replication_factor };
    let metrics = HashringMetrics::new(&Registry::new());
    let hashring = Hashring::build(rings, defaults, None, &metrics);
    for tenant in ["a", "", "team-1"] {
        let Ok(ring) = hashring.ring_of(tenant) else { continue };
        let hashes = [0, 1, 1 << 40, u64::MAX];
        let placed = ring.place(&hashes);
        for set in placed.table.iter() {
            let known = hashring.endpoints().len();
            assert!(
                set.iter().all(|endpoint| usize::from(endpoint.0) < known),
                "a node of the ring"
            );
        }
    }
}

/// Inputs to begin with.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const SEEDS: [&str; 5] = [
        r#"0[{"endpoints":["a:1","b:1","c:1"]}]"#,
        r#"3[{"hashring":"h","tenants":["team-*"],"tenant_matcher_type":"glob","endpoints":["a:1"]}]"#,
        r#"5[{"algorithm":"ketama","endpoints":[{"address":"a:1","az":"x"},{"address":"b:1","az":"y"}]}]"#,
        r#"1[{"endpoints":["a:1","b:1","c:1"],"shuffle_sharding_config":{"shard_size":2}}]"#,
        "0[{\"endpoints\":null},{}]",
    ];
    SEEDS.map(|seed| seed.as_bytes().to_vec()).to_vec()
}
