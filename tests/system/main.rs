//! The receiver among the programs it works with: real senders write to it, real readers read from
//! it and from its directories, and it is killed under load.
//!
//! Prometheus, promtool, node_exporter and vmagent are those of Debian (`prometheus`,
//! `prometheus-node-exporter`, `victoria-metrics`), found in `PATH`.

mod blocks;
mod checkpoints;
mod crash;
mod directories;
mod early;
mod head_chunks;
mod histograms;
mod programs;
mod receiver_rules;
mod senders;
mod shipping;
mod soak;
#[allow(dead_code, reason = "no suite needs all of what they share")]
#[path = "../support/mod.rs"]
mod support;
