//! The operator's listener: readiness, health and metrics.

use std::io::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::sync::Semaphore;

use crate::http::path::{self, Resolved, Tolerance};
use crate::http::{Probe, respond};
use crate::metrics::Registry;
use crate::store::pieces::{Patience, Whole, pieces};
use crate::store::slices::Sliced;

const READY: &str = "/-/ready";
const HEALTHY: &str = "/-/healthy";
const METRICS: &str = "/metrics";
const PATHS: &[&str] = &[READY, HEALTHY, METRICS];

/// Spelled as client_golang does, parameters in this order.
const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8; escaping=underscores");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// Pages that are made or on their way. Each may be of many megabytes.
const PAGES_MAX: usize = 8;

/// A longer page is sent in pieces, so that nobody holds it for long who does not read it.
const PIECE_BYTES: usize = 64 * 1024;

struct Status {
    registry: Registry,
    ready: Probe,
    pages: Arc<Semaphore>,
}

/// Serves `--http-address`: `/-/ready`, 200 while `ready` holds and else 503; `/-/healthy`, 200 as
/// long as somebody answers; `/metrics`, in text format 0.0.4 whatever is asked for, zipped for those
/// who take it. As in Thanos any method will do.
pub fn status_router(registry: &Registry, ready: Probe) -> Router {
    let checks = registry.gauge_vec(
        "thanos_status",
        "Whether the component is ready and healthy.",
        &["check", "component"],
    );
    checks.with(&["healthy", "receive"]).set(1.0);
    let (check, probe) = (checks.with(&["ready", "receive"]), ready.clone());
    registry.on_collect(move || check.set(if probe.holds() { 1.0 } else { 0.0 }));
    let pages = Arc::new(Semaphore::new(PAGES_MAX));
    let status = Arc::new(Status { registry: registry.clone(), ready, pages });
    Router::new().fallback(answer).with_state(status)
}

async fn answer(State(status): State<Arc<Status>>, request: Request) -> Response {
    match path::resolve(request.uri().path(), PATHS, Tolerance::Exact) {
        Resolved::Known(READY) if !status.ready.holds() => {
            // Thanos' words first.
            let why = status.ready.why_not().map_or_else(String::new, |why| format!("\n{why}"));
            probe_response(StatusCode::SERVICE_UNAVAILABLE, format!("NOT OK{why}"))
        }
        Resolved::Known(READY | HEALTHY) => probe_response(StatusCode::OK, "OK".to_owned()),
        Resolved::Known(_) => metrics_page(&status, request.headers()).await,
        Resolved::Meant(path) => redirect(path, &request),
        Resolved::Unknown => respond::not_found(),
    }
}

/// The page, made off the threads that serve the sockets: it takes long when tenants are many.
async fn metrics_page(status: &Status, headers: &HeaderMap) -> Response {
    let Ok(place) = status.pages.clone().try_acquire_owned() else {
        let mut response =
            respond::text(StatusCode::SERVICE_UNAVAILABLE, "too many pages are under way");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    };
    let (registry, zipped) = (status.registry.clone(), takes_gzip(headers));
    let made = tokio::task::spawn_blocking(move || {
        let page = registry.expose();
        if zipped { gzip(page.as_bytes()) } else { page.into_bytes() }
    });
    let Ok(page) = made.await else {
        return respond::text(StatusCode::INTERNAL_SERVER_ERROR, "the page was not made");
    };
    let len = page.len();
    let body = if len <= PIECE_BYTES {
        Body::from(page)
    } else {
        let patience = Patience::default();
        let taken = patience.taken.clone();
        let pieces = pieces(Whole::new(page.into(), place), patience);
        Body::new(Sliced::new(Body::from_stream(pieces), taken, ()))
    };
    let headers = [(CONTENT_TYPE, METRICS_TYPE), (CONTENT_LENGTH, HeaderValue::from(len))];
    let mut response = respond::with_headers(StatusCode::OK, headers, body);
    if zipped {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Whether gzip is among the encodings that a client names, and not at weight 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|encoding| {
        let mut parts = encoding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        is_gzip && weight.is_none_or(|weight| weight.parse().is_ok_and(|weight: f32| weight > 0.0))
    })
}

fn gzip(page: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // A vector takes whatever is written to it.
    let _ = encoder.write_all(page);
    encoder.finish().unwrap_or_default()
}

fn probe_response(status: StatusCode, body: String) -> Response {
    respond::with_headers(status, [(CONTENT_TYPE, respond::TEXT_PLAIN)], body)
}

