//! Thanos' Exemplars API.
//!
//! No exemplars are stored by this version, as with `--tsdb.max-exemplars=0`, which is the default:
//! a query finds none, and asks no tenant.

use futures::stream::{self, Empty};
use tonic::{Request, Response, Status};

use crate::wire::proto::thanos::exemplars_server::Exemplars;
use crate::wire::proto::thanos::{ExemplarsRequest, ExemplarsResponse};

/// The service behind `thanos.Exemplars`.
pub struct ExemplarsService;

#[tonic::async_trait]
impl Exemplars for ExemplarsService {
    type ExemplarsStream = Empty<Result<ExemplarsResponse, Status>>;

    async fn exemplars(
        &self,
        _: Request<ExemplarsRequest>,
    ) -> Result<Response<Self::ExemplarsStream>, Status> {
        Ok(Response::new(stream::empty()))
    }
}
