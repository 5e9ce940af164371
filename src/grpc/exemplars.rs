//! Thanos' Exemplars API.

use std::sync::Arc;
use std::vec;

use futures::stream::{self, Iter};
use tonic::{Request, Response, Status};

use crate::grpc::respond;
use crate::store::budget::{HeldAnswer, ReadBudget};
use crate::store::exemplars::exemplars;
use crate::store::pieces::blocking;
use crate::store::source::TenantSource;
use crate::wire::proto::thanos::exemplars_response::Result as Part;
use crate::wire::proto::thanos::exemplars_server::Exemplars;
use crate::wire::proto::thanos::{ExemplarsRequest, ExemplarsResponse};

/// The service behind `thanos.Exemplars`.
pub struct ExemplarsService {
    source: Arc<dyn TenantSource>,
    budget: ReadBudget,
}

impl ExemplarsService {
    pub fn new(source: Arc<dyn TenantSource>, budget: ReadBudget) -> ExemplarsService {
        ExemplarsService { source, budget }
    }
}

#[tonic::async_trait]
impl Exemplars for ExemplarsService {
    type ExemplarsStream = Iter<vec::IntoIter<Result<ExemplarsResponse, Status>>>;

    async fn exemplars(
        &self,
        request: Request<ExemplarsRequest>,
    ) -> Result<Response<Self::ExemplarsStream>, Status> {
        let (source, mut held) = (self.source.clone(), self.budget.begin());
        let request = request.into_inner();
        let found = blocking(move || {
            let found = exemplars(&source.tenants(), &request, &mut held)?;
            Ok((found, held))
        });
        let ((data, warnings), held) = found.await.map_err(|error| respond::query(&error))?;
        let parts = warnings.into_iter().map(Part::Warning).chain(data.into_iter().map(Part::Data));
        let messages: Vec<_> =
            parts.map(|part| Ok(ExemplarsResponse { result: Some(part) })).collect();
        let mut response = Response::new(stream::iter(messages));
        response.extensions_mut().insert(HeldAnswer::new(held));
        Ok(response)
    }
}
