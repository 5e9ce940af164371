//! Thanos' Exemplars API.
//!
//! No exemplars are stored by this version, as with `--tsdb.max-exemplars=0`, which is the default:
//! a query finds none, and asks no tenant. It asks in PromQL, which is not read here either, so that
//! every tenant that cannot be read counts as one that it may have meant.

use std::sync::Arc;
use std::vec;

use futures::stream::{self, Iter};
use tonic::{Request, Response, Status};

use crate::grpc::respond;
use crate::store::missing::{self, Missing};
use crate::store::source::TenantSource;
use crate::wire::proto::thanos::exemplars_response::Result as Part;
use crate::wire::proto::thanos::exemplars_server::Exemplars;
use crate::wire::proto::thanos::{ExemplarsRequest, ExemplarsResponse};

/// The service behind `thanos.Exemplars`.
pub struct ExemplarsService {
    source: Arc<dyn TenantSource>,
}

impl ExemplarsService {
    pub fn new(source: Arc<dyn TenantSource>) -> ExemplarsService {
        ExemplarsService { source }
    }
}

#[tonic::async_trait]
impl Exemplars for ExemplarsService {
    type ExemplarsStream = Iter<vec::IntoIter<Result<ExemplarsResponse, Status>>>;

    async fn exemplars(
        &self,
        request: Request<ExemplarsRequest>,
    ) -> Result<Response<Self::ExemplarsStream>, Status> {
        let warnings = missing::warnings(self.source.tenants().unavailable.iter());
        let strategy = request.get_ref().partial_response_strategy;
        let warnings = Missing::of_request(false, strategy)
            .settle(warnings)
            .map_err(|error| respond::query(&error))?;
        let messages: Vec<_> = warnings
            .into_iter()
            .map(|text| Ok(ExemplarsResponse { result: Some(Part::Warning(text)) }))
            .collect();
        Ok(Response::new(stream::iter(messages)))
    }
}
