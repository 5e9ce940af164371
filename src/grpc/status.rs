//! Thanos' Status API.

use std::sync::Arc;
use std::vec;

use futures::stream::{self, Iter};
use tonic::{Request, Response};

use crate::grpc::respond;
use crate::store::budget::ReadBudget;
use crate::store::pieces::blocking;
use crate::store::source::TenantSource;
use crate::store::status::statistics;
use crate::wire::proto::thanos::status_server::Status;
use crate::wire::proto::thanos::tsdb_statistics_response::Result as Part;
use crate::wire::proto::thanos::{TsdbStatisticsRequest, TsdbStatisticsResponse};

/// The service behind `thanos.Status`.
pub struct StatusService {
    source: Arc<dyn TenantSource>,
    budget: ReadBudget,
}

impl StatusService {
    pub fn new(source: Arc<dyn TenantSource>, budget: ReadBudget) -> StatusService {
        StatusService { source, budget }
    }
}

#[tonic::async_trait]
impl Status for StatusService {
    type TSDBStatisticsStream = Iter<vec::IntoIter<Result<TsdbStatisticsResponse, tonic::Status>>>;

    async fn tsdb_statistics(
        &self,
        request: Request<TsdbStatisticsRequest>,
    ) -> Result<Response<Self::TSDBStatisticsStream>, tonic::Status> {
        let (source, budget) = (self.source.clone(), self.budget.clone());
        let request = request.into_inner();
        let counted = blocking(move || statistics(&*source, &request, &budget)).await;
        let (statistics, warnings) = counted.map_err(|error| respond::statistics(&error))?;
        let parts = warnings.into_iter().map(Part::Warning).chain([Part::Statistics(statistics)]);
        let messages: Vec<_> =
            parts.map(|part| Ok(TsdbStatisticsResponse { result: Some(part) })).collect();
        Ok(Response::new(stream::iter(messages)))
    }
}
