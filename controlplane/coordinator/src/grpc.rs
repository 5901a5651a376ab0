//! The gRPC service: decodes, calls the coordinator, encodes.

mod calls;

use crate::coordinator::{ResendError, Revocations};
use crate::registry::{RegisterError, UnknownSession};
use crate::{Coordinator, Held};
use calls::Answers;
use fastcache_api::control::FRAME_MAX;
use fastcache_api::grpc::coordinator_server::{self, CoordinatorServer};
use fastcache_api::grpc::{
    AckReply, AckRequest, CallRequest, HeartbeatReply, HeartbeatRequest, HoldReply, HoldRequest,
    LeaveReply, LeaveRequest, LockReply, LockRequest, PeersReply, PeersRequest, RegisterReply,
    RegisterRequest, ResendReply, ResendRequest, WatchRequest,
};
use fastcache_api::locks::LockOp;
use tonic::{Request, Response, Status, Streaming};

/// Longest message, bytes: the longest on the control socket, and what carries it.
pub(crate) const MESSAGE_MAX: usize = FRAME_MAX + 4096;

/// Longest operation, and answer, of a stream, bytes. A longer message would end the stream, for all who ask on it.
pub(crate) const OPERATION_MAX: usize = MESSAGE_MAX - 1024;

pub(crate) struct Service(Coordinator);

pub(crate) fn service(coordinator: Coordinator) -> CoordinatorServer<Service> {
    CoordinatorServer::new(Service(coordinator))
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX)
}

impl From<UnknownSession> for Status {
    fn from(e: UnknownSession) -> Status {
        Status::unauthenticated(e.to_string())
    }
}

impl From<RegisterError> for Status {
    fn from(e: RegisterError) -> Status {
        let text = e.to_string();
        match e {
            RegisterError::PeerId | RegisterError::Identity => Status::invalid_argument(text),
            // The process before it may be gone in a moment.
            RegisterError::Taken(_) => Status::unavailable(text),
            RegisterError::OtherNode { .. } => Status::already_exists(text),
            RegisterError::Version { .. } => Status::failed_precondition(text),
            RegisterError::Full => Status::resource_exhausted(text),
            RegisterError::Io(_) => Status::internal(text),
        }
    }
}

impl From<ResendError> for Status {
    fn from(e: ResendError) -> Status {
        let text = e.to_string();
        match e {
            ResendError::Session(e) => e.into(),
            ResendError::FileSystem { .. } => Status::failed_precondition(text),
            ResendError::Garbage(_) => Status::invalid_argument(text),
            ResendError::Full => Status::resource_exhausted(text),
            ResendError::Store(_) => Status::internal(text),
        }
    }
}

#[tonic::async_trait]
impl coordinator_server::Coordinator for Service {
    type CallsStream = Answers<Streaming<CallRequest>>;
    type WatchStream = Revocations;

    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterReply>, Status> {
        let RegisterRequest {
            node,
            ns_version,
            previous_session,
        } = request.into_inner();
        let done = self
            .0
            .register(node.unwrap_or_default(), ns_version, previous_session)
            .await?;
        let (file_system, epoch) = self.0.engine().owner();
        Ok(Response::new(RegisterReply {
            file_system,
            epoch,
            lease_ms: u32::try_from(done.lease.as_millis()).unwrap_or(u32::MAX),
            session: done.session,
            is_shared: done.is_shared,
            peers_version: self.0.peers_version(),
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let request = request.into_inner();
        let renewed = self
            .0
            .heartbeat(request.session, request.node, request.is_heard)?;
        Ok(Response::new(HeartbeatReply {
            lease_ms: u32::try_from(renewed.lease.as_millis()).unwrap_or(u32::MAX),
            is_shared: renewed.is_shared,
            peers_version: self.0.peers_version(),
            stable: Some(self.0.stable()),
        }))
    }

    async fn calls(
        &self,
        request: Request<Streaming<CallRequest>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        let answers = Answers::new(self.0.clone(), request.into_inner());
        Ok(Response::new(answers))
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(self.0.watch(request.into_inner().session)?))
    }

    async fn ack_revocation(
        &self,
        request: Request<AckRequest>,
    ) -> Result<Response<AckReply>, Status> {
        let request = request.into_inner();
        self.0.acknowledge(request.session, request.number);
        Ok(Response::new(AckReply {}))
    }

    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockReply>, Status> {
        let request = request.into_inner();
        let op: LockOp = postcard::from_bytes(&request.op)
            .map_err(|e| Status::invalid_argument(format!("not about a lock: {e}")))?;
        let answer = self.0.lock(request.session, op).await?;
        let answer = postcard::to_stdvec(&answer).map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(LockReply { answer }))
    }

    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldReply>, Status> {
        let HoldRequest {
            session,
            number,
            chunks,
            bytes,
        } = request.into_inner();
        self.0.hold(session, number, Held { chunks, bytes })?;
        Ok(Response::new(HoldReply {}))
    }

    async fn peers(&self, request: Request<PeersRequest>) -> Result<Response<PeersReply>, Status> {
        self.0.check(request.into_inner().session)?;
        let peers = self.0.peers().into_iter().map(Into::into).collect();
        Ok(Response::new(PeersReply { peers }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        self.0.leave(request.into_inner().session)?;
        Ok(Response::new(LeaveReply {}))
    }

    async fn resend(
        &self,
        request: Request<ResendRequest>,
    ) -> Result<Response<ResendReply>, Status> {
        let is_over = self.0.bring(request.into_inner()).await?;
        Ok(Response::new(ResendReply { is_over }))
    }
}
