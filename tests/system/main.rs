//! The receiver among the programs it works with: real senders write to it, real readers read from
//! it and from its directories, and it is killed under load.
//!
//! Prometheus, promtool, node_exporter and vmagent are those of Debian (`prometheus`,
//! `prometheus-node-exporter`, `victoria-metrics`), found in `PATH`.

mod blocks;
mod crash;
mod directories;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/process.rs"]
mod process;
mod programs;
#[path = "../support/remote_read.rs"]
mod remote_read;
mod senders;
