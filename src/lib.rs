//! Ringest: a remote-write ingester that takes the place of `thanos receive`.

// Modules in dependency order: each uses only those below it.
pub mod app;
pub mod clock;
pub mod config;
pub mod disk;
pub mod grpc;
pub mod hashring;
pub mod http;
pub mod load;
pub mod log;
pub mod metrics;
pub mod model;
pub mod multi_tsdb;
pub mod peer;
pub mod ring_tool;
pub mod store;
pub mod tsdb;
pub mod wire;
pub mod write;
