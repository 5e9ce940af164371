//! Budgets as the page shows them: what is used of each and how much there is, and who was refused
//! since it was used up. One place for all of them, so that they have names of one kind.
//!
//! | budget | used | limit | refused |
//! |---|---|---|---|
//! | `--receive.inflight-bytes-max` | `ringest_inflight_bytes` | `…_max` | by door, `budget="write"` |
//! | `--query.inflight-bytes-max` | `ringest_query_inflight_bytes` | `…_max` | by door, `budget="read"` |
//! | `--receive.tenants-max` | `ringest_tenants` | `…_max` | `ringest_tenants_refused_total` |
//! | `--tsdb.head-series-max` | `prometheus_tsdb_head_series` | `ringest_head_series_max` | `ringest_head_samples_refused_total` |
//! | idle buffers | `ringest_buffer_pool_bytes` | `…_max` | none: they are freed |
//! | large requests worked on | `ringest_large_work_under_way` | `…_max` | none: they wait |
//! | TLS handshakes | `ringest_tls_handshakes_under_way` | `…_max` | none: they wait |
//! | calls of one connection | calls of all: `ringest_capnproto_calls_under_way`, `grpc_server_*` | `ringest_connection_calls_max` | none: no more are read |
//! | connections of a listener | `ringest_connections` | `…_max` | none: they wait, `ringest_connections_waited_total` |
//! | open files | `process_open_fds` | `process_max_fds` | `ringest_connections` says who has them |

use crate::metrics::{Counter, Gauge, GaugeVec, Registry};

/// Counts the requests that `door` refuses since `budget` is used up.
pub fn refused(registry: &Registry, budget: &str, door: &str) -> Counter {
    let family = registry.counter_vec(
        "ringest_overload_refused_requests_total",
        "Requests that were refused since a budget of the node was used up, by the budget and by the \
         way they came.",
        &["budget", "door"],
    );
    family.with(&[budget, door])
}

/// Connections that are open on a listener.
pub fn connections(registry: &Registry, listener: &str) -> Gauge {
    let family =
        registry.gauge_vec("ringest_connections", "Connections that are open.", &["listener"]);
    family.with(&[listener])
}

/// Tells how many connections a listener may have.
pub fn show_connections_max(registry: &Registry, listener: &str, max: usize) {
    let family = registry.gauge_vec(
        "ringest_connections_max",
        "Connections that a listener may have open; others wait to be taken.",
        &["listener"],
    );
    family.with(&[listener]).set(max as f64);
}

/// Tells how many calls one connection of a listener may have under way.
pub fn show_calls_max(registry: &Registry, listener: &str, calls_max: usize) {
    let family = registry.gauge_vec(
        "ringest_connection_calls_max",
        "Calls that one connection may have under way; no more are taken from it meanwhile.",
        &["listener"],
    );
    family.with(&[listener]).set(calls_max as f64);
}

/// Shows a pool of idle buffers.
pub fn show_pool(
    registry: &Registry,
    pool: &'static str,
    bytes_max: usize,
    bytes: impl Fn() -> usize + Send + Sync + 'static,
) {
    let family = |name, help| -> GaugeVec { registry.gauge_vec(name, help, &["pool"]) };
    let limit = family("ringest_buffer_pool_bytes_max", "Bytes of idle buffers that are kept.");
    limit.with(&[pool]).set(bytes_max as f64);
    let used = family("ringest_buffer_pool_bytes", "Bytes of idle buffers.").with(&[pool]);
    registry.on_collect(move || used.set(bytes() as f64));
}
