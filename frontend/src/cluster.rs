//! The Cluster service: a cluster of one.

use crate::convert;
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
            peer_ur_ls: self.0.peer_urls(),
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

/// True if a URL can be a peer's: a scheme, a host and a port, and no path.
fn is_peer_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else {
        return false;
    };
    let address = rest.split(['?', '#']).next().unwrap_or_default();
    match scheme.to_ascii_lowercase().as_str() {
        "unix" | "unixs" => true,
        "http" | "https" => address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()),
        _ => false,
    }
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
        let root = self.check_root(&request);
        let urls = request.into_inner().peer_ur_ls;
        if urls.is_empty() || !urls.iter().all(|url| is_peer_url(url)) {
            return Err(Status::invalid_argument("etcdserver: given member URLs are invalid"));
        }
        root?;
        if self.0.peer_urls().iter().any(|have| urls.contains(have)) {
            return Err(Status::failed_precondition("etcdserver: Peer URLs already exists"));
        }
        Err(Status::unimplemented("polybolt serves a single member: there can be no other"))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.check_root(&request)?;
        self.check_known(request.into_inner().id)?;
        // Nobody would be left.
        Err(Status::unknown("etcdserver: re-configuration failed due to not enough started members"))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.check_root(&request)?;
        let Self(server) = self;
        let pb::MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        self.check_known(id)?;
        // Taken as they are, as etcd does.
        server.set_peer_urls(peer_ur_ls).await.map_err(|error| convert::status(&error))?;
        Ok(Response::new(pb::MemberUpdateResponse { header: Some(server.header(0)), members: vec![self.member()] }))
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
