//! One server of the two, and who is logged in there.

use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::auth_client::AuthClient;
use polybolt_frontend::proto::etcdserverpb::cluster_client::ClusterClient;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use polybolt_frontend::proto::etcdserverpb::lease_client::LeaseClient;
use polybolt_frontend::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use polybolt_frontend::proto::etcdserverpb::watch_client::WatchClient;
use polybolt_frontend::proto::v3electionpb as election;
use polybolt_frontend::proto::v3electionpb::election_client::ElectionClient;
use polybolt_frontend::proto::v3lockpb as lock;
use polybolt_frontend::proto::v3lockpb::lock_client::LockClient;
use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Without a token.
    Nobody,
    /// With a token that nobody was given.
    Stranger,
    /// With the token of the newest login of this name; without one if there never was any.
    User(&'static str),
    /// The same in the other header, as HTTP clients have it.
    Http(&'static str),
}

/// A call, as it goes over the wire.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Enable,
    Disable,
    AuthStatus,
    Login { name: &'static str, password: &'static str },
    UserAdd(pb::AuthUserAddRequest),
    UserGet(&'static str),
    UserList,
    UserDelete(&'static str),
    ChangePassword(pb::AuthUserChangePasswordRequest),
    GrantRole { user: &'static str, role: &'static str },
    RevokeRole { user: &'static str, role: &'static str },
    RoleAdd(&'static str),
    RoleGet(&'static str),
    RoleList,
    RoleDelete(&'static str),
    GrantPermission(pb::AuthRoleGrantPermissionRequest),
    RevokePermission(pb::AuthRoleRevokePermissionRequest),
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Watch(pb::WatchCreateRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(i64),
    KeepAlive(i64),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    Members,
    MemberRemove,
    Status,
    Alarm(pb::AlarmRequest),
    Defragment,
    Hash,
    HashKv(i64),
    Snapshot,
    MoveLeader,
    Lock(lock::LockRequest),
    Unlock(&'static str),
    Campaign(election::CampaignRequest),
    Proclaim(election::ProclaimRequest),
    Leader(&'static str),
    Observe(&'static str),
    Resign(election::ResignRequest),
}

/// What of an answer has to be equal, or why there is none.
pub(crate) type Answer = Result<String, (Code, String)>;

/// Answers whose header names who gave them.
trait Headed: Debug {
    fn header(&mut self) -> &mut Option<pb::ResponseHeader>;
}

macro_rules! headed {
    ($($response:ty),* $(,)?) => {
        $(impl Headed for $response {
            fn header(&mut self) -> &mut Option<pb::ResponseHeader> {
                &mut self.header
            }
        })*
    };
}

headed!(
    pb::AuthEnableResponse,
    pb::AuthDisableResponse,
    pb::AuthStatusResponse,
    pb::AuthenticateResponse,
    pb::AuthUserAddResponse,
    pb::AuthUserGetResponse,
    pb::AuthUserListResponse,
    pb::AuthUserDeleteResponse,
    pb::AuthUserChangePasswordResponse,
    pb::AuthUserGrantRoleResponse,
    pb::AuthUserRevokeRoleResponse,
    pb::AuthRoleAddResponse,
    pb::AuthRoleGetResponse,
    pb::AuthRoleListResponse,
    pb::AuthRoleDeleteResponse,
    pb::AuthRoleGrantPermissionResponse,
    pb::AuthRoleRevokePermissionResponse,
    pb::RangeResponse,
    pb::PutResponse,
    pb::DeleteRangeResponse,
    pb::TxnResponse,
    pb::CompactionResponse,
    pb::WatchResponse,
    pb::LeaseGrantResponse,
    pb::LeaseRevokeResponse,
    pb::LeaseKeepAliveResponse,
    pb::LeaseTimeToLiveResponse,
    pb::LeaseLeasesResponse,
    pb::AlarmResponse,
    pb::HashKvResponse,
    lock::LockResponse,
    lock::UnlockResponse,
    election::CampaignResponse,
    election::ProclaimResponse,
    election::LeaderResponse,
    election::ResignResponse,
);

fn failed(status: Status) -> (Code, String) {
    (status.code(), status.message().to_owned())
}

/// The whole answer but for who gave it.
fn whole<T: Headed>(result: Result<Response<T>, Status>) -> Answer {
    edited(result, |_| ())
}

fn edited<T: Headed>(result: Result<Response<T>, Status>, edit: impl FnOnce(&mut T)) -> Answer {
    let mut response = result.map_err(failed)?.into_inner();
    if let Some(header) = response.header() {
        *header = pb::ResponseHeader { revision: header.revision, ..Default::default() };
    }
    edit(&mut response);
    Ok(format!("{response:?}"))
}

/// Only that there was one: what is in it is not for users and roles to say.
fn any<T>(result: Result<Response<T>, Status>) -> Answer {
    result.map(|_| String::new()).map_err(failed)
}

/// Clients of one server.
pub(crate) struct Side {
    channel: Channel,
    tokens: HashMap<&'static str, String>,
}

impl Side {
    pub(crate) async fn connect(url: &str) -> Side {
        let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        Side { channel, tokens: HashMap::new() }
    }

    /// The same logins with a server that was started anew.
    pub(crate) async fn connect_as_before(url: &str, before: Side) -> Side {
        Side { tokens: before.tokens, ..Side::connect(url).await }
    }

    /// A request as it comes from somebody.
    pub(crate) fn of<T>(&self, who: Who, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let token = |name| self.tokens.get(name).cloned();
        let (key, token) = match who {
            Who::Nobody => return request,
            Who::Stranger => ("token", Some("abcdefghijklmnop.4".to_owned())),
            Who::User(name) => ("token", token(name)),
            Who::Http(name) => ("authorization", token(name)),
        };
        if let Some(token) = token {
            request.metadata_mut().insert(key, token.parse().unwrap());
        }
        request
    }

    pub(crate) async fn call(&mut self, who: Who, call: &Call) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, async {
            match call {
                Call::Login { name, password } => self.login(name, password).await,
                _ if call.is_of_auth() => self.auth(who, call).await,
                _ => self.guarded(who, call).await,
            }
        });
        answer.await.unwrap_or_else(|_| Err((Code::Aborted, "no answer came".to_owned())))
    }

    async fn login(&mut self, name: &'static str, password: &str) -> Answer {
        let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        let mut response = AuthClient::new(self.channel.clone()).authenticate(request).await.map_err(failed)?;
        let token = std::mem::take(&mut response.get_mut().token);
        let (letters, index) = token.split_once('.').unwrap();
        assert!(letters.len() == 16 && letters.bytes().all(|byte| byte.is_ascii_alphabetic()), "{token}");
        assert!(index.parse::<u64>().is_ok(), "{token}");
        self.tokens.insert(name, token);
        whole(Ok(response))
    }

    async fn auth(&self, who: Who, call: &Call) -> Answer {
        let mut auth = AuthClient::new(self.channel.clone());
        let text = |text: &&str| (*text).to_owned();
        match call {
            Call::Enable => whole(auth.auth_enable(self.of(who, pb::AuthEnableRequest {})).await),
            Call::Disable => whole(auth.auth_disable(self.of(who, pb::AuthDisableRequest {})).await),
            Call::AuthStatus => whole(auth.auth_status(self.of(who, pb::AuthStatusRequest {})).await),
            Call::UserAdd(request) => whole(auth.user_add(self.of(who, request.clone())).await),
            Call::UserGet(name) => {
                whole(auth.user_get(self.of(who, pb::AuthUserGetRequest { name: text(name) })).await)
            }
            Call::UserList => whole(auth.user_list(self.of(who, pb::AuthUserListRequest {})).await),
            Call::UserDelete(name) => {
                whole(auth.user_delete(self.of(who, pb::AuthUserDeleteRequest { name: text(name) })).await)
            }
            Call::ChangePassword(request) => whole(auth.user_change_password(self.of(who, request.clone())).await),
            Call::GrantRole { user, role } => {
                let request = pb::AuthUserGrantRoleRequest { user: text(user), role: text(role) };
                whole(auth.user_grant_role(self.of(who, request)).await)
            }
            Call::RevokeRole { user, role } => {
                let request = pb::AuthUserRevokeRoleRequest { name: text(user), role: text(role) };
                whole(auth.user_revoke_role(self.of(who, request)).await)
            }
            Call::RoleAdd(name) => {
                whole(auth.role_add(self.of(who, pb::AuthRoleAddRequest { name: text(name) })).await)
            }
            Call::RoleGet(role) => {
                whole(auth.role_get(self.of(who, pb::AuthRoleGetRequest { role: text(role) })).await)
            }
            Call::RoleList => whole(auth.role_list(self.of(who, pb::AuthRoleListRequest {})).await),
            Call::RoleDelete(role) => {
                whole(auth.role_delete(self.of(who, pb::AuthRoleDeleteRequest { role: text(role) })).await)
            }
            Call::GrantPermission(request) => whole(auth.role_grant_permission(self.of(who, request.clone())).await),
            Call::RevokePermission(request) => whole(auth.role_revoke_permission(self.of(who, request.clone())).await),
            _ => unreachable!("not of the Auth service"),
        }
    }

    async fn guarded(&self, who: Who, call: &Call) -> Answer {
        let mut kv = KvClient::new(self.channel.clone());
        let mut lease = LeaseClient::new(self.channel.clone());
        let mut cluster = ClusterClient::new(self.channel.clone());
        let mut maintenance = MaintenanceClient::new(self.channel.clone());
        match call {
            Call::Range(request) => whole(kv.range(self.of(who, request.clone())).await),
            Call::Put(request) => whole(kv.put(self.of(who, request.clone())).await),
            Call::Delete(request) => whole(kv.delete_range(self.of(who, request.clone())).await),
            Call::Txn(request) => whole(kv.txn(self.of(who, request.clone())).await),
            Call::Compact(request) => whole(kv.compact(self.of(who, *request)).await),
            Call::Watch(request) => self.watch(who, request).await,
            Call::Grant(request) => whole(lease.lease_grant(self.of(who, *request)).await),
            Call::Revoke(id) => whole(lease.lease_revoke(self.of(who, pb::LeaseRevokeRequest { id: *id })).await),
            Call::KeepAlive(id) => {
                let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id: *id });
                let mut responses = lease.lease_keep_alive(self.of(who, requests)).await.map_err(failed)?.into_inner();
                match responses.message().await.map_err(failed)? {
                    Some(response) => whole(Ok(Response::new(response))),
                    None => Ok("the stream ended".to_owned()),
                }
            }
            Call::TimeToLive(request) => {
                let response = lease.lease_time_to_live(self.of(who, *request)).await;
                edited(response, |response| {
                    // In no order, and by two clocks (LSE-9).
                    response.keys.sort();
                    response.ttl = response.ttl.signum();
                })
            }
            Call::Leases => {
                let response = lease.lease_leases(self.of(who, pb::LeaseLeasesRequest {})).await;
                edited(response, |response| response.leases.sort_by_key(|lease| lease.id))
            }
            Call::Members => any(cluster.member_list(self.of(who, pb::MemberListRequest::default())).await),
            Call::MemberRemove => any(cluster.member_remove(self.of(who, pb::MemberRemoveRequest { id: 7 })).await),
            Call::Status => any(maintenance.status(self.of(who, pb::StatusRequest {})).await),
            Call::Alarm(request) => {
                let response = maintenance.alarm(self.of(who, *request)).await;
                // 3.4 answers it without a header.
                edited(response, |response| response.header = None)
            }
            Call::Defragment => any(maintenance.defragment(self.of(who, pb::DefragmentRequest {})).await),
            Call::Hash => any(maintenance.hash(self.of(who, pb::HashRequest {})).await),
            Call::HashKv(revision) => {
                let response = maintenance.hash_kv(self.of(who, pb::HashKvRequest { revision: *revision })).await;
                edited(response, |response| response.hash_revision = 0)
            }
            Call::Snapshot => {
                let response = maintenance.snapshot(self.of(who, pb::SnapshotRequest {})).await.map_err(failed)?;
                response.into_inner().message().await.map(|_| String::new()).map_err(failed)
            }
            Call::MoveLeader => {
                any(maintenance.move_leader(self.of(who, pb::MoveLeaderRequest { target_id: 7 })).await)
            }
            _ => self.line(who, call).await,
        }
    }

    /// Locks and elections.
    async fn line(&self, who: Who, call: &Call) -> Answer {
        let mut locks = LockClient::new(self.channel.clone());
        let mut elections = ElectionClient::new(self.channel.clone());
        let name = |name: &str| election::LeaderRequest { name: name.to_owned().into() };
        match call {
            Call::Lock(request) => whole(locks.lock(self.of(who, request.clone())).await),
            Call::Unlock(key) => whole(locks.unlock(self.of(who, lock::UnlockRequest { key: (*key).into() })).await),
            Call::Campaign(request) => whole(elections.campaign(self.of(who, request.clone())).await),
            Call::Proclaim(request) => whole(elections.proclaim(self.of(who, request.clone())).await),
            Call::Leader(of) => whole(elections.leader(self.of(who, name(of))).await),
            Call::Observe(of) => {
                let request = self.of(who, name(of));
                let observed = async move { elections.observe(request).await?.into_inner().message().await };
                // Without a leader there is nothing to tell, and etcd sends not even headers.
                match tokio::time::timeout(Duration::from_millis(200), observed).await {
                    Ok(response) => any(response.map(Response::new)),
                    Err(_) => Ok(String::new()),
                }
            }
            Call::Resign(request) => whole(elections.resign(self.of(who, request.clone())).await),
            _ => unreachable!("each call is made somewhere"),
        }
    }

    /// What a watcher's creation is answered with.
    async fn watch(&self, who: Who, request: &pb::WatchCreateRequest) -> Answer {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let create = pb::watch_request::RequestUnion::CreateRequest(request.clone());
        sender.send(pb::WatchRequest { request_union: Some(create) }).await.unwrap();
        let mut client = WatchClient::new(self.channel.clone());
        let mut responses =
            client.watch(self.of(who, ReceiverStream::new(receiver))).await.map_err(failed)?.into_inner();
        match responses.message().await.map_err(failed)? {
            Some(response) => whole(Ok(Response::new(response))),
            None => Ok("the stream ended".to_owned()),
        }
    }
}

impl Call {
    fn is_of_auth(&self) -> bool {
        matches!(
            self,
            Call::Enable
                | Call::Disable
                | Call::AuthStatus
                | Call::UserAdd(_)
                | Call::UserGet(_)
                | Call::UserList
                | Call::UserDelete(_)
                | Call::ChangePassword(_)
                | Call::GrantRole { .. }
                | Call::RevokeRole { .. }
                | Call::RoleAdd(_)
                | Call::RoleGet(_)
                | Call::RoleList
                | Call::RoleDelete(_)
                | Call::GrantPermission(_)
                | Call::RevokePermission(_)
        )
    }
}