/// Sends a request on a nearly right path to the right one, with the query it came with. The body is
/// for people, so only GET has one.
pub(super) fn redirect(path: &'static str, request: &Request) -> Response {
    let status = StatusCode::TEMPORARY_REDIRECT;
    let query = request.uri().query();
    let target = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    // What stands in a target can stand in a header.
    let location = HeaderValue::try_from(&target).unwrap_or(HeaderValue::from_static(path));
    let location = (LOCATION, location);
    if request.method() != Method::GET {
        return respond::with_headers(status, [location], Body::empty());
    }
    let body = format!("<a href=\"{}\">Temporary Redirect</a>.\n\n", escape_html(&target));
    respond::with_headers(status, [location, (CONTENT_TYPE, HTML)], body)
}

/// As Go's `html.EscapeString`.
fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '\'' => escaped.push_str("&#39;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            other => escaped.push(other),
        }
    }
    escaped
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
        let router = status_router(&Registry::new(), probe.clone());
        assert_eq!(get(&router, READY).await, (503, "NOT OK".into()));
        let saying = probe.saying(|| Some("2 tenants are being opened".into()));
        let saying = status_router(&Registry::new(), saying);
        let told = "NOT OK\n2 tenants are being opened".to_owned();
        assert_eq!(get(&saying, READY).await, (503, told));
        assert_eq!(get(&router, HEALTHY).await, (200, "OK".into()));
        let line =
            |value: u8| format!("thanos_status{{check=\"ready\",component=\"receive\"}} {value}\n");
        assert!(get(&router, METRICS).await.1.contains(&line(0)));
        ready.store(true, Ordering::Relaxed);
        assert_eq!(get(&router, READY).await, (200, "OK".into()));
        assert!(get(&router, METRICS).await.1.contains(&line(1)));
    }

    async fn get_zipped(router: &Router, accepted: &str) -> Response {
        let request = http::Request::get(METRICS).header(ACCEPT_ENCODING, accepted);
        router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn the_page_is_zipped_for_those_who_take_it() {
        let registry = Registry::new();
        let tenants = registry.counter_vec("requests_total", "R.", &["tenant"]);
        (0..10_000).for_each(|i| tenants.with(&[&format!("tenant-{i}")]).inc());
        let router = status_router(&registry, Probe::new(|| true));
        let (_, plain) = get(&router, METRICS).await;
        for (accepted, is_zipped) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
            ("*;q=x", false),
            ("", false),
        ] {
            let response = get_zipped(&router, accepted).await;
            let encoding = response.headers().get(CONTENT_ENCODING).cloned();
            assert_eq!(encoding.is_some(), is_zipped, "{accepted}");
            let len: usize = response.headers()[CONTENT_LENGTH].to_str().unwrap().parse().unwrap();
            let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            assert_eq!(body.len(), len);
            let mut page = String::new();
            if is_zipped {
                assert!(len < plain.len() / 4, "{len} of {}", plain.len());
                let mut decoder = flate2::read::GzDecoder::new(&body[..]);
                std::io::Read::read_to_string(&mut decoder, &mut page).unwrap();
            } else {
                page = String::from_utf8(body.to_vec()).unwrap();
            }
            assert!(page == plain, "{accepted}");
        }
    }

    #[tokio::test]
    async fn pages_that_nobody_takes_are_few() {
        let registry = Registry::new();
        let tenants = registry.counter_vec("requests_total", "R.", &["tenant"]);
        (0..10_000).for_each(|i| tenants.with(&[&format!("tenant-{i}")]).inc());
        let router = status_router(&registry, Probe::new(|| true));
        let mut untaken = Vec::new();
        for _ in 0..PAGES_MAX {
            untaken.push(get_zipped(&router, "").await);
        }
        let refused = get_zipped(&router, "").await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()[RETRY_AFTER], "1");
        untaken.clear();
        // What one held is given back elsewhere.
        while get_zipped(&router, "").await.status() != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn other_paths_are_not_found_or_redirected() {
        let router = status_router(&Registry::new(), Probe::new(|| true));
        assert_eq!(get(&router, "/").await, (404, "404 page not found\n".into()));
        let request = http::Request::get("//-/ready?a=b&c='d'").body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 307);
        assert_eq!(response.headers()[LOCATION], "/-/ready?a=b&c='d'");
        let body = to_bytes(response.into_body(), 1 << 10).await.unwrap();
        let link = "<a href=\"/-/ready?a=b&amp;c=&#39;d&#39;\">Temporary Redirect</a>.\n\n";
        assert_eq!(body, link);
    }
}
