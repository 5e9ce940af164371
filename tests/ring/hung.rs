//! Peers that take what they are sent and answer nothing: what is under way to them is bounded, and
//! nobody else pays for it.

use std::fs;

use serde_json::json;

use crate::load::Load;
use crate::node::new_node;
use crate::stand_in::{Program, StandIn, Stored};
use crate::support::process::wait_for;

#[test]
fn ten_hung_peers_hold_no_more_than_their_budget_and_no_write() {
    /// What forwards may hold.
    const BUDGET: u64 = 8 << 20;
    /// By how much the router may grow: by the budget, and by what the allocator keeps besides. It
    /// grew by 35 MiB before all that a forward holds was counted.
    const CEILING: u64 = 2 * BUDGET;
    const HUNG: usize = 10;

    // A ring for each tenant: a hung peer, and the same two that are well. A ring for all others.
    let well = [(); 3].map(|()| StandIn::start(Program::OlderRingest));
    let hung: Vec<_> = (0..HUNG).map(|_| StandIn::start(Program::Hung)).collect();
    let ring = |(i, hung): (usize, &StandIn)| {
        json!({
            "hashring": format!("ring-{i}"),
            "tenants": [format!("tenant-{i}")],
            "algorithm": "ketama",
            "endpoints": [well[0].address, well[1].address, hung.address],
        })
    };
    let mut rings: Vec<_> = hung.iter().enumerate().map(ring).collect();
    let all_well = well.each_ref().map(|peer| &peer.address);
    rings.push(json!({"hashring": "others", "algorithm": "ketama", "endpoints": all_well}));
    let root = tempfile::tempdir().expect("temporary directory");
    let file = root.path().join("hashrings.json");
    fs::write(&file, json!(rings).to_string()).expect("the ring's file");
    let mut router = new_node(root.path(), "router")
        .with_ring(&file, 3)
        // Longer than the test takes: nothing is given up meanwhile.
        .with_forward_timeout("600s")
        .with_arg(&format!("--receive.forward.inflight-bytes-max={}MB", BUDGET >> 20));
    router.start();

    let start = |name, requests| Load::start_single(root.path(), name, &router, requests);
    // What the router takes with some traffic, whoever is hung.
    start("warm-up", 300).finish();
    let before = router.resident_bytes_peak();
    // Each is acknowledged the first time.
    let acknowledged = start("tenant", 3000).finish();
    let grown = router.resident_bytes_peak() - before;
    assert!(
        grown <= CEILING,
        "{} writes of one series made the router grow by {} MiB, more than {}",
        acknowledged.samples(),
        grown >> 20,
        CEILING >> 20,
    );
    for peer in &well[..2] {
        let of_tenants = |stored: &Stored| stored.0.starts_with("tenant-");
        let has_all = || {
            let count = peer.stored().iter().filter(|stored| of_tenants(stored)).count();
            (count as u64 == acknowledged.samples()).then_some(())
        };
        assert!(wait_for(has_all).is_some(), "{} has not got all", peer.address);
    }
}
