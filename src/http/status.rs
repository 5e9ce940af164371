//! The operator's listener: readiness, health and metrics.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, StatusCode};

use crate::http::path::{self, Resolved, Tolerance};
use crate::http::{Probe, respond};
use crate::metrics::Registry;

const READY: &str = "/-/ready";
const HEALTHY: &str = "/-/healthy";
const METRICS: &str = "/metrics";
const PATHS: &[&str] = &[READY, HEALTHY, METRICS];

/// Spelled as client_golang does, parameters in this order.
const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8; escaping=underscores");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

struct Status {
    registry: Registry,
    ready: Probe,
}

/// Serves `--http-address`: `/-/ready`, 200 while `ready` holds and else 503; `/-/healthy`, 200 as
/// long as somebody answers; `/metrics`, in text format 0.0.4 whatever is asked for. As in Thanos
/// any method will do.
pub fn status_router(registry: &Registry, ready: Probe) -> Router {
    let checks = registry.gauge_vec(
        "thanos_status",
        "Whether the component is ready and healthy.",
        &["check", "component"],
    );
    checks.with(&["healthy", "receive"]).set(1.0);
    let (check, probe) = (checks.with(&["ready", "receive"]), ready.clone());
    registry.on_collect(move || check.set(if probe.holds() { 1.0 } else { 0.0 }));
    let status = Arc::new(Status { registry: registry.clone(), ready });
    Router::new().fallback(answer).with_state(status)
}

async fn answer(State(status): State<Arc<Status>>, request: Request) -> Response {
    match path::resolve(request.uri().path(), PATHS, Tolerance::Exact) {
        Resolved::Known(READY) if !status.ready.holds() => {
            probe_response(StatusCode::SERVICE_UNAVAILABLE, "NOT OK")
        }
        Resolved::Known(READY | HEALTHY) => probe_response(StatusCode::OK, "OK"),
        Resolved::Known(_) => {
            let headers = [(CONTENT_TYPE, METRICS_TYPE)];
            respond::with_headers(StatusCode::OK, headers, status.registry.expose())
        }
        Resolved::Meant(path) => redirect(path, request.method()),
        Resolved::Unknown => respond::not_found(),
    }
}

fn probe_response(status: StatusCode, body: &'static str) -> Response {
    respond::with_headers(status, [(CONTENT_TYPE, respond::TEXT_PLAIN)], body)
}

/// Sends a request on a nearly right path to the right one. The body is for people, so only GET
/// has one.
pub(super) fn redirect(path: &'static str, method: &Method) -> Response {
    let status = StatusCode::TEMPORARY_REDIRECT;
    let location = (LOCATION, HeaderValue::from_static(path));
    if method != Method::GET {
        return respond::with_headers(status, [location], Body::empty());
    }
    let body = format!("<a href=\"{path}\">Temporary Redirect</a>.\n\n");
    respond::with_headers(status, [location, (CONTENT_TYPE, HTML)], body)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::body::to_bytes;
    use tower::ServiceExt;

    use super::*;

    async fn get(router: &Router, path: &str) -> (u16, String) {
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_follows_the_probe_and_health_does_not() {
        let ready = Arc::new(AtomicBool::new(false));
        let holds = ready.clone();
        let probe = Probe::new(move || holds.load(Ordering::Relaxed));
        let router = status_router(&Registry::new(), probe);
        assert_eq!(get(&router, READY).await, (503, "NOT OK".into()));
        assert_eq!(get(&router, HEALTHY).await, (200, "OK".into()));
        let line =
            |value: u8| format!("thanos_status{{check=\"ready\",component=\"receive\"}} {value}\n");
        assert!(get(&router, METRICS).await.1.contains(&line(0)));
        ready.store(true, Ordering::Relaxed);
        assert_eq!(get(&router, READY).await, (200, "OK".into()));
        assert!(get(&router, METRICS).await.1.contains(&line(1)));
    }

    #[tokio::test]
    async fn other_paths_are_not_found_or_redirected() {
        let router = status_router(&Registry::new(), Probe::new(|| true));
        assert_eq!(get(&router, "/").await, (404, "404 page not found\n".into()));
        assert_eq!(get(&router, "//-/ready").await.0, 307);
    }
}
