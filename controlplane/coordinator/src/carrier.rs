//! What carries gRPC between a node and its coordinator: a connection, or what a test puts in its place.

use crate::{Coordinator, grpc};
use std::convert::Infallible;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::transport::Channel;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

/// Takes requests to a coordinator, and brings its answers.
pub type Carrier = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// A connection.
pub(crate) fn over(channel: Channel) -> Carrier {
    BoxCloneSyncService::new(channel.map_err(|error| Status::from_error(error.into())))
}

/// Straight to a coordinator of this process.
pub fn to(coordinator: Coordinator) -> Carrier {
    let never = |error: Infallible| match error {};
    let service = ServiceExt::<Request<Body>>::map_err(grpc::service(coordinator), never);
    BoxCloneSyncService::new(service)
}
