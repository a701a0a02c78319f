//! Who asks, and whether it may: made once per request.
//!
//! Whoever holds a caller holds up the answer to changes of users and roles, so a caller lives as long as
//! its request is executed, and not while it waits for others: streams and locks make one when they need it.

use super::AuthError;
use super::state::{Access, State};
use polybolt::{DeleteRequest, Keyspace, Op, PutRequest, Span, TxnRequest};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A state that requests are judged by. Dropping the last handle on it closes the channel.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) state: State,
    _open: mpsc::Sender<Infallible>,
}

/// A state, and what ends once nobody holds it any more.
pub(super) fn held(state: State) -> (Arc<Held>, mpsc::Receiver<Infallible>) {
    let (open, closed) = mpsc::channel(1);
    (Arc::new(Held { state, _open: open }), closed)
}

/// Who asks. Without authentication, everybody may do everything.
#[derive(Debug)]
pub(crate) struct Caller(Option<Known>);

#[derive(Debug)]
struct Known {
    held: Arc<Held>,
    /// None: no token came with the request.
    user: Option<Arc<str>>,
}

type Checked = Result<(), AuthError>;

impl Caller {
    pub(super) fn anyone() -> Caller {
        Caller(None)
    }

    pub(super) fn known(held: Arc<Held>, user: Option<Arc<str>>) -> Caller {
        Caller(Some(Known { held, user }))
    }

    pub(super) fn into_name(self) -> Option<Arc<str>> {
        self.0?.user
    }

    /// The role root is needed.
    pub(crate) fn check_root(&self) -> Checked {
        match &self.0 {
            Some(Known { held, user }) => Caller::check_root_of(&held.state, user.as_deref()),
            None => Ok(()),
        }
    }

    pub(super) fn check_root_of(state: &State, user: Option<&str>) -> Checked {
        if !state.enabled {
            return Ok(());
        }
        let user = user.ok_or(AuthError::UserEmpty)?;
        if state.is_root(user) { Ok(()) } else { Err(AuthError::PermissionDenied) }
    }

    /// Any user will do.
    pub(crate) fn check_user(&self) -> Checked {
        match &self.0 {
            Some(Known { user: None, .. }) => Err(AuthError::UserEmpty),
            _ => Ok(()),
        }
    }

    /// True if it is this user.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.0.as_ref().is_some_and(|known| known.user.as_deref() == Some(name))
    }

    /// True if it has this role.
    pub(crate) fn has_role(&self, role: &str) -> bool {
        let Some(Known { held, user: Some(user) }) = &self.0 else {
            return false;
        };
        held.state.roles_of(user).is_ok_and(|roles| roles.iter().any(|held| held == role))
    }

    /// The revision of users and roles that it is judged by; None without authentication.
    pub(crate) fn revision(&self) -> Option<u64> {
        self.0.as_ref().map(|known| known.held.state.revision)
    }

    fn check(&self, access: Access, span: &Span) -> Checked {
        match &self.0 {
            Some(Known { held, user: Some(user) }) => held.state.check(user, access, span),
            Some(Known { user: None, .. }) => Err(AuthError::UserEmpty),
            None => Ok(()),
        }
    }

    pub(crate) fn check_read(&self, span: &Span) -> Checked {
        self.check(Access::Read, span)
    }

    pub(crate) fn check_write(&self, span: &Span) -> Checked {
        self.check(Access::Write, span)
    }

    pub(crate) fn check_put(&self, request: &PutRequest, keyspace: &Keyspace) -> Checked {
        if self.0.is_none() {
            return Ok(());
        }
        let span = Span::key(request.key.clone());
        self.check_write(&span)?;
        // Whoever ends the lease deletes its keys: who may not write those must not lengthen the list (LSE-19).
        if request.lease != 0 {
            self.check_lease(request.lease, Access::Write, keyspace)?;
        }
        if request.prev_kv { self.check_read(&span) } else { Ok(()) }
    }

    pub(crate) fn check_delete(&self, request: &DeleteRequest) -> Checked {
        self.check_write(&request.span)?;
        if request.prev_kv { self.check_read(&request.span) } else { Ok(()) }
    }

    /// The guard and both branches, whichever is taken (AUTH-4).
    pub(crate) fn check_txn(&self, request: &TxnRequest, keyspace: &Keyspace) -> Checked {
        if self.0.is_none() {
            return Ok(());
        }
        for compare in &request.compare {
            self.check_read(&compare.span)?;
        }
        for op in request.success.iter().chain(&request.failure) {
            match op {
                Op::Range(range) => self.check_read(&range.span)?,
                Op::Put(put) => self.check_put(put, keyspace)?,
                Op::Delete(delete) => self.check_delete(delete)?,
                Op::Txn(txn) => self.check_txn(txn, keyspace)?,
                // Refused before it comes here.
                Op::Invalid(_) => {}
            }
        }
        Ok(())
    }

    /// May revoke or renew a lease: write all its keys.
    pub(crate) fn check_lease_write(&self, lease: i64, keyspace: &Keyspace) -> Checked {
        self.check_lease(lease, Access::Write, keyspace)
    }

    /// May see the keys of a lease.
    pub(crate) fn check_lease_read(&self, lease: i64, keyspace: &Keyspace) -> Checked {
        self.check_lease(lease, Access::Read, keyspace)
    }

    fn check_lease(&self, lease: i64, access: Access, keyspace: &Keyspace) -> Checked {
        if self.check_root().is_ok() {
            return Ok(());
        }
        let keys = keyspace.lease_time_to_live(lease, true).map(|lease| lease.keys).unwrap_or_default();
        keys.into_iter().try_for_each(|key| self.check(access, &Span::key(key)))
    }
}
