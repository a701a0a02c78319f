//! The Auth service, which answers that authentication is not enabled.

use crate::proto::etcdserverpb as pb;
use crate::proto::etcdserverpb::auth_server::Auth;
use crate::server::Server;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The Auth service of a server.
#[derive(Debug, Clone)]
pub(crate) struct AuthService(pub(crate) Arc<Server>);

fn not_enabled() -> Status {
    Status::failed_precondition("etcdserver: authentication is not enabled")
}

/// Methods that need users, which there are none of.
macro_rules! not_enabled {
    ($($method:ident: $request:ident -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Auth for AuthService {
            async fn auth_status(&self, _: Request<pb::AuthStatusRequest>) -> Result<Response<pb::AuthStatusResponse>, Status> {
                let header = Some(self.0.header_now());
                Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
            }

            async fn auth_disable(&self, _: Request<pb::AuthDisableRequest>) -> Result<Response<pb::AuthDisableResponse>, Status> {
                Ok(Response::new(pb::AuthDisableResponse { header: Some(self.0.header_now()) }))
            }

            $(async fn $method(&self, _: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                Err(not_enabled())
            })*
        }
    };
}

not_enabled! {
    auth_enable: AuthEnableRequest -> AuthEnableResponse;
    authenticate: AuthenticateRequest -> AuthenticateResponse;
    user_add: AuthUserAddRequest -> AuthUserAddResponse;
    user_get: AuthUserGetRequest -> AuthUserGetResponse;
    user_list: AuthUserListRequest -> AuthUserListResponse;
    user_delete: AuthUserDeleteRequest -> AuthUserDeleteResponse;
    user_change_password: AuthUserChangePasswordRequest -> AuthUserChangePasswordResponse;
    user_grant_role: AuthUserGrantRoleRequest -> AuthUserGrantRoleResponse;
    user_revoke_role: AuthUserRevokeRoleRequest -> AuthUserRevokeRoleResponse;
    role_add: AuthRoleAddRequest -> AuthRoleAddResponse;
    role_get: AuthRoleGetRequest -> AuthRoleGetResponse;
    role_list: AuthRoleListRequest -> AuthRoleListResponse;
    role_delete: AuthRoleDeleteRequest -> AuthRoleDeleteResponse;
    role_grant_permission: AuthRoleGrantPermissionRequest -> AuthRoleGrantPermissionResponse;
    role_revoke_permission: AuthRoleRevokePermissionRequest -> AuthRoleRevokePermissionResponse;
}
