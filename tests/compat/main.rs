//! Plays recorded suites of requests against the real binary and compares its answers with those
//! of Thanos. `tests/data/http/README.md` says where they come from.
//!
//! A suite is a file and a line below. Where our answer is meant to differ, [`ours`] says so.

mod chunks;
mod compare;
mod grpc;
mod http;
mod node;
mod ours;
mod proto;
mod runner;
mod suite;

macro_rules! suites {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                runner::play($name);
            }
        )*

        const SUITES: &[&str] = &[$($name),*];
    };
}

suites! {
    grpc_write_ingestor: "grpc-write-ingestor",
    grpc_write_tenant_dotdot: "grpc-write-tenant-dotdot",
    grpc_write_tenant_empty: "grpc-write-tenant-empty",
    grpc_write_tenant_not_utf8: "grpc-write-tenant-not-utf8",
    ops_port: "ops-port",
    rw1_future: "rw1-future",
    rw1_labels: "rw1-labels",
    rw1_replica_ingestor: "rw1-replica-ingestor",
    rw1_samples: "rw1-samples",
    rw1_tenant_custom: "rw1-tenant-custom",
    rw1_tenant_dotdot: "rw1-tenant-dotdot",
    rw1_tenant_header: "rw1-tenant-header",
    rw1_tenant_lost_found: "rw1-tenant-lost-found",
    rw1_tenant_not_utf8: "rw1-tenant-not-utf8",
    rw1_tenant_root: "rw1-tenant-root",
    rw1_transport: "rw1-transport",
    store_frames: "store-frames",
    store_info: "store-info",
    store_labels: "store-labels",
    store_series: "store-series",
}

#[test]
fn every_recorded_suite_is_played() {
    assert_eq!(suite::names(), SUITES);
}

#[test]
fn every_exception_is_about_a_recorded_step() {
    for exception in ours::EXCEPTIONS {
        let suite = suite::load(exception.suite);
        let known = suite.steps.iter().any(|step| step.id() == exception.step);
        assert!(known, "{} has no step {}", exception.suite, exception.step);
    }
}
