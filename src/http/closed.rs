//! What is not served on a listener that cannot ask its clients for certificates, where another one
//! does: `thanos receive` has no data on its HTTP port, and whoever takes its place opens none.

use axum::Router;
use axum::response::Response;
use axum::routing::any;
use http::StatusCode;

use crate::http::respond;

/// Answers 403 to these paths. `flag` is the one by which certificates are asked for elsewhere.
pub fn router(paths: &[&str], flag: &'static str) -> Router {
    let refuse = move || std::future::ready(refusal(flag));
    paths.iter().fold(Router::new(), |router, path| router.route(path, any(refuse)))
}

fn refusal(flag: &str) -> Response {
    let text = format!(
        "not served here, since --{flag} asks for certificates elsewhere and this port cannot; \
         --http.open-reads serves it to everybody"
    );
    respond::text(StatusCode::FORBIDDEN, &text)
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn a_closed_path_says_what_opens_it() {
        let router = router(&["/api/v1/read", "/api/v1/ring"], "a.flag");
        for request in [http::Request::post("/api/v1/read"), http::Request::get("/api/v1/ring")] {
            let request = request.body(Body::from("whatever")).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::FORBIDDEN);
            let text = to_bytes(response.into_body(), 1 << 10).await.unwrap();
            let text = String::from_utf8(text.to_vec()).unwrap();
            assert!(text.contains("--a.flag") && text.contains("--http.open-reads"), "{text}");
        }
        let other = http::Request::get("/metrics").body(Body::empty()).unwrap();
        assert_eq!(router.oneshot(other).await.unwrap().status(), StatusCode::NOT_FOUND);
    }
}
