//! Refuses calls whose heads are too much, and holds what the large ones take.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::door::heads::Heads;
use crate::grpc::respond;

/// Puts [`JudgedHeads`] around a service.
#[derive(Clone)]
pub(super) struct HeadsLayer(pub(super) Arc<Heads>);

impl<S> Layer<S> for HeadsLayer {
    type Service = JudgedHeads<S>;

    fn layer(&self, inner: S) -> JudgedHeads<S> {
        JudgedHeads { inner, heads: self.0.clone() }
    }
}

/// A service that sees no call whose head is too much.
#[derive(Clone)]
pub(super) struct JudgedHeads<S> {
    inner: S,
    heads: Arc<Heads>,
}

type Refused<E> = Ready<Result<Response<Body>, E>>;
type Held<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for JudgedHeads<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Either<Refused<Infallible>, Held<Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (head, body) = request.into_parts();
        match self.heads.admit(&head, None) {
            Err(error) => {
                let refused = ready(Ok(respond::head(&error).into_http()));
                Either::Right(Either::Left(refused))
            }
            Ok(None) => Either::Left(self.inner.call(Request::from_parts(head, body))),
            Ok(held) => {
                let answered = self.inner.call(Request::from_parts(head, body));
                Either::Right(Either::Right(Box::pin(async move {
                    let response = answered.await;
                    drop(held);
                    response
                })))
            }
        }
    }
}
