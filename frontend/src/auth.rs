//! The Auth service.

use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::auth_server::Auth;
use crate::server::Server;
use crate::users::{Caller, Change, State};
use prost::Message;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The Auth service of a server.
#[derive(Debug, Clone)]
pub(crate) struct AuthService(pub(crate) Arc<Server>);

impl AuthService {
    /// Who asks; the size counts as that of any request that is written (SRV-1).
    fn caller<T: Message>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.0.caller(request.metadata())?;
        self.0.check_size(request.get_ref())?;
        Ok(caller)
    }

    /// Makes one change, and answers with the header of its response.
    async fn change<T: Message>(
        &self,
        request: Request<T>,
        change: impl FnOnce(T) -> Change,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        let caller = self.caller(&request)?;
        self.0.users.change(caller, change(request.into_inner())).await?;
        Ok(Some(self.0.header_now()))
    }
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let header = self.change(request, |_| Change::Enable).await?;
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let header = self.change(request, |_| Change::Disable).await?;
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let header = self.change(request, |pb::AuthUserDeleteRequest { name }| Change::DeleteUser { name }).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let header = self
            .change(request, |pb::AuthUserGrantRoleRequest { user, role }| Change::GrantRole { user, role })
            .await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let header = self
            .change(request, |pb::AuthUserRevokeRoleRequest { name, role }| Change::RevokeRole { user: name, role })
            .await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let header = self.change(request, |pb::AuthRoleAddRequest { name }| Change::AddRole { name }).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let header =
            self.change(request, |pb::AuthRoleDeleteRequest { role }| Change::DeleteRole { name: role }).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let header = self
            .change(request, |pb::AuthRoleGrantPermissionRequest { name, perm }| Change::GrantPermission {
                role: name,
                permission: perm,
            })
            .await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let header =
            self.change(request, |pb::AuthRoleRevokePermissionRequest { role, key, range_end }| {
                Change::RevokePermission { role, key, range_end }
            })
            .await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let caller = self.caller(&request)?;
        // Before the work of hashing.
        caller.check_root()?;
        let pb::AuthUserAddRequest { name, password, options, .. } = request.into_inner();
        let password = match options {
            Some(options) if options.no_password => None,
            _ => Some(self.0.users.hash(password).await?),
        };
        self.0.users.change(caller, Change::AddUser { name, password }).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header: Some(self.0.header_now()) }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let caller = self.caller(&request)?;
        caller.check_root()?;
        let pb::AuthUserChangePasswordRequest { name, password, .. } = request.into_inner();
        // An empty one is no hash of anything: nobody can log in until there is another.
        let password = if password.is_empty() { bytes::Bytes::new() } else { self.0.users.hash(password).await? };
        self.0.users.change(caller, Change::SetPassword { name, password }).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header: Some(self.0.header_now()) }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let token = self.0.users.authenticate(name, password).await?;
        Ok(Response::new(pb::AuthenticateResponse { header: Some(self.0.header_now()), token }))
    }

    /// For everybody, logged in or not (AUTH-3).
    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        drop(self.caller(&request)?);
        let (enabled, auth_revision) = self.0.users.status();
        Ok(Response::new(pb::AuthStatusResponse { header: Some(self.0.header_now()), enabled, auth_revision }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let caller = self.caller(&request)?;
        let name = request.into_inner().name;
        // Everybody may see themselves (AUTH-5).
        if !caller.is(&name) {
            caller.check_root()?;
        }
        let roles = self.0.users.look(|state| state.roles_of(&name))?;
        Ok(Response::new(pb::AuthUserGetResponse { header: Some(self.0.header_now()), roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        self.caller(&request)?.check_root()?;
        let users = self.0.users.look(State::users);
        Ok(Response::new(pb::AuthUserListResponse { header: Some(self.0.header_now()), users }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let caller = self.caller(&request)?;
        let role = request.into_inner().role;
        if !caller.has_role(&role) {
            caller.check_root()?;
        }
        let perm = self.0.users.look(|state| state.permissions_of(&role))?;
        Ok(Response::new(pb::AuthRoleGetResponse { header: Some(self.0.header_now()), perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        self.caller(&request)?.check_root()?;
        let roles = self.0.users.look(State::roles);
        Ok(Response::new(pb::AuthRoleListResponse { header: Some(self.0.header_now()), roles }))
    }
}
