//! Why a caller or a change is refused, with etcd's codes and words.

use tonic::{Code, Status};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthError {
    NotEnabled,
    RootUserMissing,
    RootRoleMissing,
    UserExists,
    UserEmpty,
    UserNotFound,
    RoleExists,
    RoleEmpty,
    RoleNotFound,
    RoleNotGranted,
    PermissionNotGiven,
    PermissionNotGranted,
    /// It would lock everybody out, or is no interval.
    InvalidManagement,
    /// Name or password is wrong; which of them is not told.
    Failed,
    /// A password was given for a user that has none.
    NoPasswordUser,
    PasswordTooLong,
    InvalidToken,
    PermissionDenied,
    /// Users or roles changed while the request was executed.
    OldRevision,
}

impl AuthError {
    /// The form in which the refusal of a watch says it (WCH-10).
    pub(crate) fn cancel_reason(self) -> String {
        let (code, text) = self.parts();
        format!("rpc error: code = {code:?} desc = {text}")
    }

    fn parts(self) -> (Code, &'static str) {
        match self {
            AuthError::NotEnabled => (Code::FailedPrecondition, "etcdserver: authentication is not enabled"),
            AuthError::RootUserMissing => (Code::FailedPrecondition, "etcdserver: root user does not exist"),
            AuthError::RootRoleMissing => (Code::FailedPrecondition, "etcdserver: root user does not have root role"),
            AuthError::UserExists => (Code::FailedPrecondition, "etcdserver: user name already exists"),
            AuthError::UserEmpty => (Code::InvalidArgument, "etcdserver: user name is empty"),
            AuthError::UserNotFound => (Code::FailedPrecondition, "etcdserver: user name not found"),
            AuthError::RoleExists => (Code::FailedPrecondition, "etcdserver: role name already exists"),
            AuthError::RoleEmpty => (Code::InvalidArgument, "etcdserver: role name is empty"),
            AuthError::RoleNotFound => (Code::FailedPrecondition, "etcdserver: role name not found"),
            AuthError::RoleNotGranted => (Code::FailedPrecondition, "etcdserver: role is not granted to the user"),
            AuthError::PermissionNotGiven => (Code::InvalidArgument, "etcdserver: permission not given"),
            AuthError::PermissionNotGranted => {
                (Code::FailedPrecondition, "etcdserver: permission is not granted to the role")
            }
            AuthError::InvalidManagement => (Code::InvalidArgument, "etcdserver: invalid auth management"),
            AuthError::Failed => {
                (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
            }
            AuthError::NoPasswordUser => {
                (Code::Unknown, "auth: authentication failed, password was given for no password user")
            }
            AuthError::PasswordTooLong => (Code::Unknown, "bcrypt: password length exceeds 72 bytes"),
            AuthError::InvalidToken => (Code::Unauthenticated, "etcdserver: invalid auth token"),
            AuthError::PermissionDenied => (Code::PermissionDenied, "etcdserver: permission denied"),
            AuthError::OldRevision => (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
        }
    }
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Status {
        let (code, text) = error.parts();
        Status::new(code, text)
    }
}
