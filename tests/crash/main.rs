//! What a node survives: full and damaged disks, power cuts, hostile bytes, overload, wrong clocks.
//!
//! Nearly all of it is done to the real program, from outside. No test judges how long anything
//! takes, but what does not come to an end within [`support::STUCK`] counts as hanging.

mod answers;
#[path = "../support/certificates.rs"]
mod certificates;
mod connections;
mod damage;
mod doors;
mod full_disk;
mod hostile_bodies;
mod overload;
mod power_cut;
mod questions;
mod support;
mod tenants;
mod wrong_clock;
