//! The Election service: the first in line under a name leads.

use crate::convert;
use crate::proto::v3electionpb as pb;
use crate::proto::v3electionpb::election_server::Election;
use crate::queue::{Place, created_at, prefix};
use crate::server::Server;
use crate::users::Caller;
use bytes::Bytes;
use polybolt::{Op, PutRequest, Span, TxnRequest, WatchItem, WatchRequest};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The Election service of a server.
#[derive(Debug, Clone)]
pub(crate) struct ElectionService(pub(crate) Arc<Server>);

fn place(leader: Option<pb::LeaderKey>) -> Result<Place, Status> {
    let pb::LeaderKey { key, rev, lease, .. } =
        leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))?;
    Ok(Place { key, created: rev, lease })
}

impl ElectionService {
    /// Puts a leader's new value; the revision of it.
    async fn put(&self, caller: &Caller, place: &Place, value: Bytes) -> Result<i64, Status> {
        let Self(server) = self;
        server.check_alarms(true)?;
        let put = PutRequest { lease: place.lease, ..PutRequest::new(place.key.clone(), value) };
        let request = TxnRequest {
            compare: vec![created_at(&place.key, place.created)],
            success: vec![Op::Put(put)],
            failure: Vec::new(),
        };
        caller.check_txn(&request, &server.keyspace)?;
        match server.keyspace.txn(request).await {
            Ok(response) if response.succeeded => Ok(response.revision),
            Ok(_) => Err(Status::unknown("election: not leader")),
            Err(error) => Err(server.refuse(error).await),
        }
    }
}

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(&self, request: Request<pb::CampaignRequest>) -> Result<Response<pb::CampaignResponse>, Status> {
        let Self(server) = self;
        let (metadata, _, pb::CampaignRequest { name, lease, value }) = request.into_parts();
        let caller = server.caller(&metadata)?;
        let (place, there) = server.enter(&caller, &name, lease, value.clone()).await?;
        let waiting = server.leave_unless_kept(&place);
        if there != value {
            self.put(&caller, &place, value).await?;
        }
        drop(caller);
        let revision = server.wait_first(&name, &place).await?;
        // Rights may have changed while it waited.
        server.caller(&metadata)?.check_read(&Span::prefix(prefix(&name)))?;
        if !server.holds(&place)? {
            return Err(Status::unknown("election: session is expired"));
        }
        waiting.keep();
        let leader = pb::LeaderKey { name, key: place.key, rev: place.created, lease: place.lease };
        Ok(Response::new(pb::CampaignResponse { header: Some(server.header(revision)), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<pb::ProclaimRequest>) -> Result<Response<pb::ProclaimResponse>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let pb::ProclaimRequest { leader, value } = request.into_inner();
        let revision = self.put(&caller, &place(leader)?, value).await?;
        Ok(Response::new(pb::ProclaimResponse { header: Some(self.0.header(revision)) }))
    }

    async fn leader(&self, request: Request<pb::LeaderRequest>) -> Result<Response<pb::LeaderResponse>, Status> {
        let Self(server) = self;
        let caller = server.caller(request.metadata())?;
        let name = request.into_inner().name;
        caller.check_read(&Span::prefix(prefix(&name)))?;
        let (first, revision) = server.first(&name)?;
        server.users.check_unchanged(caller.revision())?;
        let kv = first.ok_or_else(|| Status::unknown("election: no leader"))?;
        Ok(Response::new(pb::LeaderResponse { header: Some(server.header(revision)), kv: Some(convert::kv(kv)) }))
    }

    type ObserveStream = ReceiverStream<Result<pb::LeaderResponse, Status>>;

    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let server = Arc::clone(&self.0);
        let caller = server.caller(request.metadata())?;
        let name = request.into_inner().name;
        // Once, as for a watch (WCH-10).
        caller.check_read(&Span::prefix(prefix(&name)))?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            if let Err(status) = observe(&server, &name, &sender).await {
                drop(sender.send(Err(status)).await);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Result<Response<pb::ResignResponse>, Status> {
        let Self(server) = self;
        let caller = server.caller(request.metadata())?;
        let place = place(request.into_inner().leader)?;
        let span = Span::key(place.key.clone());
        caller.check_read(&span).and_then(|()| caller.check_write(&span))?;
        let revision = server.leave(&place).await?;
        Ok(Response::new(pb::ResignResponse { header: Some(server.header(revision)) }))
    }
}

type Sender = mpsc::Sender<Result<pb::LeaderResponse, Status>>;

/// Tells who leads and its newest value whenever one of them changes, as long as anybody listens.
async fn observe(server: &Arc<Server>, name: &Bytes, sender: &Sender) -> Result<(), Status> {
    let failed = |error: polybolt::Error| convert::status(&error);
    let mut told = None;
    let (_, mut from) = server.first(name)?;
    loop {
        // Whatever changes in the line may change who is first.
        let span = Span::prefix(prefix(name));
        let request = WatchRequest { span, start_revision: from + 1, no_put: false, no_delete: false, prev_kv: false };
        let mut watcher = server.keyspace.watch(request).map_err(failed)?;
        loop {
            let (first, revision) = server.first(name)?;
            if let Some(kv) = first
                && told != Some((kv.key.clone(), kv.mod_revision))
            {
                told = Some((kv.key.clone(), kv.mod_revision));
                let response = pb::LeaderResponse { header: Some(server.header(revision)), kv: Some(convert::kv(kv)) };
                if sender.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            let item = tokio::select! {
                () = server.stop.cancelled() => return Err(Status::unavailable("etcdserver: server stopped")),
                () = sender.closed() => return Ok(()),
                item = watcher.next() => item.map_err(failed)?,
            };
            match item {
                Some(WatchItem::Events { .. }) => {}
                Some(WatchItem::Compacted { compact_revision }) => {
                    from = compact_revision;
                    break;
                }
                None => return Err(Status::unavailable("etcdserver: server stopped")),
            }
        }
    }
}
