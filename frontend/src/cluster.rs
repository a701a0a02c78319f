//! The Cluster service: a cluster of one.

use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::server::Server;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The Cluster service of a server.
#[derive(Debug, Clone)]
pub(crate) struct ClusterService(pub(crate) Arc<Server>);

impl ClusterService {
    fn member(&self) -> pb::Member {
        pb::Member {
            id: self.0.member_id,
            name: self.0.settings.name.clone(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.0.settings.advertise_client_urls.clone(),
            is_learner: false,
        }
    }

    /// Members are for root to change.
    fn check_root<T>(&self, request: &Request<T>) -> Result<(), Status> {
        Ok(self.0.caller(request.metadata())?.check_root()?)
    }

    fn check_known(&self, id: u64) -> Result<(), Status> {
        if id == self.0.member_id { Ok(()) } else { Err(Status::not_found("etcdserver: member not found")) }
    }
}

fn alone() -> Status {
    Status::unimplemented("polybolt serves a single member: members cannot be added, removed or changed")
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.0.caller(request.metadata())?.check_user()?;
        Ok(Response::new(pb::MemberListResponse { header: Some(self.0.header(0)), members: vec![self.member()] }))
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.check_root(&request)?;
        Err(alone())
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.check_root(&request)?;
        self.check_known(request.into_inner().id)?;
        Err(Status::unavailable("etcdserver: unhealthy cluster"))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.check_root(&request)?;
        self.check_known(request.into_inner().id)?;
        Err(alone())
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.check_root(&request)?;
        self.check_known(request.into_inner().id)?;
        Err(Status::failed_precondition("etcdserver: can only promote a learner member"))
    }
}
