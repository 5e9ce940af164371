//! What a node survives: full and damaged disks, power cuts, hostile bytes, overload, wrong clocks.
//!
//! Nearly all of it is done to the real program, from outside. No test judges how long anything
//! takes, but what does not come to an end within [`support::process::STUCK`] counts as hanging.

mod answers;
mod connections;
mod damage;
mod doors;
mod full_disk;
mod hostile_bodies;
mod overload;
mod power_cut;
mod questions;
#[allow(dead_code, reason = "no suite needs all of what they share")]
#[path = "../support/mod.rs"]
mod support;
mod tenants;
mod wrong_clock;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Lets this process and those it starts have as many files as the machine allows; how many.
fn raise_file_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    limit.current.unwrap_or(u64::MAX)
}
