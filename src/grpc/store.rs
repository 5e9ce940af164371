//! Thanos' StoreAPI: Series, LabelNames, LabelValues.

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use futures::stream::{self, Empty};
use tonic::{Request, Response, Status};

use crate::grpc::framed::FramedAnswer;
use crate::grpc::respond;
use crate::store::budget::{HeldAnswer, ReadBudget, ReadBudgetGuard};
use crate::store::error::QueryError;
use crate::store::merge::SeriesCursor;
use crate::store::pieces::{self, Patience};
use crate::store::source::TenantSource;
use crate::store::{Texts, label_names, label_values};
use crate::wire::proto::thanos::store_server::Store;
use crate::wire::proto::thanos::{
    LabelNamesRequest, LabelNamesResponse, LabelValuesRequest, LabelValuesResponse, SeriesRequest,
    SeriesResponse,
};

/// The service behind `thanos.Store`.
pub struct StoreService {
    source: Arc<dyn TenantSource>,
    budget: ReadBudget,
}

impl StoreService {
    pub fn new(source: Arc<dyn TenantSource>, budget: ReadBudget) -> StoreService {
        StoreService { source, budget }
    }
}

#[tonic::async_trait]
impl Store for StoreService {
    /// Without messages: the answer goes as a [`FramedAnswer`].
    type SeriesStream = Empty<Result<SeriesResponse, Status>>;

    async fn series(
        &self,
        request: Request<SeriesRequest>,
    ) -> Result<Response<Self::SeriesStream>, Status> {
        let (source, budget) = (self.source.clone(), self.budget.clone());
        let (request, patience) = question(request);
        let cursor =
            blocking(move || SeriesCursor::open(&source.tenants(), &request, &budget)).await?;
        let mut response = Response::new(stream::empty());
        let answer = FramedAnswer::new(pieces::pieces(cursor, patience));
        response.extensions_mut().insert(answer);
        Ok(response)
    }

    async fn label_names(
        &self,
        request: Request<LabelNamesRequest>,
    ) -> Result<Response<LabelNamesResponse>, Status> {
        let source = self.source.clone();
        let found = self
            .labels(request, move |request, held| label_names(&source.tenants(), &request, held));
        let answer =
            |(names, warnings)| LabelNamesResponse { names, warnings, ..Default::default() };
        Ok(found.await?.map(answer))
    }

    async fn label_values(
        &self,
        request: Request<LabelValuesRequest>,
    ) -> Result<Response<LabelValuesResponse>, Status> {
        let source = self.source.clone();
        let found = self
            .labels(request, move |request, held| label_values(&source.tenants(), &request, held));
        let answer =
            |(values, warnings)| LabelValuesResponse { values, warnings, ..Default::default() };
        Ok(found.await?.map(answer))
    }
}

impl StoreService {
    /// Finds names or values of labels. What they take is held until they are sent.
    async fn labels<R: Send + 'static>(
        &self,
        request: Request<R>,
        find: impl FnOnce(R, &mut ReadBudgetGuard) -> Result<Texts, QueryError> + Send + 'static,
    ) -> Result<Response<Texts>, Status> {
        let mut held = self.budget.begin();
        let (request, _) = question(request);
        let (texts, held) = blocking(move || {
            let texts = find(request, &mut held)?;
            Ok((texts, held))
        })
        .await?;
        let mut response = Response::new(texts);
        response.extensions_mut().insert(HeldAnswer::new(held));
        Ok(response)
    }
}

/// The question, and how long for its answer is waited.
fn question<R>(mut request: Request<R>) -> (R, Patience) {
    let patience = request.extensions_mut().remove::<Patience>().unwrap_or_default();
    (request.into_inner(), patience)
}

/// [`pieces::blocking`] for a service.
async fn blocking<T: Send + 'static>(
    query: impl FnOnce() -> Result<T, QueryError> + Send + 'static,
) -> Result<T, Status> {
    pieces::blocking(query).await.map_err(|error| respond::query(&error))
}
