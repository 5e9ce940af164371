//! Ringest: a remote-write ingester that takes the place of `thanos receive`.

// Modules in dependency order: each uses only those below it.
pub mod app;
pub mod load;
pub mod http;
pub mod grpc;
pub mod write;
pub mod store;
pub mod multi_tsdb;
pub mod tsdb;
pub mod wire;
pub mod model;
pub mod disk;
pub mod clock;
pub mod log;
pub mod metrics;
pub mod config;
