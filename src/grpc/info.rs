//! Thanos' Info API.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::store::info::describe;
use crate::store::source::TenantSource;
use crate::wire::proto::thanos::info::info_server::Info;
use crate::wire::proto::thanos::info::{InfoRequest, InfoResponse};

/// The service behind `thanos.info.Info`.
pub struct InfoService {
    source: Arc<dyn TenantSource>,
}

impl InfoService {
    pub fn new(source: Arc<dyn TenantSource>) -> InfoService {
        InfoService { source }
    }
}

#[tonic::async_trait]
impl Info for InfoService {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(describe(&self.source.tenants())))
    }
}
