//! The current state, its tables, and how one state follows another.

use super::AuthError;
use super::caller::{Caller, Held, held};
use super::passwords::Passwords;
use super::state::{Change, Draft, SignOut, State};
use super::tokens::Tokens;
use crate::convert;
use bytes::Bytes;
use parking_lot::RwLock;
use polybolt::{Keyspace, Result};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// Who may use a keyspace, and how.
#[derive(Debug)]
pub(crate) struct Users {
    // Set when it starts, never changed.
    keyspace: Keyspace,
    passwords: Passwords,
    tokens: Tokens,

    /// As in the current state: all that a request looks at while it is off.
    enabled: AtomicBool,
    current: RwLock<Arc<Held>>,
    /// The right to change, one at a time, with what ends once nobody holds the current state any more.
    changes: tokio::sync::Mutex<mpsc::Receiver<Infallible>>,
}

impl Users {
    /// Reads users and roles of a keyspace.
    pub(crate) fn load(keyspace: &Keyspace, token_ttl: Duration, bcrypt_cost: u32) -> Result<Arc<Users>> {
        let state = State::load(|table| keyspace.table_list(table))?;
        let enabled = AtomicBool::new(state.enabled);
        let (current, closed) = held(state);
        Ok(Arc::new(Users {
            keyspace: keyspace.clone(),
            passwords: Passwords::new(bcrypt_cost),
            tokens: Tokens::new(token_ttl),
            enabled,
            current: RwLock::new(current),
            changes: tokio::sync::Mutex::new(closed),
        }))
    }

    /// Who asks, by the token that a request brings.
    pub(crate) fn caller(&self, metadata: &MetadataMap) -> Result<Caller, AuthError> {
        // One that comes while authentication is being turned on may still be before it.
        if !self.enabled() {
            return Ok(Caller::anyone());
        }
        let held = self.current();
        if !held.state.enabled {
            return Ok(Caller::anyone());
        }
        // After the state: a token that is good now was good at that state.
        let user = match metadata.get("token").or_else(|| metadata.get("authorization")) {
            Some(token) => {
                let token = token.to_str().map_err(|_| AuthError::InvalidToken)?;
                let token = token.strip_prefix("Bearer ").unwrap_or(token);
                Some(self.tokens.user(token, Instant::now()).ok_or(AuthError::InvalidToken)?)
            }
            None => None,
        };
        Ok(Caller::known(held, user))
    }

    /// True if authentication is on, as far as a request has to know before it looks closer.
    pub(crate) fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Refuses what was read while users or roles changed (AUTH-6); `revision` is that of the caller.
    pub(crate) fn check_unchanged(&self, revision: Option<u64>) -> std::result::Result<(), AuthError> {
        match revision {
            Some(revision) if revision != self.current().state.revision => Err(AuthError::OldRevision),
            _ => Ok(()),
        }
    }

    /// True if authentication is on, and the revision of users and roles.
    pub(crate) fn status(&self) -> (bool, u64) {
        let held = self.current();
        (held.state.enabled, held.state.revision)
    }

    fn current(&self) -> Arc<Held> {
        Arc::clone(&self.current.read())
    }

