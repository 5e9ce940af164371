//! `grpc.reflection`, v1 and v1alpha: which services there are.
//!
//! Thanos lists its services and finds no descriptors of them, as its messages are in no registry
//! of descriptors; ours declare labels as `bytes`, which would show them as base64 to a client that
//! went by them. So only the list is served, and clients bring their own .proto files.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_server as v1_server;
use tonic_reflection::pb::v1alpha::server_reflection_server as v1alpha_server;

/// Answers by the list of names.
#[derive(Clone)]
pub(super) struct ReflectionService {
    names: Arc<[&'static str]>,
}

/// Both servers. `names` are the services added so far; reflection itself is listed too.
pub(super) fn servers(
    mut names: Vec<&'static str>,
) -> (
    v1_server::ServerReflectionServer<ReflectionService>,
    v1alpha_server::ServerReflectionServer<ReflectionService>,
) {
    // What only our nodes say to one another is no news to a client.
    names.retain(|name| !name.starts_with("ringest."));
    names.extend([v1_server::SERVICE_NAME, v1alpha_server::SERVICE_NAME]);
    names.sort_unstable();
    let service = ReflectionService { names: names.into() };
    (
        v1_server::ServerReflectionServer::new(service.clone()),
        v1alpha_server::ServerReflectionServer::new(service),
    )
}

/// The two versions have equal messages under different names.
macro_rules! serve_version {
    ($version:ident) => {
        mod $version {
            use super::*;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            use tonic_reflection::pb::$version::server_reflection_server::ServerReflection;
            use tonic_reflection::pb::$version::{
                ErrorResponse, ListServiceResponse, ServerReflectionRequest,
                ServerReflectionResponse, ServiceResponse,
            };

            #[tonic::async_trait]
            impl ServerReflection for ReflectionService {
                type ServerReflectionInfoStream =
                    Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

                async fn server_reflection_info(
                    &self,
                    requests: Request<Streaming<ServerReflectionRequest>>,
                ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                    let names = self.names.clone();
                    let answers =
                        requests.into_inner().map(move |request| answer(&names, request?));
                    Ok(Response::new(Box::pin(answers)))
                }
            }

            fn answer(
                names: &[&str],
                request: ServerReflectionRequest,
            ) -> Result<ServerReflectionResponse, Status> {
                let answer = match request.message_request {
                    None => return Err(Status::invalid_argument("invalid MessageRequest")),
                    Some(MessageRequest::ListServices(_)) => {
                        let names = names.iter();
                        let service =
                            names.map(|name| ServiceResponse { name: (*name).to_owned() });
                        MessageResponse::ListServicesResponse(ListServiceResponse {
                            service: service.collect(),
                        })
                    }
                    Some(_) => MessageResponse::ErrorResponse(ErrorResponse {
                        error_code: Code::NotFound.into(),
                        error_message: "proto: not found".to_owned(),
                    }),
                };
                Ok(ServerReflectionResponse {
                    valid_host: request.host.clone(),
                    original_request: Some(request),
                    message_response: Some(answer),
                })
            }
        }
    };
}

serve_version!(v1);
serve_version!(v1alpha);
