//! The Lease service.

use crate::convert;
use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::server::{Server, off_thread};
use crate::users::AuthError;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The Lease service of a server.
#[derive(Debug, Clone)]
pub(crate) struct LeaseService(pub(crate) Arc<Server>);

/// Answers that may wait for a slow client.
const ANSWERS_AHEAD: usize = 16;

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let Self(server) = self;
        let caller = server.caller(request.metadata())?;
        caller.check_user()?;
        server.check_alarms(true)?;
        let pb::LeaseGrantRequest { ttl, id } = request.into_inner();
        let granted = server.written("LeaseGrant", server.keyspace.lease_grant(id, ttl)).await?;
        server.metrics.leases_granted.inc();
        server.metrics.lease_ttl.observe(granted.ttl as f64);
        Ok(Response::new(pb::LeaseGrantResponse {
            header: Some(server.header(granted.revision)),
            id: granted.id,
            ttl: granted.ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let Self(server) = self;
        let caller = server.caller(request.metadata())?;
        caller.check_user()?;
        server.check_alarms(false)?;
        let id = request.into_inner().id;
        caller.check_lease_write(id, &server.keyspace)?;
        let revision = server.written("LeaseRevoke", server.keyspace.lease_revoke(id)).await?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: Some(server.header(revision)) }))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let server = Arc::clone(&self.0);
        let (metadata, _, mut requests) = request.into_parts();
        let (sender, receiver) = mpsc::channel(ANSWERS_AHEAD);
        tokio::spawn(async move {
            loop {
                let request = tokio::select! {
                    () = server.stop.cancelled() => {
                        drop(sender.send(Err(Status::unavailable("etcdserver: server stopped"))).await);
                        return;
                    }
                    request = requests.message() => request,
                };
                let id = match request {
                    Ok(Some(pb::LeaseKeepAliveRequest { id })) => id,
                    Ok(None) => return,
                    Err(status) => {
                        drop(sender.send(Err(status)).await);
                        return;
                    }
                };
                // Anew each time: rights change while a stream lives.
                let allowed = server.caller(&metadata).and_then(|caller| {
                    caller.check_user()?;
                    caller.check_lease_write(id, &server.keyspace)
                });
                if let Err(error) = allowed {
                    drop(sender.send(Err(error.into())).await);
                    return;
                }
                // Before the renewal: a success is never stamped later than a revoke.
                let header = Some(server.header_now());
                let renewed = server.keyspace.lease_keep_alive(id).await;
                if renewed.as_ref().is_ok_and(|ttl| *ttl > 0) {
                    server.metrics.leases_renewed.inc();
                }
                let answer = renewed.map(|ttl| pb::LeaseKeepAliveResponse { header, id, ttl });
                if sender.send(answer.map_err(|error| convert::status(&error))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let Self(server) = self;
        let caller = server.caller(request.metadata())?;
        caller.check_user()?;
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        if keys {
            caller.check_lease_read(id, &server.keyspace)?;
        }
        let header = Some(server.header_now());
        let response = match server.keyspace.lease_time_to_live(id, keys) {
            Some(lease) => pb::LeaseTimeToLiveResponse {
                header,
                id,
                ttl: lease.remaining_ttl,
                granted_ttl: lease.granted_ttl,
                keys: lease.keys,
            },
            None => pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() },
        };
        server.users.check_unchanged(caller.revision())?;
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let Self(server) = self;
        let caller = server.caller(request.metadata())?;
        caller.check_user()?;
        let keyspace = server.keyspace.clone();
        let (leases, caller) = if caller.check_root().is_ok() {
            (keyspace.leases(), caller)
        } else {
            // There may be many, with many keys.
            let readable = off_thread(move || {
                let leases = keyspace.leases();
                leases.iter().try_for_each(|id| caller.check_lease_read(*id, &keyspace))?;
                Ok::<_, AuthError>((leases, caller))
            });
            readable.await??
        };
        server.users.check_unchanged(caller.revision())?;
        let leases = leases.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: Some(server.header_now()), leases }))
    }
}