    /// Users and roles as they are now, for those who may see them.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.current().state)
    }

    pub(crate) async fn hash(&self, password: String) -> Result<Bytes, Status> {
        self.passwords.hash(password).await
    }

    /// A token for whoever knows the password.
    pub(crate) async fn authenticate(&self, name: String, password: String) -> Result<String, Status> {
        loop {
            let (hash, revision) = self.look(|state| match state.enabled {
                true => Ok((state.password(&name)?, state.revision)),
                false => Err(AuthError::NotEnabled),
            })?;
            if !self.passwords.matches(password.clone(), hash).await? {
                return Err(AuthError::Failed.into());
            }
            // The password may have changed meanwhile, and its tokens have been dropped: once more, then.
            let still = || self.look(|state| state.enabled && state.revision == revision);
            if let Some(token) = self.tokens.assign(&name, self.keyspace.revision(), Instant::now(), still) {
                return Ok(token);
            }
        }
    }

    /// Makes a change that `caller` may make. Once it is answered, every request is judged by it, and
    /// it outlives a crash.
    pub(crate) async fn change(self: &Arc<Self>, caller: Caller, change: Change) -> Result<(), Status> {
        caller.check_root()?;
        // A caller that kept its state would make the change before it wait for it.
        let name = caller.into_name();
        let users = Arc::clone(self);
        // What is stored has to be in effect, also where the client has gone.
        let made = tokio::spawn(async move { users.change_in_turn(name.as_deref(), change).await });
        made.await.map_err(|error| Status::internal(error.to_string()))?
    }

    async fn change_in_turn(&self, name: Option<&str>, change: Change) -> Result<(), Status> {
        let mut closed = self.changes.lock().await;
        let draft = self.look(|state| {
            Caller::check_root_of(state, name)?;
            state.change(change)
        })?;
        let Some(Draft { state, edits, sign_out }) = draft else {
            return Ok(());
        };
        self.keyspace.table_write(edits).await.map_err(|error| convert::status(&error))?;
        let (enabled, revision) = (state.enabled, state.revision);
        let (next, next_closed) = held(state);
        drop(std::mem::replace(&mut *self.current.write(), next));
        self.enabled.store(enabled, Ordering::Relaxed);
        match &sign_out {
            SignOut::Nobody => {}
            SignOut::User(name) => self.tokens.drop_user(name),
            SignOut::Everybody => self.tokens.drop_all(),
        }
        tracing::info!(enabled, revision, "users or roles changed");
        // Nothing is ever sent: this waits for those who are judged by the state before.
        std::mem::replace(&mut *closed, next_closed).recv().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polybolt::{Engine, Options, Routes, Span};

    fn metadata(token: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
        metadata
    }

    async fn change(users: &Arc<Users>, token: &str, change: Change) -> std::result::Result<(), Status> {
        let caller = users.caller(&metadata(token))?;
        users.change(caller, change).await
    }

    /// Root, with its token, and alice, who may read everything.
    async fn some(users: &Arc<Users>) -> String {
        let password = Some(users.hash("secret".into()).await.unwrap());
        let everything = crate::proto::authpb::Permission { key: "\0".into(), range_end: "\0".into(), perm_type: 0 };
        for each in [
            Change::AddUser { name: "root".into(), password: password.clone() },
            Change::GrantRole { user: "root".into(), role: "root".into() },
            Change::AddUser { name: "alice".into(), password },
            Change::AddRole { name: "reader".into() },
            Change::GrantPermission { role: "reader".into(), permission: Some(everything) },
            Change::GrantRole { user: "alice".into(), role: "reader".into() },
            Change::Enable,
        ] {
            change(users, "none", each).await.unwrap();
        }
        users.authenticate("root".into(), "secret".into()).await.unwrap()
    }

    /// It went into a page that it does not fit, and the store did not open any more.
    #[tokio::test]
    async fn a_name_that_no_table_holds_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), Options::default()).unwrap();
        let keyspace = engine.create_keyspace("users", Routes::single()).unwrap();
        let users = Users::load(&keyspace, Duration::from_secs(60), 4).unwrap();
        for name in ["n".repeat(600), "n".repeat(70_000)] {
            for each in [Change::AddUser { name: name.clone(), password: None }, Change::AddRole { name: name.clone() }]
            {
                let refused = change(&users, "none", each).await.unwrap_err();
                assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
            }
        }
        change(&users, "none", Change::AddUser { name: "n".repeat(500), password: None }).await.unwrap();
        assert_eq!(users.look(|state| (state.users().len(), state.roles().len())), (1, 0));
        engine.close().unwrap();
        Engine::open(dir.path(), Options::default()).unwrap().verify(&mut |_| ()).unwrap();
    }

    #[tokio::test]
    async fn a_change_is_answered_once_no_request_is_judged_by_what_was_before_auth_6() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), Options::default()).unwrap();
        let keyspace = engine.create_keyspace("users", Routes::single()).unwrap();
        let users = Users::load(&keyspace, Duration::from_secs(60), 4).unwrap();
        let root = some(&users).await;
        let alice = users.authenticate("alice".into(), "secret".into()).await.unwrap();
        let running = users.caller(&metadata(&alice)).unwrap();
        let all = Span::prefix("");
        running.check_read(&all).unwrap();
        let made = tokio::spawn({
            let (users, root) = (Arc::clone(&users), root.clone());
            let revoke = Change::RevokeRole { user: "alice".into(), role: "reader".into() };
            async move { change(&users, &root, revoke).await }
        });
        // It is in effect for those who come now,
        while users.caller(&metadata(&alice)).unwrap().check_read(&all).is_ok() {
            tokio::task::yield_now().await;
        }
        // but one is still judged by what was before, and is not answered: it reads.
        running.check_read(&all).unwrap();
        assert_eq!(users.check_unchanged(running.revision()), Err(AuthError::OldRevision));
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(!made.is_finished());
        drop(running);
        made.await.unwrap().unwrap();
        // Two who change at once do not wait for each other for ever.
        let both = [Change::AddRole { name: "one".into() }, Change::AddRole { name: "two".into() }];
        let [one, two] = both.map(|each| change(&users, &root, each));
        let (one, two) = tokio::join!(one, two);
        one.and(two).unwrap();
        // Loaded again, it is the same, but for the logins.
        let again = Users::load(&keyspace, Duration::from_secs(60), 4).unwrap();
        assert_eq!(again.look(|state| format!("{state:?}")), users.look(|state| format!("{state:?}")));
        assert_eq!(again.caller(&metadata(&root)).unwrap_err(), AuthError::InvalidToken);
        engine.close().unwrap();
    }
}
