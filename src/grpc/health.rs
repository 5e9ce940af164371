//! `grpc.health.v1.Health` for the process as a whole, which is the service named "".

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// How soon a watcher learns of a change.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Serving while the node is ready.
pub struct HealthService {
    is_ready: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl HealthService {
    pub fn new(is_ready: impl Fn() -> bool + Send + Sync + 'static) -> HealthService {
        HealthService { is_ready: Arc::new(is_ready) }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(status(&*self.is_ready))))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let is_known = request.get_ref().service.is_empty();
        let is_ready = self.is_ready.clone();
        let changes = futures::stream::unfold(None, move |told| {
            let is_ready = is_ready.clone();
            async move {
                loop {
                    let now =
                        if is_known { status(&*is_ready) } else { ServingStatus::ServiceUnknown };
                    if told != Some(now) {
                        return Some((Ok(answer(now)), Some(now)));
                    }
                    tokio::time::sleep(WATCH_INTERVAL).await;
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

fn status(is_ready: &dyn Fn() -> bool) -> ServingStatus {
    if is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
