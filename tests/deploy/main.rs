//! The demonstrations of `deploy/local`: rings that grow under load, and lose nothing.

use std::process::Command;

/// Plays demonstrations with little load; all that they promise is checked by the script.
fn play(args: &[&str]) -> String {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/local"))
        .args(["--quick", "--ringest", env!("CARGO_BIN_EXE_ringest")])
        .args(args)
        .output()
        .expect("deploy/local runs, which takes Python 3");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{complaints}");
    printed
}

#[test]
fn a_hashmod_ring_grows_from_one_to_three() {
    let printed = play(&["--algorithm=hashmod", "three-pods"]);
    assert!(printed.contains("all 3 nodes have it and are ready"), "{printed}");
}

#[test]
fn a_ketama_ring_grows_from_one_to_three() {
    let printed = play(&["--algorithm=ketama", "three-pods"]);
    assert!(printed.contains("all 3 nodes have it and are ready"), "{printed}");
}

#[test]
fn a_hashmod_ring_with_three_replicas_grows_from_five_to_seven() {
    let printed = play(&["--algorithm=hashmod", "autoscaled"]);
    assert!(printed.contains("all 7 nodes have it and are ready"), "{printed}");
}

#[test]
fn a_ketama_ring_with_three_replicas_grows_from_five_to_seven() {
    let printed = play(&["--algorithm=ketama", "autoscaled"]);
    assert!(printed.contains("all 7 nodes have it and are ready"), "{printed}");
}
