//! Plays recorded suites of requests against the real binary and compares its answers with those
//! of Thanos. `tests/data/http/README.md` says where they come from.
//!
//! A suite is a file and a line below. Where our answer is meant to differ, [`ours`] says so.

mod chunks;
mod compare;
mod grpc;
mod node;
mod ours;
mod proto;
mod requests;
mod runner;
mod stub;
mod suite;
#[allow(dead_code, reason = "no suite needs all of what they share")]
#[path = "../support/mod.rs"]
mod support;
mod tls;

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
    grpc_wire_none: "grpc-wire-none",
    grpc_wire_snappy: "grpc-wire-snappy",
    grpc_write_ingestor: "grpc-write-ingestor",
    grpc_write_routeringestor: "grpc-write-routeringestor",
    grpc_write_tenant_dotdot: "grpc-write-tenant-dotdot",
    grpc_write_tenant_empty: "grpc-write-tenant-empty",
    grpc_write_tenant_not_utf8: "grpc-write-tenant-not-utf8",
    mode_ingestor: "mode-ingestor",
    mode_router: "mode-router",
    mode_routeringestor: "mode-routeringestor",
    not_ready_ingestor: "not-ready-ingestor",
    not_ready_routeringestor: "not-ready-routeringestor",
    ops_port: "ops-port",
    otlp: "otlp",
    otlp_no_target_info: "otlp-no-target-info",
    otlp_promote: "otlp-promote",
    otlp_promote_comma: "otlp-promote-comma",
    quorum_rf1: "quorum-rf1",
    quorum_rf2: "quorum-rf2",
    quorum_rf3: "quorum-rf3",
    ring_few_nodes_hashmod: "ring-few-nodes-hashmod",
    ring_no_tenant: "ring-no-tenant",
    ring_one_node_down: "ring-one-node-down",
    ring_two_nodes_one_down: "ring-two-nodes-one-down",
    rw1_exemplars_off: "rw1-exemplars-off",
    rw1_exemplars_on: "rw1-exemplars-on",
    rw1_future: "rw1-future",
    rw1_histograms: "rw1-histograms",
    rw1_labels: "rw1-labels",
    rw1_replica_ingestor: "rw1-replica-ingestor",
    rw1_replica_routeringestor: "rw1-replica-routeringestor",
    rw1_replica_routeringestor_rf1_named: "rw1-replica-routeringestor-rf1-named",
    rw1_samples: "rw1-samples",
    rw1_tenant_custom: "rw1-tenant-custom",
    rw1_tenant_dotdot: "rw1-tenant-dotdot",
    rw1_tenant_header: "rw1-tenant-header",
    rw1_tenant_lost_found: "rw1-tenant-lost-found",
    rw1_tenant_not_utf8: "rw1-tenant-not-utf8",
    rw1_tenant_root: "rw1-tenant-root",
    rw1_transport: "rw1-transport",
    rw2: "rw2",
    signal_in_flight: "signal-in-flight",
    signal_while_opening: "signal-while-opening",
    store_frames: "store-frames",
    store_info: "store-info",
    store_labels: "store-labels",
    store_series: "store-series",
    tls_write: "tls-write",
    tls_write_no_ca: "tls-write-no-ca",
}

#[test]
fn every_recorded_suite_is_played() {
    assert_eq!(suite::names(), SUITES);
}

#[test]
fn every_exception_is_about_a_recorded_step() {
    for exception in ours::EXCEPTIONS.iter().chain(ours::PROBES) {
        let suite = suite::load(exception.suite);
        let known = suite.steps.iter().any(|step| step.id() == exception.step);
        assert!(known, "{} has no step {}", exception.suite, exception.step);
    }
}
