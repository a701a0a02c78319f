//! The Lock service: the first in line under a name has the lock.

use crate::proto::v3lockpb as pb;
use crate::proto::v3lockpb::lock_server::Lock;
use crate::queue::prefix;
use crate::server::Server;
use bytes::Bytes;
use polybolt::{DeleteRequest, Span};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The Lock service of a server.
#[derive(Debug, Clone)]
pub(crate) struct LockService(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        let Self(server) = self;
        let (metadata, _, pb::LockRequest { name, lease }) = request.into_parts();
        let caller = server.caller(&metadata)?;
        let (place, _) = server.enter(&caller, &name, lease, Bytes::new()).await?;
        drop(caller);
        let waiting = server.leave_unless_kept(&place);
        let revision = server.wait_first(&name, &place).await?;
        // Rights may have changed while it waited.
        server.caller(&metadata)?.check_read(&Span::prefix(prefix(&name)))?;
        // Its own lease may have ended while it waited.
        if !server.holds(&place)? {
            return Err(Status::unknown("mutex: session is expired"));
        }
        waiting.keep();
        Ok(Response::new(pb::LockResponse { header: Some(server.header(revision)), key: place.key }))
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Result<Response<pb::UnlockResponse>, Status> {
        let Self(server) = self;
        let caller = server.caller(request.metadata())?;
        let request = DeleteRequest { span: Span::key(request.into_inner().key), prev_kv: false };
        caller.check_delete(&request)?;
        match server.keyspace.delete_range(request).await {
            Ok(done) => Ok(Response::new(pb::UnlockResponse { header: Some(server.header(done.revision)) })),
            Err(error) => Err(server.refuse(error).await),
        }
    }
}
