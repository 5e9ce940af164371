//! Rings of real processes on 127.0.0.1: nodes are killed, stopped, restarted and told different
//! things under load, and everything acknowledged is counted afterwards.

mod capnproto;
mod copies;
mod drain;
mod files;
mod hold;
mod hung;
mod load;
mod membership;
mod node;
mod outages;
mod released;
mod sizes;
mod skew;
mod stalled_disk;
mod stand_in;
#[allow(dead_code, reason = "no suite needs all of what they share")]
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod versions;
